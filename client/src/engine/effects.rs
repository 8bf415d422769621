//! Doing what the core asks for.

use spacetime_sync_proto::limit;
use tokio::time::Instant;

use super::Engine;
use super::follower::Delivered;
use super::net::{Generation, Net, Up};
use crate::applier::Work;
use crate::apply::{Effect, Input, Mode, SubscriptionId};
use crate::history::Question;
use crate::link::{Link, ReadId};

impl Engine {
    /// Feeds one input to one stream and does what comes of it.
    pub(super) fn step(&mut self, at: usize, input: Input) {
        let stream = &mut self.followers[at].stream;
        let before = stream.unapplied_bytes();
        let effects = stream.step(input, &mut self.counters);
        self.unapplied_bytes = self.unapplied_bytes - before + stream.unapplied_bytes();
        if self.stopping {
            return;
        }
        for effect in effects {
            self.perform(at, effect);
        }
    }

    fn perform(&mut self, at: usize, effect: Effect) {
        let now = Instant::now();
        match effect {
            Effect::Read { after } => self.reads.push_back((at, after)),
            Effect::Subscribe { id, after, to } => {
                let follower = &mut self.followers[at];
                let (Some(key), Net::Up(up)) = (follower.key, &self.net) else {
                    return;
                };
                let Up { link, generation, .. } = &**up;
                let subscription = link.subscribe(at, id, key, after, to);
                follower.subscriptions.push(Delivered {
                    id,
                    generation: *generation,
                    subscription: Some(subscription),
                    bytes: 0,
                });
                follower.asked_at.get_or_insert(now);
            }
            Effect::Unsubscribe { id } => self.unsubscribe(at, id),
            Effect::Apply(batch) => self.applier.hand_over(at, Work::Batch(batch)),
            Effect::BeginAnew(beginning) => self.applier.hand_over(at, Work::Begin(beginning)),
            Effect::ReadHistory { after } => self.ask_authority(at, Question::Events(after)),
            Effect::ReadDocument => self.ask_authority(at, Question::Document),
            Effect::RecoverLater { attempt } => {
                let wait = self.followers[at].wait_for_authority.take();
                let pause = self.config.backoff.delay_of(attempt, wait, rand::random());
                self.followers[at].ask_at = Some(now + pause);
            }
            Effect::AskLater => self.followers[at].ask_at = Some(now + self.config.limits.ask_again_after),
            Effect::RetryLater { attempt } => {
                let pause = self.config.backoff.delay(attempt, rand::random());
                self.followers[at].ask_at = Some(now + pause);
            }
        }
    }

    /// Gives a subscription up.
    pub(super) fn unsubscribe(&mut self, at: usize, id: SubscriptionId) {
        let Some(delivered) = self.followers[at].subscription(id) else {
            return;
        };
        let Some(subscription) = delivered.subscription.take() else {
            return;
        };
        let (bytes, generation) = (delivered.bytes, delivered.generation);
        self.subscribed_bytes = self.subscribed_bytes.saturating_sub(bytes);
        self.leaving_bytes += bytes;
        let ends = match &self.net {
            Net::Up(up) if up.generation == generation => up.link.unsubscribe(at, id, subscription),
            // It ends with its connection.
            Net::Up(_) | Net::Waiting { .. } | Net::Dialing(_) => false,
        };
        if !ends {
            self.unsubscribed(at, id);
        }
    }

    /// Takes note of a row that the SDK has put into its cache.
    pub(super) fn delivered(&mut self, from: Generation, at: usize, bytes: usize) {
        let mut subscriptions = self.followers[at].subscriptions.iter_mut();
        if let Some(delivered) = subscriptions.rfind(|delivered| delivered.generation == from) {
            delivered.bytes += bytes;
            match delivered.subscription {
                Some(_) => self.subscribed_bytes += bytes,
                None => self.leaving_bytes += bytes,
            }
        }
    }

    /// The host has ended a subscription and the SDK has dropped its rows.
    pub(super) fn unsubscribed(&mut self, at: usize, id: SubscriptionId) {
        if let Some(bytes) = self.followers[at].forget(id) {
            self.leaving_bytes = self.leaving_bytes.saturating_sub(bytes);
        }
    }

    /// Starts reads in the order they were asked for, as long as what they bring has room.
    pub(super) fn start_reads(&mut self) {
        while let Some((at, after)) = self.reads.front().copied() {
            let under_way = self.reads_under_way + self.questions_under_way();
            let coming = (under_way + 1) * limit::PAGE_BYTES;
            let idle = self.unapplied_bytes == 0 && under_way == 0;
            if self.reads_under_way >= self.config.limits.pages_in_flight
                || !(idle || self.unapplied_bytes + coming <= self.config.limits.unapplied_bytes)
            {
                return;
            }
            let Net::Up(up) = &self.net else { return };
            self.read_ids += 1;
            let read = ReadId(self.read_ids);
            up.link.read(read, at, &self.followers[at].id, after);
            self.followers[at].reading = Some((read, up.generation));
            self.reads.pop_front();
            self.reads_under_way += 1;
            self.followers[at].asked_at.get_or_insert(Instant::now());
        }
    }

    /// The SDK keeps every row of a subscription: the largest gives way to one from where its stream has got to.
    pub(super) fn renew_if_large(&mut self) {
        if self.subscribed_bytes <= self.config.limits.subscribed_bytes {
            return;
        }
        let renewing = |mode: &Mode| matches!(mode, Mode::Renewing { .. });
        if self.followers.iter().any(|follower| renewing(follower.stream.mode())) {
            return;
        }
        let largest = (0..self.followers.len())
            .filter(|at| matches!(self.followers[*at].stream.mode(), Mode::Live(_)))
            .max_by_key(|at| self.followers[*at].delivered_bytes());
        if let Some(at) = largest {
            self.step(at, Input::Renew);
        }
    }

    /// A host that is behind with sending learns late of what is asked of it: until then every row it has sent stays
    /// in the SDK's cache. A new connection pages what the old one had under way.
    pub(super) fn reconnect_if_overfull(&mut self) {
        if self.subscribed_bytes + self.leaving_bytes > self.config.limits.reconnect_bytes {
            tracing::info!(
                bytes = self.subscribed_bytes + self.leaving_bytes,
                "too much is under way, connecting anew"
            );
            self.counters.connections_overfull += 1;
            // Nothing failed: the next attempt is a first one.
            self.attempt = 0;
            self.hang_up(Instant::now());
        }
    }

    pub(super) fn link(&self) -> Option<&Link> {
        match &self.net {
            Net::Up(up) => Some(&up.link),
            Net::Waiting { .. } | Net::Dialing(_) => None,
        }
    }
}
