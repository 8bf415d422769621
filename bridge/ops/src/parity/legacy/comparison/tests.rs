use bytes::Bytes;
use spacetime_sync_proto::{ChainHash, IdempotencyKey, StreamId};

use super::*;

const TOPIC: &str = "run:1:events";

/// An event of the topic with this seq of its own, at this seq of the stream.
fn event(seq: u64, topic_seq: u64, payload: &str) -> Event {
    let key = Topic::new(TOPIC).event_key(topic_seq, "run.step");
    keyed(seq, &key, "run.step", payload)
}

fn keyed(seq: u64, key: &str, kind: &str, payload: &str) -> Event {
    Event {
        seq: Seq::new(seq).unwrap(),
        idempotency_key: IdempotencyKey::new(key).unwrap(),
        kind: Kind::new(kind).unwrap(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        payload_hash: PayloadHash::of(payload.as_bytes()),
        chain_hash: ChainHash::from_bytes([0; 32]),
        committed_at_us: 0,
    }
}

fn entry(payload: &str) -> Entry {
    Entry {
        payload_hash: PayloadHash::of(payload.as_bytes()),
        kind: Some("run.step".into()),
    }
}

fn compared(entries: &Entries, events: &[Event], complete: bool) -> (TopicRound, Vec<Difference>) {
    let topic = Topic::new(TOPIC);
    let head = events.last().map_or(0, |event| event.seq.get());
    let mut comparison = Comparison::new(&topic, entries, complete, head);
    for event in events {
        comparison.take(&Told::of(&topic, event));
    }
    for seq in comparison.unfound() {
        comparison.lacks(seq, None);
    }
    comparison.end()
}

/// What the topic's entries are, one for each seq from 5 to 8.
fn entries() -> Entries {
    (5..=8).map(|seq| (seq, entry(&format!("{{\"n\":{seq}}}")))).collect()
}

/// The events of those entries, from seq 1 of the stream on.
fn events() -> Vec<Event> {
    (1..=4)
        .map(|seq| event(seq, seq + 4, &format!("{{\"n\":{}}}", seq + 4)))
        .collect()
}

#[test]
fn equal_lanes_differ_in_nothing() {
    let (round, differences) = compared(&entries(), &events(), true);
    assert_eq!((round.mismatches, round.compared, differences), (0, 4, vec![]));
    assert_eq!(round.stream_id.as_deref(), Some("runtime.run.1.events"));
}

#[test]
fn a_changed_byte_is_found() {
    let mut events = events();
    events[2] = event(3, 7, "{\"n\":8}");
    let (round, differences) = compared(&entries(), &events, true);
    assert_eq!((round.mismatches, round.hash_differs), (1, 1));
    assert_eq!(differences[0].seq, 7);
    assert!(
        differences[0].what.contains("the legacy lane has sha256:"),
        "{differences:?}"
    );
}

#[test]
fn a_lost_event_is_found_on_either_side() {
    let mut fewer = events();
    fewer.remove(1);
    let (round, differences) = compared(&entries(), &fewer, true);
    assert_eq!((round.mismatches, round.missing_in_the_lane), (1, 1));
    assert_eq!(differences[0].seq, 6);
    let mut entries = entries();
    entries.remove(&7);
    let (round, differences) = compared(&entries, &events(), true);
    assert_eq!((round.mismatches, round.missing_in_the_legacy_lane), (1, 1));
    assert_eq!(differences[0].seq, 7);
}

#[test]
fn a_swapped_order_and_another_kind_are_found() {
    let swapped = [
        event(1, 5, "{\"n\":5}"),
        event(2, 7, "{\"n\":7}"),
        event(3, 6, "{\"n\":6}"),
        event(4, 8, "{\"n\":8}"),
    ];
    let (round, differences) = compared(&entries(), &swapped, true);
    assert_eq!((round.mismatches, round.order_differs), (1, 1));
    assert_eq!(differences[0].seq, 6);
    let mut other = entries();
    other.get_mut(&5).unwrap().kind = Some("run.other".into());
    let (round, _) = compared(&other, &events(), true);
    assert_eq!((round.mismatches, round.kind_differs), (1, 1));
    other.get_mut(&5).unwrap().kind = None;
    assert_eq!(compared(&other, &events(), true).0.mismatches, 0);
}

#[test]
fn two_events_for_one_entry_are_one_too_many() {
    let mut events = events();
    events.push(event(5, 8, "{\"n\":8}"));
    let (round, _) = compared(&entries(), &events, true);
    assert_eq!((round.mismatches, round.missing_in_the_legacy_lane), (1, 1));
}

#[test]
fn the_lanes_may_begin_at_different_events_and_a_file_may_end_before_the_lane() {
    let mut entries = entries();
    entries.remove(&5);
    entries.remove(&8);
    let (round, _) = compared(&entries, &events(), false);
    assert_eq!((round.mismatches, round.compared), (0, 2));
    assert_eq!((round.before_the_legacy_lane, round.legacy_lane_behind), (1, 1));
    // A table is told of everything.
    let (round, _) = compared(&entries, &events(), true);
    assert_eq!((round.mismatches, round.missing_in_the_legacy_lane), (1, 1));
    // What came after the entries were read says nothing.
    let topic = Topic::new(TOPIC);
    let mut comparison = Comparison::new(&topic, &entries, true, 3);
    comparison.take(&Told::of(&topic, &events()[3]));
    assert_eq!(comparison.end().0, Comparison::new(&topic, &entries, true, 3).end().0);
}

#[test]
fn what_is_purged_cannot_be_missing() {
    let entries = entries();
    let topic = Topic::new(TOPIC);
    let mut comparison = Comparison::new(&topic, &entries, true, 4);
    comparison.lacks(5, Some(6));
    comparison.lacks(6, Some(6));
    let (round, _) = comparison.end();
    assert_eq!((round.purged, round.missing_in_the_lane, round.mismatches), (1, 1, 1));
}

#[test]
fn a_topic_without_a_stream_is_a_mismatch_for_each_entry() {
    let entries = entries();
    let (round, _) = Comparison::new(&Topic::new(""), &entries, true, 0).nowhere(4);
    assert_eq!((round.mismatches, round.looked_for), (4, 4));
    assert!(round.no_stream.unwrap().contains("empty"));
}

/// Documents have no key that names the topic: the legacy lane was told of the stream's seq.
#[test]
fn a_document_is_known_by_its_seq_and_its_own_hash() {
    let document = "{\"status\":\"done\"}";
    let hash = PayloadHash::of(document.as_bytes());
    let inline = format!("{{\"doc_key\":\"k\",\"doc_version\":3,\"payload\":{document},\"payload_hash\":\"{hash}\"}}");
    let pointer = format!(
        "{{\"doc_key\":\"k\",\"doc_version\":4,\"hydration_required\":true,\"payload_bytes\":17,\"payload_hash\":\"{hash}\"}}"
    );
    let gone = "{\"deleted\":true,\"doc_key\":\"k\",\"doc_version\":5}";
    let events = [
        keyed(1, "doc:k:seq:3:projection:1", PUT, &inline),
        keyed(2, "doc:k:seq:4:projection:1", PUT, &pointer),
        keyed(3, "doc:k:seq:5:projection:1", DELETE, gone),
    ];
    let of = |payload: &str| Entry {
        kind: None,
        ..entry(payload)
    };
    let mut entries: Entries = [(1, of(document)), (2, of(document)), (3, of(gone))].into();
    assert_eq!(compared(&entries, &events, true).0.mismatches, 0);
    entries.remove(&3);
    let (round, _) = compared(&entries, &events, true);
    assert_eq!((round.mismatches, round.deletions_only_in_the_lane), (0, 1));
    // The hash that the event states does not cover up another document in it.
    let altered = [keyed(
        1,
        "doc:k:seq:3:projection:1",
        PUT,
        &inline.replace("done", "dome"),
    )];
    let entries: Entries = [(1, of(document))].into();
    assert_eq!(compared(&entries, &altered, true).0.hash_differs, 1);
}

#[test]
fn white_space_and_the_order_of_names_change_no_content() {
    let entries: Entries = [(5, entry("{\"a\":1,\"b\":[2,1]}"))].into();
    let spaced = [event(1, 5, "{\"b\": [2, 1],\n \"a\": 1}")];
    assert_eq!(compared(&entries, &spaced, true).0.mismatches, 0);
    let reordered = [event(1, 5, "{\"a\":1,\"b\":[1,2]}")];
    assert_eq!(compared(&entries, &reordered, true).0.hash_differs, 1);
    let binary: Entries = [(5, entry("\u{1}"))].into();
    assert_eq!(compared(&binary, &[event(1, 5, "\u{1}")], true).0.mismatches, 0);
}

#[test]
fn what_differs_in_several_ways_counts_once() {
    let events = [event(1, 6, "{\"n\":6}"), event(2, 5, "{\"n\":0}")];
    let mut entries = entries();
    entries.retain(|seq, _| *seq < 7);
    let (round, differences) = compared(&entries, &events, true);
    assert_eq!((round.hash_differs, round.order_differs, round.mismatches), (1, 1, 1));
    assert_eq!((round.looked_for, differences.len()), (2, 1));
}

#[test]
fn an_event_that_no_legacy_lane_was_told_of_is_not_taken_for_another() {
    let mut events = events();
    events.push(keyed(5, "retry:9", "run.note", "{}"));
    let (round, _) = compared(&entries(), &events, true);
    assert_eq!((round.mismatches, round.compared, round.without_topic_seq), (0, 4, 1));
}

#[test]
fn a_sample_is_spread_over_the_topics() {
    for (counts, sample, expected) in [
        (&[10, 1000, 1000][..], 100, &[10, 45, 45][..]),
        (&[1000, 3], 200, &[197, 3]),
        (&[5, 5, 5], 4, &[1, 1, 2]),
        (&[1, 1], 10, &[1, 1]),
        (&[], 10, &[]),
    ] {
        assert_eq!(shares(1, counts, sample), expected, "{counts:?} {sample}");
    }
    let few = |seed| shares(seed, &[1; 50], 20);
    assert_eq!(few(1).iter().sum::<u64>(), 20);
    assert!(few(1).iter().all(|share| *share <= 1));
    assert_ne!(few(1), few(2));
}

#[test]
fn a_draw_is_of_what_both_lanes_hold_and_depends_on_seed_and_topic() {
    let entries: Entries = (1..=100).map(|seq| (seq * 3, entry("x"))).collect();
    let position = StreamProgress {
        stream_id: StreamId::new("a").unwrap(),
        head_seq: Seq::new(500).unwrap(),
        published_seq: Seq::new(500).unwrap(),
        floor_seq: Seq::new(400).unwrap(),
    };
    let drawn = |seed, topic| draw(seed, topic, &entries, 10, Some(&position));
    let first = drawn(1, "a");
    assert_eq!((first.entries.len(), first.events.len()), (10, 10));
    assert!(first.entries.iter().all(|seq| entries.contains_key(seq)));
    assert!(
        first.events.iter().all(|seq| (401..=500).contains(&seq.get())),
        "{first:?}"
    );
    assert_eq!(first, drawn(1, "a"));
    assert!(first != drawn(2, "a") && first != drawn(1, "b"));
    assert_eq!(draw(1, "a", &entries, 1_000, None).entries.len(), 100);
}
