//! A host with one stream, for tests of the whole client: it speaks what SpacetimeDB speaks over a WebSocket and over
//! HTTP, lets in whom it is told to, and breaks where it is told to.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use spacetime_sync_bindings::{EventPage, SessionPresence, StreamGrant, SyncContract, SyncEvent};
use spacetime_sync_proto::contract::Contract;
use spacetime_sync_proto::page::{self, Snapshot};
use spacetime_sync_proto::{PayloadHash, Refusal, RefusalCode, Seq, StaleCursor, StaleReason, StreamId, limit};
use spacetime_sync_rules::log::StoredFrame;
use spacetime_sync_rules::log::memory::MemoryLog;
use spacetime_sync_rules::{append, page as rules_page, rewind};
use spacetimedb_sdk::__codegen::__lib::{bsatn, de, ser};
use spacetimedb_sdk::__codegen::__ws::common::{QuerySetId, RowSizeHint};
use spacetimedb_sdk::__codegen::__ws::v2::*;
use spacetimedb_sdk::{ConnectionId, Identity, TimeDuration, Timestamp, u256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::{Bytes as WsBytes, Message};

use crate::session::stream::tests::Log;

/// Its one stream.
pub(crate) const STREAM: &str = "model";
const KEY: u64 = 7;

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

    async fn serve_history(&self, mut stream: TcpStream, token: String, path: String) {
        let mut request = vec![0; 8192];
        let _ = stream.read(&mut request).await;
        let mut answer = self.state().history(&path);
        self.change(|state| {
            if let Some((status, times)) = &mut state.unserved
                && *times > 0
            {
                *times -= 1;
                answer = (*status, Vec::new());
            }
            state.seen.histories.push((token, path));
        });
        let (status, body) = answer;
        let length = body.len();
        let head = format!("HTTP/1.1 {status} Said\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
        let _ = stream.shutdown().await;
    }

    async fn serve(self, mut stream: TcpStream) {
        if self.state().hung {
            self.change(|state| state.seen.unanswered += 1);
            let mut request = vec![0; 8192];
            while stream.read(&mut request).await.is_ok_and(|read| read > 0) {}
            return self.change(|state| state.seen.given_up += 1);
        }
        let mut head = vec![0; 8192];
        // A client sends its request in one piece, and an upgrade waits for the answer.
        let Ok(read) = stream.peek(&mut head).await else { return };
        let head = String::from_utf8_lossy(&head[..read]).into_owned();
        let token = head
            .lines()
            .find_map(|line| {
                line.to_lowercase()
                    .starts_with("authorization: bearer ")
                    .then(|| line[22..].to_owned())
            })
            .unwrap_or_default();
        if let Some(path) = head.strip_prefix("GET /api/sync/streams/") {
            let path = path.split(' ').next().unwrap_or_default().to_owned();
            return self.serve_history(stream, token, path).await;
        }
        let confirmed = head
            .lines()
            .next()
            .is_some_and(|asked| asked.contains("confirmed=true"));
        let refused = self.state().refused.get(&token).cloned();
        let unaccepted = self.state().unaccepted.get(&token).copied();
        if head.starts_with("POST ") {
            let mut request = vec![0; 8192];
            let _ = stream.read(&mut request).await;
            self.change(|state| state.seen.asked.push(token));
            let (status, body) = match refused {
                Some(refusal) => ("403 Forbidden", refusal),
                None => ("200 OK", "[]".to_owned()),
            };
            let length = body.len();
            let answer = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
            let _ = stream.write_all(answer.as_bytes()).await;
            // What is left of the request is read, or closing would look like a failure.
            let _ = stream.shutdown().await;
            while stream.read(&mut request).await.is_ok_and(|read| read > 0) {}
            return;
        }
        if let Some(status) = unaccepted {
            let mut request = vec![0; 8192];
            let _ = stream.read(&mut request).await;
            let answer = format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
            return;
        }
        #[allow(clippy::result_large_err)]
        let accept = |_: &Request, mut response: Response| {
            let protocol = BIN_PROTOCOL.parse().unwrap();
            response.headers_mut().insert("sec-websocket-protocol", protocol);
            Ok(response)
        };
        let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, accept).await else {
            return;
        };
        if refused.is_some() {
            let _ = socket.close(None).await;
            return;
        }
        let mut changed = self.changed.subscribe();
        let mut connection = Connection {
            host: self.clone(),
            token: token.clone(),
            subscriptions: Vec::new(),
            presence: None,
            grant: None,
        };
        self.change(|state| {
            state.seen.served.push(token.clone());
            state.seen.confirmed.push(confirmed);
        });
        let hello = ServerMessage::InitialConnection(InitialConnection {
            identity: Identity::ZERO,
            connection_id: ConnectionId::ZERO,
            token: "".into(),
        });
        let mut out = vec![hello];
        loop {
            for message in out.drain(..) {
                let mut bytes = vec![0];
                bytes.extend(bsatn::to_vec(&message).unwrap());
                if socket.send(Message::Binary(WsBytes::from(bytes))).await.is_err() {
                    self.change(|state| state.seen.ended.push(token.clone()));
                    return;
                }
            }
            tokio::select! {
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => {
                        out = connection.answer(bsatn::from_slice(&bytes).unwrap());
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => {
                        self.change(|state| state.seen.ended.push(token.clone()));
                        return;
                    }
                    Some(Ok(_)) => {}
                },
                _ = changed.changed() => {
                    if self.state().cut.contains(&token) {
                        self.change(|state| state.seen.ended.push(token.clone()));
                        return;
                    }
                    out = connection.news();
                }
            }
        }
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

    /// What the authority answers.
    fn history(&self, path: &str) -> (u16, Vec<u8>) {
        let stream_id = stream();
        let Some(query) = path.strip_prefix(&format!("{STREAM}/events?after=")) else {
            assert_eq!(path, format!("{STREAM}/snapshot"));
            return match &self.document {
                Some(document) => (200, document.encode().to_vec()),
                None => (
                    404,
                    br#"{"code":"not_found","message":"none","retryable":false}"#.to_vec(),
                ),
            };
        };
        let (after, chain) = query.split_once("&chain=").unwrap();
        let after: u64 = after.parse().unwrap();
        let head = self.log.head();
        let mut reason_codes = Vec::new();
        if after < self.floor {
            reason_codes.push(StaleReason::RetentionFloorBreach);
        }
        if after > head.seq.get() {
            reason_codes.push(StaleReason::AheadOfHead);
        } else if self.log.at(after).chain.to_string().replace(':', "%3A") != chain {
            reason_codes.push(StaleReason::ChainMismatch);
        }
        let floor = self.log.at(self.floor);
        if !reason_codes.is_empty() {
            let stale = StaleCursor {
                code: Default::default(),
                stream_id,
                requested_after_seq: Seq::new(after).unwrap(),
                oldest_available_cursor: floor.seq,
                oldest_available_chain: floor.chain,
                head_cursor: head.seq,
                reason_codes,
                replay_lag: head.seq.get().saturating_sub(after),
                replay_budget_events: None,
                snapshot_cursor: self.document.as_ref().map(|document| document.seq),
            };
            return (410, serde_json::to_vec(&stale).unwrap());
        }
        // Few at a time, so that it takes some.
        let frames = (after + 1..=head.seq.get())
            .take(10)
            .map(|seq| self.log.frame(seq, seq));
        let page = page::EventPage {
            head_seq: head.seq,
            head_chain: head.chain,
            oldest_seq: floor.seq.next(),
            frames: frames.collect(),
        };
        (200, page.encode().to_vec())
    }
}

struct Connection {
    host: FakeHost,
    token: String,
    subscriptions: Vec<Subscribed>,
    /// What was sent of those who are there.
    presence: Option<(QuerySetId, Vec<SessionPresence>)>,
    /// The grant, while it is there.
    grant: Option<(QuerySetId, StreamGrant)>,
}

struct Subscribed {
    id: QuerySetId,
    from: u64,
    to: u64,
    sent: Vec<SyncEvent>,
}

impl Subscribed {
    /// The position up to which everything was sent.
    fn sent_to(&self) -> u64 {
        self.sent.last().map_or(self.from, |row| row.last_seq)
    }
}

#[derive(de::Deserialize)]
#[sats(crate = spacetimedb_sdk::__codegen::__lib)]
struct ReadEvents {
    stream_id: String,
    after_seq: u64,
}

#[derive(de::Deserialize)]
#[sats(crate = spacetimedb_sdk::__codegen::__lib)]
struct UpsertPresence {
    session_id: String,
    node_id: String,
    status: String,
    region: String,
    serves: Vec<String>,
}

impl Connection {
    fn answer(&mut self, message: ClientMessage) -> Vec<ServerMessage> {
        match message {
            ClientMessage::Subscribe(asked) => self.subscribe(asked).into_iter().collect(),
            ClientMessage::Unsubscribe(asked) => {
                let at = self.subscriptions.iter().position(|one| one.id == asked.query_set_id);
                let rows = at.map(|at| {
                    let gone = self.subscriptions.remove(at);
                    query_rows("sync_event", &gone.sent)
                });
                vec![ServerMessage::UnsubscribeApplied(UnsubscribeApplied {
                    request_id: asked.request_id,
                    query_set_id: asked.query_set_id,
                    rows,
                })]
            }
            ClientMessage::CallProcedure(call) => {
                assert_eq!(&*call.procedure, "read_events");
                let answer = self.read(&bsatn::from_slice(&call.args).unwrap());
                vec![ServerMessage::ProcedureResult(ProcedureResult {
                    status: ProcedureStatus::Returned(bsatn::to_vec(&answer).unwrap().into()),
                    timestamp: Timestamp::UNIX_EPOCH,
                    total_host_execution_duration: TimeDuration::ZERO,
                    request_id: call.request_id,
                })]
            }
            ClientMessage::CallReducer(call) => {
                if &*call.reducer == "upsert_presence" {
                    self.say(bsatn::from_slice(&call.args).unwrap());
                }
                vec![ServerMessage::ReducerResult(ReducerResult {
                    request_id: call.request_id,
                    timestamp: Timestamp::UNIX_EPOCH,
                    result: ReducerOutcome::OkEmpty,
                })]
            }
            ClientMessage::OneOffQuery(_) => Vec::new(),
        }
    }

    fn say(&self, said: UpsertPresence) {
        assert!(said.serves.is_empty());
        self.host.change(|state| {
            let heard = (said.session_id.clone(), said.node_id.clone(), said.status.clone());
            state.seen.said.push(heard);
            let times = state.seen.said.len() as i64;
            let rows = &mut state.presence;
            let at = rows.iter().position(|row| row.node_id == said.node_id);
            let at = at.unwrap_or(rows.len());
            let row = SessionPresence {
                presence_id: at as u64 + 1,
                audience_key: 1,
                session_id: said.session_id,
                node_id: said.node_id,
                reason: if said.status == "offline" {
                    "explicit_offline"
                } else {
                    ""
                }
                .to_owned(),
                status: said.status,
                region: said.region,
                started_at: Timestamp::UNIX_EPOCH,
                last_seen: Timestamp::from_micros_since_unix_epoch(times),
                holds_until: Timestamp::UNIX_EPOCH,
            };
            match rows.get_mut(at) {
                Some(held) => *held = row,
                None => rows.push(row),
            }
        });
    }

    fn subscribe(&mut self, asked: Subscribe) -> Option<ServerMessage> {
        let query = &*asked.query_strings[0];
        let rows = if query.contains("sync_contract") {
            let ours = Contract::ours();
            let mut state = self.host.state();
            if state.cut_when.as_ref().is_some_and(|(next, _)| *next == self.token)
                && let Some((_, old)) = state.cut_when.take()
            {
                state.cut.insert(old);
                self.host.changed.send_replace(());
            }
            let contract = SyncContract {
                id: 0,
                protocol: ours.protocol,
                schema_version: ours.schema_version,
                schema_hash: ours.schema_hash,
            };
            query_rows("sync_contract", &[contract])
        } else if let Some(bounds) = query.strip_prefix(&format!("SELECT * FROM sync_event WHERE stream_key = {KEY} "))
        {
            if self.host.state().stuck.contains(&self.token) {
                return None;
            }
            let numbers: Vec<u64> = bounds.split(' ').filter_map(|word| word.parse().ok()).collect();
            let (from, to) = (numbers[0], numbers[2]);
            let sent = self.host.state().rows(from, to);
            let first = query_rows("sync_event", &sent);
            self.subscriptions.push(Subscribed {
                id: asked.query_set_id,
                from,
                to,
                sent,
            });
            first
        } else if query == "SELECT * FROM session_presence" {
            let rows = self.host.state().presence.clone();
            let first = query_rows("session_presence", &rows);
            self.presence = Some((asked.query_set_id, rows));
            first
        } else {
            assert!(
                query.starts_with("SELECT * FROM stream_grant WHERE identity = "),
                "{query}"
            );
            let grant = StreamGrant {
                grant_id: 1,
                identity: Identity::ZERO,
                stream_key: KEY,
                standing: false,
            };
            self.grant = Some((asked.query_set_id, grant.clone()));
            query_rows("stream_grant", &[grant])
        };
        Some(ServerMessage::SubscribeApplied(SubscribeApplied {
            request_id: asked.request_id,
            query_set_id: asked.query_set_id,
            rows,
        }))
    }

    fn read(&self, asked: &ReadEvents) -> Result<EventPage, String> {
        assert_eq!(asked.stream_id, STREAM);
        if let Some(refusal) = self.host.state().read_refusal.get(&self.token) {
            return Err(refusal.to_wire());
        }
        if self.host.state().ungranted.contains(&self.token) {
            return Err(Refusal::new(RefusalCode::ForbiddenStream, "no grant").to_wire());
        }
        let state = self.host.state();
        let after = Seq::new(asked.after_seq).unwrap();
        let page = rules_page::read(&state.held, &stream(), after, limit::PAGE_BYTES);
        Ok(EventPage {
            stream_key: KEY,
            head_seq: page.held.head.seq.get(),
            head_chain: u256::from_be_bytes(*page.held.head.chain.as_bytes()),
            durable_reads: state.durable_reads,
            oldest_seq: page.held.oldest_seq.get(),
            frames: page.frames.into_iter().map(sync_event).collect(),
        })
    }

    fn news(&mut self) -> Vec<ServerMessage> {
        let mut query_sets = Vec::new();
        for one in &mut self.subscriptions {
            let rows = self.host.state().rows(one.sent_to(), one.to);
            if !rows.is_empty() {
                query_sets.push(update(one.id, "sync_event", row_list(&rows), BsatnRowList::default()));
                one.sent.extend(rows);
            }
        }
        if let Some((id, sent)) = &mut self.presence {
            let rows = self.host.state().presence.clone();
            let gone: Vec<_> = sent.iter().filter(|row| !rows.contains(row)).cloned().collect();
            let come: Vec<_> = rows.iter().filter(|row| !sent.contains(row)).cloned().collect();
            if !come.is_empty() {
                query_sets.push(update(*id, "session_presence", row_list(&come), row_list(&gone)));
                *sent = rows;
            }
        }
        if self.host.state().ungranted.contains(&self.token)
            && let Some((id, grant)) = self.grant.take()
        {
            // What is subscribed to brings nothing any more.
            self.subscriptions.iter_mut().for_each(|one| one.to = one.sent_to());
            query_sets.push(update(id, "stream_grant", BsatnRowList::default(), row_list(&[grant])));
        }
        if query_sets.is_empty() {
            return Vec::new();
        }
        let query_sets = query_sets.into();
        vec![ServerMessage::TransactionUpdate(TransactionUpdate { query_sets })]
    }
}

fn sync_event(stored: StoredFrame) -> SyncEvent {
    let frame = stored.frame;
    SyncEvent {
        stream_key: KEY,
        first_seq: frame.first_seq.get(),
        last_seq: frame.last_seq.get(),
        base_chain: u256::from_be_bytes(*frame.base_chain.as_bytes()),
        last_at: stored.last_at_us,
        frame: frame.bytes.to_vec(),
    }
}

fn update(
    query_set_id: QuerySetId,
    table: &'static str,
    inserts: BsatnRowList,
    deletes: BsatnRowList,
) -> QuerySetUpdate {
    let rows = TableUpdateRows::PersistentTable(PersistentTableRows { inserts, deletes });
    QuerySetUpdate {
        query_set_id,
        tables: Box::new([TableUpdate {
            table_name: table.into(),
            rows: Box::new([rows]),
        }]),
    }
}

fn query_rows<T: ser::Serialize>(table: &'static str, rows: &[T]) -> QueryRows {
    QueryRows {
        tables: Box::new([SingleTableRows {
            table: table.into(),
            rows: row_list(rows),
        }]),
    }
}

fn row_list<T: ser::Serialize>(rows: &[T]) -> BsatnRowList {
    let (mut offsets, mut data) = (Vec::new(), Vec::new());
    for row in rows {
        offsets.push(data.len() as u64);
        data.extend(bsatn::to_vec(row).unwrap());
    }
    BsatnRowList::new(RowSizeHint::RowOffsets(offsets.into()), Bytes::from(data))
}

/// The stream's id.
pub(crate) fn stream() -> StreamId {
    StreamId::new(STREAM).unwrap()
}
