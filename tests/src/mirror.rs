//! A mirror, as a process of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;

use crate::port;
use crate::postgres::Database;
use crate::process::{Process, built};
use crate::{until, write_secret};

/// The private key of every mirror of the tests.
pub const KEY: &str = "0101010101010101010101010101010101010101010101010101010101010101";
/// The public half.
pub const AUTHOR: &str = "1b84c5567b126440995d3ed5aaba0565d71e1834604819ff9c17f5e9d5dd078f";

/// How long a mirror may take until it handles SIGTERM.
const START: Duration = Duration::from_secs(30);

/// How mirrors of one database run: as a role of the duty alone.
#[derive(Debug)]
pub struct Mirrors {
    url: String,
    folder: tempfile::TempDir,
    key: PathBuf,
    next: std::sync::atomic::AtomicU32,
}

/// A running mirror.
#[derive(Debug)]
pub struct Mirror {
    /// The process.
    pub process: Process,
    admin: String,
}

impl Mirrors {
    /// Mirrors of a database.
    pub async fn of(database: &Database) -> anyhow::Result<Self> {
        let (_, url) = database.login(&["spacetime_sync_mirror"]).await?;
        let folder = tempfile::Builder::new().prefix("sync-mirror-").tempdir()?;
        let key = folder.path().join("mirror.key");
        write_secret(&key, KEY)?;
        Ok(Self {
            url,
            folder,
            key,
            next: 0.into(),
        })
    }

    /// The url with which they log in.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where their files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts one. It looks often and fails fast, unless `set` says otherwise.
    pub fn start(&self, set: &[(&str, &str)]) -> anyhow::Result<Mirror> {
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let admin = port::free()?;
        let name = |key: &str| format!("SPACETIME_SYNC__MIRROR__{}", key.to_uppercase());
        let mut command = Command::new(built("spacetime-sync"));
        command
            .arg("mirror")
            .env("RUST_LOG", "info")
            .env("NO_COLOR", "1")
            .env("SPACETIME_SYNC__AUTHORITY__URL", &self.url)
            .env(name("admin_listen"), admin.to_string())
            .env(name("key_file"), &self.key)
            .env(name("poll_ms"), "20")
            .env(name("backoff_ms"), "20")
            .env(name("longest_backoff_ms"), "200")
            .env(name("relay_deadline_ms"), "1000")
            .envs(set.iter().map(|(key, value)| (name(key), value)));
        let log = self.folder.path().join(format!("mirror-{number}.log"));
        Ok(Mirror {
            process: Process::start("mirror", &mut command, &log)?,
            admin: format!("http://{admin}"),
        })
    }
}

impl Mirror {
    /// A metric with its labels, e.g. `outbox_depth` or `failures_total{kind="network"}`. `None` if nobody answers.
    pub async fn metric(&self, name: &str) -> Option<u64> {
        let text = reqwest::get(format!("{}/metrics", self.admin))
            .await
            .ok()?
            .text()
            .await
            .ok()?;
        let line = format!("spacetime_sync_mirror_{name} ");
        text.lines().find_map(|found| found.strip_prefix(&line)?.parse().ok())
    }

    /// The body at a path such as `/healthz`, and whether it is a success.
    pub async fn ask(&self, path: &str) -> anyhow::Result<(bool, serde_json::Value)> {
        let answer = reqwest::get(format!("{}{path}", self.admin)).await?;
        Ok((answer.status().is_success(), answer.json().await?))
    }

    /// Waits until a metric satisfies a condition.
    pub async fn until(&self, name: &str, limit: Duration, wanted: impl Fn(u64) -> bool) {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let found = self.metric(name).await;
            if found.is_some_and(&wanted) {
                return;
            }
            assert!(self.process.is_running(), "the mirror ended");
            assert!(
                tokio::time::Instant::now() < deadline,
                "{name} is {found:?} after {limit:?}"
            );
            tokio::time::sleep(crate::STEP).await;
        }
    }

    /// Sends SIGTERM as soon as the mirror handles it, and returns the exit code.
    pub async fn stop(&self) -> anyhow::Result<i32> {
        let listens = until(START, || {
            self.process.handles(Signal::TERM) || !self.process.is_running()
        });
        anyhow::ensure!(listens.await, "the mirror did not start within {START:?}");
        self.process.signal(Signal::TERM);
        let ended = self.process.ended(START).await.context("the mirror did not stop")?;
        ended.code().context("the mirror was killed")
    }
}
