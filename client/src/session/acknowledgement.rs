//! What the module knows of how far a stream is applied, and when to tell it more. An acknowledgement that was lost or
//! refused is said again: until the module has taken it, it is owed.

use std::time::{Duration, Instant};

use spacetime_sync_proto::{RefusalCode, Seq};

use super::event::{CallFailure, ConnectionId};

/// The pause after a refusal doubles so often at most: an acknowledgement that is refused for good costs a call every
/// eighty seconds, with the default of five for [`Limits::ack_every`](crate::Limits::ack_every).
const PAUSE_DOUBLES: u32 = 4;

/// One stream's.
#[derive(Debug, Default)]
pub(super) struct Acknowledgement {
    /// What the module has taken, as far as this client knows.
    taken: Option<Seq>,
    /// What is being said, and on which connection.
    under_way: Option<(ConnectionId, Seq)>,
    /// When something was said last.
    said_at: Option<Instant>,
    /// How often in a row the module did not take it.
    refused: u32,
}

impl Acknowledgement {
    /// Whether the module does not know yet that the stream is applied up to here.
    pub(super) fn is_owed(&self, applied: Seq) -> bool {
        let known = self.under_way.map(|(_, seq)| seq).or(self.taken);
        applied > known.unwrap_or(Seq::ZERO)
    }

    /// Whether it is time to say so. `every` is the shortest time between two of them, `lost_after` how long an answer is
    /// waited for.
    pub(super) fn is_due(&self, applied: Seq, now: Instant, every: Duration, lost_after: Duration) -> bool {
        let pause = every * 2_u32.pow(self.refused.min(PAUSE_DOUBLES));
        let rested = self.said_at.is_none_or(|at| now.saturating_duration_since(at) >= pause);
        let lost = || {
            self.under_way.is_some()
                && self
                    .said_at
                    .is_none_or(|at| now.saturating_duration_since(at) >= lost_after)
        };
        rested && (self.is_owed(applied) || lost())
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// It is being said.
    pub(super) fn said(&mut self, on: ConnectionId, seq: Seq, now: Instant) {
        (self.under_way, self.said_at) = (Some((on, seq)), Some(now));
    }

    /// The module has answered.
    pub(super) fn answered(&mut self, on: ConnectionId, seq: Seq, answer: &Result<(), CallFailure>) {
        // An answer to something that was said before the stream started over, or twice.
        if self.under_way != Some((on, seq)) {
            return;
        }
        self.under_way = None;
        let taken = match answer {
            Ok(()) => true,
            // It has taken a later one, perhaps of another client of the same session.
            Err(CallFailure::Refused(refusal)) => refusal.code == RefusalCode::CheckpointBehind,
            Err(CallFailure::Failed(_)) => false,
        };
        if taken {
            (self.taken, self.refused) = (Some(seq), 0);
        } else {
            self.refused = self.refused.saturating_add(1);
        }
    }

    /// A connection is gone: whether the module took what was said on it, nobody knows.
    pub(super) fn lost(&mut self, with: ConnectionId) {
        if self.under_way.is_some_and(|(on, _)| on == with) {
            (self.under_way, self.said_at) = (None, None);
        }
    }

    /// The module is told again: it may be another or have forgotten, or the stream has started over.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use spacetime_sync_proto::Refusal;

    use super::*;

    const FIVE: Duration = Duration::from_secs(5);
    const MINUTE: Duration = Duration::from_secs(60);
    const FIRST: ConnectionId = ConnectionId(1);

    fn seq(seq: u64) -> Seq {
        Seq::new(seq).unwrap()
    }

    fn refused(code: RefusalCode) -> Result<(), CallFailure> {
        Err(CallFailure::Refused(Refusal::new(code, "no")))
    }

    struct Case {
        acks: Acknowledgement,
        start: Instant,
    }

    impl Case {
        fn new() -> Self {
            Self {
                acks: Acknowledgement::default(),
                start: Instant::now(),
            }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn is_due(&self, applied: u64, seconds: u64) -> bool {
            self.acks.is_due(seq(applied), self.at(seconds), FIVE, MINUTE)
        }

        fn say(&mut self, applied: u64, seconds: u64) {
            assert!(self.is_due(applied, seconds));
            self.acks.said(FIRST, seq(applied), self.at(seconds));
        }
    }

    #[test]
    fn what_is_applied_is_said_once_and_not_too_often() {
        let mut case = Case::new();
        assert!(!case.is_due(0, 0), "before the first event there is nothing to say");
        case.say(3, 0);
        assert!(!case.is_due(3, 5));
        assert!(!case.is_due(4, 4));
        case.acks.answered(FIRST, seq(3), &Ok(()));
        assert!(!case.is_due(3, 100));
        case.say(4, 5);
    }

    #[test]
    fn what_was_lost_with_its_connection_is_said_again() {
        let mut case = Case::new();
        case.say(3, 0);
        case.acks.lost(ConnectionId(2));
        assert!(!case.is_due(3, 30), "another connection's end loses nothing");
        case.acks.lost(FIRST);
        assert!(case.is_due(3, 1));
    }

    #[test]
    fn what_is_not_answered_is_said_again_after_a_while() {
        let mut case = Case::new();
        case.say(3, 0);
        assert!(!case.is_due(3, 59));
        assert!(case.is_due(3, 60));
    }

    #[test]
    fn what_was_refused_is_said_again_after_a_pause_that_grows_up_to_a_bound() {
        let mut case = Case::new();
        let mut at = 0;
        let mut pauses = Vec::new();
        for _ in 0..7 {
            case.say(3, at);
            case.acks
                .answered(FIRST, seq(3), &refused(RefusalCode::CheckpointAhead));
            let next = (at..).find(|second| case.is_due(3, *second)).unwrap();
            pauses.push(next - at);
            at = next;
        }
        assert_eq!(pauses, [10, 20, 40, 80, 80, 80, 80]);
        case.say(3, at);
        case.acks.answered(FIRST, seq(3), &Ok(()));
        assert!(!case.is_due(3, at + 1_000));
        assert!(case.is_due(4, at + 5), "what was taken ends the pauses");
    }

    #[test]
    fn a_module_that_knows_of_more_is_not_asked_again() {
        let mut case = Case::new();
        case.say(3, 0);
        case.acks
            .answered(FIRST, seq(3), &refused(RefusalCode::CheckpointBehind));
        assert!(!case.is_due(3, 1_000));
        case.say(4, 1_000);
    }

    #[test]
    fn what_was_forgotten_is_said_again_and_no_late_answer_counts_for_it() {
        let mut case = Case::new();
        case.say(3, 0);
        case.acks.answered(FIRST, seq(3), &Ok(()));
        case.say(4, 5);
        case.acks.forget();
        case.acks.answered(FIRST, seq(4), &Ok(()));
        case.say(2, 6);
    }
}
