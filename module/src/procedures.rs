//! Calls that answer with more than done or refused: pages of the log for clients; heads, streams, rewinds and the journal for
//! the bridge and operators. Filters do not apply to procedures, so each of them checks who asks.

use std::collections::BTreeSet;

use spacetime_sync_proto::access::Scope;
use spacetime_sync_proto::{Position, Refusal, RefusalCode, StreamId, limit};
use spacetime_sync_rules::journal::marks;
use spacetime_sync_rules::journal::pass::Steps;
use spacetime_sync_rules::log::{HeadRow, LogRows};
use spacetime_sync_rules::page::{self, Page};
use spacetime_sync_rules::rewind;
use spacetimedb::sats::u256;
use spacetimedb::{ProcedureContext, ReducerContext, SpacetimeType, Table, procedure};

use crate::access::{bridge_only, may_read, no_grant, operator, own_session, readable_keys};
use crate::journal::{JournalPage, Rows, now_us};
use crate::log_access::{
    StreamRows, chain_from_column, chain_to_column, event_row, seal_argument, seq_argument, seq_from_column,
    stream_class, trust_row,
};
use crate::refuse::{Refused, refused, stream_id as parse_stream_id};
use crate::tables::{SyncEvent, SyncStream, retention_class, sync_head, sync_stream};

/// A part of a stream's log.
#[derive(SpacetimeType)]
pub struct EventPage {
    /// The key of the stream in `sync_event`.
    pub stream_key: u64,
    /// Seq of the stream's head when the page was read.
    pub head_seq: u64,
    /// The head's chain hash, big-endian.
    pub head_chain: u256,
    /// Seq of the first event held; one past the head if none is.
    pub oldest_seq: u64,
    /// Whether clients may see the stream's events only when they are durable.
    pub durable_reads: bool,
    /// Consecutive frames. The first one holds the event after `after_seq`, and may begin before it. Empty at the head,
    /// and below the window.
    pub frames: Vec<SyncEvent>,
}

/// The key by which the caller subscribes to what is told in passing: to the sessions of its own user if `stream_id` is empty, and
/// otherwise to the readers of a stream that the caller may read.
#[procedure]
pub fn read_audience_key(ctx: &mut ProcedureContext, stream_id: String) -> Result<u64, Refused> {
    ctx.with_tx(|tx| audience_key(tx, &stream_id))
}

fn audience_key(ctx: &ReducerContext, stream_id: &str) -> Result<u64, Refused> {
    let trust = trust_row(ctx)?;
    if stream_id.is_empty() {
        return trust.user_key(&own_session(ctx)?.user_id);
    }
    let stream_id = parse_stream_id(stream_id)?;
    let stream_key = trust.stream_key(&stream_id)?;
    if !may_read(ctx, stream_key) {
        return Err(refused(no_grant(ctx, &stream_id, stream_key)));
    }
    Ok(stream_key)
}

/// The key by which a subscription names those who may provide. For sessions that may.
#[procedure]
pub fn read_providers_key(ctx: &mut ProcedureContext) -> Result<u64, Refused> {
    ctx.with_tx(|tx| {
        own_session(tx)?.may(Scope::Provider)?;
        trust_row(tx)?.providers_key()
    })
}

/// The streams that the caller may read by a grant and whose names come after `after`, in order, at most `limit::HEADS`. A stream that has no
/// event yet is not among them. For holders of a grant, and for sessions; anybody else may read none.
#[procedure]
pub fn readable_streams(ctx: &mut ProcedureContext, after: String) -> Result<Vec<String>, Refused> {
    ctx.with_tx(|tx| Ok(readable(tx, &after)))
}

fn readable(ctx: &ReducerContext, after: &str) -> Vec<String> {
    let streams = ctx.db.sync_stream();
    let mut first = BTreeSet::new();
    for stream_key in readable_keys(ctx) {
        let named = streams.stream_key().find(stream_key).map(|stream| stream.stream_id);
        first.extend(named.filter(|name| name.as_str() > after));
        if first.len() > limit::HEADS {
            first.pop_last();
        }
    }
    first.into_iter().collect()
}

/// A stream's head. The bridge asks for it after a reconnect.
#[derive(SpacetimeType)]
pub struct HeadReport {
    /// 0 if the stream does not exist.
    pub head_seq: u64,
    /// Chain hash of the last event held, big-endian.
    pub head_chain: u256,
}

/// The frames after `after_seq`, as many as fit into a page. For holders of a grant for the stream, the owner and the
/// bridge.
#[procedure]
pub fn read_events(ctx: &mut ProcedureContext, stream_id: String, after_seq: u64) -> Result<EventPage, Refused> {
    ctx.with_tx(|tx| read_page(tx, &stream_id, after_seq))
}

fn read_page(ctx: &ReducerContext, stream_id: &str, after_seq: u64) -> Result<EventPage, Refused> {
    let trust = trust_row(ctx)?;
    let stream_id = parse_stream_id(stream_id)?;
    let stream_key = trust.stream_key(&stream_id)?;
    if !may_read(ctx, stream_key) && operator(ctx, &trust).is_err() {
        return Err(refused(no_grant(ctx, &stream_id, stream_key)));
    }
    let after = seq_argument(after_seq)?;
    let rows = StreamRows {
        ctx,
        stream_key,
        stream_id: &stream_id,
    };
    let Page { held, frames } = page::read(&rows, &stream_id, after, limit::PAGE_BYTES);
    Ok(EventPage {
        stream_key,
        head_seq: held.head.seq.get(),
        head_chain: chain_to_column(held.head.chain),
        oldest_seq: held.oldest_seq.get(),
        durable_reads: durable_reads(ctx, &stream_id),
        frames: frames.into_iter().map(|stored| event_row(stream_key, stored)).collect(),
    })
}

/// Clients may see events only when they are durable, unless the stream's class says otherwise.
fn durable_reads(ctx: &ReducerContext, stream_id: &StreamId) -> bool {
    let classes: Vec<_> = ctx.db.retention_class().iter().collect();
    stream_class(&classes, stream_id.as_str()).is_none_or(|class| class.durable_reads)
}

/// What SpacetimeDB holds of a stream, for an operator to compare.
#[derive(SpacetimeType)]
pub struct StreamReport {
    pub stream_id: String,
    /// Seq of the first event held; one past the head if none is.
    pub oldest_seq: u64,
    pub head_seq: u64,
    /// Chain hash of the last event, big-endian.
    pub head_chain: u256,
}

/// The streams whose names come after `after`, in order, at most `limit::HEADS`. For the owner and the bridge.
#[procedure]
pub fn read_streams(ctx: &mut ProcedureContext, after: String) -> Result<Vec<StreamReport>, Refused> {
    ctx.with_tx(|tx| streams(tx, &after))
}

fn streams(ctx: &ReducerContext, after: &str) -> Result<Vec<StreamReport>, Refused> {
    operator(ctx, &trust_row(ctx)?)?;
    let heads = ctx.db.sync_head();
    // The next possible name, because a range includes its start and `after` itself must not be in it.
    let from = format!("{after}\0");
    let report = |stream: SyncStream| {
        let head = heads.stream_key().find(stream.stream_key)?;
        Some(StreamReport {
            stream_id: stream.stream_id,
            oldest_seq: head.oldest_seq,
            head_seq: head.head_seq,
            head_chain: head.head_chain,
        })
    };
    let named = ctx.db.sync_stream().by_name().filter(from.as_str()..);
    Ok(named.filter_map(report).take(limit::HEADS).collect())
}

/// The heads of streams, in the order of the request. For the owner and the bridge.
#[procedure]
pub fn read_heads(ctx: &mut ProcedureContext, stream_ids: Vec<String>) -> Result<Vec<HeadReport>, Refused> {
    ctx.with_tx(|tx| heads(tx, &stream_ids))
}

fn heads(ctx: &ReducerContext, stream_ids: &[String]) -> Result<Vec<HeadReport>, Refused> {
    let trust = trust_row(ctx)?;
    operator(ctx, &trust)?;
    if stream_ids.len() > limit::HEADS {
        let message = format!(
            "the request names {} streams, at most {} are allowed",
            stream_ids.len(),
            limit::HEADS
        );
        return Err(refused(Refusal::new(RefusalCode::InvalidArgument, message)));
    }
    stream_ids
        .iter()
        .map(|stream_id| {
            let stream_id = parse_stream_id(stream_id)?;
            let rows = StreamRows {
                ctx,
                stream_key: trust.stream_key(&stream_id)?,
                stream_id: &stream_id,
            };
            let HeadRow { head, .. } = rows.head().unwrap_or_else(|| HeadRow::start(&stream_id));
            Ok(head_report(head))
        })
        .collect()
}

fn head_report(head: Position) -> HeadReport {
    HeadReport {
        head_seq: head.seq.get(),
        head_chain: chain_to_column(head.chain),
    }
}

/// Takes one bounded step to make a stream's log end where the authority's does, whatever SpacetimeDB holds, and answers
/// where the log ends now. The bridge calls it when it refills a window, an operator after a restore. The caller calls
/// again with that head until the log ends at `seq`. A head that is read later may be another bridge's, which has appended
/// since.
///
/// `chain_hash` is the authority's chain hash at `seq`. `seal` is the bridge's seal of that position, or empty: a frame
/// that is cut there ends with it. `seen_seq` and `seen_chain_hash` are the head as the caller last saw it. For the owner
/// and the bridge.
#[procedure]
pub fn rewind_stream(
    ctx: &mut ProcedureContext,
    stream_id: String,
    seq: u64,
    chain_hash: u256,
    seal: Vec<u8>,
    seen_seq: u64,
    seen_chain_hash: u256,
) -> Result<HeadReport, Refused> {
    ctx.try_with_tx(|tx| {
        let trust = trust_row(tx)?;
        operator(tx, &trust)?;
        let stream_id = parse_stream_id(&stream_id)?;
        let target = Position {
            seq: seq_argument(seq)?,
            chain: chain_from_column(chain_hash),
        };
        let seen = Position {
            seq: seq_from_column(seen_seq),
            chain: chain_from_column(seen_chain_hash),
        };
        let seal = seal_argument(&seal)?;
        let mut rows = StreamRows {
            ctx: tx,
            stream_key: trust.stream_key(&stream_id)?,
            stream_id: &stream_id,
        };
        let most_events = limit::REWIND_STEP_EVENTS;
        let (_, left) =
            rewind::step(&mut rows, &stream_id, target, seal.as_ref(), seen, most_events).map_err(refused)?;
        Ok(head_report(left))
    })
}

/// How it is with the journal, and its oldest entries that are not settled, about `most` and as many as fit into a page. For the
/// bridge.
#[procedure]
pub fn read_journal(ctx: &mut ProcedureContext, most: u64) -> Result<JournalPage, Refused> {
    ctx.try_with_tx(|tx| {
        bridge_only(tx, &trust_row(tx)?)?;
        Ok(marks::page(&mut Rows(tx), most, &Steps::SHIPPED, now_us(tx)).into())
    })
}
