//! How far the module knows a stream to be applied, and when to tell it more. A lost or refused acknowledgement is sent
//! again until the module has taken it.

use std::time::{Duration, Instant};

use spacetime_sync_proto::{RefusalCode, Seq};

use super::event::{CallFailure, ConnectionId};

/// The pause after a refusal doubles this many times at most. With the default
/// [`Limits::ack_every`](crate::Limits::ack_every) of five seconds, an acknowledgement that is always refused costs one
/// call every eighty seconds.
const PAUSE_DOUBLES: u32 = 4;

/// The acknowledgements of one stream.
#[derive(Debug, Default)]
pub(super) struct Acknowledgement {
    /// What the module has taken, as far as this client knows.
    taken: Option<Seq>,
    /// What is being acknowledged, and on which connection.
    under_way: Option<(ConnectionId, Seq)>,
    /// When the last acknowledgement was sent.
    said_at: Option<Instant>,
    /// How many times in a row the module refused.
    refused: u32,
}

impl Acknowledgement {
    /// Whether the module still has to learn that the stream is applied up to `applied`.
    pub(super) fn is_owed(&self, applied: Seq) -> bool {
        let known = self.under_way.map(|(_, seq)| seq).or(self.taken);
        applied > known.unwrap_or(Seq::ZERO)
    }

    /// Whether to send an acknowledgement now. `every` is the shortest time between two; after `lost_after` without an
    /// answer, one counts as lost.
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

    /// An acknowledgement is sent.
    pub(super) fn said(&mut self, on: ConnectionId, seq: Seq, now: Instant) {
        (self.under_way, self.said_at) = (Some((on, seq)), Some(now));
    }

    /// The module has answered.
    pub(super) fn answered(&mut self, on: ConnectionId, seq: Seq, answer: &Result<(), CallFailure>) {
        // The answer to a second copy, or to an acknowledgement sent before the stream started over.
        if self.under_way != Some((on, seq)) {
            return;
        }
        self.under_way = None;
        let taken = match answer {
            Ok(()) => true,
            // The module already has a later one, perhaps from another client of the same session.
            Err(CallFailure::Refused(refusal)) => refusal.code == RefusalCode::CheckpointBehind,
            Err(CallFailure::Failed(_)) => false,
        };
        if taken {
            (self.taken, self.refused) = (Some(seq), 0);
        } else {
            self.refused = self.refused.saturating_add(1);
        }
    }

    /// A connection is gone: nobody knows whether the module took what was sent on it.
    pub(super) fn lost(&mut self, with: ConnectionId) {
        if self.under_way.is_some_and(|(on, _)| on == with) {
            (self.under_way, self.said_at) = (None, None);
        }
    }

    /// Has the module told again: it may have been replaced or have lost its state, or the stream has started over.
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
    fn a_checkpoint_is_acknowledged_once_and_not_too_often() {
        let mut case = Case::new();
        assert!(
            !case.is_due(0, 0),
            "there is nothing to acknowledge before the first event"
        );
        case.say(3, 0);
        assert!(!case.is_due(3, 5));
        assert!(!case.is_due(4, 4));
        case.acks.answered(FIRST, seq(3), &Ok(()));
        assert!(!case.is_due(3, 100));
        case.say(4, 5);
    }

    #[test]
    fn an_acknowledgement_lost_with_its_connection_is_sent_again() {
        let mut case = Case::new();
        case.say(3, 0);
        case.acks.lost(ConnectionId(2));
        assert!(!case.is_due(3, 30), "the end of another connection loses nothing");
        case.acks.lost(FIRST);
        assert!(case.is_due(3, 1));
    }

    #[test]
    fn an_unanswered_acknowledgement_is_sent_again_after_a_while() {
        let mut case = Case::new();
        case.say(3, 0);
        assert!(!case.is_due(3, 59));
        assert!(case.is_due(3, 60));
    }

    #[test]
    fn a_refused_acknowledgement_is_sent_again_after_a_growing_bounded_pause() {
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
        assert!(case.is_due(4, at + 5), "an accepted acknowledgement ends the pauses");
    }

    #[test]
    fn a_module_that_has_a_later_checkpoint_is_not_told_again() {
        let mut case = Case::new();
        case.say(3, 0);
        case.acks
            .answered(FIRST, seq(3), &refused(RefusalCode::CheckpointBehind));
        assert!(!case.is_due(3, 1_000));
        case.say(4, 1_000);
    }

    #[test]
    fn after_forgetting_the_module_is_told_again_and_a_late_answer_does_not_count() {
        let mut case = Case::new();
        case.say(3, 0);
        case.acks.answered(FIRST, seq(3), &Ok(()));
        case.say(4, 5);
        case.acks.forget();
        case.acks.answered(FIRST, seq(4), &Ok(()));
        case.say(2, 6);
    }
}
