//! How SpacetimeDB dies, comes back, and is set back to an earlier state.

use rand::Rng as _;
use spacetime_sync_rules::journal::memory::MemoryJournal;

use super::{HostStep, SWEEP, Table};
use crate::agenda::{MILLISECOND, Micros, SECOND};
use crate::world::{Step, World, say};

impl World {
    /// The process dies and loses everything that is not durable. It comes back after a while.
    pub(crate) fn host_dies(&mut self, back_after: Micros) {
        if !self.host.up {
            return;
        }
        let lost = self.host.committed - self.host.durable;
        self.coverage
            .seen_times("durable transactions lost with the host", lost);
        say!(self, "host: dies, {lost} transactions are not durable");
        while let Some((_, undo)) = self.host.undo.pop_back() {
            undo.take_back(&mut self.host.tables, &mut self.host.granted, &mut self.host.work);
        }
        let host = &mut self.host;
        host.committed = host.durable;
        host.held_back.clear();
        host.syncing = false;
        host.up = false;
        host.life += 1;
        let open = std::mem::take(&mut host.open);
        for conn in open.into_keys() {
            if !self.conns[conn.0].silent {
                self.conns[conn.0].left = true;
                let notices = self.now + self.dice.net.random_range(0..100 * MILLISECOND);
                self.agenda.push(notices, Step::Broken { conn });
            }
        }
        self.agenda.push(self.now + back_after, Step::HostStarts);
    }

    pub(crate) fn host_starts(&mut self) {
        self.host.up = true;
        say!(self, "host: is back");
        self.host_step_in(self.host.life, SECOND, HostStep::Snapshot);
        self.host_step_in(self.host.life, SWEEP, HostStep::Sweep);
        // The issuer revokes again what was revoked while the host was away.
        for client in 0..self.setup.clients {
            for stream in 0..self.setup.streams {
                if !self.host.entitled[client][stream] {
                    self.set_grant(client, stream, false);
                }
            }
        }
    }

    /// Replaces what was durable with an older snapshot, or with nothing.
    pub(crate) fn host_set_back(&mut self, wiped: bool) {
        let snapshot = if wiped {
            None
        } else {
            // A copy from before the authority was restored has marks of another history.
            let epoch = self.kept.epoch();
            let is_of_it = |(_, work): &&(Vec<Table>, MemoryJournal)| {
                let of = work.state.as_ref().map_or("", |state| &state.epoch);
                of.is_empty() || *of == epoch
            };
            self.host.snapshots.iter().find(is_of_it).cloned()
        };
        if snapshot.is_none() && !wiped {
            return;
        }
        if self.host.work.pass.is_some() {
            self.coverage.seen("journal: pass under way at restore");
        }
        self.host_dies(300 * MILLISECOND);
        let fresh = || self.logs.iter().map(|log| Table::new(&log.id)).collect::<Vec<_>>();
        let (tables, work) = snapshot.unwrap_or_else(|| (fresh(), MemoryJournal::default()));
        self.host.work = work;
        self.host.is_stale = !wiped;
        if !wiped {
            self.restored_at = Some(self.now);
        }
        if wiped {
            self.host.snapshots.clear();
            self.host.granted = vec![vec![false; self.setup.streams]; self.setup.clients];
        }
        for (stream, table) in tables.into_iter().enumerate() {
            let lost_from = self.host.tables[stream].head().seq;
            let head = table.head().seq;
            if head < lost_from {
                say!(self, "host: stream {stream} is back at {head}");
                self.set_back(stream, lost_from);
            }
            self.host.tables[stream] = table;
        }
    }
}
