//! Calls of the application: sent at once or not at all, and answered whatever happens to the connection.

use std::collections::BTreeMap;

use spacetime_sync_proto::{NostrKey, NostrSignature};

use super::event::{CallFailure, ConnectionId};
use super::{Command, Session};
use crate::error::CallError;
use crate::signal::Signal;

/// Most calls that have no answer yet.
const UNDER_WAY: usize = 64;

/// Names a call of the application. A runner never reuses an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// A call of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Make a challenge for a node.
    Challenge {
        /// The node.
        node_id: String,
    },
    /// Bind a key of Nostr to a node.
    Bind {
        /// The node.
        node_id: String,
        /// The challenge.
        challenge: String,
        /// The key.
        key: NostrKey,
        /// Its signature.
        signature: NostrSignature,
    },
    /// Send a signal.
    Signal(Signal),
}

/// What a call answers with: a challenge, if it asks for one.
pub type Called<E> = Result<Option<String>, E>;

/// The calls that have no answer yet, each with the connection that it was sent on.
#[derive(Debug, Default)]
pub(super) struct Calls(BTreeMap<CallId, ConnectionId>);

impl Session {
    /// The application calls.
    pub(super) fn call(&mut self, id: CallId, call: Call) {
        let refused = match self.serving() {
            None => CallError::NotConnected,
            Some(_) if self.calls.0.len() >= UNDER_WAY => CallError::TooMany,
            Some(connection) => {
                self.calls.0.insert(id, connection);
                self.commands.push(Command::Call { connection, id, call });
                return;
            }
        };
        let reply = Err(refused);
        self.commands.push(Command::Reply { id, reply });
    }

    /// The module has answered a call.
    pub(super) fn called(&mut self, from: ConnectionId, id: CallId, answer: Called<CallFailure>) {
        if self.calls.0.get(&id) != Some(&from) {
            return;
        }
        self.calls.0.remove(&id);
        if let Err(failure) = &answer {
            self.doubt_token_if(failure.is_of_aged_token());
        }
        let reply = answer.map_err(|failure| match failure {
            CallFailure::Refused(refusal) => CallError::Refused(refusal),
            CallFailure::Failed(said) => CallError::Failed(said),
        });
        self.commands.push(Command::Reply { id, reply });
    }

    /// Answers the calls whose connection is gone: nobody will say what became of them.
    pub(super) fn end_lost_calls(&mut self) {
        if self.calls.0.is_empty() {
            return;
        }
        let alive = [self.serving(), self.handed_over()];
        let lost: Vec<CallId> = self
            .calls
            .0
            .iter()
            .filter(|(_, connection)| !alive.contains(&Some(**connection)))
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.calls.0.remove(&id);
            let reply = Err(CallError::Lost);
            self.commands.push(Command::Reply { id, reply });
        }
    }
}
