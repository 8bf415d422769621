//! One stream with a writer, and the processes that carry it.

use std::time::Duration;

use anyhow::Context as _;
use spacetime_sync_tests::lane::{Bridge, Lane, stream};
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::process::Process;
use spacetime_sync_tests::scene::ready;

use crate::crowd::{Behaviour, Crowd, Member};
use crate::measure::{Log, Size};

pub(crate) const LIMIT: Duration = Duration::from_secs(600);
const SIZE: Size = Size::Bytes(512);

pub(crate) struct Stage {
    lane: Lane,
    bridge: Bridge,
    log: Log,
    /// How many crowds there have been.
    crowds: usize,
}

impl Stage {
    /// A lane with an empty stream.
    pub(crate) async fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let lane = Lane::start_on(cluster).await?;
        let bridge = lane.bridge()?;
        ready(&bridge, LIMIT).await?;
        Ok(Self {
            lane,
            bridge,
            log: Log::new(&stream(1), SIZE),
            crowds: 0,
        })
    }

    /// How many events the stream holds.
    pub(crate) fn held(&self) -> u64 {
        self.log.seq.get()
    }

    /// Commits the stream's next events in bulk.
    pub(crate) async fn write(&mut self, events: u64) -> anyhow::Result<()> {
        self.log.append(&self.lane.authority, events).await
    }

    /// Waits until all events are published.
    pub(crate) async fn published(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.lane.published(LIMIT).await,
            "not everything was published: {}",
            self.bridge.process.log()
        );
        Ok(())
    }

    /// A client that may read the stream.
    pub(crate) async fn member(&self) -> anyhow::Result<Member> {
        Member::new(&self.lane, std::slice::from_ref(&self.log.stream_id)).await
    }

    /// Starts a process with these clients.
    pub(crate) fn crowd(&mut self, members: Vec<Member>, behaviour: Behaviour) -> anyhow::Result<Crowd> {
        self.crowds += 1;
        Crowd::start(&self.lane, &self.crowds.to_string(), members, behaviour)
    }

    /// Memory of the host in MB, and its peak.
    pub(crate) fn memory(&self) -> anyhow::Result<(u64, u64)> {
        self.host()?.memory_mb().context("the host is gone")
    }

    /// CPU time of the host so far.
    pub(crate) fn host_cpu(&self) -> anyhow::Result<Duration> {
        Ok(self.host()?.cpu().context("the host is gone")?.whole())
    }

    fn host(&self) -> anyhow::Result<&Process> {
        self.lane.server.process().context("the host is not ours")
    }
}
