use super::*;

#[test]
fn a_leader_without_its_authority_is_red_and_asks_less_and_less_often() {
    let mut bench = Bench::new(Vec::new(), in_step);
    bench.link_up();
    bench.feed(Event::LeadLost);
    let gone_at = bench.now;
    bench.commands.clear();
    let (mut asked, mut told) = (0, 0);
    while bench.now < gone_at + Duration::from_secs(60) {
        bench.wait();
        for command in std::mem::take(&mut bench.commands) {
            match command {
                Command::AskForLead(request) => {
                    asked += 1;
                    bench.feed(Event::Lead(request, Err(failure(RefusalClass::Retry))));
                }
                Command::Tell(_) => told += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(asked < 30 && told <= 2, "{asked} attempts, {told} notices in a minute");
    let health = bench.lane.health(bench.now);
    assert!(!health.healthy && health.role == Role::Standby, "{health:?}");
}

#[test]
fn a_standby_keeps_turning_while_the_authority_is_silent() {
    let mut bench = Bench::new(Vec::new(), in_step);
    bench.until(|command| matches!(command, Command::AskForLead(_)).then_some(()));
    let asked_at = bench.now;
    while bench.now < asked_at + Duration::from_secs(60) {
        let before = bench.now;
        bench.wait();
        assert!(bench.now - before <= HEARTBEAT);
    }
    let health = bench.lane.health(bench.now);
    assert!(
        health.problems.iter().all(|problem| !problem.contains("turned")),
        "{health:?}"
    );
}

#[test]
fn a_stop_waits_for_what_is_in_flight_and_records_it() {
    let mut bench = Bench::new(vec![stream("a")], |stream_id| Held {
        head: 2,
        ..in_step(stream_id)
    });
    bench.dirty = vec![progress("a", 1, 2)];
    let link = bench.link_up();
    let (name, after) = bench.until(reads);
    bench.page(link, &name, after);
    let call = bench.until(|command| match command {
        Command::Append { call, .. } => Some(*call),
        _ => None,
    });
    bench.feed(Event::Stop);
    assert!(!bench.commands.iter().any(|command| matches!(command, Command::End(_))));
    bench.feed(Event::Answered(link, call, Answer::Acked));
    let recorded = bench.until(|command| match command {
        Command::Record(request, records) => Some((*request, records.clone())),
        Command::End(_) => panic!("the bridge ends before everything is recorded"),
        _ => None,
    });
    let [record] = &recorded.1[..] else {
        panic!("{recorded:?}")
    };
    assert_eq!(record.published, seq(2));
    bench.feed(Event::Recorded(recorded.0, Ok(crate::Recorded::default())));
    bench.until(|command| matches!(command, Command::End(Ok(()))).then_some(()));
}

#[test]
fn the_bridge_waits_for_an_authority_that_is_away_and_ends_at_a_wrong_one() {
    let mut bench = Bench::new(Vec::new(), in_step);
    for class in [RefusalClass::Retry, RefusalClass::Retry, RefusalClass::Fatal] {
        let request = bench.until(|command| match command {
            Command::OpenAuthority(request) => Some(*request),
            _ => None,
        });
        bench.feed(Event::Opened(request, Err(failure(class))));
    }
    bench.until(|command| matches!(command, Command::End(Err(_))).then_some(()));
}
