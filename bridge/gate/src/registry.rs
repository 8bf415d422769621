//! Who is connected, how much of what they do they have left, and which sessions were revoked.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use spacetime_sync_doors::asker::Origin;
use spacetime_sync_doors::quota::{Bucket, Rate};
use spacetime_sync_proto::{Label, Refusal, RefusalCode};

use crate::addresses::{AddressQuotas, Addresses};
use crate::decide::{Change, Kind};

/// What everybody may do at the most.
#[derive(Debug, Clone)]
pub struct Quotas {
    /// Connections in all.
    pub connections: usize,
    /// What one address may do.
    pub address: AddressQuotas,
    /// Connections of one session. A further one takes the place of the oldest.
    pub session_connections: usize,
    /// Subscriptions of one session to one stream, over all connections. A further one ends the oldest other
    /// connection that holds one.
    pub session_stream_subscriptions: usize,
    /// New connections of one session.
    pub connects: Rate,
    /// [`Kind::Call`] of one session.
    pub calls: Rate,
    /// [`Kind::Read`] of one session.
    pub reads: Rate,
    /// [`Kind::Subscribe`] of one session.
    pub subscribes: Rate,
    /// How close together they may be: SpacetimeDB does little else meanwhile.
    pub subscribes_apart: Rate,
    /// What may answer its subscriptions before it may subscribe again, in units of [`UNIT_BYTES`]: SpacetimeDB does
    /// nothing else meanwhile.
    pub subscribed: Rate,
    /// How old the list of revoked sessions may be when a connection is opened.
    pub revocations_max_age: Duration,
}

/// What answers subscriptions is counted in units of so many bytes.
pub const UNIT_BYTES: u64 = 64 * 1024;
/// No session waits longer before it may subscribe again: its streams may always be busy, and a client that hears nothing for
/// four seconds gives its connection up.
const LONGEST: Duration = Duration::from_secs(2);
/// How many subscriptions of a session SpacetimeDB may have to answer while what they bring is small. One costs at least the
/// time until everything before it is durable.
const AT_ONCE: usize = 4;
/// A subscription without an answer counts as one of these for so long: SpacetimeDB does not stop when the client goes away.
const UNANSWERED: Duration = Duration::from_millis(500);
/// How soon to look again whether a subscription was answered.
const AGAIN: Duration = Duration::from_millis(20);
/// How long a session may not connect that subscribed to too much twice within [`FORGIVEN`]. Each time more doubles it.
const REST: Duration = Duration::from_secs(10);
/// How often it doubles at the most.
const DOUBLINGS: u32 = 4;
/// After which time it may do so once more: a client guesses how large events are.
const FORGIVEN: Duration = Duration::from_secs(60);

/// Names one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId(u64);

/// Why a request is refused before SpacetimeDB hears of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turned {
    /// The caller, or everybody, has too much already. Another attempt may succeed after this time.
    Busy(Duration),
    /// The session was revoked.
    Revoked,
    /// The gate does not know which sessions were revoked.
    Blind,
}

impl Turned {
    /// The refusal as the client is told.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Busy(_) => Refusal::new(RefusalCode::RateLimited, "too many connections: try again later"),
            Self::Revoked => revoked(),
            Self::Blind => Refusal::new(
                RefusalCode::SyncTokenUnavailable,
                "the gate does not know which sessions were revoked: try again later",
            ),
        }
    }
}

/// The refusal for a revoked session.
pub fn revoked() -> Refusal {
    Refusal::new(RefusalCode::TokenRevoked, "the session was revoked: sign in again")
}

/// How long a caller waits who is refused because of what is open, not because of a rate.
const BUSY: Duration = Duration::from_secs(5);

/// The registry. `E` ends a connection.
#[derive(Debug)]
pub struct Registry<E> {
    quotas: Quotas,
    connections: usize,
    next: u64,
    sessions: HashMap<Label, Session<E>>,
    addresses: Addresses,
    revoked: HashSet<Label>,
    heard_at: Option<Instant>,
}

#[derive(Debug)]
struct Session<E> {
    /// The connections, the oldest first.
    open: Vec<Open<E>>,
    connects: Bucket,
    calls: Bucket,
    reads: Bucket,
    subscribes: Bucket,
    subscribes_apart: Bucket,
    subscribed: Bucket,
    /// Where it has asked for subscriptions that are not answered yet, and when.
    asking: Vec<(ConnectionId, Instant)>,
    /// Bytes that are no whole unit yet.
    rest_bytes: u64,
    /// How often it has subscribed to too much, until that is forgiven.
    too_much: u32,
    forgiven_at: Instant,
    /// Until when it may not connect.
    rests_until: Instant,
}

impl<E> Session<E> {
    /// Whether it may open a connection.
    fn may_connect(&self, rate: Rate, now: Instant) -> Result<(), Turned> {
        let rests = self.rests_until.saturating_duration_since(now);
        if !rests.is_zero() {
            return Err(Turned::Busy(rests));
        }
        self.connects.has(rate, now).map_err(Turned::Busy)
    }

    /// Opens a connection, if it may.
    fn connect(&mut self, rate: Rate, now: Instant) -> Result<(), Turned> {
        self.may_connect(rate, now)?;
        self.connects.take(rate, now).map_err(Turned::Busy)
    }
}

#[derive(Debug)]
struct Open<E> {
    id: ConnectionId,
    end: E,
    /// How many subscriptions it has of each stream.
    streams: HashMap<u64, usize>,
}

impl<E> Registry<E> {
    /// A registry of nobody. Until it has heard which sessions were revoked, it lets nobody in.
    pub fn new(quotas: Quotas) -> Self {
        Self {
            addresses: Addresses::new(quotas.address.clone()),
            quotas,
            connections: 0,
            next: 0,
            sessions: HashMap::new(),
            revoked: HashSet::new(),
            heard_at: None,
        }
    }

    /// A socket comes from an address. Returns whether the address may have it.
    pub fn arrive(&mut self, origin: &Origin, now: Instant) -> bool {
        self.addresses.arrive(origin, now)
    }

    /// A socket no longer waits: a connection has begun on it, or it is closed.
    pub fn leave(&mut self, origin: &Origin) {
        self.addresses.leave(origin);
    }

    /// A request comes from an address whose sockets are not counted.
    pub fn ask(&mut self, origin: &Origin, now: Instant) -> Result<(), Turned> {
        self.addresses.ask(origin, now).map_err(Turned::Busy)
    }

    /// A request shows a token, which is not judged yet: that costs time. A token that was good before need not be
    /// judged if its session may not connect; any other may fail as often as its address may.
    pub fn show(&self, origin: &Origin, token: u64, now: Instant) -> Result<(), Turned> {
        let Some(session_id) = self.addresses.known(token, now) else {
            return self.addresses.may_fail(origin, now).map_err(Turned::Busy);
        };
        self.may(session_id, now)?;
        let session = self.sessions.get(session_id);
        session.map_or(Ok(()), |session| session.may_connect(self.quotas.connects, now))
    }

    /// The token of a request was good, and is so until then.
    pub fn good(&mut self, origin: &Origin, token: u64, session_id: &Label, until: Instant) {
        self.addresses.good(origin, token, session_id, until);
    }

    /// The token of a request was bad.
    pub fn bad(&mut self, origin: &Origin, now: Instant) {
        self.addresses.bad(origin, now);
    }

    /// Lets a session in, if it may. Returns the connections that end for it.
    pub fn open(
        &mut self,
        session_id: &Label,
        origin: &Origin,
        end: E,
        now: Instant,
    ) -> Result<(ConnectionId, Option<E>), Turned> {
        self.may(session_id, now)?;
        if self.connections >= self.quotas.connections || !self.addresses.may_open(origin) {
            return Err(Turned::Busy(BUSY));
        }
        let rate = self.quotas.connects;
        let session = of(&mut self.sessions, session_id, now);
        session.connect(rate, now)?;
        let full = session.open.len() >= self.quotas.session_connections;
        let ended = full.then(|| session.open.remove(0).end);
        self.next += 1;
        let id = ConnectionId(self.next);
        session.open.push(Open {
            id,
            end,
            streams: HashMap::new(),
        });
        self.connections += 1;
        self.addresses.open(origin, now);
        Ok((id, ended))
    }

    /// A session asks something over HTTP, which costs SpacetimeDB as much as a connection.
    pub fn question(&mut self, session_id: &Label, now: Instant) -> Result<(), Turned> {
        let rate = self.quotas.connects;
        let session = of(&mut self.sessions, session_id, now);
        session.connect(rate, now)
    }

    /// Whether a session may speak to SpacetimeDB.
    pub fn may(&self, session_id: &Label, now: Instant) -> Result<(), Turned> {
        if self.is_blind(now) {
            return Err(Turned::Blind);
        }
        if self.revoked.contains(session_id) {
            return Err(Turned::Revoked);
        }
        Ok(())
    }

    /// A connection has ended.
    pub fn close(&mut self, id: ConnectionId, session_id: &Label, origin: &Origin) {
        self.connections = self.connections.saturating_sub(1);
        if let Some(session) = self.sessions.get_mut(session_id) {
            session.open.retain(|open| open.id != id);
        }
        self.addresses.close(origin);
    }

    /// A subscription to a stream begins or ends on a connection. Returns the connection that ends for it.
    pub fn change(&mut self, session_id: &Label, id: ConnectionId, change: Change) -> Option<E> {
        let session = self.sessions.get_mut(session_id)?;
        let at = session.open.iter().position(|open| open.id == id)?;
        let streams = &mut session.open[at].streams;
        match change {
            Change::Begins(key) => {
                *streams.entry(key).or_default() += 1;
                let of = |open: &Open<E>| open.streams.get(&key).copied().unwrap_or_default();
                let held: usize = session.open.iter().map(of).sum();
                if held <= self.quotas.session_stream_subscriptions {
                    return None;
                }
                let mut others = session.open.iter();
                let oldest = others.position(|open| open.id != id && of(open) > 0)?;
                Some(session.open.remove(oldest).end)
            }
            Change::Ends(key) => {
                if let Some(held) = streams.get_mut(&key) {
                    *held -= 1;
                    if *held == 0 {
                        streams.remove(&key);
                    }
                }
                None
            }
        }
    }

    /// From when a session may do one thing more of this kind.
    pub fn reserve(&mut self, session_id: &Label, kind: Kind, now: Instant) -> Instant {
        let quotas = &self.quotas;
        let Some(session) = self.sessions.get_mut(session_id) else {
            return now;
        };
        match kind {
            Kind::Call => session.calls.reserve(quotas.calls, now),
            Kind::Read => session.reads.reserve(quotas.reads, now),
            Kind::Subscribe => {
                let at = session.subscribes.reserve(quotas.subscribes, now);
                at.max(session.subscribes_apart.reserve(quotas.subscribes_apart, now))
            }
        }
    }

    /// A session asks for a subscription on a connection. Returns when to try again if it must wait. SpacetimeDB evaluates one
    /// after the other, and does nothing else meanwhile: what is asked on eight connections would lie before everybody else's.
    pub fn begin(&mut self, session_id: &Label, id: ConnectionId, now: Instant) -> Result<(), Instant> {
        let Some(session) = self.sessions.get_mut(session_id) else {
            return Ok(());
        };
        let rate = self.quotas.subscribed;
        let enough = session.subscribed.has(rate, now);
        enough.map_err(|refills| now + refills.max(AGAIN))?;
        let at_once = if session.subscribed.is_half_full(rate, now) {
            AT_ONCE
        } else {
            1
        };
        let asking = &mut session.asking;
        asking.retain(|(_, since)| now.saturating_duration_since(*since) < UNANSWERED);
        if asking.len() >= at_once {
            return Err(now + AGAIN);
        }
        asking.push((id, now));
        Ok(())
    }

    /// The first subscription that was asked for on a connection was answered.
    pub fn answered(&mut self, session_id: &Label, id: ConnectionId) {
        if let Some(session) = self.sessions.get_mut(session_id)
            && let Some(first) = session.asking.iter().position(|(asked, _)| *asked == id)
        {
            session.asking.remove(first);
        }
    }

    /// So many bytes have answered subscriptions of a session on a connection, in the time since then.
    pub fn subscribed(&mut self, session_id: &Label, bytes: u64, since: Instant, now: Instant) {
        if let Some(session) = self.sessions.get_mut(session_id) {
            let bytes = session.rest_bytes.saturating_add(bytes);
            session.rest_bytes = bytes % UNIT_BYTES;
            let units = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX);
            let rate = self.quotas.subscribed;
            session.subscribed.charge(rate, units, since, now, LONGEST);
        }
    }

    /// A session has subscribed to too much at once, and loses the connection on which it did. If it did so a short time
    /// ago, too, it may not open another one for a while, and this returns all others, which are to be ended.
    pub fn too_much(&mut self, session_id: &Label, id: ConnectionId, now: Instant) -> Vec<E> {
        let Some(session) = self.sessions.get_mut(session_id) else {
            return Vec::new();
        };
        // What was ended for another one's sake says so, too.
        if !session.open.iter().any(|open| open.id == id) {
            return Vec::new();
        }
        let before = if session.forgiven_at <= now {
            0
        } else {
            session.too_much
        };
        session.too_much = before.saturating_add(1);
        session.rests_until = match before {
            0 => now,
            _ => now + REST * 2u32.pow((before - 1).min(DOUBLINGS)),
        };
        session.forgiven_at = session.rests_until + FORGIVEN;
        if before == 0 {
            return Vec::new();
        }
        session
            .open
            .drain(..)
            .filter(|open| open.id != id)
            .map(|open| open.end)
            .collect()
    }

    /// The bridge has said which sessions were revoked lately, as of a time. Returns the connections that end.
    pub fn heard(&mut self, revoked: HashSet<Label>, now: Instant) -> Vec<E> {
        // Questions overlap when the bridge is slow.
        if self.heard_at.is_some_and(|at| at > now) {
            return Vec::new();
        }
        let mut ended = Vec::new();
        for session_id in &revoked {
            if let Some(session) = self.sessions.get_mut(session_id) {
                ended.extend(session.open.drain(..).map(|open| open.end));
            }
        }
        self.revoked = revoked;
        self.heard_at = Some(now);
        ended
    }

    /// Whether the list of revoked sessions is too old, or there is none.
    pub fn is_blind(&self, now: Instant) -> bool {
        let age = self.heard_at.map(|at| now.saturating_duration_since(at));
        age.is_none_or(|age| age > self.quotas.revocations_max_age)
    }

    /// Forgets whoever has no connection and has rested long enough.
    pub fn forget(&mut self, now: Instant) {
        self.sessions.retain(|_, session| {
            let Session {
                connects,
                calls,
                reads,
                subscribes,
                subscribes_apart,
                subscribed,
                forgiven_at,
                ..
            } = session;
            let buckets = [connects, calls, reads, subscribes, subscribes_apart, subscribed];
            !session.open.is_empty() || *forgiven_at > now || !buckets.iter().all(|bucket| bucket.is_full(now))
        });
        self.addresses.forget(now);
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.connections
    }
}

fn of<'a, E>(sessions: &'a mut HashMap<Label, Session<E>>, session_id: &Label, now: Instant) -> &'a mut Session<E> {
    sessions.entry(session_id.clone()).or_insert_with(|| Session {
        open: Vec::new(),
        connects: Bucket::new(now),
        calls: Bucket::new(now),
        reads: Bucket::new(now),
        subscribes: Bucket::new(now),
        subscribes_apart: Bucket::new(now),
        subscribed: Bucket::new(now),
        asking: Vec::new(),
        rest_bytes: 0,
        too_much: 0,
        forgiven_at: now,
        rests_until: now,
    })
}

#[cfg(test)]
mod tests;
