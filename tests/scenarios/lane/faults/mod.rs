//! Faults at random moments under load: processes are killed and connections broken while writers continue. Afterwards
//! everything committed must be published and applied without help, and each client's log must equal the authority's,
//! byte for byte.
//!
//! A seed determines the random choices. Each scenario prints it, and `SYNC_SEED` repeats it. The exact moments also
//! depend on the machine.

mod bridges;
mod clients;
mod health;
mod kills;
mod network;
mod poison;
mod wipe;

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use rand::Rng;
use spacetime_sync_tests::follower::Follower;
use spacetime_sync_tests::lane::{Bridge, Lane};
use spacetime_sync_tests::load::Pace;
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::scene;

/// The least number of faults of a kind in a scenario.
const FAULTS: usize = 6;
/// How soon the lane must have recovered without help.
const RECOVERY: Duration = Duration::from_secs(40);
/// How long a fault may take to happen or to be noticed.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A scene in which every error fails the test.
pub(crate) struct Scene(scene::Scene);

impl Deref for Scene {
    type Target = scene::Scene;

    fn deref(&self) -> &scene::Scene {
        &self.0
    }
}

impl DerefMut for Scene {
    fn deref_mut(&mut self) -> &mut scene::Scene {
        &mut self.0
    }
}

impl Scene {
    /// Starts a lane with running clients and no load.
    pub(crate) async fn start(clients: usize) -> Self {
        Self::start_on(Cluster::shared().await, clients).await
    }

    pub(crate) async fn start_on(cluster: &Cluster, clients: usize) -> Self {
        let seed = match std::env::var("SYNC_SEED") {
            Ok(seed) => seed.parse().expect("SYNC_SEED is a number"),
            Err(_) => rand::rng().random(),
        };
        eprintln!("SYNC_SEED={seed}");
        let mut scene = Self(scene::Scene::new(Lane::start_on(cluster).await.unwrap(), seed));
        for _ in 0..clients {
            let mut client = scene.client().await;
            client.start().unwrap();
            scene.clients.push(client);
        }
        scene
    }

    pub(crate) async fn client(&self) -> Follower {
        self.0.client().await.unwrap()
    }

    pub(crate) fn write(&mut self) {
        self.write_at(Pace::Mixed);
    }

    pub(crate) fn write_at(&mut self, pace: Pace) {
        self.0.write(pace);
    }

    pub(crate) async fn write_bulk(&mut self, events: u64, largest: usize) {
        self.0.write_bulk(events, largest).await.unwrap();
    }

    pub(crate) async fn stop_writing(&mut self) -> u64 {
        self.0.stop_writing().await.unwrap()
    }

    /// Starts a bridge. It may still be connecting when a test goes on, so faults hit it in all states.
    pub(crate) async fn bridge(&mut self) -> Bridge {
        let bridge = self.lane.bridge().unwrap();
        if self.random.random_bool(0.8) {
            ready(&bridge).await;
        }
        bridge
    }

    pub(crate) async fn published_is_held(&self) {
        self.0.published_is_held().await.unwrap();
    }

    pub(crate) async fn settle(&mut self) {
        let verdicts = self.0.settle(RECOVERY).await.unwrap();
        eprintln!(
            "{} events, each applied once by {} clients",
            self.committed,
            verdicts.len()
        );
    }

    pub(crate) async fn is_equal(&self, client: &Follower) {
        self.0.is_equal(client).await.unwrap();
    }
}

/// Waits until a bridge is connected on both sides.
pub(crate) async fn ready(bridge: &Bridge) {
    scene::ready(bridge, SOON).await.unwrap();
}
