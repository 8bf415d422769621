//! Calls, SQL, schema, logs and metrics: statuses and formats.

use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{DEADLINE, Host, eventually, send};

#[tokio::test]
async fn calls_answer_with_the_official_statuses() {
    let (_dir, host, owner) = Host::with_demo().await;
    assert_eq!(
        host.call("demo", "add_note", json!([1, "a"]), &owner).await.pair(),
        (200, "")
    );
    assert_eq!(
        host.call("demo", "fail", json!(["no: 7"]), &owner).await.pair(),
        (530, "no: 7")
    );
    let wrong = host.call("demo", "add_note", json!(["one", 2]), &owner).await;
    assert_eq!(wrong.status, 400, "{}", wrong.text);
    assert_eq!(
        host.call("demo", "client_connected", json!([]), &owner).await.status,
        400
    );
    assert_eq!(
        host.call("demo", "nothing", json!([]), &owner).await.pair(),
        (404, "No such procedure")
    );
    assert_eq!(
        host.call("nowhere", "fail", json!([]), &owner).await.pair(),
        (404, "`nowhere` not found")
    );
    let path = "/v1/database/demo/call/fail";
    assert_eq!(
        send(host.request(Method::POST, path, Some(&owner)).body("[]"))
            .await
            .status,
        400
    );
    let text = host
        .request(Method::POST, path, Some(&owner))
        .header("content-type", "text/plain")
        .body("[]");
    assert_eq!(send(text).await.status, 415);
}

#[tokio::test]
async fn a_failed_reducer_leaves_no_rows() {
    let (_dir, host, owner) = Host::with_demo().await;
    host.call("demo", "add_note", json!([1, "first"]), &owner).await.ok();
    assert_eq!(
        host.call("demo", "add_note", json!([1, "second"]), &owner).await.status,
        530
    );
    assert_eq!(
        host.rows("demo", "SELECT * FROM note", &owner).await,
        json!([[1, "first"]])
    );
}

#[tokio::test]
async fn a_procedure_answers_with_its_value() {
    let (_dir, host, owner) = Host::with_demo().await;
    assert_eq!(
        host.call("demo", "double", json!([21]), &owner).await.ok().json(),
        json!(42)
    );
}

#[tokio::test]
async fn sql_answers_in_the_official_shape() {
    let (_dir, host, owner) = Host::with_demo().await;
    host.call("demo", "add_note", json!([1, "a"]), &owner).await.ok();
    let answer = host.sql("demo", "SELECT * FROM note", &owner).await.ok().json();
    let [statement] = answer.as_array().unwrap().as_slice() else {
        panic!("{answer}")
    };
    assert_eq!(
        statement["schema"],
        json!({ "elements": [
            { "name": { "some": "id" }, "algebraic_type": { "U64": [] } },
            { "name": { "some": "text" }, "algebraic_type": { "String": [] } },
        ] })
    );
    assert_eq!(statement["rows"], json!([[1, "a"]]));
    assert!(statement["total_duration_micros"].is_u64(), "{statement}");
    assert_eq!(
        statement["stats"],
        json!({ "rows_inserted": 0, "rows_deleted": 0, "rows_updated": 0 })
    );

    let inserted = host
        .sql("demo", "INSERT INTO note (id, text) VALUES (2, 'b')", &owner)
        .await
        .ok()
        .json();
    assert_eq!(inserted[0]["stats"]["rows_inserted"], json!(1));
    assert_eq!(
        host.rows("demo", "SELECT COUNT(*) AS n FROM note", &owner).await,
        json!([[2]])
    );
    assert_eq!(host.sql("demo", "SELECT * FROM nothing", &owner).await.status, 400);
    let two = host.sql("demo", "SELECT * FROM note; SELECT * FROM note", &owner).await;
    assert_eq!(two.pair(), (400, "Multiple SQL statements are not supported"));
}

#[tokio::test]
async fn sql_obeys_filters_and_rights() {
    let (_dir, host, owner) = Host::with_demo().await;
    let (ann, bob) = (host.newcomer().await, host.newcomer().await);
    host.call("demo", "add_diary", json!([1, "ann's"]), &ann).await.ok();
    host.call("demo", "add_diary", json!([2, "bob's"]), &bob).await.ok();
    let query = "SELECT text FROM diary";
    assert_eq!(host.rows("demo", query, &ann).await, json!([["ann's"]]));
    assert_eq!(host.rows("demo", query, &bob).await, json!([["bob's"]]));
    assert_eq!(host.rows("demo", query, &owner).await.as_array().unwrap().len(), 2);
    assert_eq!(
        host.sql("demo", "SELECT * FROM clock_schedule", &ann).await.status,
        400,
        "the table is private"
    );
    assert_eq!(
        host.sql("demo", "DELETE FROM note", &ann).await.status,
        400,
        "only the owner may write"
    );
}

#[tokio::test]
async fn the_schema_has_the_format_of_the_bindings_generator() {
    let (_dir, host, _) = Host::with_demo().await;
    let v9 = host.get("/v1/database/demo/schema?version=9", None).await.ok().json();
    let names = |list: &Value| -> Vec<String> {
        list.as_array()
            .unwrap()
            .iter()
            .map(|t| t["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert!(names(&v9["tables"]).contains(&"note".to_owned()), "{v9}");
    assert!(names(&v9["reducers"]).contains(&"add_note".to_owned()), "{v9}");
    let v10 = host.get("/v1/database/demo/schema?version=10", None).await.ok().json();
    assert!(v10["sections"].is_array(), "{v10}");
    assert_eq!(host.get("/v1/database/demo/schema", None).await.status, 400);
    assert_eq!(host.get("/v1/database/demo/schema?version=8", None).await.status, 400);
}

#[tokio::test]
async fn only_the_owner_reads_logs() {
    let (_dir, host, owner) = Host::with_demo().await;
    let stranger = host.newcomer().await;
    for word in ["first", "second", "third"] {
        host.call("demo", "say", json!([word]), &owner).await.ok();
    }
    assert_eq!(host.get("/v1/database/demo/logs", Some(&stranger)).await.status, 403);
    assert_eq!(host.get("/v1/database/demo/logs", None).await.status, 403);

    let last = eventually("the last words are in the log", async || {
        let text = host
            .get("/v1/database/demo/logs?num_lines=2", Some(&owner))
            .await
            .ok()
            .text;
        text.contains("third").then_some(text)
    })
    .await;
    let lines: Vec<Value> = last.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let messages: Vec<&str> = lines.iter().map(|line| line["message"].as_str().unwrap()).collect();
    assert_eq!(messages, ["second", "third"]);
    assert_eq!(lines[0]["level"], "Info");

    // A follower receives lines that are logged later.
    let request = host.request(
        Method::GET,
        "/v1/database/demo/logs?num_lines=0&follow=true",
        Some(&owner),
    );
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let mut stream = response.bytes_stream();
    host.call("demo", "say", json!(["fourth"]), &owner).await.ok();
    let heard = timeout(DEADLINE, async {
        let mut heard = String::new();
        while !heard.contains("fourth") {
            heard += std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap();
        }
        heard
    });
    assert!(!heard.await.unwrap().contains("third"));
}

#[tokio::test]
async fn scheduled_reducers_run_and_continue_after_a_restart() {
    let (dir, host, owner) = Host::with_demo().await;
    host.call("demo", "start_clock", json!([]), &owner).await.ok();
    let ticks = async |host: &Host| {
        host.rows("demo", "SELECT ticks FROM clock", &owner).await[0][0]
            .as_u64()
            .unwrap()
    };
    let before = eventually("the clock ticks", async || Some(ticks(&host).await).filter(|t| *t >= 3)).await;
    host.kill().await;
    let host = Host::start(dir.path()).await;
    eventually("the clock ticks on", async || {
        Some(ticks(&host).await).filter(|t| *t >= before + 3)
    })
    .await;
}

#[tokio::test]
async fn ping_and_metrics_answer() {
    let (_dir, host, owner) = Host::with_demo().await;
    host.get("/v1/ping", None).await.ok();
    host.call("demo", "add_note", json!([1, "a"]), &owner).await.ok();
    let metrics = host.get("/v1/metrics", None).await.ok().text;
    assert!(metrics.contains("# TYPE spacetime_"), "{metrics}");
    assert!(metrics.contains("add_note"), "{metrics}");
}
