//! What is published: each thing as an entry of the outbox, and each entry as an event of Nostr. The same thing gives the same
//! event, byte for byte.

use nostr::{Kind, PublicKey, Tag, TagKind, Timestamp, UnsignedEvent};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use spacetime_sync_authority::{Entry, MirrorPolicy, MirroredEvent};
use spacetime_sync_proto::{InvalidId, Label, StreamId, limit};

/// The tag that names the schema of the content.
pub const SCHEMA_TAG: &str = "oa_schema";
/// Pointers to events: NIP-78.
pub const RECEIPT_SCHEMA: &str = "openagents.bridge.receipt_ptr.v1";
/// Their kind.
pub const RECEIPT_KIND: u16 = 30_078;
/// Advertisements of providers: NIP-89.
pub const AD_SCHEMA: &str = "openagents.bridge.provider_ad.v1";
/// Their kind.
pub const AD_KIND: u16 = 31_990;

/// The longest content.
const CONTENT_BYTES: usize = 65_536;
/// The longest name under which a later event replaces an earlier one.
const D_TAG_BYTES: usize = 512;

/// Why something cannot be published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unpublishable {
    /// The author is no key.
    #[error("expected a public key in hex, found {0:?}; drop the entry")]
    Author(String),
    /// It is longer than the outbox takes.
    #[error("expected at most 65536 bytes, found {0}; shorten it")]
    TooLong(usize),
    /// SpacetimeDB's outbox holds what is not for relays.
    #[error(
        "expected a JSON object with kind, schema, d, content and created_at: {0}; enqueue it anew, under another name"
    )]
    Payload(String),
    /// Its name cannot stand in the outbox.
    #[error("the name of the entry")]
    Name(#[from] InvalidId),
}

/// Where an event of the authority is, and what it must hash to. Never what it says.
#[derive(Serialize)]
struct Pointer<'a> {
    kind: &'a str,
    payload_hash: String,
    seq: u64,
    stream_id: &'a str,
}

/// The pointer to an event of the authority.
pub fn receipt(
    policy: &MirrorPolicy,
    stream_id: &StreamId,
    event: &MirroredEvent,
    author: &str,
) -> Result<Entry, Unpublishable> {
    let pointer = Pointer {
        kind: event.kind.as_str(),
        payload_hash: event.payload_hash.to_string(),
        seq: event.seq.get(),
        stream_id: stream_id.as_str(),
    };
    let d_tag = format!("{stream_id}:{}", event.seq.get());
    Draft {
        name: named(RECEIPTS, &d_tag),
        nostr_kind: policy.nostr_kind,
        schema: &policy.schema,
        // This cannot fail: it has no maps.
        content: serde_json::to_string(&pointer).unwrap_or_default(),
        d_tag,
        created_at_s: u64::try_from(event.committed_at_us / 1_000_000).unwrap_or_default(),
        expires_at_s: None,
    }
    .entry(author)
}

/// One capability of a provider, as an advertisement shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Advertised {
    /// What the provider can do.
    pub capability: String,
    /// A JSON object that says more.
    pub document: String,
    /// What it may cost, in satoshis. Advice.
    pub price_hint_sats: u64,
    /// Where; may be empty.
    pub region: String,
    /// Which publication this is.
    pub version: u64,
}

#[derive(Serialize)]
struct Ad<'a> {
    capabilities: &'a [Advertised],
    provider_id: &'a str,
}

/// For how many slots an advertisement stands. A provider that is gone is void on relays as soon.
const AD_SLOTS: u64 = 3;

/// The advertisement of a provider for a slot, which begins at a multiple of its length. It is the same throughout the slot, as
/// far as the provider says the same; and of what it said within the slot, the outbox keeps the first.
pub fn advertisement(
    policy: &MirrorPolicy,
    provider_id: &str,
    capabilities: &[Advertised],
    slot: Slot,
    author: &str,
) -> Result<Entry, Unpublishable> {
    let ad = Ad {
        capabilities,
        provider_id,
    };
    let draft = Draft {
        name: named(ADS, &format!("{provider_id}\n{}", slot.begins_s)),
        nostr_kind: policy.nostr_kind,
        schema: &policy.schema,
        // This cannot fail: it has no maps.
        content: serde_json::to_string(&ad).unwrap_or_default(),
        d_tag: provider_id.to_owned(),
        created_at_s: slot.begins_s,
        expires_at_s: Some(slot.begins_s.saturating_add(AD_SLOTS * slot.length_s)),
    };
    if draft.content.len() > CONTENT_BYTES {
        return Err(Unpublishable::TooLong(draft.content.len()));
    }
    draft.entry(author)
}

/// A span of time in which an advertisement stays the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// When it begins, in seconds since 1970.
    pub begins_s: u64,
    /// How long it is.
    pub length_s: u64,
}

impl Slot {
    /// The slot of a time.
    pub fn of(now_s: u64, length_s: u64) -> Self {
        let length_s = length_s.max(1);
        Self {
            begins_s: now_s - now_s % length_s,
            length_s,
        }
    }
}

/// What stands in SpacetimeDB's outbox for an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    content: String,
    created_at: u64,
    d: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    kind: u16,
    schema: String,
}

/// What is put into SpacetimeDB's outbox for an entry: a JSON object. What is too long for that outbox is only named there.
pub fn payload(entry: &Entry) -> String {
    let payload = Payload {
        content: entry.content.clone(),
        created_at: entry.created_at_s,
        d: entry.d_tag.clone(),
        expires_at: entry.expires_at_s,
        kind: entry.nostr_kind,
        schema: entry.schema.clone(),
    };
    // This cannot fail: it has no maps.
    let whole = serde_json::to_string(&payload).unwrap_or_default();
    if whole.len() <= limit::OUTBOX_BYTES {
        return whole;
    }
    // Whoever wants the rest reads it at a relay, by its id.
    let (kind, schema, id) = (entry.nostr_kind, &entry.schema, &entry.published_as);
    json!({ "created_at": entry.created_at_s, "kind": kind, "published_as": id, "schema": schema }).to_string()
}

/// How pointers are named in the outbox.
const RECEIPTS: &str = "receipt_ptr.v1";
/// How advertisements are named.
const ADS: &str = "provider_ad.v1";
/// How the authority's outbox names what others have put into SpacetimeDB's: no name of theirs is one of ours.
const ENQUEUED: &str = "enqueued";

/// The name in the authority's outbox of what stands under a name in SpacetimeDB's, put there by somebody else. `None` for the names
/// of the mirror itself, and for one that is too long.
pub fn adopted_name(name: &str) -> Option<Label> {
    let is_own = [RECEIPTS, ADS, ENQUEUED]
        .iter()
        .any(|own| name.strip_prefix(own).is_some_and(|rest| rest.starts_with(':')));
    if is_own {
        return None;
    }
    Label::new(&format!("{ENQUEUED}:{name}")).ok()
}

/// The name in SpacetimeDB's outbox of an entry of the authority's.
pub fn shown_name(event_id: &Label) -> &str {
    let name = event_id.as_str();
    let others = name.strip_prefix(ENQUEUED).and_then(|rest| rest.strip_prefix(':'));
    others.unwrap_or(name)
}

/// Whether what stands in SpacetimeDB's outbox is this entry, and not another thing under its name.
pub fn is_shown_by(entry: &Entry, shown: &str) -> bool {
    if shown == payload(entry) {
        return true;
    }
    // What others have put there is written as they like.
    let is_others = shown_name(&entry.event_id) != entry.event_id.as_str();
    let read =
        || adopted(&entry.event_id, shown, &entry.author).or_else(|_| unreadable(&entry.event_id, &entry.author));
    is_others && read().is_ok_and(|read| read == *entry)
}

/// The entry of what somebody else has put into SpacetimeDB's outbox. Whether a policy names it, the caller sees.
pub fn adopted(event_id: &Label, payload: &str, author: &str) -> Result<Entry, Unpublishable> {
    let malformed = |what: &str| Unpublishable::Payload(what.to_owned());
    if payload.len() > limit::OUTBOX_BYTES {
        return Err(Unpublishable::TooLong(payload.len()));
    }
    let payload: Payload = serde_json::from_str(payload).map_err(|error| malformed(&error.to_string()))?;
    if payload.content.len() > CONTENT_BYTES {
        return Err(Unpublishable::TooLong(payload.content.len()));
    }
    if payload.d.is_empty() || payload.d.len() > D_TAG_BYTES {
        return Err(malformed("d has no or too many bytes"));
    }
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    if payload.schema.is_empty() || payload.schema.len() > 128 || !payload.schema.bytes().all(good) {
        return Err(malformed("schema is no name"));
    }
    if [payload.d.as_str(), &payload.content]
        .iter()
        .any(|text| text.contains('\0'))
    {
        return Err(malformed("a text holds U+0000"));
    }
    let most = i64::MAX.unsigned_abs();
    if payload.created_at > most || payload.expires_at.is_some_and(|at| at > most) {
        return Err(malformed("a time is out of range"));
    }
    Draft {
        name: event_id.as_str().to_owned(),
        nostr_kind: payload.kind,
        schema: &payload.schema,
        d_tag: payload.d,
        content: payload.content,
        created_at_s: payload.created_at,
        expires_at_s: payload.expires_at,
    }
    .entry(author)
}

/// The entry that stands for what cannot be read, to be parked.
pub fn unreadable(event_id: &Label, author: &str) -> Result<Entry, Unpublishable> {
    Draft {
        name: event_id.as_str().to_owned(),
        nostr_kind: 0,
        schema: "unreadable",
        d_tag: event_id.as_str().to_owned(),
        content: String::new(),
        created_at_s: 0,
        expires_at_s: None,
    }
    .entry(author)
}

/// A thing's name in the outbox, from the name that its author gave it. That may be longer than a name there, so it is hashed.
pub fn named(what: &str, name: &str) -> String {
    let digest = Sha256::digest(name);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{what}:{hex}")
}

/// An entry that has no author yet.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    pub(crate) name: String,
    pub(crate) nostr_kind: u16,
    pub(crate) schema: &'a str,
    pub(crate) d_tag: String,
    pub(crate) content: String,
    pub(crate) created_at_s: u64,
    pub(crate) expires_at_s: Option<u64>,
}

impl Draft<'_> {
    /// The entry, with the id that its event has if this author signs it.
    pub(crate) fn entry(self, author: &str) -> Result<Entry, Unpublishable> {
        let mut entry = Entry {
            event_id: Label::new(&self.name)?,
            nostr_kind: self.nostr_kind,
            schema: self.schema.to_owned(),
            d_tag: self.d_tag,
            content: self.content,
            created_at_s: self.created_at_s,
            expires_at_s: self.expires_at_s,
            author: author.to_owned(),
            published_as: String::new(),
        };
        entry.published_as = unsigned(&entry)?.id().to_hex();
        Ok(entry)
    }
}

/// The event of an entry.
pub fn unsigned(entry: &Entry) -> Result<UnsignedEvent, Unpublishable> {
    let author = PublicKey::from_hex(&entry.author).map_err(|_| Unpublishable::Author(entry.author.clone()))?;
    let mut tags = vec![
        Tag::identifier(entry.d_tag.clone()),
        Tag::custom(TagKind::custom(SCHEMA_TAG), [entry.schema.clone()]),
    ];
    if let Some(expires) = entry.expires_at_s {
        tags.push(Tag::expiration(Timestamp::from_secs(expires)));
    }
    Ok(UnsignedEvent::new(
        author,
        Timestamp::from_secs(entry.created_at_s),
        Kind::from_u16(entry.nostr_kind),
        tags,
        entry.content.clone(),
    ))
}

#[cfg(test)]
mod tests {
    use nostr::JsonUtil as _;
    use spacetime_sync_authority::MirrorSource;
    use spacetime_sync_proto::access::StreamPattern;
    use spacetime_sync_proto::{Kind as EventKind, PayloadHash, Secret, Seq};

    use super::*;
    use crate::key::MirrorKey;

    fn policy() -> MirrorPolicy {
        MirrorPolicy {
            policy_id: "receipts".to_owned(),
            source: MirrorSource::Events(StreamPattern::new("runtime.run.*").unwrap()),
            kinds: Vec::new(),
            schema: RECEIPT_SCHEMA.to_owned(),
            nostr_kind: RECEIPT_KIND,
            relays: vec!["ws://127.0.0.1:1".to_owned()],
            quorum: 1,
        }
    }

    fn event(seq: u64) -> MirroredEvent {
        MirroredEvent {
            seq: Seq::new(seq).unwrap(),
            kind: EventKind::new("run.step.finished").unwrap(),
            payload_hash: PayloadHash::of(b"hunter2"),
            committed_at_us: 1_700_000_000_999_999,
        }
    }

    #[test]
    fn a_pointer_is_the_same_event_each_time_and_says_nothing_of_the_payload() {
        let key = MirrorKey::read(&Secret::from("01".repeat(32))).unwrap();
        let stream = StreamId::new("runtime.run.42.events").unwrap();
        let made = || {
            let entry = receipt(&policy(), &stream, &event(7), &key.public()).unwrap();
            let signed = key.sign(unsigned(&entry).unwrap()).unwrap();
            assert_eq!(signed.id.to_hex(), entry.published_as);
            signed.verify().unwrap();
            signed
        };
        let (first, second) = (made(), made());
        assert_eq!(first.as_json(), second.as_json());
        assert_eq!(first.created_at.as_secs(), 1_700_000_000);
        assert_eq!(
            first.content,
            format!(
                r#"{{"kind":"run.step.finished","payload_hash":"{}","seq":7,"stream_id":"runtime.run.42.events"}}"#,
                PayloadHash::of(b"hunter2")
            )
        );
        assert_eq!(first.tags.identifier(), Some("runtime.run.42.events:7"));
        assert!(!first.as_json().contains("hunter2"));
        let other = receipt(&policy(), &stream, &event(8), &key.public()).unwrap();
        assert_ne!(other.published_as, first.id.to_hex());
        assert_ne!(
            other.event_id,
            receipt(&policy(), &stream, &event(7), &key.public()).unwrap().event_id
        );
    }

    #[test]
    fn a_key_signs_for_nobody_else_and_is_never_shown() {
        let key = MirrorKey::read(&Secret::from(format!("{}\n", "01".repeat(32)))).unwrap();
        assert!(!format!("{key:?}").contains(&"01".repeat(32)));
        let other = MirrorKey::read(&Secret::from("02".repeat(32))).unwrap();
        let stream = StreamId::new("runtime.run.42.events").unwrap();
        let entry = receipt(&policy(), &stream, &event(7), &other.public()).unwrap();
        assert!(key.sign(unsigned(&entry).unwrap()).is_none());
        for wrong in ["", "hunter2", "nsec1hunter2", &"00".repeat(32)] {
            let error = MirrorKey::read(&Secret::from(wrong.to_owned())).unwrap_err();
            assert!(!error.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn an_advertisement_is_the_same_throughout_its_slot_and_void_soon_after() {
        let key = MirrorKey::read(&Secret::from("01".repeat(32))).unwrap();
        let policy = MirrorPolicy {
            source: MirrorSource::Capabilities,
            schema: AD_SCHEMA.to_owned(),
            nostr_kind: AD_KIND,
            ..policy()
        };
        let can = [Advertised {
            capability: "gpu".to_owned(),
            document: r#"{"vram":80}"#.to_owned(),
            price_hint_sats: 21,
            region: "eu".to_owned(),
            version: 3,
        }];
        let at = |now| advertisement(&policy, "maker-1", &can, Slot::of(now, 60), &key.public()).unwrap();
        assert_eq!(at(1_700_000_040), at(1_700_000_099));
        assert_ne!(at(1_700_000_099).event_id, at(1_700_000_100).event_id);
        let ad = at(1_700_000_041);
        assert_eq!((ad.created_at_s, ad.expires_at_s), (1_700_000_040, Some(1_700_000_220)));
        assert_eq!((ad.d_tag.as_str(), ad.nostr_kind), ("maker-1", 31_990));
        assert!(unsigned(&ad).unwrap().tags.expiration().is_some());
        let long = [Advertised {
            document: "x".repeat(CONTENT_BYTES),
            ..can[0].clone()
        }];
        let refused = advertisement(&policy, "maker-1", &long, Slot::of(1, 60), &key.public());
        assert!(matches!(refused, Err(Unpublishable::TooLong(_))));
    }

    #[test]
    fn nobody_takes_the_name_of_what_the_mirror_itself_says() {
        let key = MirrorKey::read(&Secret::from("01".repeat(32))).unwrap().public();
        let stream = StreamId::new("runtime.run.42.events").unwrap();
        let own = receipt(&policy(), &stream, &event(7), &key).unwrap();
        assert_eq!(shown_name(&own.event_id), own.event_id.as_str());
        for name in [
            own.event_id.as_str(),
            "provider_ad.v1:x",
            "enqueued:x",
            "enqueued:",
            &"x".repeat(120),
        ] {
            assert_eq!(adopted_name(name), None, "{name}");
        }
        for name in [
            "x",
            "receipt_ptr.v1",
            "receipt_ptr.v2:x",
            "enqueued.x",
            &"x".repeat(119),
        ] {
            let adopted = adopted_name(name).unwrap();
            assert_eq!(shown_name(&adopted), name);
            assert_eq!(adopted_name(adopted.as_str()), None);
        }
        // The name is right, and what stands under it is another thing.
        let other = receipt(&policy(), &stream, &event(8), &key).unwrap();
        assert!(is_shown_by(&own, &payload(&own)) && !is_shown_by(&own, &payload(&other)));
        assert!(!is_shown_by(&own, &format!(" {}", payload(&own))));
    }

    #[test]
    fn what_others_enqueue_is_read_as_it_was_written_or_not_at_all() {
        let key = MirrorKey::read(&Secret::from("01".repeat(32))).unwrap().public();
        let stream = StreamId::new("runtime.run.42.events").unwrap();
        let entry = receipt(&policy(), &stream, &event(7), &key).unwrap();
        assert_eq!(adopted(&entry.event_id, &payload(&entry), &key).unwrap(), entry);
        let name = adopted_name("x").unwrap();
        let good = r#"{"kind":30078,"schema":"a.b","d":"d","content":"c","created_at":1}"#;
        assert!(adopted(&name, good, &key).is_ok());
        for wrong in [
            "".to_owned(),
            "[]".to_owned(),
            good.replace("30078", "-1"),
            good.replace("30078", "65536"),
            good.replace(r#""d":"d""#, r#""d":"""#),
            good.replace(r#""d":"d""#, r#""d":"\u0000""#),
            good.replace(r#""d":"d""#, &format!(r#""d":"{}""#, "d".repeat(513))),
            good.replace("a.b", "A B"),
            good.replace(":1}", ":-1}"),
            good.replace(":1}", ":18446744073709551615}"),
            good.replace(":1}", r#":1,"id":"x"}"#),
            good.replace(r#""c""#, &format!("{:?}", "c".repeat(limit::OUTBOX_BYTES))),
        ] {
            assert!(adopted(&name, &wrong, &key).is_err(), "{wrong:.200}");
        }
        let unread = unreadable(&name, &key).unwrap();
        assert!(is_shown_by(&unread, "[]") && !is_shown_by(&unread, good));
        let spaced = format!(" {good}");
        let read = adopted(&name, good, &key).unwrap();
        assert!(is_shown_by(&read, good) && is_shown_by(&read, &spaced) && is_shown_by(&read, &payload(&read)));
        assert!(!is_shown_by(&read, &good.replace(r#""c""#, r#""other""#)) && !is_shown_by(&read, "[]"));
        let long = Entry {
            content: "c".repeat(limit::OUTBOX_BYTES),
            ..entry
        };
        let named = payload(&long);
        assert!(
            named.len() <= limit::OUTBOX_BYTES && named.contains(&long.published_as),
            "{named}"
        );
    }
}
