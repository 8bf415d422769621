//! What a request says: who asks, and for which connection.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderValue;
use axum::http::header::{
    CONNECTION, HeaderMap, HeaderName, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use spacetimedb_client_api_messages::websocket::v2::BIN_PROTOCOL;

/// The header in which a proxy names the client's address.
pub(crate) const FORWARDED_FOR: &str = "x-forwarded-for";

/// The address that asks. The operator's proxy appends it to the header as the last one; anybody can write the earlier
/// ones.
pub(crate) fn asker(headers: &HeaderMap, peer: IpAddr, behind_proxy: bool) -> IpAddr {
    if !behind_proxy {
        return peer;
    }
    let last = headers.get_all(FORWARDED_FOR).iter().next_back();
    let last = last
        .and_then(|value| value.to_str().ok()?.rsplit(',').next())
        .map(str::trim);
    let address = |text: &str| {
        let bare = text.trim_start_matches('[').trim_end_matches(']').parse().ok();
        bare.or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
    };
    last.and_then(address).unwrap_or(peer)
}

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

/// The options of a connection, written anew. `None` if one is foreign.
pub(crate) fn options(query: &str) -> Option<String> {
    let mut options = String::new();
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
        options.push(if options.is_empty() { '?' } else { '&' });
        options.push_str(pair);
    }
    Some(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_options_of_a_connection_pass() {
        for (query, good) in [
            ("", Some("")),
            ("compression=Gzip", Some("?compression=Gzip")),
            (
                "compression=None&connection_id=00112233445566778899aabbccddeeff&confirmed=true",
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

    #[test]
    fn the_address_is_the_peers_or_the_last_that_the_operators_proxy_names() {
        let peer: IpAddr = "10.0.0.1".parse().unwrap();
        let of = |said: &str, behind_proxy| {
            let mut headers = HeaderMap::new();
            headers.append(FORWARDED_FOR, HeaderValue::from_str(said).unwrap());
            asker(&headers, peer, behind_proxy).to_string()
        };
        assert_eq!(of("1.2.3.4", false), "10.0.0.1");
        for (said, found) in [
            ("6.6.6.6, 1.2.3.4", "1.2.3.4"),
            ("1.2.3.4:567", "1.2.3.4"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:567", "2001:db8::1"),
            ("unknown", "10.0.0.1"),
        ] {
            assert_eq!(of(said, true), found, "{said}");
        }
    }
}
