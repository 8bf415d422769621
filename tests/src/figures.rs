//! Figures of a run, and their presentation.

use std::time::{Duration, Instant};

/// Events per second.
pub fn rate(events: u64, took: Duration) -> f64 {
    events as f64 / took.as_secs_f64().max(1e-9)
}

/// The value below which this percentage of the values lies.
pub fn percentile(sorted: &[f64], of_hundred: f64) -> f64 {
    let at = (sorted.len() as f64 * of_hundred / 100.0).ceil() as usize;
    sorted
        .get(at.clamp(1, sorted.len().max(1)) - 1)
        .copied()
        .unwrap_or(f64::NAN)
}

/// The median; of two middle values, the better one.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Seconds since the start, for progress lines.
pub fn since(started: Instant) -> String {
    format!("{:6.1}s", started.elapsed().as_secs_f64())
}
