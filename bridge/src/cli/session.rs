//! `spacetime-sync session`

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::json;
use spacetime_sync_issuer::jws::Kind;
use spacetime_sync_issuer::keys::{SigningKey, moment_text};
use spacetime_sync_proto::access::{Scope, TOKEN_PATH, TokenRequest, TokenResponse, headers};
use spacetime_sync_proto::contract::{OLDEST_SCHEMA_VERSION, PROTOCOL, SCHEMA_VERSION};
use spacetime_sync_proto::{Label, StreamId};
use spacetime_sync_stdb::tokens::read_token;
use spacetime_sync_transport::secret_file;

use super::{TransportArgs, say};

#[derive(Subcommand)]
pub(crate) enum SessionCommand {
    /// Sign a session credential and print it.
    Sign(SignArgs),
    /// Ask a bridge for a sync token, as a client does, and print it.
    Token(TokenArgs),
}

#[derive(Args)]
pub(crate) struct TokenArgs {
    /// The bridge: its `issuer.url`.
    #[arg(long)]
    bridge: String,
    #[command(flatten)]
    transport: TransportArgs,
    /// File with the session credential.
    #[arg(long)]
    session_file: PathBuf,
    /// The stream, or a pattern of streams such as `runtime.run.*`. May be given several times.
    #[arg(long = "stream", required = true)]
    streams: Vec<String>,
    /// The device, if the session credential does not name it.
    #[arg(long)]
    device: Option<String>,
    /// The build id of the client that asks. By default one made from the present time.
    #[arg(long)]
    client_build_id: Option<String>,
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
    /// The device. A session without one is bound to the device of its first request for a token.
    #[arg(long)]
    device: Option<Label>,
    /// For how many seconds the credential is valid.
    #[arg(long, default_value_t = 3_600)]
    ttl: u64,
}

pub(crate) async fn execute(command: SessionCommand, now: u64) -> anyhow::Result<()> {
    match command {
        SessionCommand::Sign(args) => sign(args, now),
        SessionCommand::Token(args) => token(args, now).await,
    }
}

/// How long a bridge may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

async fn token(args: TokenArgs, now: u64) -> anyhow::Result<()> {
    let transport = args.transport.to(&args.bridge).context("--bridge")?;
    let credential = read_token(&args.session_file)?;
    let of_stream = |stream: &String| StreamId::new(stream).ok().as_ref().and_then(Scope::of_stream);
    let scopes: BTreeSet<String> = [Some(Scope::Subscribe)]
        .into_iter()
        .chain(args.streams.iter().map(of_stream))
        .flatten()
        .map(|scope| scope.to_string())
        .collect();
    let request = TokenRequest {
        scopes: scopes.into_iter().collect(),
        streams: args.streams,
        device_id: args.device,
        ..TokenRequest::default()
    };
    let response = transport
        .http(&args.bridge)
        .build()?
        .post(format!("{}{TOKEN_PATH}", args.bridge.trim_end_matches('/')))
        .timeout(ANSWER_LIMIT)
        .bearer_auth(credential.expose())
        .header(
            headers::CLIENT_BUILD_ID,
            args.client_build_id.unwrap_or_else(|| moment_text(now)),
        )
        .header(headers::PROTOCOL_VERSION, PROTOCOL)
        .header(headers::SCHEMA_VERSION, SCHEMA_VERSION)
        .header(headers::OLDEST_SCHEMA_VERSION, OLDEST_SCHEMA_VERSION)
        .json(&request)
        .send()
        .await
        .with_context(|| format!("cannot ask the bridge at {}", args.bridge))?;
    let status = response.status();
    if !status.is_success() {
        let why = response.text().await.unwrap_or_default();
        anyhow::bail!("the bridge refuses a token: {status}: {why}");
    }
    let answer: TokenResponse = response.json().await.context("the bridge's answer has no token")?;
    say(answer.token)
}

fn sign(args: SignArgs, now: u64) -> anyhow::Result<()> {
    let origin = args.key.display().to_string();
    let key = SigningKey::from_pem(&secret_file::read(&args.key)?, 0, &origin)?;
    let mut claims = json!({
        "iss": args.issuer, "aud": args.audience, "sub": args.user, "sid": args.session,
        "iat": now, "nbf": now, "exp": now.saturating_add(args.ttl),
    });
    for (field, value) in [("org_id", args.org), ("device_id", args.device)] {
        if let Some(value) = value {
            claims[field] = json!(value);
        }
    }
    let token = key
        .sign(Kind::Session, &claims)
        .ok()
        .context("cannot sign the credential")?;
    say(token.expose())
}
