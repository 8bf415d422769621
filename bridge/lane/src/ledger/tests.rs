use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;

const NOW: Duration = Duration::from_secs(1);

struct Bench {
    ledger: Ledger,
    ids: Ids,
    dice: SmallRng,
    /// What the ledger said of the last answer.
    told: Vec<Command>,
}

fn stream(name: &str) -> StreamId {
    StreamId::new(name).unwrap()
}

fn seq(value: u64) -> Seq {
    Seq::new(value).unwrap()
}

fn failure(class: RefusalClass) -> Failure {
    Failure {
        class,
        refusal: None,
        text: "no".to_owned(),
    }
}

type Statement = (RequestId, bool, Vec<(String, u64)>);

impl Bench {
    fn new() -> Self {
        Self {
            ledger: Ledger::new(),
            ids: Ids::default(),
            dice: SmallRng::seed_from_u64(1),
            told: Vec::new(),
        }
    }

    /// The statement that the ledger sends at this time, if any.
    fn at(&mut self, now: Duration) -> Option<Statement> {
        let mut out = Vec::new();
        self.ledger.turn(now, &mut self.ids, &mut out);
        let records = |records: Vec<Record>| {
            records
                .into_iter()
                .map(|record| (record.stream_id.to_string(), record.published.get()))
                .collect()
        };
        match out.pop() {
            None => None,
            Some(Command::Record(request, all)) => Some((request, false, records(all))),
            Some(Command::RecordExactly(request, all)) => Some((request, true, records(all))),
            Some(other) => panic!("{other:?}"),
        }
    }

    fn recorded(&mut self, now: Duration, request: RequestId, recorded: Result<Recorded, Failure>) -> Outcome {
        self.told.clear();
        self.ledger
            .recorded(now, request, recorded, &mut self.dice, &mut self.told)
    }
}

fn advance(streams: &[(&str, u64)]) -> Vec<(String, u64)> {
    streams.iter().map(|(name, seq)| ((*name).to_owned(), *seq)).collect()
}

#[test]
fn one_statement_records_many_advances() {
    let mut bench = Bench::new();
    bench.ledger.advance(NOW, stream("a"), seq(1));
    bench.ledger.advance(NOW, stream("b"), seq(7));
    bench.ledger.advance(NOW + GATHER / 2, stream("a"), seq(3));
    assert_eq!(bench.at(NOW + GATHER / 2), None);
    assert_eq!(bench.ledger.next_due(), Some(NOW + GATHER));
    let (request, back, records) = bench.at(NOW + GATHER).unwrap();
    assert_eq!((back, records), (false, advance(&[("a", 3), ("b", 7)])));
    assert!(!bench.ledger.is_empty());
    bench.recorded(NOW + GATHER, request, Ok(Recorded::default()));
    assert!(bench.ledger.is_empty() && bench.ledger.next_due().is_none());
}

#[test]
fn a_row_that_a_writer_holds_does_not_delay_other_streams() {
    let mut bench = Bench::new();
    bench.ledger.set_back(NOW, stream("held"), seq(1));
    let (request, back, _) = bench.at(NOW + GATHER).unwrap();
    assert!(back);
    let locked = Recorded {
        locked: vec![stream("held")],
        above_head: Vec::new(),
    };
    bench.recorded(NOW + GATHER, request, Ok(locked));
    assert_eq!(bench.ledger.next_due(), Some(NOW + GATHER + LOCKED));
    bench.ledger.advance(NOW + GATHER, stream("free"), seq(5));
    let (request, back, records) = bench.at(NOW + 2 * GATHER).unwrap();
    assert_eq!((back, records), (false, advance(&[("free", 5)])));
    bench.recorded(NOW + 2 * GATHER, request, Ok(Recorded::default()));
    let (_, back, records) = bench.at(NOW + GATHER + LOCKED).unwrap();
    assert_eq!((back, records), (true, advance(&[("held", 1)])));
}

#[test]
fn an_advance_after_a_set_back_is_recorded_with_it() {
    let mut bench = Bench::new();
    bench.ledger.advance(NOW, stream("a"), seq(9));
    bench.ledger.set_back(NOW, stream("a"), seq(4));
    bench.ledger.advance(NOW, stream("a"), seq(6));
    let (_, back, records) = bench.at(NOW + GATHER).unwrap();
    assert_eq!((back, records), (true, advance(&[("a", 6)])));
}

#[test]
fn a_set_back_waits_for_the_advance_that_is_under_way() {
    let mut bench = Bench::new();
    bench.ledger.advance(NOW, stream("a"), seq(9));
    let (request, ..) = bench.at(NOW + GATHER).unwrap();
    bench.ledger.set_back(NOW + GATHER, stream("a"), seq(4));
    assert_eq!(bench.at(NOW + 2 * GATHER), None, "one statement at a time");
    bench.recorded(NOW + 2 * GATHER, request, Err(failure(RefusalClass::Retry)));
    let (_, back, records) = bench.at(NOW + 10 * LOCKED).unwrap();
    assert_eq!((back, records), (true, advance(&[("a", 4)])));
}

#[test]
fn an_outdated_set_back_that_is_under_way_is_corrected() {
    let mut bench = Bench::new();
    bench.ledger.holds(NOW, stream("a"), seq(9));
    assert!(bench.ledger.is_empty(), "no other seq is about to be recorded");
    bench.ledger.set_back(NOW, stream("a"), seq(4));
    let (request, ..) = bench.at(NOW + GATHER).unwrap();
    bench.ledger.holds(NOW + GATHER, stream("a"), seq(9));
    bench.recorded(NOW + GATHER, request, Ok(Recorded::default()));
    let (_, back, records) = bench.at(NOW + 2 * GATHER).unwrap();
    assert_eq!((back, records), (true, advance(&[("a", 9)])));
}

#[test]
fn a_stream_that_the_authority_refuses_is_found_and_retried_alone() {
    let mut bench = Bench::new();
    for name in ["a", "b", "bad", "d", "e"] {
        bench.ledger.advance(NOW, stream(name), seq(1));
    }
    let (mut now, mut written) = (NOW + GATHER, Vec::new());
    for _ in 0..20 {
        let Some((request, _, records)) = bench.at(now) else {
            break;
        };
        let is_bad = records.iter().any(|(name, _)| name == "bad");
        if !is_bad {
            written.extend(records.into_iter().map(|(name, _)| name));
        }
        let answer = if is_bad {
            Err(failure(RefusalClass::Fatal))
        } else {
            Ok(Recorded::default())
        };
        bench.recorded(now, request, answer);
        now += Duration::from_millis(1);
    }
    written.sort();
    assert_eq!(written, ["a", "b", "d", "e"]);
    assert_eq!(bench.ledger.refused().keys().collect::<Vec<_>>(), [&stream("bad")]);
    // The ledger tries again, and the success shows.
    let (request, ..) = bench.at(now + REFUSED).unwrap();
    bench.recorded(now + REFUSED, request, Ok(Recorded::default()));
    assert!(bench.ledger.refused().is_empty() && bench.ledger.is_empty());
}

#[test]
fn a_new_link_drops_what_waits_to_be_recorded() {
    let mut bench = Bench::new();
    bench.ledger.advance(NOW, stream("a"), seq(9));
    let (request, ..) = bench.at(NOW + GATHER).unwrap();
    bench.ledger.advance(NOW + GATHER, stream("b"), seq(2));
    bench.ledger.forget();
    assert!(bench.ledger.writes_the_past());
    bench.recorded(NOW + GATHER, request, Err(failure(RefusalClass::Retry)));
    assert!(!bench.ledger.writes_the_past() && bench.ledger.is_empty());
}

#[test]
fn an_authority_that_is_away_is_retried_less_and_less_often() {
    let mut bench = Bench::new();
    bench.ledger.advance(NOW, stream("a"), seq(1));
    let (mut now, mut waits) = (NOW + GATHER, Vec::new());
    for _ in 0..9 {
        let (request, ..) = bench.at(now).unwrap();
        bench.recorded(now, request, Err(failure(RefusalClass::Retry)));
        let due = bench.ledger.next_due().unwrap();
        waits.push(due - now);
        now = due;
    }
    assert!(waits[0] <= AWAY.0 && waits[8] >= AWAY.1 / 2, "{waits:?}");
}

#[test]
fn a_flush_sends_what_waits_at_once_and_without_anything_does_nothing() {
    let mut bench = Bench::new();
    bench.ledger.flush(NOW);
    assert_eq!((bench.ledger.next_due(), bench.at(NOW)), (None, None));
    bench.ledger.advance(NOW, stream("a"), seq(1));
    bench.ledger.flush(NOW);
    assert_eq!(bench.ledger.next_due(), Some(NOW));
    assert_eq!(bench.at(NOW).unwrap().2, advance(&[("a", 1)]));
}

#[test]
fn what_waits_and_what_is_under_way_counts_as_not_recorded() {
    let mut bench = Bench::new();
    bench.ledger.advance(NOW, stream("a"), seq(1));
    bench.ledger.advance(NOW, stream("b"), seq(1));
    let (request, ..) = bench.at(NOW + GATHER).unwrap();
    for name in ["c", "d", "e"] {
        bench.ledger.advance(NOW + GATHER, stream(name), seq(1));
    }
    assert_eq!(bench.ledger.len(), 5);
    bench.recorded(NOW + GATHER, request, Ok(Recorded::default()));
    assert_eq!(bench.ledger.len(), 3);
}

#[test]
fn statements_halve_with_each_refusal_and_grow_again_with_each_success() {
    let mut bench = Bench::new();
    for at in 0..40 {
        bench.ledger.advance(NOW, stream(&format!("s.{at}")), seq(1));
    }
    let now = NOW + GATHER;
    let refused = || Err(failure(RefusalClass::Reject));
    let recorded = || Ok(Recorded::default());
    for (size, answer) in [
        (40, refused()),
        (20, refused()),
        (10, recorded()),
        (20, recorded()),
        (10, recorded()),
    ] {
        let (request, _, records) = bench.at(now).unwrap();
        assert_eq!(records.len(), size);
        bench.recorded(now, request, answer);
    }
    assert!(bench.ledger.is_empty());
}

#[test]
fn a_statement_has_a_thousand_streams_at_most_and_the_others_follow_at_once() {
    let mut bench = Bench::new();
    for at in 0..=STREAMS {
        bench.ledger.advance(NOW, stream(&format!("s.{at}")), seq(1));
    }
    let now = NOW + GATHER;
    let (request, _, records) = bench.at(now).unwrap();
    assert_eq!(records.len(), STREAMS);
    bench.recorded(now, request, Ok(Recorded::default()));
    assert_eq!(bench.at(now).unwrap().2.len(), 1);
}

#[test]
fn a_failure_is_told_each_time_and_a_stream_that_is_refused_alone_once() {
    let mut bench = Bench::new();
    bench.ledger.advance(NOW, stream("a"), seq(1));
    let (why, streams, stream_id) = ("no".to_owned(), 1, stream("a"));
    let not_recorded = Command::Tell(Notice::NotRecorded {
        streams,
        why: why.clone(),
    });
    let cannot_record = Command::Tell(Notice::CannotRecord { stream_id, why });
    for (class, told) in [
        (RefusalClass::Retry, Some(&not_recorded)),
        (RefusalClass::Retry, Some(&not_recorded)),
        (RefusalClass::Fatal, Some(&cannot_record)),
        (RefusalClass::Reject, None),
    ] {
        let now = bench.ledger.next_due().unwrap();
        let (request, ..) = bench.at(now).unwrap();
        bench.recorded(now, request, Err(failure(class)));
        assert_eq!(bench.told.iter().collect::<Vec<_>>(), Vec::from_iter(told), "{class:?}");
        let is_refused = class != RefusalClass::Retry;
        assert_eq!(!bench.ledger.refused().is_empty(), is_refused, "{class:?}");
        assert_eq!(bench.ledger.next_due() == Some(now + REFUSED), is_refused, "{class:?}");
    }
}

#[test]
fn a_stream_whose_log_ends_earlier_is_told_unless_the_statement_is_of_an_earlier_link() {
    for is_old in [false, true] {
        let mut bench = Bench::new();
        bench.ledger.advance(NOW, stream("a"), seq(9));
        let (request, ..) = bench.at(NOW + GATHER).unwrap();
        if is_old {
            bench.ledger.forget();
        }
        let above_head = Recorded {
            locked: Vec::new(),
            above_head: vec![stream("a")],
        };
        let outcome = bench.recorded(NOW + GATHER, request, Ok(above_head));
        assert_eq!(outcome.above_head.is_empty(), is_old);
    }
}

#[test]
fn what_was_not_sent_yet_waits_as_well_while_the_authority_is_away() {
    let mut bench = Bench::new();
    bench.ledger.advance(NOW, stream("a"), seq(1));
    let now = NOW + GATHER;
    let (request, ..) = bench.at(now).unwrap();
    bench.ledger.advance(now, stream("b"), seq(1));
    bench.recorded(now, request, Err(failure(RefusalClass::Retry)));
    let due = bench.ledger.next_due().unwrap();
    assert!(due >= now + AWAY.0 / 2, "{:?}", due - now);
    assert_eq!(bench.at(due).unwrap().2.len(), 2);
}
