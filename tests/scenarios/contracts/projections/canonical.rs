//! The canonical JSON that SQL computes.

use serde_json::Value;

use super::*;

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto/vectors/canonical.json");

/// The canonical text of a document, or the SQLSTATE with which it is refused.
async fn canonical(connection: &mut PgConnection, expression: &str, text: &str) -> Result<String, String> {
    let question = format!("select runtime.sync_canonical_json({expression})");
    let asked = sqlx::query_scalar::<_, String>(&question).bind(text);
    asked.fetch_one(connection).await.map_err(|error| {
        let error = error.as_database_error().unwrap();
        error.code().unwrap_or_default().into_owned()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_makes_the_same_bytes_of_a_document_as_everybody_else() {
    let database = database().await;
    let mut owner = owner(&database).await;
    let vectors: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(VECTORS).unwrap()).unwrap();
    let (mut same, mut refused) = (0, 0);
    for vector in &vectors {
        let name = &vector["name"];
        // What is no UTF-8 is no text of Postgres.
        let Some(input) = vector["input"].as_str() else {
            continue;
        };
        let checked = canonical(&mut owner, "runtime.sync_checked_json($1::json)", input).await;
        let found = canonical(&mut owner, "$1::jsonb", input).await;
        if let Some(expected) = vector["canonical"].as_str() {
            assert_eq!(found.as_deref(), Ok(expected), "{name}");
            assert_eq!(checked.as_deref(), Ok(expected), "{name}");
            same += 1;
            continue;
        }
        // 22…: the text is no JSON of Postgres. 54…: it is nested deeper than Postgres reads.
        let is_refusal = |code: &String| code == "SY011" || code.starts_with("22") || code.starts_with("54");
        assert!(checked.as_ref().is_err_and(is_refusal), "{name}: {checked:?}");
        match vector["jsonb"].as_str() {
            Some(remains) => assert_eq!(found.as_deref(), Ok(remains), "{name}"),
            None => assert!(found.as_ref().is_err_and(is_refusal), "{name}: {found:?}"),
        }
        refused += 1;
    }
    assert!(same > 20 && refused > 30, "{same} {refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_has_no_canonical_json_is_refused_with_its_reason() {
    let database = database().await;
    let mut owner = owner(&database).await;
    for (document, reason) in [
        ("'{\"a\":[1.5]}'", "found the number 1.5"),
        ("'{\"a\":9007199254740992}'", "found the number 9007199254740992"),
        ("'[1]'", "found array, expected an object"),
        (
            "runtime.sync_checked_json('{\"a\":1,\"a\":2}')",
            "found the name \"a\" twice",
        ),
        (
            "(repeat('{\"a\":', 65) || '1' || repeat('}', 65))::jsonb",
            "nested more than 64 deep",
        ),
    ] {
        let statement = format!("select runtime.sync_project('run_summaries', '1', 1, {document})");
        let (code, message) = refusal(&mut owner, &statement).await;
        assert_eq!(code, "SY011", "{document}");
        assert!(message.contains(reason), "{message}");
    }
    // Nothing of it has begun.
    assert_eq!(number(&mut owner, "select count(*) from runtime.sync_streams").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hash_of_a_document_is_that_of_its_canonical_json() {
    let database = database().await;
    let mut owner = owner(&database).await;
    let hash: String = sqlx::query_scalar("select runtime.sync_document_hash('{\"b\": 1, \"a\": 2}')")
        .fetch_one(&mut owner)
        .await
        .unwrap();
    assert_eq!(
        hash,
        "sha256:d3626ac30a87e6f7a6428233b3c68299976865fa5508e4267c5415c76af7a772"
    );
}
