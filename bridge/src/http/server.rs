//! Serves connections. It limits their number, how long one may be idle, how large its headers may be, and how slowly it may
//! take an answer.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

/// The most connections at once. Further ones wait to be accepted.
const CONNECTIONS: usize = 4_096;
/// How long a connection may be idle, or take to send the headers of a request.
const HEADERS_LIMIT: Duration = Duration::from_secs(60);
/// The largest headers. The largest credential fits.
const HEADERS_BYTES: usize = 64 * 1024;
/// If sending an answer takes between this long and twice as long, the server ends the connection. A client of the lane has
/// given up by then.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// The pause after a failed accept, for example when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves for as long as the process runs.
pub async fn serve(listener: TcpListener, router: Router) {
    let turns = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Nobody closes the semaphore.
        let Ok(turn) = turns.clone().acquire_owned().await else {
            return;
        };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let router = router.clone();
        tokio::spawn(async move {
            serve_one(stream, peer, router, ANSWER_LIMIT).await;
            drop(turn);
        });
    }
}

async fn serve_one(stream: tokio::net::TcpStream, peer: SocketAddr, router: Router, answer_limit: Duration) {
    // Answers are small, and the client waits for each.
    let _ = stream.set_nodelay(true);
    let routes = TowerToHyperService::new(router);
    let (answering, answers) = watch::channel(Weak::new());
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        let (response, answering) = (hyper::service::Service::call(&routes, request), answering.clone());
        async move {
            let unsent = Arc::new(());
            answering.send_replace(Arc::downgrade(&unsent));
            response.await.map(|response| {
                response.map(|body| {
                    body.map_frame(move |frame| {
                        let _unsent = unsent.clone();
                        frame.map_data(|bytes| Bytes::from_owner(Part { bytes, _unsent }))
                    })
                })
            })
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_LIMIT)
        .max_buf_size(HEADERS_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        served = connection => if let Err(error) = served {
            tracing::debug!(%error, %peer, "a connection broke");
        },
        () = overdue(answers, answer_limit) => tracing::debug!(%peer, "a client took its answer too slowly"),
    }
}

/// A part of an answer. hyper drops it once it is sent.
struct Part {
    bytes: Bytes,
    _unsent: Arc<()>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Resolves when an answer takes too long. The watched value lives as long as a part of the answer is unsent.
async fn overdue(mut answers: watch::Receiver<Weak<()>>, limit: Duration) {
    while answers.changed().await.is_ok() {
        let answer = answers.borrow_and_update().clone();
        tokio::time::sleep(limit).await;
        if answer.strong_count() > 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_client_that_does_not_take_its_answer_is_cut_off() {
        // More than the kernel buffers.
        let router = Router::new().route("/", get(async || vec![0; 64 << 20]));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let served = serve_one(stream, peer, router, Duration::from_millis(50));
        let ended = timeout(Duration::from_secs(20), served).await;
        assert!(ended.is_ok(), "the connection is still open");
    }
}
