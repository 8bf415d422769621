use super::*;

#[test]
fn a_leader_without_its_authority_is_red_and_asks_less_and_less_often() {
    let mut bench = Bench::new(Vec::new(), in_step);
    bench.link_up();
    bench.commands.clear();
    bench.feed(Event::LeadLost);
    let gone_at = bench.now;
    let (mut asked, mut told) = (0, Vec::new());
    while bench.now < gone_at + Duration::from_secs(60) {
        for command in std::mem::take(&mut bench.commands) {
            match command {
                Command::AskForLead(request) => {
                    asked += 1;
                    bench.feed(Event::Lead(request, Err(failure(RefusalClass::Retry))));
                }
                Command::HangUp(_) | Command::EndLead => {}
                other => told.push(other),
            }
        }
        bench.wait();
    }
    let why = "no".to_owned();
    assert_eq!(
        told,
        [Notice::LeadLost, Notice::AuthorityAway { why }].map(Command::Tell)
    );
    assert!((12..30).contains(&asked), "{asked} attempts in a minute");
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

/// A bridge that waits for the acknowledgement of a call.
fn in_flight() -> (Bench, LinkId, CallId) {
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
    (bench, link, call)
}

fn ends(command: &Command) -> Option<()> {
    matches!(command, Command::End(Ok(()))).then_some(())
}

#[test]
fn a_stop_waits_for_what_is_in_flight_and_records_it() {
    let (mut bench, link, call) = in_flight();
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

#[test]
fn a_stop_waits_no_longer_than_it_may_for_what_is_in_flight() {
    let (mut bench, link, _) = in_flight();
    bench.lane.settings.drain = settings().ack_deadline / 2;
    let stopped_at = bench.now;
    bench.feed(Event::Stop);
    bench.until(|command| matches!(command, Command::HangUp(left) if *left == link).then_some(()));
    bench.until(ends);
    assert_eq!(bench.now, stopped_at + settings().ack_deadline / 2);
}

#[test]
fn a_stop_waits_five_seconds_for_an_authority_that_does_not_record() {
    let (mut bench, link, call) = in_flight();
    bench.feed(Event::Stop);
    bench.feed(Event::Answered(link, call, Answer::Acked));
    let acked_at = bench.now;
    bench.until(|command| matches!(command, Command::Record(..)).then_some(()));
    assert_eq!(bench.now, acked_at, "it does not gather records any more");
    bench.until(|command| matches!(command, Command::Tell(Notice::LeftUnrecorded { streams: 1 })).then_some(()));
    bench.until(ends);
    assert_eq!(bench.now, acked_at + Duration::from_secs(5));
}

#[test]
fn a_stop_ends_a_bridge_at_once_that_has_nothing_to_finish() {
    let mut opening = Bench::new(Vec::new(), in_step);
    opening.until(|command| matches!(command, Command::OpenAuthority(_)).then_some(()));
    let mut standby = Bench::new(Vec::new(), in_step);
    standby.until(|command| matches!(command, Command::AskForLead(_)).then_some(()));
    let mut leader = Bench::new(Vec::new(), in_step);
    leader.link_up();
    leader.until(|command| matches!(command, Command::Tell(Notice::AllCompared { .. })).then_some(()));
    for mut bench in [opening, standby, leader] {
        bench.feed(Event::Stop);
        assert_eq!(bench.commands.last(), Some(&Command::End(Ok(()))));
    }
}

#[test]
fn a_standby_asks_for_the_lead_every_half_second_and_says_once_that_it_stands_by() {
    let mut bench = Bench::new(Vec::new(), in_step);
    let (mut told, mut asked_at) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let request = bench.until(asks_for_lead);
        asked_at.push(bench.now.as_millis());
        bench.feed(Event::Lead(request, Ok(false)));
        told.append(&mut bench.commands);
    }
    assert_eq!(asked_at, [0, 500, 1_000]);
    assert_eq!(told, [Command::Tell(Notice::StandingBy)]);
    let health = bench.lane.health(bench.now);
    assert!(health.ready && health.role == Role::Standby, "{health:?}");
}

fn asks_for_lead(command: &Command) -> Option<RequestId> {
    match command {
        Command::AskForLead(request) => Some(*request),
        _ => None,
    }
}

#[test]
fn a_bridge_that_loses_the_lead_ends_everything_and_stands_by() {
    let (mut bench, link, _) = in_flight();
    bench.feed(Event::LeadLost);
    let lost = [Command::Tell(Notice::LeadLost), Command::HangUp(link), Command::EndLead];
    assert_eq!(bench.commands[..3], lost);
    assert_eq!(bench.lane.load(), Load::default());
    let request = bench.until(asks_for_lead);
    bench.feed(Event::Lead(request, Ok(true)));
    assert_eq!(
        bench.commands[..2],
        [Command::Tell(Notice::Leading), Command::BeginLead]
    );
    bench.link_up();
}

#[test]
fn a_bridge_that_loses_the_lead_while_it_stops_ends_at_once() {
    let (mut draining, link, _) = in_flight();
    draining.feed(Event::Stop);
    draining.commands.clear();
    draining.feed(Event::LeadLost);
    assert_eq!(draining.commands, [Command::HangUp(link), Command::End(Ok(()))]);
    let (mut recording, link, call) = in_flight();
    recording.feed(Event::Stop);
    recording.feed(Event::Answered(link, call, Answer::Acked));
    recording.commands.clear();
    recording.feed(Event::LeadLost);
    assert_eq!(recording.commands, [Command::End(Ok(()))]);
}

#[test]
fn answers_to_questions_that_are_not_open_are_ignored() {
    let mut bench = Bench::new(Vec::new(), in_step);
    let other = bench.lane.ids.request();
    bench.until(|command| matches!(command, Command::OpenAuthority(_)).then_some(()));
    bench.feed(Event::Opened(other, Ok(())));
    assert!(matches!(bench.lane.stage, Stage::Opening(_)));
    let mut bench = Bench::new(Vec::new(), in_step);
    bench.until(asks_for_lead);
    bench.feed(Event::Lead(other, Ok(true)));
    assert!(matches!(bench.lane.stage, Stage::Standby(_)));
}
