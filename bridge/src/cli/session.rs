//! `spacetime-sync session`

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::json;
use spacetime_sync_issuer::keys::SigningKey;
use spacetime_sync_proto::Label;
use spacetime_sync_proto::Secret;

use super::say;

#[derive(Subcommand)]
pub(crate) enum SessionCommand {
    /// Sign a session credential and print it.
    Sign(SignArgs),
}

#[derive(Args)]
pub(crate) struct SignArgs {
    /// File with a private key of P-256 in PEM; its public half is one of `sessions.public_keys`.
    #[arg(long)]
    key: PathBuf,
    /// `sessions.issuer` of the bridge.
    #[arg(long)]
    issuer: String,
    /// `sessions.audience` of the bridge.
    #[arg(long)]
    audience: String,
    /// The user.
    #[arg(long)]
    user: Label,
    /// The session.
    #[arg(long)]
    session: Label,
    /// The organisation.
    #[arg(long)]
    org: Option<Label>,
    /// The device; a session that does not name it is bound to that of its first request for a token.
    #[arg(long)]
    device: Option<Label>,
    /// For how many seconds it is good.
    #[arg(long, default_value_t = 3_600)]
    ttl: u64,
}

pub(crate) fn execute(command: SessionCommand, now: u64) -> anyhow::Result<()> {
    let SessionCommand::Sign(args) = command;
    let origin = args.key.display().to_string();
    let pem = std::fs::read_to_string(&args.key).with_context(|| format!("cannot read {origin}"))?;
    let key = SigningKey::from_pem(&Secret::from(pem), 0, &origin)?;
    let mut claims = json!({
        "iss": args.issuer, "aud": args.audience, "sub": args.user, "sid": args.session,
        "iat": now, "nbf": now, "exp": now.saturating_add(args.ttl),
    });
    for (field, value) in [("org_id", args.org), ("device_id", args.device)] {
        if let Some(value) = value {
            claims[field] = json!(value);
        }
    }
    let token = key.sign(&claims).ok().context("the credential could not be signed")?;
    say(token.expose())
}
