//! Where the authority's logs end. A client asks the bridge, so that it notices what SpacetimeDB keeps back.

use serde::{Deserialize, Serialize};

use crate::hash::ChainHash;
use crate::id::{Seq, StreamId};

/// The path at which the bridge says where streams end.
pub const HEADS_PATH: &str = "/api/sync/heads";

/// A client's question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadsRequest {
    /// The streams, [`limit::HEADS`](crate::limit::HEADS) at most.
    pub streams: Vec<StreamId>,
    /// Streams about which SpacetimeDB contradicts the authority, as the client sees it,
    /// [`limit::REPORTED`](crate::limit::REPORTED) at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reported: Vec<StreamId>,
}

/// The bridge's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heads {
    /// The streams that the client may read and that have events, in any order.
    pub heads: Vec<StreamHead>,
}

/// Where the authority's log of a stream ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamHead {
    /// The stream.
    pub stream_id: StreamId,
    /// Seq of its last event.
    pub seq: Seq,
    /// The chain hash there.
    pub chain_hash: ChainHash,
    /// Up to where SpacetimeDB has acknowledged the stream to the bridge.
    pub published_seq: Seq,
}
