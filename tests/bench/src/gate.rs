//! What the gate costs: the same client through it and without it, in turn or side by side, and the memory of a gate for
//! clients that are silent.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::json;
use spacetime_sync_proto::StreamId;
use spacetime_sync_tests::figures::{Percentiles, Samples, median};
use spacetime_sync_tests::gate::{Gate, GateOptions};
use spacetime_sync_tests::issuer::Issuer;
use spacetime_sync_tests::issuing::{Desk, Issuing};
use spacetime_sync_tests::lane::{Lane, stream};
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::scene::ready;
use spacetime_sync_tests::socket::Socket;
use tokio::task::JoinSet;

use crate::child::Child;
use crate::client::{ClientArgs, ClientReport};
use crate::lane::{STREAMS, write};
use crate::measure::{Log, Size, now_us};

const LIMIT: Duration = Duration::from_secs(300);
const SIZE: Size = Size::Bytes(512);
/// In which time a client has read what is held.
const CATCHES_UP: Duration = Duration::from_secs(10);

/// The result.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Cost {
    /// Events per second of a client that was away, without the gate.
    pub(crate) direct_per_second: f64,
    /// The same through the gate.
    pub(crate) gated_per_second: f64,
    /// Events per second of a client that follows bulk writers, without the gate.
    pub(crate) live_direct_per_second: f64,
    /// The same through the gate.
    pub(crate) live_gated_per_second: f64,
    /// From commit to applied without the gate.
    pub(crate) direct: Percentiles,
    /// The same events through the gate.
    pub(crate) gated: Percentiles,
    /// Memory of the gate for each silent client, in KB.
    pub(crate) idle_kb: f64,
    /// How many silent clients that was measured with.
    pub(crate) idle: usize,
}

/// How much to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Events of the backlog.
    pub(crate) events: u64,
    /// How often it is read each way.
    pub(crate) rounds: usize,
    /// How many single events are committed in a second, and how many in all.
    pub(crate) paced: (u64, u64),
    /// Silent clients.
    pub(crate) idle: usize,
}

/// A lane whose clients hold tokens of an issuer of this process.
struct Measured {
    lane: Lane,
    issuer: Issuer,
    gate: Gate,
    /// Says which sessions were revoked. Without it the gate lets nobody in.
    _revocations: Issuing,
    streams: Vec<StreamId>,
    clients: usize,
}

/// Measures.
pub(crate) async fn run(cluster: &Cluster, extent: Extent) -> anyhow::Result<Cost> {
    let mut measured = Measured::start(cluster, extent.idle).await?;
    let bridge = measured.lane.bridge()?;
    ready(&bridge, LIMIT).await?;
    let (direct_per_second, gated_per_second) = measured.away(extent.events, extent.rounds).await?;
    let (held, live) = measured.live(extent.events, extent.rounds).await?;
    let (direct, gated) = measured.latency(held, extent.paced).await?;
    let idle_kb = measured.idle(extent.idle).await?;
    Ok(Cost {
        direct_per_second,
        gated_per_second,
        live_direct_per_second: live.0,
        live_gated_per_second: live.1,
        direct,
        gated,
        idle_kb,
        idle: extent.idle,
    })
}

/// Memory of a gate for each of so many silent clients, in KB.
pub(crate) async fn idle(cluster: &Cluster, clients: usize) -> anyhow::Result<f64> {
    Measured::start(cluster, clients).await?.idle(clients).await
}

impl Measured {
    /// A lane without a bridge, and a gate for so many silent clients.
    async fn start(cluster: &Cluster, idle: usize) -> anyhow::Result<Self> {
        let lane = Lane::start_on(cluster).await?;
        let issuer = Issuer::start().await?;
        let trusted = json!([issuer.url, "openagents-sync", 1_000]);
        lane.owner()?.call("trust_issuer", trusted).await?;
        let desk = Desk::new(cluster).await?;
        let revocations = desk.bridge(&[]).await?;
        let many = idle.saturating_mul(2).max(1_000).to_string();
        let gate = lane.gate_with(&GateOptions {
            issuer: issuer.url.clone(),
            set: vec![
                ("keys_url", format!("{}/keys", issuer.url)),
                ("bridge_url", revocations.url("")),
                ("address_connections", many.clone()),
                ("address_sockets", "512".to_owned()),
                ("address_burst", many),
            ],
            ..GateOptions::default()
        })?;
        gate.until_ready(true).await?;
        Ok(Self {
            lane,
            issuer,
            gate,
            _revocations: revocations,
            streams: (1..=STREAMS).map(stream).collect(),
            clients: 0,
        })
    }

    /// Clients that read a backlog, in turn.
    async fn away(&mut self, events: u64, rounds: usize) -> anyhow::Result<(f64, f64)> {
        write(&self.lane.authority, &self.streams, events, SIZE).await?;
        anyhow::ensure!(self.lane.published(LIMIT).await, "the backlog was not published");
        let (mut direct, mut gated) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            for (through, rates) in [(false, &mut direct), (true, &mut gated)] {
                let child = self.client(through, None, events, false)?;
                rates.push(events as f64 / child.report::<ClientReport>().await?.seconds_from_start);
            }
        }
        Ok((median(&mut direct), median(&mut gated)))
    }

    /// Clients that follow bulk writers, in turn. Each begins where the last one of its way ended: how fast a backlog is read
    /// does not count here. Returns how many events the streams hold then.
    async fn live(&mut self, events: u64, rounds: usize) -> anyhow::Result<(u64, (f64, f64))> {
        let (mut direct, mut gated, mut held) = (Vec::new(), Vec::new(), events);
        for _ in 0..rounds {
            for (through, db, rates) in [(false, "direct", &mut direct), (true, "gated", &mut gated)] {
                let child = self.client(through, Some(db), held + events, true)?;
                tokio::time::sleep(CATCHES_UP).await;
                let begun_us = now_us();
                let mut writers = JoinSet::new();
                for stream_id in &self.streams {
                    let (authority, stream_id) = (self.lane.authority.clone(), stream_id.clone());
                    let (before, each) = (held / STREAMS as u64, events / STREAMS as u64);
                    writers.spawn(async move { Log::after(&stream_id, SIZE, before).append(&authority, each).await });
                }
                while let Some(written) = writers.join_next().await {
                    written??;
                }
                held += events;
                let applied = child.report::<ClientReport>().await?.applied_at_us;
                let last_us = applied.values().flatten().max().context("a client applied nothing")?;
                rates.push(events as f64 * 1_000_000.0 / (last_us - begun_us) as f64);
            }
        }
        Ok((held, (median(&mut direct), median(&mut gated))))
    }

    /// Two clients that apply the same single events, one of them through the gate.
    async fn latency(&mut self, held: u64, paced: (u64, u64)) -> anyhow::Result<(Percentiles, Percentiles)> {
        let (per_second, events) = paced;
        let until = held + events;
        let children = [
            self.client(false, Some("direct"), until, true)?,
            self.client(true, Some("gated"), until, true)?,
        ];
        let mut writers = JoinSet::new();
        let pace = Duration::from_micros(1_000_000 * STREAMS as u64 / per_second);
        for (at, stream_id) in (0u32..).zip(&self.streams) {
            let (authority, stream_id) = (self.lane.authority.clone(), stream_id.clone());
            let before = held / STREAMS as u64;
            writers.spawn(async move {
                let mut log = Log::after(&stream_id, SIZE, before);
                let begins = tokio::time::Instant::now() + CATCHES_UP;
                let mut beat = tokio::time::interval_at(begins + pace / 4 * at, pace);
                let mut committed_at_us = Vec::new();
                for _ in 0..events / STREAMS as u64 {
                    beat.tick().await;
                    authority.append(&stream_id, &log.new_event()).await?;
                    committed_at_us.push(now_us());
                }
                Ok::<_, anyhow::Error>((stream_id, committed_at_us))
            });
        }
        let mut committed = HashMap::new();
        while let Some(written) = writers.join_next().await {
            let (stream_id, at) = written??;
            committed.insert(stream_id, at);
        }
        let mut figures = Vec::new();
        for child in children {
            let report = child.report::<ClientReport>().await?;
            let mut latencies = Samples::default();
            for (stream_id, committed) in &committed {
                let applied = report
                    .applied_at_us
                    .get(stream_id)
                    .context("a client applied nothing of a stream")?;
                let last = &applied[applied.len().saturating_sub(committed.len())..];
                for (at, from) in last.iter().zip(committed) {
                    latencies.record_us(at - from);
                }
            }
            figures.push(latencies.latency().context("a client applied no single event")?);
        }
        Ok((figures[0], figures[1]))
    }

    /// Clients that say and hear nothing.
    async fn idle(&self, count: usize) -> anyhow::Result<f64> {
        let memory = || resident_kb(self.gate.process.id()).context("the gate is gone");
        let before = memory()?;
        let mut sockets = Vec::new();
        for number in 0..count {
            let session = format!("idle-{number}");
            let token = self.issuer.sign(&self.issuer.claims("7", &session, &["runtime.run.*"]));
            let opened = Socket::open(&self.gate.uri(), &self.lane.name, Some(&token)).await?;
            let mut socket = opened.map_err(|refused| anyhow::anyhow!("{refused:?}"))?;
            socket.until(LIMIT, |_| true).await?;
            sockets.push(socket);
        }
        Ok((memory()?.saturating_sub(before)) as f64 / count as f64)
    }

    /// A client that begins where the last one with this name ended.
    fn client(&mut self, through_gate: bool, name: Option<&str>, until: u64, each: bool) -> anyhow::Result<Child> {
        self.clients += 1;
        let number = self.clients.to_string();
        let path = |name: &str, ending: &str| self.lane.path(&format!("measured-{name}.{ending}"));
        let mut claims = self
            .issuer
            .claims("7", &format!("measured-{}", self.clients), &["runtime.run.*"]);
        claims["exp"] = json!(claims["iat"].as_u64().unwrap_or_default() + 900);
        let token_file = path(&number, "token");
        spacetime_sync_tests::write_secret(&token_file, self.issuer.sign(&claims))?;
        let uri = if through_gate {
            self.gate.uri()
        } else {
            self.lane.server.uri().to_owned()
        };
        let args = ClientArgs {
            uri,
            database: self.lane.name.clone(),
            token_file,
            seal_keys: self.lane.seal_keys_file(),
            db: path(name.unwrap_or(&number), "sqlite"),
            streams: self.streams.clone(),
            until,
            each,
        };
        args.spawn()
    }
}

/// Resident memory of a process in KB. `None` if it is gone.
pub(crate) fn resident_kb(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
