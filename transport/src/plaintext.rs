//! To whom something may go unencrypted: to this machine, and to whomever the operator has named in so many words.

use std::net::IpAddr;

use reqwest::Url;

/// Something was to go unencrypted to another machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected https or an address of this machine, found plaintext to {host}: everybody on the way could read the tokens \
     and change what is said; use https, or, if nobody else is on that way, set {setting}"
)]
pub struct PlaintextRefused {
    /// The host, without a user or a password.
    pub host: String,
    /// What allows it.
    pub setting: &'static str,
}

/// Refuses a url to which something would go unencrypted over a network, unless that is allowed. `setting` is what allows it,
/// in the caller's words.
pub fn check(url: &str, allowed: bool, setting: &'static str) -> Result<(), PlaintextRefused> {
    if allowed {
        return Ok(());
    }
    let refused = |host: &str| PlaintextRefused {
        host: host.to_owned(),
        setting,
    };
    let Ok(parsed) = Url::parse(url) else {
        return Err(refused("an address that is no url"));
    };
    let host = parsed.host_str().unwrap_or_default();
    match parsed.scheme() {
        "https" | "wss" => Ok(()),
        _ if is_loopback(host) => Ok(()),
        _ => Err(refused(host)),
    }
}

/// Whether a url leads to this machine.
pub fn leads_here(url: &str) -> bool {
    let url = Url::parse(url).ok();
    url.as_ref().and_then(Url::host_str).is_some_and(is_loopback)
}

/// Whether a host is this machine: an address of its loopback, or the name `localhost`. Nothing is resolved: whoever
/// answers for another name could have it lead here now, and elsewhere later.
pub fn is_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match address.unwrap_or(host).parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

/// Whether a url says that nothing is encrypted.
pub(crate) fn is_plaintext(url: &str) -> bool {
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
    !["https", "wss"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTING: &str = "gate.allow_plaintext = true";

    #[test]
    fn plaintext_goes_to_this_machine_alone() {
        for (url, good) in [
            ("https://lane.example", true),
            ("HTTPS://lane.example", true),
            ("wss://10.0.0.1:3000", true),
            ("http://127.0.0.1:3000", true),
            ("http://127.255.0.9", true),
            ("http://[::1]:3000/sync", true),
            ("http://[::ffff:127.0.0.1]", true),
            ("ws://localhost:3000", true),
            ("http://LOCALHOST", true),
            ("http://lane.example", false),
            ("http://postgres:3000", false),
            ("ws://10.0.0.1", false),
            ("http://0.0.0.0:3000", false),
            ("http://[::]:3000", false),
            ("http://[::ffff:10.0.0.1]", false),
            ("http://128.0.0.1", false),
            // Names that lead to this machine today.
            ("http://localhost.localdomain", false),
            ("http://ip6-localhost", false),
            ("http://127.0.0.1.example", false),
            ("http://localhost.example", false),
            ("http://a.localhost", false),
            // What stands before @ is no host.
            ("http://localhost@lane.example", false),
            ("http://127.0.0.1:3000@lane.example/", false),
            ("http://lane.example/#@localhost", false),
            ("http://lane.example?localhost", false),
            ("ftp://lane.example", false),
            ("lane.example:3000", false),
            ("http://", false),
            ("", false),
        ] {
            assert_eq!(check(url, false, SETTING).is_ok(), good, "{url:?}");
            assert_eq!(check(url, true, SETTING), Ok(()), "{url:?}");
        }
    }

    #[test]
    fn a_refusal_names_the_host_and_the_setting_and_no_password() {
        let refused = check("http://me:hunter2@lane.example:3000/x", false, SETTING).unwrap_err();
        let said = refused.to_string();
        assert!(said.contains("lane.example") && said.contains(SETTING), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }

    #[test]
    fn only_https_and_wss_are_encrypted() {
        for (url, plain) in [
            ("https://a", false),
            ("WSS://a", false),
            ("http://a", true),
            ("ws://a", true),
            ("a", true),
        ] {
            assert_eq!(is_plaintext(url), plain, "{url}");
        }
    }
}
