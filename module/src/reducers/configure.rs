//! Sets the bridge's identity and the secret of the stream keys.

use spacetime_sync_proto::{Refusal, RefusalCode};
use spacetime_sync_rules::stream_key::SECRET_BYTES;
use spacetimedb::{Identity, ReducerContext, reducer};

use crate::log_access::trust_row;
use crate::refuse::{Refused, invalid_argument, refused};
use crate::tables::sync_trust;

/// Opens the database: for the sessions of an issuer that is trusted already, or else for anybody. So an owner that trusts
/// an issuer calls `trust_issuer` first.
///
/// `key_secret` is hex of at least 16 random bytes. The first call needs it; later calls may leave it empty.
#[reducer]
pub fn configure(ctx: &ReducerContext, bridge: Identity, key_secret: String) -> Result<(), Refused> {
    let mut row = trust_row(ctx)?;
    row.trust().owner_only(ctx.sender()).map_err(refused)?;
    let secret =
        hex::decode(&key_secret).map_err(|error| invalid_argument(format!("key_secret is not hex: {error}")))?;
    if !secret.is_empty() && !row.key_secret.is_empty() && secret != row.key_secret {
        return Err(refused(Refusal::new(
            RefusalCode::KeySecretFixed,
            "the secret of the stream keys is set already and cannot change: leave key_secret empty",
        )));
    }
    if row.key_secret.is_empty() {
        if secret.len() < SECRET_BYTES {
            return Err(invalid_argument(format!(
                "key_secret has {} bytes, at least {SECRET_BYTES} random ones are needed",
                secret.len()
            )));
        }
        row.key_secret = secret;
    }
    row.bridge = Some(bridge);
    ctx.db.sync_trust().id().update(row);
    Ok(())
}
