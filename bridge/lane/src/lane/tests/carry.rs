use super::*;

/// Two streams with an event each that SpacetimeDB lacks, and the link that carries them.
fn two_dirty_streams() -> (Bench, LinkId) {
    let mut bench = Bench::new(vec![stream("a"), stream("b")], |stream_id| Held {
        head: 2,
        ..in_step(stream_id)
    });
    bench.dirty = ["a", "b"].map(|name| progress(name, 1, 2)).to_vec();
    let link = bench.link_up();
    (bench, link)
}

fn appends(command: &Command) -> Option<CallId> {
    match command {
        Command::Append { call, .. } => Some(*call),
        _ => None,
    }
}

/// Answers the next look.
fn looked(bench: &mut Bench, found: Result<Vec<StreamProgress>, Failure>) {
    let request = bench.until(|command| match command {
        Command::Look { request, .. } => Some(*request),
        _ => None,
    });
    let took = Duration::from_millis(1);
    let found = found.map(super::found);
    bench.feed(Event::Looked { request, found, took });
}

#[test]
fn the_next_turn_is_due_with_whatever_is_due_first() {
    let mut bench = Bench::new(Vec::new(), in_step);
    let link = bench.link_up();
    bench.until(|command| matches!(command, Command::Look { .. }).then_some(()));
    bench.feed(Event::LinkClosed(link, "closed".to_owned()));
    let wait = bench.commands.iter().find_map(|command| match command {
        Command::Tell(Notice::LinkDown { wait, .. }) => Some(*wait),
        _ => None,
    });
    assert_eq!(bench.lane.next_due(), bench.now + wait.unwrap());
}

#[test]
fn the_lane_turns_twice_before_its_health_would_miss_a_turn() {
    let mut bench = Bench::new(Vec::new(), in_step);
    bench.lane.settings.stall_after = HEARTBEAT;
    bench.until(|command| matches!(command, Command::OpenAuthority(_)).then_some(()));
    assert_eq!(bench.lane.next_due(), bench.now + HEARTBEAT / 2);
}

#[test]
fn what_happens_to_the_lane_is_counted() {
    let (mut bench, link) = two_dirty_streams();
    bench.until(|command| matches!(command, Command::Tell(Notice::AllCompared { .. })).then_some(()));
    for _ in 0..2 {
        bench.feed(Event::Woken);
        bench.feed(Event::Purged(3));
        bench.feed(Event::KeptKeys(3));
        let (name, after) = bench.until(reads);
        bench.page(link, &name, after);
    }
    let calls = [bench.until(appends), bench.until(appends)];
    assert_eq!(bench.lane.load().calls, 2);
    let refusal = Refusal::new(RefusalCode::InvalidArgument, "no such stream");
    bench.feed(Event::Answered(link, calls[0], Answer::Refused(refusal.clone())));
    bench.feed(Event::Answered(link, calls[1], Answer::Lost("trapped".to_owned())));
    assert_eq!(bench.lane.load().calls, 0);
    let halted: Vec<_> = bench.lane.halted().collect();
    assert_eq!(halted, [(&stream("a"), &HaltReason::Refused(refusal))]);
    let counters = bench.lane.vitals().counters();
    assert_eq!(
        (
            counters.wakes,
            counters.purged_events,
            counters.kept_keys,
            counters.compared_streams
        ),
        (2, 6, 3, 2)
    );
    assert_eq!((counters.refused_calls, counters.lost_calls), (1, 1));
    for looks in 1..3 {
        looked(&mut bench, Ok(Vec::new()));
        assert_eq!(bench.lane.vitals().counters().polls, counters.polls + looks);
    }
}

#[test]
fn a_page_that_breaks_the_contract_halts_its_stream_and_one_that_could_not_be_read_does_not() {
    let (mut bench, link) = two_dirty_streams();
    let mut page = |class| {
        let stream_id = stream(&bench.until(reads).0);
        let (of, page) = (stream_id.clone(), Err(failure(class)));
        bench.feed(Event::Page { link, stream_id, page });
        let (stream_id, why) = (of.clone(), "no".to_owned());
        let told = bench
            .commands
            .contains(&Command::Tell(Notice::NotRead { stream_id, why }));
        (bench.lane.is_halted(&of), told, of)
    };
    assert_eq!(page(RefusalClass::Retry), (false, true, stream("a")));
    assert_eq!(page(RefusalClass::Reject), (true, false, stream("b")));
    assert_eq!(bench.until(reads).0, "a", "it is read again after a rest");
}

#[test]
fn an_authority_that_is_away_is_told_once_and_so_is_its_return() {
    let mut bench = Bench::new(Vec::new(), in_step);
    bench.link_up();
    let away = || Err(failure(RefusalClass::Retry));
    let told = |bench: &mut Bench, found| {
        looked(bench, found);
        let told = bench
            .commands
            .drain(..)
            .filter(|command| matches!(command, Command::Tell(_)));
        told.collect::<Vec<_>>()
    };
    let why = "no".to_owned();
    assert_eq!(told(&mut bench, away()), [Command::Tell(Notice::AuthorityAway { why })]);
    assert_eq!(told(&mut bench, away()), []);
    assert!(!bench.lane.health(bench.now).ready);
    assert_eq!(told(&mut bench, Ok(Vec::new())), [Command::Tell(Notice::AuthorityBack)]);
    assert_eq!(told(&mut bench, Ok(Vec::new())), []);
}

#[test]
fn a_restored_authority_is_red_and_a_new_epoch_compares_every_stream_again_even_halted_ones() {
    let mut bench = Bench::new(vec![stream("a")], |stream_id| Held {
        held: 2,
        ..in_step(stream_id)
    });
    let mark = |command: &Command| match command {
        Command::MarkEpoch(link, request, _) => Some((*link, *request)),
        _ => None,
    };
    let (link, request) = bench.until(mark);
    let refusal = Refusal::new(RefusalCode::EpochBehind, "behind");
    bench.feed(Event::EpochMarked(link, request, Ok(Err(refusal))));
    let health = bench.lane.health(bench.now);
    assert!(
        health.authority_restored && health.problems.contains(&"behind".to_owned()),
        "{health:?}"
    );
    bench.until(|command| matches!(command, Command::Tell(Notice::Halted { .. })).then_some(()));
    let request = bench.until(|command| match command {
        Command::ReadEpoch(request) => Some(*request),
        _ => None,
    });
    let (epoch, beat) = ("two".to_owned(), 1);
    bench.held = in_step;
    bench.commands.clear();
    bench.feed(Event::Epoch(request, Ok(AuthorityEpoch { epoch, beat })));
    assert_eq!(
        bench.commands[..2],
        [Command::Tell(Notice::EpochBegun), Command::HangUp(link)]
    );
    assert_eq!(bench.lane.halted().count(), 0);
    bench.until(|command| matches!(command, Command::Tell(Notice::AllCompared { streams: 1, .. })).then_some(()));
    assert!(bench.lane.health(bench.now).healthy);
}

#[test]
fn forgeries_are_counted() {
    let ahead = |_: &StreamId| Held {
        held: 12,
        published: 9,
        head: 9,
    };
    let mut bench = Bench::new(vec![stream("a"), stream("b")], ahead);
    let link = bench.link_up();
    for _ in 0..2 {
        let request = bench.until(|command| match command {
            Command::CheckSeal { request, .. } => Some(*request),
            _ => None,
        });
        bench.feed(Event::SealChecked(link, request, Ok(crate::HeadSeal::Missing)));
    }
    for _ in 0..2 {
        bench.until(|command| matches!(command, Command::Tell(Notice::Forged { .. })).then_some(()));
    }
    assert_eq!(bench.lane.vitals().counters().forgeries, 2);
}

#[test]
fn walks_are_counted_and_what_they_find_is_counted_once() {
    let mut bench = Bench::new(vec![stream("a")], in_step);
    bench.until(|command| matches!(command, Command::Tell(Notice::AllCompared { .. })).then_some(()));
    bench.feed(Event::Reported(crate::Report {
        stream_id: stream("a"),
        session_id: spacetime_sync_proto::Label::new("s").unwrap(),
    }));
    bench.until(|command| matches!(command, Command::Tell(Notice::Forged { .. })).then_some(()));
    let counters = bench.lane.vitals().counters();
    assert_eq!((counters.walks, counters.forgeries), (2, 1));
}

#[test]
fn a_stream_that_is_shown_too_low_again_is_compared_once_nothing_of_it_is_being_recorded() {
    let (mut bench, link) = two_dirty_streams();
    let (name, after) = bench.until(reads);
    bench.page(link, &name, after);
    let call = bench.until(appends);
    bench.feed(Event::Answered(link, call, Answer::Acked));
    // The authority goes on showing what it showed before the record.
    let request = bench.until(|command| match command {
        Command::Record(request, _) => Some(*request),
        _ => None,
    });
    let shown_again = bench.dirty.clone();
    for _ in 0..3 {
        looked(&mut bench, Ok(shown_again.clone()));
        let compares = |command: &Command| matches!(command, Command::ReadHeads(..));
        assert!(!bench.commands.iter().any(compares), "the record is under way");
    }
    bench.feed(Event::Recorded(request, Ok(crate::Recorded::default())));
    let shown = bench.now;
    let compared = bench.until(|command| match command {
        Command::ReadHeads(_, _, streams) => Some(streams.clone()),
        _ => None,
    });
    assert_eq!(compared, [stream(&name)]);
    let (waited, sweep) = (bench.now - shown, bench.lane.settings.compare_every);
    assert!(waited < sweep / 2, "{waited:?}, and the sweep comes after {sweep:?}");
}
