use super::*;

fn quotas() -> Quotas {
    let plenty = Rate::per_second(100, 100);
    Quotas {
        connections: 4,
        address: AddressQuotas {
            sockets: 3,
            connections: 3,
            requests: plenty,
            failures: Rate::per_second(1, 1),
        },
        session_connections: 2,
        session_stream_subscriptions: 3,
        connects: plenty,
        calls: Rate::per_second(10, 1),
        reads: plenty,
        subscribes: plenty,
        subscribes_apart: Rate::per_second(200, 2),
        subscribed: Rate::per_second(10, 10),
        revocations_max_age: Duration::from_secs(30),
    }
}

fn label(text: &str) -> Label {
    Label::new(text).unwrap()
}

fn address(last: u8) -> Origin {
    Origin::of([10, 0, 0, last].into())
}

#[test]
fn nobody_gets_in_before_the_gate_knows_who_was_revoked_or_when_it_has_not_heard_for_long() {
    let now = Instant::now();
    let mut registry = Registry::new(quotas());
    assert_eq!(registry.open(&label("s"), &address(1), 0, now), Err(Turned::Blind));
    registry.heard(HashSet::new(), now);
    assert!(registry.open(&label("s"), &address(1), 0, now).is_ok());
    let later = now + Duration::from_secs(31);
    assert_eq!(registry.open(&label("s"), &address(1), 0, later), Err(Turned::Blind));
}

#[test]
fn a_revocation_ends_the_sessions_connections_and_keeps_it_out() {
    let now = Instant::now();
    let mut registry = Registry::new(quotas());
    registry.heard(HashSet::new(), now);
    for (session, end) in [("lost", 1), ("kept", 2), ("lost", 3)] {
        registry.open(&label(session), &address(1), end, now).unwrap();
    }
    assert_eq!(registry.heard(HashSet::from([label("lost")]), now), [1, 3]);
    assert_eq!(registry.heard(HashSet::from([label("lost")]), now), [0; 0]);
    assert_eq!(registry.open(&label("lost"), &address(2), 4, now), Err(Turned::Revoked));
    assert!(registry.open(&label("kept"), &address(2), 5, now).is_ok());
}

#[test]
fn a_session_with_too_many_connections_keeps_the_newest() {
    let now = Instant::now();
    let mut registry = Registry::new(quotas());
    registry.heard(HashSet::new(), now);
    let mut open = |end| registry.open(&label("s"), &address(1), end, now).unwrap().1;
    assert_eq!([open(1), open(2), open(3)], [None, None, Some(1)]);
}

#[test]
fn connections_are_counted_by_address_and_in_all() {
    let now = Instant::now();
    let mut registry = Registry::new(quotas());
    registry.heard(HashSet::new(), now);
    let mut ids = Vec::new();
    for session in ["a", "b", "c"] {
        ids.push(registry.open(&label(session), &address(1), 0, now).unwrap().0);
    }
    let busy = Err(Turned::Busy(BUSY));
    assert_eq!(registry.open(&label("d"), &address(1), 0, now), busy);
    assert!(registry.open(&label("d"), &address(2), 0, now).is_ok());
    assert_eq!(registry.open(&label("e"), &address(2), 0, now), busy);
    registry.close(ids[0], &label("a"), &address(1));
    assert!(registry.open(&label("e"), &address(2), 0, now).is_ok());
}

#[test]
fn copies_of_a_stream_are_counted_over_all_connections_of_a_session_and_the_newest_stay() {
    let now = Instant::now();
    let mut registry = Registry::new(quotas());
    registry.heard(HashSet::new(), now);
    let s = label("s");
    let (first, second) = (
        registry.open(&s, &address(1), 1, now).unwrap().0,
        registry.open(&s, &address(1), 2, now).unwrap().0,
    );
    let mut change = |id, change| registry.change(&s, id, change);
    for (id, begins) in [(first, 7), (first, 7), (second, 7), (second, 8), (first, 8)] {
        assert_eq!(change(id, Change::Begins(begins)), None);
    }
    assert_eq!(change(first, Change::Ends(7)), None);
    assert_eq!(change(second, Change::Begins(7)), None);
    assert_eq!(change(second, Change::Begins(7)), Some(1));
    assert_eq!(change(second, Change::Begins(7)), None);
    // What was ended has nothing any more.
    assert_eq!(change(first, Change::Begins(7)), None);
}

#[test]
fn a_token_that_was_good_is_judged_unless_its_session_may_not_connect() {
    let now = Instant::now();
    let mut registry = Registry::<()>::new(Quotas {
        connects: Rate::per_second(1, 1),
        ..quotas()
    });
    registry.heard(HashSet::new(), now);
    let until = now + Duration::from_secs(300);
    assert_eq!(registry.show(&address(1), 7, now), Ok(()));
    registry.good(&address(1), 7, &label("s"), until);
    assert_eq!(registry.show(&address(1), 8, now), Ok(()));
    registry.bad(&address(1), now);
    let busy = Err(Turned::Busy(Duration::from_secs(1)));
    assert_eq!(registry.show(&address(1), 8, now), busy);
    assert_eq!(registry.show(&address(1), 7, now), Ok(()));
    registry.question(&label("s"), now).unwrap();
    assert_eq!(registry.show(&address(2), 7, now), busy);
    registry.heard(HashSet::from([label("s")]), now);
    assert_eq!(registry.show(&address(2), 7, now), Err(Turned::Revoked));
}

#[test]
fn all_connections_of_a_session_share_its_rates_and_who_rests_is_forgotten() {
    let now = Instant::now();
    let mut registry = Registry::new(quotas());
    registry.heard(HashSet::new(), now);
    let (id, _) = registry.open(&label("s"), &address(1), 0, now).unwrap();
    let waits = |registry: &mut Registry<i32>| (registry.reserve(&label("s"), Kind::Call, now) - now).as_millis();
    assert_eq!(
        [waits(&mut registry), waits(&mut registry), waits(&mut registry)],
        [0, 100, 200]
    );
    registry.close(id, &label("s"), &address(1));
    // A reconnect brings nothing back.
    registry.forget(now);
    registry.open(&label("s"), &address(1), 0, now).unwrap();
    assert_eq!(waits(&mut registry), 300);
    let later = now + Duration::from_secs(10);
    registry.close(ConnectionId(2), &label("s"), &address(1));
    registry.forget(later);
    assert!(registry.sessions.is_empty() && registry.addresses.is_empty());
}

#[test]
fn whoever_has_subscribed_to_much_waits_before_it_subscribes_again_but_never_long() {
    let now = Instant::now();
    let mut registry = Registry::new(quotas());
    registry.heard(HashSet::new(), now);
    let (id, _) = registry.open(&label("s"), &address(1), 0, now).unwrap();
    let mut wait_after = |bytes: u64| {
        registry.subscribed(&label("s"), bytes, now, now);
        let begun = registry.begin(&label("s"), id, now);
        registry.answered(&label("s"), id);
        begun.err().map_or(0, |at| (at - now).as_millis())
    };
    assert_eq!(wait_after(9 * UNIT_BYTES), 0);
    // Little by little.
    for _ in 0..3 {
        assert_eq!(wait_after(UNIT_BYTES / 3), 0);
    }
    assert_eq!(wait_after(3), 100);
    assert_eq!(wait_after(1_000 * UNIT_BYTES), 2_000);
}

#[test]
fn spacetimedb_has_few_subscriptions_of_a_session_to_answer_over_all_connections() {
    let now = Instant::now();
    let at = |millis| now + Duration::from_millis(millis);
    let mut registry = Registry::new(quotas());
    registry.heard(HashSet::new(), now);
    let s = label("s");
    let [first, second] = [1, 2].map(|end| registry.open(&s, &address(1), end, now).unwrap().0);
    let (other, _) = registry.open(&label("t"), &address(1), 3, now).unwrap();
    for id in [first, second, first, second] {
        assert_eq!(registry.begin(&s, id, at(0)), Ok(()));
    }
    assert_eq!(registry.begin(&s, second, at(10)), Err(at(30)));
    assert_eq!(registry.begin(&label("t"), other, at(10)), Ok(()));
    registry.answered(&s, first);
    assert_eq!(registry.begin(&s, second, at(10)), Ok(()));
    // What is never answered holds up nothing for ever.
    assert_eq!(registry.begin(&s, first, at(499)), Err(at(519)));
    assert_eq!(registry.begin(&s, first, at(500)), Ok(()));
    // What was answered meanwhile says nothing of another connection.
    for _ in 0..3 {
        registry.answered(&s, second);
    }
    for id in [first, first, first] {
        assert_eq!(registry.begin(&s, id, at(510)), Ok(()));
    }
    assert_eq!(registry.begin(&s, first, at(510)), Err(at(530)));
}

#[test]
fn whoever_has_subscribed_to_much_has_one_answered_after_the_other() {
    let now = Instant::now();
    let mut registry = Registry::new(quotas());
    registry.heard(HashSet::new(), now);
    let (id, _) = registry.open(&label("s"), &address(1), 0, now).unwrap();
    registry.subscribed(&label("s"), 6 * UNIT_BYTES, now, now);
    assert_eq!(registry.begin(&label("s"), id, now), Ok(()));
    assert_eq!(registry.begin(&label("s"), id, now), Err(now + AGAIN));
    registry.answered(&label("s"), id);
    assert_eq!(registry.begin(&label("s"), id, now), Ok(()));
}

#[test]
fn subscriptions_keep_apart_whatever_is_saved() {
    let now = Instant::now();
    let mut registry = Registry::new(quotas());
    registry.heard(HashSet::new(), now);
    registry.open(&label("s"), &address(1), 0, now).unwrap();
    let waits = (0..4).map(|_| (registry.reserve(&label("s"), Kind::Subscribe, now) - now).as_millis());
    assert_eq!(waits.collect::<Vec<_>>(), [0, 0, 5, 10]);
}

#[test]
fn a_session_that_subscribes_to_too_much_twice_loses_its_connections_and_rests() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut registry = Registry::new(quotas());
    registry.heard(HashSet::new(), at(60));
    let [first, second] = [1, 2].map(|end| registry.open(&label("s"), &address(1), end, start).unwrap().0);
    registry.open(&label("t"), &address(2), 3, start).unwrap();
    assert!(registry.too_much(&label("s"), first, start).is_empty());
    registry.forget(at(59));
    let again = registry.too_much(&label("s"), first, at(60));
    assert!(again.is_empty(), "once in a while is no matter");
    assert_eq!(registry.too_much(&label("s"), first, at(61)), [2]);
    // The other one ends with the same reason.
    assert!(registry.too_much(&label("s"), second, at(61)).is_empty());
    for id in [first, second] {
        registry.close(id, &label("s"), &address(1));
    }
    registry.forget(at(70));
    registry.good(&address(1), 7, &label("s"), at(9_000));
    let soon = Err(Turned::Busy(Duration::from_secs(1)));
    assert_eq!(registry.show(&address(1), 7, at(70)), soon);
    assert_eq!(registry.open(&label("s"), &address(1), 4, at(70)).map(|_| ()), soon);
    // The next rests are longer, up to a bound, until it keeps within its bounds for a while.
    let mut now = at(71);
    for rest in [20, 40, 80, 160, 160, 0] {
        registry.heard(HashSet::new(), now);
        if rest == 0 {
            now += Duration::from_secs(60);
            registry.heard(HashSet::new(), now);
        }
        let (id, _) = registry.open(&label("s"), &address(1), 4, now).unwrap();
        registry.too_much(&label("s"), id, now);
        registry.close(id, &label("s"), &address(1));
        let wait = Duration::from_secs(rest);
        let shown = registry.show(&address(1), 7, now);
        assert_eq!(shown, if rest == 0 { Ok(()) } else { Err(Turned::Busy(wait)) });
        now += wait;
    }
}

#[test]
fn an_older_list_of_revoked_sessions_that_comes_late_changes_nothing() {
    let now = Instant::now();
    let mut registry = Registry::<u32>::new(quotas());
    let later = now + Duration::from_secs(1);
    registry.heard(HashSet::from([label("lost")]), later);
    registry.heard(HashSet::new(), now);
    assert_eq!(registry.may(&label("lost"), later), Err(Turned::Revoked));
    assert!(registry.is_blind(later + Duration::from_secs(31)) && !registry.is_blind(now + Duration::from_secs(31)));
}
