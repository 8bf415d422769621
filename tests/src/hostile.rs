//! Hostile clients: each is one session with a token as good as anybody's, in a process of its own, and does harm in one
//! way. It reaches nothing but the gate and the bridge's HTTP.
//!
//! The process has an address of its own, because a client is usually not where others are, and the lowest priority: it
//! takes what the machine has left, so what others feel is what it makes gate, bridge and SpacetimeDB do.

mod client;
mod requests;
mod through;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use spacetime_sync_proto::{StreamId, limit};

use crate::gate::Gate;
use crate::lane::{Bridge, Lane, stream};
use crate::process::{Cpu, Process};
use crate::{until, write_secret};

pub use client::{Args, Client};
pub use requests::unread;

/// The address of hostile clients.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// How long it may take until a hostile client has begun.
const BEGINNING: Duration = Duration::from_secs(30);
/// The first of the streams that a hostile client may read besides those that others write to.
const SPARE: usize = 1_000;

/// In which way a client does harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It calls reducers without a pause, with arguments as large as they may be.
    Calls,
    /// The same on eight connections.
    CallsOnEight,
    /// It subscribes to as much as it may, and unsubscribes, without a pause.
    Subscribes,
    /// It holds as many subscriptions as it may, of streams that do not concern it.
    Hoards,
    /// It reads pages of the log without a pause.
    Reads,
    /// It asks for much, and takes nothing of it.
    Unread,
    /// It opens connections, and drops them.
    Connects,
    /// It connects with all subscriptions, and does it again.
    Reconnects,
    /// It says what no client says, each time on a new connection.
    Forbidden,
    /// It shows bad tokens and bad credentials.
    Guesses,
    /// It floods, connects and asks for tokens, and its session is revoked.
    Revoked,
    /// It asks for tokens without a pause.
    Tokens,
    /// It asks for history and heads without a pause.
    History,
    /// It asks for history, and takes nothing of it.
    HistoryUnread,
    /// It reports without a pause that SpacetimeDB contradicts the authority.
    Reports,
    /// It does all at once that one session can do.
    Worst,
}

impl Kind {
    /// The name, as a command line has it.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Where it shows that such a client is held up.
    pub fn signs(self) -> &'static [Sign] {
        const DELAYED: Sign = Sign::Gate("delayed_messages_total");
        const TURNED_AWAY: Sign = Sign::Gate("turned_away_total");
        const REFUSED_TOKENS: Sign = Sign::Gate("refused_tokens_total");
        const RATE_LIMITED: Sign = Sign::Bridge("/rate_limited_total");
        match self {
            Self::Calls | Self::CallsOnEight | Self::Subscribes | Self::Hoards | Self::Reads => &[DELAYED],
            Self::Unread => &[DELAYED, Sign::Gate("slow_total")],
            Self::Connects | Self::Reconnects => &[TURNED_AWAY],
            Self::Forbidden => &[Sign::Gate("breaches_total"), TURNED_AWAY],
            Self::Guesses => &[
                REFUSED_TOKENS,
                TURNED_AWAY,
                Sign::Bridge("/auth_failures/invalid_token_total"),
            ],
            Self::Revoked => &[Sign::Gate("revoked_total"), REFUSED_TOKENS],
            Self::Tokens | Self::History | Self::Reports => &[RATE_LIMITED],
            // The bridge does not count who waits for a turn in vain.
            Self::HistoryUnread => &[Sign::Refusals],
            Self::Worst => &[DELAYED, TURNED_AWAY, RATE_LIMITED],
        }
    }
}

/// A count of what is held up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// A metric of the gate.
    Gate(&'static str),
    /// A metric of the bridge, as a pointer into its JSON.
    Bridge(&'static str),
    /// The refusals that the client itself was told.
    Refusals,
}

impl Sign {
    /// How much was counted so far. `hostile` is the client, if it has started.
    pub async fn read(self, bridge: &Bridge, gate: &Gate, hostile: Option<&Hostile>) -> anyhow::Result<u64> {
        match self {
            Self::Gate(name) => gate.metric(name).await,
            Self::Bridge(pointer) => {
                let metrics = bridge.metrics().await?;
                let count = metrics.pointer(pointer).and_then(serde_json::Value::as_u64);
                count.ok_or_else(|| anyhow::anyhow!("no metric {pointer} in {metrics}"))
            }
            Self::Refusals => Ok(hostile.map_or(0, |hostile| hostile.tally().refused)),
        }
    }
}

/// What a hostile client has done, and what came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Messages, requests and attempts to connect.
    pub said: u64,
    /// Those that were refused with a reason.
    pub refused: u64,
    /// Connections that were closed on it, and attempts that nobody answered.
    pub closed: u64,
    /// Bytes that it took from the gate on connections.
    pub heard: u64,
}

/// A hostile client, which does harm until it is dropped.
#[derive(Debug)]
pub struct Hostile {
    process: Process,
}

impl Hostile {
    /// Starts a client of a new session that may read these streams, and waits until it does harm. The first stream has
    /// the longest log.
    pub async fn start(
        lane: &Lane,
        bridge: &Bridge,
        gate: &Gate,
        kind: Kind,
        streams: &[StreamId],
    ) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let session = format!("hostile-{}-{}", kind.name(), NEXT.fetch_add(1, Ordering::Relaxed));
        let user = format!("user-of-{session}");
        let spare = (SPARE..).take(limit::PRESENCE_SERVES.saturating_sub(streams.len()));
        let streams: Vec<StreamId> = streams.iter().cloned().chain(spare.map(stream)).collect();
        let names: Vec<&str> = streams.iter().map(StreamId::as_str).collect();
        lane.allow(&format!("user:{user}"), &names).await?;
        let credential_file = lane.path(&format!("{session}.session"));
        write_secret(&credential_file, lane.keys()?.session(&user, &session))?;
        let keys = lane.rows("SELECT stream_key FROM sync_stream", false).await?;
        let args = Args {
            kind,
            gate: gate.uri(),
            bridge: bridge.url().to_owned(),
            database: lane.name.clone(),
            credential_file,
            streams,
            keys: keys.iter().filter_map(|row| row[0].as_u64()).collect(),
        };
        let log = lane.path(&format!("{session}.log"));
        let hostile = Self {
            process: Process::start("hostile", &mut args.command(), &log)?,
        };
        // A session that is to lose a connection must have one.
        let has_begun = |tally: Tally| tally.said > 0 && (kind != Kind::Revoked || tally.heard > 0);
        let begun = until(BEGINNING, || has_begun(hostile.tally()) || !hostile.is_running()).await;
        anyhow::ensure!(
            begun && hostile.is_running(),
            "a hostile client did not begin: {}",
            hostile.process.log()
        );
        if kind == Kind::Revoked {
            bridge.revoke(&session).await?;
        }
        Ok(hostile)
    }

    /// What it has done so far.
    pub fn tally(&self) -> Tally {
        let log = self.process.log();
        let mut lines = log.lines().rev();
        lines
            .find_map(|line| serde_json::from_str(line).ok())
            .unwrap_or_default()
    }

    /// CPU time that it has used itself.
    pub fn cpu(&self) -> Duration {
        self.process.cpu().map(Cpu::whole).unwrap_or_default()
    }

    /// Whether it is still there.
    pub fn is_running(&self) -> bool {
        self.process.is_running()
    }
}

/// A token that looks like another one and has a signature of nobody.
pub fn forged(token: &str) -> String {
    let (signed, signature) = token.rsplit_once('.').unwrap_or((token, "AA"));
    let other = if signature.starts_with('A') { 'B' } else { 'A' };
    format!("{signed}.{other}{}", signature.get(1..).unwrap_or_default())
}
