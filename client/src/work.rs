//! Work: what providers say they can do, and assignments, which one user opens and another one's provider takes.
//!
//! Every call here has a name or a version of the application's choice, so that it is done once however often it is
//! repeated: by the client over reconnects, or by the application after a crash.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use spacetime_sync_proto::{AssignmentSide, AssignmentState, limit};

use crate::error::CallError;

/// Something that a provider can do, to publish. Needs [`ClientConfig::provides`](crate::ClientConfig::provides).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// The provider: a name that the user chooses, and that is the user's as long as anything stands under it.
    pub provider_id: String,
    /// What it can do.
    pub capability: String,
    /// Counts the publications of this capability. A newer version replaces an older one.
    pub version: u64,
    /// What it may cost, in satoshis. Advice: nothing is decided by it.
    pub price_hint_sats: u64,
    /// Where; may be empty.
    pub region: String,
    /// A JSON object that says more.
    pub document: String,
    /// How long it stands, in whole seconds. Zero withdraws it.
    pub stands_for: Duration,
}

/// The name of a capability.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CapabilityKey {
    /// The provider.
    pub provider_id: String,
    /// What it can do.
    pub capability: String,
}

/// A capability as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenCapability {
    /// See [`Capability::version`].
    pub version: u64,
    /// See [`Capability::price_hint_sats`].
    pub price_hint_sats: u64,
    /// Where; may be empty.
    pub region: String,
    /// A JSON object that says more.
    pub document: String,
    /// When it was published, by SpacetimeDB's clock.
    pub published_at: SystemTime,
    /// Until when it stands. It may be seen for a moment longer.
    pub ends_at: SystemTime,
}

/// All capabilities that stand.
pub type Capabilities = BTreeMap<CapabilityKey, SeenCapability>;

/// An assignment to open. Needs [`ClientConfig::assigns`](crate::ClientConfig::assigns).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenAssignment {
    /// Its name, which nobody else uses: a random one.
    pub request_id: String,
    /// The provider that it is offered to. `None` opens it to all.
    pub provider_id: Option<String>,
    /// What is asked for: a JSON object.
    pub document: String,
    /// How long it may take, in whole seconds. Then it expires.
    pub deadline: Duration,
}

/// A change of an assignment to make. Needs [`ClientConfig::assigns`](crate::ClientConfig::assigns) or
/// [`ClientConfig::provides`](crate::ClientConfig::provides).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeAssignment {
    /// The assignment.
    pub request_id: String,
    /// The change's own name. The module takes a call with a name that it has seen for the same one.
    pub update_id: String,
    /// The version that the change is made to. The module refuses it if the assignment was changed since.
    pub expected_version: u64,
    /// The state that it is to have.
    pub to: AssignmentState,
    /// The provider that it is offered to, or that takes it.
    pub provider_id: Option<String>,
    /// The document of the user's own side, if it changes: what is asked for, or the report.
    pub document: Option<String>,
}

/// An assignment as the session sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenAssignment {
    /// 1, and one more with each change.
    pub version: u64,
    /// Its state.
    pub state: AssignmentState,
    /// The provider that it is offered to, or that has it.
    pub provider_id: Option<String>,
    /// Whether all providers see it while it is open.
    pub to_all: bool,
    /// What is asked for: the requester's JSON object.
    pub document: String,
    /// What became of it: the provider's JSON object, if it has said anything.
    pub report: Option<String>,
    /// When it was opened, by SpacetimeDB's clock.
    pub opened_at: SystemTime,
    /// When it was last changed.
    pub changed_at: SystemTime,
    /// When it expires, unless it has ended before.
    pub deadline_at: SystemTime,
    /// Its newest changes, the oldest first.
    pub changes: Vec<AssignmentChange>,
}

/// What one change made of an assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignmentChange {
    /// The version after it.
    pub version: u64,
    /// The state after it.
    pub state: AssignmentState,
    /// Who had it after it.
    pub provider_id: Option<String>,
    /// Who made it.
    pub changed_by: AssignmentSide,
    /// The name that its author gave it. `None` if the assignment was opened by it, or has expired.
    pub update_id: Option<String>,
    /// When it was made, by SpacetimeDB's clock.
    pub changed_at: SystemTime,
}

/// All assignments that the session may see, by their names.
pub type Assignments = BTreeMap<String, SeenAssignment>;

impl Capability {
    pub(crate) fn check(&self) -> Result<(), CallError> {
        CallError::check_name("provider_id", &self.provider_id)?;
        CallError::check_name("capability", &self.capability)?;
        if !self.region.is_empty() {
            CallError::check_name("region", &self.region)?;
        }
        CallError::check_length("document", &self.document, limit::CAPABILITY_BYTES)
    }
}

impl OpenAssignment {
    pub(crate) fn check(&self) -> Result<(), CallError> {
        CallError::check_name("request_id", &self.request_id)?;
        if let Some(provider_id) = &self.provider_id {
            CallError::check_name("provider_id", provider_id)?;
        }
        CallError::check_length("document", &self.document, limit::ASSIGNMENT_BYTES)
    }
}

impl ChangeAssignment {
    pub(crate) fn check(&self) -> Result<(), CallError> {
        CallError::check_name("request_id", &self.request_id)?;
        CallError::check_name("update_id", &self.update_id)?;
        if let Some(provider_id) = &self.provider_id {
            CallError::check_name("provider_id", provider_id)?;
        }
        // The module takes an empty document for none.
        match self.document.as_deref() {
            Some("") => Err(CallError::Invalid(
                "document: expected a JSON object, found nothing".to_owned(),
            )),
            Some(document) => CallError::check_length("document", document, limit::ASSIGNMENT_BYTES),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_module_would_refuse_is_refused_here() {
        let long = "x".repeat(limit::ASSIGNMENT_BYTES + 1);
        let publishes = |provider: &str, capability: &str, region: &str, document: &str| {
            let one = Capability {
                provider_id: provider.to_owned(),
                capability: capability.to_owned(),
                version: 1,
                price_hint_sats: 0,
                region: region.to_owned(),
                document: document.to_owned(),
                stands_for: Duration::from_secs(60),
            };
            one.check()
        };
        assert_eq!(publishes("p", "gpu", "", "{}"), Ok(()));
        let opens = |request: &str, provider: Option<&str>, document: &str| {
            let one = OpenAssignment {
                request_id: request.to_owned(),
                provider_id: provider.map(str::to_owned),
                document: document.to_owned(),
                deadline: Duration::from_secs(60),
            };
            one.check()
        };
        assert_eq!(opens("r", None, "{}"), Ok(()));
        let changes = |request: &str, update: &str, provider: Option<&str>, document: Option<&str>| {
            let one = ChangeAssignment {
                request_id: request.to_owned(),
                update_id: update.to_owned(),
                expected_version: 1,
                to: AssignmentState::Accepted,
                provider_id: provider.map(str::to_owned),
                document: document.map(str::to_owned),
            };
            one.check()
        };
        assert_eq!(changes("r", "u", Some("p"), None), Ok(()));
        for refused in [
            publishes("", "gpu", "", "{}"),
            publishes("p", "g p u", "", "{}"),
            publishes("p", "gpu", "e u", "{}"),
            publishes("p", "gpu", "", &long),
            opens("", None, "{}"),
            opens("r", Some(""), "{}"),
            opens("r", None, &long),
            changes("r 1", "u", None, None),
            changes("r", "", None, None),
            changes("r", "u", Some(""), None),
            changes("r", "u", None, Some("")),
            changes("r", "u", None, Some(&long)),
        ] {
            assert!(matches!(refused, Err(CallError::Invalid(_))), "{refused:?}");
        }
    }
}
