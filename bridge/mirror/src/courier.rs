//! What one relay is given next, and what its answers mean for what it was given. It says nothing to the relay itself, and the
//! time is an argument.

use std::time::Duration;

use nostr::Event;
use spacetime_sync_authority::{Delivery, Entry, Outcome};

use crate::batch::{BatchSize, together};
use crate::key::MirrorKey;
use crate::relay::Published;
use crate::things::unsigned;
use crate::verdict::{Answer, Chance, Failure, Patience};

/// How it goes with one relay.
#[derive(Debug, Clone)]
pub struct Courier {
    /// What the relay works on.
    busy: Vec<Delivery>,
    size: BatchSize,
    /// How often in a row it could not be reached.
    unreached: u32,
    /// Before that it is not tried.
    rests_until: Duration,
}

/// What becomes of what is due at a relay.
#[derive(Debug, Default)]
pub struct Given {
    /// What nobody is to hear of any more, by its names.
    pub void: Vec<String>,
    /// What the relay is to be told. It is busy until it has answered.
    pub batch: Vec<Event>,
    /// What cannot be signed.
    pub unsigned: Vec<Outcome>,
}

impl Courier {
    /// One that has nothing to do. It takes at most so many events at once.
    pub fn new(most: usize) -> Self {
        Self {
            busy: Vec::new(),
            size: BatchSize::new(most),
            unreached: 0,
            rests_until: Duration::ZERO,
        }
    }

    /// Whether the relay works on something.
    pub fn is_busy(&self) -> bool {
        !self.busy.is_empty()
    }

    /// Whether it may be given something.
    pub fn is_free(&self, now: Duration) -> bool {
        !self.is_busy() && self.rests_until <= now
    }

    /// How many events it may be given at once.
    pub fn wants(&self) -> usize {
        self.size.get()
    }

    /// Takes what is due, the first ones. What it does not take is due again.
    pub fn give(&mut self, due: Vec<Delivery>, key: &MirrorKey, patience: &Patience, now_s: u64) -> Given {
        let mut given = Given::default();
        let (void, mut due): (Vec<_>, Vec<_>) = due.into_iter().partition(|one| is_void(&one.entry, now_s));
        given.void = void
            .into_iter()
            .map(|one| one.entry.event_id.as_str().to_owned())
            .collect();
        let failures: Vec<u32> = due.iter().map(|delivery| delivery.attempts).collect();
        due.truncate(together(&failures));
        for delivery in due {
            let signed = unsigned(&delivery.entry).ok().and_then(|event| key.sign(event));
            match signed {
                Some(event) if event.id.to_hex() == delivery.entry.published_as => {
                    given.batch.push(event);
                    self.busy.push(delivery);
                }
                Some(_) | None => {
                    let detail = "another key is its author: drop it, or give the mirror that key";
                    given.unsigned.push(Outcome {
                        event_id: delivery.entry.event_id,
                        attempt: patience.fail(Failure::Key, detail, 0, 0),
                    });
                }
            }
        }
        given
    }

    /// The relay was told nothing after all.
    pub fn told_nothing(&mut self) {
        self.busy.clear();
    }

    /// The relay has answered. Returns what became of what it was given. A relay that could not be reached rests, and no event is
    /// to blame; and an event that it did not answer about is as it was.
    pub fn answered(
        &mut self,
        published: Published,
        patience: &Patience,
        chance: &mut Chance,
        now: Duration,
    ) -> Vec<Outcome> {
        let busy = std::mem::take(&mut self.busy);
        let answers = match published {
            Published::Unreached(_) => {
                self.rests_until = now + patience.wait(self.unreached, chance.draw());
                self.unreached = self.unreached.saturating_add(1);
                return Vec::new();
            }
            Published::Answered(answers) => answers,
        };
        self.unreached = 0;
        let mut is_broken = false;
        let mut outcomes = Vec::new();
        for delivery in busy {
            let id = &delivery.entry.published_as;
            let found = answers.iter().find(|(answered, _)| answered.to_hex() == *id);
            let Some((_, answer)) = found else { continue };
            is_broken |= matches!(answer, Answer::Silent(_));
            outcomes.push(Outcome {
                event_id: delivery.entry.event_id,
                attempt: patience.judge(answer.clone(), delivery.attempts, chance.draw()),
            });
        }
        self.size = self.size.after(is_broken);
        outcomes
    }
}

/// Whether nobody is to hear of an entry any more.
fn is_void(entry: &Entry, now_s: u64) -> bool {
    entry.expires_at_s.is_some_and(|at| at <= now_s)
}

#[cfg(test)]
mod tests {
    use spacetime_sync_authority::Attempt;
    use spacetime_sync_proto::{Label, Secret};

    use super::*;
    use crate::things::Draft;
    use crate::verdict::tests::PATIENCE;

    fn key(byte: &str) -> MirrorKey {
        MirrorKey::read(&Secret::from(byte.repeat(32))).unwrap()
    }

    fn delivery(name: &str, author: &MirrorKey, expires_at_s: Option<u64>) -> Delivery {
        let draft = Draft {
            name: name.to_owned(),
            nostr_kind: 30_078,
            schema: "s",
            d_tag: name.to_owned(),
            content: "{}".to_owned(),
            created_at_s: 1,
            expires_at_s,
        };
        Delivery {
            entry: draft.entry(&author.public()).unwrap(),
            attempts: 0,
        }
    }

    #[test]
    fn what_is_void_or_of_another_key_is_told_to_nobody() {
        let (own, other) = (key("01"), key("02"));
        let mut courier = Courier::new(8);
        let due = vec![
            delivery("good", &own, Some(100)),
            delivery("void", &own, Some(99)),
            delivery("others", &other, None),
        ];
        let given = courier.give(due, &own, &PATIENCE, 99);
        let names: Vec<_> = given.batch.iter().map(|event| event.tags.identifier()).collect();
        assert_eq!((given.void, names), (vec!["void".to_owned()], vec![Some("good")]));
        let failed = Outcome {
            event_id: Label::new("others").unwrap(),
            attempt: PATIENCE.fail(
                Failure::Key,
                "another key is its author: drop it, or give the mirror that key",
                0,
                0,
            ),
        };
        assert!(matches!(failed.attempt, Attempt::Failed { .. }));
        assert_eq!(given.unsigned, [failed]);
        assert!(courier.is_busy());
        courier.told_nothing();
        assert!(courier.is_free(Duration::ZERO));
    }

    #[test]
    fn an_answer_counts_for_the_event_that_it_is_about_and_for_no_other() {
        let own = key("01");
        let mut courier = Courier::new(8);
        let (first, second) = (delivery("first", &own, None), delivery("second", &own, None));
        let given = courier.give(vec![first, second], &own, &PATIENCE, 0);
        let answers = vec![(given.batch[1].id, Answer::Shown)];
        let mut chance = Chance::seeded(1);
        let outcomes = courier.answered(Published::Answered(answers), &PATIENCE, &mut chance, Duration::ZERO);
        let expected = Outcome {
            event_id: Label::new("second").unwrap(),
            attempt: Attempt::Accepted,
        };
        assert_eq!(outcomes, [expected]);
        assert!(!courier.is_busy());
    }

    #[test]
    fn a_relay_that_cannot_be_reached_rests_ever_longer_and_nothing_is_to_blame() {
        let own = key("01");
        let (mut courier, mut chance, mut now) = (Courier::new(8), Chance::seeded(1), Duration::ZERO);
        let mut waits = Vec::new();
        for _ in 0..3 {
            courier.give(vec![delivery("first", &own, None)], &own, &PATIENCE, 0);
            let unreached = Published::Unreached(String::new());
            assert_eq!(courier.answered(unreached, &PATIENCE, &mut chance, now), []);
            let until = courier.rests_until;
            assert!(!courier.is_free(now) && courier.is_free(until));
            waits.push(until - now);
            now = until;
        }
        assert!(
            waits[0] * 2 <= waits[2] && waits[2] >= Duration::from_secs(2),
            "{waits:?}"
        );
    }
}
