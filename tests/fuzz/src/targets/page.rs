//! What a client receives over its connection: pages and rows in wire format, and other inputs in between.
//!
//! Properties: events that are handed out to be applied continue the earlier ones and follow the chain; where they end
//! at a point of the true log, they are the true log. A stopped stream hands out nothing more.

use anyhow::ensure;
use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use spacetime_sync_bindings::{EventPage, SyncEvent};
use spacetime_sync_client::config::{Carries, Reads, StreamBounds};
use spacetime_sync_client::session::stream::{Effect, Input, Mode, Page, Stream, SubscriptionId};
use spacetime_sync_client::{Counters, StaleAnswer};
use spacetime_sync_proto::{Position, Refusal, limit};
use spacetimedb_sdk::__codegen::__lib::bsatn;
use spacetimedb_sdk::u256;

use crate::lane::Log;
use crate::mutate;
use crate::target::{Entry, Seed, Target, Verdict};

pub(super) const PAGE: Entry = Entry {
    name: "page",
    about: "pages and rows, by BSATN, through the client's core",
    dictionary: super::frame::DICTIONARY,
    most: 2 * limit::PAGE_BYTES,
    open: || Ok(Box::new(Pages { log: log()? })),
    seeds,
};

/// The position where the client starts.
const APPLIED: u64 = 4;
const STREAM_KEY: u64 = 7;

pub(super) fn log() -> anyhow::Result<Log> {
    Log::new(
        "runtime.run.1.events",
        &[10, 20, 1, 500, 3, 7, 80, 9, 1, 200, 30, 4, 1_000, 5],
    )
}

struct Pages {
    log: Log,
}

/// The inputs that a stream can get, each with its number. In a fuzzer input each one is preceded by its length.
#[derive(Clone)]
enum Step {
    Page(EventPage),
    Row(SyncEvent),
    Subscribed(u8),
    Disconnected,
    Connected,
    Verify,
    Applied,
    AskAgain,
    Renew,
    Overrun,
    Refused(String),
    GrantLost,
}

fn read(input: &[u8]) -> Option<Vec<Step>> {
    let mut rest = input;
    let mut steps = Vec::new();
    while let [kind, tail @ ..] = rest {
        let (length, tail) = tail.split_first_chunk::<4>()?;
        let (body, tail) = tail.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        rest = tail;
        steps.push(match kind {
            0 => Step::Page(bsatn::from_slice(body).ok()?),
            1 => Step::Row(bsatn::from_slice(body).ok()?),
            2 => Step::Subscribed(body.first().copied().unwrap_or_default()),
            3 => Step::Disconnected,
            4 => Step::Connected,
            5 => Step::Verify,
            6 => Step::Applied,
            7 => Step::AskAgain,
            8 => Step::Renew,
            9 => Step::Overrun,
            10 => Step::Refused(String::from_utf8_lossy(body).into_owned()),
            11 => Step::GrantLost,
            _ => return None,
        });
    }
    Some(steps)
}

fn write(steps: &[Step]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for step in steps {
        let (kind, body) = match step {
            Step::Page(page) => (0, bsatn::to_vec(page).ok()?),
            Step::Row(row) => (1, bsatn::to_vec(row).ok()?),
            Step::Subscribed(id) => (2, vec![*id]),
            Step::Disconnected => (3, vec![]),
            Step::Connected => (4, vec![]),
            Step::Verify => (5, vec![]),
            Step::Applied => (6, vec![]),
            Step::AskAgain => (7, vec![]),
            Step::Renew => (8, vec![]),
            Step::Overrun => (9, vec![]),
            Step::Refused(text) => (10, text.clone().into_bytes()),
            Step::GrantLost => (11, vec![]),
        };
        out.push(kind);
        out.extend_from_slice(&u32::try_from(body.len()).ok()?.to_le_bytes());
        out.extend_from_slice(&body);
    }
    Some(out)
}

impl Target for Pages {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let Some(steps) = read(input) else {
            return Ok(Verdict::Refused);
        };
        let start = self.log.at(APPLIED).unwrap_or_else(|| self.log.head());
        let mut watched = Watched {
            log: &self.log,
            stream: Stream::new(start, bounds()),
            counters: Counters::default(),
            applied: start,
            cursor: start,
            handed_out: 0,
        };
        watched.step(Input::Connected)?;
        for step in steps {
            let input = match step {
                Step::Page(page) => Input::Page(Page::from(page)),
                Step::Row(row) => Input::Frame(spacetime_sync_client::frame_row(row)),
                Step::Subscribed(id) => Input::Subscribed(SubscriptionId(id.into())),
                Step::Disconnected => Input::Disconnected,
                Step::Connected => Input::Connected,
                Step::Verify => Input::Verify,
                Step::Applied => {
                    watched.applied = watched.cursor;
                    Input::Applied {
                        to: watched.cursor,
                        released: watched.stream.unapplied_bytes(),
                    }
                }
                Step::AskAgain => Input::AskAgain,
                Step::Renew => Input::Renew,
                Step::Overrun => Input::Overrun,
                Step::Refused(text) => Refusal::from_wire(&text).map_or(Input::ReadFailed, Input::ReadRefused),
                Step::GrantLost => Input::GrantLost,
            };
            watched.step(input)?;
        }
        Ok(Verdict::taken(watched.handed_out > 0))
    }

    fn vary(&self, rng: &mut StdRng, input: &[u8]) -> Option<Vec<u8>> {
        let mut steps = read(input)?;
        let at = rng.random_range(0..=steps.len());
        match steps.get_mut(at) {
            Some(step) if rng.random_bool(0.7) => vary_step(rng, step),
            Some(_) if rng.random_bool(0.3) => drop(steps.remove(at)),
            Some(step) if rng.random_bool(0.3) => {
                let again = step.clone();
                steps.insert(at, again);
            }
            Some(_) | None => {
                let id = rng.random_range(1..4);
                let any = [
                    Step::Subscribed(id),
                    Step::Disconnected,
                    Step::Connected,
                    Step::Verify,
                    Step::Applied,
                    Step::AskAgain,
                    Step::Renew,
                    Step::Overrun,
                    Step::Refused(r#"{"code":"forbidden_stream","message":""}"#.to_owned()),
                    Step::GrantLost,
                    Step::Row(self.row(rng.random_range(1..14))),
                ];
                steps.extend(any.choose(rng).cloned());
            }
        }
        write(&steps)
    }
}

impl Pages {
    fn row(&self, first: u64) -> SyncEvent {
        row(&self.log, first, (first + 2).min(self.log.events.len() as u64))
    }
}

fn vary_step(rng: &mut StdRng, step: &mut Step) {
    match step {
        Step::Page(page) => match rng.random_range(0..8) {
            0 => page.head_seq = near(rng, page.head_seq),
            1 => page.oldest_seq = near(rng, page.oldest_seq),
            2 => page.head_chain = flipped(rng, page.head_chain),
            3 if !page.frames.is_empty() => {
                let (from, to) = (
                    rng.random_range(0..page.frames.len()),
                    rng.random_range(0..page.frames.len()),
                );
                page.frames.swap(from, to);
            }
            4 if !page.frames.is_empty() => drop(page.frames.remove(rng.random_range(0..page.frames.len()))),
            5 if !page.frames.is_empty() => {
                let at = rng.random_range(0..page.frames.len());
                page.frames.insert(at, page.frames[at].clone());
            }
            _ => {
                let at = rng.random_range(0..page.frames.len().max(1));
                if let Some(row) = page.frames.get_mut(at) {
                    vary_row(rng, row);
                }
            }
        },
        Step::Row(row) => vary_row(rng, row),
        Step::Subscribed(id) => *id = rng.random_range(0..4),
        Step::Refused(text) => {
            if let Some(changed) = mutate::json(rng, text.as_bytes(), &[b"token_expired", b"below_window"]) {
                *text = String::from_utf8_lossy(&changed).into_owned();
            }
        }
        Step::Disconnected
        | Step::Connected
        | Step::Verify
        | Step::Applied
        | Step::AskAgain
        | Step::Renew
        | Step::Overrun
        | Step::GrantLost => {}
    }
}

fn vary_row(rng: &mut StdRng, row: &mut SyncEvent) {
    match rng.random_range(0..6) {
        0 => row.first_seq = near(rng, row.first_seq),
        1 => row.last_seq = near(rng, row.last_seq),
        2 => row.base_chain = flipped(rng, row.base_chain),
        3 => mutate::bytes(
            rng,
            &mut row.frame,
            &[],
            super::frame::DICTIONARY,
            limit::FRAME_BYTES + 10,
        ),
        _ => {
            if let Some(changed) = mutate::protobuf(rng, &row.frame, super::frame::DICTIONARY) {
                row.frame = changed;
            }
        }
    }
}

fn near(rng: &mut StdRng, seq: u64) -> u64 {
    match rng.random_range(0..6) {
        0 => 0,
        1 => u64::MAX,
        2 => i64::MAX as u64,
        _ => seq.wrapping_add(rng.random_range(0..5)).wrapping_sub(2),
    }
}

fn flipped(rng: &mut StdRng, chain: u256) -> u256 {
    chain ^ (u256::from(1u8) << rng.random_range(0..256u32))
}

/// A stream, and what the test knows about it.
struct Watched<'a> {
    log: &'a Log,
    stream: Stream,
    counters: Counters,
    applied: Position,
    cursor: Position,
    handed_out: usize,
}

impl Watched<'_> {
    fn step(&mut self, input: Input) -> anyhow::Result<()> {
        let stopped = matches!(self.stream.mode(), Mode::Stopped(_));
        for effect in self.stream.step(input, &mut self.counters) {
            let Effect::Apply(batch) = effect else { continue };
            ensure!(!stopped, "a stopped stream hands out events");
            ensure!(
                batch.from == self.cursor || batch.from == self.applied,
                "it continues from {:?}, but it was at {:?}",
                batch.from,
                self.cursor
            );
            let (mut at, mut size) = (batch.from, 0);
            for event in &batch.events {
                ensure!(event.seq == at.seq.next(), "{} after {}", event.seq, at.seq);
                ensure!(event.follows(&at.chain), "{} does not follow", event.seq);
                ensure!(!event.payload.is_empty() && event.payload.len() <= limit::PAYLOAD_BYTES);
                size += event.payload.len();
                at = Position {
                    seq: event.seq,
                    chain: event.chain_hash,
                };
            }
            ensure!(
                at == batch.to && at != batch.from,
                "it claims to end at {:?}, not at {at:?}",
                batch.to
            );
            ensure!(size <= limit::FRAME_BYTES && batch.events.len() <= limit::FRAME_EVENTS);
            if self.log.at(at.seq.get()) == Some(at) {
                let from = batch.from.seq.get() as usize;
                for (found, expected) in batch.events.iter().zip(&self.log.events[from..]) {
                    // An altered payload is detected by its hash before it is applied, so the hash must be the log's.
                    let mut found = found.clone();
                    if !found.payload_matches() {
                        found.payload = expected.payload.clone();
                    }
                    ensure!(found == *expected, "found {found:?}, expected {expected:?}");
                }
            }
            self.handed_out += batch.events.len();
            self.cursor = batch.to;
        }
        let still = matches!(self.stream.mode(), Mode::Stopped(_));
        ensure!(!stopped || still, "a stopped stream continues");
        ensure!(self.stream.applied() == self.applied);
        Ok(())
    }
}

fn bounds() -> StreamBounds {
    StreamBounds {
        carries: Carries::Events,
        unapplied_bytes: 8_000,
        resume_bytes: 2_000,
        subscribe_within_events: 4,
        subscribe_within_bytes: 4_000,
        apply_attempts: 3,
        recovery_attempts: 3,
        history: false,
        on_stale: StaleAnswer::Stop,
        reads: Reads::Confirmed,
        reach_bytes: 4_000,
    }
}

fn row(log: &Log, first: u64, last: u64) -> SyncEvent {
    SyncEvent {
        stream_key: STREAM_KEY,
        first_seq: first,
        last_seq: last,
        base_chain: column(log.at(first - 1)),
        last_at: 0,
        frame: log.frame(first, last).to_vec(),
        section: 0,
    }
}

fn column(at: Option<Position>) -> u256 {
    at.map_or(u256::ZERO, |at| u256::from_be_bytes(*at.chain.as_bytes()))
}

fn seeds() -> anyhow::Result<Vec<Seed>> {
    let log = log()?;
    let page = |head: u64, frames: &[(u64, u64)]| {
        Step::Page(EventPage {
            stream_key: STREAM_KEY,
            head_seq: head,
            head_chain: column(log.at(head)),
            oldest_seq: 1,
            durable_reads: true,
            frames: frames.iter().map(|(first, last)| row(&log, *first, *last)).collect(),
        })
    };
    let live = |first, last| Step::Row(row(&log, first, last));
    let stories: Vec<(&str, Vec<Step>)> = vec![
        ("page", vec![page(14, &[(3, 6), (7, 9), (10, 14)]), Step::Applied]),
        (
            "live",
            vec![
                page(6, &[(5, 6)]),
                Step::Applied,
                Step::Subscribed(1),
                live(7, 8),
                live(8, 11),
                Step::Applied,
                Step::Renew,
                live(12, 13),
                Step::Subscribed(2),
            ],
        ),
        (
            "hole",
            vec![
                page(4, &[]),
                Step::Subscribed(1),
                live(9, 10),
                live(7, 8),
                page(12, &[(5, 8), (9, 12)]),
            ],
        ),
        (
            "lost",
            vec![
                page(9, &[(5, 7)]),
                Step::Disconnected,
                Step::Connected,
                page(9, &[(8, 9)]),
                Step::Applied,
                Step::GrantLost,
                Step::AskAgain,
                Step::Refused(r#"{"code":"forbidden_stream","message":"no grant"}"#.to_owned()),
                Step::AskAgain,
                Step::Verify,
            ],
        ),
        (
            "overrun",
            vec![
                page(5, &[(5, 5)]),
                Step::Subscribed(1),
                live(6, 13),
                Step::Overrun,
                Step::Applied,
            ],
        ),
    ];
    let written = stories
        .into_iter()
        .filter_map(|(name, steps)| Some(Seed::new(name, write(&steps)?)));
    Ok(written.collect())
}
