//! What an upgrade leaves of the rights from before: what a role needs for its work, nothing that it could not do, and no
//! way to the rights of the owner.

use spacetime_sync_tests::tool;

use super::migration::{humble, install_before};
use super::*;

/// An installation of the release before the roles.
struct Before {
    database: Database,
    owner_url: String,
    owner: PgConnection,
}

impl Before {
    async fn install() -> Self {
        let database = Cluster::shared().await.create_empty_database().await.unwrap();
        let (_, owner_url) = humble(&database, "").await;
        let mut owner = PgConnection::connect(&owner_url).await.unwrap();
        install_before(&mut owner).await;
        Self {
            database,
            owner_url,
            owner,
        }
    }

    /// A role with these rights, each with `{}` in the place of the role.
    async fn role(&mut self, rights: &str) -> (String, PgConnection) {
        let (name, url) = self.database.login(&[]).await.unwrap();
        let rights = format!(
            "grant usage on schema runtime to {name}; {}",
            rights.replace("{}", &name)
        );
        self.owner.execute(&*rights).await.unwrap();
        (name, PgConnection::connect(&url).await.unwrap())
    }

    /// A role that may attach triggers, with a function to attach that everybody may run.
    async fn saboteur(&mut self) -> (String, PgConnection) {
        let (name, mut saboteur) = self
            .role("grant all on all tables in schema runtime to {}; grant create on schema runtime to {}")
            .await;
        let own = format!("create schema {name} authorization {name}; grant usage on schema {name} to public");
        super::owner(&self.database).await.execute(&*own).await.unwrap();
        let function = format!(
            "create function {name}.act() returns trigger language plpgsql
                 as 'begin raise exception ''this runs as %'', current_user; end'"
        );
        saboteur.execute(&*function).await.unwrap();
        (name, saboteur)
    }

    async fn migrate(&self) -> tool::Ended {
        tool::run("spacetime-sync", &["migrate", "--database-url", &self.owner_url], &[]).await
    }
}

const TABLES: [&str; 10] = [
    "sync_streams",
    "sync_stream_events",
    "sync_bridge_wake",
    "sync_stream_owners",
    "sync_access_policy",
    "sync_scope_policy",
    "sync_sessions",
    "sync_retention",
    "sync_snapshots",
    "sync_epoch",
];

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_leaves_no_way_to_the_owners_rights() {
    let mut before = Before::install().await;
    let (name, mut saboteur) = before.saboteur().await;
    before.migrate().await.good();
    for table in TABLES {
        all_denied(
            &mut saboteur,
            &[
                &format!(
                    "create trigger mine before insert on runtime.{table} for each row execute function {name}.act()"
                ),
                &format!("truncate runtime.{table} cascade"),
            ],
        )
        .await;
    }
    all_denied(
        &mut saboteur,
        &[
            "update runtime.sync_retention set log_events = 1, window_events = 1",
            "insert into runtime.sync_retention (class, stream_prefix, window_events, window_age)
                 values ('mine', 'runtime', 1, '1 second')",
            "delete from runtime.sync_retention",
            "create table runtime.mine (n int)",
        ],
    )
    .await;
    let refers = format!("create table {name}.refers (stream_id text references runtime.sync_stream_owners)");
    all_denied(&mut saboteur, &[&refers]).await;
    // It goes on with its work.
    saboteur
        .execute(
            "select runtime.sync_append('s', 'one', 'k', 'payload');
             select runtime.sync_put_snapshot('s', 'doc', 1, 'all');
             insert into runtime.sync_access_policy values ('everyone', 's');
             insert into runtime.sync_scope_policy values ('everyone', 'sync.presence.serve')",
        )
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_put_in_the_way_before_stops_the_migration() {
    let mut before = Before::install().await;
    let (name, mut saboteur) = before.saboteur().await;
    let planted = format!(
        "create trigger mine before insert on runtime.sync_streams for each row execute function {name}.act();
         create trigger mine before insert on runtime.sync_access_policy for each row execute function {name}.act();
         create function runtime.sync_append(text, text, text, varchar) returns bigint language sql
             as 'select 1::bigint'"
    );
    saboteur.execute(&*planted).await.unwrap();
    let triggers = "drop trigger mine on runtime.sync_access_policy; drop trigger mine on runtime.sync_streams;";
    before.migrate().await.failed(1, &[triggers]);
    // As long as that is so, everything is as it was.
    saboteur
        .execute("update runtime.sync_retention set window_events = window_events")
        .await
        .unwrap();
    before.owner.execute(triggers).await.unwrap();
    let function = "drop routine runtime.sync_append(text,text,text,character varying);";
    before.migrate().await.failed(1, &[function]);
    before.owner.execute(function).await.unwrap();
    before.migrate().await.good();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_gives_nobody_more_than_they_had() {
    let mut before = Before::install().await;
    // What the documents asked for a bridge.
    let (_, mut bridge) = before
        .role(
            "grant select, insert, update on runtime.sync_streams to {};
             grant select, insert on runtime.sync_stream_events to {};
             grant select on runtime.sync_stream_owners, runtime.sync_access_policy to {};
             grant select, insert, update on runtime.sync_sessions to {};
             grant select on runtime.sync_retention, runtime.sync_snapshots to {};
             grant select, update on runtime.sync_epoch, runtime.sync_bridge_wake to {}",
        )
        .await;
    let (_, mut report) = before.role("grant select on runtime.sync_stream_events to {}").await;
    let (_, mut cleaner) = before.role("grant delete on runtime.sync_sessions to {}").await;
    let (_, mut waker) = before
        .role("grant select, update on runtime.sync_bridge_wake to {}")
        .await;
    before.migrate().await.good();

    let deny_to_all = [
        "insert into runtime.sync_access_policy values ('everyone', 's')",
        "insert into runtime.sync_scope_policy values ('everyone', 'sync.presence.serve')",
        "insert into runtime.sync_stream_owners (stream_id, user_id) values ('s', 'u')",
        "select runtime.sync_put_snapshot('s', 'doc', 1, 'all')",
        "select runtime.sync_purge('s', 1)",
        "select * from runtime.sync_audit",
    ];
    for role in [&mut bridge, &mut report, &mut cleaner, &mut waker] {
        all_denied(role, &deny_to_all).await;
    }
    let carries = "select runtime.sync_append('s', 'one', 'k', 'payload')";
    bridge.execute(carries).await.unwrap();
    for role in [&mut report, &mut cleaner, &mut waker] {
        all_denied(role, &[carries, "select runtime.sync_take_lead()"]).await;
        all_denied(role, &["select * from runtime.sync_snapshots"]).await;
    }
    assert!(bridge.execute("select * from runtime.sync_class('s')").await.is_ok());
    report
        .execute("select * from runtime.sync_stream_events")
        .await
        .unwrap();
    cleaner
        .execute("select runtime.sync_forget_sessions(1, '', 10)")
        .await
        .unwrap();
    all_denied(&mut report, &["select runtime.sync_forget_sessions(1, '', 10)"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_says_what_it_takes_away() {
    let mut before = Before::install().await;
    let (name, mut creates) = before
        .role(
            "grant create on schema runtime to {}; grant insert on runtime.sync_stream_events to public;
             grant select on all tables in schema runtime to {}",
        )
        .await;
    creates.execute("create table runtime.mine (n int)").await.unwrap();
    let ended = before.migrate().await;
    for said in [
        format!("{name} can no longer create in schema runtime"),
        "everybody (PUBLIC) had rights to write that are gone: insert on runtime.sync_stream_events".to_owned(),
    ] {
        assert!(ended.stderr.contains(&said), "{}", ended.stderr);
    }
    // Who only reads loses nothing, and is not named.
    assert!(!ended.stderr.contains(&format!("role {name} had")), "{}", ended.stderr);
    assert!(!ended.stderr.contains("a superuser"), "{}", ended.stderr);
    ended.good();
    all_denied(&mut creates, &["create table runtime.more (n int)"]).await;
    creates.execute("insert into runtime.mine values (1)").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_must_belong_to_the_owner_of_the_tables() {
    let database = Cluster::shared().await.create_empty_database().await.unwrap();
    let (name, owner_url) = humble(&database, "").await;
    let mut administrator = owner(&database).await;
    let prepared = format!("create schema runtime; grant usage, create on schema runtime to {name}");
    administrator.execute(&*prepared).await.unwrap();
    let migrate = async || tool::run("spacetime-sync", &["migrate", "--database-url", &owner_url], &[]).await;
    let remedy = format!("alter schema runtime owner to {name};");
    migrate().await.failed(1, &[&remedy]);
    administrator.execute(&*remedy).await.unwrap();
    migrate().await.good();
    let (runtime, url) = database.login(&[]).await.unwrap();
    let granted = format!("select runtime.sync_grant_duty('runtime', '{runtime}')");
    PgConnection::connect(&owner_url)
        .await
        .unwrap()
        .execute(&*granted)
        .await
        .unwrap();
    let mut runtime = PgConnection::connect(&url).await.unwrap();
    runtime
        .execute("select runtime.sync_append('s', 'one', 'k', 'payload')")
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superuser_that_owns_the_tables_is_told_so() {
    let database = Cluster::shared().await.create_empty_database().await.unwrap();
    let ended = tool::run("spacetime-sync", &["migrate", "--database-url", database.url()], &[]).await;
    assert!(ended.stderr.contains("a superuser"), "{}", ended.stderr);
    ended.good();
}
