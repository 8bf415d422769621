//! What a hostile client does through the gate.

use std::cell::Cell;
use std::time::Duration;

use bytes::Bytes;
use spacetime_sync_proto::limit;
use spacetimedb_client_api_messages::websocket::v2::{ClientMessage, ServerMessage};
use spacetimedb_sdk::Identity;

use super::client::{Client, at_once, dial};
use super::forged;
use crate::socket::Socket;
use crate::words;

/// How long it waits for an answer before it goes on.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many subscriptions it holds on a connection: nearly as many as the gate allows.
const HOARD: u32 = 2_000;
/// Bytes of an argument that the module refuses, in a message that the gate just lets pass.
const LARGE: usize = 60_000;
/// One call of so many is that large.
const LARGE_EVERY: usize = 64;

/// A reducer and its arguments.
type Call = (&'static str, Bytes);

impl Client {
    /// An attempt to connect.
    async fn open(&self, token: &str, reads: bool) -> Option<Socket> {
        self.said();
        let (gate, database) = (&self.args.gate, &self.args.database);
        let opened = async { Socket::over(dial(gate, reads).await?, gate, database, Some(token)).await };
        match opened.await {
            Ok(Ok(socket)) => Some(socket),
            Ok(Err(_)) => {
                self.count(|tally| tally.refused += 1);
                None
            }
            Err(_) => {
                self.closed().await;
                None
            }
        }
    }

    /// A connection, as soon as the gate allows one.
    async fn connection(&self, reads: bool) -> Socket {
        loop {
            if let Some(socket) = self.open(&self.token.token, reads).await {
                return socket;
            }
            tokio::time::sleep(crate::STEP).await;
        }
    }

    /// Floods a connection until it is closed.
    async fn flood(&self, mut next: impl FnMut(u32) -> Option<ClientMessage>) {
        let socket = self.connection(true).await;
        let say = |request_id| next(request_id).inspect(|_| self.said());
        socket
            .flood(say, |bytes| self.count(|tally| tally.heard += bytes as u64))
            .await;
        self.closed().await;
    }

    /// These calls, one after the other, on so many connections.
    pub(super) async fn calls(&self, connections: usize, calls: &[Call]) {
        at_once(connections, async || {
            let call = |id: u32| {
                let (name, args) = &calls[id as usize % calls.len()];
                Some(words::reducer(id, name, args.clone()))
            };
            self.flood(call).await;
        })
        .await;
    }

    /// Calls as large as they may be: presence on as many nodes as there may be, each of which serves as many streams; and
    /// acknowledgements that each move the checkpoint, until they begin anew.
    pub(super) async fn prepared(&self) -> anyhow::Result<Vec<Call>> {
        let session = self.token.session_id.as_str();
        let serves: Vec<&str> = self.args.streams.iter().map(|id| id.as_str()).collect();
        let serves = &serves[..serves.len().min(limit::PRESENCE_SERVES)];
        let presence = |node: usize, region_and_surface: [&str; 2]| {
            let node = format!("{node:0>width$}", width = limit::NAME_BYTES);
            let args = words::upsert_presence(session, &node, "online", region_and_surface, serves);
            ("upsert_presence", Bytes::from(args))
        };
        let (largest, too_large) = ("r".repeat(limit::NAME_BYTES), "r".repeat(LARGE));
        let presences: Vec<_> = (0..limit::PRESENCE_NODES)
            .map(|node| presence(node, [&largest; 2]))
            .collect();
        let refused = presence(0, [&too_large, ""]);
        let mut calls = vec![refused.clone()];
        for (at, position) in self.positions().await?.iter().enumerate() {
            calls.push(presences[at % presences.len()].clone());
            let args = words::ack_checkpoint(&self.args.streams[0], position);
            calls.push(("ack_checkpoint", Bytes::from(args)));
            if at % LARGE_EVERY == 0 {
                calls.push(refused.clone());
            }
        }
        Ok(calls)
    }

    /// The identity of the session, in hex.
    fn identity(&self) -> String {
        let identity = Identity::from_claims(&self.token.issuer, &self.token.subject);
        identity.to_hex().to_string()
    }

    /// Subscriptions to as much as a client may have: of each kind, and of each stream from its beginning.
    fn widest(&self) -> Vec<Vec<String>> {
        let mut widest: Vec<_> = self
            .args
            .keys
            .iter()
            .map(|key| words::frames(*key, 0, limit::SUBSCRIPTION_EVENTS))
            .collect();
        widest.extend([
            vec![words::CONTRACT.to_owned()],
            vec![words::presence(self.args.keys[0])],
            vec![words::grants(&self.identity())],
        ]);
        widest
    }

    /// Subscriptions that end at once, one after the other.
    pub(super) async fn subscribes(&self) {
        let widest = self.widest();
        at_once(1, async || {
            // Requests are counted from 1, and a subscription has the number of its request.
            let next = |id: u32| {
                Some(if id % 2 == 1 {
                    words::subscribe(id, &widest[id as usize / 2 % widest.len()])
                } else {
                    words::unsubscribe(id, id - 1)
                })
            };
            self.flood(next).await;
        })
        .await;
    }

    /// Subscriptions that stay, on so many connections, each of another stream, which need not exist.
    pub(super) async fn hoards(&self, connections: usize) {
        at_once(connections, async || {
            // SpacetimeDB looks only once at what several ask alike.
            let first: u64 = rand::random();
            let next = |id: u32| {
                let stream_key = first.wrapping_add(u64::from(id));
                let query = words::frames(stream_key, 0, limit::SUBSCRIPTION_EVENTS);
                (id <= HOARD).then(|| words::subscribe(id, &query))
            };
            self.flood(next).await;
        })
        .await;
    }

    /// Pages from the beginning of the longest log.
    pub(super) async fn reads(&self) {
        let args = Bytes::from(words::read_events(&self.args.streams[0], 0));
        at_once(1, async || {
            let next = |id: u32| Some(words::procedure(id, "read_events", args.clone()));
            self.flood(next).await;
        })
        .await;
    }

    /// Asks for the whole of each log, by subscription and page by page, and reads nothing of the answers.
    pub(super) async fn unread(&self) {
        let args = words::read_events(&self.args.streams[0], 0);
        at_once(1, async || {
            let mut socket = self.connection(false).await;
            for query in self.widest() {
                self.said();
                if socket.subscribe_to(&query).await.is_err() {
                    break;
                }
            }
            while socket.procedure("read_events", args.clone()).await.is_ok() {
                self.said();
            }
            self.closed().await;
        })
        .await;
    }

    /// A connection that is dropped at once.
    pub(super) async fn connect_once(&self) {
        drop(self.open(&self.token.token, true).await);
    }

    /// A connection that is dropped when it has all that a client subscribes to.
    pub(super) async fn reconnect_once(&self) {
        let Some(mut socket) = self.open(&self.token.token, true).await else {
            return;
        };
        let mut missing = 0;
        for query in self.widest() {
            self.said();
            if socket.subscribe_to(&query).await.is_err() {
                return self.closed().await;
            }
            missing += 1;
        }
        let whole = |message: &ServerMessage| {
            missing -= i32::from(matches!(message, ServerMessage::SubscribeApplied(_)));
            missing == 0
        };
        if socket.until(PATIENCE, whole).await.is_err() {
            self.closed().await;
        }
    }

    /// Something that no client says, on a connection of its own, and over HTTP.
    pub(super) async fn forbidden_once(&self, turn: &Cell<u32>) {
        let url = format!("{}/v1/database/{}/sql", self.args.gate, self.args.database);
        let asked = self.http.post(url).bearer_auth(&self.token.token);
        self.request(asked.body(words::SELF_JOIN)).await;
        let Some(mut socket) = self.open(&self.token.token, true).await else {
            return;
        };
        turn.set(turn.get() + 1);
        self.said();
        let said = match turn.get() % 6 {
            0 => socket.sql(words::SELF_JOIN).await,
            1 => socket.subscribe(words::SELF_JOIN).await.map(|_| ()),
            2 => socket.reducer("append_sync_events", Vec::new()).await,
            3 => socket.procedure("read_streams", vec![0; 4]).await,
            4 => socket.say_bytes(vec![77; 20]).await,
            _ => socket.say_bytes(vec![0; 200_000]).await,
        };
        if said.is_err() || socket.closed(PATIENCE).await.is_some() {
            self.closed().await;
        }
    }

    /// Bad tokens at the gate and at the bridge, and bad session credentials.
    pub(super) async fn guesses(&self) {
        let (token, credential) = (forged(&self.token.token), forged(&self.credential));
        tokio::join!(
            at_once(2, async || drop(self.open(&token, true).await)),
            at_once(2, async || self.request(self.token_request(&credential)).await),
            at_once(2, async || self.request(self.page_request(&token)).await),
        );
    }
}
