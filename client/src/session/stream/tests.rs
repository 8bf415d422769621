//! Small cases, one rule each. [`Log`] is the log that a stream should follow.

use bytes::Bytes;
use spacetime_sync_proto::{
    ChainHash, Event, Frame, FrameRow, IdempotencyKey, Kind, PayloadHash, Position, Refusal, RefusalCode, Seq, StreamId,
};

use super::*;
use crate::config::{ClientConfig, Reads, StreamBounds};
use crate::session::stream::core::UNKNOWN_EVENT_BYTES;

/// A log to follow.
pub(crate) struct Log {
    pub(crate) start: Position,
    pub(crate) events: Vec<Event>,
}

impl Log {
    pub(crate) fn new(name: &str, events: u64) -> Self {
        let stream_id = StreamId::new(name).unwrap();
        let start = Position::start(&stream_id);
        let mut log = Self {
            start,
            events: Vec::new(),
        };
        (0..events).for_each(|_| log.append());
        log
    }

    pub(crate) fn append(&mut self) {
        let seq = self.head().seq.next();
        self.append_payload(&format!("payload {seq}"));
    }

    /// Another log, which is this one up to a position.
    pub(crate) fn fork(&self, at: u64, events: u64) -> Self {
        let mut fork = Self {
            start: self.start,
            events: self.events[..at as usize].to_vec(),
        };
        (at..events).for_each(|at| fork.append_payload(&format!("forked {at} of {}", self.events.len())));
        fork
    }

    pub(crate) fn append_payload(&mut self, payload: &str) {
        let seq = self.head().seq.next();
        let payload = Bytes::from(payload.to_owned());
        let payload_hash = PayloadHash::of(&payload);
        let idempotency_key = IdempotencyKey::new(&format!("key-{seq}")).unwrap();
        let kind = Kind::new("test.event").unwrap();
        let chain_hash = self.head().chain.link(seq, 7, &payload_hash, &idempotency_key, &kind);
        self.events.push(Event {
            seq,
            idempotency_key,
            kind,
            payload,
            payload_hash,
            chain_hash,
            committed_at_us: 7,
        });
    }

    pub(crate) fn head(&self) -> Position {
        self.at(self.events.len() as u64)
    }

    pub(crate) fn at(&self, seq: u64) -> Position {
        match seq.checked_sub(1) {
            None => self.start,
            Some(at) => {
                let event = &self.events[at as usize];
                Position {
                    seq: event.seq,
                    chain: event.chain_hash,
                }
            }
        }
    }

    /// The events from one position to another as a frame.
    pub(crate) fn frame(&self, first: u64, last: u64) -> FrameRow {
        let events = &self.events[first as usize - 1..last as usize];
        FrameRow {
            first_seq: Seq::new(first).unwrap(),
            last_seq: Seq::new(last).unwrap(),
            base_chain: self.at(first - 1).chain,
            bytes: Frame::encode(events),
        }
    }

    fn page(&self, frames: Vec<FrameRow>) -> Input {
        self.page_of_class(true, frames)
    }

    fn page_of_class(&self, durable_reads: bool, frames: Vec<FrameRow>) -> Input {
        Input::Page(Page {
            head: self.head(),
            oldest_seq: Seq::new(1).unwrap(),
            durable_reads,
            frames,
        })
    }
}

pub(crate) fn bounds() -> StreamBounds {
    let stream = StreamId::new("model").unwrap();
    ClientConfig::new("http://host", "lane", vec![stream.clone()]).bounds_of(&stream, false)
}

pub(super) fn seq(value: u64) -> Seq {
    Seq::new(value).unwrap()
}

pub(super) struct Case {
    pub(super) stream: Stream,
    pub(super) counters: Counters,
}

impl Case {
    fn new(applied: Position) -> Self {
        Self::within(applied, bounds())
    }

    pub(super) fn within(applied: Position, bounds: StreamBounds) -> Self {
        Self {
            stream: Stream::new(applied, bounds),
            counters: Counters::default(),
        }
    }

    /// Connected, and live at the log's head.
    fn live(log: &Log) -> Self {
        let mut case = Self::new(log.head());
        case.step(Input::Connected);
        case.step(log.page(vec![]));
        case.step(Input::Subscribed(SubscriptionId(1)));
        assert!(case.stream.is_current());
        case
    }

    pub(super) fn step(&mut self, input: Input) -> Vec<String> {
        self.stream.step(input, &mut self.counters).iter().map(show).collect()
    }

    /// Steps and expects what comes of it, in words.
    pub(super) fn expect(&mut self, input: Input, effects: &[&str]) {
        assert_eq!(self.step(input), effects);
    }

    pub(super) fn stopped(&self) -> &StreamStop {
        match self.stream.mode() {
            Mode::Stopped(stop) => stop,
            other => panic!("not stopped but {other:?}"),
        }
    }
}

fn show(effect: &Effect) -> String {
    match effect {
        Effect::Read { after } => format!("read after {after}"),
        Effect::Subscribe { id, after, .. } => format!("subscribe {} after {after}", id.0),
        Effect::Unsubscribe { id } => format!("unsubscribe {}", id.0),
        Effect::Apply(batch) => format!("apply {}..={}", batch.from.seq.next(), batch.to.seq),
        Effect::ReadHistory { after } => format!("history after {}", after.seq),
        Effect::ReadDocument => "document".to_owned(),
        Effect::StartOver(beginning) => format!("begin at {}", beginning.at.seq),
        Effect::RecoverLater { attempt } => format!("recover later {attempt}"),
        Effect::AskLater => "ask later".to_owned(),
        Effect::RetryLater { attempt } => format!("retry later {attempt}"),
    }
}

pub(super) fn applied(log: &Log, to: u64) -> Input {
    Input::Applied {
        to: log.at(to),
        released: usize::MAX,
    }
}

#[test]
fn an_empty_stream_is_subscribed_to_from_its_beginning() {
    let log = Log::new("s", 0);
    let mut case = Case::new(log.start);
    case.expect(Input::Connected, &["read after 0"]);
    case.expect(log.page(vec![]), &["subscribe 1 after 0"]);
    assert!(!case.stream.is_current());
    case.expect(Input::Subscribed(SubscriptionId(1)), &[]);
    assert!(case.stream.is_current());
}

#[test]
fn what_is_missing_is_paged_then_subscribed_to() {
    let log = Log::new("s", 9_000);
    let mut case = Case::new(log.at(500));
    case.expect(Input::Connected, &["read after 500"]);
    let far = log.page(vec![log.frame(1, 1_000), log.frame(1_001, 2_000)]);
    case.expect(far, &["apply 501..=1000", "apply 1001..=2000", "read after 2000"]);
    let near = log.page((2..9).map(|k| log.frame(k * 1_000 + 1, (k + 1) * 1_000)).collect());
    let effects = case.step(near);
    assert_eq!(effects.last().unwrap(), "subscribe 1 after 9000");
    case.expect(Input::Subscribed(SubscriptionId(1)), &[]);
    assert!(!case.stream.is_current(), "nothing is applied yet");
    case.expect(applied(&log, 9_000), &[]);
    assert!(case.stream.is_current());
    assert_eq!(case.counters.duplicates_dropped, 500);
    assert_eq!(case.counters.events_applied, 8_500);
}

#[test]
fn live_frames_are_applied_as_they_come_and_repeats_are_dropped() {
    let mut log = Log::new("s", 10);
    let mut case = Case::live(&log);
    (0..5).for_each(|_| log.append());
    case.expect(Input::Frame(log.frame(11, 12)), &["apply 11..=12"]);
    case.expect(Input::Frame(log.frame(11, 12)), &[]);
    // The stream no longer remembers this position: only the head can tell that it is the same log.
    case.expect(Input::Frame(log.frame(3, 5)), &["read after 12"]);
    let page = Page {
        head: log.at(12),
        oldest_seq: seq(1),
        durable_reads: true,
        frames: vec![],
    };
    case.expect(Input::Page(page), &[]);
    case.expect(Input::Frame(log.frame(10, 15)), &["apply 13..=15"]);
    assert_eq!(case.counters.duplicates_dropped, 2 + 3 + 3);
}

#[test]
fn a_hole_is_paged_once_and_live_goes_on() {
    let mut log = Log::new("s", 10);
    let mut case = Case::live(&log);
    (0..10).for_each(|_| log.append());
    case.expect(Input::Frame(log.frame(15, 16)), &["read after 10"]);
    case.expect(Input::Frame(log.frame(17, 18)), &[]);
    assert_eq!(case.counters.holes_paged, 1);
    assert!(!case.stream.is_current());
    case.expect(log.page(vec![log.frame(11, 20)]), &["apply 11..=20"]);
    case.expect(applied(&log, 20), &[]);
    assert!(case.stream.is_current());
}

#[test]
fn a_page_older_than_what_was_heard_since_is_followed_by_another() {
    let mut log = Log::new("s", 10);
    let mut case = Case::live(&log);
    let older = log.page(vec![]);
    case.expect(Input::Verify, &["read after 10"]);
    (0..5).for_each(|_| log.append());
    case.expect(Input::Frame(log.frame(12, 13)), &[]);
    case.expect(older, &["read after 10"]);
    case.expect(log.page(vec![log.frame(11, 15)]), &["apply 11..=15"]);
}

#[test]
fn a_frame_of_another_log_is_never_applied() {
    let mut log = Log::new("s", 10);
    let mut other = Log::new("other", 15);
    other.start = log.start;
    for (first, last) in [(11, 12), (10, 12), (8, 10)] {
        let mut case = Case::live(&log);
        case.expect(Input::Frame(other.frame(first, last)), &["unsubscribe 1"]);
        assert!(matches!(case.stopped(), StreamStop::ChainMismatch { seq, .. } if seq.get() == 10));
        log.append();
        case.expect(Input::Frame(log.frame(11, 11)), &[]);
        log.events.pop();
    }
}

#[test]
fn a_frame_that_does_not_lead_to_the_head_is_never_applied() {
    let log = Log::new("s", 20);
    let mut case = Case::new(log.at(10));
    case.step(Input::Connected);
    let forged = {
        let mut events = log.events[10..20].to_vec();
        events[4].payload = Bytes::from_static(b"other");
        events[4].payload_hash = PayloadHash::of(b"other");
        FrameRow {
            bytes: Frame::encode(&events),
            ..log.frame(11, 20)
        }
    };
    case.expect(log.page(vec![forged]), &[]);
    assert!(matches!(case.stopped(), StreamStop::ChainMismatch { seq, .. } if seq.get() == 20));
}

#[test]
fn what_is_no_frame_stops_the_stream() {
    let mut log = Log::new("s", 10);
    let mut case = Case::live(&log);
    log.append();
    let broken = FrameRow {
        bytes: Bytes::from_static(b"\xff\xff\xff"),
        ..log.frame(11, 11)
    };
    case.expect(Input::Frame(broken), &["unsubscribe 1"]);
    assert_eq!(case.stopped().code(), "bad_frame");

    let mut case = Case::live(&Log::new("s", 10));
    let longer = FrameRow {
        last_seq: seq(12),
        ..log.frame(11, 11)
    };
    case.expect(Input::Frame(longer), &["unsubscribe 1"]);
    assert_eq!(
        case.stopped(),
        &StreamStop::FrameExtent {
            seq: seq(11),
            expected: seq(12),
            found: seq(11)
        }
    );
}

#[test]
fn a_cursor_is_never_moved_to_suit_the_lane() {
    let log = Log::new("s", 10);
    let mut ahead = Case::new(log.at(10));
    ahead.step(Input::Connected);
    ahead.expect(Log::new("s", 7).page(vec![]), &[]);
    assert_eq!(
        ahead.stopped(),
        &StreamStop::AheadOfLane {
            applied: seq(10),
            head: seq(7)
        }
    );

    let mut forked = Case::new(log.at(10));
    forked.step(Input::Connected);
    forked.expect(Log::new("other", 10).page(vec![]), &[]);
    assert_eq!(forked.stopped().code(), "chain_mismatch");

    let mut below = Case::new(log.at(3));
    below.step(Input::Connected);
    below.expect(
        Input::Page(Page {
            head: log.head(),
            oldest_seq: seq(6),
            durable_reads: true,
            frames: vec![log.frame(6, 10)],
        }),
        &[],
    );
    assert_eq!(
        below.stopped(),
        &StreamStop::BelowWindow {
            applied: seq(3),
            oldest: seq(6)
        }
    );

    let mut at_the_edge = Case::new(log.at(5));
    at_the_edge.step(Input::Connected);
    let page = Page {
        head: log.head(),
        oldest_seq: seq(6),
        durable_reads: true,
        frames: vec![log.frame(6, 10)],
    };
    at_the_edge.expect(Input::Page(page), &["apply 6..=10", "subscribe 1 after 10"]);
}

fn early() -> StreamBounds {
    StreamBounds {
        reads: Reads::Early,
        ..bounds()
    }
}

#[test]
fn what_must_be_durable_is_not_applied_when_read_early() {
    let log = Log::new("s", 10);
    let frames = || vec![log.frame(1, 10)];
    let mut refused = Case::within(log.start, early());
    refused.step(Input::Connected);
    refused.expect(log.page(frames()), &[]);
    assert_eq!(refused.stopped(), &StreamStop::DurableReads);
    refused.expect(Input::Frame(log.frame(1, 10)), &[]);

    let mut allowed = Case::within(log.start, early());
    allowed.step(Input::Connected);
    allowed.expect(
        log.page_of_class(false, frames()),
        &["apply 1..=10", "subscribe 1 after 10"],
    );

    let mut confirmed = Case::new(log.start);
    confirmed.step(Input::Connected);
    confirmed.expect(log.page(frames()), &["apply 1..=10", "subscribe 1 after 10"]);
}

#[test]
fn a_class_that_must_be_durable_from_now_on_is_not_delivered_early_any_more() {
    let log = Log::new("s", 10);
    let mut case = Case::within(log.head(), early());
    case.step(Input::Connected);
    case.step(log.page_of_class(false, vec![]));
    case.step(Input::Subscribed(SubscriptionId(1)));
    case.expect(Input::Verify, &["read after 10"]);
    case.expect(log.page(vec![]), &["unsubscribe 1"]);
    assert_eq!(case.stopped(), &StreamStop::DurableReads);
}

#[test]
fn a_page_that_leads_nowhere_is_not_asked_for_in_a_loop() {
    let log = Log::new("s", 5_000);
    let mut case = Case::new(log.start);
    case.step(Input::Connected);
    case.expect(log.page(vec![]), &["ask later"]);
    case.expect(Input::AskAgain, &["read after 0"]);
    case.expect(log.page(vec![log.frame(11, 20)]), &["ask later"]);
}

#[test]
fn rows_that_claim_more_events_than_can_be_counted_weigh_nothing() {
    let log = Log::new("s", 10);
    let mut case = Case::new(log.start);
    case.step(Input::Connected);
    let claims = |last_seq| FrameRow {
        first_seq: seq(12),
        last_seq,
        base_chain: log.start.chain,
        bytes: vec![0; 2 << 20].into(),
    };
    // With the first nine events these are one more than 64 bits count.
    let hostile = [Seq::MAX, Seq::MAX, seq(27)].map(claims);
    let frames = [log.frame(1, 9)].into_iter().chain(hostile).collect();
    case.expect(log.page(frames), &["apply 1..=9", "subscribe 1 after 9"]);
}

#[test]
fn a_refusal_that_may_pass_is_asked_again_and_another_stops() {
    let log = Log::new("s", 1);
    let mut case = Case::new(log.start);
    case.step(Input::Connected);
    case.expect(
        Input::ReadRefused(Refusal::new(RefusalCode::ForbiddenStream, "no grant")),
        &["ask later"],
    );
    assert_eq!(case.stream.mode(), &Mode::Refused(RefusalCode::ForbiddenStream));
    case.expect(Input::AskAgain, &["read after 0"]);
    case.expect(Input::ReadFailed, &["ask later"]);
    case.expect(Input::AskAgain, &["read after 0"]);
    case.expect(
        Input::ReadRefused(Refusal::new(RefusalCode::InvalidArgument, "no")),
        &[],
    );
    assert_eq!(case.stopped().code(), "refused");
}

#[test]
fn a_lost_grant_ends_delivery_and_a_new_one_resumes_it() {
    let mut log = Log::new("s", 10);
    let mut case = Case::live(&log);
    case.expect(Input::GrantLost, &["unsubscribe 1", "ask later"]);
    log.append();
    case.expect(Input::Frame(log.frame(11, 11)), &[]);
    case.expect(Input::AskAgain, &["read after 10"]);
    case.expect(
        log.page(vec![log.frame(11, 11)]),
        &["apply 11..=11", "subscribe 2 after 11"],
    );
}

#[test]
fn a_slow_applier_makes_a_live_stream_page_and_then_come_back() {
    let mut log = Log::new("s", 10);
    let small = StreamBounds {
        unapplied_bytes: 3_000,
        resume_bytes: 500,
        ..bounds()
    };
    let mut case = Case::within(log.head(), small);
    case.step(Input::Connected);
    case.step(log.page(vec![]));
    case.step(Input::Subscribed(SubscriptionId(1)));
    (0..5).for_each(|_| log.append());
    let bytes = log.frame(11, 11).bytes.len();
    (11..=13).for_each(|at| case.expect(Input::Frame(log.frame(at, at)), &[&format!("apply {at}..={at}")]));
    assert_eq!(case.stream.unapplied_bytes(), 3 * bytes);
    case.expect(Input::Frame(log.frame(14, 14)), &["apply 14..=14", "unsubscribe 1"]);
    case.expect(Input::Frame(log.frame(15, 15)), &[]);
    case.expect(
        Input::Applied {
            to: log.at(13),
            released: 3 * bytes,
        },
        &[],
    );
    // How far the head has got meanwhile only a page can say: a subscription would bring all of it at once.
    case.expect(
        Input::Applied {
            to: log.at(14),
            released: bytes,
        },
        &["read after 14"],
    );
    case.expect(log.page(vec![log.frame(15, 15)]), &["apply 15..=15"]);
    case.expect(
        Input::Applied {
            to: log.at(15),
            released: bytes,
        },
        &["read after 15"],
    );
    case.expect(log.page(vec![]), &["subscribe 2 after 15"]);
    assert_eq!(case.counters.overruns, 1);
}

#[test]
fn a_renewed_subscription_takes_over_without_a_gap() {
    let mut log = Log::new("s", 10);
    let mut case = Case::live(&log);
    (0..3).for_each(|_| log.append());
    case.expect(Input::Renew, &["subscribe 2 after 10"]);
    case.expect(Input::Renew, &[]);
    case.expect(Input::Frame(log.frame(11, 11)), &["apply 11..=11"]);
    case.expect(Input::Subscribed(SubscriptionId(2)), &["unsubscribe 1"]);
    case.expect(Input::Frame(log.frame(12, 13)), &["apply 12..=13"]);
    assert!(case.stream.is_delivering());
}

#[test]
fn a_failed_batch_is_tried_again_from_what_is_saved() {
    let mut log = Log::new("s", 10);
    let mut case = Case::live(&log);
    (0..4).for_each(|_| log.append());
    case.expect(Input::Frame(log.frame(11, 12)), &["apply 11..=12"]);
    case.expect(Input::Frame(log.frame(13, 14)), &["apply 13..=14"]);
    let retry = || Input::ApplyFailed {
        failure: ApplyFailure::Retry {
            message: "busy".to_owned(),
        },
        released: 0,
    };
    case.expect(retry(), &["unsubscribe 1", "retry later 1"]);
    case.expect(Input::Dropped { released: 0 }, &[]);
    case.expect(Input::AskAgain, &["read after 10"]);
    case.expect(
        log.page(vec![log.frame(11, 14)]),
        &["apply 11..=14", "subscribe 2 after 14"],
    );
    case.expect(applied(&log, 14), &[]);
    assert_eq!(case.stream.applied(), log.head());
    for attempt in 1..bounds().apply_attempts {
        assert!(case.step(retry()).contains(&format!("retry later {attempt}")));
        case.step(Input::AskAgain);
        case.step(log.page(vec![]));
    }
    case.step(retry());
    assert_eq!(case.stopped().code(), "handler");
    // The store may have been the one that was busy.
    let said = case.stopped().to_string();
    assert_eq!(said, "applying was given up after 8 attempts: busy");
}

#[test]
fn a_full_disk_is_waited_for_however_long_it_is_full() {
    let mut log = Log::new("s", 10);
    let mut case = Case::live(&log);
    log.append();
    case.expect(Input::Frame(log.frame(11, 11)), &["apply 11..=11"]);
    let full = || Input::ApplyFailed {
        failure: ApplyFailure::Full {
            message: "no room".to_owned(),
        },
        released: 0,
    };
    let pause = format!("retry later {}", bounds().apply_attempts);
    case.expect(full(), &["unsubscribe 1", &pause]);
    for _ in 0..3 * bounds().apply_attempts {
        case.expect(Input::AskAgain, &["read after 10"]);
        case.step(log.page(vec![log.frame(11, 11)]));
        assert!(case.step(full()).contains(&pause));
    }
    case.step(Input::AskAgain);
    case.step(log.page(vec![log.frame(11, 11)]));
    case.expect(applied(&log, 11), &[]);
    assert_eq!(case.stream.applied(), log.head());
}

#[test]
fn an_altered_payload_or_a_handler_that_gives_up_stops_the_stream_at_once() {
    let log = Log::new("s", 10);
    let failures = [
        (
            ApplyFailure::Stop {
                message: "no".to_owned(),
            },
            "handler",
        ),
        (
            ApplyFailure::Payload {
                seq: seq(9),
                expected: PayloadHash::of(b"a"),
                found: PayloadHash::of(b"b"),
            },
            "payload_mismatch",
        ),
    ];
    for (failure, code) in failures {
        let mut case = Case::live(&log);
        case.expect(Input::ApplyFailed { failure, released: 0 }, &["unsubscribe 1"]);
        assert_eq!(case.stopped().code(), code);
        case.expect(Input::Disconnected, &[]);
        case.expect(Input::Connected, &[]);
        case.expect(Input::AskAgain, &[]);
    }
}

#[test]
fn a_new_connection_goes_on_from_what_was_handed_out() {
    let mut log = Log::new("s", 10);
    let mut case = Case::live(&log);
    (0..4).for_each(|_| log.append());
    case.expect(Input::Frame(log.frame(11, 12)), &["apply 11..=12"]);
    case.expect(Input::Disconnected, &[]);
    assert_eq!(case.stream.mode(), &Mode::Offline);
    case.expect(applied(&log, 12), &[]);
    case.expect(Input::Connected, &["read after 12"]);
}

#[test]
fn whatever_happens_to_a_subscription_that_was_given_up_changes_nothing() {
    let log = Log::new("s", 10);
    let mut case = Case::live(&log);
    case.expect(Input::Overrun, &["unsubscribe 1", "read after 10"]);
    case.expect(log.page(vec![]), &["subscribe 2 after 10"]);
    case.expect(Input::Subscribed(SubscriptionId(1)), &[]);
    case.expect(Input::SubscriptionFailed(SubscriptionId(1)), &[]);
    assert_eq!(case.stream.mode(), &Mode::Subscribing(SubscriptionId(2)));
    case.expect(
        Input::SubscriptionFailed(SubscriptionId(2)),
        &["unsubscribe 2", "ask later"],
    );
}

#[test]
fn the_genesis_of_a_log_is_part_of_the_check() {
    let log = Log::new("s", 3);
    let mut case = Case::new(Position {
        chain: ChainHash::genesis(&StreamId::new("t").unwrap()),
        ..log.start
    });
    case.step(Input::Connected);
    case.expect(log.page(vec![log.frame(1, 3)]), &[]);
    assert_eq!(case.stopped().code(), "chain_mismatch");
}

#[test]
fn a_subscription_brings_so_much_and_is_renewed_when_half_of_it_has_come() {
    let mut log = Log::new("s", 10);
    let narrow = StreamBounds {
        window_bytes: 4 * UNKNOWN_EVENT_BYTES as usize,
        ..bounds()
    };
    let mut case = Case::within(log.head(), narrow);
    case.step(Input::Connected);
    let asked = case.stream.step(log.page(vec![]), &mut case.counters);
    let (id, after, to) = (SubscriptionId(1), seq(10), seq(14));
    assert_eq!(asked, [Effect::Subscribe { id, after, to }]);
    case.step(Input::Subscribed(id));
    (0..2).for_each(|_| log.append());
    case.expect(Input::Frame(log.frame(11, 11)), &["apply 11..=11"]);
    let frame = Input::Frame(log.frame(12, 12));
    case.expect(frame, &["apply 12..=12", "subscribe 2 after 12"]);
    case.expect(Input::Subscribed(SubscriptionId(2)), &["unsubscribe 1"]);
}

#[test]
fn what_comes_next_begins_in_the_subscription_however_narrow_it_is() {
    let log = Log::new("s", 10);
    for window_bytes in [0, 1, 1_000, 100_000] {
        let mut case = Case::within(
            log.head(),
            StreamBounds {
                window_bytes,
                ..bounds()
            },
        );
        case.step(Input::Connected);
        let asked = case.stream.step(log.page(vec![]), &mut case.counters);
        let [Effect::Subscribe { after, to, .. }] = asked[..] else {
            panic!("{asked:?}")
        };
        let last_before_renewal = after.plus(to.since(after).div_ceil(2) - 1);
        assert!(last_before_renewal < to);
    }
}
