//! The journal: what the module alone decides and may not lose, as documents that the authority keeps. After SpacetimeDB has
//! lost it, the bridge hands them back, and [`assignment_comes_back`] and [`capability_comes_back`] say which of them are newer
//! than what is held. [`marks`] says what the authority lacks, and when changes are accepted.
//!
//! A document comes from outside, so it is checked like any other argument: [`read_entry`]. It may also come from a later
//! release: fields that this one does not know are left out, and so is an entry of a kind that it does not know.

mod hexed;
pub mod marks;
pub mod memory;
pub mod pass;

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use spacetime_sync_proto::journal::ENTRY_BYTES;
use spacetime_sync_proto::{AssignmentSide, Label, Refusal, limit};

use crate::assignment::{REMEMBERED, is_final, state};
use crate::content::{Digest, check_document, invalid, name, optional_name};

/// What an entry is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The assignment of this name.
    Assignment(String),
    /// A capability of a provider.
    Capability {
        /// Who can do it.
        provider_id: String,
        /// What it can do.
        capability: String,
    },
}

impl Key {
    /// As the journal names it. No name holds a slash.
    pub fn to_text(&self) -> String {
        match self {
            Self::Assignment(request_id) => format!("assignment/{request_id}"),
            Self::Capability {
                provider_id,
                capability,
            } => format!("capability/{provider_id}/{capability}"),
        }
    }

    /// Reads what [`to_text`](Self::to_text) has written.
    pub fn read(text: &str) -> Result<Self, Refusal> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            ["assignment", request_id] => Ok(Self::Assignment(valid("request_id", request_id)?)),
            ["capability", provider_id, capability] => Ok(Self::Capability {
                provider_id: valid("provider_id", provider_id)?,
                capability: valid("capability", capability)?,
            }),
            _ => Err(invalid(format!(
                "the key of an entry: expected assignment/NAME or capability/NAME/NAME, found {text:?}"
            ))),
        }
    }
}

fn valid(what: &str, text: &str) -> Result<String, Refusal> {
    name(what, text).map(|_: Label| text.to_owned())
}

/// How something is. Times are in microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Document {
    /// An assignment that is held.
    Assignment(Assignment),
    /// An assignment that is held no longer, and whose name is not free yet.
    Forgotten(Forgotten),
    /// A capability. After its end, it says whose the provider's name still is.
    Capability(Capability),
}

/// What the keys and the documents of this release begin with.
const KEYS: [&str; 2] = ["assignment", "capability"];
const DOCUMENTS: [&str; 3] = ["assignment", "forgotten", "capability"];

/// Reads an entry that the authority has kept, and checks every field. `None` if it is of a kind that only a later release knows:
/// this one does not bring it back.
pub fn read_entry(key: &str, document: &str) -> Result<Option<(Key, Document)>, Refusal> {
    let is_kind = |text: &str| !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'_'));
    if let Some((kind, _)) = key.split_once('/')
        && is_kind(kind)
        && !KEYS.contains(&kind)
    {
        return Ok(None);
    }
    let key = Key::read(key)?;
    match Document::read(&key, document) {
        Ok(document) => Ok(Some((key, document))),
        Err(_) if is_of_later_kind(document) => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

fn is_of_later_kind(document: &str) -> bool {
    let Ok(kinds) = serde_json::from_str::<BTreeMap<String, IgnoredAny>>(document) else {
        return false;
    };
    kinds.len() == 1 && kinds.keys().all(|kind| !DOCUMENTS.contains(&kind.as_str()))
}

/// An assignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The user who asked for it.
    pub requester: String,
    /// The user whose provider has it. Empty if nobody has.
    pub provider: String,
    /// The digest of the call that opened it.
    #[serde(with = "hexed")]
    pub opened_as: Digest,
    /// Whether it is in a state that never changes.
    pub has_ended: bool,
    /// When it expires. Once it has ended: when it may be forgotten.
    pub due_at: i64,
    /// Its version.
    pub version: u64,
    /// Its state.
    pub status: String,
    /// To whom it is offered, or who has it. Empty while it is open.
    pub provider_id: String,
    /// Whether all who may provide see it while it is open.
    pub to_all: bool,
    /// What is asked for.
    pub assignment: String,
    /// What became of it.
    pub report: String,
    /// When it was opened.
    pub opened_at: i64,
    /// When it changed last.
    pub changed_at: i64,
    /// Its deadline.
    pub deadline_at: i64,
    /// The newest changes, in the order of their versions.
    pub changes: Vec<Change>,
    /// The calls that made them, in the same order. Nobody called for the first one, and for one that the clock made.
    pub updates: Vec<Update>,
}

/// A change of an assignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The version after it.
    pub version: u64,
    /// The state after it.
    pub status: String,
    /// Who had the assignment after it.
    pub provider_id: String,
    /// Who made it.
    pub changed_by: String,
    /// Its name.
    pub update_id: String,
    /// When it was made.
    pub changed_at: i64,
}

/// A call that made a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// The version after it.
    pub version: u64,
    /// The name of the change.
    pub update_id: String,
    /// Whose session called.
    pub user_id: String,
    /// The digest of the call.
    #[serde(with = "hexed")]
    pub content: Digest,
}

/// An assignment that is held no longer, and whose name is not free yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// The user who asked for it.
    pub requester: String,
    /// The digest of the call that opened it.
    #[serde(with = "hexed")]
    pub opened_as: Digest,
    /// When the name is free again.
    pub until: i64,
    /// When it was opened. 0 where an earlier release has forgotten it, which did not note that.
    #[serde(default)]
    pub opened_at: i64,
}

/// What a user has published under a provider's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// The user.
    pub user_id: String,
    /// The newest version.
    pub version: u64,
    /// The digest of what that version says.
    #[serde(with = "hexed")]
    pub content: Digest,
    /// When the capability ends or ended.
    pub ends_at: i64,
    /// Until when the name is kept for the user.
    pub until: i64,
    /// What everybody reads about the capability. `None` once it has ended or was withdrawn.
    pub stands: Option<Standing>,
}

/// The part of a capability that everybody reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// What it may cost, in satoshis.
    pub price_hint_sats: u64,
    /// Where.
    pub region: String,
    /// A JSON object that says more.
    pub document: String,
    /// When it was published.
    pub published_at: i64,
}

impl Document {
    /// As the authority keeps it.
    pub fn to_text(&self) -> String {
        // Infallible: maps with names for keys, of texts, numbers and truths.
        serde_json::to_string(self).expect("a document is always JSON")
    }

    /// Reads what [`to_text`](Self::to_text) has written under this key, and checks every field.
    pub fn read(key: &Key, text: &str) -> Result<Self, Refusal> {
        let named = |refusal: Refusal| invalid(format!("the entry {}: {}", key.to_text(), refusal.message));
        if text.len() > ENTRY_BYTES {
            let message = format!("{} bytes, at most {ENTRY_BYTES} are allowed", text.len());
            return Err(named(invalid(message)));
        }
        let document: Self = serde_json::from_str(text).map_err(|error| named(invalid(error.to_string())))?;
        match (key, &document) {
            (Key::Assignment(_), Self::Assignment(assignment)) => assignment.check(),
            (Key::Assignment(_), Self::Forgotten(forgotten)) => name("requester", &forgotten.requester).map(drop),
            (Key::Capability { .. }, Self::Capability(capability)) => capability.check(),
            (Key::Assignment(_), Self::Capability(_))
            | (Key::Capability { .. }, Self::Assignment(_) | Self::Forgotten(_)) => {
                Err(invalid("the document is about something else"))
            }
        }
        .map_err(named)?;
        Ok(document)
    }
}

impl Assignment {
    /// Until when it is remembered, unless it ends after this.
    fn is_remembered_until(&self) -> i64 {
        if self.has_ended {
            self.due_at
        } else {
            // At its deadline it expires.
            let remembered = i64::try_from(REMEMBERED.as_micros()).unwrap_or(i64::MAX);
            self.due_at.saturating_add(remembered)
        }
    }

    fn check(&self) -> Result<(), Refusal> {
        name("requester", &self.requester)?;
        optional_name("provider", &self.provider)?;
        optional_name("provider_id", &self.provider_id)?;
        if self.provider.is_empty() != self.provider_id.is_empty() {
            return Err(invalid(
                "provider: expected a user if and only if there is a provider_id",
            ));
        }
        if is_final(state(&self.status)?) != self.has_ended {
            return Err(invalid(format!(
                "has_ended: does not fit to the status {}",
                self.status
            )));
        }
        if self.version == 0 {
            return Err(invalid("version: expected 1 or more, found 0"));
        }
        check_document("assignment", &self.assignment, limit::ASSIGNMENT_BYTES)?;
        if !self.report.is_empty() {
            check_document("report", &self.report, limit::ASSIGNMENT_BYTES)?;
        }
        let most = usize::try_from(limit::ASSIGNMENT_CHANGES).unwrap_or(usize::MAX);
        for (what, found) in [("changes", self.changes.len()), ("updates", self.updates.len())] {
            if found > most {
                return Err(invalid(format!("{what}: {found}, at most {most} are allowed")));
            }
        }
        if self.changes.last().is_none_or(|last| last.version != self.version) {
            return Err(invalid("changes: expected the newest one to have led to the version"));
        }
        let versions = self.changes.iter().map(|change| change.version);
        if !versions.clone().zip(versions.skip(1)).all(|(one, next)| one < next) {
            return Err(invalid("changes: expected them in the order of their versions"));
        }
        for change in &self.changes {
            state(&change.status)?;
            optional_name("provider_id", &change.provider_id)?;
            optional_name("update_id", &change.update_id)?;
            let side = change.changed_by.parse::<AssignmentSide>();
            side.map_err(|unknown| invalid(unknown.to_string()))?;
        }
        for update in &self.updates {
            name("update_id", &update.update_id)?;
            name("user_id", &update.user_id)?;
        }
        Ok(())
    }
}

impl Capability {
    fn check(&self) -> Result<(), Refusal> {
        name("user_id", &self.user_id)?;
        if let Some(stands) = &self.stands {
            optional_name("region", &stands.region)?;
            check_document("document", &stands.document, limit::CAPABILITY_BYTES)?;
        }
        Ok(())
    }
}

/// What is held under an assignment's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldName {
    /// Nothing.
    Nothing,
    /// That it was opened.
    Forgotten {
        /// The digest of the call that opened it.
        opened_as: Digest,
        /// When it was opened. 0 if nobody knows.
        opened_at: i64,
    },
    /// The assignment.
    Assignment {
        /// The digest of the call that opened it.
        opened_as: Digest,
        /// When it was opened.
        opened_at: i64,
        /// Its version.
        version: u64,
        /// When it changed last.
        changed_at: i64,
    },
}

/// Whether what the journal says under an assignment's name is newer than what is held.
pub fn assignment_comes_back(held: HeldName, kept: &Document, now_us: i64) -> bool {
    match (held, kept) {
        (_, Document::Capability(_)) => false,
        (HeldName::Nothing, Document::Assignment(_) | Document::Forgotten(_)) => {
            !assignment_is_over(held, kept, now_us)
        }
        // It is forgotten after all its changes. The same call opens another one of the name once that is free. Before that, a
        // SpacetimeDB that was restored did not know of the one that is kept.
        (HeldName::Forgotten { opened_as, opened_at }, Document::Assignment(kept)) => {
            if opened_at == 0 {
                opened_as != kept.opened_as
            } else {
                kept.opened_at != opened_at && kept.is_remembered_until() > opened_at
            }
        }
        (HeldName::Forgotten { opened_at, .. }, Document::Forgotten(kept)) => kept.opened_at > opened_at,
        // Whatever was opened before the name was free is the one that was forgotten, or was opened by a SpacetimeDB that was
        // restored and did not know of that one.
        (HeldName::Assignment { opened_at, .. }, Document::Forgotten(kept)) => kept.until > opened_at,
        (
            HeldName::Assignment {
                opened_as,
                opened_at,
                version,
                changed_at,
            },
            Document::Assignment(kept),
        ) => {
            if opened_as == kept.opened_as && opened_at == kept.opened_at {
                // Of two changes to one version, the one counts that was kept: a SpacetimeDB that was restored has made the other one.
                kept.version > version || kept.version == version && kept.changed_at != changed_at
            } else {
                // The name was free for another one only after the end of the one that is kept, and as long after as it is
                // remembered. Before that, a SpacetimeDB that was restored did not know of the one that is kept.
                kept.is_remembered_until() > opened_at
            }
        }
    }
}

/// Whether the journal still has an assignment that is forgotten, or a name that is free, because nobody had it when its time came.
/// Then it is marked, so that the authority forgets it, too.
pub fn assignment_is_over(held: HeldName, kept: &Document, now_us: i64) -> bool {
    let known_until = match kept {
        // No copy of SpacetimeDB takes changes of it after its deadline.
        Document::Assignment(kept) => kept.is_remembered_until().max(kept.deadline_at),
        Document::Forgotten(kept) => kept.until,
        Document::Capability(_) => return false,
    };
    held == HeldName::Nothing && known_until <= now_us
}

/// What is held of a capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldClaim {
    /// Whether it is the same user's as in the journal.
    pub is_same_user: bool,
    /// Its newest version.
    pub version: u64,
    /// The digest of what that version says.
    pub content: Digest,
    /// Until when the name is kept for the user.
    pub until: i64,
}

/// Whether what the journal says of a capability is newer than what is held. Whoever took a provider's name while it was lost
/// does not keep it. A name is never kept shorter than was said, so what keeps it for longer is newer: it may be the first version again,
/// after the name was free.
pub fn capability_comes_back(held: Option<HeldClaim>, kept: &Capability, now_us: i64) -> bool {
    let is_newer = |held: HeldClaim| {
        kept.version > held.version
            || kept.version == held.version && kept.content != held.content
            || kept.until > held.until
    };
    kept.until > now_us && held.is_none_or(|held| !held.is_same_user || is_newer(held))
}

/// Whether the journal still has a capability that is forgotten, because nobody had it when its time came. Then it is marked, so that the
/// authority forgets it, too.
pub fn capability_is_over(held: Option<HeldClaim>, kept: &Capability, now_us: i64) -> bool {
    held.is_none() && kept.until <= now_us
}

#[cfg(test)]
mod tests;
