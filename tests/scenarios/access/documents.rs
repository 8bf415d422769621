//! Reading documents by key over HTTP: what pages hold and how much they look at, the content of one, and what is never sent.

use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use spacetime_sync_proto::document::{self, Document, DocumentPage, DocumentState, content_path, documents_path};
use spacetime_sync_proto::page::PROTOBUF;
use spacetime_sync_proto::{ChainHash, PayloadHash, Seq, StreamId};
use spacetime_sync_tests::issuing::{Desk, Issuing, answer};

use super::desk;

const DOCS: &str = "runtime.docs";

fn id(name: &str) -> StreamId {
    StreamId::new(name).unwrap()
}

/// A desk whose stream holds so many documents, a bridge, and a token that may read the stream. Nothing is published, because there
/// is no SpacetimeDB.
async fn projected(documents: usize) -> (Desk, Issuing, String) {
    let desk = desk().await;
    if documents > 0 {
        project(&desk, 1, documents, 1, r#"jsonb_build_object('n', n)"#).await;
    }
    desk.allow("everyone", DOCS).await.unwrap();
    let often = [
        ("history.session_burst", "1000".to_owned()),
        ("issuer.failures_burst", "1000".to_owned()),
    ];
    let bridge = desk.bridge(&often).await.unwrap();
    let (status, body) = bridge.token(&desk.session("7", "s1"), &[DOCS]).await.unwrap();
    assert_eq!(status, 200, "{body}");
    let token = body["token"].as_str().unwrap().to_owned();
    (desk, bridge, token)
}

/// Projects documents from one number to another, at a seq of their source. `document` is an expression of the number `n`.
async fn project(desk: &Desk, from: usize, to: usize, source_seq: usize, document: &str) {
    // An append walks over the versions of the stream's row that its transaction has left.
    for first in (from..=to).step_by(250) {
        let last = to.min(first + 249);
        desk.sql(&format!(
            "select runtime.sync_project('worker_lifecycle', to_char(n, 'FM00000'), {source_seq}, {document}, '{DOCS}')
             from generate_series({first}, {last}) n"
        ))
        .await
        .unwrap();
    }
}

/// Has all that is written published.
async fn publish(desk: &Desk) {
    desk.sql("update runtime.sync_streams set published_seq = head_seq")
        .await
        .unwrap();
}

fn key(n: usize) -> String {
    format!("runtime/worker:{n:05}")
}

fn canonical(n: usize) -> DocumentState {
    let json = format!(r#"{{"n":{n}}}"#);
    DocumentState::Content {
        hash: PayloadHash::of(json.as_bytes()),
        json,
    }
}

fn get(bridge: &Issuing, name: &str, query: &[(&str, &str)]) -> RequestBuilder {
    let path = documents_path(&id(name)).unwrap();
    bridge.http().get(bridge.url(&path)).query(query)
}

fn get_content(bridge: &Issuing, name: &str, key: &str, hash: &str) -> RequestBuilder {
    let path = content_path(&id(name)).unwrap();
    bridge
        .http()
        .get(bridge.url(&path))
        .query(&[("key", key), ("hash", hash)])
}

async fn send(request: RequestBuilder, token: &str) -> Response {
    request.bearer_auth(token).send().await.unwrap()
}

async fn refused(request: RequestBuilder, token: &str) -> (u16, String) {
    let (status, body) = answer(send(request, token).await).await.unwrap();
    (status, body["code"].as_str().unwrap_or_default().to_owned())
}

async fn decoded(request: RequestBuilder, token: &str) -> DocumentPage {
    let response = send(request, token).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()[CONTENT_TYPE], PROTOBUF);
    DocumentPage::decode(response.bytes().await.unwrap()).unwrap()
}

/// The part after a page.
async fn following(bridge: &Issuing, token: &str, page: &DocumentPage) -> Option<DocumentPage> {
    let after = page.next_after.as_deref()?;
    let (at, chain) = (page.at.seq.to_string(), page.at.chain.to_string());
    let query = [("at", at.as_str()), ("chain", chain.as_str()), ("after", after)];
    Some(decoded(get(bridge, DOCS, &query), token).await)
}

/// All parts, read one after the other.
async fn parts(bridge: &Issuing, token: &str) -> Vec<DocumentPage> {
    let mut parts = vec![decoded(get(bridge, DOCS, &[]), token).await];
    while let Some(page) = following(bridge, token, parts.last().unwrap()).await {
        parts.push(page);
    }
    parts
}

fn documents(parts: Vec<DocumentPage>) -> Vec<Document> {
    parts.into_iter().flat_map(|page| page.documents).collect()
}

async fn head(desk: &Desk) -> (Seq, ChainHash) {
    let extent = desk.authority.extent(&id(DOCS)).await.unwrap().unwrap();
    (extent.head_seq, extent.head_chain)
}

#[tokio::test]
async fn documents_come_in_bounded_parts_as_of_one_position() {
    let (desk, bridge, token) = projected(4_500).await;
    let (head_seq, head_chain) = head(&desk).await;
    // Nothing is published, and that is too far behind.
    let first = decoded(get(&bridge, DOCS, &[]), &token).await;
    assert_eq!((first.at.seq, first.at.chain), (head_seq, head_chain));
    // What is written meanwhile is for the events to tell.
    project(&desk, 10, 10, 2, "'{}'").await;
    project(&desk, 4_000, 4_000, 2, "'{}'").await;
    project(&desk, 4_200, 4_200, 2, "null").await;
    project(&desk, 4_501, 4_501, 1, "'{}'").await;
    let mut parts = vec![first];
    while let Some(page) = following(&bridge, &token, parts.last().unwrap()).await {
        assert_eq!(page.at, parts[0].at);
        parts.push(page);
    }
    let sizes: Vec<usize> = parts.iter().map(|page| page.documents.len()).collect();
    assert_eq!(sizes, [2_000, 2_000 - 1 + 1, 500 - 1 - 1]);
    let expected = (1..=4_500).filter(|n| ![4_000, 4_200].contains(n)).map(|n| Document {
        key: key(n),
        version: 1,
        seq: Seq::new(n as u64).unwrap(),
        state: canonical(n),
    });
    assert_eq!(documents(parts), expected.collect::<Vec<_>>());

    // What SpacetimeDB holds is the position as soon as it is near.
    desk.sql("update runtime.sync_streams set published_seq = 4400")
        .await
        .unwrap();
    let read = self::parts(&bridge, &token).await;
    assert_eq!(read[0].at.seq.get(), 4_400);
    let last = documents(read).pop().unwrap();
    assert_eq!((last.key, last.seq.get()), (key(4_400), 4_400));
    let few = decoded(get(&bridge, DOCS, &[("limit", "3")]), &token).await;
    assert_eq!(
        (few.documents.len(), few.next_after.as_deref()),
        (3, Some(key(3).as_str()))
    );
    let delivery = bridge.metrics().await.unwrap()["delivery"].clone();
    assert!(delivery["served_documents"].as_u64() > Some(8_800), "{delivery}");
    let text = bridge.text("/metrics").await.unwrap();
    assert!(
        text.contains("\nspacetime_sync_history_served_documents_total "),
        "{text}"
    );
}

#[tokio::test]
async fn a_part_ends_where_it_has_enough_bytes() {
    let (desk, bridge, token) = projected(0).await;
    project(&desk, 1, 60, 1, "jsonb_build_object('text', repeat('x', 50000))").await;
    publish(&desk).await;
    let parts = parts(&bridge, &token).await;
    let bytes = |page: &DocumentPage| -> usize {
        let of = |document: &Document| match &document.state {
            DocumentState::Content { json, .. } => json.len(),
            DocumentState::Pointer(_) | DocumentState::Deleted => 0,
        };
        page.documents.iter().map(of).sum()
    };
    assert!(
        parts.iter().all(|page| bytes(page) < document::PAGE_BYTES + 50_100),
        "a page is larger by its last document alone"
    );
    let full = parts.iter().filter(|page| bytes(page) >= document::PAGE_BYTES - 1_000);
    assert_eq!((full.count(), parts.len()), (2, 3));
    assert_eq!(documents(parts).len(), 60);
}

#[tokio::test]
async fn a_stream_without_documents_has_an_empty_part_at_its_position() {
    let (desk, bridge, token) = projected(0).await;
    let nothing = decoded(get(&bridge, DOCS, &[]), &token).await;
    assert_eq!(nothing.at, spacetime_sync_proto::Position::start(&id(DOCS)));
    assert_eq!((nothing.documents.len(), nothing.next_after), (0, None));
    desk.sql(&format!("select runtime.sync_append('{DOCS}', 'k', 'note', 'n')"))
        .await
        .unwrap();
    publish(&desk).await;
    let (head_seq, head_chain) = head(&desk).await;
    let noted = decoded(get(&bridge, DOCS, &[]), &token).await;
    assert_eq!((noted.at.seq, noted.at.chain), (head_seq, head_chain));
    assert_eq!((noted.documents.len(), noted.next_after), (0, None));
}

#[tokio::test]
async fn a_part_looks_at_so_many_rows_whatever_they_hold() {
    let (desk, bridge, token) = projected(0).await;
    // As if they had been projected and deleted, each by an event that is published.
    desk.sql(&format!(
        "insert into runtime.sync_documents
           select 'worker_lifecycle', to_char(n, 'FM00000'), '{DOCS}', 'runtime/worker:' || to_char(n, 'FM00000'), 2, 1, 1, null,
             null, null, false, now()
           from generate_series(1, 9999) n"
    ))
    .await
    .unwrap();
    project(&desk, 10_000, 10_000, 1, r#"jsonb_build_object('n', n)"#).await;
    publish(&desk).await;
    let parts = parts(&bridge, &token).await;
    let shape: Vec<_> = parts
        .iter()
        .map(|page| (page.documents.len(), page.next_after.clone()))
        .collect();
    assert_eq!(shape, [(0, Some(key(4_000))), (0, Some(key(8_000))), (1, None)]);
    assert_eq!(documents(parts)[0].key, key(10_000));
}

#[tokio::test]
async fn a_position_that_the_log_does_not_continue_is_gone() {
    let (desk, bridge, token) = projected(100).await;
    let ask = async |at: u64, chain: ChainHash| {
        let (at, chain) = (at.to_string(), chain.to_string());
        let query = [("at", at.as_str()), ("chain", chain.as_str())];
        let (status, body) = answer(send(get(&bridge, DOCS, &query), &token).await).await.unwrap();
        (status, body["reason_codes"].clone())
    };
    let (_, head_chain) = head(&desk).await;
    let chain = desk.authority.chain_at(&id(DOCS), Seq::new(50).unwrap()).await;
    let chain = chain.unwrap().unwrap();
    let other = ChainHash::from_bytes([9; 32]);
    assert_eq!(ask(50, chain).await.0, 200);
    assert_eq!(ask(50, other).await, (410, json!(["chain_mismatch"])));
    assert_eq!(ask(0, other).await, (410, json!(["chain_mismatch"])));
    assert_eq!(ask(0, ChainHash::genesis(&id(DOCS))).await.0, 200);
    assert_eq!(ask(101, head_chain).await, (410, json!(["ahead_of_head"])));
    // How far behind the head it is does not matter, as long as the log holds what follows.
    desk.sql(
        "update runtime.sync_streams set published_seq = head_seq;
         update runtime.sync_retention set window_events = 10, log_events = 60, replay_budget_events = 5
           where class = 'otherwise'",
    )
    .await
    .unwrap();
    assert_eq!(desk.authority.purge(&id(DOCS), 1_000).await.unwrap(), 40);
    assert_eq!(ask(50, chain).await.0, 200);
    assert_eq!(
        ask(39, other).await,
        (410, json!(["retention_floor_breach"])),
        "purged before the client was done"
    );
    let stale = bridge.metrics().await.unwrap()["delivery"]["stale_cursor_events_total"].clone();
    assert_eq!(stale, 4);
}

#[tokio::test]
async fn a_large_document_is_a_pointer_and_its_content_is_fetched_by_its_hash() {
    let (desk, bridge, token) = projected(1).await;
    project(
        &desk,
        2,
        2,
        1,
        r#"jsonb_build_object('bb', repeat('é', 50000), 'a', 1, 'é', 2, E'\U0001F600', 3)"#,
    )
    .await;
    publish(&desk).await;
    let page = decoded(get(&bridge, DOCS, &[]), &token).await;
    let [
        DocumentState::Content { hash: small, .. },
        DocumentState::Pointer(large),
    ] = [&page.documents[0].state, &page.documents[1].state]
    else {
        panic!("{page:?}");
    };
    let fetch = async |key: &str, hash: PayloadHash| {
        let response = send(get_content(&bridge, DOCS, key, &hash.to_string()), &token).await;
        (response.status().as_u16(), response)
    };
    let (status, response) = fetch(&key(2), large.hash).await;
    assert_eq!(status, 200);
    assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
    let bytes = response.bytes().await.unwrap();
    let expected = format!(r#"{{"a":1,"bb":"{}","é":2,"😀":3}}"#, "é".repeat(50_000));
    assert_eq!(bytes, expected);
    assert_eq!((PayloadHash::of(&bytes), bytes.len() as u64), (large.hash, large.bytes));
    assert_eq!(fetch(&key(1), *small).await.1.bytes().await.unwrap(), r#"{"n":1}"#);

    // Changed, deleted, of another key, and never there: one answer.
    project(&desk, 2, 2, 2, "'{}'").await;
    let gone = refused(get_content(&bridge, DOCS, &key(2), &large.hash.to_string()), &token).await;
    assert_eq!(gone, (404, "not_found".to_owned()));
    let empty = PayloadHash::of(b"{}");
    assert_eq!(fetch(&key(2), empty).await.0, 200);
    project(&desk, 2, 2, 3, "null").await;
    for (key, hash) in [
        (key(2), empty),
        (key(1), empty),
        (key(3), *small),
        ("k".repeat(512), *small),
    ] {
        let found = refused(get_content(&bridge, DOCS, &key, &hash.to_string()), &token).await;
        assert_eq!(found, gone, "{key}");
    }
}

#[tokio::test]
async fn a_part_is_json_on_request() {
    let (desk, bridge, token) = projected(2).await;
    project(&desk, 2, 2, 2, r#"jsonb_build_object('b', array['x'], 'a', null)"#).await;
    let readable = get(&bridge, DOCS, &[("limit", "5")]).header(ACCEPT, "application/json");
    let (_, readable) = answer(send(readable, &token).await).await.unwrap();
    assert_eq!(
        (&readable["at_seq"], &readable["next_after"]),
        (&json!(0), &Value::Null),
        "nothing is published"
    );
    publish(&desk).await;
    let response = send(get(&bridge, DOCS, &[]).header(ACCEPT, "application/json"), &token).await;
    assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
    let (_, readable) = answer(response).await.unwrap();
    let (head_seq, head_chain) = head(&desk).await;
    assert_eq!(readable["at_seq"], head_seq.get());
    assert_eq!(readable["at_chain"], head_chain.to_string());
    let hash = PayloadHash::of(br#"{"a":null,"b":["x"]}"#);
    let expected = json!({
        "doc_key": key(2), "doc_version": 2, "seq": 3, "payload": {"a": null, "b": ["x"]}, "payload_hash": hash.to_string(),
        "payload_bytes": 20, "hydration_required": false,
    });
    assert_eq!(readable["documents"][1], expected);
}

#[tokio::test]
async fn a_token_without_the_stream_reads_no_document_of_it_and_malformed_requests_are_refused() {
    let (desk, bridge, token) = projected(3).await;
    let hash = PayloadHash::of(br#"{"n":1}"#).to_string();
    let open = get(&bridge, DOCS, &[]).send().await.unwrap();
    assert_eq!(open.status(), 401);
    assert_eq!(
        get_content(&bridge, DOCS, &key(1), &hash)
            .send()
            .await
            .unwrap()
            .status(),
        401
    );
    let others = "runtime.others";
    desk.sql(&format!(
        "select runtime.sync_project('worker_lifecycle', 'x', 1, '{{\"n\":1}}', '{others}')"
    ))
    .await
    .unwrap();
    let forbidden = (403, "forbidden_stream".to_owned());
    // Whether a stream is there does not matter, nor what is asked of it: nothing is read.
    for name in [others, "nothing.there"] {
        assert_eq!(refused(get(&bridge, name, &[]), &token).await, forbidden);
        assert_eq!(refused(get(&bridge, name, &[("limit", "0")]), &token).await, forbidden);
        let content = get_content(&bridge, name, "runtime/worker:x", &hash);
        assert_eq!(refused(content, &token).await, forbidden);
    }
    // A document's key says nothing of a right to it: the stream does.
    let content = get_content(&bridge, DOCS, "runtime/worker:x", &hash);
    assert_eq!(refused(content, &token).await, (404, "not_found".to_owned()));

    let chain = ChainHash::from_bytes([9; 32]).to_string();
    let long = "k".repeat(513);
    let (chain, long) = (chain.as_str(), long.as_str());
    let at = [("at", "1"), ("chain", chain)];
    for query in [
        &[("at", "1")][..],
        &[("chain", chain)],
        &[("after", "a")],
        &[("at", "-1"), ("chain", chain)],
        &[("at", "1"), ("at", "1"), ("chain", chain)],
        &[("at", "1"), ("chain", "sha256:zz")],
        &[at[0], at[1], ("after", "")],
        &[at[0], at[1], ("after", "a\u{0}b")],
        &[at[0], at[1], ("after", "a\u{1f}")],
        &[at[0], at[1], ("after", long)],
        &[("limit", "0")],
        &[("x", "1")],
    ] {
        let found = refused(get(&bridge, DOCS, query), &token).await;
        assert_eq!(found, (422, "invalid_argument".to_owned()), "{query:?}");
    }
    let upper = hash.to_uppercase();
    for (key, hash) in [
        ("", hash.as_str()),
        ("a\u{0}", hash.as_str()),
        ("a\u{7f}", hash.as_str()),
        (long, hash.as_str()),
        ("a", "sha256:"),
        ("a", &hash[7..]),
        ("a", upper.as_str()),
    ] {
        let found = refused(get_content(&bridge, DOCS, key, hash), &token).await;
        assert_eq!(found, (422, "invalid_argument".to_owned()), "{key:?} {hash}");
    }
    let posted = bridge.http().post(bridge.url(&documents_path(&id(DOCS)).unwrap()));
    assert_eq!(send(posted, &token).await.status(), 405);
}

#[tokio::test]
async fn keys_are_ordered_by_their_bytes_whatever_they_hold() {
    let (desk, bridge, token) = projected(0).await;
    let long = "z".repeat(255);
    let entities = [
        "a b",
        "a%2Fb",
        "a+b",
        "a/b",
        "A",
        "é",
        "\u{ffff}",
        "😀",
        "'\"\\",
        long.as_str(),
    ];
    for entity in entities {
        let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(desk.database.url())
            .await
            .unwrap();
        sqlx::query("select runtime.sync_project('worker_lifecycle', $1, 1, '{}', $2)")
            .bind(entity)
            .bind(DOCS)
            .execute(&mut connection)
            .await
            .unwrap();
    }
    publish(&desk).await;
    let mut expected: Vec<String> = entities
        .iter()
        .map(|entity| format!("runtime/worker:{entity}"))
        .collect();
    expected.sort();
    // One at a time, so that every key is one after which a part begins.
    let mut page = decoded(get(&bridge, DOCS, &[("limit", "1")]), &token).await;
    let (at, chain) = (page.at.seq.to_string(), page.at.chain.to_string());
    let mut found = vec![page.documents[0].key.clone()];
    while let Some(after) = page.next_after {
        let query = [
            ("at", at.as_str()),
            ("chain", chain.as_str()),
            ("after", after.as_str()),
            ("limit", "1"),
        ];
        page = decoded(get(&bridge, DOCS, &query), &token).await;
        found.extend(page.documents.iter().map(|document| document.key.clone()));
    }
    assert_eq!(found, expected);
    let hash = PayloadHash::of(b"{}").to_string();
    for key in expected {
        let content = send(get_content(&bridge, DOCS, &key, &hash), &token).await;
        assert_eq!(content.status(), 200, "{key}");
    }
}

#[tokio::test]
async fn a_document_without_its_hash_is_never_sent() {
    let (desk, bridge, token) = projected(3).await;
    publish(&desk).await;
    let hash = PayloadHash::of(br#"{"n":2}"#).to_string();
    for change in [r#"document = '{"n": 3}'"#, r#"document = '{"n": 2.5}'"#] {
        desk.sql(&format!(
            "update runtime.sync_documents set {change} where entity_id = '00002'"
        ))
        .await
        .unwrap();
        let broken = (409, "chain_mismatch".to_owned());
        assert_eq!(refused(get(&bridge, DOCS, &[]), &token).await, broken, "{change}");
        let content = get_content(&bridge, DOCS, &key(2), &hash);
        assert_eq!(refused(content, &token).await, broken, "{change}");
        assert_eq!(refused(get(&bridge, DOCS, &[("limit", "1")]), &token).await.0, 200);
    }
    assert!(bridge.said("the read model contradicts the log").await);
    assert!(bridge.said(&key(2)).await);
    let broken = bridge.metrics().await.unwrap()["delivery"]["broken_log_total"].clone();
    assert_eq!(broken, 4);
}
