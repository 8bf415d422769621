use bytes::Bytes;
use spacetime_sync_proto::seal::SEAL_BYTES;
use spacetime_sync_proto::{IdempotencyKey, Kind, PayloadHash, StreamId};

use super::*;

fn genesis() -> ChainHash {
    ChainHash::genesis(&StreamId::new("a").unwrap())
}

fn seq(value: u64) -> Seq {
    Seq::new(value).unwrap()
}

fn seq_of(value: usize) -> Seq {
    seq(value as u64)
}

fn log(sizes: &[usize]) -> Vec<Event> {
    let mut chain = genesis();
    (1u64..)
        .zip(sizes)
        .map(|(at, size)| {
            let payload = Bytes::from(vec![7; *size]);
            let (key, kind) = (IdempotencyKey::new(&format!("k{at}")).unwrap(), Kind::new("t").unwrap());
            let payload_hash = PayloadHash::of(&payload);
            chain = chain.link(seq(at), 0, &payload_hash, &key, &kind);
            Event {
                seq: seq(at),
                idempotency_key: key,
                kind,
                payload,
                payload_hash,
                chain_hash: chain,
                committed_at_us: 0,
            }
        })
        .collect()
}

fn prepare_all(events: &[Event], frame_bytes: usize) -> Result<Vec<ReadyFrame>, HaltReason> {
    prepare(Seq::ZERO, genesis(), events, frame_bytes, None)
}

/// Seals with the seq in place of a signature.
struct Stamp;

impl Sealer for Stamp {
    fn seal(&self, _: &StreamId, at: &Position) -> Option<Seal> {
        Seal::from_slice(&[at.seq.get() as u8; SEAL_BYTES])
    }

    fn check(&self, stream_id: &StreamId, at: &Position, seal: &Seal) -> Option<bool> {
        (seal.signature[0] < 100).then(|| self.seal(stream_id, at).as_ref() == Some(seal))
    }

    fn is_ready(&self) -> bool {
        true
    }
}

#[test]
fn each_frame_carries_the_seal_of_its_last_event() {
    let events = log(&[100, 300, 100, 5_000]);
    let stream_id = StreamId::new("a").unwrap();
    let sealing = Sealing {
        stream_id: &stream_id,
        sealer: &Stamp,
    };
    let sealed = |frame: ReadyFrame| {
        let FrameRow {
            first_seq,
            base_chain,
            bytes,
            ..
        } = frame.row;
        let seal = *Frame::decode(first_seq.get(), base_chain, bytes)
            .unwrap()
            .seal()
            .unwrap();
        seal.signature[0]
    };
    let frames = prepare(Seq::ZERO, genesis(), &events, 600, Some(sealing)).unwrap();
    assert_eq!(frames.into_iter().map(sealed).collect::<Vec<_>>(), [2, 3, 4]);
}

/// Makes the seals of [`Stamp`], but has no key at the moment.
struct NoKey;

impl Sealer for NoKey {
    fn seal(&self, stream_id: &StreamId, at: &Position) -> Option<Seal> {
        Stamp.seal(stream_id, at)
    }

    fn check(&self, stream_id: &StreamId, at: &Position, seal: &Seal) -> Option<bool> {
        Stamp.check(stream_id, at, seal)
    }

    fn is_ready(&self) -> bool {
        false
    }
}

#[test]
fn a_look_brings_frames_of_the_streams_whose_events_continue_what_is_read_and_only_while_a_key_seals() {
    let events = log(&[100, 300, 100]);
    let [next, broken, elsewhere, quiet] =
        ["next", "broken", "elsewhere", "quiet"].map(|id| StreamId::new(id).unwrap());
    let at = |read: usize| Position {
        seq: seq_of(read),
        chain: events[read - 1].chain_hash,
    };
    let read = [
        (next.clone(), at(1)),
        (broken.clone(), at(1)),
        (elsewhere.clone(), at(2)),
        (quiet, at(3)),
    ];
    let mut altered = events[1..].to_vec();
    altered[1].payload = Bytes::from_static(b"altered");
    let found = [
        (next.clone(), events[1..].to_vec()),
        (broken, altered),
        (elsewhere, events[1..].to_vec()),
    ]
    .into();
    let sealing = Sealing {
        stream_id: &next,
        sealer: &Stamp,
    };
    let frames = prepare(at(1).seq, at(1).chain, &events[1..], 400, Some(sealing)).unwrap();
    assert_eq!(frames.len(), 2);
    let expected = [(next.clone(), frames)].into();
    assert_eq!(prepare_looked(&read, &found, 400, &Stamp), expected);
    assert_eq!(prepare_looked(&read, &found, 400, &NoKey), BTreeMap::new());
}

#[test]
fn only_the_seal_of_the_last_frame_at_the_head_counts() {
    let events = log(&[10, 20]);
    let stream_id = StreamId::new("a").unwrap();
    let sealing = Sealing {
        stream_id: &stream_id,
        sealer: &Stamp,
    };
    let at = |event: &Event| Position {
        seq: event.seq,
        chain: event.chain_hash,
    };
    let frame = |events: &[Event], base, seal: Option<u64>| {
        let seal = seal.and_then(|seq| {
            Stamp.seal(
                &stream_id,
                &Position {
                    seq: Seq::new(seq)?,
                    chain: base,
                },
            )
        });
        let first = events[0].seq.get();
        Frame::decode(first, base, Frame::encode(events, seal.as_ref())).unwrap()
    };
    let (head, before) = (at(&events[1]), at(&events[0]));
    let check = |now: &Position, frames: &[Frame]| check_seal(&head, now, frames, sealing);
    let good = frame(&events, genesis(), Some(2));
    assert_eq!(check(&head, std::slice::from_ref(&good)), HeadSeal::Good);
    assert_eq!(check(&before, std::slice::from_ref(&good)), HeadSeal::Moved);
    assert_eq!(check(&head, &[]), HeadSeal::Unknown, "the window is empty");
    let of_an_old_key = frame(&events, genesis(), Some(100));
    assert_eq!(check(&head, &[of_an_old_key]), HeadSeal::Unknown);
    for (what, frames) in [
        ("no seal", vec![frame(&events, genesis(), None)]),
        ("another seal", vec![frame(&events, genesis(), Some(1))]),
        ("it ends before", vec![frame(&events[..1], genesis(), Some(1))]),
        (
            "the last is missing",
            vec![good, frame(&events[..1], genesis(), Some(1))],
        ),
    ] {
        assert_eq!(check(&head, &frames), HeadSeal::Missing, "{what}");
    }
}

#[test]
fn a_walk_stops_before_the_first_frame_that_is_not_the_bridges() {
    let events = log(&[10, 20, 30, 40]);
    let stream_id = StreamId::new("a").unwrap();
    let sealing = Sealing {
        stream_id: &stream_id,
        sealer: &Stamp,
    };
    let at = |seq: usize| Position {
        seq: seq_of(seq),
        chain: seq
            .checked_sub(1)
            .and_then(|last| events.get(last))
            .map_or(genesis(), |last| last.chain_hash),
    };
    let frame = |first: usize, last: usize, seal: Option<usize>| {
        let seal = seal.and_then(|seq| Stamp.seal(&stream_id, &at(seq)));
        let base = at(first - 1).chain;
        Frame::decode(
            first as u64,
            base,
            Frame::encode(&events[first - 1..last], seal.as_ref()),
        )
        .unwrap()
    };
    let good = || vec![frame(1, 2, Some(2)), frame(3, 4, Some(4))];
    let reached = |after: Option<usize>| Reached {
        seq: after.map_or(Seq::ZERO, seq_of),
        chain: after.map(|after| at(after).chain),
    };
    let check =
        |after: Option<usize>, oldest, frames| check_frames(reached(after), seq_of(oldest), &at(4), frames, sealing);
    let swept = |to| Checked::Swept { to: seq_of(to) };
    let sound = |to, is_end| Checked::Sound { to: at(to), is_end };
    let unsound = |after| Checked::Unsound {
        after: reached(Some(after).filter(|after| *after > 0)),
    };
    assert_eq!(check(None, 1, good()), sound(4, true));
    assert_eq!(check(None, 1, vec![frame(1, 2, Some(2))]), sound(2, false));
    assert_eq!(check(Some(2), 1, vec![frame(3, 4, Some(4))]), sound(4, true));
    // As SpacetimeDB answers about what it no longer holds.
    assert_eq!(check(None, 3, vec![]), swept(2), "the window begins later");
    assert_eq!(check(Some(1), 3, vec![]), swept(2), "a sweep came in between");
    let at_begin = Reached {
        seq: seq_of(2),
        chain: None,
    };
    let from_begin = check_frames(at_begin, seq_of(3), &at(4), vec![frame(3, 4, Some(4))], sealing);
    assert_eq!(from_begin, sound(4, true));
    let at_end = Reached {
        seq: seq_of(4),
        chain: None,
    };
    let of_nothing = check_frames(at_end, seq_of(5), &at(4), vec![], sealing);
    assert_eq!(of_nothing, sound(4, true), "the window is empty");
    assert_eq!(check(Some(4), 1, vec![]), sound(4, true), "nothing follows");
    let of_less = check_frames(reached(Some(4)), seq_of(1), &at(2), vec![], sealing);
    assert_eq!(of_less, sound(2, true), "the log was cut in the meantime");
    let of_another = Position {
        seq: seq_of(4),
        chain: genesis(),
    };
    let of_another = check_frames(reached(Some(4)), seq_of(1), &of_another, vec![], sealing);
    assert_eq!(of_another, unsound(4), "the log ends there with another event");
    assert_eq!(
        check(None, 1, vec![frame(3, 4, Some(4))]),
        unsound(0),
        "the first is missing"
    );
    assert_eq!(check(Some(2), 1, vec![frame(1, 2, Some(2))]), unsound(2), "nothing new");
    assert_eq!(
        check(Some(1), 1, vec![frame(1, 2, Some(2)), frame(3, 4, Some(4))]),
        sound(4, true),
        "the window was filled anew"
    );
    assert_eq!(
        check(None, 1, vec![frame(1, 2, Some(100)), frame(3, 4, Some(4))]),
        sound(4, true),
        "an old key"
    );

    assert_eq!(
        check(None, 1, vec![frame(1, 2, None), frame(3, 4, Some(4))]),
        unsound(0)
    );
    assert_eq!(
        check(None, 1, vec![frame(1, 2, Some(2)), frame(3, 4, Some(2))]),
        unsound(2)
    );
    assert_eq!(
        check(None, 1, vec![frame(1, 1, Some(1)), frame(3, 4, Some(4))]),
        unsound(1)
    );
    assert_eq!(check(Some(2), 1, vec![]), unsound(2), "the end is missing");
    assert_eq!(check(None, 1, vec![]), unsound(0), "all rows are missing");
    let other = Reached {
        seq: seq_of(2),
        chain: Some(genesis()),
    };
    let continues_another = check_frames(other, seq_of(1), &at(4), vec![frame(3, 4, Some(4))], sealing);
    assert_eq!(continues_another, Checked::Unsound { after: other });
    let mut altered = events.clone();
    altered[2].payload = Bytes::from_static(b"altered");
    let bytes = Frame::encode(&altered[2..], Stamp.seal(&stream_id, &at(4)).as_ref());
    let altered = Frame::decode(3, at(2).chain, bytes).unwrap();
    assert_eq!(check(None, 1, vec![frame(1, 2, Some(2)), altered]), unsound(2));
}

#[test]
fn a_page_is_cut_into_frames_that_hold_every_event() {
    let events = log(&[100, 300, 100, 5_000, 10, 10]);
    let frames = prepare_all(&events, 600).unwrap();
    let cuts: Vec<_> = frames
        .iter()
        .map(|frame| (frame.row.first_seq.get(), frame.row.last_seq.get()))
        .collect();
    assert_eq!(cuts, [(1, 2), (3, 3), (4, 4), (5, 6)]);
    let mut held = Vec::new();
    for frame in frames {
        let decoded = Frame::decode(frame.row.first_seq.get(), frame.row.base_chain, frame.row.bytes).unwrap();
        assert_eq!(decoded.last_chain(), frame.last_chain);
        assert_eq!(decoded.last_at_us(), frame.last_at_us);
        held.extend(decoded.into_events_after(Seq::ZERO));
    }
    assert_eq!(held, events);
}

#[test]
fn a_frame_takes_as_many_events_as_fit_exactly() {
    let events = log(&[2_000, 3_000, 4_000]);
    let two = events[..2].iter().map(|event| event.size() + EVENT_OVERHEAD).sum();
    let lasts = |frame_bytes| {
        let frames = prepare_all(&events, frame_bytes).unwrap();
        frames.iter().map(|frame| frame.row.last_seq.get()).collect::<Vec<_>>()
    };
    assert_eq!((lasts(two), lasts(two - 1)), (vec![2, 3], vec![1, 2, 3]));
    let frame = &prepare_all(&events, two).unwrap()[0];
    assert!(frame.size() > 5_000 && frame.size() <= two, "{}", frame.size());
}

#[test]
fn a_page_that_does_not_continue_is_purged_below_the_floor_and_broken_above() {
    let events = log(&[5; 4]);
    let chain = |at: usize| Some(events[at - 1].chain_hash);
    let stream_id = StreamId::new("a").unwrap();
    let sealing = Sealing {
        stream_id: &stream_id,
        sealer: &Stamp,
    };
    let judged = |after, base_chain, floor: Option<u64>, first: usize| {
        let events = &events[first - 1..];
        let doubtful = is_doubtful(seq(after), base_chain, events);
        let page = match judge(seq(after), base_chain, floor.map(seq), events, 1_000, sealing) {
            Page::Frames(frames) => format!("to {}", frames[0].row.last_seq),
            Page::Broken(HaltReason::BrokenLog(_)) => "broken".to_owned(),
            Page::Broken(reason) => reason.code().to_owned(),
            Page::Purged => "purged".to_owned(),
        };
        (doubtful, page)
    };
    for (after, base_chain, floor, first, doubtful, page) in [
        (1, chain(1), None, 2, false, "to 4"),
        // The authority purged it after the page was read.
        (1, chain(1), Some(3), 2, false, "to 4"),
        (1, chain(1), Some(2), 3, true, "purged"),
        (1, chain(1), Some(1), 3, true, "broken"),
        (1, chain(1), None, 3, true, "broken"),
        (1, None, Some(2), 3, true, "purged"),
        (1, None, Some(1), 2, true, "ahead_of_authority"),
        (9, None, Some(1), 5, true, "ahead_of_authority"),
    ] {
        let found = judged(after, base_chain, floor, first);
        assert_eq!(
            found,
            (doubtful, page.to_owned()),
            "after {after}, floor {floor:?}, from {first}"
        );
    }
    assert!(!is_doubtful(seq(4), chain(4), &[]), "the end of the log");
}

#[test]
fn a_broken_log_is_refused() {
    let broken = |change: fn(&mut Vec<Event>)| {
        let mut events = log(&[5; 4]);
        change(&mut events);
        prepare_all(&events, 10_000).map(|_| ())
    };
    assert_eq!(broken(|_| {}), Ok(()));
    for (name, answer) in [
        ("a gap", broken(|events| drop(events.remove(1)))),
        (
            "a payload",
            broken(|events| events[2].payload = Bytes::from_static(b"other")),
        ),
        ("a kind", broken(|events| events[2].kind = Kind::new("u").unwrap())),
        (
            "a link",
            broken(|events| events[1].chain_hash = ChainHash::from_bytes([9; 32])),
        ),
    ] {
        assert!(matches!(answer, Err(HaltReason::BrokenLog(_))), "{name}");
    }
    // All hashes match, but no client would take such an event.
    for (length, is_taken) in [
        (0, false),
        (1, true),
        (limit::PAYLOAD_BYTES, true),
        (limit::PAYLOAD_BYTES + 1, false),
    ] {
        let answer = prepare_all(&log(&[5, length, 5]), limit::FRAME_BYTES);
        assert_eq!(answer.is_ok(), is_taken, "{length} bytes");
    }
}
