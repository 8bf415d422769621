//! What a request says: for which connection it asks.

use axum::http::HeaderValue;
use axum::http::header::{
    CONNECTION, HeaderMap, HeaderName, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use spacetimedb_client_api_messages::websocket::v2::BIN_PROTOCOL;

/// The key of a request for a WebSocket of our protocol.
pub(crate) fn socket_key(headers: &HeaderMap) -> Option<HeaderValue> {
    let says = |name: HeaderName, word: &str| {
        let mut words = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        words.any(|value| value.split(',').any(|found| found.trim().eq_ignore_ascii_case(word)))
    };
    let good = says(CONNECTION, "upgrade")
        && says(UPGRADE, "websocket")
        && says(SEC_WEBSOCKET_VERSION, "13")
        && says(SEC_WEBSOCKET_PROTOCOL, BIN_PROTOCOL);
    headers.get(SEC_WEBSOCKET_KEY).filter(|_| good).cloned()
}

/// The options of a connection, written anew. `None` if one is foreign. SpacetimeDB is asked to compress nothing, whatever the
/// client takes: it would do so on its own cores as often as one client asks, and the gate would not see what it answers.
pub(crate) fn options(query: &str) -> Option<String> {
    let mut options = "?compression=None".to_owned();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=')?;
        let known = match name {
            "compression" => ["None", "Gzip", "Brotli"].contains(&value),
            "confirmed" => ["true", "false"].contains(&value),
            "connection_id" => value.len() == 32 && value.bytes().all(|byte| byte.is_ascii_hexdigit()),
            _ => false,
        };
        if !known {
            return None;
        }
        if name != "compression" {
            options.push('&');
            options.push_str(pair);
        }
    }
    Some(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_options_of_a_connection_pass() {
        for (query, good) in [
            ("", Some("?compression=None")),
            ("compression=Gzip", Some("?compression=None")),
            (
                "connection_id=00112233445566778899aabbccddeeff&compression=Brotli&confirmed=true",
                Some("?compression=None&connection_id=00112233445566778899aabbccddeeff&confirmed=true"),
            ),
            ("token=abc", None),
            ("compression=Zip", None),
            ("confirmed", None),
            ("confirmed=true%26token=a", None),
            ("light=true", None),
        ] {
            assert_eq!(options(query).as_deref(), good, "{query}");
        }
    }
}
