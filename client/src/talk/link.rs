//! One SDK connection: it turns what comes in into [`Inbound`], message by message, and sends calls and subscriptions.
//! It decides nothing and never reconnects: a new link replaces a failed one.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;
use spacetime_sync_bindings::{
    DbConnection, EventPage, RemoteTables, StreamGrant, StreamGrantTableAccess, SubscriptionEventContext,
    SubscriptionHandle, SyncContract, SyncContractTableAccess, SyncEvent, SyncEventTableAccess, ack_checkpoint,
    read_events, readable_streams, upsert_presence,
};
use spacetime_sync_proto::contract::{Contract, ContractRow};
use spacetime_sync_proto::{ChainHash, FrameRow, IdentityHex, Position, Refusal, Section, Seq, StreamId};
use spacetimedb_sdk::{DbContext, Identity, SubscriptionHandle as _, Table, TableWithPrimaryKey, Timestamp, u256};

use super::signals::hear_signals;
use super::views::see_changes;
use crate::presence::Presence;
use crate::session::status::Disconnect;
use crate::session::stream::{Page, SubscriptionId};
use crate::session::{CallFailure, Inbound, QuestionId, ReadId};
use crate::watched::Watchable;

use super::connect::LinkRuntime;

/// How long closing a link may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// What only the attempt to connect waits for.
#[derive(Debug)]
pub(super) enum Greeting {
    /// SpacetimeDB says who the client is. Comes first, and only once.
    Identified(Identity),
    /// The module's contract has arrived, if the module has one at all.
    ContractSeen,
}

/// What messages have brought.
#[derive(Debug, Default)]
pub(super) struct Brought {
    greetings: Vec<Greeting>,
    inbound: Vec<Inbound>,
}

pub(super) type Inbox = Arc<Mutex<Brought>>;

/// What subscriptions are for that are of no stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Subscriber {
    /// The whole of something that the application watches.
    View(Watchable),
    /// What is wanted of an audience, by the session's number for that.
    Ear(usize),
}

/// A connection.
pub(crate) struct Link {
    pub(super) connection: Box<DbConnection>,
    pub(super) inbox: Inbox,
    /// Who the client is by its token.
    pub(super) identity: Option<IdentityHex>,
    /// The stream subscriptions that were not given up.
    subscriptions: HashMap<(usize, SubscriptionId), SubscriptionHandle>,
    /// The others, by what they are for.
    others: HashMap<Subscriber, Vec<SubscriptionHandle>>,
    _runtime: LinkRuntime,
}

impl Link {
    pub(super) fn new(connection: DbConnection, inbox: Inbox, runtime: LinkRuntime) -> Self {
        hear_signals(&connection, &inbox);
        see_changes(&connection, &inbox);
        let into = |inbox: &Inbox| Arc::clone(inbox);
        let to = into(&inbox);
        connection.db.sync_event().on_insert(move |_, row| {
            let stream_key = row.stream_key;
            push(
                &to,
                Inbound::Frame {
                    stream_key,
                    frame: frame_row(row.clone()),
                },
            );
        });
        let to = into(&inbox);
        connection.db.sync_event().on_delete(move |_, row| {
            let (stream_key, last_seq) = (row.stream_key, Seq::new(row.last_seq).unwrap_or(Seq::MAX));
            push(&to, Inbound::Gone { stream_key, last_seq });
        });
        let to = into(&inbox);
        connection
            .db
            .sync_contract()
            .on_insert(move |seen, _| hear_contract(&to, &seen.db));
        let to = into(&inbox);
        connection
            .db
            .sync_contract()
            .on_update(move |seen, _, _| hear_contract(&to, &seen.db));
        let to = into(&inbox);
        connection
            .db
            .stream_grant()
            .on_insert(move |_, _| push(&to, Inbound::GrantCame));
        let to = into(&inbox);
        connection.db.stream_grant().on_delete(move |_, row: &StreamGrant| {
            push(
                &to,
                Inbound::GrantLost {
                    stream_key: row.stream_key,
                },
            );
        });
        Self {
            connection: Box::new(connection),
            inbox,
            identity: None,
            subscriptions: HashMap::new(),
            others: HashMap::new(),
            _runtime: runtime,
        }
    }

    /// Takes one message and returns what it brought, frames first and in the order of their streams. Dropping the
    /// future loses nothing.
    pub(crate) async fn next(&self) -> Result<Vec<Inbound>, Disconnect> {
        // The SDK panics when a call meets a connection that has just broken.
        match AssertUnwindSafe(self.connection.advance_one_message_async())
            .catch_unwind()
            .await
        {
            Ok(Ok(())) => {}
            Ok(Err(spacetimedb_sdk::Error::Disconnected)) => return Err(Disconnect::Closed),
            Ok(Err(error)) => return Err(Disconnect::Failed(error.to_string())),
            Err(_) => return Err(Disconnect::Closed),
        }
        let mut inbound = std::mem::take(&mut lock(&self.inbox).inbound);
        if inbound.len() > 1 {
            inbound.sort_by_key(|inbound| match inbound {
                Inbound::Contract(_) => (0, 0, Seq::ZERO),
                Inbound::Frame { stream_key, frame } => (1, *stream_key, frame.first_seq),
                Inbound::NoModule { .. }
                | Inbound::GrantCame
                | Inbound::GrantLost { .. }
                | Inbound::Gone { .. }
                | Inbound::Subscribed { .. }
                | Inbound::Unsubscribed { .. }
                | Inbound::SubscriptionFailed { .. }
                | Inbound::Page { .. }
                | Inbound::PresenceSaid { .. }
                | Inbound::Changed(_)
                | Inbound::ViewBegan(_)
                | Inbound::ViewFailed { .. }
                | Inbound::Called { .. }
                | Inbound::AudienceTold { .. }
                | Inbound::HearingBegan { .. }
                | Inbound::HearingFailed { .. }
                | Inbound::Told(_)
                | Inbound::Readable { .. }
                | Inbound::Acked { .. } => (2, 0, Seq::ZERO),
            });
        }
        Ok(inbound)
    }

    /// What the messages so far brought for the attempt to connect.
    pub(super) fn greetings(&self) -> Vec<Greeting> {
        std::mem::take(&mut lock(&self.inbox).greetings)
    }

    /// Subscribes to the module's contract.
    pub(crate) fn watch_contract(&self) {
        let seen = Arc::clone(&self.inbox);
        self.subscription_of_the_module()
            .on_applied(move |_| greet(&seen, Greeting::ContractSeen))
            .subscribe("SELECT * FROM sync_contract");
    }

    /// Subscribes to the session's grants.
    pub(crate) fn watch_grants(&self, identity: Identity) {
        self.subscription_of_the_module().subscribe(format!(
            "SELECT * FROM stream_grant WHERE identity = 0x{}",
            identity.to_hex()
        ));
    }

    /// A subscription that fails only where our module is not.
    fn subscription_of_the_module(&self) -> <DbConnection as DbContext>::SubscriptionBuilder {
        let failed = Arc::clone(&self.inbox);
        self.connection.subscription_builder().on_error(move |_, error| {
            let detail = error.to_string();
            push(&failed, Inbound::NoModule { detail });
        })
    }

    /// Asks for the frames after a position.
    pub(crate) fn read(&self, read: ReadId, stream: usize, stream_id: &StreamId, after: Seq) {
        let inbox = Arc::clone(&self.inbox);
        self.connection
            .procedures
            .read_events_then(stream_id.as_str().to_owned(), after.get(), move |_, answer| {
                let answer = flat(answer).map(|answer| (answer.stream_key, Page::from(answer)));
                push(&inbox, Inbound::Page { stream, read, answer });
            });
    }

    /// Subscribes to the frames that end after one position and begin no later than another, so that the next frame is
    /// among them however long it is.
    pub(crate) fn subscribe(&mut self, stream: usize, id: SubscriptionId, stream_key: u64, after: Seq, to: Seq) {
        let (seen, failed) = (Arc::clone(&self.inbox), Arc::clone(&self.inbox));
        let queries: Vec<_> = Section::between(stream_key, after, to)
            .map(|section| {
                format!(
                    "SELECT * FROM sync_event WHERE section = {section} AND last_seq > {after} AND first_seq <= {to}"
                )
            })
            .collect();
        let handle = self
            .connection
            .subscription_builder()
            .on_applied(move |_| push(&seen, Inbound::Subscribed { stream, id }))
            .on_error(move |_, error| {
                push(
                    &failed,
                    Inbound::SubscriptionFailed {
                        stream,
                        id,
                        detail: error.to_string(),
                    },
                );
            })
            .subscribe(queries);
        self.subscriptions.insert((stream, id), handle);
    }

    /// Gives up a subscription. SpacetimeDB sends its rows once more, for the SDK to drop them.
    pub(crate) fn unsubscribe(&mut self, stream: usize, id: SubscriptionId) {
        let Some(handle) = self.subscriptions.remove(&(stream, id)) else {
            return;
        };
        let inbox = Arc::clone(&self.inbox);
        let ended = move |_: &SubscriptionEventContext| push(&inbox, Inbound::Unsubscribed { stream, id });
        if handle.unsubscribe_then(Box::new(ended)).is_err() {
            // It has ended before: report that with the next message.
            push(&self.inbox, Inbound::Unsubscribed { stream, id });
        }
    }

    /// Subscribes to all of these, in place of those before. SpacetimeDB answers in turn: with the last one, all have begun. Each is
    /// a subscription of its own, because a gate lets one query of no stream pass in a subscription.
    pub(super) fn subscribe_all(
        &mut self,
        whose: Subscriber,
        queries: Vec<String>,
        began: impl Fn() -> Inbound + Clone + Send + 'static,
        failed: impl Fn(String) -> Inbound + Clone + Send + 'static,
    ) {
        let last = queries.len().saturating_sub(1);
        let subscribe = |(at, query): (usize, String)| {
            let (seen, broken) = (Arc::clone(&self.inbox), Arc::clone(&self.inbox));
            let (began, failed) = (began.clone(), failed.clone());
            let begins = move || {
                if at == last {
                    push(&seen, began());
                }
            };
            self.connection
                .subscription_builder()
                .on_applied(move |_| begins())
                .on_error(move |_, error| push(&broken, failed(error.to_string())))
                .subscribe(query)
        };
        let handles = queries.into_iter().enumerate().map(subscribe).collect();
        for before in self.others.insert(whose, handles).into_iter().flatten() {
            // One that has failed is gone already.
            let _ = before.unsubscribe();
        }
    }

    /// Asks which streams the session may read, a page of their names.
    pub(crate) fn ask_readable(&self, question: QuestionId, after: String) {
        let inbox = Arc::clone(&self.inbox);
        self.connection
            .procedures
            .readable_streams_then(after, move |_, answer| {
                let answer = flat(answer);
                push(&inbox, Inbound::Readable { question, answer });
            });
    }

    /// Tells the module how far a stream is applied.
    pub(crate) fn ack(&self, stream: usize, stream_id: &StreamId, checkpoint: Position) {
        let (inbox, seq) = (Arc::clone(&self.inbox), checkpoint.seq);
        let chain_hash = u256::from_be_bytes(*checkpoint.chain.as_bytes());
        let sent = self.connection.reducers.ack_checkpoint_then(
            stream_id.as_str().to_owned(),
            seq.get(),
            chain_hash,
            move |_, answer| {
                let answer = flat(answer);
                push(&inbox, Inbound::Acked { stream, seq, answer });
            },
        );
        if let Err(error) = sent {
            tracing::debug!(%stream_id, %error, "cannot send an acknowledgement");
        }
    }

    /// Tells the module this session's presence.
    pub(crate) fn say_presence(&self, session_id: &str, presence: &Presence) {
        let inbox = Arc::clone(&self.inbox);
        let serves = presence.serves.iter().map(|stream| stream.as_str().to_owned());
        let sent = self.connection.reducers.upsert_presence_then(
            session_id.to_owned(),
            presence.node_id.clone(),
            presence.status.as_str().to_owned(),
            presence.region.clone(),
            presence.surface.clone(),
            serves.collect(),
            move |_, answer| {
                let answer = flat(answer);
                push(&inbox, Inbound::PresenceSaid { answer });
            },
        );
        if let Err(error) = sent {
            tracing::debug!(%error, "cannot send the presence");
        }
    }

    /// Closes the connection in the background. Messages that still arrive are dropped.
    pub(crate) fn close(self) {
        tokio::spawn(async move {
            let goodbye = async {
                let _ = self.connection.disconnect();
                while self.next().await.is_ok() {}
            };
            let _ = tokio::time::timeout(GOODBYE, goodbye).await;
        });
    }
}

fn lock(inbox: &Inbox) -> MutexGuard<'_, Brought> {
    // Nothing can panic while it holds the lock: under it we only push and take.
    inbox.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn push(inbox: &Inbox, inbound: Inbound) {
    lock(inbox).inbound.push(inbound);
}

pub(super) fn greet(inbox: &Inbox, greeting: Greeting) {
    lock(inbox).greetings.push(greeting);
}

/// The answer to a call: of the module, or of SpacetimeDB in its place.
pub(super) fn flat<T, E: ToString>(answer: Result<Result<T, String>, E>) -> Result<T, CallFailure> {
    match answer {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(text)) => Err(Refusal::from_wire(&text).map_or(CallFailure::Failed(text), CallFailure::Refused)),
        Err(error) => Err(CallFailure::Failed(error.to_string())),
    }
}

/// Says what the module speaks by all its rows, whichever of them has changed. When a row's callback runs, all that the
/// same transaction changed is there.
fn hear_contract(inbox: &Inbox, db: &RemoteTables) {
    let row = |row: SyncContract| ContractRow {
        id: row.id,
        protocol: row.protocol,
        schema_version: row.schema_version,
        schema_hash: row.schema_hash,
    };
    if let Some(contract) = Contract::of_rows(db.sync_contract().iter().map(row)) {
        push(inbox, Inbound::Contract(contract));
    }
}

/// A time that this machine cannot represent, or from before the epoch, becomes the epoch.
pub(super) fn time(column: Timestamp) -> SystemTime {
    let epoch = SystemTime::UNIX_EPOCH;
    let micros = u64::try_from(column.to_micros_since_unix_epoch()).unwrap_or_default();
    epoch.checked_add(Duration::from_micros(micros)).unwrap_or(epoch)
}

impl From<EventPage> for Page {
    fn from(page: EventPage) -> Self {
        let head = Position {
            seq: seq(page.head_seq),
            chain: chain(page.head_chain),
        };
        Self {
            head,
            oldest_seq: seq(page.oldest_seq),
            durable_reads: page.durable_reads,
            frames: page.frames.into_iter().map(frame_row).collect(),
        }
    }
}

/// A row of the log in the form that the core takes.
#[doc(hidden)]
pub fn frame_row(row: SyncEvent) -> FrameRow {
    FrameRow {
        first_seq: seq(row.first_seq),
        last_seq: seq(row.last_seq),
        base_chain: chain(row.base_chain),
        bytes: Bytes::from(row.frame),
    }
}

/// A column out of range becomes the end of the range, which no log reaches: the core refuses what follows.
fn seq(column: u64) -> Seq {
    Seq::new(column).unwrap_or(Seq::MAX)
}

fn chain(column: u256) -> ChainHash {
    ChainHash::from_bytes(column.to_be_bytes())
}
