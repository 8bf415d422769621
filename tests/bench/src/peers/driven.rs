//! A peer whose publisher and consumers are processes of `tests/peers`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use serde::Deserialize;

use super::server::{Program, Server};
use super::{Extent, Figures, MANY_STREAMS, Measure, PACE, PACED_STREAMS, SUBSCRIBERS, latencies};
use crate::child::Child;
use crate::lane::{Times, Written};

/// How events are published in bulk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bulk {
    at_once: usize,
    in_flight: usize,
}

impl Bulk {
    /// So many at once, and so often without an acknowledgement.
    pub(super) fn new(at_once: usize, in_flight: usize) -> Self {
        Self { at_once, in_flight }
    }
}

/// The publisher's report.
#[derive(Debug, Deserialize)]
struct Published {
    begun_us: i64,
    published_at_us: Times,
    acknowledged_at_us: Times,
}

/// A consumer's report.
#[derive(Debug, Deserialize)]
pub(super) struct Consumed {
    begun_us: i64,
    pub(super) last_us: i64,
    pub(super) consumed_at_us: Times,
}

/// A running peer.
#[derive(Debug)]
pub(super) struct Driven {
    kind: Program,
    bulk: Bulk,
    server: Server,
    program: PathBuf,
}

impl Driven {
    pub(super) async fn start(kind: Program, bulk: Bulk) -> anyhow::Result<Self> {
        let program = std::env::var_os("SYNC_PEERS_PROGRAM");
        Ok(Self {
            kind,
            bulk,
            server: Server::start(kind).await?,
            program: program
                .context("SYNC_PEERS_PROGRAM is not set: start through ./scripts/bench --peers")?
                .into(),
        })
    }

    pub(super) async fn measure(&self, measure: Measure, extent: &Extent) -> anyhow::Result<Figures> {
        let measured = match measure {
            Measure::OneStream => self.live(1, extent.events, 1).await,
            Measure::ManyStreams => self.live(MANY_STREAMS, extent.events, 1).await,
            Measure::Subscribers => self.live(1, extent.events_for_many, SUBSCRIBERS).await,
            Measure::Single => self.single(PACE * extent.paced.as_secs()).await,
            Measure::Away => self.away(extent.events_missed).await,
        };
        measured.with_context(|| format!("the server says: {}", self.server.log()))
    }

    /// Events per second, until every consumer has everything.
    async fn live(&self, streams: usize, events: u64, consumers: usize) -> anyhow::Result<Figures> {
        self.create(streams).await?;
        let mut children = Vec::new();
        for _ in 0..consumers {
            children.push(self.consumer(streams, events, |_| ())?);
        }
        for child in &mut children {
            child.ready().await?;
        }
        let begun_us = self.publish(streams, events).await?.begun_us;
        let mut last_us = begun_us;
        for child in children {
            last_us = last_us.max(child.report::<Consumed>().await?.last_us);
        }
        Ok(vec![per_second(events, last_us - begun_us)])
    }

    async fn single(&self, events: u64) -> anyhow::Result<Figures> {
        self.create(PACED_STREAMS).await?;
        let mut consumer = self.consumer(PACED_STREAMS, events, |command| {
            command.arg("--each");
        })?;
        consumer.ready().await?;
        let mut command = self.role("publish", PACED_STREAMS, events);
        command.args(["--per-second", &PACE.to_string()]);
        let published: Published = Child::start("the publisher", &command)?.report().await?;
        let written = Written {
            begun_at_us: published.published_at_us,
            committed_at_us: published.acknowledged_at_us,
        };
        latencies(&written, &consumer.report::<Consumed>().await?.consumed_at_us)
    }

    /// Events per second from the consumer's start.
    async fn away(&self, events: u64) -> anyhow::Result<Figures> {
        self.create(1).await?;
        self.publish(1, events).await?;
        let consumer = self.consumer(1, events, |command| {
            command.arg("--work").arg(self.server.folder());
        })?;
        let consumed: Consumed = consumer.report().await?;
        Ok(vec![per_second(events, consumed.last_us - consumed.begun_us)])
    }

    async fn create(&self, streams: usize) -> anyhow::Result<()> {
        let mut command = tokio::process::Command::from(self.role("create", streams, 0));
        let status = command.kill_on_drop(true).status().await?;
        anyhow::ensure!(status.success(), "the streams were not made");
        Ok(())
    }

    async fn publish(&self, streams: usize, events: u64) -> anyhow::Result<Published> {
        let mut command = self.role("publish", streams, events);
        command.args(["--at-once", &self.bulk.at_once.to_string()]);
        command.args(["--in-flight", &self.bulk.in_flight.to_string()]);
        Child::start("the publisher", &command)?.report().await
    }

    fn consumer(&self, streams: usize, events: u64, set: impl FnOnce(&mut Command)) -> anyhow::Result<Child> {
        let mut command = self.role("consume", streams, events);
        set(&mut command);
        Child::start("a consumer", &command)
    }

    fn role(&self, role: &str, streams: usize, events: u64) -> Command {
        let mut command = Command::new(&self.program);
        command.args([role, "--peer", self.kind.name(), "--at", &self.server.at.to_string()]);
        command.args(["--streams", &streams.to_string(), "--events", &events.to_string()]);
        command
    }
}

/// Events per second.
pub(super) fn per_second(events: u64, took_us: i64) -> f64 {
    events as f64 * 1e6 / took_us as f64
}
