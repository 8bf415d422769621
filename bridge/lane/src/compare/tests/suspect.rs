//! What the comparison makes of a log that does not fit the authority's.

use super::*;
use crate::message::HeadSeal;

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

#[test]
fn a_forgery_is_told_and_the_stream_published_again_after_what_was_published() {
    let (mut bench, request) = suspected(2);
    let (found, told) = checked(&mut bench, request, Ok(HeadSeal::Missing));
    assert_eq!(found.forgeries, 1);
    assert_eq!(verdict(found), Verdict::Refill(Seq::new(2).unwrap()));
    assert!(
        matches!(&told[..], [Command::Tell(Notice::Forged { to, .. })] if *to == head().seq),
        "{told:?}"
    );
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
