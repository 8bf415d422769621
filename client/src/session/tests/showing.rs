//! What the status shows.

use super::*;

#[test]
fn only_what_has_changed_is_shown() {
    let mut case = Case::new(3, 3);
    let connection = case.live();
    assert!(!case.session.show(&mut case.shown), "nothing has happened since");
    case.now += second();
    case.session.step(case.now, Event::Woken, &mut case.commands);
    assert!(case.session.unshown.is_empty(), "time alone changes no stream");
    let stream = 1;
    case.logs[stream].append();
    let frame = case.logs[stream].frame(4, 4);
    let inbound = Inbound::Frame {
        stream_key: stream as u64,
        frame,
    };
    case.commands.clear();
    let event = Event::Message {
        connection,
        inbound: vec![inbound],
    };
    case.session.step(case.now, event, &mut case.commands);
    assert_eq!(case.session.unshown, [stream]);
    assert!(case.session.show(&mut case.shown));
    assert_eq!(case.shown.streams[&id(stream)].head, Seq::new(4));
    case.apply();
    assert_eq!(case.shown.streams[&id(stream)].applied, case.logs[stream].head());
    assert_eq!(case.shown.phase, Phase::Live);
}

#[test]
fn the_shown_status_equals_one_computed_from_scratch() {
    let mut case = Case::new(4, 3);
    let connection = case.live();
    let refused = Refusal::new(RefusalCode::ForbiddenStream, "no grant");
    case.hear(connection, Inbound::GrantLost { stream_key: 2 });
    case.logs[0].append();
    let frame = case.logs[0].frame(4, 4);
    case.hear(connection, Inbound::Frame { stream_key: 0, frame });
    let fresh = case.session.status();
    assert_eq!(case.shown.streams, fresh.streams);
    let code = refused.code;
    assert_eq!(case.shown.streams[&id(2)].phase, StreamPhase::Forbidden { code });
    // Still live for a moment, then behind: nothing but time has passed.
    assert_eq!(case.shown.phase, Phase::Live);
    case.wait(2 * second());
    let (applied, target) = (9, 10);
    assert_eq!(case.shown.phase, Phase::CatchingUp { applied, target });
}

#[test]
fn a_count_alone_is_a_change() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    let seq = Seq::new(3).unwrap();
    let inbound = vec![Inbound::Acked {
        stream: 0,
        seq,
        answer: Ok(()),
    }];
    let event = Event::Message { connection, inbound };
    case.session.step(case.now, event, &mut case.commands);
    assert!(case.session.show(&mut case.shown));
    assert_eq!(case.shown.counters.acks, 1);
    assert_eq!(case.session.counters(), case.shown.counters);
}

#[test]
fn a_stream_that_falls_behind_is_live_until_its_grace_ends() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    let moment = Duration::from_millis(1);
    (0..2).for_each(|_| case.logs[0].append());
    case.deliver_frame(connection, 0, 5, 5);
    case.wait(second() - moment);
    case.deliver_frame(connection, 0, 5, 5);
    assert_eq!(case.phase_of(0), &StreamPhase::Live);
    case.wait(moment);
    case.deliver_frame(connection, 0, 5, 5);
    assert_eq!(case.phase_of(0), &StreamPhase::CatchingUp);
}

#[test]
fn what_is_not_applied_yet_is_counted_over_all_streams() {
    let mut case = Case::new(2, 3);
    let connection = case.live();
    assert_eq!(case.session.unapplied_bytes(), 0);
    let mut bytes = 0;
    let mut unsaved = Vec::new();
    for stream in [0, 0, 1] {
        case.deliver(connection, stream);
        unsaved.append(&mut case.commands);
        bytes += case.logs[stream].frame(4, 4).bytes.len();
        assert_eq!(case.session.unapplied_bytes(), bytes);
    }
    case.commands = unsaved;
    case.apply();
    assert_eq!(case.session.unapplied_bytes(), 0);
}
