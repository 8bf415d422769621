//! How assignments change: by whom, in which order, and what a repeated, late or wrong call hears.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use spacetime_sync_issuer::keys::now;
use spacetime_sync_proto::{RefusalCode, limit};
use spacetime_sync_tests::clock::Clock;
use spacetime_sync_tests::lane::wait_for;
use tokio::task::JoinSet;

use super::{ASKS, PROVIDES, conflict, is, micros, text};
use crate::access::guarded::Guarded;
use crate::lane::hostile::Said;

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn of_several_providers_who_accept_at_once_one_gets_the_assignment() {
    const ROUNDS: u64 = 40;
    const PROVIDERS: usize = 4;
    let guarded = Arc::new(Guarded::start().await);
    let asks = guarded.scoped("7", "asks", ASKS);
    let mut providers = Vec::new();
    for nth in 0..PROVIDERS {
        let [user, session, name] = [format!("u{nth}"), format!("s{nth}"), format!("p{nth}")];
        providers.push(Arc::new(guarded.provider(&user, &session, &name).await));
    }
    let mut wins = [0; PROVIDERS];
    for round in 0..ROUNDS {
        let request = format!("r{round}");
        guarded.open(&asks, &request, "", "{}", 600).await.done();
        let mut racing = JoinSet::new();
        for (nth, who) in providers.iter().enumerate() {
            let (guarded, who, request) = (guarded.clone(), who.clone(), request.clone());
            racing.spawn(async move {
                let said = guarded.update(&who, &request, 1, "accepted", &format!("p{nth}")).await;
                (nth, said)
            });
        }
        let said = racing.join_all().await;
        let winners: Vec<usize> = said
            .iter()
            .filter_map(|(nth, said)| matches!(said, Said::Done(_)).then_some(*nth))
            .collect();
        let [winner] = winners.as_slice() else {
            panic!("round {round} has other than one winner: {said:?}")
        };
        let holder = format!("p{winner}");
        for (nth, said) in said {
            if nth != *winner {
                conflict(said, &["version 1", "accepted", "at version 2", &holder]);
            }
        }
        assert!(
            guarded
                .assignments(&asks)
                .await
                .contains(&is(&request, 2, "accepted", &holder))
        );
        wins[*winner] += 1;
        guarded.update(&asks, &request, 2, "cancelled", "").await.done();
    }
    eprintln!("assignments won by each of {PROVIDERS} providers: {wins:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_or_illegal_change_names_both_states_the_version_and_the_holder() {
    let guarded = Guarded::start().await;
    let asks = guarded.scoped("7", "asks", ASKS);
    let [one, two] = [
        guarded.provider("8", "one", "p1").await,
        guarded.provider("9", "two", "p2").await,
    ];
    guarded.open(&asks, "r1", "", "{}", 600).await.done();
    guarded.update(&one, "r1", 1, "accepted", "p1").await.done();
    guarded.update(&one, "r1", 2, "running", "").await.done();
    let before = guarded.module.everything().await;
    for (who, version, wanted, provider) in [
        (&two, 1, "accepted", "p2"),
        (&two, 3, "accepted", "p2"),
        (&asks, 3, "open", ""),
        (&asks, 3, "succeeded", ""),
        (&asks, 2, "cancelled", ""),
        (&one, 3, "open", ""),
        (&one, 3, "cancelled", ""),
        (&one, 3, "expired", ""),
        (&one, 3, "running", ""),
        (&one, 3, "succeeded", "p2"),
        (&one, 4, "succeeded", ""),
        (&one, u64::MAX, "succeeded", ""),
    ] {
        let said = guarded
            .change(who, "r1", "u-wrong", version, wanted, [provider, ""])
            .await;
        conflict(
            said,
            &[&format!("version {version}"), wanted, "running at version 3", "p1"],
        );
    }
    for said in [
        guarded.change(&one, "r1", "u-wrong", 3, "done", ["", ""]).await,
        guarded.change(&one, "r1", "", 3, "succeeded", ["", ""]).await,
        guarded.change(&one, "r1", "u-wrong", 3, "succeeded", ["", "[]"]).await,
    ] {
        said.refused(RefusalCode::InvalidArgument);
    }
    assert_eq!(guarded.module.everything().await, before);
    guarded.update(&one, "r1", 3, "failed", "p1").await.done();
    for (who, wanted) in [
        (&one, "succeeded"),
        (&one, "running"),
        (&asks, "cancelled"),
        (&asks, "open"),
    ] {
        conflict(
            guarded.update(who, "r1", 4, wanted, "").await,
            &[wanted, "failed at version 4", "p1"],
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_repeated_after_a_lost_answer_is_done_once() {
    let guarded = Guarded::start().await;
    let asks = guarded.scoped("7", "asks", ASKS);
    let one = guarded.provider("8", "one", "p1").await;
    let two = guarded.provider("9", "two", "p2").await;
    let open = async || guarded.open(&asks, "r1", "", r#"{"job":1}"#, 600).await;
    open().await.done();
    let before = guarded.module.everything().await;
    open().await.done();
    assert_eq!(guarded.module.everything().await, before);
    for said in [
        guarded.open(&asks, "r1", "", r#"{"job":2}"#, 600).await,
        guarded.open(&asks, "r1", "", r#"{"job":1}"#, 601).await,
        guarded.open(&asks, "r1", "p1", r#"{"job":1}"#, 600).await,
        guarded
            .open(&guarded.scoped("8", "asks-too", ASKS), "r1", "", r#"{"job":1}"#, 600)
            .await,
    ] {
        said.refused(RefusalCode::AssignmentConflict);
    }

    let accept = async || guarded.change(&one, "r1", "u1", 1, "accepted", ["p1", ""]).await;
    let gives_back = async || {
        guarded
            .change(&one, "r1", "u2", 2, "open", ["", r#"{"why":"busy"}"#])
            .await
    };
    accept().await.done();
    accept().await.done();
    gives_back().await.done();
    // Another one takes it meanwhile. Whoever lost the answers is told all the same that its changes were made.
    guarded.change(&two, "r1", "u1", 3, "accepted", ["p2", ""]).await.done();
    let before = guarded.module.everything().await;
    for _ in 0..2 {
        open().await.done();
        accept().await.done();
        gives_back().await.done();
    }
    // The name of a change is good for one change of one user.
    let said = guarded.change(&one, "r1", "u1", 4, "accepted", ["p1", ""]).await;
    conflict(said, &["u1", "accepted at version 4", "p2"]);
    assert_eq!(guarded.module.everything().await, before);
    assert_eq!(guarded.assignments(&asks).await, [is("r1", 4, "accepted", "p2")]);
    let versions: Vec<u64> = guarded
        .history(&asks, "r1")
        .await
        .iter()
        .map(|change| change.0)
        .collect();
    assert_eq!(versions, [1, 2, 3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assignment_expires_at_its_deadline_whatever_its_state() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    let asks = guarded.scoped("7", "asks", ASKS);
    let one = guarded.provider("8", "one", "p1").await;
    for (request, provider, seconds) in [
        ("open", "", 2),
        ("offered", "p1", 2),
        ("running", "p1", 2),
        ("long", "p1", 600),
    ] {
        guarded.open(&asks, request, provider, "{}", seconds).await.done();
    }
    guarded.open(&asks, "done", "p1", "{}", 2).await.done();
    for request in ["running", "done"] {
        guarded.update(&one, request, 1, "accepted", "").await.done();
        guarded.update(&one, request, 2, "running", "").await.done();
    }
    guarded.update(&one, "done", 3, "succeeded", "").await.done();
    let seen = async || guarded.assignments(&asks).await;
    wait_for(SOON, "three have expired", async || {
        seen().await.iter().filter(|row| row.2 == "expired").count() == 3
    })
    .await;
    assert_eq!(
        seen().await,
        [
            is("done", 4, "succeeded", "p1"),
            is("long", 1, "offered", "p1"),
            is("offered", 2, "expired", "p1"),
            is("open", 2, "expired", ""),
            is("running", 4, "expired", "p1"),
        ]
    );
    let last = guarded.history(&one, "running").await.pop().unwrap();
    assert_eq!(last, (4, "expired".to_owned(), "p1".to_owned(), "clock".to_owned()));
    conflict(
        guarded.update(&one, "running", 3, "succeeded", "").await,
        &["succeeded", "expired at version 4", "p1"],
    );
    // What has ended is remembered for a day, so that a repeat is told from a new assignment.
    let statement = "SELECT due_at, has_ended FROM assignment_party";
    let now = i64::try_from(now()).unwrap() * 1_000_000;
    for row in module.sql(Some(&module.owner), statement).await.unwrap() {
        let left = micros(&row[0]) - now;
        let expected = if row[1] == json!(true) {
            86_400_000_000
        } else {
            600_000_000
        };
        assert!((expected - 60_000_000..=expected + 1_000_000).contains(&left), "{row}");
    }
    guarded.open(&asks, "open", "", "{}", 2).await.done();
    assert!(seen().await.contains(&is("open", 2, "expired", "")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_by_a_clock_that_jumps_stays_ended_when_the_clock_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::make(folder.path(), "stdb").unwrap();
    let guarded = Guarded::with_clock(&clock).await;
    if !guarded.module.server.is_own() {
        eprintln!("skipped: the clock of this server is not ours");
        return;
    }
    let lasting = |user, session, scopes: &[&str]| {
        let mut claims = guarded.issuer.claims(user, session, &[]);
        claims["oa_sync_scopes"] = json!(scopes);
        claims["exp"] = json!(now() + 800);
        guarded.with(&claims)
    };
    let (asks, one) = (lasting("7", "asks", ASKS), lasting("8", "one", PROVIDES));
    let publish = async |capability, version, seconds| {
        let said = guarded.publish(&one, "p1", capability, version, "{}", seconds).await;
        said.done();
    };
    let stand = async || {
        let rows = guarded.column("SELECT capability FROM provider_capability").await;
        let mut standing: Vec<_> = rows.iter().map(text).collect();
        standing.sort();
        standing
    };
    publish("brief", 1, 200).await;
    publish("long", 1, 600).await;
    guarded.open(&asks, "brief", "", "{}", 200).await.done();
    guarded.update(&one, "brief", 1, "accepted", "p1").await.done();
    guarded.open(&asks, "long", "", "{}", 600).await.done();
    clock.set(301).unwrap();
    let ended = [is("brief", 3, "expired", "p1"), is("long", 1, "open", "")];
    wait_for(SOON, "what is brief has ended", async || {
        guarded.assignments(&asks).await == ended && stand().await == ["long"]
    })
    .await;
    clock.set(0).unwrap();
    // By this clock neither has reached its end. The same calls again bring neither back.
    guarded.open(&asks, "brief", "", "{}", 200).await.done();
    publish("brief", 1, 200).await;
    conflict(
        guarded.update(&one, "brief", 2, "running", "").await,
        &["running", "expired at version 3", "p1"],
    );
    assert_eq!(guarded.assignments(&asks).await, ended);
    assert_eq!(stand().await, ["long"]);
    let by: Vec<_> = guarded
        .history(&asks, "brief")
        .await
        .into_iter()
        .map(|change| change.3)
        .collect();
    assert_eq!(by, ["requester", "provider", "clock"]);
    // Everything else goes on.
    publish("brief", 2, 200).await;
    assert_eq!(stand().await, ["brief", "long"]);
    guarded.update(&one, "long", 1, "accepted", "p1").await.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_gives_an_assignment_back_leaves_the_next_what_the_requester_wrote() {
    let guarded = Guarded::start().await;
    let asks = guarded.scoped("7", "asks", ASKS);
    let one = guarded.provider("8", "one", "p1").await;
    let two = guarded.provider("9", "two", "p2").await;
    guarded.open(&asks, "r1", "", r#"{"job":1}"#, 600).await.done();
    let documents = async || {
        let statement = "SELECT assignment, report FROM compute_assignment";
        let row = guarded.module.sql(Some(&asks), statement).await.unwrap().remove(0);
        [text(&row[0]), text(&row[1])]
    };
    let accepts = ["p1", r#"{"job":"mine"}"#];
    guarded.change(&one, "r1", "u1", 1, "accepted", accepts).await.done();
    assert_eq!(documents().await, [r#"{"job":1}"#, r#"{"job":"mine"}"#]);
    guarded.update(&one, "r1", 2, "open", "").await.done();
    assert_eq!(documents().await, [r#"{"job":1}"#, ""]);
    let changed = ["", r#"{"job":2}"#];
    guarded.change(&asks, "r1", "u2", 3, "open", changed).await.done();
    guarded.update(&two, "r1", 4, "accepted", "p2").await.done();
    guarded.update(&two, "r1", 5, "running", "").await.done();
    let reports = ["", r#"{"out":3}"#];
    guarded.change(&two, "r1", "u3", 6, "succeeded", reports).await.done();
    assert_eq!(documents().await, [r#"{"job":2}"#, r#"{"out":3}"#]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assignment_goes_to_providers_that_exist_and_to_ones_own_name() {
    let guarded = Guarded::start().await;
    let asks = guarded.scoped("7", "asks", ASKS);
    let one = guarded.provider("8", "one", "p1").await;
    let nameless = guarded.scoped("9", "nameless", PROVIDES);
    let said = guarded.open(&asks, "r1", "nobody", "{}", 600).await;
    said.refused(RefusalCode::CapabilityConflict);
    guarded.open(&asks, "r1", "", "{}", 600).await.done();
    for (who, provider) in [(&nameless, "p1"), (&nameless, "p9"), (&one, "p9")] {
        let said = guarded.update(who, "r1", 1, "accepted", provider).await;
        said.refused(RefusalCode::CapabilityConflict);
    }
    let said = guarded.update(&one, "r1", 1, "accepted", "").await;
    said.refused(RefusalCode::InvalidArgument);
    let said = guarded.update(&asks, "r1", 1, "offered", "nobody").await;
    said.refused(RefusalCode::CapabilityConflict);
    assert_eq!(guarded.assignments(&asks).await, [is("r1", 1, "open", "")]);
    guarded.update(&asks, "r1", 1, "offered", "p1").await.done();
    guarded.update(&one, "r1", 2, "accepted", "").await.done();
    let filled = format!("{{\"a\":\"{}\"}}", "x".repeat(limit::ASSIGNMENT_BYTES - 8));
    for (document, seconds, good) in [
        (filled.as_str(), 1, true),
        ("{}", limit::ASSIGNMENT_SECONDS, true),
        (&format!("{filled} "), 600, false),
        ("", 600, false),
        ("[]", 600, false),
        ("{}", 0, false),
        ("{}", limit::ASSIGNMENT_SECONDS + 1, false),
        ("{}", u64::MAX, false),
    ] {
        let said = guarded
            .open(&asks, &format!("r-{seconds}-{good}"), "", document, seconds)
            .await;
        let expected = (!good).then_some(RefusalCode::InvalidArgument);
        assert_eq!(said.code(), expected, "{seconds} {document:.20}");
    }
}
