//! Accepts HTTP requests and WebSockets.

use futures_util::{SinkExt, StreamExt};
use spacetimedb_sdk::__codegen::__lib::bsatn;
use spacetimedb_sdk::__codegen::__ws::v2::*;
use spacetimedb_sdk::{ConnectionId, Identity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::FakeHost;
use super::connection::Connection;

impl FakeHost {
    pub(super) async fn serve(self, mut stream: TcpStream) {
        if self.state().hung {
            self.change(|state| state.seen.unanswered += 1);
            let mut request = vec![0; 8192];
            while stream.read(&mut request).await.is_ok_and(|read| read > 0) {}
            return self.change(|state| state.seen.given_up += 1);
        }
        let mut head = vec![0; 8192];
        // A client sends its request in one piece, and an upgrade waits for the answer.
        let Ok(read) = stream.peek(&mut head).await else { return };
        let head = String::from_utf8_lossy(&head[..read]).into_owned();
        let token = head
            .lines()
            .find_map(|line| {
                line.to_lowercase()
                    .starts_with("authorization: bearer ")
                    .then(|| line[22..].to_owned())
            })
            .unwrap_or_default();
        if let Some(path) = head.strip_prefix("GET /api/sync/streams/") {
            let path = path.split(' ').next().unwrap_or_default().to_owned();
            return self.serve_history(stream, token, path).await;
        }
        let confirmed = head
            .lines()
            .next()
            .is_some_and(|asked| asked.contains("confirmed=true"));
        let refused = self.state().refused.get(&token).cloned();
        let unaccepted = self.state().unaccepted.get(&token).copied();
        if head.starts_with("POST ") {
            let mut request = vec![0; 8192];
            let _ = stream.read(&mut request).await;
            self.change(|state| state.seen.asked.push(token));
            let (status, body) = match refused {
                Some(refusal) => ("403 Forbidden", refusal),
                None => ("200 OK", "[]".to_owned()),
            };
            let length = body.len();
            let answer = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
            let _ = stream.write_all(answer.as_bytes()).await;
            // Read the rest of the request, or closing would look like a failure.
            let _ = stream.shutdown().await;
            while stream.read(&mut request).await.is_ok_and(|read| read > 0) {}
            return;
        }
        if let Some(status) = unaccepted {
            let mut request = vec![0; 8192];
            let _ = stream.read(&mut request).await;
            let answer = format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
            return;
        }
        #[allow(clippy::result_large_err)]
        let accept = |_: &Request, mut response: Response| {
            let protocol = BIN_PROTOCOL.parse().unwrap();
            response.headers_mut().insert("sec-websocket-protocol", protocol);
            Ok(response)
        };
        let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, accept).await else {
            return;
        };
        if refused.is_some() {
            let _ = socket.close(None).await;
            return;
        }
        let mut changed = self.changed.subscribe();
        let mut connection = Connection::new(self.clone(), token.clone());
        self.change(|state| {
            state.seen.served.push(token.clone());
            state.seen.confirmed.push(confirmed);
        });
        let hello = ServerMessage::InitialConnection(InitialConnection {
            identity: Identity::ZERO,
            connection_id: ConnectionId::ZERO,
            token: "".into(),
        });
        let mut out = vec![hello];
        loop {
            for message in out.drain(..) {
                let mut bytes = vec![0];
                bytes.extend(bsatn::to_vec(&message).unwrap());
                if socket.send(Message::Binary(Bytes::from(bytes))).await.is_err() {
                    self.change(|state| state.seen.ended.push(token.clone()));
                    return;
                }
            }
            tokio::select! {
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => {
                        out = connection.answer(bsatn::from_slice(&bytes).unwrap());
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => {
                        self.change(|state| state.seen.ended.push(token.clone()));
                        return;
                    }
                    Some(Ok(_)) => {}
                },
                _ = changed.changed() => {
                    if self.state().cut.contains(&token) {
                        self.change(|state| state.seen.ended.push(token.clone()));
                        return;
                    }
                    out = connection.news();
                }
            }
        }
    }
}
