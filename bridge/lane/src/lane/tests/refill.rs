use super::*;

/// A stream that needs a refill: SpacetimeDB's head is below what the authority keeps.
fn below_the_floor(_: &StreamId) -> Held {
    Held {
        held: 1,
        published: 9,
        head: 9,
    }
}

/// Starts the refills of streams a and b. Returns the first step of a's.
fn refilling() -> (Bench, LinkId, RequestId) {
    let mut bench = Bench::new(vec![stream("a"), stream("b")], below_the_floor);
    let link = bench.link_up();
    let request = loop {
        let (request, at) = bench.until(|command| match command {
            Command::ReadStandings(request, at) => Some((*request, at.clone())),
            _ => None,
        });
        let refills = at.len() == 1;
        let standings = at.iter().map(|(stream_id, at)| {
            let mut standing = bench.standing(stream_id, *at);
            standing.progress.floor_seq = seq(5);
            Ok(standing)
        });
        let standings = Ok(standings.collect());
        bench.feed(Event::Standings(request, standings));
        if refills {
            let is_a = |command: &Command| match command {
                Command::Rewind {
                    request, stream_id, to, ..
                } if stream_id.as_str() == "a" => {
                    assert_eq!(to.seq, seq(5));
                    Some(*request)
                }
                _ => None,
            };
            let mut sent = bench.commands.iter().enumerate();
            if let Some((at, request)) = sent.find_map(|(at, command)| Some((at, is_a(command)?))) {
                bench.commands.remove(at);
                break request;
            }
        }
    };
    (bench, link, request)
}

#[test]
fn a_rewind_that_the_module_rejects_halts_its_stream_alone() {
    let (mut bench, link, request) = refilling();
    let refusal = Refusal::new(RefusalCode::InvalidArgument, "the log is broken");
    let rejected = Failure {
        class: RefusalClass::Reject,
        refusal: Some(refusal),
        text: "rejected".to_owned(),
    };
    bench.feed(Event::Rewound(link, request, Err(rejected)));
    assert!(bench.lane.is_halted(&stream("a")) && !bench.lane.is_halted(&stream("b")));
    assert_eq!(bench.lane.link.up(), Some(link));
}

/// Answers a step of stream a's rewind.
fn rewind_step(bench: &mut Bench, link: LinkId, request: RequestId, left: u64) {
    bench.feed(Event::Rewound(link, request, Ok(position(left))));
}

fn next_rewind(command: &Command) -> Option<(RequestId, Position)> {
    match command {
        Command::Rewind {
            request,
            stream_id,
            seen,
            ..
        } if stream_id.as_str() == "a" => Some((*request, *seen)),
        _ => None,
    }
}

#[test]
fn a_rewind_repeats_the_step_from_the_head_that_is_left() {
    let (mut bench, link, request) = refilling();
    rewind_step(&mut bench, link, request, 0);
    let (request, seen) = bench.until(next_rewind);
    assert_eq!(seen, position(0));
    rewind_step(&mut bench, link, request, 5);
    bench.until(|command| reads(command).filter(|(name, after)| name == "a" && *after == seq(5)));
}

#[test]
fn a_rewind_goes_on_while_the_module_drops_a_broken_log_from_its_beginning() {
    let (mut bench, link, mut request) = refilling();
    let failures = settings().limits.attempts + 1;
    for _ in 0..3 * failures {
        rewind_step(&mut bench, link, request, 1);
        let started = bench.now;
        let (next, seen) = bench.until(next_rewind);
        assert_eq!((seen, bench.now), (position(1), started), "it does not rest in between");
        request = next;
    }
    assert!(!bench.lane.is_halted(&stream("a")));
}

#[test]
fn a_rewind_that_removes_nothing_is_given_up_for_a_while() {
    let (mut bench, link, mut request) = refilling();
    for _ in 0..1_000 {
        rewind_step(&mut bench, link, request, 1);
        request = bench.until(next_rewind).0;
    }
    rewind_step(&mut bench, link, request, 1);
    assert!(!bench.commands.iter().any(|command| next_rewind(command).is_some()));
    assert!(bench.lane.next_due() > bench.now);
}
