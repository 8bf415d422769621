//! A fake host with one stream, for tests of the whole client. It speaks SpacetimeDB's WebSocket and HTTP interfaces
//! and the bridge's history interface. Tests tell it which tokens to accept and where to fail.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use spacetime_sync_bindings::{SessionPresence, SyncEvent};
use spacetime_sync_proto::page::Snapshot;
use spacetime_sync_proto::{PayloadHash, Refusal, Seq, StreamId, limit};
use spacetime_sync_rules::log::memory::MemoryLog;
use spacetime_sync_rules::{append, rewind};
use tokio::net::TcpListener;
use tokio::sync::watch;

use self::connection::sync_event;
use crate::seal::tests::BRIDGE;
use crate::session::stream::tests::Log;

mod authority;
mod connection;
mod serve;

/// The only stream.
pub(crate) const STREAM: &str = "model";

/// The fake host. It ends with the runtime of its test.
#[derive(Clone)]
pub(crate) struct FakeHost {
    pub(crate) uri: String,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
}

struct State {
    log: Log,
    /// The HTTP status with which to reject a token …
    unaccepted: HashMap<String, u16>,
    /// … or what `client_connected` says about it.
    refused: HashMap<String, String>,
    /// Tokens whose connections to close.
    cut: HashSet<String>,
    /// Tokens whose subscriptions to the log stay unanswered.
    stuck: HashSet<String>,
    /// Once a connection with the first token has its contract, close those with the second.
    cut_when: Option<(String, String)>,
    /// The refusal of reads with a token.
    read_refusal: HashMap<String, Refusal>,
    presence: Vec<SessionPresence>,
    /// Tokens whose session may not read the stream.
    ungranted: HashSet<String>,
    /// What SpacetimeDB holds of the log, one event per frame.
    held: MemoryLog,
    /// Whether SpacetimeDB gets new events at once.
    follows: bool,
    /// The authority holds the events after this seq.
    floor: u64,
    document: Option<Snapshot>,
    /// The status to answer in place of history, and how many times.
    unserved: Option<(u16, u32)>,
    /// Whether the stream's class allows only confirmed reads.
    durable_reads: bool,
    /// Whether to accept connections and never answer.
    hung: bool,
    seen: Seen,
}

/// What the fake host has seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// Tokens of accepted connections, in order.
    pub(crate) served: Vec<String>,
    /// Which of them asked for confirmed reads.
    pub(crate) confirmed: Vec<bool>,
    /// Tokens of connections that have ended.
    pub(crate) ended: Vec<String>,
    /// Connections that were never answered …
    pub(crate) unanswered: usize,
    /// … and how many of them the client closed.
    pub(crate) given_up: usize,
    /// Tokens of requests over HTTP.
    pub(crate) asked: Vec<String>,
    /// Presence calls: session, node and status.
    pub(crate) said: Vec<(String, String, String)>,
    /// Requests for history: token and path.
    pub(crate) histories: Vec<(String, String)>,
}

impl FakeHost {
    /// A fake host whose stream has this many events.
    pub(crate) async fn start(events: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = Self {
            uri: format!("http://{}", listener.local_addr().unwrap()),
            state: Arc::new(Mutex::new(State {
                log: Log::new(STREAM, events),
                unaccepted: HashMap::new(),
                refused: HashMap::new(),
                cut: HashSet::new(),
                stuck: HashSet::new(),
                cut_when: None,
                read_refusal: HashMap::new(),
                presence: Vec::new(),
                ungranted: HashSet::new(),
                held: MemoryLog::default(),
                follows: true,
                floor: 0,
                document: None,
                unserved: None,
                durable_reads: true,
                hung: false,
                seen: Seen::default(),
            })),
            changed: watch::channel(()).0,
        };
        host.hold_after(0);
        let serving = host.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        host
    }

    pub(crate) fn append(&self) {
        self.change(|state| {
            state.log.append();
            if state.follows {
                state.publish(state.log.head().seq.get());
            }
        });
    }

    /// The head that SpacetimeDB holds.
    pub(crate) fn head(&self) -> u64 {
        self.state().head()
    }

    /// SpacetimeDB holds the events after one seq up to another, and gets no new ones.
    pub(crate) fn hold(&self, after: u64, to: u64) {
        self.change(|state| {
            state.hold(after, to);
            state.follows = false;
        });
    }

    /// SpacetimeDB holds everything after a seq, and gets new events.
    pub(crate) fn hold_after(&self, after: u64) {
        self.change(|state| {
            state.hold(after, state.log.head().seq.get());
            state.follows = true;
        });
    }

    /// The authority holds only the events after a seq.
    pub(crate) fn purge(&self, floor: u64) {
        self.change(|state| state.floor = floor);
    }

    /// Stores a document that stands for the events up to a seq; with a wrong hash, if `altered`.
    pub(crate) fn put_document(&self, seq: u64, altered: bool) {
        let payload = Bytes::from_static(b"what was");
        self.change(|state| {
            let at = state.log.at(seq);
            state.document = Some(Snapshot {
                doc_key: "doc".to_owned(),
                seq: at.seq,
                chain_hash: at.chain,
                payload_hash: PayloadHash::of(if altered { b"another" } else { &payload }),
                payload,
            });
        });
    }

    /// The authority answers with this status, this many times.
    pub(crate) fn do_not_serve(&self, status: u16, times: u32) {
        self.change(|state| state.unserved = Some((status, times)));
    }

    /// From now on, accepts connections and never answers; or answers again.
    pub(crate) fn hang(&self, hung: bool) {
        self.change(|state| state.hung = hung);
    }

    pub(crate) fn seen(&self) -> Seen {
        self.state().seen.clone()
    }

    pub(crate) fn do_not_accept(&self, token: &str, status: u16) {
        self.change(|state| _ = state.unaccepted.insert(token.to_owned(), status));
    }

    pub(crate) fn refuse(&self, token: &str, refusal: &str) {
        self.change(|state| _ = state.refused.insert(token.to_owned(), refusal.to_owned()));
    }

    pub(crate) fn refuse_reads(&self, token: &str, refusal: Refusal) {
        self.change(|state| _ = state.read_refusal.insert(token.to_owned(), refusal));
    }

    pub(crate) fn cut(&self, token: &str) {
        self.change(|state| _ = state.cut.insert(token.to_owned()));
    }

    pub(crate) fn cut_when_served(&self, next: &str, old: &str) {
        self.change(|state| state.cut_when = Some((next.to_owned(), old.to_owned())));
    }

    pub(crate) fn never_subscribe(&self, token: &str) {
        self.change(|state| _ = state.stuck.insert(token.to_owned()));
    }

    pub(crate) fn take_grant(&self, token: &str) {
        self.change(|state| _ = state.ungranted.insert(token.to_owned()));
    }

    pub(crate) fn allow_early_reads(&self, allowed: bool) {
        self.change(|state| state.durable_reads = !allowed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.send_replace(());
    }
}

impl State {
    fn head(&self) -> u64 {
        self.held.head.map_or(0, |row| row.head.seq.get())
    }

    fn hold(&mut self, after: u64, to: u64) {
        self.held = MemoryLog::default();
        let target = self.log.at(after);
        rewind::step(
            &mut self.held,
            &stream(),
            target,
            None,
            self.log.at(0),
            limit::REWIND_STEP_EVENTS,
        )
        .unwrap();
        self.publish(to);
    }

    fn publish(&mut self, to: u64) {
        for seq in self.head() + 1..=to {
            let frame = self.log.sealed_frame(&stream(), seq, seq, &BRIDGE);
            let request = append::Request::of_frame(seq, frame.base_chain, frame.bytes).unwrap();
            append::append(&mut self.held, &stream(), request).unwrap();
        }
    }

    /// The rows of the frames after one seq, up to another.
    fn rows(&self, after: u64, to: u64) -> Vec<SyncEvent> {
        let held = self.held.frames_after(Seq::new(after).unwrap()).iter();
        let rows = held.filter(|stored| stored.frame.last_seq.get() <= to);
        rows.cloned().map(sync_event).collect()
    }
}

/// The stream's id.
pub(crate) fn stream() -> StreamId {
    StreamId::new(STREAM).unwrap()
}
