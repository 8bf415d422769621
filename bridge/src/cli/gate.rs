//! `spacetime-sync gate`: the gate before SpacetimeDB, with the issuer's published keys.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use spacetime_sync_bridge::config::{Config, gate_credential};
use spacetime_sync_gate::access::{Unverified, Verified, Verifier};
use spacetime_sync_gate::bridge::watch;
use spacetime_sync_gate::serve::{Gate, serve};
use spacetime_sync_issuer::sessions::TokenVerifier;
use spacetime_sync_proto::RefusalCode;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Verifies by the keys that the issuer publishes.
#[derive(Debug)]
struct Published(TokenVerifier);

impl Verifier for Published {
    fn claims<'a>(&'a self, token: &'a str) -> Verified<'a> {
        Box::pin(async {
            self.0.claims(token).await.map_err(|denial| match denial.code {
                RefusalCode::SyncTokenUnavailable => Unverified::Unavailable,
                _ => Unverified::Invalid,
            })
        })
    }
}

/// Runs a gate until it is told to end. Its clients connect again, to this gate or to another one.
pub(crate) async fn run(config: Option<PathBuf>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut config = Config::load_gate(config.as_deref(), std::env::vars())?;
    let (wanted, descriptors) = (config.connections, descriptors());
    if config.fit(descriptors)? {
        tracing::warn!(
            descriptors,
            connections = config.connections,
            "this process may have too few file descriptors for gate.connections = {wanted}: \
             it takes fewer connections. Raise the hard limit (ulimit -Hn)"
        );
    }
    let token = gate_credential(&config)?;
    let (bridge, every) = (config.bridge_url().to_owned(), config.revocations_every());
    let listen = async |address| {
        let listener = TcpListener::bind(address).await;
        listener.with_context(|| format!("cannot listen on {address}"))
    };
    let (clients, operator) = (listen(config.listen).await?, listen(config.admin_listen).await?);
    tracing::info!(clients = %clients.local_addr()?, admin = %operator.local_addr()?, "listening");
    let transport = config.transport()?;
    let verifier = Published(TokenVerifier::new(&config.keys_url(), &transport));
    let gate = Arc::new(Gate::new(config, &transport, Arc::new(verifier)));
    tokio::select! {
        () = serve(gate.clone(), clients, operator) => anyhow::bail!("the gate accepts nobody any more"),
        () = watch(&gate, &transport, &bridge, &token, every) => anyhow::bail!("the gate no longer asks the bridge"),
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("stopped");
    Ok(())
}

/// How many file descriptors this process may have, once it has asked for all it can get.
fn descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Up to the hard limit everybody may. If it fails all the same, what there is counts.
    let _ = setrlimit(Resource::Nofile, most);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
