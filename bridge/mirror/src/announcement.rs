//! What relays say that providers of trusted keys can do. Everything in it is a stranger's until it has passed here.

use std::collections::BTreeMap;
use std::time::Duration;

use nostr::{Event, JsonUtil as _};
use serde::Deserialize;
use spacetime_sync_authority::TrustedKey;
use spacetime_sync_proto::{Label, limit};

use crate::things::{AD_KIND, AD_SCHEMA, SCHEMA_TAG};

/// The longest announcement, as JSON.
pub const ANNOUNCEMENT_BYTES: usize = 131_072;
/// The most capabilities of one announcement.
const CAPABILITIES: usize = 32;
/// How far ahead of ours another clock may be.
pub(crate) const AHEAD_S: u64 = 60;
/// How long an announcement stands that does not say it.
const STANDS_S: u64 = 180;
/// The longest that one stands, whatever it says.
pub(crate) const LONGEST_S: u64 = 3_600;

/// A capability to publish here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// The provider's name here.
    pub provider_id: String,
    /// What it can do.
    pub capability: String,
    /// Which publication this is.
    pub version: u64,
    /// What it may cost, in satoshis. Advice.
    pub price_hint_sats: u64,
    /// Where; may be empty.
    pub region: String,
    /// A JSON object that says more.
    pub document: String,
    /// How long it stands from now on.
    pub stands_for: Duration,
}

/// Why an announcement has no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unheard {
    /// It is no event of Nostr, or longer than anybody reads.
    #[error("expected an event of at most {ANNOUNCEMENT_BYTES} bytes, found something else")]
    NoEvent,
    /// Its id or its signature is wrong.
    #[error("expected an id and a signature that fit, found others")]
    Forged,
    /// The mirror's own.
    #[error("it is our own")]
    Own,
    /// Nobody trusts its key.
    #[error("expected a trusted key, found {0}")]
    Stranger(String),
    /// It is about something else.
    #[error("expected kind 31990 and schema {AD_SCHEMA}, found another")]
    Elsewhere,
    /// It is void, or from the future.
    #[error("expected an announcement that stands, found one of another time")]
    Untimely,
    /// It does not say what it must.
    #[error("expected a provider and its capabilities: {0}")]
    Malformed(String),
}

#[derive(Deserialize)]
struct Content {
    capabilities: Vec<Capability>,
    provider_id: String,
}

#[derive(Deserialize)]
struct Capability {
    capability: String,
    document: String,
    price_hint_sats: u64,
    region: String,
}

/// Reads an announcement as a relay sent it.
pub fn read(json: &str, trusted: &[TrustedKey], own: &str, now_s: u64) -> Result<Vec<Announced>, Unheard> {
    if json.len() > ANNOUNCEMENT_BYTES {
        return Err(Unheard::NoEvent);
    }
    let event = Event::from_json(json).map_err(|_| Unheard::NoEvent)?;
    judge(&event, trusted, own, now_s)
}

/// What an announcement says, as far as it may be believed.
pub fn judge(event: &Event, trusted: &[TrustedKey], own: &str, now_s: u64) -> Result<Vec<Announced>, Unheard> {
    let author = event.pubkey.to_hex();
    if author == own {
        return Err(Unheard::Own);
    }
    let Some(key) = trusted.iter().find(|key| key.nostr_key == author) else {
        return Err(Unheard::Stranger(author));
    };
    let schema = event.tags.iter().map(|tag| tag.as_slice());
    let has_schema = |tag: &[String]| matches!(tag, [name, value, ..] if name == SCHEMA_TAG && value == AD_SCHEMA);
    if event.kind.as_u16() != AD_KIND || !schema.clone().any(has_schema) {
        return Err(Unheard::Elsewhere);
    }
    if event.as_json().len() > ANNOUNCEMENT_BYTES {
        return Err(Unheard::NoEvent);
    }
    event.verify().map_err(|_| Unheard::Forged)?;
    let created = event.created_at.as_secs();
    let ends = event
        .tags
        .expiration()
        .map_or(created.saturating_add(STANDS_S), |at| at.as_secs());
    let ends = ends.min(created.saturating_add(LONGEST_S));
    if created > now_s.saturating_add(AHEAD_S) || ends <= now_s {
        return Err(Unheard::Untimely);
    }
    let stands_for = Duration::from_secs(ends - now_s);
    capabilities(event, &key.provider_prefix, created, stands_for)
}

fn capabilities(event: &Event, prefix: &str, version: u64, stands_for: Duration) -> Result<Vec<Announced>, Unheard> {
    let malformed = |what: String| Unheard::Malformed(what);
    let content: Content = serde_json::from_str(&event.content).map_err(|error| malformed(error.to_string()))?;
    if event.tags.identifier() != Some(&content.provider_id) {
        return Err(malformed("the provider is not the name of the event".to_owned()));
    }
    if content.capabilities.len() > CAPABILITIES {
        return Err(malformed(format!("{} capabilities", content.capabilities.len())));
    }
    let provider_id = format!("{prefix}{}", content.provider_id);
    let name = |text: &str| Label::check(text).map_err(|error| malformed(error.to_string()));
    name(&content.provider_id)?;
    name(&provider_id)?;
    let mut announced = BTreeMap::new();
    for one in content.capabilities {
        name(&one.capability)?;
        if !one.region.is_empty() {
            name(&one.region)?;
        }
        let is_object = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&one.document).is_ok();
        if one.document.len() > limit::CAPABILITY_BYTES || !is_object {
            return Err(malformed("a document is no JSON object, or too long".to_owned()));
        }
        let capability = Announced {
            provider_id: provider_id.clone(),
            capability: one.capability.clone(),
            version,
            price_hint_sats: one.price_hint_sats,
            region: one.region,
            document: one.document,
            stands_for,
        };
        announced.insert(one.capability, capability);
    }
    Ok(announced.into_values().collect())
}

#[cfg(test)]
mod tests {
    use nostr::UnsignedEvent;
    use spacetime_sync_authority::{MirrorPolicy, MirrorSource};
    use spacetime_sync_proto::Secret;

    use super::*;
    use crate::key::MirrorKey;
    use crate::things::{self, Advertised, Slot};

    const NOW: u64 = 1_700_000_140;

    fn key(byte: &str) -> MirrorKey {
        MirrorKey::read(&Secret::from(byte.repeat(32))).unwrap()
    }

    fn trusted() -> Vec<TrustedKey> {
        vec![TrustedKey {
            nostr_key: key("02").public(),
            provider_prefix: "them.".to_owned(),
        }]
    }

    fn unsigned() -> UnsignedEvent {
        let policy = MirrorPolicy {
            policy_id: "ads".to_owned(),
            source: MirrorSource::Capabilities,
            kinds: Vec::new(),
            schema: AD_SCHEMA.to_owned(),
            nostr_kind: AD_KIND,
            relays: vec!["ws://127.0.0.1:1".to_owned()],
            quorum: 1,
        };
        let can = [Advertised {
            capability: "gpu".to_owned(),
            document: r#"{"vram":80}"#.to_owned(),
            price_hint_sats: 21,
            region: "eu".to_owned(),
            version: 3,
        }];
        let entry = things::advertisement(&policy, "maker-1", &can, Slot::of(NOW, 60), &key("02").public());
        things::unsigned(&entry.unwrap()).unwrap()
    }

    fn heard(change: impl FnOnce(&mut UnsignedEvent), now: u64) -> Result<Vec<Announced>, Unheard> {
        let mut event = unsigned();
        change(&mut event);
        let signed = key("02").sign(event).unwrap();
        read(&signed.as_json(), &trusted(), &key("01").public(), now)
    }

    #[test]
    fn what_another_mirror_advertises_is_a_capability_here_under_a_name_of_its_own() {
        let announced = heard(|_| {}, NOW).unwrap();
        let expected = Announced {
            provider_id: "them.maker-1".to_owned(),
            capability: "gpu".to_owned(),
            version: NOW - NOW % 60,
            price_hint_sats: 21,
            region: "eu".to_owned(),
            document: r#"{"vram":80}"#.to_owned(),
            stands_for: Duration::from_secs(NOW - NOW % 60 + 180 - NOW),
        };
        assert_eq!(announced, [expected]);
    }

    #[test]
    fn nobody_is_heard_who_is_not_trusted_and_no_loop_begins() {
        let signed = key("02").sign(unsigned()).unwrap();
        let judged = |trusted: &[TrustedKey], own: &str| judge(&signed, trusted, own, NOW);
        assert!(matches!(judged(&[], &key("01").public()), Err(Unheard::Stranger(_))));
        assert_eq!(judged(&trusted(), &key("02").public()), Err(Unheard::Own));
        let mut forged = signed.clone();
        forged.content = forged.content.replace("21", "22");
        assert_eq!(
            judge(&forged, &trusted(), &key("01").public(), NOW),
            Err(Unheard::Forged)
        );
    }

    #[test]
    fn what_is_void_from_the_future_or_about_something_else_has_no_effect() {
        for (now, good) in [
            (NOW - 121, false),
            (NOW - 100, true),
            (NOW + 139, true),
            (NOW + 140, false),
        ] {
            assert_eq!(heard(|_| {}, now).is_ok(), good, "{}", now as i64 - NOW as i64);
        }
        let elsewhere = [
            heard(|event| event.kind = nostr::Kind::from_u16(30_078), NOW),
            heard(
                |event| event.tags = nostr::Tags::from_list(vec![nostr::Tag::identifier("maker-1")]),
                NOW,
            ),
        ];
        assert!(
            elsewhere.iter().all(|heard| *heard == Err(Unheard::Elsewhere)),
            "{elsewhere:?}"
        );
        assert_eq!(read("{}", &trusted(), "", NOW), Err(Unheard::NoEvent));
        assert_eq!(
            read(&" ".repeat(ANNOUNCEMENT_BYTES + 1), &trusted(), "", NOW),
            Err(Unheard::NoEvent)
        );
    }

    #[test]
    fn what_the_module_would_refuse_is_refused_here() {
        for (from, to) in [
            ("maker-1", "maker-2"),
            ("gpu", "g p u"),
            ("\"eu\"", "\"e u\""),
            ("21", "-1"),
            ("21", "18446744073709551616"),
            ("\"{\\\"vram\\\":80}\"", "\"[]\""),
            ("\"capabilities\"", "\"capability\""),
        ] {
            let refused = heard(|event| event.content = event.content.replacen(from, to, 1), NOW);
            assert!(matches!(refused, Err(Unheard::Malformed(_))), "{from} {refused:?}");
        }
    }
}
