use spacetime_sync_proto::{Refusal, RefusalCode};

use super::*;

/// SpacetimeDB's head before the refill.
const SEEN: u64 = 9;
/// The window is to begin after this seq.
const AFTER: u64 = 5;

fn stream(name: &str) -> StreamId {
    StreamId::new(name).unwrap()
}

fn position(seq: u64) -> Position {
    Position {
        seq: Seq::new(seq).unwrap(),
        chain: ChainHash::from_bytes([seq as u8; 32]),
    }
}

/// A comparison whose sweep is done. It refills a window of each of these streams.
fn refilling(names: &[&str]) -> (Bench, Vec<Command>) {
    let mut bench = Bench::new();
    let (request, _) = lists(&bench.turn());
    bench.listed(request, Ok(&[]));
    for name in names {
        let (seen, after) = (position(SEEN), position(AFTER).seq);
        bench.compare.want_refill(stream(name), seen, after);
    }
    let asked = bench.turn();
    (bench, asked)
}

/// The authority's answer about where the window is to begin.
fn begins(bench: &mut Bench, request: RequestId, chain: Option<ChainHash>) -> (Found, Vec<Command>) {
    let progress = StreamProgress {
        stream_id: stream("a"),
        head_seq: position(20).seq,
        published_seq: position(20).seq,
        floor_seq: position(AFTER).seq,
    };
    let standings = Ok(vec![Ok(Standing { progress, chain })]);
    bench.step(|compare, turn| compare.standings(request, standings, &Policy::default(), turn))
}

/// A refill of stream `a` whose first step is under way.
fn rewinding() -> (Bench, RequestId) {
    let (mut bench, asked) = refilling(&["a"]);
    let (request, _) = asks_authority(&asked);
    let (_, told) = begins(&mut bench, request, Some(position(AFTER).chain));
    let request = rewinds(&told, position(SEEN));
    (bench, request)
}

/// The step that the last command asks for, from a head at `from`.
fn rewinds(commands: &[Command], from: Position) -> RequestId {
    match commands {
        [.., Command::Rewind { request, seen, to, .. }] if *seen == from && *to == position(AFTER) => *request,
        other => panic!("{other:?}"),
    }
}

/// SpacetimeDB has taken a step that left the head `left`.
fn leaves(bench: &mut Bench, request: RequestId, left: Position) -> (Found, Vec<Command>) {
    bench.step(|compare, turn| compare.rewound(request, Ok(left), turn))
}

#[test]
fn a_refill_steps_back_until_the_log_ends_where_the_window_begins() {
    let (mut bench, request) = rewinding();
    let (_, told) = leaves(&mut bench, request, position(7));
    let request = rewinds(&told, position(7));
    let other_chain = Position {
        chain: position(1).chain,
        ..position(AFTER)
    };
    let (_, told) = leaves(&mut bench, request, other_chain);
    let request = rewinds(&told, other_chain);
    let (found, told) = leaves(&mut bench, request, position(AFTER));
    assert_eq!(
        (found.findings, told),
        (vec![(stream("a"), Finding::Filled(position(AFTER).seq))], vec![])
    );
}

#[test]
fn eight_windows_are_refilled_at_once_and_the_next_one_when_one_is_done() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    let (mut bench, asked) = refilling(&names);
    let asked: Vec<_> = asked.chunks(1).map(asks_authority).collect();
    assert_eq!(
        asked.iter().flat_map(|(_, of)| of).collect::<Vec<_>>(),
        names[..8].iter().collect::<Vec<_>>()
    );
    assert_eq!(bench.turn(), []);
    let (found, _) = begins(&mut bench, asked[1].0, None);
    assert_eq!(found.findings[0].0, stream("b"));
    assert_eq!(asks_authority(&bench.turn()).1, ["i"]);
}

#[test]
fn a_step_that_leaves_the_head_higher_or_another_event_there_ends_the_refill_for_a_while() {
    let other_chain = Position {
        chain: position(1).chain,
        ..position(SEEN)
    };
    for left in [position(SEEN + 1), other_chain] {
        let (mut bench, request) = rewinding();
        let (found, told) = leaves(&mut bench, request, left);
        let message = format!("expected a rewind to end the log at seq 5, found seq {}", left.seq);
        assert_eq!(told, [not_compared("a", &message)]);
        assert_eq!(
            found.findings,
            [(stream("a"), Finding::NotFilled { message, counts: true })]
        );
    }
}

#[test]
fn a_step_that_fails_counts_unless_another_bridge_works_on_the_stream() {
    let not_filled = |counts| Finding::NotFilled {
        message: "no".to_owned(),
        counts,
    };
    let refused = |code| Refusal::new(code, "");
    let broken = |code| Finding::Broken(HaltReason::Refused(refused(code)));
    for (class, code, finding) in [
        (RefusalClass::Retry, None, not_filled(true)),
        (RefusalClass::Retry, Some(RefusalCode::TokenExpired), not_filled(true)),
        (RefusalClass::Retry, Some(RefusalCode::SeqGap), not_filled(false)),
        (RefusalClass::Reject, None, not_filled(true)),
        (
            RefusalClass::Reject,
            Some(RefusalCode::InvalidArgument),
            broken(RefusalCode::InvalidArgument),
        ),
    ] {
        let (mut bench, request) = rewinding();
        let failure = Failure {
            refusal: code.map(refused),
            ..failure(class)
        };
        let (found, told) = bench.step(|compare, turn| compare.rewound(request, Err(failure), turn));
        // The lane tells of a stream that halts.
        let halts = matches!(finding, Finding::Broken(_));
        let expected = (!halts).then(|| not_compared("a", "no"));
        assert_eq!(told, Vec::from_iter(expected), "{class:?} {code:?}");
        assert_eq!(found.findings, [(stream("a"), finding)], "{class:?} {code:?}");
        assert_eq!(found.drop_link, None);
    }
}

#[test]
fn a_step_that_the_module_refuses_whatever_it_is_costs_the_link() {
    let (mut bench, request) = rewinding();
    let fatal = Err(failure(RefusalClass::Fatal));
    let (found, _) = bench.step(|compare, turn| compare.rewound(request, fatal, turn));
    assert_eq!((found.drop_link.as_deref(), found.findings), (Some("no"), vec![]));
}
