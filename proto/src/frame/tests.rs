//! Small cases of frames, and the bytes that never change.

use super::*;
use crate::id::StreamId;
use crate::wire;
use prost::Message;

fn stream() -> StreamId {
    StreamId::new("runtime.run.1.events").unwrap()
}

fn log(sizes: &[usize]) -> Vec<Event> {
    let mut chain = ChainHash::genesis(&stream());
    sizes
        .iter()
        .enumerate()
        .map(|(at, size)| {
            let seq = Seq::new(at as u64 + 1).unwrap();
            let payload = Bytes::from(vec![at as u8; *size]);
            let payload_hash = PayloadHash::of(&payload);
            let idempotency_key = IdempotencyKey::new(&format!("key-{at}")).unwrap();
            let kind = Kind::new("test.event").unwrap();
            chain = chain.link(seq, 1_000 + at as i64, &payload_hash, &idempotency_key, &kind);
            Event {
                seq,
                idempotency_key,
                kind,
                payload,
                payload_hash,
                chain_hash: chain,
                committed_at_us: 1_000 + at as i64,
            }
        })
        .collect()
}

fn seal() -> Seal {
    Seal::from_slice(&[7; SEAL_BYTES]).unwrap()
}

fn generated(events: Vec<wire::Event>, seal: Option<&Seal>) -> Bytes {
    let mut frame = wire::EventFrame {
        events,
        seal: seal.map_or_else(Bytes::new, |seal| Bytes::copy_from_slice(&seal.to_bytes())),
        padding: Bytes::new(),
    };
    let bare = frame.encoded_len();
    if bare < limit::FRAME_PADDED_BYTES {
        frame.padding = Bytes::from_static(&[0; limit::FRAME_PADDED_BYTES]).slice(..limit::FRAME_PADDED_BYTES - bare);
    }
    frame.encode_to_vec().into()
}

fn frame(events: &[Event], base: ChainHash) -> Frame {
    Frame::decode(events[0].seq.get(), base, Frame::encode(events, None)).unwrap()
}

#[test]
fn a_frame_carries_every_field_and_rebuilds_the_chain() {
    let events = log(&[1, 70_000, 3]);
    let decoded = frame(&events, ChainHash::genesis(&stream()));
    assert_eq!(decoded.last_chain(), events[2].chain_hash);
    assert_eq!(decoded.into_events_after(Seq::ZERO).collect::<Vec<_>>(), events);
}

#[test]
fn the_bytes_of_a_frame_are_those_of_the_generated_message() {
    for sizes in [
        &[][..],
        &[0],
        &[1],
        &[1, 0, 127, 128],
        &[70_000, 3],
        &[16_383, 16_384, 1],
    ] {
        let mut events = log(sizes);
        for (event, time) in events.iter_mut().zip([0, 1, -1, i64::MAX]) {
            event.committed_at_us = time;
        }
        let messages: Vec<_> = events
            .iter()
            .map(|event| wire::Event {
                idempotency_key: event.idempotency_key.to_string(),
                kind: event.kind.to_string(),
                payload: event.payload.clone(),
                payload_hash: Bytes::copy_from_slice(event.payload_hash.as_bytes()),
                committed_at_us: event.committed_at_us,
            })
            .collect();
        for seal in [None, Some(&seal())] {
            assert_eq!(
                Frame::encode(&events, seal),
                generated(messages.clone(), seal),
                "{sizes:?}"
            );
        }
    }
}

#[test]
fn a_frame_is_cut_at_any_seq() {
    let events = log(&[5; 4]);
    let whole = frame(&events, ChainHash::genesis(&stream()));
    for cut in 0..4 {
        let rest = whole.clone().encode_after(events[cut].seq);
        match rest {
            None => assert_eq!(cut, 3),
            Some(bytes) => {
                let rest = Frame::decode(cut as u64 + 2, events[cut].chain_hash, bytes).unwrap();
                assert_eq!(rest.into_events_after(Seq::ZERO).collect::<Vec<_>>(), events[cut + 1..]);
            }
        }
        let after: Vec<_> = whole.clone().into_events_after(events[cut].seq).collect();
        assert_eq!(after, events[cut + 1..]);
    }
}

#[test]
fn a_frame_knows_its_seqs_and_the_chain_hash_at_each() {
    let events = log(&[5; 5]);
    let part = frame(&events[2..], events[1].chain_hash);
    assert_eq!((part.first_seq(), part.last_seq()), (events[2].seq, events[4].seq));
    assert_eq!(part.last_at_us(), events[4].committed_at_us);
    assert_eq!(part.chain_at(events[0].seq), None);
    for event in &events[1..] {
        assert_eq!(part.chain_at(event.seq), Some(event.chain_hash), "seq {}", event.seq);
    }
    assert_eq!(part.chain_at(events[4].seq.next()), None);
}

#[test]
fn a_frame_is_cut_after_any_seq() {
    let events = log(&[5; 3]);
    let part = frame(&events[1..], events[0].chain_hash);
    assert_eq!(part.clone().encode_until(events[0].seq, None), None);
    let kept = part.clone().encode_until(events[1].seq, None).unwrap();
    assert_eq!(kept, Frame::encode(&events[1..2], None));
    assert_eq!(
        part.encode_until(events[2].seq, None).unwrap(),
        Frame::encode(&events[1..], None)
    );
}

#[test]
fn a_seal_stays_with_the_last_event() {
    let events = log(&[5; 3]);
    let sealed = Frame::encode(&events, Some(&seal()));
    let whole = Frame::decode(1, ChainHash::genesis(&stream()), sealed.clone()).unwrap();
    assert_eq!(whole.seal(), Some(&seal()));
    assert_eq!(
        whole.clone().encode_after(events[0].seq),
        Some(Frame::encode(&events[1..], Some(&seal())))
    );
    let other = Seal::from_slice(&[8; SEAL_BYTES]).unwrap();
    assert_eq!(whole.clone().encode_until(events[2].seq, Some(&other)), Some(sealed));
    for seal in [None, Some(&other)] {
        assert_eq!(
            whole.clone().encode_until(events[1].seq, seal),
            Some(Frame::encode(&events[..2], seal))
        );
    }
}

#[test]
fn a_seal_of_another_length_is_refused() {
    for found in [1, SEAL_BYTES - 1, SEAL_BYTES + 1] {
        let mut bytes = Frame::encode(&log(&[5]), None).to_vec();
        put(2, &[7; 100][..found], &mut bytes);
        let refused = Frame::decode(1, ChainHash::genesis(&stream()), bytes.into()).map(|_| ());
        assert_eq!(refused, Err(FrameError::SealLength { found }));
    }
}

#[test]
fn of_several_events_that_are_not_valid_the_first_is_reported() {
    let message = |kind: &str| wire::Event {
        idempotency_key: "k".to_owned(),
        kind: kind.to_owned(),
        payload: Bytes::from_static(b"p"),
        payload_hash: Bytes::copy_from_slice(PayloadHash::of(b"p").as_bytes()),
        committed_at_us: 1,
    };
    let bytes = generated(["a", "b b", "", "a"].map(message).into(), None);
    let refused = Frame::decode(1, ChainHash::genesis(&stream()), bytes).map(|_| ());
    let expected = FrameError::Id {
        seq: Seq::new(2).unwrap(),
        invalid: Kind::check("b b").unwrap_err(),
    };
    assert_eq!(refused, Err(expected));
}

#[test]
fn each_event_keeps_its_own_kind() {
    let mut events = log(&[5; 4]);
    let mut chain = ChainHash::genesis(&stream());
    for (event, kind) in events.iter_mut().zip(["a", "b", "b", "a"]) {
        event.kind = Kind::new(kind).unwrap();
        chain = chain.link_text(
            event.seq,
            event.committed_at_us,
            &event.payload_hash,
            event.idempotency_key.as_str(),
            kind,
        );
        event.chain_hash = chain;
    }
    let decoded = frame(&events, ChainHash::genesis(&stream()));
    assert_eq!(decoded.into_events_after(Seq::ZERO).collect::<Vec<_>>(), events);
}

#[test]
fn a_frame_of_the_largest_size_is_accepted() {
    let base = ChainHash::genesis(&stream());
    let most_events = log(&[1; limit::FRAME_EVENTS]);
    assert_eq!(
        frame(&most_events, base).last_seq(),
        most_events[limit::FRAME_EVENTS - 1].seq
    );
    let longest_payload = log(&[limit::PAYLOAD_BYTES]);
    assert_eq!(
        frame(&longest_payload, base).last_chain(),
        longest_payload[0].chain_hash
    );
    // A frame of the largest size is decoded, but these bytes are not a message.
    let most_bytes = Frame::decode(1, base, vec![0; limit::FRAME_BYTES].into());
    assert!(matches!(most_bytes, Err(FrameError::Malformed(_))));
}

#[test]
fn a_seq_far_past_a_frame_is_not_in_it() {
    let whole = frame(&log(&[5; 4]), ChainHash::genesis(&stream()));
    // A 32-bit index, which the module has, would take the first of these for seq 2.
    for far in [Seq::new((1 << 32) + 2).unwrap(), Seq::MAX] {
        assert_eq!(whole.chain_at(far), None);
        assert_eq!(whole.clone().encode_after(far), None);
        let all = whole.clone().encode_until(far, None).unwrap();
        assert_eq!(
            Frame::decode(1, whole.base_chain(), all).unwrap().last_seq(),
            whole.last_seq()
        );
        assert_eq!(whole.clone().into_events_after(far).count(), 0);
    }
}

#[test]
fn a_small_frame_is_padded_to_the_blob_threshold_and_a_large_one_is_not() {
    let small = Frame::encode(&log(&[10]), None);
    assert!(small.len() >= limit::FRAME_PADDED_BYTES && small.len() <= limit::FRAME_PADDED_BYTES + 3);
    let events = log(&[2_000]);
    assert!(Frame::encode(&events, None).len() < 2_000 + 200);
}

/// The module refuses smaller ones without a look into them.
#[test]
fn no_frame_is_smaller_than_its_events_allow() {
    let base = ChainHash::genesis(&stream());
    let mut events = log(&[1; 100]);
    for event in &mut events {
        event.idempotency_key = IdempotencyKey::new("k").unwrap();
        event.kind = Kind::new("t").unwrap();
        event.committed_at_us = 0;
    }
    let least = Frame::least_bytes;
    for count in 1..=events.len() {
        let bytes = Frame::encode(&events[..count], None);
        assert!(bytes.len() >= least(count), "{count} events have {} bytes", bytes.len());
        let whole = Frame::decode(1, base, bytes).unwrap();
        assert_eq!(whole.last_seq(), events[count - 1].seq);
        let middle = events[count / 2].seq;
        for (part, held) in [
            (whole.clone().encode_until(middle, None), (count / 2 + 1).min(count)),
            (whole.encode_after(middle), count.saturating_sub(count / 2 + 1)),
        ] {
            assert!(part.is_none_or(|part| part.len() >= least(held)), "{held} of {count}");
        }
    }
    // These need no padding, and have not a byte more than they must.
    assert_eq!([least(0), least(1), least(22)], [limit::FRAME_PADDED_BYTES; 3]);
    for count in [23, 50, 100] {
        assert_eq!(Frame::encode(&events[..count], None).len(), least(count));
        assert_eq!(least(count), 45 * count);
    }
}

#[test]
fn the_chain_pins_every_field() {
    let events = log(&[8, 8]);
    let mut other = events.clone();
    other[1].kind = Kind::new("test.other").unwrap();
    assert_ne!(
        frame(&other, ChainHash::genesis(&stream())).last_chain(),
        events[1].chain_hash
    );
    let mut other = events.clone();
    other[1].committed_at_us += 1;
    assert_ne!(
        frame(&other, ChainHash::genesis(&stream())).last_chain(),
        events[1].chain_hash
    );
    let mut other = events.clone();
    other[0].idempotency_key = IdempotencyKey::new("other").unwrap();
    assert_ne!(
        frame(&other, ChainHash::genesis(&stream())).last_chain(),
        events[1].chain_hash
    );
}

#[test]
fn bytes_that_are_not_a_frame_are_refused_with_the_reason() {
    let base = ChainHash::genesis(&stream());
    let decode = |first, events: &[Event]| Frame::decode(first, base, Frame::encode(events, None)).map(|_| ());
    assert_eq!(decode(1, &[]), Err(FrameError::EventCount { found: 0 }));
    assert_eq!(
        decode(1, &log(&[1; 1_001])),
        Err(FrameError::EventCount { found: 1_001 })
    );
    assert_eq!(decode(0, &log(&[1])), Err(FrameError::FirstSeq { found: 0 }));
    assert_eq!(
        decode(u64::MAX, &log(&[1])),
        Err(FrameError::FirstSeq { found: u64::MAX })
    );
    assert_eq!(
        decode(1, &log(&[0])),
        Err(FrameError::PayloadSize {
            seq: Seq::new(1).unwrap(),
            found: 0
        })
    );
    assert_eq!(
        decode(1, &log(&[1, 262_145])),
        Err(FrameError::PayloadSize {
            seq: Seq::new(2).unwrap(),
            found: 262_145
        })
    );
    let huge = Frame::decode(1, base, vec![0; limit::FRAME_BYTES + 1].into());
    assert_eq!(
        huge.map(|_| ()),
        Err(FrameError::TooLarge {
            found: limit::FRAME_BYTES + 1
        })
    );
    assert!(matches!(
        Frame::decode(1, base, vec![0xff; 40].into()),
        Err(FrameError::Malformed(_))
    ));
}

/// The chain is part of the contract, and SQL computes it too. These bytes never change.
#[test]
fn the_hashes_are_pinned() {
    let events = log(&[3]);
    assert_eq!(
        events[0].payload_hash.to_string(),
        "sha256:709e80c88487a2411e1ee4dfb9f22a861492d20c4765150c0c794abd70f8147c"
    );
    assert_eq!(
        ChainHash::genesis(&stream()).to_string(),
        "sha256:305184485a25b6d379033854dd952c8715a27105783fe7c51c172fafec4da258"
    );
    assert_eq!(
        events[0].chain_hash.to_string(),
        "sha256:c424460a6a011625336475d2b6d7c134339535a1beef2e4fbb98466cc1068098"
    );
}
