//! Whether a database is the right one, before anything is said to it.
//!
//! A client connects by the database's identity, so that no other one can take the name. But whoever publishes after a
//! database was deleted may get its identity. So the client asks for the owner first.

use reqwest::StatusCode;
use spacetime_sync_proto::DatabasePin;

use super::connect::ConnectFailure;
use super::reason::database_url;
use super::tokens::read_up_to;
use crate::config::ClientConfig;
use crate::session::status::Disconnect;

/// Longest answer that is read.
const ANSWER_BYTES: usize = 64 * 1024;

/// Asks SpacetimeDB, or the gate before it, who owns the database of this identity.
pub(super) async fn check(config: &ClientConfig, pin: &DatabasePin, token: Option<&str>) -> Result<(), ConnectFailure> {
    let unreachable = |detail: String| ConnectFailure::Later(Disconnect::Unreachable(detail));
    let url = database_url(&config.uri, pin.database_identity.as_str());
    let http = config
        .transport
        .http(&url)
        .timeout(config.limits.connect_timeout)
        .build()
        .map_err(|error| unreachable(error.to_string()))?;
    let mut request = http.get(url);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let answer = request.send().await;
    let answer = answer.map_err(|error| unreachable(error.without_url().to_string()))?;
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED => return Err(ConnectFailure::Unauthorized),
        StatusCode::FORBIDDEN => return Err(ConnectFailure::Forbidden),
        StatusCode::NOT_FOUND => {
            let identity = pin.database_identity.to_string();
            return Err(ConnectFailure::Later(Disconnect::NoDatabase(identity)));
        }
        status => return Err(unreachable(format!("it answered {status}, asked which database it is"))),
    }
    let body = read_up_to(answer, ANSWER_BYTES).await.map_err(unreachable)?;
    let found = serde_json::from_slice(&body).ok();
    match found.as_ref().and_then(DatabasePin::from_answer) {
        Some(found) if found == *pin => Ok(()),
        Some(found) => Err(ConnectFailure::Later(Disconnect::WrongDatabase {
            expected: Box::new(pin.clone()),
            found: Box::new(found),
        })),
        None => Err(unreachable("it does not say which database it is".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use serde_json::json;
    use spacetime_sync_proto::StreamId;

    use super::*;

    fn pin(owner: &str) -> DatabasePin {
        DatabasePin {
            database_identity: "c2".repeat(32).parse().unwrap(),
            owner_identity: owner.repeat(64).parse().unwrap(),
        }
    }

    /// The verdict on a server that answers so.
    async fn verdict(status: &'static str, body: String) -> Result<(), ConnectFailure> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let host = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap();
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let config = ClientConfig::new(format!("http://{address}"), "lane", vec![StreamId::new("a").unwrap()]);
        let verdict = check(&config, &pin("d"), Some("token")).await;
        let asked = host.join().unwrap();
        assert!(
            asked.starts_with(&format!("GET /v1/database/{} ", "c2".repeat(32))),
            "{asked}"
        );
        verdict
    }

    #[tokio::test]
    async fn only_the_pinned_database_of_the_pinned_owner_is_right() {
        let answer = |owner: &str| pin(owner).to_answer().to_string();
        assert_eq!(verdict("200 OK", answer("d")).await, Ok(()));
        let wrong = ConnectFailure::Later(Disconnect::WrongDatabase {
            expected: Box::new(pin("d")),
            found: Box::new(pin("e")),
        });
        assert_eq!(verdict("200 OK", answer("e")).await, Err(wrong));
        let gone = ConnectFailure::Later(Disconnect::NoDatabase("c2".repeat(32)));
        assert_eq!(verdict("404 Not Found", String::new()).await, Err(gone));
        assert_eq!(
            verdict("403 Forbidden", String::new()).await,
            Err(ConnectFailure::Forbidden)
        );
        assert_eq!(
            verdict("401 Unauthorized", String::new()).await,
            Err(ConnectFailure::Unauthorized)
        );
        for (status, body) in [
            ("503 Service Unavailable", String::new()),
            ("200 OK", "a page of a proxy".to_owned()),
            ("200 OK", json!({ "owner_identity": 1 }).to_string()),
            ("302 Found", String::new()),
        ] {
            let verdict = verdict(status, body).await;
            let unknown = matches!(verdict, Err(ConnectFailure::Later(Disconnect::Unreachable(_))));
            assert!(unknown, "{status}: {verdict:?}");
        }
    }
}
