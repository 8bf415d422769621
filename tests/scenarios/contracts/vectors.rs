//! The vectors of the contract, in Postgres and in the module, where it runs. `proto/vectors` checks the same in Rust and as wasm,
//! and `proto/vectors/typescript` in another language.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use spacetime_sync_authority::{Authority, NewEvent};
use spacetime_sync_proto::{ChainHash, Event, Frame, IdempotencyKey, Kind, PayloadHash, RefusalCode, Seq, StreamId};
use spacetime_sync_tests::postgres::Cluster;
use sqlx::{Connection as _, PgConnection};

use crate::lane::hostile::{Module, column, stream};

#[derive(Deserialize)]
struct Log {
    name: String,
    stream_id: StreamId,
    genesis: ChainHash,
    events: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    seq: String,
    idempotency_key: IdempotencyKey,
    kind: Kind,
    payload: String,
    payload_hash: PayloadHash,
    committed_at_us: String,
    chain_hash: ChainHash,
}

impl Row {
    fn payload(&self) -> Vec<u8> {
        hex::decode(&self.payload).unwrap()
    }

    fn event(&self) -> Event {
        Event {
            seq: Seq::new(self.seq.parse().unwrap()).unwrap(),
            idempotency_key: self.idempotency_key.clone(),
            kind: self.kind.clone(),
            payload: self.payload().into(),
            payload_hash: self.payload_hash,
            chain_hash: self.chain_hash,
            committed_at_us: self.committed_at_us.parse().unwrap(),
        }
    }
}

#[derive(Deserialize)]
struct FrameVector {
    name: String,
    first_seq: String,
    base_chain: ChainHash,
    frame: String,
    stream_id: Option<StreamId>,
    last_seq: Option<String>,
    last_chain: Option<ChainHash>,
    refused: Option<String>,
    #[serde(default)]
    events: Vec<Row>,
}

fn vectors<T: DeserializeOwned>(file: &str) -> Vec<T> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../proto/vectors")
        .join(file);
    let vectors: Vec<T> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(vectors.len() > 2, "{file}");
    vectors
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authority_computes_the_hashes_and_chains_of_the_vectors() {
    let database = Cluster::shared().await.create_database().await.unwrap();
    let authority = Authority::connect(database.url(), 2).await.unwrap();
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    for Log {
        name,
        stream_id,
        genesis,
        events,
    } in vectors("chain.json")
    {
        let found: Vec<u8> = sqlx::query_scalar("select runtime.sync_genesis($1)")
            .bind(stream_id.as_str())
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(ChainHash::from_slice(&found), Some(genesis), "{name}");

        let new = |row: &Row| NewEvent {
            idempotency_key: row.idempotency_key.clone(),
            kind: row.kind.clone(),
            payload: row.payload().into(),
        };
        // The first alone and the others as a batch: each function has its own statement.
        let (first, rest) = events.split_first().unwrap();
        authority.append(&stream_id, &new(first)).await.unwrap();
        authority
            .append_batch(&stream_id, &rest.iter().map(new).collect::<Vec<_>>())
            .await
            .unwrap();
        let kept = authority
            .read_events(&stream_id, Seq::ZERO, 100, usize::MAX)
            .await
            .unwrap();
        assert_eq!(kept.len(), events.len(), "{name}");
        let mut chain = genesis;
        for (row, event) in events.iter().zip(&kept) {
            assert_eq!(event.payload_hash, row.payload_hash, "{name}: {}", event.seq);
            // The authority's clock says when, so its chain is another one than the vector's. That `link` computes the
            // vectors' chains, proto/vectors checks.
            let at = event.committed_at_us;
            chain = chain.link(event.seq, at, &row.payload_hash, &row.idempotency_key, &row.kind);
            assert_eq!(event.chain_hash, chain, "{name}: {}", event.seq);
        }
    }
}

#[tokio::test]
async fn the_module_computes_the_hashes_and_chains_of_the_vectors() {
    let module = Module::start().await;
    for Log {
        name,
        stream_id,
        genesis,
        events,
    } in vectors("chain.json")
    {
        let mut base = genesis;
        for row in &events {
            append_one(&module, &stream_id, row, &base).await;
            let page = page(&module, &stream_id, 0).await;
            assert_eq!(page[1].to_string(), row.seq, "{name}");
            assert_eq!(chain(&page[2]), row.chain_hash, "{name}: {}", row.seq);
            base = row.chain_hash;
        }
    }
}

/// The module decodes a frame only where it must cut it, so the log has the first event already when the frame comes.
#[tokio::test]
async fn the_module_reads_and_refuses_the_frames_of_the_vectors() {
    let module = Module::start().await;
    let (mut read, mut refused) = (0, 0);
    for (nth, vector) in vectors::<FrameVector>("frames.json").into_iter().enumerate() {
        let FrameVector { name, frame, .. } = &vector;
        // A frame of fewer bytes never gets that far.
        if frame.len() < 2 * Frame::least_bytes(2) || vector.first_seq != "1" {
            continue;
        }
        if vector.refused.is_some() {
            let id = stream(&format!("refused.{nth}"));
            let base = ChainHash::genesis(&id);
            let held = Row {
                idempotency_key: IdempotencyKey::new("held").unwrap(),
                ..vectors::<Log>("chain.json").remove(0).events.remove(0)
            };
            append_one(&module, &id, &held, &base).await;
            let before = module.everything().await;
            let end = column(&vector.base_chain);
            let arguments = json!([id.as_str(), 1, 2, column(&base), end, 1, frame]);
            let said = module
                .call(Some(&module.bridge), "append_sync_events", &arguments)
                .await;
            said.refused(RefusalCode::InvalidFrame);
            assert_eq!(module.everything().await, before, "{name}");
            refused += 1;
        } else if vector.events.len() > 1 {
            let id = vector.stream_id.as_ref().unwrap();
            append_one(&module, id, &vector.events[0], &vector.base_chain).await;
            let last: u64 = vector.last_seq.as_ref().unwrap().parse().unwrap();
            let end = vector.last_chain.unwrap();
            let last_at = vector.events.last().unwrap().event().committed_at_us;
            let arguments = json!([
                id.as_str(),
                1,
                last,
                column(&vector.base_chain),
                column(&end),
                last_at,
                frame
            ]);
            let said = module
                .call(Some(&module.bridge), "append_sync_events", &arguments)
                .await;
            said.done();
            let page = page(&module, id, 1).await;
            assert_eq!((page[1].as_u64(), chain(&page[2])), (Some(last), end), "{name}");
            let rest = hex::decode(page[5][0][5].as_str().unwrap()).unwrap();
            let rest = Frame::decode(2, vector.events[0].chain_hash, rest.into()).unwrap();
            let expected: Vec<Event> = vector.events[1..].iter().map(Row::event).collect();
            assert_eq!(
                rest.into_events_after(Seq::ZERO).collect::<Vec<_>>(),
                expected,
                "{name}"
            );
            read += 1;
        }
    }
    assert!(read >= 3 && refused >= 10, "{read} frames were read, {refused} refused");
}

async fn append_one(module: &Module, stream_id: &StreamId, row: &Row, base: &ChainHash) {
    let at: i64 = row.committed_at_us.parse().unwrap();
    let seq: u64 = row.seq.parse().unwrap();
    let arguments = json!([
        stream_id.as_str(),
        seq,
        column(base),
        row.idempotency_key,
        row.kind,
        row.payload,
        at
    ]);
    let said = module.call(Some(&module.bridge), "append_sync_event", &arguments).await;
    said.done();
}

/// A chain hash of an answer. SpacetimeDB writes a number of 256 bits without zeros in front.
fn chain(column: &Value) -> ChainHash {
    let digits = column.as_str().unwrap().strip_prefix("0x").unwrap();
    format!("sha256:{digits:0>64}").parse().unwrap()
}

/// What `read_events` answers to the owner.
async fn page(module: &Module, stream_id: &StreamId, after: u64) -> Value {
    let arguments = json!([stream_id.as_str(), after]);
    module.call(Some(&module.owner), "read_events", &arguments).await.done()
}
