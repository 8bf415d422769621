//! How a session shows that it has a key of Nostr. Both calls are procedures: the first answers with the challenge, and the second
//! keeps on record that a challenge was used even if it refuses, which a reducer's error would undo.

use spacetime_sync_proto::Label;
use spacetime_sync_proto::nostr::challenge;
use spacetime_sync_rules::nostr::{self, HeldChallenge, Proof, no_challenge};
use spacetime_sync_rules::quota::Call;
use spacetimedb::{Identity, ProcedureContext, ReducerContext, Table, Timestamp, procedure};

use crate::access::own_session;
use crate::presences;
use crate::quota::spend;
use crate::refuse::{Refused, invalid_argument, refused};
use crate::tables::{NostrChallenge, nostr_challenge};

/// Makes a challenge for a node of the caller's session. It replaces the one before.
#[procedure]
pub fn challenge_nostr_key(ctx: &mut ProcedureContext, node_id: String) -> Result<String, Refused> {
    ctx.try_with_tx(|tx| make(tx, &node_id))
}

fn make(ctx: &ReducerContext, node_id: &str) -> Result<String, Refused> {
    let own = own_session(ctx)?;
    let node = Label::new(node_id).map_err(|error| invalid_argument(format!("node_id: {error}")))?;
    spend(ctx, Call::Challenge)?;
    presences::check_known(ctx, &own.session_id, node_id)?;
    let challenges = ctx.db.nostr_challenge();
    let held = newest(ctx, own.identity, node_id);
    let of_session = challenges.by_node().filter(own.identity).count();
    let made = nostr::make(held.as_ref().map(HeldChallenge::from), of_session, milliseconds(ctx)).map_err(refused)?;
    let row = NostrChallenge {
        challenge_id: held.as_ref().map_or(0, |held| held.challenge_id),
        identity: own.identity,
        node_id: node_id.to_owned(),
        made_ms: made.made_ms,
        is_spent: made.is_spent,
        expires_at: at_millisecond(made.expires_ms()),
    };
    if held.is_some() {
        challenges.challenge_id().update(row);
    } else {
        challenges.insert(row);
    }
    Ok(challenge(&node, &hex_of(own.identity), made.made_ms))
}

/// Binds a key to a node of the caller's session, if the signature is the key's over the newest challenge for the node.
#[procedure]
pub fn bind_nostr_key(
    ctx: &mut ProcedureContext,
    node_id: String,
    challenge: String,
    nostr_pubkey: String,
    signature: String,
) -> Result<(), Refused> {
    let proof = nostr::proof(&node_id, &nostr_pubkey, &signature).map_err(refused)?;
    // Commits whatever comes of it.
    ctx.with_tx(|tx| bind(tx, &proof, &challenge))
}

fn bind(ctx: &ReducerContext, proof: &Proof, stated: &str) -> Result<(), Refused> {
    let own = own_session(ctx)?;
    let node_id = proof.node_id.as_str();
    presences::check_known(ctx, &own.session_id, node_id)?;
    let row = newest(ctx, own.identity, node_id).ok_or_else(|| refused(no_challenge()))?;
    let mut held = HeldChallenge::from(&row);
    let verdict = held.attempt(proof, stated, &hex_of(own.identity), milliseconds(ctx));
    if held.is_spent != row.is_spent {
        ctx.db.nostr_challenge().challenge_id().update(NostrChallenge {
            is_spent: held.is_spent,
            ..row
        });
    }
    verdict.map_err(refused)?;
    presences::bind(ctx, &own.session_id, node_id, &proof.key);
    Ok(())
}

fn newest(ctx: &ReducerContext, identity: Identity, node_id: &str) -> Option<NostrChallenge> {
    ctx.db.nostr_challenge().by_node().filter((identity, node_id)).next()
}

impl From<&NostrChallenge> for HeldChallenge {
    fn from(row: &NostrChallenge) -> Self {
        Self {
            made_ms: row.made_ms,
            is_spent: row.is_spent,
        }
    }
}

fn hex_of(identity: Identity) -> String {
    identity.to_hex().to_string()
}

fn milliseconds(ctx: &ReducerContext) -> u64 {
    u64::try_from(ctx.timestamp.to_micros_since_unix_epoch() / 1_000).unwrap_or_default()
}

fn at_millisecond(millisecond: u64) -> Timestamp {
    let micros = i64::try_from(millisecond).unwrap_or(i64::MAX).saturating_mul(1_000);
    Timestamp::from_micros_since_unix_epoch(micros)
}
