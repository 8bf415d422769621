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
    /// How old the list of revoked sessions may be when a connection is opened.
    pub revocations_max_age: Duration,
}

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
        let has = session.map_or(Ok(()), |session| session.connects.has(self.quotas.connects, now));
        has.map_err(Turned::Busy)
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
        session.connects.take(rate, now).map_err(Turned::Busy)?;
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
        session.connects.take(rate, now).map_err(Turned::Busy)
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
            Kind::Subscribe => session.subscribes.reserve(quotas.subscribes, now),
        }
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
            let buckets = [session.connects, session.calls, session.reads, session.subscribes];
            !session.open.is_empty() || !buckets.iter().all(|bucket| bucket.is_full(now))
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas() -> Quotas {
        let plenty = Rate::per_second(100, 100);
        Quotas {
            connections: 4,
            address: AddressQuotas {
                sockets: 3,
                connections: 3,
                requests: plenty,
                failures: Rate::per_second(1, 1),
            },
            session_connections: 2,
            session_stream_subscriptions: 3,
            connects: plenty,
            calls: Rate::per_second(10, 1),
            reads: plenty,
            subscribes: plenty,
            revocations_max_age: Duration::from_secs(30),
        }
    }

    fn label(text: &str) -> Label {
        Label::new(text).unwrap()
    }

    fn address(last: u8) -> Origin {
        Origin::of([10, 0, 0, last].into())
    }

    #[test]
    fn nobody_gets_in_before_the_gate_knows_who_was_revoked_or_when_it_has_not_heard_for_long() {
        let now = Instant::now();
        let mut registry = Registry::new(quotas());
        assert_eq!(registry.open(&label("s"), &address(1), 0, now), Err(Turned::Blind));
        registry.heard(HashSet::new(), now);
        assert!(registry.open(&label("s"), &address(1), 0, now).is_ok());
        let later = now + Duration::from_secs(31);
        assert_eq!(registry.open(&label("s"), &address(1), 0, later), Err(Turned::Blind));
    }

    #[test]
    fn a_revocation_ends_the_sessions_connections_and_keeps_it_out() {
        let now = Instant::now();
        let mut registry = Registry::new(quotas());
        registry.heard(HashSet::new(), now);
        for (session, end) in [("lost", 1), ("kept", 2), ("lost", 3)] {
            registry.open(&label(session), &address(1), end, now).unwrap();
        }
        assert_eq!(registry.heard(HashSet::from([label("lost")]), now), [1, 3]);
        assert_eq!(registry.heard(HashSet::from([label("lost")]), now), [0; 0]);
        assert_eq!(registry.open(&label("lost"), &address(2), 4, now), Err(Turned::Revoked));
        assert!(registry.open(&label("kept"), &address(2), 5, now).is_ok());
    }

    #[test]
    fn a_session_with_too_many_connections_keeps_the_newest() {
        let now = Instant::now();
        let mut registry = Registry::new(quotas());
        registry.heard(HashSet::new(), now);
        let mut open = |end| registry.open(&label("s"), &address(1), end, now).unwrap().1;
        assert_eq!([open(1), open(2), open(3)], [None, None, Some(1)]);
    }

    #[test]
    fn connections_are_counted_by_address_and_in_all() {
        let now = Instant::now();
        let mut registry = Registry::new(quotas());
        registry.heard(HashSet::new(), now);
        let mut ids = Vec::new();
        for session in ["a", "b", "c"] {
            ids.push(registry.open(&label(session), &address(1), 0, now).unwrap().0);
        }
        let busy = Err(Turned::Busy(BUSY));
        assert_eq!(registry.open(&label("d"), &address(1), 0, now), busy);
        assert!(registry.open(&label("d"), &address(2), 0, now).is_ok());
        assert_eq!(registry.open(&label("e"), &address(2), 0, now), busy);
        registry.close(ids[0], &label("a"), &address(1));
        assert!(registry.open(&label("e"), &address(2), 0, now).is_ok());
    }

    #[test]
    fn copies_of_a_stream_are_counted_over_all_connections_of_a_session_and_the_newest_stay() {
        let now = Instant::now();
        let mut registry = Registry::new(quotas());
        registry.heard(HashSet::new(), now);
        let s = label("s");
        let (first, second) = (
            registry.open(&s, &address(1), 1, now).unwrap().0,
            registry.open(&s, &address(1), 2, now).unwrap().0,
        );
        let mut change = |id, change| registry.change(&s, id, change);
        for (id, begins) in [(first, 7), (first, 7), (second, 7), (second, 8), (first, 8)] {
            assert_eq!(change(id, Change::Begins(begins)), None);
        }
        assert_eq!(change(first, Change::Ends(7)), None);
        assert_eq!(change(second, Change::Begins(7)), None);
        assert_eq!(change(second, Change::Begins(7)), Some(1));
        assert_eq!(change(second, Change::Begins(7)), None);
        // What was ended has nothing any more.
        assert_eq!(change(first, Change::Begins(7)), None);
    }

    #[test]
    fn a_token_that_was_good_is_judged_unless_its_session_may_not_connect() {
        let now = Instant::now();
        let mut registry = Registry::<()>::new(Quotas {
            connects: Rate::per_second(1, 1),
            ..quotas()
        });
        registry.heard(HashSet::new(), now);
        let until = now + Duration::from_secs(300);
        assert_eq!(registry.show(&address(1), 7, now), Ok(()));
        registry.good(&address(1), 7, &label("s"), until);
        assert_eq!(registry.show(&address(1), 8, now), Ok(()));
        registry.bad(&address(1), now);
        let busy = Err(Turned::Busy(Duration::from_secs(1)));
        assert_eq!(registry.show(&address(1), 8, now), busy);
        assert_eq!(registry.show(&address(1), 7, now), Ok(()));
        registry.question(&label("s"), now).unwrap();
        assert_eq!(registry.show(&address(2), 7, now), busy);
        registry.heard(HashSet::from([label("s")]), now);
        assert_eq!(registry.show(&address(2), 7, now), Err(Turned::Revoked));
    }

    #[test]
    fn all_connections_of_a_session_share_its_rates_and_who_rests_is_forgotten() {
        let now = Instant::now();
        let mut registry = Registry::new(quotas());
        registry.heard(HashSet::new(), now);
        let (id, _) = registry.open(&label("s"), &address(1), 0, now).unwrap();
        let waits = |registry: &mut Registry<i32>| (registry.reserve(&label("s"), Kind::Call, now) - now).as_millis();
        assert_eq!(
            [waits(&mut registry), waits(&mut registry), waits(&mut registry)],
            [0, 100, 200]
        );
        registry.close(id, &label("s"), &address(1));
        // A reconnect brings nothing back.
        registry.forget(now);
        registry.open(&label("s"), &address(1), 0, now).unwrap();
        assert_eq!(waits(&mut registry), 300);
        let later = now + Duration::from_secs(10);
        registry.close(ConnectionId(2), &label("s"), &address(1));
        registry.forget(later);
        assert!(registry.sessions.is_empty() && registry.addresses.is_empty());
    }

    #[test]
    fn an_older_list_of_revoked_sessions_that_comes_late_changes_nothing() {
        let now = Instant::now();
        let mut registry = Registry::<u32>::new(quotas());
        let later = now + Duration::from_secs(1);
        registry.heard(HashSet::from([label("lost")]), later);
        registry.heard(HashSet::new(), now);
        assert_eq!(registry.may(&label("lost"), later), Err(Turned::Revoked));
        assert!(
            registry.is_blind(later + Duration::from_secs(31)) && !registry.is_blind(now + Duration::from_secs(31))
        );
    }
}
