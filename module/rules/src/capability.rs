//! Capabilities: what a provider may publish about what it can do, under which name, and for how long.
//!
//! What was published is remembered for a while after it has ended. So a call that comes late never brings an older version
//! back, and nobody takes over a provider's name at the moment at which its last capability ends. A price is advice to people
//! and programs that choose; nothing here reads it.

use std::time::Duration;

use spacetime_sync_proto::{Label, Refusal, RefusalCode, limit};

use crate::content::{Digest, check_document, digest, invalid, later, name, optional_name};

/// How long a capability is remembered, and its provider's name kept for its user, after it has ended.
pub const REMEMBERED: Duration = Duration::from_secs(7 * 86_400);

/// Until when a provider's name is kept for its user: until [`REMEMBERED`] after the capability ends, and never shorter than was said
/// before, because an older copy of SpacetimeDB keeps it as long.
pub fn claimed_until(remembered_until_us: i64, before_us: Option<i64>) -> i64 {
    before_us.map_or(remembered_until_us, |before_us| before_us.max(remembered_until_us))
}

/// A publication whose fields are valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// Who can do it.
    pub provider_id: Label,
    /// What it can do.
    pub capability: Label,
    /// Which publication of this capability this is. The provider counts.
    pub version: u64,
    /// What it may cost, in satoshis.
    pub price_hint_sats: u64,
    /// Where; may be empty.
    pub region: String,
    /// A JSON object that says more.
    pub document: String,
    /// How long it stands. Zero withdraws the capability.
    pub ttl: Duration,
    /// Over all of the above.
    pub content: Digest,
}

/// Checks the fields of a publication.
pub fn publication(
    [provider_id, capability]: [&str; 2],
    version: u64,
    price_hint_sats: u64,
    region: &str,
    document: &str,
    ttl_seconds: u64,
) -> Result<Publication, Refusal> {
    let (provider_id, capability) = (name("provider_id", provider_id)?, name("capability", capability)?);
    if version == 0 {
        return Err(invalid("version: expected 1 or more, found 0"));
    }
    if price_hint_sats > limit::PRICE_SATS {
        let message = format!(
            "price_hint_sats: {price_hint_sats}, at most {} are allowed",
            limit::PRICE_SATS
        );
        return Err(invalid(message));
    }
    if ttl_seconds > limit::CAPABILITY_SECONDS {
        let message = format!(
            "ttl_seconds: {ttl_seconds}, at most {} are allowed: publish the capability again before it ends",
            limit::CAPABILITY_SECONDS
        );
        return Err(invalid(message));
    }
    optional_name("region", region)?;
    check_document("document", document, limit::CAPABILITY_BYTES)?;
    let content = digest(&[
        provider_id.as_str().as_bytes(),
        capability.as_str().as_bytes(),
        &version.to_be_bytes(),
        &price_hint_sats.to_be_bytes(),
        region.as_bytes(),
        document.as_bytes(),
        &ttl_seconds.to_be_bytes(),
    ]);
    Ok(Publication {
        provider_id,
        capability,
        version,
        price_hint_sats,
        region: region.to_owned(),
        document: document.to_owned(),
        ttl: Duration::from_secs(ttl_seconds),
        content,
    })
}

/// What is remembered of a capability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldCapability {
    /// The row's key.
    pub capability_id: u64,
    /// Whether the caller's user published it.
    pub is_own: bool,
    /// What the capability is.
    pub capability: String,
    /// Its newest version.
    pub version: u64,
    /// What that version said.
    pub content: Digest,
    /// When it ends or ended, in microseconds.
    pub ends_at_us: i64,
}

/// What a publication changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// The same again: nothing changes, and the capability stands no longer than before.
    Repeated,
    /// The capability is new, or has a newer version.
    Placed {
        /// The row to write. `None` if the capability is new.
        replaces: Option<u64>,
        /// A row to delete, so that there is room.
        forgets: Option<u64>,
        /// When it ends, in microseconds.
        ends_at_us: i64,
    },
}

/// Decides about a publication. `of_provider` is what is remembered under the provider's name, `of_user` what the caller's
/// user has published under any name.
pub fn publish(
    publication: &Publication,
    of_provider: &[HeldCapability],
    of_user: &[HeldCapability],
    now_us: i64,
) -> Result<Published, Refusal> {
    let Publication {
        provider_id,
        capability,
        version,
        ..
    } = publication;
    if of_provider.iter().any(|row| !row.is_own) {
        let message =
            format!("the name {provider_id} is another user's, who published under it: choose another provider_id");
        return Err(conflict(message));
    }
    let held = of_provider.iter().find(|row| row.capability == capability.as_str());
    let placed = |replaces, forgets| Published::Placed {
        replaces,
        forgets,
        ends_at_us: later(now_us, publication.ttl),
    };
    let Some(held) = held else {
        return Ok(placed(None, make_room(of_user, now_us)?));
    };
    if *version > held.version {
        return Ok(placed(Some(held.capability_id), None));
    }
    if *version < held.version {
        let message = format!(
            "{capability} of {provider_id} is at version {}, which is newer than version {version}",
            held.version
        );
        return Err(conflict(message));
    }
    if publication.content == held.content {
        return Ok(Published::Repeated);
    }
    let message = format!(
        "version {version} of {capability} of {provider_id} says {}, but this call says {}: publish what is new as version {}",
        short(&held.content),
        short(&publication.content),
        version.saturating_add(1)
    );
    Err(conflict(message))
}

/// The row to delete so that the user has room for one more. Rows that have ended make room, the one first that ended first.
fn make_room(of_user: &[HeldCapability], now_us: i64) -> Result<Option<u64>, Refusal> {
    if of_user.len() < limit::CAPABILITIES {
        return Ok(None);
    }
    let ended = of_user.iter().filter(|row| row.ends_at_us <= now_us);
    let Some(first) = ended.min_by_key(|row| (row.ends_at_us, row.capability_id)) else {
        let message = format!(
            "the user has published {} capabilities, the most allowed: withdraw one of them first",
            of_user.len()
        );
        return Err(invalid(message));
    };
    Ok(Some(first.capability_id))
}

/// The beginning of a digest, by which a person tells two contents apart.
fn short(content: &Digest) -> String {
    content[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn conflict(message: String) -> Refusal {
    Refusal::new(RefusalCode::CapabilityConflict, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000_000;
    const MINUTE: i64 = 60_000_000;

    #[test]
    fn a_name_is_never_kept_shorter_than_was_said_before() {
        assert_eq!(claimed_until(NOW, None), NOW);
        assert_eq!(claimed_until(NOW + MINUTE, Some(NOW)), NOW + MINUTE);
        // It was withdrawn.
        assert_eq!(claimed_until(NOW, Some(NOW + MINUTE)), NOW + MINUTE);
    }

    fn says(version: u64, document: &str, ttl_seconds: u64) -> Publication {
        publication(["p1", "gpu"], version, 5, "eu", document, ttl_seconds).unwrap()
    }

    fn held(of: &Publication, ends_at_us: i64) -> HeldCapability {
        HeldCapability {
            capability_id: 7,
            is_own: true,
            capability: of.capability.as_str().to_owned(),
            version: of.version,
            content: of.content,
            ends_at_us,
        }
    }

    fn placed(replaces: Option<u64>, forgets: Option<u64>, ends_at_us: i64) -> Published {
        Published::Placed {
            replaces,
            forgets,
            ends_at_us,
        }
    }

    #[test]
    fn a_publication_with_an_invalid_field_is_refused() {
        let good = ("p1", "gpu", 1, 0, "eu", "{}", 60);
        let said = |(provider, capability, version, price, region, document, ttl)| {
            let said = publication([provider, capability], version, price, region, document, ttl);
            said.map(drop).map_err(|refusal| refusal.code)
        };
        assert_eq!(said(good), Ok(()));
        assert_eq!(said(("p1", "gpu", u64::MAX, limit::PRICE_SATS, "", "{}", 0)), Ok(()));
        assert_eq!(said(("p1", "gpu", 1, 0, "", "{}", limit::CAPABILITY_SECONDS)), Ok(()));
        let full = format!("{{\"a\":\"{}\"}}", "x".repeat(limit::CAPABILITY_BYTES - 8));
        assert_eq!(said(("p1", "gpu", 1, 0, "eu", &full, 60)), Ok(()));
        let large = format!("{full} ");
        for bad in [
            ("", "gpu", 1, 0, "eu", "{}", 60),
            ("p/1", "gpu", 1, 0, "eu", "{}", 60),
            ("p1", "", 1, 0, "eu", "{}", 60),
            ("p1", "gpu", 0, 0, "eu", "{}", 60),
            ("p1", "gpu", 1, limit::PRICE_SATS + 1, "eu", "{}", 60),
            ("p1", "gpu", 1, u64::MAX, "eu", "{}", 60),
            ("p1", "gpu", 1, 0, "e u", "{}", 60),
            ("p1", "gpu", 1, 0, "eu", "", 60),
            ("p1", "gpu", 1, 0, "eu", "[]", 60),
            ("p1", "gpu", 1, 0, "eu", &large, 60),
            ("p1", "gpu", 1, 0, "eu", "{}", limit::CAPABILITY_SECONDS + 1),
            ("p1", "gpu", 1, 0, "eu", "{}", u64::MAX),
        ] {
            assert_eq!(said(bad), Err(RefusalCode::InvalidArgument), "{bad:.80?}");
        }
    }

    #[test]
    fn a_repeat_changes_nothing_and_every_field_counts() {
        let first = says(3, "{}", 60);
        let row = [held(&first, NOW + MINUTE)];
        assert_eq!(publish(&first, &row, &row, NOW), Ok(Published::Repeated));
        for other in [
            publication(["p1", "gpu"], 3, 6, "eu", "{}", 60),
            publication(["p1", "gpu"], 3, 5, "us", "{}", 60),
            publication(["p1", "gpu"], 3, 5, "eu", "{ }", 60),
            publication(["p1", "gpu"], 3, 5, "eu", "{}", 61),
        ] {
            let refused = publish(&other.unwrap(), &row, &row, NOW).unwrap_err();
            assert_eq!(refused.code, RefusalCode::CapabilityConflict);
            assert!(refused.message.contains(&short(&first.content)), "{refused}");
        }
    }

    #[test]
    fn versions_only_grow() {
        let row = [held(&says(3, "{}", 60), NOW + MINUTE)];
        let newer = publish(&says(4, "{}", 60), &row, &row, NOW);
        assert_eq!(newer, Ok(placed(Some(7), None, NOW + MINUTE)));
        let withdrawn = publish(&says(9, "{}", 0), &row, &row, NOW);
        assert_eq!(withdrawn, Ok(placed(Some(7), None, NOW)));
        // The versions that have ended count as well: a late call brings none of them back.
        for ends_at_us in [NOW + MINUTE, NOW - MINUTE] {
            let row = [held(&says(3, "{}", 60), ends_at_us)];
            let refused = publish(&says(2, "{}", 60), &row, &row, NOW).unwrap_err();
            assert_eq!(refused.code, RefusalCode::CapabilityConflict);
            assert!(refused.message.contains("at version 3"), "{refused}");
        }
    }

    #[test]
    fn a_name_belongs_to_the_user_who_published_under_it() {
        let mut row = held(&says(1, "{}", 60), NOW - MINUTE);
        row.is_own = false;
        for (version, capability) in [(1, "gpu"), (2, "gpu"), (1, "other")] {
            let wanted = publication(["p1", capability], version, 5, "eu", "{}", 60).unwrap();
            let refused = publish(&wanted, std::slice::from_ref(&row), &[], NOW).unwrap_err();
            assert_eq!(refused.code, RefusalCode::CapabilityConflict);
        }
        assert!(publish(&says(1, "{}", 60), &[], &[], NOW).is_ok());
    }

    #[test]
    fn a_user_has_a_bounded_number_and_what_has_ended_makes_room() {
        let other = |at: usize| {
            let other = publication(["p2", &format!("c{at}")], 1, 0, "", "{}", 60).unwrap();
            HeldCapability {
                capability_id: 100 + at as u64,
                ..held(&other, NOW + at as i64)
            }
        };
        let mut full: Vec<_> = (1..=limit::CAPABILITIES).map(other).collect();
        let wanted = says(1, "{}", 60);
        let refused = publish(&wanted, &[], &full, NOW).unwrap_err();
        assert_eq!(refused.code, RefusalCode::InvalidArgument);
        assert!(publish(&wanted, &[], &full[1..], NOW).is_ok());
        let own = [held(&wanted, NOW + MINUTE)];
        assert!(
            publish(&says(2, "{}", 60), &own, &full, NOW).is_ok(),
            "one that is there needs no room"
        );
        full[9].ends_at_us = NOW;
        full[5].ends_at_us = NOW - 2;
        let forgot = publish(&wanted, &[], &full, NOW);
        assert_eq!(forgot, Ok(placed(None, Some(106), NOW + MINUTE)));
    }
}
