//! Drills: networks that partition and peers that vanish, between each pair of parties.

use std::time::Instant;

use crate::stage::Stage;
use crate::{Record, Scale};
use spacetime_sync_tests::proxy::{Direction, Proxy};

/// The two parties that the fault separates.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pair {
    BridgePostgres,
    BridgeSpacetimedb,
    ClientSpacetimedb,
}

impl Pair {
    fn way(self, stage: &Stage) -> &Proxy {
        match self {
            Self::BridgePostgres => &stage.ways.bridge_postgres,
            Self::BridgeSpacetimedb => &stage.ways.bridge_spacetimedb,
            Self::ClientSpacetimedb => &stage.ways.clients,
        }
    }
}

pub(super) async fn partition(stage: &mut Stage, scale: Scale, record: &mut Record, pair: Pair) -> anyhow::Result<()> {
    use Direction::{ToClient, ToTarget};
    for number in 0..scale.faults {
        for (kind, silent) in [
            ("nothing reaches the server", &[ToTarget][..]),
            ("nothing comes back", &[ToClient]),
            ("nothing either way", &[ToTarget, ToClient]),
        ] {
            stage.pause().await;
            // The first partition lasts longer than any timeout.
            let lasts = if number == 0 {
                scale.longest
            } else {
                stage.lasting(scale.longest / 2)
            };
            let way = pair.way(stage);
            silent.iter().for_each(|direction| way.stall(*direction));
            record.fault(kind);
            tokio::time::sleep(lasts).await;
            silent.iter().for_each(|direction| way.resume(*direction));
            stage.recovers(record, Instant::now()).await?;
        }
        stage.pause().await;
        let lasts = stage.lasting(scale.longest / 2);
        let way = pair.way(stage);
        way.refuse().await;
        way.cut();
        record.fault("connections reset and refused");
        tokio::time::sleep(lasts).await;
        way.accept().await;
        stage.recovers(record, Instant::now()).await?;
    }
    Ok(())
}

pub(super) async fn half_open(stage: &mut Stage, scale: Scale, record: &mut Record, pair: Pair) -> anyhow::Result<()> {
    for _ in 0..scale.faults {
        stage.pause().await;
        pair.way(stage).vanish();
        record.fault("peer vanished without a word");
        // The fault has no duration, because new connections work at once. The time to notice counts as recovery.
        stage.recovers(record, Instant::now()).await?;
    }
    Ok(())
}
