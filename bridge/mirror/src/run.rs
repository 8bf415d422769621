//! Runs the mirror: takes the lead, and carries out what is due, one thing after the other. Relays alone work beside it, each in a
//! task of its own, so that none waits for another.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use spacetime_sync_authority::{
    Attempt, Authority, AuthorityError, Delivery, Lead, Leadership, MirrorPolicy, OutboxState, Outcome,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::batch::{BatchSize, together};
use crate::key::MirrorKey;
use crate::relay::{Published, Relay};
use crate::session::attend;
use crate::settings::MirrorConfig;
use crate::status::{Role, Status};
use crate::tail::{PASS, Tail};
use crate::things::unsigned;
use crate::verdict::{Answer, Chance, Failure};

/// How often a mirror that stands by asks for the lead.
const STANDBY: Duration = Duration::from_millis(500);
/// How often the policy is read, and what is over is forgotten.
const UPKEEP: Duration = Duration::from_secs(2);
/// How many entries are forgotten at once.
const FORGOTTEN: usize = 256;
/// The most relays that are talked to. Further ones wait until one has nothing to be told any more.
const RELAYS: usize = 64;

/// What a mirror works with.
#[derive(Debug)]
pub struct Mirror {
    /// See there.
    pub config: MirrorConfig,
    /// What it signs with.
    pub key: MirrorKey,
    /// The runtime's Postgres.
    pub authority: Authority,
    /// What the operator sees.
    pub status: Arc<Status>,
}

/// Works until it is told to stop.
pub async fn run(mirror: Arc<Mirror>, mut stop: watch::Receiver<bool>) {
    let mut candidate = mirror.authority.candidate_for(Lead::Mirror);
    loop {
        let lead = tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            asked = candidate.try_lead() => asked,
        };
        match lead {
            Ok(Some(lead)) => {
                tracing::info!("this mirror leads");
                mirror.status.change(|status| status.role = Role::Leading);
                let ended = work(&mirror, lead, &mut stop).await;
                mirror.status.change(|status| status.role = Role::StandingBy);
                if ended == Ended::Stopped {
                    return;
                }
                tracing::warn!("the lead is lost");
            }
            Ok(None) => {}
            Err(error) => failed(&mirror, &error),
        }
        tokio::select! {
            () = stopped(&mut stop) => return,
            () = sleep(STANDBY) => {}
        }
    }
}

/// Resolves when the mirror is told to stop. The value itself may not be held while others are awaited.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Whoever has dropped the sender wants no mirror either.
    let _ = stop.wait_for(|stop| *stop).await;
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Stopped,
    LeadLost,
}

/// One life of the lead.
async fn work(mirror: &Arc<Mirror>, mut lead: Leadership, stop: &mut watch::Receiver<bool>) -> Ended {
    let (done, mut answers) = mpsc::channel(RELAYS);
    let policies = watch::Sender::new(Vec::new());
    let mut workers = JoinSet::new();
    if let Some(session) = mirror.config.session() {
        workers.spawn(attend(mirror.clone(), session, policies.subscribe()));
    }
    let mut life = Life {
        mirror,
        policies,
        tail: Tail::default(),
        relays: BTreeMap::new(),
        workers,
        done,
        chance: Chance::seeded(rand::random()),
        upkeep_at: Instant::now(),
    };
    let mut turn_at = Instant::now();
    let ended = loop {
        tokio::select! {
            biased;
            () = stopped(stop) => break Ended::Stopped,
            () = lead.lost() => break Ended::LeadLost,
            Some(ended) = life.workers.join_next() => {
                // A relay that nobody names any more ends. A panic ends the process.
                if let Err(died) = ended && let Ok(panic) = died.try_into_panic() {
                    resume_unwind(panic);
                }
            }
            Some(answer) = answers.recv() => {
                if let Err(error) = life.answered(answer).await {
                    failed(mirror, &error);
                }
                // The relay has nothing to do any more.
                turn_at = turn_at.min(Instant::now());
            }
            () = sleep_until(turn_at) => {
                let pause = match life.turn().await {
                    Ok(true) => Duration::ZERO,
                    Ok(false) => mirror.config.poll(),
                    Err(error) => {
                        failed(mirror, &error);
                        mirror.config.poll().max(STANDBY)
                    }
                };
                turn_at = Instant::now() + pause;
            }
        }
    };
    // Whoever leads next does again what was under way here.
    life.workers.shutdown().await;
    if ended == Ended::Stopped {
        lead.release().await;
    }
    ended
}

fn failed(mirror: &Mirror, error: &AuthorityError) {
    mirror.status.change(|status| status.counters.authority_failures += 1);
    tracing::warn!(error = %chain(error), "the authority did not do what the mirror asked");
}

/// An error with what caused it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// A batch for a relay.
type Batch = Vec<nostr::Event>;

/// What a relay's task answers with.
struct Answered {
    relay: String,
    published: Published,
}

/// A relay's task, as the runner sees it.
struct Worker {
    batches: mpsc::Sender<Batch>,
    /// What it works on.
    busy: Vec<Delivery>,
    size: BatchSize,
    /// How often in a row it could not be reached.
    unreached: u32,
    /// Before that it is not tried.
    rests_until: Instant,
}

/// What a mirror knows while it leads.
struct Life<'a> {
    mirror: &'a Mirror,
    policies: watch::Sender<Vec<MirrorPolicy>>,
    tail: Tail,
    relays: BTreeMap<String, Worker>,
    workers: JoinSet<()>,
    done: mpsc::Sender<Answered>,
    chance: Chance,
    upkeep_at: Instant,
}

impl Life<'_> {
    /// Does what is due. Returns whether more is.
    async fn turn(&mut self) -> Result<bool, AuthorityError> {
        if Instant::now() >= self.upkeep_at {
            self.upkeep().await?;
            self.upkeep_at = Instant::now() + UPKEEP;
        }
        let has_more = self.read().await?;
        self.hand_out().await?;
        self.mirror
            .status
            .change(|status| status.answered_at = Some(std::time::Instant::now()));
        Ok(has_more)
    }

    /// Reads the policy, forgets what is over, and looks how full the outbox is.
    async fn upkeep(&mut self) -> Result<(), AuthorityError> {
        let (authority, config) = (&self.mirror.authority, &self.mirror.config);
        let (policies, mut malformed) = authority.mirror_policies().await?;
        for policy in &policies {
            for relay in &policy.relays {
                if let Err(refused) = config.check_relay(relay) {
                    malformed.push(format!("{}: {refused}", policy.policy_id));
                }
            }
        }
        let usable = |policy: &MirrorPolicy| policy.relays.iter().all(|relay| config.check_relay(relay).is_ok());
        self.policies
            .send_replace(policies.into_iter().filter(usable).collect());
        if self.mirror.status.get().bad_policies != malformed.len() {
            tracing::error!(?malformed, "policies of the mirror that have no effect");
        }
        authority.forget_mirror_cursors().await?;
        let sent_for = Duration::from_secs(config.sent_seconds);
        let forgotten = authority
            .outbox_forget(sent_for, config.sent, config.parked, FORGOTTEN)
            .await?;
        if forgotten > 0 {
            tracing::warn!(forgotten, "parked entries are forgotten, because there are too many");
        }
        let depth = authority.outbox_depth().await?;
        self.mirror.status.change(|status| {
            status.bad_policies = malformed.len();
            status.counters.parked_forgotten += forgotten;
            status.depth = depth;
        });
        self.open_relays().await
    }

    /// Has a task for each relay that is to have something, and for no other.
    async fn open_relays(&mut self) -> Result<(), AuthorityError> {
        let config = &self.mirror.config;
        let policies = self.policies.borrow().clone();
        let named = policies.into_iter().flat_map(|policy| policy.relays);
        let mut wanted: BTreeSet<String> = named.collect();
        wanted.extend(self.mirror.authority.outbox_relays().await?);
        wanted.retain(|relay| config.check_relay(relay).is_ok());
        self.relays
            .retain(|relay, worker| wanted.contains(relay) || !worker.busy.is_empty());
        for relay in wanted {
            if self.relays.contains_key(&relay) || self.relays.len() >= RELAYS {
                continue;
            }
            let opened = match Relay::new(&relay, config.bounds()) {
                Ok(opened) => opened,
                Err(error) => {
                    tracing::error!(%error, "a relay has no effect");
                    continue;
                }
            };
            let (batches, given) = mpsc::channel(1);
            self.workers
                .spawn(carry(opened, relay.clone(), given, self.done.clone()));
            let worker = Worker {
                batches,
                busy: Vec::new(),
                size: BatchSize::new(config.relay_batch),
                unreached: 0,
                rests_until: Instant::now(),
            };
            self.relays.insert(relay, worker);
        }
        Ok(())
    }

    /// Reads new events into the outbox, as long as there is room. Returns whether there may be more.
    async fn read(&mut self) -> Result<bool, AuthorityError> {
        let (authority, most) = (&self.mirror.authority, self.mirror.config.pending);
        let pending = authority.outbox_pending(most).await?;
        let mut room = PASS.min(most.saturating_sub(pending));
        let author = self.mirror.key.public();
        let mut has_more = false;
        let policies = self.policies.borrow().clone();
        for policy in &policies {
            if room == 0 {
                return Ok(has_more);
            }
            let read = self.tail.pass(authority, policy, &author, room).await?;
            room = room.saturating_sub(read.entries);
            has_more |= read.has_more;
            self.mirror.status.change(|status| {
                status.counters.enqueued += read.entries as u64;
                status.counters.missed += read.missed;
            });
        }
        Ok(has_more)
    }

    /// Gives every relay that has nothing to do what is due there.
    async fn hand_out(&mut self) -> Result<(), AuthorityError> {
        let now = Instant::now();
        let free = |worker: &Worker| worker.busy.is_empty() && worker.rests_until <= now;
        let names: Vec<String> = self
            .relays
            .iter()
            .filter(|(_, worker)| free(worker))
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            let Some(worker) = self.relays.get_mut(&name) else {
                continue;
            };
            let mut due = self.mirror.authority.outbox_due(&name, worker.size.get()).await?;
            let failures: Vec<u32> = due.iter().map(|delivery| delivery.attempts).collect();
            due.truncate(together(&failures));
            let (mut batch, mut busy, mut unsigned_ones) = (Batch::new(), Vec::new(), Vec::new());
            for delivery in due {
                let signed = unsigned(&delivery.entry)
                    .ok()
                    .and_then(|event| self.mirror.key.sign(event));
                match signed {
                    Some(event) if event.id.to_hex() == delivery.entry.published_as => {
                        batch.push(event);
                        busy.push(delivery);
                    }
                    Some(_) | None => unsigned_ones.push(delivery),
                }
            }
            if !batch.is_empty() {
                worker.busy = busy;
                // It takes one batch at a time, and has none.
                if worker.batches.try_send(batch).is_err() {
                    worker.busy.clear();
                }
            }
            if !unsigned_ones.is_empty() {
                let detail = "another key is its author: drop it, or give the mirror that key";
                let outcome = |delivery: Delivery| Outcome {
                    event_id: delivery.entry.event_id,
                    attempt: self.mirror.config.patience().fail(Failure::Key, detail, 0, 0),
                };
                let outcomes = unsigned_ones.into_iter().map(outcome).collect();
                self.settle(&name, outcomes).await?;
            }
        }
        Ok(())
    }

    /// A relay has answered.
    async fn answered(&mut self, answered: Answered) -> Result<(), AuthorityError> {
        let Answered { relay, published } = answered;
        let patience = self.mirror.config.patience();
        let Some(worker) = self.relays.get_mut(&relay) else {
            return Ok(());
        };
        let busy = std::mem::take(&mut worker.busy);
        let reached = matches!(published, Published::Answered(_));
        self.mirror.status.change(|status| {
            status.relays.insert(relay.clone(), reached);
            status.counters.unreached += u64::from(!reached);
        });
        let answers = match published {
            Published::Unreached(how) => {
                // No entry is to blame.
                let wait = patience.wait(worker.unreached, self.chance.draw());
                tracing::debug!(relay, how, ?wait, "a relay cannot be reached");
                worker.unreached = worker.unreached.saturating_add(1);
                worker.rests_until = Instant::now() + wait;
                return Ok(());
            }
            Published::Answered(answers) => answers,
        };
        worker.unreached = 0;
        let mut is_broken = false;
        let mut outcomes = Vec::new();
        for delivery in busy {
            let id = &delivery.entry.published_as;
            let found = answers.iter().find(|(answered, _)| answered.to_hex() == *id);
            let Some((_, answer)) = found else { continue };
            is_broken |= matches!(answer, Answer::Silent(_));
            outcomes.push(Outcome {
                event_id: delivery.entry.event_id,
                attempt: patience.judge(answer.clone(), delivery.attempts, self.chance.draw()),
            });
        }
        worker.size = worker.size.after(is_broken);
        self.settle(&relay, outcomes).await
    }

    async fn settle(&self, relay: &str, outcomes: Vec<Outcome>) -> Result<(), AuthorityError> {
        let status = &self.mirror.status;
        for outcome in &outcomes {
            match &outcome.attempt {
                Attempt::Accepted => {}
                Attempt::Again { failure, .. } => status.failed(failure),
                Attempt::Failed { failure, detail } => {
                    status.failed(failure);
                    tracing::warn!(relay, event = %outcome.event_id, failure, detail, "a relay will not have an entry");
                }
            }
        }
        let settled = self.mirror.authority.outbox_settle(relay, &outcomes).await?;
        for (event_id, state) in settled {
            match state {
                OutboxState::Sent => status.change(|status| status.counters.published += 1),
                OutboxState::Parked => {
                    tracing::error!(event_id, "an entry is parked: spacetime-sync outbox list --parked");
                    status.change(|status| status.counters.parked += 1);
                }
                OutboxState::Pending | OutboxState::Dropped => {}
            }
        }
        Ok(())
    }
}

/// The task of a relay: one batch after the other.
async fn carry(mut relay: Relay, name: String, mut given: mpsc::Receiver<Batch>, done: mpsc::Sender<Answered>) {
    while let Some(batch) = given.recv().await {
        let published = relay.publish(&batch).await;
        let answered = Answered {
            relay: name.clone(),
            published,
        };
        if done.send(answered).await.is_err() {
            break;
        }
    }
    relay.close().await;
}
