//! Serves connections. It limits their number, in all and of one address, how long one may be idle, how large its headers
//! may be, and how slowly it may take an answer.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use spacetime_sync_doors::asker::Origin;
use spacetime_sync_doors::sockets::{Sockets, accept};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The largest headers. The largest credential fits.
const HEADERS_BYTES: usize = 64 * 1024;
/// If sending an answer takes between this long and twice as long, the server ends the connection. A client of the lane has
/// given up by then: it waits 30 s for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(40);

/// How much a listener bears.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The most connections at once. Further ones wait to be accepted.
    pub connections: usize,
    /// The most connections of one address. Further ones are closed. `None` if all come from one, which is a proxy's.
    pub address_connections: Option<usize>,
    /// How long a connection may be idle, or take to send the headers of a request.
    pub idle: Duration,
}

/// Serves for as long as the process runs.
pub async fn serve(listener: TcpListener, router: Router, bounds: Bounds) {
    let sockets = bounds.address_connections.map(Sockets::new);
    let serve = |stream, peer: SocketAddr| {
        let socket = match &sockets {
            Some(sockets) => Some(sockets.arrive(Origin::of(peer.ip()))?),
            None => None,
        };
        let router = router.clone();
        Some(async move {
            serve_one(stream, peer, router, bounds.idle, ANSWER_LIMIT).await;
            drop(socket);
        })
    };
    accept(listener, bounds.connections, serve).await;
}

async fn serve_one(stream: TcpStream, peer: SocketAddr, router: Router, idle: Duration, answer_limit: Duration) {
    // Answers are small, and the client waits for each.
    let _ = stream.set_nodelay(true);
    let routes = TowerToHyperService::new(router);
    let (answering, answers) = watch::channel(Weak::new());
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        let (response, answering) = (hyper::service::Service::call(&routes, request), answering.clone());
        async move {
            response.await.map(|response| {
                let unsent = Arc::new(());
                answering.send_replace(Arc::downgrade(&unsent));
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
        .header_read_timeout(idle)
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_client_that_does_not_take_its_answer_is_cut_off() {
        // More than the kernel buffers.
        let router = Router::new().route("/", get(async || vec![0; 64 << 20]));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let served = serve_one(stream, peer, router, SOON, Duration::from_millis(50));
        assert!(timeout(SOON, served).await.is_ok(), "the connection is still open");
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_is_cut_off_and_an_address_has_few_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let bounds = Bounds {
            connections: 4,
            address_connections: Some(2),
            idle: Duration::from_millis(500),
        };
        tokio::spawn(serve(listener, Router::new().route("/", get(async || "here")), bounds));
        let mut silent = [
            TcpStream::connect(at).await.unwrap(),
            TcpStream::connect(at).await.unwrap(),
        ];
        let mut further = TcpStream::connect(at).await.unwrap();
        let mut nothing = Vec::new();
        for stream in std::iter::once(&mut further).chain(&mut silent) {
            // One that is closed with something unread ends with an error.
            let ended = timeout(SOON, stream.read_to_end(&mut nothing)).await;
            assert!(ended.is_ok() && nothing.is_empty(), "{nothing:?}");
        }
        let mut good = TcpStream::connect(at).await.unwrap();
        good.write_all(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        good.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("here"), "{answer}");
    }
}
