//! Finds out why SpacetimeDB closed a connection before it served.
//!
//! When the module's `client_connected` refuses, SpacetimeDB accepts the WebSocket and closes it without a reason. The
//! same reducer also runs around every HTTP request, and there its error is the answer. So the client asks for the
//! contract over HTTP with the same credential.

use reqwest::StatusCode;
use spacetime_sync_proto::Refusal;
use spacetime_sync_proto::access::Incompatible;

use super::tokens::{read_incompatible, read_up_to};
use crate::config::ClientConfig;

/// Longest answer that is read: the contract, or a refusal.
const ANSWER_BYTES: usize = 64 * 1024;
/// The HTTP status with which SpacetimeDB reports a failed reducer.
const REDUCER_FAILED: u16 = 530;

/// Why the module refuses a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Refused(Refusal),
    Incompatible(Box<Incompatible>),
}

/// Asks SpacetimeDB why it closed. `None` without an answer in time.
pub(super) async fn ask_reason(config: &ClientConfig, database: &str, token: Option<&str>) -> Option<Reason> {
    let ask = async {
        let url = format!("{}/sql", database_url(&config.uri, database));
        let http = config
            .transport
            .http(&url)
            .timeout(config.limits.reason_timeout)
            .build()?;
        let mut request = http.post(url).body("SELECT * FROM sync_contract");
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        request.send().await
    };
    let answer = match ask.await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::debug!(error = %error.without_url(), "cannot find out why SpacetimeDB closed the connection");
            return None;
        }
    };
    let status = answer.status();
    if status != StatusCode::FORBIDDEN && status.as_u16() != REDUCER_FAILED {
        return None;
    }
    read_reason(&read_up_to(answer, ANSWER_BYTES).await.ok()?)
}

fn read_reason(body: &[u8]) -> Option<Reason> {
    let text = std::str::from_utf8(body).ok()?.trim();
    // The larger form first: the smaller one would also accept it.
    if let Some(incompatible) = read_incompatible(text.as_bytes()) {
        return Some(Reason::Incompatible(Box::new(incompatible)));
    }
    Refusal::from_wire(text).map(Reason::Refused)
}

/// The address of a database over HTTP. The SDK also accepts WebSocket addresses.
pub(super) fn database_url(uri: &str, database: &str) -> String {
    let http = match uri.split_once("://") {
        Some(("ws", rest)) => format!("http://{rest}"),
        Some(("wss", rest)) => format!("https://{rest}"),
        Some(_) | None => uri.to_owned(),
    };
    format!("{}/v1/database/{database}", http.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use spacetime_sync_proto::RefusalCode;
    use spacetime_sync_proto::access::{ClientVersion, Compatibility};

    use super::*;

    #[test]
    fn the_address_is_spacetimedbs_own() {
        for uri in ["http://host:3000", "http://host:3000/", "ws://host:3000"] {
            assert_eq!(database_url(uri, "lane"), "http://host:3000/v1/database/lane");
        }
        assert_eq!(database_url("wss://host", "lane"), "https://host/v1/database/lane");
    }

    #[test]
    fn only_a_refusal_of_ours_is_a_reason() {
        let refusal = Refusal::new(RefusalCode::TokenRevoked, "gone");
        assert_eq!(
            read_reason(refusal.to_wire().as_bytes()),
            Some(Reason::Refused(refusal))
        );
        let client = ClientVersion {
            client_build_id: "x".to_owned(),
            protocol_version: String::new(),
            schema_version: 1,
            oldest_schema_version: None,
            surface: String::new(),
        };
        let incompatible = Compatibility::default().check(&client).unwrap_err();
        let body = serde_json::to_vec(&incompatible).unwrap();
        assert_eq!(read_reason(&body), Some(Reason::Incompatible(incompatible)));
        for body in ["", "no such table", "{}", "\u{0}"] {
            assert_eq!(read_reason(body.as_bytes()), None, "{body:?}");
        }
        assert_eq!(read_reason(&[0xff]), None);
    }
}
