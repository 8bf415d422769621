//! What does not fit the authority's log is either a log that the authority once had, or a forgery. The bridge has sealed
//! every frame that it ever published, so the seal of SpacetimeDB's last event tells which. A forgery is removed. A sealed
//! log is left to a person: the authority may have been restored to an earlier time. So is one of which nobody knows.

use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{Position, Seq, StreamId};

use super::{Compare, Found};
use crate::message::{Command, Failure, HeadSeal};
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
        let Some(at) = self.suspects.iter().position(|(asked, _)| *asked == request) else {
            return found;
        };
        let Suspect {
            stream_id,
            held,
            head,
            reason,
            after,
        } = self.suspects.swap_remove(at).1;
        let compared = |verdict| Finding::Compared { verdict, held, head };
        let finding = match sealed {
            Ok(HeadSeal::Good | HeadSeal::Unknown) => compared(Verdict::Apart(reason)),
            Ok(HeadSeal::Moved) => Finding::NotCompared,
            Ok(HeadSeal::Missing) => compared(found.forged(stream_id.clone(), held.seq, after, turn)),
            Err(failure) => match failure.class {
                RefusalClass::Fatal => {
                    found.drop_link = Some(failure.text);
                    return found;
                }
                RefusalClass::Reject => compared(Verdict::Apart(reason)),
                RefusalClass::Retry => {
                    let (stream_id, why) = (stream_id.clone(), failure.text);
                    turn.out.push(Command::Tell(Notice::NotCompared { stream_id, why }));
                    Finding::NotCompared
                }
            },
        };
        found.findings.push((stream_id, finding));
        found
    }
}
