//! Runs the lane: carries out what `spacetime_sync_lane` decides, and tells it what became of it. It decides nothing.
//!
//! One task owns the lane. Whatever waits is a task of its own, which answers through one channel, so nothing that waits
//! ever holds up another stream. Calls of the live path are no tasks: they are sent here, and the SDK's answers come
//! through the same channel.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spacetime_sync_authority::{Authority, AuthorityError, Candidate, Leadership};
use spacetime_sync_lane::{
    Answer, Command, Event, Failure, Lane, Level, LinkId, Notice, Page, Record, Recorded, RequestId, Standing,
    is_doubtful, judge,
};
use spacetime_sync_proto::{ChainHash, Seq, StreamId, error_text};
use spacetime_sync_stdb::StdbError;
use spacetime_sync_stdb::link::{Appended, Link, Target};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::config::Config;
use crate::status::Status;
use crate::tasks::joined;
use crate::upkeep;

/// Events taken in one turn, before what they lead to is carried out.
const EVENTS_PER_TURN: usize = 256;

/// Why the bridge ends by itself: a person must change something.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RunError(String);

/// A neighbour of the lane in this process. The runner tells it what it needs, and does not know what it does.
pub trait Neighbour: Send {
    /// The authority is connected. Returns the neighbour's own handles to it: their idle connections are dropped when the
    /// lead is lost.
    fn connected(&self, authority: &Authority) -> Vec<Authority>;

    /// The link to SpacetimeDB is a new one.
    fn relinked(&self);
}

/// Runs until told to stop, then finishes what is in flight.
pub async fn run(
    config: Config,
    target: Target,
    status: Arc<Status>,
    neighbour: Option<Box<dyn Neighbour>>,
    stop: watch::Receiver<bool>,
) -> Result<(), RunError> {
    Runner::new(config, target, status, neighbour).run(stop).await
}

/// What tasks tell the runner.
enum Happened {
    /// Just that.
    Event(Event),
    /// A connection to the authority.
    Opened(RequestId, Result<Authority, AuthorityError>),
    /// The lead was asked for.
    AskedForLead(RequestId, Candidate, Result<Option<Leadership>, AuthorityError>),
    /// An attempt to connect to SpacetimeDB.
    Dialed(LinkId, Result<Link, StdbError>),
}

struct Runner {
    config: Arc<Config>,
    target: Target,
    status: Arc<Status>,
    neighbour: Option<Box<dyn Neighbour>>,
    lane: Lane,
    started: Instant,
    /// What the lane asked for and is not carried out yet.
    commands: Vec<Command>,
    authority: Option<Authority>,
    /// Others that share the authority's connections or have their own to it.
    desks: Vec<Authority>,
    candidate: Option<Candidate>,
    lead: Option<Leadership>,
    links: HashMap<LinkId, Arc<Link>>,
    dials: HashMap<LinkId, AbortHandle>,
    /// All of them are needed: a panic in one is one of the bridge.
    tasks: JoinSet<()>,
    events: mpsc::UnboundedSender<Happened>,
    inbox: mpsc::UnboundedReceiver<Happened>,
    ended: Option<Result<(), Failure>>,
}

impl Runner {
    fn new(config: Config, target: Target, status: Arc<Status>, neighbour: Option<Box<dyn Neighbour>>) -> Self {
        let (events, inbox) = mpsc::unbounded_channel();
        Self {
            lane: Lane::new(config.lane(), rand::random()),
            started: status.started(),
            config: Arc::new(config),
            target,
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

    async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<(), RunError> {
        let mut stopping = false;
        let mut due = Instant::now();
        let mut timer = std::pin::pin!(tokio::time::sleep_until(due.into()));
        loop {
            tokio::select! {
                biased;
                // First, or a bridge under load would not hear that it is to stop.
                () = stopped(&mut stop), if !stopping => {
                    stopping = true;
                    self.step(Event::Stop);
                }
                // Another bridge may lead by now: before anything more is sent in the name of this one.
                () = lost(&mut self.lead) => {
                    self.lead = None;
                    self.step(Event::LeadLost);
                }
                // Before what arrives all the time under load, or a panic would be noticed when that ends.
                Some(ended) = self.tasks.join_next() => {
                    joined(ended);
                    while let Some(ended) = self.tasks.try_join_next() {
                        joined(ended);
                    }
                }
                // Before the timer: after the process stood still, an answer that has arrived is not late.
                Some(happened) = self.inbox.recv() => {
                    self.take(happened);
                    for _ in 1..EVENTS_PER_TURN {
                        let Ok(happened) = self.inbox.try_recv() else { break };
                        self.take(happened);
                    }
                }
                () = &mut timer => {}
            }
            self.lane.turn(self.started.elapsed(), &mut self.commands);
            self.carry_out();
            self.status.publish(self.lane.vitals());
            if let Some(ended) = self.ended.take() {
                self.end().await;
                return ended.map_err(|failure| RunError(failure.text));
            }
            let next = self.started + self.lane.next_due();
            if next != due {
                due = next;
                timer.as_mut().reset(due.into());
            } else if timer.is_elapsed() {
                // What is due was done, and is due again.
                timer.as_mut().reset(due.into());
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

    /// Clones of an authority share its connections.
    fn attach(&mut self, authority: Authority) {
        self.desks.push(authority.clone());
        if let Some(neighbour) = &self.neighbour {
            self.desks.extend(neighbour.connected(&authority));
        }
        self.candidate = Some(authority.candidate());
        self.authority = Some(authority);
    }

    fn carry_out(&mut self) {
        let mut commands = std::mem::take(&mut self.commands);
        for command in commands.drain(..) {
            self.do_command(command);
        }
        self.commands = commands;
    }

    fn do_command(&mut self, command: Command) {
        match command {
            Command::Append {
                link,
                call,
                stream_id,
                frame,
            } => {
                let Some(connection) = self.links.get(&link) else {
                    return;
                };
                let events = self.events.clone();
                connection.append(&stream_id, frame, move |became| {
                    let answer = match became {
                        Appended::Durable => Answer::Acked,
                        Appended::Refused(refusal) => Answer::Refused(refusal),
                        Appended::Failed(why) => Answer::Lost(why),
                    };
                    let _ = events.send(Happened::Event(Event::Answered(link, call, answer)));
                });
            }
            Command::OpenAuthority(request) => {
                let (config, events) = (self.config.clone(), self.events.clone());
                self.tasks.spawn(async move {
                    let authority = &config.authority;
                    let opened = Authority::connect(authority.url.expose(), authority.pool_size).await;
                    let _ = events.send(Happened::Opened(request, opened));
                });
            }
            Command::AskForLead(request) => {
                let Some(mut candidate) = self.candidate.take() else {
                    return;
                };
                let events = self.events.clone();
                self.tasks.spawn(async move {
                    let lead = candidate.try_lead().await;
                    let _ = events.send(Happened::AskedForLead(request, candidate, lead));
                });
            }
            Command::BeginLead => self.begin_lead(),
            Command::EndLead => {
                self.tasks.abort_all();
                self.links.clear();
                self.dials.clear();
                self.desks.iter().for_each(Authority::forget_connections);
            }
            Command::Listen(request) => {
                let events = self.events.clone();
                self.spawn(async move |authority| listen(&authority, request, &events).await);
            }
            Command::SetSleeping(request, sleeping) => self.ask(
                async move |authority| authority.set_sleeping(sleeping).await,
                move |set| Event::SleepingSet(request, set),
            ),
            Command::Look { request, after, limit } => {
                let asked = Instant::now();
                self.ask(
                    async move |authority| authority.dirty_streams(after.as_ref(), limit).await,
                    move |found| Event::Looked {
                        request,
                        found,
                        took: asked.elapsed(),
                    },
                );
            }
            Command::ListStreams { request, after, limit } => self.ask(
                async move |authority| authority.streams_after(after.as_ref(), limit).await,
                move |listed| {
                    let ids = listed.map(|all| all.into_iter().map(|progress| progress.stream_id).collect());
                    Event::Listed(request, ids)
                },
            ),
            Command::ReadStandings(request, at) => self.ask(
                async move |authority| authority.standings(&at).await,
                move |standings| {
                    Event::Standings(request, standings.map(|all| all.into_iter().map(standing).collect()))
                },
            ),
            Command::ReadPage {
                link,
                stream_id,
                after,
                base_chain,
            } => {
                let (config, id) = (self.config.clone(), stream_id.clone());
                self.ask(
                    async move |authority| read_page(&authority, &config, &id, after, base_chain).await,
                    move |page| Event::Page { link, stream_id, page },
                );
            }
            Command::Record(request, records) => self.ask(
                async move |authority| {
                    authority
                        .advance_published(&records.into_iter().map(row).collect::<Vec<_>>())
                        .await
                },
                move |recorded| Event::Recorded(request, recorded.map(outcome)),
            ),
            Command::RecordExactly(request, records) => self.ask(
                async move |authority| {
                    authority
                        .set_published(&records.into_iter().map(row).collect::<Vec<_>>())
                        .await
                },
                move |recorded| Event::Recorded(request, recorded.map(outcome)),
            ),
            Command::ReadPolicy(request) => self.ask(
                async move |authority| authority.retention_classes().await,
                move |classes| Event::Policy(request, classes),
            ),
            Command::ReadEpoch(request) => self.ask(
                async move |authority| authority.epoch().await,
                move |epoch| Event::Epoch(request, epoch),
            ),
            Command::AdvanceBeat(request) => self.ask(
                async move |authority| authority.beat().await,
                move |advanced| Event::BeatAdvanced(request, advanced),
            ),
            Command::Dial(id) => self.dial(id),
            Command::HangUp(id) => {
                if let Some(dial) = self.dials.remove(&id) {
                    dial.abort();
                }
                if let Some(link) = self.links.remove(&id) {
                    // A task may still hold it.
                    link.close();
                }
            }
            Command::Relinked => {
                if let Some(neighbour) = &self.neighbour {
                    neighbour.relinked();
                }
            }
            Command::ReadHeads(link, request, streams) => self.call(
                link,
                async move |link| link.heads(&streams).await,
                move |heads| Event::Heads(link, request, heads),
            ),
            Command::Rewind {
                link,
                request,
                stream_id,
                seen,
                to,
            } => self.call(
                link,
                async move |link| link.rewind_step(&stream_id, seen, to).await,
                move |rewound| Event::Rewound(link, request, rewound),
            ),
            Command::SetRetention(link, request, classes) => self.call(
                link,
                async move |link| link.set_retention(&classes).await,
                move |set| Event::RetentionSet(link, request, set),
            ),
            Command::MarkEpoch(link, request, epoch) => self.call(
                link,
                async move |link| link.mark_epoch(&epoch, false).await,
                move |marked| Event::EpochMarked(link, request, marked.map(|refused| refused.map_or(Ok(()), Err))),
            ),
            Command::Tell(notice) => tell(&notice),
            Command::End(ended) => self.ended = Some(ended),
        }
    }

    /// A task that needs the authority.
    fn spawn<F: Future<Output = ()> + Send + 'static>(&mut self, work: impl FnOnce(Authority) -> F) {
        if let Some(authority) = self.authority.clone() {
            self.tasks.spawn(work(authority));
        }
    }

    /// A question to the authority.
    fn ask<T, F: Future<Output = Result<T, AuthorityError>> + Send + 'static>(
        &mut self,
        question: impl FnOnce(Authority) -> F,
        event: impl FnOnce(Result<T, Failure>) -> Event + Send + 'static,
    ) where
        T: Send + 'static,
    {
        let events = self.events.clone();
        let Some(authority) = self.authority.clone() else {
            return;
        };
        let answer = question(authority);
        self.tasks.spawn(async move {
            let answer = answer.await.map_err(|error| from_authority(&error));
            let _ = events.send(Happened::Event(event(answer)));
        });
    }

    /// A question on a link.
    fn call<T, F: Future<Output = Result<T, StdbError>> + Send + 'static>(
        &mut self,
        link: LinkId,
        question: impl FnOnce(Arc<Link>) -> F,
        event: impl FnOnce(Result<T, Failure>) -> Event + Send + 'static,
    ) where
        T: Send + 'static,
    {
        let events = self.events.clone();
        let Some(link) = self.links.get(&link).cloned() else {
            return;
        };
        let answer = question(link);
        self.tasks.spawn(async move {
            let answer = answer.await.map_err(from_stdb);
            let _ = events.send(Happened::Event(event(answer)));
        });
    }

    fn dial(&mut self, id: LinkId) {
        let (target, events) = (self.target.clone(), self.events.clone());
        let dial = self.tasks.spawn(async move {
            let closed = events.clone();
            let on_closed = Arc::new(move |why| {
                let _ = closed.send(Happened::Event(Event::LinkClosed(id, why)));
            });
            let dialed = Link::connect(target, on_closed).await;
            let _ = events.send(Happened::Dialed(id, dialed));
        });
        self.dials.insert(id, dial);
    }

    fn begin_lead(&mut self) {
        let retention = &self.config.retention;
        let (purges, every) = (retention.purge, Duration::from_millis(retention.every_ms));
        if purges {
            let events = self.events.clone();
            let purged = move |gone| {
                let _ = events.send(Happened::Event(Event::Purged(gone)));
            };
            self.spawn(|authority| upkeep::purge(authority, every, purged));
        }
        let sessions = self.config.sessions.as_ref();
        if let Some(days) = sessions.and_then(|sessions| sessions.remember_days) {
            self.spawn(|authority| upkeep::forget_sessions(authority, days));
        }
        self.spawn(upkeep::name_misnamed);
    }

    /// Gives back what others wait for.
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

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody can stop the bridge any more, as when everything ends.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn lost(lead: &mut Option<Leadership>) {
    match lead {
        Some(lead) => lead.lost().await,
        None => pending().await,
    }
}

/// Listens until that fails.
async fn listen(authority: &Authority, request: RequestId, events: &mpsc::UnboundedSender<Happened>) {
    let tell = |listening: Result<(), AuthorityError>| {
        let listening = listening.map_err(|error| from_authority(&error));
        let _ = events.send(Happened::Event(Event::Listening(request, listening)));
    };
    match authority.listen().await {
        Err(error) => tell(Err(error)),
        Ok(mut listener) => {
            tell(Ok(()));
            loop {
                match listener.woken().await {
                    Ok(()) => drop(events.send(Happened::Event(Event::Woken))),
                    Err(error) => return tell(Err(error)),
                }
            }
        }
    }
}

async fn read_page(
    authority: &Authority,
    config: &Config,
    stream_id: &StreamId,
    after: Seq,
    base_chain: Option<ChainHash>,
) -> Result<Page, AuthorityError> {
    let limits = &config.limits;
    let base_chain = match base_chain {
        Some(base_chain) => Some(base_chain),
        None => authority.chain_at(stream_id, after).await?,
    };
    let events = authority
        .read_events(stream_id, after, limits.page_events, limits.page_bytes)
        .await?;
    let floor = if is_doubtful(after, base_chain, &events) {
        let progress = authority.position(stream_id).await?;
        progress.map(|progress| progress.floor_seq)
    } else {
        None
    };
    Ok(judge(after, base_chain, floor, &events, limits.frame_bytes))
}

fn row(record: Record) -> (StreamId, Seq) {
    (record.stream_id, record.published)
}

fn outcome(advanced: spacetime_sync_authority::Advanced) -> Recorded {
    Recorded {
        locked: advanced.locked,
        above_head: advanced.above_head,
    }
}

fn standing(standing: Result<spacetime_sync_authority::Standing, AuthorityError>) -> Result<Standing, String> {
    standing
        .map(|standing| Standing {
            progress: standing.progress,
            chain: standing.chain,
        })
        .map_err(|error| error_text(&error))
}

fn from_authority(error: &AuthorityError) -> Failure {
    Failure {
        class: error.class(),
        refusal: None,
        text: error_text(error),
    }
}

fn from_stdb(error: StdbError) -> Failure {
    let (class, text) = (error.class(), error_text(&error));
    let refusal = match error {
        StdbError::Refused(refusal) => Some(refusal),
        _ => None,
    };
    Failure { class, refusal, text }
}

fn tell(notice: &Notice) {
    match notice.level() {
        Level::Debug => tracing::debug!("{notice}"),
        Level::Info => tracing::info!("{notice}"),
        Level::Warn => tracing::warn!("{notice}"),
        Level::Error => tracing::error!("{notice}"),
    }
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;

    use futures_util::FutureExt;
    use spacetime_sync_stdb::tokens::TokenSource;

    use super::*;

    /// Where nobody listens: what is tested here is what the runner makes of what it hears.
    const NOWHERE: [(&str, &str); 4] = [
        ("SPACETIME_SYNC__AUTHORITY__URL", "postgres://nobody@127.0.0.1:1/none"),
        ("SPACETIME_SYNC__SPACETIMEDB__URI", "http://127.0.0.1:1"),
        ("SPACETIME_SYNC__SPACETIMEDB__DATABASE", "lane"),
        ("SPACETIME_SYNC__SPACETIMEDB__TOKEN", "none"),
    ];

    fn runner() -> Runner {
        let set = NOWHERE.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let config = Config::load(None, set.into_iter()).unwrap();
        let target = Target {
            uri: config.spacetimedb.uri.clone(),
            database: config.spacetimedb.database.clone(),
            tokens: TokenSource::Fixed("none".to_owned().into()),
            compatibility: None,
            deadline: Duration::from_secs(1),
        };
        let status = Arc::new(Status::new(Duration::from_secs(10)));
        Runner::new(config, target, status, None)
    }

    #[tokio::test]
    async fn a_panic_in_a_task_is_one_of_the_bridge() {
        let mut runner = runner();
        runner.tasks.spawn(async { panic!("on purpose") });
        let (_stop, stopping) = watch::channel(false);
        let ran = AssertUnwindSafe(runner.run(stopping)).catch_unwind();
        let ran = tokio::time::timeout(Duration::from_secs(10), ran).await;
        assert!(ran.expect("it goes on").is_err());
    }

    #[tokio::test]
    async fn a_bridge_that_waits_for_its_authority_can_be_told_to_stop() {
        let runner = runner();
        let status = runner.status.clone();
        let (stop, stopping) = watch::channel(false);
        let ran = tokio::spawn(runner.run(stopping));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !status.health(Instant::now()).problems[0].contains("not available") {
            assert!(Instant::now() < deadline, "nobody says that the authority is away");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stop.send(true).unwrap();
        let ran = tokio::time::timeout(Duration::from_secs(10), ran).await;
        assert!(ran.expect("it goes on").unwrap().is_ok());
    }
}
