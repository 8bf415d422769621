//! Drill: hundreds of clients lose their connections at once. Measures when each of them is back.
//!
//! They are real clients, each with its own store, identity and connection, in one process: the fleet. The fleet prints
//! every phase change of each client, and at the end the position of each.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::Args;
use serde::{Deserialize, Serialize};
use spacetime_sync_authority::Authority;
use spacetime_sync_client::rusqlite::Transaction;
use spacetime_sync_client::{
    ClientConfig, Credential, Event, HandlerError, Phase, SqliteStore, Status, StreamId, SyncClient,
};
use spacetime_sync_proto::{ChainHash, SealKey, Seq};
use spacetime_sync_stdb::admin::Admin;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::stage::Stage;
use crate::{RECOVERY, Record, Scale};
use spacetime_sync_tests::lane::{A_DAY, stream};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::process::{Process, built};
use spacetime_sync_tests::proxy::Proxy;
use spacetime_sync_tests::until;

/// The stream that the fleet follows. It has few and small events, because this drill is about connections.
const STREAM: usize = 9;
/// The folder of the fleet's stores below the lane's folder, and the file in it that names the last event.
const FOLDER: &str = "fleet";
const LAST: &str = "last";
const EVERY: Duration = Duration::from_millis(500);
/// How long the fleet may take to connect for the first time.
const JOIN: Duration = Duration::from_secs(120);
/// How long the host is measured before the storm.
const CALM: Duration = Duration::from_secs(3);
/// How long SpacetimeDB is away.
const AWAY: Duration = Duration::from_secs(3);
const SAMPLE: Duration = Duration::from_millis(20);
/// The most connection attempts per lost connection of a client.
const ATTEMPTS: u64 = 6;
/// Width of a bar in the histograms.
const BAR_MS: u64 = 250;
/// Number of identities and grants that are requested at once.
const AT_ONCE: usize = 8;

/// The arguments of the fleet's process.
#[derive(Debug, Args)]
pub struct FleetArgs {
    /// The address of SpacetimeDB.
    #[arg(long)]
    pub uri: String,
    /// The name of the database.
    #[arg(long)]
    pub database: String,
    /// A file with one token per line, one for each client.
    #[arg(long)]
    pub tokens: PathBuf,
    /// A file with the keys whose seals count.
    #[arg(long)]
    pub seal_keys: PathBuf,
    /// The folder of the clients' stores.
    #[arg(long)]
    pub folder: PathBuf,
    /// The stream that they follow.
    #[arg(long)]
    pub stream: StreamId,
}

/// A line that the fleet prints.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Phase {
        client: usize,
        at_ms: u64,
        phase: String,
        attempt: u32,
    },
    End {
        client: usize,
        seq: u64,
        chain: String,
        handled: u64,
        out_of_order: u64,
        reconnects: u64,
    },
}

/// What a handler has seen.
#[derive(Debug, Default)]
struct Seen {
    handled: u64,
    out_of_order: u64,
    last: u64,
}

/// Runs the clients until SIGTERM, and then until each client has the event that [`LAST`] names.
pub async fn fleet(args: FleetArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let seal_keys: Vec<SealKey> = serde_json::from_slice(&std::fs::read(&args.seal_keys)?)?;
    let mut clients = Vec::new();
    for (number, token) in std::fs::read_to_string(&args.tokens)?.lines().enumerate() {
        let mut config = ClientConfig::new(&args.uri, &args.database, vec![args.stream.clone()]);
        config.credential = Credential::Fixed(token.to_owned());
        config.seal_keys.clone_from(&seal_keys);
        let store = SqliteStore::open(args.folder.join(format!("{number}.sqlite")))?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let handler = {
            let seen = seen.clone();
            move |_: &mut Transaction<'_>, _: &StreamId, events: &[Event]| {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                for event in events {
                    seen.handled += 1;
                    seen.out_of_order += u64::from(event.seq.get() != seen.last + 1);
                    seen.last = event.seq.get();
                }
                Ok::<(), HandlerError>(())
            }
        };
        let client = SyncClient::start(config, store, handler)?;
        tokio::spawn(tell_phases(number, client.status()));
        clients.push((client, seen));
    }
    terminate.recv().await;
    let last: u64 = std::fs::read_to_string(args.folder.join(LAST))?.parse()?;
    let deadline = tokio::time::Instant::now() + RECOVERY;
    for (client, _) in &clients {
        let mut status = client.status();
        let has_it = |status: &Status| {
            let stream = status.streams.get(&args.stream);
            stream.is_some_and(|stream| stream.applied.seq.get() >= last)
        };
        // A client that does not get there reports its position at the end.
        let _ = tokio::time::timeout_at(deadline, status.wait_for(has_it)).await;
    }
    for (number, (client, seen)) in clients.into_iter().enumerate() {
        let status = client.stop().await;
        let applied = status.streams.get(&args.stream).map(|stream| stream.applied);
        let applied = applied.context("a client does not follow the stream")?;
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        say(&Word::End {
            client: number,
            seq: applied.seq.get(),
            chain: hex::encode(applied.chain.as_bytes()),
            handled: seen.handled,
            out_of_order: seen.out_of_order,
            reconnects: status.counters.reconnects,
        })?;
    }
    Ok(())
}

async fn tell_phases(client: usize, mut status: tokio::sync::watch::Receiver<Status>) {
    let mut shown = (String::new(), 0);
    loop {
        let now = phase(&status.borrow_and_update().phase);
        if now != shown {
            let (phase, attempt) = now.clone();
            let at_ms = now_ms();
            // A failed write means that nobody reads any more, because the drill is ending.
            let _ = say(&Word::Phase {
                client,
                at_ms,
                phase,
                attempt,
            });
            shown = now;
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

fn phase(phase: &Phase) -> (String, u32) {
    let attempt = match phase {
        Phase::Connecting { attempt } | Phase::Backoff { attempt, .. } => *attempt,
        Phase::Idle | Phase::CatchingUp { .. } | Phase::Live | Phase::Stopped { .. } => 0,
    };
    (phase.code().to_owned(), attempt)
}

fn say(word: &Word) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(word)?);
    Ok(())
}

fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// The process of the fleet, as the drill sees it.
struct Fleet {
    process: Process,
    way: Proxy,
    size: usize,
}

/// When clients tried to connect and when they were back, and what that cost the host.
struct Storm {
    /// Number of connection attempts, by milliseconds after the end of the fault.
    attempts: Vec<(u64, u64)>,
    back_ms: Vec<u64>,
    peak_mb: u64,
    cpu: Duration,
    took: Duration,
}

pub(super) async fn storm(stage: &mut Stage, scale: Scale, record: &mut Record) -> anyhow::Result<()> {
    let stream_id = stream(STREAM);
    let joined = Instant::now();
    let fleet = Fleet::start(stage, scale.storm, &stream_id).await?;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = tokio::spawn(write(stage.lane.authority.clone(), stream_id.clone(), stop.clone()));
    fleet.live(JOIN, 0).await?;
    record.figure("clients", fleet.size);
    record.figure("joined_after_ms", joined.elapsed().as_millis() as u64);

    let (cpu, memory) = host(stage)?;
    let calm = Instant::now();
    tokio::time::sleep(CALM).await;
    let share = (host(stage)?.0 - cpu).as_secs_f64() / calm.elapsed().as_secs_f64();
    record.figure("host_mb_before", memory);
    record.figure("host_cores_in_calm", rounded(share));

    fleet.way.cut();
    record.fault("every connection cut at once");
    let cut = Instant::now();
    let storm = fleet.watch(stage, cut, now_ms()).await?;
    storm.tell("cut", &fleet, record)?;
    record.recovered(storm.took);
    stage.recovers(record, cut).await?;

    stage.lane.server.kill();
    record.fault("spacetimedb killed under all");
    tokio::time::sleep(AWAY).await;
    let (ended, ended_ms) = (Instant::now(), now_ms());
    stage.lane.server.restart().await?;
    let storm = fleet.watch(stage, ended, ended_ms).await?;
    storm.tell("restart", &fleet, record)?;
    record.recovered(storm.took);
    stage.recovers(record, ended).await?;

    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let written = writer.await??;
    fleet.ends_equal(stage, &stream_id, written, record).await
}

/// Writes to the fleet's stream, and returns how many events.
async fn write(
    authority: Authority,
    stream_id: StreamId,
    stop: Arc<std::sync::atomic::AtomicBool>,
) -> anyhow::Result<u64> {
    let mut writer = Writer::new(&authority, &stream_id, "fleet", Payload::UpTo(100), 1);
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        writer.append(1).await?;
        tokio::time::sleep(EVERY).await;
    }
    Ok(writer.written())
}

/// The CPU time that SpacetimeDB has used so far, and its memory in MB.
fn host(stage: &Stage) -> anyhow::Result<(Duration, u64)> {
    let process = stage
        .lane
        .server
        .process()
        .context("the server was not started by this run")?;
    let (memory, _) = process.memory_mb().context("SpacetimeDB is not running")?;
    Ok((process.cpu().context("SpacetimeDB is gone")?.whole(), memory))
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

impl Fleet {
    async fn start(stage: &Stage, size: usize, stream_id: &StreamId) -> anyhow::Result<Self> {
        let way = Proxy::start(stage.lane.server.addr()?).await?;
        let (tokens, folder) = (stage.lane.path("fleet.tokens"), stage.lane.path(FOLDER));
        std::fs::create_dir(&folder)?;
        std::fs::write(&tokens, identities(stage, size, stream_id).await?.join("\n"))?;
        let mut command = Command::new(built("chaos"));
        command
            .arg("fleet")
            .args([
                "--uri",
                &format!("http://{}", way.addr()),
                "--database",
                &stage.lane.name,
            ])
            .arg("--seal-keys")
            .arg(stage.lane.seal_keys_file())
            .arg("--tokens")
            .arg(&tokens)
            .arg("--folder")
            .arg(&folder)
            .args(["--stream", stream_id.as_str()]);
        let process = Process::start("fleet", &mut command, &stage.lane.path("fleet.log"))?;
        Ok(Self { process, way, size })
    }

    fn words(&self) -> Vec<Word> {
        let log = self.process.log();
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// When each client became live after `since_ms`, for those that are still live.
    fn live_since(&self, since_ms: u64) -> BTreeMap<usize, u64> {
        let mut live = BTreeMap::new();
        for word in self.words() {
            let Word::Phase {
                client, at_ms, phase, ..
            } = word
            else {
                continue;
            };
            if at_ms < since_ms {
                continue;
            }
            match phase.as_str() {
                "live" => drop(live.entry(client).or_insert(at_ms)),
                "catching_up" => {}
                _ => drop(live.remove(&client)),
            }
        }
        live
    }

    /// Waits until every client has become live after `since_ms`.
    async fn live(&self, limit: Duration, since_ms: u64) -> anyhow::Result<()> {
        let all = until(limit, || {
            !self.process.is_running() || self.live_since(since_ms).len() == self.size
        })
        .await;
        let live = self.live_since(since_ms).len();
        anyhow::ensure!(
            all && live == self.size,
            "{live} of {} clients are live after {limit:?}",
            self.size
        );
        Ok(())
    }

    /// Measures the host until every client is back.
    async fn watch(&self, stage: &Stage, ended: Instant, ended_ms: u64) -> anyhow::Result<Storm> {
        let (cpu, memory) = host(stage)?;
        let mut storm = Storm {
            attempts: Vec::new(),
            back_ms: Vec::new(),
            peak_mb: memory,
            cpu,
            took: Duration::ZERO,
        };
        let mut counted = self.way.counts().asked;
        let mut looked = Instant::now();
        loop {
            let connections = self.way.counts().asked;
            if connections > counted {
                let at = ended.elapsed().as_millis() as u64;
                storm
                    .attempts
                    .push((at, connections - std::mem::replace(&mut counted, connections)));
            }
            storm.peak_mb = storm.peak_mb.max(host(stage)?.1);
            // The log grows, so not every sample reads it.
            if looked.elapsed() > 10 * SAMPLE {
                looked = Instant::now();
                let live = self.live_since(ended_ms);
                if live.len() == self.size {
                    storm.back_ms = live.values().map(|at| at - ended_ms).collect();
                    break;
                }
                anyhow::ensure!(
                    ended.elapsed() < JOIN,
                    "only {} of {} clients are back",
                    live.len(),
                    self.size
                );
            }
            tokio::time::sleep(SAMPLE).await;
        }
        storm.back_ms.sort_unstable();
        storm.took = Duration::from_millis(storm.back_ms.last().copied().unwrap_or(0));
        storm.cpu = host(stage)?.0 - storm.cpu;
        Ok(storm)
    }

    /// Waits until each client has all events, stops the fleet, and compares its positions with the authority.
    async fn ends_equal(
        self,
        stage: &Stage,
        stream_id: &StreamId,
        written: u64,
        record: &mut Record,
    ) -> anyhow::Result<()> {
        std::fs::write(stage.lane.path(FOLDER).join(LAST), written.to_string())?;
        self.process.signal(rustix::process::Signal::TERM);
        self.process.ended(JOIN).await.context("the fleet did not end")?;
        let head = stage
            .lane
            .authority
            .chain_at(stream_id, Seq::new(written).context("no seq")?)
            .await?;
        let head = head.map(|head: ChainHash| hex::encode(head.as_bytes()));
        let (mut equal, mut others, mut reconnects) = (0, Vec::new(), 0);
        for word in self.words() {
            let Word::End {
                client,
                seq,
                chain,
                handled,
                out_of_order,
                reconnects: of_it,
            } = word
            else {
                continue;
            };
            reconnects += of_it;
            if seq == written && Some(&chain) == head.as_ref() && handled == written && out_of_order == 0 {
                equal += 1;
            } else {
                others.push(format!(
                    "client {client}: seq {seq} of {written}, {handled} events handled, {out_of_order} out of order"
                ));
            }
        }
        record.figure("fleet_logs_equal", equal);
        record.figure("fleet_events_each", written);
        record.figure("fleet_reconnects", reconnects);
        anyhow::ensure!(
            equal == self.size,
            "only {equal} of {} logs are equal: {others:?}",
            self.size
        );
        Ok(())
    }
}

/// Creates identities with a grant for the stream, and returns their tokens.
async fn identities(stage: &Stage, size: usize, stream_id: &StreamId) -> anyhow::Result<Vec<String>> {
    let (mut tokens, mut asked) = (Vec::new(), JoinSet::new());
    for _ in 0..size {
        if asked.len() == AT_ONCE
            && let Some(token) = asked.join_next().await
        {
            tokens.push(token??);
        }
        let (uri, owner, stream_id) = (
            stage.lane.server.uri().to_owned(),
            stage.lane.owner()?,
            stream_id.clone(),
        );
        asked.spawn(async move {
            let credential = Admin::new_identity(&uri).await?;
            owner.grant(&credential.identity, &stream_id, A_DAY).await?;
            Ok::<_, anyhow::Error>(credential.token.expose().to_owned())
        });
    }
    while let Some(token) = asked.join_next().await {
        tokens.push(token??);
    }
    Ok(tokens)
}

impl Storm {
    fn tell(&self, name: &str, fleet: &Fleet, record: &mut Record) -> anyhow::Result<()> {
        let attempts: u64 = self.attempts.iter().map(|(_, count)| count).sum();
        let each = attempts as f64 / fleet.size as f64;
        let weighted = self.attempts.iter().map(|(at, count)| (*at, *count));
        record.figure(&format!("{name}_attempts_per_client"), rounded(each));
        record.figure(&format!("{name}_attempts_by_{BAR_MS}_ms"), histogram(weighted));
        record.figure(
            &format!("{name}_live_by_{BAR_MS}_ms"),
            histogram(self.back_ms.iter().map(|at| (*at, 1))),
        );
        record.figure(&format!("{name}_all_live_after_ms"), self.took.as_millis() as u64);
        record.figure(&format!("{name}_host_cpu_s"), rounded(self.cpu.as_secs_f64()));
        record.figure(&format!("{name}_host_peak_mb"), self.peak_mb);
        anyhow::ensure!(self.took <= RECOVERY, "the last client was back after {:?}", self.took);
        anyhow::ensure!(
            attempts <= ATTEMPTS * fleet.size as u64,
            "{attempts} attempts of {} clients, more than {ATTEMPTS} each",
            fleet.size
        );
        Ok(())
    }
}

fn histogram(values: impl Iterator<Item = (u64, u64)>) -> Vec<u64> {
    let mut bars = Vec::new();
    for (at, count) in values {
        let bar = (at / BAR_MS) as usize;
        if bars.len() <= bar {
            bars.resize(bar + 1, 0);
        }
        bars[bar] += count;
    }
    bars
}
