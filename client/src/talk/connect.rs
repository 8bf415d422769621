//! Makes a connection, or says why that failed.

use std::error::Error;
use std::sync::Arc;

use spacetime_sync_bindings::DbConnection;
use spacetimedb_sdk::Compression;
use tokio::runtime::{Builder, Runtime};
use tungstenite::http::StatusCode;

use super::link::{Greeting, Inbox, Link, greet};
use crate::config::ClientConfig;
use crate::session::status::Disconnect;

/// Why a connection was not made.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ConnectFailure {
    /// SpacetimeDB does not accept the token.
    Unauthorized,
    /// SpacetimeDB accepts the token but not the connection.
    Forbidden,
    /// A later attempt may succeed.
    Later(Disconnect),
}

/// Connects. The SDK blocks a thread until SpacetimeDB has answered, however long that takes. When the caller gives up,
/// the thread and the socket end with the connection's runtime.
pub(super) async fn connect(
    config: &ClientConfig,
    database: &str,
    token: Option<String>,
) -> Result<Link, ConnectFailure> {
    let failed = |detail: String| ConnectFailure::Later(Disconnect::Failed(detail));
    let mut builder = Builder::new_multi_thread();
    builder
        .worker_threads(1)
        .thread_name("spacetime-sync-link")
        .enable_all();
    let runtime = builder
        .build()
        .map_err(|error| failed(format!("cannot start a thread to connect on: {error}")))?;
    let threads = runtime.handle().clone();
    let runtime = LinkRuntime(Some(runtime));
    let (transport, uri) = (config.transport.clone(), config.uri.clone());
    let leading = threads.spawn(async move { transport.address_for_sdk(&uri).await });
    let address = match leading.await {
        Ok(Ok(address)) => address,
        Ok(Err(error)) => return Err(ConnectFailure::Later(Disconnect::Unreachable(error.to_string()))),
        Err(error) => return Err(failed(format!("connecting ended without an answer: {error}"))),
    };
    let (config, database) = (config.clone(), database.to_owned());
    let opening = threads.spawn_blocking(move || open(&config, &address, &database, token.as_deref()));
    match opening.await {
        Ok(opened) => opened.map(|(connection, inbox)| Link::new(connection, inbox, runtime)),
        Err(error) => Err(failed(format!("connecting ended without an answer: {error}"))),
    }
}

/// The runtime of one connection, from the attempt on. Whatever the SDK waits for at a socket ends with it; an address
/// lookup by the system ends by itself.
pub(super) struct LinkRuntime(Option<Runtime>);

impl Drop for LinkRuntime {
    fn drop(&mut self) {
        // A connection is dropped where nothing may wait for threads to end.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn open(
    config: &ClientConfig,
    address: &str,
    database: &str,
    token: Option<&str>,
) -> Result<(DbConnection, Inbox), ConnectFailure> {
    let inbox = Inbox::default();
    let identified = Arc::clone(&inbox);
    let compression = if config.compression {
        Compression::Gzip
    } else {
        Compression::None
    };
    DbConnection::builder()
        .with_uri(address)
        .with_database_name(database)
        .with_token(token)
        .with_compression(compression)
        .with_confirmed_reads(config.reads.are_confirmed())
        .on_connect(move |_, identity, _| greet(&identified, Greeting::Identified(identity)))
        .build()
        .map(|connection| (connection, inbox))
        .map_err(|error| classify(&error, database))
}

fn classify(error: &spacetimedb_sdk::Error, database: &str) -> ConnectFailure {
    match http_status(error) {
        Some(StatusCode::UNAUTHORIZED) => ConnectFailure::Unauthorized,
        Some(StatusCode::FORBIDDEN) => ConnectFailure::Forbidden,
        Some(StatusCode::NOT_FOUND) => ConnectFailure::Later(Disconnect::NoDatabase(database.to_owned())),
        Some(_) | None => ConnectFailure::Later(Disconnect::Unreachable(error.to_string())),
    }
}

/// The HTTP status with which SpacetimeDB refused the WebSocket.
fn http_status(error: &spacetimedb_sdk::Error) -> Option<StatusCode> {
    let spacetimedb_sdk::Error::FailedToConnect { source } = error else {
        return None;
    };
    // The SDK's error gives its cause only through this deprecated method.
    #[allow(deprecated)]
    let mut cause = source.cause().and_then(Error::source);
    while let Some(error) = cause {
        let socket = error
            .downcast_ref::<Arc<tungstenite::Error>>()
            .map(|error| &**error)
            .or_else(|| error.downcast_ref::<tungstenite::Error>());
        if let Some(tungstenite::Error::Http(response)) = socket {
            return Some(response.status());
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use spacetime_sync_proto::StreamId;

    use super::*;

    /// A server that answers every request with one status.
    async fn refused_with(status: &'static str) -> ConnectFailure {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let host = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).unwrap();
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").unwrap();
        });
        let streams = vec![StreamId::new("a").unwrap()];
        let config = ClientConfig::new(format!("http://{address}"), "lane", streams);
        let failure = connect(&config, "lane", None).await.err().unwrap();
        host.join().unwrap();
        failure
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_refused_token_a_missing_database_and_an_outage_are_told_apart() {
        assert_eq!(refused_with("401 Unauthorized").await, ConnectFailure::Unauthorized);
        assert_eq!(refused_with("403 Forbidden").await, ConnectFailure::Forbidden);
        let missing = ConnectFailure::Later(Disconnect::NoDatabase("lane".to_owned()));
        assert_eq!(refused_with("404 Not Found").await, missing);
        let trouble = refused_with("503 Service Unavailable").await;
        assert!(
            matches!(trouble, ConnectFailure::Later(Disconnect::Unreachable(_))),
            "{trouble:?}"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_unreachable_server_is_tried_again() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = ClientConfig::new(format!("http://{closed}"), "lane", vec![StreamId::new("a").unwrap()]);
        let failure = connect(&config, "lane", None).await.err().unwrap();
        assert!(
            matches!(failure, ConnectFailure::Later(Disconnect::Unreachable(_))),
            "{failure:?}"
        );
    }
}
