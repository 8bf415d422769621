//! One relay: sends events, and sees whether the relay shows them afterwards. It decides nothing.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use nostr::{Event, EventId, Filter, RelayUrl};
use nostr_relay_pool::relay::{self, ReqExitPolicy};
use nostr_relay_pool::{RelayLimits, RelayOptions, RelayPool};
use spacetime_sync_authority::{hide_relay, shown_relay};

use crate::verdict::Answer;
use crate::wire::Bounded;

/// How many events wait for their answers at once.
const IN_FLIGHT: usize = 16;

/// What a relay is given.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How long it may take to accept a connection, to answer an event, and to show what it has.
    pub deadline: Duration,
    /// The longest message that it may send.
    pub message_bytes: usize,
}

/// What became of a batch.
#[derive(Debug)]
pub enum Published {
    /// The relay could not be reached, so nothing was tried.
    Unreached(String),
    /// The answer to each event.
    Answered(Vec<(EventId, Answer)>),
}

/// A relay. It is connected as soon as the mirror has something to say to it.
#[derive(Debug)]
pub struct Relay {
    url: RelayUrl,
    bounds: Bounds,
    connection: Option<Connection>,
}

/// One connection. The library would connect the same relay again, but not while it still ends the connection before.
#[derive(Debug)]
struct Connection {
    pool: RelayPool,
    relay: relay::Relay,
}

/// The address of a relay that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected wss://… or ws://…, found {shown:?}; correct the policy")]
pub struct BadRelay {
    shown: String,
}

impl Relay {
    /// Does not connect yet.
    pub fn new(url: &str, bounds: Bounds) -> Result<Self, BadRelay> {
        let bad = |_| BadRelay {
            shown: shown_relay(url),
        };
        Ok(Self {
            url: RelayUrl::parse(url).map_err(bad)?,
            bounds,
            connection: None,
        })
    }

    /// Publishes events, and reads back those that the relay says it took.
    pub async fn publish(&mut self, events: &[Event]) -> Published {
        let relay = match self.connected().await {
            Ok(relay) => relay,
            Err(how) => return Published::Unreached(hide_relay(&how, self.url.as_str())),
        };
        let deadline = self.bounds.deadline;
        let sends: Vec<_> = events
            .iter()
            .map(|event| send(relay.clone(), event.clone(), deadline))
            .collect();
        let said: Vec<Said> = stream::iter(sends).buffer_unordered(IN_FLIGHT).collect().await;
        let taken: Vec<EventId> = said
            .iter()
            .filter(|(_, said)| said.is_ok())
            .map(|(id, _)| *id)
            .collect();
        let shown = if taken.is_empty() {
            Ok(Vec::new())
        } else {
            let count = taken.len();
            shown(&relay, Filter::new().ids(taken).limit(count), deadline).await
        };
        let answer = |(id, said): Said| {
            let is_shown = shown.as_ref().map(|shown| shown.iter().any(|event| event.id == id));
            (
                id,
                Answer::of(said, is_shown).map_words(|words| hide_relay(&words, self.url.as_str())),
            )
        };
        let answers: Vec<_> = said.into_iter().map(answer).collect();
        if answers.iter().any(|(_, answer)| matches!(answer, Answer::Silent(_))) {
            // Whatever this connection still brings, belongs to what was given up.
            self.close().await;
        }
        Published::Answered(answers)
    }

    /// The events of a filter, those alone whose id and signature are right.
    pub async fn fetch(&mut self, filter: Filter) -> Result<Vec<Event>, String> {
        let hidden = |url: &RelayUrl, how: String| hide_relay(&how, url.as_str());
        let relay = match self.connected().await {
            Ok(relay) => relay,
            Err(how) => return Err(hidden(&self.url, how)),
        };
        let shown = shown(&relay, filter, self.bounds.deadline).await;
        if shown.is_err() {
            self.close().await;
        }
        shown.map_err(|how| hidden(&self.url, how))
    }

    /// Ends the connection.
    pub async fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.pool.shutdown().await;
        }
    }

    async fn connected(&mut self) -> Result<relay::Relay, String> {
        match &self.connection {
            Some(connection) if connection.relay.is_connected() => return Ok(connection.relay.clone()),
            Some(_) | None => self.close().await,
        }
        let message_bytes = self.bounds.message_bytes;
        let pool = RelayPool::builder()
            .websocket_transport(Bounded { message_bytes })
            .build();
        let mut limits = RelayLimits::default();
        limits.messages.max_size = u32::try_from(message_bytes).ok();
        // Who connects again, and when, is decided here and not by the library.
        let options = RelayOptions::new()
            .reconnect(false)
            .verify_subscriptions(true)
            .limits(limits);
        let failed = |error: nostr_relay_pool::pool::Error| error.to_string();
        pool.add_relay(&self.url, options).await.map_err(failed)?;
        let relay = pool.relay(&self.url).await.map_err(failed)?;
        let connected = relay.try_connect(self.bounds.deadline).await;
        self.connection = Some(Connection {
            pool,
            relay: relay.clone(),
        });
        connected.map(|()| relay).map_err(|error| error.to_string())
    }
}

async fn shown(relay: &relay::Relay, filter: Filter, deadline: Duration) -> Result<Vec<Event>, String> {
    let fetched = relay.fetch_events(filter, deadline, ReqExitPolicy::ExitOnEOSE);
    let fetched = tokio::time::timeout(deadline.saturating_mul(2), fetched).await;
    let events = fetched
        .map_err(|_| "no answer to a question in time".to_owned())?
        .map_err(|error| error.to_string())?;
    // Of a connection that broke meanwhile the library returns what came before.
    if !relay.is_connected() {
        return Err("the connection broke within the answer".to_owned());
    }
    // The library checks each id once, and takes a second event of that id as it comes.
    Ok(events.into_iter().filter(|event| event.verify().is_ok()).collect())
}

/// An event, and what the relay said about it first.
type Said = (EventId, Result<(), Answer>);

async fn send(relay: relay::Relay, event: Event, deadline: Duration) -> Said {
    let sent = tokio::time::timeout(deadline, relay.send_event(&event)).await;
    let said = match sent {
        Ok(Ok(_)) => Ok(()),
        // It has it already. Whether it shows it is seen afterwards.
        Ok(Err(relay::Error::RelayMessage(words))) if words.starts_with("duplicate:") => Ok(()),
        Ok(Err(relay::Error::RelayMessage(words))) => Err(Answer::Refused(words)),
        Ok(Err(error)) => Err(Answer::Silent(error.to_string())),
        Err(_) => Err(Answer::Silent("no answer about this event in time".to_owned())),
    };
    (event.id, said)
}
