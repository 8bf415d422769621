use bytes::Bytes;
use spacetime_sync_proto::epoch::AuthorityEpoch;
use spacetime_sync_proto::{ChainHash, FrameRow, Position, Refusal, RefusalCode, Seq, StreamProgress};

use super::*;
use crate::health::Role;
use crate::message::{Answer, Failure, Standing};
use crate::streams::ReadyFrame;
use crate::{LinkId, RequestId};

fn settings() -> Settings {
    Settings {
        limits: Limits {
            reads: 4,
            calls: 64,
            bytes: 1 << 20,
            idle_streams: 1_000_000,
            attempts: 8,
        },
        lead: true,
        stall_after: Duration::from_secs(10),
        drain: Duration::from_secs(10),
        connect_deadline: Duration::from_secs(5),
        ack_deadline: Duration::from_secs(6),
        idle_poll: Duration::from_millis(250),
        dirty_streams: 1_000,
        compared_streams: 1_000,
        applies_windows: false,
        policy_every: Duration::from_secs(60),
        beat_every: Duration::from_secs(10),
    }
}

fn stream(name: &str) -> StreamId {
    StreamId::new(name).unwrap()
}

fn seq(value: u64) -> Seq {
    Seq::new(value).unwrap()
}

/// All streams have the same chain: a chain hash is 32 times the seq.
fn position(value: u64) -> Position {
    Position {
        seq: seq(value),
        chain: ChainHash::from_bytes([value as u8; 32]),
    }
}

fn progress(name: &str, published: u64, head: u64) -> StreamProgress {
    StreamProgress {
        stream_id: stream(name),
        head_seq: seq(head),
        published_seq: seq(published),
        floor_seq: Seq::ZERO,
    }
}

fn failure(class: RefusalClass) -> Failure {
    Failure {
        class,
        refusal: None,
        text: "no".to_owned(),
    }
}

/// The head of a stream in SpacetimeDB, and its published seq and head in the authority.
#[derive(Clone, Copy)]
struct Held {
    held: u64,
    published: u64,
    head: u64,
}

/// A lane whose commands are all answered at once, except those that a test answers itself.
struct Bench {
    lane: Lane,
    now: Duration,
    commands: Vec<Command>,
    held: fn(&StreamId) -> Held,
    streams: Vec<StreamId>,
    dirty: Vec<StreamProgress>,
}

impl Bench {
    fn new(streams: Vec<StreamId>, held: fn(&StreamId) -> Held) -> Self {
        Self {
            lane: Lane::new(settings(), 1),
            now: Duration::ZERO,
            commands: Vec::new(),
            held,
            streams,
            dirty: Vec::new(),
        }
    }

    fn feed(&mut self, event: Event) {
        self.lane.step(self.now, event, &mut self.commands);
        self.lane.turn(self.now, &mut self.commands);
    }

    /// Lets time pass until something is due.
    fn wait(&mut self) {
        self.now = self.now.max(self.lane.next_due());
        self.lane.turn(self.now, &mut self.commands);
    }

    fn standing(&self, stream_id: &StreamId, at: Seq) -> Standing {
        let Held { published, head, .. } = (self.held)(stream_id);
        Standing {
            progress: progress(stream_id.as_str(), published, head),
            chain: (at.get() <= head).then(|| position(at.get()).chain),
        }
    }

    /// Answers a command in the obvious way. Returns a command that only a test can answer.
    fn answer(&mut self, command: Command) -> Option<Command> {
        let event = match command {
            Command::OpenAuthority(request) => Event::Opened(request, Ok(())),
            Command::AskForLead(request) => Event::Lead(request, Ok(true)),
            Command::Listen(request) => Event::Listening(request, Ok(())),
            Command::SetSleeping(request, _) => Event::SleepingSet(request, Ok(())),
            Command::Look { request, .. } => Event::Looked {
                request,
                found: Ok(self.dirty.clone()),
                took: Duration::from_millis(1),
            },
            Command::ListStreams { request, after, limit } => {
                let from = after.map_or(0, |after| self.streams.partition_point(|stream_id| *stream_id <= after));
                let page = self.streams[from..].iter().take(limit).cloned().collect();
                Event::Listed(request, Ok(page))
            }
            Command::ReadStandings(request, at) => {
                let all = at.iter().map(|(stream_id, at)| Ok(self.standing(stream_id, *at)));
                Event::Standings(request, Ok(all.collect()))
            }
            Command::ReadHeads(link, request, streams) => {
                let heads = streams.iter().map(|stream_id| position((self.held)(stream_id).held));
                Event::Heads(link, request, Ok(heads.collect()))
            }
            Command::ReadPolicy(request) => Event::Policy(request, Ok(Vec::new())),
            Command::ReadEpoch(request) => {
                let epoch = AuthorityEpoch {
                    epoch: "one".to_owned(),
                    beat: 1,
                };
                Event::Epoch(request, Ok(epoch))
            }
            Command::AdvanceBeat(request) => Event::BeatAdvanced(request, Ok(())),
            Command::SetRetention(link, request, _) => Event::RetentionSet(link, request, Ok(())),
            Command::MarkEpoch(link, request, _) => Event::EpochMarked(link, request, Ok(Ok(()))),
            Command::Dial(link) => Event::Dialed(link, Ok(())),
            Command::Record(request, _) | Command::RecordExactly(request, _) => {
                Event::Recorded(request, Ok(crate::Recorded::default()))
            }
            other @ (Command::ReadPage { .. }
            | Command::Append { .. }
            | Command::Rewind { .. }
            | Command::BeginLead
            | Command::EndLead
            | Command::HangUp(_)
            | Command::Relinked
            | Command::Tell(_)
            | Command::End(_)) => return Some(other),
        };
        self.feed(event);
        None
    }

    /// Answers commands, and lets time pass when there are none, until `wanted` accepts a command.
    fn until<T>(&mut self, mut wanted: impl FnMut(&Command) -> Option<T>) -> T {
        for _ in 0..100_000 {
            if self.commands.is_empty() {
                self.wait();
                continue;
            }
            let command = self.commands.remove(0);
            if let Some(found) = wanted(&command) {
                return found;
            }
            self.answer(command);
        }
        panic!("the wanted command does not come")
    }

    fn link_up(&mut self) -> LinkId {
        self.until(|command| matches!(command, Command::Tell(Notice::LinkUp)).then_some(()));
        self.lane.link.up().unwrap()
    }

    /// A page of one event.
    fn page(&mut self, link: LinkId, name: &str, after: Seq) {
        let last = position(after.next().get());
        let frame = ReadyFrame {
            row: FrameRow {
                first_seq: last.seq,
                last_seq: last.seq,
                base_chain: position(after.get()).chain,
                bytes: Bytes::from_static(b"frame"),
            },
            last_chain: last.chain,
        };
        let stream_id = stream(name);
        let page = Ok(Page::Frames(vec![frame]));
        self.feed(Event::Page { link, stream_id, page });
    }
}

fn reads(command: &Command) -> Option<(String, Seq)> {
    match command {
        Command::ReadPage { stream_id, after, .. } => Some((stream_id.to_string(), *after)),
        _ => None,
    }
}

fn in_step(_: &StreamId) -> Held {
    Held {
        held: 1,
        published: 1,
        head: 1,
    }
}

#[test]
fn after_a_blip_the_first_new_event_does_not_wait_for_a_hundred_thousand_streams() {
    let streams: Vec<_> = (0..100_000).map(|nth| stream(&format!("s.{nth:06}"))).collect();
    let mut bench = Bench::new(streams, |stream_id| {
        if stream_id.as_str() == "s.099999" {
            Held {
                head: 2,
                ..in_step(stream_id)
            }
        } else {
            in_step(stream_id)
        }
    });
    let link = bench.link_up();
    bench.until(|command| matches!(command, Command::Tell(Notice::AllCompared { .. })).then_some(()));
    bench.dirty = vec![progress("s.099999", 1, 2)];
    bench.feed(Event::LinkClosed(link, "a blip".to_owned()));
    let broken_at = bench.now;
    let link = bench.link_up();
    let mut asked = 0;
    let (name, after) = bench.until(|command| {
        asked += usize::from(matches!(command, Command::ReadHeads(..)));
        reads(command)
    });
    bench.page(link, &name, after);
    bench.until(|command| matches!(command, Command::Append { .. }).then_some(()));
    assert_eq!(name, "s.099999");
    assert!(asked <= 3, "{asked} batches were compared first");
    assert!(
        bench.now - broken_at < Duration::from_secs(1),
        "{:?}",
        bench.now - broken_at
    );
}

#[test]
fn the_end_of_an_earlier_link_does_not_end_the_new_one() {
    let mut bench = Bench::new(Vec::new(), in_step);
    let old = bench.link_up();
    bench.feed(Event::LinkClosed(old, "closed".to_owned()));
    let new = bench.link_up();
    for event in [
        Event::LinkClosed(old, "closed for good".to_owned()),
        Event::Dialed(old, Err(failure(RefusalClass::Retry))),
    ] {
        bench.feed(event);
        assert_eq!(bench.lane.link.up(), Some(new));
    }
    bench.feed(Event::LinkClosed(new, "closed".to_owned()));
    assert_eq!(bench.lane.link.up(), None);
}

#[test]
fn a_connection_that_succeeds_too_late_is_hung_up() {
    let mut bench = Bench::new(Vec::new(), in_step);
    let late = bench.until(|command| match command {
        Command::Dial(link) => Some(*link),
        _ => None,
    });
    bench.until(|command| matches!(command, Command::HangUp(link) if *link == late).then_some(()));
    bench.feed(Event::Dialed(late, Ok(())));
    assert!(bench.commands.contains(&Command::HangUp(late)), "{:?}", bench.commands);
}

#[test]
fn a_stream_whose_row_is_corrupt_halts_alone_and_the_link_stays() {
    let mut bench = Bench::new(vec![stream("a"), stream("bad"), stream("c")], |stream_id| Held {
        head: 2,
        ..in_step(stream_id)
    });
    bench.dirty = ["a", "bad", "c"].map(|name| progress(name, 1, 2)).to_vec();
    let link = bench.link_up();
    let (request, at) = bench.until(|command| match command {
        Command::ReadStandings(request, at) if at.len() == 3 => Some((*request, at.clone())),
        _ => None,
    });
    let standings = at.iter().map(|(stream_id, at)| match stream_id.as_str() {
        "bad" => Err("an invalid chain hash".to_owned()),
        _ => Ok(bench.standing(stream_id, *at)),
    });
    let standings = Ok(standings.collect());
    bench.feed(Event::Standings(request, standings));
    let read = [bench.until(reads).0, bench.until(reads).0];
    assert_eq!(read, ["a", "c"]);
    assert!(bench.lane.is_halted(&stream("bad")) && bench.lane.link.up() == Some(link));
    let health = bench.lane.health(bench.now);
    assert!(
        !health.healthy && health.problems[0].contains("stream bad is halted"),
        "{health:?}"
    );
}

#[test]
fn a_failing_batch_is_halved_until_the_bad_stream_is_alone() {
    let mut bench = Bench::new(Vec::new(), in_step);
    let names = ["a", "bad", "c", "d", "e"];
    bench.dirty = names.map(|name| progress(name, 1, 2)).to_vec();
    bench.link_up();
    let mut read = Vec::new();
    while read.len() < 4 || !bench.lane.is_halted(&stream("bad")) {
        let found = bench.until(|command| match command {
            Command::ReadStandings(request, at) if at.iter().any(|(id, _)| id.as_str() == "bad") => Some(Err(*request)),
            other => reads(other).map(Ok),
        });
        match found {
            Err(request) => bench.feed(Event::Standings(request, Err(failure(RefusalClass::Fatal)))),
            Ok((name, _)) => read.push(name),
        }
    }
    read.sort();
    assert_eq!(read, ["a", "c", "d", "e"]);
}

/// A stream that needs a refill: SpacetimeDB's head is below what the authority keeps.
fn below_the_floor(_: &StreamId) -> Held {
    Held {
        held: 1,
        published: 9,
        head: 9,
    }
}

/// Starts the refills of streams a and b. Returns the first step of a's.
fn refilling() -> (Bench, LinkId, RequestId) {
    let mut bench = Bench::new(vec![stream("a"), stream("b")], below_the_floor);
    let link = bench.link_up();
    let request = loop {
        let (request, at) = bench.until(|command| match command {
            Command::ReadStandings(request, at) => Some((*request, at.clone())),
            _ => None,
        });
        let refills = at.len() == 1;
        let standings = at.iter().map(|(stream_id, at)| {
            let mut standing = bench.standing(stream_id, *at);
            standing.progress.floor_seq = seq(5);
            Ok(standing)
        });
        let standings = Ok(standings.collect());
        bench.feed(Event::Standings(request, standings));
        if refills {
            let is_a = |command: &Command| match command {
                Command::Rewind {
                    request, stream_id, to, ..
                } if stream_id.as_str() == "a" => {
                    assert_eq!(to.seq, seq(5));
                    Some(*request)
                }
                _ => None,
            };
            let sent = bench.commands.iter().find_map(is_a);
            if let Some(request) = sent {
                break request;
            }
        }
    };
    (bench, link, request)
}

#[test]
fn a_rewind_that_the_module_rejects_halts_its_stream_alone() {
    let (mut bench, link, request) = refilling();
    let refusal = Refusal::new(RefusalCode::InvalidArgument, "the log is broken");
    let rejected = Failure {
        class: RefusalClass::Reject,
        refusal: Some(refusal),
        text: "rejected".to_owned(),
    };
    bench.feed(Event::Rewound(link, request, Err(rejected)));
    assert!(bench.lane.is_halted(&stream("a")) && !bench.lane.is_halted(&stream("b")));
    assert_eq!(bench.lane.link.up(), Some(link));
}

/// Answers a step of stream a's rewind and the look at its head that follows.
fn rewind_step(bench: &mut Bench, link: LinkId, request: RequestId, head: u64) {
    bench.feed(Event::Rewound(link, request, Ok(())));
    let looked = bench.until(|command| match command {
        Command::ReadHeads(_, request, streams) if *streams == [stream("a")] => Some(*request),
        _ => None,
    });
    bench.feed(Event::Heads(link, looked, Ok(vec![position(head)])));
}

fn next_rewind(command: &Command) -> Option<(RequestId, Seq)> {
    match command {
        Command::Rewind {
            request,
            stream_id,
            seen,
            ..
        } if stream_id.as_str() == "a" => Some((*request, *seen)),
        _ => None,
    }
}

#[test]
fn a_rewind_repeats_the_step_from_the_head_that_is_left() {
    let (mut bench, link, request) = refilling();
    rewind_step(&mut bench, link, request, 0);
    let (request, seen) = bench.until(next_rewind);
    assert_eq!(seen, Seq::ZERO);
    rewind_step(&mut bench, link, request, 5);
    bench.until(|command| reads(command).filter(|(name, after)| name == "a" && *after == seq(5)));
}

#[test]
fn a_rewind_goes_on_while_the_module_drops_a_broken_log_from_its_beginning() {
    let (mut bench, link, mut request) = refilling();
    let failures = settings().limits.attempts + 1;
    for _ in 0..3 * failures {
        rewind_step(&mut bench, link, request, 1);
        let started = bench.now;
        let (next, seen) = bench.until(next_rewind);
        assert_eq!((seen, bench.now), (seq(1), started), "it does not rest in between");
        request = next;
    }
    assert!(!bench.lane.is_halted(&stream("a")));
}

#[test]
fn a_rewind_that_removes_nothing_is_given_up_for_a_while() {
    let (mut bench, link, mut request) = refilling();
    for _ in 0..1_000 {
        rewind_step(&mut bench, link, request, 1);
        request = bench.until(next_rewind).0;
    }
    rewind_step(&mut bench, link, request, 1);
    assert!(!bench.commands.iter().any(|command| next_rewind(command).is_some()));
    assert!(bench.lane.next_due() > bench.now);
}

#[test]
fn a_leader_without_its_authority_is_red_and_asks_less_and_less_often() {
    let mut bench = Bench::new(Vec::new(), in_step);
    bench.link_up();
    bench.feed(Event::LeadLost);
    let gone_at = bench.now;
    bench.commands.clear();
    let (mut asked, mut told) = (0, 0);
    while bench.now < gone_at + Duration::from_secs(60) {
        bench.wait();
        for command in std::mem::take(&mut bench.commands) {
            match command {
                Command::AskForLead(request) => {
                    asked += 1;
                    bench.feed(Event::Lead(request, Err(failure(RefusalClass::Retry))));
                }
                Command::Tell(_) => told += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(asked < 30 && told <= 2, "{asked} attempts, {told} notices in a minute");
    let health = bench.lane.health(bench.now);
    assert!(!health.healthy && health.role == Role::Standby, "{health:?}");
}

#[test]
fn a_standby_keeps_turning_while_the_authority_is_silent() {
    let mut bench = Bench::new(Vec::new(), in_step);
    bench.until(|command| matches!(command, Command::AskForLead(_)).then_some(()));
    let asked_at = bench.now;
    while bench.now < asked_at + Duration::from_secs(60) {
        let before = bench.now;
        bench.wait();
        assert!(bench.now - before <= HEARTBEAT);
    }
    let health = bench.lane.health(bench.now);
    assert!(
        health.problems.iter().all(|problem| !problem.contains("turned")),
        "{health:?}"
    );
}

#[test]
fn a_stop_waits_for_what_is_in_flight_and_records_it() {
    let mut bench = Bench::new(vec![stream("a")], |stream_id| Held {
        head: 2,
        ..in_step(stream_id)
    });
    bench.dirty = vec![progress("a", 1, 2)];
    let link = bench.link_up();
    let (name, after) = bench.until(reads);
    bench.page(link, &name, after);
    let call = bench.until(|command| match command {
        Command::Append { call, .. } => Some(*call),
        _ => None,
    });
    bench.feed(Event::Stop);
    assert!(!bench.commands.iter().any(|command| matches!(command, Command::End(_))));
    bench.feed(Event::Answered(link, call, Answer::Acked));
    let recorded = bench.until(|command| match command {
        Command::Record(request, records) => Some((*request, records.clone())),
        Command::End(_) => panic!("the bridge ends before everything is recorded"),
        _ => None,
    });
    let [record] = &recorded.1[..] else {
        panic!("{recorded:?}")
    };
    assert_eq!(record.published, seq(2));
    bench.feed(Event::Recorded(recorded.0, Ok(crate::Recorded::default())));
    bench.until(|command| matches!(command, Command::End(Ok(()))).then_some(()));
}

#[test]
fn the_bridge_waits_for_an_authority_that_is_away_and_ends_at_a_wrong_one() {
    let mut bench = Bench::new(Vec::new(), in_step);
    for class in [RefusalClass::Retry, RefusalClass::Retry, RefusalClass::Fatal] {
        let request = bench.until(|command| match command {
            Command::OpenAuthority(request) => Some(*request),
            _ => None,
        });
        bench.feed(Event::Opened(request, Err(failure(class))));
    }
    bench.until(|command| matches!(command, Command::End(Err(_))).then_some(()));
}
