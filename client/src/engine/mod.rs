//! Runs the pure core: feeds it what the connection, the applier and the clock bring, does what it asks for, and says
//! in [`Status`] how things stand. One task; whatever blocks happens elsewhere.

mod effects;
mod follower;
mod net;
mod tick;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use spacetime_sync_proto::contract::Contract;
use spacetime_sync_proto::{Seq, StreamId};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use crate::applier::{Applied, Applier, Outcome};
use crate::apply::{Counters, Input, Mode, Stream};
use crate::checkpoint::Checkpoint;
use crate::config::ClientConfig;
use crate::link::{CallFailure, ConnectFailure, Inbound, Link, connect};
use crate::status::{Disconnect, Phase, Status, StopReason, StreamPhase};

use follower::Follower;
use net::{Net, NetEvent, Up};

/// How often timers are looked at.
const TICK: Duration = Duration::from_millis(250);

pub(crate) struct Engine {
    config: ClientConfig,
    applier: Applier,
    followers: Vec<Follower>,
    by_key: HashMap<u64, usize>,
    net: Net,
    /// How many attempts to connect there were since a connection last served.
    attempt: u32,
    connections: u64,
    /// Streams whose read has to wait for its turn, and from where.
    reads: VecDeque<(usize, Seq)>,
    reads_under_way: usize,
    unapplied_bytes: usize,
    /// Bytes of rows that subscriptions have brought …
    subscribed_bytes: usize,
    /// … and those that are being ended.
    leaving_bytes: usize,
    ack_turn: usize,
    counters: Counters,
    stopping: bool,
    status: watch::Sender<Status>,
}

enum Event {
    Stop,
    Outcome(Option<Outcome>),
    Net(NetEvent),
    Tick,
}

impl Engine {
    pub(crate) fn new(
        config: ClientConfig,
        streams: Vec<(StreamId, Checkpoint)>,
        applier: Applier,
    ) -> (Self, watch::Receiver<Status>) {
        let now = Instant::now();
        let bounds = config.limits.of_stream(streams.len());
        let followers: Vec<_> = streams
            .into_iter()
            .map(|(id, applied)| Follower::new(id, Stream::new(applied, bounds.clone()), now))
            .collect();
        let (status, watched) = watch::channel(Status {
            phase: Phase::Idle,
            streams: followers
                .iter()
                .map(|follower| (follower.id.clone(), follower.status()))
                .collect(),
            counters: Counters::default(),
        });
        let engine = Self {
            config,
            applier,
            followers,
            by_key: HashMap::new(),
            net: Net::Waiting { until: now },
            attempt: 0,
            connections: 0,
            reads: VecDeque::new(),
            reads_under_way: 0,
            unapplied_bytes: 0,
            subscribed_bytes: 0,
            leaving_bytes: 0,
            ack_turn: 0,
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
            Event::Net(NetEvent::Connected(Ok(link))) => self.connected(link),
            Event::Net(NetEvent::Connected(Err(ConnectFailure::Unauthorized))) => {
                return Err(StopReason::Unauthorized);
            }
            Event::Net(NetEvent::Connected(Err(ConnectFailure::Later(reason)))) => self.back_off(reason),
            Event::Net(NetEvent::TimedOut) => {
                self.back_off(Disconnect::ConnectTimeout(self.config.limits.connect_timeout));
            }
            Event::Net(NetEvent::Message(Ok(message))) => {
                // The SDK also wakes for what goes out, which says nothing about the other end.
                if let Net::Up(up) = &mut self.net
                    && !message.is_empty()
                {
                    up.heard_at = Instant::now();
                }
                for inbound in message {
                    self.inbound(inbound)?;
                }
                self.reconnect_if_overfull();
            }
            Event::Net(NetEvent::Message(Err(reason))) => self.back_off(reason),
            Event::Tick => self.tick(),
        }
        self.start_reads();
        self.publish()
    }

    fn connect(&mut self) {
        self.attempt += 1;
        let deadline = Instant::now() + self.config.limits.connect_timeout;
        self.net = Net::Connecting {
            answer: connect(&self.config),
            deadline,
        };
        self.set_phase(Phase::Connecting { attempt: self.attempt });
    }

    fn connected(&mut self, link: Link) {
        let now = Instant::now();
        let deadline = match self.net {
            Net::Connecting { deadline, .. } => deadline,
            Net::Waiting { .. } | Net::Up(_) => now + self.config.limits.connect_timeout,
        };
        link.watch_contract();
        self.net = Net::Up(Up {
            link,
            deadline,
            serving: false,
            heard_at: now,
            stable_since: None,
        });
    }

    /// The connection is gone, or there was none.
    fn back_off(&mut self, reason: Disconnect) {
        let attempt = self.attempt.max(1);
        let retry_in = self.config.backoff.delay(attempt, rand::random());
        tracing::info!(%reason, attempt, ?retry_in, "no connection");
        self.hang_up(Instant::now() + retry_in);
        self.set_phase(Phase::Backoff {
            attempt,
            retry_in,
            reason,
        });
    }

    /// Ends the connection, if there is one; the next attempt comes at the given time.
    fn hang_up(&mut self, until: Instant) {
        if let Net::Up(up) = std::mem::replace(&mut self.net, Net::Waiting { until }) {
            up.link.close();
        }
        self.reads.clear();
        (self.reads_under_way, self.subscribed_bytes, self.leaving_bytes) = (0, 0, 0);
        for at in 0..self.followers.len() {
            self.followers[at].offline();
            self.step(at, Input::Disconnected);
        }
    }

    fn inbound(&mut self, inbound: Inbound) -> Result<(), StopReason> {
        match inbound {
            Inbound::Identified(identity) => {
                if let Net::Up(up) = &self.net {
                    up.link.watch_grants(identity);
                }
            }
            Inbound::Contract(found) => {
                let expected = Contract::ours();
                if found != expected {
                    return Err(StopReason::ContractMismatch { expected, found });
                }
                self.serve();
            }
            Inbound::ContractSeen => {
                if let Net::Up(Up { serving: false, .. }) = &self.net {
                    return Err(StopReason::NoModule {
                        detail: "its table sync_contract is empty".to_owned(),
                    });
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
                }
            }
            Inbound::Frame { stream_key, frame } => {
                if let Some(at) = self.by_key.get(&stream_key).copied() {
                    self.delivered(at, frame.bytes.len());
                    self.step(at, Input::Frame(frame));
                    if self.unapplied_bytes > self.config.limits.unapplied_bytes {
                        self.step(at, Input::Overrun);
                    }
                    self.renew_if_large();
                }
            }
            Inbound::Subscribed { stream, id } => {
                self.followers[stream].asked_at = None;
                self.step(stream, Input::Subscribed(id));
            }
            Inbound::Unsubscribed { stream, id } => self.unsubscribed(stream, id),
            Inbound::SubscriptionFailed { stream, id, detail } => {
                self.followers[stream].asked_at = None;
                tracing::warn!(stream = %self.followers[stream].id, detail, "a subscription failed");
                self.step(stream, Input::SubscriptionFailed(id));
            }
            Inbound::Page { stream, answer } => self.page(stream, answer),
            Inbound::Acked { stream, seq, answer } => self.acked(stream, seq, answer),
        }
        Ok(())
    }

    /// The contract is ours: the streams may go.
    fn serve(&mut self) {
        let Net::Up(up) = &mut self.net else { return };
        if std::mem::replace(&mut up.serving, true) {
            return;
        }
        self.connections += 1;
        self.counters.reconnects = self.connections - 1;
        for at in 0..self.followers.len() {
            self.step(at, Input::Connected);
        }
    }

    fn page(&mut self, at: usize, answer: Result<(u64, crate::apply::Page), CallFailure>) {
        self.reads_under_way = self.reads_under_way.saturating_sub(1);
        let follower = &mut self.followers[at];
        follower.asked_at = None;
        follower.verified_at = Instant::now();
        let input = match answer {
            Ok((key, page)) => {
                follower.key = Some(key);
                self.by_key.insert(key, at);
                Input::Page(page)
            }
            Err(CallFailure::Refused(refusal)) => Input::ReadRefused(refusal),
            Err(CallFailure::Failed(detail)) => {
                tracing::warn!(stream = %follower.id, detail, "a page was not answered as it should be");
                Input::ReadFailed
            }
        };
        self.step(at, input);
    }

    fn acked(&mut self, at: usize, seq: Seq, answer: Result<(), CallFailure>) {
        match answer {
            Ok(()) => self.counters.acks += 1,
            Err(failure) => {
                self.counters.acks_refused += 1;
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
        self.status.send_if_modified(|status| {
            let mut changed = status.counters != counters;
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
                    | StreamPhase::Retrying { .. } => {
                        going += 1;
                        behind += usize::from(found.phase != StreamPhase::Live);
                        applied += found.applied.seq.get();
                        target += found.head.unwrap_or(found.applied.seq).max(found.applied.seq).get();
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
            if !up.serving {
                return changed;
            }
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
        let deadline = Instant::now() + self.config.limits.stop_timeout;
        let owed = self.ack_all();
        let answered = self.counters.acks + self.counters.acks_refused + owed;
        while self.counters.acks + self.counters.acks_refused < answered {
            let Ok(NetEvent::Message(Ok(message))) = timeout_at(deadline, self.net.next()).await else {
                break;
            };
            for inbound in message {
                if let Inbound::Acked { stream, seq, answer } = inbound {
                    self.acked(stream, seq, answer);
                }
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
        self.status
            .send_modify(|status| status.phase = Phase::Stopped { reason });
    }
}
