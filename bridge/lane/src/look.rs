//! Looks for dirty streams, and measures the lag by them.

use std::time::Duration;

use spacetime_sync_proto::{Position, StreamId, StreamProgress};

use crate::RequestId;
use crate::ids::Ids;
use crate::message::Command;
use crate::pace::Pace;

/// How many events are committed and not yet published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    /// In streams that are not halted.
    pub live_events: u64,
    /// In halted streams.
    pub halted_events: u64,
}

impl Lag {
    fn add(&mut self, other: Self) {
        self.live_events = self.live_events.saturating_add(other.live_events);
        self.halted_events = self.halted_events.saturating_add(other.halted_events);
    }

    fn max(self, other: Self) -> Self {
        Self {
            live_events: self.live_events.max(other.live_events),
            halted_events: self.halted_events.max(other.halted_events),
        }
    }
}

/// One look reads a bounded page of the dirty streams. A pass is a series of looks that sees all of them.
#[derive(Debug)]
pub(crate) struct Look {
    pace: Pace,
    limit: usize,
    asked: Option<RequestId>,
    /// The next look of this pass begins after this stream.
    after: Option<StreamId>,
    /// What the looks of this pass have found so far.
    pass: Lag,
    /// What the last whole pass found.
    last: Lag,
}

impl Look {
    pub(crate) fn new(slowest: Duration, limit: usize) -> Self {
        Self {
            pace: Pace::new(slowest),
            limit,
            asked: None,
            after: None,
            pass: Lag::default(),
            last: Lag::default(),
        }
    }

    /// The lag that the last whole pass found, or that this pass has found so far if it is more.
    pub(crate) fn lag(&self) -> Lag {
        self.last.max(self.pass)
    }

    /// Whether writers should wake the bridge.
    pub(crate) fn is_asleep(&self) -> bool {
        self.pace.is_asleep()
    }

    pub(crate) fn woken(&mut self, now: Duration) {
        self.pace.woken(now);
    }

    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.asked.is_none().then(|| self.pace.due())
    }

    pub(crate) fn turn(
        &mut self,
        now: Duration,
        read: impl FnOnce() -> Vec<(StreamId, Position)>,
        ids: &mut Ids,
        out: &mut Vec<Command>,
    ) {
        if self.asked.is_none() && self.pace.due() <= now {
            let request = ids.request();
            self.asked = Some(request);
            out.push(Command::Look {
                request,
                after: self.after.clone(),
                limit: self.limit,
                read: read(),
            });
        }
    }

    /// Closes the open question that an answer belongs to. False if there is no such question.
    pub(crate) fn hears(&mut self, request: RequestId) -> bool {
        self.asked.take_if(|asked| *asked == request).is_some()
    }

    pub(crate) fn failed(&mut self, now: Duration) {
        self.pace.failed(now);
    }

    /// Takes in a page of dirty streams. `has_link` says whether the bridge can publish them at all.
    pub(crate) fn found(
        &mut self,
        now: Duration,
        page: &[StreamProgress],
        took: Duration,
        has_link: bool,
        is_halted: impl Fn(&StreamId) -> bool,
    ) {
        let mut lag = Lag::default();
        for progress in page {
            let events = progress.head_seq.since(progress.published_seq);
            let halted = is_halted(&progress.stream_id);
            lag.add(Lag {
                live_events: if halted { 0 } else { events },
                halted_events: if halted { events } else { 0 },
            });
        }
        self.pass.add(lag);
        let whole = page.len() < self.limit;
        if whole {
            (self.last, self.pass) = (std::mem::take(&mut self.pass), Lag::default());
            self.after = None;
        } else {
            self.after = page.last().map(|last| last.stream_id.clone());
        }
        // A pass continues at once. Otherwise the streams at its end would wait between all the looks before them.
        self.pace.looked(now, has_link && (lag.live_events > 0 || !whole), took);
    }
}

#[cfg(test)]
mod tests {
    use spacetime_sync_proto::Seq;

    use super::*;
    use crate::pace::BUSY;

    const LIMIT: usize = 3;

    fn page(names: &[&str]) -> Vec<StreamProgress> {
        let of = |name: &&str| StreamProgress {
            stream_id: StreamId::new(name).unwrap(),
            head_seq: Seq::new(10).unwrap(),
            published_seq: Seq::new(8).unwrap(),
            floor_seq: Seq::ZERO,
        };
        names.iter().map(of).collect()
    }

    fn lag(live_events: u64, halted_events: u64) -> Lag {
        Lag {
            live_events,
            halted_events,
        }
    }

    fn found(look: &mut Look, names: &[&str]) -> Lag {
        let halted = |stream_id: &StreamId| stream_id.as_str().starts_with("halted");
        look.found(Duration::ZERO, &page(names), Duration::ZERO, true, halted);
        look.lag()
    }

    #[test]
    fn lag_falls_again_even_if_one_look_does_not_see_all_halted_streams() {
        let mut look = Look::new(Duration::from_millis(250), LIMIT);
        let halted = ["halted.1", "halted.2", "halted.3"];
        assert_eq!(found(&mut look, &halted), lag(0, 6));
        assert_eq!(look.after, Some(StreamId::new("halted.3").unwrap()));
        assert_eq!(found(&mut look, &["live"]), lag(2, 6));
        assert_eq!(found(&mut look, &halted), lag(2, 6));
        assert_eq!(found(&mut look, &[]), lag(0, 6), "the live one is published");
    }

    #[test]
    fn one_look_is_under_way_at_a_time_and_only_its_own_answer_ends_it() {
        let (mut look, mut ids, mut out) = (Look::new(Duration::from_millis(250), LIMIT), Ids::default(), Vec::new());
        let other = ids.request();
        look.turn(Duration::ZERO, Vec::new, &mut ids, &mut out);
        look.turn(Duration::ZERO, Vec::new, &mut ids, &mut out);
        let [Command::Look { request, .. }] = out[..] else {
            panic!("{out:?}")
        };
        assert!(!look.hears(other) && look.next_due().is_none());
        assert!(look.hears(request) && look.next_due().is_some());
    }

    #[test]
    fn looks_hurry_while_there_is_something_that_the_bridge_can_publish() {
        for (names, has_link, wait) in [
            (&["live"][..], true, BUSY),
            (&["live"], false, 2 * BUSY),
            (&["halted.1"], true, 2 * BUSY),
            (&["halted.1", "halted.2", "halted.3"], true, BUSY),
            (&[], true, 2 * BUSY),
        ] {
            let mut look = Look::new(Duration::from_millis(250), LIMIT);
            let halted = |stream_id: &StreamId| stream_id.as_str().starts_with("halted");
            look.found(Duration::ZERO, &page(names), Duration::ZERO, has_link, halted);
            assert_eq!(look.next_due(), Some(wait), "{names:?}, {has_link}");
        }
    }

    #[test]
    fn looks_rest_after_a_failure_until_the_bridge_is_woken() {
        let mut look = Look::new(Duration::from_millis(250), LIMIT);
        look.failed(Duration::ZERO);
        assert_eq!(look.next_due(), Some(Duration::from_millis(32)));
        look.woken(Duration::ZERO);
        assert_eq!(look.next_due(), Some(Duration::ZERO));
    }

    #[test]
    fn an_unfinished_pass_continues_at_once() {
        let mut look = Look::new(Duration::from_millis(250), LIMIT);
        for _ in 0..12 {
            found(&mut look, &[]);
        }
        assert_eq!(look.next_due(), Some(Duration::from_millis(250)));
        assert!(look.is_asleep());
        found(&mut look, &["halted.1", "halted.2", "halted.3"]);
        assert_eq!(look.next_due(), Some(BUSY));
        found(&mut look, &["halted.4"]);
        assert!(look.next_due() <= Some(2 * BUSY));
        found(&mut look, &[]);
        assert!(!look.is_asleep());
    }
}
