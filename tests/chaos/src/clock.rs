//! Drill: the wall clocks of Postgres, SpacetimeDB, bridge and clients jump, one at a time. The lane uses tokens,
//! because their validity depends on the clock.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::stage::{Setting, Stage};
use crate::{Record, Scale};
use spacetime_sync_tests::clock::Clock;
use spacetime_sync_tests::lane::{BridgeOptions, LaneOptions};

/// Longer than the lifetime of any token.
const JUMP_S: i64 = 3_600;

/// The clocks of all parties.
struct Clocks {
    all: [(&'static str, Clock); 4],
    /// Holds the files of the clocks. Dropped last.
    _folder: tempfile::TempDir,
}

fn clocks() -> anyhow::Result<Clocks> {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::Builder::new()
        .prefix("sync-clock-")
        // Postgres runs as another user, which must be able to read the files.
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir()?;
    let clock = |name| Ok::<_, std::io::Error>((name, Clock::make(folder.path(), name)?));
    Ok(Clocks {
        all: [
            clock("postgres")?,
            clock("spacetimedb")?,
            clock("bridge")?,
            clock("clients")?,
        ],
        _folder: folder,
    })
}

pub(super) async fn jump(scale: Scale, seed: u64, logs: Option<&Path>, record: &mut Record) -> anyhow::Result<()> {
    let clocks = clocks()?;
    let [postgres, spacetimedb, bridge, clients] = clocks.all.each_ref().map(|(_, clock)| clock.environment());
    let setting = Setting {
        lane: LaneOptions {
            environment: spacetimedb,
            tokens: true,
            ..LaneOptions::default()
        },
        bridge: BridgeOptions {
            environment: bridge,
            ..BridgeOptions::default()
        },
        postgres,
        client: clients,
        ..Setting::default()
    };
    let mut stage = Stage::set(setting, seed).await?;
    let played = set_clocks(&mut stage, &clocks, scale, record).await;
    stage.close(played, record, logs).await
}

async fn set_clocks(stage: &mut Stage, clocks: &Clocks, scale: Scale, record: &mut Record) -> anyhow::Result<()> {
    for _ in 0..scale.faults.min(2) {
        for (whose, clock) in &clocks.all {
            for (seconds, way) in [(JUMP_S, "an hour ahead"), (-JUMP_S, "an hour back")] {
                stage.pause().await;
                clock.set(seconds)?;
                record.fault(&format!("clock of {whose} {way}"));
                // Long enough for everybody who uses the clock to read it, and for some connections to break meanwhile.
                let lasts = stage.lasting(scale.longest / 2).max(Duration::from_millis(1_500));
                tokio::time::sleep(lasts / 2).await;
                stage.ways.clients.cut();
                stage.ways.bridge_spacetimedb.cut();
                record.fault("connections cut while a clock is wrong");
                tokio::time::sleep(lasts / 2).await;
                clock.set(0)?;
                eprintln!("  the clock of {whose} was {way}");
                stage.recovers(record, Instant::now()).await?;
            }
        }
    }
    Ok(())
}
