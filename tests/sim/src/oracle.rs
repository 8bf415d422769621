//! The checks after every step. The authority's logs define what is right.

use spacetime_sync_client::StreamPhase;
use spacetime_sync_client::session::stream::{Mode, StreamStop};
use spacetime_sync_proto::{Event, Position, Seq};
use spacetime_sync_rules::log::StoredFrame;

use crate::client::Wish;
use crate::host::frame_of;
use crate::world::World;

impl World {
    /// Checks everything that a step may have changed.
    pub(crate) fn check(&mut self) {
        for stream in 0..self.setup.streams {
            self.check_lane(stream);
        }
        for client in 0..self.setup.clients {
            for stream in 0..self.setup.streams {
                self.check_client(client, stream);
            }
        }
        for at in 0..self.bridges.len() {
            self.check_bridge(at);
        }
    }

    fn check_lane(&mut self, stream: usize) {
        let (log, table) = (&self.logs[stream], &self.host.tables[stream]);
        let (head, durable, published) = (table.head(), table.durable, log.published);
        let excuses = &mut self.excuses[stream];
        let (is_head_forged, is_end_forged) = (excuses.is_foreign(head), excuses.is_foreign(durable));
        let durable = durable.seq;
        // A forged event takes the place of one that was lost.
        if excuses
            .set_back_from
            .is_some_and(|from| durable >= from && !is_end_forged)
        {
            excuses.set_back_from = None;
        }
        let forgiven = excuses.set_back_from.unwrap_or(Seq::ZERO);
        let expected = log.chain_at(head.seq);
        if expected != Some(head.chain) && !is_head_forged {
            return self.violate("I3", || {
                format!("stream {stream}: SpacetimeDB's head is {head:?}, but the authority has {expected:?} there")
            });
        }
        if published > durable.max(forgiven) {
            self.violate("I4", || {
                format!("stream {stream}: published_seq is {published}, but only {durable} is durable")
            });
        }
    }

    /// Checks a frame that SpacetimeDB is about to append after `before`. What is of another origin may be anything: no
    /// client applies it.
    pub(crate) fn check_frame(&mut self, stream: usize, before: Position, stored: &StoredFrame, head: Position) {
        if self.excuses[stream].is_foreign(head) {
            return;
        }
        let first = stored.frame.first_seq;
        let Some(decoded) = frame_of(stored) else {
            return self.violate("I3", || {
                format!("stream {stream}: what SpacetimeDB holds at {first} is not the frame that was stated")
            });
        };
        let follows = first == before.seq.next() && stored.frame.base_chain == before.chain;
        let ends = decoded.last_seq() == head.seq && decoded.last_chain() == head.chain;
        if !follows || !ends {
            return self.violate("I3", || {
                format!(
                    "stream {stream}: the frame {first}..={} does not continue the log that ends at {}",
                    decoded.last_seq(),
                    before.seq
                )
            });
        }
        for event in decoded.into_events_after(Seq::ZERO) {
            if !self.is_event(stream, &event) || !event.payload_matches() {
                let seq = event.seq;
                self.violate("I3", || {
                    format!("stream {stream}: SpacetimeDB holds a wrong event at {seq}")
                });
            }
        }
    }

    fn is_event(&self, stream: usize, event: &Event) -> bool {
        let at = event.seq.get() as usize - 1;
        self.logs[stream].events.get(at) == Some(event)
    }

    fn check_client(&mut self, client: usize, stream: usize) {
        let party = &self.clients[client];
        let state = party.store.look();
        let saved = &state.saved[stream];
        let (at, effects) = (saved.checkpoint, saved.effects.len() as u64);
        let last = saved.effects.last();
        let torn = effects != at.seq.get() || last.is_some_and(|last| last.chain_hash != at.chain);
        let checked = party.followed[stream].checked.min(saved.effects.len());
        let fresh = saved.effects[checked..].to_vec();
        drop(state);
        self.clients[client].followed[stream].checked = checked + fresh.len();
        if torn {
            return self.violate("I6", || {
                format!("client {client}, stream {stream}: {effects} events were applied, but the checkpoint is {at:?}")
            });
        }
        if !fresh.is_empty() && self.clients[client].followed[stream].wish == Wish::Unfollowed {
            return self.violate("I7", || {
                format!("client {client}, stream {stream}: events were applied after the stream was unfollowed")
            });
        }
        for (nth, event) in (checked as u64 + 1..).zip(fresh) {
            // Whatever SpacetimeDB holds or invents: a client applies the authority's events alone.
            if event.seq.get() != nth || self.logs[stream].events.get(nth as usize - 1) != Some(&event) {
                let seq = event.seq;
                return self.violate("I1 I2 I7", || {
                    format!("client {client}, stream {stream}: the {nth}th applied event, {seq}, differs from the log")
                });
            }
            let durable = self.host.tables[stream].durable.seq;
            let excuses = &self.excuses[stream];
            let forgiven = excuses.set_back_from.max(excuses.rewound_from).unwrap_or(Seq::ZERO);
            let told = self.clients[client].followed[stream].from_authority;
            if event.seq > durable.max(forgiven).max(told) {
                let seq = event.seq;
                return self.violate("I5", || {
                    format!("client {client}, stream {stream}: {seq} is applied, but only {durable} is durable")
                });
            }
        }
        self.check_follower(client, stream);
    }

    fn check_follower(&mut self, client: usize, stream: usize) {
        let party = &self.clients[client];
        if !party.running {
            return;
        }
        let core = party.session.stream(stream);
        let applied = core.applied();
        let saved = party.store.look().saved[stream].checkpoint;
        if applied.seq > saved.seq || applied.seq < party.followed[stream].loaded {
            return self.violate("I8", || {
                format!("client {client}, stream {stream}: the core counts from {applied:?}, but {saved:?} is saved")
            });
        }
        let most = self.setup.bounds.unapplied_bytes + (self.setup.client.limits.pages_in_flight + 1) * (1 << 20);
        let bytes = party.session.unapplied_bytes();
        if bytes > most {
            return self.violate("bounds", || format!("client {client}: {bytes} bytes are not applied"));
        }
        let is_wanted = party.followed[stream].wish == Wish::Follow;
        let shown = party.shown.streams.get(&self.logs[stream].id);
        if shown.is_some() != is_wanted && !party.has_wish(stream) {
            return self.violate("status", || {
                format!("client {client}, stream {stream}: whether it is followed and whether it is shown differ")
            });
        }
        let Some(shown) = shown else { return };
        let delivers = core.is_delivering() || shown.phase != StreamPhase::Live;
        if shown.applied != applied || !delivers {
            let mode = format!("{:?}", core.mode());
            let shown = shown.clone();
            return self.violate("status", || {
                format!("client {client}, stream {stream}: shows {shown:?}, is at {applied:?}, {mode}")
            });
        }
        let Mode::Stopped(stop) = core.mode() else {
            return;
        };
        let excuses = &self.excuses[stream];
        let may = match stop {
            StreamStop::AheadOfLane { .. } => excuses.was_set_back,
            StreamStop::Handler { attempts, .. } => *attempts >= self.setup.bounds.apply_attempts,
            // An event of another origin may stand where SpacetimeDB lost one that the client has applied.
            StreamStop::ChainMismatch { .. } => {
                party.forgives(stream, "chain_mismatch") || excuses.was_set_back && !excuses.foreign.is_empty()
            }
            StreamStop::PayloadMismatch { .. } => party.forgives(stream, "payload_mismatch"),
            // Where SpacetimeDB lost published events and something of another origin took their place, no chain hash leads
            // to the last published one. The bridge begins the window there anew.
            StreamStop::BelowWindow { .. } => {
                self.setup.window().is_some() || excuses.was_set_back && !excuses.foreign.is_empty()
            }
            StreamStop::StaleCursor(_) => self.logs[stream].floor > applied.seq,
            StreamStop::Unproven { .. }
            | StreamStop::Withheld { .. }
            | StreamStop::DurableReads
            | StreamStop::BadFrame { .. }
            | StreamStop::FrameExtent { .. }
            | StreamStop::Refused(_) => false,
        };
        if !may {
            let why = stop.to_string();
            self.violate("I8 I13", || {
                format!("client {client}, stream {stream} stopped without a cause: {why}")
            });
        }
    }

    fn check_bridge(&mut self, at: usize) {
        let bridge = &self.bridges[at];
        if !bridge.running {
            return;
        }
        let load = bridge.lane.load();
        let page = self.setup.page.bytes + 1_000 * (self.setup.page.events + 1);
        let most = self.setup.limits.bytes + (self.setup.limits.reads + 1) * page;
        if load.calls > self.setup.limits.calls || load.bytes > most {
            return self.violate("bounds", || format!("bridge {at}: {load:?}"));
        }
        if load.halted_streams == 0 {
            return;
        }
        for stream in 0..self.setup.streams {
            let id = &self.logs[stream].id;
            let halted = self.bridges[at].lane.halted().find(|(halted, _)| *halted == id);
            if let Some((_, reason)) = halted
                && !self.excuses[stream].halts.contains(reason.code())
            {
                let why = reason.to_string();
                return self.violate("I13", || {
                    format!("bridge {at}, stream {stream} halted without a cause: {why}")
                });
            }
        }
    }

    /// Whether every stream that can continue has arrived everywhere.
    pub(crate) fn is_healed(&self) -> bool {
        let sound = |stream: &usize| !self.is_poisoned(*stream);
        (0..self.setup.streams).filter(sound).all(|stream| {
            let (log, table) = (&self.logs[stream], &self.host.tables[stream]);
            let head = log.head();
            head.get() > 0
                && log.published == head
                && table.durable.seq == head
                && self.clients.iter().enumerate().all(|(at, client)| {
                    let core = client.session.stream(stream);
                    let has_all = core.applied().seq == head;
                    let is_fine = core.is_current() && self.is_acknowledged(at, stream);
                    let arrived = has_all && (is_fine || self.is_withheld_for_ever(at, stream));
                    client.running && (client.is_below_window(stream) || arrived)
                })
        }) && self.is_kept()
            && self.now > self.setup.until + crate::agenda::SECOND
    }

    /// Whether the module knows how far a client is. When SpacetimeDB is set back, or a log is rewound for that reason,
    /// the module forgets, and nobody tells the client.
    fn is_acknowledged(&self, client: usize, stream: usize) -> bool {
        let applied = self.clients[client].session.stream(stream).applied();
        match self.host.tables[stream].acknowledged(client) {
            Some(acknowledged) => acknowledged == applied,
            None => self.excuses[stream].was_set_back,
        }
    }

    /// Describes what lags.
    pub(crate) fn lag(&self) -> String {
        let mut lines = Vec::new();
        if !self.is_kept() {
            lines.push(format!("assignments {:?}, kept {:?}", self.host.work, self.kept));
        }
        for (stream, log) in self.logs.iter().enumerate().filter(|(at, _)| !self.is_poisoned(*at)) {
            let table = &self.host.tables[stream];
            let clients = self.clients.iter().enumerate().map(|(at, client)| {
                let (core, acknowledged) = (client.session.stream(stream), table.acknowledged(at).map(|ack| ack.seq));
                let applied = core.applied().seq;
                format!("{applied} {:?}, acknowledged {acknowledged:?}", core.mode())
            });
            lines.push(format!(
                "stream {stream}: head {}, published {}, held {}, durable {}, applied {}",
                log.head(),
                log.published,
                table.head().seq,
                table.durable.seq,
                clients.collect::<Vec<_>>().join(", ")
            ));
        }
        lines.join("; ")
    }

    /// Compares every log as a whole at the end of a run.
    pub(crate) fn check_whole(&mut self) {
        for stream in (0..self.setup.streams)
            .filter(|at| !self.is_poisoned(*at))
            .collect::<Vec<_>>()
        {
            let mut held: Vec<Event> = Vec::new();
            let mut unread = None;
            for stored in &self.host.tables[stream].log.frames {
                match frame_of(stored) {
                    Some(frame) => held.extend(frame.into_events_after(Seq::ZERO)),
                    None => unread = Some(stored.frame.first_seq),
                }
            }
            if let Some(first) = unread {
                self.violate("I1", || {
                    format!("stream {stream}: what SpacetimeDB holds at {first} is not the frame that was stated")
                });
            }
            let held_after = self.host.tables[stream].held_after().get() as usize;
            if held != self.logs[stream].events[held_after..] {
                self.violate("I1", || {
                    format!("stream {stream}: SpacetimeDB's log differs from the authority's")
                });
            }
            for client in 0..self.setup.clients {
                let state = self.clients[client].store.look();
                let same = state.saved[stream].effects == self.logs[stream].events;
                drop(state);
                if !same && !self.clients[client].is_below_window(stream) {
                    self.violate("I1", || {
                        format!("client {client}, stream {stream}: the log differs from the authority's")
                    });
                }
            }
        }
    }
}
