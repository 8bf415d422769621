//! `spacetime-sync publish`

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use spacetime_sync_authority::Act;
use spacetime_sync_ops::publish::{Bridge, ROW_LIMIT, Request, Trust, build_module, publish};
use spacetime_sync_proto::access::{AUDIENCE, check_issuer_url};
use spacetime_sync_proto::{DatabasePin, Secret, limit};
use spacetime_sync_stdb::admin::{Admin, Breaking};
use spacetime_sync_stdb::identity;
use spacetime_sync_stdb::tokens::read_token;
use spacetime_sync_transport::plaintext;

use super::{AuditArgs, ServerArgs, say};

/// How often the module looks for sessions that have ended, by default.
const SWEEP_MS: u32 = 1_000;

/// What `--help` says beyond the options.
const CONFIGURATION: &str = "\
What is configured:
  Besides publishing, this sets the engine's row_limit and calls two reducers of the module, as the owner. `trust_issuer`, with
  --issuer, says whose tokens open a session. `configure` says which identity the bridge has, and sets the secret from which
  stream keys are derived. Until then the module admits nobody but the owner. Without --issuer it then admits anybody.

After `spacetime publish`, the module runs and admits its owner alone. Run this once with --configure-only, or call the
reducers, in this order:
  spacetime call DATABASE trust_issuer '\"ISSUER\"' '\"openagents-sync\"' 1000
  spacetime call DATABASE configure '{\"__identity__\": \"0xBRIDGE\"}' '\"SECRET\"'
  BRIDGE is what `spacetime-sync identity --issuer ISSUER` prints, or `spacetime-sync identity FILE` for a bridge with a
  token of its own. SECRET is the output of `openssl rand -hex 32`; leave it empty when the module is configured again.
  ISSUER is the issuer.url of the bridge, and 1000 how often, in milliseconds, the module looks for ended sessions.";

#[derive(Args)]
#[command(after_help = CONFIGURATION)]
pub(crate) struct PublishArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    audit: AuditArgs,
    /// File with the owner's token. If it does not exist, a new identity is made and written to it.
    #[arg(long)]
    token_file: PathBuf,
    /// File with the bridge's token. If it does not exist, a new identity is made and written to it. Not with --issuer.
    #[arg(long, required_unless_present = "issuer", conflicts_with = "issuer")]
    bridge_token_file: Option<PathBuf>,
    /// Trust the tokens of this issuer: the `issuer.url` of the bridge, which then also signs its own token.
    #[arg(long, value_parser = issuer_url)]
    issuer: Option<String>,
    /// The audience of those tokens: the `issuer.audience` of the bridge.
    #[arg(long, default_value = AUDIENCE, requires = "issuer")]
    audience: String,
    /// How often, in milliseconds, the module looks for sessions that have ended.
    #[arg(long, default_value_t = SWEEP_MS, requires = "issuer", value_parser = sweep_ms)]
    sweep_ms: u32,
    /// File of a module that is already built.
    #[arg(long, conflicts_with = "module")]
    wasm: Option<PathBuf>,
    /// Folder of the module to build.
    #[arg(long, default_value = "module")]
    module: PathBuf,
    /// Publish nothing: only configure the module that runs, after `spacetime publish`. The owner's token is then the one
    /// that `spacetime login show --token` prints.
    #[arg(long, conflicts_with_all = ["wasm", "module", "break_clients", "delete_data"])]
    configure_only: bool,
    /// Allow a change that disconnects clients.
    #[arg(long)]
    break_clients: bool,
    /// Delete everything that the database holds. The bridge publishes all events again.
    #[arg(long, conflicts_with = "break_clients")]
    delete_data: bool,
    /// How many rows a query or subscription of a client may scan, by SpacetimeDB's estimate. More than twice the frames
    /// that SpacetimeDB holds, or clients cannot subscribe any more.
    #[arg(long, default_value_t = ROW_LIMIT, value_parser = clap::value_parser!(u64).range(100_000..))]
    row_limit: u64,
    /// Print the report as one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn publish_module(args: PublishArgs) -> anyhow::Result<()> {
    let wasm = match &args.wasm {
        _ if args.configure_only => None,
        Some(path) => Some(std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?),
        None => Some(build_module(&args.module).await?),
    };
    let breaking = match (args.break_clients, args.delete_data) {
        (false, false) => Breaking::Refuse,
        (true, _) => Breaking::DisconnectClients,
        (false, true) => Breaking::DeleteData,
    };
    let configure_only = args.configure_only;
    let how = match (configure_only, breaking) {
        (true, _) => "configures what runs",
        (false, Breaking::Refuse) => "publishes",
        (false, Breaking::DisconnectClients) => "publishes and disconnects clients",
        (false, Breaking::DeleteData) => "publishes and deletes everything",
    };
    let transport = args.server.transport()?;
    if let Some(issuer) = &args.issuer {
        // SpacetimeDB asks there for the keys that it trusts.
        plaintext::check(issuer, args.server.transport.allow_plaintext, "--allow-plaintext").context("--issuer")?;
    }
    let (uri, database) = (args.server.uri.as_str(), args.server.database.as_str());
    args.audit.record(Act::PublishModule { uri, database, how }).await?;
    let open_to_anybody = args.issuer.is_none();
    let bridge = match (args.issuer, args.bridge_token_file) {
        (Some(issuer), _) => Bridge::Issuer(Trust {
            issuer,
            audience: args.audience,
            sweep_every_ms: args.sweep_ms,
        }),
        (None, Some(path)) => Bridge::TokenFile(path),
        (None, None) => anyhow::bail!("expected --bridge-token-file or --issuer, found neither"),
    };
    let report = publish(Request {
        uri: args.server.uri,
        transport,
        database: args.server.database,
        owner_token: args.token_file,
        bridge,
        wasm,
        breaking,
        row_limit: args.row_limit,
    })
    .await?;
    if args.json {
        return say(serde_json::to_string(&report)?);
    }
    let done = match (configure_only, report.created) {
        (true, _) => "configured",
        (false, true) => "created",
        (false, false) => "updated",
    };
    say(format_args!("{done} database {}", report.database))?;
    say(format_args!("owner  {}\nbridge {}", report.owner, report.bridge))?;
    say("for the section [spacetimedb] of the bridge's configuration:")?;
    say_pin(&report.pin)?;
    if open_to_anybody {
        say("without an issuer, anybody may connect and sees what an operator grants")?;
    }
    if report.changes.is_empty() && !configure_only {
        say("the schema is the same as before")?;
    }
    report
        .changes
        .iter()
        .try_for_each(|change| say(format_args!("  {change}")))
}

#[derive(Args)]
pub(crate) struct DatabaseArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Token of the owner: fail if the database belongs to somebody else.
    #[arg(long, required_unless_present = "whoever_owns_it")]
    token_file: Option<PathBuf>,
    /// Print which database has the name, even if a stranger took it.
    #[arg(long, conflicts_with = "token_file")]
    whoever_owns_it: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Prints which database has a name, for an installation that has no pin yet.
pub(crate) async fn database(args: DatabaseArgs) -> anyhow::Result<()> {
    let (uri, database) = (&args.server.uri, &args.server.database);
    let nobody = Secret::from(String::new());
    let pin = Admin::over(&args.server.transport()?, uri, database, nobody)
        .pin()
        .await?;
    if let Some(file) = &args.token_file {
        let token = read_token(file)?;
        let owner = identity::of_token(&token).with_context(|| format!("{} holds no token", file.display()))?;
        if owner != pin.owner_identity.as_str() {
            anyhow::bail!(
                "database {database:?} at {uri} belongs to {}, and {} is of {owner}: somebody else has taken the name",
                pin.owner_identity,
                file.display()
            );
        }
    }
    if args.json {
        return say(serde_json::to_string(&pin)?);
    }
    say_pin(&pin)
}

fn say_pin(pin: &DatabasePin) -> anyhow::Result<()> {
    say(format_args!("database_identity = \"{}\"", pin.database_identity))?;
    say(format_args!("owner_identity = \"{}\"", pin.owner_identity))
}

pub(crate) fn issuer_url(text: &str) -> Result<String, String> {
    check_issuer_url(text).map(|()| text.to_owned())
}

/// Refuses what the module would refuse, but before anything is published.
fn sweep_ms(text: &str) -> Result<u32, String> {
    let (least, most) = (limit::SWEEP_MS.start(), limit::SWEEP_MS.end());
    let found = text.parse().ok().filter(|found| limit::SWEEP_MS.contains(found));
    found.ok_or_else(|| format!("expected {least} to {most}"))
}
