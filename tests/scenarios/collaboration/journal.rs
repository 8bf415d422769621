//! What becomes of assignments and of providers' names when SpacetimeDB, or the authority, loses its data.

mod calls;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use spacetime_sync_proto::{Refusal, RefusalCode, Secret};
use spacetime_sync_stdb::StdbError;
use spacetime_sync_stdb::admin::{Admin, Breaking};
use spacetime_sync_tests::issuer::Issuer;
use spacetime_sync_tests::lane::{Bridge, BridgeOptions, Lane, wait_for};
use sqlx::Connection as _;

use super::{ASKS, PROVIDES, text};
use crate::reliability::restore::{copy_folder, operator, watching};

const SOON: Duration = Duration::from_secs(30);

/// A lane whose module trusts an issuer of this process. Its bridge is started and stopped by the test.
struct Stage {
    lane: Lane,
    issuer: Issuer,
    bridge: Option<Bridge>,
}

impl Stage {
    async fn set() -> Self {
        let mut stage = Self {
            lane: Lane::start().await.unwrap(),
            issuer: Issuer::start().await.unwrap(),
            bridge: None,
        };
        stage.trust().await;
        stage.start_bridge().await;
        stage
    }

    async fn trust(&self) {
        let trusted = json!([self.issuer.url, "openagents-sync", 250]);
        let owner = self.lane.owner().unwrap();
        owner.call("trust_issuer", trusted).await.unwrap();
    }

    /// Starts the bridge, and waits until the module accepts changes.
    async fn start_bridge(&mut self) {
        self.bridge = Some(self.lane.bridge_with(&watching()).unwrap());
        wait_for(SOON, "the journal is open", async || self.lane.accepts_changes().await).await;
    }

    async fn stop_bridge(&mut self) {
        let bridge = self.bridge.take().unwrap();
        assert_eq!(bridge.stop().await.unwrap(), 0);
    }

    /// SpacetimeDB loses everything, and the owner publishes the module again.
    async fn wipe(&self) {
        self.lane.publish(Breaking::DeleteData).await.unwrap();
        self.trust().await;
    }

    /// Waits until the authority keeps everything as it is.
    async fn is_kept(&self) {
        wait_for(SOON, "the authority keeps everything", async || {
            self.rows("SELECT mark FROM journal_mark").await.is_empty()
        })
        .await;
    }

    async fn rows(&self, query: &str) -> Vec<Value> {
        self.lane.rows(query, false).await.unwrap_or_default()
    }

    fn session(&self, user: &str, session: &str, scopes: &[&str]) -> Admin {
        let mut claims = self.issuer.claims(user, session, &[]);
        claims["oa_sync_scopes"] = json!(scopes);
        let token = Secret::from(self.issuer.sign(&claims));
        Admin::new(self.lane.server.uri(), &self.lane.name, token)
    }

    /// Everything that the module holds of assignments and capabilities, but for what it numbers itself.
    async fn held(&self) -> Vec<(&'static str, Vec<String>)> {
        let mut all = Vec::new();
        for (table, columns) in [
            (
                "compute_assignment",
                "request_id, version, status, provider_id, to_all, assignment, report, opened_at, changed_at, deadline_at",
            ),
            (
                "compute_assignment_change",
                "request_id, version, status, provider_id, changed_by, update_id, changed_at",
            ),
            ("assignment_party", "*"),
            ("assignment_update", "request_id, version, update_id, user_id, content"),
            ("forgotten_assignment", "*"),
            (
                "capability_claim",
                "provider_id, capability, user_id, version, content, ends_at, until",
            ),
            (
                "provider_capability",
                "provider_id, capability, version, price_hint_sats, region, document, published_at, ends_at",
            ),
        ] {
            let rows = self
                .lane
                .rows(format!("SELECT {columns} FROM {table}"), false)
                .await
                .unwrap();
            let mut rows: Vec<String> = rows.iter().map(Value::to_string).collect();
            rows.sort();
            all.push((table, rows));
        }
        all
    }

    /// Status, version and provider of an assignment.
    async fn assignment(&self, request: &str) -> Option<(String, u64, String)> {
        let query =
            format!("SELECT status, version, provider_id FROM compute_assignment WHERE request_id = '{request}'");
        let rows = self.rows(&query).await;
        let row = rows.first()?;
        Some((text(&row[0]), row[1].as_u64().unwrap(), text(&row[2])))
    }

    /// A statement on the authority, as its owner.
    async fn count(&self, query: &str) -> i64 {
        let mut connection = sqlx::PgConnection::connect(self.lane.database.url()).await.unwrap();
        let counted = sqlx::query_scalar(query).fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        counted
    }
}

type Called = Result<(), StdbError>;

async fn publish(who: &Admin, provider: &str, version: u64) -> Called {
    let arguments = json!([provider, "gpu", version, 21, "eu", r#"{"vram":80}"#, 3_600]);
    who.call("publish_provider_capability", arguments).await
}

async fn open(who: &Admin, request: &str, provider: &str, document: &str) -> Called {
    let arguments = json!([request, provider, document, 3_600]);
    who.call("open_compute_assignment", arguments).await
}

/// A change whose name is made of the version and the status.
async fn update(who: &Admin, request: &str, version: u64, status: &str, provider: &str) -> Called {
    let update = format!("{version}-{status}");
    let document = if status == "running" { r#"{"at":"half"}"# } else { "" };
    let arguments = json!([request, update, version, status, provider, document]);
    who.call("update_compute_assignment", arguments).await
}

#[track_caller]
fn refused(called: Called, code: RefusalCode) -> Refusal {
    match called {
        Err(StdbError::Refused(refusal)) if refusal.code == code => refusal,
        other => panic!("expected {code:?}, found {other:?}"),
    }
}

/// Assignments in several states, and a provider.
async fn work(stage: &Stage) -> [Admin; 2] {
    let [asks, one] = [stage.session("7", "asks", ASKS), stage.session("8", "one", PROVIDES)];
    publish(&one, "p1", 3).await.unwrap();
    open(&asks, "open", "", "{}").await.unwrap();
    open(&asks, "offered", "p1", r#"{"job":"ü"}"#).await.unwrap();
    for request in ["running", "done"] {
        open(&asks, request, "", r#"{"job":1}"#).await.unwrap();
        update(&one, request, 1, "accepted", "p1").await.unwrap();
        update(&one, request, 2, "running", "").await.unwrap();
    }
    update(&one, "done", 3, "succeeded", "").await.unwrap();
    [asks, one]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_spacetimedb_gets_its_assignments_back_before_anybody_changes_one() {
    let mut stage = Stage::set().await;
    work(&stage).await;
    stage.is_kept().await;
    let before = stage.held().await;
    assert!(
        before
            .iter()
            .all(|(table, rows)| *table == "forgotten_assignment" || !rows.is_empty())
    );
    stage.stop_bridge().await;
    stage.wipe().await;
    assert!(stage.held().await.iter().all(|(_, rows)| rows.is_empty()));

    // Nobody knows yet what there was: not that these calls were made, nor whose the name is, nor who has the assignment.
    let [asks, one, other] = [
        stage.session("7", "asks", ASKS),
        stage.session("8", "one", PROVIDES),
        stage.session("9", "other", &[ASKS, PROVIDES].concat()),
    ];
    for called in [
        open(&asks, "running", "", r#"{"job":1}"#).await,
        open(&other, "running", "", r#"{"job":1}"#).await,
        publish(&other, "p1", 1).await,
        update(&one, "running", 3, "succeeded", "").await,
        update(&other, "open", 1, "accepted", "p1").await,
    ] {
        let refusal = refused(called, RefusalCode::BeingBroughtBack);
        assert!(refusal.message.contains("try again"), "{refusal}");
    }
    assert!(stage.held().await.iter().all(|(_, rows)| rows.is_empty()));

    stage.start_bridge().await;
    assert_eq!(stage.held().await, before);
    // Late repeats of calls that were done before are told, and change nothing.
    open(&asks, "running", "", r#"{"job":1}"#).await.unwrap();
    open(&asks, "done", "", r#"{"job":1}"#).await.unwrap();
    update(&one, "running", 1, "accepted", "p1").await.unwrap();
    update(&one, "done", 3, "succeeded", "").await.unwrap();
    publish(&one, "p1", 3).await.unwrap();
    assert_eq!(stage.held().await, before);
    // Nobody takes what others have.
    refused(publish(&other, "p1", 9).await, RefusalCode::CapabilityConflict);
    refused(
        open(&other, "running", "", r#"{"job":1}"#).await,
        RefusalCode::AssignmentConflict,
    );
    publish(&other, "p2", 1).await.unwrap();
    let refusal = refused(
        update(&other, "running", 1, "accepted", "p2").await,
        RefusalCode::AssignmentConflict,
    );
    assert!(refusal.message.contains("running at version 3"), "{refusal}");
    // Everybody goes on where they were.
    update(&one, "running", 3, "succeeded", "").await.unwrap();
    update(&one, "offered", 1, "accepted", "").await.unwrap();
    update(&other, "open", 1, "accepted", "p2").await.unwrap();
    assert_eq!(
        stage.assignment("running").await,
        Some(("succeeded".to_owned(), 4, "p1".to_owned()))
    );
    // And again, with what has changed since.
    stage.is_kept().await;
    let before = stage.held().await;
    stage.wipe().await;
    wait_for(SOON, "everything is back", async || {
        stage.lane.accepts_changes().await && stage.held().await == before
    })
    .await;
}

/// How long it takes from the answer to a call until the authority keeps what it changed: so much is lost with SpacetimeDB.
#[tokio::test(flavor = "multi_thread")]
async fn the_authority_keeps_a_change_within_moments() {
    const CHANGES: u64 = 20;
    let stage = Stage::set().await;
    let [asks, one] = [stage.session("7", "asks", ASKS), stage.session("8", "one", PROVIDES)];
    publish(&one, "p1", 1).await.unwrap();
    open(&asks, "r1", "", "{}").await.unwrap();
    let mut connection = sqlx::PgConnection::connect(stage.lane.database.url()).await.unwrap();
    let mut lags = Vec::new();
    for version in 1..=CHANGES {
        let (status, provider) = if version % 2 == 1 {
            ("offered", "p1")
        } else {
            ("open", "")
        };
        update(&asks, "r1", version, status, provider).await.unwrap();
        let done = Instant::now();
        let kept = format!("%\"version\":{},\"status\":\"{status}\"%", version + 1);
        let query = "select count(*) from runtime.sync_journal where key = 'assignment/r1' and document like $1";
        let connection = &mut connection;
        wait_for(SOON, "the change is kept", async || {
            let found: i64 = sqlx::query_scalar(query)
                .bind(&kept)
                .fetch_one(&mut *connection)
                .await
                .unwrap();
            found == 1
        })
        .await;
        lags.push(done.elapsed());
    }
    lags.sort();
    eprintln!(
        "kept after: median {:?}, most {:?}",
        lags[lags.len() / 2],
        lags[lags.len() - 1]
    );
    assert!(lags[lags.len() / 2] < Duration::from_secs(2), "{lags:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_spacetimedb_gets_back_what_it_lacks_and_keeps_what_is_newer() {
    let mut stage = Stage::set().await;
    if !stage.lane.server.is_own() {
        return;
    }
    let [asks, one] = work(&stage).await;
    stage.is_kept().await;
    stage.lane.server.kill();
    let (data, copy) = (stage.lane.path("host"), stage.lane.path("copy"));
    copy_folder(&data, &copy);
    stage.lane.server.restart().await.unwrap();
    wait_for(SOON, "the module answers", async || {
        update(&one, "offered", 1, "accepted", "").await.is_ok()
    })
    .await;
    open(&asks, "later", "p1", "{}").await.unwrap();
    update(&one, "running", 3, "failed", "").await.unwrap();
    wait_for(SOON, "the changes are made", async || {
        stage.assignment("running").await == Some(("failed".to_owned(), 4, "p1".to_owned()))
    })
    .await;
    stage.is_kept().await;
    let before = stage.held().await;
    stage.stop_bridge().await;

    stage.lane.server.kill();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&copy, &data).unwrap();
    stage.lane.server.restart().await.unwrap();
    wait_for(SOON, "the old state holds", async || {
        stage.assignment("running").await == Some(("running".to_owned(), 3, "p1".to_owned()))
    })
    .await;
    // Until the bridge is there, nobody knows that SpacetimeDB was restored.
    update(&asks, "open", 1, "cancelled", "").await.unwrap();
    stage.bridge = Some(stage.lane.bridge_with(&watching()).unwrap());
    wait_for(SOON, "what was lost is back", async || {
        stage.lane.accepts_changes().await
            && stage.assignment("running").await == Some(("failed".to_owned(), 4, "p1".to_owned()))
    })
    .await;
    stage.is_kept().await;
    assert_eq!(
        stage.assignment("open").await,
        Some(("cancelled".to_owned(), 2, String::new()))
    );
    assert_eq!(
        stage.assignment("later").await,
        Some(("offered".to_owned(), 1, "p1".to_owned()))
    );
    let of = |held: &[(&str, Vec<String>)], table: &str| {
        let rows = held
            .iter()
            .find(|(name, _)| *name == table)
            .map(|(_, rows)| rows.clone());
        let rows = rows.unwrap().into_iter();
        rows.filter(|row| !row.contains("\"open\"")).collect::<Vec<_>>()
    };
    let now = stage.held().await;
    for table in [
        "assignment_party",
        "assignment_update",
        "capability_claim",
        "provider_capability",
    ] {
        assert_eq!(of(&now, table), of(&before, table), "{table}");
    }
    // What was decided on the old state is kept, too.
    stage.wipe().await;
    wait_for(SOON, "everything is back", async || {
        stage.lane.accepts_changes().await && stage.held().await == now
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_authority_is_told_everything_anew() {
    let mut stage = Stage::set().await;
    let [asks, one] = work(&stage).await;
    stage.is_kept().await;
    let backup = stage.lane.database.back_up().await.unwrap();
    open(&asks, "later", "", "{}").await.unwrap();
    update(&one, "running", 3, "succeeded", "").await.unwrap();
    stage.is_kept().await;
    assert_eq!(stage.count("select count(*) from runtime.sync_journal").await, 6);
    let before = stage.held().await;
    stage.stop_bridge().await;
    stage.lane.database.restore(backup).await.unwrap();
    // An assignment that SpacetimeDB has forgotten for good, as far as the restored authority does not know yet.
    stage
        .lane
        .sql(
            "insert into runtime.sync_journal (key, mark, epoch, document, kept_at)
                 select 'assignment/zombie', 1000000, epoch, document, kept_at from runtime.sync_journal
                 where key = 'assignment/running'",
        )
        .await
        .unwrap();
    assert_eq!(stage.count("select count(*) from runtime.sync_journal").await, 6);
    stage.bridge = Some(stage.lane.bridge_with(&watching()).unwrap());
    let (code, said) = operator(&stage.lane, &["rewind"]).await;
    assert_eq!(code, 0, "{said}");
    wait_for(SOON, "the authority has everything anew", async || {
        let current = "select count(*) from runtime.sync_journal j, runtime.sync_epoch p where j.epoch = p.epoch::text";
        stage.count(current).await == 6 && stage.count("select count(*) from runtime.sync_journal").await == 6
    })
    .await;
    assert_eq!(stage.count("select entries from runtime.sync_journal_extent").await, 5);
    assert_eq!(stage.held().await, before);
    stage.is_kept().await;
    stage.wipe().await;
    wait_for(SOON, "everything is back", async || {
        stage.lane.accepts_changes().await && stage.held().await == before
    })
    .await;
    assert_eq!(stage.assignment("zombie").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_journal_turns_the_bridge_red_and_nothing_else_stops() {
    let mut stage = Stage::set().await;
    stage.stop_bridge().await;
    let bound = "update runtime.sync_journal_extent set most = 2";
    stage.lane.sql(bound).await.unwrap();
    let options = BridgeOptions {
        set: vec![("bridge.stall_after_ms", "1500".to_owned())],
        ..BridgeOptions::default()
    };
    stage.bridge = Some(stage.lane.bridge_with(&options).unwrap());
    wait_for(SOON, "the journal is open", async || stage.lane.accepts_changes().await).await;
    work(&stage).await;
    let bridge = stage.bridge.as_ref().unwrap();
    let health = bridge.until("/healthz", SOON, |_, health| {
        health["problems"].to_string().contains("not kept in the authority")
    });
    assert_eq!(health.await.unwrap()["healthy"], false);
    assert!(
        bridge.process.log().contains("sync_journal_extent"),
        "{}",
        bridge.process.log()
    );
    let metrics = bridge.metrics().await.unwrap();
    assert_eq!(metrics["journal"]["waiting"], 5);
    assert!(metrics["journal"]["oldest_ms"].as_u64() >= Some(1_500), "{metrics}");
    stage
        .lane
        .sql("update runtime.sync_journal_extent set most = 1000")
        .await
        .unwrap();
    stage.is_kept().await;
    let healed = bridge.until("/healthz", SOON, |healthy, _| healthy);
    healed.await.unwrap();
    assert_eq!(stage.count("select entries from runtime.sync_journal_extent").await, 5);
}
