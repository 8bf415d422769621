//! What the engine does in the background: when a segment of its log is full, it takes a snapshot and compresses the
//! segment, which takes a core and the disk for some seconds. What is measured meanwhile tells nothing about the lane.

use std::path::Path;
use std::time::{Duration, Instant};

use spacetime_sync_tests::lane::Lane;
use spacetime_sync_tests::process::{Cpu, Process};

/// How long to wait for it.
const LIMIT: Duration = Duration::from_secs(60);
/// How often to look.
const LOOK: Duration = Duration::from_millis(500);
/// How much of a core the host may need at rest. Two thousand clients that say how they are need half of that, and what the
/// engine does in the background needs twice as much.
const AT_REST: f64 = 0.5;

/// The CPU time of a lane's host so far.
pub(crate) fn cpu(lane: &Lane) -> Cpu {
    lane.server.process().and_then(Process::cpu).unwrap_or_default()
}

/// Waits until the host does nothing in the background.
pub(crate) async fn at_rest(lane: &Lane) {
    let deadline = Instant::now() + LIMIT;
    let mut before = cpu(lane).whole();
    while Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
        let now = cpu(lane).whole();
        if now.saturating_sub(before) < LOOK.mul_f64(AT_REST) {
            return;
        }
        before = now;
    }
}

/// Number of segments of the engine's log.
pub(crate) fn segments(lane: &Lane) -> usize {
    within(lane.folder.path())
}

fn within(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => within(&entry.path()),
            _ => usize::from(entry.file_name().to_string_lossy().ends_with(".stdb.log")),
        })
        .sum()
}
