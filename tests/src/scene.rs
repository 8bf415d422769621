//! A lane with clients that follow all its streams and a writer for each stream. Scenarios and drills run on it.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use spacetime_sync_proto::StreamId;

use crate::follower::{Follower, Verdict};
use crate::lane::{Bridge, Lane, stream};
use crate::load::{Load, PAYLOADS, Pace, Payload, Writer};

/// A scene; see the module.
#[derive(Debug)]
pub struct Scene {
    /// Everything except bridges and clients.
    pub lane: Lane,
    /// The streams of the lane.
    pub streams: Vec<StreamId>,
    /// The clients whose logs are compared in the end.
    pub clients: Vec<Follower>,
    /// The source of random choices.
    pub random: StdRng,
    /// Events committed by writers that have stopped.
    pub committed: u64,
    load: Option<Load>,
}

impl Scene {
    /// A scene with one stream for each payload size. It has no clients and no load yet.
    pub fn new(lane: Lane, seed: u64) -> Self {
        Self {
            lane,
            streams: (1..=PAYLOADS.len()).map(stream).collect(),
            clients: Vec::new(),
            random: StdRng::seed_from_u64(seed),
            committed: 0,
            load: None,
        }
    }

    /// Another client, which is not started.
    pub async fn client(&self) -> anyhow::Result<Follower> {
        self.lane.client(&self.streams).await
    }

    /// Starts to write to all streams.
    pub fn write(&mut self, pace: Pace) {
        assert!(self.load.is_none(), "one load at a time");
        self.load = Some(Load::start(&self.lane.authority, &self.streams, pace, &mut self.random));
    }

    /// Writes so many events in total, in large transactions.
    pub async fn write_bulk(&mut self, events: u64, largest: usize) -> anyhow::Result<()> {
        let share = events / self.streams.len() as u64;
        for stream_id in &self.streams {
            let seed = self.random.random();
            let name = format!("bulk-{seed}");
            let payload = Payload::UpTo(largest);
            let mut writer = Writer::new(&self.lane.authority, stream_id, &name, payload, seed);
            writer.append_all(share, 1_000).await?;
            self.committed += share;
        }
        Ok(())
    }

    /// Stops the load, and returns how many events were committed in total.
    pub async fn stop_writing(&mut self) -> anyhow::Result<u64> {
        if let Some(load) = self.load.take() {
            self.committed += load.stop().await?;
        }
        Ok(self.committed)
    }

    /// Waits for a short random time.
    pub async fn pause(&mut self) {
        let pause = self.random.random_range(30..600);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    /// Tosses a coin. The seed determines the result.
    pub fn random_bool(&mut self) -> bool {
        self.random.random_bool(0.5)
    }

    /// Asserts that SpacetimeDB holds everything that is recorded as published. Both only grow, so the record is read
    /// first.
    pub async fn published_is_held(&self) -> anyhow::Result<()> {
        let recorded = self.lane.recorded(&self.streams).await?;
        let held = self.lane.held(&self.streams).await?;
        let sound = recorded.iter().zip(&held).all(|(recorded, held)| recorded <= held);
        anyhow::ensure!(
            sound,
            "the authority records {recorded:?} as published, but SpacetimeDB holds {held:?}"
        );
        Ok(())
    }

    /// Waits until the lane has recovered by itself, and asserts that every client's log equals the authority's. To be
    /// called after the last fault.
    pub async fn settle(&mut self, limit: Duration) -> anyhow::Result<Vec<Verdict>> {
        let committed = self.stop_writing().await?;
        anyhow::ensure!(
            self.lane.published(limit).await,
            "not everything committed is published within {limit:?}"
        );
        let held: u64 = self.lane.held(&self.streams).await?.iter().sum();
        anyhow::ensure!(
            held == committed,
            "SpacetimeDB holds {held} of {committed} committed events"
        );
        let mut verdicts = Vec::new();
        for client in &self.clients {
            client.until_applied(committed, limit).await?;
            verdicts.push(self.is_equal(client).await?);
        }
        Ok(verdicts)
    }

    /// Asserts that a client's log equals the authority's.
    pub async fn is_equal(&self, client: &Follower) -> anyhow::Result<Verdict> {
        let verdict = client.compare(&self.lane.authority).await?;
        anyhow::ensure!(
            verdict.is_equal() && verdict.applied == self.committed,
            "of {} committed events: {verdict:?}",
            self.committed
        );
        Ok(verdict)
    }
}

/// Waits until a bridge is connected on both sides.
pub async fn ready(bridge: &Bridge, limit: Duration) -> anyhow::Result<()> {
    bridge.until("/readyz", limit, |ready, _| ready).await.map(|_| ())
}
