//! Who asks: the peer, or whom the operator's proxy names.
//!
//! A proxy appends the client to what the client itself has written. So only the last one counts, and only in the header
//! that the proxy writes: anybody can write the other one.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::header::{FORWARDED, HeaderMap, HeaderName};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use spacetime_sync_proto::access::network;

/// The header that most proxies write.
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Longest name of a client that counts for itself. A proxy's own are shorter.
const NAME_BYTES: usize = 64;
/// What a proxy says that does not know its client.
const UNKNOWN: &str = "unknown";

/// Whether all requests come through the operator's proxy, and in which header it names the client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Proxy {
    /// There is no proxy: the peer is the client.
    #[default]
    None,
    /// `X-Forwarded-For`, in the configuration also `true`.
    XForwardedFor,
    /// `Forwarded`, of RFC 7239.
    Forwarded,
}

impl Proxy {
    fn header(self) -> Option<HeaderName> {
        match self {
            Self::None => None,
            Self::XForwardedFor => Some(X_FORWARDED_FOR),
            Self::Forwarded => Some(FORWARDED),
        }
    }

    /// What the configuration must say where a proxy is likely, if it says nothing. `key` is where it should say it.
    pub fn undecided(key: &str) -> String {
        format!(
            "expected a choice, because the issuer's url is https: \"x-forwarded-for\" or \"forwarded\", if all requests \
             come through a proxy of yours that names the client in this header, or {key} = false, if clients connect \
             directly. Otherwise all clients share the limits of one address"
        )
    }
}

impl Serialize for Proxy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.header() {
            None => serializer.serialize_bool(false),
            Some(header) => serializer.serialize_str(header.as_str()),
        }
    }
}

impl<'de> Deserialize<'de> for Proxy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected false, true, \"x-forwarded-for\" or \"forwarded\"")]
        enum Said {
            Whether(bool),
            Header(Header),
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        enum Header {
            XForwardedFor,
            Forwarded,
        }
        Ok(match Said::deserialize(deserializer)? {
            Said::Whether(false) => Self::None,
            Said::Whether(true) | Said::Header(Header::XForwardedFor) => Self::XForwardedFor,
            Said::Header(Header::Forwarded) => Self::Forwarded,
        })
    }
}

/// For whom a request counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A network, see [`network`].
    Network(IpAddr),
    /// A client that a proxy names without its address: `unknown`, or a name that it has made up, for example `_hidden`.
    Named(Box<str>),
}

impl Origin {
    /// The origin of an address.
    pub fn of(address: IpAddr) -> Self {
        Self::Network(network(address))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(address) => address.fmt(f),
            Self::Named(name) => name.fmt(f),
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// The client's address, as far as it is known: otherwise the proxy's.
    pub address: IpAddr,
    /// For whom the request counts.
    pub origin: Origin,
}

impl From<IpAddr> for Asker {
    fn from(address: IpAddr) -> Self {
        Self {
            address,
            origin: Origin::of(address),
        }
    }
}

/// Who asks with these headers, from this peer.
pub fn asker(sent: &HeaderMap, peer: IpAddr, proxy: Proxy) -> Asker {
    let last = |header| sent.get_all(header).iter().next_back().map(|value| value.as_bytes());
    let said = proxy.header().and_then(last).map(String::from_utf8_lossy);
    let named = said.as_deref().and_then(|said| match proxy {
        Proxy::Forwarded => forwarded(said),
        Proxy::XForwardedFor | Proxy::None => said.rsplit(',').next(),
    });
    let named = named.map(str::trim).unwrap_or_default();
    match (address(named), name(named)) {
        (Some(address), _) => address.into(),
        (None, Some(name)) => Asker {
            address: peer,
            origin: Origin::Named(name.to_ascii_lowercase().into()),
        },
        // Whatever else it is, a client may have chosen it. All of these count together, for the proxy.
        (None, None) => peer.into(),
    }
}

/// Whether a request says that a proxy has passed it on.
pub fn is_passed_on(sent: &HeaderMap) -> bool {
    sent.contains_key(X_FORWARDED_FOR) || sent.contains_key(FORWARDED)
}

/// Notices, once, a proxy of which the configuration says nothing.
#[derive(Debug, Default)]
pub struct Unexpected(AtomicBool);

impl Unexpected {
    /// Looks at a request. `key` is where the configuration should say it.
    pub fn notice(&self, sent: &HeaderMap, peer: IpAddr, key: &str) {
        if is_passed_on(sent) && !self.0.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                %peer,
                "a request names a client in x-forwarded-for or forwarded, and {key} is off: if that is a proxy of yours, all \
                 of its clients share the limits of one address"
            );
        }
    }
}

/// The address in `ip`, `ip:port`, `[ip]` or `[ip]:port`. The port may be a name, as RFC 7239 allows.
fn address(name: &str) -> Option<IpAddr> {
    let bare = match name.strip_prefix('[') {
        Some(rest) => {
            let (inside, port) = rest.split_once(']')?;
            (port.is_empty() || port.starts_with(':')).then_some(inside)?
        }
        None => match name.split_once(':') {
            Some((before, port)) if !port.contains(':') => before,
            Some(_) | None => name,
        },
    };
    let without_zone = bare.split_once('%').map_or(bare, |(address, _)| address);
    without_zone.parse().ok()
}

/// The name in `unknown`, `_name`, `unknown:port` or `_name:port`, as RFC 7239 writes them.
fn name(text: &str) -> Option<&str> {
    let in_word = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(in_word);
    let (name, port) = text.split_once(':').unwrap_or((text, "0"));
    let is_name = name.starts_with('_') || name.eq_ignore_ascii_case(UNKNOWN);
    (is_name && name.len() <= NAME_BYTES && is_word(name) && is_word(port)).then_some(name)
}

/// What the last element of `Forwarded` has as `for`.
fn forwarded(said: &str) -> Option<&str> {
    let element = from_the_end(said, b',').next()?;
    from_the_end(element, b';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let is_for = name.trim().eq_ignore_ascii_case("for");
        is_for.then(|| value.trim().trim_matches('"'))
    })
}

/// The parts between separators outside quotes, the last one first. Read from the end, a quote that a client leaves open
/// swallows nothing of what the proxy appends.
fn from_the_end(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut left = Some(text);
    std::iter::from_fn(move || {
        let text = left?;
        let bytes = text.as_bytes();
        let mut quoted = false;
        let found = (0..bytes.len()).rev().find(|at| {
            quoted ^= bytes[*at] == b'"' && !is_escaped(bytes, *at);
            bytes[*at] == separator && !quoted
        });
        left = found.map(|at| &text[..at]);
        Some(found.map_or(text, |at| &text[at + 1..]))
    })
}

/// Whether an odd number of backslashes stands before this byte, so that it is one of the text itself.
fn is_escaped(bytes: &[u8], at: usize) -> bool {
    let backslashes = bytes[..at].iter().rev().take_while(|byte| **byte == b'\\');
    backslashes.count() % 2 == 1
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn of(proxy: Proxy, sent: &[(HeaderName, &str)]) -> (String, String) {
        let mut headers = HeaderMap::new();
        for (name, value) in sent {
            let value = HeaderValue::from_bytes(value.as_bytes());
            headers.append(name, value.unwrap_or_else(|error| panic!("{error}")));
        }
        let Asker { address, origin } = asker(&headers, PEER, proxy);
        (address.to_string(), origin.to_string())
    }

    #[test]
    fn without_a_proxy_the_peer_asks_whatever_it_writes() {
        let sent = [(X_FORWARDED_FOR, "1.2.3.4"), (FORWARDED, "for=1.2.3.4")];
        assert_eq!(of(Proxy::None, &sent), ("10.0.0.1".to_owned(), "10.0.0.1".to_owned()));
    }

    #[test]
    fn x_forwarded_for_names_the_client_last() {
        for (said, address, origin) in [
            ("1.2.3.4", "1.2.3.4", "1.2.3.4"),
            ("6.6.6.6, 1.2.3.4", "1.2.3.4", "1.2.3.4"),
            ("1.2.3.4:567", "1.2.3.4", "1.2.3.4"),
            ("2001:db8::1:2:3:4", "2001:db8::1:2:3:4", "2001:db8::"),
            ("[2001:db8::1]", "2001:db8::1", "2001:db8::"),
            ("[2001:db8::1]:567", "2001:db8::1", "2001:db8::"),
            ("fe80::1%eth0", "fe80::1", "fe80::"),
            ("::ffff:1.2.3.4", "::ffff:1.2.3.4", "1.2.3.4"),
            // Whom the proxy names without an address counts for itself, and a port is no part of the name.
            ("6.6.6.6, Unknown", "10.0.0.1", "unknown"),
            ("unknown:567", "10.0.0.1", "unknown"),
            ("UNKNOWN:_p1", "10.0.0.1", "unknown"),
            ("_hidden", "10.0.0.1", "_hidden"),
            ("_Hidden:567", "10.0.0.1", "_hidden"),
            ("_a.b-c:_x", "10.0.0.1", "_a.b-c"),
            // All others count together.
            ("[2001:db8::1", "10.0.0.1", "10.0.0.1"),
            ("[2001:db8::1]x", "10.0.0.1", "10.0.0.1"),
            ("1.2.3.4.5", "10.0.0.1", "10.0.0.1"),
            ("somebody", "10.0.0.1", "10.0.0.1"),
            ("unknown1", "10.0.0.1", "10.0.0.1"),
            ("_a:b:c", "10.0.0.1", "10.0.0.1"),
            ("_a:", "10.0.0.1", "10.0.0.1"),
            ("_a b", "10.0.0.1", "10.0.0.1"),
            ("6.6.6.6,", "10.0.0.1", "10.0.0.1"),
            ("", "10.0.0.1", "10.0.0.1"),
        ] {
            let found = of(Proxy::XForwardedFor, &[(X_FORWARDED_FOR, said)]);
            assert_eq!(found, (address.to_owned(), origin.to_owned()), "{said}");
        }
        let long = format!("_{}", "x".repeat(NAME_BYTES));
        assert_eq!(of(Proxy::XForwardedFor, &[(X_FORWARDED_FOR, &long)]).1, "10.0.0.1");
        let twice = [(X_FORWARDED_FOR, "6.6.6.6"), (X_FORWARDED_FOR, "1.2.3.4")];
        assert_eq!(of(Proxy::XForwardedFor, &twice).0, "1.2.3.4");
        assert_eq!(of(Proxy::XForwardedFor, &[]).0, "10.0.0.1");
    }

    #[test]
    fn forwarded_names_the_client_last_too() {
        for (said, address, origin) in [
            ("for=1.2.3.4", "1.2.3.4", "1.2.3.4"),
            ("For=\"1.2.3.4:567\";proto=https;by=10.0.0.9", "1.2.3.4", "1.2.3.4"),
            ("for=6.6.6.6, for=1.2.3.4;host=\"a;b,c\"", "1.2.3.4", "1.2.3.4"),
            (
                "proto=http; for=\"[2001:db8:cafe::17]:4711\"",
                "2001:db8:cafe::17",
                "2001:db8:cafe::",
            ),
            ("for=\"[2001:db8::1]:_port\"", "2001:db8::1", "2001:db8::"),
            ("for=1.2.3.4:_port", "1.2.3.4", "1.2.3.4"),
            ("for=unknown", "10.0.0.1", "unknown"),
            ("for=\"_gazonk\"", "10.0.0.1", "_gazonk"),
            ("for=\"_gazonk:567\"", "10.0.0.1", "_gazonk"),
            ("for=\"unknown:_port\"", "10.0.0.1", "unknown"),
            ("for=somebody", "10.0.0.1", "10.0.0.1"),
            ("by=1.2.3.4", "10.0.0.1", "10.0.0.1"),
            ("for=", "10.0.0.1", "10.0.0.1"),
            // A client has opened a quote.
            ("for=\"6.6.6.6, for=1.2.3.4", "1.2.3.4", "1.2.3.4"),
            ("for=\"6.6.6.6, for=\"[2001:db8::1]\"", "2001:db8::1", "2001:db8::"),
            // The proxy repeats what a client has written, quoted.
            (r#"for=1.2.3.4;host="a\",for=6.6.6.6;x=\"b""#, "1.2.3.4", "1.2.3.4"),
            (r#"for=1.2.3.4;host="a\";for=6.6.6.6;x=\"b""#, "1.2.3.4", "1.2.3.4"),
            (r#"for=6.6.6.6;host="a\\",for=1.2.3.4;x="\\""#, "1.2.3.4", "1.2.3.4"),
        ] {
            let found = of(Proxy::Forwarded, &[(FORWARDED, said)]);
            assert_eq!(found, (address.to_owned(), origin.to_owned()), "{said}");
        }
    }

    #[test]
    fn a_client_cannot_write_the_header_that_the_proxy_does_not_write() {
        let sent = [(FORWARDED, "for=6.6.6.6"), (X_FORWARDED_FOR, "1.2.3.4")];
        assert_eq!(of(Proxy::XForwardedFor, &sent).0, "1.2.3.4");
        assert_eq!(of(Proxy::Forwarded, &sent).0, "6.6.6.6");
    }
}
