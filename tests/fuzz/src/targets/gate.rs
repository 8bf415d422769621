//! What a client sends through the gate: the bytes of its WebSocket.
//!
//! Besides not panicking: how the bytes are cut changes nothing; what passes is, judged again, the same message; a
//! subscription that passes is one of the grammar's; and no message is longer than allowed.

use anyhow::{Context as _, ensure};
use bytes::{Bytes, BytesMut};
use rand::Rng as _;
use rand::rngs::StdRng;
use spacetime_sync_gate::decide::{Connection, Limits, Pass};
use spacetime_sync_gate::frames::{FromClient, Reader, message, ping};
use spacetime_sync_gate::query::{CONTRACT, Query};
use spacetimedb_client_api_messages::websocket::v2::{
    CallProcedure, CallProcedureFlags, CallReducer, CallReducerFlags, ClientMessage, OneOffQuery, QuerySetId,
    Subscribe, Unsubscribe, UnsubscribeFlags,
};
use spacetimedb_sdk::__codegen::__sats::bsatn;

use crate::target::{Entry, Seed, Target, Verdict};

pub(super) const GATE: Entry = Entry {
    name: "gate",
    about: "what a client sends through the gate: frames, messages and queries",
    dictionary: &[
        b"SELECT * FROM ",
        b"sync_contract",
        b"session_presence WHERE audience_key = ",
        b"presence_count",
        b"provider_capability",
        b"compute_assignment WHERE audience_key = ",
        b"compute_assignment_change WHERE audience_key = ",
        b"bridge_outbox",
        b"session_signal WHERE audience_key = ",
        b"presence_change WHERE audience_key = ",
        b"stream_grant WHERE identity = 0x",
        b"sync_event WHERE section = ",
        b" AND last_seq > ",
        b" AND first_seq <= ",
        b"ack_checkpoint",
        b"upsert_presence",
        b"publish_provider_capability",
        b"open_compute_assignment",
        b"update_compute_assignment",
        b"enqueue_bridge_event",
        b"mark_bridge_event_sent",
        b"read_events",
        b"send_signal",
        b"bind_nostr_key",
        b"\x82\xfe",
        b"\x82\xff",
        b"\x89\x80",
    ],
    most: 8 * 1024,
    open: || Ok(Box::new(Gate)),
    seeds,
};

/// The longest message of a client.
const MESSAGE_BYTES: usize = 4_096;
const MASK: [u8; 4] = [0, 0, 0, 0];

struct Gate;

impl Target for Gate {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let whole = passed(input, input.len())?;
        ensure!(
            whole == passed(input, 1)?,
            "what passes depends on how the bytes are cut"
        );
        for pass in &whole {
            ensure!(pass.message.len() <= MESSAGE_BYTES, "a message that is too long passes");
            let written: ClientMessage = bsatn::from_slice(&pass.message).context("what passes cannot be read")?;
            let mut fresh = connection();
            if let ClientMessage::Subscribe(subscribe) = &written {
                let query = Query::parse(&subscribe.query_strings).context("a query that passes is foreign")?;
                let written = query.texts();
                ensure!(
                    written.iter().eq(subscribe.query_strings.iter().map(|text| &**text)),
                    "a query changes when it is written again"
                );
            }
            if let ClientMessage::Unsubscribe(ended) = &written {
                let id = ended.query_set_id;
                let begun = encoded(&subscribe(id.id, CONTRACT));
                fresh
                    .decide(&begun)
                    .context("a subscription to the contract is refused")?;
            }
            let again = fresh
                .decide(&pass.message)
                .context("what passed is refused the second time")?;
            // What ends is another subscription: the fresh connection has only begun one to the contract.
            ensure!(
                again.message == pass.message && again.asked.kind == pass.asked.kind,
                "what passed is another message the second time"
            );
        }
        Ok(Verdict::taken(!whole.is_empty()))
    }

    fn vary(&self, rng: &mut StdRng, input: &[u8]) -> Option<Vec<u8>> {
        // Changes one message, and keeps the frames whole.
        let (mut reader, mut bytes) = (Reader::new(MESSAGE_BYTES), BytesMut::from(input));
        let mut said = Vec::new();
        while let Ok(Some(next)) = reader.next(&mut bytes) {
            if let FromClient::Message(next) = next {
                said.push(next.to_vec());
            }
        }
        let changed = rng.random_range(0..said.len().max(1));
        let at = rng.random_range(0..said.get(changed)?.len().max(1));
        *said[changed].get_mut(at)? ^= 1 << rng.random_range(0..8);
        let mut out = BytesMut::new();
        for next in said {
            message(next, MASK, &mut out);
        }
        Some(out.to_vec())
    }
}

fn connection() -> Connection {
    let limits = Limits {
        subscriptions: 8,
        stream_subscriptions: 2,
    };
    Connection::new("c2".repeat(32), limits)
}

/// What passes of bytes that arrive in parts of this length.
fn passed(input: &[u8], part: usize) -> anyhow::Result<Vec<Pass>> {
    let (mut reader, mut connection) = (Reader::new(MESSAGE_BYTES), connection());
    let (mut bytes, mut passed) = (BytesMut::new(), Vec::new());
    for part in input.chunks(part.max(1)) {
        bytes.extend_from_slice(part);
        loop {
            match reader.next(&mut bytes) {
                Ok(Some(FromClient::Message(said))) => {
                    ensure!(said.len() <= MESSAGE_BYTES, "a message that is too long is read");
                    match connection.decide(&said) {
                        Ok(pass) => passed.push(pass),
                        Err(_) => return Ok(passed),
                    }
                }
                Ok(Some(FromClient::Ping(_) | FromClient::Pong(_))) => {}
                Ok(Some(FromClient::Close(_))) | Err(_) => return Ok(passed),
                Ok(None) => break,
            }
        }
    }
    Ok(passed)
}

fn encoded(message: &ClientMessage) -> Vec<u8> {
    // These messages are ours, and can be written.
    bsatn::to_vec(message).unwrap_or_default()
}

fn subscribe(id: u32, text: &str) -> ClientMessage {
    ClientMessage::Subscribe(Subscribe {
        request_id: id,
        query_set_id: QuerySetId { id },
        query_strings: Box::new([text.into()]),
    })
}

fn seeds() -> anyhow::Result<Vec<Seed>> {
    let grants = format!("SELECT * FROM stream_grant WHERE identity = 0x{}", "c2".repeat(32));
    let frames = "SELECT * FROM sync_event WHERE section = 129127208515966861312 AND last_seq > 5 AND first_seq <= 10";
    let call = |reducer: &str| {
        ClientMessage::CallReducer(CallReducer {
            request_id: 3,
            flags: CallReducerFlags::Default,
            reducer: reducer.into(),
            args: Bytes::from_static(b"\x01\0\0\0a"),
        })
    };
    let read = ClientMessage::CallProcedure(CallProcedure {
        request_id: 4,
        flags: CallProcedureFlags::Default,
        procedure: "read_events".into(),
        args: Bytes::from_static(b"\x01\0\0\0a\0\0\0\0\0\0\0\0"),
    });
    let ended = ClientMessage::Unsubscribe(Unsubscribe {
        request_id: 5,
        query_set_id: QuerySetId { id: 2 },
        flags: UnsubscribeFlags::SendDroppedRows,
    });
    let one_off = ClientMessage::OneOffQuery(OneOffQuery {
        request_id: 6,
        query_string: grants.as_str().into(),
    });
    let sent = |messages: &[&ClientMessage]| {
        let mut out = BytesMut::new();
        ping(Bytes::from_static(b"p"), [1, 2, 3, 4], &mut out);
        for said in messages {
            message(encoded(said), MASK, &mut out);
        }
        out.to_vec()
    };
    let contract = subscribe(1, "SELECT * FROM sync_contract");
    Ok(vec![
        Seed::new(
            "client",
            sent(&[
                &contract,
                &subscribe(2, &grants),
                &subscribe(3, frames),
                &read,
                &call("ack_checkpoint"),
                &ended,
            ]),
        ),
        Seed::new("frames", sent(&[&subscribe(3, frames)])),
        Seed::new(
            "presence",
            sent(&[
                &subscribe(4, "SELECT * FROM session_presence WHERE audience_key = 7"),
                &call("upsert_presence"),
            ]),
        ),
        Seed::new(
            "collaboration",
            sent(&[
                &subscribe(5, "SELECT * FROM provider_capability"),
                &subscribe(6, "SELECT * FROM compute_assignment WHERE audience_key = 7"),
                &subscribe(7, "SELECT * FROM compute_assignment_change WHERE audience_key = 7"),
                &call("publish_provider_capability"),
                &call("open_compute_assignment"),
                &call("update_compute_assignment"),
                &subscribe(8, "SELECT * FROM bridge_outbox"),
                &call("enqueue_bridge_event"),
            ]),
        ),
        Seed::new(
            "signals",
            sent(&[
                &subscribe(5, "SELECT * FROM session_signal WHERE audience_key = 7"),
                &subscribe(6, "SELECT * FROM presence_change WHERE audience_key = 7"),
                &call("send_signal"),
            ]),
        ),
        Seed::new("foreign", sent(&[&call("append_sync_events")])),
        Seed::new("one-off", sent(&[&one_off])),
    ])
}
