//! What each call of the module costs: CPU of the host, and how long a single one takes until it is answered. It leaves out those that
//! nobody makes often: `configure`, `trust_issuer`, `rewind_stream` and `bind_nostr_key`.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};
use spacetime_sync_proto::journal::JournalEntry;
use spacetime_sync_proto::{ChainHash, Position, Seq, StreamId, limit};
use spacetime_sync_tests::figures::median;
use spacetime_sync_tests::lane::Lane;
use spacetime_sync_tests::socket::Socket;
use spacetime_sync_tests::words;
use spacetimedb_sdk::__codegen::__sats::u256;
use spacetimedb_sdk::Identity;
use tokio::task::JoinSet;

use crate::background;
use crate::bare::{Cut, make};
use crate::busy::{self, cpu_of};
use crate::measure::{Log, Size};
use crate::report::{Report, two};
use crate::sessions::{issuer, token};

/// Sessions, each of a user of its own, that call at once.
const SESSIONS: usize = 32;
/// How often a single call is made, with nothing else under way.
const ALONE: usize = 50;
/// How often the owner makes each of its calls, and the bridge.
const OF_ONE: usize = 500;
/// Events of the stream that is read.
const EVENTS: u64 = 1_000;
const LIMIT: Duration = Duration::from_secs(60);
const SCOPES: &[&str] = &[
    "sync.subscribe",
    "sync.checkpoint.write",
    "sync.presence.serve",
    "sync.assignment.open",
    "sync.provider",
    "sync.mirror",
];

/// A call that is measured.
struct Measured {
    name: &'static str,
    is_reducer: bool,
    /// How often each caller makes it.
    each: usize,
    /// The arguments of a caller's call.
    arguments: Box<dyn Fn(usize, usize) -> Vec<u8>>,
}

/// A reducer that each session calls so often.
fn reducer(name: &'static str, each: usize, arguments: impl Fn(usize, usize) -> Vec<u8> + 'static) -> Measured {
    Measured {
        name,
        is_reducer: true,
        each,
        arguments: Box::new(arguments),
    }
}

fn procedure(name: &'static str, each: usize, arguments: impl Fn(usize, usize) -> Vec<u8> + 'static) -> Measured {
    Measured {
        is_reducer: false,
        ..reducer(name, each, arguments)
    }
}

/// What clients call, in an order in which each finds what it needs. The last call of each of them is kept for the time
/// that it takes alone.
fn of_clients(stream_id: &StreamId, checkpoints: Vec<Position>) -> Vec<Measured> {
    let [name, asked] = [stream_id.clone(), stream_id.clone()];
    let document = format!(r#"{{"do":"{}"}}"#, "x".repeat(500));
    let (opened, payload) = (document.clone(), document.clone());
    let request = |who: usize, at: usize| format!("request-{who}-{at}");
    let event = |who: usize, at: usize| format!("event-{who}-{at}");
    let in_outbox = limit::OUTBOX_PENDING as usize / SESSIONS;
    vec![
        reducer("upsert_presence", 90, |who, _| {
            words::upsert_presence(&format!("s{who}"), "node", "online", ["eu", "desktop"], &[])
        }),
        reducer("ack_checkpoint", 500, move |_, at| {
            words::ack_checkpoint(&name, &checkpoints[at])
        }),
        reducer("send_signal", 50, |_, _| {
            words::arguments(&("node", "user", "", "typing", 0_u64, 0_u64, ""))
        }),
        reducer("publish_provider_capability", limit::CAPABILITIES, move |who, at| {
            words::arguments(&(
                format!("p{who}"),
                format!("c{at}"),
                1_u64,
                21_u64,
                "eu",
                &document,
                3_600_u64,
            ))
        }),
        reducer("open_compute_assignment", limit::ASSIGNMENTS, move |who, at| {
            words::arguments(&(request(who, at), format!("p{who}"), &opened, 3_600_u64))
        }),
        reducer("update_compute_assignment", limit::ASSIGNMENTS, move |who, at| {
            words::arguments(&(request(who, at), "accept", 1_u64, "accepted", "", ""))
        }),
        reducer("enqueue_bridge_event", in_outbox, move |who, at| {
            words::arguments(&(event(who, at), "nostr", &payload))
        }),
        reducer("mark_bridge_event_sent", in_outbox, move |who, at| {
            words::arguments(&(event(who, at), "published"))
        }),
        procedure("challenge_nostr_key", 15, |_, _| words::arguments(&("node",))),
        procedure("read_audience_key", 500, |_, _| words::arguments(&("",))),
        procedure("read_providers_key", 500, |_, _| Vec::new()),
        procedure("readable_streams", 500, |_, _| words::arguments(&("",))),
        procedure("read_events", 50, move |_, at| words::read_events(&asked, at as u64)),
    ]
}

/// What the owner calls.
fn of_owner(stream_id: &StreamId) -> Vec<Measured> {
    let [granted, revoked, read] = [(); 3].map(|()| stream_id.as_str().to_owned());
    let holder = |at: usize| Identity::from_byte_array([1 + (at % 200) as u8; 32]);
    let rule = ("all", "", 1_000_000_u64, 1_i64 << 50, true);
    vec![
        reducer("grant_stream", OF_ONE, move |_, at| {
            words::arguments(&(holder(at), &granted, 3_600_u64))
        }),
        reducer("revoke_stream", OF_ONE, move |_, at| {
            words::arguments(&(holder(at), &revoked))
        }),
        reducer("set_retention", OF_ONE, move |_, _| {
            words::arguments(&([rule].as_slice(),))
        }),
        reducer("mark_epoch", OF_ONE, |_, at| {
            words::arguments(&("epoch", at as u64, true))
        }),
        reducer("set_compatibility", OF_ONE, |_, _| {
            words::arguments(&("20200101T000000Z", "", 0_u32, u32::MAX))
        }),
        reducer("revoke_session", OF_ONE, |_, at| {
            words::arguments(&(format!("nobody-{at}"),))
        }),
        procedure("read_heads", OF_ONE, move |_, _| {
            words::arguments(&([&read].as_slice(),))
        }),
        procedure("read_streams", OF_ONE, |_, _| words::arguments(&("",))),
    ]
}

/// What the bridge calls, of a database to which none is connected: events one by one, and then the journal's calls in the order in
/// which a bridge makes them, with what an authority keeps.
fn of_bridge(kept: Vec<JournalEntry>) -> anyhow::Result<Vec<Measured>> {
    let [single, framed] = ["bench.single", "bench.framed"].map(StreamId::new);
    let (single, framed) = (single?, framed?);
    let size = Size::Bytes(512);
    let events = Log::new(&single, size).events(OF_ONE);
    let genesis = ChainHash::genesis(&single);
    let bases = std::iter::once(genesis).chain(events.iter().map(|event| event.chain_hash));
    let singles: Vec<Vec<u8>> = bases
        .zip(&events)
        .map(|(base, event)| {
            words::arguments(&(
                single.as_str(),
                event.seq.get(),
                u256::from_be_bytes(*base.as_bytes()),
                event.idempotency_key.as_str(),
                event.kind.as_str(),
                event.payload.as_ref(),
                event.committed_at_us,
            ))
        })
        .collect();
    let frames = make(&mut Log::new(&framed, size), Cut::LIVE, OF_ONE as u64);
    let newest = kept.iter().map(|entry| entry.mark).max().unwrap_or_default();
    Ok(vec![
        reducer("append_sync_event", OF_ONE, move |_, at| singles[at].clone()),
        reducer("append_sync_events", OF_ONE, move |_, at| frames[at].arguments(&framed)),
        reducer("close_journal", OF_ONE, |_, _| words::arguments(&(0_u64,))),
        reducer("bring_back", kept.len(), move |_, at| {
            let JournalEntry { mark, key, document } = &kept[at];
            words::arguments(&([(*mark, key.as_str(), document.as_str())].as_slice(),))
        }),
        reducer("open_journal", OF_ONE, move |_, _| words::arguments(&("epoch", newest))),
        procedure("read_journal", OF_ONE, |_, _| words::arguments(&(100_u64,))),
        reducer("settle_journal", OF_ONE, move |_, _| words::arguments(&(newest,))),
    ])
}

impl Measured {
    async fn call(&self, socket: &mut Socket, who: usize, at: usize) -> anyhow::Result<()> {
        let arguments = (self.arguments)(who, at);
        match self.is_reducer {
            true => socket.reducer(self.name, arguments).await,
            false => socket.procedure(self.name, arguments).await,
        }
    }
}

impl Report {
    pub(crate) async fn calls(&mut self) -> anyhow::Result<()> {
        self.say("what each call of the module costs: CPU of the host, and a single call until it is answered");
        let (lane, _bridge) = busy::lane(&self.cluster).await?;
        let id = StreamId::new("bench.calls")?;
        Log::new(&id, Size::Bytes(512)).append(&lane.authority, EVENTS).await?;
        anyhow::ensure!(lane.published(LIMIT).await, "the stream was not published");
        let page = lane
            .authority
            .read_events(&id, Seq::ZERO, EVENTS as usize, 64 << 20)
            .await?;
        let checkpoints = page.into_iter().map(|event| Position {
            seq: event.seq,
            chain: event.chain_hash,
        });
        let checkpoints = checkpoints.collect();
        let issuer = issuer(&lane).await?;
        let sessions = (0..SESSIONS).map(|who| token(&issuer, &format!("u{who}"), &format!("s{who}"), SCOPES));
        let sessions: Vec<_> = sessions.collect::<anyhow::Result<_>>()?;
        let mut table = serde_json::Map::new();
        self.measured(&lane, &sessions, of_clients(&id, checkpoints), &mut table)
            .await?;
        self.measured(&lane, &[of_file(&lane, "owner.token")?], of_owner(&id), &mut table)
            .await?;
        let kept = lane.authority.kept_journal(0).await?;
        anyhow::ensure!(kept.len() > ALONE, "the authority keeps {} entries", kept.len());
        let without_bridge = Lane::start_on(&self.cluster).await?;
        let bridge = [of_file(&without_bridge, "bridge.token")?];
        self.measured(&without_bridge, &bridge, of_bridge(kept)?, &mut table)
            .await?;
        self.put("calls", Value::Object(table));
        Ok(())
    }

    async fn measured(
        &self,
        lane: &Lane,
        callers: &[String],
        calls: Vec<Measured>,
        table: &mut serde_json::Map<String, Value>,
    ) -> anyhow::Result<()> {
        for call in calls {
            let measured = measure(lane, callers, &call).await;
            let (cpu_us, alone_ms) = measured.with_context(|| call.name.to_owned())?;
            self.say(&format!("  {:<28} {cpu_us:>7.1} µs, alone {alone_ms:.2} ms", call.name));
            let figures = json!({ "host_us": two(cpu_us), "alone_ms": two(alone_ms) });
            table.insert(call.name.to_owned(), figures);
        }
        Ok(())
    }
}

/// The token in a file of the lane.
fn of_file(lane: &Lane, name: &str) -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(lane.path(name))?.trim().to_owned())
}

/// The callers' tokens become connections. All of these make their calls but the last few, and then the first of them makes
/// the rest, one by one. Returns the host's CPU time of a call in microseconds, and the milliseconds that one takes alone.
async fn measure(lane: &Lane, callers: &[String], call: &Measured) -> anyhow::Result<(f64, f64)> {
    let alone = ALONE.min(call.each / 5);
    let at_once = call.each - alone;
    background::at_rest(lane).await;
    let mut sockets = Vec::new();
    for token in callers {
        let opened = Socket::open(lane.server.uri(), &lane.name, Some(token)).await?;
        sockets.push(opened.map_err(|refused| anyhow::anyhow!("refused: {refused:?}"))?);
    }
    let host = lane.server.process().context("the host is not ours")?.id();
    let before = cpu_of(host);
    let mut waiting = JoinSet::new();
    for (who, mut socket) in sockets.into_iter().enumerate() {
        for at in 0..at_once {
            call.call(&mut socket, who, at).await?;
        }
        waiting.spawn(async move {
            socket.answered(at_once, LIMIT).await?;
            Ok::<_, anyhow::Error>((who, socket))
        });
    }
    let answered_all = waiting.join_all().await;
    let spent = cpu_of(host).saturating_sub(before);
    let mut sockets = answered_all.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    sockets.sort_by_key(|(who, _)| *who);
    let (_, mut first) = sockets.swap_remove(0);
    let mut took = Vec::new();
    for at in at_once..call.each {
        let asked = Instant::now();
        call.call(&mut first, 0, at).await?;
        first.answered(1, LIMIT).await?;
        took.push(asked.elapsed().as_secs_f64() * 1e3);
    }
    let cpu_us = spent.as_secs_f64() * 1e6 / (at_once * callers.len()) as f64;
    Ok((cpu_us, median(&mut took)))
}
