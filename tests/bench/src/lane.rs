//! The whole lane, from the authority to clients in processes of their own.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use spacetime_sync_authority::{Authority, NewEvent};
use spacetime_sync_proto::{IdempotencyKey, Kind, StreamId};
use tokio::task::JoinSet;

use crate::child::Child;
use crate::client::{ClientArgs, ClientReport};
use crate::cpu::{Cpu, Meter};
use crate::measure::{Log, Size, now_us};
use spacetime_sync_tests::figures::{Percentiles, Samples, rate};
use spacetime_sync_tests::follower::Follower;
use spacetime_sync_tests::lane::{Bridge, Lane, stream};
use spacetime_sync_tests::postgres::{Cluster, Postmaster};
use spacetime_sync_tests::process::Process;

/// Number of streams in a run, each with its own writer.
pub(crate) const STREAMS: usize = 4;
/// Number of events per transaction of a bulk writer.
const BULK: usize = 500;
const LIMIT: Duration = Duration::from_secs(300);

/// A lane to measure, with a backlog or under load.
#[derive(Debug)]
pub(crate) struct Runner {
    /// The lane.
    pub(crate) lane: Lane,
    streams: Vec<StreamId>,
    postgres: Option<Postmaster>,
}

/// The result of a run.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// Events per second, until every client has applied them.
    pub(crate) events_per_second: f64,
    /// The clients' reports.
    pub(crate) clients: Vec<ClientReport>,
    /// CPU time for an event.
    pub(crate) cpu: Cpu,
    /// Peak memory of the bridge.
    pub(crate) bridge_mb: u64,
    /// Peak memory of the host.
    pub(crate) host_mb: u64,
}

/// Points in time of the events of each stream, from the first on, in microseconds since 1970.
pub(crate) type Times = BTreeMap<StreamId, Vec<i64>>;

/// What the writers of single events know.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// When each event was handed over.
    pub(crate) begun_at_us: Times,
    /// When its writer knew that it was committed.
    pub(crate) committed_at_us: Times,
}

/// How long it took from one time of each event until another.
pub(crate) fn between(from: &Times, until: &Times) -> anyhow::Result<Percentiles> {
    let mut took = Samples::default();
    for (stream, from) in from {
        let until = until.get(stream).context("nothing came of a stream")?;
        anyhow::ensure!(
            until.len() == from.len(),
            "{} of {} events came",
            until.len(),
            from.len()
        );
        for (until, from) in until.iter().zip(from) {
            took.record_us(until - from);
        }
    }
    took.latency().context("no event was written")
}

impl Runner {
    /// Starts a lane without a bridge.
    pub(crate) async fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        Self::start_in(cluster, &std::env::temp_dir()).await
    }

    /// Starts a lane with SpacetimeDB's data below `parent`.
    pub(crate) async fn start_in(cluster: &Cluster, parent: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            lane: Lane::start_in(cluster, parent).await?,
            streams: streams(STREAMS),
            postgres: cluster.postmaster(),
        })
    }

    /// Starts a lane with another number of streams.
    pub(crate) async fn start_with(cluster: &Cluster, count: usize) -> anyhow::Result<Self> {
        Ok(Self {
            streams: streams(count),
            ..Self::start(cluster).await?
        })
    }

    /// Commits events in bulk, with one writer per stream. Returns how long that took.
    pub(crate) async fn write(&self, events: u64, size: Size) -> anyhow::Result<Duration> {
        let started = Instant::now();
        write(&self.lane.authority, &self.streams, events, size).await?;
        Ok(started.elapsed())
    }

    /// Commits in bulk to clients that wait. Returns events per second until every client has applied them.
    pub(crate) async fn live(&self, events: u64, size: Size, clients: usize) -> anyhow::Result<f64> {
        let bridge = self.lane.bridge()?;
        bridge.until("/readyz", LIMIT, |ready, _| ready).await?;
        let mut children = self.clients(clients, events).await?;
        for child in &mut children {
            child.ready().await?;
        }
        let begun_us = now_us();
        self.write(events, size).await?;
        let mut last_us = begun_us;
        for child in children {
            last_us = last_us.max(child.report::<ClientReport>().await?.last_us);
        }
        Ok(events as f64 * 1e6 / (last_us - begun_us) as f64)
    }

    /// The same, and Postgres' CPU time for an event, in microseconds.
    pub(crate) async fn write_measured(&self, events: u64, size: Size) -> anyhow::Result<(Duration, Option<f64>)> {
        let used = || Some(self.postgres?.cpu()?.whole());
        let before = used();
        let took = self.write(events, size).await?;
        let each = |(after, before): (Duration, Duration)| (after - before).as_secs_f64() * 1e6 / events as f64;
        Ok((took, used().zip(before).map(each)))
    }

    /// Publishes a committed backlog to waiting clients. Timed from the start of the bridge.
    pub(crate) async fn drain(&self, events: u64, clients: usize) -> anyhow::Result<Run> {
        let children = self.clients(clients, events).await?;
        let started = Instant::now();
        let bridge = self.lane.bridge()?;
        self.finish(events, started, &bridge, children).await
    }

    /// Commits in bulk while the bridge and the clients run.
    pub(crate) async fn stream(&self, events: u64, size: Size, clients: usize) -> anyhow::Result<Run> {
        let bridge = self.lane.bridge()?;
        bridge.until("/readyz", LIMIT, |ready, _| ready).await?;
        let children = self.clients(clients, events).await?;
        let started = Instant::now();
        let (written, run) = tokio::join!(
            self.write(events, size),
            self.finish(events, started, &bridge, children)
        );
        written?;
        run
    }

    /// Commits single events at a fixed rate to a client that waits, each in its own transaction. Also returns what the
    /// writers know of each event, and when the client had applied it.
    pub(crate) async fn paced(
        &self,
        per_second: u64,
        events: u64,
        size: Size,
    ) -> anyhow::Result<(Run, Written, Times)> {
        let bridge = self.lane.bridge()?;
        bridge.until("/readyz", LIMIT, |ready, _| ready).await?;
        let client = self.lane.client(&self.streams).await?;
        let mut child = self.spawn(&client, events, true)?;
        child.ready().await?;
        let started = Instant::now();
        let (written, run) = tokio::join!(
            write_paced(&self.lane.authority, &self.streams, per_second, events, size),
            self.finish(events, started, &bridge, vec![child])
        );
        let (written, mut run) = (written?, run?);
        let applied_at_us = std::mem::take(&mut run.clients[0].applied_at_us);
        Ok((run, written, applied_at_us))
    }

    /// Measures a client that was away while everything was published.
    pub(crate) async fn catch_up(&self, events: u64) -> anyhow::Result<Run> {
        let bridge = self.lane.bridge()?;
        anyhow::ensure!(self.lane.published(LIMIT).await, "the backlog was not published");
        let started = Instant::now();
        let children = self.clients(1, events).await?;
        let mut run = self.finish(events, started, &bridge, children).await?;
        run.events_per_second = events as f64 / run.clients[0].seconds_from_start;
        Ok(run)
    }

    async fn clients(&self, count: usize, until: u64) -> anyhow::Result<Vec<Child>> {
        let mut children = Vec::new();
        for _ in 0..count {
            let client = self.lane.client(&self.streams).await?;
            children.push(self.spawn(&client, until, false)?);
        }
        Ok(children)
    }

    fn spawn(&self, client: &Follower, until: u64, each: bool) -> anyhow::Result<Child> {
        let args = ClientArgs {
            uri: self.lane.server.uri().to_owned(),
            database: self.lane.name.clone(),
            token_file: client.token_file().to_owned(),
            seal_keys: self.lane.seal_keys_file(),
            db: client.store().to_owned(),
            streams: self.streams.clone(),
            until,
            each,
        };
        args.spawn()
    }

    async fn finish(
        &self,
        events: u64,
        started: Instant,
        bridge: &Bridge,
        children: Vec<Child>,
    ) -> anyhow::Result<Run> {
        let meter = Meter::start(self.postgres, &bridge.process, self.lane.server.process());
        let mut clients: Vec<ClientReport> = Vec::new();
        for child in children {
            clients.push(child.report().await?);
        }
        let took = started.elapsed();
        let peak = |process: Option<&Process>| process.and_then(Process::memory_mb).map_or(0, |(_, peak)| peak);
        anyhow::ensure!(!clients.is_empty(), "the run has no client");
        Ok(Run {
            events_per_second: rate(events, took),
            cpu: meter.read(events, &clients),
            clients,
            bridge_mb: peak(Some(&bridge.process)),
            host_mb: peak(self.lane.server.process()),
        })
    }
}

/// The streams of a lane.
pub(crate) fn streams(count: usize) -> Vec<StreamId> {
    (1..=count).map(stream).collect()
}

/// Commits events in bulk, with one writer per stream.
pub(crate) async fn write(authority: &Authority, streams: &[StreamId], events: u64, size: Size) -> anyhow::Result<()> {
    let (mut writers, each) = (JoinSet::new(), events / streams.len() as u64);
    for stream_id in streams {
        let (authority, stream_id) = (authority.clone(), stream_id.clone());
        writers.spawn(async move { Log::new(&stream_id, size).append(&authority, each).await });
    }
    while let Some(written) = writers.join_next().await {
        written??;
    }
    Ok(())
}

/// Commits single events at a fixed rate over all streams, each in its own transaction.
pub(crate) async fn write_paced(
    authority: &Authority,
    streams: &[StreamId],
    per_second: u64,
    events: u64,
    size: Size,
) -> anyhow::Result<Written> {
    let (mut writers, count) = (JoinSet::new(), streams.len() as u32);
    let pace = Duration::from_micros(1_000_000 * u64::from(count) / per_second);
    for (at, stream_id) in (0u32..).zip(streams) {
        let (authority, stream_id) = (authority.clone(), stream_id.clone());
        writers.spawn(async move {
            let mut log = Log::new(&stream_id, size);
            let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + pace / count * at, pace);
            let mut times = Vec::new();
            for _ in 0..events / u64::from(count) {
                beat.tick().await;
                let event = log.new_event();
                let begun_us = now_us();
                authority.append(&stream_id, &event).await?;
                times.push((begun_us, now_us()));
            }
            anyhow::Ok((stream_id, times))
        });
    }
    let mut written = Written::default();
    while let Some(done) = writers.join_next().await {
        let (stream_id, times) = done??;
        let (begun, committed) = times.into_iter().unzip();
        written.begun_at_us.insert(stream_id.clone(), begun);
        written.committed_at_us.insert(stream_id, committed);
    }
    Ok(written)
}

impl Log {
    /// Commits the next events in bulk.
    pub(crate) async fn append(&mut self, authority: &Authority, events: u64) -> anyhow::Result<()> {
        let mut left = usize::try_from(events)?;
        while left > 0 {
            let count = left.min(BULK);
            let events = self.new_events(count);
            authority.append_batch(&self.stream_id, &events).await?;
            left -= count;
        }
        Ok(())
    }

    /// The next events, in the form of an append.
    pub(crate) fn new_events(&mut self, count: usize) -> Vec<NewEvent> {
        (0..count).map(|_| self.new_event()).collect()
    }

    /// The next event, in the form of an append.
    pub(crate) fn new_event(&mut self) -> NewEvent {
        self.seq = self.seq.next();
        NewEvent {
            idempotency_key: IdempotencyKey::new(&format!("run:42:events:{}", self.seq))
                .unwrap_or_else(|error| panic!("{error}")),
            kind: Kind::new("run.event").unwrap_or_else(|error| panic!("{error}")),
            payload: self.size.payload(&mut self.random),
        }
    }
}
