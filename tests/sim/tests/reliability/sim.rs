//! The seeds of every test run, and tests that the simulation finds defects.

use spacetime_sync_sim::{Coverage, Defect, Fault, MirrorSetup, Setup, run, run_mirror, run_seeds, shrink, stories};

const SEEDS: u64 = 2_000;

#[test]
fn two_thousand_seeds_hold_every_invariant() {
    let report = run_seeds(0, SEEDS, 3);
    if let Some(first) = report.failures.first() {
        panic!("{:?}\n{}", report.failures, stories(first.seed));
    }
    assert_eq!(report.seeds, SEEDS);
    let missing = report.coverage.missing(SEEDS);
    assert!(
        missing.is_empty(),
        "happened too rarely: {missing:?}\n{}",
        report.coverage
    );
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [0, 7, 1_234, u64::MAX] {
        let (first, second) = (run(&Setup::of(seed), false), run(&Setup::of(seed), true));
        assert_eq!((first.trace, first.steps), (second.trace, second.steps), "seed {seed}");
        assert_ne!(first.trace, run(&Setup::of(seed ^ 1), false).trace);
    }
}

#[test]
fn a_mirror_replays_exactly() {
    for seed in [0, 7, 1_234, u64::MAX] {
        let told = |seed| run_mirror(&MirrorSetup::of(seed), false);
        let (first, second) = (told(seed), run_mirror(&MirrorSetup::of(seed), true));
        assert_eq!((first.trace, first.steps), (second.trace, second.steps), "seed {seed}");
        assert_ne!(first.trace, told(seed ^ 1).trace);
    }
}

fn first_broken_by(defect: Defect) -> Setup {
    (0..500)
        .map(|seed| Setup::of(seed).with(defect))
        .find(|setup| run(setup, false).violation.is_some())
        .unwrap_or_else(|| panic!("no seed finds {defect:?}"))
}

#[test]
fn a_torn_transaction_is_found_and_minimised_to_a_short_story() {
    let setup = first_broken_by(Defect::EffectsOutliveRollback);
    let story = shrink(&setup).unwrap();
    assert_eq!(story.violation.invariant, "I6");
    let left: Vec<_> = story.setup.plan.iter().map(|planned| planned.fault).collect();
    assert_eq!(left, [Fault::StoreRolledBack], "{story}");
    assert_eq!(
        (story.setup.streams, story.setup.clients, story.setup.bridges),
        (1, 1, 1)
    );
    let told = story.to_string();
    assert!(told.contains("FAULT store: transaction torn and rolled back"), "{told}");
    assert!(told.contains("VIOLATED I6"), "{told}");
    assert!(told.lines().count() < 40, "{told}");
}

#[test]
fn an_early_acknowledgement_is_found() {
    let setup = first_broken_by(Defect::AckBeforeDurable);
    let story = shrink(&setup).unwrap();
    assert_eq!(story.violation.invariant, "I4", "{story}");
}

#[test]
fn a_fault_that_never_strikes_is_reported() {
    let missing = Coverage::default().missing(SEEDS);
    assert!(missing.len() > Fault::ALL.len());
}

/// Found by seed 37,777 of 200,000: the bridge asked for a head on a connection that had fallen silent. No call was in
/// flight, and nobody noticed.
#[test]
fn a_silent_link_is_given_up_even_if_only_a_head_was_asked_for() {
    let seen = hold(&[Fault::AppendTraps, Fault::BridgeSilent]);
    assert!(seen.times("bridge: question deadline") > 0, "{seen}");
}

/// Found by seed 29,106 of 200,000: the answer to an abandoned subscription arrived while the client waited for a page.
/// Then the connection fell silent.
#[test]
fn a_silent_connection_is_given_up_whatever_was_answered_before() {
    let seen = hold(&[Fault::ClientSilent, Fault::StoreBusy, Fault::ClientSlow]);
    assert!(seen.times("client: silence noticed") > 0, "{seen}");
}

/// The oracle lets no other stream halt, and the others must heal.
#[test]
fn a_stream_that_cannot_be_compared_or_filled_again_stops_no_other() {
    let seen = hold(&[Fault::Corrupted, Fault::BridgeCut, Fault::HostRestored]);
    assert!(
        seen.of(Fault::Corrupted) > 0 && seen.times("bridge: stream halted") > 0,
        "{seen}"
    );
    let seen = hold(&[Fault::RewindRefused, Fault::Swept, Fault::Purged, Fault::HostWiped]);
    assert!(
        seen.of(Fault::RewindRefused) > 0 && seen.times("bridge: stream halted") > 0,
        "{seen}"
    );
}

#[test]
fn a_writer_that_holds_a_row_for_long_stops_neither_a_rewind_of_another_stream_nor_the_link() {
    let seen = hold(&[Fault::RowLocked, Fault::HostWiped, Fault::BridgeCut]);
    assert!(
        seen.of(Fault::RowLocked) > 0 && seen.times("bridge: heads behind") > 0,
        "{seen}"
    );
}

/// A bridge hears of the end of a link that it gave up as late as a minute later, when the next one is up.
#[test]
fn an_earlier_link_that_ends_late_takes_nothing_from_the_next() {
    let seen = hold(&[Fault::BridgeSilent, Fault::BridgeStray, Fault::BridgeLate]);
    assert!(seen.times("bridge: link up") > 600, "{seen}");
}

/// An earlier bridge broke I4 with it: the rewind cut away what the next leader had appended and recorded as published.
#[test]
fn a_rewind_that_another_bridge_has_overtaken_takes_nothing_away() {
    let seen = hold(&[Fault::RewindOvertaken, Fault::HostWiped, Fault::BridgeCut]);
    assert!(seen.times("module: rewind after another bridge appended") > 0, "{seen}");
}

/// A rewind once met bytes that it could not cut, and dropped the sound log before them instead.
#[test]
fn a_forgery_that_nobody_can_read_goes_alone_however_many_events_it_is_said_to_hold() {
    let seen = hold(&[Fault::Foreign, Fault::BridgeCut, Fault::HostRestored]);
    for what in [
        "module: took what is no such frame",
        "module: below_window",
        "module: log cut before its place",
        "bridge: forgery removed",
    ] {
        assert!(seen.times(what) > 0, "{what}\n{seen}");
    }
}

/// Runs many seeds with these faults only, and returns what happened.
fn hold(faults: &[Fault]) -> Coverage {
    let mut seen = Coverage::default();
    for seed in 0..600 {
        let setup = Setup::of(seed).only(faults);
        let ended = run(&setup, false);
        seen.add(&ended.coverage);
        if let Some(violation) = ended.violation {
            let story = shrink(&setup).map(|story| story.to_string());
            panic!("seed {seed}: {violation}\n{}", story.unwrap_or_default());
        }
    }
    seen
}
