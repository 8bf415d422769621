//! Many subscribers of one stream: what each of them gets, what all of them get together, and what SpacetimeDB needs for it.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;
use spacetime_sync_tests::figures::rate;
use spacetime_sync_tests::postgres::Cluster;

use crate::busy::cpu_of;
use crate::crowd::{Behaviour, Crowd};
use crate::report::Report;
use crate::stage::Stage;

/// Processes that the clients of a run are spread over.
const CROWDS: usize = 4;
/// Parts of a run after each of which the host's memory is read.
const PARTS: u64 = 4;

/// How much to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// How many subscribers, and how many events in each quarter of the run.
    pub(crate) runs: &'static [(usize, u64)],
    /// Clients that were away, and how many events there are at first. Then there are twice as many.
    pub(crate) away: (usize, u64),
}

pub(crate) const FULL: Extent = Extent {
    runs: &[(1, 100_000), (20, 50_000), (200, 10_000)],
    away: (20, 200_000),
};

pub(crate) const QUICK: Extent = Extent {
    runs: &[(1, 25_000), (20, 15_000), (200, 3_000)],
    away: (20, 50_000),
};

/// What a run found.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Fan {
    /// Subscribers.
    pub(crate) clients: usize,
    /// Events.
    pub(crate) events: u64,
    /// Events per second of each subscriber, from the first commit until the last of them has applied the last event.
    pub(crate) each_per_second: f64,
    /// The sum over all subscribers.
    pub(crate) deliveries_per_second: f64,
    /// Microseconds of the host's CPU for each delivery.
    pub(crate) host_us: f64,
    /// Microseconds of the clients' CPU for each delivery.
    pub(crate) client_us: f64,
    /// Peak memory of the host in MB when the subscribers are live, and after each quarter of the events.
    pub(crate) host_mb: Vec<u64>,
}

/// Memory of the host while clients catch up.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Away {
    /// Clients that catch up together.
    pub(crate) clients: usize,
    /// Events that each of them reads.
    pub(crate) events: u64,
    /// Events per second, over all clients, from their start until the last is done.
    pub(crate) deliveries_per_second: f64,
    /// Memory of the host before, and its peak, in MB.
    pub(crate) host_mb: [u64; 2],
}

/// A lane whose stream holds one event.
async fn filled(cluster: &Cluster) -> anyhow::Result<Stage> {
    let mut stage = Stage::start(cluster).await?;
    stage.write(1).await?;
    stage.published().await?;
    Ok(stage)
}

/// Processes with so many clients of the stream.
async fn crowds(stage: &mut Stage, clients: usize, behaviour: Behaviour) -> anyhow::Result<Vec<Crowd>> {
    let mut members = Vec::new();
    for _ in 0..clients {
        members.push(stage.member().await?);
    }
    let members = members.chunks(clients.div_ceil(CROWDS));
    members
        .map(|members| stage.crowd(members.to_vec(), behaviour))
        .collect()
}

/// Subscribers that are live while a bulk writer commits, in quarters of so many events.
pub(crate) async fn live(cluster: &Cluster, clients: usize, part: u64) -> anyhow::Result<Fan> {
    let mut stage = filled(cluster).await?;
    let behaviour = Behaviour {
        until: Some(stage.held() + PARTS * part),
        mark_every: Some(part),
        ..Behaviour::default()
    };
    let mut crowds = crowds(&mut stage, clients, behaviour).await?;
    for crowd in &mut crowds {
        crowd.live().await?;
    }
    let processes = crowds.iter().map(Crowd::id).collect::<anyhow::Result<Vec<_>>>()?;
    let clients_cpu = || processes.iter().map(|process| cpu_of(*process)).sum::<Duration>();
    let before = (stage.host_cpu()?, clients_cpu());
    let mut host_mb = vec![stage.memory()?.1];
    let started = Instant::now();
    for number in 1..=PARTS {
        stage.write(part).await?;
        for crowd in &mut crowds {
            crowd.reached(number * part).await?;
        }
        host_mb.push(stage.memory()?.1);
    }
    let (took, after) = (started.elapsed(), (stage.host_cpu()?, clients_cpu()));
    for crowd in crowds {
        crowd.done().await?;
    }
    let events = PARTS * part;
    let deliveries = events * clients as u64;
    let us = |cpu: Duration| cpu.as_secs_f64() * 1e6 / deliveries as f64;
    Ok(Fan {
        clients,
        events,
        each_per_second: rate(events, took),
        deliveries_per_second: rate(deliveries, took),
        host_us: us(after.0.saturating_sub(before.0)),
        client_us: us(after.1.saturating_sub(before.1)),
        host_mb,
    })
}

/// Clients that read together what is held, once, and again when there is twice as much.
pub(crate) async fn away(cluster: &Cluster, clients: usize, events: u64) -> anyhow::Result<Vec<Away>> {
    let mut stage = filled(cluster).await?;
    let mut found = Vec::new();
    for half in 1..=2 {
        stage.write(events).await?;
        stage.published().await?;
        let before = stage.memory()?.0;
        let behaviour = Behaviour {
            until: Some(stage.held()),
            ..Behaviour::default()
        };
        let started = Instant::now();
        for crowd in crowds(&mut stage, clients, behaviour).await? {
            crowd.done().await?;
        }
        let took = started.elapsed();
        found.push(Away {
            clients,
            events: half * events,
            deliveries_per_second: rate(half * events * clients as u64, took),
            host_mb: [before, stage.memory()?.1],
        });
    }
    Ok(found)
}

impl Report {
    pub(crate) async fn fan(&mut self, extent: Extent) -> anyhow::Result<()> {
        self.say("subscribers of one stream while a bulk writer commits, 512 B");
        let mut runs = Vec::new();
        for (clients, part) in extent.runs {
            let fan = live(&self.cluster, *clients, *part).await?;
            let memory: Vec<_> = fan.host_mb.iter().map(u64::to_string).collect();
            self.say(&format!(
                "  {clients:>4}: {:>6.0} each, {:>7.0} deliveries per second; CPU per delivery: host {:.2} µs, client {:.2} µs; \
                 peak memory of the host at first and after each quarter of {} events: {} MB",
                fan.each_per_second,
                fan.deliveries_per_second,
                fan.host_us,
                fan.client_us,
                fan.events,
                memory.join(", ")
            ));
            runs.push(fan);
        }
        let (clients, events) = extent.away;
        self.say(&format!("{clients} clients that were away, together"));
        let catches_up = away(&self.cluster, clients, events).await?;
        for away in &catches_up {
            let [before, peak] = away.host_mb;
            self.say(&format!(
                "  {} events: {:.0} deliveries per second; memory of the host {before} MB before, at most {peak} MB",
                away.events, away.deliveries_per_second
            ));
        }
        self.put("fan", json!({ "live": runs, "away": catches_up }));
        Ok(())
    }
}
