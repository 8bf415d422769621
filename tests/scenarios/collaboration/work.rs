//! Clients of several users over connections that break: what they watch says whether it is live, and what they call is done
//! once and has an outcome.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use spacetime_sync_client::{
    AccessToken, AssignmentSide, AssignmentState, Assignments, CallError, Capability, CapabilityKey, ChangeAssignment,
    ClientConfig, Credential, Freshness, OfflineReason, OpenAssignment, Presence, PresenceKey, PresenceStatus,
    RefusalCode, SeenAssignment, SyncClient, TokenError, WantedToken, Watched,
};
use spacetime_sync_issuer::keys::now;
use spacetime_sync_tests::issuer::Issuer;
use spacetime_sync_tests::lane::{Bridge, Lane, stream, wait, wait_for};
use spacetime_sync_tests::proxy::{Direction, Proxy};
use tokio::sync::watch;

use super::clients::{SOON, lane_of, run};

/// How long a call may take that is to be done.
pub(super) const LONG: Duration = Duration::from_secs(60);

/// A lane, and a proxy before its SpacetimeDB.
pub(super) struct Stage {
    lane: Lane,
    _bridge: Bridge,
    issuer: Arc<Issuer>,
    proxy: Proxy,
}

impl Stage {
    pub(super) async fn set() -> Self {
        let issuer = Arc::new(Issuer::start().await.unwrap());
        let (lane, bridge) = lane_of(&issuer).await;
        let proxy = Proxy::start(lane.server.addr().unwrap()).await.unwrap();
        Self {
            lane,
            _bridge: bridge,
            issuer,
            proxy,
        }
    }

    /// A client whose session may read a stream, ask for work, provide and mirror.
    fn client(&self, user: &'static str, session: &'static str, uri: String) -> SyncClient {
        let issuer = self.issuer.clone();
        let credential = Credential::provider(move |wanted: WantedToken| {
            let mut claims = issuer.claims(user, session, &["runtime.run.*"]);
            claims["exp"] = json!(now() + 300);
            claims["oa_sync_scopes"] = json!(wanted.scopes);
            let mut token = AccessToken::new(issuer.sign(&claims), Duration::from_secs(300));
            token.session_id = Some(session.to_owned());
            async move { Ok::<_, TokenError>(token) }
        });
        let mut config = ClientConfig::new(uri, &self.lane.name, vec![stream(1)]);
        config.credential = credential;
        config.seal_keys = self.lane.seal_keys().unwrap();
        (config.assigns, config.provides, config.mirrors) = (true, true, true);
        run(&self.lane, config, session)
    }

    /// A client whose connection breaks when the proxy's does.
    pub(super) fn shaky(&self, user: &'static str, session: &'static str) -> SyncClient {
        self.client(user, session, format!("http://{}", self.proxy.addr()))
    }

    /// A client whose connection holds.
    pub(super) fn steady(&self, user: &'static str, session: &'static str) -> SyncClient {
        self.client(user, session, self.lane.server.uri().to_owned())
    }

    /// How many rows the module has.
    async fn rows(&self, query: &str) -> usize {
        self.lane.rows(query, true).await.unwrap().len()
    }

    /// Makes a call whose answer is lost: the module has done it, and then the connection breaks.
    pub(super) async fn loses_the_answer<T>(&self, call: impl Future<Output = T>, done: &str) -> T {
        self.proxy.stall(Direction::ToClient);
        let cut = async {
            wait_for(SOON, "the module has done it", async || self.rows(done).await > 0).await;
            self.breaks().await;
            // What is held back must be gone before anything passes again.
            wait(SOON, "the connections are gone", || self.proxy.counts().open == 0).await;
            self.proxy.resume(Direction::ToClient);
            self.proxy.accept().await;
        };
        tokio::join!(call, cut).0
    }

    /// Breaks the shaky connections, and lets nobody come back until it accepts again.
    async fn breaks(&self) {
        self.proxy.refuse().await;
        self.proxy.cut();
    }
}

fn gpu(version: u64) -> Capability {
    Capability {
        provider_id: "p1".to_owned(),
        capability: "gpu".to_owned(),
        version,
        price_hint_sats: 21,
        region: "eu".to_owned(),
        document: "{}".to_owned(),
        stands_for: Duration::from_secs(3_600),
    }
}

fn opening(request: &str) -> OpenAssignment {
    OpenAssignment {
        request_id: request.to_owned(),
        provider_id: None,
        document: r#"{"do":"it"}"#.to_owned(),
        deadline: Duration::from_secs(600),
    }
}

fn change(request: &str, version: u64, to: AssignmentState, provider: Option<&str>) -> ChangeAssignment {
    ChangeAssignment {
        request_id: request.to_owned(),
        update_id: format!("{version}-{to}"),
        expected_version: version,
        to,
        provider_id: provider.map(str::to_owned),
        document: None,
    }
}

pub(super) async fn becomes<T>(
    watched: &mut watch::Receiver<Watched<T>>,
    what: &str,
    is: impl FnMut(&Watched<T>) -> bool,
) {
    let found = tokio::time::timeout(SOON, watched.wait_for(is)).await;
    drop(found.unwrap_or_else(|_| panic!("{what}: not within {SOON:?}")).unwrap());
}

/// The assignment as it is shown once it has this version and everything is live.
async fn sees(watched: &mut watch::Receiver<Watched<Assignments>>, request: &str, version: u64) -> SeenAssignment {
    let is = |seen: &Watched<Assignments>| {
        seen.is_live() && seen.rows.get(request).is_some_and(|one| one.version == version)
    };
    becomes(watched, &format!("{request} has version {version}"), is).await;
    watched.borrow().rows[request].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_watched_says_whether_it_is_live_and_since_when_it_is_not() {
    let stage = Stage::set().await;
    stage.breaks().await;
    let provider = stage.steady("8", "provider");
    let desktop = stage.shaky("7", "desktop");
    let (mut capabilities, mut assignments) = (desktop.capabilities(), desktop.assignments());
    let (mut presences, mut providers) = (desktop.presences(&[]).unwrap(), desktop.providers_online());
    assert_eq!(*capabilities.borrow(), Watched::default());
    assert_eq!(capabilities.borrow().freshness, Freshness::Unseen);
    stage.proxy.accept().await;
    becomes(&mut capabilities, "capabilities are live", |seen| {
        seen.is_live() && seen.rows.is_empty()
    })
    .await;
    becomes(&mut assignments, "assignments are live", |seen| {
        seen.is_live() && seen.rows.is_empty()
    })
    .await;
    becomes(&mut presences, "presences are live", |seen| {
        seen.is_live() && seen.rows.is_empty()
    })
    .await;
    becomes(&mut providers, "the count is live", |seen| {
        seen.is_live() && seen.rows == 0
    })
    .await;

    provider.publish_capability(gpu(1), LONG).await.unwrap();
    let key = CapabilityKey {
        provider_id: "p1".to_owned(),
        capability: "gpu".to_owned(),
    };
    let has = |version| {
        let key = key.clone();
        move |seen: &Watched<spacetime_sync_client::Capabilities>| {
            seen.is_live() && seen.rows.get(&key).is_some_and(|one| one.version == version)
        }
    };
    becomes(&mut capabilities, "version 1", has(1)).await;
    desktop.open_assignment(opening("r1"), LONG).await.unwrap();
    sees(&mut assignments, "r1", 1).await;

    // Away, the client shows what it saw last, and since when it sees nothing.
    let before = Instant::now();
    stage.breaks().await;
    let is_stale =
        |since: Freshness| matches!(since, Freshness::Stale { since } if since >= before && since <= Instant::now());
    becomes(&mut capabilities, "capabilities are stale", |seen| {
        is_stale(seen.freshness)
    })
    .await;
    becomes(&mut assignments, "assignments are stale", |seen| {
        is_stale(seen.freshness)
    })
    .await;
    becomes(&mut presences, "presences are stale", |seen| is_stale(seen.freshness)).await;
    becomes(&mut providers, "the count is stale", |seen| is_stale(seen.freshness)).await;
    provider.publish_capability(gpu(2), LONG).await.unwrap();
    let taken = change("r1", 1, AssignmentState::Accepted, Some("p1"));
    provider.change_assignment(taken, LONG).await.unwrap();
    assert_eq!(capabilities.borrow().rows[&key].version, 1);
    assert_eq!(assignments.borrow().rows["r1"].state, AssignmentState::Open);
    stage.proxy.accept().await;
    becomes(&mut capabilities, "version 2", has(2)).await;
    let seen = sees(&mut assignments, "r1", 2).await;
    assert_eq!(
        (seen.state, seen.provider_id.as_deref()),
        (AssignmentState::Accepted, Some("p1"))
    );
    assert_eq!(
        (seen.document.as_str(), seen.report.as_deref()),
        (r#"{"do":"it"}"#, None)
    );
    let changes: Vec<_> = seen
        .changes
        .iter()
        .map(|one| (one.version, one.state, one.changed_by))
        .collect();
    let expected = [
        (1, AssignmentState::Open, AssignmentSide::Requester),
        (2, AssignmentState::Accepted, AssignmentSide::Provider),
    ];
    assert_eq!(changes, expected);
    assert_eq!(seen.changes[1].update_id.as_deref(), Some("1-accepted"));
    desktop.stop().await;
    assert!(
        matches!(assignments.borrow().freshness, Freshness::Stale { .. }),
        "a client that has stopped"
    );
    assert_eq!(assignments.borrow().rows["r1"], seen);
    provider.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_answer_is_lost_is_repeated_and_done_once() {
    let stage = Stage::set().await;
    let desktop = stage.shaky("7", "desktop");
    let mut assignments = desktop.assignments();
    becomes(&mut assignments, "assignments are live", Watched::is_live).await;
    let published = desktop.publish_capability(gpu(1), LONG);
    let done = "SELECT capability FROM provider_capability WHERE version = 1";
    stage.loses_the_answer(published, done).await.unwrap();
    becomes(&mut assignments, "the client is back", Watched::is_live).await;
    let opened = desktop.open_assignment(opening("r1"), LONG);
    let done = "SELECT request_id FROM assignment_party";
    stage.loses_the_answer(opened, done).await.unwrap();
    assert_eq!(sees(&mut assignments, "r1", 1).await.changes.len(), 1);
    let mut version = 1;
    for (to, provider) in [
        (AssignmentState::Accepted, Some("p1")),
        (AssignmentState::Running, None),
        (AssignmentState::Succeeded, None),
    ] {
        let changed = desktop.change_assignment(change("r1", version, to, provider), LONG);
        version += 1;
        let done = format!("SELECT update_id FROM assignment_update WHERE version = {version}");
        stage.loses_the_answer(changed, &done).await.unwrap();
        let seen = sees(&mut assignments, "r1", version).await;
        assert_eq!((seen.state, seen.changes.len() as u64), (to, version));
    }
    // The same call from the application, which may have crashed meanwhile, is the same call.
    let again = change("r1", 3, AssignmentState::Succeeded, None);
    desktop.change_assignment(again.clone(), LONG).await.unwrap();
    desktop.open_assignment(opening("r1"), LONG).await.unwrap();
    // Another one of this name is not.
    let other = ChangeAssignment {
        to: AssignmentState::Failed,
        ..again
    };
    let refused = desktop.change_assignment(other, LONG).await.unwrap_err();
    assert!(
        matches!(&refused, CallError::Refused(refusal) if refusal.code == RefusalCode::AssignmentConflict),
        "{refused:?}"
    );
    let reconnects = desktop.status().borrow().counters.reconnects;
    assert!(
        reconnects >= 5,
        "{reconnects}: each of the five calls lost its connection"
    );
    assert_eq!(stage.rows("SELECT request_id FROM assignment_party").await, 1);
    assert_eq!(stage.rows("SELECT update_id FROM assignment_update").await, 3);
    desktop.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_take_an_assignment_over_breaking_connections_one_gets_it_and_the_other_is_told_who() {
    let stage = Stage::set().await;
    let requester = stage.steady("7", "requester");
    requester.open_assignment(opening("r1"), LONG).await.unwrap();
    let providers = [stage.shaky("8", "one"), stage.shaky("9", "two")];
    for (client, name) in providers.iter().zip(["p1", "p2"]) {
        let published = Capability {
            provider_id: name.to_owned(),
            ..gpu(1)
        };
        client.publish_capability(published, LONG).await.unwrap();
    }
    let takes = |at: usize, name| {
        let accepted = change("r1", 1, AssignmentState::Accepted, Some(name));
        providers[at].change_assignment(accepted, LONG)
    };
    let both = async { tokio::join!(takes(0, "p1"), takes(1, "p2")) };
    let said = stage
        .loses_the_answer(both, "SELECT update_id FROM assignment_update")
        .await;
    let (winner, refused) = match said {
        (Ok(()), Err(refused)) => ("p1", refused),
        (Err(refused), Ok(())) => ("p2", refused),
        other => panic!("{other:?}"),
    };
    let CallError::Refused(refusal) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(refusal.code, RefusalCode::AssignmentConflict);
    for named in ["accepted", "r1", winner] {
        assert!(refusal.message.contains(named), "{named}: {refusal}");
    }
    let seen = sees(&mut requester.assignments(), "r1", 2).await;
    assert_eq!(seen.provider_id.as_deref(), Some(winner));
    for client in providers {
        client.stop().await;
    }
    requester.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_an_answer_says_whether_it_may_have_been_done() {
    let stage = Stage::set().await;
    let desktop = stage.shaky("7", "desktop");
    let mut assignments = desktop.assignments();
    becomes(&mut assignments, "assignments are live", Watched::is_live).await;
    // The module does it, and nobody hears of that.
    stage.proxy.stall(Direction::ToClient);
    let said = desktop.open_assignment(opening("r1"), Duration::from_secs(2)).await;
    assert_eq!(said, Err(CallError::Lost));
    wait_for(SOON, "it was done", async || {
        stage.rows("SELECT request_id FROM assignment_party").await == 1
    })
    .await;
    // Nothing is sent.
    stage.breaks().await;
    stage.proxy.resume(Direction::ToClient);
    becomes(&mut assignments, "assignments are stale", |seen| !seen.is_live()).await;
    let said = desktop.open_assignment(opening("r2"), Duration::from_secs(2)).await;
    assert_eq!(said, Err(CallError::NotConnected));
    stage.proxy.accept().await;
    sees(&mut assignments, "r1", 1).await;
    assert_eq!(stage.rows("SELECT request_id FROM assignment_party").await, 1);
    // The same call again says that it was done.
    desktop.open_assignment(opening("r1"), LONG).await.unwrap();
    // What the module would refuse, or the gate, is not sent.
    let huge = OpenAssignment {
        document: "x".repeat(100_000),
        ..opening("r3")
    };
    assert!(matches!(
        desktop.open_assignment(huge, LONG).await,
        Err(CallError::Invalid(_))
    ));
    desktop.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_is_there_until_its_heartbeats_are_missed() {
    let stage = Stage::set().await;
    let (desktop, laptop) = (stage.shaky("7", "desktop"), stage.steady("7", "laptop"));
    let _here = desktop.presence(Presence::online("n1")).unwrap();
    let key = PresenceKey {
        session_id: "desktop".to_owned(),
        node_id: "n1".to_owned(),
    };
    let mut presences = laptop.presences(&[]).unwrap();
    let is = |status, reason| {
        let key = key.clone();
        move |seen: &Watched<spacetime_sync_client::Presences>| {
            let found = seen.rows.get(&key).map(|one| (one.status, one.reason));
            seen.is_live() && found == Some((status, reason))
        }
    };
    becomes(&mut presences, "the desktop is there", is(PresenceStatus::Online, None)).await;
    // SpacetimeDB runs the lifecycle reducers as the connection breaks. Only the missed heartbeats end the presence.
    stage.breaks().await;
    let broke = Instant::now();
    let gone = is(PresenceStatus::Offline, Some(OfflineReason::TtlExpired));
    tokio::time::timeout(2 * SOON, presences.wait_for(gone))
        .await
        .unwrap()
        .unwrap();
    assert!(broke.elapsed() > Duration::from_secs(19), "{:?}", broke.elapsed());
    stage.proxy.accept().await;
    becomes(&mut presences, "the desktop is back", is(PresenceStatus::Online, None)).await;
    desktop.stop().await;
    becomes(
        &mut presences,
        "the desktop has left",
        is(PresenceStatus::Offline, Some(OfflineReason::Explicit)),
    )
    .await;
    laptop.stop().await;
}
