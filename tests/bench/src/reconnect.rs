//! What a blip of the network costs: how long the first new event takes after the bridge has lost its link.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use spacetime_sync_authority::NewEvent;
use spacetime_sync_proto::{IdempotencyKey, Kind};
use spacetime_sync_tests::lane::{BridgeOptions, Lane, stream};
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::proxy::Proxy;
use spacetime_sync_tests::until;

/// Streams that are made in one transaction.
const CHUNK: usize = 5_000;
/// How long publishing all streams may take, and a reconnect.
const LIMIT: Duration = Duration::from_secs(600);

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reconnect {
    /// How long it took to publish one event of each stream, with the first link.
    pub(crate) publish: Duration,
    /// From the cut of the link, which can be made anew at once, to the next event at the client: the middle of some cuts.
    pub(crate) delivered: Duration,
    /// The longest.
    pub(crate) longest: Duration,
}

/// Cuts the link of a bridge that has so many streams, each with one event.
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
        lane.authority.append_batch(&live, &[event]).await?;
        let applied = until(LIMIT, || client.applied() > before).await;
        anyhow::ensure!(
            applied,
            "nothing was delivered within {LIMIT:?} of a cut: {}",
            bridge.process.log()
        );
        delivered.push(started.elapsed());
        // The next cut meets a bridge that is done with this one.
        bridge.until("/healthz", LIMIT, |well, _| well).await?;
        anyhow::ensure!(lane.published(LIMIT).await, "the lane did not settle");
    }
    delivered.sort();
    Ok(Reconnect {
        publish,
        delivered: delivered[delivered.len() / 2],
        longest: *delivered.last().context("no cut was made")?,
    })
}
