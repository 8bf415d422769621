//! Opening the WebSocket.
//!
//! The SDK blocks a thread until the server has answered, however long that takes. So each connection has a runtime of
//! its own from the attempt on: when the caller stops waiting, the thread and the socket end with that runtime. Some
//! waits the system does not let end, such as an address lookup; this module counts and bounds those.

use std::sync::atomic::{AtomicUsize, Ordering};

use spacetime_sync_bindings::DbConnection;
use spacetime_sync_proto::Secret;
use spacetimedb_sdk::Compression;
use tokio::runtime::{Builder, Handle, Runtime};

use super::StdbError;
use super::link::Target;

/// Most attempts that may hang at the same time.
const MOST: usize = 8;

/// How many attempts have not ended.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// The runtime of one connection.
pub(super) struct LinkRuntime(Option<Runtime>);

impl LinkRuntime {
    fn new() -> std::io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        builder
            .worker_threads(1)
            .thread_name("spacetime-sync-link")
            .enable_all();
        builder.build().map(|runtime| Self(Some(runtime)))
    }

    /// Spawns tasks on this runtime.
    pub(super) fn handle(&self) -> Option<&Handle> {
        self.0.as_ref().map(Runtime::handle)
    }
}

impl Drop for LinkRuntime {
    fn drop(&mut self) {
        // A connection is dropped where nothing may wait for threads to end.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A running attempt, counted until its thread has ended.
struct Attempt;

impl Attempt {
    fn begin() -> Option<Self> {
        let begun = UNDER_WAY.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |attempts| {
            (attempts < MOST).then_some(attempts + 1)
        });
        // `Self` is created only if the attempt was counted, because dropping it counts down.
        match begun {
            Ok(_) => Some(Self),
            Err(_) => None,
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Connects, and calls `connected` when the server has accepted the bridge. Dropping the future ends the attempt. Returns
/// the address, too, to which the socket leads.
pub(super) async fn open(
    target: &Target,
    token: &Secret,
    connected: impl FnOnce() + Send + 'static,
) -> Result<(DbConnection, LinkRuntime, String), StdbError> {
    let unavailable = |message: String| StdbError::Unavailable {
        uri: target.uri.clone(),
        message,
    };
    let attempt =
        Attempt::begin().ok_or_else(|| unavailable(format!("{MOST} earlier attempts to connect still hang")))?;
    let runtime =
        LinkRuntime::new().map_err(|error| unavailable(format!("cannot start a thread to connect on: {error}")))?;
    let Some(threads) = runtime.handle().cloned() else {
        return Err(unavailable("cannot start a thread to connect on".to_owned()));
    };
    let (transport, uri) = (target.transport.clone(), target.uri.clone());
    let leading = threads.spawn(async move { transport.address_for_sdk(&uri).await });
    let address = leading
        .await
        .map_err(|error| unavailable(format!("connecting ended without an answer: {error}")))?
        .map_err(|error| unavailable(error.to_string()))?;
    let builder = DbConnection::builder()
        .with_uri(address.as_str())
        .with_database_name(target.address())
        .with_token(Some(token.expose()))
        .with_compression(Compression::None)
        .with_confirmed_reads(true)
        .on_connect(move |_, _, _| connected());
    let opening = threads.spawn_blocking(move || {
        let _attempt = attempt;
        builder.build()
    });
    let connection = opening
        .await
        .map_err(|error| unavailable(format!("connecting ended without an answer: {error}")))?
        .map_err(|error| unavailable(error.to_string()))?;
    Ok((connection, runtime, address))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::net::TcpListener;

    use spacetime_sync_transport::Transport;

    use super::*;
    use crate::tokens::TokenSource;

    /// A single test, because both parts use a counter of the whole process.
    #[tokio::test(flavor = "multi_thread")]
    async fn an_abandoned_attempt_leaves_no_thread_behind_and_few_may_hang_at_once() {
        // Accepts connections and never answers.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let token = Secret::from("none".to_owned());
        let target = Target {
            uri: format!("http://{}", silent.local_addr().unwrap()),
            transport: Transport::default(),
            database: "lane".to_owned(),
            pin: None,
            tokens: TokenSource::Fixed(token.clone()),
            compatibility: None,
            deadline: Duration::from_secs(1),
        };
        for _ in 0..2 * MOST {
            let attempt = open(&target, &token, || {});
            let waited = tokio::time::timeout(Duration::from_millis(50), attempt).await;
            assert!(waited.is_err(), "the server never answers");
            let deadline = Instant::now() + Duration::from_secs(10);
            while UNDER_WAY.load(Ordering::SeqCst) > 0 {
                assert!(Instant::now() < deadline, "the thread of the attempt did not end");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let attempts: Vec<_> = std::iter::from_fn(Attempt::begin).take(2 * MOST).collect();
        assert_eq!(attempts.len(), MOST);
        assert!(Attempt::begin().is_none());
        drop(attempts);
        assert!(Attempt::begin().is_some());
    }
}
