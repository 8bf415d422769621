//! What SpacetimeDB does for clients: pages, subscriptions, acknowledgements and grants.

use rand::Rng as _;
use rand::seq::SliceRandom as _;
use spacetime_sync_client::session::stream::{Page, SubscriptionId};
use spacetime_sync_proto::{Position, Refusal, RefusalCode, Seq};
use spacetime_sync_rules::checkpoint::{self, Ack};
use spacetime_sync_rules::log::chain_of_held;
use spacetime_sync_rules::page;

use super::{Sub, Undo};
use crate::agenda::Micros;
use crate::fault::Fault;
use crate::net::{ConnId, FromHost, Party};
use crate::world::World;

impl World {
    /// One call of `read_events`.
    pub(super) fn page(&mut self, client: usize, stream: usize, after: Seq) -> Result<Page, Option<Refusal>> {
        if self.strikes(Fault::PageFails, Some(client), None) {
            if self.dice.net.random_bool(0.5) {
                return Err(None);
            }
            return Err(Some(Refusal::new(RefusalCode::TokenExpired, "injected")));
        }
        if !self.host.granted[client][stream] {
            return Err(Some(Refusal::new(RefusalCode::ForbiddenStream, "no grant")));
        }
        let table = &self.host.tables[stream];
        let page::Page { held, frames } = page::read(&table.log, &table.stream_id, after, self.setup.host_page_bytes);
        let mut page = Page {
            head: held.head,
            oldest_seq: held.oldest_seq,
            durable_reads: true,
            frames: frames.into_iter().map(|stored| stored.frame).collect(),
        };
        if let Some(shown) = self.withheld_after(client, stream)
            && shown.seq < page.head.seq
        {
            page.head = shown;
            page.frames.retain(|frame| frame.last_seq <= shown.seq);
        }
        Ok(self.bend_page(client, stream, page))
    }

    /// Keeps back from a client, from now on, what follows in a stream. Only clients that may ask the authority notice.
    pub(crate) fn host_withholds(&mut self, client: usize, stream: usize, until: Micros) -> bool {
        let head = self.host.tables[stream].head();
        let notices = self.setup.bounds.history;
        if notices {
            self.host.withheld.insert((client, stream), (head, until));
        }
        notices
    }

    /// The position after which events are kept back from a client.
    pub(super) fn withheld_after(&self, client: usize, stream: usize) -> Option<Position> {
        let (shown, until) = self.host.withheld.get(&(client, stream))?;
        (self.now < *until).then_some(*shown)
    }

    /// Whether events are kept back from a client for ever.
    pub(crate) fn is_withheld_for_ever(&self, client: usize, stream: usize) -> bool {
        let withheld = self.host.withheld.get(&(client, stream));
        withheld.is_some_and(|(_, until)| *until == Micros::MAX)
    }

    pub(super) fn subscribe(&mut self, conn: ConnId, stream: usize, id: SubscriptionId, after: Seq, to: Seq) {
        let Party::Client(client) = self.conns[conn.0].party else {
            return;
        };
        if self.strikes(Fault::SubscriptionFails, Some(client), None) {
            return self.emit(conn, FromHost::SubscriptionFailed { stream, id });
        }
        let Some(subs) = self.host.open.get_mut(&conn) else {
            return;
        };
        subs.push(Sub { stream, id, after, to });
        self.send_rows(conn, client, stream, after, to);
        self.emit(conn, FromHost::Subscribed { stream, id });
    }

    /// Sends the rows that a subscription begins with, in any order.
    fn send_rows(&mut self, conn: ConnId, client: usize, stream: usize, after: Seq, to: Seq) {
        if !self.host.granted[client][stream] {
            return;
        }
        let table = &self.host.tables[stream];
        let rows = table.log.frames_after(after).iter().map(|stored| &stored.frame);
        let mut rows: Vec<_> = rows.filter(|row| row.first_seq <= to).cloned().collect();
        if let Some(shown) = self.withheld_after(client, stream) {
            rows.retain(|row| row.last_seq <= shown.seq);
        }
        rows.shuffle(&mut self.dice.net);
        for frame in rows {
            self.emit(conn, FromHost::Row { stream, frame });
        }
    }

    pub(super) fn host_acks(&mut self, client: usize, stream: usize, at: Position) -> Result<(), Option<Refusal>> {
        if self.strikes(Fault::AckFails, Some(client), None) {
            return Err(None);
        }
        if !self.host.granted[client][stream] {
            return Err(Some(Refusal::new(RefusalCode::ForbiddenStream, "no grant")));
        }
        let table = &mut self.host.tables[stream];
        let (held, was) = (table.held(), table.acknowledged(client));
        match checkpoint::decide(was, held.head, at, |seq| chain_of_held(&table.log, held, seq)) {
            Ok(Ack::Moved) => {
                table.acknowledges(client, Some(at));
                self.coverage.seen("ack: moved");
                let head = held.head.seq;
                if was.is_some_and(|was| was.seq >= at.seq) || at.seq > head {
                    self.violate("acks", || format!("{was:?} became {at:?}, the head is {head}"));
                }
                self.commit(Undo::Ack { client, stream, was });
                Ok(())
            }
            Ok(Ack::Repeated) => {
                self.coverage.seen("ack: repeated or behind");
                Ok(())
            }
            Err(refusal) => {
                self.coverage.seen(match refusal.code {
                    RefusalCode::CheckpointBehind => "ack: repeated or behind",
                    RefusalCode::CheckpointAhead => "ack: ahead",
                    _ => "ack: another chain",
                });
                Err(Some(refusal))
            }
        }
    }

    /// Turns the token of a client that connects into grants.
    pub(super) fn admit(&mut self, client: usize) {
        for stream in 0..self.setup.streams {
            if self.host.entitled[client][stream] && !self.host.granted[client][stream] {
                self.set_grant(client, stream, true);
            }
        }
    }

    pub(super) fn set_grant(&mut self, client: usize, stream: usize, granted: bool) {
        let was = std::mem::replace(&mut self.host.granted[client][stream], granted);
        if was == granted {
            return;
        }
        let table = &mut self.host.tables[stream];
        let acknowledged = table.acknowledged(client);
        if !granted {
            table.acknowledges(client, None);
        }
        self.commit(Undo::Grant {
            client,
            stream,
            was,
            acknowledged,
        });
        let conns: Vec<_> = self
            .host
            .open
            .iter()
            .filter(|(conn, _)| self.conns[conn.0].party == Party::Client(client))
            .map(|(conn, subs)| (*conn, subs.clone()))
            .collect();
        for (conn, subs) in conns {
            if granted {
                self.emit(conn, FromHost::GrantCame);
                for sub in subs.iter().filter(|sub| sub.stream == stream) {
                    self.send_rows(conn, client, stream, sub.after, sub.to);
                }
            } else {
                self.emit(conn, FromHost::GrantLost { stream });
            }
        }
    }

    pub(crate) fn revoke(&mut self, client: usize, stream: usize) {
        self.host.entitled[client][stream] = false;
        if self.host.up {
            self.set_grant(client, stream, false);
        }
    }

    pub(crate) fn grant(&mut self, client: usize, stream: usize) {
        self.host.entitled[client][stream] = true;
        if self.host.up {
            self.set_grant(client, stream, true);
        }
    }
}
