//! See `scripts/parity`: runs a lane under load, so that `spacetime-sync parity` has something to compare.

use std::process::ExitCode;
use std::time::Duration;

use spacetime_sync_tests::lane::{BridgeOptions, Lane};
use spacetime_sync_tests::load::Pace;
use spacetime_sync_tests::port;
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::process::built;
use spacetime_sync_tests::scene::{Scene, ready};

const SOON: Duration = Duration::from_secs(60);
/// Events that each client has applied before the comparison starts.
const EVENTS: u64 = 5_000;

/// Takes the arguments of `spacetime-sync parity`.
#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let cluster = Cluster::start().await?;
    let mut scene = Scene::new(Lane::start_on(&cluster).await?, 7);
    let bridge = scene.lane.bridge()?;
    ready(&bridge, SOON).await?;
    for _ in 0..2 {
        let mut client = scene.client().await?;
        client.start()?;
        scene.clients.push(client);
    }
    scene.write_bulk(EVENTS, 1_000).await?;
    scene.write(Pace::Mixed);
    for client in &scene.clients {
        client.until_applied(EVENTS, SOON).await?;
    }
    eprintln!("a lane with two clients and load is running");
    let environment = scene.lane.environment(&BridgeOptions::default(), port::free()?)?;
    let mut command = tokio::process::Command::new(built("spacetime-sync"));
    command
        .arg("parity")
        .args(["--client-table", "applied"])
        .envs(environment);
    for client in &scene.clients {
        command.arg("--client").arg(client.store());
    }
    let status = command
        .args(std::env::args_os().skip(1))
        .kill_on_drop(true)
        .status()
        .await?;
    scene.stop_writing().await?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
