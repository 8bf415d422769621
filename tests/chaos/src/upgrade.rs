//! Drill: module, bridge and a client are put back to the previous release and updated again, one part after another and in any
//! order, while a client of each release is connected.

use std::time::{Duration, Instant};

use rand::seq::SliceRandom as _;
use spacetime_sync_stdb::admin::Breaking;
use spacetime_sync_tests::release::{PREVIOUS_PROGRAMS, Release};

use crate::stage::Stage;
use crate::{Record, Scale, Skipped};

/// How long a client may take until it is live.
const SOON: Duration = Duration::from_secs(20);

/// What is replaced by itself.
#[derive(Debug, Clone, Copy)]
enum Part {
    Module,
    Bridge,
    Client,
}

pub(super) async fn upgrade(stage: &mut Stage, scale: Scale, record: &mut Record) -> anyhow::Result<()> {
    if !Release::Previous.has_programs() {
        return Err(Skipped("the programs of the previous release are missing: scripts/chaos builds them").into());
    }
    // The other client stays of this release.
    become_of(stage, Release::Previous)?;
    stage.clients[1].until_live(SOON).await?;
    let mut parts = [Part::Module, Part::Bridge, Part::Client];
    for _ in 0..scale.faults {
        for release in [Release::Previous, Release::Current] {
            parts.shuffle(&mut stage.random);
            for part in parts {
                stage.pause().await;
                let ended = replace(stage, part, release, record).await?;
                stage.recovers(record, ended).await?;
                for client in &stage.clients {
                    let status = client.status();
                    anyhow::ensure!(status["phase"] != "stopped", "a client has stopped: {status}");
                }
            }
        }
        // The client of the previous release is back for the next round.
        become_of(stage, Release::Previous)?;
    }
    record.figure("previous_programs", std::env::var(PREVIOUS_PROGRAMS)?);
    Ok(())
}

/// Replaces a part by that of another release. Returns when it was replaced.
async fn replace(stage: &mut Stage, part: Part, to: Release, record: &mut Record) -> anyhow::Result<Instant> {
    let change = match to {
        Release::Previous => "put back",
        Release::Current => "updated",
    };
    match part {
        Part::Module => {
            record.fault(&format!("module {change}"));
            stage
                .lane
                .publish_module(to.module()?, Breaking::DisconnectClients)
                .await?;
        }
        Part::Bridge => {
            record.fault(&format!("bridge {change}"));
            let code = stage.bridge.stop().await?;
            anyhow::ensure!(code == 0, "the bridge ended with {code}");
            stage.options.release = to;
            stage.start_bridge()?;
        }
        Part::Client => {
            record.fault(&format!("client {change}"));
            become_of(stage, to)?;
        }
    }
    Ok(Instant::now())
}

/// Replaces the second client.
fn become_of(stage: &mut Stage, release: Release) -> anyhow::Result<()> {
    let client = &mut stage.clients[1];
    client.kill();
    client.become_of(release);
    client.start()
}
