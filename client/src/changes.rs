//! What a client tells the application once it is saved: which documents have changed, and which events were applied. Each listener has
//! a bounded account of what it has yet to hear; one that is too slow hears that it has missed something.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use spacetime_sync_proto::{Event, StreamId};
use tokio::sync::Notify;

/// So many changed documents a listener is told one by one. If there are more, it is told that everything may have changed.
const KEYS: usize = 10_000;
/// So many bytes of payloads wait for a listener.
const BYTES: usize = 4 * 1024 * 1024;

/// What has changed of a stream's documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// These documents, by their keys: there are newer versions of them, or they are deleted.
    Documents(BTreeSet<String>),
    /// Perhaps every document: the stream has begun anew, or so much has changed that not all of it was told.
    Everything,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Documents(keys) if keys.len() == 1 => f.write_str("1 document has changed"),
            Self::Documents(keys) => write!(f, "{} documents have changed", keys.len()),
            Self::Everything => f.write_str("all documents may have changed"),
        }
    }
}

impl Changed {
    fn add<'a>(&mut self, keys: impl Iterator<Item = &'a str>) {
        let Self::Documents(changed) = self else { return };
        changed.extend(keys.map(str::to_owned));
        if changed.len() > KEYS {
            *self = Self::Everything;
        }
    }
}

/// Events that a listener has yet to hear.
#[derive(Debug, Default)]
pub(crate) struct Unheard {
    events: VecDeque<Event>,
    bytes: usize,
    missed: bool,
}

/// The next of the events, or that some are missing.
pub(crate) enum Next {
    Event(Box<Event>),
    Missed,
}

/// A listener's account, and whether the client still writes into it.
#[derive(Debug)]
struct Account<T> {
    stream_id: StreamId,
    unheard: Mutex<T>,
    grew: Notify,
    has_ended: AtomicBool,
}

/// Hears of one stream.
#[derive(Debug)]
pub(crate) struct Listener<T>(Arc<Account<T>>);

/// Everybody who listens. The client's thread tells them, and they hear that it has ended when it is dropped.
#[derive(Debug, Default)]
struct Listeners {
    documents: Vec<Weak<Account<Option<Changed>>>>,
    events: Vec<Weak<Account<Unheard>>>,
    has_ended: bool,
}

/// Where to listen.
#[derive(Debug, Clone, Default)]
pub(crate) struct ToHear(Arc<Mutex<Listeners>>);

/// Tells whoever listens.
#[derive(Debug)]
pub(crate) struct Changes(ToHear);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Default> Account<T> {
    fn new(stream_id: StreamId, has_ended: bool) -> Arc<Self> {
        Arc::new(Self {
            stream_id,
            unheard: Mutex::default(),
            grew: Notify::new(),
            has_ended: AtomicBool::new(has_ended),
        })
    }

    fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
        self.grew.notify_one();
    }
}

/// Writes into the accounts of a stream, and forgets listeners that have gone.
fn tell<T>(accounts: &mut Vec<Weak<Account<T>>>, stream_id: &StreamId, write: impl Fn(&mut T)) {
    accounts.retain(|account| {
        let Some(account) = account.upgrade() else { return false };
        if account.stream_id == *stream_id {
            write(&mut lock(&account.unheard));
            account.grew.notify_one();
        }
        true
    });
}

impl ToHear {
    /// Hears of a stream's documents from now on.
    pub(crate) fn documents(&self, stream_id: StreamId) -> Listener<Option<Changed>> {
        let mut listeners = lock(&self.0);
        let account = Account::new(stream_id, listeners.has_ended);
        listeners.documents.retain(|account| account.strong_count() > 0);
        listeners.documents.push(Arc::downgrade(&account));
        Listener(account)
    }

    /// Hears of a stream's events from now on.
    pub(crate) fn events(&self, stream_id: StreamId) -> Listener<Unheard> {
        let mut listeners = lock(&self.0);
        let account = Account::new(stream_id, listeners.has_ended);
        listeners.events.retain(|account| account.strong_count() > 0);
        listeners.events.push(Arc::downgrade(&account));
        Listener(account)
    }
}

impl Changes {
    pub(crate) fn new() -> Self {
        Self(ToHear::default())
    }

    /// Where to listen.
    pub(crate) fn to_hear(&self) -> ToHear {
        self.0.clone()
    }

    /// These documents have changed.
    pub(crate) fn documents<'a>(&self, stream_id: &StreamId, keys: impl Iterator<Item = &'a str> + Clone) {
        tell(&mut lock(&self.0.0).documents, stream_id, |unheard| {
            let changed = unheard.get_or_insert_with(|| Changed::Documents(BTreeSet::new()));
            changed.add(keys.clone());
        });
    }

    /// Every document may have changed.
    pub(crate) fn all_documents(&self, stream_id: &StreamId) {
        tell(&mut lock(&self.0.0).documents, stream_id, |unheard| {
            *unheard = Some(Changed::Everything)
        });
    }

    /// Events of a stream were passed over.
    pub(crate) fn missed_events(&self, stream_id: &StreamId) {
        tell(&mut lock(&self.0.0).events, stream_id, |unheard| unheard.missed = true);
    }

    /// These events were applied.
    pub(crate) fn events(&self, stream_id: &StreamId, events: &[Event]) {
        tell(&mut lock(&self.0.0).events, stream_id, |unheard| {
            for event in events {
                if unheard.bytes > BYTES {
                    *unheard = Unheard {
                        missed: true,
                        ..Unheard::default()
                    };
                }
                unheard.bytes += size(event);
                unheard.events.push_back(event.clone());
            }
        });
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        let mut listeners = lock(&self.0.0);
        listeners.has_ended = true;
        listeners
            .documents
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|account| account.end());
        listeners
            .events
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|account| account.end());
    }
}

/// Roughly how much memory an event takes.
fn size(event: &Event) -> usize {
    event.payload.len() + size_of::<Event>()
}

impl<T> Listener<T> {
    /// The stream that it hears of.
    pub(crate) fn stream_id(&self) -> &StreamId {
        &self.0.stream_id
    }

    /// Waits until there is something to hear. `None` once the client has ended and all is heard. Nothing is lost if the wait is given up.
    async fn wait<R>(&self, take: impl Fn(&mut T) -> Option<R>) -> Option<R> {
        loop {
            // Before the look: what ends meanwhile leaves nothing unseen.
            let has_ended = self.0.has_ended.load(Ordering::Acquire);
            if let Some(taken) = take(&mut lock(&self.0.unheard)) {
                return Some(taken);
            }
            if has_ended {
                return None;
            }
            self.0.grew.notified().await;
        }
    }
}

impl Listener<Option<Changed>> {
    /// All that has changed since this was last asked.
    pub(crate) async fn changed(&self) -> Option<Changed> {
        self.wait(Option::take).await
    }
}

impl Listener<Unheard> {
    /// The next event.
    pub(crate) async fn next(&self) -> Option<Next> {
        self.wait(|unheard| {
            if std::mem::take(&mut unheard.missed) {
                return Some(Next::Missed);
            }
            let event = unheard.events.pop_front()?;
            unheard.bytes -= size(&event);
            Some(Next::Event(Box::new(event)))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::session::stream::tests::Log;

    fn id(name: &str) -> StreamId {
        StreamId::new(name).unwrap()
    }

    fn keys(keys: &[&str]) -> Option<Option<Changed>> {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        Some(Some(Changed::Documents(keys)))
    }

    #[test]
    fn a_listener_hears_of_its_stream_and_of_each_change_once() {
        let changes = Changes::new();
        let listener = changes.to_hear().documents(id("a"));
        assert_eq!(listener.changed().now_or_never(), None);
        changes.documents(&id("a"), ["x", "y"].into_iter());
        changes.documents(&id("b"), ["z"].into_iter());
        changes.documents(&id("a"), ["x", "w"].into_iter());
        assert_eq!(listener.changed().now_or_never(), keys(&["w", "x", "y"]));
        assert_eq!(listener.changed().now_or_never(), None);
        changes.all_documents(&id("a"));
        changes.documents(&id("a"), ["x"].into_iter());
        assert_eq!(listener.changed().now_or_never(), Some(Some(Changed::Everything)));
        changes.documents(&id("a"), ["v"].into_iter());
        drop(changes);
        assert_eq!(listener.changed().now_or_never(), keys(&["v"]));
        assert_eq!(listener.changed().now_or_never(), Some(None));
    }

    #[test]
    fn what_a_listener_has_not_heard_is_bounded() {
        let changes = Changes::new();
        let (documents, events) = (changes.to_hear().documents(id("a")), changes.to_hear().events(id("a")));
        let many: Vec<_> = (0..=KEYS).map(|at| at.to_string()).collect();
        changes.documents(&id("a"), many.iter().map(String::as_str));
        assert_eq!(documents.changed().now_or_never(), Some(Some(Changed::Everything)));
        let mut log = Log::new("a", 0);
        let payload = "x".repeat(BYTES / 2);
        (0..6).for_each(|_| log.append_payload(&payload));
        changes.events(&id("a"), &log.events);
        assert!(matches!(events.next().now_or_never(), Some(Some(Next::Missed))));
        let mut heard = Vec::new();
        while let Some(Some(Next::Event(event))) = events.next().now_or_never() {
            heard.push(event.seq.get());
        }
        assert_eq!(heard, [5, 6], "the newest are heard");
    }

    #[test]
    fn whoever_listens_to_a_client_that_has_ended_hears_that() {
        let changes = Changes::new();
        let to_hear = changes.to_hear();
        drop(changes);
        assert_eq!(to_hear.documents(id("a")).changed().now_or_never(), Some(None));
    }
}
