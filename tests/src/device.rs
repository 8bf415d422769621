//! A device of a user: a client as a process of its own that is told what to call. Its network are two proxies, one before
//! SpacetimeDB and one before the bridge.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use spacetime_sync_client as client;

use crate::follower::Follower;
use crate::lane::wait;
use crate::process::{Process, built};
use crate::proxy::{Direction, Proxy};
use crate::until;

/// How long the assignments last that devices open, and their capabilities stand.
const AN_HOUR: Duration = Duration::from_secs(3_600);
/// How long connections may take to be gone that were cut.
const LOST: Duration = Duration::from_secs(10);
/// A device that has no connection tries again after this.
const RETRY_MS: u64 = 100;

/// A line that a device reads.
#[derive(Debug, Serialize, Deserialize)]
pub struct Asked {
    /// Its answer has the same.
    pub number: u64,
    /// What to call.
    pub wish: Wish,
}

/// A call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Wish {
    /// Publishes a capability.
    Publish(Publication),
    /// Opens an assignment to all.
    Open(Opening),
    /// Changes an assignment.
    Change(Change),
}

/// The first version of a capability.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Publication {
    /// The provider.
    pub provider: String,
}

/// An assignment to open.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Opening {
    /// Its name.
    pub request: String,
}

/// A change of an assignment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Change {
    /// The assignment.
    pub request: String,
    /// The change's own name.
    pub update: String,
    /// The version that it is made to.
    pub version: u64,
    /// The state that it leads to.
    pub to: String,
    /// The provider that takes the assignment.
    pub provider: Option<String>,
}

impl From<Publication> for client::Capability {
    fn from(publication: Publication) -> Self {
        Self {
            provider_id: publication.provider,
            capability: "anything".to_owned(),
            version: 1,
            price_hint_sats: 0,
            region: String::new(),
            document: "{}".to_owned(),
            stands_for: AN_HOUR,
        }
    }
}

impl From<Opening> for client::OpenAssignment {
    fn from(opening: Opening) -> Self {
        Self {
            request_id: opening.request,
            provider_id: None,
            document: "{}".to_owned(),
            deadline: AN_HOUR,
        }
    }
}

impl From<Change> for client::ChangeAssignment {
    fn from(change: Change) -> Self {
        Self {
            request_id: change.request,
            update_id: change.update,
            expected_version: change.version,
            to: change.to.parse().unwrap_or_else(|error| panic!("{error}")),
            provider_id: change.provider,
            document: None,
        }
    }
}

/// A device, running or not.
#[derive(Debug)]
pub struct Device {
    /// The client's store, to compare it with the authority. The client itself is not started.
    pub follower: Follower,
    name: String,
    proxies: [Proxy; 2],
    process: Option<Process>,
    input: Option<ChildStdin>,
    /// Length of the log that earlier runs have left, in bytes.
    before: usize,
    asked: Vec<Wish>,
}

impl Device {
    /// A device whose client connects as this one, through proxies to SpacetimeDB and to the bridge.
    pub async fn new(follower: Follower, name: &str, targets: [SocketAddr; 2]) -> anyhow::Result<Self> {
        let [server, bridge] = targets;
        let proxies = [Proxy::start(server).await?, Proxy::start(bridge).await?];
        let [uri, bridge] = proxies.each_ref().map(|proxy| format!("http://{}", proxy.addr()));
        Ok(Self {
            follower: follower.through(&uri, &bridge),
            name: name.to_owned(),
            proxies,
            process: None,
            input: None,
            before: 0,
            asked: Vec::new(),
        })
    }

    /// Starts it. What was called before and has no answer is called again, by the same names.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let unanswered: Vec<u64> = (0..self.asked.len() as u64)
            .filter(|number| self.answer(*number).is_none())
            .collect();
        let mut command = Command::new(built("device"));
        command.args(self.follower.arguments()).args(["--node", &self.name]);
        command.args(["--retry-ms", &RETRY_MS.to_string()]);
        let log = self.follower.store().with_extension("device.log");
        self.before = std::fs::read_to_string(&log).unwrap_or_default().len();
        let (reader, writer) = std::io::pipe()?;
        self.process = None;
        self.process = Some(Process::start_fed("device", &mut command, &log, Stdio::from(reader))?);
        self.input = Some(ChildStdin::from(std::os::fd::OwnedFd::from(writer)));
        unanswered.into_iter().try_for_each(|number| self.send(number))
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(process) = &self.process {
            process.kill();
        }
    }

    /// Asks it to end, and waits until it has.
    pub async fn stop(&mut self, limit: Duration) -> anyhow::Result<()> {
        self.input = None;
        let process = self.process.as_ref().context("the device was not started")?;
        let status = process.ended(limit).await.context("the device did not end")?;
        anyhow::ensure!(status.success(), "{status}: {}", process.log());
        Ok(())
    }

    /// Nothing reaches it any more, and it goes on to be heard.
    pub fn goes_deaf(&self) {
        self.proxies.iter().for_each(|proxy| proxy.stall(Direction::ToClient));
    }

    /// Its network is gone, and what was on the way to it is lost.
    pub async fn leaves(&self) {
        for proxy in &self.proxies {
            proxy.refuse().await;
            proxy.cut();
            wait(LOST, "the connections are gone", || proxy.counts().open == 0).await;
            proxy.resume(Direction::ToClient);
        }
    }

    /// Its network is back.
    pub async fn returns(&self) {
        for proxy in &self.proxies {
            proxy.accept().await;
        }
    }

    /// Its connections break, and it can make others at once.
    pub fn cut(&self) {
        self.proxies.iter().for_each(Proxy::cut);
    }

    /// Asks for a call, and returns its number.
    pub fn ask(&mut self, wish: Wish) -> anyhow::Result<u64> {
        let number = self.asked.len() as u64;
        self.asked.push(wish);
        self.send(number)?;
        Ok(number)
    }

    fn send(&mut self, number: u64) -> anyhow::Result<()> {
        let wish = self.asked[number as usize].clone();
        let line = serde_json::to_string(&Asked { number, wish })?;
        let input = self.input.as_mut().context("the device was not started")?;
        Ok(writeln!(input, "{line}")?)
    }

    /// All that it was asked for, by number, with the answers.
    pub fn calls(&self) -> impl Iterator<Item = (&Wish, Option<Value>)> {
        (0..).zip(&self.asked).map(|(number, wish)| (wish, self.answer(number)))
    }

    /// The answer to a call: `"done"`, or an object that says why not.
    pub fn answer(&self, number: u64) -> Option<Value> {
        let log = self.log();
        let mut said = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        said.find(|line| line["answer"] == json!(number))
            .map(|line| line["is"].clone())
    }

    /// Waits for the answer to a call.
    pub async fn answered(&self, number: u64, limit: Duration) -> Value {
        let mut answer = None;
        let what = format!("{} has an answer to {:?}", self.name, self.asked[number as usize]);
        wait(limit, &what, || {
            answer = self.answer(number);
            answer.is_some()
        })
        .await;
        answer.unwrap_or_default()
    }

    /// What it sees, as it has said last since its start; null before.
    pub fn shown(&self) -> Value {
        let log = self.log();
        let said = log.get(self.before..).unwrap_or_default().lines().rev();
        let shown = said.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let shown = shown.map(|line| line["shown"].clone());
        shown.into_iter().find(|shown| !shown.is_null()).unwrap_or_default()
    }

    /// Whether everything that it sees is live.
    pub fn is_live(&self) -> bool {
        let shown = self.shown();
        shown["phase"] == "live" && shown["nodes_are_live"] == true && shown["assignments_are_live"] == true
    }

    /// Waits until it sees what is wanted.
    pub async fn sees(&self, limit: Duration, what: &str, wanted: impl Fn(&Value) -> bool) {
        let seen = until(limit, || wanted(&self.shown())).await;
        assert!(
            seen,
            "{}: expected to see {what} within {limit:?}, found {}",
            self.name,
            self.shown()
        );
    }

    /// Everything that it has said, over all its runs.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }
}
