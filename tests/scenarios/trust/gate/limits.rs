//! What somebody may take of the gate, and of SpacetimeDB through it, and what stays for those beside him.

use std::net::SocketAddr;

use spacetime_sync_tests::words::{self, CONTRACT};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;

/// The key of a stream that somebody was granted.
async fn key(lane: &Lane) -> u64 {
    let rows = lane.rows("SELECT stream_key FROM stream_grant", false).await.unwrap();
    rows[0][0].as_u64().unwrap()
}

/// The subscription to the frames of a stream from one seq to another, both in its first section.
fn frames(stream_key: u64, after: u64, to: u64) -> String {
    words::frames(stream_key, after, to).remove(0)
}

async fn subscribed(socket: &mut Socket, query: &str) {
    socket.subscribe(query).await.unwrap();
    let applied = |message: &ServerMessage| matches!(message, ServerMessage::SubscribeApplied(_));
    socket.until(SOON, applied).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_holds_few_subscriptions_of_each_kind_over_all_its_connections() {
    let guarded = Guarded::start(&[]).await;
    let id = stream(1);
    writer(&guarded.lane, &id).append(1).await.unwrap();
    let token = guarded.token("probe", &id).await;
    let presence = words::presence(7);
    for query in [&presence, CONTRACT] {
        let mut socket = guarded.socket(&token).await;
        subscribed(&mut socket, query).await;
        subscribed(&mut socket, query).await;
        socket.subscribe(query).await.unwrap();
        let reason = socket.closed(SOON).await.unwrap();
        assert_eq!(code(&reason), Some(RefusalCode::RateLimited), "{query}: {reason}");
    }
    // Four connections with two copies of a stream each are all that a session has.
    let mut sockets = Vec::new();
    for _ in 0..4 {
        sockets.push(guarded.socket(&token).await);
    }
    let key = key(&guarded.lane).await;
    for socket in &mut sockets {
        for after in 0..2 {
            subscribed(socket, &frames(key, after, after + 100)).await;
        }
    }
    let mut newest = guarded.socket(&token).await;
    subscribed(&mut newest, &frames(key, 0, 100)).await;
    let reason = sockets[0].closed(SOON).await.unwrap();
    assert_eq!(code(&reason), Some(RefusalCode::RateLimited), "{reason}");
    assert_eq!(guarded.gate.metric("replaced_total").await.unwrap(), 1);
    subscribed(&mut sockets[1], CONTRACT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_subscribes_to_too_much_at_once_loses_its_connections_and_rests() {
    let guarded = Guarded::start(&[("subscription_bytes", (2 << 20).to_string())]).await;
    let (lane, id) = (&guarded.lane, stream(1));
    let mut large = Writer::new(&lane.authority, &id, "w", Payload::Fixed(30_000), 1);
    large.append_all(100, 100).await.unwrap();
    assert!(lane.published(SOON).await, "not everything is published");
    let rows = lane.rows("SELECT stream_key FROM sync_stream", false).await.unwrap();
    let key = rows[0][0].as_u64().unwrap();
    let token = guarded.token("greedy", &id).await;
    let mut sockets = Vec::new();
    for _ in 0..3 {
        sockets.push(guarded.socket(&token).await);
    }
    let ended = async |socket: &mut Socket| {
        let reason = socket.closed(SOON).await.unwrap();
        assert_eq!(code(&reason), Some(RefusalCode::RateLimited), "{reason}");
    };
    // Half of them are not too much.
    subscribed(&mut sockets[0], &frames(key, 50, 100)).await;
    sockets[0].subscribe(&frames(key, 0, 100)).await.unwrap();
    ended(&mut sockets[0]).await;
    subscribed(&mut sockets[1], CONTRACT).await;
    sockets[1].subscribe(&frames(key, 0, 100)).await.unwrap();
    ended(&mut sockets[1]).await;
    ended(&mut sockets[2]).await;
    let again = Socket::open(&guarded.gate.uri(), &lane.name, Some(&token))
        .await
        .unwrap();
    let refused = again.err().unwrap();
    assert_eq!(
        (refused.status, code(&refused.body)),
        (429, Some(RefusalCode::RateLimited))
    );
    // Nobody else rests with it.
    let mut other = guarded.socket(&guarded.token("other", &id).await).await;
    subscribed(&mut other, CONTRACT).await;
}

/// A request without a body, as bytes.
fn request(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: gate\r\n{headers}\r\n")
}

/// Everything that is answered until the socket is closed.
async fn answered(at: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(SOON, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_brings_one_request_and_an_address_has_few_that_bring_none() {
    let set = [("sockets", "64".to_owned()), ("address_sockets", "4".to_owned())];
    let guarded = Guarded::start(&set).await;
    let at = guarded.gate.address();
    let said = request("/v1/ping", "x-forwarded-for: 10.0.0.1\r\n");
    for _ in 0..2 {
        let answer = answered(at, &said).await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"),
            "{answer}"
        );
    }
    assert_eq!(
        guarded.gate.process.log().matches("gate.behind_proxy is off").count(),
        1
    );

    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(TcpStream::connect(at).await.unwrap());
    }
    let mut further = TcpStream::connect(at).await.unwrap();
    let mut nothing = Vec::new();
    // It may be closed with an error, because nobody reads what it says.
    let closed = timeout(SOON, further.read_to_end(&mut nothing)).await.unwrap();
    assert!(nothing.is_empty(), "{closed:?} {nothing:?}");
    assert!(guarded.gate.metric("turned_away_total").await.unwrap() > 0);
    drop(silent);
    let token = guarded.token("probe", &stream(1)).await;
    let deadline = Instant::now() + SOON;
    // The gate sees that the sockets are closed a moment later.
    while Socket::open(&guarded.gate.uri(), &guarded.lane.name, Some(&token))
        .await
        .is_err()
    {
        assert!(Instant::now() < deadline, "nobody gets in any more");
        tokio::time::sleep(spacetime_sync_tests::STEP).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_guesses_tokens_does_not_keep_a_neighbour_out() {
    let set = [
        ("address_failures_per_second", "1".to_owned()),
        ("address_failures_burst", "3".to_owned()),
    ];
    let guarded = Guarded::start(&set).await;
    let token = guarded.token("probe", &stream(1)).await;
    let held = guarded.socket(&token).await;
    let mut refused = Vec::new();
    while refused.last() != Some(&429) {
        let guess = Socket::open(&guarded.gate.uri(), &guarded.lane.name, Some("a.b.c")).await;
        refused.push(guess.unwrap().unwrap_err().status);
        assert!(refused.len() < 100, "{refused:?}");
    }
    assert!(refused.len() > 3 && refused[..3] == [401; 3], "{refused:?}");
    drop(held);
    guarded.socket(&token).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_takes_all_the_descriptors_that_it_can_get() {
    let guarded = Guarded::start(&[]).await;
    let path = format!("/proc/{}/limits", guarded.gate.process.id());
    let limits = std::fs::read_to_string(path).unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let [soft, hard, ..] = files.unwrap().split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("{limits}");
    };
    assert_eq!(soft, hard);
}

/// A bridge that answers a question only when the next one comes: that nobody was revoked.
async fn late_bridge() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut before: Option<BufReader<TcpStream>> = None;
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            while stream.read_line(&mut line).await.is_ok_and(|read| read > 2) {
                line.clear();
            }
            if let Some(mut before) = before.replace(stream) {
                let answer = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 14\r\n\r\n{\"revoked\":[]}";
                // A gate that waits no longer does not take it.
                let _ = before.write_all(answer.as_bytes()).await;
            }
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_hears_a_bridge_that_is_slow() {
    let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
    let gate = lane.gate(&[("bridge_url", late_bridge().await)]).unwrap();
    gate.until_ready(true).await.unwrap();
}
