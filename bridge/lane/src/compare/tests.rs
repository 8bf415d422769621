mod refill;
mod suspect;
mod walk;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use spacetime_sync_proto::{ChainHash, Seq, StreamProgress};

use super::*;
use crate::ids::Ids;
use crate::streams::Verdict;

/// How long after all streams were compared to compare them again.
const EVERY: Duration = Duration::from_secs(300);

/// A comparison of at most two streams in one batch, on a link.
struct Bench {
    compare: Compare,
    now: Duration,
    ids: Ids,
    dice: SmallRng,
}

fn streams(names: &[&str]) -> Vec<StreamId> {
    names.iter().map(|name| StreamId::new(name).unwrap()).collect()
}

fn failure(class: RefusalClass) -> Failure {
    Failure {
        class,
        refusal: None,
        text: "no".to_owned(),
    }
}

/// Both sides end every stream here.
fn head() -> Position {
    Position {
        seq: Seq::new(3).unwrap(),
        chain: ChainHash::from_bytes([3; 32]),
    }
}

impl Bench {
    fn new() -> Self {
        let (mut compare, mut ids) = (Compare::new(2, EVERY), Ids::default());
        let now = Duration::from_secs(1);
        compare.open(now, ids.link());
        Self {
            compare,
            now,
            ids,
            dice: SmallRng::seed_from_u64(1),
        }
    }

    fn step<T>(&mut self, step: impl FnOnce(&mut Compare, &mut Turn<'_>) -> T) -> (T, Vec<Command>) {
        let mut out = Vec::new();
        let mut turn = Turn::new(self.now, &mut self.ids, &mut self.dice, &mut out);
        (step(&mut self.compare, &mut turn), out)
    }

    fn turn(&mut self) -> Vec<Command> {
        self.step(Compare::turn).1
    }

    /// Lets time pass until something is due.
    fn wait(&mut self) -> Vec<Command> {
        self.now = self.compare.next_due().unwrap();
        self.turn()
    }

    fn listed(&mut self, request: RequestId, listed: Result<&[&str], Failure>) -> Vec<Command> {
        let listed = listed.map(streams);
        self.step(|compare, turn| compare.listed(request, listed, |_| false, turn))
            .1
    }

    fn heads(&mut self, request: RequestId, heads: Result<usize, Failure>) -> (Found, Vec<Command>) {
        let heads = heads.map(|heads| vec![head(); heads]);
        self.step(|compare, turn| compare.heads(request, heads, turn))
    }

    fn standings(&mut self, request: RequestId, names: Result<&[&str], Failure>) -> (Found, Vec<Command>) {
        let standing = |stream_id| {
            Ok(Standing {
                progress: StreamProgress {
                    stream_id,
                    head_seq: head().seq,
                    published_seq: head().seq,
                    floor_seq: Seq::ZERO,
                },
                chain: Some(head().chain),
            })
        };
        let standings = names.map(|names| streams(names).into_iter().map(standing).collect());
        self.step(|compare, turn| compare.standings(request, standings, &Policy::default(), turn))
    }

    /// Answers both questions about the streams of a batch, which are in step. Returns what follows.
    fn in_step(&mut self, request: RequestId, names: &[&str]) -> Vec<Command> {
        let (_, asked) = self.heads(request, Ok(names.len()));
        let (request, at) = asks_authority(&asked);
        assert_eq!(at, names);
        let (found, out) = self.standings(request, Ok(names));
        let seq = head().seq;
        let verdict = |stream_id| {
            let (verdict, held, head) = (Verdict::InStep(seq), head(), seq);
            (stream_id, Finding::Compared { verdict, held, head })
        };
        assert_eq!(
            found.findings,
            streams(names).into_iter().map(verdict).collect::<Vec<_>>()
        );
        out
    }
}

/// The question for a page of streams, and after which stream it begins.
fn lists(commands: &[Command]) -> (RequestId, Option<String>) {
    match commands {
        [
            ..,
            Command::ListStreams {
                request,
                after,
                limit: 2,
            },
        ] => (*request, after.as_ref().map(StreamId::to_string)),
        other => panic!("{other:?}"),
    }
}

/// The first question for heads, and of which streams.
fn asks_module(commands: &[Command]) -> (RequestId, Vec<String>) {
    match commands {
        [Command::ReadHeads(_, request, streams), ..] => (*request, streams.iter().map(StreamId::to_string).collect()),
        other => panic!("{other:?}"),
    }
}

fn asks_authority(commands: &[Command]) -> (RequestId, Vec<String>) {
    match commands {
        [Command::ReadStandings(request, at)] => (*request, at.iter().map(|(of, _)| of.to_string()).collect()),
        other => panic!("{other:?}"),
    }
}

fn not_compared(name: &str, why: &str) -> Command {
    let stream_id = StreamId::new(name).unwrap();
    let why = why.to_owned();
    Command::Tell(Notice::NotCompared { stream_id, why })
}

#[test]
fn the_sweep_compares_every_stream_and_says_how_many_and_how_long() {
    let mut bench = Bench::new();
    let (request, after) = lists(&bench.turn());
    assert_eq!(after, None);
    let (request, _) = asks_module(&bench.listed(request, Ok(&["a", "b"])));
    assert_eq!(bench.compare.next_due(), None);
    assert_eq!(bench.in_step(request, &["a", "b"]), []);
    assert_eq!(
        *bench.compare.coverage(),
        Coverage::Through(StreamId::new("b").unwrap())
    );
    let (request, after) = lists(&bench.wait());
    assert_eq!(after.as_deref(), Some("b"));
    let (request, _) = asks_module(&bench.listed(request, Ok(&["c"])));
    let took = Duration::from_secs(7);
    bench.now += took;
    let all_compared = Command::Tell(Notice::AllCompared { streams: 3, took });
    assert_eq!(bench.in_step(request, &["c"]), [all_compared]);
    assert_eq!(*bench.compare.coverage(), Coverage::All);
    assert_eq!(bench.turn(), []);
}

#[test]
fn the_sweep_compares_every_stream_again_later_and_says_so_once() {
    let mut bench = Bench::new();
    let (request, _) = lists(&bench.turn());
    let (request, _) = asks_module(&bench.listed(request, Ok(&["a"])));
    assert_eq!(bench.in_step(request, &["a"]).len(), 1);
    assert_eq!(bench.compare.next_due(), Some(bench.now + EVERY));
    let (request, after) = lists(&bench.wait());
    assert_eq!(after, None);
    // A stream that flows is compared again as well.
    let listed = streams(&["a", "b"]);
    let (_, asked) = bench.step(|compare, turn| compare.listed(request, Ok(listed), |_| true, turn));
    let (request, names) = asks_module(&asked);
    assert_eq!(names, ["a", "b"]);
    assert_eq!(*bench.compare.coverage(), Coverage::All);
    // What no longer fits is compared once more, alone: this answer may be outdated.
    let (_, asked) = bench.heads(request, Ok(2));
    let (request, _) = asks_authority(&asked);
    let standing = |name: &str, chain: u8| {
        Ok(Standing {
            progress: StreamProgress {
                stream_id: StreamId::new(name).unwrap(),
                head_seq: head().seq,
                published_seq: head().seq,
                floor_seq: Seq::ZERO,
            },
            chain: Some(ChainHash::from_bytes([chain; 32])),
        })
    };
    let standings = Ok(vec![standing("a", 3), standing("b", 4)]);
    let (found, _) = bench.step(|compare, turn| compare.standings(request, standings, &Policy::default(), turn));
    assert_eq!((found.findings, found.doubts), (vec![], streams(&["b"])));
    let (request, after) = lists(&bench.wait());
    assert_eq!(after.as_deref(), Some("b"));
    assert_eq!(bench.listed(request, Ok(&[])), []);
    assert_eq!(bench.compare.next_due(), Some(bench.now + EVERY));
}

#[test]
fn the_sweep_repeats_a_page_that_could_not_be_listed_or_compared_after_a_wait() {
    let mut bench = Bench::new();
    let (request, _) = lists(&bench.turn());
    let away = || failure(RefusalClass::Retry);
    let told = bench.listed(request, Err(away()));
    let wait = bench.compare.next_due().unwrap() - bench.now;
    let why = "no".to_owned();
    assert_eq!(told, [Command::Tell(Notice::NotListed { why, wait })]);
    assert!(wait > Duration::ZERO && bench.turn().is_empty());
    let (request, after) = lists(&bench.wait());
    assert_eq!(after, None);
    let (request, _) = asks_module(&bench.listed(request, Ok(&["a", "b"])));
    let (found, told) = bench.heads(request, Err(away()));
    assert_eq!((found.findings, told), (vec![], vec![not_compared("a", "no")]));
    assert!(bench.compare.next_due() > Some(bench.now) && bench.turn().is_empty());
    let (request, after) = lists(&bench.wait());
    assert_eq!(after, None);
    asks_module(&bench.listed(request, Ok(&["a", "b"])));
}

#[test]
fn an_answer_finds_its_batch_whichever_comes_first() {
    let mut bench = Bench::new();
    bench.compare.want(StreamId::new("x").unwrap());
    let asked = bench.turn();
    let (urgent, names) = asks_module(&asked);
    assert_eq!(names, ["x"]);
    let (sweep, _) = asks_module(&bench.listed(lists(&asked).0, Ok(&["a", "b"])));
    let (sweep, of_sweep) = asks_authority(&bench.heads(sweep, Ok(2)).1);
    let (urgent, of_urgent) = asks_authority(&bench.heads(urgent, Ok(1)).1);
    assert_eq!(
        (of_sweep, of_urgent),
        (vec!["a".to_owned(), "b".to_owned()], vec!["x".to_owned()])
    );
    let of = |found: &Found| found.findings.iter().map(|(of, _)| of.to_string()).collect::<Vec<_>>();
    assert_eq!(of(&bench.standings(sweep, Ok(&["a", "b"])).0), ["a", "b"]);
    assert_eq!(of(&bench.standings(urgent, Ok(&["x"])).0), ["x"]);
}

#[test]
fn a_stream_that_wants_to_flow_hears_that_it_could_not_be_compared() {
    for (heads, why) in [
        (Err(failure(RefusalClass::Retry)), "no"),
        (Ok(0), "expected 1 heads, found 0"),
    ] {
        let mut bench = Bench::new();
        bench.compare.want(StreamId::new("x").unwrap());
        let (request, _) = asks_module(&bench.turn());
        let (found, told) = bench.heads(request, heads);
        assert_eq!(found.findings, [(StreamId::new("x").unwrap(), Finding::NotCompared)]);
        assert_eq!(told, [not_compared("x", why)]);
    }
}

#[test]
fn a_refusal_of_the_module_costs_the_link_if_it_is_fatal_and_otherwise_its_stream() {
    for (class, drop_link) in [
        (RefusalClass::Fatal, Some("no".to_owned())),
        (RefusalClass::Reject, None),
    ] {
        let mut bench = Bench::new();
        bench.compare.want(StreamId::new("x").unwrap());
        let (request, _) = asks_module(&bench.turn());
        let (found, told) = bench.heads(request, Err(failure(class)));
        assert_eq!((&found.drop_link, told), (&drop_link, vec![]));
        let broken = Finding::Broken(HaltReason::BrokenLog("no".to_owned()));
        let broken = drop_link.is_none().then(|| (StreamId::new("x").unwrap(), broken));
        assert_eq!(found.findings, Vec::from_iter(broken));
    }
}

#[test]
fn a_page_that_fails_for_good_is_halved_while_the_sweep_goes_on() {
    let mut bench = Bench::new();
    let (request, _) = lists(&bench.turn());
    let (request, _) = asks_module(&bench.listed(request, Ok(&["a", "b"])));
    let (request, _) = asks_authority(&bench.heads(request, Ok(2)).1);
    let (found, _) = bench.standings(request, Err(failure(RefusalClass::Fatal)));
    assert!(found.findings.is_empty() && found.drop_link.is_none());
    let asked = bench.wait();
    assert_eq!(lists(&asked).1.as_deref(), Some("b"));
    let (request, half) = asks_module(&asked);
    assert_eq!(half, ["a"]);
    assert_eq!(bench.in_step(request, &["a"]), []);
    assert_eq!(asks_module(&bench.turn()).1, ["b"]);
}

#[test]
fn a_new_link_compares_everything_anew_and_nothing_that_only_the_old_one_wanted() {
    let mut bench = Bench::new();
    let (request, _) = lists(&bench.turn());
    let (request, _) = asks_module(&bench.listed(request, Ok(&["a", "b"])));
    bench.in_step(request, &["a", "b"]);
    bench.compare.want(StreamId::new("x").unwrap());
    bench.compare.close();
    assert!(!bench.compare.is_open() && *bench.compare.coverage() == Coverage::None);
    assert_eq!((bench.turn(), bench.compare.next_due()), (vec![], None));
    bench.compare.open(bench.now, bench.ids.link());
    let asked = bench.turn();
    assert_eq!((lists(&asked).1, asked.len()), (None, 1));
}

#[test]
fn in_a_later_round_what_cannot_be_read_raises_a_doubt_and_halts_nothing() {
    let mut bench = Bench::new();
    let (request, _) = lists(&bench.turn());
    let (request, _) = asks_module(&bench.listed(request, Ok(&["a"])));
    bench.in_step(request, &["a"]);
    let later = |bench: &mut Bench| {
        let (request, _) = lists(&bench.wait());
        asks_module(&bench.listed(request, Ok(&["a"]))).0
    };
    let request = later(&mut bench);
    let (_, asked) = bench.heads(request, Ok(1));
    let (request, _) = asks_authority(&asked);
    let (found, _) = bench.step(|compare, turn| {
        let standings = Ok(vec![Err("not a hash".to_owned())]);
        compare.standings(request, standings, &Policy::default(), turn)
    });
    assert_eq!((found.findings, found.doubts), (vec![], streams(&["a"])));
    let request = later(&mut bench);
    let (found, _) = bench.heads(request, Err(failure(RefusalClass::Reject)));
    assert_eq!((found.findings, found.doubts), (vec![], streams(&["a"])));
}

#[test]
fn in_the_first_round_a_stream_that_cannot_be_read_halts() {
    let mut bench = Bench::new();
    let (request, _) = lists(&bench.turn());
    let (request, _) = asks_module(&bench.listed(request, Ok(&["a"])));
    let (found, _) = bench.heads(request, Err(failure(RefusalClass::Reject)));
    assert!(
        matches!(found.findings[..], [(_, Finding::Broken(HaltReason::BrokenLog(_)))]) && found.doubts.is_empty(),
        "{found:?}"
    );
}
