//! Two users with tokens of the bridge, over WebSockets with the generated bindings, as clients will do it.

use std::time::Duration;

use serde_json::json;
use spacetime_sync_bindings::{
    ComputeAssignmentChangeTableAccess as _, ComputeAssignmentTableAccess as _, DbConnection,
    ProviderCapabilityTableAccess as _, ReducerEventContext, RemoteReducers, open_compute_assignment,
    publish_provider_capability, read_audience_key, read_providers_key, update_compute_assignment,
};
use spacetime_sync_proto::{Refusal, RefusalCode};
use spacetime_sync_tests::issuing::{answer, ask};
use spacetime_sync_tests::lane::{Bridge, Lane, wait, wait_for};
use spacetime_sync_tests::postgres::Cluster;
use spacetimedb_sdk::{DbContext as _, Table as _};
use tokio::sync::oneshot;

const SOON: Duration = Duration::from_secs(30);
/// The tables of assignments.
const TABLES: [&str; 2] = ["compute_assignment", "compute_assignment_change"];

/// A session that watches everything of collaboration.
struct Party {
    connection: DbConnection,
}

/// What a reducer's callback hears.
type Heard = Result<Result<(), String>, spacetimedb_sdk::__codegen::InternalError>;
type Callback = Box<dyn FnOnce(&ReducerEventContext, Heard) + Send>;

impl Party {
    /// `uri` is where SpacetimeDB or a gate listens.
    async fn join(uri: &str, database: &str, token: &str) -> Self {
        let (connected, is_connected) = oneshot::channel();
        let connection = DbConnection::builder()
            .with_uri(uri)
            .with_database_name(database)
            .with_token(Some(token))
            .with_confirmed_reads(true)
            .on_connect(|_, _, _| {
                // The receiver is gone only if the test has failed.
                let _ = connected.send(());
            })
            .build()
            .unwrap();
        connection.run_threaded();
        is_connected.await.unwrap();
        let (told, keys) = std::sync::mpsc::channel();
        let tell = told.clone();
        connection
            .procedures
            .read_audience_key_then(String::new(), move |_, key| tell.send(key.unwrap()).unwrap());
        connection
            .procedures
            .read_providers_key_then(move |_, key| told.send(key.unwrap()).unwrap());
        let keys: Vec<_> = tokio::task::spawn_blocking(move || keys.iter().collect())
            .await
            .unwrap();
        let mut queries = vec!["SELECT * FROM provider_capability".to_owned()];
        // Whoever may not provide gets no key of those who may.
        for key in keys.into_iter().flatten() {
            queries.extend(TABLES.map(|table| format!("SELECT * FROM {table} WHERE audience_key = {key}")));
        }
        // A gate lets one query pass in a subscription.
        for query in queries {
            let (applied, is_applied) = oneshot::channel();
            connection
                .subscription_builder()
                .on_applied(|_| {
                    let _ = applied.send(());
                })
                .subscribe(query);
            tokio::time::timeout(SOON, is_applied).await.unwrap().unwrap();
        }
        Self { connection }
    }

    /// Makes a call, and waits until it is durable or refused.
    async fn call(&self, call: impl FnOnce(&RemoteReducers, Callback)) -> Result<(), Refusal> {
        let (said, answer) = oneshot::channel();
        let heard = Box::new(move |_: &ReducerEventContext, heard: Heard| {
            let _ = said.send(heard.unwrap());
        });
        call(&self.connection.reducers, heard);
        let said = tokio::time::timeout(SOON, answer).await.unwrap().unwrap();
        said.map_err(|text| Refusal::from_wire(&text).unwrap())
    }

    async fn update(&self, version: u64, status: &str, provider: &str, document: &str) -> Result<(), Refusal> {
        let [request, update] = ["job-1".to_owned(), format!("update-{version}")];
        let [status, provider, document] = [status, provider, document].map(str::to_owned);
        self.call(|reducers, heard| {
            let sent =
                reducers.update_compute_assignment_then(request, update, version, status, provider, document, heard);
            sent.unwrap();
        })
        .await
    }

    /// Waits until the session sees the assignment in this state.
    async fn sees(&self, version: u64, status: &str, report: &str) {
        let what = format!("{status} at version {version} is seen");
        wait(SOON, &what, || {
            let rows: Vec<_> = self.connection.db.compute_assignment().iter().collect();
            rows.iter()
                .any(|row| row.version == version && row.status == status && row.report == report)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_users_with_tokens_of_the_bridge_take_an_assignment_from_its_opening_to_its_end() {
    let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
    let bridge = lane.bridge().unwrap();
    take_an_assignment_to_its_end(&lane, &bridge, lane.server.uri()).await;
    assert_eq!(bridge.stop().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn through_the_gate_they_do_the_same() {
    let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
    let bridge = lane.bridge().unwrap();
    let gate = lane.gate(&[]).unwrap();
    gate.until_ready(true).await.unwrap();
    take_an_assignment_to_its_end(&lane, &bridge, &gate.uri()).await;
    assert_eq!(gate.metric("breaches_total").await.unwrap(), 0);
    assert!(gate.metric("passed_messages_total").await.unwrap() > 0);
    assert_eq!(bridge.stop().await.unwrap(), 0);
}

async fn take_an_assignment_to_its_end(lane: &Lane, bridge: &Bridge, uri: &str) {
    lane.allow("everyone", &["notes"]).await.unwrap();
    lane.sql("insert into runtime.sync_scope_policy values ('user:maker', 'sync.provider')")
        .await
        .unwrap();
    let http = reqwest::Client::new();
    wait(SOON, "the bridge answers", || bridge.process.log().contains("leads")).await;
    wait_for(SOON, "changes are accepted", async || lane.accepts_changes().await).await;
    let token = async |user: &str, session: &str| {
        let credential = lane.keys().unwrap().session(user, session);
        // Everybody asks for both. Only whom the policy names gets to provide.
        let scopes = ["sync.subscribe", "sync.assignment.open", "sync.provider"];
        let body = json!({ "scopes": scopes, "streams": ["notes"] });
        let response = ask(&http, bridge.url(), &credential).json(&body).send().await.unwrap();
        let (status, token) = answer(response).await.unwrap();
        assert_eq!(status, 200, "{token}");
        token["token"].as_str().unwrap().to_owned()
    };
    let join = async |user, session| Party::join(uri, &lane.name, &token(user, session).await).await;
    let asker = join("asker", "s1").await;
    let second_device = join("asker", "s2").await;
    let maker = join("maker", "s3").await;
    let stranger = join("stranger", "s4").await;

    let publish = |reducers: &RemoteReducers, heard: Callback| {
        let [provider, capability, region, document] = ["maker-1", "gpu", "eu", r#"{"vram":80}"#].map(str::to_owned);
        let sent =
            reducers.publish_provider_capability_then(provider, capability, 1, 2_100, region, document, 600, heard);
        sent.unwrap();
    };
    let refused = stranger.call(publish).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::MissingScope);
    maker.call(publish).await.unwrap();
    for party in [&asker, &stranger] {
        wait(SOON, "everybody sees the capability", || {
            party.connection.db.provider_capability().count() == 1
        })
        .await;
    }
    asker
        .call(|reducers, heard| {
            let [request, provider, document] = ["job-1", "", r#"{"job":1}"#].map(str::to_owned);
            let sent = reducers.open_compute_assignment_then(request, provider, document, 600, heard);
            sent.unwrap();
        })
        .await
        .unwrap();
    maker.sees(1, "open", "").await;
    maker.update(1, "accepted", "maker-1", "").await.unwrap();
    maker.update(2, "running", "", r#"{"at":"half"}"#).await.unwrap();
    maker.update(3, "succeeded", "", r#"{"out":42}"#).await.unwrap();
    for party in [&asker, &second_device, &maker] {
        party.sees(4, "succeeded", r#"{"out":42}"#).await;
        let mut history: Vec<_> = party.connection.db.compute_assignment_change().iter().collect();
        history.sort_by_key(|change| change.version);
        let steps: Vec<_> = history
            .iter()
            .map(|change| (change.status.as_str(), change.changed_by.as_str()))
            .collect();
        let expected = [
            ("open", "requester"),
            ("accepted", "provider"),
            ("running", "provider"),
            ("succeeded", "provider"),
        ];
        assert_eq!(steps, expected);
    }
    let refused = asker.update(4, "cancelled", "", "").await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::AssignmentConflict);
    assert_eq!(stranger.connection.db.compute_assignment().count(), 0);
    assert_eq!(stranger.connection.db.compute_assignment_change().count(), 0);
    for party in [asker, second_device, maker, stranger] {
        party.connection.disconnect().unwrap();
    }
}
