//! The lane and its peers: what each does, with which settings, and what its acknowledgement means.

use std::path::PathBuf;

use spacetime_sync_tests::postgres::Cluster;

use super::driven::{Bulk, Driven};
use super::server::Program;
use super::{Extent, Figures, Measure, debezium, ours};

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Contender {
    Lane,
    Debezium,
    Jetstream,
    JetstreamAlways,
    JetstreamBatches,
    Redis,
    DurableStreams,
}

impl Contender {
    /// In the order in which they take their turn.
    pub(super) const ALL: [Self; 7] = [
        Self::Lane,
        Self::Debezium,
        Self::Jetstream,
        Self::JetstreamAlways,
        Self::JetstreamBatches,
        Self::Redis,
        Self::DurableStreams,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Lane => "the lane",
            Self::Debezium => "Debezium",
            Self::Jetstream => "JetStream",
            Self::JetstreamAlways => "JetStream, always",
            Self::JetstreamBatches => "JetStream, always, batches",
            Self::Redis => "Redis",
            Self::DurableStreams => "durable-streams",
        }
    }

    /// What is acknowledged, and what that means.
    pub(super) fn acknowledges(self) -> &'static str {
        match self {
            Self::Lane => {
                "Postgres has synced the commit of 500 events or of one; a client gets an event when SpacetimeDB has synced it, \
                 too, and checks its seal and hashes"
            }
            Self::Debezium => {
                "the same commit in the same Postgres; the engine hands an event to its consumer in Python when it has read it \
                 from the WAL, and keeps no copy"
            }
            Self::Jetstream => "each message is in the page cache; the server syncs every two minutes; 2,000 in flight",
            Self::JetstreamAlways => "each message is synced, by `sync_interval: always`; 2,000 in flight",
            Self::JetstreamBatches => {
                "an atomic batch of 1,000 messages is synced, by `sync_interval: always`; 4 in flight"
            }
            Self::Redis => "a pipeline of 100 is synced to the append-only file, by `appendfsync always`",
            Self::DurableStreams => {
                "a request of 500 events, or of one, is in the log by fdatasync; readers see only that"
            }
        }
    }

    /// Why this one cannot be measured here.
    pub(super) fn missing(self, cluster: &Cluster) -> Option<String> {
        let name = match self {
            Self::Lane => return None,
            Self::Debezium => "DEBEZIUM",
            Self::Jetstream | Self::JetstreamAlways | Self::JetstreamBatches => "NATS",
            Self::Redis => "REDIS",
            Self::DurableStreams => "DURABLE_STREAMS",
        };
        if self == Self::Debezium && !cluster.can_be_killed() {
            return Some("the server of DATABASE_URL cannot be restarted with wal_level=logical".to_owned());
        }
        if std::env::var_os(format!("SYNC_PEER_{name}")).is_some() {
            return None;
        }
        let why = std::env::var(format!("SYNC_PEER_{name}_MISSING"));
        Some(why.unwrap_or_else(|_| format!("SYNC_PEER_{name} is not set: start through ./scripts/bench --peers")))
    }

    /// Whether a measure makes sense for this one.
    pub(super) fn does(self, measure: Measure) -> bool {
        match self {
            Self::Lane | Self::Jetstream | Self::Redis | Self::DurableStreams => true,
            // A subscriber of Debezium is an engine and a replication slot of its own, and one that was away reads the WAL as
            // one that follows.
            Self::Debezium => !matches!(measure, Measure::Subscribers | Measure::Away),
            // How a stream was synced when it was written makes no difference to a consumer that was away.
            Self::JetstreamAlways => measure != Measure::Away,
            Self::JetstreamBatches => !matches!(measure, Measure::Away | Measure::Single),
        }
    }

    /// Measures once, on servers that are made for it.
    pub(super) async fn measure(self, cluster: &Cluster, measure: Measure, extent: &Extent) -> anyhow::Result<Figures> {
        let (program, bulk) = match self {
            Self::Lane => return ours(cluster, measure, extent).await,
            Self::Debezium => return debezium::measure(&installed("DEBEZIUM")?, measure, extent).await,
            Self::Jetstream => (Program::Nats { always: false }, Bulk::new(1, 2_000)),
            Self::JetstreamAlways => (Program::Nats { always: true }, Bulk::new(1, 2_000)),
            Self::JetstreamBatches => (Program::Nats { always: true }, Bulk::new(1_000, 4)),
            Self::Redis => (Program::Redis, Bulk::new(100, 1)),
            Self::DurableStreams => (Program::DurableStreams, Bulk::new(500, 1)),
        };
        // One sync for each message takes minutes for what takes others seconds.
        let share = if self == Self::JetstreamAlways { 20 } else { 1 };
        let extent = Extent {
            events: extent.events / share,
            events_for_many: extent.events_for_many / share,
            ..*extent
        };
        Driven::start(program, bulk).await?.measure(measure, &extent).await
    }
}

/// The program of a peer.
pub(super) fn installed(name: &str) -> anyhow::Result<PathBuf> {
    let variable = format!("SYNC_PEER_{name}");
    std::env::var_os(&variable)
        .map(PathBuf::from)
        .ok_or_else(|| anyhow::anyhow!("{variable} is not set: start through ./scripts/bench --peers"))
}
