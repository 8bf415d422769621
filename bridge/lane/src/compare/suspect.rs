//! What does not fit the authority's log is either a log that the authority once had, or a forgery. The bridge has sealed
//! every frame that it ever published, so the seal of SpacetimeDB's last event tells which. A forgery is removed. A sealed
//! log is left to a person: the authority may have been restored to an earlier time. So is one of which nobody knows.

use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{Position, Seq, StreamId};

use super::{Compare, Found};
use crate::message::{Checked, Command, Failure, HeadSeal, Reached, Standing};
use crate::notice::Notice;
use crate::streams::{Finding, HaltReason, Verdict};
use crate::{RequestId, Turn};

/// How many seals may be checked at once.
const CHECKS: usize = 8;

/// A stream whose log in SpacetimeDB does not fit the authority's.
#[derive(Debug)]
pub(super) struct Suspect {
    pub(super) stream_id: StreamId,
    /// SpacetimeDB's head.
    pub(super) held: Position,
    /// The authority's head.
    pub(super) head: Seq,
    /// Why the stream halts if the bridge sealed this head.
    pub(super) reason: HaltReason,
    /// After which seq to publish again if it did not.
    pub(super) after: Seq,
    /// Whether nothing after `after` was published. Then the bridge seeks where the forgery begins, and what lies before it
    /// stays: another bridge may be about to record that as published.
    pub(super) unpublished: bool,
    /// The last sound event before the forgery, once it is found.
    pub(super) sound: Option<Position>,
}

impl Compare {
    /// Checks the seals of suspects that wait, as many as may be under way.
    pub(super) fn begin_checks(&mut self, turn: &mut Turn<'_>) {
        let Some(link) = self.link else { return };
        while self.suspects.len() < CHECKS
            && let Some(suspect) = self.suspects_wanted.pop_front()
        {
            let request = turn.ids.request();
            turn.out.push(Command::CheckSeal {
                link,
                request,
                stream_id: suspect.stream_id.clone(),
                head: suspect.held,
            });
            self.suspects.push((request, suspect));
        }
    }

    /// The runner has checked the seal.
    pub(crate) fn seal_checked(
        &mut self,
        request: RequestId,
        sealed: Result<HeadSeal, Failure>,
        turn: &mut Turn<'_>,
    ) -> Found {
        let mut found = Found::default();
        let Some(suspect) = self.take_suspect(request) else {
            return found;
        };
        match sealed {
            Ok(HeadSeal::Good | HeadSeal::Unknown) => suspect.apart(&mut found),
            Ok(HeadSeal::Moved) => suspect.not_compared(&mut found),
            Ok(HeadSeal::Missing) if suspect.unpublished => {
                let sound = Reached {
                    seq: suspect.after,
                    chain: None,
                };
                self.seek_forgery(suspect, sound, turn);
            }
            Ok(HeadSeal::Missing) => suspect.forged(&mut found, turn),
            Err(failure) => suspect.unchecked(failure, &mut found, turn),
        }
        found
    }

    /// Asks where the forgery begins. The log is sound up to there.
    fn seek_forgery(&mut self, suspect: Suspect, sound: Reached, turn: &mut Turn<'_>) {
        let Some(link) = self.link else { return };
        let request = turn.ids.request();
        turn.out.push(Command::CheckFrames {
            link,
            request,
            stream_id: suspect.stream_id.clone(),
            after: sound,
        });
        self.suspects.push((request, suspect));
    }

    /// The runner has checked the next frames of a suspect.
    pub(super) fn forgery_sought(
        &mut self,
        mut suspect: Suspect,
        checked: Result<Checked, Failure>,
        turn: &mut Turn<'_>,
    ) -> Found {
        let mut found = Found::default();
        match checked {
            Ok(Checked::Sound { to, is_end: false }) => {
                let sound = Reached {
                    seq: to.seq,
                    chain: Some(to.chain),
                };
                self.seek_forgery(suspect, sound, turn);
            }
            // Somebody else has removed it.
            Ok(Checked::Sound { to, is_end: true }) if to != suspect.held => suspect.not_compared(&mut found),
            Ok(Checked::Unsound {
                after: Reached {
                    seq,
                    chain: Some(chain),
                },
            }) => {
                let request = turn.ids.request();
                let at = vec![(suspect.stream_id.clone(), seq)];
                turn.out.push(Command::ReadStandings(request, at));
                suspect.sound = Some(Position { seq, chain });
                self.suspects.push((request, suspect));
            }
            Ok(Checked::Sound { .. } | Checked::Unsound { .. } | Checked::Swept { .. }) => {
                suspect.forged(&mut found, turn);
            }
            Err(failure) if failure.class == RefusalClass::Reject => suspect.forged(&mut found, turn),
            Err(failure) => suspect.unchecked(failure, &mut found, turn),
        }
        found
    }

    /// The authority has answered whether it has the last sound event before the forgery. It may lack what the bridge
    /// sealed, because it was restored to an earlier time.
    pub(super) fn sound_part_known(
        &mut self,
        mut suspect: Suspect,
        standings: Result<Vec<Result<Standing, String>>, Failure>,
        turn: &mut Turn<'_>,
    ) -> Found {
        let mut found = Found::default();
        match standings.map(|mut standings| standings.pop()) {
            Ok(Some(Ok(Standing { chain, .. }))) => {
                if let Some(sound) = suspect.sound
                    && chain == Some(sound.chain)
                {
                    suspect.after = suspect.after.max(sound.seq);
                }
                suspect.forged(&mut found, turn);
            }
            Err(failure) if failure.class == RefusalClass::Retry => suspect.unchecked(failure, &mut found, turn),
            Ok(Some(Err(_)) | None) | Err(_) => suspect.forged(&mut found, turn),
        }
        found
    }

    /// The suspect about which this question was.
    pub(super) fn take_suspect(&mut self, request: RequestId) -> Option<Suspect> {
        let at = self.suspects.iter().position(|(asked, _)| *asked == request)?;
        Some(self.suspects.swap_remove(at).1)
    }
}

impl Suspect {
    fn apart(self, found: &mut Found) {
        let verdict = Verdict::Apart(self.reason.clone());
        self.compared(verdict, found);
    }

    fn forged(self, found: &mut Found, turn: &mut Turn<'_>) {
        let verdict = found.forged(self.stream_id.clone(), self.held.seq, self.after, turn);
        self.compared(verdict, found);
    }

    fn compared(self, verdict: Verdict, found: &mut Found) {
        let (held, head) = (self.held, self.head);
        let finding = Finding::Compared { verdict, held, head };
        found.findings.push((self.stream_id, finding));
    }

    fn not_compared(self, found: &mut Found) {
        found.findings.push((self.stream_id, Finding::NotCompared));
    }

    fn unchecked(self, failure: Failure, found: &mut Found, turn: &mut Turn<'_>) {
        match failure.class {
            RefusalClass::Fatal => found.drop_link = Some(failure.text),
            RefusalClass::Reject => self.apart(found),
            RefusalClass::Retry => {
                let (stream_id, why) = (self.stream_id.clone(), failure.text);
                turn.out.push(Command::Tell(Notice::NotCompared { stream_id, why }));
                self.not_compared(found);
            }
        }
    }
}
