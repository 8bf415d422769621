//! `spacetime-sync mirror`: the mirror to relays of Nostr.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use spacetime_sync_authority::settings::AuthorityConfig;
use spacetime_sync_authority::{Authority, AuthorityError};
use spacetime_sync_bridge::config::Config;
use spacetime_sync_bridge::http::server::{Bounds, serve};
use spacetime_sync_mirror::operator::router;
use spacetime_sync_mirror::run::{self, Mirror};
use spacetime_sync_mirror::status::Status;
use spacetime_sync_proto::refusal::RefusalClass;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Connections to the authority. The mirror does one thing after the other, and so does its session at SpacetimeDB; the lead
/// takes one more.
const CONNECTIONS: usize = 2;
/// How long to wait before the authority is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// What the operator's listener bears.
const OPERATOR: Bounds = Bounds {
    connections: 32,
    address_connections: None,
    idle: Duration::from_secs(10),
};

/// Runs a mirror until it is told to end.
pub(crate) async fn run(config: Option<PathBuf>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let (authority, config) = Config::load_mirror(config.as_deref(), std::env::vars())?;
    let key = config.read_key()?;
    let listener = TcpListener::bind(config.admin_listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", config.admin_listen))?;
    tracing::info!(admin = %listener.local_addr()?, key = key.public(), "listening");
    let status = Arc::new(Status::default());
    let (stop, stopping) = watch::channel(false);
    let works = {
        let status = status.clone();
        async move {
            let authority = connected(&authority).await?;
            let mirror = Mirror {
                config,
                key,
                authority,
                status,
            };
            run::run(Arc::new(mirror), stopping).await;
            anyhow::Ok(())
        }
    };
    tokio::pin!(works);
    let told = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    tokio::select! {
        ended = &mut works => return ended,
        () = serve(listener, router(status), OPERATOR) => anyhow::bail!("nobody can ask how the mirror is any more"),
        () = told => {}
    }
    let _ = stop.send(true);
    // A mirror that still waits for the authority has nothing to give up.
    let _ = tokio::time::timeout(2 * AGAIN, works).await;
    tracing::info!("stopped");
    Ok(())
}

/// The authority, once it is there and has this build's migrations.
async fn connected(config: &AuthorityConfig) -> Result<Authority, AuthorityError> {
    loop {
        match Authority::connect(config, CONNECTIONS).await {
            Err(error) if error.class() == RefusalClass::Retry => {
                tracing::warn!(%error, "the authority is away");
                tokio::time::sleep(AGAIN).await;
            }
            ended => return ended,
        }
    }
}
