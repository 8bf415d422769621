use super::*;

const LIMIT: Duration = Duration::from_secs(10);
const MOMENT: Duration = Duration::from_millis(1);
const START: Duration = Duration::from_secs(100);

fn busy(streams: usize) -> Load {
    Load {
        busy_streams: streams,
        ..Load::default()
    }
}

/// The vitals of a leader when authority and SpacetimeDB answer.
fn leading() -> Vitals {
    let mut vitals = Vitals::new(LIMIT);
    vitals.lead_begun(START);
    vitals.authority_here();
    vitals.link_up();
    vitals.turned(START, busy(0), Lag::default());
    vitals
}

fn healthy_at(vitals: &mut Vitals, now: Duration, load: Load) -> bool {
    vitals.turned(now, load, Lag::default());
    vitals.health(now).healthy
}

#[test]
fn work_without_progress_turns_red_and_progress_turns_green() {
    let mut vitals = leading();
    assert!(healthy_at(&mut vitals, START, busy(1)));
    assert!(healthy_at(&mut vitals, START + LIMIT, busy(1)));
    assert!(!healthy_at(&mut vitals, START + LIMIT + MOMENT, busy(1)));
    vitals.progress(START + 2 * LIMIT, 1);
    assert!(healthy_at(&mut vitals, START + 3 * LIMIT, busy(1)));
    assert!(!healthy_at(&mut vitals, START + 3 * LIMIT + MOMENT, busy(1)));
    assert!(
        healthy_at(&mut vitals, START + 4 * LIMIT, busy(0)),
        "without work nothing stalls"
    );
}

#[test]
fn an_authority_that_does_not_answer_is_red_for_a_leader_and_for_a_standby() {
    for role in [Role::Leading, Role::Standby] {
        let mut vitals = leading();
        vitals.role(role);
        assert!(vitals.authority_away(START, "refused".to_owned()), "the first is new");
        assert!(healthy_at(&mut vitals, START + LIMIT, busy(0)), "{role:?}");
        assert!(
            !vitals.authority_away(START + LIMIT, "refused".to_owned()),
            "the same reason is not new"
        );
        assert!(
            vitals.authority_away(START + LIMIT, "denied".to_owned()),
            "another one is"
        );
        assert!(!healthy_at(&mut vitals, START + LIMIT + MOMENT, busy(0)), "{role:?}");
        vitals.authority_here();
        assert!(healthy_at(&mut vitals, START + 2 * LIMIT, busy(0)), "{role:?}");
    }
}

#[test]
fn a_leader_that_loses_the_lead_with_its_authority_stays_red() {
    let mut vitals = leading();
    vitals.authority_away(START, "refused".to_owned());
    vitals.lead_lost(START + LIMIT / 2, "the lead is lost");
    assert!(!healthy_at(&mut vitals, START + LIMIT + MOMENT, busy(0)));
}

#[test]
fn a_leader_without_a_link_turns_red_after_a_while_and_a_standby_does_not() {
    let mut vitals = leading();
    vitals.link_down(START, "closed".to_owned());
    vitals.link_down(START + LIMIT / 2, "refused".to_owned());
    assert!(healthy_at(&mut vitals, START + LIMIT, busy(0)));
    assert!(!healthy_at(&mut vitals, START + LIMIT + MOMENT, busy(0)));
    vitals.role(Role::Standby);
    assert!(healthy_at(&mut vitals, START + LIMIT + MOMENT, busy(0)));
}

#[test]
fn another_database_is_red_at_once_and_an_outage_after_it_only_after_a_while() {
    let mut vitals = leading();
    vitals.link_down(START, "closed".to_owned());
    vitals.link_strays("another one".to_owned());
    let health = vitals.health(START);
    assert!(!health.healthy && !health.ready);
    assert_eq!(health.problems, ["spacetimedb: another one"]);
    vitals.link_down(START + LIMIT, "refused".to_owned());
    assert!(healthy_at(&mut vitals, START + 2 * LIMIT, busy(0)));
    vitals.link_up();
    assert!(healthy_at(&mut vitals, START + 3 * LIMIT, busy(0)));
}

#[test]
fn an_authority_that_lacks_events_was_restored_even_if_its_beat_does_not_show_it() {
    let mut vitals = leading();
    let stream_id = StreamId::new("s").unwrap();
    vitals.halted(stream_id.clone(), HaltReason::BrokenLog("seq 3 is missing".to_owned()));
    assert!(!vitals.health(START).authority_restored);
    vitals.halted(stream_id, HaltReason::AheadOfAuthority);
    assert!(vitals.health(START).authority_restored);
}

#[test]
fn a_halted_stream_is_red_with_its_reason_until_streams_are_forgotten() {
    let mut vitals = leading();
    let stream = |at: usize| StreamId::new(&format!("s.{at}")).unwrap();
    vitals.halted(stream(0), HaltReason::AheadOfAuthority);
    let health = vitals.health(START);
    assert!(!health.healthy && health.problems[0].contains("s.0 is halted (ahead_of_authority)"));
    assert_eq!(health.halted, [(stream(0), HaltReason::AheadOfAuthority)]);
    (1..2_000).for_each(|at| vitals.halted(stream(at), HaltReason::AheadOfAuthority));
    let problems = vitals.health(START).problems;
    assert_eq!(problems.len(), NAMED + 1);
    assert_eq!(problems[NAMED], format!("{} more streams are halted", 2_000 - NAMED));
    vitals.none_halted();
    assert!(vitals.health(START).healthy);
}

#[test]
fn a_restored_authority_is_red_until_an_operator_has_rewound() {
    let mut vitals = leading();
    vitals.restored(Some("behind".to_owned()));
    let health = vitals.health(START);
    assert!(!health.healthy && health.authority_restored && health.problems == ["behind"]);
    vitals.restored(None);
    assert!(vitals.health(START).healthy);
}

#[test]
fn the_lag_of_streams_that_are_not_halted_is_work_and_that_of_others_is_only_shown() {
    let mut vitals = leading();
    let lag = Lag {
        live_events: 0,
        halted_events: 7,
    };
    vitals.turned(START, busy(0), lag);
    vitals.turned(START + 2 * LIMIT, busy(0), lag);
    let health = vitals.health(START + 2 * LIMIT);
    assert!(health.healthy && health.stalled == Duration::ZERO);
    assert_eq!(health.lag, lag);
    let lag = Lag { live_events: 1, ..lag };
    vitals.turned(START, busy(0), lag);
    assert_eq!(vitals.health(START + LIMIT).stalled, LIMIT);
}

#[test]
fn a_bridge_that_lost_the_lead_is_ready_when_the_authority_answers_again() {
    let mut vitals = leading();
    assert!(vitals.health(START).ready);
    vitals.lead_lost(START, "the lead is lost");
    assert!(!vitals.health(START).ready);
    vitals.authority_here();
    assert!(vitals.health(START).ready, "as a standby");
    vitals.lead_begun(START);
    assert!(!vitals.health(START).ready, "a new leader has no link yet");
}

#[test]
fn a_bridge_that_lost_the_lead_no_longer_reports_on_the_lane() {
    let mut vitals = leading();
    let lag = Lag {
        live_events: 7,
        halted_events: 1,
    };
    vitals.turned(START, busy(1), lag);
    vitals.halted(StreamId::new("a").unwrap(), HaltReason::AheadOfAuthority);
    vitals.restored(Some("behind".to_owned()));
    vitals.lead_lost(START, "the lead is lost");
    vitals.authority_here();
    let health = vitals.health(START);
    assert!(health.halted.is_empty() && !health.authority_restored && health.problems.is_empty());
    assert_eq!(health.lag, Lag::default());
}

#[test]
fn a_published_seq_that_is_not_recorded_is_red_with_its_reason_until_it_is() {
    let mut vitals = leading();
    let unrecorded = BTreeMap::from([(StreamId::new("a").unwrap(), "denied".to_owned())]);
    vitals.unrecorded(unrecorded.iter());
    let health = vitals.health(START);
    assert!(!health.healthy);
    assert_eq!(health.problems, ["cannot record how far stream a is published: denied"]);
    vitals.unrecorded(BTreeMap::new().iter());
    assert!(vitals.health(START).healthy);
}

#[test]
fn what_happens_is_counted_and_what_is_under_way_is_shown() {
    let mut vitals = leading();
    vitals.authority_away(START, "refused".to_owned());
    vitals.authority_away(START, "refused".to_owned());
    vitals.link_up();
    vitals.progress(START, 3);
    vitals.progress(START, 4);
    vitals.count().wakes = 5;
    vitals.turned(START, busy(6), Lag::default());
    let expected = Counters {
        published_events: 7,
        published_frames: 2,
        links: 2,
        authority_failures: 2,
        wakes: 5,
        ..Counters::default()
    };
    assert_eq!((vitals.counters(), vitals.load()), (expected, busy(6)));
}

#[test]
fn a_loop_that_does_not_turn_is_red_even_without_work() {
    let vitals = leading();
    assert!(vitals.health(START + LIMIT).healthy);
    assert!(!vitals.health(START + LIMIT + MOMENT).healthy);
}

#[test]
fn a_journal_that_stays_closed_or_does_not_follow_is_red_for_a_leader_with_a_link() {
    let closed = Backlog {
        closed_since: Some(START),
        ..Backlog::default()
    };
    // It had waited for a moment when it was read.
    let waiting = Backlog {
        waiting: 3,
        oldest: MOMENT,
        read_at: Some(START + MOMENT),
        ..Backlog::default()
    };
    // A page was read, and there was always more.
    let behind = Backlog {
        waiting: 300,
        behind_since: Some(START),
        read_at: Some(START + LIMIT),
        ..Backlog::default()
    };
    // It is read again and again, and the comparison fails each time.
    let out_of_step = Backlog {
        read_at: Some(START + LIMIT),
        in_step_at: Some(START),
        ..Backlog::default()
    };
    for (backlog, said) in [
        (closed, "have not been brought back"),
        (waiting, "3 changes"),
        (behind, "300 changes"),
        (out_of_step, "could not be read or compared"),
    ] {
        let mut vitals = leading();
        vitals.journal(backlog);
        assert!(healthy_at(&mut vitals, START + LIMIT, busy(0)));
        assert!(!healthy_at(&mut vitals, START + LIMIT + MOMENT, busy(0)));
        let health = vitals.health(START + LIMIT + MOMENT);
        assert!(
            matches!(&*health.problems, [problem] if problem.contains(said)),
            "{health:?}"
        );
        // Nobody but the leader keeps it, and without a link there is another problem.
        vitals.link_down(START + LIMIT, "away".to_owned());
        assert!(healthy_at(&mut vitals, START + LIMIT + MOMENT, busy(0)));
        vitals.link_up();
        vitals.role(Role::Standby);
        assert!(healthy_at(&mut vitals, START + LIMIT + MOMENT, busy(0)));
        assert_eq!(vitals.backlog(), backlog);
        vitals.lead_lost(START, "gone");
        assert_eq!(vitals.backlog(), Backlog::default());
    }
    let still = Backlog {
        read_at: Some(START),
        oldest: LIMIT,
        ..Backlog::default()
    };
    assert_eq!(still.oldest(START + LIMIT), Duration::ZERO, "nothing waits");
}
