//! Faults at random moments, under load: processes are killed and connections broken while writers go on. Then
//! everything committed must be published and applied by itself, and each client's log be the authority's, byte for byte.
//!
//! What is random follows from a seed, which each scenario prints; `SYNC_SEED` gives it again. The moments themselves
//! also depend on the machine.

mod bridges;
mod clients;
mod health;
mod kills;
mod network;
mod poison;
mod wipe;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use spacetime_sync_bridge::authority::Authority;
use spacetime_sync_proto::StreamId;
use spacetime_sync_tests::follower::Follower;
use spacetime_sync_tests::lane::{Bridge, Lane, stream};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::postgres::Cluster;
use tokio::task::JoinHandle;

/// Faults of a kind in a scenario, at least.
const FAULTS: usize = 6;
/// How soon the lane must be whole again by itself.
const RECOVERY: Duration = Duration::from_secs(40);
/// How long a fault may take to happen or to be seen.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// Largest payload of each stream, in turn.
const PAYLOADS: [usize; 4] = [64, 1_000, 8_000, 100_000];
/// Bytes of one transaction of a writer, about.
const TRANSACTION: usize = 64 * 1024;

/// A lane, clients that follow all its streams, and a writer for each stream.
pub(crate) struct Scene {
    pub(crate) lane: Lane,
    pub(crate) streams: Vec<StreamId>,
    pub(crate) clients: Vec<Follower>,
    pub(crate) random: StdRng,
    load: Option<Load>,
    /// Events committed by writers that have ended.
    committed: u64,
}

impl Scene {
    /// With clients that run, and no load yet.
    pub(crate) async fn start(clients: usize) -> Self {
        Self::start_on(Cluster::shared().await, clients).await
    }

    async fn start_on(cluster: &Cluster, clients: usize) -> Self {
        let seed = match std::env::var("SYNC_SEED") {
            Ok(seed) => seed.parse().expect("SYNC_SEED is a number"),
            Err(_) => rand::rng().random(),
        };
        eprintln!("SYNC_SEED={seed}");
        let lane = Lane::start_on(cluster).await.unwrap();
        let streams = (1..=PAYLOADS.len()).map(stream).collect();
        let random = StdRng::seed_from_u64(seed);
        let mut scene = Self {
            lane,
            streams,
            clients: Vec::new(),
            random,
            load: None,
            committed: 0,
        };
        for _ in 0..clients {
            let mut client = scene.client().await;
            client.start().unwrap();
            scene.clients.push(client);
        }
        scene
    }

    /// One more client, which does not run yet.
    async fn client(&self) -> Follower {
        self.lane.client(&self.streams).await.unwrap()
    }

    /// Begins to write to all streams.
    fn write(&mut self) {
        self.write_at(Pace::Mixed);
    }

    pub(crate) fn write_at(&mut self, pace: Pace) {
        assert!(self.load.is_none(), "one load at a time");
        self.load = Some(Load::start(&self.lane.authority, &self.streams, pace, &mut self.random));
    }

    /// Writes so many events in all, in large transactions.
    async fn write_bulk(&mut self, events: u64, largest: usize) {
        let share = events / self.streams.len() as u64;
        for stream_id in &self.streams {
            let seed = self.random.random();
            let mut writer = Writer::new(
                &self.lane.authority,
                stream_id,
                &format!("bulk-{seed}"),
                Payload::UpTo(largest),
                seed,
            );
            writer.append_all(share, 1_000).await.unwrap();
            self.committed += share;
        }
    }

    /// Ends the load, and says how many events were committed in all.
    async fn stop_writing(&mut self) -> u64 {
        if let Some(load) = self.load.take() {
            self.committed += load.stop().await;
        }
        self.committed
    }

    /// A moment of random length.
    pub(crate) async fn pause(&mut self) {
        let pause = self.random.random_range(30..600);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    /// Either, as the seed has it.
    pub(crate) fn random_bool(&mut self) -> bool {
        self.random.random_bool(0.5)
    }

    /// A bridge that carries, or is about to: faults hit it in all states.
    async fn bridge(&mut self) -> Bridge {
        let bridge = self.lane.bridge().unwrap();
        if self.random.random_bool(0.8) {
            ready(&bridge).await;
        }
        bridge
    }

    /// What is recorded as published is held. Both only grow, and the record is read first.
    pub(crate) async fn published_is_held(&self) {
        let recorded = self.lane.recorded(&self.streams).await.unwrap();
        let held = self.lane.held(&self.streams).await.unwrap();
        let sound = recorded.iter().zip(&held).all(|(recorded, held)| recorded <= held);
        assert!(sound, "recorded as published {recorded:?}, held {held:?}");
    }

    /// After the last fault: the lane gets whole by itself, and every client's log is the authority's.
    pub(crate) async fn settle(&mut self) {
        let committed = self.stop_writing().await;
        assert!(
            self.lane.published(RECOVERY).await,
            "not everything committed is published within {RECOVERY:?}"
        );
        let held: u64 = self.lane.held(&self.streams).await.unwrap().iter().sum();
        assert_eq!(
            held, committed,
            "what SpacetimeDB holds of {committed} committed events"
        );
        for client in &self.clients {
            client.until_applied(committed, RECOVERY).await.unwrap();
            self.is_equal(client).await;
        }
        eprintln!(
            "{committed} events, each applied once by {} clients",
            self.clients.len()
        );
    }

    async fn is_equal(&self, client: &Follower) {
        let verdict = client.compare(&self.lane.authority).await.unwrap();
        assert!(verdict.is_equal(), "{verdict:?}");
        assert_eq!(verdict.applied, self.committed);
    }
}

/// How a writer writes.
#[derive(Clone, Copy)]
pub(crate) enum Pace {
    /// Transactions and payloads of all sizes, with pauses between them.
    Mixed,
    /// Small events one by one without a pause: something is always on its way.
    Dense,
}

/// Writers that run until they are stopped, one for each stream.
struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<u64>>,
}

impl Load {
    fn start(authority: &Authority, streams: &[StreamId], pace: Pace, random: &mut StdRng) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = |(stream_id, payload): (&StreamId, usize)| {
            let most = match pace {
                Pace::Mixed => payload,
                Pace::Dense => PAYLOADS[0],
            };
            let seed = random.random();
            let name = format!("load-{seed}");
            let writer = Writer::new(authority, stream_id, &name, Payload::UpTo(most), seed);
            tokio::spawn(write(writer, pace, most, StdRng::seed_from_u64(seed), stop.clone()))
        };
        let writers = streams.iter().zip(PAYLOADS.into_iter().cycle()).map(writer).collect();
        Self { stop, writers }
    }

    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut committed = 0;
        for writer in self.writers {
            committed += writer.await.unwrap();
        }
        committed
    }
}

async fn write(mut writer: Writer, pace: Pace, largest: usize, mut random: StdRng, stop: Arc<AtomicBool>) -> u64 {
    let most = (TRANSACTION / largest).clamp(1, 20);
    while !stop.load(Ordering::Relaxed) {
        match pace {
            Pace::Mixed => {
                writer.append(random.random_range(1..=most)).await.unwrap();
                tokio::time::sleep(Duration::from_millis(random.random_range(1..25))).await;
            }
            Pace::Dense => writer.append(1).await.unwrap(),
        }
    }
    writer.written()
}

/// Waits until a bridge is connected on both sides.
pub(crate) async fn ready(bridge: &Bridge) {
    bridge.until("/readyz", SOON, |ready, _| ready).await.unwrap();
}
