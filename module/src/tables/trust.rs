//! Whom the module trusts. Private: no client sees it.

use spacetimedb::{Identity, SpacetimeType, table};

#[table(accessor = sync_trust)]
pub struct SyncTrust {
    /// Always 0.
    #[primary_key]
    pub id: u8,
    /// The identity that published the module.
    pub owner: Identity,
    /// The identity that may append.
    pub bridge: Option<Identity>,
    /// The secret that stream keys are derived with. It is set once, because another secret would rename every stream.
    pub key_secret: Vec<u8>,
    /// Whose tokens open a session. Without an issuer, nobody but the owner may connect until there is a bridge, and
    /// anybody from then on: they see what an operator granted.
    #[default(None::<Issuer>)]
    pub issuer: Option<Issuer>,
}

/// An issuer of tokens, and what a token must meet.
#[derive(SpacetimeType, Clone)]
pub struct Issuer {
    /// `iss`
    pub url: String,
    /// `aud`
    pub audience: String,
    /// The identity of the bridge's own token.
    pub service: Identity,
    /// How often the module looks for expired sessions.
    pub sweep_every_ms: u32,
    /// Which clients are served: see `Compatibility` of the contract.
    pub min_client_build_id: String,
    pub max_client_build_id: String,
    pub min_schema_version: u32,
    pub max_schema_version: u32,
}
