//! The projector's sink: one document after the other, in the runtime's transactions.

use serde_json::json;
use spacetime_sync_projector::{
    Document, DualSink, LegacyTable, NoopSink, Outcome, PostgresSink, ProjectError, Projected, Sink, TopicEvent,
};

use spacetime_sync_proto::error_text;

use super::*;

const SUMMARIES: &str = "runtime.run_summaries";

async fn project(runtime: &mut PgConnection, seq: u64, version: u32, status: &str) -> Result<Projected, ProjectError> {
    let document = Document::of("run_summaries", "42", seq, &json!({ "status": status }))?.version(version);
    PostgresSink::default().project(runtime, &document).await
}

fn outcome(projected: Result<Projected, ProjectError>) -> Outcome {
    projected.unwrap().outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_is_projected_once_and_what_is_unchanged_is_skipped() {
    let database = database().await;
    let mut owner = owner(&database).await;
    let (_, mut runtime) = with_duties(&database, &["runtime"]).await;
    let first = project(&mut runtime, 5, 1, "running").await.unwrap();
    assert_eq!((first.outcome, first.seq), (Outcome::Applied, Some(1)));
    let again = project(&mut runtime, 5, 1, "running").await.unwrap();
    assert_eq!((again.outcome, again.seq), (Outcome::Unchanged, Some(1)));
    assert_eq!(again.payload_hash, first.payload_hash);
    // More has happened; the same, by newer code; and other, by newer code.
    assert_eq!(outcome(project(&mut runtime, 6, 1, "running").await), Outcome::Applied);
    assert_eq!(outcome(project(&mut runtime, 6, 2, "running").await), Outcome::Applied);
    assert_eq!(outcome(project(&mut runtime, 6, 3, "done").await), Outcome::Applied);
    assert_eq!(outcome(project(&mut runtime, 6, 3, "done").await), Outcome::Unchanged);

    let told = told(&mut owner, SUMMARIES).await;
    assert_eq!(told.len(), 4);
    assert_eq!(told[3].0, "document.put");
    assert_eq!(told[3].1["payload"], json!({ "status": "done" }));
    assert_eq!(told[3].1["doc_version"], json!(6));
    assert_eq!(told[3].1["doc_key"], json!("runtime/run_summary:42"));
    let checkpoint: (i64, i32, String, i64) = sqlx::query_as(
        "select last_runtime_seq, projection_version, summary_hash, seq from runtime.sync_projection_checkpoints
         where projection_name = 'run_summaries' and entity_id = '42'",
    )
    .fetch_one(&mut runtime)
    .await
    .unwrap();
    assert_eq!(
        (
            checkpoint.0,
            checkpoint.1,
            checkpoint.3,
            told[3].1["payload_hash"].as_str()
        ),
        (6, 3, 4, Some(checkpoint.2.as_str()))
    );
    let status: String = sqlx::query_scalar(
        "select document ->> 'status' from runtime.sync_run_summaries where doc_key = 'runtime/run_summary:42'",
    )
    .fetch_one(&mut owner)
    .await
    .unwrap();
    assert_eq!(status, "done");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projection_does_not_go_backwards_and_a_deleted_document_stays_deleted() {
    let database = database().await;
    let mut owner = owner(&database).await;
    let (_, mut runtime) = with_duties(&database, &["runtime"]).await;
    project(&mut runtime, 5, 2, "running").await.unwrap();
    for (seq, version, status) in [(4, 2, "running"), (4, 3, "running"), (5, 1, "running"), (9, 1, "done")] {
        let error = project(&mut runtime, seq, version, status).await.unwrap_err();
        assert!(matches!(error, ProjectError::Backwards { .. }), "{error}");
        assert!(error.to_string().contains("sync_projection_checkpoints"), "{error}");
    }
    // What is no seq is not behind, so nobody begins again because of it.
    for seq in [0, 1 << 53] {
        assert_eq!(project(&mut runtime, seq, 2, "done").await.unwrap_err().code(), "SY017");
    }
    let nul = Document::of("run_summaries", "42", 9, &json!({ "text": "\0" })).unwrap();
    let error = PostgresSink::default().project(&mut runtime, &nul).await.unwrap_err();
    assert!(matches!(error, ProjectError::Refused { .. }), "{error}");
    let error = project(&mut runtime, 5, 2, "done").await.unwrap_err();
    assert!(matches!(error, ProjectError::Conflict { .. }), "{error}");

    let sink = PostgresSink::default();
    let gone = Document::deleted("run_summaries", "42", 7).version(2);
    assert_eq!(outcome(sink.project(&mut runtime, &gone).await), Outcome::Applied);
    assert_eq!(outcome(sink.project(&mut runtime, &gone).await), Outcome::Unchanged);
    let error = project(&mut runtime, 6, 2, "late").await.unwrap_err();
    assert!(matches!(error, ProjectError::Backwards { .. }), "{error}");
    // What was never there is remembered as deleted, too.
    let other = Document::deleted("run_summaries", "43", 3);
    sink.project(&mut runtime, &other).await.unwrap();
    let late = Document::of("run_summaries", "43", 2, &json!({})).unwrap();
    assert_eq!(sink.project(&mut runtime, &late).await.unwrap_err().code(), "SY012");

    let kinds: Vec<String> = told(&mut owner, SUMMARIES)
        .await
        .into_iter()
        .map(|told| told.0)
        .collect();
    assert_eq!(kinds, ["document.put", "document.delete", "document.delete"]);
    let counts = sink.telemetry().counts();
    assert_eq!((counts.applied, counts.unchanged), (2, 1));
    assert_eq!(counts.failed, [("SY012".to_owned(), 1)].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn projectors_of_one_document_wait_for_one_another_and_none_goes_back() {
    let database = database().await;
    let mut owner = owner(&database).await;
    let (_, url) = database.login(&["spacetime_sync_runtime"]).await.unwrap();
    let racers: Vec<_> = (0..4_u64)
        .map(|racer| {
            let url = url.clone();
            tokio::spawn(async move {
                let mut runtime = PgConnection::connect(&url).await.unwrap();
                let (mut applied, mut late) = (0, 0);
                for step in 1..=50 {
                    match project(&mut runtime, step * 4 + racer, 1, &format!("{racer} {step}")).await {
                        Ok(projected) => applied += u64::from(projected.outcome == Outcome::Applied),
                        Err(ProjectError::Backwards { .. }) => late += 1,
                        Err(error) => panic!("{error}"),
                    }
                }
                (applied, late)
            })
        })
        .collect();
    let (mut applied, mut late) = (0, 0);
    for racer in racers {
        let one = racer.await.unwrap();
        (applied, late) = (applied + one.0, late + one.1);
    }
    assert_eq!(applied + late, 200);
    let versions: Vec<u64> = told(&mut owner, SUMMARIES)
        .await
        .iter()
        .map(|told| told.1["doc_version"].as_u64().unwrap())
        .collect();
    assert_eq!(versions.len() as u64, applied);
    assert!(versions.is_sorted_by(|one, next| one < next), "{versions:?}");
    assert_eq!(versions.last(), Some(&203));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_rolled_back_was_never_projected() {
    let database = database().await;
    let mut owner = owner(&database).await;
    let (_, mut runtime) = with_duties(&database, &["runtime"]).await;
    project(&mut runtime, 1, 1, "one").await.unwrap();
    let mut transaction = runtime.begin().await.unwrap();
    assert_eq!(outcome(project(&mut transaction, 2, 1, "two").await), Outcome::Applied);
    transaction.rollback().await.unwrap();
    assert_eq!(told(&mut owner, SUMMARIES).await.len(), 1);
    let held = "select doc_version from runtime.sync_run_summaries";
    assert_eq!(number(&mut owner, held).await, 1);
    let two = project(&mut runtime, 2, 1, "two").await.unwrap();
    assert_eq!((two.outcome, two.seq), (Outcome::Applied, Some(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_is_too_large_for_its_stream_is_told_of_by_a_pointer() {
    let database = database().await;
    let mut owner = owner(&database).await;
    let sink = PostgresSink::default();
    let text = |length: usize| json!({ "text": "x".repeat(length) });
    let cases = [
        ("run_summaries", None, 65_000, false),
        ("run_summaries", None, 65_536, true),
        ("fleet_workers", Some("runtime.fleet.user.1.workers"), 65_536, true),
        ("fleet_workers", Some("runtime.run.1.events"), 65_536, false),
        ("fleet_workers", Some("runtime.run.1.events"), 262_144, true),
        (
            "codex_worker_summaries",
            Some("runtime.codex.worker.events"),
            100_000,
            false,
        ),
        (
            "codex_worker_summaries",
            Some("runtime.codex.worker.events"),
            140_000,
            true,
        ),
    ];
    for (seq, (projection, stream_id, length, points)) in (1..).zip(cases) {
        let mut document = Document::of(projection, "1", seq, &text(length)).unwrap();
        if let Some(stream_id) = stream_id {
            document = document.on(stream_id);
        }
        let projected = sink.project(&mut owner, &document).await.unwrap();
        assert_eq!(
            projected.hydration_required, points,
            "{projection} {stream_id:?} {length}"
        );
    }
    let pointer = told(&mut owner, SUMMARIES).await.remove(1).1;
    assert_eq!(pointer["hydration_required"], json!(true));
    assert_eq!(pointer["payload_bytes"], json!(65_536 + 11));
    assert!(pointer["payload"].is_null());
    // What it points to is what the read model holds.
    let hash: String =
        sqlx::query_scalar("select runtime.sync_document_hash(document) from runtime.sync_run_summaries")
            .fetch_one(&mut owner)
            .await
            .unwrap();
    assert_eq!(pointer["payload_hash"], json!(hash));

    let too_large = Document::of("run_summaries", "1", 1 << 25, &text(1 << 24)).unwrap();
    assert_eq!(sink.project(&mut owner, &too_large).await.unwrap_err().code(), "SY005");
    // An event that is no document has no other form.
    for (stream_id, length, fits) in [
        ("runtime.worker.7.lifecycle", 65_536, true),
        ("runtime.worker.7.lifecycle", 65_537, false),
        ("runtime.codex.worker.events", 131_072, true),
        ("runtime.codex.worker.events", 131_073, false),
        ("runtime.run.7.events", 262_144, true),
        ("any.other", 262_144, true),
    ] {
        let append = format!(
            "select runtime.sync_append('{stream_id}', 'k{length}', 'k', convert_to(repeat('p', {length}), 'UTF8'))"
        );
        if fits {
            owner.execute(&*append).await.unwrap();
        } else {
            let (code, message) = refusal(&mut owner, &append).await;
            assert_eq!(code, "SY005");
            assert!(message.contains("takes at most"), "{message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_moves_to_another_stream_and_is_deleted_where_it_was() {
    let database = database().await;
    let mut owner = owner(&database).await;
    let sink = PostgresSink::default();
    let at = |seq, stream_id| {
        Document::of("fleet_workers", "w", seq, &json!({}))
            .unwrap()
            .on(stream_id)
    };
    let (mine, theirs) = ("runtime.fleet.user.1.workers", "runtime.fleet.user.2.workers");
    sink.project(&mut owner, &at(1, mine)).await.unwrap();
    let moved = sink.project(&mut owner, &at(2, theirs)).await;
    assert_eq!(outcome(moved), Outcome::Moved);
    let kinds = async |connection: &mut PgConnection, stream_id: &str| -> Vec<String> {
        told(connection, stream_id)
            .await
            .into_iter()
            .map(|told| told.0)
            .collect()
    };
    assert_eq!(kinds(&mut owner, mine).await, ["document.put", "document.delete"]);
    assert_eq!(kinds(&mut owner, theirs).await, ["document.put"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lane_and_a_legacy_lane_take_a_document_both_or_neither() {
    let database = database().await;
    let mut owner = owner(&database).await;
    let (role, mut runtime) = with_duties(&database, &["runtime"]).await;
    legacy_table(&mut owner, &role).await;
    let sink = DualSink::new(PostgresSink::default(), LegacyTable::new("public", "Legacy \"events\""));
    let at = |seq| Document::of("run_summaries", "42", seq, &json!({ "seq": seq })).unwrap();
    let legacy = "select count(*) from public.\"Legacy \"\"events\"\"\"";
    for expected in [Outcome::Applied, Outcome::Unchanged] {
        let mut transaction = runtime.begin().await.unwrap();
        assert_eq!(outcome(sink.project(&mut transaction, &at(2)).await), expected);
        transaction.commit().await.unwrap();
        assert_eq!(number(&mut owner, legacy).await, 1);
    }
    // Without a transaction, nothing would undo one half.
    let error = sink.project(&mut runtime, &at(3)).await.unwrap_err();
    assert!(error_text(&error).contains("SAVEPOINT"), "{error}");
    // The lane refuses.
    let mut transaction = runtime.begin().await.unwrap();
    let error = sink.project(&mut transaction, &at(1)).await.unwrap_err();
    assert_eq!(error.code(), "SY012");
    drop(transaction);
    assert_eq!(number(&mut owner, legacy).await, 1);
    // The legacy lane holds something else already, and then it refuses everything.
    owner
        .execute(
            "insert into public.\"Legacy \"\"events\"\"\" values ('runtime.run_summaries', 2, 'document.put', 'x')",
        )
        .await
        .unwrap();
    for (seq, change, code) in [
        (3, "select 1", Some("legacy_conflict")),
        (
            4,
            "delete from public.\"Legacy \"\"events\"\"\" where payload_hash = 'x'",
            None,
        ),
        (
            5,
            "alter table public.\"Legacy \"\"events\"\"\" add constraint no_more check (seq < 3)",
            Some("other"),
        ),
    ] {
        owner.execute(change).await.unwrap();
        let mut transaction = runtime.begin().await.unwrap();
        let projected = sink.project(&mut transaction, &at(seq)).await;
        assert_eq!(projected.as_ref().err().map(ProjectError::code), code, "{projected:?}");
        // Whoever only logs the error and commits commits nothing of it.
        transaction.commit().await.unwrap();
        let in_both = if seq < 4 { 1 } else { 2 };
        assert_eq!(told(&mut owner, SUMMARIES).await.len(), in_both, "{seq}");
        let told_legacy = "select count(*) from public.\"Legacy \"\"events\"\"\" where payload_hash <> 'x'";
        assert_eq!(number(&mut owner, told_legacy).await, in_both as i64, "{seq}");
    }
    // A stream that is no topic's.
    let nowhere = Document::of("fleet_workers", "w", 1, &json!({}))
        .unwrap()
        .on("any.other");
    let mut transaction = runtime.begin().await.unwrap();
    let error = sink.project(&mut transaction, &nowhere).await.unwrap_err();
    assert_eq!(error.code(), "no_topic", "{error}");
    transaction.commit().await.unwrap();
    assert_eq!(told(&mut owner, "any.other").await, []);
    assert_eq!(outcome(NoopSink.project(&mut owner, &at(99)).await), Outcome::Ignored);
    // A lane that ignores documents has no seq for the legacy lane, but events have one of their own.
    let alone = DualSink::new(NoopSink, LegacyTable::new("public", "Legacy \"events\""));
    let mut transaction = owner.begin().await.unwrap();
    let error = alone.project(&mut transaction, &at(99)).await.unwrap_err();
    assert_eq!(error.code(), "no_seq", "{error}");
    let event = TopicEvent::of("run:1:events", 1, "run.step", &json!({})).unwrap();
    assert_eq!(outcome(alone.publish(&mut transaction, &event).await), Outcome::Ignored);
    transaction.commit().await.unwrap();
    let published = "select count(*) from public.\"Legacy \"\"events\"\"\" where topic = 'run:1:events'";
    assert_eq!(number(&mut owner, published).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lane_and_a_legacy_lane_take_an_event_both_or_neither() {
    let database = database().await;
    let mut owner = owner(&database).await;
    let (role, mut runtime) = with_duties(&database, &["runtime"]).await;
    legacy_table(&mut owner, &role).await;
    let sink = DualSink::new(PostgresSink::default(), LegacyTable::new("public", "Legacy \"events\""));
    let at = |seq, content| TopicEvent::of("run:1:events", seq, "run.step", &content).unwrap();
    let mut transaction = runtime.begin().await.unwrap();
    let first = sink.publish(&mut transaction, &at(7, json!({ "n": 1 }))).await.unwrap();
    assert_eq!((first.seq, first.outcome), (Some(1), Outcome::Applied));
    // A repeat is the same event in both.
    let again = sink.publish(&mut transaction, &at(7, json!({ "n": 1 }))).await.unwrap();
    assert_eq!(again.seq, Some(1));
    transaction.commit().await.unwrap();
    let held: Vec<(String, i64, String, String)> =
        sqlx::query_as("select topic, seq, kind, payload_hash from public.\"Legacy \"\"events\"\"\"")
            .fetch_all(&mut owner)
            .await
            .unwrap();
    let hash = first.payload_hash.unwrap();
    assert_eq!(held, [("run:1:events".to_owned(), 7, "run.step".to_owned(), hash)]);
    // Other content for the same seq is refused by the lane.
    let mut transaction = runtime.begin().await.unwrap();
    let error = sink
        .publish(&mut transaction, &at(7, json!({ "n": 2 })))
        .await
        .unwrap_err();
    assert_eq!(error.code(), "SY001", "{error}");
    transaction.commit().await.unwrap();
    // And what only the legacy lane refuses is in neither.
    owner
        .execute("insert into public.\"Legacy \"\"events\"\"\" values ('run:1:events', 8, 'run.step', 'x')")
        .await
        .unwrap();
    let mut transaction = runtime.begin().await.unwrap();
    let error = sink
        .publish(&mut transaction, &at(8, json!({ "n": 2 })))
        .await
        .unwrap_err();
    assert_eq!(error.code(), "legacy_conflict", "{error}");
    transaction.commit().await.unwrap();
    assert_eq!(told(&mut owner, "runtime.run.1.events").await.len(), 1);
    let counts = sink.lane().telemetry().counts();
    assert_eq!((counts.applied, counts.failed), (3, [("SY001".to_owned(), 1)].into()));
}

/// A legacy lane's table, with a name that must be quoted, into which a role may write.
async fn legacy_table(owner: &mut PgConnection, role: &str) {
    let name = "public.\"Legacy \"\"events\"\"\"";
    for statement in [
        format!("create table {name} (topic text, seq bigint, kind text, payload_hash text, primary key (topic, seq))"),
        format!("grant select, insert, update on {name} to {role}"),
    ] {
        owner.execute(&*statement).await.unwrap();
    }
}
