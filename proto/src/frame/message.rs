//! Reads the protobuf message of a frame in place, in one pass: an event is a set of ranges in the bytes, and nothing is
//! copied. It accepts and refuses exactly what the generated message type does.

use std::ops::Range;

use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, check_wire_type, decode_key, decode_varint, skip_field};

use super::FrameError;

/// Where the fields of an event are. The range of an absent field is empty.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    pub(super) idempotency_key: Range<u32>,
    pub(super) kind: Range<u32>,
    pub(super) payload: Range<u32>,
    pub(super) payload_hash: Range<u32>,
    pub(super) committed_at_us: i64,
}

/// An event as it is read.
#[derive(Debug, Default)]
pub(super) struct Read<'a> {
    pub(super) idempotency_key: &'a str,
    pub(super) kind: &'a str,
    pub(super) payload_hash: &'a [u8],
    pub(super) places: Places,
}

/// Reads a message that is at most as long as a frame may be, and passes each event to `each`, in order. Returns where
/// the seal is.
pub(super) fn read<'a>(bytes: &'a [u8], mut each: impl FnMut(Read<'a>)) -> Result<Range<usize>, FrameError> {
    let mut reader = Reader { bytes, at: 0 };
    let mut seal = 0..0;
    while reader.at < bytes.len() {
        match reader.key()? {
            (1, wire_type) => {
                let event = reader.delimited(wire_type)?;
                each(event_in(bytes, event)?);
            }
            (2, wire_type) => seal = reader.delimited(wire_type)?,
            (15, wire_type) => {
                reader.delimited(wire_type)?;
            }
            (tag, wire_type) => reader.skip(tag, wire_type)?,
        }
    }
    Ok(seal)
}

fn event_in(bytes: &[u8], event: Range<usize>) -> Result<Read<'_>, FrameError> {
    let mut reader = Reader {
        bytes: &bytes[..event.end],
        at: event.start,
    };
    let mut read = Read::default();
    let places = &mut read.places;
    // Protobuf: if a field occurs twice, the last one counts.
    while reader.at < event.end {
        match reader.key()? {
            (1, wire_type) => (read.idempotency_key, places.idempotency_key) = reader.text(wire_type)?,
            (2, wire_type) => (read.kind, places.kind) = reader.text(wire_type)?,
            (3, wire_type) => places.payload = place(reader.delimited(wire_type)?),
            (4, wire_type) => {
                let range = reader.delimited(wire_type)?;
                (read.payload_hash, places.payload_hash) = (&bytes[range.clone()], place(range));
            }
            (5, wire_type) => {
                check_wire_type(WireType::Varint, wire_type).map_err(malformed)?;
                places.committed_at_us = reader.varint()? as i64;
            }
            (tag, wire_type) => reader.skip(tag, wire_type)?,
        }
    }
    Ok(read)
}

/// The casts lose nothing, because a frame has at most a mebibyte.
fn place(range: Range<usize>) -> Range<u32> {
    range.start as u32..range.end as u32
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take<T>(&mut self, read: impl FnOnce(&mut &[u8]) -> Result<T, DecodeError>) -> Result<T, FrameError> {
        let mut rest = &self.bytes[self.at..];
        let value = read(&mut rest).map_err(malformed)?;
        self.at = self.bytes.len() - rest.len();
        Ok(value)
    }

    /// The contract's own keys have one byte.
    #[inline]
    fn key(&mut self) -> Result<(u32, WireType), FrameError> {
        if let Some(byte @ 8..0x80) = self.bytes.get(self.at)
            && let Ok(wire_type) = WireType::try_from(u64::from(byte & 7))
        {
            self.at += 1;
            return Ok((u32::from(byte >> 3), wire_type));
        }
        self.take(|rest| decode_key(rest))
    }

    /// Nearly every length has one byte or two.
    #[inline]
    fn varint(&mut self) -> Result<u64, FrameError> {
        match self.bytes.get(self.at..) {
            Some([byte @ ..0x80, ..]) => {
                self.at += 1;
                Ok(u64::from(*byte))
            }
            Some([low, high @ ..0x80, ..]) => {
                self.at += 2;
                Ok(u64::from(low & 0x7f) | u64::from(*high) << 7)
            }
            _ => self.take(|rest| decode_varint(rest)),
        }
    }

    fn skip(&mut self, tag: u32, wire_type: WireType) -> Result<(), FrameError> {
        self.take(|rest| skip_field(wire_type, tag, rest, DecodeContext::default()))
    }

    #[inline]
    fn delimited(&mut self, wire_type: WireType) -> Result<Range<usize>, FrameError> {
        check_wire_type(WireType::LengthDelimited, wire_type).map_err(malformed)?;
        let length = self.varint()?;
        let left = self.bytes.len() - self.at;
        match usize::try_from(length).ok().filter(|length| *length <= left) {
            Some(length) => {
                let start = self.at;
                self.at += length;
                Ok(start..self.at)
            }
            None => Err(FrameError::Malformed(format!(
                "a field claims {length} bytes, but only {left} are left"
            ))),
        }
    }

    #[inline]
    fn text(&mut self, wire_type: WireType) -> Result<(&'a str, Range<u32>), FrameError> {
        let range = self.delimited(wire_type)?;
        let bytes: &'a [u8] = self.bytes;
        match std::str::from_utf8(&bytes[range.clone()]) {
            Ok(text) => Ok((text, place(range))),
            Err(error) => Err(FrameError::Malformed(format!("a text field is not UTF-8: {error}"))),
        }
    }
}

fn malformed(error: DecodeError) -> FrameError {
    FrameError::Malformed(error.to_string())
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::wire;

    fn events(bytes: &[u8]) -> Result<Vec<i64>, FrameError> {
        let mut times = Vec::new();
        read(bytes, |event| times.push(event.places.committed_at_us))?;
        Ok(times)
    }

    fn message(times: &[i64]) -> Vec<u8> {
        let event = |time: &i64| wire::Event {
            kind: "a".to_owned(),
            committed_at_us: *time,
            ..wire::Event::default()
        };
        let frame = wire::EventFrame {
            events: times.iter().map(event).collect(),
            seal: vec![7; 2].into(),
            padding: vec![0; 3].into(),
        };
        frame.encode_to_vec()
    }

    /// A number, a text and eight bytes, in fields that neither message has.
    fn unknown() -> Vec<u8> {
        let (number, text) = ([0xa0, 1, 7], [0xaa, 1, 2, b'h', b'i']);
        let bytes = [0xb1, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        [&number[..], &text, &bytes].concat()
    }

    #[test]
    fn fields_of_a_later_version_are_skipped() {
        let frame = [unknown(), message(&[4, 5]), unknown()].concat();
        assert_eq!(events(&frame), Ok(vec![4, 5]));
        let event = [unknown(), vec![5 << 3, 9], unknown()].concat();
        let frame = [vec![1 << 3 | 2, event.len() as u8], event, message(&[6])].concat();
        assert_eq!(events(&frame), Ok(vec![9, 6]));
    }

    #[test]
    fn a_field_longer_than_the_rest_of_its_message_is_malformed() {
        let whole = message(&[4]);
        for length in 1..whole.len() {
            let read = events(&whole[..length]);
            // The message may end between two fields.
            assert!(
                matches!(read, Err(FrameError::Malformed(_)) | Ok(_)),
                "{length}: {read:?}"
            );
            assert_eq!(
                read.is_ok(),
                wire::EventFrame::decode(&whole[..length]).is_ok(),
                "{length}"
            );
        }
        // A field must not reach past the end of its event, even if the frame goes on.
        let frame = [vec![1 << 3 | 2, 2, 2 << 3 | 2, 1], message(&[6])].concat();
        assert!(matches!(events(&frame), Err(FrameError::Malformed(_))));
    }

    #[test]
    fn a_field_of_another_type_is_malformed() {
        for frame in [
            [1 << 3, 0].as_slice(),
            &[2 << 3, 0],
            &[15 << 3, 0],
            &[1 << 3 | 2, 2, 1 << 3, 0],
            &[1 << 3 | 2, 2, 5 << 3 | 2, 0],
        ] {
            assert!(matches!(events(frame), Err(FrameError::Malformed(_))), "{frame:?}");
        }
    }
}
