//! Where the CPU time of an event goes: `perf` samples the machine during a run, and each sample counts for its process and
//! for the step that its function belongs to.

mod steps;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};
use spacetime_sync_tests::postgres::Cluster;
use tokio::process::{Child, Command};

use crate::lane::{Run, Runner};
use crate::measure::Size;
use steps::{Frame, step_of};

/// Samples of a core in a second. No round number, so that it does not fall in step with timers.
const PER_SECOND: u64 = 997;
/// Single events per second.
const PACE: u64 = 1_000;
const SIZE: Size = Size::Bytes(512);
/// How many functions that belong to no step are shown.
const SHOWN: usize = 12;
/// How long `perf` may take to begin, and to end.
const LIMIT: Duration = Duration::from_secs(30);

/// Samples both cases and prints a table of each.
pub(crate) async fn run(quick: bool) -> anyhow::Result<()> {
    let (bulk, paced) = if quick { (100_000, 5_000) } else { (400_000, 30_000) };
    let cluster = Cluster::start().await?;
    let runner = Runner::start(&cluster).await?;
    let perf = Perf::start().await?;
    let run = runner.stream(bulk, SIZE, 1).await?;
    show(
        "bulk writers while the lane delivers",
        bulk,
        &run,
        &perf.stop().await?,
        &runner,
    );
    let runner = Runner::start(&cluster).await?;
    let perf = Perf::start().await?;
    let (run, ..) = runner.paced(PACE, paced, SIZE).await?;
    show(
        "1,000 single events per second",
        paced,
        &run,
        &perf.stop().await?,
        &runner,
    );
    Ok(())
}

/// A recording under way.
struct Perf {
    folder: tempfile::TempDir,
    child: Child,
}

impl Perf {
    async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let child = Command::new("perf")
            .args([
                "record",
                "--all-cpus",
                "--event",
                "cpu-clock",
                "--call-graph",
                "fp",
                "--freq",
            ])
            .arg(PER_SECOND.to_string())
            .arg("--output")
            .arg(folder.path().join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start perf: install it (Debian: apt-get install linux-perf)")?;
        let mut perf = Self { folder, child };
        let data = perf.folder.path().join("data");
        let begun = || data.metadata().is_ok_and(|data| data.len() > 0) || matches!(perf.child.try_wait(), Ok(Some(_)));
        spacetime_sync_tests::until(LIMIT, begun).await;
        Ok(perf)
    }

    /// Ends the recording and counts its samples.
    async fn stop(self) -> anyhow::Result<Samples> {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id as i32));
        if let Some(pid) = pid {
            // If it has ended by itself, its output says why.
            let _ = kill_process(pid, Signal::INT);
        }
        let ended = tokio::time::timeout(LIMIT, self.child.wait_with_output());
        let said = ended.await.context("perf does not end")??.stderr;
        let data = self.folder.path().join("data");
        let script = script(&data).await?;
        let samples = Samples::of(&script);
        ensure!(
            !samples.counts.is_empty(),
            "perf recorded nothing; it needs root, or a kernel.perf_event_paranoid below 1: {}",
            String::from_utf8_lossy(&said)
        );
        Ok(samples)
    }
}

async fn script(data: &Path) -> anyhow::Result<String> {
    let mut perf = Command::new("perf");
    perf.args([
        "script",
        "--show-task-events",
        "--no-inline",
        "--fields",
        "comm,pid,tid,ip,sym,dso",
        "--input",
    ]);
    let output = perf.arg(data).kill_on_drop(true).output().await?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How often each step of each process was met.
#[derive(Debug, Default)]
struct Samples {
    /// By process and step.
    counts: HashMap<(u32, &'static str), u64>,
    /// What each process is called.
    names: HashMap<u32, String>,
    /// The functions that belong to no step, by process.
    unknown: HashMap<(u32, String), u64>,
}

impl Samples {
    /// Reads what `perf script` writes: a line for the start of a program, or a line for a sample, its functions from the
    /// innermost on, and an empty line.
    fn of(script: &str) -> Self {
        let mut samples = Self::default();
        let (mut process, mut frames) = (None, Vec::new());
        for line in script.lines().chain([""]) {
            if let Some((_, started)) = line.split_once("PERF_RECORD_COMM") {
                samples.name(started);
            } else if let Some((_, forked)) = line.split_once("PERF_RECORD_FORK") {
                samples.fork(forked);
            } else if line.is_empty() {
                if let Some(process) = process.take() {
                    samples.count(process, &frames);
                }
                frames.clear();
            } else if line.starts_with(['\t', ' ']) && process.is_some() {
                frames.extend(Frame::parse(line));
            } else if !line.contains("PERF_RECORD_") {
                let ids = line.split_whitespace().next_back().and_then(|ids| ids.split_once('/'));
                process = ids.and_then(|(process, _)| process.parse().ok());
            }
        }
        samples
    }

    /// ` exec: name:process/thread`, or the same without `exec`, of which only a process' first thread counts.
    fn name(&mut self, started: &str) {
        let parts = started.split_once(": ").and_then(|(_, named)| named.rsplit_once(':'));
        if let Some((name, ids)) = parts
            && let Some((process, thread)) = ids.trim().split_once('/')
            && process == thread
            && let Ok(process) = process.parse()
        {
            self.names.insert(process, name.to_owned());
        }
    }

    /// `(child:thread):(parent:thread)`: a child is called as its parent until it says otherwise.
    fn fork(&mut self, forked: &str) {
        let ids: Vec<u32> = forked
            .split(|other: char| !other.is_ascii_digit())
            .filter_map(|id| id.parse().ok())
            .collect();
        if let [child, _, parent, _] = ids[..]
            && child != parent
            && let Some(name) = self.names.get(&parent).cloned()
        {
            self.names.insert(child, name);
        }
    }

    fn count(&mut self, process: u32, frames: &[Frame<'_>]) {
        let step = step_of(frames);
        *self.counts.entry((process, step)).or_default() += 1;
        if step == steps::OTHER
            && process > 0
            && let Some(innermost) = frames.first()
        {
            *self.unknown.entry((process, innermost.to_string())).or_default() += 1;
        }
    }
}

/// The columns of a table.
const ROLES: [&str; 5] = ["Postgres", "bridge", "host", "client", "writers"];
/// The writers are the runtime's, and no part of the lane.
const WRITERS: usize = 4;

fn role_of(process: u32, name: &str, host: Option<u32>) -> Option<usize> {
    match name {
        "postgres" => Some(0),
        _ if Some(process) == host => Some(2),
        "spacetime-sync" => Some(1),
        _ if process == std::process::id() => Some(WRITERS),
        "bench" => Some(3),
        _ => None,
    }
}

fn show(what: &str, events: u64, run: &Run, samples: &Samples, runner: &Runner) {
    let host = runner.lane.server.process().map(|host| host.id());
    let us = |count: u64| count as f64 * 1e6 / PER_SECOND as f64 / events as f64;
    let mut table: BTreeMap<&str, [u64; ROLES.len()]> = BTreeMap::new();
    let mut elsewhere = 0;
    let role = |process: &u32| role_of(*process, samples.names.get(process).map_or("", String::as_str), host);
    for ((process, step), count) in &samples.counts {
        match role(process) {
            Some(role) => table.entry(step).or_default()[role] += count,
            None if *process > 0 => elsewhere += count,
            None => {}
        }
    }
    let sum = |row: &[u64; ROLES.len()]| row[..WRITERS].iter().sum::<u64>();
    let mut rows: Vec<_> = table.into_iter().collect();
    rows.sort_by_key(|(_, row)| std::cmp::Reverse(sum(row)));
    let mut all = [0; ROLES.len()];
    for (_, row) in &rows {
        all.iter_mut().zip(row).for_each(|(all, count)| *all += count);
    }
    println!("{what}: µs of CPU for an event, {events} events of 512 bytes");
    let [columns @ .., writers] = ROLES;
    let columns: String = columns.iter().map(|role| format!("{role:>10}")).collect();
    println!("{:<32}{columns}{:>10}   ({writers})", "", "sum");
    for (step, row) in rows.iter().copied().chain([("all", all)]) {
        let columns: String = row[..WRITERS]
            .iter()
            .map(|count| format!("{:>10.2}", us(*count)))
            .collect();
        println!("{step:<32}{columns}{:>10.2}   {:>9.2}", us(sum(&row)), us(row[WRITERS]));
    }
    println!(
        "by the kernel's clocks, and without the start of bridge and client, {}",
        run.cpu
    );
    println!("other processes on this machine: {:.2} µs", us(elsewhere));
    let mut unknown: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for ((process, function), count) in &samples.unknown {
        if let Some(role) = role(process).filter(|role| *role != WRITERS) {
            *unknown.entry((ROLES[role], function)).or_default() += count;
        }
    }
    let mut unknown: Vec<_> = unknown.into_iter().collect();
    unknown.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    println!("most of `{}`:", steps::OTHER);
    for ((role, function), count) in unknown.iter().take(SHOWN) {
        println!("{role:>12}{:>10.2}   {function}", us(*count));
    }
    println!();
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "\
sh     7/7     PERF_RECORD_COMM exec: postgres:7/7
tokio-rt-worker     8/9     PERF_RECORD_COMM: tokio-rt-worker:8/9
postgres     7/7     PERF_RECORD_FORK(9:9):(7:7)
postgres     9/9     
\t          401000 _bt_doinsert (/usr/lib/postgresql/15/bin/postgres)
\t          401100 index_insert (/usr/lib/postgresql/15/bin/postgres)

postgres     7/7     
\tffffffff81000000 copy_page ([kernel.kallsyms])
\tffffffff81000010 tcp_sendmsg ([kernel.kallsyms])
\t          401100 secure_write (/usr/lib/postgresql/15/bin/postgres)

tokio-rt-worker     8/9     
\t          501000 mystery (/opt/bin/bench)
";

    #[test]
    fn a_sample_counts_for_its_process_and_its_step() {
        let samples = Samples::of(SCRIPT);
        assert_eq!(samples.names, [7, 9].map(|id| (id, "postgres".to_owned())).into());
        let expected = [
            ((9, "index insertion"), 1),
            ((7, "kernel: sockets"), 1),
            ((8, steps::OTHER), 1),
        ];
        assert_eq!(samples.counts, HashMap::from(expected));
        assert_eq!(samples.unknown, HashMap::from([((8, "mystery (bench)".to_owned()), 1)]));
    }
}
