//! Sessions that say how they are, and assignments that change, beside busy streams.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;
use spacetime_sync_tests::figures::rate;
use spacetime_sync_tests::issuer::Issuer;
use spacetime_sync_tests::lane::Lane;
use spacetime_sync_tests::process::Cpu;
use spacetime_sync_tests::socket::Socket;
use spacetime_sync_tests::words;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines, Stdin};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at};

use crate::busy;
use crate::child::{Child, READY};
use crate::cpu::{self, Meter};
use crate::in_turn::in_turn;
use crate::report::{Report, two};

/// How often each node says how it is.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Sessions of one user, which see one another.
const OF_ONE_USER: usize = 4;
/// How often a pair begins an assignment, which changes four times: it is opened, accepted, begun and done.
const ASSIGNMENT: Duration = Duration::from_secs(1);
const CHANGES: usize = 4;
/// How many connections are made at once.
const AT_ONCE: usize = 32;
const LIMIT: Duration = Duration::from_secs(60);
/// Of what a rate asks for, so much must be done, or the figure says nothing.
const DONE_AT_LEAST: f64 = 0.9;

/// How much to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Sessions that say how they are.
    sessions: usize,
    /// Changes of assignments in a second.
    changes: usize,
    /// What the busy streams beside them carry.
    busy: busy::Extent,
}

pub(crate) const FULL: Extent = Extent {
    sessions: 2_000,
    changes: 200,
    busy: busy::Extent {
        bulk: 800_000,
        paced: (1_000, 5_000),
        rounds: 8,
    },
};

pub(crate) const QUICK: Extent = Extent {
    sessions: 400,
    changes: 40,
    busy: busy::Extent {
        bulk: 300_000,
        paced: (1_000, 3_000),
        rounds: 1,
    },
};

/// The arguments of the process that has the sessions.
#[derive(Debug, Args)]
pub(crate) struct SessionsArgs {
    /// A file that says who the sessions are, in JSON.
    #[arg(long)]
    spec: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    uri: String,
    database: String,
    /// Names and tokens.
    sessions: Vec<(String, String)>,
    /// The tokens of one that asks for work, and of one that provides under a name.
    pairs: Vec<([String; 2], String)>,
    /// Where to say what was done.
    done: PathBuf,
}

/// What is said to the process that has the sessions: to go on, or to rest. What is under way when it is to rest is finished.
const GO_ON: &str = "go on";
const REST: &str = "rest";

/// What the sessions did so far, while they were to go on.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Done {
    heartbeats: u64,
    changes: u64,
    seconds: f64,
    /// CPU time of their process.
    cpu_seconds: f64,
}

#[derive(Debug, Default)]
struct Tally {
    /// Whether the sessions are to go on.
    go_on: AtomicBool,
    heartbeats: AtomicU64,
    changes: AtomicU64,
}

/// A token that is valid for as long as any.
pub(crate) fn token(issuer: &Issuer, user: &str, session: &str, scopes: &[&str]) -> anyhow::Result<String> {
    let mut claims = issuer.claims(user, session, &["bench.*"]);
    claims["oa_sync_scopes"] = json!(scopes);
    let begins = claims["iat"].as_u64().context("no iat")?;
    claims["exp"] = json!(begins + 900);
    Ok(issuer.sign(&claims))
}

/// Has the lane's module trust an issuer of this process.
pub(crate) async fn issuer(lane: &Lane) -> anyhow::Result<Issuer> {
    let issuer = Issuer::start().await?;
    let trusted = json!([issuer.url, spacetime_sync_proto::access::AUDIENCE, 500]);
    lane.owner()?.call("trust_issuer", trusted).await?;
    Ok(issuer)
}

/// Lets the sessions in, and waits until all say how they are. The issuer must live as long as they do.
async fn begin(lane: &Lane, extent: Extent, done: &Path) -> anyhow::Result<(Child, Issuer)> {
    let issuer = issuer(lane).await?;
    let sessions = (0..extent.sessions).map(|at| {
        let session = format!("s{at}");
        let token = token(
            &issuer,
            &format!("u{}", at / OF_ONE_USER),
            &session,
            &["sync.subscribe"],
        )?;
        Ok((session, token))
    });
    let pairs = (0..extent.changes / CHANGES).map(|at| {
        let [asks, provides] = [format!("asks{at}"), format!("provides{at}")];
        let tokens = [
            token(&issuer, &asks, &asks, &["sync.subscribe", "sync.assignment.open"])?,
            token(&issuer, &provides, &provides, &["sync.subscribe", "sync.provider"])?,
        ];
        Ok((tokens, provides))
    });
    let spec = Spec {
        uri: lane.server.uri().to_owned(),
        database: lane.name.clone(),
        sessions: sessions.collect::<anyhow::Result<_>>()?,
        pairs: pairs.collect::<anyhow::Result<_>>()?,
        done: done.to_owned(),
    };
    let file = lane.path("sessions.json");
    std::fs::write(&file, serde_json::to_vec(&spec)?)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("sessions").arg("--spec").arg(&file);
    let mut child = Child::start("the sessions", &command)?;
    child.ready().await?;
    Ok((child, issuer))
}

/// The process that has the sessions. It runs until it is killed.
pub(crate) async fn run(args: SessionsArgs) -> anyhow::Result<()> {
    let spec: Spec = serde_json::from_slice(&std::fs::read(&args.spec)?)?;
    let (tally, spec) = (Arc::new(Tally::default()), Arc::new(spec));
    let mut tasks = JoinSet::new();
    let (opened, mut open) = mpsc::channel(AT_ONCE);
    let (opening, begins) = (Arc::new(Semaphore::new(AT_ONCE)), tokio::time::Instant::now());
    for (number, (session, token)) in spec.sessions.iter().cloned().enumerate() {
        let (spec, tally) = (Arc::clone(&spec), Arc::clone(&tally));
        let (opening, opened) = (Arc::clone(&opening), opened.clone());
        // They do not all speak at once.
        let first = begins + HEARTBEAT.mul_f64(number as f64 / spec.sessions.len() as f64);
        tasks.spawn(async move {
            let turn = opening.acquire().await?;
            let socket = connect(&spec, &token).await?;
            drop(turn);
            opened.send(()).await?;
            // From now on it hears what it is told: whoever answers nothing is cut off.
            says(socket, session, first, tally).await
        });
    }
    for _ in &spec.sessions {
        tokio::select! {
            _ = open.recv() => {}
            ended = tasks.join_next() => ended.context("nobody is there")???,
        }
    }
    for (number, ([asks, provides], name)) in spec.pairs.iter().cloned().enumerate() {
        let pair = [connect(&spec, &asks).await?, connect(&spec, &provides).await?];
        let first = tokio::time::Instant::now() + ASSIGNMENT.mul_f64(number as f64 / spec.pairs.len() as f64);
        tasks.spawn(works(pair, name, first, Arc::clone(&tally)));
    }
    println!("{READY}");
    let mut said = BufReader::new(tokio::io::stdin()).lines();
    let mut all = Done::default();
    tokio::select! {
        ended = tasks.join_next() => ended.context("nobody is there")??,
        done = listen(&mut said, &tally, &mut all, &spec.done) => done,
    }
}

/// Has the sessions go on and rest as they are told, and says what they did so far whenever they rest.
async fn listen(said: &mut Lines<BufReader<Stdin>>, tally: &Tally, all: &mut Done, file: &Path) -> anyhow::Result<()> {
    let mut since = None;
    while let Some(line) = said.next_line().await? {
        let now = tally.read();
        match line.as_str() {
            GO_ON => {
                since.get_or_insert((now, Instant::now()));
                tally.go_on.store(true, Ordering::Relaxed);
            }
            REST => {
                tally.go_on.store(false, Ordering::Relaxed);
                if let Some((before, at)) = since.take() {
                    all.add(&before, &now, at.elapsed());
                    std::fs::write(file, serde_json::to_vec(all)?)?;
                }
            }
            other => anyhow::bail!("a line that nobody knows: {other}"),
        }
        println!("{line}");
    }
    Ok(())
}

impl Done {
    /// Adds what was done between two looks.
    fn add(&mut self, before: &Self, now: &Self, between: Duration) {
        self.heartbeats += now.heartbeats - before.heartbeats;
        self.changes += now.changes - before.changes;
        self.cpu_seconds += now.cpu_seconds - before.cpu_seconds;
        self.seconds += between.as_secs_f64();
    }
}

impl Tally {
    fn read(&self) -> Done {
        Done {
            heartbeats: self.heartbeats.load(Ordering::Relaxed),
            changes: self.changes.load(Ordering::Relaxed),
            seconds: 0.0,
            cpu_seconds: Cpu::of("self").unwrap_or_default().whole().as_secs_f64(),
        }
    }

    fn goes_on(&self) -> bool {
        self.go_on.load(Ordering::Relaxed)
    }
}

/// A connection that sees what its user sees, as a client's does.
async fn connect(spec: &Spec, token: &str) -> anyhow::Result<Socket> {
    let mut socket = Socket::open(&spec.uri, &spec.database, Some(token))
        .await?
        .map_err(|refused| anyhow::anyhow!("refused: {refused:?}"))?;
    let key = socket.audience_key("", LIMIT).await?;
    for table in ["session_presence", "compute_assignment_change", "compute_assignment"] {
        socket
            .subscribe(&format!("SELECT * FROM {table} WHERE audience_key = {key}"))
            .await?;
    }
    Ok(socket)
}

/// Says how a node is, every so often.
async fn says(
    mut socket: Socket,
    session: String,
    first: tokio::time::Instant,
    tally: Arc<Tally>,
) -> anyhow::Result<()> {
    let mut beats = interval_at(first, HEARTBEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let said = words::upsert_presence(&session, "node", "online", ["eu", "desktop"], &[]);
    loop {
        tokio::select! {
            message = socket.next() => {
                let message = message.map_err(|reason| anyhow::anyhow!("{session} was closed: {reason}"))?;
                if words::is_done(&message)? {
                    tally.heartbeats.fetch_add(1, Ordering::Relaxed);
                }
            }
            _ = beats.tick() => if tally.goes_on() {
                socket.reducer("upsert_presence", said.clone()).await?;
            },
        }
    }
}

/// Takes one assignment after the other to its end.
async fn works(
    [mut asks, mut provides]: [Socket; 2],
    name: String,
    first: tokio::time::Instant,
    tally: Arc<Tally>,
) -> anyhow::Result<()> {
    let can = words::arguments(&(&name, "gpu", 1_u64, 21_u64, "eu", "{}", 86_400_u64));
    done(&mut provides, "publish_provider_capability", can).await?;
    let document = format!(r#"{{"do":"{}"}}"#, "x".repeat(500));
    let mut begins = interval_at(first, ASSIGNMENT);
    begins.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0.. {
        loop {
            tokio::select! {
                _ = begins.tick() => if tally.goes_on() { break },
                // Whoever answers nothing is cut off.
                heard = asks.next() => drop(heard.map_err(|reason| anyhow::anyhow!("{name} was closed: {reason}"))?),
                heard = provides.next() => drop(heard.map_err(|reason| anyhow::anyhow!("{name} was closed: {reason}"))?),
            }
        }
        let request = format!("{name}-{number}");
        let opening = words::arguments(&(&request, &name, &document, 600_u64));
        done(&mut asks, "open_compute_assignment", opening).await?;
        for (version, status) in (1_u64..).zip(["accepted", "running", "succeeded"]) {
            let change = words::arguments(&(&request, status, version, status, "", ""));
            done(&mut provides, "update_compute_assignment", change).await?;
        }
        tally.changes.fetch_add(CHANGES as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Makes a call, and waits until it is done.
async fn done(socket: &mut Socket, reducer: &str, args: Vec<u8>) -> anyhow::Result<()> {
    socket.reducer(reducer, args).await?;
    socket.answered(1, LIMIT).await
}

impl Report {
    pub(crate) async fn sessions(&mut self, extent: Extent) -> anyhow::Result<()> {
        let Extent { sessions, changes, .. } = extent;
        self.say(&format!(
            "{sessions} sessions that say every 5 s how they are, {changes} changes of assignments a second, and busy streams \
             beside them"
        ));
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("done.json");
        let (lane, bridge) = busy::lane(&self.cluster).await?;
        let (mut sessions_process, issuer) = begin(&lane, extent, &file).await?;
        let mut set = async |go_on| {
            let line = if go_on { GO_ON } else { REST };
            sessions_process.say(line).await?;
            anyhow::ensure!(sessions_process.line().await? == line, "the sessions do not listen");
            Ok(())
        };
        // Whoever says something for the first time is told of to others. What follows only repeats it.
        set(true).await?;
        tokio::time::sleep(2 * HEARTBEAT).await;
        let mut used = async |go_on| {
            set(go_on).await?;
            tokio::time::sleep(HEARTBEAT).await;
            let meter = Meter::start(self.cluster.postmaster(), &bridge.process, lane.server.process());
            tokio::time::sleep(2 * HEARTBEAT).await;
            anyhow::Ok(meter.read(2 * HEARTBEAT.as_secs(), &[]))
        };
        let (with, without) = (used(true).await?, used(false).await?);
        let ms = |of: fn(&cpu::Cpu) -> f64| (of(&with) - of(&without)) / 1_000.0;
        let alone = [
            ms(|cpu| cpu.host.unwrap_or_default()),
            ms(|cpu| cpu.bridge),
            ms(|cpu| cpu.postgres.unwrap_or_default()),
        ];
        self.say(&format!(
            "  by themselves they take of each second {:.0} ms of a core in SpacetimeDB, {:.0} ms in the bridge and {:.0} ms in Postgres",
            alone[0], alone[1], alone[2]
        ));
        let found = in_turn(&lane, extent.busy, &mut set).await?;
        set(false).await?;
        let offline = lane
            .rows("SELECT * FROM session_presence WHERE status = 'offline'", false)
            .await?;
        anyhow::ensure!(
            offline.is_empty(),
            "{} nodes went offline while they were to rest",
            offline.len()
        );
        drop((sessions_process, issuer, bridge, lane));
        let said: Done = serde_json::from_slice(&std::fs::read(&file)?)?;
        let took = Duration::from_secs_f64(said.seconds);
        let per_second = [said.heartbeats, said.changes].map(|count| rate(count, took));
        self.say(&format!(
            "  in {:.0} s: {:.0} heartbeats and {:.0} changes a second",
            said.seconds, per_second[0], per_second[1]
        ));
        let wanted = [sessions as f64 / HEARTBEAT.as_secs_f64(), changes as f64];
        for (done, wanted) in per_second.into_iter().zip(wanted) {
            anyhow::ensure!(done >= DONE_AT_LEAST * wanted, "only {done:.0} a second of {wanted:.0}");
        }
        let ratio = self.in_turn(&found);
        let (cores, theirs) = (
            std::thread::available_parallelism()?.get() as f64,
            said.cpu_seconds / said.seconds,
        );
        let of_the_rest = ratio.median * cores / (cores - theirs);
        self.say(&format!(
            "  their own process took {theirs:.2} of {cores} cores, which it would not take from the lane on the users' machines: with \
             the rest, the lane carried {of_the_rest:.2} of what it carried with all"
        ));
        self.put(
            "sessions",
            json!({
                "sessions": sessions,
                "heartbeats_per_second": two(per_second[0]),
                "changes_per_second": two(per_second[1]),
                "busy": found,
                "their_cores": two(theirs),
                "alone_ms_of_host_bridge_postgres": alone.map(two),
                "ratio_of_the_rest": two(of_the_rest),
            }),
        );
        self.calls().await
    }
}
