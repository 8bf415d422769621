//! The cost of calls, in blocks that Postgres touches: it does not grow with the tables.

use super::*;

/// Blocks that a statement touches, including those of the functions that it calls.
async fn blocks(connection: &mut PgConnection, statement: &str) -> i64 {
    let plan: serde_json::Value = sqlx::query_scalar(&format!("explain (analyze, buffers, format json) {statement}"))
        .fetch_one(connection)
        .await
        .unwrap();
    let of = |what: &str| plan[0]["Plan"][what].as_i64().unwrap();
    of("Shared Hit Blocks") + of("Shared Read Blocks")
}

/// A database whose tables Postgres believes to be empty, whatever is inserted.
async fn believed_empty() -> (Database, PgConnection) {
    let database = Cluster::shared().await.create_database().await.unwrap();
    let mut connection = client(&database).await;
    for statement in [
        "alter table runtime.sync_streams set (autovacuum_enabled = false)",
        "alter table runtime.sync_stream_events set (autovacuum_enabled = false)",
        "vacuum analyze runtime.sync_streams, runtime.sync_stream_events",
    ] {
        connection.execute(statement).await.unwrap();
    }
    (database, connection)
}

fn batch(from: usize, to: usize) -> String {
    format!(
        "select runtime.sync_append_batch('s', array_agg('key-' || n), array_agg('k'::text), array_agg('\\x01'::bytea))
         from generate_series({from}, {to}) n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cost_of_an_append_does_not_grow_with_the_tables() {
    let (_database, mut connection) = believed_empty().await;
    // Each kind of append runs twice, among few events and among many, in one session, because a plan lives as long as
    // the session.
    let kinds = async |connection: &mut PgConnection, held: usize| {
        let single = |n: usize| format!("select runtime.sync_append('s', 'key-{n}', 'k', '\\x01')");
        [
            ("a batch", blocks(connection, &batch(held + 1, held + 10)).await),
            (
                "a batch of repeats",
                blocks(connection, &batch(held + 1, held + 10)).await,
            ),
            (
                "a batch with repeats",
                blocks(connection, &batch(held + 6, held + 15)).await,
            ),
            ("one event", blocks(connection, &single(held + 16)).await),
            ("a repeat", blocks(connection, &single(held + 16)).await),
        ]
    };
    kinds(&mut connection, 0).await;
    let few = kinds(&mut connection, 100).await;
    for from in (1_001..20_000).step_by(1_000) {
        connection.execute(&*batch(from, from + 999)).await.unwrap();
    }
    for n in 0..2_000 {
        let statement = format!("select runtime.sync_append('other-{n}', 'key', 'k', '\\x01')");
        connection.execute(&*statement).await.unwrap();
    }
    let many = kinds(&mut connection, 30_000).await;
    for ((what, few), (_, many)) in few.into_iter().zip(many) {
        // The indexes have one more level.
        assert!(
            many <= 2 * few,
            "{what}: {few} blocks among 100 events, {many} among 20,000"
        );
    }
}

/// Without vacuum, the index still has the entries of events that a purge removed.
#[tokio::test(flavor = "multi_thread")]
async fn the_cost_of_a_batch_does_not_grow_with_what_was_purged() {
    let (_database, mut connection) = believed_empty().await;
    // Before the first and behind the last of all other keys.
    let around = |n: usize| format!("select runtime.sync_append_batch('s', '{{a-{n},z-{n}}}', '{{k,k}}', '{{p,p}}')");
    connection.execute(&*batch(1, 10)).await.unwrap();
    let few = blocks(&mut connection, &around(1)).await;
    for from in (11..10_000).step_by(1_000) {
        connection.execute(&*batch(from, from + 999)).await.unwrap();
    }
    for statement in [
        // The event that stays has the last key of all, behind those of the purged ones.
        "select runtime.sync_append('s', 'last', 'k', 'p')",
        "update runtime.sync_streams set published_seq = head_seq",
        "update runtime.sync_retention set window_events = 1, log_events = 1 where class = 'otherwise'",
        "select runtime.sync_purge('s', 1000000)",
    ] {
        connection.execute(statement).await.unwrap();
    }
    let many = blocks(&mut connection, &around(2)).await;
    assert!(
        many <= 2 * few,
        "{few} blocks among 10 events, {many} after a purge of 10,000"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cost_of_the_bridges_queries_does_not_grow_with_the_tables() {
    const ROUNDS: usize = 10;
    let (database, mut connection) = believed_empty().await;
    let id = stream("s");
    let authority = Authority::connect(database.url(), 1).await.unwrap();
    let round = async || {
        authority.position(&id).await.unwrap();
        authority.chain_at(&id, seq(1)).await.unwrap();
        authority.standings(&[(id.clone(), seq(1))]).await.unwrap();
        authority.read_events(&id, Seq::ZERO, 10, ALL).await.unwrap();
        authority.dirty_streams(None, 10).await.unwrap();
        authority.look(None, 10, &[(id.clone(), seq(1))]).await.unwrap();
        authority.streams_after(None, 10).await.unwrap();
        authority.advance_published(&[(id.clone(), seq(1))]).await.unwrap();
        authority.set_published(&[(id.clone(), Seq::ZERO)]).await.unwrap();
        authority.rewind_published(&id, Seq::ZERO).await.unwrap();
    };
    connection.execute(&*batch(1, 10)).await.unwrap();
    // The server keeps a statement's plan from the sixth execution on.
    for _ in 0..ROUNDS {
        round().await;
    }
    connection.execute(&*batch(11, 10_000)).await.unwrap();
    for n in 0..5_000 {
        let statement = format!("select runtime.sync_append('other-{n}', 'key', 'k', '\\x01')");
        connection.execute(&*statement).await.unwrap();
    }
    let touched = async |connection: &mut PgConnection| -> i64 {
        connection.execute("select pg_stat_force_next_flush()").await.unwrap();
        sqlx::query_scalar(
            "select sum(heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit)::bigint
             from pg_statio_user_tables where schemaname = 'runtime'",
        )
        .fetch_one(connection)
        .await
        .unwrap()
    };
    let before = touched(&mut connection).await;
    for _ in 0..ROUNDS {
        round().await;
    }
    // A connection reports its counts when it ends.
    authority.close().await;
    eventually("the end of the bridge's connection", async || {
        let others: i64 = sqlx::query_scalar(
            "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()",
        )
        .fetch_one(&mut connection)
        .await
        .unwrap();
        others == 0
    })
    .await;
    let each = (touched(&mut connection).await - before) / ROUNDS as i64;
    assert!(each < 200, "{each} blocks a round");
}
