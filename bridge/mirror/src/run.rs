//! Runs the mirror: takes the lead, and carries out what is due, one thing after the other. Relays alone work beside it, each in a
//! task of its own, so that none waits for another.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use spacetime_sync_authority::{
    Attempt, Authority, AuthorityError, Lead, Leadership, MirrorPolicy, MirrorSource, OutboxState, Outcome, shown_relay,
};
use spacetime_sync_proto::error_text;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::courier::{Courier, Given};
use crate::key::MirrorKey;
use crate::relay::{Published, Relay};
use crate::session::{attend, now_s};
use crate::settings::MirrorConfig;
use crate::status::{Role, Status};
use crate::tail::{PASS, Read, Tail};
use crate::verdict::Chance;

/// How often a mirror that stands by asks for the lead.
const STANDBY: Duration = Duration::from_millis(500);
/// How often the policy is read, and what is over is forgotten.
const UPKEEP: Duration = Duration::from_secs(2);
/// How many entries are forgotten at once, and how often in a row: faster than they are published.
const FORGOTTEN: usize = 256;
const FORGETTING: usize = 64;
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
        began: Instant::now(),
        upkeep_at: Instant::now(),
        turns: 0,
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
    tracing::warn!(error = %error_text(error), "the authority did not do what the mirror asked");
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
    courier: Courier,
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
    began: Instant,
    upkeep_at: Instant,
    /// How often it has read.
    turns: usize,
}

impl Life<'_> {
    /// Does what is due. Returns whether more is. What cannot be read or kept up keeps nothing from relays.
    async fn turn(&mut self) -> Result<bool, AuthorityError> {
        let mut kept_up = Ok(());
        if Instant::now() >= self.upkeep_at {
            kept_up = self.upkeep().await;
            if kept_up.is_ok() {
                self.upkeep_at = Instant::now() + UPKEEP;
            }
        }
        let read = self.read().await;
        self.hand_out().await?;
        kept_up?;
        let has_more = read?;
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
        let policies: Vec<_> = policies.into_iter().filter(usable).collect();
        self.tail.keep(&policies);
        self.policies.send_replace(policies);
        if self.mirror.status.get().bad_policies != malformed.len() {
            tracing::error!(?malformed, "policies of the mirror that have no effect");
        }
        self.mirror
            .status
            .change(|status| status.bad_policies = malformed.len());
        self.open_relays().await?;
        self.forget().await?;
        let depth = self.mirror.authority.outbox_depth().await?;
        self.mirror.status.change(|status| status.depth = depth);
        Ok(())
    }

    /// Forgets what is over, as far as it is too old or too much.
    async fn forget(&self) -> Result<(), AuthorityError> {
        let (authority, config) = (&self.mirror.authority, &self.mirror.config);
        authority.forget_mirror_cursors().await?;
        let sent_for = Duration::from_secs(config.sent_seconds);
        for _ in 0..FORGETTING {
            let forgotten = authority
                .outbox_forget(sent_for, config.sent, config.parked, FORGOTTEN)
                .await?;
            let parked = forgotten.parked;
            if parked > 0 {
                tracing::warn!(parked, "parked entries are forgotten, because there are too many");
            }
            self.mirror
                .status
                .change(|status| status.counters.parked_forgotten += parked);
            if forgotten.over.max(parked) < FORGOTTEN as u64 {
                break;
            }
        }
        Ok(())
    }

    /// Has a task for each relay at which something is due or may soon be, and for no other.
    async fn open_relays(&mut self) -> Result<(), AuthorityError> {
        let config = &self.mirror.config;
        let policies = self.policies.borrow().clone();
        let named = policies.into_iter().flat_map(|policy| policy.relays);
        let due = self.mirror.authority.outbox_relays().await?;
        let (wanted, left) = served(due, named, |relay| config.check_relay(relay).is_ok());
        if self.mirror.status.get().relays_left != left {
            tracing::warn!(left, most = RELAYS, "relays have to wait, because there are too many");
        }
        self.mirror.status.change(|status| status.relays_left = left);
        self.relays
            .retain(|relay, worker| wanted.contains(relay) || worker.courier.is_busy());
        let relays = &self.relays;
        self.mirror
            .status
            .change(|status| status.relays.retain(|relay, _| relays.contains_key(relay)));
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
                courier: Courier::new(config.relay_batch),
            };
            self.relays.insert(relay, worker);
        }
        Ok(())
    }

    /// Reads new events into the outbox, as long as there is room: the same for each policy, so that none waits for the relays of
    /// another. Returns whether there may be more.
    async fn read(&mut self) -> Result<bool, AuthorityError> {
        let (authority, config) = (&self.mirror.authority, &self.mirror.config);
        let author = self.mirror.key.public();
        let mut policies = self.policies.borrow().clone();
        let share = share(config.pending, policies.len());
        // Who is first finds most of the pass.
        let first = self.turns.checked_rem(policies.len()).unwrap_or_default();
        policies.rotate_left(first);
        self.turns = self.turns.wrapping_add(1);
        let (mut room, mut has_more, mut failed) = (PASS, false, None);
        for policy in &policies {
            if !matches!(policy.source, MirrorSource::Events(_)) {
                continue;
            }
            let tail = &mut self.tail;
            let read = async {
                let pending = authority.outbox_pending(&policy.policy_id, share).await?;
                match room.min(share.saturating_sub(pending)) {
                    0 => Ok(Read::default()),
                    room => tail.pass(authority, policy, &author, room, config.poll()).await,
                }
            };
            match read.await {
                Ok(read) => {
                    room = room.saturating_sub(read.events);
                    has_more |= read.has_more;
                    self.mirror.status.change(|status| {
                        status.counters.enqueued += read.entries as u64;
                        status.counters.missed += read.missed;
                    });
                }
                // The others go on.
                Err(error) => failed = Some(error),
            }
            if room == 0 {
                has_more = true;
                break;
            }
        }
        failed.map_or(Ok(has_more), Err)
    }

    /// Gives every relay that has nothing to do what is due there.
    async fn hand_out(&mut self) -> Result<(), AuthorityError> {
        let now = self.began.elapsed();
        let patience = self.mirror.config.patience();
        let names: Vec<String> = self
            .relays
            .iter()
            .filter(|(_, worker)| worker.courier.is_free(now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            let Some(worker) = self.relays.get_mut(&name) else {
                continue;
            };
            let due = self.mirror.authority.outbox_due(&name, worker.courier.wants()).await?;
            let Given { void, batch, unsigned } = worker.courier.give(due, &self.mirror.key, &patience, now_s());
            // It takes one batch at a time, and has none.
            if !batch.is_empty() && worker.batches.try_send(batch).is_err() {
                worker.courier.told_nothing();
            }
            if !void.is_empty() {
                let names: Vec<&str> = void.iter().map(String::as_str).collect();
                self.mirror.authority.outbox_void(&names).await?;
            }
            if !unsigned.is_empty() {
                self.settle(&name, unsigned).await?;
            }
        }
        Ok(())
    }

    /// A relay has answered.
    async fn answered(&mut self, answered: Answered) -> Result<(), AuthorityError> {
        let Answered { relay, published } = answered;
        let Some(worker) = self.relays.get_mut(&relay) else {
            return Ok(());
        };
        if let Published::Unreached(how) = &published {
            tracing::debug!(relay = shown_relay(&relay), how, "a relay cannot be reached");
        }
        let reached = matches!(published, Published::Answered(_));
        self.mirror.status.change(|status| {
            status.relays.insert(relay.clone(), reached);
            status.counters.unreached += u64::from(!reached);
        });
        let (patience, now) = (self.mirror.config.patience(), self.began.elapsed());
        let outcomes = worker.courier.answered(published, &patience, &mut self.chance, now);
        self.settle(&relay, outcomes).await
    }

    async fn settle(&self, relay: &str, outcomes: Vec<Outcome>) -> Result<(), AuthorityError> {
        if outcomes.is_empty() {
            return Ok(());
        }
        let (status, shown) = (&self.mirror.status, shown_relay(relay));
        for outcome in &outcomes {
            match &outcome.attempt {
                Attempt::Accepted => {}
                Attempt::Again { failure, .. } => status.failed(failure),
                Attempt::Failed { failure, detail } => {
                    status.failed(failure);
                    tracing::warn!(relay = shown, event = %outcome.event_id, failure, detail, "a relay will not have an entry");
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

/// How many entries of each policy may be pending.
pub fn share(pending: usize, policies: usize) -> usize {
    (pending / policies.max(1)).max(1)
}

/// The relays that are served, and how many are not: those first at which something is due.
fn served(
    due: Vec<String>,
    named: impl Iterator<Item = String>,
    is_usable: impl Fn(&str) -> bool,
) -> (BTreeSet<String>, usize) {
    let (mut served, mut left) = (BTreeSet::new(), BTreeSet::new());
    for relay in due.into_iter().chain(named).filter(|relay| is_usable(relay)) {
        if served.len() < RELAYS {
            served.insert(relay);
        } else if !served.contains(&relay) {
            left.insert(relay);
        }
    }
    (served, left.len())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_has_a_share_however_many_there_are() {
        for (pending, policies, expected) in [(10_000, 0, 10_000), (10_000, 1, 10_000), (10_000, 3, 3_333), (1, 5, 1)] {
            assert_eq!(share(pending, policies), expected);
        }
    }

    #[test]
    fn relays_at_which_something_is_due_come_first_and_the_rest_are_counted() {
        let relays = |prefix: &str, count: usize| (0..count).map(|n| format!("{prefix}{n:03}")).collect::<Vec<_>>();
        let (all, left) = served(relays("b", 10), relays("a", 20).into_iter(), |relay| relay != "a000");
        assert_eq!((all.len(), left), (29, 0));
        let due = relays("b", 60);
        let named = [relays("a", 20), due.clone(), relays("a", 20)].concat();
        let (all, left) = served(due.clone(), named.into_iter(), |_| true);
        assert!(due.iter().all(|relay| all.contains(relay)));
        assert_eq!((all.len(), left), (RELAYS, 16));
    }
}
