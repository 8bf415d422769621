//! A legacy lane beside this one: what a runtime publishes to both arrives in both, byte for byte, and where they differ parity
//! says so.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use spacetime_sync_projector::{Document, DualSink, LegacyTable, Outcome, PostgresSink, Sink, TopicEvent};
use spacetime_sync_proto::access::Topic;
use spacetime_sync_proto::{Event, PayloadHash, StreamId, canonical_json, document_hash};
use spacetime_sync_tests::follower::Follower;
use spacetime_sync_tests::lane::{Bridge, Lane};
use sqlx::{Connection, Executor, PgConnection};

use super::projections::{owner, with_duties};
use crate::reliability::parity::{compare, verdict};

const SOON: Duration = Duration::from_secs(60);
const TABLE: &str = "public.legacy_events";
const EVENTS: &str = include_str!("parity/fixtures/events.jsonl");
const DOCUMENTS: &str = include_str!("parity/fixtures/documents.jsonl");

/// An event of a topic, as the runtime has it.
#[derive(Deserialize)]
struct EventFixture {
    topic: String,
    seq: u64,
    kind: String,
    payload: Value,
    /// How long a text to add to it.
    #[serde(default)]
    grow: usize,
}

/// A document of the runtime. None is a deleted one.
#[derive(Deserialize)]
struct DocumentFixture {
    projection: String,
    entity_id: String,
    source_seq: u64,
    stream_id: Option<String>,
    document: Option<Value>,
    #[serde(default)]
    grow: usize,
}

fn fixtures<T: for<'de> Deserialize<'de>>(lines: &str) -> Vec<T> {
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn grown(mut content: Value, length: usize) -> Value {
    if length > 0 {
        content["grown"] = json!("\u{e4}".repeat(length / 2));
    }
    content
}

type Dual = DualSink<PostgresSink, LegacyTable>;

/// Two lanes, a runtime that publishes to both, and a client that follows the new one.
struct Lanes {
    lane: Lane,
    _bridge: Bridge,
    runtime: PgConnection,
    owner: PgConnection,
    sink: Dual,
    client: Follower,
    streams: Vec<StreamId>,
    told: u64,
}

impl Lanes {
    /// With everything that the fixtures hold published, each event in a transaction of its own.
    async fn start() -> Self {
        let lane = Lane::start().await.unwrap();
        let mut owner = owner(&lane.database).await;
        let (role, runtime) = with_duties(&lane.database, &["runtime"]).await;
        for statement in [
            format!(
                "create table {TABLE} (topic text, seq bigint, kind text, payload_hash text, primary key (topic, seq))"
            ),
            format!("grant select, insert, update on {TABLE} to {role}"),
        ] {
            owner.execute(&*statement).await.unwrap();
        }
        let (schema, table) = TABLE.split_once('.').unwrap();
        let sink = DualSink::new(PostgresSink::default(), LegacyTable::new(schema, table));
        let streams: BTreeSet<StreamId> = fixtures::<EventFixture>(EVENTS)
            .iter()
            .map(|event| Topic::new(&event.topic).stream_id().unwrap())
            .chain(
                [
                    "runtime.run_summaries",
                    "runtime.codex_worker_summaries",
                    "runtime.notifications",
                ]
                .map(stream),
            )
            .chain(["runtime.fleet.user.7.workers", "runtime.fleet.guest.x.workers"].map(stream))
            .collect();
        let streams: Vec<StreamId> = streams.into_iter().collect();
        let mut client = lane.client(&streams).await.unwrap();
        client.start().unwrap();
        let mut lanes = Self {
            _bridge: lane.bridge().unwrap(),
            lane,
            runtime,
            owner,
            sink,
            client,
            streams,
            told: 0,
        };
        for event in fixtures::<EventFixture>(EVENTS) {
            let content = grown(event.payload, event.grow);
            lanes.publish(&event.topic, event.seq, &event.kind, &content).await;
        }
        for document in fixtures::<DocumentFixture>(DOCUMENTS) {
            lanes.project(document).await;
        }
        lanes.arrived().await;
        lanes
    }

    async fn publish(&mut self, topic: &str, seq: u64, kind: &str, content: &Value) {
        publish(&self.sink, &mut self.runtime, topic, seq, kind, content).await;
        self.told += 1;
    }

    async fn project(&mut self, fixture: DocumentFixture) {
        let (projection, entity_id) = (&fixture.projection, &fixture.entity_id);
        let mut document = match fixture.document {
            Some(content) => {
                Document::of(projection, entity_id, fixture.source_seq, &grown(content, fixture.grow)).unwrap()
            }
            None => Document::deleted(projection, entity_id, fixture.source_seq),
        };
        if let Some(stream_id) = &fixture.stream_id {
            document = document.on(stream_id);
        }
        let mut transaction = self.runtime.begin().await.unwrap();
        let projected = self.sink.project(&mut transaction, &document).await.unwrap();
        transaction.commit().await.unwrap();
        self.told += u64::from(projected.outcome == Outcome::Applied);
    }

    async fn arrived(&self) {
        self.client.until_applied(self.told, SOON).await.unwrap();
        assert!(self.lane.published(SOON).await);
    }

    /// What the legacy lane was told, in the form of a file that parity reads.
    async fn legacy_log(&mut self) -> String {
        let rows: Vec<(String, i64, String, String)> = sqlx::query_as(&format!(
            "select topic, seq, kind, payload_hash from {TABLE} order by topic collate \"C\", seq"
        ))
        .fetch_all(&mut self.owner)
        .await
        .unwrap();
        let line = |(topic, seq, kind, hash): &(String, i64, String, String)| line(topic, *seq as u64, kind, hash);
        rows.iter().map(line).collect()
    }

    /// What the client has applied, in the same form, computed from the payloads that it holds.
    fn client_log(&self) -> String {
        let mut lines: Vec<(String, u64, String)> = Vec::new();
        for stream_id in &self.streams {
            let topic = Topic::of_stream(stream_id).unwrap();
            for event in self.client.applied_log(stream_id).unwrap() {
                let seq = topic.seq_of_key(event.idempotency_key.as_str());
                let seq = seq.unwrap_or(event.seq.get());
                let hash = content_hash(&event).to_string();
                lines.push((
                    topic.as_str().to_owned(),
                    seq,
                    line(topic.as_str(), seq, event.kind.as_str(), &hash),
                ));
            }
        }
        lines.sort();
        lines.into_iter().map(|(.., line)| line).collect()
    }

    fn file(&self, log: &str) -> PathBuf {
        let path = self.lane.path("legacy.jsonl");
        std::fs::write(&path, log).unwrap();
        path
    }

    /// The verdict about a legacy lane that left this file, and what is said of it.
    async fn of_file(&self, log: &str, arguments: &[&str]) -> (bool, Value) {
        let path = self.file(log);
        let arguments = [&["--legacy-file", path.to_str().unwrap()], arguments].concat();
        self.of(&arguments).await
    }

    async fn of(&self, arguments: &[&str]) -> (bool, Value) {
        let (fits, mut said) = verdict(&self.lane, &[&self.client], arguments).await;
        assert_eq!(said["rounds"][0]["mismatches"], json!([]), "the lane itself is whole");
        (fits, said["rounds"][0]["legacy"].take())
    }

    /// What is said of a topic.
    fn topic<'a>(said: &'a Value, topic: &str) -> &'a Value {
        let topics = said["topics"].as_array().unwrap();
        topics.iter().find(|found| found["topic"] == topic).unwrap()
    }
}

/// Publishes an event to both lanes, in a transaction of its own.
async fn publish(sink: &Dual, runtime: &mut PgConnection, topic: &str, seq: u64, kind: &str, content: &Value) {
    let event = TopicEvent::of(topic, seq, kind, content).unwrap();
    let mut transaction = runtime.begin().await.unwrap();
    sink.publish(&mut transaction, &event).await.unwrap();
    transaction.commit().await.unwrap();
}

fn stream(name: &str) -> StreamId {
    StreamId::new(name).unwrap()
}

fn line(topic: &str, seq: u64, kind: &str, hash: &str) -> String {
    let line = json!({ "topic": topic, "seq": seq, "kind": kind, "payload_hash": hash });
    format!("{line}\n")
}

/// The hash of the document that an event tells of, or of its payload.
fn content_hash(event: &Event) -> PayloadHash {
    let payload: Value = serde_json::from_slice(&event.payload).unwrap();
    match (event.kind.as_str(), &payload["payload"]) {
        ("document.put", Value::Null) => payload["payload_hash"].as_str().unwrap().parse().unwrap(),
        ("document.put", document) => document_hash(document.to_string().as_bytes()).unwrap(),
        _ => PayloadHash::of(&event.payload),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parity_with_a_legacy_lane_that_is_told_the_same() {
    let mut lanes = Lanes::start().await;
    let legacy = lanes.legacy_log().await;
    assert_eq!(legacy, lanes.client_log());
    assert_eq!(legacy.lines().count() as u64, lanes.told);
    // And the payloads of events are those of the fixtures, byte for byte and in their order.
    for event in fixtures::<EventFixture>(EVENTS) {
        let topic = Topic::new(&event.topic);
        let key = topic.event_key(event.seq, &event.kind);
        let applied = lanes.client.applied_log(&topic.stream_id().unwrap()).unwrap();
        let found = applied
            .iter()
            .find(|found| found.idempotency_key.as_str() == key)
            .unwrap();
        let expected = canonical_json(grown(event.payload, event.grow).to_string().as_bytes()).unwrap();
        assert!(found.payload == expected.as_bytes(), "{key}");
        let seqs: Vec<_> = applied
            .iter()
            .map(|event| topic.seq_of_key(event.idempotency_key.as_str()))
            .collect();
        assert!(seqs.is_sorted(), "{seqs:?}");
    }

    let (fits, said) = lanes.of(&["--legacy-table", TABLE, "--whole"]).await;
    assert!(fits, "{said}");
    assert_eq!(
        (&said["entries"], &said["compared"]),
        (&json!(lanes.told), &json!(lanes.told))
    );
    assert_eq!((&said["mismatches"], &said["mismatch_ratio"]), (&json!(0), &json!(0.0)));
    let run = Lanes::topic(&said, "run:42:events");
    assert_eq!(
        (&run["stream_id"], &run["compared"]),
        (&json!("runtime.run.42.events"), &json!(5))
    );
    let (fits, said) = lanes.of_file(&legacy, &["--whole"]).await;
    assert!(fits && said["compared"] == json!(lanes.told), "{said}");
    // A sample has some of every topic, if there are not more topics, and is the same for the same seed.
    let seeded = ["--legacy-table", TABLE, "--sample", "12", "--legacy-seed", "7"];
    let (fits, said) = lanes.of(&seeded).await;
    assert!(fits && said["seed"] == 7, "{said}");
    let topics = said["topics"].as_array().unwrap();
    assert!(
        topics.iter().all(|topic| topic["compared"].as_u64() > Some(0)),
        "{said}"
    );
    assert!((12..=24).contains(&said["compared"].as_u64().unwrap()), "{said}");
    assert_eq!(lanes.of(&seeded).await.1, said);

    // The table lacks an event, and says another thing of another one.
    let change = async |owner: &mut PgConnection, sql: &str| {
        let done = owner.execute(&*sql.replace("TABLE", TABLE)).await.unwrap();
        assert_eq!(done.rows_affected(), 1, "{sql}");
    };
    change(
        &mut lanes.owner,
        "delete from TABLE where topic = 'runtime.notifications'",
    )
    .await;
    change(
        &mut lanes.owner,
        "delete from TABLE where topic = 'run:42:events' and seq = 105",
    )
    .await;
    change(
        &mut lanes.owner,
        "update TABLE set kind = 'run.other' where topic = 'run:42:events' and seq = 102",
    )
    .await;
    let (fits, said) = lanes.of(&["--legacy-table", TABLE, "--whole"]).await;
    let run = Lanes::topic(&said, "run:42:events");
    assert_eq!(
        (&run["missing_in_the_legacy_lane"], &run["kind_differs"]),
        (&json!(1), &json!(1))
    );
    assert!(!fits && said["mismatches"] == 2, "{said}");
    assert_eq!(
        said["topics_only_in_the_lane_examples"],
        json!(["runtime.notifications"])
    );
    let runs = ["--legacy-table", TABLE, "--whole", "--legacy-topic", "runtime."];
    let (fits, said) = lanes.of(&runs).await;
    assert!(fits && said["topic_count"] == 3, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn parity_with_a_legacy_lane_holds_while_both_move() {
    let mut lanes = Lanes::start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let (sink, stopped) = (lanes.sink.clone(), stop.clone());
    let mut runtime = std::mem::replace(&mut lanes.runtime, owner(&lanes.lane.database).await);
    let writer = tokio::spawn(async move {
        let mut seq = 0;
        while !stopped.load(Ordering::Relaxed) {
            seq += 1;
            publish(
                &sink,
                &mut runtime,
                "run:load:events",
                seq,
                "run.step",
                &json!({ "step": seq }),
            )
            .await;
        }
    });
    let mut before = 0;
    for extent in [&["--whole"][..], &["--sample", "30"], &["--whole"]] {
        let (fits, said) = lanes.of(&[&["--legacy-table", TABLE], extent].concat()).await;
        assert!(fits, "{said}");
        let entries = Lanes::topic(&said, "run:load:events")["entries"].as_u64().unwrap();
        assert!(entries > before, "both lanes move: {said}");
        before = entries;
    }
    // What is wrong in one topic is looked at again and again while another one grows, so no look loses it.
    let change = format!("update {TABLE} set payload_hash = $1 where topic = 'worker:7:lifecycle' and seq = 2");
    let other = PayloadHash::of(b"").to_string();
    sqlx::query(&change)
        .bind(&other)
        .execute(&mut lanes.owner)
        .await
        .unwrap();
    let verdicts = async |lanes: &Lanes| {
        let mut verdicts = Vec::new();
        for seed in ["1", "2", "3", "4"] {
            let sample = ["--legacy-table", TABLE, "--sample", "12", "--legacy-seed", seed];
            verdicts.push(lanes.of(&sample).await.0);
        }
        verdicts
    };
    let moving = verdicts(&lanes).await;
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    assert_eq!(moving, verdicts(&lanes).await);
    assert!(moving.contains(&false), "some sample has it");
}

#[tokio::test(flavor = "multi_thread")]
async fn parity_finds_a_changed_byte_a_lost_event_and_a_swapped_order() {
    let mut lanes = Lanes::start().await;
    let legacy = lanes.legacy_log().await;
    let lines: Vec<&str> = legacy.split_inclusive('\n').collect();
    let at = lines
        .iter()
        .position(|line| line.contains("run:42:events") && line.contains("\"seq\":102,"))
        .unwrap();
    let entry: Value = serde_json::from_str(lines[at]).unwrap();
    let hash = entry["payload_hash"].as_str().unwrap().to_owned();
    let mut other = hash.clone();
    let last = other.pop();
    other.push(if last == Some('0') { '1' } else { '0' });
    let cases = [
        ("hash_differs", legacy.replace(&hash, &other)),
        (
            "missing_in_the_legacy_lane",
            [&lines[..at], &lines[at + 1..]].concat().concat(),
        ),
        (
            "missing_in_the_lane",
            format!("{legacy}{}", line("run:42:events", 106, "run.late", &hash)),
        ),
    ];
    for (what, log) in &cases {
        let (fits, said) = lanes.of_file(log, &["--whole"]).await;
        let run = Lanes::topic(&said, "run:42:events");
        assert_eq!(run[what], 1, "{said}");
        assert!(!fits && said["mismatches"] == 1, "{what}: {said}");
        let seq = if *what == "missing_in_the_lane" { 106 } else { 102 };
        assert_eq!(said["differences"][0]["seq"], seq, "{said}");
    }
    // A sample of all but one finds it as well.
    let sample = ["--sample", "25", "--legacy-seed", "1"];
    let (fits, said) = lanes.of_file(&cases[0].1, &sample).await;
    assert!(
        !fits && Lanes::topic(&said, "run:42:events")["hash_differs"] == 1,
        "{said}"
    );
    // A file that ends before the lane lacks nothing, and one that begins later does not either.
    let some: String = lines
        .iter()
        .filter(|line| line.contains("run:42:events"))
        .skip(1)
        .take(3)
        .copied()
        .collect();
    let (fits, said) = lanes.of_file(&some, &["--whole"]).await;
    let run = Lanes::topic(&said, "run:42:events");
    assert!(fits && run["compared"] == 3, "{said}");
    assert_eq!(
        (&run["before_the_legacy_lane"], &run["legacy_lane_behind"]),
        (&json!(1), &json!(1))
    );

    // The runtime publishes two events in the wrong order.
    for seq in [108, 107] {
        lanes
            .publish("run:42:events", seq, "run.step", &json!({ "late": seq }))
            .await;
    }
    lanes.arrived().await;
    for extent in [&["--whole"][..], &["--sample", "27", "--legacy-seed", "1"]] {
        let (fits, said) = lanes.of(&[&["--legacy-table", TABLE], extent].concat()).await;
        let run = Lanes::topic(&said, "run:42:events");
        assert!(!fits && run["order_differs"] == 1 && said["mismatches"] == 1, "{said}");
        assert_eq!(said["differences"][0]["seq"], 107);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parity_has_an_answer_for_whatever_a_legacy_lane_left() {
    let mut lanes = Lanes::start().await;
    let legacy = lanes.legacy_log().await;
    let first = legacy.lines().next().unwrap();
    let mut other: Value = serde_json::from_str(first).unwrap();
    other["kind"] = json!("another");
    let unknown = json!({ "topic": "run:1:events", "seq": 1, "payload_hash": "crc32:1" });
    let nowhere = line(&"x".repeat(250), 1, "k", &PayloadHash::of(b"").to_string());
    for (addition, counted, mismatches) in [
        ("{\"topic\":\n".to_owned(), "invalid", 1),
        (format!("{unknown}\n"), "invalid", 1),
        (format!("{other}\n"), "contradictory", 1),
        (format!("{first}\n"), "repeated", 0),
    ] {
        let (fits, said) = lanes.of_file(&format!("{legacy}{addition}"), &["--whole"]).await;
        assert_eq!(
            (fits, &said["mismatches"]),
            (mismatches == 0, &json!(mismatches)),
            "{addition}: {said}"
        );
        assert_eq!(said[counted], 1, "{addition}: {said}");
        assert_eq!(said["entries"], json!(lanes.told), "{addition}: {said}");
        let examples = said["invalid_examples"].as_array().unwrap();
        assert_eq!(examples.len(), mismatches, "{said}");
        let named = |example: &Value| example.as_str().unwrap().starts_with("line ");
        assert!(examples.iter().all(named), "{said}");
    }
    let (fits, said) = lanes.of_file(&format!("{legacy}{nowhere}"), &["--sample", "3"]).await;
    let topics = said["topics"].as_array().unwrap();
    let lost: Vec<_> = topics.iter().filter(|topic| !topic["no_stream"].is_null()).collect();
    assert!(!fits && lost.len() == 1 && said["mismatches"] == 1, "{said}");

    // With nothing to compare, nothing is equal.
    let empty = lanes.file("");
    let (file, gone) = (empty.to_str().unwrap(), lanes.lane.path("gone.jsonl"));
    let tables = [
        "create table public.bare (topic text, seq bigint)",
        "create table public.empty (topic text, seq bigint, payload_hash text)",
        "create table public.odd (topic text, seq numeric, payload_hash bytea)",
        "insert into public.odd values ('run:1:events', 1.5, ''), (null, 1, ''), ('run:1:events', 1, '\\x00')",
    ];
    for statement in tables {
        lanes.owner.execute(statement).await.unwrap();
    }
    for (arguments, why) in [
        (["--legacy-file", file], "found none"),
        (["--legacy-file", gone.to_str().unwrap()], "cannot be read"),
        (["--legacy-table", "public.nowhere"], "no such table"),
        (["--legacy-table", "public.bare"], "a table without payload_hash"),
        (["--legacy-table", "public.empty"], "found none"),
        (["--legacy-table", "x\"; drop table public.bare; --"], "no such table"),
    ] {
        let output = compare(&lanes.lane, &[], &arguments).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && output.stdout.is_empty(),
            "{arguments:?}: {said}"
        );
        assert!(said.contains(why), "{arguments:?}: {said}");
    }
    let (fits, said) = lanes.of(&["--legacy-table", "public.odd"]).await;
    assert!(!fits && said["invalid"] == 3 && said["entries"] == 0, "{said}");
}
