//! The WebSocket: subscriptions, calls, confirmed reads, compression and how connections end.

use serde_json::json;
use spacetimedb_client_api_messages::websocket::common::QuerySetId;
use spacetimedb_client_api_messages::websocket::v2::{BIN_PROTOCOL, ClientMessage, Subscribe};
use spacetimedb_lib::bsatn;
use tokio_tungstenite::tungstenite;

use crate::support::{Gone, Host, Socket, eventually};

#[tokio::test]
async fn a_subscriber_gets_existing_and_new_rows() {
    let (_dir, host, owner) = Host::with_demo().await;
    host.call("demo", "add_note", json!([1, "there"]), &owner).await.ok();
    let reader = host.newcomer().await;
    let mut socket = Socket::open(&host, "demo", &reader).await;
    assert_eq!(socket.subscribe("SELECT * FROM note").await, Ok(1));
    host.call("demo", "add_note", json!([2, "comes"]), &owner).await.ok();
    let rows = socket.next_inserts().await;
    let row: (u64, String) = bsatn::from_slice(&rows[0]).unwrap();
    assert_eq!((rows.len(), row), (1, (2, "comes".to_owned())));
    assert!(socket.subscribe("SELECT * FROM nothing").await.is_err());
}

#[tokio::test]
async fn a_subscriber_sees_only_what_the_filter_lets_through() {
    let (_dir, host, _) = Host::with_demo().await;
    let (ann, bob) = (host.newcomer().await, host.newcomer().await);
    let mut socket = Socket::open(&host, "demo", &ann).await;
    assert_eq!(socket.subscribe("SELECT * FROM diary").await, Ok(0));
    host.call("demo", "add_diary", json!([1, "bob's"]), &bob).await.ok();
    host.call("demo", "add_diary", json!([2, "ann's"]), &ann).await.ok();
    let rows = socket.next_inserts().await;
    assert_eq!(rows.len(), 1);
    assert_eq!(bsatn::from_slice::<u64>(&rows[0][..8]).unwrap(), 2);
}

#[tokio::test]
async fn reducers_and_procedures_answer_over_the_socket() {
    let (_dir, host, owner) = Host::with_demo().await;
    let mut socket = Socket::open(&host, "demo", &owner).await;
    assert_eq!(socket.call("add_note", &(1_u64, "a".to_owned())).await, Ok(()));
    assert_eq!(
        socket.call("fail", &("no: 7".to_owned(),)).await,
        Err("no: 7".to_owned())
    );
    assert!(socket.call("nothing", &()).await.is_err());
    assert_eq!(
        bsatn::from_slice::<u64>(&socket.procedure("double", &(21_u64,)).await.unwrap()).unwrap(),
        42
    );
}

#[tokio::test]
async fn large_messages_are_compressed_as_asked() {
    let (_dir, host, owner) = Host::with_demo().await;
    let text = "many times the same ".repeat(1000);
    for (asked, tag) in [("None", 0_u8), ("Brotli", 1), ("Gzip", 2)] {
        let path = format!("/v1/database/demo/subscribe?compression={asked}");
        let mut socket = Socket::try_open(&host, &path, BIN_PROTOCOL, &owner).await.unwrap();
        socket.next_raw().await.unwrap();
        let id = u64::from(tag);
        host.call("demo", "add_note", json!([id, text]), &owner).await.ok();
        // One large row, selected by a query that no other round matches.
        let query = format!("SELECT * FROM note WHERE id = {id}");
        let message = ClientMessage::Subscribe(Subscribe {
            request_id: 1,
            query_set_id: QuerySetId::new(1),
            query_strings: [query.into()].into(),
        });
        socket.send_raw(bsatn::to_vec(&message).unwrap()).await;
        let body = socket.next_raw().await.unwrap();
        assert_eq!(socket.last_tag, tag, "{asked}");
        assert_eq!(body.len() > text.len(), tag == 0, "{asked}: {} bytes", body.len());
    }
}

#[tokio::test]
async fn buffers_of_large_messages_are_not_kept() {
    const SUBSCRIBERS: u64 = 8;
    const LARGE: usize = 300_000;
    let (_dir, host, owner) = Host::with_demo().await;
    let mut sockets = Vec::new();
    for lower in 0..SUBSCRIBERS {
        let mut socket = Socket::open(&host, "demo", &owner).await;
        // A query of its own, and so a buffer of its own.
        let query = format!("SELECT * FROM note WHERE id > {lower}");
        assert_eq!(socket.subscribe(&query).await, Ok(0));
        sockets.push(socket);
    }
    let text = "x".repeat(LARGE);
    host.call("demo", "add_note", json!([SUBSCRIBERS, text]), &owner)
        .await
        .ok();
    for socket in &mut sockets {
        assert_eq!(socket.next_inserts().await.len(), 1);
    }
    let pool = async |what: &str| {
        let metrics = host.get("/v1/metrics", None).await.ok().text;
        let line = metrics
            .lines()
            .find(|line| line.starts_with(&format!("bsatn_rlb_pool_{what}{{")))?;
        line.rsplit_once(' ')?.1.parse::<u64>().ok()
    };
    // The engine counts every ten seconds.
    let counted = async || pool("new_allocated").await.filter(|buffers| *buffers >= SUBSCRIBERS);
    eventually("the engine counts its buffers", counted).await;
    let held = pool("resident_bytes").await.unwrap();
    assert!(held < LARGE as u64, "{held} bytes");
}

#[tokio::test]
async fn other_protocols_are_refused() {
    let (_dir, host, owner) = Host::with_demo().await;
    for (path, protocol, status) in [
        ("/v1/database/demo/subscribe", "v1.json.spacetimedb", 400),
        ("/v1/database/nowhere/subscribe", BIN_PROTOCOL, 404),
        (
            "/v1/database/demo/subscribe?connection_id=00000000000000000000000000000000",
            BIN_PROTOCOL,
            400,
        ),
    ] {
        let Err(refused) = Socket::try_open(&host, path, protocol, &owner).await else {
            panic!("{path} was taken")
        };
        let tungstenite::Error::Http(response) = refused else {
            panic!("{path}: {refused}")
        };
        assert_eq!(response.status().as_u16(), status, "{path}");
    }
}

#[tokio::test]
async fn an_invalid_message_closes_the_connection_with_a_reason() {
    let (_dir, host, owner) = Host::with_demo().await;
    let mut socket = Socket::open(&host, "demo", &owner).await;
    socket.send_raw(vec![0xff; 8]).await;
    let ended = socket.end().await;
    assert!(
        matches!(&ended, Gone::Closed { code: 1011, reason } if !reason.is_empty()),
        "{ended:?}"
    );
    // Other clients are not disturbed.
    let mut other = Socket::open(&host, "demo", &owner).await;
    assert_eq!(other.call("add_note", &(1_u64, "a".to_owned())).await, Ok(()));
}
