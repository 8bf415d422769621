use super::*;

#[test]
fn after_a_blip_the_first_new_event_does_not_wait_for_a_hundred_thousand_streams() {
    let streams: Vec<_> = (0..100_000).map(|nth| stream(&format!("s.{nth:06}"))).collect();
    let mut bench = Bench::new(streams, |stream_id| {
        if stream_id.as_str() == "s.099999" {
            Held {
                head: 2,
                ..in_step(stream_id)
            }
        } else {
            in_step(stream_id)
        }
    });
    let link = bench.link_up();
    bench.until(|command| matches!(command, Command::Tell(Notice::AllCompared { .. })).then_some(()));
    bench.dirty = vec![progress("s.099999", 1, 2)];
    bench.feed(Event::LinkClosed(link, "a blip".to_owned()));
    let broken_at = bench.now;
    let link = bench.link_up();
    let mut asked = 0;
    let (name, after) = bench.until(|command| {
        asked += usize::from(matches!(command, Command::ReadHeads(..)));
        reads(command)
    });
    bench.page(link, &name, after);
    bench.until(|command| matches!(command, Command::Append { .. }).then_some(()));
    assert_eq!(name, "s.099999");
    assert!(asked <= 3, "{asked} batches were compared first");
    assert!(
        bench.now - broken_at < Duration::from_secs(1),
        "{:?}",
        bench.now - broken_at
    );
}

#[test]
fn the_end_of_an_earlier_link_does_not_end_the_new_one() {
    let mut bench = Bench::new(Vec::new(), in_step);
    let old = bench.link_up();
    bench.feed(Event::LinkClosed(old, "closed".to_owned()));
    let new = bench.link_up();
    for event in [
        Event::LinkClosed(old, "closed for good".to_owned()),
        Event::Dialed(old, Err(failure(RefusalClass::Retry))),
    ] {
        bench.feed(event);
        assert_eq!(bench.lane.link.up(), Some(new));
    }
    bench.feed(Event::LinkClosed(new, "closed".to_owned()));
    assert_eq!(bench.lane.link.up(), None);
}

#[test]
fn a_connection_that_succeeds_too_late_is_hung_up() {
    let mut bench = Bench::new(Vec::new(), in_step);
    let late = bench.until(|command| match command {
        Command::Dial(link) => Some(*link),
        _ => None,
    });
    bench.until(|command| matches!(command, Command::HangUp(link) if *link == late).then_some(()));
    bench.feed(Event::Dialed(late, Ok(())));
    assert!(bench.commands.contains(&Command::HangUp(late)), "{:?}", bench.commands);
}

#[test]
fn a_module_that_refuses_the_bridge_itself_costs_the_link() {
    let mut bench = Bench::new(Vec::new(), in_step);
    let (link, request) = bench.until(|command| match command {
        Command::SetRetention(link, request, _) => Some((*link, *request)),
        _ => None,
    });
    bench.feed(Event::RetentionSet(link, request, Err(failure(RefusalClass::Fatal))));
    assert_eq!(bench.lane.link.up(), None);
    assert!(bench.commands.contains(&Command::HangUp(link)), "{:?}", bench.commands);
}

#[test]
fn a_connection_that_fails_is_for_a_person_unless_the_reason_passes_by_itself() {
    for (class, expected) in [
        (RefusalClass::Retry, false),
        (RefusalClass::Reject, true),
        (RefusalClass::Fatal, true),
    ] {
        let mut bench = Bench::new(Vec::new(), in_step);
        let link = bench.until(|command| match command {
            Command::Dial(link) => Some(*link),
            _ => None,
        });
        bench.feed(Event::Dialed(link, Err(failure(class))));
        let found = bench.until(|command| match command {
            Command::Tell(Notice::NoLink { for_a_person, .. }) => Some(*for_a_person),
            _ => None,
        });
        assert_eq!(found, expected, "{class:?}");
    }
}

#[test]
fn another_database_is_told_to_the_issuer_and_red_at_once() {
    let mut bench = Bench::new(Vec::new(), in_step);
    let link = bench.until(|command| match command {
        Command::Dial(link) => Some(*link),
        _ => None,
    });
    let another = Failure {
        refusal: Some(Refusal::new(RefusalCode::WrongDatabase, "another one")),
        ..failure(RefusalClass::Fatal)
    };
    bench.feed(Event::Dialed(link, Err(another)));
    bench.until(|command| (*command == Command::Strayed(true)).then_some(()));
    let health = bench.lane.vitals().health(bench.now);
    assert!(!health.healthy && !health.ready, "{:?}", health.problems);
}
