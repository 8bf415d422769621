//! Runs the pure core: feeds it what the connection, the applier and the clock bring, does what it asks for, and says
//! in [`Status`] how things stand. One task; whatever blocks happens elsewhere.

mod access;
mod effects;
mod follower;
mod handover;
mod history;
mod net;
mod presence;
mod tick;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use spacetime_sync_proto::contract::Contract;
use spacetime_sync_proto::{Position, RefusalCode, Seq, StreamId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use crate::applier::{Applied, Applier, Outcome};
use crate::apply::{Counters, Input, Mode, Stream};
use crate::config::{ClientConfig, StreamBounds};
use crate::history::{Question, Source};
use crate::link::{CallFailure, Dial, DialAnswer, DialFailure, Inbound, Issued, Link, ReadId};
use crate::presence::{Heartbeat, Presence, Presences};
use crate::status::{Disconnect, Phase, Status, StopReason, StreamPhase};

use access::{Later, Tenure};
use follower::Follower;
use history::Answered;
use net::{Generation, Net, NetEvent, Up};

/// How often timers are looked at.
const TICK: Duration = Duration::from_millis(250);

pub(crate) struct Engine {
    config: Arc<ClientConfig>,
    applier: Applier,
    followers: Vec<Follower>,
    by_key: HashMap<u64, usize>,
    net: Net,
    /// How many attempts to connect there were since a connection last served.
    attempt: u32,
    connections: u64,
    generations: u64,
    read_ids: u64,
    /// The token that was given last, while it is accepted.
    held: Option<Issued>,
    /// Whether what is said of the token is out of date.
    token_changed: bool,
    /// Streams whose read has to wait for its turn, and from where.
    reads: VecDeque<(usize, Seq)>,
    reads_under_way: usize,
    /// Who is asked what the lane does not hold; none if nobody is.
    history: Option<Arc<Source>>,
    /// Streams that have something to ask there, and wait for their turn.
    questions: VecDeque<(usize, Question)>,
    question_ids: u64,
    answers: (mpsc::UnboundedSender<Answered>, mpsc::UnboundedReceiver<Answered>),
    unapplied_bytes: usize,
    /// Bytes of rows that subscriptions have brought …
    subscribed_bytes: usize,
    /// … and those that are being ended.
    leaving_bytes: usize,
    ack_turn: usize,
    /// What is to be said of this session.
    presence: watch::Receiver<Option<Presence>>,
    heartbeat: Heartbeat,
    /// Whom it sees, for those who want to know.
    presences: watch::Sender<Presences>,
    counters: Counters,
    stopping: bool,
    status: watch::Sender<Status>,
}

enum Event {
    Stop,
    Outcome(Option<Outcome>),
    Net(NetEvent),
    Authority(Answered),
    Tick,
}

impl Engine {
    pub(crate) fn new(
        config: ClientConfig,
        history: Option<Source>,
        streams: Vec<(StreamId, Position)>,
        applier: Applier,
        presence: watch::Receiver<Option<Presence>>,
        presences: watch::Sender<Presences>,
    ) -> (Self, watch::Receiver<Status>) {
        let now = Instant::now();
        let bounds = StreamBounds {
            reads: config.reads,
            ..config.limits.of_stream(streams.len())
        };
        let followers: Vec<_> = streams
            .into_iter()
            .map(|(id, applied)| {
                let bounds = StreamBounds {
                    history: history.is_some(),
                    on_stale: config.on_stale_of.get(&id).copied().unwrap_or(config.on_stale),
                    ..bounds.clone()
                };
                Follower::new(id, Stream::new(applied, bounds), now)
            })
            .collect();
        let (status, watched) = watch::channel(Status {
            phase: Phase::Idle,
            streams: followers
                .iter()
                .map(|follower| (follower.id.clone(), follower.status()))
                .collect(),
            token: None,
            counters: Counters::default(),
        });
        let engine = Self {
            config: Arc::new(config),
            applier,
            followers,
            by_key: HashMap::new(),
            net: Net::Waiting { until: now },
            attempt: 0,
            connections: 0,
            generations: 0,
            read_ids: 0,
            held: None,
            token_changed: false,
            reads: VecDeque::new(),
            reads_under_way: 0,
            history: history.map(Arc::new),
            questions: VecDeque::new(),
            question_ids: 0,
            answers: mpsc::unbounded_channel(),
            unapplied_bytes: 0,
            subscribed_bytes: 0,
            leaving_bytes: 0,
            ack_turn: 0,
            presence,
            heartbeat: Heartbeat::default(),
            presences,
            counters: Counters::default(),
            stopping: false,
            status,
        };
        (engine, watched)
    }

    /// Runs until it is told to stop, or its handle is dropped, or nothing more can come of it.
    pub(crate) async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reason = loop {
            let event = tokio::select! {
                _ = &mut stop => Event::Stop,
                outcome = self.applier.next() => Event::Outcome(outcome),
                event = self.net.next() => Event::Net(event),
                // Never closed: one end of it is here.
                Some(answered) = self.answers.1.recv() => Event::Authority(answered),
                _ = ticks.tick() => Event::Tick,
            };
            if let Err(reason) = self.handle(event) {
                break reason;
            }
        };
        self.finish(reason).await;
    }

    fn handle(&mut self, event: Event) -> Result<(), StopReason> {
        match event {
            Event::Stop => return Err(StopReason::Requested),
            Event::Outcome(Some(outcome)) => self.outcome(outcome)?,
            Event::Outcome(None) => return Err(StopReason::Defect),
            Event::Net(NetEvent::Due) => self.connect(),
            Event::Net(NetEvent::Dialed(answer)) => self.dialed(answer)?,
            Event::Net(NetEvent::Refreshed(answer)) => self.refreshed(answer)?,
            Event::Net(NetEvent::Message(Ok(message))) => {
                let Net::Up(up) = &mut self.net else { return Ok(()) };
                // The SDK also wakes for what goes out, which says nothing about the other end.
                if !message.is_empty() {
                    up.heard_at = Instant::now();
                }
                let from = up.generation;
                for inbound in message {
                    self.inbound(from, inbound)?;
                }
                self.reconnect_if_overfull();
            }
            Event::Net(NetEvent::Message(Err(reason))) => self.back_off(reason, None),
            Event::Net(NetEvent::OldMessage(Ok(message))) => {
                let Net::Up(up) = &self.net else { return Ok(()) };
                let Some(from) = up.old.as_ref().map(|old| old.generation) else {
                    return Ok(());
                };
                for inbound in message {
                    self.inbound(from, inbound)?;
                }
                self.reconnect_if_overfull();
            }
            Event::Net(NetEvent::OldMessage(Err(reason))) => {
                tracing::debug!(%reason, "the connection that was taken over from is gone");
                self.old_is_gone();
            }
            Event::Authority(answered) => self.authority_answered(answered)?,
            Event::Tick => self.tick(),
        }
        self.hand_over(Instant::now());
        self.start_reads();
        self.start_questions();
        self.publish_presence();
        self.publish()
    }

    fn connect(&mut self) {
        let held = self.fresh_token(Instant::now());
        self.dialing(Dial::start(Arc::clone(&self.config), held));
    }

    fn dialing(&mut self, dial: Dial) {
        self.attempt += 1;
        self.net = Net::Dialing(dial);
        self.set_phase(Phase::Connecting { attempt: self.attempt });
    }

    /// An attempt is over, and there is no other connection.
    fn dialed(&mut self, answer: DialAnswer) -> Result<(), StopReason> {
        self.held = answer.issued;
        match answer.result {
            Ok((link, brought)) => self.serve(link, brought),
            Err(failure) => {
                let Later { reason, wait, .. } = self.judge(failure)?;
                self.back_off(reason, wait);
                Ok(())
            }
        }
    }

    /// An attempt to replace the connection, before its token ends, is over.
    fn refreshed(&mut self, answer: DialAnswer) -> Result<(), StopReason> {
        let (issued, now) = (answer.issued, Instant::now());
        self.held = issued.clone();
        let failure = match answer.result {
            Ok((link, brought)) => {
                return self.take_over(link, issued, brought);
            }
            Err(failure) => failure,
        };
        let Later { reason, wait, .. } = self.judge(failure)?;
        let Net::Up(up) = &mut self.net else { return Ok(()) };
        up.next = None;
        if let Some(tenure) = &mut up.tenure {
            let failures = tenure.count_failure();
            let retry_in = self.config.backoff.delay_of(failures, wait, rand::random());
            tracing::info!(%reason, failures, ?retry_in, "the token is not replaced yet");
            tenure.try_again_at(now + retry_in);
        }
        self.token_changed = true;
        Ok(())
    }

    /// What an attempt that failed means for the next.
    fn judge(&mut self, failure: DialFailure) -> Result<Later, StopReason> {
        match failure {
            DialFailure::NoToken(_) | DialFailure::Unauthorized | DialFailure::Refused(_) => {
                self.counters.token_failures += 1;
            }
            DialFailure::Stop(_) | DialFailure::Later(_) => {}
        }
        let later = access::judge(failure, self.config.credential.is_renewable())?;
        if later.forget_token {
            self.held = None;
        }
        Ok(later)
    }

    fn fresh_token(&self, now: Instant) -> Option<Issued> {
        self.held.clone().filter(|held| access::is_fresh(held, now))
    }

    fn tenure(&mut self, issued: Option<Issued>) -> Option<Tenure> {
        self.token_changed = true;
        issued.map(|issued| Tenure::new(issued, rand::random()))
    }

    fn next_generation(&mut self) -> Generation {
        self.generations += 1;
        Generation(self.generations)
    }

    /// There is a connection, and its contract is ours: the streams may go.
    fn serve(&mut self, link: Link, brought: Vec<Inbound>) -> Result<(), StopReason> {
        let generation = self.next_generation();
        let tenure = self.tenure(self.held.clone());
        self.net = Net::Up(Box::new(Up {
            link,
            generation,
            heard_at: Instant::now(),
            stable_since: None,
            tenure,
            next: None,
            old: None,
            watches_presence: false,
            presence_changed: false,
        }));
        self.heartbeat.again();
        self.connections += 1;
        self.counters.reconnects = self.connections - 1;
        for at in 0..self.followers.len() {
            self.step(at, Input::Connected);
        }
        for inbound in brought {
            self.inbound(generation, inbound)?;
        }
        Ok(())
    }

    /// The connection is gone, or there was none. `wait` is how long to wait at least, if someone said so.
    fn back_off(&mut self, reason: Disconnect, wait: Option<Duration>) {
        let attempt = self.attempt.max(1);
        let retry_in = self.config.backoff.delay_of(attempt, wait, rand::random());
        let next = match &mut self.net {
            Net::Up(up) => up.next.take(),
            Net::Waiting { .. } | Net::Dialing(_) => None,
        };
        self.hang_up(Instant::now() + retry_in);
        if let Some(dial) = next {
            tracing::info!(%reason, "no connection, the next one is on its way");
            self.dialing(dial);
            return;
        }
        tracing::info!(%reason, attempt, ?retry_in, "no connection");
        self.set_phase(Phase::Backoff {
            attempt,
            retry_in,
            reason,
        });
    }

    /// Ends the connection, if there is one; the next attempt comes at the given time.
    fn hang_up(&mut self, until: Instant) {
        if let Net::Up(up) = std::mem::replace(&mut self.net, Net::Waiting { until }) {
            let Up { link, old, .. } = *up;
            link.close();
            if let Some(old) = old {
                old.link.close();
            }
        }
        self.token_changed = true;
        self.reads.clear();
        (self.reads_under_way, self.subscribed_bytes, self.leaving_bytes) = (0, 0, 0);
        for at in 0..self.followers.len() {
            self.followers[at].offline();
            self.withdraw(at);
            self.step(at, Input::Disconnected);
        }
    }

    fn inbound(&mut self, from: Generation, inbound: Inbound) -> Result<(), StopReason> {
        match inbound {
            // Who we are and what the module speaks was seen before the connection came here.
            Inbound::Identified(_) | Inbound::ContractSeen => {}
            Inbound::Contract(found) => {
                let expected = Contract::ours();
                if found != expected {
                    return Err(StopReason::ContractMismatch { expected, found });
                }
            }
            Inbound::NoModule { detail } => return Err(StopReason::NoModule { detail }),
            Inbound::GrantCame => {
                for at in 0..self.followers.len() {
                    if let Mode::Refused(_) = self.followers[at].stream.mode() {
                        self.followers[at].ask_at = None;
                        self.step(at, Input::AskAgain);
                    }
                }
            }
            Inbound::GrantLost { stream_key } => {
                if let Some(at) = self.by_key.get(&stream_key).copied() {
                    self.step(at, Input::GrantLost);
                    // The issuer knows why: the session may be revoked, or ended by the host's clock.
                    self.doubt_token_if(true);
                }
            }
            Inbound::Frame { stream_key, frame } => {
                if let Some(at) = self.by_key.get(&stream_key).copied() {
                    self.delivered(from, at, frame.bytes.len());
                    self.step(at, Input::Frame(frame));
                    if self.unapplied_bytes > self.config.limits.unapplied_bytes {
                        self.step(at, Input::Overrun);
                    }
                    self.renew_if_large();
                }
            }
            Inbound::Gone { stream_key, last_seq } => {
                if let Some(at) = self.by_key.get(&stream_key).copied() {
                    self.step(at, Input::Gone { last_seq });
                }
            }
            Inbound::Subscribed { stream, id } => {
                self.followers[stream].subscription_answered();
                self.step(stream, Input::Subscribed(id));
            }
            Inbound::Unsubscribed { stream, id } => self.unsubscribed(stream, id),
            Inbound::SubscriptionFailed { stream, id, detail } => {
                self.followers[stream].subscription_answered();
                tracing::warn!(stream = %self.followers[stream].id, detail, "a subscription failed");
                match &self.net {
                    Net::Up(up) if up.generation != from => self.old_subscription_failed(stream, id),
                    Net::Up(_) | Net::Waiting { .. } | Net::Dialing(_) => {
                        self.step(stream, Input::SubscriptionFailed(id));
                    }
                }
            }
            Inbound::Page { stream, read, answer } => self.page(stream, read, answer)?,
            Inbound::Acked { stream, seq, answer } => self.acked(stream, seq, answer),
            Inbound::PresenceSaid { answer } => self.presence_said(answer),
            Inbound::PresenceChanged => self.presence_changed(from),
        }
        Ok(())
    }

    fn page(
        &mut self,
        at: usize,
        read: ReadId,
        answer: Result<(u64, crate::apply::Page), CallFailure>,
    ) -> Result<(), StopReason> {
        let now = Instant::now();
        let follower = &mut self.followers[at];
        // The stream has begun anew meanwhile.
        if follower.reading.is_none_or(|(awaited, _)| awaited != read) {
            return Ok(());
        }
        follower.reading = None;
        self.reads_under_way = self.reads_under_way.saturating_sub(1);
        follower.asked_at = None;
        follower.verified_at = now;
        let input = match answer {
            Ok((key, page)) => {
                follower.key = Some(key);
                self.by_key.insert(key, at);
                Input::Page(page)
            }
            Err(CallFailure::Refused(refusal)) if access::ends_session(refusal.code) => {
                return Err(StopReason::Refused(refusal));
            }
            Err(CallFailure::Refused(refusal)) => {
                // A module that was published anew knows nothing of a session that was opened before.
                let forgotten = refusal.code == RefusalCode::ForbiddenStream && self.is_granted(at);
                self.doubt_token_if(forgotten || access::has_aged(refusal.code));
                Input::ReadRefused(refusal)
            }
            Err(CallFailure::Failed(detail)) => {
                tracing::warn!(stream = %follower.id, detail, "a page was not answered as it should be");
                Input::ReadFailed
            }
        };
        self.step(at, input);
        Ok(())
    }

    /// Whether the token of this connection names a stream.
    fn is_granted(&self, at: usize) -> bool {
        let Net::Up(up) = &self.net else { return false };
        up.tenure
            .as_ref()
            .is_some_and(|tenure| tenure.grants(&self.followers[at].id))
    }

    /// What the module does says that the token is good no more, or for less, though its time is not over by our
    /// reckoning.
    fn doubt_token_if(&mut self, doubted: bool) {
        let Net::Up(up) = &mut self.net else { return };
        if let Some(tenure) = up.tenure.as_mut().filter(|_| doubted) {
            tenure.is_doubted(Instant::now());
            self.held = None;
            self.token_changed = true;
        }
    }

    fn acked(&mut self, at: usize, seq: Seq, answer: Result<(), CallFailure>) {
        match answer {
            Ok(()) => self.counters.acks += 1,
            Err(failure) => {
                self.counters.acks_refused += 1;
                self.doubt_token_if(failure.is_of_aged_token());
                tracing::debug!(stream = %self.followers[at].id, %seq, ?failure, "an acknowledgement was refused");
            }
        }
    }

    fn outcome(&mut self, outcome: Outcome) -> Result<(), StopReason> {
        let Outcome {
            stream,
            released,
            result,
        } = outcome;
        let input = match result {
            Applied::To(to) => Input::Applied { to, released },
            Applied::BegunAnew(at) => {
                tracing::warn!(stream = %self.followers[stream].id, %at.seq, "the stream has begun anew");
                // What was acknowledged counts no more.
                self.followers[stream].acked = at.seq;
                Input::BegunAnew(at)
            }
            Applied::Dropped => Input::Dropped { released },
            Applied::Failed(failure) => {
                tracing::warn!(stream = %self.followers[stream].id, ?failure, "a batch was not applied");
                Input::ApplyFailed { failure, released }
            }
            Applied::StoreFailed(error) => return Err(StopReason::Store(error)),
        };
        self.step(stream, input);
        Ok(())
    }

    fn publish(&mut self) -> Result<(), StopReason> {
        let now = Instant::now();
        let grace = self.config.limits.live_grace;
        let (mut applied, mut target) = (0, 0);
        let (mut going, mut behind, mut ended) = (0, 0, 0);
        let (followers, counters) = (&mut self.followers, self.counters);
        let net = &mut self.net;
        let token_changed = std::mem::take(&mut self.token_changed);
        self.status.send_if_modified(|status| {
            let mut changed = status.counters != counters || token_changed;
            if token_changed {
                status.token = match net {
                    Net::Up(up) => up.tenure.as_ref().map(Tenure::status),
                    Net::Waiting { .. } | Net::Dialing(_) => None,
                };
            }
            status.counters = counters;
            for follower in followers {
                follower.observe(now, grace);
                let found = follower.status();
                match &found.phase {
                    StreamPhase::Stopped { .. } => ended += 1,
                    StreamPhase::Forbidden { .. } | StreamPhase::Unanswered => {}
                    StreamPhase::Waiting
                    | StreamPhase::CatchingUp
                    | StreamPhase::Live
                    | StreamPhase::Recovering { .. }
                    | StreamPhase::Retrying { .. } => {
                        going += 1;
                        behind += usize::from(found.phase != StreamPhase::Live);
                        let head = found.head.unwrap_or(found.applied.seq).max(found.applied.seq);
                        applied = found.applied.seq.get().saturating_add(applied);
                        // A host may claim any head.
                        target = head.get().saturating_add(target);
                    }
                }
                if let Some(shown) = status.streams.get_mut(&follower.id)
                    && *shown != found
                {
                    *shown = found;
                    changed = true;
                }
            }
            let Net::Up(up) = net else { return changed };
            let phase = match (going, behind) {
                (0, _) => Phase::Idle,
                (_, 0) => Phase::Live,
                _ => Phase::CatchingUp { applied, target },
            };
            up.stable_since = match phase {
                Phase::Idle | Phase::Live => up.stable_since.or(Some(now)),
                _ => None,
            };
            changed |= status.phase != phase;
            status.phase = phase;
            changed
        });
        if ended == self.followers.len() {
            Err(StopReason::EveryStreamStopped)
        } else {
            Ok(())
        }
    }

    fn set_phase(&self, phase: Phase) {
        self.status.send_modify(|status| status.phase = phase);
    }

    /// Lets the batch that is being applied end, tells the module, and says goodbye.
    async fn finish(mut self, reason: StopReason) {
        self.stopping = true;
        self.applier.stop();
        while let Some(outcome) = self.applier.next().await {
            // The store's failure is either the reason already, or comes too late to be one.
            let _ = self.outcome(outcome);
        }
        self.old_is_gone();
        if let Net::Up(up) = &mut self.net {
            up.next = None;
        }
        let deadline = Instant::now() + self.config.limits.stop_timeout;
        let mut owed = self.ack_all() + self.leave(Instant::now());
        while owed > 0 {
            let Ok(NetEvent::Message(Ok(message))) = timeout_at(deadline, self.net.next()).await else {
                break;
            };
            for inbound in message {
                match inbound {
                    Inbound::Acked { stream, seq, answer } => self.acked(stream, seq, answer),
                    Inbound::PresenceSaid { answer } => self.presence_said(answer),
                    _ => continue,
                }
                owed = owed.saturating_sub(1);
            }
        }
        for at in 0..self.followers.len() {
            self.step(at, Input::Disconnected);
        }
        // The reason to stop is known already.
        let _ = self.publish();
        if let Net::Up(up) = self.net {
            up.link.close();
        }
        tracing::info!(%reason, "the client has stopped");
        self.status.send_modify(|status| {
            status.phase = Phase::Stopped { reason };
            status.token = None;
        });
    }
}

#[cfg(test)]
mod tests;
