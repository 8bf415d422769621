//! Who is connected, how much of what they do they have left, and which sessions were revoked.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use spacetime_sync_proto::{Label, Refusal, RefusalCode};

use crate::decide::Kind;
use crate::quota::{Bucket, Rate};

/// What everybody may do at the most.
#[derive(Debug, Clone)]
pub struct Quotas {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one address.
    pub address_connections: usize,
    /// Requests of one address.
    pub address: Rate,
    /// Connections of one session. A further one takes the place of the oldest.
    pub session_connections: usize,
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
    addresses: HashMap<IpAddr, Address>,
    revoked: HashSet<Label>,
    heard_at: Option<Instant>,
}

#[derive(Debug)]
struct Session<E> {
    /// The connections, the oldest first.
    open: Vec<(ConnectionId, E)>,
    connects: Bucket,
    calls: Bucket,
    reads: Bucket,
    subscribes: Bucket,
}

#[derive(Debug)]
struct Address {
    /// Connections.
    open: usize,
    /// Sockets on which no connection has begun.
    sockets: usize,
    requests: Bucket,
}

impl Address {
    fn new(now: Instant) -> Self {
        Self {
            open: 0,
            sockets: 0,
            requests: Bucket::new(now),
        }
    }
}

impl<E> Registry<E> {
    /// A registry of nobody. Until it has heard which sessions were revoked, it lets nobody in.
    pub fn new(quotas: Quotas) -> Self {
        Self {
            quotas,
            connections: 0,
            next: 0,
            sessions: HashMap::new(),
            addresses: HashMap::new(),
            revoked: HashSet::new(),
            heard_at: None,
        }
    }

    fn from(&mut self, address: IpAddr, now: Instant) -> &mut Address {
        let new = || Address::new(now);
        self.addresses.entry(whole(address)).or_insert_with(new)
    }

    /// A socket comes from an address. Returns whether the address may have another one.
    pub fn arrive(&mut self, address: IpAddr, now: Instant) -> bool {
        let most = self.quotas.address_connections;
        let from = self.from(address, now);
        let may = from.sockets < most;
        from.sockets += usize::from(may);
        may
    }

    /// A connection has begun on a socket, or the socket is closed.
    pub fn leave(&mut self, address: IpAddr) {
        if let Some(from) = self.addresses.get_mut(&whole(address)) {
            from.sockets = from.sockets.saturating_sub(1);
        }
    }

    /// A request comes from an address.
    pub fn ask(&mut self, address: IpAddr, now: Instant) -> Result<(), Turned> {
        let rate = self.quotas.address;
        let from = self.from(address, now);
        from.requests.take(rate, now).map_err(Turned::Busy)
    }

    /// Lets a session in, if it may. Returns the connections that end for it.
    pub fn open(
        &mut self,
        session_id: &Label,
        address: IpAddr,
        end: E,
        now: Instant,
    ) -> Result<(ConnectionId, Option<E>), Turned> {
        self.may(session_id, now)?;
        let open = self.addresses.get(&whole(address)).map_or(0, |from| from.open);
        if self.connections >= self.quotas.connections || open >= self.quotas.address_connections {
            return Err(Turned::Busy(BUSY));
        }
        let rate = self.quotas.connects;
        let session = of(&mut self.sessions, session_id, now);
        session.connects.take(rate, now).map_err(Turned::Busy)?;
        let full = session.open.len() >= self.quotas.session_connections;
        let ended = full.then(|| session.open.remove(0).1);
        self.next += 1;
        let id = ConnectionId(self.next);
        session.open.push((id, end));
        self.connections += 1;
        self.from(address, now).open += 1;
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
    pub fn close(&mut self, id: ConnectionId, session_id: &Label, address: IpAddr) {
        self.connections = self.connections.saturating_sub(1);
        if let Some(session) = self.sessions.get_mut(session_id) {
            session.open.retain(|(open, _)| *open != id);
        }
        if let Some(from) = self.addresses.get_mut(&whole(address)) {
            from.open = from.open.saturating_sub(1);
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
                ended.extend(session.open.drain(..).map(|(_, end)| end));
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
        self.addresses
            .retain(|_, from| from.open + from.sockets > 0 || !from.requests.is_full(now));
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

/// An address as it is counted: of IPv6 the network, because one host has as many addresses in it as it likes.
fn whole(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas() -> Quotas {
        let plenty = Rate {
            per_second: 100,
            burst: 100,
        };
        Quotas {
            connections: 4,
            address_connections: 3,
            address: Rate {
                per_second: 1,
                burst: 2,
            },
            session_connections: 2,
            connects: plenty,
            calls: Rate {
                per_second: 10,
                burst: 1,
            },
            reads: plenty,
            subscribes: plenty,
            revocations_max_age: Duration::from_secs(30),
        }
    }

    fn label(text: &str) -> Label {
        Label::new(text).unwrap()
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn nobody_gets_in_before_the_gate_knows_who_was_revoked_or_when_it_has_not_heard_for_long() {
        let now = Instant::now();
        let mut registry = Registry::new(quotas());
        assert_eq!(registry.open(&label("s"), address(1), 0, now), Err(Turned::Blind));
        registry.heard(HashSet::new(), now);
        assert!(registry.open(&label("s"), address(1), 0, now).is_ok());
        let later = now + Duration::from_secs(31);
        assert_eq!(registry.open(&label("s"), address(1), 0, later), Err(Turned::Blind));
    }

    #[test]
    fn a_revocation_ends_the_sessions_connections_and_keeps_it_out() {
        let now = Instant::now();
        let mut registry = Registry::new(quotas());
        registry.heard(HashSet::new(), now);
        for (session, end) in [("lost", 1), ("kept", 2), ("lost", 3)] {
            registry.open(&label(session), address(1), end, now).unwrap();
        }
        assert_eq!(registry.heard(HashSet::from([label("lost")]), now), [1, 3]);
        assert_eq!(registry.heard(HashSet::from([label("lost")]), now), [0; 0]);
        assert_eq!(registry.open(&label("lost"), address(2), 4, now), Err(Turned::Revoked));
        assert!(registry.open(&label("kept"), address(2), 5, now).is_ok());
    }

    #[test]
    fn a_session_with_too_many_connections_keeps_the_newest() {
        let now = Instant::now();
        let mut registry = Registry::new(quotas());
        registry.heard(HashSet::new(), now);
        let mut open = |end| registry.open(&label("s"), address(1), end, now).unwrap().1;
        assert_eq!([open(1), open(2), open(3)], [None, None, Some(1)]);
    }

    #[test]
    fn connections_are_counted_by_address_and_in_all() {
        let now = Instant::now();
        let mut registry = Registry::new(quotas());
        registry.heard(HashSet::new(), now);
        let mut ids = Vec::new();
        for session in ["a", "b", "c"] {
            ids.push(registry.open(&label(session), address(1), 0, now).unwrap().0);
        }
        let busy = Err(Turned::Busy(BUSY));
        assert_eq!(registry.open(&label("d"), address(1), 0, now), busy);
        assert!(registry.open(&label("d"), address(2), 0, now).is_ok());
        assert_eq!(registry.open(&label("e"), address(2), 0, now), busy);
        registry.close(ids[0], &label("a"), address(1));
        assert!(registry.open(&label("e"), address(2), 0, now).is_ok());
    }

    #[test]
    fn requests_are_counted_by_address_and_by_network() {
        let now = Instant::now();
        let mut registry = Registry::<()>::new(quotas());
        let mut ask = |address: &str| registry.ask(address.parse().unwrap(), now).is_ok();
        assert_eq!(
            [ask("10.0.0.1"), ask("::ffff:10.0.0.1"), ask("10.0.0.1")],
            [true, true, false]
        );
        assert!(ask("10.0.0.2"));
        assert_eq!(
            [ask("2001:db8::1"), ask("2001:db8::2"), ask("2001:db8::3")],
            [true, true, false]
        );
        assert!(ask("2001:db8:0:1::1"));
    }

    #[test]
    fn all_connections_of_a_session_share_its_rates_and_who_rests_is_forgotten() {
        let now = Instant::now();
        let mut registry = Registry::new(quotas());
        registry.heard(HashSet::new(), now);
        let (id, _) = registry.open(&label("s"), address(1), 0, now).unwrap();
        let waits = |registry: &mut Registry<i32>| (registry.reserve(&label("s"), Kind::Call, now) - now).as_millis();
        assert_eq!(
            [waits(&mut registry), waits(&mut registry), waits(&mut registry)],
            [0, 100, 200]
        );
        registry.close(id, &label("s"), address(1));
        // A reconnect brings nothing back.
        registry.forget(now);
        registry.open(&label("s"), address(1), 0, now).unwrap();
        assert_eq!(waits(&mut registry), 300);
        let later = now + Duration::from_secs(10);
        registry.close(ConnectionId(2), &label("s"), address(1));
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
