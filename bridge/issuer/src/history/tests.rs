use bytes::Bytes;
use spacetime_sync_proto::{Frame, IdempotencyKey, Kind, PayloadHash};

use super::*;

fn at(value: u64) -> Seq {
    Seq::new(value).unwrap()
}

fn stream() -> StreamId {
    StreamId::new("notes").unwrap()
}

/// The first events of a log.
fn log(events: u64) -> Vec<Event> {
    let (mut chain, mut log) = (ChainHash::genesis(&stream()), Vec::new());
    for seq in 1..=events {
        let payload = Bytes::from(format!("payload {seq}"));
        let payload_hash = PayloadHash::of(&payload);
        let (key, kind) = (
            IdempotencyKey::new(&format!("key-{seq}")).unwrap(),
            Kind::new("k").unwrap(),
        );
        chain = chain.link(at(seq), 7, &payload_hash, &key, &kind);
        log.push(Event {
            seq: at(seq),
            idempotency_key: key,
            kind,
            payload,
            payload_hash,
            chain_hash: chain,
            committed_at_us: 7,
        });
    }
    log
}

fn chain(log: &[Event], seq: u64) -> ChainHash {
    match seq {
        0 => ChainHash::genesis(&stream()),
        seq => log[seq as usize - 1].chain_hash,
    }
}

/// The history of a log of 100 events whose first 20 are purged, read from a position.
fn history(after: u64, budget: Option<u64>, snapshot: Option<u64>) -> History {
    let log = log(100);
    History {
        extent: Some(Extent {
            oldest_seq: at(21),
            floor_chain: chain(&log, 20),
            head_seq: at(100),
            head_chain: chain(&log, 100),
            window_events: Some(10),
            replay_budget_events: budget,
            snapshot_seq: snapshot.map(at),
        }),
        chain: (20..=100).contains(&after).then(|| chain(&log, after)),
        events: log.into_iter().skip(after as usize).collect(),
    }
}

fn reasons(after: u64, chain: Option<ChainHash>, history: &History) -> Vec<StaleReason> {
    let cursor = Cursor {
        after: at(after),
        chain,
    };
    match judge(&stream(), cursor, history) {
        Judged::Good(_) => Vec::new(),
        Judged::Stale(stale) => stale.reason_codes,
        Judged::Broken => panic!("broken at {after}"),
    }
}

#[test]
fn a_cursor_is_good_or_stale_for_each_reason() {
    use StaleReason::*;
    let (log, other) = (log(100), ChainHash::from_bytes([9; 32]));
    for (after, own, budget, expected) in [
        (20, chain(&log, 20), None, vec![]),
        (100, chain(&log, 100), None, vec![]),
        (50, chain(&log, 50), Some(50), vec![]),
        (50, chain(&log, 50), Some(49), vec![ReplayBudgetExceeded]),
        (19, chain(&log, 19), None, vec![RetentionFloorBreach]),
        (0, chain(&log, 0), None, vec![RetentionFloorBreach]),
        (
            0,
            chain(&log, 0),
            Some(99),
            vec![RetentionFloorBreach, ReplayBudgetExceeded],
        ),
        (101, other, None, vec![AheadOfHead]),
        (50, other, None, vec![ChainMismatch]),
        (20, other, None, vec![ChainMismatch]),
        (100, other, Some(1), vec![ChainMismatch]),
        (30, other, Some(10), vec![ReplayBudgetExceeded, ChainMismatch]),
    ] {
        let history = history(after, budget, None);
        assert_eq!(reasons(after, Some(own), &history), expected, "after {after}");
        if own != other {
            assert_eq!(
                reasons(after, None, &history),
                expected,
                "after {after}, without a chain"
            );
        }
    }
}

#[test]
fn a_stream_without_events_is_empty_and_any_later_cursor_is_stale() {
    let nothing = |chain| History {
        extent: None,
        chain,
        events: Vec::new(),
    };
    let genesis = Some(ChainHash::genesis(&stream()));
    assert_eq!(reasons(0, genesis, &nothing(genesis)), []);
    let other = Some(ChainHash::from_bytes([9; 32]));
    assert_eq!(reasons(0, other, &nothing(genesis)), [StaleReason::ChainMismatch]);
    assert_eq!(reasons(4, other, &nothing(None)), [StaleReason::AheadOfHead]);
}

#[test]
fn the_offered_beginning_is_never_stale_itself() {
    for (budget, expected) in [
        (None, 20),
        (Some(200), 20),
        (Some(80), 20),
        (Some(40), 70),
        (Some(1), 100),
    ] {
        let Judged::Stale(stale) = judge(
            &stream(),
            Cursor {
                after: at(3),
                chain: None,
            },
            &history(3, budget, None),
        ) else {
            panic!("not stale");
        };
        assert_eq!(stale.oldest_available_cursor, at(expected), "{budget:?}");
        assert_eq!(
            reasons(expected, None, &history(expected, budget, None)),
            [],
            "{budget:?}"
        );
    }
    for (snapshot, budget, told) in [
        (50, None, true),
        (20, None, true),
        (19, None, false),
        (50, Some(10), false),
    ] {
        let history = history(3, budget, Some(snapshot));
        let cursor = Cursor {
            after: at(3),
            chain: None,
        };
        let Judged::Stale(stale) = judge(&stream(), cursor, &history) else {
            panic!("not stale");
        };
        assert_eq!(stale.snapshot_cursor.is_some(), told, "{snapshot} {budget:?}");
    }
}

#[test]
fn a_page_is_cut_into_frames_that_lead_to_the_head() {
    let history = history(40, None, None);
    let extent = history.extent.unwrap();
    let log = log(100);
    let page = page(&extent, at(40), chain(&log, 40), &history.events, 2_000).unwrap();
    assert!(page.frames.len() > 1);
    let mut after = at(40);
    for frame in &page.frames {
        assert_eq!(frame.first_seq, after.next());
        let read = Frame::decode(frame.first_seq.get(), frame.base_chain, frame.bytes.clone()).unwrap();
        assert_eq!(read.last_seq(), frame.last_seq);
        assert_eq!(read.last_chain(), chain(&log, frame.last_seq.get()));
        after = frame.last_seq;
    }
    assert_eq!((after, page.head_seq, page.oldest_seq), (at(100), at(100), at(21)));
}

#[test]
fn a_page_of_large_events_ends_at_its_limit() {
    let mut log = log(40);
    let mut before = chain(&log, 0);
    for event in &mut log {
        event.payload = Bytes::from(vec![7; 100_000]);
        event.payload_hash = PayloadHash::of(&event.payload);
        event.chain_hash = before.link(event.seq, 7, &event.payload_hash, &event.idempotency_key, &event.kind);
        before = event.chain_hash;
    }
    let extent = Extent {
        oldest_seq: at(1),
        floor_chain: chain(&log, 0),
        head_seq: at(40),
        head_chain: chain(&log, 40),
        window_events: Some(10),
        replay_budget_events: None,
        snapshot_seq: None,
    };
    let page = page(&extent, at(0), chain(&log, 0), &log, 256 * 1024).unwrap();
    let bytes: usize = page.frames.iter().map(|frame| frame.bytes.len()).sum();
    assert!(bytes <= limit::PAGE_BYTES && page.frames.last().unwrap().last_seq < at(40));
}

#[test]
fn a_log_whose_hashes_do_not_match_is_never_sent() {
    let good = history(40, None, None);
    let extent = good.extent.clone().unwrap();
    let log = log(100);
    let cut = |change: &dyn Fn(&mut Vec<Event>)| {
        let mut events = good.events.clone();
        change(&mut events);
        page(&extent, at(40), chain(&log, 40), &events, 2_000)
    };
    assert!(cut(&|_| {}).is_ok());
    assert!(cut(&|events| events[3].payload = Bytes::from_static(b"altered")).is_err());
    assert!(cut(&|events| _ = events.remove(0)).is_err());
    assert!(cut(&|events| _ = events.remove(5)).is_err());
    assert!(cut(&|events| events[2].committed_at_us += 1).is_err());
    assert!(cut(&Vec::clear).is_err());
    let elsewhere = Extent {
        head_chain: chain(&log, 99),
        ..extent.clone()
    };
    assert!(page(&elsewhere, at(40), chain(&log, 40), &good.events, 2_000).is_err());
    let short = Extent {
        head_seq: at(60),
        head_chain: chain(&log, 60),
        ..extent
    };
    let missing = History {
        chain: None,
        ..good.clone()
    };
    let cursor = Cursor {
        after: at(40),
        chain: None,
    };
    assert_eq!(judge(&stream(), cursor, &missing), Judged::Broken);
    assert!(page(&short, at(40), chain(&log, 40), &good.events, 2_000).is_err());
}

#[test]
fn the_largest_lag_is_forgotten_after_a_while() {
    let config = HistoryConfig::default();
    let histories = Histories::new(&config, 1_000);
    let start = Instant::now();
    histories.with(start, |totals| totals.lags[0] = 500);
    let lag = |after: u64| {
        histories.with(start + Duration::from_secs(after), |totals| {
            totals.lags[0].max(totals.lags[1])
        })
    };
    assert_eq!([lag(59), lag(61), lag(122)], [500, 500, 0]);
}
