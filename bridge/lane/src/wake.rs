//! Wake-ups: listens for them, and tells writers whether to send them.

use std::time::Duration;

use rand::Rng;

use crate::RequestId;
use crate::backoff::Backoff;
use crate::ids::Ids;
use crate::message::{Command, Failure};
use crate::notice::Notice;

/// The first and the longest wait before the bridge tries again to listen. Meanwhile it finds new events by its looks.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

#[derive(Debug)]
enum Listener {
    /// Starts at this time.
    Waiting(Duration),
    /// Is starting, or listens.
    Begun(RequestId),
}

#[derive(Debug)]
pub(crate) struct Wake {
    listener: Listener,
    backoff: Backoff,
    /// Why the last attempt to listen failed, so that the log says each reason once.
    trouble: Option<String>,
    /// Whether the bridge sleeps, as it last told the authority.
    told: Option<bool>,
    /// What it is telling the authority.
    telling: Option<(RequestId, bool)>,
}

impl Wake {
    pub(crate) fn new(now: Duration) -> Self {
        Self {
            listener: Listener::Waiting(now),
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            trouble: None,
            told: Some(false),
            telling: None,
        }
    }

    pub(crate) fn next_due(&self) -> Option<Duration> {
        match self.listener {
            Listener::Waiting(until) => Some(until),
            Listener::Begun(_) => None,
        }
    }

    pub(crate) fn turn(&mut self, now: Duration, ids: &mut Ids, out: &mut Vec<Command>) {
        if matches!(self.listener, Listener::Waiting(until) if until <= now) {
            let request = ids.request();
            self.listener = Listener::Begun(request);
            out.push(Command::Listen(request));
        }
    }

    /// Tells the authority whether the bridge sleeps, if that has changed. One statement is under way at a time, so that
    /// the last one wins.
    pub(crate) fn sleeps(&mut self, sleeping: bool, ids: &mut Ids, out: &mut Vec<Command>) {
        if self.telling.is_none() && self.told != Some(sleeping) {
            let request = ids.request();
            self.telling = Some((request, sleeping));
            out.push(Command::SetSleeping(request, sleeping));
        }
    }

    pub(crate) fn listening(
        &mut self,
        now: Duration,
        request: RequestId,
        listening: Result<(), Failure>,
        dice: &mut impl Rng,
        out: &mut Vec<Command>,
    ) {
        if !matches!(self.listener, Listener::Begun(begun) if begun == request) {
            return;
        }
        match listening {
            Ok(()) => {
                self.backoff.reset();
                if self.trouble.take().is_some() {
                    out.push(Command::Tell(Notice::Listening));
                }
            }
            Err(failure) => {
                self.listener = Listener::Waiting(now + self.backoff.next(dice));
                if self.trouble.as_ref() != Some(&failure.text) {
                    self.trouble = Some(failure.text.clone());
                    out.push(Command::Tell(Notice::NotListening { why: failure.text }));
                }
            }
        }
    }

    pub(crate) fn sleeping_set(&mut self, request: RequestId, set: Result<(), Failure>, out: &mut Vec<Command>) {
        let Some((_, sleeping)) = self.telling.take_if(|(telling, _)| *telling == request) else {
            return;
        };
        // A failure is not repeated: without wake-ups the bridge still looks for itself.
        self.told = Some(sleeping);
        if let Err(failure) = set {
            out.push(Command::Tell(Notice::SleepingNotSet { why: failure.text }));
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;
    use spacetime_sync_proto::refusal::RefusalClass;

    use super::*;

    fn failure(text: &str) -> Failure {
        Failure {
            class: RefusalClass::Retry,
            refusal: None,
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_listener_that_fails_is_logged_once_and_retried_less_and_less_often() {
        let (mut ids, mut dice) = (Ids::default(), SmallRng::seed_from_u64(1));
        let mut now = Duration::ZERO;
        let mut wake = Wake::new(now);
        let (mut told, mut waits) = (Vec::new(), Vec::new());
        for text in ["away", "away", "away", "denied", "denied", "denied", "denied"] {
            let mut out = Vec::new();
            wake.turn(now, &mut ids, &mut out);
            let Some(Command::Listen(request)) = out.pop() else {
                panic!("it does not listen")
            };
            assert_eq!(wake.next_due(), None);
            wake.listening(now, request, Err(failure(text)), &mut dice, &mut out);
            told.extend(out);
            waits.push(wake.next_due().unwrap() - now);
            now = wake.next_due().unwrap();
        }
        let not = |why: &str| Command::Tell(Notice::NotListening { why: why.to_owned() });
        assert_eq!(told, [not("away"), not("denied")]);
        assert!(waits[0] <= BACKOFF.0 && waits[6] >= BACKOFF.1 / 2, "{waits:?}");
        let mut out = Vec::new();
        wake.turn(now, &mut ids, &mut out);
        let Some(Command::Listen(request)) = out.pop() else {
            panic!("it does not listen")
        };
        wake.listening(now, request, Ok(()), &mut dice, &mut out);
        assert_eq!(out, [Command::Tell(Notice::Listening)]);
    }

    #[test]
    fn the_authority_is_told_one_thing_at_a_time_so_the_last_one_wins() {
        let (mut wake, mut ids, mut out) = (Wake::new(Duration::ZERO), Ids::default(), Vec::new());
        wake.sleeps(false, &mut ids, &mut out);
        assert_eq!(out, []);
        wake.sleeps(true, &mut ids, &mut out);
        let Some(Command::SetSleeping(request, true)) = out.pop() else {
            panic!("it is not told")
        };
        wake.sleeps(false, &mut ids, &mut out);
        assert_eq!(out, [], "one statement at a time");
        wake.sleeping_set(request, Ok(()), &mut out);
        wake.sleeps(false, &mut ids, &mut out);
        assert!(matches!(out[..], [Command::SetSleeping(_, false)]));
    }
}
