//! Runs the lane: carries out the commands of `spacetime_sync_lane` and reports back what happened. It decides nothing.
//!
//! One task owns the lane. Everything that waits is a task of its own and answers through one channel, so that it never
//! delays another stream. Only appends are sent by that task itself; the SDK's answers come through the same channel.

mod answers;
mod commands;

use std::collections::HashMap;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use spacetime_sync_authority::{Authority, AuthorityError, Candidate, Leadership};
use spacetime_sync_lane::{Command, Event, Failure, Lane, LinkId, Report, RequestId};
use spacetime_sync_proto::Sealer;
use spacetime_sync_stdb::StdbError;
use spacetime_sync_stdb::link::{Link, Target};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::config::Config;
use crate::status::Status;
use crate::tasks::joined;
use crate::timer::Timer;

use answers::{from_authority, from_stdb};

/// How many events the runner takes in before it carries out the commands that follow.
const EVENTS_PER_TURN: usize = 256;

/// Why the bridge ended by itself. A person must change something.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RunError(String);

/// A neighbour of the lane in this process. The runner tells it about connections, and does not know what it does.
pub trait Neighbour: Send {
    /// The authority is connected. Returns the neighbour's own handles to it, whose idle connections the runner drops when
    /// the lead is lost.
    fn connected(&self, authority: &Authority) -> Vec<Authority>;

    /// A new link to SpacetimeDB is up.
    fn relinked(&self);

    /// Whether SpacetimeDB leads to another database.
    fn strayed(&self, strayed: bool);
}

/// Runs the bridge until `stop` says so, and then finishes what is in flight. `reports` brings clients' reports that
/// SpacetimeDB contradicts the authority.
pub async fn run(
    config: Config,
    target: Target,
    sealer: Arc<dyn Sealer>,
    status: Arc<Status>,
    neighbour: Option<Box<dyn Neighbour>>,
    reports: mpsc::Receiver<Report>,
    stop: watch::Receiver<bool>,
) -> Result<(), RunError> {
    Runner::new(config, target, sealer, status, neighbour)
        .run(reports, stop)
        .await
}

/// What tasks tell the runner.
enum Happened {
    /// An event that goes to the lane as it is.
    Event(Event),
    /// The attempt to connect to the authority has ended.
    Opened(RequestId, Result<Authority, AuthorityError>),
    /// The candidate has asked for the lead.
    AskedForLead(RequestId, Candidate, Result<Option<Leadership>, AuthorityError>),
    /// The attempt to connect to SpacetimeDB has ended.
    Dialed(LinkId, Result<Link, StdbError>),
}

struct Runner {
    config: Arc<Config>,
    target: Target,
    sealer: Arc<dyn Sealer>,
    status: Arc<Status>,
    neighbour: Option<Box<dyn Neighbour>>,
    lane: Lane,
    started: Instant,
    /// Commands that are not carried out yet.
    commands: Vec<Command>,
    authority: Option<Authority>,
    /// The handles to the authority of the runner and of its neighbour. The runner drops their idle connections when the lead
    /// is lost.
    desks: Vec<Authority>,
    candidate: Option<Candidate>,
    lead: Option<Leadership>,
    links: HashMap<LinkId, Arc<Link>>,
    dials: HashMap<LinkId, AbortHandle>,
    /// The bridge needs every one of them, so a panic in one ends the bridge.
    tasks: JoinSet<()>,
    events: mpsc::UnboundedSender<Happened>,
    inbox: mpsc::UnboundedReceiver<Happened>,
    ended: Option<Result<(), Failure>>,
}

impl Runner {
    fn new(
        config: Config,
        target: Target,
        sealer: Arc<dyn Sealer>,
        status: Arc<Status>,
        neighbour: Option<Box<dyn Neighbour>>,
    ) -> Self {
        let (events, inbox) = mpsc::unbounded_channel();
        Self {
            lane: Lane::new(config.lane(), rand::random()),
            started: status.started(),
            config: Arc::new(config),
            target,
            sealer,
            status,
            neighbour,
            commands: Vec::new(),
            authority: None,
            desks: Vec::new(),
            candidate: None,
            lead: None,
            links: HashMap::new(),
            dials: HashMap::new(),
            tasks: JoinSet::new(),
            events,
            inbox,
            ended: None,
        }
    }

    async fn run(
        mut self,
        mut reports: mpsc::Receiver<Report>,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), RunError> {
        let mut stopping = false;
        let mut due = None;
        let timer = Timer::at(Instant::now()).map_err(no_timer)?;
        loop {
            tokio::select! {
                biased;
                // First. Otherwise a bridge under load would not notice that it must stop.
                () = stopped(&mut stop), if !stopping => {
                    stopping = true;
                    self.step(Event::Stop);
                }
                // Before the bridge sends anything more, because another bridge may lead by now.
                () = lost(&mut self.lead) => {
                    self.lead = None;
                    self.step(Event::LeadLost);
                }
                // Before the events, which never end under load. Otherwise the bridge would notice a panic late.
                Some(ended) = self.tasks.join_next() => {
                    joined(ended);
                    while let Some(ended) = self.tasks.try_join_next() {
                        joined(ended);
                    }
                }
                // Before the timer. If the process was suspended, answers that arrived in time are not late.
                Some(happened) = self.inbox.recv() => {
                    self.take(happened);
                    for _ in 1..EVENTS_PER_TURN {
                        let Ok(happened) = self.inbox.try_recv() else { break };
                        self.take(happened);
                    }
                }
                // After what the lane itself asked for: it can wait.
                Some(report) = reports.recv() => self.step(Event::Reported(report)),
                fired = timer.fired() => {
                    fired.map_err(no_timer)?;
                    due = None;
                }
            }
            self.lane.turn(self.started.elapsed(), &mut self.commands);
            self.carry_out();
            self.status.publish(self.lane.vitals());
            if let Some(ended) = self.ended.take() {
                self.end().await;
                return ended.map_err(|failure| RunError(failure.text));
            }
            let next = Some(self.started + self.lane.next_due());
            if let Some(at) = next
                && next != due
            {
                due = next;
                timer.set(at).map_err(no_timer)?;
            }
        }
    }

    fn step(&mut self, event: Event) {
        self.lane.step(self.started.elapsed(), event, &mut self.commands);
    }

    fn take(&mut self, happened: Happened) {
        match happened {
            Happened::Event(event) => self.step(event),
            Happened::Opened(request, opened) => {
                let opened = opened.map(|authority| self.attach(authority));
                self.step(Event::Opened(request, opened.map_err(|error| from_authority(&error))));
            }
            Happened::AskedForLead(request, candidate, lead) => {
                self.candidate = Some(candidate);
                let lead = lead.map(|lead| {
                    self.lead = lead;
                    self.lead.is_some()
                });
                self.step(Event::Lead(request, lead.map_err(|error| from_authority(&error))));
            }
            Happened::Dialed(id, dialed) => {
                self.dials.remove(&id);
                let dialed = dialed.map(|link| drop(self.links.insert(id, Arc::new(link))));
                self.step(Event::Dialed(id, dialed.map_err(from_stdb)));
            }
        }
    }

    /// Keeps the connected authority. Its clones share its connections.
    fn attach(&mut self, authority: Authority) {
        self.desks.push(authority.clone());
        if let Some(neighbour) = &self.neighbour {
            self.desks.extend(neighbour.connected(&authority));
        }
        self.candidate = Some(authority.candidate());
        self.authority = Some(authority);
    }

    /// Closes the links, clears the sleeping flag and releases the lead, so that a standby can take over at once.
    async fn end(mut self) {
        self.links.clear();
        let Some(authority) = self.authority.take() else { return };
        if let Some(lead) = self.lead.take() {
            let _ = authority.set_sleeping(false).await;
            lead.release().await;
        }
        authority.close().await;
    }
}

fn no_timer(error: io::Error) -> RunError {
    RunError(format!("the timer failed: {error}"))
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, as when the process ends.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn lost(lead: &mut Option<Leadership>) {
    match lead {
        Some(lead) => lead.lost().await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests;
