//! Frames: consecutive events of one stream as one value. Events are appended, stored and paged as frames.
//!
//! Decoding checks lengths, names, and the chain from the frame's base to its end. It hashes no payload: the bridge
//! does that before it sends a frame, and the client before it applies one. The module decodes only what it must cut
//! (docs/adr/0019). Checking copies nothing out of the frame; events are made only for callers that ask for them.

mod message;

use std::ops::Range;

use bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use crate::event::Event;
use crate::hash::{ChainHash, PayloadHash};
use crate::id::{IdempotencyKey, InvalidId, Kind, Seq};
use crate::limit;
use crate::seal::{SEAL_BYTES, Seal};
use message::Places;

/// A frame whose form and chain are checked.
#[derive(Debug, Clone)]
pub struct Frame {
    first_seq: Seq,
    base_chain: ChainHash,
    bytes: Bytes,
    events: Vec<Places>,
    links: Vec<ChainHash>,
    seal: Option<Seal>,
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The bytes are not the protobuf message of a frame.
    #[error("the frame cannot be decoded: {0}")]
    Malformed(String),
    /// Longer than [`limit::FRAME_BYTES`].
    #[error("the frame has {found} bytes, at most {} are allowed", limit::FRAME_BYTES)]
    TooLarge {
        /// Its length in bytes.
        found: usize,
    },
    /// No event, or more than [`limit::FRAME_EVENTS`].
    #[error("the frame holds {found} events, 1 to {} are allowed", limit::FRAME_EVENTS)]
    EventCount {
        /// How many it holds.
        found: usize,
    },
    /// The first seq is 0, or the last one is past [`Seq::MAX`].
    #[error("a frame cannot begin at seq {found}: expected its seqs between 1 and {}", Seq::MAX)]
    FirstSeq {
        /// The first seq that its carrier stated.
        found: u64,
    },
    /// An event's key or kind is not a valid name.
    #[error("event {seq}: {invalid}")]
    Id {
        /// The event's seq.
        seq: Seq,
        /// What is wrong with it.
        invalid: InvalidId,
    },
    /// An event's payload is empty or longer than [`limit::PAYLOAD_BYTES`].
    #[error(
        "event {seq}: the payload has {found} bytes, 1 to {} are allowed",
        limit::PAYLOAD_BYTES
    )]
    PayloadSize {
        /// The event's seq.
        seq: Seq,
        /// Its length in bytes.
        found: usize,
    },
    /// An event's payload hash is not 32 bytes.
    #[error("event {seq}: the payload hash has {found} bytes, expected 32")]
    PayloadHashLength {
        /// The event's seq.
        seq: Seq,
        /// Its length in bytes.
        found: usize,
    },
    /// The seal is neither empty nor of its length.
    #[error("the seal has {found} bytes, expected {SEAL_BYTES}")]
    SealLength {
        /// Its length in bytes.
        found: usize,
    },
}

impl Frame {
    /// Decodes and checks the bytes of a frame that begins at `first_seq` and follows a log that ends with
    /// `base_chain`.
    pub fn decode(first_seq: u64, base_chain: ChainHash, bytes: Bytes) -> Result<Self, FrameError> {
        if bytes.len() > limit::FRAME_BYTES {
            return Err(FrameError::TooLarge { found: bytes.len() });
        }
        // Surplus events are counted but not kept. The message is still read to its end, so that a malformed one is
        // reported as malformed first.
        let (mut events, mut count) = (Vec::new(), 0);
        let seal = message::read(&bytes, |event| {
            count += 1;
            if count <= limit::FRAME_EVENTS {
                events.push(event);
            }
        })?;
        if count == 0 || count > limit::FRAME_EVENTS {
            return Err(FrameError::EventCount { found: count });
        }
        let seal = match &bytes[seal] {
            [] => None,
            bytes => Some(Seal::from_slice(bytes).ok_or(FrameError::SealLength { found: bytes.len() })?),
        };
        let first = Seq::new(first_seq)
            .filter(|seq| *seq > Seq::ZERO && Seq::MAX.since(*seq) >= count as u64)
            .ok_or(FrameError::FirstSeq { found: first_seq })?;
        let mut links = Vec::with_capacity(count);
        let mut chain = base_chain;
        let mut seq = first;
        for event in &events {
            let invalid = |invalid| FrameError::Id { seq, invalid };
            let (key, kind) = (text(&bytes, &event.idempotency_key), text(&bytes, &event.kind));
            IdempotencyKey::check(key).map_err(invalid)?;
            Kind::check(kind).map_err(invalid)?;
            let found = event.payload.len();
            if found == 0 || found > limit::PAYLOAD_BYTES {
                return Err(FrameError::PayloadSize { seq, found });
            }
            let payload_hash =
                PayloadHash::from_slice(part(&bytes, &event.payload_hash)).ok_or(FrameError::PayloadHashLength {
                    seq,
                    found: event.payload_hash.len(),
                })?;
            chain = chain.link_text(seq, event.committed_at_us, &payload_hash, key, kind);
            links.push(chain);
            seq = seq.next();
        }
        Ok(Self {
            first_seq: first,
            base_chain,
            bytes,
            events,
            links,
            seal,
        })
    }

    /// The bytes of a frame of these events. The caller guarantees that they are consecutive, and that the seal is for
    /// the last of them.
    ///
    /// The fields are written by hand, because a message of the generated types would cost three allocations per event.
    pub fn encode(events: &[Event], seal: Option<&Seal>) -> Bytes {
        encode(events.iter().map(Fields::of), seal)
    }

    /// The seal of the last event. Nobody has verified it.
    pub fn seal(&self) -> Option<&Seal> {
        self.seal.as_ref()
    }

    /// The seq of the first event.
    pub fn first_seq(&self) -> Seq {
        self.first_seq
    }

    /// The seq of the last event.
    pub fn last_seq(&self) -> Seq {
        self.first_seq.plus(self.events.len() as u64 - 1)
    }

    /// The chain hash before the first event.
    pub fn base_chain(&self) -> ChainHash {
        self.base_chain
    }

    /// The chain hash of the last event.
    pub fn last_chain(&self) -> ChainHash {
        self.links[self.links.len() - 1]
    }

    /// The chain hash at a seq, from just before the first event up to the last. `None` outside the frame.
    pub fn chain_at(&self, seq: Seq) -> Option<ChainHash> {
        if seq.next() == self.first_seq {
            return Some(self.base_chain);
        }
        if seq < self.first_seq {
            return None;
        }
        self.links.get(seq.offset_from(self.first_seq)).copied()
    }

    /// The bytes of what remains of the frame without the events up to `seq`. The seal remains, because the last event
    /// does. `None` if nothing remains.
    pub fn encode_after(self, seq: Seq) -> Option<Bytes> {
        let cut = seq.next().offset_from(self.first_seq).min(self.events.len());
        let rest = self.events[cut..].iter().map(|event| Fields::at(&self.bytes, event));
        (cut < self.events.len()).then(|| encode(rest, self.seal.as_ref()))
    }

    /// The bytes of what remains of the frame without the events after `seq`. The frame's own seal remains only if its
    /// last event does; `seal` is for the event at `seq`. `None` if nothing remains.
    pub fn encode_until(self, seq: Seq, seal: Option<&Seal>) -> Option<Bytes> {
        let keep = seq.next().offset_from(self.first_seq).min(self.events.len());
        let rest = self.events[..keep].iter().map(|event| Fields::at(&self.bytes, event));
        let seal = if keep < self.events.len() {
            seal
        } else {
            self.seal.as_ref()
        };
        (keep > 0).then(|| encode(rest, seal))
    }

    /// When the last event was committed, in microseconds since 1970-01-01 UTC, by the authority's clock.
    pub fn last_at_us(&self) -> i64 {
        self.events.last().map_or(0, |event| event.committed_at_us)
    }

    /// The events after `after`, each with its hashes.
    pub fn into_events_after(self, after: Seq) -> impl Iterator<Item = Event> {
        let (first, bytes) = (self.first_seq, self.bytes);
        let skip = after.next().offset_from(first);
        let mut last_kind: Option<Kind> = None;
        self.events
            .into_iter()
            .zip(self.links)
            .enumerate()
            .skip(skip)
            .map(move |(at, (event, chain_hash))| {
                let kind = text(&bytes, &event.kind);
                // Neighbours are mostly of one kind. Sharing it saves a check and an allocation.
                let kind = match last_kind.take() {
                    Some(last) if last.as_str() == kind => last,
                    // Infallible: `decode` checked keys, kinds and hash lengths, and nothing else makes a `Frame`.
                    _ => Kind::new(kind).expect("checked by decode"),
                };
                last_kind = Some(kind.clone());
                let key = text(&bytes, &event.idempotency_key);
                let payload_hash = part(&bytes, &event.payload_hash);
                Event {
                    seq: first.plus(at as u64),
                    idempotency_key: IdempotencyKey::new(key).expect("checked by decode"),
                    kind,
                    payload_hash: PayloadHash::from_slice(payload_hash).expect("checked by decode"),
                    payload: bytes.slice(event.payload.start as usize..event.payload.end as usize),
                    chain_hash,
                    committed_at_us: event.committed_at_us,
                }
            })
    }
}

fn part<'a>(bytes: &'a [u8], place: &Range<u32>) -> &'a [u8] {
    &bytes[place.start as usize..place.end as usize]
}

fn text<'a>(bytes: &'a [u8], place: &Range<u32>) -> &'a str {
    // Infallible: `message::read` accepts only UTF-8 in these fields.
    std::str::from_utf8(part(bytes, place)).expect("checked when it was read")
}

/// The encoded fields of an event: the byte fields with their tags, and the time.
struct Fields<'a> {
    bytes: [(u32, &'a [u8]); 4],
    committed_at_us: i64,
}

impl<'a> Fields<'a> {
    fn of(event: &'a Event) -> Self {
        Self {
            bytes: [
                (1, event.idempotency_key.as_str().as_bytes()),
                (2, event.kind.as_str().as_bytes()),
                (3, &event.payload),
                (4, event.payload_hash.as_bytes()),
            ],
            committed_at_us: event.committed_at_us,
        }
    }

    fn at(bytes: &'a [u8], event: &Places) -> Self {
        Self {
            bytes: [
                (1, part(bytes, &event.idempotency_key)),
                (2, part(bytes, &event.kind)),
                (3, part(bytes, &event.payload)),
                (4, part(bytes, &event.payload_hash)),
            ],
            committed_at_us: event.committed_at_us,
        }
    }

    /// The encoded length. Protobuf leaves out a field that has its default value.
    fn length(&self) -> usize {
        let bytes: usize = self
            .bytes
            .iter()
            .filter(|(_, bytes)| !bytes.is_empty())
            .map(|(_, bytes)| delimited(bytes.len()))
            .sum();
        let time = match self.committed_at_us {
            0 => 0,
            time => 1 + encoded_len_varint(time as u64),
        };
        bytes + time
    }
}

fn encode<'a>(events: impl Iterator<Item = Fields<'a>> + Clone, seal: Option<&Seal>) -> Bytes {
    let events_length: usize = events.clone().map(|event| delimited(event.length())).sum();
    let bare = events_length + seal.map_or(0, |_| delimited(SEAL_BYTES));
    let padding = limit::FRAME_PADDED_BYTES.saturating_sub(bare);
    let mut out = Vec::with_capacity(bare + if padding > 0 { delimited(padding) } else { 0 });
    for event in events {
        encode_key(1, WireType::LengthDelimited, &mut out);
        encode_varint(event.length() as u64, &mut out);
        for (tag, bytes) in event.bytes {
            put(tag, bytes, &mut out);
        }
        if event.committed_at_us != 0 {
            encode_key(5, WireType::Varint, &mut out);
            encode_varint(event.committed_at_us as u64, &mut out);
        }
    }
    if let Some(seal) = seal {
        put(2, &seal.to_bytes(), &mut out);
    }
    put(15, &[0; limit::FRAME_PADDED_BYTES][..padding], &mut out);
    out.into()
}

/// The encoded length of a field of this many bytes: a tag below 16, the length, the bytes.
fn delimited(bytes: usize) -> usize {
    1 + encoded_len_varint(bytes as u64) + bytes
}

fn put(tag: u32, bytes: &[u8], out: &mut Vec<u8>) {
    if !bytes.is_empty() {
        encode_key(tag, WireType::LengthDelimited, out);
        encode_varint(bytes.len() as u64, out);
        out.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
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
            frame.padding =
                Bytes::from_static(&[0; limit::FRAME_PADDED_BYTES]).slice(..limit::FRAME_PADDED_BYTES - bare);
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
}
