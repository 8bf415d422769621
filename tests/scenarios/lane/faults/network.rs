//! Connections that are cut, refused, or silent in one direction, between each pair of processes.

use std::time::Duration;

use rand::Rng;
use rand::seq::SliceRandom;
use spacetime_sync_tests::lane::{BridgeOptions, wait};
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::proxy::{Direction, Proxy};

use super::{FAULTS, Pace, SOON, Scene, ready};

const DIRECTIONS: [Direction; 2] = [Direction::ToTarget, Direction::ToClient];

impl Scene {
    async fn proxy_to_server(&self) -> Proxy {
        Proxy::start(self.lane.server.addr().unwrap()).await.unwrap()
    }

    fn direction(&mut self) -> Direction {
        DIRECTIONS[self.random.random_range(0..2)]
    }
}

/// A proxy in front of Postgres. `None`, with a message, if Postgres cannot be put behind one.
async fn proxy_to_postgres() -> Option<Proxy> {
    let addr = Cluster::shared().await.addr();
    if addr.is_none() {
        eprintln!("skipped: the server of DATABASE_URL cannot be put behind a proxy");
    }
    Some(Proxy::start(addr?).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_connections_neither_lose_nor_duplicate_events() {
    let Some(to_postgres) = proxy_to_postgres().await else {
        return;
    };
    let mut scene = Scene::start(1).await;
    let (of_bridge, of_client) = (scene.proxy_to_server().await, scene.proxy_to_server().await);
    let options = BridgeOptions {
        authority_at: Some(to_postgres.addr()),
        server_at: Some(of_bridge.addr()),
        ..BridgeOptions::default()
    };
    let bridge = scene.lane.bridge_with(&options).unwrap();
    let mut client = scene.client().await.at(of_client.addr()).option("--retry-ms", 1_000);
    client.start().unwrap();
    scene.clients.push(client);
    scene.write();
    let mut faults: Vec<&Proxy> = [&to_postgres, &of_bridge, &of_client].repeat(FAULTS);
    faults.shuffle(&mut scene.random);
    for proxy in faults {
        wait(SOON, "a connection to cut", || proxy.counts().open > 0).await;
        let wait = scene.random.random_range(0..300);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        if scene.random_bool() {
            proxy.refuse().await;
            proxy.cut();
            scene.pause().await;
            proxy.accept().await;
        } else {
            proxy.cut();
        }
    }
    scene.settle().await;
    assert!(bridge.process.is_running());
}

/// A link may break while a call is being sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_reconnects_at_once_whenever_its_link_breaks() {
    let mut scene = Scene::start(1).await;
    let proxy = scene.proxy_to_server().await;
    let options = BridgeOptions {
        server_at: Some(proxy.addr()),
        // So that the bridge comes back because the link reports its end, not because an answer is overdue.
        set: vec![("bridge.ack_deadline_ms", "600000".to_owned())],
        ..BridgeOptions::default()
    };
    scene.write_at(Pace::Dense);
    for _ in 0..5 * FAULTS {
        let bridge = scene.lane.bridge_with(&options).unwrap();
        ready(&bridge).await;
        let pause = scene.random.random_range(0..20);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        proxy.cut();
        let back = bridge.until("/internal/v1/spacetime/sync/metrics", SOON, |_, metrics| {
            metrics["counters"]["links"].as_u64() > Some(1)
        });
        back.await.unwrap();
    }
    let _bridge = scene.lane.bridge().unwrap();
    scene.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_notices_that_spacetimedb_went_silent() {
    let mut scene = Scene::start(1).await;
    let proxy = scene.proxy_to_server().await;
    let second = || "1000".to_owned();
    let options = BridgeOptions {
        server_at: Some(proxy.addr()),
        set: vec![
            ("bridge.ack_deadline_ms", second()),
            ("bridge.connect_deadline_ms", second()),
        ],
        ..BridgeOptions::default()
    };
    let bridge = scene.lane.bridge_with(&options).unwrap();
    scene.write();
    for _ in 0..FAULTS {
        ready(&bridge).await;
        scene.pause().await;
        let direction = scene.direction();
        proxy.stall(direction);
        bridge.until("/readyz", SOON, |ready, _| !ready).await.unwrap();
        scene.published_is_held().await;
        scene.pause().await;
        proxy.resume(direction);
    }
    scene.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_notices_that_spacetimedb_went_silent() {
    let mut scene = Scene::start(1).await;
    let proxy = scene.proxy_to_server().await;
    let client = scene.client().await.at(proxy.addr());
    let mut client = client.option("--silence-ms", 1_000).option("--retry-ms", 500);
    client.start().unwrap();
    let _bridge = scene.lane.bridge().unwrap();
    scene.write();
    for _ in 0..FAULTS {
        client.until_live(SOON).await.unwrap();
        scene.pause().await;
        let silences = client.log().matches(r#""reason":"silence""#).count();
        proxy.stall(Direction::ToClient);
        let noticed = || client.log().matches(r#""reason":"silence""#).count() > silences;
        wait(SOON, "the silence", noticed).await;
        proxy.resume(Direction::ToClient);
        // Silence in the other direction alone keeps no event away.
        client.until_live(SOON).await.unwrap();
        proxy.stall(Direction::ToTarget);
        let applied = client.applied();
        wait(SOON, "events", || client.applied() > applied).await;
        proxy.resume(Direction::ToTarget);
    }
    scene.clients.push(client);
    scene.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_survives_a_silent_postgres() {
    let Some(proxy) = proxy_to_postgres().await else { return };
    let mut scene = Scene::start(1).await;
    let options = BridgeOptions {
        authority_at: Some(proxy.addr()),
        set: vec![("bridge.stall_after_ms", "500".to_owned())],
        ..BridgeOptions::default()
    };
    let bridge = scene.lane.bridge_with(&options).unwrap();
    scene.write();
    for _ in 1..FAULTS {
        ready(&bridge).await;
        scene.pause().await;
        let direction = scene.direction();
        proxy.stall(direction);
        bridge.until("/healthz", SOON, |healthy, _| !healthy).await.unwrap();
        scene.pause().await;
        proxy.resume(direction);
        bridge.until("/healthz", SOON, |healthy, _| healthy).await.unwrap();
    }
    // The silence lasts until the bridge gives up the lead. It must take it again afterwards.
    proxy.stall(Direction::ToClient);
    bridge.until("/readyz", SOON, |ready, _| !ready).await.unwrap();
    proxy.resume(Direction::ToClient);
    scene.settle().await;
}
