//! Whole connections in memory: a client and a server of whom the test sees every byte.

use std::sync::atomic::{AtomicBool, Ordering};

use spacetimedb_client_api_messages::websocket::v2::{
    CallProcedure, CallProcedureFlags, ClientMessage, QueryRows, QuerySetId, ServerMessage, Subscribe,
    SubscribeApplied, SubscriptionError, Unsubscribe, UnsubscribeApplied, UnsubscribeFlags,
};
use spacetimedb_lib::bsatn;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::yield_now;

use super::*;
use crate::decide::Limits;

/// So often a test lets the gate have its turn before it calls something done, or lost.
const TURNS: usize = 1_000;
const SOON: Duration = Duration::from_millis(1);
const LATER: Duration = Duration::from_secs(600);
/// A ping of the server.
const PING: [u8; 4] = [0x89, 2, 0, 1];
const PRESENCE: &str = "SELECT * FROM session_presence WHERE audience_key = 7";

/// A session that may do anything at once, but for a subscription while another one is not answered.
#[derive(Default)]
struct OneByOne {
    is_asking: AtomicBool,
    subscribed: AtomicU64,
}

impl Account for OneByOne {
    fn reserve(&self, _: Asked, now: Instant) -> Instant {
        now
    }

    fn begin(&self, now: Instant) -> Result<(), Instant> {
        let is_busy = self.is_asking.swap(true, Ordering::Relaxed);
        if is_busy { Err(now + SOON) } else { Ok(()) }
    }

    fn answered(&self) {
        self.is_asking.store(false, Ordering::Relaxed);
    }

    fn subscribed(&self, bytes: u64, _: Instant, _: Instant) {
        self.subscribed.fetch_add(bytes, Ordering::Relaxed);
    }

    fn too_much(&self) {}
}

/// The ends of a connection.
struct Ends<'a> {
    client: DuplexStream,
    server: DuplexStream,
    end: oneshot::Sender<Ending>,
    counters: &'a Counters,
}

/// How a connection is set up.
struct Setup {
    /// What the way to the client holds, and the way to the server.
    ways: (usize, usize),
    /// What the gate holds for the client.
    bytes: usize,
    /// What it holds for everybody.
    pool: usize,
}

/// Room for everything.
const ROOMY: Setup = Setup {
    ways: (1 << 20, 1 << 20),
    bytes: 1 << 20,
    pool: 1 << 20,
};

impl Setup {
    /// Runs a connection while a test plays both of its ends.
    async fn run(self, play: impl AsyncFnOnce(Ends<'_>)) -> Ending {
        self.run_for(&OneByOne::default(), play).await
    }

    /// The same for a session that has other connections.
    async fn run_for(self, account: &OneByOne, play: impl AsyncFnOnce(Ends<'_>)) -> Ending {
        let (client, of_client) = duplex(self.ways.0);
        let (server, of_server) = duplex(self.ways.1);
        let (end, told) = oneshot::channel();
        let (counters, pool) = (Counters::default(), Pool::new(self.pool));
        let limits = Limits {
            subscriptions: 4,
            stream_subscriptions: 2,
        };
        let terms = Terms {
            connection: Connection::new("c2".repeat(32), limits),
            message_bytes: 1_000,
            subscription_bytes: 10_000,
            bounds: Bounds {
                bytes: self.bytes,
                slow_after: LATER,
            },
            expires: Instant::now() + LATER,
            told,
            account,
            counters: &counters,
            pool: &pool,
        };
        let ends = Ends {
            client,
            server,
            end,
            counters: &counters,
        };
        let ending = tokio::join!(relay(of_client, of_server, terms), play(ends)).0;
        assert_eq!(pool.held(), 0, "what was held is given back");
        ending
    }
}

async fn until(mut is: impl FnMut() -> bool) {
    for _ in 0..TURNS {
        if is() {
            return;
        }
        yield_now().await;
    }
    panic!("it does not become so");
}

/// What arrives next, if anything does.
async fn next(from: &mut DuplexStream) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 1 << 16];
    let nothing = async {
        for _ in 0..TURNS {
            yield_now().await;
        }
    };
    let read = tokio::select! {
        biased;
        read = from.read(&mut bytes) => read.unwrap(),
        () = nothing => return None,
    };
    bytes.truncate(read);
    Some(bytes)
}

/// A frame of the server.
fn frame(byte: u8, length: u16) -> Vec<u8> {
    let mut bytes = vec![0x82, 126];
    bytes.extend(length.to_be_bytes());
    bytes.resize(4 + usize::from(length), byte);
    bytes
}

/// A client's question for a page.
fn question() -> BytesMut {
    let message = ClientMessage::CallProcedure(CallProcedure {
        request_id: 1,
        flags: CallProcedureFlags::Default,
        procedure: "read_events".into(),
        args: vec![0; 200].into(),
    });
    let mut bytes = BytesMut::new();
    frames::message(bsatn::to_vec(&message).unwrap(), [1, 2, 3, 4], &mut bytes);
    bytes
}

/// A client's subscription.
fn subscription(id: u32, query: &str) -> BytesMut {
    let message = ClientMessage::Subscribe(Subscribe {
        request_id: id,
        query_set_id: QuerySetId { id },
        query_strings: Box::new([query.into()]),
    });
    let mut bytes = BytesMut::new();
    frames::message(bsatn::to_vec(&message).unwrap(), [1, 2, 3, 4], &mut bytes);
    bytes
}

#[tokio::test]
async fn who_is_ended_gets_the_rest_of_one_frame_the_reason_and_nothing_more() {
    for ending in [Ending::Revoked, Ending::Expired, Ending::Breach(Breach::Malformed)] {
        let setup = Setup {
            ways: (64, 1 << 20),
            bytes: 1 << 20,
            pool: 1 << 20,
        };
        let ended = setup.run(async |mut ends| {
            for byte in 1..=3 {
                ends.server.write_all(&frame(byte, 1_000)).await.unwrap();
            }
            // The third frame is not even whole.
            ends.server.write_all(&frame(4, 1_000)[..100]).await.unwrap();
            let mut heard = vec![0; 10];
            ends.client.read_exact(&mut heard).await.unwrap();
            until(|| ends.counters.bytes.load(Ordering::Relaxed) == 3 * 1_004 + 100).await;
            ends.end.send(ending).unwrap();
            ends.client.read_to_end(&mut heard).await.unwrap();
            let (first, last) = heard.split_at(1_004.min(heard.len()));
            assert_eq!(first, frame(1, 1_000), "{ending:?}");
            let mut reason = BytesMut::new();
            frames::close_client(&ending.refusal().unwrap(), &mut reason);
            assert_eq!(last, reason, "{ending:?}");
        });
        assert_eq!(ended.await, ending);
    }
}

/// What SpacetimeDB says about a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Begins,
    Ends,
    Refused,
}

/// Frames of the server with an answer. Between them and after them it says something else.
fn answer(kind: Answer, lengths: &[u16]) -> Vec<u8> {
    let rows = QueryRows { tables: Box::default() };
    let (request_id, query_set_id) = (1, QuerySetId { id: 1 });
    let message = match kind {
        Answer::Begins => ServerMessage::SubscribeApplied(SubscribeApplied {
            request_id,
            query_set_id,
            rows,
        }),
        Answer::Ends => ServerMessage::UnsubscribeApplied(UnsubscribeApplied {
            request_id,
            query_set_id,
            rows: Some(rows),
        }),
        Answer::Refused => ServerMessage::SubscriptionError(SubscriptionError {
            request_id: Some(request_id),
            query_set_id,
            error: "".into(),
        }),
    };
    // Behind the tag that says that the message is not compressed.
    let message = [vec![0], bsatn::to_vec(&message).unwrap()].concat();
    let mut bytes = Vec::new();
    for (at, length) in lengths.iter().enumerate() {
        let mut part = frame(0, *length);
        part[0] = if at == 0 { 2 } else { 0 } | if at + 1 == lengths.len() { 0x80 } else { 0 };
        if at == 0 {
            part[4..4 + message.len()].copy_from_slice(&message);
        }
        bytes.extend(part);
        bytes.extend(PING);
    }
    bytes
}

#[tokio::test]
async fn a_subscription_that_brings_too_much_ends_the_connection() {
    let too_much = Ending::Breach(Breach::TooMuch);
    let stream = format!(
        "SELECT * FROM sync_event WHERE section = {} AND last_seq > 0 AND first_seq <= 100",
        7_u128 << 64
    );
    let stream = stream.as_str();
    for (query, gives_up, kind, lengths, expected) in [
        (stream, false, Answer::Begins, &[10_000][..], Ending::Gone),
        (stream, false, Answer::Begins, &[4_000, 3_000, 3_000], Ending::Gone),
        (stream, false, Answer::Ends, &[10_001], Ending::Gone),
        // Nobody can ask for less of it.
        (PRESENCE, false, Answer::Begins, &[10_001], Ending::Gone),
        (stream, false, Answer::Begins, &[10_001], too_much),
        (stream, false, Answer::Begins, &[4_000, 3_000, 3_001], too_much),
        (stream, true, Answer::Begins, &[10_001], too_much),
    ] {
        let ended = ROOMY.run(async |mut ends| {
            ends.client.write_all(&subscription(1, query)).await.unwrap();
            if gives_up {
                let message = ClientMessage::Unsubscribe(Unsubscribe {
                    request_id: 2,
                    query_set_id: QuerySetId { id: 1 },
                    flags: UnsubscribeFlags::Default,
                });
                let mut given_up = BytesMut::new();
                frames::message(bsatn::to_vec(&message).unwrap(), [1, 2, 3, 4], &mut given_up);
                ends.client.write_all(&given_up).await.unwrap();
            }
            until(|| ends.counters.passed.load(Ordering::Relaxed) == 1 + u64::from(gives_up)).await;
            // However it is cut.
            for byte in answer(kind, lengths) {
                if ends.server.write_all(&[byte]).await.is_err() {
                    break;
                }
            }
        });
        assert_eq!(ended.await, expected, "{query} {gives_up} {kind:?} {lengths:?}");
    }
}

#[tokio::test]
async fn the_next_subscription_passes_when_the_last_one_is_answered_whole() {
    let account = OneByOne::default();
    let kinds = [Answer::Begins, Answer::Ends, Answer::Refused];
    let lengths: [&[u16]; 3] = [&[300, 0, 100], &[300], &[300, 0]];
    let ended = ROOMY.run_for(&account, async |mut ends| {
        let asked = [1, 2, 3].map(|id| subscription(id, ["SELECT * FROM sync_contract", PRESENCE][id as usize % 2]));
        for words in &asked {
            ends.client.write_all(words).await.unwrap();
        }
        for (words, (kind, lengths)) in asked.iter().zip(kinds.into_iter().zip(lengths)) {
            assert_eq!(next(&mut ends.server).await.map(|heard| heard.len()), Some(words.len()));
            let said = answer(kind, lengths);
            // All but the last byte of the answer, behind which a ping comes.
            let (most, rest) = said.split_at(said.len() - PING.len() - 1);
            ends.server.write_all(most).await.unwrap();
            assert_eq!(next(&mut ends.server).await, None, "{kind:?}");
            ends.server.write_all(rest).await.unwrap();
        }
        until(|| !account.is_asking.load(Ordering::Relaxed)).await;
        drop(ends.client);
    });
    assert_eq!(ended.await, Ending::Gone);
    let subscribed = account.subscribed.into_inner();
    assert_eq!(subscribed, 400, "what ends a subscription was charged with it");
}

#[tokio::test]
async fn a_subscription_that_waits_for_another_connection_of_the_session_passes_when_that_is_answered() {
    let account = OneByOne::default();
    account.begin(Instant::now()).unwrap();
    let ended = ROOMY.run_for(&account, async |mut ends| {
        ends.client.write_all(&subscription(1, PRESENCE)).await.unwrap();
        until(|| ends.counters.delayed.load(Ordering::Relaxed) == 1).await;
        assert_eq!(next(&mut ends.server).await, None);
        account.answered();
        let mut heard = vec![0; subscription(1, PRESENCE).len()];
        ends.server.read_exact(&mut heard).await.unwrap();
        drop(ends.client);
    });
    assert_eq!(ended.await, Ending::Gone);
}

#[tokio::test]
async fn what_a_client_asks_for_and_does_not_await_counts_as_the_most_that_it_may_bring() {
    let account = OneByOne::default();
    let ended = ROOMY.run_for(&account, async |mut ends| {
        ends.client.write_all(&subscription(1, PRESENCE)).await.unwrap();
        assert!(next(&mut ends.server).await.is_some());
        drop(ends.client);
    });
    assert_eq!(ended.await, Ending::Gone);
    assert!(account.is_asking.into_inner(), "SpacetimeDB is still busy with it");
    assert_eq!(account.subscribed.into_inner(), 10_000);
}

#[tokio::test]
async fn what_a_client_said_that_is_ended_does_not_reach_the_server_any_more() {
    let setup = Setup {
        ways: (1 << 20, 64),
        bytes: 1 << 20,
        pool: 1 << 20,
    };
    let ended = setup.run(async |mut ends| {
        for _ in 0..3 {
            ends.client.write_all(&question()).await.unwrap();
        }
        until(|| ends.counters.passed.load(Ordering::Relaxed) == 3).await;
        ends.end.send(Ending::Revoked).unwrap();
        drop(ends.client);
        let mut heard = Vec::new();
        ends.server.read_to_end(&mut heard).await.unwrap();
        assert!(heard.len() <= 64, "{} bytes", heard.len());
    });
    assert_eq!(ended.await, Ending::Revoked);
}

#[tokio::test]
async fn who_does_not_take_what_is_there_is_asked_for_no_more() {
    let setup = Setup {
        ways: (64, 1 << 20),
        bytes: 8_000,
        pool: 1 << 20,
    };
    let ended = setup.run(async |mut ends| {
        ends.server.write_all(&frame(1, 4_000)).await.unwrap();
        until(|| ends.counters.bytes.load(Ordering::Relaxed) == 4_004).await;
        // A sign of life costs the server nothing.
        let mut ping = BytesMut::new();
        frames::ping(Bytes::new(), [0; 4], &mut ping);
        ends.client.write_all(&ping).await.unwrap();
        assert_eq!(next(&mut ends.server).await.map(|heard| heard.len()), Some(ping.len()));
        ends.client.write_all(&question()).await.unwrap();
        until(|| ends.counters.passed.load(Ordering::Relaxed) == 1).await;
        assert_eq!(next(&mut ends.server).await, None);
        // 64 bytes are on their way, and 2,000 may wait.
        let mut heard = vec![0; 4_004 - 64 - 2_000];
        ends.client.read_exact(&mut heard).await.unwrap();
        assert_eq!(
            next(&mut ends.server).await.map(|heard| heard.len()),
            Some(question().len())
        );
        drop(ends.client);
    });
    assert_eq!(ended.await, Ending::Gone);
}

#[tokio::test]
async fn when_all_hold_too_much_together_each_holds_a_read_until_its_client_has_taken_it() {
    let setup = Setup {
        ways: (64, 1 << 20),
        bytes: 1 << 20,
        pool: 1_000,
    };
    let ended = setup.run(async |mut ends| {
        let said = frame(1, 60_000);
        ends.server.write_all(&said).await.unwrap();
        let passed = || ends.counters.bytes.load(Ordering::Relaxed);
        until(|| passed() > 0).await;
        for _ in 0..TURNS {
            yield_now().await;
        }
        assert!(passed() <= 2 * READ_BYTES as u64, "{} bytes", passed());
        let mut heard = vec![0; said.len()];
        ends.client.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, said);
        drop(ends.client);
    });
    assert_eq!(ended.await, Ending::Gone);
}
