//! What an interruption of the network costs: how long after the bridge lost its link the first new event arrives.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use spacetime_sync_authority::NewEvent;
use spacetime_sync_proto::{IdempotencyKey, Kind};
use spacetime_sync_tests::lane::{BridgeOptions, Lane, stream};
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::proxy::Proxy;
use spacetime_sync_tests::until;

/// Number of streams created in one transaction.
const CHUNK: usize = 5_000;
/// How long publishing all streams, and a reconnect, may take.
const LIMIT: Duration = Duration::from_secs(600);

/// The result.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reconnect {
    /// The time to publish one event of each stream over the first link.
    pub(crate) publish: Duration,
    /// The time from a cut of the link until a client has the next event: the median. The bridge can reconnect at once.
    pub(crate) delivered: Duration,
    /// The longest of these times.
    pub(crate) longest: Duration,
}

/// Cuts the link of a bridge that carries this many streams, each with one event.
pub(crate) async fn run(cluster: &Cluster, streams: usize, cuts: usize) -> anyhow::Result<Reconnect> {
    let lane = Lane::start_on(cluster).await?;
    let proxy = Proxy::start(lane.server.addr()?).await?;
    for first in (1..=streams).step_by(CHUNK) {
        let last = streams.min(first + CHUNK - 1);
        lane.sql(&format!(
            "select runtime.sync_append('bench.reconnect.' || n, 'first', 'run.event', convert_to('first', 'UTF8')) \
             from generate_series({first}, {last}) n"
        ))
        .await?;
    }
    let started = Instant::now();
    let bridge = lane.bridge_with(&BridgeOptions {
        server_at: Some(proxy.addr()),
        ..BridgeOptions::default()
    })?;
    anyhow::ensure!(lane.published(LIMIT).await, "{streams} streams were not published");
    let publish = started.elapsed();

    let live = stream(1);
    let mut client = lane.client(std::slice::from_ref(&live)).await?;
    client.start()?;
    client.until_live(LIMIT).await?;
    let mut delivered = Vec::new();
    for cut in 0..cuts {
        let event = NewEvent {
            idempotency_key: IdempotencyKey::new(&format!("cut-{cut}"))?,
            kind: Kind::new("run.event")?,
            payload: "after the cut".into(),
        };
        let before = client.applied();
        proxy.cut();
        let started = Instant::now();
        lane.authority.append(&live, &event).await?;
        let applied = until(LIMIT, || client.applied() > before).await;
        anyhow::ensure!(
            applied,
            "nothing was delivered within {LIMIT:?} of a cut: {}",
            bridge.process.log()
        );
        delivered.push(started.elapsed());
        // The next cut must meet a bridge that has finished with this one.
        bridge.until("/healthz", LIMIT, |well, _| well).await?;
        anyhow::ensure!(lane.published(LIMIT).await, "not everything was published after a cut");
    }
    delivered.sort();
    Ok(Reconnect {
        publish,
        delivered: delivered[delivered.len() / 2],
        longest: *delivered.last().context("expected at least one cut")?,
    })
}
