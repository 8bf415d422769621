//! The setup of a run: its size, its bounds and its planned faults, all derived from one seed.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use spacetime_sync_client::StaleAnswer;
use spacetime_sync_client::config::{Backoff, Carries, Limits as ClientLimits, Reads, StreamBounds};
use spacetime_sync_client::session::Settings;
use spacetime_sync_lane::{Limits, Settings as LaneSettings};

use crate::agenda::{Micros, SECOND};
use crate::fault::{Fault, Planned, plan, with_unfollowed};

/// A run before it starts. The same setup always runs in the same way.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The source of all randomness.
    pub seed: u64,
    /// Number of streams.
    pub streams: usize,
    /// Number of clients. Each follows all streams.
    pub clients: usize,
    /// Number of bridges.
    pub bridges: usize,
    /// Whether bridges ask for the lead, or all publish at once.
    pub lead: bool,
    /// Number of transactions that writers commit.
    pub writes: usize,
    /// When faults and writers stop.
    pub until: Micros,
    /// The faults.
    pub plan: Vec<Planned>,
    /// A defect planted in the model, to test that the oracle finds it.
    pub defect: Option<Defect>,
    pub(crate) limits: Limits,
    /// How many dirty streams a bridge asks for at once, and how many streams it compares at once.
    pub(crate) at_once: (usize, usize),
    pub(crate) page: PageLimits,
    pub(crate) bounds: StreamBounds,
    pub(crate) batch: (usize, usize),
    /// The clients' settings. All times in it but one are the shipped defaults.
    pub(crate) client: Settings,
    pub(crate) host_page_bytes: usize,
    /// How often sessions open or change assignments, and how many marks the module reads at once.
    pub(crate) works: usize,
    pub(crate) journal_page: u64,
    /// When a backup of what the authority keeps of it is made, and when the authority is restored from that.
    pub(crate) restored: Option<(Micros, Micros)>,
    /// How many of a stream's newest events SpacetimeDB keeps, if it does not keep all.
    window: u64,
}

/// Defects that tests plant in the model, to test finding and minimising.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// The store keeps the effects of transactions that were rolled back.
    EffectsOutliveRollback,
    /// The host acknowledges calls before they are durable.
    AckBeforeDurable,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct PageLimits {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
    pub(crate) frame_bytes: usize,
}

/// How often bridges compare every stream again: more often than the shipped default, so that a run sees it.
const COMPARE_EVERY: Duration = Duration::from_secs(20);

/// How often clients ask where streams end: more often than the shipped default, so that a run sees it.
const HEADS_EVERY: Duration = Duration::from_secs(20);

impl Setup {
    /// The setup of a seed.
    pub fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let until = rng.random_range(2..12) * SECOND;
        let unapplied_bytes = rng.random_range(3_000..100_000);
        let host_page_bytes = rng.random_range(1_000..20_000);
        // By a generator of its own, so that it does not change the rest.
        let history = StdRng::seed_from_u64(seed ^ 0xA070_5A11).random_bool(0.5);
        let mut labour = StdRng::seed_from_u64(seed ^ 0x1AB0_0E55);
        let mut leaving = StdRng::seed_from_u64(seed ^ 0x1EA7_E500);
        Self {
            seed,
            works: labour.random_range(0..60),
            journal_page: labour.random_range(1..=4),
            restored: labour.random_bool(0.3).then(|| {
                let made = labour.random_range(0..until / 2);
                (made, labour.random_range(made..until))
            }),
            streams: rng.random_range(1..=4),
            clients: rng.random_range(1..=3),
            bridges: if rng.random_bool(0.4) { 2 } else { 1 },
            lead: rng.random_bool(0.5),
            writes: rng.random_range(5..80),
            until,
            limits: Limits {
                reads: rng.random_range(1..=4),
                calls: rng.random_range(1..=8),
                bytes: rng.random_range(1_000..60_000),
                idle_streams: rng.random_range(1..=8),
                attempts: rng.random_range(3..=8),
            },
            page: PageLimits {
                events: rng.random_range(1..=20),
                bytes: rng.random_range(100..20_000),
                frame_bytes: rng.random_range(100..4_000),
            },
            bounds: StreamBounds {
                carries: Carries::Events,
                unapplied_bytes,
                resume_bytes: rng.random_range(0..3_000),
                subscribe_within_events: rng.random_range(0..20),
                subscribe_within_bytes: rng.random_range(0..40_000),
                apply_attempts: rng.random_range(2..=8),
                reach_bytes: rng.random_range(1..20_000),
                recovery_attempts: 3,
                history,
                reads: Reads::Confirmed,
                on_stale: StaleAnswer::Stop,
            },
            batch: (rng.random_range(1..40), rng.random_range(1_000..40_000)),
            client: {
                let subscribed_bytes = rng.random_range(2_000..60_000);
                Settings {
                    limits: ClientLimits {
                        unapplied_bytes,
                        pages_in_flight: rng.random_range(1..=4),
                        subscribed_bytes,
                        reconnect_bytes: subscribed_bytes + rng.random_range(2_000..100_000),
                        stream_bytes: subscribed_bytes / 64,
                        heads_every: HEADS_EVERY,
                        ..ClientLimits::default()
                    },
                    backoff: Backoff::default(),
                    renewable: true,
                    fixed_token: None,
                    page_bytes: host_page_bytes,
                }
            },
            host_page_bytes,
            window: rng.random_range(5..40),
            at_once: (rng.random_range(1..=4), rng.random_range(1..=3)),
            defect: None,
            plan: with_unfollowed(plan(&mut rng, until), &mut leaving, until),
        }
    }

    /// The same setup with a defect in the model.
    #[must_use]
    pub fn with(self, defect: Defect) -> Self {
        let defect = Some(defect);
        Self { defect, ..self }
    }

    /// The same setup with as many faults, but only of these kinds.
    #[must_use]
    pub fn only(mut self, kinds: &[Fault]) -> Self {
        for (nth, planned) in self.plan.iter_mut().enumerate() {
            planned.fault = kinds[nth % kinds.len()];
        }
        self
    }

    /// The bridges' settings. All times in it but one are the shipped defaults.
    pub(crate) fn lane(&self) -> LaneSettings {
        LaneSettings {
            limits: self.limits,
            lead: self.lead,
            stall_after: shipped("stall_after_ms"),
            drain: shipped("drain_ms"),
            connect_deadline: shipped("connect_deadline_ms"),
            ack_deadline: shipped("ack_deadline_ms"),
            idle_poll: shipped("idle_poll_ms"),
            dirty_streams: self.at_once.0,
            compared_streams: self.at_once.1,
            compare_every: COMPARE_EVERY,
            applies_windows: self.window().is_some(),
            policy_every: shipped("every_ms"),
            beat_every: shipped("beat_ms"),
        }
    }

    /// How many of the newest events SpacetimeDB holds; `None` if it holds all.
    pub(crate) fn window(&self) -> Option<u64> {
        // Without a window nothing is swept, and no bridge begins one anew.
        let needed_by = [Fault::Swept, Fault::RewindRefused, Fault::RewindOvertaken];
        let is_needed = self.plan.iter().any(|planned| needed_by.contains(&planned.fault));
        is_needed.then_some(self.window)
    }

    /// A random generator for one use. Each use has its own, so that removing a fault does not change what is written.
    pub(crate) fn rng(&self, of: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed.rotate_left(17) ^ of.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }
}

/// The default of one of the bridge's times. Its example shows every default, and a test of the bridge compares them.
fn shipped(key: &str) -> Duration {
    const EXAMPLE: &str = include_str!("../../../bridge/src/config/example.toml");
    let default = |line: &'static str| {
        line.strip_prefix("# ")?
            .strip_prefix(key)?
            .strip_prefix(" = ")?
            .parse()
            .ok()
    };
    Duration::from_millis(EXAMPLE.lines().find_map(default).expect("a default in milliseconds"))
}
