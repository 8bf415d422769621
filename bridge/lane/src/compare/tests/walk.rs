//! Walks through windows that clients complained of.

use super::*;
use crate::message::{Checked, Reached};

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

fn report(bench: &mut Bench, names: &[&str]) -> Vec<Command> {
    for stream_id in streams(names) {
        let now = bench.now;
        bench.compare.reported(now, stream_id);
    }
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
    let (_, asked) = checked(&mut bench, first, Ok(Checked::Swept { to }));
    let (first, _, after) = walks(&asked).unwrap();
    assert_eq!(after, reached(2, None));
    let (found, asked) = checked(&mut bench, first, sound(4, false));
    let (second, name, after) = walks(&asked).unwrap();
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

/// Two walks that find something else after this seq, a while after one another.
fn unsound(bench: &mut Bench, after: Seq) -> Found {
    let (request, ..) = walks(&report(bench, &["a"])).unwrap();
    let (found, _) = checked(bench, request, Ok(Checked::Unsound { after }));
    assert_eq!((found.doubts, walks(&report(bench, &["a"]))), (vec![], None));
    bench.now += Duration::from_secs(15);
    assert_eq!(bench.compare.next_due(), Some(bench.now));
    let (request, ..) = walks(&bench.turn()).unwrap();
    checked(bench, request, Ok(Checked::Unsound { after })).0
}

#[test]
fn a_rewind_that_a_walk_comes_across_is_no_forgery() {
    let mut bench = idle();
    let after = Seq::new(3).unwrap();
    let (request, ..) = walks(&report(&mut bench, &["a"])).unwrap();
    checked(&mut bench, request, Ok(Checked::Unsound { after }));
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
    checked(&mut bench, request, Ok(Checked::Unsound { after }));
    bench.now += Duration::from_secs(15);
    let (request, ..) = walks(&bench.turn()).unwrap();
    checked(&mut bench, request, Err(failure(RefusalClass::Retry)));
    assert_eq!(walks(&bench.turn()), None);
    bench.now += Duration::from_secs(15);
    assert_eq!(bench.compare.next_due(), Some(bench.now));
    let (request, ..) = walks(&bench.turn()).unwrap();
    let (found, _) = checked(&mut bench, request, Ok(Checked::Unsound { after }));
    assert_eq!(found.doubts, streams(&["a"]));
}

#[test]
fn few_streams_wait_for_a_walk() {
    let mut bench = idle();
    let names: Vec<String> = (0..1_000).map(|number| format!("s{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut walked = 0;
    let mut next = walks(&report(&mut bench, &names));
    while let Some((request, ..)) = next {
        walked += 1;
        checked(&mut bench, request, sound(9, true));
        next = walks(&bench.turn());
    }
    assert_eq!(walked, 64);
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
