//! The addresses of relays: when two are the same, and what of one may be shown.

use url::Url;

/// The one form of a relay's address, as the mirror knows it: `wss://a` and `WSS://A:443/` are the same relay. What is no address
/// stays as it is.
pub fn one_relay(address: &str) -> String {
    let Ok(mut url) = Url::parse(address) else {
        return address.to_owned();
    };
    // It is never sent.
    url.set_fragment(None);
    let is_bare = url.path() == "/" && url.query().is_none();
    let text = url.as_str();
    text.strip_suffix('/').filter(|_| is_bare).unwrap_or(text).to_owned()
}

/// What of a relay's address may stand in a list, a metric, a log, or on record: who connects and with which token is left out.
pub fn shown_relay(address: &str) -> String {
    let Ok(url) = Url::parse(address) else {
        return "an address that is no url".to_owned();
    };
    let (host, path) = (url.host_str().unwrap_or_default(), url.path());
    let user = if has_user(&url) { "…@" } else { "" };
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let rest = if url.query().is_some() { "?…" } else { "" };
    let path = if path == "/" && rest.is_empty() { "" } else { path };
    format!("{}://{user}{host}{port}{path}{rest}", url.scheme())
}

/// What somebody said, without what an address must not show. A relay or a library may repeat the address.
pub fn hide_relay(words: &str, address: &str) -> String {
    let Ok(url) = Url::parse(address) else {
        return words.to_owned();
    };
    let (user, password) = (url.username(), url.password());
    // A name without a password is a token.
    let (pair, secret) = match password {
        Some(password) => (format!("{user}:{password}@"), password),
        None => (format!("{user}@"), user),
    };
    let secrets = [pair.as_str(), secret, url.query().unwrap_or_default()].map(str::to_owned);
    // A token alone may be repeated, too.
    let values = url.query_pairs().map(|(_, value)| value.into_owned());
    let mut secrets: Vec<String> = secrets.into_iter().chain(values).collect();
    secrets.retain(|secret| !["", "@"].contains(&secret.as_str()));
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    let hidden = |words: String, secret: &String| {
        let rest = if *secret == pair { "…@" } else { "…" };
        words.replace(secret.as_str(), rest)
    };
    secrets.iter().fold(words.to_owned(), hidden)
}

fn has_user(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_has_one_address_however_it_is_written() {
        for (written, expected) in [
            ("wss://relay.example", "wss://relay.example"),
            ("wss://relay.example/", "wss://relay.example"),
            ("WSS://Relay.Example:443/#x", "wss://relay.example"),
            ("ws://127.0.0.1:80", "ws://127.0.0.1"),
            ("ws://127.0.0.1:7777/", "ws://127.0.0.1:7777"),
            ("wss://relay.example/nostr", "wss://relay.example/nostr"),
            ("wss://relay.example/nostr/", "wss://relay.example/nostr/"),
            ("wss://relay.example?token=1", "wss://relay.example/?token=1"),
            ("wss://me:secret@relay.example/", "wss://me:secret@relay.example"),
            ("wss://", "wss://"),
        ] {
            assert_eq!(one_relay(written), expected, "{written}");
            assert_eq!(one_relay(expected), expected);
        }
    }

    #[test]
    fn no_credential_of_an_address_is_shown() {
        for (address, expected) in [
            ("wss://relay.example/", "wss://relay.example"),
            ("ws://[::1]:7777", "ws://[::1]:7777"),
            ("wss://relay.example/nostr", "wss://relay.example/nostr"),
            ("wss://me:hunter2@relay.example", "wss://…@relay.example"),
            ("wss://hunter2@relay.example/a", "wss://…@relay.example/a"),
            ("wss://relay.example?token=hunter2", "wss://relay.example/?…"),
            ("wss://relay.example/a?hunter2#hunter2", "wss://relay.example/a?…"),
            ("hunter2", "an address that is no url"),
        ] {
            assert_eq!(shown_relay(address), expected);
        }
    }

    #[test]
    fn what_others_say_shows_no_credential_either() {
        let address = "wss://me:hunter2@relay.example/?token=hunter3";
        for (words, expected) in [
            (
                "cannot reach wss://me:hunter2@relay.example",
                "cannot reach wss://…@relay.example",
            ),
            ("blocked: hunter3 has expired", "blocked: … has expired"),
            ("it is me: ?token=hunter3", "it is me: ?…"),
        ] {
            assert_eq!(hide_relay(words, address), expected);
        }
        assert_eq!(hide_relay("time out", "wss://relay.example"), "time out");
    }
}
