//! Judges what a client says on one connection: what passes, in which words, and what ends the connection.

use std::collections::HashMap;

use spacetime_sync_proto::{Refusal, RefusalCode};
use spacetimedb_client_api_messages::websocket::v2::{
    CallProcedure, CallReducer, ClientMessage, Subscribe, Unsubscribe, UnsubscribeFlags,
};
use spacetimedb_lib::bsatn;

use crate::query::{AudienceTable, Query};

/// The reducers of a client of the lane.
const REDUCERS: [&str; 8] = [
    "ack_checkpoint",
    "upsert_presence",
    "send_signal",
    "publish_provider_capability",
    "open_compute_assignment",
    "update_compute_assignment",
    "enqueue_bridge_event",
    "mark_bridge_event_sent",
];
/// The procedures of a client of the lane.
const PROCEDURES: [&str; 6] = [
    "read_events",
    "readable_streams",
    "read_audience_key",
    "read_providers_key",
    "challenge_nostr_key",
    "bind_nostr_key",
];

/// How often one connection may hold each subscription that is of no stream. A client holds one, and has room to renew
/// it.
const OF_A_KIND: usize = 2;

/// How much one connection may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The most subscriptions.
    pub subscriptions: usize,
    /// The most subscriptions of one stream. A client holds two while it renews one.
    pub stream_subscriptions: usize,
}

/// What a subscription is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Slot {
    Contract,
    Grants,
    PresenceCount,
    Capabilities,
    Outbox,
    Audience(AudienceTable, u64),
    Stream(u64),
}

/// A message that passes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    /// What it asks for.
    pub asked: Asked,
    /// The message, written anew.
    pub message: Vec<u8>,
}

/// What a message asks for, as it is counted by session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Its kind.
    pub kind: Kind,
    /// Whether it is a subscription, or the end of one, which SpacetimeDB answers in turn.
    pub wants_answer: bool,
    /// What it changes about the subscriptions of streams.
    pub change: Option<Change>,
}

impl From<Kind> for Asked {
    fn from(kind: Kind) -> Self {
        Self {
            kind,
            wants_answer: false,
            change: None,
        }
    }
}

/// A subscription of the stream with this key begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It begins.
    Begins(u64),
    /// It ends.
    Ends(u64),
}

/// What a message asks for. Each kind has a rate of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A reducer, the end of a subscription without its rows, or a sign of life.
    Call,
    /// A page of the log.
    Read,
    /// A subscription, or its end when SpacetimeDB reads and sends the rows once more.
    Subscribe,
}

/// What no client of the lane says. It ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    /// The bytes are no message of the protocol.
    #[error("expected a message of v2.bsatn.spacetimedb")]
    Malformed,
    /// A message is longer than any of a client's.
    #[error("the message is too long")]
    TooLong,
    /// A query that is no subscription of the lane.
    #[error("only the lane's own subscriptions pass")]
    ForeignQuery,
    /// A query outside a subscription.
    #[error("no SQL passes")]
    OneOffQuery,
    /// A reducer or procedure that is none of a client's.
    #[error("only the calls of a client of the lane pass")]
    ForeignCall,
    /// More subscriptions than a connection may hold.
    #[error("too many subscriptions")]
    TooManySubscriptions,
    /// A subscription that brings more at once than a client's may.
    #[error("the subscription brings too much at once: read what is far behind page by page")]
    TooMuch,
    /// The id of a subscription that exists, or the end of one that does not.
    #[error("the id of the subscription is wrong")]
    WrongId,
}

impl Breach {
    /// The breach as the client is told.
    pub fn refusal(self) -> Refusal {
        let code = match self {
            Self::Malformed | Self::TooLong | Self::WrongId => RefusalCode::InvalidRequest,
            Self::ForeignQuery | Self::OneOffQuery | Self::ForeignCall => RefusalCode::Forbidden,
            Self::TooManySubscriptions | Self::TooMuch => RefusalCode::RateLimited,
        };
        Refusal::new(code, self.to_string())
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    identity: String,
    limits: Limits,
    /// The subscriptions by their ids.
    subscriptions: HashMap<u32, Slot>,
    by_slot: HashMap<Slot, usize>,
}

impl Connection {
    /// A connection of the session with this identity, in hex.
    pub fn new(identity: String, limits: Limits) -> Self {
        Self {
            identity,
            limits,
            subscriptions: HashMap::new(),
            by_slot: HashMap::new(),
        }
    }

    /// Judges a message.
    pub fn decide(&mut self, message: &[u8]) -> Result<Pass, Breach> {
        let message: ClientMessage = bsatn::from_slice(message).map_err(|_| Breach::Malformed)?;
        let asked = match &message {
            ClientMessage::Subscribe(subscribe) => return self.subscribe(subscribe),
            ClientMessage::Unsubscribe(unsubscribe) => self.unsubscribe(unsubscribe)?,
            ClientMessage::OneOffQuery(_) => return Err(Breach::OneOffQuery),
            ClientMessage::CallReducer(CallReducer { reducer, .. }) => {
                known(&REDUCERS, reducer)?;
                Kind::Call.into()
            }
            ClientMessage::CallProcedure(CallProcedure { procedure, .. }) => {
                known(&PROCEDURES, procedure)?;
                Kind::Read.into()
            }
        };
        pass(asked, &message)
    }

    fn subscribe(&mut self, subscribe: &Subscribe) -> Result<Pass, Breach> {
        let query = Query::parse(&subscribe.query_strings).ok_or(Breach::ForeignQuery)?;
        let (slot, most) = match &query {
            Query::Grants(identity) if *identity != self.identity => return Err(Breach::ForeignQuery),
            Query::Contract => (Slot::Contract, OF_A_KIND),
            Query::Grants(_) => (Slot::Grants, OF_A_KIND),
            Query::PresenceCount => (Slot::PresenceCount, OF_A_KIND),
            Query::Capabilities => (Slot::Capabilities, OF_A_KIND),
            Query::Outbox => (Slot::Outbox, OF_A_KIND),
            Query::Audience(table, key) => (Slot::Audience(*table, *key), OF_A_KIND),
            Query::Frames(frames) => (Slot::Stream(frames.stream_key), self.limits.stream_subscriptions),
        };
        let id = subscribe.query_set_id.id;
        if self.subscriptions.contains_key(&id) {
            return Err(Breach::WrongId);
        }
        let held = self.by_slot.get(&slot).copied().unwrap_or_default();
        if self.subscriptions.len() >= self.limits.subscriptions || held >= most {
            return Err(Breach::TooManySubscriptions);
        }
        self.subscriptions.insert(id, slot);
        self.by_slot.insert(slot, held + 1);
        let written = Subscribe {
            request_id: subscribe.request_id,
            query_set_id: subscribe.query_set_id,
            query_strings: query.texts().into_iter().map(Box::from).collect(),
        };
        let asked = Asked {
            kind: Kind::Subscribe,
            wants_answer: true,
            change: slot.stream().map(Change::Begins),
        };
        pass(asked, &ClientMessage::Subscribe(written))
    }

    /// Whether a subscription may be of a stream, so that its client could ask for less. One that was given up before its
    /// answer came counts as such, or whoever gives up each subscription at once could ask for anything.
    pub fn may_be_of_stream(&self, id: u32) -> bool {
        self.subscriptions.get(&id).is_none_or(|slot| slot.stream().is_some())
    }

    fn unsubscribe(&mut self, unsubscribe: &Unsubscribe) -> Result<Asked, Breach> {
        let ended = self.subscriptions.remove(&unsubscribe.query_set_id.id);
        let slot = ended.ok_or(Breach::WrongId)?;
        if let Some(held) = self.by_slot.get_mut(&slot) {
            *held -= 1;
            if *held == 0 {
                self.by_slot.remove(&slot);
            }
        }
        Ok(Asked {
            kind: match unsubscribe.flags {
                UnsubscribeFlags::Default => Kind::Call,
                UnsubscribeFlags::SendDroppedRows => Kind::Subscribe,
            },
            wants_answer: true,
            change: slot.stream().map(Change::Ends),
        })
    }
}

impl Slot {
    fn stream(self) -> Option<u64> {
        match self {
            Self::Stream(key) => Some(key),
            Self::Contract
            | Self::Grants
            | Self::PresenceCount
            | Self::Capabilities
            | Self::Outbox
            | Self::Audience(..) => None,
        }
    }
}

fn known(names: &[&str], name: &str) -> Result<(), Breach> {
    names.contains(&name).then_some(()).ok_or(Breach::ForeignCall)
}

fn pass(asked: Asked, message: &ClientMessage) -> Result<Pass, Breach> {
    let message = bsatn::to_vec(message).map_err(|_| Breach::Malformed)?;
    Ok(Pass { asked, message })
}

#[cfg(test)]
mod tests {
    use spacetimedb_client_api_messages::websocket::v2::{
        CallProcedureFlags, CallReducerFlags, OneOffQuery, QuerySetId, UnsubscribeFlags,
    };

    use super::*;

    const LIMITS: Limits = Limits {
        subscriptions: 5,
        stream_subscriptions: 2,
    };

    fn connection() -> Connection {
        Connection::new("c2".repeat(32), LIMITS)
    }

    fn bytes(message: ClientMessage) -> Vec<u8> {
        bsatn::to_vec(&message).unwrap()
    }

    fn subscribe(id: u32, queries: &[&str]) -> Vec<u8> {
        bytes(ClientMessage::Subscribe(Subscribe {
            request_id: id,
            query_set_id: QuerySetId { id },
            query_strings: queries.iter().map(|text| Box::from(*text)).collect(),
        }))
    }

    fn unsubscribe(id: u32, flags: UnsubscribeFlags) -> Vec<u8> {
        bytes(ClientMessage::Unsubscribe(Unsubscribe {
            request_id: id,
            query_set_id: QuerySetId { id },
            flags,
        }))
    }

    fn reducer(name: &str) -> Vec<u8> {
        bytes(ClientMessage::CallReducer(CallReducer {
            request_id: 1,
            flags: CallReducerFlags::Default,
            reducer: name.into(),
            args: vec![1, 2, 3].into(),
        }))
    }

    fn procedure(name: &str) -> Vec<u8> {
        bytes(ClientMessage::CallProcedure(CallProcedure {
            request_id: 1,
            flags: CallProcedureFlags::Default,
            procedure: name.into(),
            args: vec![1, 2, 3].into(),
        }))
    }

    fn frames(stream_key: u64) -> String {
        format!(
            "SELECT * FROM sync_event WHERE section = {} AND last_seq > 0 AND first_seq <= 100",
            u128::from(stream_key) << 64
        )
    }

    #[test]
    fn what_a_client_says_passes_word_for_word() {
        let mut connection = connection();
        let grants = format!("SELECT * FROM stream_grant WHERE identity = 0x{}", "c2".repeat(32));
        let (begins, ends) = (Some(Change::Begins(7)), Some(Change::Ends(7)));
        for (message, kind, wants_answer, change) in [
            (
                subscribe(1, &["SELECT * FROM sync_contract"]),
                Kind::Subscribe,
                true,
                None,
            ),
            (subscribe(2, &[&grants]), Kind::Subscribe, true, None),
            (subscribe(3, &[&frames(7)]), Kind::Subscribe, true, begins),
            // SpacetimeDB reads and sends the rows once more.
            (
                unsubscribe(3, UnsubscribeFlags::SendDroppedRows),
                Kind::Subscribe,
                true,
                ends,
            ),
            (subscribe(3, &[&frames(7)]), Kind::Subscribe, true, begins),
            (unsubscribe(3, UnsubscribeFlags::Default), Kind::Call, true, ends),
            (reducer("ack_checkpoint"), Kind::Call, false, None),
            (reducer("upsert_presence"), Kind::Call, false, None),
            (reducer("publish_provider_capability"), Kind::Call, false, None),
            (reducer("open_compute_assignment"), Kind::Call, false, None),
            (reducer("update_compute_assignment"), Kind::Call, false, None),
            (reducer("send_signal"), Kind::Call, false, None),
            (reducer("enqueue_bridge_event"), Kind::Call, false, None),
            (reducer("mark_bridge_event_sent"), Kind::Call, false, None),
            (procedure("bind_nostr_key"), Kind::Read, false, None),
            (
                subscribe(4, &["SELECT * FROM session_signal WHERE audience_key = 7"]),
                Kind::Subscribe,
                true,
                None,
            ),
            (procedure("read_events"), Kind::Read, false, None),
        ] {
            let asked = Asked {
                kind,
                wants_answer,
                change,
            };
            assert_eq!(connection.decide(&message), Ok(Pass { asked, message }));
        }
    }

    #[test]
    fn what_no_client_says_is_a_breach() {
        let one_off = bytes(ClientMessage::OneOffQuery(OneOffQuery {
            request_id: 1,
            query_string: "SELECT * FROM sync_contract".into(),
        }));
        let others = format!("SELECT * FROM stream_grant WHERE identity = 0x{}", "c3".repeat(32));
        let contract = "SELECT * FROM sync_contract";
        for (message, breach) in [
            (one_off, Breach::OneOffQuery),
            (reducer("append_sync_events"), Breach::ForeignCall),
            (reducer("read_events"), Breach::ForeignCall),
            (reducer("client_connected"), Breach::ForeignCall),
            (procedure("read_heads"), Breach::ForeignCall),
            (procedure("open_compute_assignment"), Breach::ForeignCall),
            (subscribe(1, &["SELECT * FROM assignment_party"]), Breach::ForeignQuery),
            (subscribe(1, &["SELECT * FROM st_client"]), Breach::ForeignQuery),
            (subscribe(1, &[&others]), Breach::ForeignQuery),
            (subscribe(1, &[contract, contract]), Breach::ForeignQuery),
            (subscribe(1, &[]), Breach::ForeignQuery),
            (unsubscribe(1, UnsubscribeFlags::Default), Breach::WrongId),
            (vec![], Breach::Malformed),
            (vec![9, 1, 2, 3], Breach::Malformed),
            // A count of queries that no message could hold.
            (
                [0, 1, 0, 0, 0, 1, 0, 0, 0, 255, 255, 255, 255].to_vec(),
                Breach::Malformed,
            ),
        ] {
            assert_eq!(connection().decide(&message), Err(breach), "{message:?}");
        }
    }

    #[test]
    fn subscriptions_are_counted_and_freed() {
        let mut connection = connection();
        assert!(connection.decide(&subscribe(1, &[&frames(7)])).is_ok() && connection.may_be_of_stream(1));
        assert_eq!(connection.decide(&subscribe(1, &[&frames(8)])), Err(Breach::WrongId));
        assert!(connection.decide(&subscribe(2, &[&frames(7)])).is_ok());
        let too_many = Err(Breach::TooManySubscriptions);
        assert_eq!(connection.decide(&subscribe(3, &[&frames(7)])), too_many);
        assert!(connection.decide(&unsubscribe(1, UnsubscribeFlags::Default)).is_ok());
        assert!(connection.decide(&subscribe(3, &[&frames(7)])).is_ok());
        for (id, stream_key) in [(4, 8), (5, 8), (6, 9)] {
            assert!(connection.decide(&subscribe(id, &[&frames(stream_key)])).is_ok());
        }
        assert_eq!(connection.decide(&subscribe(7, &[&frames(10)])), too_many);
    }

    #[test]
    fn every_kind_of_subscription_is_held_a_few_times_and_no_more() {
        let grants = format!("SELECT * FROM stream_grant WHERE identity = 0x{}", "c2".repeat(32));
        for query in [
            "SELECT * FROM sync_contract",
            "SELECT * FROM session_presence WHERE audience_key = 7",
            "SELECT * FROM presence_count",
            "SELECT * FROM provider_capability",
            "SELECT * FROM compute_assignment WHERE audience_key = 7",
            "SELECT * FROM compute_assignment_change WHERE audience_key = 7",
            "SELECT * FROM bridge_outbox",
            "SELECT * FROM presence_change WHERE audience_key = 7",
            "SELECT * FROM session_signal WHERE audience_key = 7",
            &grants,
            &frames(7),
        ] {
            let mut connection = connection();
            assert!(connection.decide(&subscribe(1, &[query])).is_ok());
            assert!(connection.decide(&subscribe(2, &[query])).is_ok());
            let third = connection.decide(&subscribe(3, &[query]));
            assert_eq!(third, Err(Breach::TooManySubscriptions), "{query}");
        }
    }
}
