//! Appends that are malformed, out of order, repeated, or in conflict with the log.

use bytes::Bytes;
use prost::Message as _;
use serde_json::{Value, json};
use spacetime_sync_bindings::{DbConnection, append_sync_events};
use spacetime_sync_proto::{ChainHash, Event, Frame, Refusal, RefusalCode, Seq, limit, wire};
use spacetimedb_sdk::{DbContext as _, u256};
use tokio::sync::{mpsc, oneshot};

use super::{Module, append_arguments, chain_before, column, log, stream};

#[tokio::test]
async fn malformed_frames_are_refused_and_change_nothing() {
    let module = Module::start().await;
    let id = stream("runtime.run.1.events");
    let events = log(&id, 4, 1);
    module.append(&id, &events[..2], &ChainHash::genesis(&id)).await.done();
    let before = module.everything().await;
    let base = column(&events[1].chain_hash);

    let one = |stream_id: &str, seq: u64, key: &str, kind: &str, payload: usize| {
        json!([stream_id, seq, base, key, kind, "5a".repeat(payload), 0])
    };
    let (name, long) = (id.as_str(), "x".repeat(1_000));
    for (what, arguments, code) in [
        ("no payload", one(name, 3, "k", "t", 0), RefusalCode::InvalidFrame),
        (
            "a large payload",
            one(name, 3, "k", "t", limit::PAYLOAD_BYTES + 1),
            RefusalCode::InvalidFrame,
        ),
        ("no key", one(name, 3, "", "t", 1), RefusalCode::InvalidArgument),
        (
            "a long key",
            one(name, 3, &long[..limit::IDEMPOTENCY_KEY_BYTES + 1], "t", 1),
            RefusalCode::InvalidArgument,
        ),
        (
            "a key with a line break",
            one(name, 3, "a\nb", "t", 1),
            RefusalCode::InvalidArgument,
        ),
        ("no kind", one(name, 3, "k", "", 1), RefusalCode::InvalidArgument),
        (
            "a long kind",
            one(name, 3, "k", &long[..limit::KIND_BYTES + 1], 1),
            RefusalCode::InvalidArgument,
        ),
        (
            "a kind with a blank",
            one(name, 3, "k", "a b", 1),
            RefusalCode::InvalidArgument,
        ),
        ("no stream", one("", 3, "k", "t", 1), RefusalCode::InvalidArgument),
        (
            "a long stream",
            one(&long[..limit::STREAM_ID_BYTES + 1], 3, "k", "t", 1),
            RefusalCode::InvalidArgument,
        ),
        (
            "a stream with a quote",
            one("a'b", 3, "k", "t", 1),
            RefusalCode::InvalidArgument,
        ),
        (
            "a stream with a zero byte",
            one("a\0b", 3, "k", "t", 1),
            RefusalCode::InvalidArgument,
        ),
        (
            "a stream in other letters",
            one("str\u{435}am", 3, "k", "t", 1),
            RefusalCode::InvalidArgument,
        ),
        ("seq 0", one(name, 0, "k", "t", 1), RefusalCode::InvalidFrame),
        (
            "a seq past the end",
            one(name, u64::MAX, "k", "t", 1),
            RefusalCode::InvalidArgument,
        ),
    ] {
        let refusal = module
            .call(Some(&module.bridge), "append_sync_event", &arguments)
            .await
            .refused(code);
        assert_eq!(module.everything().await, before, "{what}: {refusal:?}");
    }

    let several = |first_seq: u64, last_seq: u64, frame: &[u8]| {
        let end = column(&events[2].chain_hash);
        json!([name, first_seq, last_seq, base, end, 7, hex::encode(frame)])
    };
    let wire = |key: &str, kind: &str, payload: usize, hash: usize| wire::Event {
        idempotency_key: key.to_owned(),
        kind: kind.to_owned(),
        payload: vec![1; payload].into(),
        payload_hash: vec![2; hash].into(),
        committed_at_us: 0,
    };
    // As long as a frame must be, so that the module looks further.
    let frame = |events: Vec<wire::Event>| {
        wire::EventFrame {
            events,
            seal: Bytes::new(),
            padding: vec![0; limit::FRAME_PADDED_BYTES].into(),
        }
        .encode_to_vec()
    };
    let good = Frame::encode(&events[2..3], None);
    let most = limit::FRAME_EVENTS as u64;
    // The module decodes what it must cut: here the second event is in the log already.
    for (what, arguments) in [
        ("nothing", several(2, 3, &[])),
        ("no event", several(2, 3, &frame(Vec::new()))),
        ("not protobuf", several(2, 3, &[0xff; 1_000])),
        ("a part of a frame", several(2, 3, &good[..good.len() - 1])),
        (
            "too many events",
            several(2, 3, &frame(vec![wire("k", "t", 1, 32); limit::FRAME_EVENTS + 1])),
        ),
        (
            "no payload",
            several(2, 3, &frame(vec![wire("k", "t", 1, 32), wire("l", "t", 0, 32)])),
        ),
        (
            "a large payload",
            several(2, 3, &frame(vec![wire("k", "t", limit::PAYLOAD_BYTES + 1, 32)])),
        ),
        ("no key", several(2, 3, &frame(vec![wire("", "t", 1, 32)]))),
        ("no kind", several(2, 3, &frame(vec![wire("k", "", 1, 32)]))),
        ("half a hash", several(2, 3, &frame(vec![wire("k", "t", 1, 16)]))),
        ("fewer events than stated", several(2, 3, &good)),
        ("seq 0", several(0, 3, &good)),
        ("a seq past the end", several(u64::MAX, u64::MAX, &good)),
        ("an end past the end", several(3, u64::MAX, &good)),
        (
            "the last seq there can be",
            several(Seq::MAX.get(), Seq::MAX.get(), &good),
        ),
        ("an end before the beginning", several(3, 2, &good)),
        ("more events than a frame may hold", several(3, 3 + most, &good)),
        ("no byte", several(3, 3, &[])),
        (
            "fewer bytes than a frame has",
            several(3, 3, &[0xff; limit::FRAME_PADDED_BYTES - 1]),
        ),
        (
            "fewer bytes than the events take",
            several(3, 2 + most, &[0xff; 44_999]),
        ),
    ] {
        let said = module
            .call(Some(&module.bridge), "append_sync_events", &arguments)
            .await;
        let refusal = said.refused(RefusalCode::InvalidFrame);
        assert_eq!(module.everything().await, before, "{what}: {refusal:?}");
    }

    // The server refuses a malformed call before it reaches the module.
    for arguments in [
        json!([]),
        json!([name, 3]),
        json!([name, "three", 3, base, base, 0, ""]),
        json!([name, -1, 3, base, base, 0, ""]),
        Value::Null,
    ] {
        let said = module
            .call(Some(&module.bridge), "append_sync_events", &arguments)
            .await;
        assert!(matches!(said, super::Said::Failed(400, _)), "{arguments}: {said:?}");
    }
    assert_eq!(module.everything().await, before);
    module.append(&id, &events[2..], &events[1].chain_hash).await.done();
}

#[tokio::test]
async fn the_module_does_not_look_into_a_frame_that_continues_the_log() {
    let module = Module::start().await;
    let id = stream("runtime.run.1.events");
    let (begin, end) = (
        column(&ChainHash::genesis(&id)),
        column(&ChainHash::from_bytes([0x77; 32])),
    );
    let garbage = "ff".repeat(limit::FRAME_PADDED_BYTES);
    let arguments = json!([id.as_str(), 1, 3, begin, end, 7, garbage]);
    for _ in 0..2 {
        module
            .call(Some(&module.bridge), "append_sync_events", &arguments)
            .await
            .done();
    }
    let page = module
        .call(Some(&module.owner), "read_events", &json!([id.as_str(), 0]))
        .await
        .done();
    assert_eq!((&page[1], &page[2]), (&json!(3), &json!(end)));
    // Nothing can be built on its inside, and it goes when the log is rewound.
    let within = log(&id, 2, 1);
    module
        .append(&id, &within, &ChainHash::genesis(&id))
        .await
        .refused(RefusalCode::BelowWindow);
    let rewind = json!([id.as_str(), 0, begin, "", 3, end]);
    module.call(Some(&module.bridge), "rewind_stream", &rewind).await.done();
    module.append(&id, &within, &ChainHash::genesis(&id)).await.done();
}

#[tokio::test]
async fn a_step_of_a_rewind_answers_with_the_head_that_it_left_and_the_next_one_begins_only_there() {
    let module = Module::start().await;
    let id = stream("runtime.run.1.events");
    let events = log(&id, limit::REWIND_STEP_EVENTS + 808, 1);
    let append = async |from: usize, to: usize| {
        let base = chain_before(&id, &events, from);
        module.append(&id, &events[from - 1..to], &base).await.done();
    };
    for first in (1..=events.len()).step_by(1_000) {
        append(first, (first + 999).min(events.len())).await;
    }
    let chain_at = |seq: usize| column(&chain_before(&id, &events, seq + 1));
    let rewind = async |seen: usize| {
        let arguments = json!([id.as_str(), 5, chain_at(5), "", seen, chain_at(seen)]);
        module.call(Some(&module.bridge), "rewind_stream", &arguments).await
    };
    assert_eq!(rewind(events.len()).await.done(), json!([808, chain_at(808)]));
    // What another bridge appends between two steps stays.
    append(809, 900).await;
    assert_eq!(rewind(808).await.refused(RefusalCode::SeqGap).head_seq, Some(900));
    assert_eq!(rewind(900).await.done(), json!([5, chain_at(5)]));
}

#[tokio::test]
async fn a_log_accepts_only_events_that_follow_it() {
    let module = Module::start().await;
    let id = stream("runtime.run.1.events");
    let (ours, other) = (log(&id, 9, 1), log(&id, 9, 2));
    let base = |log: &[_], from: usize| chain_before(&id, log, from);
    for (from, to) in [(1, 2), (3, 3), (4, 6)] {
        module.append(&id, &ours[from - 1..to], &base(&ours, from)).await.done();
    }
    let before = module.everything().await;

    // Repeats are absorbed, wherever their frames begin and end.
    for from in 1..=6 {
        for to in from..=6 {
            module.append(&id, &ours[from - 1..to], &base(&ours, from)).await.done();
        }
    }
    let single = json!([
        id.as_str(),
        2,
        column(&base(&ours, 2)),
        "key-2",
        "test.event",
        hex::encode([1; 10]),
        7
    ]);
    module
        .call(Some(&module.bridge), "append_sync_event", &single)
        .await
        .done();
    assert_eq!(module.everything().await, before, "a repeat changes nothing");

    let mut renamed = ours.clone();
    renamed[3].kind = spacetime_sync_proto::Kind::new("test.other").unwrap();
    let mut moved = ours.clone();
    moved[5].committed_at_us += 1;
    for (what, log, from, to, code) in [
        ("a skipped seq", &ours, 8, 9, RefusalCode::SeqGap),
        ("other events at held seqs", &other, 1, 6, RefusalCode::EventConflict),
        ("another last event", &other, 6, 6, RefusalCode::EventConflict),
        ("another event and new ones", &other, 5, 9, RefusalCode::EventConflict),
        ("another kind", &renamed, 4, 4, RefusalCode::EventConflict),
        ("another time", &moved, 6, 6, RefusalCode::EventConflict),
        (
            "the next events of another log",
            &other,
            7,
            9,
            RefusalCode::ChainMismatch,
        ),
    ] {
        let refusal = module
            .append(&id, &log[from - 1..to], &base(log, from))
            .await
            .refused(code);
        assert_eq!(refusal.head_seq, Some(6), "{what}: the refusal states the head");
        assert_eq!(module.everything().await, before, "{what}");
    }
    // The right events, after a wrong chain.
    let wrong = ChainHash::from_bytes([7; 32]);
    module
        .append(&id, &ours[6..], &wrong)
        .await
        .refused(RefusalCode::ChainMismatch);
    module
        .append(&id, &ours[2..3], &wrong)
        .await
        .refused(RefusalCode::EventConflict);
    // The same key with another payload, one event at a time.
    let single = json!([
        id.as_str(),
        2,
        column(&base(&ours, 2)),
        "key-2",
        "test.event",
        "ffff",
        7
    ]);
    module
        .call(Some(&module.bridge), "append_sync_event", &single)
        .await
        .refused(RefusalCode::EventConflict);
    // A new stream begins at 1, and a refused first append does not create it.
    module
        .append(&stream("unknown"), &log(&stream("unknown"), 3, 1)[1..], &wrong)
        .await
        .refused(RefusalCode::SeqGap);
    assert_eq!(module.everything().await, before);

    // An overlapping frame appends only its new events.
    module.append(&id, &ours[4..8], &base(&ours, 5)).await.done();
    module.append(&id, &ours[8..], &base(&ours, 9)).await.done();
    let page = module
        .call(Some(&module.owner), "read_events", &json!([id.as_str(), 0]))
        .await
        .done();
    assert_eq!((&page[1], &page[2]), (&json!(9), &json!(column(&ours[8].chain_hash))));
    let extents: Vec<_> = page[5]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row[1].clone(), row[2].clone()))
        .collect();
    assert_eq!(
        extents,
        [(1, 2), (3, 3), (4, 6), (7, 8), (9, 9)].map(|(from, to)| (json!(from), json!(to)))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_websocket_answers_with_the_same_refusals() {
    let module = Module::start().await;
    let id = stream("runtime.run.1.events");
    let (ours, other) = (log(&id, 3, 1), log(&id, 3, 2));
    let (connected, is_connected) = oneshot::channel();
    let connection = DbConnection::builder()
        .with_uri(module.server.uri())
        .with_database_name(module.name.as_str())
        .with_token(Some(module.bridge.token.expose()))
        .with_confirmed_reads(true)
        .on_connect(|_, _, _| {
            // The receiver is gone only if the test has failed.
            let _ = connected.send(());
        })
        .build()
        .unwrap();
    connection.run_threaded();
    is_connected.await.unwrap();

    let mut large = log(&id, 5, 3);
    for event in &mut large {
        event.payload = vec![3; limit::PAYLOAD_BYTES].into();
    }

    let (answers, mut answered) = mpsc::unbounded_channel();
    let send = |first_seq: u64, base: &ChainHash, last: &Event, frame: Bytes| {
        let answers = answers.clone();
        let [base, end] = [base, &last.chain_hash].map(|chain| u256::from_be_bytes(*chain.as_bytes()));
        connection
            .reducers
            .append_sync_events_then(
                id.as_str().to_owned(),
                first_seq,
                last.seq.get(),
                base,
                end,
                last.committed_at_us,
                frame.into(),
                move |_, answer| {
                    let _ = answers.send(answer.unwrap().map_err(|text| Refusal::from_wire(&text).unwrap().code));
                },
            )
            .unwrap();
    };
    let genesis = ChainHash::genesis(&id);
    send(1, &genesis, &ours[1], Frame::encode(&ours[..2], None));
    send(1, &genesis, &ours[1], Frame::encode(&ours[..2], None));
    send(1, &genesis, &other[1], Frame::encode(&other[..2], None));
    send(4, &genesis, &large[3], Frame::encode(&other[..1], None));
    send(3, &genesis, &ours[2], Frame::encode(&ours[2..], None));
    // Over HTTP the server accepts no call of that size.
    let too_large = vec![0xff; limit::FRAME_BYTES + 1].into();
    send(3, &ours[1].chain_hash, &ours[2], too_large);
    send(3, &ours[1].chain_hash, &large[4], Frame::encode(&large, None));
    send(2, &ours[0].chain_hash, &ours[2], Bytes::new());
    send(3, &ours[1].chain_hash, &ours[2], Frame::encode(&ours[2..], None));
    for expected in [
        Ok(()),
        Ok(()),
        Err(RefusalCode::EventConflict),
        Err(RefusalCode::SeqGap),
        Err(RefusalCode::ChainMismatch),
        Err(RefusalCode::InvalidFrame),
        Err(RefusalCode::InvalidFrame),
        Err(RefusalCode::InvalidFrame),
        Ok(()),
    ] {
        assert_eq!(answered.recv().await.unwrap(), expected);
    }
    let arguments = append_arguments(&id, &ours, &genesis);
    module
        .call(Some(&module.bridge), "append_sync_events", &arguments)
        .await
        .done();
    connection.disconnect().unwrap();
}

#[tokio::test]
async fn a_page_begins_with_the_frame_that_holds_its_first_event() {
    let module = Module::start().await;
    let id = stream("runtime.run.1.events");
    let long = limit::FRAME_EVENTS;
    let events = log(&id, long as u64 + 2, 1);
    for (from, to) in [(0, long), (long, long + 1), (long + 1, long + 2)] {
        let base = super::chain_before(&id, &events, from + 1);
        module.append(&id, &events[from..to], &base).await.done();
    }
    for after in [0_usize, 1, 31, 32, 33, 500, 966, 967, 968, 999, 1_000, 1_001] {
        let said = module
            .call(Some(&module.owner), "read_events", &json!([id.as_str(), after]))
            .await;
        let page = said.done();
        let firsts: Vec<_> = page[5]
            .as_array()
            .unwrap()
            .iter()
            .map(|frame| frame[1].as_u64().unwrap())
            .collect();
        let expected = &[1, 1_001, 1_002][after.saturating_sub(long - 1).min(2)..];
        assert_eq!(firsts, expected, "after {after}");
    }
}
