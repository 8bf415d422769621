//! The frames of WebSockets: what a client sends is cut into messages, of what SpacetimeDB sends only the lengths are
//! read.

use bytes::{Buf as _, Bytes, BytesMut};
use std::io::Cursor;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame, FrameHeader};

use spacetime_sync_proto::Refusal;
use spacetimedb_client_api_messages::websocket::common::SERVER_MSG_COMPRESSION_TAG_NONE;

use crate::decide::Breach;

/// Longest payload of a control frame.
const CONTROL_BYTES: usize = 125;
/// The most frames of one message. The SDK sends one; a proxy may cut it.
const PARTS: usize = 64;

/// What a client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromClient {
    /// A whole message.
    Message(Bytes),
    /// A ping.
    Ping(Bytes),
    /// A pong.
    Pong(Bytes),
    /// It closes the connection.
    Close(Bytes),
}

/// Cuts a client's bytes into messages.
#[derive(Debug)]
pub struct Reader {
    longest: usize,
    /// The beginning of a message that comes in several frames, and how many came.
    begun: Option<(BytesMut, usize)>,
}

impl Reader {
    /// A reader that accepts messages up to this length.
    pub fn new(longest: usize) -> Self {
        Self { longest, begun: None }
    }

    /// Takes the next message from the bytes, if it has arrived whole.
    pub fn next(&mut self, bytes: &mut BytesMut) -> Result<Option<FromClient>, Breach> {
        loop {
            let mut at = Cursor::new(&bytes[..]);
            let Some((header, length)) = FrameHeader::parse(&mut at).map_err(|_| Breach::Malformed)? else {
                return Ok(None);
            };
            let start = usize::try_from(at.position()).map_err(|_| Breach::Malformed)?;
            let mask = header.mask.ok_or(Breach::Malformed)?;
            if header.rsv1 || header.rsv2 || header.rsv3 {
                return Err(Breach::Malformed);
            }
            let held = self.begun.as_ref().map_or(0, |(begun, _)| begun.len());
            let room = match header.opcode {
                OpCode::Control(_) => CONTROL_BYTES,
                OpCode::Data(_) => self.longest.saturating_sub(held),
            };
            // Before the bytes have arrived, so that nobody makes the gate wait for them.
            let length = usize::try_from(length).map_err(|_| Breach::TooLong)?;
            if length > room {
                return Err(Breach::TooLong);
            }
            if bytes.len() < start + length {
                return Ok(None);
            }
            bytes.advance(start);
            let mut payload = bytes.split_to(length);
            unmask(&mut payload, mask);
            match (header.opcode, header.is_final, &mut self.begun) {
                (OpCode::Control(kind), true, _) => {
                    let payload = payload.freeze();
                    return match kind {
                        Control::Ping => Ok(Some(FromClient::Ping(payload))),
                        Control::Pong => Ok(Some(FromClient::Pong(payload))),
                        Control::Close => Ok(Some(FromClient::Close(payload))),
                        Control::Reserved(_) => Err(Breach::Malformed),
                    };
                }
                (OpCode::Data(Data::Binary), true, None) => return Ok(Some(FromClient::Message(payload.freeze()))),
                // A part that brings nothing would cost the sender nothing.
                (OpCode::Data(_), false, _) if payload.is_empty() => return Err(Breach::Malformed),
                (OpCode::Data(Data::Binary), false, None) => self.begun = Some((payload, 1)),
                (OpCode::Data(Data::Continue), is_final, Some((begun, parts))) if *parts < PARTS => {
                    begun.extend_from_slice(&payload);
                    *parts += 1;
                    if is_final && let Some((whole, _)) = self.begun.take() {
                        return Ok(Some(FromClient::Message(whole.freeze())));
                    }
                }
                _ => return Err(Breach::Malformed),
            }
        }
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// Writes a message to SpacetimeDB.
pub fn message(payload: Vec<u8>, mask: [u8; 4], out: &mut BytesMut) {
    masked(Frame::message(payload, OpCode::Data(Data::Binary), true), mask, out);
}

/// Writes a ping to SpacetimeDB.
pub fn ping(payload: Bytes, mask: [u8; 4], out: &mut BytesMut) {
    masked(Frame::ping(payload), mask, out);
}

/// Writes a pong to SpacetimeDB.
pub fn pong(payload: Bytes, mask: [u8; 4], out: &mut BytesMut) {
    masked(Frame::pong(payload), mask, out);
}

/// Writes the end of the connection to SpacetimeDB, with what the client said about it.
pub fn close(payload: Bytes, mask: [u8; 4], out: &mut BytesMut) {
    let header = FrameHeader {
        opcode: OpCode::Control(Control::Close),
        ..FrameHeader::default()
    };
    masked(Frame::from_payload(header, payload), mask, out);
}

/// Writes the end of the connection to a client, with the reason.
pub fn close_client(refusal: &Refusal, out: &mut BytesMut) {
    let mut reason = refusal.to_wire();
    if reason.len() > CONTROL_BYTES - 2 {
        reason = Refusal::new(refusal.code, "").to_wire();
    }
    let frame = CloseFrame {
        code: CloseCode::Policy,
        reason: reason.into(),
    };
    write(Frame::close(Some(frame)), out);
}

fn masked(mut frame: Frame, mask: [u8; 4], out: &mut BytesMut) {
    frame.header_mut().mask = Some(mask);
    write(frame, out);
}

fn write(frame: Frame, out: &mut BytesMut) {
    let mut bytes = Vec::with_capacity(frame.len());
    // Writing into memory cannot fail.
    let _ = frame.format(&mut bytes);
    out.extend_from_slice(&bytes);
}

/// Follows what SpacetimeDB sends from frame to frame, so that the gate knows where it may say something itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Walk {
    header: Header,
    /// What is missing of the payload.
    missing: u64,
    message: Message,
    /// How many frames have begun.
    pub frames: u64,
    /// How many bytes have answered subscriptions.
    pub subscribed: u64,
    /// How many answers to subscriptions, and to ends of subscriptions, are whole.
    pub answers: u64,
}

/// The message that has begun. SpacetimeDB cuts long ones into many frames, and may say something else in between.
#[derive(Debug, Clone, Copy, Default)]
struct Message {
    /// Its length, with the frame that has begun.
    length: u64,
    /// Its first bytes, and how many of them have come.
    first: [u8; ANSWER_BYTES],
    come: usize,
    /// Whether the frame that has begun is a part of it, and whether it is the last one.
    goes_on: bool,
    ends: bool,
}

/// The second byte of a message with which a subscription begins. The number of the question and of the subscription follow,
/// with four bytes each. The gate asks for no compression, so the first byte says that there is none.
const SUBSCRIBE_APPLIED: u8 = 1;
/// The second byte of a message with which a subscription ends.
const UNSUBSCRIBE_APPLIED: u8 = 2;
/// The second byte of a message that refuses a subscription or its end.
const SUBSCRIPTION_ERROR: u8 = 3;
const ANSWER_BYTES: usize = 10;

#[derive(Debug, Clone, Copy, Default)]
struct Header {
    bytes: [u8; 14],
    length: usize,
}

impl Walk {
    /// Goes over bytes.
    pub fn over(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = usize::try_from(self.missing).unwrap_or(usize::MAX).min(bytes.len());
            if skipped > 0 {
                self.message.comes(&bytes[..skipped]);
                if self.message.tag() == Some(SUBSCRIBE_APPLIED) {
                    self.subscribed += skipped as u64;
                }
                self.missing -= skipped as u64;
                self.count_if_whole();
            }
            bytes = &bytes[skipped..];
            if self.missing > 0 {
                return;
            }
            while let [byte, rest @ ..] = bytes {
                bytes = rest;
                if let Some(payload) = self.header.push(*byte) {
                    self.missing = payload;
                    self.frames += 1;
                    self.message.frame(self.header.bytes[0], payload);
                    self.count_if_whole();
                    break;
                }
            }
        }
    }

    /// Counts the message if it is whole.
    fn count_if_whole(&mut self) {
        let answers = [SUBSCRIBE_APPLIED, UNSUBSCRIBE_APPLIED, SUBSCRIPTION_ERROR];
        if self.missing == 0
            && self.message.is_last_part()
            && self.message.tag().is_some_and(|tag| answers.contains(&tag))
        {
            self.answers += 1;
        }
    }

    /// The subscription that begins with the message under way, and the length of the message so far.
    pub fn subscription(&self) -> Option<(u32, u64)> {
        let Message {
            first, come, length, ..
        } = self.message;
        let [SERVER_MSG_COMPRESSION_TAG_NONE, SUBSCRIBE_APPLIED, _, _, _, _, id @ ..] = first else {
            return None;
        };
        (come == ANSWER_BYTES).then_some((u32::from_le_bytes(id), length))
    }

    /// How many of these bytes, which come next, belong to the frame that has begun. `None` if they do not end it.
    pub fn rest(mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0_usize;
        while !self.is_between_frames() {
            if self.missing > 0 {
                at = at.checked_add(usize::try_from(self.missing).ok()?)?;
                return (at <= bytes.len()).then_some(at);
            }
            let byte = *bytes.get(at)?;
            at += 1;
            self.missing = self.header.push(byte).unwrap_or_default();
        }
        Some(at)
    }

    /// Whether the last frame is whole.
    pub fn is_between_frames(&self) -> bool {
        self.missing == 0 && self.header.length == 0
    }
}

impl Message {
    /// A frame begins with this byte, and has so long a payload.
    fn frame(&mut self, first: u8, payload: u64) {
        match first & 0xf {
            0 => self.length += payload,
            1 | 2 => (self.length, self.come) = (payload, 0),
            _ => {}
        }
        self.goes_on = first & 0xf <= 2;
        self.ends = first & 0x80 != 0;
    }

    /// The next part of the frame's payload comes.
    fn comes(&mut self, payload: &[u8]) {
        if self.goes_on {
            let part = payload.len().min(ANSWER_BYTES - self.come);
            self.first[self.come..self.come + part].copy_from_slice(&payload[..part]);
            self.come += part;
        }
    }

    /// Whether the frame that has begun is the last of the message.
    fn is_last_part(&self) -> bool {
        self.goes_on && self.ends
    }

    /// What the message is, if the frame that has begun belongs to one and its second byte has come.
    fn tag(&self) -> Option<u8> {
        match self.first[..self.come] {
            [SERVER_MSG_COMPRESSION_TAG_NONE, tag, ..] if self.goes_on => Some(tag),
            _ => None,
        }
    }
}

impl Header {
    /// The length of the payload, once the header is whole.
    fn push(&mut self, byte: u8) -> Option<u64> {
        self.bytes[self.length] = byte;
        self.length += 1;
        let second = *self.bytes[..self.length].get(1)?;
        let more = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        if self.length < 2 + more + mask {
            return None;
        }
        let payload = match more {
            0 => u64::from(second & 0x7f),
            more => self.bytes[2..2 + more]
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        };
        self.length = 0;
        Some(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [1, 2, 3, 250];

    fn sent(frame: Frame) -> BytesMut {
        let mut bytes = BytesMut::new();
        masked(frame, MASK, &mut bytes);
        bytes
    }

    fn part(text: &'static str, opcode: Data, is_final: bool) -> BytesMut {
        sent(Frame::message(text, OpCode::Data(opcode), is_final))
    }

    #[test]
    fn a_message_arrives_whole_however_it_is_cut() {
        let mut whole = BytesMut::new();
        message(vec![7; 300], MASK, &mut whole);
        for cut in 0..whole.len() {
            let (mut reader, mut bytes) = (Reader::new(300), BytesMut::from(&whole[..cut]));
            assert_eq!(reader.next(&mut bytes), Ok(None));
            bytes.extend_from_slice(&whole[cut..]);
            assert_eq!(
                reader.next(&mut bytes),
                Ok(Some(FromClient::Message(vec![7; 300].into())))
            );
            assert_eq!((reader.next(&mut bytes), bytes.len()), (Ok(None), 0));
        }
    }

    #[test]
    fn parts_become_a_message_and_control_frames_may_come_between() {
        let mut bytes = part("ab", Data::Binary, false);
        bytes.unsplit(sent(Frame::ping("p")));
        bytes.unsplit(part("cd", Data::Continue, false));
        bytes.unsplit(part("ef", Data::Continue, true));
        let mut reader = Reader::new(6);
        assert_eq!(reader.next(&mut bytes), Ok(Some(FromClient::Ping("p".into()))));
        assert_eq!(reader.next(&mut bytes), Ok(Some(FromClient::Message("abcdef".into()))));
        let mut parts = part("abcd", Data::Binary, false);
        parts.unsplit(part("efg", Data::Continue, true));
        assert_eq!(Reader::new(6).next(&mut parts), Err(Breach::TooLong));
    }

    #[test]
    fn what_breaks_the_protocol_is_a_breach() {
        let plain = |frame: Frame| {
            let mut bytes = BytesMut::new();
            write(frame, &mut bytes);
            bytes
        };
        for (mut bytes, breach) in [
            (plain(Frame::ping("unmasked")), Breach::Malformed),
            (part("text", Data::Text, true), Breach::Malformed),
            (part("of nothing", Data::Continue, true), Breach::Malformed),
            (BytesMut::from(&[0xc2, 0x80, 0, 0, 0, 0][..]), Breach::Malformed),
            (BytesMut::from(&[0x83, 0x80, 0, 0, 0, 0][..]), Breach::Malformed),
            (sent(Frame::ping(vec![0; 126])), Breach::TooLong),
            (part("longer than is allowed", Data::Binary, true), Breach::TooLong),
            // The length alone is enough.
            (
                BytesMut::from(&[0x82, 0xff, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0][..]),
                Breach::TooLong,
            ),
        ] {
            assert_eq!(Reader::new(10).next(&mut bytes), Err(breach), "{bytes:?}");
        }
    }

    #[test]
    fn a_message_comes_in_few_parts_and_each_brings_something() {
        let mut nothing = part("ab", Data::Binary, false);
        nothing.unsplit(part("", Data::Continue, false));
        assert_eq!(Reader::new(100).next(&mut nothing), Err(Breach::Malformed));
        assert_eq!(
            Reader::new(100).next(&mut part("", Data::Binary, false)),
            Err(Breach::Malformed)
        );
        let in_parts = |count: usize| {
            let mut bytes = part("a", Data::Binary, false);
            for _ in 2..count {
                bytes.unsplit(part("a", Data::Continue, false));
            }
            bytes.unsplit(part("", Data::Continue, true));
            Reader::new(10_000).next(&mut bytes)
        };
        assert!(in_parts(64).is_ok());
        assert_eq!(in_parts(65), Err(Breach::Malformed));
    }

    #[test]
    fn the_walk_knows_where_frames_end_however_they_are_cut() {
        let mut bytes = BytesMut::new();
        let mut ends = vec![0];
        for length in [0, 1, 125, 126, 70_000] {
            write(
                Frame::message(vec![9; length], OpCode::Data(Data::Binary), true),
                &mut bytes,
            );
            ends.push(bytes.len());
        }
        let mut walk = Walk::default();
        for at in 0..bytes.len() {
            assert_eq!(walk.is_between_frames(), ends.contains(&at), "at {at}");
            walk.over(&bytes[at..=at]);
        }
        assert!(walk.is_between_frames());
        let mut at_once = Walk::default();
        at_once.over(&bytes);
        assert!(at_once.is_between_frames());
        assert_eq!((walk.frames, at_once.frames), (5, 5));
    }

    #[test]
    fn the_walk_knows_what_is_left_of_a_frame_that_has_begun() {
        let mut bytes = BytesMut::new();
        for length in [0, 200, 3] {
            write(
                Frame::message(vec![9; length], OpCode::Data(Data::Binary), true),
                &mut bytes,
            );
        }
        let ends = [2, 2 + 204, 2 + 204 + 5];
        for at in 0..=bytes.len() {
            let mut walk = Walk::default();
            walk.over(&bytes[..at]);
            let end = if at == 0 {
                0
            } else {
                ends[ends.partition_point(|end| *end < at)]
            };
            assert_eq!(walk.rest(&bytes[at..]), Some(end - at), "at {at}");
            if end > at {
                assert_eq!(walk.rest(&bytes[at..end - 1]), None, "at {at}");
            }
        }
    }

    #[test]
    fn a_client_is_told_why_it_is_closed_in_the_space_there_is() {
        use spacetime_sync_proto::RefusalCode;
        for message in ["short", &"long".repeat(100)] {
            let mut bytes = BytesMut::new();
            close_client(&Refusal::new(RefusalCode::TokenExpired, message), &mut bytes);
            assert!(bytes.len() <= 2 + CONTROL_BYTES);
            let said = std::str::from_utf8(&bytes[4..]).unwrap();
            assert_eq!(Refusal::from_wire(said).unwrap().code, RefusalCode::TokenExpired);
        }
    }
}
