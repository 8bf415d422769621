//! The audit log: what was done is on record, and nobody who runs can change the record.

use spacetime_sync_tests::issuing::Desk;
use spacetime_sync_tests::lane::Lane;
use spacetime_sync_tests::tool;

use super::*;

/// An act on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) act: String,
    pub(super) subject: Option<String>,
    pub(super) actor: String,
    pub(super) origin: Option<String>,
    pub(super) detail: Option<String>,
    pub(super) login: String,
}

pub(super) async fn acts(database: &Database) -> Vec<Found> {
    type Row = (String, Option<String>, String, Option<String>, Option<String>, String);
    let rows: Vec<Row> =
        sqlx::query_as("select act, subject, actor, origin, detail, login::text from runtime.sync_audit order by id")
            .fetch_all(&mut owner(database).await)
            .await
            .unwrap();
    let found = |(act, subject, actor, origin, detail, login): Row| Found {
        act,
        subject,
        actor,
        origin,
        detail,
        login,
    };
    rows.into_iter().map(found).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_on_record_when_it_opens_and_when_it_is_revoked() {
    let desk = Desk::new(Cluster::shared().await).await.unwrap();
    desk.allow("user:u", "a.*").await.unwrap();
    let (login, url) = desk.database.login(&["spacetime_sync_bridge"]).await.unwrap();
    let bridge = desk.bridge(&[("authority.url", url)]).await.unwrap();
    let credential = desk.session("u", "s1");
    for _ in 0..3 {
        let (status, answer) = bridge.token(&credential, &["a.b"]).await.unwrap();
        assert_eq!(status, 200, "{answer}");
    }
    for sessions in [&["s1", "never-seen"][..], &["s1"]] {
        assert_eq!(bridge.revoke(sessions).await.unwrap().0, 200);
    }
    let found = acts(&desk.database).await;
    let act = |act: &str, session: &str, actor: &str, detail: &str| Found {
        act: act.to_owned(),
        subject: Some(format!("session:{session}")),
        actor: actor.to_owned(),
        origin: Some("127.0.0.1".to_owned()),
        detail: Some(detail.to_owned()),
        login: login.clone(),
    };
    // Once each: what is repeated changes nothing, and a renewed token is the same right.
    let mut expected = vec![
        act("open_session", "s1", "user:u", "device s1-device"),
        act("revoke_session", "never-seen", "admin", "lost"),
        act("revoke_session", "s1", "admin", "user u, lost"),
    ];
    let mut found = found;
    found.sort_by(|a, b| (&a.act, &a.subject).cmp(&(&b.act, &b.subject)));
    expected.sort_by(|a, b| (&a.act, &a.subject).cmp(&(&b.act, &b.subject)));
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_text_stops_a_revocation_or_deceives_who_reads_of_it() {
    let database = database().await;
    let mut bridge = with_duties(&database, &["bridge"]).await;
    let revoke = |session: &str, reason: &str, actor: &str| {
        let sql = "select runtime.sync_revoke_sessions(array[$1], $2, $3, $4)";
        sqlx::query(sql)
            .bind(session.to_owned())
            .bind(reason.to_owned())
            .bind(actor.to_owned())
            .bind("10.0.0.1\u{9}")
    };
    let clears_the_screen = "lost\n2026-01-01 user:eve \u{1b}[2J\u{202e}gnihton";
    revoke("s1", clears_the_screen, "ad\u{7f}min")
        .execute(&mut bridge)
        .await
        .unwrap();
    revoke("s2", &"\u{1f4a5}".repeat(10_000), "")
        .execute(&mut bridge)
        .await
        .unwrap();
    let revoked: i64 = sqlx::query_scalar("select count(*) from runtime.sync_sessions where revoked_at is not null")
        .fetch_one(&mut bridge)
        .await
        .unwrap();
    assert_eq!(revoked, 2);
    let found = acts(&database).await;
    let told: Vec<_> = found
        .iter()
        .map(|found| (found.actor.as_str(), found.origin.as_deref().unwrap_or_default()))
        .collect();
    assert_eq!(
        told,
        [("ad\u{fffd}min", "10.0.0.1\u{fffd}"), ("unknown", "10.0.0.1\u{fffd}")]
    );
    assert_eq!(
        found[0].detail.as_deref(),
        Some("lost\u{fffd}2026-01-01 user:eve \u{fffd}[2J\u{fffd}gnihton")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_operators_do_elsewhere_is_on_record_before_it_is_done() {
    let lane = Lane::start().await.unwrap();
    let (login, url) = lane.database.login(&["spacetime_sync_bridge"]).await.unwrap();
    let token_file = lane.path("owner.token").display().to_string();
    let bridge_file = lane.path("bridge.token").display().to_string();
    let identity = "0".repeat(64);
    let server = [
        "--uri",
        lane.server.uri(),
        "--database",
        &lane.name,
        "--token-file",
        &token_file,
    ];
    let run = async |arguments: &[&str], url: &str| {
        let environment = [
            ("SPACETIME_SYNC__AUTHORITY__URL", url),
            ("USER", "ada"),
            ("SUDO_USER", ""),
        ];
        tool::run("spacetime-sync", &[arguments, &server].concat(), &environment).await
    };
    let by_hand = ["--identity", &identity, "--stream", "runtime.run.1.events"];
    run(&[&["grant"][..], &by_hand].concat(), &url).await.good();
    run(&[&["revoke"][..], &by_hand].concat(), &url).await.good();
    let configure = ["publish", "--configure-only", "--bridge-token-file", &bridge_file];
    run(&configure, &url).await.good();
    let found = acts(&lane.database).await;
    let told: Vec<_> = found
        .iter()
        .map(|found| (&*found.act, found.detail.as_deref().unwrap_or_default()))
        .collect();
    let how = format!("configures what runs at {}", lane.server.uri());
    assert_eq!(
        told,
        [
            ("grant_stream", "stream runtime.run.1.events"),
            ("revoke_stream", "stream runtime.run.1.events"),
            ("publish_module", how.as_str())
        ]
    );
    assert!(
        found
            .iter()
            .all(|found| found.actor == "operator:ada" && found.login == login),
        "{found:?}"
    );

    // What cannot be put on record is not done.
    let (_, stranger) = lane.database.login(&[]).await.unwrap();
    run(&[&["grant"][..], &by_hand].concat(), &stranger)
        .await
        .failed(1, &["denies access"]);
    let granted = format!("SELECT stream_key FROM stream_grant WHERE identity = 0x{identity}");
    assert!(lane.rows(granted, false).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn acts_leave_by_their_retention_alone() {
    let database = database().await;
    let mut owner = owner(&database).await;
    owner
        .execute(
            "select runtime.sync_record_act('publish_module', null, 'operator', null, repeat('long', 10000));
             insert into runtime.sync_audit (at, act, actor, login) values
                 (now() - interval '399 days', 'begin_epoch', 'operator', 'x'),
                 (now() - interval '401 days', 'begin_epoch', 'operator', 'x'),
                 (now() - interval '402 days', 'begin_epoch', 'operator', 'x')",
        )
        .await
        .unwrap();
    let mut purge = with_duties(&database, &["purge"]).await;
    let purged = async |purge: &mut PgConnection, most: i32| -> i64 {
        let asked = sqlx::query_scalar("select runtime.sync_purge_audit($1)").bind(most);
        asked.fetch_one(purge).await.unwrap()
    };
    assert_eq!(purged(&mut purge, 1).await, 1);
    assert_eq!(purged(&mut purge, 1_000).await, 1);
    assert_eq!(purged(&mut purge, 1_000).await, 0);
    // Not even the owner removes one by mistake.
    for statement in [
        "delete from runtime.sync_audit",
        "update runtime.sync_audit set act = 'nothing'",
        "truncate runtime.sync_audit",
    ] {
        assert_eq!(refusal(&mut owner, statement).await, "SY007", "{statement}");
    }
    // It keeps them for good, if it says so.
    owner
        .execute("update runtime.sync_audit_retention set keep = interval '30 days'")
        .await
        .unwrap();
    assert_eq!(purged(&mut purge, 1_000).await, 1);
    owner
        .execute("update runtime.sync_audit_retention set keep = null")
        .await
        .unwrap();
    assert_eq!(purged(&mut purge, 1_000).await, 0);
    assert_eq!(acts(&database).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bridge_purges_the_audit_log() {
    let lane = Lane::start().await.unwrap();
    lane.sql(
        "insert into runtime.sync_audit (at, act, actor, login) values (now() - interval '401 days', 'a', 'b', 'x')",
    )
    .await
    .unwrap();
    let _bridge = lane.bridge().unwrap();
    let deadline = tokio::time::Instant::now() + SOON;
    while !acts(&lane.database).await.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "the act is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
