//! What the SDK caches, and what makes the session have it dropped.

use super::*;

fn unsubscribed(commands: &[Command]) -> Vec<(usize, SubscriptionId)> {
    let unsubscribed = commands.iter().filter_map(|command| match command {
        Command::Unsubscribe { stream, id, .. } => Some((*stream, *id)),
        _ => None,
    });
    unsubscribed.collect()
}

#[test]
fn the_largest_subscription_is_replaced_when_all_have_brought_too_much() {
    let mut case = Case::new(2, 3);
    let connection = case.live();
    let small = case.logs[1].frame(3, 3).bytes.len();
    case.logs[0].append_payload(&(0..9_999).map(|n| n.to_string()).collect::<String>());
    let large = case.logs[0].frame(4, 4).bytes.len();
    // Two streams add their share.
    case.session.settings.limits.subscribed_bytes = large - small;
    case.session.settings.limits.stream_bytes = small;
    let replaced = |commands: &[Command]| commands.iter().filter_map(subscribed).collect::<Vec<_>>();
    assert_eq!(replaced(case.deliver_frame(connection, 0, 4, 4)), []);
    assert_eq!(replaced(case.deliver(connection, 1)), []);
    let (old, new) = (SubscriptionId(1), SubscriptionId(2));
    assert_eq!(replaced(case.deliver(connection, 1)), [(0, new)]);
    let cached = |case: &Case| (case.session.cache.subscribed(), case.session.cache.all());
    assert_eq!(cached(&case), (large + 2 * small, large + 2 * small));
    let commands = case.hear(connection, Inbound::Subscribed { stream: 0, id: new });
    assert_eq!(unsubscribed(commands), [(0, old)]);
    assert_eq!(cached(&case), (2 * small, large + 2 * small));
    case.hear(connection, Inbound::Unsubscribed { stream: 0, id: old });
    assert_eq!(cached(&case), (2 * small, 2 * small));
}

#[test]
fn rows_of_a_subscription_that_was_given_up_count_until_it_has_ended() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    let bytes = case.logs[0].frame(3, 3).bytes.len();
    case.deliver(connection, 0);
    let id = SubscriptionId(1);
    let commands = case.hear(connection, Inbound::GrantLost { stream_key: 0 });
    assert_eq!(unsubscribed(commands), [(0, id)]);
    case.deliver(connection, 0);
    assert_eq!(case.session.cache.subscribed(), 0);
    assert_eq!(case.session.cache.all(), 2 * bytes);
    case.hear(connection, Inbound::Unsubscribed { stream: 0, id });
    assert_eq!(case.session.cache.all(), 0);
}

#[test]
fn a_connection_that_has_cached_too_much_is_replaced_at_once() {
    let mut case = Case::new(2, 3);
    let connection = case.live();
    let bytes = case.logs[0].frame(3, 3).bytes.len();
    let limits = &mut case.session.settings.limits;
    // Each stream adds its share, whichever of them brings the rows.
    (limits.reconnect_bytes, limits.stream_bytes) = (bytes, bytes);
    for _ in 0..3 {
        assert_eq!(closed(case.deliver(connection, 0)), []);
    }
    assert_eq!(closed(case.deliver(connection, 0)), [connection]);
    assert_eq!(case.shown.counters.connections_overfull, 1);
    let next = dialed(&case.wait(Duration::ZERO)).unwrap();
    case.serve(next);
    assert_eq!(case.session.cache.all(), 0);
    assert_eq!(case.session.serving(), Some(next));
}
