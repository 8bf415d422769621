//! Remembers for a moment what the authority answered about sessions. Time is an argument.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use spacetime_sync_authority::{Access, AccessQuestion};
use spacetime_sync_proto::Label;

/// Most sessions whose answers are remembered. The authority is asked about further sessions every time.
const SESSIONS: usize = 10_000;

/// Holds one answer for each session, together with its question.
#[derive(Debug)]
pub(super) struct AccessCache {
    good_for: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    answers: HashMap<Label, Answer>,
    /// Counts how often sessions were forgotten. An answer that was asked for in an earlier generation may be outdated.
    generation: u64,
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Answer {
    question: Arc<AccessQuestion>,
    access: Arc<Access>,
    at: Instant,
}

impl AccessCache {
    /// An answer is used for `good_for`. Zero turns the cache off.
    pub(super) fn new(good_for: Duration) -> Self {
        Self {
            good_for,
            state: Mutex::default(),
        }
    }

    /// The answer to exactly this question, or the generation with which to [`put`](Self::put) one.
    pub(super) fn get(&self, question: &AccessQuestion, now: Instant) -> Result<Arc<Access>, u64> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state
            .answers
            .get(&question.session_id)
            .filter(|answer| now.saturating_duration_since(answer.at) < self.good_for)
            .filter(|answer| *answer.question == *question)
            .map(|answer| answer.access.clone())
            .ok_or(state.generation)
    }

    /// Remembers an answer, unless sessions were forgotten since it was asked for.
    pub(super) fn put(&self, generation: u64, question: Arc<AccessQuestion>, access: Arc<Access>, asked_at: Instant) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.generation != generation || self.good_for.is_zero() {
            return;
        }
        let new = !state.answers.contains_key(&question.session_id);
        if new && state.answers.len() >= SESSIONS {
            let due = state
                .swept
                .is_none_or(|at| asked_at.saturating_duration_since(at) > self.good_for);
            if due {
                state.swept = Some(asked_at);
                let good_for = self.good_for;
                state
                    .answers
                    .retain(|_, answer| asked_at.saturating_duration_since(answer.at) < good_for);
            }
            if state.answers.len() >= SESSIONS {
                return;
            }
        }
        let session_id = question.session_id.clone();
        let answer = Answer {
            question,
            access,
            at: asked_at,
        };
        state.answers.insert(session_id, answer);
    }

    /// Forgets sessions, and discards every answer that is still on its way.
    pub(super) fn forget(&self, session_ids: &[Label]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.generation += 1;
        for session_id in session_ids {
            state.answers.remove(session_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spacetime_sync_proto::access::StreamPattern;

    const GOOD_FOR: Duration = Duration::from_secs(2);

    fn question(session: usize, stream: &str) -> Arc<AccessQuestion> {
        Arc::new(AccessQuestion {
            session_id: Label::new(&format!("s{session}")).unwrap(),
            user_id: Label::new("7").unwrap(),
            org_id: None,
            wanted: vec![StreamPattern::new(stream).unwrap()],
        })
    }

    fn access() -> Arc<Access> {
        Arc::new(Access {
            session: None,
            allowed: vec![],
            scopes: vec![],
        })
    }

    #[test]
    fn an_answer_is_good_for_its_question_and_its_time() {
        let (cache, now, asked) = (AccessCache::new(GOOD_FOR), Instant::now(), question(1, "a"));
        let generation = cache.get(&asked, now).unwrap_err();
        cache.put(generation, asked.clone(), access(), now);
        assert!(cache.get(&asked, now + GOOD_FOR / 2).is_ok());
        assert!(cache.get(&asked, now + GOOD_FOR).is_err());
        assert!(cache.get(&question(1, "b"), now).is_err(), "another question");
        assert!(cache.get(&question(2, "a"), now).is_err(), "another session");
    }

    #[test]
    fn an_answer_asked_for_before_a_revocation_is_not_remembered_after_it() {
        let (cache, now, asked) = (AccessCache::new(GOOD_FOR), Instant::now(), question(1, "a"));
        let generation = cache.get(&asked, now).unwrap_err();
        cache.forget(std::slice::from_ref(&asked.session_id));
        cache.put(generation, asked.clone(), access(), now);
        let generation = cache.get(&asked, now).unwrap_err();
        cache.put(generation, asked.clone(), access(), now);
        assert!(cache.get(&asked, now).is_ok());
        cache.forget(std::slice::from_ref(&asked.session_id));
        assert!(cache.get(&asked, now).is_err());
    }

    #[test]
    fn the_cache_is_bounded_and_can_be_turned_off() {
        let (cache, now) = (AccessCache::new(GOOD_FOR), Instant::now());
        for session in 0..SESSIONS + 10 {
            cache.put(0, question(session, "a"), access(), now);
        }
        assert_eq!(cache.state.lock().unwrap().answers.len(), SESSIONS);
        cache.put(0, question(SESSIONS + 10, "a"), access(), now + 2 * GOOD_FOR);
        assert_eq!(cache.state.lock().unwrap().answers.len(), 1, "old answers made room");
        let off = AccessCache::new(Duration::ZERO);
        off.put(0, question(1, "a"), access(), now);
        assert!(off.get(&question(1, "a"), now).is_err());
    }
}
