//! The place of a connection in the registry.

use std::sync::Arc;
use std::time::Instant;

use spacetime_sync_doors::asker::Asker;
use spacetime_sync_proto::Label;

use crate::decide::{Asked, Breach};
use crate::registry::ConnectionId;
use crate::relay::{Account, Ending};
use crate::serve::Gate;

/// A place in the registry, free again when it is dropped.
pub(crate) struct Seat {
    pub(crate) gate: Arc<Gate>,
    pub(crate) id: ConnectionId,
    pub(crate) session_id: Label,
    pub(crate) asker: Asker,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.gate
            .registry()
            .close(self.id, &self.session_id, &self.asker.origin);
    }
}

impl Account for Seat {
    fn reserve(&self, asked: Asked, now: Instant) -> Instant {
        let mut registry = self.gate.registry();
        let change = asked.change;
        let replaced = change.and_then(|change| registry.change(&self.session_id, self.id, change));
        if let Some(replaced) = replaced {
            let _ = replaced.send(Ending::Replaced);
        }
        registry.reserve(&self.session_id, asked.kind, now)
    }

    fn begin(&self, now: Instant) -> Result<(), Instant> {
        self.gate.registry().begin(&self.session_id, self.id, now)
    }

    fn answered(&self) {
        self.gate.registry().answered(&self.session_id, self.id);
    }

    fn subscribed(&self, bytes: u64, since: Instant, now: Instant) {
        self.gate.registry().subscribed(&self.session_id, bytes, since, now);
    }

    fn too_much(&self) {
        for other in self.gate.registry().too_much(&self.session_id, self.id, Instant::now()) {
            let _ = other.send(Ending::Breach(Breach::TooMuch));
        }
    }
}
