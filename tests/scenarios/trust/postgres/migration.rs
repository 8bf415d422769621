//! Installations from before the roles, owners that are no superusers, and servers that several databases share.

use sha2::{Digest as _, Sha384};
use spacetime_sync_authority::AuthorityError;
use spacetime_sync_proto::Seq;
use spacetime_sync_tests::tool;

use super::*;

/// The migrations before the one that brings roles, as databases have recorded them.
const BEFORE: [(i64, &str, &str); 4] = [
    (
        1,
        "streams and events",
        include_str!("../../../../migrations/0001_streams_and_events.sql"),
    ),
    (2, "access", include_str!("../../../../migrations/0002_access.sql")),
    (
        3,
        "appends without statistics",
        include_str!("../../../../migrations/0003_appends_without_statistics.sql"),
    ),
    (
        4,
        "retention",
        include_str!("../../../../migrations/0004_retention.sql"),
    ),
];

/// An installation of the release before, with all migrations applied by `owner`.
pub(super) async fn install_before(owner: &mut PgConnection) {
    owner
        .execute(
            "create schema spacetime_sync;
             create table spacetime_sync._sqlx_migrations (
                 version bigint primary key, description text not null, installed_on timestamptz not null default now(),
                 success boolean not null, checksum bytea not null, execution_time bigint not null)",
        )
        .await
        .unwrap();
    for (version, description, text) in BEFORE {
        owner.execute(text).await.unwrap();
        sqlx::query("insert into spacetime_sync._sqlx_migrations values ($1, $2, now(), true, $3, 0)")
            .bind(version)
            .bind(description)
            .bind(&Sha384::digest(text)[..])
            .execute(&mut *owner)
            .await
            .unwrap();
    }
}

/// An owner that is no superuser, and may make neither roles nor anything outside of its own database.
pub(super) async fn humble(database: &Database, attributes: &str) -> (String, String) {
    let (name, url) = database.login_with(attributes, &[]).await.unwrap();
    let create = format!("grant create on database {} to {name}", database.name());
    owner(database).await.execute(&*create).await.unwrap();
    (name, url)
}

/// What a probe found: what the runtime's role could do beside its appends.
const PROBES: [&str; 3] = [
    "update runtime.sync_streams set published_seq = head_seq",
    "update runtime.sync_streams set published_seq = 0",
    "insert into runtime.sync_stream_events values ('s', 99, now(), 'x', 'k', 'p', sha256('p'), sha256('c'))",
];

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_from_before_the_roles_goes_on() {
    let database = Cluster::shared().await.create_empty_database().await.unwrap();
    let (_, owner_url) = humble(&database, "").await;
    let mut owner = PgConnection::connect(&owner_url).await.unwrap();
    install_before(&mut owner).await;
    // The roles with the rights that the documents asked for, and those that a bridge needed besides.
    let (app, app_url) = database.login(&[]).await.unwrap();
    let (carrier, carrier_url) = database.login(&[]).await.unwrap();
    let (report, report_url) = database.login(&[]).await.unwrap();
    let rights = format!(
        "grant usage on schema runtime to {app}, {carrier}, {report};
         grant select, insert, update on runtime.sync_streams to {app}, {carrier};
         grant select, insert on runtime.sync_stream_events to {app}, {carrier};
         grant select on runtime.sync_bridge_wake to {app};
         grant select, insert, update, delete on runtime.sync_stream_owners, runtime.sync_access_policy to {app};
         grant select on runtime.sync_stream_owners, runtime.sync_access_policy to {carrier};
         grant select, insert, update, delete on runtime.sync_sessions to {carrier};
         grant select on runtime.sync_retention, runtime.sync_snapshots to {carrier};
         grant select, update on runtime.sync_epoch, runtime.sync_bridge_wake to {carrier};
         grant delete on runtime.sync_stream_events to {carrier};
         grant usage on schema spacetime_sync to {carrier};
         grant select on spacetime_sync._sqlx_migrations to {carrier};
         grant select on runtime.sync_stream_events to {report};
         alter default privileges in schema runtime grant all on tables to {app};
         alter default privileges in schema runtime grant execute on functions to {app}"
    );
    owner.execute(&*rights).await.unwrap();
    let mut runtime = PgConnection::connect(&app_url).await.unwrap();
    for key in ["one", "two", "three"] {
        let append = format!("select runtime.sync_append('s', '{key}', 'k', 'payload')");
        runtime.execute(&*append).await.unwrap();
    }
    let mut carries = PgConnection::connect(&carrier_url).await.unwrap();
    carries
        .execute("update runtime.sync_streams set published_seq = 2")
        .await
        .unwrap();
    // What was found, before the migration.
    for probe in PROBES {
        let undone = format!("begin; {probe}; rollback");
        runtime
            .execute(&*undone)
            .await
            .unwrap_or_else(|error| panic!("{probe}: {error}"));
    }
    let deletes = "begin; select set_config('spacetime_sync.purging', 'yes', true); \
        delete from runtime.sync_stream_events; rollback";
    carries.execute(deletes).await.unwrap();

    Authority::migrate(&owner_url).await.unwrap();

    // The runtime goes on, on its open connection too, and can do nothing else.
    let append = "select runtime.sync_append('s', 'four', 'k', 'payload')";
    runtime.execute(append).await.unwrap();
    runtime
        .execute("insert into runtime.sync_access_policy values ('everyone', 's')")
        .await
        .unwrap();
    all_denied(&mut runtime, &PROBES).await;
    all_denied(
        &mut runtime,
        &["select runtime.sync_take_lead()", "select runtime.sync_purge('s', 1)"],
    )
    .await;
    assert_eq!(refusal(&mut carries, deletes).await, DENIED);
    let _ = carries.execute("rollback").await;
    let mut reads = PgConnection::connect(&report_url).await.unwrap();
    let seen: i64 = sqlx::query_scalar("select count(*) from runtime.sync_stream_events")
        .fetch_one(&mut reads)
        .await
        .unwrap();
    assert_eq!(seen, 4);
    // So does the bridge, from where it was.
    let bridge = Authority::connect(&carrier_url, 2).await.unwrap();
    let dirty = bridge.dirty_streams(None, 10).await.unwrap();
    assert_eq!(
        (dirty[0].published_seq, dirty[0].head_seq),
        (Seq::new(2).unwrap(), Seq::new(4).unwrap())
    );
    let moved = bridge
        .advance_published(&[(stream("s"), Seq::new(4).unwrap())])
        .await
        .unwrap();
    assert_eq!(moved, spacetime_sync_authority::Advanced::default());
    assert_eq!(bridge.purge(&stream("s"), 10).await.unwrap(), 0);
    bridge.forget_sessions(1, None, 10).await.unwrap();
    bridge.set_sleeping(true).await.unwrap();
    bridge.beat().await.unwrap();
    bridge
        .try_lead()
        .await
        .unwrap()
        .expect("the lead is free")
        .release()
        .await;
    // The owner can do what it could.
    owner
        .execute(
            "select runtime.sync_append('s', 'five', 'k', 'payload');
             update runtime.sync_streams set published_seq = 3;
             begin;
             alter table runtime.sync_stream_events disable trigger sync_stream_events_append_only;
             delete from runtime.sync_stream_events where seq = 5;
             alter table runtime.sync_stream_events enable trigger sync_stream_events_append_only;
             rollback;
             update runtime.sync_sessions set revoked_at = null where false;
             update runtime.sync_retention set log_events = 100000",
        )
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superuser_migrates_for_the_owner() {
    let database = Cluster::shared().await.create_empty_database().await.unwrap();
    let (name, owner_url) = humble(&database, "").await;
    let mut owner = PgConnection::connect(&owner_url).await.unwrap();
    install_before(&mut owner).await;
    Authority::migrate(database.url()).await.unwrap();
    // Otherwise appends would run with the rights of a superuser.
    let others: Vec<String> = sqlx::query_scalar(
        "select proname::text from pg_proc where pronamespace = 'runtime'::regnamespace and proowner <> $1::regrole
         union all
         select relname::text from pg_class where relnamespace = 'runtime'::regnamespace and relowner <> $1::regrole",
    )
    .bind(&name)
    .fetch_all(&mut owner)
    .await
    .unwrap();
    assert!(others.is_empty(), "{others:?}");
    let mut runtime = with_duties(&database, &["runtime"]).await;
    runtime
        .execute("select runtime.sync_append('s', 'one', 'k', 'payload')")
        .await
        .unwrap();
    Authority::migrate(&owner_url).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_may_not_make_roles_uses_those_of_an_administrator() {
    let database = Cluster::shared().await.create_empty_database().await.unwrap();
    let (_, owner_url) = humble(&database, "").await;
    let (app, app_url) = database.login(&[]).await.unwrap();
    let prefix = format!("p_{app}");
    let migrate = async |url: &str| {
        let arguments = ["migrate", "--database-url", url, "--role-prefix", &prefix];
        tool::run("spacetime-sync", &arguments, &[]).await
    };
    let ended = migrate(&owner_url).await;
    assert!(
        ended.stderr.contains(&format!("role {prefix}_runtime does not exist")),
        "{}",
        ended.stderr
    );
    ended.good();
    let mut runtime = PgConnection::connect(&app_url).await.unwrap();
    let append = "select runtime.sync_append('s', 'one', 'k', 'payload')";
    assert_eq!(refusal(&mut runtime, append).await, DENIED);
    // A role with any name will do.
    let mut owner = PgConnection::connect(&owner_url).await.unwrap();
    let granted = format!("select runtime.sync_grant_duty('runtime', '{app}')");
    owner.execute(&*granted).await.unwrap();
    runtime.execute(append).await.unwrap();
    let unknown = format!("select runtime.sync_grant_duty('owner', '{app}')");
    assert_eq!(refusal(&mut owner, &unknown).await, "22023");

    // An administrator makes the roles later, and the owner gives them their duties. Repeating that is harmless.
    let mut administrator = super::owner(&database).await;
    for duty in ["runtime", "bridge", "purge", "reading", "audit", "mirror"] {
        let role = format!("create role {prefix}_{duty}");
        administrator.execute(&*role).await.unwrap();
    }
    for _ in 0..2 {
        let ended = migrate(&owner_url).await;
        assert!(!ended.stderr.contains("does not exist"), "{}", ended.stderr);
        ended.good();
    }
    let (_, bridge_url) = database.login(&[&format!("{prefix}_bridge")]).await.unwrap();
    Authority::connect(&bridge_url, 1).await.unwrap();
    for duty in ["runtime", "bridge", "purge", "reading", "audit", "mirror"] {
        let gone = format!("drop owned by {prefix}_{duty}; drop role {prefix}_{duty}");
        administrator.execute(&*gone).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_databases_of_a_new_server_are_migrated_at_once() {
    let cluster = Cluster::start().await.unwrap();
    let mut urls = Vec::new();
    let mut databases = Vec::new();
    for _ in 0..2 {
        let database = cluster.create_empty_database().await.unwrap();
        // As on a managed server: a different owner for each, that may make roles.
        let (_, url) = humble(&database, "createrole").await;
        urls.push(url);
        databases.push(database);
    }
    let (one, two, again) = tokio::join!(
        Authority::migrate(&urls[0]),
        Authority::migrate(&urls[1]),
        Authority::migrate(&urls[1])
    );
    one.unwrap();
    two.unwrap();
    again.unwrap();
    let (_, here) = databases[0].login(&["spacetime_sync_bridge"]).await.unwrap();
    let (_, there) = databases[1].login(&["spacetime_sync_bridge"]).await.unwrap();
    for url in [here, there] {
        let bridge = Authority::connect(&url, 1).await.unwrap();
        bridge
            .try_lead()
            .await
            .unwrap()
            .expect("each database has a lead of its own");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_with_nothing_to_do_needs_no_rights() {
    let database = database().await;
    let (_, bridge) = database.login(&["spacetime_sync_bridge"]).await.unwrap();
    let migrate = async |url: &str| tool::run("spacetime-sync", &["migrate", "--database-url", url], &[]).await;
    migrate(&bridge).await.good();
    // Who may not even look is told so.
    let (_, stranger) = database.login(&[]).await.unwrap();
    migrate(&stranger)
        .await
        .failed(1, &["denies access", "docs/security.md"]);
    let error = Authority::connect(&stranger, 1).await.unwrap_err();
    assert!(matches!(error, AuthorityError::Denied { .. }), "{error:?}");
}
