//! The log's tables, in the form in which the rules work on them.

use std::ops::RangeInclusive;

use bytes::Bytes;
use spacetime_sync_proto::retention::class_of;
use spacetime_sync_proto::seal::SEAL_BYTES;
use spacetime_sync_proto::{ChainHash, FrameRow, Position, Refusal, RefusalCode, Seal, Section, Seq, StreamId};
use spacetime_sync_rules::content::Digest;
use spacetime_sync_rules::log::{HeadRow, LogRows, StoredFrame};
use spacetime_sync_rules::stream_key;
use spacetime_sync_rules::trust::{Trust, not_configured};
use spacetimedb::sats::u256;
use spacetimedb::{Identity, ReducerContext, Table};

use crate::access::grant_new_stream;
use crate::refuse::{Refused, invalid_argument, refused};
use crate::tables::{
    RetentionClass, SyncEvent, SyncHead, SyncStream, SyncTrust, sync_checkpoint, sync_event, sync_head, sync_stream,
    sync_trust,
};

/// One stream's rows in the tables of the log.
pub struct StreamRows<'a> {
    pub ctx: &'a ReducerContext,
    pub stream_key: u64,
    pub stream_id: &'a StreamId,
}

impl LogRows for StreamRows<'_> {
    fn head(&self) -> Option<HeadRow> {
        let row = self.ctx.db.sync_head().stream_key().find(self.stream_key)?;
        Some(HeadRow {
            head: Position {
                seq: seq_from_column(row.head_seq),
                chain: chain_from_column(row.head_chain),
            },
            oldest_seq: seq_from_column(row.oldest_seq),
        })
    }

    /// Creates the stream with its name, its head and the grants of the sessions whose patterns cover it.
    fn create(&mut self, row: HeadRow) -> Result<(), Refusal> {
        let (ctx, stream_id) = (self.ctx, self.stream_id);
        let stream = SyncStream {
            stream_key: self.stream_key,
            stream_id: stream_id.as_str().to_owned(),
            created_at: ctx.timestamp,
        };
        ctx.db.sync_stream().try_insert(stream).map_err(|error| {
            let message =
                format!("stream {stream_id} has the same key as another stream, choose another name: {error}");
            Refusal::new(RefusalCode::InvalidArgument, message)
        })?;
        ctx.db.sync_head().insert(self.head_row(row));
        grant_new_stream(ctx, stream_id, self.stream_key);
        Ok(())
    }

    fn update_head(&mut self, row: HeadRow) {
        self.ctx.db.sync_head().stream_key().update(self.head_row(row));
    }

    fn frames_ending_in(&self, range: RangeInclusive<Seq>) -> Vec<StoredFrame> {
        let rows = self.ctx.db.sync_event().by_stream_seq();
        rows.filter((self.stream_key, columns(&range)))
            .map(StoredFrame::from)
            .collect()
    }

    fn insert_frame(&mut self, frame: StoredFrame) {
        self.ctx.db.sync_event().insert(event_row(self.stream_key, frame));
    }

    fn delete_frames_ending_in(&mut self, range: RangeInclusive<Seq>) -> u64 {
        let rows = self.ctx.db.sync_event().by_stream_seq();
        rows.delete((self.stream_key, columns(&range)))
    }

    fn delete_checkpoints_after(&mut self, seq: Seq) {
        let rows = self.ctx.db.sync_checkpoint().by_stream_seq();
        rows.delete((self.stream_key, seq.get() + 1..));
    }
}

impl StreamRows<'_> {
    fn head_row(&self, row: HeadRow) -> SyncHead {
        SyncHead {
            stream_key: self.stream_key,
            head_seq: row.head.seq.get(),
            oldest_seq: row.oldest_seq.get(),
            head_chain: chain_to_column(row.head.chain),
        }
    }
}

impl From<SyncEvent> for StoredFrame {
    fn from(row: SyncEvent) -> Self {
        Self {
            frame: FrameRow {
                first_seq: seq_from_column(row.first_seq),
                last_seq: seq_from_column(row.last_seq),
                base_chain: chain_from_column(row.base_chain),
                bytes: Bytes::from(row.frame),
            },
            last_at_us: row.last_at,
        }
    }
}

/// A frame as a row of `sync_event`.
pub fn event_row(stream_key: u64, stored: StoredFrame) -> SyncEvent {
    SyncEvent {
        stream_key,
        first_seq: stored.frame.first_seq.get(),
        last_seq: stored.frame.last_seq.get(),
        base_chain: chain_to_column(stored.frame.base_chain),
        last_at: stored.last_at_us,
        section: Section::of(stream_key, stored.frame.first_seq).get(),
        frame: stored.frame.bytes.into(),
    }
}

fn columns(range: &RangeInclusive<Seq>) -> RangeInclusive<u64> {
    range.start().get()..=range.end().get()
}

/// The one row of `sync_trust`, which `init` writes.
pub fn trust_row(ctx: &ReducerContext) -> Result<SyncTrust, Refused> {
    ctx.db
        .sync_trust()
        .id()
        .find(0)
        .ok_or_else(|| refused(not_configured()))
}

impl SyncTrust {
    pub fn trust(&self) -> Trust<Identity> {
        Trust {
            owner: self.owner,
            bridge: self.bridge,
        }
    }

    pub fn stream_key(&self, stream_id: &StreamId) -> Result<u64, Refused> {
        Ok(stream_key::derive(self.secret()?, stream_id))
    }

    pub fn secret(&self) -> Result<&[u8], Refused> {
        if self.key_secret.is_empty() {
            return Err(refused(not_configured()));
        }
        Ok(&self.key_secret)
    }
}

pub fn chain_to_column(chain: ChainHash) -> u256 {
    u256::from_be_bytes(*chain.as_bytes())
}

pub fn chain_from_column(column: u256) -> ChainHash {
    ChainHash::from_bytes(column.to_be_bytes())
}

/// A digest as a column.
pub fn digest_to_column(digest: Digest) -> u256 {
    u256::from_be_bytes(digest)
}

pub fn digest_from_column(column: u256) -> Digest {
    column.to_be_bytes()
}

/// A seq from a column that only this module writes.
pub fn seq_from_column(column: u64) -> Seq {
    Seq::new(column).unwrap_or(Seq::MAX)
}

/// A seq that a caller passed.
pub fn seq_argument(seq: u64) -> Result<Seq, Refused> {
    Seq::new(seq).ok_or_else(|| invalid_argument(format!("seq {seq} is larger than the largest seq, {}", Seq::MAX)))
}

/// A seal that a caller passed. Empty means that there is none.
pub fn seal_argument(bytes: &[u8]) -> Result<Option<Seal>, Refused> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let length = || {
        invalid_argument(format!(
            "the seal has {} bytes, expected {SEAL_BYTES} or none",
            bytes.len()
        ))
    };
    Seal::from_slice(bytes).map(Some).ok_or_else(length)
}

/// The class of a stream, if it has one.
pub fn stream_class<'a>(classes: &'a [RetentionClass], stream_id: &str) -> Option<&'a RetentionClass> {
    class_of(classes, |class| &class.stream_prefix, stream_id)
}
