//! A host with one stream, for tests of the whole client: it speaks what SpacetimeDB speaks over a WebSocket and over
//! HTTP, lets in whom it is told to, and breaks where it is told to.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use spacetime_sync_bindings::{SessionPresence, SyncEvent};
use spacetime_sync_proto::page::Snapshot;
use spacetime_sync_proto::{PayloadHash, Refusal, Seq, StreamId};
use spacetime_sync_rules::log::memory::MemoryLog;
use spacetime_sync_rules::{append, rewind};
use tokio::net::TcpListener;
use tokio::sync::watch;

use self::connection::sync_event;
use crate::session::stream::tests::Log;

mod authority;
mod connection;
mod serve;

/// Its one stream.
pub(crate) const STREAM: &str = "model";

/// The host. It ends with the runtime of its test.
#[derive(Clone)]
pub(crate) struct FakeHost {
    pub(crate) uri: String,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
}

struct State {
    log: Log,
    /// Answers to tokens that are not let in: an HTTP status …
    unaccepted: HashMap<String, u16>,
    /// … or what `client_connected` says.
    refused: HashMap<String, String>,
    /// Tokens whose connections are closed.
    cut: HashSet<String>,
    /// Tokens whose subscriptions to the log are taken and never answered.
    stuck: HashSet<String>,
    /// When a connection with the first token has its contract, those with the second are closed.
    cut_when: Option<(String, String)>,
    /// What reads answer in place of a page.
    read_refusal: HashMap<String, Refusal>,
    presence: Vec<SessionPresence>,
    /// Tokens whose session may not read the stream.
    ungranted: HashSet<String>,
    /// What SpacetimeDB holds of the log, one event a frame.
    held: MemoryLog,
    /// Whether what is appended is held at once.
    follows: bool,
    /// The authority holds the events after this position.
    floor: u64,
    document: Option<Snapshot>,
    /// What it answers in place of history, and how often.
    unserved: Option<(u16, u32)>,
    /// Whether the stream's class allows only reads of what is durable.
    durable_reads: bool,
    /// Whether connections are taken and never answered.
    hung: bool,
    seen: Seen,
}

/// What came to the host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// Tokens of connections that were let in, in order.
    pub(crate) served: Vec<String>,
    /// Which of them had asked for what is durable only.
    pub(crate) confirmed: Vec<bool>,
    /// Tokens of connections that have ended.
    pub(crate) ended: Vec<String>,
    /// Connections that were never answered …
    pub(crate) unanswered: usize,
    /// … and how many of them were given up.
    pub(crate) given_up: usize,
    /// HTTP requests.
    pub(crate) asked: Vec<String>,
    /// What was said of sessions: of which, on which node, and how it is there.
    pub(crate) said: Vec<(String, String, String)>,
    /// What was asked of the authority: by which token, and where.
    pub(crate) histories: Vec<(String, String)>,
}

impl FakeHost {
    /// A host whose stream holds so many events.
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

    /// The lane's head.
    pub(crate) fn head(&self) -> u64 {
        self.state().head()
    }

    /// SpacetimeDB holds what is after one position, up to another, and nothing that comes later.
    pub(crate) fn hold(&self, after: u64, to: u64) {
        self.change(|state| {
            state.hold(after, to);
            state.follows = false;
        });
    }

    /// SpacetimeDB holds everything after a position.
    pub(crate) fn hold_after(&self, after: u64) {
        self.change(|state| {
            state.hold(after, state.log.head().seq.get());
            state.follows = true;
        });
    }

    /// The authority holds what is after a position.
    pub(crate) fn purge(&self, floor: u64) {
        self.change(|state| state.floor = floor);
    }

    /// There is a document that stands for the events up to a position; altered, if it is to be.
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

    /// The authority answers with a status so many times.
    pub(crate) fn do_not_serve(&self, status: u16, times: u32) {
        self.change(|state| state.unserved = Some((status, times)));
    }

    /// Takes connections from here on, and never answers them; or answers again.
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
        rewind::step(&mut self.held, &stream(), target, Seq::ZERO, rewind::STEP_EVENTS).unwrap();
        self.publish(to);
    }

    fn publish(&mut self, to: u64) {
        for seq in self.head() + 1..=to {
            let frame = self.log.frame(seq, seq);
            let request = append::Request {
                first_seq: seq,
                base_chain: frame.base_chain,
                frame: frame.bytes,
            };
            append::append(&mut self.held, &stream(), request).unwrap();
        }
    }

    /// The rows of the frames after a position, up to another.
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
