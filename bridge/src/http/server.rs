//! Connections: kept alive, bounded in number, in time and in the size of what they send.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Most connections at once; those beyond wait to be accepted.
const CONNECTIONS: usize = 4_096;
/// How long a connection may be idle, or take for the headers of a request.
const HEADERS_LIMIT: Duration = Duration::from_secs(60);
/// Largest headers: the largest credential fits.
const HEADERS_BYTES: usize = 64 * 1024;
/// After a failed accept, as when there are no more files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves for as long as the process runs.
pub async fn serve(listener: TcpListener, router: Router) {
    let turns = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Never closed, so it never fails.
        let Ok(turn) = turns.clone().acquire_owned().await else {
            return;
        };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let router = router.clone();
        tokio::spawn(async move {
            serve_one(stream, peer, router).await;
            drop(turn);
        });
    }
}

async fn serve_one(stream: tokio::net::TcpStream, peer: SocketAddr, router: Router) {
    // Answers are small, and each is waited for.
    let _ = stream.set_nodelay(true);
    let routes = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        hyper::service::Service::call(&routes, request)
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_LIMIT)
        .max_buf_size(HEADERS_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, %peer, "a connection broke off");
    }
}
