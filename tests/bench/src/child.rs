//! A process that takes part in a measurement: it may say that it is ready, and ends with one line of JSON.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use spacetime_sync_tests::process::dying_with_us;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout};

/// What a process says on a line of its own when it waits for the first event.
pub(crate) const READY: &str = "ready";
const LIMIT: Duration = Duration::from_secs(300);

/// A running process. Killed on drop.
#[derive(Debug)]
pub(crate) struct Child {
    name: &'static str,
    child: tokio::process::Child,
    heard: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Starts a process. Its standard error is ours.
    pub(crate) fn start(name: &'static str, command: &Command) -> anyhow::Result<Self> {
        Self::spawn(name, dying_with_us(command))
    }

    /// Starts a process in a folder. Its standard error goes to a file.
    pub(crate) fn start_in(name: &'static str, command: &Command, folder: &Path, log: File) -> anyhow::Result<Self> {
        let mut command = dying_with_us(command);
        command.current_dir(folder).stderr(log);
        Self::spawn(name, command)
    }

    fn spawn(name: &'static str, command: Command) -> anyhow::Result<Self> {
        let mut command = tokio::process::Command::from(command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let heard = child.stdin.take().context("a process without input")?;
        let stdout = child.stdout.take().context("a process without output")?;
        Ok(Self {
            name,
            child,
            heard,
            lines: BufReader::new(stdout).lines(),
        })
    }

    /// The process id.
    pub(crate) fn id(&self) -> anyhow::Result<u32> {
        self.child.id().with_context(|| format!("{} has ended", self.name))
    }

    /// Says a line to a process that listens.
    pub(crate) async fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let said = self.heard.write_all(format!("{line}\n").as_bytes()).await;
        said.with_context(|| format!("{} does not listen", self.name))
    }

    /// The next line of a process that goes on after it.
    pub(crate) async fn line(&mut self) -> anyhow::Result<String> {
        let line = self.lines.next_line().await?;
        line.with_context(|| format!("{} ended early", self.name))
    }

    /// Waits until the process says that it is ready.
    pub(crate) async fn ready(&mut self) -> anyhow::Result<()> {
        let line = tokio::time::timeout(LIMIT, self.lines.next_line()).await;
        let line = line.with_context(|| format!("{} does not become ready", self.name))??;
        anyhow::ensure!(line.as_deref() == Some(READY), "{} failed: {line:?}", self.name);
        Ok(())
    }

    /// Waits until the process has ended, and returns what it reports.
    pub(crate) async fn report<T: DeserializeOwned>(mut self) -> anyhow::Result<T> {
        let name = self.name;
        let ended = async {
            let mut last = None;
            while let Some(line) = self.lines.next_line().await? {
                last = Some(line);
            }
            let status = self.child.wait().await?;
            anyhow::ensure!(status.success(), "{name} failed: {status}");
            Ok(serde_json::from_str(&last.unwrap_or_default())?)
        };
        let report = tokio::time::timeout(LIMIT, ended).await;
        report
            .with_context(|| format!("{name} took too long"))?
            .with_context(|| format!("{name} has no report"))
    }
}
