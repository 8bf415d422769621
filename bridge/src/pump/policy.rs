//! The authority's policy of retention, as this bridge carries it out.

use spacetime_sync_proto::StreamId;
use spacetime_sync_proto::retention::{RetentionClass, class_of};

use spacetime_sync_authority::{Authority, AuthorityError};

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Policy {
    /// Empty where SpacetimeDB is to hold everything.
    pub(super) classes: Vec<RetentionClass>,
}

impl Policy {
    pub(super) async fn read(authority: &Authority, applies_windows: bool) -> Result<Self, AuthorityError> {
        Ok(Self {
            classes: if applies_windows {
                authority.retention_classes().await?
            } else {
                Vec::new()
            },
        })
    }

    /// Newest events of a stream that SpacetimeDB holds; none if it holds all.
    pub(super) fn window(&self, stream_id: &StreamId) -> Option<u64> {
        let class = class_of(&self.classes, |class| &class.stream_prefix, stream_id.as_str());
        class.map(|class| class.window_events)
    }
}
