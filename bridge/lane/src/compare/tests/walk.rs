//! Walks through windows that clients complained of.

use spacetime_sync_proto::Label;

use super::*;
use crate::message::{Checked, Reached, Report};

fn position(seq: u64) -> Position {
    Position {
        seq: Seq::new(seq).unwrap(),
        ..head()
    }
}

/// A comparison whose sweep is done.
fn idle() -> Bench {
    let mut bench = Bench::new();
    let (request, _) = lists(&bench.turn());
    bench.listed(request, Ok(&[]));
    bench
}

/// The next frames that the last command asks about.
fn walks(commands: &[Command]) -> Option<(RequestId, String, Reached)> {
    commands.iter().rev().find_map(|command| match command {
        Command::CheckFrames {
            request,
            stream_id,
            after,
            ..
        } => Some((*request, stream_id.to_string(), *after)),
        _ => None,
    })
}

/// A session reports streams. Nothing of it is begun yet.
fn says<N: AsRef<str>>(bench: &mut Bench, session: &str, names: &[N]) {
    for name in names {
        let report = Report {
            stream_id: StreamId::new(name.as_ref()).unwrap(),
            session_id: Label::new(session).unwrap(),
        };
        bench.compare.reported(bench.now, report);
    }
}

fn report(bench: &mut Bench, names: &[&str]) -> Vec<Command> {
    says(bench, "s", names);
    bench.turn()
}

fn checked(bench: &mut Bench, request: RequestId, checked: Result<Checked, Failure>) -> (Found, Vec<Command>) {
    bench.step(|compare, turn| compare.frames_checked(request, checked, turn))
}

fn sound(to: u64, is_end: bool) -> Result<Checked, Failure> {
    let to = position(to);
    Ok(Checked::Sound { to, is_end })
}

#[test]
fn a_walk_goes_through_the_whole_window_one_stream_after_the_other() {
    let mut bench = idle();
    let (first, name, after) = walks(&report(&mut bench, &["a", "b", "a"])).unwrap();
    let reached = |seq: u64, chain| Reached {
        seq: position(seq).seq,
        chain,
    };
    assert_eq!((name.as_str(), after), ("a", reached(0, None)));
    // The walk is under way, and one of the others waits for its own.
    assert_eq!(report(&mut bench, &["a", "b"]), []);
    // SpacetimeDB no longer holds the beginning.
    let to = position(2).seq;
    checked(&mut bench, first, Ok(Checked::Swept { to }));
    let (first, _, after) = walks(&bench.wait()).unwrap();
    assert_eq!(after, reached(2, None));
    let before = bench.now;
    let (found, asked) = checked(&mut bench, first, sound(4, false));
    assert_eq!(found.walks, 0, "it goes on");
    assert!(
        walks(&asked).is_none() && walks(&bench.turn()).is_none(),
        "others have their turn"
    );
    let (second, name, after) = walks(&bench.wait()).unwrap();
    assert_eq!(bench.now - before, Duration::from_millis(50));
    assert_eq!((name.as_str(), after), ("a", reached(4, Some(head().chain))));
    assert!(found.doubts.is_empty());
    // An answer to another question is ignored.
    assert_eq!(walks(&checked(&mut bench, first, sound(5, false)).1), None);
    let (found, asked) = checked(&mut bench, second, sound(9, true));
    assert!(found.doubts.is_empty() && walks(&asked).is_none());
    let (request, name, _) = walks(&bench.turn()).unwrap();
    assert_eq!(name, "b");
    checked(&mut bench, request, sound(9, true));
    assert_eq!(walks(&bench.turn()), None, "each stream was walked once");
}

fn something_else(after: Seq) -> Checked {
    let after = Reached {
        seq: after,
        chain: None,
    };
    Checked::Unsound { after }
}

/// Two walks that find something else after this seq, a while after one another.
fn unsound(bench: &mut Bench, after: Seq) -> Found {
    let (request, ..) = walks(&report(bench, &["a"])).unwrap();
    let (found, _) = checked(bench, request, Ok(something_else(after)));
    assert_eq!((found.doubts, walks(&report(bench, &["a"]))), (vec![], None));
    bench.now += Duration::from_secs(15);
    assert_eq!(bench.compare.next_due(), Some(bench.now));
    let (request, ..) = walks(&bench.turn()).unwrap();
    checked(bench, request, Ok(something_else(after))).0
}

#[test]
fn a_rewind_that_a_walk_comes_across_is_no_forgery() {
    let mut bench = idle();
    let after = Seq::new(3).unwrap();
    let (request, ..) = walks(&report(&mut bench, &["a"])).unwrap();
    checked(&mut bench, request, Ok(something_else(after)));
    bench.now += Duration::from_secs(15);
    let (request, ..) = walks(&bench.turn()).unwrap();
    let (found, _) = checked(&mut bench, request, sound(9, true));
    assert!(found.doubts.is_empty() && !bench.compare.walks.is_unsound(&streams(&["a"])[0]));
    // What a later walk finds is a first finding again.
    bench.now += Duration::from_secs(60);
    assert_eq!(unsound(&mut bench, after).doubts, streams(&["a"]));
}

#[test]
fn what_follows_the_sound_part_is_refilled_once_the_stream_is_compared() {
    let mut bench = idle();
    let after = Seq::new(3).unwrap();
    assert_eq!(unsound(&mut bench, after).doubts, streams(&["a"]));
    for forged in [true, false] {
        bench.compare.want(streams(&["a"]).remove(0));
        let (request, _) = asks_module(&bench.turn());
        let (_, asked) = bench.heads(request, Ok(1));
        let (request, _) = asks_authority(&asked);
        let (found, told) = bench.standings(request, Ok(&["a"]));
        let verdict = match &found.findings[..] {
            [(_, Finding::Compared { verdict, .. })] => verdict.clone(),
            other => panic!("{other:?}"),
        };
        let is_told = told
            .iter()
            .any(|command| matches!(command, Command::Tell(Notice::Forged { .. })));
        assert_eq!((is_told, found.forgeries), (forged, u64::from(forged)));
        let expected = if forged {
            Verdict::Refill(after)
        } else {
            Verdict::InStep(head().seq)
        };
        assert_eq!(verdict, expected);
    }
}

#[test]
fn what_a_walk_found_is_not_forgotten_while_the_stream_is_busy() {
    let mut bench = idle();
    let after = Seq::new(3).unwrap();
    unsound(&mut bench, after);
    assert!(bench.compare.walks.is_unsound(&streams(&["a"])[0]));
    // Whatever refills the window takes care of it.
    bench.compare.want_refill(streams(&["a"]).remove(0), head(), after);
    assert!(!bench.compare.walks.is_unsound(&streams(&["a"])[0]));
}

#[test]
fn a_stream_rests_after_a_walk_unless_it_failed() {
    let mut bench = idle();
    let (request, ..) = walks(&report(&mut bench, &["a"])).unwrap();
    checked(&mut bench, request, sound(9, true));
    assert_eq!(walks(&report(&mut bench, &["a"])), None);
    bench.now += Duration::from_secs(60);
    let (request, ..) = walks(&report(&mut bench, &["a"])).unwrap();
    checked(&mut bench, request, Err(failure(RefusalClass::Retry)));
    assert!(walks(&report(&mut bench, &["a"])).is_some());
}

#[test]
fn a_walk_that_is_repeated_and_fails_is_repeated_again() {
    let mut bench = idle();
    let after = Seq::new(3).unwrap();
    let (request, ..) = walks(&report(&mut bench, &["a"])).unwrap();
    checked(&mut bench, request, Ok(something_else(after)));
    bench.now += Duration::from_secs(15);
    let (request, ..) = walks(&bench.turn()).unwrap();
    checked(&mut bench, request, Err(failure(RefusalClass::Retry)));
    assert_eq!(walks(&bench.turn()), None);
    bench.now += Duration::from_secs(15);
    assert_eq!(bench.compare.next_due(), Some(bench.now));
    let (request, ..) = walks(&bench.turn()).unwrap();
    let (found, _) = checked(&mut bench, request, Ok(something_else(after)));
    assert_eq!(found.doubts, streams(&["a"]));
}

fn numbered(letter: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{letter}{number}")).collect()
}

/// The streams that wait, in the order in which they are walked.
fn walked(bench: &mut Bench) -> Vec<String> {
    let mut walked = Vec::new();
    while let Some((request, name, _)) = walks(&bench.turn()) {
        walked.push(name);
        let (found, _) = checked(bench, request, sound(9, true));
        assert_eq!(found.walks, 1);
    }
    walked
}

#[test]
fn few_streams_wait_for_a_walk() {
    let mut bench = idle();
    for number in 0..1_000 {
        says(&mut bench, &format!("s{number}"), &[format!("a{number}")]);
    }
    assert_eq!(walked(&mut bench).len(), 64);
}

#[test]
fn a_session_that_reports_many_streams_leaves_places_to_the_others() {
    let mut bench = idle();
    let (greedy, another, third) = (numbered("a", 1_000), numbered("b", 1_000), numbered("c", 1));
    says(&mut bench, "greedy", &greedy);
    says(&mut bench, "another", &another);
    says(&mut bench, "third", &third);
    assert_eq!(walked(&mut bench), [&greedy[..8], &another[..8], &third].concat());
    // Once its streams are walked, others of its streams may wait.
    says(&mut bench, "greedy", &greedy[8..]);
    assert_eq!(walked(&mut bench), greedy[8..16]);
}

#[test]
fn a_stream_that_waits_takes_no_second_place_whoever_reports_it() {
    let mut bench = idle();
    let (both, ones, others) = (numbered("a", 3), numbered("b", 9), numbered("c", 9));
    for _ in 0..3 {
        says(&mut bench, "one", &both);
        says(&mut bench, "another", &both);
    }
    // Who reported a stream first holds its place.
    says(&mut bench, "another", &others);
    says(&mut bench, "one", &ones);
    assert_eq!(walked(&mut bench), [&both[..], &others[..8], &ones[..5]].concat());
}

#[test]
fn without_a_link_nothing_is_walked() {
    let mut bench = idle();
    bench.compare.close();
    assert_eq!(walks(&report(&mut bench, &["a"])), None);
}

#[test]
fn a_module_that_refuses_every_call_drops_the_link() {
    let mut bench = idle();
    let (request, ..) = walks(&report(&mut bench, &["a"])).unwrap();
    let (found, _) = checked(&mut bench, request, Err(failure(RefusalClass::Fatal)));
    assert!(found.drop_link.is_some());
}
