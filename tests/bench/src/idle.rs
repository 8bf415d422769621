//! Many clients of streams on which nothing happens: the memory of each in every process, and busy streams beside them.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use spacetime_sync_proto::StreamId;
use spacetime_sync_tests::lane::Lane;

use crate::busy::{self, cpu_of};
use crate::crowd::{Behaviour, Crowd, Member};
use crate::gate;
use crate::report::{Report, two};

const LIMIT: Duration = Duration::from_secs(600);
/// Processes that the clients are spread over. The host's memory is read after each.
const CROWDS: usize = 4;
/// Clients of a small process, whose memory is that of a process without clients and a few of them.
const FEW: usize = 10;

/// How long to watch what the clients need while nothing happens.
const QUIET: Duration = Duration::from_secs(10);

/// How much to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Clients that rest.
    clients: usize,
    /// What the busy streams beside them carry.
    busy: busy::Extent,
}

pub(crate) const FULL: Extent = Extent {
    clients: 2_000,
    busy: busy::Extent {
        bulk: 200_000,
        paced: (1_000, 10_000),
        rounds: 3,
    },
};

pub(crate) const QUICK: Extent = Extent {
    clients: 400,
    busy: busy::Extent {
        bulk: 50_000,
        paced: (1_000, 3_000),
        rounds: 1,
    },
};

/// What a client costs that rests, with a stream of its own.
struct Each {
    /// Memory of each in the host and in its own process, in KB.
    host_kb: f64,
    client_kb: f64,
    /// Microseconds of CPU in each second for each of them, in the host and in its own process.
    host_us: f64,
    client_us: f64,
}

fn host(lane: &Lane) -> anyhow::Result<u32> {
    Ok(lane.server.process().context("the host is not ours")?.id())
}

fn memory_kb(process: u32) -> anyhow::Result<u64> {
    gate::resident_kb(process).context("a process is gone")
}

async fn crowd(lane: &Lane, name: &str, members: Vec<Member>) -> anyhow::Result<Crowd> {
    let mut crowd = Crowd::start(lane, name, members, Behaviour::default())?;
    tokio::time::timeout(LIMIT, crowd.live())
        .await
        .with_context(|| format!("the clients of {name} did not become live"))??;
    Ok(crowd)
}

/// Connects the clients, a process after the other.
async fn rest(lane: &Lane, clients: usize) -> anyhow::Result<(Vec<Crowd>, Each)> {
    lane.sql(&format!(
        "select runtime.sync_append('bench.rests.' || n, 'first', 'run.event', convert_to('first', 'UTF8')) \
         from generate_series(1, {clients}) n"
    ))
    .await?;
    anyhow::ensure!(lane.published(LIMIT).await, "the streams were not published");
    let mut members = Vec::new();
    for client in 1..=clients {
        let stream_id = StreamId::new(&format!("bench.rests.{client}"))?;
        members.push(Member::new(lane, &[stream_id]).await?);
    }
    let few_kb = memory_kb(crowd(lane, "few", members[..FEW].to_vec()).await?.id()?)?;
    let (mut crowds, mut held_kb) = (Vec::new(), Vec::new());
    let in_one = clients.div_ceil(CROWDS);
    for (number, members) in members.chunks(in_one).enumerate() {
        crowds.push(crowd(lane, &format!("rests-{number}"), members.to_vec()).await?);
        held_kb.push(memory_kb(host(lane)?)?);
    }
    let processes = crowds.iter().map(Crowd::id).collect::<anyhow::Result<Vec<_>>>()?;
    let used = || {
        let of_clients: Duration = processes.iter().map(|process| cpu_of(*process)).sum();
        Ok::<_, anyhow::Error>((cpu_of(host(lane)?), of_clients))
    };
    let before = used()?;
    tokio::time::sleep(QUIET).await;
    let after = used()?;
    let us = |spent: Duration| spent.as_secs_f64() * 1e6 / QUIET.as_secs_f64() / clients as f64;
    // The first process of clients also pays for what the host needs only once.
    let (first_kb, last_kb) = (held_kb[0], held_kb[held_kb.len() - 1]);
    let each = Each {
        host_kb: last_kb.saturating_sub(first_kb) as f64 / (clients - in_one) as f64,
        client_kb: memory_kb(processes[0])?.saturating_sub(few_kb) as f64 / (in_one - FEW) as f64,
        host_us: us(after.0.saturating_sub(before.0)),
        client_us: us(after.1.saturating_sub(before.1)),
    };
    Ok((crowds, each))
}

impl Report {
    pub(crate) async fn idle(&mut self, extent: Extent) -> anyhow::Result<()> {
        let clients = extent.clients;
        self.say(&format!(
            "{clients} clients of streams on which nothing happens, and busy streams beside them"
        ));
        let (beside, each) = busy::beside(&self.cluster, extent.busy, async |lane| rest(lane, clients).await).await?;
        self.say(&format!(
            "  memory of each: {:.1} KB in the host, {:.1} KB in its own process; CPU of each in a second: {:.0} µs in the host, \
             {:.0} µs in its own process",
            each.host_kb, each.client_kb, each.host_us, each.client_us
        ));
        let ratio = self.compared(&beside);
        let gate_kb = gate::idle(&self.cluster, clients).await?;
        self.say(&format!(
            "  {gate_kb:.1} KB in a gate for each of {clients} silent clients"
        ));
        self.put(
            "idle",
            json!({
                "clients": clients,
                "host_kb": two(each.host_kb),
                "client_kb": two(each.client_kb),
                "gate_kb": two(gate_kb),
                "host_us_per_second": two(each.host_us),
                "client_us_per_second": two(each.client_us),
                "busy": beside,
                "ratio": ratio,
            }),
        );
        Ok(())
    }
}
