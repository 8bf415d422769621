//! The addresses of relays: when two are the same, and what of one may be shown.

use url::{Url, form_urlencoded};

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

/// What somebody said, without what an address must not show. A relay or a library may repeat the address, or a part of it,
/// as it is written or decoded.
pub fn hide_relay(words: &str, address: &str) -> String {
    let Ok(url) = Url::parse(address) else {
        return words.to_owned();
    };
    let mut secrets: Vec<(String, &str)> = Vec::new();
    let mut hide = |part: &str, by| secrets.extend(forms(part).map(|form| (form, by)));
    let user = url.username();
    // A name without a password is a token.
    match url.password() {
        Some(password) => {
            hide(&format!("{user}:{password}@"), "…@");
            hide(alone(password), "…");
        }
        None if user.is_empty() => {}
        None => {
            hide(&format!("{user}@"), "…@");
            hide(alone(user), "…");
        }
    }
    let query = url.query().unwrap_or_default();
    hide(query, "…");
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some((_, "")) => {}
            Some((_, value)) => {
                hide(pair, "…");
                hide(alone(value), "…");
            }
            None => hide(alone(pair), "…"),
        }
    }
    secrets.retain(|(secret, _)| !secret.is_empty());
    secrets.sort_by_key(|(secret, _)| std::cmp::Reverse(secret.len()));
    let hidden = |words: String, (secret, by): &(String, &str)| words.replace(secret.as_str(), by);
    secrets.iter().fold(words.to_owned(), hidden)
}

/// What is so short stands in any sentence, and is no credential: it is hidden only together with what it is the value of.
const SHORT_BYTES: usize = 2;

fn alone(part: &str) -> &str {
    if part.len() > SHORT_BYTES { part } else { "" }
}

/// A part of an address as it is written, and decoded; in a form a `+` is a space.
fn forms(part: &str) -> impl Iterator<Item = String> {
    let decoded = |part: &str| {
        let part = part.replace('&', "%26").replace('=', "%3D");
        let mut pairs = form_urlencoded::parse(part.as_bytes());
        pairs.next().map(|(name, _)| name.into_owned()).unwrap_or_default()
    };
    [part.to_owned(), decoded(part), decoded(&part.replace('+', "%2B"))].into_iter()
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

    #[test]
    fn a_credential_is_hidden_in_each_of_its_forms_and_nothing_else_is() {
        for (address, words, expected) in [
            ("wss://me:p%40ss@h", "p%40ss or p@ss", "… or …"),
            ("wss://me:p%40ss@h", "wss://me:p@ss@h", "wss://…@h"),
            ("wss://me:p+ss@h", "p+ss", "…"),
            ("wss://p%40ss@h", "p@ss is p%40ss", "… is …"),
            ("wss://h/?a=x%2Fy&b=1", "x%2Fy, x/y, a=x/y", "…, …, …"),
            ("wss://h/?a=x%2Fy&b=1", "a=x/y&b=1", "…"),
            ("wss://h/?a=x+y", "x+y x y", "… …"),
            ("wss://h/?hunter2&x=1", "no hunter2", "no …"),
            ("wss://h/?a=hunter2=&x=1", "no hunter2=", "no …"),
            // It is no credential, and a sentence without it is no sentence.
            ("wss://h/?v=1&x=", "v=1: x=1 of 11", "…: x=1 of 11"),
        ] {
            assert_eq!(hide_relay(words, address), expected, "{address}");
        }
    }
}
