//! Stale cursors: positions from which a stream cannot be continued event by event, and where it can be started over.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::hash::ChainHash;
use crate::id::{Seq, StreamId};

/// Why a cursor is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StaleReason {
    /// The authority has purged the events that come next.
    RetentionFloorBreach,
    /// The head is further away than the stream's class allows a client to replay.
    ReplayBudgetExceeded,
    /// The cursor is past the authority's head, so the applied events are not in its log.
    AheadOfHead,
    /// The events applied up to the cursor are not those of the authority's log.
    ChainMismatch,
}

impl fmt::Display for StaleReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RetentionFloorBreach => "the authority has purged what comes next",
            Self::ReplayBudgetExceeded => "the head is further away than may be replayed",
            Self::AheadOfHead => "it lies past the head of the authority's log",
            Self::ChainMismatch => "what was applied up to there is not the authority's log",
        })
    }
}

/// The answer to a stale cursor: the body of HTTP 410, and the reason with which a client stops the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error(
    "stream {stream_id} cannot be continued after seq {requested_after_seq}: {}; the authority keeps what comes after \
     {oldest_available_cursor}, up to {head_cursor}",
    reasons(reason_codes)
)]
pub struct StaleCursor {
    /// Always `stale_cursor`.
    pub code: StaleCode,
    /// Which stream.
    pub stream_id: StreamId,
    /// The seq after which the client asked to continue.
    pub requested_after_seq: Seq,
    /// The first seq after which the stream can be continued.
    pub oldest_available_cursor: Seq,
    /// The chain hash there.
    pub oldest_available_chain: ChainHash,
    /// The stream's head.
    pub head_cursor: Seq,
    /// Every reason that applies. One that only a newer release knows is left out.
    #[serde(deserialize_with = "crate::known::known")]
    pub reason_codes: Vec<StaleReason>,
    /// How many events behind the head the cursor is.
    pub replay_lag: u64,
    /// How many events behind it may be. `None` if there is no bound.
    pub replay_budget_events: Option<u64>,
    /// The seq of the document that replaces the earlier events, if there is one.
    pub snapshot_cursor: Option<Seq>,
}

fn reasons(codes: &[StaleReason]) -> String {
    let texts: Vec<_> = codes.iter().map(StaleReason::to_string).collect();
    if texts.is_empty() {
        return "for a reason that only a newer release knows".to_owned();
    }
    texts.join(", and ")
}

/// The code of a stale cursor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StaleCode {
    /// The only one.
    #[default]
    StaleCursor,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_cursor_crosses_the_wire_with_every_field() {
        let stream_id = StreamId::new("runtime.run.1.events").unwrap();
        let stale = StaleCursor {
            code: StaleCode::StaleCursor,
            requested_after_seq: Seq::new(3).unwrap(),
            oldest_available_cursor: Seq::new(10).unwrap(),
            oldest_available_chain: ChainHash::from_bytes([0xab; 32]),
            head_cursor: Seq::new(90).unwrap(),
            reason_codes: vec![StaleReason::RetentionFloorBreach, StaleReason::ReplayBudgetExceeded],
            replay_lag: 87,
            replay_budget_events: Some(50),
            snapshot_cursor: None,
            stream_id,
        };
        let text = concat!(
            r#"{"code":"stale_cursor","stream_id":"runtime.run.1.events","requested_after_seq":3,"#,
            r#""oldest_available_cursor":10,"#,
            r#""oldest_available_chain":"sha256:abababababababababababababababababababababababababababababababab","#,
            r#""head_cursor":90,"reason_codes":["retention_floor_breach","replay_budget_exceeded"],"#,
            r#""replay_lag":87,"replay_budget_events":50,"snapshot_cursor":null}"#
        );
        assert_eq!(serde_json::to_string(&stale).unwrap(), text);
        assert_eq!(serde_json::from_str::<StaleCursor>(text).unwrap(), stale);
        let newer = text.replace("[\"retention", "[\"tide\",\"retention");
        assert_eq!(serde_json::from_str::<StaleCursor>(&newer).unwrap(), stale);
        let negative = text.replace("\"head_cursor\":90", "\"head_cursor\":18446744073709551615");
        assert!(serde_json::from_str::<StaleCursor>(&negative).is_err());
    }
}
