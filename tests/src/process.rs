//! Real processes, started from the binaries that were built with this crate. They are ended by their ids.

use std::fs::File;
use std::io;
use std::ops::Add;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::until;

/// Environment variables that a process gets in addition to ours.
pub type Environment = Vec<(String, String)>;

/// A child process. Killed on drop.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    log: PathBuf,
    child: Mutex<Child>,
}

impl Process {
    /// Starts the process. Both its outputs go to `log`.
    pub fn start(name: &'static str, command: &mut Command, log: &Path) -> io::Result<Self> {
        Self::start_fed(name, command, log, Stdio::null())
    }

    /// Like [`start`](Self::start), with an input.
    pub fn start_fed(
        name: &'static str,
        command: &mut Command,
        log: &Path,
        input: impl Into<Stdio>,
    ) -> io::Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        let child = dying_with_us(command)
            .stdin(input)
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{name}: {:?}: {error}", command.get_program())))?;
        Ok(Self {
            name,
            log: log.to_owned(),
            child: Mutex::new(child),
        })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child().id()
    }

    /// Sends SIGKILL, and waits until the process is gone.
    pub fn kill(&self) {
        let mut child = self.child();
        // An error means that it has already ended.
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let mut child = self.child();
        if let Ok(None) = child.try_wait()
            && let Some(pid) = Pid::from_raw(child.id() as i32)
        {
            let _ = kill_process(pid, signal);
        }
    }

    /// Whether the process has installed a handler for a signal.
    pub fn handles(&self, signal: Signal) -> bool {
        let caught = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).ok()?;
            let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
            u64::from_str_radix(mask.trim(), 16).ok()
        };
        caught().is_some_and(|mask| mask & 1 << (signal.as_raw() - 1) != 0)
    }

    /// Whether the process still runs.
    pub fn is_running(&self) -> bool {
        matches!(self.child().try_wait(), Ok(None))
    }

    /// The exit status. `None` if the process does not end within the limit.
    pub async fn ended(&self, limit: Duration) -> Option<ExitStatus> {
        let mut status = None;
        until(limit, || {
            status = self.child().try_wait().ok().flatten();
            status.is_some()
        })
        .await;
        status
    }

    /// Everything that the process has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Resident memory in MB, current and peak. `None` if the process is gone.
    pub fn memory_mb(&self) -> Option<(u64, u64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).ok()?;
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kb| kb / 1024)
        };
        Some((field("VmRSS:")?, field("VmHWM:")?))
    }

    /// CPU time used so far. `None` if the process is gone.
    pub fn cpu(&self) -> Option<Cpu> {
        Cpu::of(&self.id().to_string())
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// CPU time of a process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu {
    /// In its own code.
    pub user: Duration,
    /// In the kernel, on its behalf.
    pub kernel: Duration,
}

impl Cpu {
    /// What a process, given by id or as `self`, has used so far. `None` if it is gone.
    pub fn of(process: &str) -> Option<Self> {
        Self::at(process, 11)
    }

    /// The two times from this field on, counted from the process' state.
    fn at(process: &str, field: usize) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let time = |field: usize| {
            let ticks: f64 = fields.get(field)?.parse().ok()?;
            Some(Duration::from_secs_f64(
                ticks / rustix::param::clock_ticks_per_second() as f64,
            ))
        };
        Some(Self {
            user: time(field)?,
            kernel: time(field + 1)?,
        })
    }

    /// What a process and the children that it has waited for have used so far. `None` if it is gone.
    pub fn with_ended_children(process: &str) -> Option<Self> {
        let (own, ended) = (Self::at(process, 11)?, Self::at(process, 13)?);
        Some(own + ended)
    }

    /// User and kernel time together.
    pub fn whole(self) -> Duration {
        self.user + self.kernel
    }
}

impl Add for Cpu {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            user: self.user + other.user,
            kernel: self.kernel + other.kernel,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.char_indices().rev().nth(4_000).map_or(0, |(at, _)| at);
            eprintln!("--- {} said:\n{}\n---", self.name, &log[tail..]);
        }
    }
}

/// Wraps a command so that the kernel kills it when the thread that started it is gone. An interrupted run thus leaves
/// no process behind.
pub fn dying_with_us(command: &Command) -> Command {
    let mut wrapped = Command::new("setpriv");
    wrapped
        .args(["--pdeathsig", "KILL", "--"])
        .arg(command.get_program())
        .args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(key, value),
            None => wrapped.env_remove(key),
        };
    }
    wrapped
}

/// A binary or example that was built together with this one: `name` or `examples/name`.
pub fn built(name: &str) -> PathBuf {
    // target/release/deps/scenarios-… or target/release/demo
    let mut folder = std::env::current_exe().unwrap_or_default();
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is not built: start through ./scripts",
        path.display()
    );
    path
}
