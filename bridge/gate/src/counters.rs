//! What the gate counts.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// The counters. They only grow.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections that reached SpacetimeDB.
    pub opened: AtomicU64,
    /// Requests with a token that is not good.
    pub refused_tokens: AtomicU64,
    /// Requests that came too often, or had too many connections already.
    pub turned_away: AtomicU64,
    /// Requests while the gate did not know who was revoked, or the issuer's keys.
    pub blind: AtomicU64,
    /// Requests that SpacetimeDB did not answer, or refused.
    pub unreached: AtomicU64,
    /// Messages of clients that passed.
    pub passed: AtomicU64,
    /// Messages of clients that waited for their turn.
    pub delayed: AtomicU64,
    /// Frames of SpacetimeDB that passed.
    pub frames: AtomicU64,
    /// Bytes of SpacetimeDB that passed.
    pub bytes: AtomicU64,
    /// Connections that ended because of what the client said.
    pub breaches: AtomicU64,
    /// Connections that ended because the client was too slow.
    pub slow: AtomicU64,
    /// Connections that ended with their token.
    pub expired: AtomicU64,
    /// Connections that ended with their session.
    pub revoked: AtomicU64,
    /// Connections that ended for a newer one of their session.
    pub replaced: AtomicU64,
}

/// Counts one more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    /// The metrics in the text format of Prometheus.
    pub fn text(&self, connections: usize, held: usize, blind: bool) -> String {
        let mut text = String::new();
        let mut line = |name: &str, kind: &str, help: &str, value: u64| {
            // Writing into a string cannot fail.
            let _ = writeln!(text, "# HELP spacetime_sync_gate_{name} {help}");
            let _ = writeln!(text, "# TYPE spacetime_sync_gate_{name} {kind}");
            let _ = writeln!(text, "spacetime_sync_gate_{name} {value}");
        };
        line("connections", "gauge", "Open connections.", connections as u64);
        line(
            "buffers_bytes",
            "gauge",
            "Bytes that wait for their clients or for SpacetimeDB.",
            held as u64,
        );
        line(
            "is_blind",
            "gauge",
            "1 while the gate does not know which sessions were revoked; it opens no connection then.",
            u64::from(blind),
        );
        for (name, help, counter) in [
            ("opened_total", "Connections that reached SpacetimeDB.", &self.opened),
            (
                "refused_tokens_total",
                "Requests with a token that is not good.",
                &self.refused_tokens,
            ),
            (
                "turned_away_total",
                "Requests that came too often or had too many connections.",
                &self.turned_away,
            ),
            (
                "blind_total",
                "Requests while the gate did not know the revocations or the issuer's keys.",
                &self.blind,
            ),
            (
                "unreached_total",
                "Requests that SpacetimeDB did not take.",
                &self.unreached,
            ),
            (
                "passed_messages_total",
                "Messages of clients that passed.",
                &self.passed,
            ),
            (
                "delayed_messages_total",
                "Messages of clients that waited for their turn.",
                &self.delayed,
            ),
            ("frames_total", "Frames of SpacetimeDB that passed.", &self.frames),
            ("bytes_total", "Bytes of SpacetimeDB that passed.", &self.bytes),
            (
                "breaches_total",
                "Connections ended for what the client said.",
                &self.breaches,
            ),
            (
                "slow_total",
                "Connections ended because the client was too slow.",
                &self.slow,
            ),
            ("expired_total", "Connections ended with their token.", &self.expired),
            ("revoked_total", "Connections ended with their session.", &self.revoked),
            (
                "replaced_total",
                "Connections ended for a newer one of their session.",
                &self.replaced,
            ),
        ] {
            line(name, "counter", help, counter.load(Ordering::Relaxed));
        }
        text
    }
}
