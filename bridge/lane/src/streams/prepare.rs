//! Checks every hash in a page of the authority's log, and cuts the page into frames.

use std::collections::BTreeMap;

use spacetime_sync_proto::{ChainHash, Event, Frame, FrameRow, Position, Seal, Sealer, Seq, StreamId, limit};

use super::HaltReason;
use crate::message::{Checked, HeadSeal, Page, Reached};

/// A frame whose hashes are checked, and what a call states about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyFrame {
    /// The frame.
    pub row: FrameRow,
    /// Chain hash of its last event.
    pub last_chain: ChainHash,
    /// When its last event was committed, in microseconds since 1970-01-01 UTC, by the authority's clock.
    pub last_at_us: i64,
}

impl ReadyFrame {
    /// How many bytes the frame has.
    pub fn size(&self) -> usize {
        self.row.bytes.len()
    }
}

/// Who seals the frames of a stream.
#[derive(Clone, Copy)]
pub struct Sealing<'a> {
    /// The stream.
    pub stream_id: &'a StreamId,
    /// Who has the key.
    pub sealer: &'a dyn Sealer,
}

impl Sealing<'_> {
    fn seal(&self, last: &Event) -> Option<Seal> {
        let (seq, chain) = (last.seq, last.chain_hash);
        self.sealer.seal(self.stream_id, &Position { seq, chain })
    }
}

/// Cuts the events after `after` into frames of at most `frame_bytes` and [`limit::FRAME_EVENTS`], with one event at least.
/// Checks every seq, length, payload hash and chain hash first: the bridge does not trust the authority's log blindly, and
/// nobody looks into a frame again before clients do.
/// Frames that SpacetimeDB is to deliver are sealed.
pub fn prepare(
    after: Seq,
    base_chain: ChainHash,
    events: &[Event],
    frame_bytes: usize,
    sealing: Option<Sealing<'_>>,
) -> Result<Vec<ReadyFrame>, HaltReason> {
    let (mut seq, mut chain) = (after, base_chain);
    for event in events {
        let expected = seq.next();
        if event.seq != expected {
            return Err(HaltReason::BrokenLog(format!(
                "expected seq {expected}, found seq {}",
                event.seq
            )));
        }
        let length = event.payload.len();
        if length == 0 || length > limit::PAYLOAD_BYTES {
            return Err(HaltReason::BrokenLog(format!(
                "the payload of seq {expected} has {length} bytes, expected 1 to {}",
                limit::PAYLOAD_BYTES
            )));
        }
        if !event.payload_matches() {
            return Err(HaltReason::BrokenLog(format!(
                "the payload of seq {expected} does not match its payload hash"
            )));
        }
        if !event.follows(&chain) {
            return Err(HaltReason::BrokenLog(format!(
                "the chain hash of seq {expected} does not follow from the one before"
            )));
        }
        (seq, chain) = (event.seq, event.chain_hash);
    }
    let mut frames = Vec::new();
    let (mut base, mut rest) = (base_chain, events);
    while !rest.is_empty() {
        let mut bytes = 0;
        let fitting = rest
            .iter()
            .take(limit::FRAME_EVENTS)
            .take_while(|event| {
                bytes += event.size() + EVENT_OVERHEAD;
                bytes <= frame_bytes
            })
            .count();
        let (frame, later) = rest.split_at(fitting.max(1));
        let (first, last) = (&frame[0], &frame[frame.len() - 1]);
        let seal = sealing.and_then(|sealing| sealing.seal(last));
        frames.push(ReadyFrame {
            row: FrameRow {
                first_seq: first.seq,
                last_seq: last.seq,
                base_chain: base,
                bytes: Frame::encode(frame, seal.as_ref()),
            },
            last_chain: last.chain_hash,
            last_at_us: last.committed_at_us,
        });
        (base, rest) = (last.chain_hash, later);
    }
    Ok(frames)
}

/// The frames of events that a look brought. `read` says up to where each stream is read. A stream whose events do not
/// continue from there has none: the page that is then read says what is wrong. Neither has any stream while no key seals.
pub fn prepare_looked(
    read: &[(StreamId, Position)],
    events: &BTreeMap<StreamId, Vec<Event>>,
    frame_bytes: usize,
    sealer: &dyn Sealer,
) -> BTreeMap<StreamId, Vec<ReadyFrame>> {
    let frames = |(stream_id, at): &(StreamId, Position)| {
        let sealing = Sealing { stream_id, sealer };
        let events = events.get(stream_id)?;
        let frames = prepare(at.seq, at.chain, events, frame_bytes, Some(sealing)).ok()?;
        sealer.is_ready().then(|| (stream_id.clone(), frames))
    };
    read.iter().filter_map(frames).collect()
}

/// How many bytes an event takes in a frame beside its own, at most: hash, time, tags and lengths.
const EVENT_OVERHEAD: usize = 64;

/// Whether a page does not continue from where it was asked for. To judge such a page, [`judge`] must know the floor up to
/// which the authority has purged its log.
pub fn is_doubtful(after: Seq, base_chain: Option<ChainHash>, events: &[Event]) -> bool {
    base_chain.is_none() || events.first().is_some_and(|first| first.seq != after.next())
}

/// Turns the events after `after` into a page. `base_chain` is the authority's chain hash at `after`, if it has one. `floor`
/// is the seq up to which the authority has purged the log, if the caller asked.
pub fn judge(
    after: Seq,
    base_chain: Option<ChainHash>,
    floor: Option<Seq>,
    events: &[Event],
    frame_bytes: usize,
    sealing: Sealing<'_>,
) -> Page {
    if is_doubtful(after, base_chain, events) && floor.is_some_and(|floor| after < floor) {
        return Page::Purged;
    }
    match base_chain {
        None => Page::Broken(HaltReason::AheadOfAuthority),
        Some(base_chain) => match prepare(after, base_chain, events, frame_bytes, Some(sealing)) {
            Ok(frames) => Page::Frames(frames),
            Err(reason) => Page::Broken(reason),
        },
    }
}

/// Whether the bridge sealed the head of a log in SpacetimeDB. `now` is where the log ends, and `frames` are the last ones
/// that SpacetimeDB holds. A row that does not hold the frame that it states is not among them: where that leaves none,
/// this is [`HeadSeal::Unknown`], and their reader, who has seen the row, says [`HeadSeal::Missing`].
pub fn check_seal(head: &Position, now: &Position, frames: &[Frame], sealing: Sealing<'_>) -> HeadSeal {
    if now != head {
        return HeadSeal::Moved;
    }
    let Some(last) = frames.last() else {
        return HeadSeal::Unknown;
    };
    let ends = Position {
        seq: last.last_seq(),
        chain: last.last_chain(),
    };
    let check = |seal: &Seal| sealing.sealer.check(sealing.stream_id, head, seal);
    match last.seal().filter(|_| ends == *head).map(check) {
        Some(Some(true)) => HeadSeal::Good,
        Some(None) => HeadSeal::Unknown,
        Some(Some(false)) | None => HeadSeal::Missing,
    }
}

/// Checks the next frames of a walk through a window: whether they continue from one another, and the bridge sealed each.
/// `after` is up to where the walk has come. The log that SpacetimeDB holds begins at `oldest` and ends at `head`. The frames
/// end before a row that does not hold the frame that it states, so the walk comes to it with the next frames, of which
/// there are none.
pub fn check_frames(after: Reached, oldest: Seq, head: &Position, frames: Vec<Frame>, sealing: Sealing<'_>) -> Checked {
    let swept = oldest.previous();
    if after.seq < swept {
        // SpacetimeDB answers with no frames, because it no longer holds the next event.
        return Checked::Swept { to: swept };
    }
    if head.seq < after.seq {
        // The log was cut in the meantime. Whoever does that compares the stream afterwards.
        return Checked::Sound {
            to: *head,
            is_end: true,
        };
    }
    let (mut sound, is_empty) = (after, frames.is_empty());
    for frame in frames {
        let ends = Position {
            seq: frame.last_seq(),
            chain: frame.last_chain(),
        };
        // A seal by a key that is gone proves nothing, and neither does it accuse anybody.
        let is_sealed = |seal: &Seal| sealing.sealer.check(sealing.stream_id, &ends, seal) != Some(false);
        // Where another bridge has refilled the window in the meantime, a frame may begin before.
        let follows = frame.first_seq() <= sound.seq.next() && ends.seq > sound.seq;
        let continues = sound.chain.is_none_or(|chain| frame.chain_at(sound.seq) == Some(chain));
        let is_whole = follows && continues && frame.seal().is_some_and(is_sealed);
        if !is_whole || !frame.into_events_after(Seq::ZERO).all(|event| event.payload_matches()) {
            return Checked::Unsound { after: sound };
        }
        sound = Reached {
            seq: ends.seq,
            chain: Some(ends.chain),
        };
    }
    let is_end = sound.seq == head.seq;
    match sound.chain {
        Some(chain) if is_end && chain != head.chain => Checked::Unsound { after: sound },
        // Rows are missing.
        _ if is_empty && !is_end => Checked::Unsound { after: sound },
        chain => Checked::Sound {
            to: Position {
                seq: sound.seq,
                chain: chain.unwrap_or(head.chain),
            },
            is_end,
        },
    }
}

#[cfg(test)]
mod tests {
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
        let check = |after: Option<usize>, oldest, frames| {
            check_frames(reached(after), seq_of(oldest), &at(4), frames, sealing)
        };
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
}
