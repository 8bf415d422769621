//! What the bridge does while it carries events: it feeds the streams and carries out their effects, and it reacts to what
//! the link, the comparison and the beats report.

use std::time::Duration;

use spacetime_sync_proto::RefusalCode;
use spacetime_sync_proto::refusal::RefusalClass;

use super::Lane;
use super::stage::Stage;
use crate::compare::Found;
use crate::message::{Answer, Command, Failure};
use crate::notice::Notice;
use crate::streams::{Effect, Input};
use crate::{CallId, LinkId, Turn, beats, journal};

impl Lane {
    /// Does what is due while this bridge carries events.
    pub(super) fn carry(&mut self, now: Duration, out: &mut Vec<Command>) {
        if let Some(why) = self.link.is_overdue(now) {
            if self.link.up().is_some() {
                self.link_down(now, why, out);
            } else {
                self.no_link(now, why, false, out);
            }
        }
        if matches!(self.stage, Stage::Leading) {
            self.link.turn(now, &mut self.ids, out);
        }
        if self.streams.next_due().is_some_and(|due| due <= now) {
            self.feed(now, Input::Tick, out);
        }
        self.beats.turn(now, &mut self.ids, out);
        self.journal.turn(now, &mut self.ids, out);
        // A comparison needs the window that each stream may have, and published seqs that no old statement still changes.
        if let Some(link) = self.link.up()
            && !self.compare.is_open()
            && self.beats.settled_policy().is_some()
            && !self.ledger.writes_the_past()
        {
            self.compare.open(now, link);
        }
        let mut turn = Turn::new(now, &mut self.ids, &mut self.dice, out);
        self.compare.turn(&mut turn);
        self.ledger.turn(now, &mut self.ids, out);
    }

    /// Feeds the streams and carries out their effects.
    pub(super) fn feed(&mut self, now: Duration, input: Input, out: &mut Vec<Command>) {
        let mut effects = std::mem::take(&mut self.effects);
        self.streams.step(now, input, &mut effects);
        let mut drop_link = None;
        let mut doubted = Vec::new();
        for effect in effects.drain(..) {
            match effect {
                Effect::Append {
                    link,
                    call,
                    stream_id,
                    frame,
                } => {
                    self.link.sends(now, call, frame.row.claimed_events());
                    out.push(Command::Append {
                        link,
                        call,
                        stream_id,
                        frame,
                    });
                }
                Effect::Read {
                    link,
                    stream_id,
                    after,
                    base_chain,
                } => out.push(Command::ReadPage {
                    link,
                    stream_id,
                    after,
                    base_chain,
                }),
                Effect::Advance { stream_id, seq } => self.ledger.advance(now, stream_id, seq),
                Effect::ShownLess(stream_id) => {
                    if !self.ledger.is_recording(&stream_id) {
                        doubted.push(stream_id);
                    }
                }
                Effect::SetBack { stream_id, seq } => {
                    let told = stream_id.clone();
                    out.push(Command::Tell(Notice::SetBack {
                        stream_id: told,
                        to: seq,
                    }));
                    self.ledger.set_back(now, stream_id, seq);
                }
                Effect::Holds { stream_id, seq } => self.ledger.holds(now, stream_id, seq),
                Effect::Compare(stream_id) => self.compare.want(stream_id),
                Effect::Refill { stream_id, seen, after } => self.compare.want_refill(stream_id, seen, after),
                Effect::Halted { stream_id, reason } => {
                    self.vitals.halted(stream_id.clone(), reason.clone());
                    out.push(Command::Tell(Notice::Halted { stream_id, reason }));
                }
                Effect::DropLink(refusal) => drop_link = Some(refusal.to_string()),
            }
        }
        self.effects = effects;
        for stream_id in doubted {
            self.feed(now, Input::Doubted(stream_id), out);
        }
        if let Some(why) = drop_link {
            self.link_down(now, why, out);
        }
    }

    /// Passes the findings of the comparison on to the streams.
    pub(super) fn found(&mut self, now: Duration, found: Found, out: &mut Vec<Command>) {
        self.vitals.count().forgeries += found.forgeries;
        self.vitals.count().walks += found.walks;
        for (stream_id, finding) in found.findings {
            self.feed(now, Input::Compared(stream_id, finding), out);
        }
        for stream_id in found.doubts {
            self.feed(now, Input::Doubted(stream_id), out);
        }
        if let Some(why) = found.drop_link {
            self.link_down(now, why, out);
        }
    }

    pub(super) fn answered(
        &mut self,
        now: Duration,
        link: LinkId,
        call: CallId,
        answer: Answer,
        out: &mut Vec<Command>,
    ) {
        // An answer from an earlier link is ignored.
        let Some(sent) = self.link.answered(link, call) else {
            return;
        };
        let input = match answer {
            Answer::Acked => {
                self.vitals.progress(now, sent.events);
                Input::Acked(call)
            }
            Answer::Refused(refusal) => {
                self.vitals.count().refused_calls += 1;
                Input::Refused(call, refusal)
            }
            Answer::Lost(message) => {
                self.vitals.count().lost_calls += 1;
                Input::Lost(call, message)
            }
        };
        self.feed(now, input, out);
    }

    pub(super) fn beaten(&mut self, now: Duration, verdict: beats::Verdict, out: &mut Vec<Command>) {
        match verdict {
            beats::Verdict::Fine => {}
            beats::Verdict::Marked(restored) => self.vitals.restored(restored.map(|refusal| refusal.message)),
            beats::Verdict::DropLink(why) => self.link_down(now, why, out),
            beats::Verdict::EpochBegun => {
                out.push(Command::Tell(Notice::EpochBegun));
                self.vitals.none_halted();
                self.link_down(now, "an operator began a new epoch of the authority".to_owned(), out);
                self.feed(now, Input::Anew, out);
            }
        }
    }

    pub(super) fn journalled(&mut self, now: Duration, verdict: journal::Verdict, out: &mut Vec<Command>) {
        match verdict {
            journal::Verdict::Fine => {}
            journal::Verdict::DropLink(why) => self.link_down(now, why, out),
        }
    }

    pub(super) fn dialed(&mut self, now: Duration, link: LinkId, dialed: Result<(), Failure>, out: &mut Vec<Command>) {
        if !self.link.is_dialing(link) {
            // The bridge gave this attempt up before it succeeded.
            if dialed.is_ok() {
                out.push(Command::HangUp(link));
            }
            return;
        }
        match dialed {
            Ok(()) => {
                out.push(Command::Tell(Notice::LinkUp));
                out.push(Command::Relinked);
                self.found_its_way(out);
                self.link.rise(now, link);
                self.vitals.link_up();
                self.ledger.forget();
                self.vitals.unrecorded(self.ledger.refused().iter());
                self.beats.link_up(now, link);
                self.journal.link_up(now, link);
                self.feed(now, Input::LinkUp(link), out);
                self.look.woken(now);
            }
            Err(failure) => {
                let for_a_person = failure.class != RefusalClass::Retry;
                let code = failure.refusal.map(|refusal| refusal.code);
                self.no_link(now, failure.text.clone(), for_a_person, out);
                if code == Some(RefusalCode::WrongDatabase) {
                    self.strayed = true;
                    out.push(Command::Strayed(true));
                    self.vitals.link_strays(failure.text);
                }
            }
        }
    }

    /// An attempt to connect has failed.
    pub(super) fn no_link(&mut self, now: Duration, why: String, for_a_person: bool, out: &mut Vec<Command>) {
        let wait = self.link.fall(now, &mut self.dice, out);
        out.push(Command::Tell(Notice::NoLink {
            why: why.clone(),
            wait,
            for_a_person,
        }));
        self.vitals.link_down(now, why);
    }

    /// Gives up the link if it is up. The end of one link is often reported more than once.
    pub(super) fn link_down(&mut self, now: Duration, why: String, out: &mut Vec<Command>) {
        if self.link.up().is_none() {
            return;
        }
        let wait = self.link.fall(now, &mut self.dice, out);
        out.push(Command::Tell(Notice::LinkDown { why: why.clone(), wait }));
        self.vitals.link_down(now, why);
        self.beats.link_down();
        self.journal.link_down();
        self.compare.close();
        self.feed(now, Input::LinkDown, out);
    }
}
