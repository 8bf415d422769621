//! Screens, whole, for what an application may be shown.

use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use crossterm::event::{KeyCode, KeyEvent};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use spacetime_sync_client::status::TokenStatus;
use spacetime_sync_client::{
    AssignmentChange, AssignmentSide, AssignmentState, Counters, Disconnect, Heard, HeardSignal, Position,
    PresenceChange, Refusal, RefusalCode, Seq, Status, Watched,
};

use super::*;
use crate::state::Own;

/// When everything in these tests happens.
struct Clock(Now);

impl Clock {
    fn start() -> Self {
        let clock = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let instant = Instant::now() + Duration::from_secs(1_000_000);
        Self(Now { instant, clock })
    }

    fn ago(&self, seconds: u64) -> SystemTime {
        self.0.clock - Duration::from_secs(seconds)
    }
}

fn status(clock: &Clock, phase: Phase) -> Status {
    let stream = |name: &str, applied, head: Option<u64>, phase| {
        let id = StreamId::new(name).unwrap();
        let mut at = Position::start(&id);
        at.seq = Seq::new(applied).unwrap();
        let status = StreamStatus {
            applied: at,
            head: head.and_then(Seq::new),
            phase,
        };
        (id, status)
    };
    Status {
        phase,
        streams: BTreeMap::from([
            stream("runtime.run.1.events", 1_200, Some(1_200), StreamPhase::Live),
            stream("runtime.run.2.events", 7, Some(4_321), StreamPhase::CatchingUp),
            stream(
                "user:8:notes",
                0,
                None,
                StreamPhase::Forbidden {
                    code: RefusalCode::ForbiddenStream,
                },
            ),
        ]),
        token: Some(TokenStatus {
            refresh_at: clock.0.instant + Duration::from_secs(240),
            expires_at: clock.0.instant + Duration::from_secs(300),
            failures: 0,
            granted_streams: Vec::new(),
            session_id: Some("desktop".to_owned()),
        }),
        counters: Counters {
            reconnects: 2,
            ..Counters::default()
        },
        ..Status::default()
    }
}

fn node(clock: &Clock, session: &str, node: &str, status: PresenceStatus) -> (PresenceKey, SeenPresence) {
    let key = PresenceKey {
        session_id: session.to_owned(),
        node_id: node.to_owned(),
    };
    let seen = SeenPresence {
        status,
        reason: (status == PresenceStatus::Offline).then_some(OfflineReason::TtlExpired),
        region: "eu-west".to_owned(),
        surface: "terminal".to_owned(),
        nostr_key: (session == "phone").then(|| "ab".repeat(32).parse().unwrap()),
        started_at: clock.ago(4_000),
        last_seen: clock.ago(3),
    };
    (key, seen)
}

fn assignment(
    clock: &Clock,
    state: AssignmentState,
    version: u64,
    provider: Option<&str>,
    opened: u64,
) -> SeenAssignment {
    let provider_id = provider.map(str::to_owned);
    SeenAssignment {
        version,
        state,
        provider_id: provider_id.clone(),
        to_all: true,
        document: "{}".to_owned(),
        report: None,
        opened_at: clock.ago(opened),
        changed_at: clock.ago(5),
        deadline_at: clock.0.clock + Duration::from_secs(600),
        changes: vec![AssignmentChange {
            version,
            state,
            provider_id,
            changed_by: AssignmentSide::Provider,
            update_id: None,
            changed_at: clock.ago(5),
        }],
    }
}

fn own() -> Own {
    Own {
        database: "lane".to_owned(),
        node_id: "terminal".to_owned(),
        provider_id: Some("maker-1".to_owned()),
        capability: "gpu".to_owned(),
        document: "{}".to_owned(),
        deadline: Duration::from_secs(600),
        hears: vec![StreamId::new("runtime.run.1.events").unwrap()],
    }
}

fn capability(
    clock: &Clock,
    [provider, name]: [&str; 2],
    version: u64,
    region: &str,
) -> (CapabilityKey, SeenCapability) {
    let key = CapabilityKey {
        provider_id: provider.to_owned(),
        capability: name.to_owned(),
    };
    let seen = SeenCapability {
        version,
        price_hint_sats: 21,
        region: region.to_owned(),
        document: "{}".to_owned(),
        published_at: clock.ago(10),
        ends_at: clock.0.clock + Duration::from_secs(3_590),
    };
    (key, seen)
}

fn signal(from: Option<&str>, subject: Subject, says: Says) -> Heard {
    let key = |node: &str| PresenceKey {
        session_id: node.to_owned(),
        node_id: "n1".to_owned(),
    };
    Heard::Signal(HeardSignal {
        from: from.map(key),
        subject,
        says,
        said_at: UNIX_EPOCH,
    })
}

fn change(key: PresenceKey, region: &str) -> Heard {
    Heard::Presence(PresenceChange {
        key,
        status: PresenceStatus::Busy,
        reason: None,
        region: region.to_owned(),
        surface: region.to_owned(),
        nostr_key: None,
        changed_at: UNIX_EPOCH,
    })
}

/// A state in which all is well.
fn live(clock: &Clock) -> State {
    let mut state = State::new(own(), status(clock, Phase::Idle));
    state.says(status(clock, Phase::Live), clock.0);
    state.presences = Watched {
        freshness: Freshness::Live,
        rows: BTreeMap::from([
            node(clock, "desktop", "terminal", PresenceStatus::Online),
            node(clock, "laptop", "n1", PresenceStatus::Busy),
            node(clock, "phone", "n2", PresenceStatus::Offline),
        ]),
    };
    state.shows(Watched {
        freshness: Freshness::Live,
        rows: BTreeMap::from([
            (
                "r-1".to_owned(),
                assignment(clock, AssignmentState::Succeeded, 4, Some("maker-1"), 90),
            ),
            ("r-2".to_owned(), assignment(clock, AssignmentState::Open, 1, None, 60)),
            (
                "r-3".to_owned(),
                assignment(clock, AssignmentState::Running, 3, Some("maker-2"), 30),
            ),
        ]),
    });
    state.capabilities = Watched {
        freshness: Freshness::Live,
        rows: BTreeMap::from([
            capability(clock, ["maker-1", "gpu"], 1_800_000_000_000, ""),
            capability(clock, ["maker-2", "render"], 7, "eu-west"),
        ]),
    };
    state.providers_online = Watched {
        freshness: Freshness::Live,
        rows: 2,
    };
    let (phone, _) = node(clock, "phone", "n2", PresenceStatus::Busy);
    for (seconds, heard) in [
        (30, Heard::Listening(Audience::OwnUser)),
        (
            30,
            Heard::Listening(Audience::Stream(StreamId::new("runtime.run.1.events").unwrap())),
        ),
        (20, change(phone, "eu-west")),
        (
            9,
            signal(
                None,
                Subject::Assignment("r-3".to_owned()),
                Says::Progress {
                    done: 1,
                    total: 4,
                    note: "the first quarter".to_owned(),
                },
            ),
        ),
        (
            2,
            signal(
                Some("laptop"),
                Subject::User("notes".to_owned()),
                Says::Typing { note: String::new() },
            ),
        ),
    ] {
        let instant = clock.0.instant - Duration::from_secs(seconds);
        state.hears(heard, Now { instant, ..clock.0 });
    }
    state
}

fn press(state: &mut State, code: KeyCode, clock: &Clock) {
    state.pressed(KeyEvent::from(code), 0xfeed, clock.0);
}

/// The screen as text, without blanks at the ends of lines.
fn drawn(state: &State, now: Now, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen(frame, state, now)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |cells: &[ratatui::buffer::Cell]| {
        let text: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
        text.trim_end().to_owned()
    };
    buffer.content().chunks(usize::from(width).max(1)).map(line).collect()
}

#[track_caller]
fn is(state: &State, clock: &Clock, expected: &str) {
    is_at(state, clock, 24, expected);
}

#[track_caller]
fn is_at(state: &State, clock: &Clock, height: u16, expected: &str) {
    let found = drawn(state, clock.0, 80, height).join("\n");
    assert_eq!(found, expected.trim_matches('\n'), "\n{found}\n");
}

#[test]
fn a_lane_that_is_well() {
    let clock = Clock::start();
    let mut state = live(&clock);
    press(&mut state, KeyCode::Down, &clock);
    press(&mut state, KeyCode::Down, &clock);
    press(&mut state, KeyCode::Char('a'), &clock);
    is(&state, &clock, include_str!("tests/well.txt"));
}

#[test]
fn a_large_screen_shows_all_panes() {
    let clock = Clock::start();
    is_at(&live(&clock), &clock, 38, include_str!("tests/large.txt"));
}

#[test]
fn on_a_small_screen_the_chosen_pane_is_open_and_others_make_room_for_it() {
    let clock = Clock::start();
    let mut state = live(&clock);
    press(&mut state, KeyCode::BackTab, &clock);
    is(&state, &clock, include_str!("tests/capabilities.txt"));
}

#[test]
fn what_was_told_is_shown_the_newest_first() {
    let clock = Clock::start();
    let mut state = live(&clock);
    press(&mut state, KeyCode::Tab, &clock);
    press(&mut state, KeyCode::Tab, &clock);
    is(&state, &clock, include_str!("tests/told.txt"));
}

#[test]
fn a_lane_that_was_cut_says_since_when_nothing_is_seen() {
    let mut clock = Clock::start();
    let mut state = live(&clock);
    press(&mut state, KeyCode::Down, &clock);
    press(&mut state, KeyCode::Char('n'), &clock);
    state.answered(1, Err(CallError::NotConnected));
    let reason = Disconnect::Closed;
    let (attempt, retry_in) = (3, Duration::from_secs(2));
    let cut = Phase::Backoff {
        attempt,
        retry_in,
        reason,
    };
    state.says(status(&clock, cut), clock.0);
    let since = clock.0.instant;
    state.presences.freshness = Freshness::Stale { since };
    state.capabilities.freshness = Freshness::Stale { since };
    state.providers_online.freshness = Freshness::Stale { since };
    state.hears(Heard::Interrupted(Audience::OwnUser), clock.0);
    let stale = Watched {
        freshness: Freshness::Stale { since },
        rows: state.assignments.rows.clone(),
    };
    state.shows(stale);
    clock.0.instant += Duration::from_secs(75);
    clock.0.clock += Duration::from_secs(75);
    is(&state, &clock, include_str!("tests/cut.txt"));
}

#[test]
fn a_client_that_has_seen_nothing_does_not_say_that_there_is_nothing() {
    let clock = Clock::start();
    let status = Status {
        token: None,
        ..status(&clock, Phase::Connecting { attempt: 1 })
    };
    let mut state = State::new(own(), status.clone());
    state.says(status, clock.0);
    is(&state, &clock, include_str!("tests/unseen.txt"));
}

#[test]
fn a_refusal_says_what_the_module_said() {
    let clock = Clock::start();
    let mut state = live(&clock);
    press(&mut state, KeyCode::Char('n'), &clock);
    let refusal = Refusal::new(RefusalCode::AssignmentConflict, "r-2 is accepted, maker-2 has it");
    state.answered(1, Err(CallError::Refused(refusal)));
    press(&mut state, KeyCode::Char('a'), &clock);
    let lines = drawn(&state, clock.0, 100, 26);
    let said = lines.iter().find(|line| line.contains("open r-")).unwrap();
    assert!(said.contains("refused: ") && said.contains("maker-2 has it"), "{said}");
    assert!(
        lines
            .iter()
            .any(|line| line.contains("accept: not asked for: choose an assignment first"))
    );
}

#[test]
fn what_was_told_or_missed_is_said_in_words() {
    let clock = Clock::start();
    let mut state = live(&clock);
    let steps = |done, total, note: &str| Says::Progress {
        done,
        total,
        note: note.to_owned(),
    };
    let conflict = Says::Conflict {
        note: "too late".to_owned(),
    };
    let stream = || StreamId::new("runtime.run.1.events").unwrap();
    for (heard, words) in [
        (
            signal(Some("laptop"), Subject::Stream(stream()), steps(3, 0, "")),
            "laptop/n1 stream runtime.run.1.events 3 steps done",
        ),
        (
            signal(Some("laptop"), Subject::User(String::new()), steps(3, 4, "hm")),
            "laptop/n1 this user 3 of 4 steps done: hm",
        ),
        (
            signal(None, Subject::Assignment("r-3".to_owned()), conflict),
            "the other party assignment r-3 conflict: too late",
        ),
        (
            Heard::Refused {
                audience: Audience::Stream(stream()),
                refusal: Refusal::new(RefusalCode::ForbiddenStream, "no"),
            },
            "- stream runtime.run.1.events refused: no",
        ),
        (Heard::Missed(12), "- - at least 12 more came too fast"),
    ] {
        state.hears(heard, clock.0);
        let [_, cells @ ..] = passing(&state.told[0], clock.0);
        assert_eq!(cells.join(" "), words);
    }
    let told = Told {
        at: clock.0.instant,
        what: Passing::Unheard(Duration::from_secs(75)),
    };
    let [heard, .., what] = passing(&told, clock.0);
    assert_eq!(
        [heard.as_str(), what.as_str()],
        ["0s", "not everything was heard for 75s"]
    );
}

#[test]
fn the_chosen_pane_is_open_on_any_screen_that_has_room_for_a_row() {
    let clock = Clock::start();
    let mut state = live(&clock);
    for height in 18..60 {
        for (pane, row) in Pane::ALL
            .into_iter()
            .zip(["this one", "maker-1", "r-3", "run.1", "laptop/n1"])
        {
            state.pane = pane;
            let lines = drawn(&state, clock.0, 80, height);
            assert!(lines.iter().any(|line| line.contains(row)), "{pane:?}: {lines:#?}");
        }
    }
}

/// What others say is drawn where it belongs, and nowhere else: the rest of the screen is the same whatever it is.
#[test]
fn hostile_texts_change_nothing_but_their_own_cells() {
    let clock = Clock::start();
    let long = "x".repeat(100_000);
    let hostile = [
        "\x1b[2J\x1b[1;1H\x1b[31mowned",
        "\r\n\n\n\t\x08\x08\x08",
        "\u{9b}2J\u{85}\u{2028}\u{202e}\u{2066}",
        "日本語日本語日本語日本語日本語日本語",
        "👩‍👩‍👧‍👦👩‍👩‍👧‍👦\u{fe0f}\u{200d}",
        "e\u{301}\u{301}\u{301}\u{301}\u{301}",
        "ﷺשלום",
        &long,
    ];
    let of = |text: &str| {
        let mut state = live(&clock);
        let (mut key, mut seen) = node(&clock, text, text, PresenceStatus::Away);
        (seen.region, seen.surface) = (text.to_owned(), text.to_owned());
        key.session_id.insert(0, 'z');
        state.presences.rows.insert(key, seen);
        let mut seen = assignment(&clock, AssignmentState::Open, 1, Some(text), 1);
        seen.document = text.to_owned();
        state.assignments.rows.insert(format!("r-{text}"), seen);
        let (key, seen) = capability(&clock, [text, text], 1, text);
        state.capabilities.rows.insert(key, seen);
        let (key, _) = node(&clock, text, text, PresenceStatus::Away);
        let audience = Audience::OwnUser;
        for heard in [
            change(key, text),
            Heard::Refused {
                audience,
                refusal: Refusal::new(RefusalCode::MissingScope, text),
            },
            signal(
                Some(text),
                Subject::User(text.to_owned()),
                Says::Conflict { note: text.to_owned() },
            ),
        ] {
            state.hears(heard, clock.0);
        }
        let reason = Disconnect::Failed(text.to_owned());
        let (attempt, retry_in) = (1, Duration::ZERO);
        let phase = Phase::Backoff {
            attempt,
            retry_in,
            reason,
        };
        let mut status = status(&clock, phase);
        if let Some(stream) = status.streams.values_mut().next() {
            stream.phase = StreamPhase::Retrying {
                message: text.to_owned(),
            };
        }
        if let Some(token) = &mut status.token {
            token.session_id = Some(text.to_owned());
        }
        state.says(status, clock.0);
        press(&mut state, KeyCode::Char('n'), &clock);
        let refusal = Refusal::new(RefusalCode::InvalidArgument, text);
        state.answered(1, Err(CallError::Refused(refusal)));
        state
    };
    for (width, height) in [(80, 24), (80, 30), (120, 50), (30, 30)] {
        for (text, pane) in hostile.into_iter().flat_map(|text| Pane::ALL.map(|pane| (text, pane))) {
            let mut state = of(text);
            state.pane = pane;
            let lines = drawn(&state, clock.0, width, height);
            let all = lines.concat();
            let moves = |c: char| c.is_control() || ['\u{202e}', '\u{200d}', '\u{fe0f}', '\u{301}'].contains(&c);
            assert!(!all.contains(moves), "{all:?}");
            // Every line that has a frame has both its sides, where they were, and a pane that is closed has its line.
            let sides = |line: &String| line.starts_with(['│', '┌', '└', '─']) && line.ends_with(['│', '┐', '┘', '─']);
            assert!(lines[..lines.len() - 1].iter().all(sides), "{text:?}: {lines:#?}");
            assert!(!lines.iter().any(|line| line.starts_with("owned")));
        }
    }
}

#[test]
fn a_screen_of_any_size_is_drawn() {
    let clock = Clock::start();
    let mut state = live(&clock);
    press(&mut state, KeyCode::Down, &clock);
    for width in (0..20).chain([79, 200]) {
        for height in (0..20).chain([24, 100]) {
            drawn(&state, clock.0, width, height);
        }
    }
}

#[test]
fn the_chosen_row_is_in_sight() {
    let clock = Clock::start();
    let mut state = live(&clock);
    for at in 0..50 {
        let row = assignment(&clock, AssignmentState::Open, 1, None, 100 + at);
        state.assignments.rows.insert(format!("more-{at}"), row);
    }
    for _ in 0..40 {
        press(&mut state, KeyCode::Down, &clock);
    }
    let lines = drawn(&state, clock.0, 80, 26);
    let chosen = lines.iter().find(|line| line.contains("> ")).unwrap();
    let (name, _) = state.chosen().unwrap();
    assert!(chosen.contains(name), "{chosen}");
}

#[test]
fn lengths_of_time_are_told_in_their_largest_fitting_unit() {
    for (seconds, text) in [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (7_199, "119m"),
        (7_200, "2h"),
        (172_800, "2d"),
    ] {
        assert_eq!(span(Duration::from_secs(seconds)), text);
    }
}
