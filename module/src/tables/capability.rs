//! What providers say they can do. Anyone connected can read `provider_capability`, so that whoever needs work done finds who
//! can do it. It says nothing of the user behind a provider.

use spacetimedb::sats::u256;
use spacetimedb::{Timestamp, table};

#[table(accessor = provider_capability, public)]
pub struct ProviderCapability {
    /// The key of its row in `capability_claim`.
    #[primary_key]
    pub capability_id: u64,
    #[index(btree)]
    pub provider_id: String,
    /// What the provider can do.
    #[index(btree)]
    pub capability: String,
    /// The provider counts its publications of a capability.
    pub version: u64,
    /// What it may cost, in satoshis. Advice: nothing is decided by it.
    pub price_hint_sats: u64,
    /// Where; may be empty.
    pub region: String,
    /// A JSON object that says more.
    pub document: String,
    pub published_at: Timestamp,
    /// Until when it stands without another publication. The row may be there for a moment longer.
    #[index(btree)]
    pub ends_at: Timestamp,
}

/// What was published by whom, for a while longer than it stands. Private. As long as a provider has a row here, its name is
/// its user's.
#[table(accessor = capability_claim, index(accessor = by_name, btree(columns = [provider_id, capability])))]
pub struct CapabilityClaim {
    #[primary_key]
    #[auto_inc]
    pub capability_id: u64,
    pub provider_id: String,
    pub capability: String,
    #[index(btree)]
    pub user_id: String,
    /// The newest version.
    pub version: u64,
    /// The digest of what that version says.
    pub content: u256,
    /// When the capability ends or ended.
    pub ends_at: Timestamp,
    /// When the row may be deleted.
    #[index(btree)]
    pub until: Timestamp,
}
