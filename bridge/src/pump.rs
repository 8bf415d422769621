//! The pump: turns the core, carries out what it asks for, and feeds back what became of it.
//!
//! One task owns the core. Reads, comparisons and bookkeeping run in tasks of their own and answer through one channel,
//! so nothing that waits ever holds up another stream.

mod backoff;
mod compare;
mod ledger;
mod pace;
mod policy;
mod upkeep;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{ChainHash, Seq, StreamId, StreamProgress, error_text};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::config::Config;
use crate::status::{Role, Status};
use crate::tasks::joined;
use backoff::Backoff;
use compare::{authority_away, learn, reconcile_all};
use ledger::Ledger;
use pace::Pace;
use policy::Policy;
use spacetime_sync_authority::{Authority, AuthorityError, Leadership};
use spacetime_sync_issuer::Issuer;
use spacetime_sync_issuer::history::Histories;
use spacetime_sync_lane::{CallId, Core, Effect, HaltReason, Input, LinkEpoch, prepare};
use spacetime_sync_stdb::StdbError;
use spacetime_sync_stdb::link::{Appended, Link, OnClosed, Target};
use upkeep::Upkeep;

/// How often a standby asks for the lead.
const LEAD_EVERY: Duration = Duration::from_millis(500);
/// How often the pump turns while something is under way: rests end and deadlines are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How often it turns while nothing is: every turn costs, and all there is to notice is a link that fell silent.
const IDLE_TICK: Duration = Duration::from_millis(500);
/// A link that was up this long makes the next wait the first again.
const STABLE: Duration = Duration::from_secs(10);
/// Inputs taken in one turn, before the core is asked to act on them.
const INPUTS_PER_TURN: usize = 256;

/// Why the bridge ends by itself: a person must change something.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// The authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// Runs until told to stop, then finishes what is in flight. Issuer and histories, if there are any, are given the
/// authority as soon as there is one.
pub async fn run(
    config: Config,
    target: Target,
    status: Arc<Status>,
    issuer: Option<Arc<Issuer>>,
    histories: Option<Arc<Histories>>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), PumpError> {
    let authority = tokio::select! {
        connected = connect_authority(&config, &status) => connected?,
        _ = stopped(&mut stop) => return Ok(()),
    };
    // Clones share their connections.
    let mut sides = vec![authority.clone()];
    if let (Some(issuer), Some(issuing)) = (&issuer, &config.issuer) {
        let desk = authority.beside(issuing.pool_size);
        sides.push(desk.clone());
        issuer.attach(desk);
    }
    if let Some(histories) = &histories {
        histories.attach(&authority);
    }
    loop {
        let lead = if config.bridge.lead {
            tokio::select! {
                lead = take_lead(&authority, &status) => Some(lead),
                _ = stopped(&mut stop) => return Ok(()),
            }
        } else {
            None
        };
        status.role(Role::Leading);
        let ended = Pump::new(
            &config,
            authority.clone(),
            status.clone(),
            target.clone(),
            issuer.clone(),
        )
        .lead(lead, &mut stop)
        .await;
        match ended {
            Ended::Stopped => {
                authority.close().await;
                return Ok(());
            }
            Ended::LeadLost => {
                tracing::warn!("the lead is lost; standing by");
                sides.iter().for_each(Authority::forget_connections);
                status.lead_lost();
            }
        }
    }
}

/// A database that is away is waited for; one that is wrong ends the bridge.
async fn connect_authority(config: &Config, status: &Status) -> Result<Authority, AuthorityError> {
    let mut backoff = Backoff::new();
    loop {
        match Authority::connect(config.authority.url.expose(), config.authority.pool_size).await {
            Ok(authority) => {
                status.authority(Ok(()));
                return Ok(authority);
            }
            Err(error) if error.class() == RefusalClass::Retry => {
                let wait = backoff.next();
                tracing::warn!(error = error_text(&error), ?wait, "the authority is away");
                status.authority(Err(error_text(&error)));
                status.beat(Instant::now(), spacetime_sync_lane::Load::default(), None);
                tokio::time::sleep(wait).await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn take_lead(authority: &Authority, status: &Status) -> Leadership {
    let mut announced = false;
    loop {
        match ask_for_lead(authority, status).await {
            Ok(Some(lead)) => {
                tracing::info!("leading");
                status.authority(Ok(()));
                return lead;
            }
            Ok(None) => {
                if !announced {
                    tracing::info!("another bridge leads; standing by");
                    announced = true;
                }
                status.authority(Ok(()));
                status.role(Role::Standby);
            }
            Err(error) => {
                tracing::warn!(error = error_text(&error), "the lead cannot be asked for");
                status.authority(Err(error_text(&error)));
            }
        }
        status.idle_beat(Instant::now());
        tokio::time::sleep(LEAD_EVERY).await;
    }
}

/// Asks for the lead. A server that is silent is waited for, and a standby that waits is none whose loop stands still.
async fn ask_for_lead(authority: &Authority, status: &Status) -> Result<Option<Leadership>, AuthorityError> {
    let mut asked = std::pin::pin!(authority.try_lead());
    loop {
        tokio::select! {
            answer = &mut asked => return answer,
            () = tokio::time::sleep(LEAD_EVERY) => status.idle_beat(Instant::now()),
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody can stop us any more, as when everything ends.
    let _ = stop.wait_for(|stop| *stop).await;
}

enum Ended {
    Stopped,
    LeadLost,
}

/// What tasks tell the pump.
enum News {
    Input(Input),
    Polled(Result<Vec<StreamProgress>, AuthorityError>, Duration),
    Woken,
    Connected(Result<Connected, StdbError>),
    /// An operator has put things right: everything is compared anew.
    EpochBegun,
    /// Streams whose log in the authority ends before what SpacetimeDB acknowledged.
    AboveHead(Vec<StreamId>),
}

/// What the link tells the pump.
#[derive(Debug)]
enum Answer {
    /// What became of a call.
    Appended(CallId, Appended),
    /// The link is gone.
    Closed(String),
}

/// A link that is up, and what was found out when it was made.
struct Connected {
    link: Link,
    epoch: String,
}

enum Wire {
    /// Being connected, or waiting to be.
    Down,
    Up {
        link: Arc<Link>,
        since: Instant,
        /// One of the tasks, to be ended with the link.
        upkeep: AbortHandle,
    },
}

struct Pump<'a> {
    config: &'a Config,
    authority: Authority,
    status: Arc<Status>,
    target: Target,
    issuer: Option<Arc<Issuer>>,
    core: Core,
    wire: Wire,
    /// What the module took last.
    policy: watch::Sender<Policy>,
    backoff: Backoff,
    pace: Pace,
    /// Calls in flight: when they were sent and how many events they hold.
    calls: HashMap<CallId, (Instant, u64)>,
    /// Halted streams are not looked at any more, nor counted as work.
    ledger: Ledger,
    /// After which stream the next look for dirty ones begins.
    poll_after: Option<StreamId>,
    poll_lag: u64,
    /// Whether writers are asked for a wake-up. Carried out by one task, so that the last word holds.
    asleep: watch::Sender<bool>,
    polling: bool,
    started: Instant,
    /// All of them are needed: a panic in one is one of the pump.
    tasks: JoinSet<()>,
    news: mpsc::UnboundedSender<News>,
    inbox: mpsc::UnboundedReceiver<News>,
    answers: mpsc::UnboundedSender<Answer>,
    answered: mpsc::UnboundedReceiver<Answer>,
}

impl<'a> Pump<'a> {
    fn new(
        config: &'a Config,
        authority: Authority,
        status: Arc<Status>,
        target: Target,
        issuer: Option<Arc<Issuer>>,
    ) -> Self {
        let (news, inbox) = mpsc::unbounded_channel();
        let (answers, answered) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        let ledger = Ledger::start(&mut tasks, authority.clone(), {
            let news = news.clone();
            move |streams| drop(news.send(News::AboveHead(streams)))
        });
        Self {
            config,
            authority,
            status,
            target,
            issuer,
            core: Core::new(config.core_limits()),
            wire: Wire::Down,
            policy: watch::Sender::default(),
            backoff: Backoff::new(),
            pace: Pace::new(Duration::from_millis(config.bridge.idle_poll_ms)),
            calls: HashMap::new(),
            ledger,
            poll_after: None,
            poll_lag: 0,
            asleep: watch::Sender::new(false),
            polling: false,
            started: Instant::now(),
            tasks,
            news,
            inbox,
            answers,
            answered,
        }
    }

    async fn lead(mut self, mut lead: Option<Leadership>, stop: &mut watch::Receiver<bool>) -> Ended {
        self.status.none_halted();
        self.listen();
        self.tell_writers();
        if self.config.retention.purge {
            let every = Duration::from_millis(self.config.retention.every_ms);
            let purge = upkeep::purge(self.authority.clone(), self.status.clone(), every);
            self.tasks.spawn(purge);
        }
        if let Some(days) = self
            .config
            .sessions
            .as_ref()
            .and_then(|sessions| sessions.remember_days)
        {
            self.tasks.spawn(upkeep::forget_sessions(self.authority.clone(), days));
        }
        self.connect(Duration::ZERO);
        let idle_tick = IDLE_TICK.min(self.config.bridge.stall_after() / 2);
        let (mut ticked, mut load) = (Instant::now(), self.core.load());
        let mut draining: Option<Instant> = None;
        loop {
            let poll_at = self.pace.next_poll(Instant::now());
            let busy = load.busy_streams > 0 || draining.is_some();
            let tick_at = ticked + if busy { TICK } else { idle_tick };
            let mut effects = Vec::new();
            tokio::select! {
                biased;
                _ = stopped(stop), if draining.is_none() => {
                    tracing::info!("stopping: finishing what is in flight");
                    self.status.role(Role::Draining);
                    self.core.drain();
                    draining = Some(Instant::now() + Duration::from_millis(self.config.bridge.drain_ms));
                }
                () = lost(&mut lead) => {
                    self.core.drain();
                    drop(lead.take());
                    return Ended::LeadLost;
                }
                // Before what comes all the time under load, or a panic would be noticed when that ends.
                Some(ended) = self.tasks.join_next() => drop(joined(ended)),
                Some(answer) = self.answered.recv() => {
                    self.answer(answer, &mut effects);
                    for _ in 1..INPUTS_PER_TURN {
                        let Ok(answer) = self.answered.try_recv() else { break };
                        self.answer(answer, &mut effects);
                    }
                }
                Some(news) = self.inbox.recv() => self.hear(news, &mut effects),
                () = tokio::time::sleep_until(tick_at.into()) => {
                    ticked = Instant::now();
                    self.tick(&mut effects);
                }
                () = tokio::time::sleep_until(poll_at.into()), if !self.polling && draining.is_none() => self.poll(),
            }
            self.carry_out(effects);
            load = self.core.load();
            self.status.beat(Instant::now(), load, Some(self.poll_lag));
            if let Some(deadline) = draining {
                let link_gone = matches!(self.wire, Wire::Down);
                if self.core.is_drained() || link_gone || Instant::now() > deadline {
                    self.cut();
                    self.ledger.finish().await;
                    if self.config.bridge.lead {
                        let _ = self.authority.set_sleeping(false).await;
                    }
                    if let Some(lead) = lead.take() {
                        lead.release().await;
                    }
                    return Ended::Stopped;
                }
            }
        }
    }

    fn step(&mut self, input: Input, effects: &mut Vec<Effect>) {
        self.core.step(self.started.elapsed(), input, effects);
    }

    fn answer(&mut self, answer: Answer, effects: &mut Vec<Effect>) {
        match answer {
            Answer::Appended(call, Appended::Durable) => {
                // Answers of an earlier link are not in the books.
                if let Some((_, events)) = self.calls.remove(&call) {
                    self.status.progress(Instant::now(), events);
                    self.step(Input::Acked(call), effects);
                }
            }
            Answer::Appended(call, Appended::Refused(refusal)) => {
                if self.calls.remove(&call).is_some() {
                    self.status.count(|counters| counters.refused_calls += 1);
                    self.step(Input::Refused(call, refusal), effects);
                }
            }
            Answer::Appended(call, Appended::Failed(message)) => {
                if self.calls.remove(&call).is_some() {
                    self.status.count(|counters| counters.lost_calls += 1);
                    self.step(Input::Lost(call, message), effects);
                }
            }
            Answer::Closed(why) => self.link_down(why, effects),
        }
    }

    fn hear(&mut self, news: News, effects: &mut Vec<Effect>) {
        match news {
            News::Input(input) => self.step(input, effects),
            News::Woken => {
                self.status.count(|counters| counters.wakes += 1);
                self.pace.woken(Instant::now());
            }
            News::Polled(positions, took) => self.polled(positions, took, effects),
            News::AboveHead(streams) => {
                for stream_id in streams {
                    self.step(Input::Halt(stream_id, HaltReason::AheadOfAuthority), effects);
                }
            }
            News::EpochBegun => {
                tracing::info!("a new epoch begins: everything is compared anew");
                self.status.none_halted();
                self.link_down("a new epoch begins".to_owned(), effects);
                self.step(Input::Anew, effects);
            }
            News::Connected(Ok(Connected { link, epoch })) => {
                tracing::info!(uri = self.target.uri, database = self.target.database, "the link is up");
                if link.is_closed() {
                    return self.unconnected("closed as soon as it was up".to_owned());
                }
                self.status.link(Ok(()));
                if let Some(issuer) = &self.issuer {
                    issuer.relinked();
                }
                self.calls.clear();
                let link = Arc::new(link);
                let upkeep = Upkeep {
                    link: link.clone(),
                    authority: self.authority.clone(),
                    status: self.status.clone(),
                    policy: self.policy.clone(),
                    news: self.news.clone(),
                    epoch,
                };
                let config = self.config.clone();
                let upkeep = self.tasks.spawn(async move { upkeep.run(&config).await });
                self.wire = Wire::Up {
                    link,
                    since: Instant::now(),
                    upkeep,
                };
                self.step(Input::LinkUp, effects);
                self.pace.woken(Instant::now());
            }
            News::Connected(Err(error)) => {
                if error.class() != RefusalClass::Retry {
                    tracing::error!(
                        error = error_text(&error),
                        "no link to SpacetimeDB until this is mended"
                    );
                }
                self.unconnected(error_text(&error));
            }
        }
    }

    fn unconnected(&mut self, why: String) {
        let wait = self.backoff.next();
        tracing::warn!(why, ?wait, "no link to SpacetimeDB");
        self.status.link(Err(why));
        self.connect(wait);
    }

    fn polled(
        &mut self,
        positions: Result<Vec<StreamProgress>, AuthorityError>,
        took: Duration,
        effects: &mut Vec<Effect>,
    ) {
        self.polling = false;
        let now = Instant::now();
        match positions {
            Err(error) => {
                tracing::warn!(
                    error = error_text(&error),
                    "the authority cannot be asked for dirty streams"
                );
                self.status.authority(Err(error_text(&error)));
                self.pace.failed(now);
            }
            Ok(positions) => {
                self.status.authority(Ok(()));
                self.status.count(|counters| counters.polls += 1);
                let whole = positions.len() < self.config.limits.dirty_streams;
                let live = positions
                    .iter()
                    .filter(|position| !self.core.is_halted(&position.stream_id));
                let lag: u64 = live
                    .map(|position| position.head_seq.since(position.published_seq))
                    .sum();
                // A look that did not reach the end says nothing about the streams past it.
                self.poll_lag = if whole && self.poll_after.is_none() {
                    lag
                } else {
                    self.poll_lag.max(lag)
                };
                self.poll_after = if whole {
                    None
                } else {
                    positions.last().map(|last| last.stream_id.clone())
                };
                // Without a link there is nothing to hurry for.
                let hurry = lag > 0 && matches!(self.wire, Wire::Up { .. });
                if let Some(asleep) = self.pace.polled(now, hurry, took) {
                    self.asleep.send_replace(asleep);
                }
                self.step(Input::Positions(positions), effects);
            }
        }
    }

    fn tick(&mut self, effects: &mut Vec<Effect>) {
        self.step(Input::Tick, effects);
        let deadline = Duration::from_millis(self.config.bridge.ack_deadline_ms);
        if self.calls.values().any(|(sent, _)| sent.elapsed() > deadline) {
            self.link_down(format!("a call was not answered for {deadline:?}"), effects);
        } else if matches!(&self.wire, Wire::Up { link, .. } if link.is_silent()) {
            self.link_down("a question was not answered".to_owned(), effects);
        }
    }

    /// Gives the link up and connects anew, unless that is under way: what ends a link is often told more than once, and
    /// two that connect would take each other's link away.
    fn link_down(&mut self, why: String, effects: &mut Vec<Effect>) {
        let Wire::Up { since, .. } = self.wire else { return };
        if since.elapsed() > STABLE {
            self.backoff = Backoff::new();
        }
        let wait = self.backoff.next();
        tracing::warn!(why, ?wait, "the link is down");
        self.status.link(Err(why));
        self.cut();
        self.calls.clear();
        self.step(Input::LinkDown, effects);
        self.connect(wait);
    }

    fn cut(&mut self) {
        if let Wire::Up { upkeep, .. } = std::mem::replace(&mut self.wire, Wire::Down) {
            upkeep.abort();
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Append {
                    call,
                    stream_id,
                    prepared,
                } => {
                    let Wire::Up { link, .. } = &self.wire else { continue };
                    let events = prepared.last_seq.since(prepared.first_seq) + 1;
                    self.calls.insert(call, (Instant::now(), events));
                    let (first_seq, base_chain, answers) =
                        (prepared.first_seq, prepared.base_chain, self.answers.clone());
                    link.append(&stream_id, first_seq, &base_chain, prepared.frame, move |became| {
                        let _ = answers.send(Answer::Appended(call, became));
                    });
                }
                Effect::Read {
                    epoch,
                    stream_id,
                    after,
                    base_chain,
                } => {
                    self.spawn_read(epoch, stream_id, after, base_chain);
                }
                Effect::Learn { epoch, stream_id } => self.spawn_learn(epoch, stream_id),
                Effect::Advance { stream_id, seq } => self.ledger.advance(stream_id, seq),
                Effect::Rewind { stream_id, to } => {
                    tracing::warn!(%stream_id, %to, "SpacetimeDB holds less than was published: publishing again");
                    self.ledger.rewind(stream_id, to);
                }
                Effect::Halted { stream_id, reason } => {
                    tracing::error!(%stream_id, %reason, code = reason.code(), "stream halted");
                    self.status.halted(stream_id, reason);
                }
                Effect::DropLink(refusal) => {
                    let mut effects = Vec::new();
                    self.link_down(refusal.to_string(), &mut effects);
                    self.carry_out(effects);
                }
            }
        }
    }

    fn spawn_read(&mut self, epoch: LinkEpoch, stream_id: StreamId, after: Seq, base_chain: Option<ChainHash>) {
        let (authority, news) = (self.authority.clone(), self.news.clone());
        let limits = &self.config.limits;
        let (page_events, page_bytes, frame_bytes) = (limits.page_events, limits.page_bytes, limits.frame_bytes);
        self.tasks.spawn(async move {
            let page = async {
                let base = match base_chain {
                    Some(chain) => Some(chain),
                    None => authority.chain_at(&stream_id, after).await?,
                };
                let events = authority
                    .read_events(&stream_id, after, page_events, page_bytes)
                    .await?;
                let continues = events.first().is_none_or(|first| first.seq == after.next());
                if base.is_none() || !continues {
                    let position = authority.position(&stream_id).await?;
                    if position.is_some_and(|position| after < position.floor_seq) {
                        return Ok(None);
                    }
                }
                Ok::<_, AuthorityError>(Some(match base {
                    Some(base) => prepare(after, base, &events, frame_bytes),
                    None => Err(HaltReason::AheadOfAuthority),
                }))
            };
            let input = match page.await {
                Ok(Some(page)) => Input::Page { epoch, stream_id, page },
                // Only what is published is purged: another bridge has done so, and the next positions say how far.
                Ok(None) => Input::PageFailed { epoch, stream_id },
                Err(error) if error.class() == RefusalClass::Reject => Input::Page {
                    epoch,
                    stream_id,
                    page: Err(HaltReason::BrokenLog(error_text(&error))),
                },
                Err(error) => {
                    tracing::warn!(error = error_text(&error), %stream_id, "a page could not be read");
                    Input::PageFailed { epoch, stream_id }
                }
            };
            let _ = news.send(News::Input(input));
        });
    }

    fn spawn_learn(&mut self, epoch: LinkEpoch, stream_id: StreamId) {
        let Wire::Up { link, .. } = &self.wire else {
            return;
        };
        let (link, policy) = (link.clone(), self.policy.borrow().clone());
        let (authority, news) = (self.authority.clone(), self.news.clone());
        self.tasks.spawn(async move {
            let input = match learn(&link, &authority, &policy, &stream_id).await {
                Ok(verdict) => Input::Learned {
                    epoch,
                    stream_id,
                    verdict,
                },
                Err(why) => {
                    tracing::warn!(why, %stream_id, "the head of a stream could not be learned");
                    Input::LearnFailed { epoch, stream_id }
                }
            };
            let _ = news.send(News::Input(input));
        });
    }

    fn poll(&mut self) {
        self.polling = true;
        let (authority, news) = (self.authority.clone(), self.news.clone());
        let (after, limit) = (self.poll_after.clone(), self.config.limits.dirty_streams);
        self.tasks.spawn(async move {
            let started = Instant::now();
            let positions = authority.dirty_streams(after.as_ref(), limit).await;
            let _ = news.send(News::Polled(positions, started.elapsed()));
        });
    }

    fn connect(&mut self, wait: Duration) {
        let (target, answers, news) = (self.target.clone(), self.answers.clone(), self.news.clone());
        let on_closed: OnClosed = Arc::new(move |why| drop(answers.send(Answer::Closed(why))));
        let (authority, ledger) = (self.authority.clone(), self.ledger.handle());
        let (applies_windows, policy) = (self.config.applies_windows(), self.policy.clone());
        self.tasks.spawn(async move {
            tokio::time::sleep(wait).await;
            let connected = async {
                let link = Link::connect(target, on_closed).await?;
                // What was acknowledged on the last link is recorded first, or it would look like more than published.
                ledger.settled().await;
                let away = |error| authority_away(&error);
                let epoch = authority.epoch().await.map_err(away)?.epoch;
                let newest = Policy::read(&authority, applies_windows).await.map_err(away)?;
                match link.set_retention(&newest.classes).await {
                    Ok(()) => drop(policy.send_replace(newest)),
                    // No event waits for that: the module keeps the policy that it has, and the upkeep goes on trying.
                    Err(StdbError::Refused(refusal)) if refusal.code.class() == RefusalClass::Reject => {
                        tracing::warn!(%refusal, "the module does not take the policy of retention");
                    }
                    Err(error) => return Err(error),
                }
                let policy = policy.borrow().clone();
                reconcile_all(&link, &authority, &ledger, &policy, &news).await?;
                Ok(Connected { link, epoch })
            };
            let connected = connected.await;
            let _ = news.send(News::Connected(connected));
        });
    }

    /// Keeps the authority's wake-up flag at what it should be.
    fn tell_writers(&mut self) {
        let (authority, mut asleep) = (self.authority.clone(), self.asleep.subscribe());
        self.tasks.spawn(async move {
            while asleep.changed().await.is_ok() {
                let sleeping = *asleep.borrow_and_update();
                if let Err(error) = authority.set_sleeping(sleeping).await {
                    tracing::debug!(error = error_text(&error), "the wake-up flag could not be set");
                }
            }
        });
    }

    fn listen(&mut self) {
        let (authority, news) = (self.authority.clone(), self.news.clone());
        self.tasks.spawn(async move {
            loop {
                if let Ok(mut listener) = authority.listen().await {
                    while listener.woken().await.is_ok() {
                        if news.send(News::Woken).is_err() {
                            return;
                        }
                    }
                }
                // Without a listener the bridge polls, only slower.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
}

async fn lost(lead: &mut Option<Leadership>) {
    match lead {
        Some(lead) => lead.lost().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
