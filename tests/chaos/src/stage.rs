//! The stage of a drill: a lane whose connections all pass through proxies, with clients, load, and a measurement of
//! the lag.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::{Duration, Instant};

use rand::Rng;
use spacetime_sync_authority::Authority;

use crate::{RECOVERY, Record};
use spacetime_sync_tests::follower::Follower;
use spacetime_sync_tests::lane::{Bridge, BridgeOptions, Lane, LaneOptions};
use spacetime_sync_tests::load::Pace;
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::process::Environment;
use spacetime_sync_tests::proxy::Proxy;
use spacetime_sync_tests::scene::{Scene, ready};

/// The lag counts as zero if every event that was committed longer ago than this has been applied.
const ZERO_LAG: Duration = Duration::from_millis(500);
/// How long a drill keeps watching a recovery that is too slow, in order to report how slow it was.
const WATCHED: Duration = Duration::from_secs(60);
/// How long the start may take.
const START: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);
/// A look that takes longer than this is repeated: an authority that does not answer says nothing about the lag.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// How a stage differs from the default.
#[derive(Debug)]
pub struct Setting {
    /// Options of the lane.
    pub lane: LaneOptions,
    /// Options of the bridge.
    pub bridge: BridgeOptions,
    /// Additional environment of Postgres.
    pub postgres: Environment,
    /// Additional environment of the clients.
    pub client: Environment,
    /// Number of clients.
    pub clients: usize,
    /// The folder of the first client's store, if it is not the common one.
    pub store: Option<std::path::PathBuf>,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            lane: LaneOptions::default(),
            bridge: BridgeOptions::default(),
            postgres: Environment::new(),
            client: Environment::new(),
            clients: 2,
            store: None,
        }
    }
}

/// The proxies that all connections pass through.
#[derive(Debug)]
pub struct Ways {
    /// From the writers to Postgres.
    pub writers: Proxy,
    /// From the bridge to Postgres.
    pub bridge_postgres: Proxy,
    /// From the bridge to SpacetimeDB.
    pub bridge_spacetimedb: Proxy,
    /// From the clients to SpacetimeDB.
    pub clients: Proxy,
}

/// The stage of a drill; see the module documentation.
#[derive(Debug)]
pub struct Stage {
    /// Lane, clients and load.
    pub scene: Scene,
    /// The running bridge.
    pub bridge: Bridge,
    /// The options of this stage's bridges.
    pub options: BridgeOptions,
    /// The proxies.
    pub ways: Ways,
    /// The Postgres that holds the data. Declared after the lane, so that it is dropped after it.
    pub cluster: Cluster,
}

impl Deref for Stage {
    type Target = Scene;

    fn deref(&self) -> &Scene {
        &self.scene
    }
}

impl DerefMut for Stage {
    fn deref_mut(&mut self) -> &mut Scene {
        &mut self.scene
    }
}

impl Stage {
    /// Sets up a lane that works: bridge and clients are live, and the load runs.
    pub async fn set(setting: Setting, seed: u64) -> anyhow::Result<Self> {
        let cluster = Cluster::start_with(&std::env::temp_dir(), &setting.postgres).await?;
        let postgres = cluster
            .addr()
            .ok_or_else(|| anyhow::anyhow!("the drills need a Postgres cluster of their own: unset DATABASE_URL"))?;
        let mut lane = Lane::start_with(&cluster, &std::env::temp_dir(), &setting.lane).await?;
        let server = lane.server.addr()?;
        let ways = Ways {
            writers: Proxy::start(postgres).await?,
            bridge_postgres: Proxy::start(postgres).await?,
            bridge_spacetimedb: Proxy::start(server).await?,
            clients: Proxy::start(server).await?,
        };
        // From here on everything reaches the authority through the proxy, so a redirect applies to everybody.
        lane.authority = Authority::connect(&lane.database.url_at(ways.writers.addr())?, 12).await?;
        let options = BridgeOptions {
            authority_at: Some(ways.bridge_postgres.addr()),
            server_at: Some(ways.bridge_spacetimedb.addr()),
            ..setting.bridge
        };
        let bridge = lane.bridge_with(&options)?;
        ready(&bridge, START).await?;
        let mut scene = Scene::new(lane, seed);
        for number in 0..setting.clients {
            let client = scene.client().await?.at(ways.clients.addr());
            let mut client = client.environment(setting.client.clone());
            if let (0, Some(folder)) = (number, &setting.store) {
                client = client.stored_in(folder);
            }
            client.start()?;
            scene.clients.push(client);
        }
        for client in &scene.clients {
            client.until_live(START).await?;
        }
        scene.write(Pace::Gentle);
        let mut stage = Self {
            scene,
            bridge,
            options,
            ways,
            cluster,
        };
        let took = stage.lag_is_zero(Instant::now(), START, |_| Ok(())).await?;
        eprintln!("  the lane carries after {took:.1?}");
        Ok(stage)
    }

    /// Called at the end of a fault: waits until the lag is zero, and records how long that took.
    pub async fn recovers(&mut self, record: &mut Record, ended: Instant) -> anyhow::Result<()> {
        record.recovered(self.lag_is_zero(ended, WATCHED, |_| Ok(())).await?);
        Ok(())
    }

    /// Like [`recovers`](Self::recovers), with a supervisor that restarts SpacetimeDB whenever it has ended. Returns
    /// the number of restarts.
    pub async fn recovers_supervised(&mut self, record: &mut Record, ended: Instant) -> anyhow::Result<u64> {
        let mut restarts = 0;
        let supervise = |stage: &mut Self| {
            restarts += u64::from(stage.lane.server.revive()?);
            Ok(())
        };
        record.recovered(self.lag_is_zero(ended, WATCHED, supervise).await?);
        Ok(restarts)
    }

    /// The time from `since` until every client has applied everything that was committed more than [`ZERO_LAG`] ago,
    /// including events of every stream that were committed after `since`. Calls `meanwhile` at each look.
    async fn lag_is_zero(
        &mut self,
        since: Instant,
        limit: Duration,
        mut meanwhile: impl FnMut(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<Duration> {
        let mut looks: VecDeque<(Instant, Vec<u64>)> = VecDeque::new();
        let mut before: Option<Vec<u64>> = None;
        let mut reached = None;
        loop {
            meanwhile(self)?;
            let looked = Instant::now();
            if let Ok(Ok(heads)) = tokio::time::timeout(LOOK_LIMIT, self.committed_heads()).await {
                let before = before.get_or_insert_with(|| heads.clone());
                if heads.iter().zip(before.iter()).all(|(head, before)| head > before) {
                    looks.push_back((looked, heads));
                }
            }
            let applied: Vec<_> = self.clients.iter().map(Follower::heads).collect();
            let all_have = |heads: &[u64]| {
                let has = |applied: &Vec<u64>| applied.iter().zip(heads).all(|(applied, head)| applied >= head);
                applied.iter().all(has)
            };
            while looks.front().is_some_and(|(_, heads)| all_have(heads)) {
                reached = looks.pop_front().map(|(at, _)| at);
            }
            if reached.is_some_and(|at| at.elapsed() <= ZERO_LAG) {
                return Ok(since.elapsed());
            }
            anyhow::ensure!(
                since.elapsed() < limit,
                "the lag is not zero {limit:?} after the fault's end: committed {:?}, applied {applied:?}",
                looks.back().map(|(_, heads)| heads)
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn committed_heads(&self) -> anyhow::Result<Vec<u64>> {
        let mut heads = Vec::new();
        for stream_id in &self.streams {
            let position = self.lane.authority.position(stream_id).await?;
            heads.push(position.map_or(0, |position| position.head_seq.get()));
        }
        Ok(heads)
    }

    /// A random duration for a fault.
    pub fn lasting(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.random.random_range(0.3..1.0))
    }

    /// Replaces the bridge with a new one of the same options.
    pub fn start_bridge(&mut self) -> anyhow::Result<()> {
        self.bridge = self.scene.lane.bridge_with(&self.options)?;
        Ok(())
    }

    /// Stops the load. If the drill succeeded so far, compares all logs. Keeps the logs of all processes.
    pub(super) async fn close(
        mut self,
        played: anyhow::Result<()>,
        record: &mut Record,
        logs: Option<&Path>,
    ) -> anyhow::Result<()> {
        let settled = match played {
            Ok(()) => self.settle(record).await,
            Err(error) => Err(error),
        };
        record.committed = self.committed;
        if let Some(logs) = logs {
            self.keep_logs(logs)?;
        }
        settled
    }

    async fn settle(&mut self, record: &mut Record) -> anyhow::Result<()> {
        record.verdicts = self.scene.settle(RECOVERY).await?;
        self.published_is_held().await
    }

    fn keep_logs(&self, logs: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(logs)?;
        for entry in std::fs::read_dir(self.lane.folder.path())? {
            let path = entry?.path();
            if let (Some("log"), Some(name)) = (path.extension().and_then(|is| is.to_str()), path.file_name()) {
                std::fs::copy(&path, logs.join(name))?;
            }
        }
        std::fs::write(logs.join("host.log"), self.lane.server.log())?;
        if let Some(log) = self.cluster.log_file() {
            std::fs::copy(log, logs.join("postgres.log"))?;
        }
        Ok(())
    }
}
