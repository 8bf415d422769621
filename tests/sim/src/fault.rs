//! The faults, and the plan of when they strike.

use std::fmt;

use rand::Rng;
use rand::rngs::StdRng;

use crate::agenda::{MILLISECOND, Micros, SECOND};

macro_rules! faults {
    ($($(#[$doc:meta])* $kind:ident => $name:literal,)*) => {
        /// A kind of fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Fault {
            $($(#[$doc])* $kind,)*
        }

        impl Fault {
            /// All kinds of faults.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// The name in tables and stories.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }
    };
}

faults! {
    /// A connection of a bridge breaks. Messages to the host may still arrive.
    BridgeCut => "bridge: connection cut",
    /// A connection of a bridge carries nothing any more, and neither side is told.
    BridgeSilent => "bridge: connection silent",
    /// The same, as soon as the connection is up: only questions wait on it, because no stream is compared yet.
    BridgeSilentOnceUp => "bridge: connection silent once up",
    /// All messages to and from a bridge are late.
    BridgeLate => "bridge: messages delayed",
    /// Calls of a dead connection arrive when the next one is already served.
    BridgeStray => "bridge: calls of a dead connection",
    /// An append traps, so nothing of it is done.
    AppendTraps => "append: done nothing, answer unknown",
    /// An append is done, but its answer does not say so.
    AppendUnknown => "append: done, answer unknown",
    /// A bridge dies and is started again.
    BridgeKilled => "bridge: killed",
    /// A bridge is stopped in good order and started again.
    BridgeStopped => "bridge: stopped",
    /// A bridge stands still for a while, like a process that is swapped out: its clock jumps.
    BridgePaused => "bridge: clock jumps (stands still)",
    /// A bridge loses the lead and does not notice for a while.
    LeadLost => "bridge: lead lost unnoticed",
    /// A connection of a client breaks.
    ClientCut => "client: connection cut",
    /// A connection of a client carries nothing any more, and neither side is told.
    ClientSilent => "client: connection silent",
    /// All messages to and from a client are late.
    ClientLate => "client: messages delayed",
    /// An attempt to connect fails.
    DialFails => "client: connecting fails",
    /// A row of a subscription is lost.
    RowLost => "rows: lost",
    /// Rows of a subscription arrive twice.
    RowRepeated => "rows: repeated",
    /// Later rows overtake a row.
    RowLate => "rows: reordered",
    /// A page fails, or is refused for a reason that may pass.
    PageFails => "page: failed or refused",
    /// The host ends a subscription, or never starts it.
    SubscriptionFails => "subscription: failed",
    /// A client's process dies and is started again.
    ClientKilled => "client: killed",
    /// A client stands still for a while.
    ClientPaused => "client: clock jumps (stands still)",
    /// A client applies slowly for a while.
    ClientSlow => "client: slow consumer",
    /// A client is stopped in good order and comes back.
    ClientStopped => "client: stopped",
    /// An application follows a stream no longer, and follows it again later.
    Unfollowed => "client: stream unfollowed, later followed",
    /// An acknowledgement fails: nothing of it is done.
    AckFails => "acknowledgement: failed",
    /// A handler asks for a retry.
    HandlerFails => "client: handler fails",
    /// The store is busy: nothing is saved.
    StoreBusy => "store: busy",
    /// Writing fails in the middle: the transaction is rolled back.
    StoreRolledBack => "store: transaction torn and rolled back",
    /// The store fails for good. The client stops and is started again.
    StoreFails => "store: failed for good",
    /// A transaction is saved, and the client dies before it learns so.
    StoreUnknown => "store: saved, then killed",
    /// A client's machine loses power, and with it the last transactions.
    StoreLost => "store: last writes lost with the power",
    /// A client's grant for a stream is revoked, and given again later.
    Revoked => "grant: revoked, later granted",
    /// SpacetimeDB dies. What is not durable is gone.
    HostKilled => "host: killed",
    /// What is committed becomes durable late.
    HostSlowDisk => "host: slow disk",
    /// SpacetimeDB is set back to an older snapshot.
    HostRestored => "host: restored from an older snapshot",
    /// SpacetimeDB is wiped.
    HostWiped => "host: wiped",
    /// The authority is away for a while. The locks and leads of its sessions are gone.
    AuthorityAway => "authority: away",
    /// A writer holds the lock on a stream's row.
    RowLocked => "authority: row locked",
    /// A chain hash in the authority becomes malformed.
    Corrupted => "authority: chain hash corrupted",
    /// The module refuses to begin a window anew.
    RewindRefused => "rewind: refused",
    /// A leader loses the lead while its rewind is on the way, so that the next leader works on the stream before the
    /// rewind arrives.
    RewindOvertaken => "rewind: overtaken by another bridge",
    /// The authority's clock jumps.
    AuthorityClock => "authority: clock jumps",
    /// A writer does not learn whether it committed, and repeats the append.
    WriterUnknown => "writer: outcome unknown, repeats",
    /// Events past the window leave SpacetimeDB.
    Swept => "retention: window swept",
    /// Old published events leave the authority.
    Purged => "retention: authority purged",
    /// A payload in the authority no longer matches its hash.
    Tampered => "poison: payload altered in the authority",
    /// SpacetimeDB accepts an event of another origin.
    Foreign => "poison: event of another origin",
    /// SpacetimeDB keeps the newest events of a stream back from a client that may ask the authority: for a while, or for ever.
    Withheld => "SpacetimeDB: keeps events back from a client",
    /// A client reports that SpacetimeDB contradicts the authority about a stream, whether that is so or not.
    Reported => "client: reports a stream",
    /// A payload is altered on its way to a client.
    RowAltered => "poison: row altered on its way",
    /// A client receives a row of another log.
    RowForged => "poison: row of another log",
    /// A page does not lead to the head that it claims.
    PageForged => "poison: page is not what it claims",
}

impl Fault {
    /// How often the plan picks it, relative to others.
    fn weight(self) -> u32 {
        match self {
            Self::Tampered | Self::Foreign | Self::Corrupted => 1,
            Self::RowAltered | Self::RowForged | Self::PageForged => 1,
            Self::HostWiped | Self::HostRestored | Self::ClientSilent | Self::StoreFails => 2,
            Self::BridgePaused | Self::ClientPaused | Self::AuthorityAway | Self::LeadLost => 2,
            Self::BridgeCut
            | Self::BridgeSilent
            | Self::BridgeSilentOnceUp
            | Self::BridgeLate
            | Self::BridgeStray
            | Self::AppendTraps
            | Self::AppendUnknown
            | Self::BridgeKilled
            | Self::BridgeStopped
            | Self::ClientCut
            | Self::ClientLate
            | Self::DialFails
            | Self::RowLost
            | Self::RowRepeated
            | Self::RowLate
            | Self::PageFails
            | Self::SubscriptionFails
            | Self::ClientKilled
            | Self::ClientSlow
            | Self::ClientStopped
            | Self::AckFails
            | Self::HandlerFails
            | Self::StoreBusy
            | Self::StoreRolledBack
            | Self::StoreUnknown
            | Self::StoreLost
            | Self::Revoked
            | Self::HostKilled
            | Self::HostSlowDisk
            | Self::RowLocked
            | Self::Swept
            | Self::Purged
            | Self::AuthorityClock
            | Self::Reported
            | Self::Withheld
            | Self::WriterUnknown => 4,
            // It has a plan of its own.
            Self::Unfollowed => 0,
            // Rewinds are rare.
            Self::RewindRefused | Self::RewindOvertaken => 8,
        }
    }

    /// Its longest duration.
    fn longest(self) -> Micros {
        match self {
            Self::BridgePaused | Self::ClientPaused => 14 * SECOND,
            Self::ClientSlow | Self::Revoked | Self::HostSlowDisk | Self::Unfollowed => 4 * SECOND,
            Self::RowLocked => 12 * SECOND,
            Self::Withheld => 60 * SECOND,
            _ => 2 * SECOND,
        }
    }
}

/// One fault of a plan. Its target is a number, taken modulo the number of candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// When it strikes, or starts to wait for an opportunity.
    pub at: Micros,
    /// The kind of fault.
    pub fault: Fault,
    /// Which bridge or client it hits.
    pub party: usize,
    /// Which stream it hits.
    pub stream: usize,
    /// How long it lasts, if it has a duration.
    pub lasts: Micros,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>9.3} s  {} (party {}, stream {}, {} ms)",
            self.at as f64 / SECOND as f64,
            self.fault.name(),
            self.party,
            self.stream,
            self.lasts / MILLISECOND
        )
    }
}

/// Plans the faults of a run. Each run uses only some kinds, so that every kind also meets an otherwise healthy lane.
pub(crate) fn plan(rng: &mut StdRng, until: Micros) -> Vec<Planned> {
    let share = rng.random_range(0.1..0.9);
    let mut kinds = Vec::new();
    for fault in Fault::ALL.iter().filter(|fault| fault.weight() > 0) {
        if rng.random_bool(share) {
            kinds.extend(std::iter::repeat_n(*fault, fault.weight() as usize));
        }
    }
    if kinds.is_empty() {
        return Vec::new();
    }
    let count = rng.random_range(3..40);
    let mut plan: Vec<_> = (0..count)
        .map(|_| {
            let fault = kinds[rng.random_range(0..kinds.len())];
            planned(rng, fault, until)
        })
        .collect();
    plan.sort_by_key(|planned| planned.at);
    plan
}

/// Adds streams that are unfollowed to some plans.
pub(crate) fn with_unfollowed(mut plan: Vec<Planned>, rng: &mut StdRng, until: Micros) -> Vec<Planned> {
    if rng.random_bool(0.4) {
        let count = rng.random_range(1..8);
        plan.extend((0..count).map(|_| planned(rng, Fault::Unfollowed, until)));
        plan.sort_by_key(|planned| planned.at);
    }
    plan
}

fn planned(rng: &mut StdRng, fault: Fault, until: Micros) -> Planned {
    Planned {
        at: rng.random_range(100 * MILLISECOND..until),
        fault,
        party: rng.random_range(0..64),
        stream: rng.random_range(0..64),
        lasts: rng.random_range(0..fault.longest()),
    }
}
