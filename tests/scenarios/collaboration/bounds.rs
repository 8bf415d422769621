//! What one user can make the module hold, and how often it can make it work.

use std::time::{Duration, Instant};

use spacetime_sync_proto::{RefusalCode, limit};
use spacetime_sync_tests::lane::wait_for;

use super::{ASKS, is};
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
    for table in ["compute_assignment_change", "assignment_update", "compute_assignment"] {
        let left = format!("SELECT request_id FROM {table} WHERE request_id = 'r0'");
        assert!(guarded.column(&left).await.is_empty(), "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_changes_is_refused_and_costs_no_other_session_its_own() {
    let guarded = Guarded::start().await;
    let loud = guarded.provider("7", "loud", "p1").await;
    let quiet = guarded.provider("7", "quiet", "p1").await;
    let asks = guarded.scoped("7", "asks", ASKS);
    // The three calls have one quota.
    guarded.open(&asks, "r1", "p1", "{}", 3_600).await.done();
    let began = Instant::now();
    let mut taken = 1;
    let refused = loop {
        let said = if taken % 2 == 0 {
            guarded.publish(&loud, "p1", "gpu", 1, "{}", 3_600).await
        } else {
            guarded.update(&loud, "r1", 1, "accepted", "").await
        };
        match said.code() {
            None => taken += 1,
            Some(refused) => break refused,
        }
        assert!(taken < 3_000, "nothing is refused");
    };
    assert_eq!(refused, RefusalCode::RateLimited);
    // A burst of two hundred, and fifty more in each second that it took.
    assert!(
        (200..=201 + began.elapsed().as_millis() / 20).contains(&taken),
        "{taken}"
    );
    guarded.publish(&quiet, "p1", "gpu", 2, "{}", 3_600).await.done();
    insist(async || guarded.publish(&loud, "p1", "gpu", 2, "{}", 3_600).await).await;
}
