//! How faults strike: at once, or at the next opportunity.

use bytes::Bytes;
use rand::Rng as _;
use spacetime_sync_client::session::stream::Page;
use spacetime_sync_proto::{ChainHash, Event, Frame, FrameRow, PayloadHash, Seq};

use crate::agenda::{MILLISECOND, Micros};
use crate::bridge::BridgeStep;
use crate::client::ClientStep;
use crate::fault::{Fault, Planned};
use crate::store::StoreFault;
use crate::world::{Armed, Step, World, say};

impl World {
    /// Carries out a planned fault. A fault that finds nothing to strike is not counted.
    pub(crate) fn strike(&mut self, planned: Planned) {
        let Planned {
            fault, party, lasts, ..
        } = planned;
        let bridge = party % self.setup.bridges;
        let client = party % self.setup.clients;
        let stream = planned.stream % self.setup.streams;
        let struck = match fault {
            Fault::AppendTraps
            | Fault::AppendUnknown
            | Fault::BridgeSilentOnceUp
            | Fault::BridgeStray
            | Fault::RewindRefused
            | Fault::RewindOvertaken
            | Fault::DialFails
            | Fault::RowLost
            | Fault::RowRepeated
            | Fault::RowLate
            | Fault::PageFails
            | Fault::AckFails
            | Fault::SubscriptionFails
            | Fault::StoreUnknown
            | Fault::WriterUnknown
            | Fault::RowAltered
            | Fault::RowForged
            | Fault::PageForged => {
                self.armed.push(Armed { planned });
                return;
            }
            Fault::HandlerFails => self.arm_store(client, StoreFault::Handler),
            Fault::StoreBusy => self.arm_store(client, StoreFault::Busy),
            Fault::StoreRolledBack => self.arm_store(client, StoreFault::RolledBack),
            Fault::StoreFails => self.arm_store(client, StoreFault::Fails),
            Fault::BridgeCut => self.bridges[bridge].conn().map(|conn| self.cut(conn)).is_some(),
            Fault::ClientCut => self.clients[client].conn().map(|conn| self.cut(conn)).is_some(),
            Fault::BridgeSilent => self.silence(self.bridges[bridge].conn()),
            Fault::ClientSilent => self.silence(self.clients[client].conn()),
            Fault::BridgeLate => self.bridges[bridge]
                .conn()
                .map(|conn| self.delay(conn, lasts))
                .is_some(),
            Fault::ClientLate => self.clients[client]
                .conn()
                .map(|conn| self.delay(conn, lasts))
                .is_some(),
            Fault::BridgeKilled => self.bridge_dies(bridge, lasts),
            Fault::BridgeStopped => self.bridge_is_told_to_stop(bridge),
            Fault::BridgePaused => {
                self.bridges[bridge].paused_until = self.now + lasts;
                self.bridges[bridge].running
            }
            Fault::LeadLost => self.lose_lead(),
            Fault::ClientKilled => self.client_dies(client, lasts),
            Fault::ClientPaused => {
                self.clients[client].paused_until = self.now + lasts;
                self.clients[client].running
            }
            Fault::ClientSlow => {
                self.clients[client].slow_until = self.now + lasts;
                true
            }
            Fault::ClientStopped => {
                let life = self.clients[client].life;
                let step = ClientStep::Stop { back_after: lasts };
                self.agenda.push(self.now, Step::Client { at: client, life, step });
                self.clients[client].running
            }
            Fault::Unfollowed => {
                let life = self.clients[client].life;
                let step = ClientStep::Unfollow {
                    stream,
                    follow_after: lasts,
                };
                self.agenda.push(self.now, Step::Client { at: client, life, step });
                self.clients[client].running
            }
            Fault::StoreLost => {
                let most = 1 + planned.stream % 3;
                let running = self.clients[client].running;
                let lost = if running {
                    self.clients[client].store.lose(most)
                } else {
                    0
                };
                say!(self, "client {client}: power is cut, {lost} transactions are gone");
                if lost > 0 {
                    self.power_is_lost(client);
                    self.client_dies(client, lasts);
                }
                lost > 0
            }
            Fault::Revoked => {
                let entitled = self.host.entitled[client][stream];
                if entitled {
                    self.revoke(client, stream);
                    self.agenda.push(self.now + lasts, Step::Granted { client, stream });
                }
                entitled
            }
            Fault::HostKilled => {
                let up = self.host.up;
                self.host_dies(lasts);
                up
            }
            Fault::HostSlowDisk => {
                self.host.slow_until = self.now + lasts;
                true
            }
            Fault::HostRestored | Fault::HostWiped => {
                let up = self.host.up;
                if up {
                    self.host_set_back(fault == Fault::HostWiped);
                }
                up
            }
            Fault::AuthorityAway => self.authority_goes(lasts),
            Fault::RowLocked => {
                self.logs[stream].locked_until = self.now + lasts;
                true
            }
            Fault::AuthorityClock => {
                let hours = planned.stream as i64 - 32;
                self.authority_clock_us += hours * 3_600 * 1_000_000;
                true
            }
            Fault::Swept => self.host_sweeps(stream),
            Fault::Purged => {
                let keeps = self.setup.window().map(|window| 2 * window);
                let away = self.now < self.authority_away_until;
                keeps
                    .filter(|_| !away)
                    .is_some_and(|keeps| self.logs[stream].purge(keeps) > 0)
            }
            Fault::Tampered => self.tamper(stream),
            Fault::Corrupted => self.corrupt(stream),
            Fault::Foreign => self.host_takes_foreign(stream),
            Fault::Withheld => {
                let until = if planned.stream < 32 {
                    self.now + lasts
                } else {
                    Micros::MAX
                };
                self.host_withholds(client, stream, until)
            }
            Fault::Reported => {
                let running = self.bridges[bridge].running;
                if running {
                    self.bridge_hears_of(bridge, client, stream);
                }
                running
            }
        };
        if struck {
            self.coverage.struck(fault);
            say!(
                self,
                "FAULT {} (party {party}, stream {stream}, {} ms)",
                fault.name(),
                lasts / MILLISECOND
            );
        }
    }

    pub(crate) fn silence(&mut self, conn: Option<crate::net::ConnId>) -> bool {
        if let Some(conn) = conn {
            self.conns[conn.0].silent = true;
        }
        conn.is_some()
    }

    /// The store itself counts the faults that struck.
    fn arm_store(&mut self, client: usize, fault: StoreFault) -> bool {
        self.clients[client].store.look().next = Some(fault);
        false
    }

    fn authority_goes(&mut self, lasts: Micros) -> bool {
        self.authority_away_until = self.now + lasts;
        // A session holds the lead, and sessions end with their server.
        self.lose_lead();
        true
    }

    /// Takes the lead away. The bridge that had it notices a while later.
    pub(crate) fn lose_lead(&mut self) -> bool {
        let Some((at, life)) = self.lead.take() else {
            return false;
        };
        let after = self.dice.work.random_range(0..5_500 * MILLISECOND);
        let step = BridgeStep::LeadLost;
        self.agenda.push(self.now + after, Step::Bridge { at, life, step });
        true
    }

    fn tamper(&mut self, stream: usize) -> bool {
        let log = &mut self.logs[stream];
        if log.tampered.is_some() || log.events.is_empty() || !self.excuses[stream].foreign.is_empty() {
            return false;
        }
        // Published events are read again only after a wipe, so this alters the next unpublished one.
        let seq = log.published.next().min(log.head());
        log.tampered = Some((seq, Bytes::from_static(b"altered")));
        self.excuses[stream].halts.insert("broken_log");
        true
    }

    /// A manual change of the table: the chain hash at the published position becomes malformed.
    fn corrupt(&mut self, stream: usize) -> bool {
        let log = &mut self.logs[stream];
        if log.corrupt.is_some() || log.published == Seq::ZERO || log.published < log.floor.next() {
            return false;
        }
        log.corrupt = Some(log.published);
        self.excuses[stream].halts.insert("broken_log");
        true
    }

    /// Forges or alters a row on its way to a client, if such a fault strikes.
    pub(crate) fn bend_row(&mut self, client: usize, stream: usize, frame: FrameRow) -> FrameRow {
        if self.strikes(Fault::RowForged, Some(client), None) {
            self.clients[client].forgive(stream, "chain_mismatch");
            return FrameRow {
                base_chain: ChainHash::from_bytes([7; 32]),
                ..frame
            };
        }
        if self.strikes(Fault::RowAltered, Some(client), None) {
            self.clients[client].forgive(stream, "payload_mismatch");
            return altered(&frame, false).unwrap_or(frame);
        }
        frame
    }

    /// Replaces the last event of a page together with its hash, if that fault strikes. Only the head contradicts it.
    pub(crate) fn bend_page(&mut self, client: usize, stream: usize, mut page: Page) -> Page {
        let whole = page.frames.last().is_some_and(|last| last.last_seq == page.head.seq);
        if whole && self.strikes(Fault::PageForged, Some(client), None) {
            self.clients[client].forgive(stream, "chain_mismatch");
            if let Some(last) = page.frames.last_mut()
                && let Some(forged) = altered(last, true)
            {
                *last = forged;
            }
        }
        page
    }

    /// Records that SpacetimeDB lost durable events.
    pub(crate) fn set_back(&mut self, stream: usize, held: Seq) {
        let excuses = &mut self.excuses[stream];
        excuses.was_set_back = true;
        let published = self.logs[stream].published;
        excuses.set_back_from = Some(excuses.set_back_from.unwrap_or(Seq::ZERO).max(held).max(published));
    }
}

/// The frame with another payload in its last event, and on request with the matching hash.
fn altered(frame: &FrameRow, with_hash: bool) -> Option<FrameRow> {
    let decoded = Frame::decode(frame.first_seq.get(), frame.base_chain, frame.bytes.clone()).ok()?;
    let seal = decoded.seal().copied();
    let mut events: Vec<Event> = decoded.into_events_after(Seq::ZERO).collect();
    let last = events.last_mut()?;
    last.payload = Bytes::from_static(b"bent");
    if with_hash {
        last.payload_hash = PayloadHash::of(&last.payload);
    }
    Some(FrameRow {
        bytes: Frame::encode(&events, seal.as_ref()),
        ..frame.clone()
    })
}
