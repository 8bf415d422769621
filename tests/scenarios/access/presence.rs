//! Presence: which sessions are online.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use spacetime_sync_proto::limit::PRESENCE_NODES;
use spacetime_sync_proto::{ChainHash, RefusalCode};
use spacetime_sync_stdb::admin::{Breaking, Credential};
use spacetime_sync_tests::clock::Clock;
use spacetime_sync_tests::release::Release;

use super::guarded::Guarded;
use crate::lane::hostile::{log, stream};

impl Guarded {
    async fn beat(&self, who: &Credential, session: &str, status: &str, serves: &[&str]) {
        let said = self.say(who, session, status, serves).await;
        assert_eq!(said, None);
    }

    async fn say(&self, who: &Credential, session: &str, status: &str, serves: &[&str]) -> Option<RefusalCode> {
        self.say_on(&format!("node-of-{session}"), who, session, status, serves)
            .await
    }

    async fn say_on(
        &self,
        node: &str,
        who: &Credential,
        session: &str,
        status: &str,
        serves: &[&str],
    ) -> Option<RefusalCode> {
        let arguments = json!([session, node, status, "eu", "desktop", serves]);
        self.module.call(Some(who), "upsert_presence", &arguments).await.code()
    }

    /// Session, status and reason of every presence that a caller sees, without duplicates.
    async fn seen(&self, who: &Credential) -> Vec<[String; 3]> {
        let statement = "SELECT session_id, status, reason FROM session_presence";
        let rows = self.module.sql(Some(who), statement).await.unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let mut seen: Vec<_> = rows
            .iter()
            .map(|row| [text(&row[0]), text(&row[1]), text(&row[2])])
            .collect();
        seen.sort();
        seen.dedup();
        seen
    }
}

fn is(session: &str, status: &str, reason: &str) -> [String; 3] {
    [session, status, reason].map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_is_visible_to_the_user_and_to_readers_of_served_streams() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    let run = stream("runtime.run.1.events");
    module
        .append(&run, &log(&run, 1, 1), &ChainHash::genesis(&run))
        .await
        .done();
    let worker = guarded.session("7", "worker", &["runtime.run.1.events"]);
    let desktop = guarded.session("7", "desktop", &["user:7:*"]);
    let reader = guarded.session("8", "reader", &["runtime.run.*"]);
    let elsewhere = guarded.session("9", "elsewhere", &["runtime.run.2.events", "user:9:*"]);

    guarded.beat(&worker, "worker", "online", &[]).await;
    let online = [is("worker", "online", "")];
    assert_eq!(guarded.seen(&desktop).await, online);
    assert_eq!(guarded.seen(&reader).await, [[""; 3]; 0]);
    guarded.beat(&worker, "worker", "online", &[run.as_str()]).await;
    for who in [&worker, &desktop, &reader] {
        assert_eq!(guarded.seen(who).await, online);
    }
    assert_eq!(guarded.seen(&elsewhere).await, [[""; 3]; 0]);
    guarded.beat(&reader, "reader", "away", &[]).await;
    assert_eq!(
        guarded.seen(&worker).await,
        online,
        "it serves nothing and belongs to another user"
    );

    guarded.beat(&worker, "worker", "offline", &[run.as_str()]).await;
    assert_eq!(
        guarded.seen(&desktop).await,
        [is("worker", "offline", "explicit_offline")]
    );
    assert_eq!(
        guarded.seen(&reader).await[1],
        is("worker", "offline", "explicit_offline")
    );
    guarded.beat(&worker, "worker", "busy", &[]).await;
    assert_eq!(guarded.seen(&desktop).await, [is("worker", "busy", "")]);
    assert_eq!(
        guarded.seen(&reader).await,
        [is("reader", "away", "")],
        "it no longer serves the stream"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_of_a_session_has_its_own_presence() {
    let guarded = Guarded::start().await;
    let [desktop, other] = ["desktop", "other"].map(|session| guarded.session("7", session, &["user:7:*"]));
    let on = async |node: &str, status: &str| {
        let said = guarded.say_on(node, &desktop, "desktop", status, &[]).await;
        assert_eq!(said, None, "{node} {status}");
    };
    let nodes = async || {
        let statement = "SELECT node_id, status FROM session_presence";
        let rows = guarded.module.sql(Some(&other), statement).await.unwrap();
        let mut seen: Vec<_> = rows
            .iter()
            .map(|row| [&row[0], &row[1]].map(|value| value.as_str().unwrap().to_owned()))
            .collect();
        seen.sort();
        seen
    };
    on("laptop", "online").await;
    on("worker", "busy").await;
    on("laptop", "online").await;
    let both = [["laptop", "online"], ["worker", "busy"]].map(|row| row.map(str::to_owned));
    assert_eq!(nodes().await, both);
    on("worker", "offline").await;
    let one = [["laptop", "online"], ["worker", "offline"]].map(|row| row.map(str::to_owned));
    assert_eq!(nodes().await, one);
    // The node that left makes room, so as many nodes as allowed are online.
    for nth in 1..PRESENCE_NODES {
        on(&format!("node-{nth}"), "online").await;
    }
    let seen = nodes().await;
    assert_eq!(seen.len(), PRESENCE_NODES, "{seen:?}");
    assert!(!seen.iter().any(|row| row[0] == "worker"), "{seen:?}");
    let refused = guarded.say_on("one-too-many", &desktop, "desktop", "online", &[]).await;
    assert_eq!(refused, Some(RefusalCode::InvalidArgument));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_can_only_set_its_own_presence() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    let [one, two] = ["one", "two"].map(|session| guarded.session("7", session, &["user:7:*"]));
    guarded.beat(&one, "one", "online", &[]).await;
    let refused = Some(RefusalCode::Unauthorized);
    assert_eq!(
        guarded.say(&two, "one", "offline", &[]).await,
        refused,
        "another session of the same user"
    );
    assert_eq!(
        guarded
            .say(&guarded.session("8", "three", &[]), "one", "offline", &[])
            .await,
        refused
    );
    assert_eq!(guarded.say(&module.owner, "one", "offline", &[]).await, refused);
    assert_eq!(guarded.say(&module.bridge, "one", "offline", &[]).await, refused);
    let forbidden = Some(RefusalCode::ForbiddenStream);
    assert_eq!(
        guarded.say(&two, "two", "online", &["user:8:notes"]).await,
        forbidden,
        "a stream that it may not see"
    );
    let invalid = Some(RefusalCode::InvalidArgument);
    assert_eq!(guarded.say(&two, "two", "dancing", &[]).await, invalid);
    assert_eq!(guarded.say(&two, "two", "online", &["user:*"]).await, invalid);
    assert_eq!(guarded.seen(&two).await, [is("one", "online", "")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_session_with_the_scope_says_what_it_serves() {
    let guarded = Guarded::start().await;
    let mut claims = guarded.issuer.claims("7", "reader", &["user:7:*"]);
    claims["oa_sync_scopes"] = json!(["sync.subscribe", "sync.checkpoint.write", "runtime.run_events"]);
    let reader = guarded.with(&claims);
    guarded.beat(&reader, "reader", "online", &[]).await;
    let refused = guarded.say(&reader, "reader", "online", &["user:7:notes"]).await;
    assert_eq!(refused, Some(RefusalCode::MissingScope));
    let worker = guarded.session("7", "worker", &["user:7:*"]);
    guarded.beat(&worker, "worker", "online", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_heartbeats_is_refused_and_costs_no_other_session_its_presence() {
    let guarded = Guarded::start().await;
    let [loud, quiet] = ["loud", "quiet"].map(|session| guarded.session("7", session, &["user:7:*"]));
    // What only repeats is told to nobody, and takes nothing from the quota.
    guarded.beat(&loud, "loud", "away", &[]).await;
    for _ in 0..200 {
        guarded.beat(&loud, "loud", "away", &[]).await;
    }
    let began = Instant::now();
    let mut taken = 0;
    let mut statuses = ["busy", "away"].into_iter().cycle();
    let refused = loop {
        match guarded.say(&loud, "loud", statuses.next().unwrap(), &[]).await {
            None => taken += 1,
            Some(refused) => break refused,
        }
        assert!(taken < 1_000, "nothing is refused");
    };
    assert_eq!(refused, RefusalCode::RateLimited);
    // A burst of a hundred, and ten more in each second that it took.
    assert!(
        (100..=101 + began.elapsed().as_millis() / 100).contains(&taken),
        "{taken}"
    );
    guarded.beat(&quiet, "quiet", "online", &[]).await;
    let deadline = Instant::now() + Duration::from_secs(5);
    while guarded.say(&loud, "loud", "online", &[]).await.is_some() {
        assert!(Instant::now() < deadline, "its quota does not come back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_that_only_repeat_are_told_to_nobody_and_keep_the_node_online_until_they_stop() {
    let guarded = Guarded::start().await;
    let [session, watcher] = ["one", "two"].map(|session| guarded.session("7", session, &["user:7:*"]));
    guarded.beat(&watcher, "two", "away", &[]).await;
    let last_seen = async || {
        let query = "SELECT last_seen FROM session_presence WHERE session_id = 'one'";
        guarded.module.sql(Some(&watcher), query).await.unwrap()[0][0].clone()
    };
    guarded.beat(&session, "one", "online", &[]).await;
    let (began, first) = (Instant::now(), last_seen().await);
    // Without a heartbeat, the node would be offline 30 s after the first.
    while began.elapsed() < Duration::from_secs(35) {
        guarded.beat(&session, "one", "online", &[]).await;
        assert_eq!(last_seen().await, first);
        assert!(guarded.seen(&watcher).await.contains(&is("one", "online", "")));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let stopped = Instant::now();
    // Of the last heartbeats, one was noted at most 8 s before.
    while !guarded
        .seen(&watcher)
        .await
        .contains(&is("one", "offline", "ttl_expired"))
    {
        assert!(stopped.elapsed() < Duration::from_secs(35), "it did not go offline");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(stopped.elapsed() > Duration::from_secs(20), "{:?}", stopped.elapsed());
    let noted = last_seen().await;
    assert_ne!(noted, first, "it is told when the node was last heard");
    guarded.beat(&session, "one", "busy", &[]).await;
    assert_ne!(last_seen().await, noted, "what is new is written at once");
}

/// The module on a server whose clock the test sets, and a session that lasts. `None` if the clock of the server is not ours.
async fn clocked(folder: &Path) -> Option<(Guarded, Clock, Credential)> {
    let clock = Clock::make(folder, "stdb").unwrap();
    let guarded = Guarded::with_clock(&clock).await;
    if !guarded.module.server.is_own() {
        eprintln!("skipped: the clock of this server is not ours");
        return None;
    }
    let mut claims = guarded.issuer.claims("7", "one", &["user:7:*"]);
    claims["exp"] = json!(claims["iat"].as_u64().unwrap() + 880);
    let session = guarded.with(&claims);
    Some((guarded, clock, session))
}

impl Guarded {
    /// Status, reason and `last_seen` of a node, as the owner sees them. `None` if no row is left.
    async fn node(&self, node: &str) -> Option<(String, String, Value)> {
        let statement = format!("SELECT status, reason, last_seen FROM session_presence WHERE node_id = '{node}'");
        let rows = self.module.sql(Some(&self.module.owner), &statement).await.unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let row = rows.first()?;
        Some((text(&row[0]), text(&row[1]), row[2].clone()))
    }

    /// Waits until a node has this status. Returns its `last_seen`.
    async fn until(&self, node: &str, status: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let held = self.node(node).await;
            match held {
                Some((now, _, last_seen)) if now == status => return last_seen,
                _ => assert!(Instant::now() < deadline, "{node} is not {status}: {held:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_goes_on_is_told_of_now_and_then_and_one_that_is_long_gone_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let Some((guarded, clock, session)) = clocked(folder.path()).await else {
        return;
    };
    let beat = async || {
        let said = guarded.say_on("n", &session, "one", "online", &[]).await;
        assert_eq!(said, None);
    };
    beat().await;
    let mut told = vec![guarded.until("n", "online").await];
    for seconds in (20..=620).step_by(20) {
        clock.set(seconds).unwrap();
        beat().await;
        let last_seen = guarded.until("n", "online").await;
        if told.last() != Some(&last_seen) {
            assert!(seconds >= 600, "told after {seconds} s");
            told.push(last_seen);
        }
    }
    clock.set(640).unwrap();
    beat().await;
    // A sweep may come a little later than what is due.
    let deadline = Instant::now() + Duration::from_secs(10);
    while told.len() < 2 {
        assert!(Instant::now() < deadline, "nobody is told in ten minutes");
        let last_seen = guarded.until("n", "online").await;
        if told.last() != Some(&last_seen) {
            told.push(last_seen);
        }
    }
    clock.set(660).unwrap();
    beat().await;
    clock.set(660 + 31).unwrap();
    let last_heard = guarded.until("n", "offline").await;
    assert!(!told.contains(&last_heard), "it is told when the node was last heard");
    assert_eq!(guarded.node("n").await.unwrap().1, "ttl_expired");
    let day = 24 * 3_600;
    clock.set(660 + day).unwrap();
    assert!(guarded.node("n").await.is_some());
    clock.set(660 + day + 60).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while guarded.node("n").await.is_some() {
        assert!(Instant::now() < deadline, "it is not forgotten");
    }
    let beats = guarded
        .module
        .sql(Some(&guarded.module.owner), "SELECT * FROM presence_beat");
    assert_eq!(beats.await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_last_heartbeat_lies_in_the_future_goes_offline_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let Some((guarded, clock, session)) = clocked(folder.path()).await else {
        return;
    };
    let beat = async || {
        let said = guarded.say_on("n", &session, "one", "online", &[]).await;
        assert_eq!(said, None);
    };
    clock.set(300).unwrap();
    beat().await;
    let ahead = guarded.until("n", "online").await;
    clock.set(0).unwrap();
    beat().await;
    assert_ne!(
        guarded.until("n", "online").await,
        ahead,
        "a row of the future is rewritten"
    );
    clock.set(31).unwrap();
    guarded.until("n", "offline").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_the_previous_release_go_on_or_go_offline_when_the_module_is_updated() {
    let folder = tempfile::tempdir().unwrap();
    let Some((guarded, clock, session)) = clocked(folder.path()).await else {
        return;
    };
    let beat = async |node: &str| {
        let said = guarded.say_on(node, &session, "one", "online", &[]).await;
        assert_eq!(said, None);
    };
    let put = async |release: Release| {
        let owner = guarded.module.as_owner();
        owner
            .publish(release.module().unwrap(), Breaking::DisconnectClients)
            .await
            .unwrap();
    };
    put(Release::Previous).await;
    for node in ["goes-on", "is-silent"] {
        beat(node).await;
    }
    let before = guarded.until("goes-on", "online").await;
    put(Release::Current).await;
    clock.set(20).unwrap();
    beat("goes-on").await;
    clock.set(40).unwrap();
    guarded.until("is-silent", "offline").await;
    // What the previous release wrote held for 30 s. From now on, it is told as any other.
    let told = guarded.until("goes-on", "online").await;
    assert_ne!(told, before);
    clock.set(45).unwrap();
    beat("goes-on").await;
    clock.set(70).unwrap();
    beat("goes-on").await;
    assert_eq!(guarded.until("goes-on", "online").await, told);
    clock.set(70 + 31).unwrap();
    guarded.until("goes-on", "offline").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_without_heartbeats_goes_offline() {
    let guarded = Guarded::start().await;
    let [silent, alive] = ["silent", "alive"].map(|session| guarded.session("7", session, &["user:7:*"]));
    guarded.beat(&silent, "silent", "online", &[]).await;
    let began = Instant::now();
    let went = loop {
        // Its requests run the lifecycle reducers, but are not heartbeats.
        guarded.beat(&alive, "alive", "online", &[]).await;
        let seen = guarded.seen(&silent).await;
        assert!(seen.contains(&is("alive", "online", "")), "{seen:?}");
        if seen.contains(&is("silent", "offline", "ttl_expired")) {
            break began.elapsed();
        }
        assert!(seen.contains(&is("silent", "online", "")), "{seen:?}");
        assert!(began.elapsed() < Duration::from_secs(40), "it did not go offline");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert!(went > Duration::from_secs(29), "{went:?}");
    guarded.beat(&silent, "silent", "online", &[]).await;
    assert!(guarded.seen(&alive).await.contains(&is("silent", "online", "")));
}
