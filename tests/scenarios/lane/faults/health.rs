//! Health: red when work stands still, green otherwise, and cheap while nothing happens.

use std::time::{Duration, Instant};

use serde_json::Value;
use spacetime_sync_tests::lane::{BridgeOptions, wait};
use spacetime_sync_tests::proxy::{Direction, Proxy};

use super::{SOON, Scene, ready};

/// The bridge turns red after this time of work without progress.
const STALL: Duration = Duration::from_millis(1_500);
/// How long the idle bridge is watched, and the share of a core that it may use.
const IDLE: (Duration, f64) = (Duration::from_secs(8), 0.01);
/// Latency from commit to application of the first event after the idle time.
const FIRST_EVENT_MS: f64 = 500.0;

#[tokio::test(flavor = "multi_thread")]
async fn health_is_red_when_work_stands_still_though_every_process_is_up() {
    let mut scene = Scene::start(1).await;
    let proxy = Proxy::start(scene.lane.server.addr().unwrap()).await.unwrap();
    let options = BridgeOptions {
        server_at: Some(proxy.addr()),
        set: vec![
            ("bridge.stall_after_ms", STALL.as_millis().to_string()),
            // So that only the missing progress can turn the bridge red.
            ("bridge.ack_deadline_ms", "600000".to_owned()),
        ],
        ..BridgeOptions::default()
    };
    let bridge = scene.lane.bridge_with(&options).unwrap();
    ready(&bridge).await;
    scene.write();
    for direction in [Direction::ToClient, Direction::ToTarget] {
        scene.pause().await;
        bridge.until("/healthz", SOON, |healthy, _| healthy).await.unwrap();
        proxy.stall(direction);
        let stands_still = |healthy: bool, health: &Value| {
            let problems = health["problems"].as_array().into_iter().flatten();
            let mut problems = problems.filter_map(Value::as_str);
            !healthy && problems.any(|problem| problem.starts_with("work and no progress"))
        };
        let health = bridge.until("/healthz", SOON, stands_still).await.unwrap();
        assert!(
            health["stalled_ms"].as_u64() >= Some(STALL.as_millis() as u64),
            "{health}"
        );
        assert!(bridge.process.is_running() && health["ready"] == true, "{health}");
        proxy.resume(direction);
        bridge.until("/healthz", SOON, |healthy, _| healthy).await.unwrap();
    }
    scene.settle().await;
    // Watches the idle bridge for longer than work may stand still.
    let settled = Instant::now();
    while settled.elapsed() < 2 * STALL {
        let (healthy, health) = bridge.ask("/healthz").await.unwrap();
        assert!(healthy, "{health}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_bridge_costs_next_to_nothing_and_is_awake_at_once() {
    let mut scene = Scene::start(1).await;
    let bridge = scene.lane.bridge().unwrap();
    scene.write();
    scene.pause().await;
    scene.settle().await;
    let cpu = || bridge.process.cpu().unwrap().whole();
    let (started, before) = (Instant::now(), cpu());
    wait(2 * IDLE.0, "the end of the idle time", || started.elapsed() >= IDLE.0).await;
    let share = (cpu() - before).as_secs_f64() / started.elapsed().as_secs_f64();
    eprintln!("the idle bridge used {:.2} % of a core", share * 100.0);
    assert!(share < IDLE.1, "the idle bridge used {:.2} % of a core", share * 100.0);

    let wakes = async || {
        let metrics = bridge.ask("/internal/v1/spacetime/sync/metrics").await.unwrap().1;
        metrics["counters"]["wakes"].as_u64().unwrap()
    };
    let (stream_id, woken) = (scene.streams[0].clone(), wakes().await);
    let head = scene.lane.recorded(&scene.streams).await.unwrap()[0];
    scene.write();
    let client = &scene.clients[0];
    wait(SOON, "an event", || {
        client.saved().is_ok_and(|saved| saved[0].last > head)
    })
    .await;
    assert!(
        wakes().await > woken,
        "the append did not wake the bridge: it polled by itself"
    );
    let latency = client.latencies_us(&stream_id, head + 1, head + 1).unwrap()[0] as f64 / 1_000.0;
    eprintln!("the first event was applied after {latency:.0} ms");
    assert!(
        latency < FIRST_EVENT_MS,
        "the first event was applied after {latency:.0} ms"
    );
    scene.settle().await;
}
