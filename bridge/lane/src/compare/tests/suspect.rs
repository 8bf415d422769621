//! What the comparison makes of a log that does not fit the authority's.

use super::*;
use crate::message::{Checked, HeadSeal, Reached};

/// A comparison of a stream whose head in SpacetimeDB the authority does not have, up to the question for its seal.
fn suspected(published: u64) -> (Bench, RequestId) {
    let mut bench = Bench::new();
    bench.compare.want(streams(&["a"]).remove(0));
    let request = match &bench.turn()[0] {
        Command::ReadHeads(_, request, _) => *request,
        other => panic!("{other:?}"),
    };
    let (_, asked) = bench.heads(request, Ok(1));
    let (request, _) = asks_authority(&asked);
    let seq = |value| Seq::new(value).unwrap();
    let standing = Standing {
        progress: StreamProgress {
            stream_id: streams(&["a"]).remove(0),
            head_seq: seq(9),
            published_seq: seq(published),
            floor_seq: seq(1),
        },
        chain: Some(ChainHash::from_bytes([4; 32])),
    };
    let (found, out) =
        bench.step(|compare, turn| compare.standings(request, Ok(vec![Ok(standing)]), &Policy::default(), turn));
    assert_eq!(found.findings, [], "a stream that does not fit has no verdict yet");
    match &out[..] {
        [Command::CheckSeal { request, head: at, .. }] => {
            assert_eq!(*at, head());
            (bench, *request)
        }
        other => panic!("{other:?}"),
    }
}

fn checked(bench: &mut Bench, request: RequestId, sealed: Result<HeadSeal, Failure>) -> (Found, Vec<Command>) {
    bench.step(|compare, turn| compare.seal_checked(request, sealed, turn))
}

fn verdict(found: Found) -> Verdict {
    match found.findings.into_iter().next() {
        Some((_, Finding::Compared { verdict, held, .. })) => {
            assert_eq!(held, head());
            verdict
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_log_that_the_bridge_sealed_is_left_to_a_person() {
    let (mut bench, request) = suspected(2);
    let (found, told) = checked(&mut bench, request, Ok(HeadSeal::Good));
    assert_eq!(found.forgeries, 0);
    assert_eq!(verdict(found), Verdict::Apart(HaltReason::Diverged { seq: head().seq }));
    assert_eq!(told, []);
}

/// The question where the forgery begins after what was published, and after which seq it asks.
fn sought(commands: &[Command]) -> (RequestId, Reached) {
    match commands {
        [Command::CheckFrames { request, after, .. }] => (*request, *after),
        other => panic!("{other:?}"),
    }
}

/// Where the log is sound up to.
fn sound(seq: u64, is_end: bool) -> Checked {
    let to = Position {
        seq: Seq::new(seq).unwrap(),
        chain: ChainHash::from_bytes([seq as u8; 32]),
    };
    Checked::Sound { to, is_end }
}

fn unsound(after: u64, chain: Option<u8>) -> Checked {
    let after = Reached {
        seq: Seq::new(after).unwrap(),
        chain: chain.map(|chain| ChainHash::from_bytes([chain; 32])),
    };
    Checked::Unsound { after }
}

/// A suspect whose head has no seal, and of which nothing past seq 1 was published.
fn seeking() -> (Bench, RequestId) {
    let (mut bench, request) = suspected(1);
    let (found, told) = checked(&mut bench, request, Ok(HeadSeal::Missing));
    assert_eq!(found.findings, []);
    let (request, after) = sought(&told);
    assert_eq!((after.seq.get(), after.chain), (1, None));
    (bench, request)
}

fn answered(bench: &mut Bench, request: RequestId, checked: Result<Checked, Failure>) -> (Found, Vec<Command>) {
    bench.step(|compare, turn| compare.frames_checked(request, checked, turn))
}

#[test]
fn a_forgery_is_told_and_the_stream_published_again_where_it_begins() {
    let (mut bench, request) = seeking();
    let (_, told) = answered(&mut bench, request, Ok(sound(2, false)));
    let (request, after) = sought(&told);
    assert_eq!(
        (after.seq.get(), after.chain),
        (2, Some(ChainHash::from_bytes([2; 32])))
    );
    let (found, told) = answered(&mut bench, request, Ok(unsound(2, Some(2))));
    assert_eq!(found.findings, []);
    let (request, names) = asks_authority(&told);
    assert_eq!(names, ["a"]);
    let (found, told) = has(&mut bench, request, Ok(Some(2)));
    assert_eq!((found.forgeries, found.walks), (1, 0));
    assert_eq!(verdict(found), Verdict::Refill(Seq::new(2).unwrap()));
    assert!(
        matches!(&told[..], [Command::Tell(Notice::Forged { to, .. })] if *to == head().seq),
        "{told:?}"
    );
}

/// The authority's answer about its chain hash there.
fn has(bench: &mut Bench, request: RequestId, chain: Result<Option<u8>, Failure>) -> (Found, Vec<Command>) {
    let standings = chain.map(|chain| {
        let progress = StreamProgress {
            stream_id: streams(&["a"]).remove(0),
            head_seq: Seq::new(9).unwrap(),
            published_seq: Seq::new(1).unwrap(),
            floor_seq: Seq::new(1).unwrap(),
        };
        let chain = chain.map(|chain| ChainHash::from_bytes([chain; 32]));
        vec![Ok(Standing { progress, chain })]
    });
    bench.step(|compare, turn| compare.standings(request, standings, &Policy::default(), turn))
}

/// A suspect whose log the bridge sealed up to seq 2, and the question whether the authority has that.
fn sealed_up_to_two() -> (Bench, RequestId) {
    let (mut bench, request) = seeking();
    let (_, told) = answered(&mut bench, request, Ok(unsound(2, Some(2))));
    let (request, _) = asks_authority(&told);
    (bench, request)
}

#[test]
fn what_the_bridge_sealed_and_the_authority_lost_goes_with_the_forgery() {
    // The authority was restored. It has another event there by now, or none yet.
    for chain in [Some(7), None] {
        let (mut bench, request) = sealed_up_to_two();
        let (found, _) = has(&mut bench, request, Ok(chain));
        assert_eq!(verdict(found), Verdict::Refill(Seq::new(1).unwrap()), "{chain:?}");
    }
    let (mut bench, request) = sealed_up_to_two();
    let (found, _) = has(&mut bench, request, Err(failure(RefusalClass::Retry)));
    assert!(matches!(found.findings[..], [(_, Finding::NotCompared)]), "{found:?}");
}

#[test]
fn a_forgery_is_removed_from_what_was_published_on_where_nobody_knows_more() {
    let swept = Checked::Swept {
        to: Seq::new(2).unwrap(),
    };
    // In the last case the head's seal was missing a moment ago, and is good now.
    for checked in [unsound(1, None), swept, sound(3, true)] {
        let (mut bench, request) = seeking();
        let (found, _) = answered(&mut bench, request, Ok(checked));
        assert_eq!(verdict(found), Verdict::Refill(Seq::new(1).unwrap()), "{checked:?}");
    }
    let (mut bench, request) = seeking();
    let (found, _) = answered(&mut bench, request, Err(failure(RefusalClass::Reject)));
    assert_eq!(verdict(found), Verdict::Refill(Seq::new(1).unwrap()));
}

#[test]
fn a_forgery_that_cannot_be_found_decides_nothing() {
    let (mut bench, request) = seeking();
    let (found, _) = answered(&mut bench, request, Ok(sound(2, true)));
    assert!(matches!(found.findings[..], [(_, Finding::NotCompared)]), "{found:?}");
    let (found, _) = answered(&mut bench, request, Ok(unsound(2, None)));
    assert_eq!(found.findings, [], "the answer to a question that is over");

    let (mut bench, request) = seeking();
    let (found, _) = answered(&mut bench, request, Err(failure(RefusalClass::Retry)));
    assert!(matches!(found.findings[..], [(_, Finding::NotCompared)]), "{found:?}");

    let (mut bench, request) = seeking();
    let (found, _) = answered(&mut bench, request, Err(failure(RefusalClass::Fatal)));
    assert_eq!(found.drop_link.as_deref(), Some("no"));
}

#[test]
fn a_forgery_in_place_of_published_events_is_replaced_from_the_beginning_of_the_window() {
    let (mut bench, request) = suspected(3);
    let (found, _) = checked(&mut bench, request, Ok(HeadSeal::Missing));
    assert_eq!(verdict(found), Verdict::Refill(Seq::new(1).unwrap()));
}

#[test]
fn a_seal_that_cannot_be_checked_decides_nothing() {
    let (mut bench, request) = suspected(2);
    let (found, _) = checked(&mut bench, request, Ok(HeadSeal::Moved));
    assert!(matches!(found.findings[..], [(_, Finding::NotCompared)]), "{found:?}");
    let (found, _) = checked(&mut bench, request, Ok(HeadSeal::Missing));
    assert_eq!(found.findings, [], "the answer to a question that is over");

    let (mut bench, request) = suspected(2);
    let (found, told) = checked(&mut bench, request, Err(failure(RefusalClass::Retry)));
    assert!(matches!(found.findings[..], [(_, Finding::NotCompared)]), "{found:?}");
    assert!(
        matches!(told[..], [Command::Tell(Notice::NotCompared { .. })]),
        "{told:?}"
    );

    let (mut bench, request) = suspected(2);
    let (found, _) = checked(&mut bench, request, Err(failure(RefusalClass::Reject)));
    assert!(matches!(verdict(found), Verdict::Apart(_)));

    let (mut bench, request) = suspected(2);
    let (found, _) = checked(&mut bench, request, Err(failure(RefusalClass::Fatal)));
    assert_eq!(found.drop_link.as_deref(), Some("no"));
}

#[test]
fn few_seals_are_checked_at_once() {
    let mut bench = Bench::new();
    let suspect = |at: u64| Suspect {
        stream_id: StreamId::new(&format!("s{at}")).unwrap(),
        held: head(),
        head: head().seq,
        reason: HaltReason::AheadOfAuthority,
        after: Seq::ZERO,
        unpublished: true,
        sound: None,
    };
    bench.compare.suspects_wanted.extend((0..10).map(suspect));
    let asked: Vec<_> = bench
        .turn()
        .iter()
        .filter_map(|command| match command {
            Command::CheckSeal { request, .. } => Some(*request),
            _ => None,
        })
        .collect();
    assert_eq!(asked.len(), 8);
    checked(&mut bench, asked[0], Ok(HeadSeal::Moved));
    let more = bench.turn();
    let checks = more
        .iter()
        .filter(|command| matches!(command, Command::CheckSeal { .. }));
    assert_eq!(checks.count(), 1);
}
