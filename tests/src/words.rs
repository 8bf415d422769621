//! What a client of the lane says to SpacetimeDB, word for word, and a little of what none says.

use bytes::Bytes;
use spacetime_sync_proto::limit::{FRAME_EVENTS, SECTION_EVENTS};
use spacetime_sync_proto::{Position, StreamId};
use spacetimedb_client_api_messages::websocket::v2::{
    CallProcedure, CallProcedureFlags, CallReducer, CallReducerFlags, ClientMessage, ProcedureStatus, QuerySetId,
    ReducerOutcome, ServerMessage, Subscribe, Unsubscribe, UnsubscribeFlags,
};
use spacetimedb_sdk::__codegen::__sats::ser::Serialize;
use spacetimedb_sdk::__codegen::__sats::{bsatn, u256};

/// The subscription to the contract.
pub const CONTRACT: &str = "SELECT * FROM sync_contract";
/// What the engine's own tables answer: as many rows as the square of 145, or more. No client asks for it.
pub const SELF_JOIN: &str = "SELECT a.* FROM st_column a JOIN st_column b ON a.table_id = b.table_id";

/// The subscription to the grants of an identity, in hex.
pub fn grants(identity: &str) -> String {
    format!("SELECT * FROM stream_grant WHERE identity = 0x{identity}")
}

/// The subscription to the nodes that an audience sees.
pub fn presence(audience_key: u64) -> String {
    format!("SELECT * FROM session_presence WHERE audience_key = {audience_key}")
}

/// The subscription to the frames of a stream that end after one seq and begin no later than another.
pub fn frames(stream_key: u64, after: u64, to: u64) -> Vec<String> {
    let first = after.saturating_sub(FRAME_EVENTS as u64 - 2) / SECTION_EVENTS;
    (first..=to / SECTION_EVENTS)
        .map(|number| {
            let section = u128::from(stream_key) << 64 | u128::from(number);
            format!("SELECT * FROM sync_event WHERE section = {section} AND last_seq > {after} AND first_seq <= {to}")
        })
        .collect()
}

/// The arguments of `read_events`.
pub fn read_events(stream_id: &StreamId, after: u64) -> Vec<u8> {
    arguments(&(stream_id.as_str(), after))
}

/// The arguments of `ack_checkpoint`.
pub fn ack_checkpoint(stream_id: &StreamId, at: &Position) -> Vec<u8> {
    let chain = u256::from_be_bytes(*at.chain.as_bytes());
    arguments(&(stream_id.as_str(), at.seq.get(), chain))
}

/// The arguments of `upsert_presence`.
pub fn upsert_presence(
    session: &str,
    node: &str,
    status: &str,
    [region, surface]: [&str; 2],
    serves: &[&str],
) -> Vec<u8> {
    arguments(&(session, node, status, region, surface, serves))
}

/// Whether a message is the answer to a call, which is an error if the call was refused.
pub fn is_done(message: &ServerMessage) -> anyhow::Result<bool> {
    match message {
        ServerMessage::ReducerResult(result) => match &result.result {
            ReducerOutcome::Ok(_) | ReducerOutcome::OkEmpty => Ok(true),
            ReducerOutcome::Err(said) => anyhow::bail!("refused: {}", String::from_utf8_lossy(said)),
            ReducerOutcome::InternalError(said) => anyhow::bail!("failed: {said}"),
        },
        // An answer begins with 0 if it is none of a refusal.
        ServerMessage::ProcedureResult(result) => match &result.status {
            ProcedureStatus::Returned(answer) if answer.first() == Some(&0) => Ok(true),
            ProcedureStatus::Returned(answer) => anyhow::bail!("refused: {}", String::from_utf8_lossy(answer)),
            ProcedureStatus::InternalError(said) => anyhow::bail!("failed: {said}"),
        },
        _ => Ok(false),
    }
}

/// The arguments of any call: a tuple of what it takes.
pub fn arguments(arguments: &impl Serialize) -> Vec<u8> {
    bsatn::to_vec(arguments).unwrap_or_else(|error| panic!("{error}"))
}

/// Subscribes. The subscription has the id of the request.
pub fn subscribe(id: u32, queries: &[impl AsRef<str>]) -> ClientMessage {
    ClientMessage::Subscribe(Subscribe {
        request_id: id,
        query_set_id: QuerySetId { id },
        query_strings: queries.iter().map(|query| query.as_ref().into()).collect(),
    })
}

/// Ends a subscription.
pub fn unsubscribe(request_id: u32, id: u32) -> ClientMessage {
    ClientMessage::Unsubscribe(Unsubscribe {
        request_id,
        query_set_id: QuerySetId { id },
        flags: UnsubscribeFlags::Default,
    })
}

/// Calls a reducer with encoded arguments.
pub fn reducer(request_id: u32, name: &str, args: impl Into<Bytes>) -> ClientMessage {
    ClientMessage::CallReducer(CallReducer {
        request_id,
        flags: CallReducerFlags::Default,
        reducer: name.into(),
        args: args.into(),
    })
}

/// Calls a procedure with encoded arguments.
pub fn procedure(request_id: u32, name: &str, args: impl Into<Bytes>) -> ClientMessage {
    ClientMessage::CallProcedure(CallProcedure {
        request_id,
        flags: CallProcedureFlags::Default,
        procedure: name.into(),
        args: args.into(),
    })
}
