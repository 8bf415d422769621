//! What one user can make the module hold, and how often it can make it work.

use std::time::{Duration, Instant};

use spacetime_sync_proto::{RefusalCode, limit};
use spacetime_sync_tests::lane::wait_for;

use super::{ASKS, PROVIDES, is};
use crate::access::guarded::Guarded;
use crate::lane::hostile::Said;

const SOON: Duration = Duration::from_secs(30);

/// Calls until the quota lets the call through. It must be good otherwise.
async fn insist(mut call: impl AsyncFnMut() -> Said) {
    wait_for(SOON, "the quota has room", async || match call().await.code() {
        None => true,
        Some(code) => {
            assert_eq!(code, RefusalCode::RateLimited);
            false
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_of_an_assignment_is_bounded_for_everybody_who_sees_it() {
    let guarded = Guarded::start().await;
    let asks = guarded.scoped("7", "asks", ASKS);
    let one = guarded.provider("8", "one", "p1").await;
    guarded.open(&asks, "r1", "", "{}", 3_600).await.done();
    let changes = limit::ASSIGNMENT_CHANGES + 7;
    for version in 1..=changes {
        let (status, provider) = if version % 2 == 1 {
            ("offered", "p1")
        } else {
            ("open", "")
        };
        insist(async || guarded.update(&asks, "r1", version, status, provider).await).await;
    }
    let last = changes + 1;
    let kept: Vec<u64> = (last - limit::ASSIGNMENT_CHANGES + 1..=last).collect();
    for who in [&asks, &one] {
        let seen: Vec<u64> = guarded.history(who, "r1").await.iter().map(|change| change.0).collect();
        assert_eq!(seen, kept);
    }
    let updates = guarded.column("SELECT version FROM assignment_update").await;
    assert_eq!(updates.len() as u64, limit::ASSIGNMENT_CHANGES);
    // A repeat of what is no longer remembered is a stale change like any other.
    let said = guarded.update(&asks, "r1", 1, "offered", "p1").await;
    said.refused(RefusalCode::AssignmentConflict);
    guarded.update(&asks, "r1", changes, "offered", "p1").await.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requester_has_a_bounded_number_of_assignments_and_what_ended_first_is_forgotten_first() {
    let guarded = Guarded::start().await;
    let [asks, again] = ["asks", "again"].map(|session| guarded.scoped("7", session, ASKS));
    let open = async |nth: usize| insist(async || guarded.open(&asks, &format!("r{nth}"), "", "{}", 3_600).await).await;
    for nth in 0..limit::ASSIGNMENTS {
        open(nth).await;
    }
    let full = async || guarded.open(&again, "one-more", "", "{}", 3_600).await;
    full().await.refused(RefusalCode::InvalidArgument);
    let other = guarded.scoped("8", "other", ASKS);
    guarded.open(&other, "theirs", "", "{}", 3_600).await.done();
    for nth in 0..limit::ASSIGNMENTS {
        insist(async || guarded.update(&again, &format!("r{nth}"), 1, "cancelled", "").await).await;
    }
    for nth in limit::ASSIGNMENTS..2 * limit::ASSIGNMENTS {
        open(nth).await;
    }
    let seen = guarded.assignments(&asks).await;
    assert_eq!(seen.len(), 2 * limit::ASSIGNMENTS);
    let last = format!("r{}", 2 * limit::ASSIGNMENTS - 1);
    insist(async || guarded.update(&again, &last, 1, "cancelled", "").await).await;
    insist(full).await;
    let seen = guarded.assignments(&asks).await;
    assert_eq!(seen.len(), 2 * limit::ASSIGNMENTS);
    assert!(!seen.contains(&is("r0", 2, "cancelled", "")), "it ended first");
    assert!(seen.contains(&is(&last, 2, "cancelled", "")));
    // What was opened under its name stays known: a late repeat does not begin the work anew.
    let late = async |document| guarded.open(&asks, "r0", "", document, 3_600).await;
    insist(async || late("{}").await).await;
    late(r#"{"other":1}"#).await.refused(RefusalCode::AssignmentConflict);
    let theirs = guarded.open(&other, "r0", "", "{}", 3_600).await;
    theirs.refused(RefusalCode::AssignmentConflict);
    assert_eq!(guarded.assignments(&asks).await, seen);
    for table in ["compute_assignment_change", "assignment_update", "compute_assignment"] {
        let left = format!("SELECT request_id FROM {table} WHERE request_id = 'r0'");
        assert!(guarded.column(&left).await.is_empty(), "{table}");
    }
}

/// An older copy of SpacetimeDB may have them as they were: an assignment that is open until its deadline, and a name that is kept
/// for as long as was said first.
#[tokio::test(flavor = "multi_thread")]
async fn what_ended_early_is_known_for_as_long_as_an_older_copy_would_have_it() {
    let guarded = Guarded::start().await;
    let (held, short) = (2 * limit::ASSIGNMENTS, limit::ASSIGNMENTS_LINGERING + 1);
    // Each session has a quota of its own.
    let sessions = (held + short) / 90 + 1;
    let asks: Vec<_> = (0..=sessions)
        .map(|session| guarded.scoped("7", &format!("s{session}"), ASKS))
        .collect();
    let cancelled = async |who: usize, request: &str, seconds: u64| {
        guarded.open(&asks[who], request, "", "{}", seconds).await.done();
        guarded.update(&asks[who], request, 1, "cancelled", "").await.done();
    };
    // Those of which less remains than the day for which all are known take no room from the others.
    for nth in 0..short {
        cancelled(nth / 90, &format!("r{nth}"), 60).await;
    }
    cancelled(sessions, "long", limit::ASSIGNMENT_SECONDS).await;
    let of_long = async |column: &str, table: &str| {
        let query = format!("SELECT {column} FROM {table} WHERE request_id = 'long'");
        guarded.column(&query).await
    };
    let deadline = of_long("deadline_at", "compute_assignment").await;
    let opened = of_long("opened_at", "compute_assignment").await;
    assert_ne!(of_long("due_at", "assignment_party").await, deadline);
    for nth in short..short + held {
        cancelled(nth / 90, &format!("r{nth}"), 60).await;
    }
    let known = guarded.column("SELECT request_id FROM forgotten_assignment").await;
    assert_eq!(known.len(), short + 1);
    assert_eq!(of_long("until", "forgotten_assignment").await, deadline);
    assert_eq!(of_long("opened_at", "forgotten_assignment").await, opened);

    let one = guarded.scoped("8", "one", PROVIDES);
    guarded.publish(&one, "p1", "gpu", 1, "{}", 3_600).await.done();
    let until = guarded.column("SELECT until FROM capability_claim").await;
    guarded.publish(&one, "p1", "gpu", 2, "{}", 0).await.done();
    assert_eq!(guarded.column("SELECT version FROM capability_claim").await, [2]);
    assert_eq!(guarded.column("SELECT until FROM capability_claim").await, until);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_opened_is_known_a_bounded_number_of_times_after_it_is_held_no_longer() {
    let guarded = Guarded::start().await;
    let most = limit::ASSIGNMENTS_FORGOTTEN + limit::ASSIGNMENTS_LINGERING;
    let last = 2 * limit::ASSIGNMENTS + most;
    // Each session has a quota of its own.
    let sessions = last / 90 + 1;
    let asks: Vec<_> = (0..=sessions)
        .map(|session| guarded.scoped("7", &format!("s{session}"), ASKS))
        .collect();
    for nth in 0..=last {
        let (who, request) = (&asks[nth / 90], format!("r{nth}"));
        guarded.open(who, &request, "", "{}", 3_600).await.done();
        guarded.update(who, &request, 1, "cancelled", "").await.done();
    }
    let known = guarded.column("SELECT request_id FROM forgotten_assignment").await;
    assert_eq!(known.len(), most);
    let held = guarded.column("SELECT request_id FROM assignment_party").await;
    assert_eq!(held.len(), 2 * limit::ASSIGNMENTS);
    // The first one alone is known no longer.
    let again = async |request| guarded.open(&asks[sessions], request, "", "{}", 3_600).await;
    again("r1").await.done();
    assert_eq!(
        guarded.column("SELECT request_id FROM assignment_party").await.len(),
        held.len()
    );
    again("r0").await.done();
    let open = guarded
        .column("SELECT request_id FROM compute_assignment WHERE status = 'open'")
        .await;
    assert!(
        !open.is_empty() && open.iter().all(|request| request == "r0"),
        "{open:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_offered_a_bounded_number_and_takes_as_many_again() {
    let guarded = Guarded::start().await;
    let one = guarded.provider("provides", "one", "p1").await;
    let [also, two] = [
        guarded.provider("provides", "also", "p2").await,
        guarded.provider("other", "two", "p3").await,
    ];
    let requesters = limit::PROVIDER_ASSIGNMENTS / limit::ASSIGNMENTS;
    let asks: Vec<_> = (0..=2 * requesters)
        .map(|user| guarded.scoped(&format!("u{user}"), &format!("s{user}"), ASKS))
        .collect();
    let all = async |first: usize, provider: &str| {
        for (user, who) in asks.iter().enumerate().skip(first).take(requesters) {
            for nth in 0..limit::ASSIGNMENTS {
                let request = format!("r{user}-{nth}");
                insist(async || guarded.open(who, &request, provider, "{}", 3_600).await).await;
            }
        }
    };
    // Whoever has several names is one provider still.
    all(0, "p1").await;
    let last = &asks[2 * requesters];
    for provider in ["p1", "p2"] {
        let said = guarded.open(last, "more", provider, "{}", 3_600).await;
        let refusal = said.refused(RefusalCode::InvalidArgument);
        assert!(refusal.message.contains(provider), "{refusal}");
    }
    guarded.open(last, "more", "", "{}", 3_600).await.done();
    let said = guarded.update(last, "more", 1, "offered", "p1").await;
    said.refused(RefusalCode::InvalidArgument);
    guarded.update(last, "more", 1, "offered", "p3").await.done();
    guarded.update(&two, "more", 2, "accepted", "").await.done();
    // What it has been offered does not keep it from what is open to all.
    all(requesters, "").await;
    let mut taken = 0;
    for user in requesters..2 * requesters {
        for nth in 0..limit::ASSIGNMENTS {
            let request = format!("r{user}-{nth}");
            insist(async || guarded.update(&one, &request, 1, "accepted", "p1").await).await;
            taken += 1;
        }
    }
    assert_eq!(taken, limit::PROVIDER_ASSIGNMENTS);
    guarded.open(last, "open", "", "{}", 3_600).await.done();
    let take = async || guarded.update(&also, "open", 1, "accepted", "p2").await;
    take().await.refused(RefusalCode::InvalidArgument);
    // It takes what it was offered all the same, and has room again when it declines or gives back.
    guarded.update(&also, "r0-0", 1, "accepted", "").await.done();
    guarded.update(&also, "r0-0", 2, "open", "").await.done();
    take().await.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_changes_is_refused_and_costs_no_other_session_its_own() {
    let guarded = Guarded::start().await;
    let loud = guarded.provider("7", "loud", "p1").await;
    let quiet = guarded.provider("7", "quiet", "p1").await;
    let asks = guarded.scoped("7", "asks", ASKS);
    guarded.open(&asks, "r1", "p1", "{}", 3_600).await.done();
    let accept = async || guarded.update(&loud, "r1", 1, "accepted", "").await;
    // A burst of two hundred, and twenty more in each second that it took.
    let (taken, took) = flood(accept).await;
    assert!((200..=201 + took.as_millis() / 50).contains(&taken), "{taken}");
    guarded.update(&quiet, "r1", 2, "running", "").await.done();
    insist(accept).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_publishes_without_end_is_refused_soon_because_everybody_hears_it() {
    let guarded = Guarded::start().await;
    let loud = guarded.provider("7", "loud", "p1").await;
    let quiet = guarded.provider("7", "quiet", "p1").await;
    let publish = async || guarded.publish(&loud, "p1", "gpu", 1, "{}", 3_600).await;
    // The burst lets each of its capabilities be published twice. The first call was made when the provider began, and each
    // second that the flood took allows one more.
    let (taken, took) = flood(publish).await;
    let burst = 2 * limit::CAPABILITIES as u128 - 1;
    assert!(
        (burst..=burst + 1 + took.as_millis() / 1_000).contains(&taken),
        "{taken}"
    );
    guarded.publish(&quiet, "p1", "gpu", 2, "{}", 3_600).await.done();
    // It has not used up what it may change.
    let asks = guarded.scoped("7", "asks", ASKS);
    guarded.open(&asks, "r1", "p1", "{}", 3_600).await.done();
    guarded.update(&loud, "r1", 1, "accepted", "").await.done();
    insist(async || guarded.publish(&loud, "p1", "gpu", 3, "{}", 3_600).await).await;
}

/// Calls until it is refused because there were too many calls. Returns how many were let through, and how long it took.
async fn flood(mut call: impl AsyncFnMut() -> Said) -> (u128, Duration) {
    let began = Instant::now();
    let mut taken = 0;
    loop {
        match call().await.code() {
            None => taken += 1,
            Some(refused) => {
                assert_eq!(refused, RefusalCode::RateLimited);
                return (taken, began.elapsed());
            }
        }
        assert!(taken < 3_000, "nothing is refused");
    }
}
