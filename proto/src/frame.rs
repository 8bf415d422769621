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
use message::{Places, Read};

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
    /// Fewer bytes than [`Frame::least_bytes`], so it cannot have the events that its carrier states.
    #[error("the frame has {found} bytes, at least {least} are needed for its events")]
    TooSmall {
        /// How many bytes a frame of so many events has at least.
        least: usize,
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
    /// The last seq is 0 or past [`Seq::MAX`].
    #[error("a frame cannot end at seq {found}: expected its seqs between 1 and {}", Seq::MAX)]
    LastSeq {
        /// The last seq that its carrier stated.
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
        let mut checking = Checking {
            seq: Seq::new(first_seq).filter(|seq| *seq > Seq::ZERO),
            chain: base_chain,
            last_kind: "",
            events: Vec::new(),
            links: Vec::new(),
            count: 0,
            invalid: None,
        };
        let seal = message::read(&bytes, |event| checking.event(event))?;
        let Checking {
            events,
            links,
            count,
            invalid,
            ..
        } = checking;
        if count == 0 || count > limit::FRAME_EVENTS {
            return Err(FrameError::EventCount { found: count });
        }
        let seal = match &bytes[seal] {
            [] => None,
            bytes => Some(Seal::from_slice(bytes).ok_or(FrameError::SealLength { found: bytes.len() })?),
        };
        let first_seq = Seq::new(first_seq)
            .filter(|seq| *seq > Seq::ZERO && Seq::MAX.since(*seq) >= count as u64)
            .ok_or(FrameError::FirstSeq { found: first_seq })?;
        match invalid {
            Some(invalid) => Err(invalid),
            None => Ok(Self {
                first_seq,
                base_chain,
                bytes,
                events,
                links,
                seal,
            }),
        }
    }

    /// The bytes of a frame of these events. The caller guarantees that they are consecutive, and that the seal is for
    /// the last of them.
    ///
    /// The fields are written by hand, because a message of the generated types would cost three allocations per event.
    pub fn encode(events: &[Event], seal: Option<&Seal>) -> Bytes {
        encode(events.iter().map(Fields::of), seal)
    }

    /// The fewest bytes that a frame of so many events can have: short frames are padded.
    pub const fn least_bytes(events: usize) -> usize {
        let events = events.saturating_mul(LEAST_EVENT_BYTES);
        if events > limit::FRAME_PADDED_BYTES {
            events
        } else {
            limit::FRAME_PADDED_BYTES
        }
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
                // Neighbours are mostly of one kind. Sharing it saves a check and an allocation.
                let kind = match last_kind.take() {
                    Some(last) if last.as_str().as_bytes() == part(&bytes, &event.kind) => last,
                    // Infallible: `decode` checked keys, kinds and hash lengths, and nothing else makes a `Frame`.
                    _ => Kind::checked(text(&bytes, &event.kind)),
                };
                last_kind = Some(kind.clone());
                let payload_hash = part(&bytes, &event.payload_hash);
                Event {
                    seq: first.plus(at as u64),
                    idempotency_key: IdempotencyKey::checked(text(&bytes, &event.idempotency_key)),
                    kind,
                    payload_hash: PayloadHash::from_slice(payload_hash).expect("checked by decode"),
                    payload: bytes.slice(event.payload.start as usize..event.payload.end as usize),
                    chain_hash,
                    committed_at_us: event.committed_at_us,
                }
            })
    }
}

/// Checks the events of a message while it is read, and links them. What is wrong with the message as a whole is reported
/// before what is wrong with an event.
struct Checking<'a> {
    /// Of the next event. `None` if no event can have it.
    seq: Option<Seq>,
    /// Up to the next event.
    chain: ChainHash,
    /// The last kind that was checked. Neighbours are mostly of one kind.
    last_kind: &'a str,
    events: Vec<Places>,
    links: Vec<ChainHash>,
    /// Counts surplus events, too, which are not kept.
    count: usize,
    /// What is wrong with the first event that is not valid.
    invalid: Option<FrameError>,
}

impl<'a> Checking<'a> {
    fn event(&mut self, event: Read<'a>) {
        self.count += 1;
        let Some(seq) = self
            .seq
            .filter(|_| self.count <= limit::FRAME_EVENTS && self.invalid.is_none())
        else {
            return;
        };
        match self.link(seq, &event) {
            Ok(chain) => {
                self.chain = chain;
                self.links.push(chain);
                self.events.push(event.places);
                self.seq = Some(seq.next());
            }
            Err(invalid) => self.invalid = Some(invalid),
        }
    }

    /// The chain hash of an event, if the event is valid.
    fn link(&mut self, seq: Seq, event: &Read<'a>) -> Result<ChainHash, FrameError> {
        let invalid = |invalid| FrameError::Id { seq, invalid };
        let (key, kind, places) = (event.idempotency_key, event.kind, &event.places);
        IdempotencyKey::check(key).map_err(invalid)?;
        if kind != self.last_kind || kind.is_empty() {
            Kind::check(kind).map_err(invalid)?;
            self.last_kind = kind;
        }
        let found = places.payload.len();
        if found == 0 || found > limit::PAYLOAD_BYTES {
            return Err(FrameError::PayloadSize { seq, found });
        }
        let found = places.payload_hash.len();
        let payload_hash =
            PayloadHash::from_slice(event.payload_hash).ok_or(FrameError::PayloadHashLength { seq, found })?;
        Ok(self
            .chain
            .link_text(seq, places.committed_at_us, &payload_hash, key, kind))
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
const fn delimited(bytes: usize) -> usize {
    1 + encoded_len_varint(bytes as u64) + bytes
}

/// The encoded length of the smallest event: key, kind and payload of one byte each, and a payload hash. A time of 0 is
/// left out.
const LEAST_EVENT_BYTES: usize = delimited(3 * delimited(1) + delimited(32));

fn put(tag: u32, bytes: &[u8], out: &mut Vec<u8>) {
    if !bytes.is_empty() {
        encode_key(tag, WireType::LengthDelimited, out);
        encode_varint(bytes.len() as u64, out);
        out.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests;
