//! Relays of Nostr: a real one, and one that treats the mirror as a test wants.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{SinkExt as _, StreamExt as _};
use nostr::util::BoxedFuture;
use nostr::{Event, JsonUtil as _};
use nostr_relay_builder::builder::{PolicyResult, RateLimit, RelayBuilder, WritePolicy};
use nostr_relay_builder::local::LocalRelay;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::port;

/// Everything that was sent to a relay, in order.
#[derive(Clone, Default)]
pub struct Received(Arc<Mutex<Vec<Event>>>);

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} events", self.lock().len())
    }
}

impl Received {
    /// All of it.
    pub fn all(&self) -> Vec<Event> {
        self.lock().clone()
    }

    /// The ids that each thing was ever sent as, by the name under which it replaces itself.
    pub fn ids(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut ids: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for event in self.lock().iter() {
            let name = event.tags.identifier().unwrap_or_default().to_owned();
            ids.entry(name).or_default().insert(event.id.to_hex());
        }
        ids
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WritePolicy for Received {
    fn admit_event<'a>(&'a self, event: &'a Event, _: &'a SocketAddr) -> BoxedFuture<'a, PolicyResult> {
        self.lock().push(event.clone());
        Box::pin(async { PolicyResult::Accept })
    }
}

/// A real relay, in this process. It ends when it is dropped.
#[derive(Debug)]
pub struct RealRelay {
    relay: LocalRelay,
    address: SocketAddr,
    /// What was sent to it, repeats included.
    pub received: Received,
}

impl RealRelay {
    /// Starts one at a free port.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_at(port::free()?).await
    }

    /// Starts one. It has nothing yet.
    pub async fn start_at(address: SocketAddr) -> anyhow::Result<Self> {
        let received = Received::default();
        let builder = RelayBuilder::default()
            .addr(address.ip())
            .port(address.port())
            .rate_limit(RateLimit {
                max_reqs: 10_000,
                notes_per_minute: 1_000_000,
            })
            .write_policy(received.clone());
        let relay = LocalRelay::new(builder);
        relay.run().await?;
        Ok(Self {
            relay,
            address,
            received,
        })
    }

    /// `ws://host:port`
    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Ends it. What it had is gone.
    pub fn stop(self) {
        self.relay.shutdown();
    }
}

/// How a relay treats whoever publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Treats {
    /// As a relay should.
    Honestly,
    /// It takes everything and shows nothing.
    Forgets,
    /// It answers about another event.
    OfAnother,
    /// It answers with what is no message.
    Garbage,
    /// It answers with a message that is longer than anybody should take.
    Flood,
    /// It breaks the connection in the middle of its answer.
    MidFrame,
    /// It never answers.
    Silently,
    /// It accepts the connection and never says a word.
    NoHandshake,
    /// It refuses with these words.
    Refusing(&'static str),
    /// It refuses events with this name, and takes others.
    RefusingOne(String, &'static str),
    /// It breaks the connection over events with this name, and takes others.
    BreakingOver(String),
}

/// A relay that treats whoever publishes as a test wants. It ends when it is dropped.
#[derive(Debug)]
pub struct OddRelay {
    address: SocketAddr,
    treats: Arc<Mutex<Treats>>,
    /// What was sent to it, repeats included.
    pub received: Received,
    held: Received,
    accepts: tokio::task::JoinHandle<()>,
}

impl Drop for OddRelay {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

impl OddRelay {
    /// Starts one.
    pub async fn start(treats: Treats) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(port::free()?).await?;
        let address = listener.local_addr()?;
        let (treats, received) = (Arc::new(Mutex::new(treats)), Received::default());
        let held = Received::default();
        let accepts = {
            let (treats, received, held) = (treats.clone(), received.clone(), held.clone());
            tokio::spawn(async move {
                // The connections end with it.
                let mut connections = tokio::task::JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    connections.spawn(serve(stream, treats.clone(), received.clone(), held.clone()));
                }
            })
        };
        Ok(Self {
            address,
            treats,
            received,
            held,
            accepts,
        })
    }

    /// `ws://host:port`
    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// It shows this event, too, whoever sent it, and whether it is genuine or not.
    pub fn holds(&self, event: Event) {
        self.held.lock().push(event);
    }

    /// From here on it treats everybody like this.
    pub fn treat(&self, treats: Treats) {
        *self.treats.lock().unwrap_or_else(PoisonError::into_inner) = treats;
    }
}

async fn serve(stream: TcpStream, treats: Arc<Mutex<Treats>>, received: Received, held: Received) {
    let now = || treats.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if now() == Treats::NoHandshake {
        std::future::pending::<()>().await;
    }
    let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else {
        return;
    };
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        let Ok(said) = serde_json::from_str::<Vec<Value>>(&text) else {
            return;
        };
        let answered = match said[0].as_str() {
            Some("EVENT") => {
                let Ok(event) = Event::from_json(said[1].to_string()) else {
                    return;
                };
                received.lock().push(event.clone());
                take(&mut socket, &now(), event, &held).await
            }
            Some("REQ") => show(&mut socket, &now(), &said, &held).await,
            Some(_) | None => Some(()),
        };
        if answered.is_none() {
            return;
        }
    }
}

/// Answers an event. `None` ends the connection.
async fn take(socket: &mut WebSocketStream<TcpStream>, treats: &Treats, event: Event, held: &Received) -> Option<()> {
    let id = event.id.to_hex();
    let name = event.tags.identifier().unwrap_or_default().to_owned();
    let ok = |id: &str, taken: bool, words: &str| json!(["OK", id, taken, words]).to_string();
    let answer = match treats {
        Treats::Refusing(words) => ok(&id, false, words),
        Treats::RefusingOne(refused, words) if *refused == name => ok(&id, false, words),
        Treats::BreakingOver(refused) if *refused == name => return None,
        Treats::Honestly | Treats::RefusingOne(..) | Treats::BreakingOver(_) => {
            held.lock().push(event);
            ok(&id, true, "")
        }
        Treats::Forgets => ok(&id, true, ""),
        Treats::OfAnother => ok(&"0".repeat(64), true, ""),
        Treats::Garbage => "[\"OK\", {]]\u{0}".to_owned(),
        Treats::Flood => format!("[\"NOTICE\", \"{}\"]", "x".repeat(8 * 1024 * 1024)),
        Treats::MidFrame => {
            // A text of 4,096 bytes, of which three come.
            let frame = [0x81, 0x7e, 0x10, 0x00, b'[', b'"', b'O'];
            socket.get_mut().write_all(&frame).await.ok()?;
            return None;
        }
        Treats::Silently | Treats::NoHandshake => return Some(()),
    };
    socket.send(Message::text(answer)).await.ok()
}

/// Answers a question for events by their ids, or for all.
async fn show(socket: &mut WebSocketStream<TcpStream>, treats: &Treats, said: &[Value], held: &Received) -> Option<()> {
    if matches!(treats, Treats::Silently | Treats::NoHandshake) {
        return Some(());
    }
    let subscription = said[1].as_str()?;
    let asked = |event: &Event| {
        said[2..].iter().any(|filter| match filter["ids"].as_array() {
            Some(ids) => ids.iter().any(|id| id.as_str() == Some(&event.id.to_hex())),
            None => true,
        })
    };
    for event in held.all().into_iter().filter(asked) {
        let event: Value = serde_json::from_str(&event.as_json()).ok()?;
        let shown = json!(["EVENT", subscription, event]).to_string();
        socket.send(Message::text(shown)).await.ok()?;
    }
    let end = json!(["EOSE", subscription]).to_string();
    socket.send(Message::text(end)).await.ok()
}
