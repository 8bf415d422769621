//! What a role of the runtime's cannot do to the lane, or to another team's table, by the functions that make documents.

use super::*;

/// A role with the duty, and a schema and a table of its own that is attached.
async fn team(database: &Database, owner: &mut PgConnection) -> (String, PgConnection) {
    let (name, mut connection) = with_duties(database, &["runtime"]).await;
    owner
        .execute(&*format!(
            "create schema {name} authorization {name}; grant usage on schema {name} to public"
        ))
        .await
        .unwrap();
    let table = format!(
        "create table {name}.items (id int primary key, note text);
         select runtime.sync_attach('{name}.items', stream => '{name}');
         insert into {name}.items values (1, 'mine')"
    );
    connection.execute(&*table).await.unwrap();
    (name, connection)
}

/// A trigger that somebody makes by hand has no rows of its own. A temporary view in their place would run their function with the
/// rights of the lane's owner.
#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_by_hand_reads_nothing_of_whoever_writes() {
    let database = database().await;
    let mut owner = owner(&database).await;
    let (name, mut connection) = team(&database, &mut owner).await;
    connection
        .execute(&*format!(
            "create function {name}.deed() returns int language plpgsql
                 as $$ begin raise exception 'this runs as %', current_user; end $$;
             create temporary view new_rows as select {name}.deed() as id;
             create temporary view old_rows as select {name}.deed() as id"
        ))
        .await
        .unwrap();
    let writes = [
        format!("insert into {name}.items values (2)"),
        format!("update {name}.items set note = 'other'"),
        format!("delete from {name}.items"),
    ];
    // The lane's own triggers refuse such a session as well.
    for write in &writes {
        assert_eq!(refusal(&mut connection, write).await.0, "SY014", "{write}");
    }
    connection
        .execute(&*format!("select runtime.sync_detach('{name}.items')"))
        .await
        .unwrap();
    for level in ["statement", "row"] {
        connection
            .execute(&*format!(
                "create or replace trigger by_hand after insert or update or delete on {name}.items
                     for each {level} execute function runtime.sync_document('{name}.items')"
            ))
            .await
            .unwrap();
        for write in &writes {
            assert_eq!(refusal(&mut connection, write).await.0, "SY014", "{level}: {write}");
        }
    }
    connection
        .execute("drop view new_rows; drop view old_rows")
        .await
        .unwrap();
    for write in &writes {
        assert_eq!(refusal(&mut connection, write).await.0, "SY014", "{write}");
    }
    assert_eq!(told(&mut owner, &name).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_reads_or_writes_the_documents_of_anothers_table() {
    let database = database().await;
    let mut owner = owner(&database).await;
    let (victim, mut attacked) = team(&database, &mut owner).await;
    let (name, mut attacker) = team(&database, &mut owner).await;
    let calls = [
        format!(
            "select runtime.sync_write_rows('{victim}.items', array['{{\"id\":1}}'::jsonb], '{{}}', '{{{victim}}}', 'done', null, 0)"
        ),
        format!("select runtime.sync_write_rows('{victim}.items', '{{}}', '{{1}}', '{{{victim}}}', 'done', null, 0)"),
        format!("select * from runtime.sync_documents_after('{victim}.items', '', 10)"),
        format!("select runtime.sync_begin_reprojection('{victim}.items', true)"),
        format!("select runtime.sync_register_table('x', 'mine', '{victim}.items', '{{id}}', '{{}}')"),
        format!("select runtime.sync_reproject('{victim}.items', 10, true)"),
    ];
    let claim = format!("insert into runtime.sync_callers (source) values ('{victim}.items')");
    for call in &calls {
        assert_eq!(refusal(&mut attacker, call).await.0, "42501", "{call}");
        // To say that one asks helps nobody who has no right to the table, and nobody says it for another.
        let claimed = format!("begin; {claim}; {call}");
        assert_eq!(refusal(&mut attacker, &claimed).await.0, "42501", "{claimed}");
        attacker.execute("rollback").await.unwrap();
    }
    let forged = format!("insert into runtime.sync_callers (source, caller) values ('{victim}.items', '{victim}')");
    assert_eq!(refusal(&mut attacker, &forged).await.0, "42501");

    // Nor by a function that the table's people are made to call, even after they have asked in the same transaction.
    for (nth, call) in calls.iter().enumerate() {
        let quoted = call.replace('\'', "''");
        attacker
            .execute(&*format!(
                "create function {name}.deputy_{nth}() returns void language plpgsql security definer
                     as 'begin execute $call${quoted}$call$; end'"
            ))
            .await
            .unwrap();
        let asked = format!(
            "begin; select runtime.sync_reproject('{victim}.items', 10, true); select runtime.sync_reproject('{victim}.items', 10);
             select runtime.sync_reproject('{victim}.items', 10); select runtime.sync_reproject('{victim}.items', 10);
             select {name}.deputy_{nth}()"
        );
        assert_eq!(refusal(&mut attacked, &asked).await.0, "42501", "{call}");
        attacked.execute("rollback").await.unwrap();
    }
    // Who may read the table alone writes no documents of it, because it could write others than the rows.
    owner
        .execute(&*format!("grant select on {victim}.items to {name}"))
        .await
        .unwrap();
    assert_eq!(refusal(&mut attacker, &calls[5]).await.0, "42501");
    assert_eq!(told(&mut owner, &victim).await.len(), 1);
    assert_eq!(number(&mut owner, "select count(*) from runtime.sync_callers").await, 0);
}

/// A comparison runs no cast and no check that the table's owner has made, because the operator calls it.
#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_runs_nothing_of_the_tables_owner() {
    let database = database().await;
    let mut owner = owner(&database).await;
    let (name, mut connection) = team(&database, &mut owner).await;
    let deceiving = format!(
        "set search_path = {name};
         create type mood as enum ('sad', 'ok');
         create function cast_to(text) returns mood language plpgsql
             as $$ begin raise exception 'this runs as %', current_user; end $$;
         create cast (text as mood) with function cast_to(text);
         create function cast_from(mood) returns json language plpgsql
             as $$ begin raise exception 'this runs as %', current_user; end $$;
         create cast (mood as json) with function cast_from(mood);
         create function checked(int) returns bool language plpgsql
             as $$ begin if current_user <> '{name}' then raise exception 'this runs as %', current_user; end if; return true; end $$;
         create domain small as int check (checked(value));
         create table moods (mood mood, small small, fixed char(4), price numeric(5, 1), at timestamptz,
             primary key (mood, small, fixed, price, at));
         insert into moods values ('sad', 1, 'a', 1.5, '2026-01-01 10:00+02'), ('ok', 2, 'it''s', 1.5, '2026-01-01 10:00+02'),
             ('ok', 3, '\\', -1.5, '2026-01-01 10:00+02');
         select runtime.sync_attach('moods', stream => 'moods')"
    );
    connection.execute(&*deceiving).await.unwrap();
    assert_eq!(told(&mut owner, "moods").await.len(), 3);
    owner
        .execute(&*format!(
            "alter table {name}.moods disable trigger all; delete from {name}.moods where small = 3; alter table {name}.moods enable trigger all"
        ))
        .await
        .unwrap();
    let page = format!("select phase from runtime.sync_reproject('{name}.moods', 2, $1)");
    let mut phase = String::new();
    let mut pages = 0;
    while phase != "done" {
        phase = sqlx::query_scalar(&page)
            .bind(pages == 0)
            .fetch_one(&mut owner)
            .await
            .unwrap();
        pages += 1;
        assert!(pages < 10, "it does not end: {phase}");
    }
    let told = told(&mut owner, "moods").await;
    assert_eq!((told.len(), told[3].0.as_str()), (4, "document.delete"));
}

/// Who does not see all rows would take the documents of the others for those of deleted rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_of_some_of_the_rows_is_refused() {
    let database = database().await;
    let mut owner = owner(&database).await;
    let (name, mut connection) = with_duties(&database, &["runtime"]).await;
    owner
        .execute(&*format!(
            "create table public.items (id int primary key, owned_by text);
             insert into public.items values (1, '{name}'), (2, 'another');
             select runtime.sync_attach('public.items', stream => 's');
             alter table public.items enable row level security;
             create policy mine on public.items using (owned_by = current_user);
             grant select, trigger on public.items to {name}"
        ))
        .await
        .unwrap();
    let (code, message) = refusal(
        &mut connection,
        "select runtime.sync_reproject('public.items', 10, true)",
    )
    .await;
    assert_eq!(code, "42501", "{message}");
    assert!(message.contains("row-level security"), "{message}");
    assert_eq!(told(&mut owner, "s").await.len(), 2);
}
