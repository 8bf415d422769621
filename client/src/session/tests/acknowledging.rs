//! What is acknowledged and when.

use super::*;

#[test]
fn an_acknowledgement_lost_with_its_connection_is_sent_again_on_the_next() {
    let mut case = Case::new(1, 3);
    case.live();
    assert_eq!(acknowledged(&case.wait(second())), [(0, 3)]);
    let connection = case.session.serving().unwrap();
    case.close(connection);
    let next = case.dial();
    case.serve(next);
    assert_eq!(acknowledged(&case.wait(second())), [(0, 3)], "nothing new was applied");
    let seq = Seq::new(3).unwrap();
    case.hear(
        next,
        Inbound::Acked {
            stream: 0,
            seq,
            answer: Ok(()),
        },
    );
    assert_eq!(acknowledged(&case.wait(second())), []);
    assert_eq!(case.shown.counters.acks, 1);
}

#[test]
fn a_failed_acknowledgement_is_sent_again_even_if_nothing_new_comes() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    assert_eq!(acknowledged(&case.wait(second())), [(0, 3)]);
    let answer = Err(CallFailure::Failed("trapped".to_owned()));
    let seq = Seq::new(3).unwrap();
    case.hear(connection, Inbound::Acked { stream: 0, seq, answer });
    assert_eq!(case.shown.counters.acks_refused, 1);
    let mut again = Vec::new();
    for _ in 0..20 {
        // The connection must not fall silent, or the session would give it up.
        case.hear(connection, Inbound::GrantCame);
        again.extend(acknowledged(&case.wait(second())));
    }
    assert_eq!(again, [(0, 3)]);
}

#[test]
fn a_stream_is_acknowledged_again_once_a_lost_grant_returns() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    assert_eq!(acknowledged(&case.wait(second())), [(0, 3)]);
    let (seq, answer) = (Seq::new(3).unwrap(), Ok(()));
    case.hear(connection, Inbound::Acked { stream: 0, seq, answer });
    case.hear(connection, Inbound::GrantLost { stream_key: 0 });
    assert_eq!(acknowledged(&case.wait(second())), [], "the module would not accept it");
    case.hear(connection, Inbound::GrantCame);
    case.make_live(connection);
    assert_eq!(acknowledged(&case.wait(second())), [(0, 3)]);
}

/// Seed 49,164: SpacetimeDB was restored while the first connection was silent, and lost the checkpoint.
#[test]
fn a_stream_is_acknowledged_again_on_the_connection_that_takes_over() {
    let mut case = Case::new(1, 3);
    let first = case.live_with_a_token_that_ends_soon();
    let seq = Seq::new(3).unwrap();
    let second = loop {
        case.hear(first, Inbound::GrantCame);
        let commands = case.wait(Duration::from_millis(250));
        if acknowledged(&commands) == [(0, 3)] {
            let answer = Ok(());
            case.hear(first, Inbound::Acked { stream: 0, seq, answer });
        }
        if let Some(second) = dialed(&commands) {
            break second;
        }
    };
    assert_eq!(case.shown.counters.acks, 1);
    case.serve(second);
    assert_eq!(acknowledged(&case.wait(Duration::from_secs(1))), [(0, 3)]);
}

#[test]
fn a_busy_stream_does_not_keep_others_from_being_acknowledged() {
    let mut case = Case::within(3, 3, |config| {
        config.limits.acks_at_once = 1;
        config.limits.ack_every = Duration::ZERO;
    });
    let connection = case.live();
    let mut said = Vec::new();
    for _ in 0..3 {
        case.deliver(connection, 0);
        case.apply();
        said.extend(acknowledged(&case.wait(QUARTER)));
    }
    let streams: Vec<_> = said.iter().map(|(stream, _)| *stream).collect();
    assert_eq!(streams, [0, 1, 2]);
}
