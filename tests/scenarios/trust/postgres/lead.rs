//! The lead: only a bridge can hold it, and holding it harms nobody.

use spacetime_sync_tests::lane::{BridgeOptions, Lane};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_a_bridge_can_hold_the_lead() {
    let lane = Lane::start().await.unwrap();
    let mut runtime = with_duties(&lane.database, &["runtime", "reading", "purge"]).await;
    // "synclead" in ASCII: the advisory lock that once was the lead. Postgres lets everybody take any advisory lock.
    runtime
        .execute("select pg_advisory_lock(x'73796e636c656164'::bigint)")
        .await
        .unwrap();
    for mode in [
        "access share",
        "row share",
        "row exclusive",
        "share update exclusive",
        "share",
        "share row exclusive",
        "exclusive",
        "access exclusive",
    ] {
        let lock = format!("do $$ begin lock table runtime.sync_lead in {mode} mode; end $$");
        assert_eq!(refusal(&mut runtime, &lock).await, DENIED, "{mode}");
    }
    all_denied(
        &mut runtime,
        &["select from runtime.sync_lead", "select runtime.sync_take_lead()"],
    )
    .await;
    // Postgres locks before it checks rights. Whoever may use the schema keeps such a lock by preparing a statement, and
    // whoever may do nothing at all by a function that takes the view for a sequence.
    runtime
        .execute("begin; prepare p as select from runtime.sync_lead for update")
        .await
        .unwrap();
    let mut nobody = with_duties(&lane.database, &[]).await;
    let mut owner = owner(&lane.database).await;
    let lead: i64 = sqlx::query_scalar("select 'runtime.sync_lead'::regclass::oid::bigint")
        .fetch_one(&mut owner)
        .await
        .unwrap();
    nobody.execute("begin; savepoint a").await.unwrap();
    let takes = format!("select nextval({lead}::oid::regclass)");
    assert_eq!(refusal(&mut nobody, &takes).await, "42809");
    nobody.execute("rollback to a").await.unwrap();
    let held: Vec<String> = sqlx::query_scalar(
        "select mode from pg_locks where relation = 'runtime.sync_lead'::regclass
             and database = (select oid from pg_database where datname = current_database()) and granted order by mode",
    )
    .fetch_all(&mut owner)
    .await
    .unwrap();
    assert_eq!(held, ["RowExclusiveLock", "RowShareLock"]);
    let bridge = lane.bridge().unwrap();
    let leads = bridge.until("/healthz", SOON, |_, health| health["role"] == "leading");
    leads.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lead_passes_between_roles_of_the_duty_and_holds_nothing_up() {
    let database = database().await;
    let (_, url) = database.login(&["spacetime_sync_bridge"]).await.unwrap();
    let (_, other) = database.login(&["spacetime_sync_bridge"]).await.unwrap();
    let first = Authority::connect(&url, 1).await.unwrap();
    let second = Authority::connect(&other, 1).await.unwrap();
    let lead = first.try_lead().await.unwrap().expect("the lead is free");
    let mut standby = second.candidate();
    for _ in 0..3 {
        assert!(standby.try_lead().await.unwrap().is_none());
    }

    // Its transaction is open, and has neither an id nor a snapshot, which would keep vacuum from its work.
    let mut owner = owner(&database).await;
    let of_lead = "from pg_stat_activity where pid = (
        select l.pid from pg_locks l join pg_database d on d.oid = l.database
        where d.datname = current_database() and l.relation = 'runtime.sync_lead'::regclass and l.granted)";
    let (state, holds): (String, bool) = sqlx::query_as(&format!(
        "select state, backend_xid is not null or backend_xmin is not null {of_lead}"
    ))
    .fetch_one(&mut owner)
    .await
    .unwrap();
    assert_eq!((state.as_str(), holds), ("idle in transaction", false));
    // Neither a vacuum of everything nor the roles wait for it.
    owner
        .execute("set lock_timeout = '5s'; set statement_timeout = '60s'")
        .await
        .unwrap();
    owner.execute("vacuum freeze").await.unwrap();
    owner
        .execute("select runtime.sync_make_roles('spacetime_sync')")
        .await
        .unwrap();

    lead.release().await;
    let next = standby.try_lead().await.unwrap().expect("the lead was given up");
    next.release().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lead_outlives_a_short_timeout_for_idle_transactions() {
    let lane = Lane::start().await.unwrap();
    let (name, url) = lane.database.login(&["spacetime_sync_bridge"]).await.unwrap();
    // Less than the time between two pings of the lead.
    lane.sql(&format!(
        "alter role {name} set idle_in_transaction_session_timeout = '200ms'"
    ))
    .await
    .unwrap();
    let options = BridgeOptions {
        set: vec![("authority.url", url)],
        ..BridgeOptions::default()
    };
    let bridge = lane.bridge_with(&options).unwrap();
    let leads = bridge.until("/healthz", SOON, |_, health| health["role"] == "leading");
    leads.await.unwrap();
    // Five such timeouts later the same transaction is still open, while the bridge carries events.
    let mut owner = owner(&lane.database).await;
    let lead = "select pid, clock_timestamp() - xact_start > interval '1 second' from pg_stat_activity where pid = (
        select l.pid from pg_locks l join pg_database d on d.oid = l.database
        where d.datname = current_database() and l.relation = 'runtime.sync_lead'::regclass and l.granted)";
    let first: (i32, bool) = sqlx::query_as(lead).fetch_one(&mut owner).await.unwrap();
    let deadline = tokio::time::Instant::now() + SOON;
    for n in 0.. {
        lane.authority
            .append(&stream("s"), &event(&format!("{n}")))
            .await
            .unwrap();
        assert!(lane.published(SOON).await);
        let (pid, is_old): (i32, bool) = sqlx::query_as(lead).fetch_one(&mut owner).await.unwrap();
        assert_eq!(pid, first.0);
        if is_old {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline);
    }
}
