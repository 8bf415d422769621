//! A client: the shipped core of each stream and the shipped applier, and a model of the engine around them
//! (`client/src/engine`), with every call a step of its own.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;

use rand::Rng as _;
use spacetime_sync_client::apply::{Counters, Effect, Input, Mode, Stream, StreamStop, SubscriptionId};
use spacetime_sync_client::{CheckpointStore as _, Stepped, StreamId};
use spacetime_sync_proto::{Position, RefusalCode, Seq};

use crate::agenda::{MILLISECOND, Micros, SECOND};
use crate::fault::Fault;
use crate::net::{ConnId, FromHost, Party, ToHost};
use crate::setup::Setup;
use crate::store::{SimStore, StoreFault, Transaction, handler};
use crate::world::{Step, World, say};

const TICK: Micros = 250 * MILLISECOND;
const CONNECT_TIMEOUT: Micros = 10 * SECOND;
const HEARTBEAT_AFTER: Micros = 5 * SECOND;
const SILENCE: Micros = 7 * SECOND;
const VERIFY_EVERY: Micros = 30 * SECOND;
const ASK_AGAIN_AFTER: Micros = 5 * SECOND;
const ACK_EVERY: Micros = 5 * SECOND;
const STABLE_AFTER: Micros = 10 * SECOND;

#[derive(Debug)]
pub(crate) enum ClientStep {
    Tick,
    Dial,
    DialFails {
        conn: ConnId,
    },
    /// The applier has its turn.
    Work,
    /// What became of a batch is known to the engine.
    Applied {
        stream: usize,
        input: Input,
    },
    StoreFailed,
    Renew {
        stream: usize,
    },
}

#[derive(Debug)]
enum Net {
    Waiting,
    Dialing(ConnId),
    Up {
        conn: ConnId,
        heard_at: Micros,
        since: Micros,
    },
}

type Handler =
    fn(&mut Transaction, &StreamId, &[spacetime_sync_client::Event]) -> Result<(), spacetime_sync_client::HandlerError>;

#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) stream: Stream,
    /// What was saved when the process began.
    pub(crate) loaded: Seq,
    /// How many of the effects the oracle has seen.
    pub(crate) checked: usize,
    /// Whether the module has said what the stream is called.
    named: bool,
    subscriptions: Vec<SubscriptionId>,
    ask_at: Option<Micros>,
    reading: Option<u64>,
    asked_at: Option<Micros>,
    verified_at: Micros,
    acked: Seq,
    acked_at: Option<Micros>,
    /// Reasons for which it may stop.
    forgiven: BTreeSet<&'static str>,
}

pub(crate) struct Client {
    pub(crate) life: u32,
    pub(crate) running: bool,
    pub(crate) paused_until: Micros,
    pub(crate) slow_until: Micros,
    pub(crate) store: SimStore,
    pub(crate) followers: Vec<Follower>,
    pub(crate) unapplied_bytes: usize,
    net: Net,
    attempt: u32,
    applier: Stepped<SimStore, Handler>,
    working: bool,
    told_at: Micros,
    reads: VecDeque<(usize, Seq)>,
    reads_under_way: usize,
    next_read: u64,
    counters: Counters,
    /// Of the processes before.
    before: Counters,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("followers", &self.followers).finish()
    }
}

impl Follower {
    fn new(applied: Position, setup: &Setup, checked: usize, forgiven: BTreeSet<&'static str>) -> Self {
        Self {
            stream: Stream::new(applied, setup.bounds.clone()),
            loaded: applied.seq,
            checked,
            named: false,
            subscriptions: Vec::new(),
            ask_at: None,
            reading: None,
            asked_at: None,
            verified_at: 0,
            acked: applied.seq,
            acked_at: None,
            forgiven,
        }
    }

    /// A page that is under way is still waited for.
    fn subscription_answered(&mut self) {
        if self.reading.is_none() {
            self.asked_at = None;
        }
    }

    pub(crate) fn forgives(&self, code: &str) -> bool {
        self.forgiven.contains(code)
    }
}

fn applier(store: &SimStore, streams: Vec<(StreamId, Position)>, setup: &Setup) -> Stepped<SimStore, Handler> {
    let (events, bytes) = setup.batch;
    Stepped::new(store.clone(), handler as Handler, streams, events, bytes)
}

impl Client {
    pub(crate) fn new(setup: &Setup, starts: impl Iterator<Item = (StreamId, Position)>) -> Self {
        let starts: Vec<_> = starts.collect();
        let store = SimStore::new(starts.iter().cloned(), setup.defect);
        let follower = |(_, start): &(StreamId, Position)| Follower::new(*start, setup, 0, BTreeSet::new());
        Self {
            life: 0,
            running: false,
            paused_until: 0,
            slow_until: 0,
            followers: starts.iter().map(follower).collect(),
            unapplied_bytes: 0,
            net: Net::Waiting,
            attempt: 0,
            applier: applier(&store, starts, setup),
            store,
            working: false,
            told_at: 0,
            reads: VecDeque::new(),
            reads_under_way: 0,
            next_read: 0,
            counters: Counters::default(),
            before: Counters::default(),
        }
    }

    pub(crate) fn conn(&self) -> Option<ConnId> {
        match self.net {
            Net::Dialing(conn) | Net::Up { conn, .. } => Some(conn),
            Net::Waiting => None,
        }
    }

    fn up(&self) -> Option<ConnId> {
        match self.net {
            Net::Up { conn, .. } => Some(conn),
            Net::Dialing(_) | Net::Waiting => None,
        }
    }

    pub(crate) fn is_stopped(&self, stream: usize) -> bool {
        matches!(self.followers[stream].stream.mode(), Mode::Stopped(_))
    }

    /// Whether it would need what SpacetimeDB holds no more.
    pub(crate) fn is_below_window(&self, stream: usize) -> bool {
        let mode = self.followers[stream].stream.mode();
        matches!(mode, Mode::Stopped(StreamStop::BelowWindow { .. }))
    }

    pub(crate) fn forgive(&mut self, stream: usize, code: &'static str) {
        self.followers[stream].forgiven.insert(code);
    }

    pub(crate) fn all_counters(&mut self) -> Counters {
        let (now, before) = (self.counters, &mut self.before);
        before.holes_paged += now.holes_paged;
        before.duplicates_dropped += now.duplicates_dropped;
        before.overruns += now.overruns;
        before.resubscriptions += now.resubscriptions;
        before.reconnects += now.reconnects;
        before.events_applied += now.events_applied;
        self.counters = Counters::default();
        *before
    }
}

/// An input in a few words.
fn words(input: &Input) -> String {
    match input {
        Input::Page(page) => format!("of {} frames and the head {}", page.frames.len(), page.head.seq),
        Input::Frame(frame) => format!("of {}..={}", frame.first_seq, frame.last_seq),
        Input::Applied { to, .. } => format!("that it is applied up to {}", to.seq),
        other => format!("{other:?}"),
    }
}

impl World {
    fn client_in(&mut self, at: usize, after: Micros, step: ClientStep) {
        let life = self.clients[at].life;
        self.agenda.push(self.now + after, Step::Client { at, life, step });
    }

    pub(crate) fn client_starts(&mut self, at: usize) {
        if self.clients[at].running {
            return;
        }
        let client = &mut self.clients[at];
        client.all_counters();
        let mut starts = Vec::new();
        let mut followers = Vec::new();
        for (log, old) in self.logs.iter().zip(&client.followers) {
            // Infallible: the model's store can always be read.
            let applied = client.store.load(&log.id).expect("readable").unwrap_or(log.start);
            starts.push((log.id.clone(), applied));
            followers.push(Follower::new(applied, &self.setup, old.checked, old.forgiven.clone()));
        }
        client.followers = followers;
        client.applier = applier(&client.store, starts, &self.setup);
        client.running = true;
        client.unapplied_bytes = 0;
        client.net = Net::Waiting;
        client.attempt = 0;
        client.working = false;
        client.reads.clear();
        client.reads_under_way = 0;
        say!(self, "client {at}: starts");
        self.client_in(at, 0, ClientStep::Dial);
        self.client_in(at, TICK, ClientStep::Tick);
    }

    /// The process is gone; says whether there was one.
    pub(crate) fn client_dies(&mut self, at: usize, back_after: Micros) -> bool {
        if !self.clients[at].running {
            return false;
        }
        say!(self, "client {at}: dies");
        if let Some(conn) = self.clients[at].conn() {
            self.hang_up(conn);
        }
        self.clients[at].life += 1;
        self.clients[at].running = false;
        self.agenda.push(self.now + back_after, Step::ClientStarts { at });
        true
    }

    /// What the oracle had seen applied is not there any more.
    pub(crate) fn power_is_lost(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let state = client.store.look();
        for (follower, saved) in client.followers.iter_mut().zip(&state.saved) {
            follower.checked = follower.checked.min(saved.effects.len());
        }
    }

    pub(crate) fn client_takes(&mut self, at: usize, step: ClientStep) {
        match step {
            ClientStep::Tick => {
                self.client_tick(at);
                self.client_in(at, TICK, ClientStep::Tick);
            }
            ClientStep::Dial => {
                if self.strikes(Fault::DialFails, Some(at), None) {
                    return self.client_backs_off(at);
                }
                let conn = self.dial(Party::Client(at));
                self.clients[at].attempt += 1;
                self.clients[at].net = Net::Dialing(conn);
                self.client_in(at, CONNECT_TIMEOUT, ClientStep::DialFails { conn });
            }
            ClientStep::DialFails { conn } => {
                if matches!(self.clients[at].net, Net::Dialing(own) if own == conn) {
                    self.client_backs_off(at);
                }
            }
            ClientStep::Work => self.work(at),
            ClientStep::Applied { stream, input } => {
                if matches!(input, Input::Dropped { .. }) {
                    self.coverage.seen("client: batch thrown away");
                }
                self.feed(at, stream, input);
            }
            ClientStep::StoreFailed => {
                say!(self, "client {at}: its store has failed");
                let back = self.dice.work.random_range(0..2 * SECOND);
                self.client_dies(at, back);
                return;
            }
            ClientStep::Renew { stream } => self.feed(at, stream, Input::Renew),
        }
        self.start_reads(at);
    }

    /// One transaction of the applier.
    fn work(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let fault = client.store.look().next;
        let before = client.store.look().struck;
        let more = client.applier.work();
        client.working = more;
        if client.store.look().struck > before {
            let fault = match fault {
                Some(StoreFault::Busy) => Fault::StoreBusy,
                Some(StoreFault::RolledBack) => Fault::StoreRolledBack,
                Some(StoreFault::Fails) => Fault::StoreFails,
                Some(StoreFault::Handler) | None => Fault::HandlerFails,
            };
            say!(self, "FAULT {} at client {at}", fault.name());
            self.coverage.struck(fault);
        }
        while let Some((stream, result)) = self.clients[at].applier.outcome() {
            if let Ok(Input::Applied { to, .. }) = &result {
                say!(self, "client {at}: has applied stream {stream} up to {}", to.seq);
                if self.strikes(Fault::StoreUnknown, Some(at), None) {
                    let back = self.dice.work.random_range(0..SECOND);
                    self.client_dies(at, back);
                    return;
                }
            }
            let step = match result {
                Ok(input) => ClientStep::Applied { stream, input },
                Err(_) => ClientStep::StoreFailed,
            };
            // Through a channel: in order.
            let told_at = self.clients[at].told_at.max(self.now) + self.dice.work.random_range(1..500);
            self.clients[at].told_at = told_at;
            self.client_in(at, told_at - self.now, step);
        }
        if more {
            self.work_later(at);
        }
    }

    fn work_later(&mut self, at: usize) {
        let slow = self.now < self.clients[at].slow_until;
        let most = if slow { 800 } else { 3 };
        let after = self.dice.work.random_range(20..most * MILLISECOND);
        self.clients[at].working = true;
        self.client_in(at, after, ClientStep::Work);
    }

    /// Feeds one input to one stream and does what comes of it, as the engine does.
    fn feed(&mut self, at: usize, stream: usize, input: Input) {
        let heard = if self.is_telling() {
            words(&input)
        } else {
            String::new()
        };
        let client = &mut self.clients[at];
        let core = &mut client.followers[stream].stream;
        let (before, was_stopped) = (core.unapplied_bytes(), matches!(core.mode(), Mode::Stopped(_)));
        let effects = core.step(input, &mut client.counters);
        client.unapplied_bytes = client.unapplied_bytes - before + core.unapplied_bytes();
        if !was_stopped && let Mode::Stopped(stop) = core.mode() {
            let why = stop.to_string();
            self.coverage.seen("client: stream stopped");
            say!(self, "client {at}: stream {stream} stopped, {why}");
        }
        let mode = self.clients[at].followers[stream].stream.mode();
        say!(self, "client {at}: stream {stream} hears {heard}: {mode:?}");
        for effect in effects {
            self.perform(at, stream, effect);
        }
    }

    fn perform(&mut self, at: usize, stream: usize, effect: Effect) {
        let now = self.now;
        let client = &mut self.clients[at];
        match effect {
            Effect::Read { after } => client.reads.push_back((stream, after)),
            Effect::Subscribe { id, after, to } => {
                let follower = &mut client.followers[stream];
                let (true, Some(conn)) = (follower.named, self.clients[at].up()) else {
                    return;
                };
                let follower = &mut self.clients[at].followers[stream];
                follower.subscriptions.push(id);
                follower.asked_at.get_or_insert(now);
                self.send_up(conn, ToHost::Subscribe { stream, id, after, to });
            }
            Effect::Unsubscribe { id } => {
                client.followers[stream].subscriptions.retain(|held| *held != id);
                if let Some(conn) = client.up() {
                    self.send_up(conn, ToHost::Unsubscribe { stream, id });
                }
            }
            Effect::Apply(batch) => {
                client.applier.hand_over(stream, batch);
                if !client.working {
                    self.work_later(at);
                }
            }
            Effect::AskLater => client.followers[stream].ask_at = Some(now + ASK_AGAIN_AFTER),
            // The streams of these runs have no history to ask.
            Effect::ReadHistory { .. } | Effect::ReadDocument | Effect::BeginAnew(_) => {
                self.violate("I8", || {
                    format!("client {at}, stream {stream} asks for a history that it does not have")
                });
            }
            Effect::RetryLater { attempt } | Effect::RecoverLater { attempt } => {
                let pause = self.client_pause(attempt);
                self.clients[at].followers[stream].ask_at = Some(now + pause);
            }
        }
    }

    fn client_pause(&mut self, attempt: u32) -> Micros {
        let doubled = ((250 * MILLISECOND) << attempt.saturating_sub(1).min(8)).min(8 * SECOND);
        doubled / 2 + self.dice.work.random_range(0..doubled / 2)
    }

    fn start_reads(&mut self, at: usize) {
        while let Some((stream, after)) = self.clients[at].reads.front().copied() {
            let client = &mut self.clients[at];
            let coming = (client.reads_under_way + 1) * self.setup.host_page_bytes;
            let idle = client.unapplied_bytes == 0 && client.reads_under_way == 0;
            if client.reads_under_way >= self.setup.pages_in_flight
                || !(idle || client.unapplied_bytes + coming <= self.setup.bounds.unapplied_bytes)
            {
                return;
            }
            let Some(conn) = client.up() else { return };
            client.next_read += 1;
            let read = client.next_read;
            client.followers[stream].reading = Some(read);
            client.reads.pop_front();
            client.reads_under_way += 1;
            client.followers[stream].asked_at.get_or_insert(self.now);
            self.send_up(conn, ToHost::Read { read, stream, after });
        }
    }

    fn client_backs_off(&mut self, at: usize) {
        let attempt = self.clients[at].attempt.max(1);
        let pause = self.client_pause(attempt);
        if let Some(conn) = self.clients[at].conn() {
            self.hang_up(conn);
        }
        let client = &mut self.clients[at];
        let was_up = client.up().is_some();
        client.net = Net::Waiting;
        client.reads.clear();
        client.reads_under_way = 0;
        for stream in 0..self.setup.streams {
            let follower = &mut self.clients[at].followers[stream];
            follower.subscriptions.clear();
            follower.reading = None;
            follower.asked_at = None;
            follower.acked_at = None;
            if was_up {
                self.feed(at, stream, Input::Disconnected);
            }
        }
        say!(self, "client {at}: no connection");
        self.client_in(at, pause, ClientStep::Dial);
    }

    pub(crate) fn client_conn_broken(&mut self, at: usize, conn: ConnId) {
        let client = &self.clients[at];
        if client.paused_until > self.now {
            let until = client.paused_until;
            return self.agenda.push(until, Step::Broken { conn });
        }
        if client.running && client.conn() == Some(conn) {
            self.client_backs_off(at);
        }
    }

    pub(crate) fn client_hears(&mut self, at: usize, from: ConnId, message: FromHost) {
        let now = self.now;
        let client = &mut self.clients[at];
        if !client.running || client.conn() != Some(from) {
            return;
        }
        if let Net::Up { heard_at, .. } = &mut client.net {
            *heard_at = now;
        }
        match message {
            FromHost::Welcome => {
                client.net = Net::Up {
                    conn: from,
                    heard_at: now,
                    since: now,
                };
                client.counters.reconnects += 1;
                for stream in 0..self.setup.streams {
                    self.feed(at, stream, Input::Connected);
                }
            }
            FromHost::GrantCame => {
                for stream in 0..self.setup.streams {
                    let follower = &mut self.clients[at].followers[stream];
                    if let Mode::Refused(_) = follower.stream.mode() {
                        follower.ask_at = None;
                        self.coverage.seen("client: grant came back");
                        self.feed(at, stream, Input::AskAgain);
                    }
                }
            }
            FromHost::GrantLost { stream } => {
                if client.followers[stream].named {
                    self.feed(at, stream, Input::GrantLost);
                }
            }
            FromHost::Row { stream, frame } => {
                if client.followers[stream].named {
                    self.feed(at, stream, Input::Frame(frame));
                    if self.clients[at].unapplied_bytes > self.setup.bounds.unapplied_bytes {
                        self.feed(at, stream, Input::Overrun);
                    }
                }
            }
            FromHost::Subscribed { stream, id } => {
                client.followers[stream].subscription_answered();
                self.feed(at, stream, Input::Subscribed(id));
            }
            FromHost::SubscriptionFailed { stream, id } => {
                client.followers[stream].subscription_answered();
                self.feed(at, stream, Input::SubscriptionFailed(id));
            }
            FromHost::Page { read, stream, answer } => {
                let follower = &mut client.followers[stream];
                if follower.reading != Some(read) {
                    return;
                }
                follower.reading = None;
                follower.asked_at = None;
                follower.verified_at = now;
                client.reads_under_way = client.reads_under_way.saturating_sub(1);
                let input = match answer {
                    Ok(page) => {
                        follower.named = true;
                        Input::Page(page)
                    }
                    Err(Some(refusal)) => {
                        if refusal.code == RefusalCode::ForbiddenStream {
                            self.coverage.seen("client: read forbidden");
                        }
                        Input::ReadRefused(refusal)
                    }
                    Err(None) => Input::ReadFailed,
                };
                self.feed(at, stream, input);
            }
            FromHost::Acked(_)
            | FromHost::Refused(..)
            | FromHost::Lost(_)
            | FromHost::Heads { .. }
            | FromHost::Rewound { .. } => {}
        }
        self.start_reads(at);
    }

    fn client_tick(&mut self, at: usize) {
        let now = self.now;
        for stream in 0..self.setup.streams {
            let follower = &mut self.clients[at].followers[stream];
            if follower.ask_at.is_some_and(|due| due <= now) {
                follower.ask_at = None;
                self.feed(at, stream, Input::AskAgain);
            }
        }
        let client = &mut self.clients[at];
        let Net::Up { conn, heard_at, since } = client.net else {
            return;
        };
        if now - since >= STABLE_AFTER {
            client.attempt = 0;
        }
        let asked_at = client.followers.iter().filter_map(|follower| follower.asked_at).min();
        if asked_at.is_some_and(|asked_at| now.saturating_sub(asked_at.max(heard_at)) > SILENCE) {
            self.coverage.seen("client: silence noticed");
            return self.client_backs_off(at);
        }
        let silent = client.reads_under_way == 0 && now.saturating_sub(heard_at) >= HEARTBEAT_AFTER;
        let mut due: Vec<_> = (0..client.followers.len())
            .filter(|at| {
                let follower = &client.followers[*at];
                follower.stream.is_delivering()
                    && !follower.stream.is_reading()
                    && (silent || now - follower.verified_at >= VERIFY_EVERY)
            })
            .collect();
        due.sort_by_key(|at| client.followers[*at].verified_at);
        due.truncate(if silent { 1 } else { self.setup.pages_in_flight });
        for stream in due {
            self.feed(at, stream, Input::Verify);
        }
        for stream in 0..self.setup.streams {
            let follower = &mut self.clients[at].followers[stream];
            let checkpoint = follower.stream.applied();
            if checkpoint.seq > follower.acked && follower.acked_at.is_none_or(|at| now - at >= ACK_EVERY) {
                (follower.acked, follower.acked_at) = (checkpoint.seq, Some(now));
                self.send_up(conn, ToHost::Ack { stream, checkpoint });
            }
        }
    }
}
