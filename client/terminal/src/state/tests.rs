use spacetime_sync_client::{Disconnect, RefusalCode, Says, StopReason, Subject};

use super::*;

fn now() -> Now {
    Now {
        instant: Instant::now(),
        clock: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
    }
}

fn stream() -> StreamId {
    StreamId::new("notes").unwrap()
}

/// So many seconds after another time.
fn later(begun: Now, seconds: u64) -> Now {
    Now {
        instant: begun.instant + Duration::from_secs(seconds),
        ..begun
    }
}

fn status(phase: Phase) -> Status {
    Status {
        phase,
        ..Status::default()
    }
}

fn backoff(attempt: u32, reason: Disconnect) -> Phase {
    let retry_in = Duration::from_secs(1);
    Phase::Backoff {
        attempt,
        retry_in,
        reason,
    }
}

fn state(provider_id: Option<&str>) -> State {
    let own = Own {
        database: "lane".to_owned(),
        node_id: "terminal".to_owned(),
        provider_id: provider_id.map(str::to_owned),
        capability: "gpu".to_owned(),
        document: r#"{"do":"it"}"#.to_owned(),
        deadline: Duration::from_secs(600),
        hears: vec![stream()],
    };
    State::new(own, status(Phase::Idle))
}

/// Assignments, each with when it was opened.
fn rows(rows: &[(&str, AssignmentState, u64)]) -> Watched<Assignments> {
    let row = |(name, state, opened): &(&str, AssignmentState, u64)| {
        let opened_at = UNIX_EPOCH + Duration::from_secs(*opened);
        let seen = SeenAssignment {
            version: 5,
            state: *state,
            provider_id: None,
            to_all: true,
            document: "{}".to_owned(),
            report: None,
            opened_at,
            changed_at: opened_at,
            deadline_at: opened_at,
            changes: Vec::new(),
        };
        ((*name).to_owned(), seen)
    };
    Watched {
        freshness: Freshness::Live,
        rows: rows.iter().map(row).collect(),
    }
}

fn press(state: &mut State, code: KeyCode) -> Option<Order> {
    state.pressed(KeyEvent::from(code), 0xbeef, now())
}

#[track_caller]
fn changes(order: Option<Order>) -> ChangeAssignment {
    match order {
        Some(Order::Call(_, Wish::Change(change))) => change,
        other => panic!("expected a change, found {other:?}"),
    }
}

#[test]
fn a_key_changes_the_chosen_assignment_at_the_version_that_is_shown() {
    use AssignmentState::{Accepted, Cancelled, Open, Running, Succeeded};
    let mut state = state(Some("p1"));
    state.shows(rows(&[("r1", Open, 1), ("r2", Running, 2), ("r3", Succeeded, 3)]));
    // Those that have not ended come first, the newest of them first.
    let order: Vec<_> = state.in_order().into_iter().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(order, ["r2", "r1", "r3"]);
    press(&mut state, KeyCode::Down);
    press(&mut state, KeyCode::Down);
    let taken = changes(press(&mut state, KeyCode::Char('a')));
    assert_eq!(
        (taken.request_id.as_str(), taken.expected_version, taken.to),
        ("r1", 5, Accepted)
    );
    assert_eq!(
        (taken.provider_id.as_deref(), taken.update_id.as_str()),
        (Some("p1"), "u-000000000000beef")
    );
    press(&mut state, KeyCode::Up);
    let done = changes(press(&mut state, KeyCode::Char('d')));
    assert_eq!(
        (done.request_id.as_str(), done.to, done.provider_id),
        ("r2", Succeeded, None)
    );
    let ended = changes(press(&mut state, KeyCode::Char('x')));
    assert_eq!(ended.to, Cancelled);
}

#[test]
fn an_assignment_that_is_gone_leaves_nothing_chosen() {
    let mut state = state(Some("p1"));
    state.shows(rows(&[
        ("r1", AssignmentState::Open, 1),
        ("r2", AssignmentState::Open, 2),
    ]));
    press(&mut state, KeyCode::Down);
    assert_eq!(state.assignment.as_deref(), Some("r2"));
    // Another one has come in before it.
    state.shows(rows(&[
        ("r2", AssignmentState::Open, 2),
        ("r9", AssignmentState::Open, 9),
    ]));
    assert_eq!((state.assignment.as_deref(), state.chosen_row()), (Some("r2"), Some(1)));
    state.shows(rows(&[("r9", AssignmentState::Open, 9)]));
    assert_eq!(state.assignment, None);
    assert_eq!(press(&mut state, KeyCode::Char('x')), None);
    let said = state.calls.back().unwrap();
    assert!(matches!(said.outcome, Outcome::Not(_)), "{said:?}");
}

#[test]
fn what_cannot_be_is_not_asked_for() {
    let mut state = state(None);
    state.shows(rows(&[("r1", AssignmentState::Open, 1)]));
    press(&mut state, KeyCode::Down);
    for (key, asks) in [
        ('p', false),
        ('a', false),
        ('d', false),
        ('x', true),
        ('n', true),
        ('z', false),
    ] {
        let order = press(&mut state, KeyCode::Char(key));
        assert_eq!(order.is_some(), asks, "{key}: {order:?}");
    }
}

#[test]
fn calls_are_remembered_until_others_come_and_none_without_an_answer_is_forgotten() {
    let mut state = state(Some("p1"));
    let mut numbers = Vec::new();
    for _ in 0..CALLS {
        let Some(Order::Call(number, Wish::Open(opening))) = press(&mut state, KeyCode::Char('n')) else {
            panic!("it is asked for");
        };
        assert_eq!(opening.request_id, "r-000000000000beef");
        numbers.push(number);
    }
    assert_eq!(press(&mut state, KeyCode::Char('n')), None, "too many have no answer");
    assert_eq!(press(&mut state, KeyCode::Char('d')), None);
    state.answered(numbers[3], Err(CallError::Lost));
    assert!(press(&mut state, KeyCode::Char('p')).is_some());
    assert_eq!((state.calls.len(), state.unanswered().count()), (CALLS, CALLS));
    state.answered(numbers[3], Ok(()));
    state.answered(numbers[0], Ok(()));
    assert_eq!(state.calls[0].outcome, Outcome::Done);
}

#[test]
fn why_a_connection_ended_is_shown_after_there_is_another() {
    let mut state = state(None);
    let begun = now();
    let later = |seconds| later(begun, seconds);
    assert_eq!(state.streams_are, Freshness::Unseen);
    state.says(status(Phase::Connecting { attempt: 1 }), later(1));
    assert_eq!(state.streams_are, Freshness::Unseen);
    state.says(status(Phase::Live), later(2));
    assert_eq!(state.streams_are, Freshness::Live);
    state.says(status(backoff(1, Disconnect::Closed)), later(3));
    state.says(status(backoff(1, Disconnect::Closed)), later(4));
    let since = later(3).instant;
    assert_eq!(state.streams_are, Freshness::Stale { since });
    assert_eq!(state.last_disconnect, Some((Disconnect::Closed.to_string(), since)));
    let refused = Disconnect::Unreachable("refused".to_owned());
    state.says(status(Phase::Connecting { attempt: 2 }), later(5));
    state.says(status(backoff(2, refused.clone())), later(6));
    assert_eq!(state.streams_are, Freshness::Stale { since });
    state.says(status(Phase::Live), later(7));
    assert_eq!(state.streams_are, Freshness::Live);
    assert_eq!(state.last_disconnect, Some((refused.to_string(), later(6).instant)));
}

#[test]
fn keys_that_end_the_program() {
    let mut state = state(None);
    let control = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(state.pressed(control, 0, now()), Some(Order::Quit));
    assert_eq!(press(&mut state, KeyCode::Char('q')), Some(Order::Quit));
    assert_eq!(press(&mut state, KeyCode::Char('c')), None);
}

#[test]
fn panes_are_walked_through_in_a_circle() {
    let mut state = state(None);
    let mut seen = Vec::new();
    for key in [
        KeyCode::Tab,
        KeyCode::Right,
        KeyCode::Tab,
        KeyCode::Tab,
        KeyCode::BackTab,
        KeyCode::Left,
    ] {
        press(&mut state, key);
        seen.push(state.pane);
    }
    let expected = [
        Pane::Streams,
        Pane::Told,
        Pane::Nodes,
        Pane::Capabilities,
        Pane::Nodes,
        Pane::Told,
    ];
    assert_eq!(seen, expected);
    press(&mut state, KeyCode::Tab);
    for key in [KeyCode::Down, KeyCode::Up, KeyCode::Down] {
        press(&mut state, key);
    }
    assert_eq!(state.node, 0, "there is no row");
}

fn typing(note: &str) -> Heard {
    Heard::Signal(HeardSignal {
        from: None,
        subject: Subject::User(String::new()),
        says: Says::Typing { note: note.to_owned() },
        said_at: UNIX_EPOCH,
    })
}

/// What is remembered of what was told, the newest first.
fn told(state: &State) -> Vec<Passing> {
    state.told.iter().map(|told| told.what.clone()).collect()
}

#[test]
fn what_is_told_is_remembered_the_newest_first_up_to_a_bound() {
    let mut state = state(None);
    for nth in 0..TOLD + 2 {
        assert!(!state.hears(typing(&nth.to_string()), now()));
    }
    assert_eq!(state.told.len(), TOLD);
    let note = |row: &Told| match &row.what {
        Passing::Signal(HeardSignal {
            says: Says::Typing { note },
            ..
        }) => note.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(note(&state.told[0]), (TOLD + 1).to_string());
    assert_eq!(note(&state.told[TOLD - 1]), "2");
    // What is chosen stays so, as long as it is remembered.
    state.pane = Pane::Told;
    press(&mut state, KeyCode::Down);
    let chosen = state.told[state.told_row].clone();
    state.hears(typing("next"), now());
    assert_eq!((state.told_row, &state.told[2]), (2, &chosen));
    for _ in 0..TOLD {
        state.hears(typing("more"), now());
    }
    assert_eq!(state.told_row, TOLD - 1);
}

#[test]
fn everything_is_heard_only_when_each_audience_is_and_a_break_is_told_with_its_length() {
    let begun = now();
    let mut state = state(None);
    let mut hears = |heard: Heard, seconds| {
        assert!(!state.hears(heard, later(begun, seconds)));
        (state.listening, told(&state))
    };
    let (own, readers) = (|| Audience::OwnUser, || Audience::Stream(stream()));
    assert_eq!(hears(Heard::Listening(own()), 1), (Freshness::Unseen, vec![]));
    assert_eq!(hears(Heard::Listening(readers()), 2), (Freshness::Live, vec![]));
    let since = later(begun, 3).instant;
    let stale = (Freshness::Stale { since }, vec![]);
    assert_eq!(hears(Heard::Interrupted(own()), 3), stale);
    assert_eq!(hears(Heard::Interrupted(readers()), 4), stale);
    assert_eq!(hears(Heard::Listening(own()), 5), stale);
    // What the session may no longer hear keeps nothing from being live.
    let refusal = Refusal::new(RefusalCode::ForbiddenStream, "no");
    let audience = readers();
    let refused = Heard::Refused {
        audience,
        refusal: refusal.clone(),
    };
    let notes = vec![
        Passing::Unheard(Duration::from_secs(4)),
        Passing::Refused(readers(), refusal),
    ];
    assert_eq!(hears(refused, 7), (Freshness::Live, notes));
}

#[test]
fn whoever_misses_something_does_not_know_what_is_heard_and_listens_anew() {
    let mut state = state(None);
    for audience in [Audience::OwnUser, Audience::Stream(stream())] {
        state.hears(Heard::Listening(audience), now());
    }
    assert_eq!(state.listening, Freshness::Live);
    let missed = now();
    assert!(state.hears(Heard::Missed(12), missed));
    let since = missed.instant;
    assert_eq!(state.listening, Freshness::Stale { since });
    assert_eq!(told(&state), [Passing::Missed(12)]);
}

#[test]
fn a_client_that_has_ended_hears_nothing_more() {
    let mut state = state(None);
    for audience in [Audience::OwnUser, Audience::Stream(stream())] {
        state.hears(Heard::Listening(audience), now());
    }
    let ended = now();
    let reason = StopReason::Defect;
    state.says(status(Phase::Stopped { reason }), ended);
    let since = ended.instant;
    assert_eq!(state.listening, Freshness::Stale { since });
}
