//! The drills that no other scenario covers, with one fault of each kind.

use rand::Rng;
use spacetime_sync_chaos::{Drill, Held, Scale, perform};

/// Whether all servers belong to this run, so that a drill may break them.
fn is_ours() -> bool {
    let foreign = ["DATABASE_URL", "SYNC_STDB_URL"]
        .into_iter()
        .find(|name| std::env::var_os(name).is_some());
    if let Some(foreign) = foreign {
        eprintln!("skipped: the server of {foreign} is not ours to break");
    }
    foreign.is_none()
}

async fn holds(drill: Drill) {
    if !is_ours() {
        return;
    }
    let seed = std::env::var("SYNC_SEED").map_or_else(|_| rand::rng().random(), |seed| seed.parse().unwrap());
    eprintln!("SYNC_SEED={seed}");
    let outcome = perform(drill, Scale::QUICK, seed, None).await;
    assert_ne!(outcome.verdict, Held::Failed, "{outcome}\n{outcome:#?}");
    eprintln!("{outcome}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_recovers_from_the_authority_what_spacetimedb_has_lost() {
    holds(Drill::StaleCursor).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bridge_notices_a_vanished_postgres() {
    holds(Drill::HalfOpenBridgePostgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bridge_notices_a_vanished_spacetimedb() {
    holds(Drill::HalfOpenBridgeSpacetimedb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_notice_a_vanished_spacetimedb() {
    holds(Drill::HalfOpenClientSpacetimedb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_between_bridge_and_postgres_heals_by_itself() {
    holds(Drill::PartitionBridgePostgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lane_survives_a_full_disk_of_spacetimedb() {
    holds(Drill::DiskFullHost).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_waits_while_its_disk_is_full() {
    holds(Drill::DiskFullClient).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_from_a_killed_postgres() {
    holds(Drill::PostgresFailover).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lane_survives_clock_jumps() {
    holds(Drill::ClockJump).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_clients_recover_from_a_reconnect_storm() {
    holds(Drill::ReconnectStorm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_of_assignments_survives_a_spacetimedb_that_is_wiped_under_them() {
    holds(Drill::WipedAssignments).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lane_does_not_notice_relays_that_lie_or_a_mirror_that_dies() {
    holds(Drill::LyingRelays).await;
}
