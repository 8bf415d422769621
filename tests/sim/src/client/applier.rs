//! How a client's applier works, one transaction at a time, and what it loses with the power.

use std::collections::VecDeque;

use rand::Rng as _;
use spacetime_sync_client::session::Applied;
use spacetime_sync_client::session::stream::ApplyFailure;

use super::ClientStep;
use crate::agenda::{MILLISECOND, SECOND};
use crate::fault::Fault;
use crate::store::StoreFault;
use crate::world::{World, say};

impl World {
    /// Makes the oracle forget the effects that were lost with the power.
    pub(crate) fn power_is_lost(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let state = client.store.look();
        for (followed, saved) in client.followed.iter_mut().zip(&state.saved) {
            followed.checked = followed.checked.min(saved.effects.len());
        }
    }

    /// One transaction of the applier.
    pub(super) fn work(&mut self, at: usize) {
        let client = &mut self.clients[at];
        if client.applier_stopped {
            return;
        }
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
        if self.hear_applier(at) && more {
            self.work_later(at);
        }
    }

    /// Has the session hear what the applier has done. Returns whether the process lives on.
    pub(super) fn hear_applier(&mut self, at: usize) -> bool {
        let mut outcomes = VecDeque::new();
        while let Some(outcome) = self.clients[at].applier.outcome() {
            outcomes.push_back(outcome);
        }
        for outcome in outcomes {
            if let Applied::To(to) = &outcome.result {
                say!(
                    self,
                    "client {at}: has applied stream {} up to {}",
                    outcome.stream,
                    to.seq
                );
                if self.strikes(Fault::StoreUnknown, Some(at), None) {
                    let back = self.dice.work.random_range(0..SECOND);
                    self.client_dies(at, back);
                    return false;
                }
            }
            if matches!(&outcome.result, Applied::Failed(ApplyFailure::Unproven { .. })) {
                self.coverage.seen("client: unsealed events not applied");
            }
            // Outcomes arrive in order, as through a channel.
            let told_at = self.clients[at].told_at.max(self.now) + self.dice.work.random_range(1..500);
            self.clients[at].told_at = told_at;
            self.client_in(at, told_at - self.now, ClientStep::Applied(outcome));
        }
        true
    }

    pub(super) fn work_later(&mut self, at: usize) {
        let slow = self.now < self.clients[at].slow_until;
        let most = if slow { 800 } else { 3 };
        let after = self.dice.work.random_range(20..most * MILLISECOND);
        self.clients[at].working = true;
        self.client_in(at, after, ClientStep::Work);
    }
}
