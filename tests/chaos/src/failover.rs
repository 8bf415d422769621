//! Drill: Postgres dies, and a standby that has every commit takes over.

use std::time::Instant;

use crate::stage::Stage;
use crate::{Record, Scale};

pub(super) async fn failover(stage: &mut Stage, scale: Scale, record: &mut Record) -> anyhow::Result<()> {
    for _ in 0..scale.faults.min(2) {
        let standby = stage.cluster.start_standby().await?;
        let addr = standby
            .addr()
            .ok_or_else(|| anyhow::anyhow!("the standby has no address"))?;
        stage.pause().await;
        let died = Instant::now();
        stage.cluster.kill()?;
        record.fault("postgres killed and its standby promoted");
        standby.promote().await?;
        for way in [&stage.ways.writers, &stage.ways.bridge_postgres] {
            way.redirect(addr);
        }
        let ended = Instant::now();
        record.figure("promoted_after_ms", (ended - died).as_millis() as u64);
        stage.cluster = standby;
        stage.recovers(record, ended).await?;
        stage.published_is_held().await?;
    }
    Ok(())
}
