//! What sessions tell one another in passing: who hears it, and what a session cannot do with it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use spacetime_sync_bindings::{PresenceChangeTableAccess as _, SessionSignalTableAccess as _};
use spacetime_sync_proto::{ChainHash, RefusalCode, limit};
use spacetime_sync_stdb::admin::Credential;
use spacetime_sync_tests::lane::wait;
use spacetimedb_sdk::EventTable as _;

use super::ASKS;
use crate::access::guarded::Guarded;
use crate::lane::hostile::visibility::Listener;
use crate::lane::hostile::{Said, log, stream};

const SOON: Duration = Duration::from_secs(20);

/// A signal as a test looks at it: whose it is, what it is about, what it says.
type Heard = (String, String, String);

fn is(from: &str, about: &str, says: &str) -> Heard {
    (from.to_owned(), about.to_owned(), says.to_owned())
}

/// Somebody who listens, and all that it has heard.
struct Ear {
    listener: Listener,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Ear {
    async fn of(guarded: &Guarded, who: &Credential) -> Self {
        let listener = Listener::connect(&guarded.module, who).await;
        let heard = Arc::<Mutex<Vec<Heard>>>::default();
        let to = heard.clone();
        listener.connection.db.session_signal().on_insert(move |_, row| {
            let from = format!("{}/{}", row.session_id, row.node_id);
            let about = format!("{} {}", row.subject_kind, row.subject);
            let says = format!("{} {}/{} {}", row.kind, row.done, row.total, row.note);
            to.lock().unwrap().push((from, about, says));
        });
        let to = heard.clone();
        listener.connection.db.presence_change().on_insert(move |_, row| {
            let from = format!("{}/{}", row.session_id, row.node_id);
            let about = format!("{} {} {}", row.region, row.surface, row.nostr_pubkey);
            let says = format!("{} {}", row.status, row.reason);
            to.lock().unwrap().push((from, about, says));
        });
        Self { listener, heard }
    }

    async fn hears(&self, table: &str, key: u64) -> Result<(), String> {
        let query = format!("SELECT * FROM {table} WHERE audience_key = {key}");
        self.listener.subscribe(&query).await
    }

    fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    async fn becomes(&self, expected: &[Heard]) {
        wait(
            SOON,
            &format!("a listener hears {expected:?}: {:?}", self.heard()),
            || self.heard() == expected,
        )
        .await;
    }
}

impl Guarded {
    async fn key(&self, who: &Credential, stream: &str) -> u64 {
        let said = self.module.call(Some(who), "read_audience_key", &json!([stream])).await;
        said.done().as_u64().unwrap()
    }

    async fn signal(&self, who: &Credential, subject: [&str; 2], kind: &str, note: &str) -> Said {
        let steps = if kind == "progress" { [1, 2] } else { [0, 0] };
        let arguments = json!(["n1", subject[0], subject[1], kind, steps[0], steps[1], note]);
        self.module.call(Some(who), "send_signal", &arguments).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_reaches_whoever_may_see_its_subject_and_nobody_else() {
    let guarded = Guarded::start().await;
    let run = stream("runtime.run.1.events");
    let module = &guarded.module;
    module
        .append(&run, &log(&run, 1, 1), &ChainHash::genesis(&run))
        .await
        .done();
    let worker = guarded.session("7", "worker", &[run.as_str()]);
    let desktop = guarded.session("7", "desktop", &["user:7:*"]);
    let reader = guarded.session("8", "reader", &["runtime.run.*"]);
    let stranger = guarded.session("9", "stranger", &["user:9:*"]);
    let (own, of_run) = (guarded.key(&worker, "").await, guarded.key(&worker, run.as_str()).await);
    assert_eq!(guarded.key(&desktop, "").await, own);
    for who in [&desktop, &stranger] {
        let said = module
            .call(Some(who), "read_audience_key", &json!([run.as_str()]))
            .await;
        said.refused(RefusalCode::ForbiddenStream);
    }
    // All of them name both keys, which everybody can find in `stream_grant`.
    let mut ears = Vec::new();
    for who in [&worker, &desktop, &reader, &stranger] {
        let ear = Ear::of(&guarded, who).await;
        for key in [own, of_run] {
            ear.hears("session_signal", key).await.unwrap();
        }
        ears.push(ear);
    }
    let [worker_ear, desktop_ear, reader_ear, stranger_ear] = ears.try_into().ok().unwrap();

    guarded.signal(&worker, ["user", "notes"], "typing", "hm").await.done();
    let typing = is("worker/n1", "user notes", "typing 0/0 hm");
    for ear in [&worker_ear, &desktop_ear] {
        ear.becomes(std::slice::from_ref(&typing)).await;
    }
    guarded
        .signal(&worker, ["stream", run.as_str()], "progress", "")
        .await
        .done();
    let progress = is("worker/n1", "stream runtime.run.1.events", "progress 1/2 ");
    worker_ear.becomes(&[typing.clone(), progress.clone()]).await;
    reader_ear.becomes(std::slice::from_ref(&progress)).await;
    guarded
        .signal(&reader, ["stream", run.as_str()], "conflict", "both")
        .await
        .done();
    let conflict = is("reader/n1", "stream runtime.run.1.events", "conflict 0/0 both");
    worker_ear
        .becomes(&[typing.clone(), progress.clone(), conflict.clone()])
        .await;
    reader_ear.becomes(&[progress.clone(), conflict]).await;
    for ear in [&desktop_ear, &stranger_ear] {
        ear.listener.fence().await;
    }
    assert_eq!(desktop_ear.heard(), [typing]);
    assert_eq!(stranger_ear.heard(), []);

    // A session that ends hears nothing more, on its open connection.
    module
        .call(Some(&module.owner), "revoke_session", &json!(["reader"]))
        .await
        .done();
    guarded
        .signal(&worker, ["stream", run.as_str()], "typing", "")
        .await
        .done();
    wait(SOON, "the worker hears itself", || worker_ear.heard().len() == 4).await;
    reader_ear.listener.fence().await;
    assert_eq!(reader_ear.heard().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_about_an_assignment_reaches_its_two_parties_and_tells_neither_who_the_other_is() {
    let guarded = Guarded::start().await;
    let asks = guarded.scoped("7", "asks", ASKS);
    let one = guarded.provider("8", "one", "p1").await;
    let two = guarded.provider("9", "two", "p2").await;
    let beside = guarded.scoped("8", "beside", &["sync.subscribe"]);
    let mut ears = Vec::new();
    let keys = [
        guarded.key(&asks, "").await,
        guarded.key(&one, "").await,
        guarded.key(&two, "").await,
    ];
    for who in [&asks, &one, &two] {
        let ear = Ear::of(&guarded, who).await;
        for key in keys {
            ear.hears("session_signal", key).await.unwrap();
        }
        ears.push(ear);
    }
    let [asks_ear, one_ear, two_ear] = ears.try_into().ok().unwrap();
    let about = ["assignment", "r1"];
    let forbidden = RefusalCode::ForbiddenAssignment;
    guarded.signal(&asks, about, "typing", "").await.refused(forbidden);
    guarded.open(&asks, "r1", "", "{}", 600).await.done();
    guarded.signal(&one, about, "progress", "").await.refused(forbidden);
    guarded.update(&one, "r1", 1, "accepted", "p1").await.done();
    guarded.signal(&one, about, "progress", "half").await.done();
    let told = |from: &str| is(from, "assignment r1", "progress 1/2 half");
    one_ear.becomes(&[told("one/n1")]).await;
    asks_ear.becomes(&[told("/")]).await;
    guarded.signal(&asks, about, "conflict", "wait").await.done();
    let conflict = |from: &str| is(from, "assignment r1", "conflict 0/0 wait");
    asks_ear.becomes(&[told("/"), conflict("asks/n1")]).await;
    one_ear.becomes(&[told("one/n1"), conflict("/")]).await;
    // Who has no part in it, or no scope for it, tells nothing.
    guarded.signal(&two, about, "conflict", "").await.refused(forbidden);
    guarded
        .signal(&beside, about, "typing", "")
        .await
        .refused(RefusalCode::MissingScope);
    guarded.update(&asks, "r1", 2, "cancelled", "").await.done();
    guarded
        .signal(&one, about, "progress", "")
        .await
        .refused(RefusalCode::AssignmentConflict);
    two_ear.listener.fence().await;
    assert_eq!(two_ear.heard(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_presence_are_told_once_to_whoever_sees_the_node() {
    let guarded = Guarded::start().await;
    let run = stream("runtime.run.1.events");
    let module = &guarded.module;
    module
        .append(&run, &log(&run, 1, 1), &ChainHash::genesis(&run))
        .await
        .done();
    let worker = guarded.session("7", "worker", &[run.as_str()]);
    let desktop = guarded.session("7", "desktop", &["user:7:*"]);
    let reader = guarded.session("8", "reader", &["runtime.run.*"]);
    let own = guarded.key(&desktop, "").await;
    let of_run = guarded.key(&reader, run.as_str()).await;
    let (desktop_ear, reader_ear) = (Ear::of(&guarded, &desktop).await, Ear::of(&guarded, &reader).await);
    for key in [own, of_run] {
        desktop_ear.hears("presence_change", key).await.unwrap();
        reader_ear.hears("presence_change", key).await.unwrap();
    }
    let says = async |status: &str, surface: &str, serves: &[&str]| {
        let arguments = json!(["worker", "n1", status, "eu", surface, serves]);
        module.call(Some(&worker), "upsert_presence", &arguments).await.done();
    };
    let told = |surface: &str, says: &str| is("worker/n1", &format!("eu {surface} "), says);
    for _ in 0..3 {
        says("online", "desktop", &[]).await;
    }
    says("online", "terminal", &[]).await;
    let mut expected = vec![told("desktop", "online "), told("terminal", "online ")];
    desktop_ear.becomes(&expected).await;
    assert_eq!(reader_ear.heard(), []);
    // Now readers of the stream see the node, and hear of it. To the desktop it is not new.
    for _ in 0..3 {
        says("online", "terminal", &[run.as_str()]).await;
    }
    reader_ear.becomes(&[told("terminal", "online ")]).await;
    says("busy", "terminal", &[run.as_str()]).await;
    says("offline", "terminal", &[run.as_str()]).await;
    let then = [told("terminal", "busy "), told("terminal", "offline explicit_offline")];
    expected.extend(then.clone());
    desktop_ear.becomes(&expected).await;
    reader_ear
        .becomes(&[[told("terminal", "online ")].as_slice(), &then].concat())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_or_told_twice_and_only_a_subscription_that_names_its_audience_hears() {
    let guarded = Guarded::start().await;
    let [one, two] = ["one", "two"].map(|session| guarded.session("7", session, &["user:7:*"]));
    let own = guarded.key(&one, "").await;
    guarded.signal(&one, ["user", ""], "typing", "before").await.done();
    let ear = Ear::of(&guarded, &two).await;
    let all = Listener::connect(&guarded.module, &two).await;
    for table in ["session_signal", "presence_change"] {
        ear.hears(table, own).await.unwrap();
        // The planner cannot join the grants with it.
        all.subscribe(&format!("SELECT * FROM {table}")).await.unwrap_err();
    }
    guarded.signal(&one, ["user", ""], "typing", "after").await.done();
    let after = is("one/n1", "user ", "typing 0/0 after");
    ear.becomes(std::slice::from_ref(&after)).await;
    // Another subscription brings nothing of before, and no second copy.
    ear.hears("session_signal", own).await.unwrap();
    guarded.signal(&one, ["user", ""], "typing", "last").await.done();
    ear.becomes(&[after, is("one/n1", "user ", "typing 0/0 last")]).await;
    ear.listener.fence().await;
    assert_eq!(ear.heard().len(), 2);
    for table in ["session_signal", "presence_change"] {
        assert_eq!(guarded.column(&format!("SELECT * FROM {table}")).await.len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_and_foreign_signals_are_refused() {
    let guarded = Guarded::start().await;
    let run = stream("runtime.run.1.events");
    let module = &guarded.module;
    module
        .append(&run, &log(&run, 1, 1), &ChainHash::genesis(&run))
        .await
        .done();
    let own = guarded.session("7", "own", &["user:7:*"]);
    let reads = guarded.scoped("7", "reads", &["sync.subscribe"]);
    let long = "x".repeat(limit::SIGNAL_NOTE_BYTES + 1);
    for arguments in [
        json!(["", "user", "", "typing", 0, 0, ""]),
        json!(["n1", "everybody", "", "typing", 0, 0, ""]),
        json!(["n1", "stream", "user:7:*", "typing", 0, 0, ""]),
        json!(["n1", "assignment", "", "typing", 0, 0, ""]),
        json!(["n1", "user", "", "presence", 0, 0, ""]),
        json!(["n1", "user", "", "typing", 1, 0, ""]),
        json!(["n1", "user", "", "progress", 3, 2, ""]),
        json!(["n1", "user", "", "conflict", 0, 0, long]),
        json!(["n1", "user", "", "conflict", 0, 0, "a\u{1b}[2J"]),
    ] {
        let said = module.call(Some(&own), "send_signal", &arguments).await;
        said.refused(RefusalCode::InvalidArgument);
    }
    let there = guarded.signal(&own, ["stream", run.as_str()], "typing", "").await;
    let not_there = guarded.signal(&own, ["stream", "no.such.stream"], "typing", "").await;
    let refusal = there.refused(RefusalCode::ForbiddenStream);
    assert_eq!(refusal, not_there.refused(RefusalCode::ForbiddenStream));
    let said = guarded.signal(&reads, ["stream", "user:7:notes"], "typing", "").await;
    said.refused(RefusalCode::MissingScope);
    guarded.signal(&reads, ["user", "notes"], "typing", "").await.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_signals_as_fast_as_it_can_is_refused_and_costs_no_other_its_signals() {
    let guarded = Guarded::start().await;
    let [loud, quiet] = ["loud", "quiet"].map(|session| guarded.session("7", session, &["user:7:*"]));
    let ear = Ear::of(&guarded, &quiet).await;
    let own = guarded.key(&quiet, "").await;
    ear.hears("session_signal", own).await.unwrap();
    let began = Instant::now();
    let mut told = 0;
    let refused = loop {
        match guarded.signal(&loud, ["user", ""], "typing", "").await {
            Said::Done(_) => told += 1,
            refused => break refused,
        }
        assert!(told < 1_000, "nothing is refused");
    };
    refused.refused(RefusalCode::RateLimited);
    // A burst of sixty, and twenty more in each second that it took.
    assert!((60..=61 + began.elapsed().as_millis() / 50).contains(&told), "{told}");
    guarded.signal(&quiet, ["user", ""], "typing", "").await.done();
    // Its heartbeats have a quota of their own.
    let beat = json!(["loud", "n1", "online", "", "", []]);
    guarded.module.call(Some(&loud), "upsert_presence", &beat).await.done();
    let all = told as usize + 1;
    wait(SOON, "everything that was told is heard, and no more", || {
        ear.heard().len() >= all
    })
    .await;
    ear.listener.fence().await;
    assert_eq!(ear.heard().len(), all);
}
