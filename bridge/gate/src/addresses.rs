//! What is known of addresses: how many sockets and connections each has, how often it asked, and how often in vain.
//!
//! A request spends what its address may ask for, until its token turns out to be good: then it counts against the
//! session alone, and the address gets it back. A token that is bad counts as a failure instead, and one that has expired as
//! the request that it is. So whoever shares an address with somebody who guesses is let in, for as long as the guesses are no
//! flood.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use spacetime_sync_doors::asker::Origin;
use spacetime_sync_doors::quota::{Bucket, Rate};
use spacetime_sync_proto::Label;

/// How many tokens to remember. Honest ones live for minutes, and are few.
const TOKENS: usize = 65_536;

/// What an address may do at the most.
#[derive(Debug, Clone)]
pub struct AddressQuotas {
    /// Sockets on which no connection has begun.
    pub sockets: usize,
    /// Connections.
    pub connections: usize,
    /// Requests that show no good token.
    pub requests: Rate,
    /// Tokens that are bad.
    pub failures: Rate,
}

/// The addresses, and the tokens that were good.
#[derive(Debug)]
pub(crate) struct Addresses {
    quotas: AddressQuotas,
    by_address: HashMap<Origin, Address>,
    /// Whose the good tokens are, and until when.
    tokens: HashMap<u64, (Label, Instant)>,
}

#[derive(Debug)]
struct Address {
    connections: usize,
    sockets: usize,
    requests: Bucket,
    failures: Bucket,
}

impl Addresses {
    pub(crate) fn new(quotas: AddressQuotas) -> Self {
        Self {
            quotas,
            by_address: HashMap::new(),
            tokens: HashMap::new(),
        }
    }

    fn of(&mut self, origin: &Origin, now: Instant) -> &mut Address {
        self.by_address.entry(origin.clone()).or_insert_with(|| Address {
            connections: 0,
            sockets: 0,
            requests: Bucket::new(now),
            failures: Bucket::new(now),
        })
    }

    /// A socket comes. Returns whether the address may have it; what is asked on it is paid for with that.
    pub(crate) fn arrive(&mut self, origin: &Origin, now: Instant) -> bool {
        let (most, rate) = (self.quotas.sockets, self.quotas.requests);
        let of = self.of(origin, now);
        let may = of.sockets < most && of.requests.take(rate, now).is_ok();
        of.sockets += usize::from(may);
        may
    }

    /// A socket no longer waits: a connection has begun on it, or it is closed.
    pub(crate) fn leave(&mut self, origin: &Origin) {
        if let Some(of) = self.by_address.get_mut(origin) {
            of.sockets = of.sockets.saturating_sub(1);
        }
    }

    /// A request comes whose socket did not pay for it. Otherwise says how long that takes.
    pub(crate) fn ask(&mut self, origin: &Origin, now: Instant) -> Result<(), Duration> {
        let rate = self.quotas.requests;
        self.of(origin, now).requests.take(rate, now)
    }

    /// Whose a token is, if it was good before.
    pub(crate) fn known(&self, token: u64, now: Instant) -> Option<&Label> {
        let known = self.tokens.get(&token).filter(|(_, until)| *until > now);
        known.map(|(session_id, _)| session_id)
    }

    /// Whether the address may show a token that nobody knows. Otherwise says how long that takes.
    pub(crate) fn may_fail(&self, origin: &Origin, now: Instant) -> Result<(), Duration> {
        let of = self.by_address.get(origin);
        of.map_or(Ok(()), |of| of.failures.has(self.quotas.failures, now))
    }

    /// The token of a request was good.
    pub(crate) fn good(&mut self, origin: &Origin, token: u64, session_id: &Label, until: Instant) {
        self.give_back(origin);
        if self.tokens.len() < TOKENS {
            self.tokens.insert(token, (session_id.clone(), until));
        }
    }

    /// The token of a request was bad.
    pub(crate) fn bad(&mut self, origin: &Origin, now: Instant) {
        self.give_back(origin);
        let rate = self.quotas.failures;
        // Several may be judged at once, so there may be no token left to take.
        let _ = self.of(origin, now).failures.take(rate, now);
    }

    fn give_back(&mut self, origin: &Origin) {
        let rate = self.quotas.requests;
        if let Some(of) = self.by_address.get_mut(origin) {
            of.requests.give_back(rate);
        }
    }

    /// Whether the address may have another connection.
    pub(crate) fn may_open(&self, origin: &Origin) -> bool {
        let open = self.by_address.get(origin).map_or(0, |of| of.connections);
        open < self.quotas.connections
    }

    /// A connection begins.
    pub(crate) fn open(&mut self, origin: &Origin, now: Instant) {
        self.of(origin, now).connections += 1;
    }

    /// A connection has ended.
    pub(crate) fn close(&mut self, origin: &Origin) {
        if let Some(of) = self.by_address.get_mut(origin) {
            of.connections = of.connections.saturating_sub(1);
        }
    }

    /// Forgets whoever has nothing and has rested long enough, and tokens that have expired.
    pub(crate) fn forget(&mut self, now: Instant) {
        self.tokens.retain(|_, (_, until)| *until > now);
        self.by_address.retain(|_, of| {
            let rests = of.requests.is_full(now) && of.failures.is_full(now);
            of.connections + of.sockets > 0 || !rests
        });
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.by_address.is_empty() && self.tokens.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> Addresses {
        let twice = Rate::per_second(1, 2);
        Addresses::new(AddressQuotas {
            sockets: 3,
            connections: 3,
            requests: twice,
            failures: twice,
        })
    }

    fn here() -> Origin {
        Origin::of([10, 0, 0, 1].into())
    }

    #[test]
    fn requests_are_counted_by_address_and_by_network() {
        let now = Instant::now();
        let mut addresses = addresses();
        let mut ask = |address: &str| addresses.ask(&Origin::of(address.parse().unwrap()), now).is_ok();
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
    fn sockets_are_counted_while_they_are_there_and_by_how_often_they_come() {
        let now = Instant::now();
        let mut addresses = addresses();
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!([0; 3].map(|_| addresses.arrive(&here(), now)), [true, true, false]);
        assert_eq!([5; 2].map(|after| addresses.arrive(&here(), at(after))), [true, false]);
        addresses.leave(&here());
        assert!(addresses.arrive(&here(), at(5)));
        addresses.leave(&here());
        assert!(!addresses.arrive(&here(), at(5)));
    }

    #[test]
    fn a_good_token_costs_its_address_nothing() {
        let now = Instant::now();
        let mut addresses = addresses();
        let session_id = Label::new("s").unwrap();
        for token in 0..10 {
            assert_eq!(addresses.ask(&here(), now), Ok(()));
            addresses.good(&here(), token, &session_id, now + Duration::from_secs(300));
        }
        assert_eq!(
            [(); 3].map(|()| addresses.ask(&here(), now).is_ok()),
            [true, true, false]
        );
        // Nobody gets back more than was spent.
        let later = now + Duration::from_secs(100);
        for token in 0..10 {
            addresses.good(&here(), token, &session_id, later);
        }
        assert_eq!(
            [(); 3].map(|()| addresses.ask(&here(), later).is_ok()),
            [true, true, false]
        );
    }

    #[test]
    fn bad_tokens_spend_what_is_for_them_and_tokens_that_were_good_go_on() {
        let now = Instant::now();
        let mut addresses = addresses();
        addresses.good(&here(), 7, &Label::new("s").unwrap(), now + Duration::from_secs(300));
        for _ in 0..2 {
            assert_eq!(
                (addresses.ask(&here(), now), addresses.may_fail(&here(), now)),
                (Ok(()), Ok(()))
            );
            addresses.bad(&here(), now);
        }
        assert_eq!(addresses.may_fail(&here(), now), Err(Duration::from_secs(1)));
        assert_eq!(addresses.ask(&here(), now), Ok(()));
        assert_eq!(addresses.known(7, now).map(Label::as_str), Some("s"));
        assert_eq!(addresses.known(8, now), None);
        assert_eq!(addresses.known(7, now + Duration::from_secs(300)), None);
        assert_eq!(addresses.may_fail(&Origin::of([10, 0, 0, 2].into()), now), Ok(()));
        addresses.forget(now + Duration::from_secs(300));
        assert!(addresses.is_empty());
    }
}
