//! Many clients in one process. Each of them has a connection, an identity and a SQLite file of its own, as it would on a
//! machine of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use serde::{Deserialize, Serialize};
use spacetime_sync_client::rusqlite::Transaction;
use spacetime_sync_client::{ClientConfig, Credential, Event, HandlerError, Phase, Status, StreamId, SyncClient};
use spacetime_sync_tests::lane::Lane;
use spacetime_sync_tests::process::Cpu;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::child::Child;
use crate::client::{open, peak_rss_mb, tally};
use crate::measure::now_us;

/// The arguments of the crowd's process.
#[derive(Debug, Args)]
pub(crate) struct CrowdArgs {
    /// A file that says who the clients are, in JSON.
    #[arg(long)]
    spec: PathBuf,
}

/// Who the clients are, and what they do.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Spec {
    uri: String,
    database: String,
    seal_keys: PathBuf,
    members: Vec<Member>,
    /// Each client ends when it has applied this many events. Without it they stay until the process is killed.
    until: Option<u64>,
    /// A client says so at each multiple of this number of applied events.
    mark_every: Option<u64>,
    /// Report when each event was applied.
    each: bool,
}

/// One client.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Member {
    token_file: PathBuf,
    db: PathBuf,
    streams: Vec<StreamId>,
}

/// What the process prints, one line of JSON each.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Said {
    /// Every client is live.
    Live,
    /// A client has applied this many events.
    Reached {
        /// How many.
        applied: u64,
        /// How many there were before its last batch.
        before: u64,
        /// When, in microseconds since 1970.
        at_us: i64,
    },
    /// Every client has ended.
    Done(Report),
}

/// What the clients did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Number of events applied, over all clients.
    pub(crate) applied: u64,
    /// When the first event was applied, in microseconds since 1970.
    pub(crate) first_us: i64,
    /// When the last event was applied.
    pub(crate) last_us: i64,
    /// CPU time of the process.
    pub(crate) cpu_seconds: f64,
    /// Peak memory of the process.
    pub(crate) peak_rss_mb: u64,
    /// Connections that clients replaced because they held too many rows.
    pub(crate) overfull: u64,
    /// When the events of each stream were applied by the last client that ended, in microseconds; empty unless requested.
    pub(crate) applied_at_us: BTreeMap<StreamId, Vec<i64>>,
}

/// What one client has done so far.
#[derive(Debug, Default)]
struct Seen {
    applied: u64,
    first_us: i64,
    last_us: i64,
    applied_at_us: BTreeMap<StreamId, Vec<i64>>,
    overfull: u64,
}

/// A running crowd. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Crowd {
    child: Child,
    members: usize,
}

/// How a crowd behaves.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Behaviour {
    /// Each client ends when it has applied this many events. Without it they stay.
    pub(crate) until: Option<u64>,
    /// A client says so at each multiple of this number of applied events.
    pub(crate) mark_every: Option<u64>,
    /// The report says when each event was applied.
    pub(crate) each: bool,
}

impl Member {
    /// A client that may read these streams.
    pub(crate) async fn new(lane: &Lane, streams: &[StreamId]) -> anyhow::Result<Self> {
        let client = lane.client(streams).await?;
        Ok(Self {
            token_file: client.token_file().to_owned(),
            db: client.store().to_owned(),
            streams: streams.to_vec(),
        })
    }
}

impl Crowd {
    /// Starts a process with these clients. `name` distinguishes it from the lane's other crowds.
    pub(crate) fn start(lane: &Lane, name: &str, members: Vec<Member>, behaviour: Behaviour) -> anyhow::Result<Self> {
        let spec = lane.path(&format!("crowd-{name}.json"));
        let count = members.len();
        let contents = Spec {
            uri: lane.server.uri().to_owned(),
            database: lane.name.clone(),
            seal_keys: lane.seal_keys_file(),
            members,
            until: behaviour.until,
            mark_every: behaviour.mark_every,
            each: behaviour.each,
        };
        std::fs::write(&spec, serde_json::to_vec(&contents)?)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("crowd").arg("--spec").arg(&spec);
        Ok(Self {
            child: Child::start("a crowd", &command)?,
            members: count,
        })
    }

    /// The process id.
    pub(crate) fn id(&self) -> anyhow::Result<u32> {
        self.child.id()
    }

    /// What the process says next.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Said> {
        Ok(serde_json::from_str(&self.child.line().await?)?)
    }

    /// Waits until every client is live.
    pub(crate) async fn live(&mut self) -> anyhow::Result<()> {
        while !matches!(self.next().await?, Said::Live) {}
        Ok(())
    }

    /// Waits until every client has applied this many events, a multiple of what they mark. Returns when the last of them had,
    /// in microseconds since 1970.
    pub(crate) async fn reached(&mut self, wanted: u64) -> anyhow::Result<i64> {
        let (mut there, mut last_us) = (0, 0);
        while there < self.members {
            if let Said::Reached { applied, before, at_us } = self.next().await?
                && (before..applied).contains(&(wanted - 1))
            {
                there += 1;
                last_us = last_us.max(at_us);
            }
        }
        Ok(last_us)
    }

    /// Waits until a client marks that it has applied something, and returns when.
    pub(crate) async fn first_us(&mut self) -> anyhow::Result<i64> {
        loop {
            if let Said::Reached { at_us, .. } = self.next().await? {
                return Ok(at_us);
            }
        }
    }

    /// Waits until every client has ended.
    pub(crate) async fn done(mut self) -> anyhow::Result<Report> {
        loop {
            if let Said::Done(report) = self.next().await? {
                return Ok(report);
            }
        }
    }
}

/// Runs the clients, and prints what they do.
pub(crate) async fn run(args: CrowdArgs) -> anyhow::Result<()> {
    let spec: Spec = serde_json::from_slice(&std::fs::read(&args.spec)?)?;
    let count = spec.members.len();
    let spec = Arc::new(spec);
    let (says, mut heard) = unbounded_channel();
    let mut members = JoinSet::new();
    for member in spec.members.clone() {
        members.spawn(follow(Arc::clone(&spec), member, says.clone()));
    }
    drop(says);
    let mut live = 0;
    let mut all = Report {
        applied: 0,
        first_us: i64::MAX,
        last_us: 0,
        cpu_seconds: 0.0,
        peak_rss_mb: 0,
        overfull: 0,
        applied_at_us: BTreeMap::new(),
    };
    loop {
        tokio::select! {
            Some(said) = heard.recv() => match said {
                Said::Live => {
                    live += 1;
                    if live == count {
                        say(&Said::Live)?;
                    }
                }
                other => say(&other)?,
            },
            Some(ended) = members.join_next() => {
                let seen = ended??;
                all.applied += seen.applied;
                all.first_us = all.first_us.min(seen.first_us);
                all.last_us = all.last_us.max(seen.last_us);
                all.overfull += seen.overfull;
                all.applied_at_us = seen.applied_at_us;
            }
            else => break,
        }
    }
    all.cpu_seconds = Cpu::of("self").unwrap_or_default().whole().as_secs_f64();
    all.peak_rss_mb = peak_rss_mb();
    say(&Said::Done(all))
}

fn say(said: &Said) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(said)?);
    Ok(())
}

/// Runs one client until it has applied what it is to apply.
async fn follow(spec: Arc<Spec>, member: Member, says: UnboundedSender<Said>) -> anyhow::Result<Seen> {
    let mut config = ClientConfig::new(&spec.uri, &spec.database, member.streams.clone());
    config.credential = Credential::Fixed(std::fs::read_to_string(&member.token_file)?.trim().to_owned());
    config.seal_keys = serde_json::from_slice(&std::fs::read(&spec.seal_keys)?)?;
    let store = open(&member.db)?;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let (counts, mut counted) = watch::channel(0);
    let handler = {
        let (seen, says, spec) = (seen.clone(), says.clone(), Arc::clone(&spec));
        move |transaction: &mut Transaction<'_>, stream: &StreamId, events: &[Event]| {
            tally(transaction, stream, events)?;
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let (now, before) = (now_us(), seen.applied);
            if before == 0 {
                seen.first_us = now;
            }
            seen.last_us = now;
            seen.applied += events.len() as u64;
            if spec.each {
                let applied_at_us = seen.applied_at_us.entry(stream.clone()).or_default();
                applied_at_us.extend(events.iter().map(|_| now));
            }
            if let Some(every) = spec.mark_every
                && seen.applied / every > before / every
            {
                let applied = seen.applied;
                // The process ends if nobody hears it.
                let _ = says.send(Said::Reached {
                    applied,
                    before,
                    at_us: now,
                });
            }
            counts.send_replace(seen.applied);
            Ok::<(), HandlerError>(())
        }
    };
    let client = SyncClient::start(config, store, handler)?;
    let mut status = client.status();
    let held: u64 = status
        .borrow()
        .streams
        .values()
        .map(|stream| stream.applied.seq.get())
        .sum();
    let live = status
        .wait_for(|status| status.phase == Phase::Live || has_stopped(status))
        .await?
        .clone();
    anyhow::ensure!(!has_stopped(&live), "a client stopped: {:?}", live.phase);
    let _ = says.send(Said::Live);
    let wanted = spec.until.map_or(u64::MAX, |until| until.saturating_sub(held));
    tokio::select! {
        all = counted.wait_for(|applied| *applied >= wanted) => drop(all?),
        status = client.stopped() => anyhow::bail!("a client stopped: {:?}", status.phase),
    }
    let counters = client.stop().await.counters;
    let mut seen = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
    seen.overfull = counters.connections_overfull;
    Ok(seen)
}

fn has_stopped(status: &Status) -> bool {
    matches!(status.phase, Phase::Stopped { .. })
}
