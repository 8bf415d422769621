//! What the mirror reads of strangers: announcements that relays show, and what others have put into SpacetimeDB's outbox.
//!
//! Besides not panicking: an announcement that has an effect stands for a bounded time, under a name of its key's prefix, and
//! with what the module would take; the same one with another signature has none. What is adopted from the outbox is the same
//! entry when it is read again, and no longer than the outbox takes.

use anyhow::{Context as _, ensure};
use nostr::{Event, JsonUtil as _, UnsignedEvent};
use rand::rngs::StdRng;
use serde_json::{Value, json};
use spacetime_sync_authority::TrustedKey;
use spacetime_sync_mirror::announcement::read;
use spacetime_sync_mirror::key::MirrorKey;
use spacetime_sync_mirror::things::{AD_KIND, AD_SCHEMA, adopted, payload};
use spacetime_sync_proto::{Label, Secret, limit};

use crate::mutate;
use crate::target::{Entry, Seed, Target, Verdict};

pub(super) const ANNOUNCEMENT: Entry = Entry {
    name: "announcement",
    about: "what relays say that providers can do: an event without key and signature, which the target adds",
    dictionary: DICTIONARY,
    most: 16 * 1024,
    open: || {
        Ok(Box::new(Announcements {
            own: MirrorKey::read(&Secret::from("01".repeat(32)))?,
            other: MirrorKey::read(&Secret::from("02".repeat(32)))?,
        }))
    },
    seeds: announcement_seeds,
};

pub(super) const OUTBOX: Entry = Entry {
    name: "outbox",
    about: "what others put into SpacetimeDB's outbox for relays",
    dictionary: DICTIONARY,
    most: 16 * 1024,
    open: || {
        Ok(Box::new(Adopted {
            author: MirrorKey::read(&Secret::from("01".repeat(32)))?.public(),
            name: Label::new("a-name")?,
        }))
    },
    seeds: outbox_seeds,
};

const DICTIONARY: &[&[u8]] = &[
    b"content",
    b"created_at",
    b"kind",
    b"tags",
    b"capabilities",
    b"provider_id",
    b"price_hint_sats",
    b"expiration",
    b"expires_at",
    b"schema",
    b"oa_schema",
    b"openagents.bridge.provider_ad.v1",
    b"31990",
    b"\\u0000",
];
const NOW: u64 = 1_700_000_100;
const PREFIX: &str = "them.";

struct Announcements {
    own: MirrorKey,
    other: MirrorKey,
}

impl Target for Announcements {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let trusted = [TrustedKey {
            nostr_key: self.other.public(),
            provider_prefix: PREFIX.to_owned(),
        }];
        let own = self.own.public();
        let heard = |json: &str| read(json, &trusted, &own, NOW);
        // Nobody has signed it as it is.
        ensure!(
            heard(&String::from_utf8_lossy(input)).is_err(),
            "an unsigned event is heard"
        );
        let Ok(mut said) = serde_json::from_slice::<Value>(input) else {
            return Ok(Verdict::Refused);
        };
        if !said.is_object() {
            return Ok(Verdict::Refused);
        }
        said["pubkey"] = json!(self.other.public());
        said["id"] = Value::Null;
        let Ok(event) = serde_json::from_value::<UnsignedEvent>(said) else {
            return Ok(Verdict::Refused);
        };
        let event = self.other.sign(event).context("it cannot be signed")?;
        let Ok(announced) = heard(&event.as_json()) else {
            return Ok(Verdict::Refused);
        };
        for one in &announced {
            let name = one.provider_id.strip_prefix(PREFIX).context("another's name")?;
            for name in [name, &one.provider_id, &one.capability] {
                Label::check(name).context("a name that is none")?;
            }
            ensure!(
                one.region.is_empty() || Label::check(&one.region).is_ok(),
                "a region that is none"
            );
            ensure!(
                one.document.len() <= limit::CAPABILITY_BYTES,
                "a document that is too long"
            );
            ensure!(
                serde_json::from_str::<Value>(&one.document)?.is_object(),
                "a document that is no object"
            );
            ensure!(
                (1..=3_660).contains(&one.stands_for.as_secs()),
                "it stands for {:?}",
                one.stands_for
            );
        }
        let mut other: Event = event.clone();
        other.content.push(' ');
        ensure!(heard(&other.as_json()).is_err(), "a forged event is heard");
        ensure!(read(&event.as_json(), &[], &own, NOW).is_err(), "a stranger is heard");
        Ok(Verdict::taken(!announced.is_empty()))
    }

    fn vary(&self, rng: &mut StdRng, input: &[u8]) -> Option<Vec<u8>> {
        mutate::json(rng, input, DICTIONARY)
    }
}

fn announcement_seeds() -> anyhow::Result<Vec<Seed>> {
    let one = json!({ "capability": "gpu", "document": "{\"vram\":80}", "price_hint_sats": 21, "region": "eu", "version": 3 });
    let said = |capabilities: Value, tags: Value| {
        let content = json!({ "capabilities": capabilities, "provider_id": "maker-1" }).to_string();
        json!({ "kind": AD_KIND, "created_at": NOW - 60, "tags": tags, "content": content }).to_string()
    };
    let tags = json!([
        ["d", "maker-1"],
        ["oa_schema", AD_SCHEMA],
        ["expiration", (NOW + 120).to_string()]
    ]);
    let bare = json!([["d", "maker-1"], ["oa_schema", AD_SCHEMA]]);
    Ok(vec![
        Seed::new("one", said(json!([one]), tags.clone())),
        Seed::new("none", said(json!([]), tags)),
        Seed::new("without-an-end", said(json!([one, one]), bare)),
    ])
}

struct Adopted {
    author: String,
    name: Label,
}

impl Target for Adopted {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let text = String::from_utf8_lossy(input);
        let Ok(entry) = adopted(&self.name, &text, &self.author) else {
            return Ok(Verdict::Refused);
        };
        let again = adopted(&self.name, &payload(&entry), &self.author).context("what was written is not read")?;
        ensure!(again == entry, "it is another entry the second time");
        ensure!(
            entry.content.len() <= 65_536 && (1..=512).contains(&entry.d_tag.len()),
            "it is too long"
        );
        ensure!(
            !entry.content.contains('\0') && !entry.d_tag.contains('\0'),
            "Postgres would not take it"
        );
        ensure!(i64::try_from(entry.created_at_s).is_ok(), "its time is out of range");
        Ok(Verdict::Taken)
    }

    fn vary(&self, rng: &mut StdRng, input: &[u8]) -> Option<Vec<u8>> {
        mutate::json(rng, input, DICTIONARY)
    }
}

fn outbox_seeds() -> anyhow::Result<Vec<Seed>> {
    let one = json!({ "kind": 30_078, "schema": "a.b.v1", "d": "name", "content": "{\"a\":1}", "created_at": NOW });
    let mut expiring = one.clone();
    expiring["expires_at"] = json!(NOW + 60);
    Ok(vec![
        Seed::new("one", one.to_string()),
        Seed::new("expiring", expiring.to_string()),
    ])
}
