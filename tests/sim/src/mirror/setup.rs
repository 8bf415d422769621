//! The size of a run, its policies and its faults, all derived from one seed.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use spacetime_sync_authority::{MirrorPolicy, MirrorSource};
use spacetime_sync_mirror::things::{RECEIPT_KIND, RECEIPT_SCHEMA};
use spacetime_sync_mirror::verdict::Patience;
use spacetime_sync_proto::StreamId;
use spacetime_sync_proto::access::StreamPattern;

use super::relay::Treats;
use crate::agenda::{MILLISECOND, Micros, SECOND};

/// What others enqueue, if a policy names it.
pub(super) const NOTES: &str = "notes.v1";
/// Its kind.
pub(super) const NOTES_KIND: u16 = 30_079;

/// A run before it starts. The same setup always runs in the same way.
#[derive(Debug, Clone)]
pub struct MirrorSetup {
    /// The source of all randomness.
    pub seed: u64,
    /// The faults.
    pub plan: Vec<Struck>,
    pub(super) streams: Vec<StreamId>,
    pub(super) relays: Vec<String>,
    pub(super) policies: Vec<MirrorPolicy>,
    pub(super) writes: usize,
    /// How often others enqueue something.
    pub(super) others: usize,
    pub(super) until: Micros,
    pub(super) patience: Patience,
    pub(super) pending: usize,
    pub(super) batch: usize,
    /// How many entries are remembered that are over.
    pub(super) sent: usize,
    pub(super) parked: usize,
    /// How many names the session sees to at once.
    pub(super) at_once: usize,
    /// For how many events SpacetimeDB's outbox has room: others have filled the rest.
    pub(super) room: u32,
}

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// A mirror dies and comes back.
    MirrorKilled,
    /// A mirror loses the lead and does not notice for a while.
    LeadLost,
    /// The authority is away.
    AuthorityAway,
    /// SpacetimeDB is away.
    HostAway,
    /// SpacetimeDB is wiped.
    HostWiped,
    /// SpacetimeDB is set back to an earlier time.
    HostRestored,
    /// A relay treats everybody like this for a while.
    RelayIs(Treats),
}

impl Strike {
    const ALL: [Self; 14] = [
        Self::MirrorKilled,
        Self::MirrorKilled,
        Self::LeadLost,
        Self::LeadLost,
        Self::AuthorityAway,
        Self::HostAway,
        Self::HostWiped,
        Self::HostRestored,
        Self::RelayIs(Treats::Down),
        Self::RelayIs(Treats::Forgets),
        Self::RelayIs(Treats::OfAnother),
        Self::RelayIs(Treats::Silently),
        Self::RelayIs(Treats::Refusing("rate-limited: slow down")),
        Self::RelayIs(Treats::Refusing("invalid: no")),
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::MirrorKilled => "mirror: killed",
            Self::LeadLost => "mirror: lead lost unnoticed",
            Self::AuthorityAway => "mirror: authority away",
            Self::HostAway => "mirror: SpacetimeDB away",
            Self::HostWiped => "mirror: SpacetimeDB wiped",
            Self::HostRestored => "mirror: SpacetimeDB restored",
            Self::RelayIs(Treats::Honestly) => "relay: honest",
            Self::RelayIs(Treats::Down) => "relay: down",
            Self::RelayIs(Treats::Forgets) => "relay: accepts and forgets",
            Self::RelayIs(Treats::OfAnother) => "relay: answers about another event",
            Self::RelayIs(Treats::Silently) => "relay: never answers",
            Self::RelayIs(Treats::Refusing(words)) if words.starts_with("invalid") => "relay: refuses for good",
            Self::RelayIs(Treats::Refusing(_)) => "relay: refuses for now",
        }
    }
}

/// One fault of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Struck {
    /// When it strikes.
    pub at: Micros,
    /// The kind of fault.
    pub strike: Strike,
    /// Which mirror or relay it hits, taken modulo their number.
    pub party: usize,
    /// How long it lasts.
    pub lasts: Micros,
}

impl fmt::Display for Struck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at as f64 / SECOND as f64, self.lasts / MILLISECOND);
        write!(
            f,
            "{at:>9.3} s  {} (party {}, {lasts} ms)",
            self.strike.name(),
            self.party
        )
    }
}

impl MirrorSetup {
    /// The setup of a seed.
    pub fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x3A1B_0770);
        let until = rng.random_range(1..5) * SECOND;
        let named = |nth: usize| format!("s.{nth}");
        // Infallible: names.
        let streams = (0..rng.random_range(1..=3)).map(|nth| StreamId::new(&named(nth)).expect("a stream"));
        let relays: Vec<String> = (0..rng.random_range(1..=3))
            .map(|nth| format!("wss://relay-{nth}"))
            .collect();
        let mut policies = vec![events("all", "s.*", some(&relays, &mut rng), &mut rng)];
        if rng.random_bool(0.3) {
            policies.push(events("more", "s.0", some(&relays, &mut rng), &mut rng));
        }
        if rng.random_bool(0.6) {
            let notes = events("notes", "s.0", some(&relays, &mut rng), &mut rng);
            policies.push(MirrorPolicy {
                source: MirrorSource::Enqueued,
                schema: NOTES.to_owned(),
                nostr_kind: NOTES_KIND,
                ..notes
            });
        }
        let count = rng.random_range(0..14);
        let mut plan: Vec<Struck> = (0..count)
            .map(|_| Struck {
                at: rng.random_range(50 * MILLISECOND..until),
                strike: Strike::ALL[rng.random_range(0..Strike::ALL.len())],
                party: rng.random_range(0..64),
                lasts: rng.random_range(10 * MILLISECOND..2 * SECOND),
            })
            .collect();
        plan.sort_by_key(|struck| struck.at);
        Self {
            seed,
            plan,
            streams: streams.collect(),
            relays,
            policies,
            writes: rng.random_range(1..10),
            others: if rng.random_bool(0.6) {
                rng.random_range(1..12)
            } else {
                0
            },
            until,
            patience: Patience {
                attempts: rng.random_range(2..=5),
                first: Duration::from_millis(50),
                longest: Duration::from_millis(400),
            },
            pending: rng.random_range(3..20),
            batch: rng.random_range(1..=8),
            sent: if rng.random_bool(0.2) { 5 } else { 1_000 },
            parked: if rng.random_bool(0.2) { 2 } else { 1_000 },
            at_once: rng.random_range(2..=10),
            room: rng.random_range(1..=12),
        }
    }

    pub(super) fn rng(&self) -> StdRng {
        StdRng::seed_from_u64(self.seed.rotate_left(23) ^ 0x0B05_0B05)
    }

    /// Whether two policies name the same events.
    pub(super) fn overlaps(&self) -> bool {
        self.policies.iter().any(|policy| policy.policy_id == "more")
    }
}

fn some(relays: &[String], rng: &mut StdRng) -> Vec<String> {
    let mut some: Vec<String> = relays.iter().filter(|_| rng.random_bool(0.7)).cloned().collect();
    if some.is_empty() {
        some.push(relays[0].clone());
    }
    some
}

fn events(policy_id: &str, pattern: &str, relays: Vec<String>, rng: &mut StdRng) -> MirrorPolicy {
    MirrorPolicy {
        policy_id: policy_id.to_owned(),
        // Infallible: a pattern.
        source: MirrorSource::Events(StreamPattern::new(pattern).expect("a pattern")),
        kinds: Vec::new(),
        schema: RECEIPT_SCHEMA.to_owned(),
        nostr_kind: RECEIPT_KIND,
        quorum: rng.random_range(1..=relays.len()),
        relays,
    }
}
