//! `spacetime-sync grant`, `revoke` and `grants`: rights that the owner gives by hand.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use spacetime_sync_authority::Act;
use spacetime_sync_issuer::keys::moment_text;
use spacetime_sync_proto::{IdentityHex, StreamId};
use spacetime_sync_stdb::admin::Admin;
use spacetime_sync_stdb::tokens::read_token;

use super::{AuditArgs, ServerArgs, say};

/// Seconds of a day.
const DAY: u64 = 86_400;

#[derive(Args)]
pub(crate) struct GrantArgs {
    #[command(flatten)]
    which: Which,
    /// Token of the owner of the database.
    #[arg(long)]
    token_file: PathBuf,
    /// For how many days. Given again, it ends that many days from then.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=400))]
    days: u64,
}

#[derive(Args)]
pub(crate) struct RevokeArgs {
    #[command(flatten)]
    which: Which,
    /// Token of the owner or of the bridge.
    #[arg(long)]
    token_file: PathBuf,
}

#[derive(Args)]
pub(crate) struct GrantsArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Token of the owner of the database.
    #[arg(long)]
    token_file: PathBuf,
}

#[derive(Args)]
struct Which {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    audit: AuditArgs,
    /// The identity that may read, in hex.
    #[arg(long)]
    identity: IdentityHex,
    /// The stream; may be given several times.
    #[arg(long = "stream", required = true)]
    streams: Vec<StreamId>,
}

pub(crate) async fn grant(args: GrantArgs) -> anyhow::Result<()> {
    let Which {
        server,
        audit,
        identity,
        streams,
    } = &args.which;
    let admin = admin(server, &args.token_file)?;
    let identity = identity.as_str();
    for stream_id in streams {
        audit.record(Act::GrantStream { identity, stream_id }).await?;
        let lasts = Duration::from_secs(args.days * DAY);
        admin.grant(identity, stream_id, lasts).await?;
        say(format_args!("{identity} may read {stream_id} for {} days", args.days))?;
    }
    Ok(())
}

pub(crate) async fn revoke(args: RevokeArgs) -> anyhow::Result<()> {
    let Which {
        server,
        audit,
        identity,
        streams,
    } = &args.which;
    let admin = admin(server, &args.token_file)?;
    let identity = identity.as_str();
    for stream_id in streams {
        audit.record(Act::RevokeStream { identity, stream_id }).await?;
        admin.revoke(identity, stream_id).await?;
        say(format_args!("{identity} may no longer read {stream_id}"))?;
    }
    Ok(())
}

pub(crate) async fn list(args: GrantsArgs) -> anyhow::Result<()> {
    let admin = admin(&args.server, &args.token_file)?;
    let grants = admin.grants().await?;
    for grant in &grants {
        match &grant.ends {
            Some((stream_id, at_us)) => say(format_args!(
                "{} may read {stream_id} until {}",
                grant.identity,
                moment_text(at_us / 1_000_000)
            ))?,
            None => say(format_args!(
                "{} may read a stream without an end: an earlier release gave that; give it again or take it",
                grant.identity
            ))?,
        }
    }
    say(format_args!("{} grants by hand", grants.len()))
}

fn admin(server: &ServerArgs, token_file: &Path) -> anyhow::Result<Admin> {
    let token = read_token(token_file)?;
    Ok(Admin::over(&server.transport()?, &server.uri, &server.database, token))
}
