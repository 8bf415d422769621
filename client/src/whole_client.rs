//! The whole client against a fake host: what happens to tokens and connections, and that no event is lost or repeated
//! along the way.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use spacetime_sync_proto::{Event, Refusal, RefusalCode, StreamId};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::fake_host::{FakeHost, stream};
use crate::presence::{OfflineReason, Presence, PresenceStatus, Presences};
use crate::seal::tests::BRIDGE;
use crate::watched::Watched;
use crate::{
    AccessToken, Beginning, ClientConfig, Credential, Handler, HandlerError, Phase, Reads, SqliteStore, Status,
    StopReason, StreamPhase, StreamStop, SyncClient, TokenError, WantedToken,
};

mod recovery;
mod rights;

const SECONDS: Duration = Duration::from_secs(20);

/// The token with this number. The provider counts from 1.
fn token(number: usize) -> String {
    format!("very-secret-{number}")
}

/// Everything that any test has logged.
static LOG: LazyLock<Arc<Mutex<Vec<u8>>>> = LazyLock::new(|| {
    let log: Arc<Mutex<Vec<u8>>> = Arc::default();
    let to = Arc::clone(&log);
    let made = tracing_subscriber::fmt()
        .with_ansi(false)
        // These libraries log the headers they send; the example shows how an application keeps them out of its log.
        .with_env_filter("trace,tungstenite=debug,tokio_tungstenite=debug")
        .with_writer(move || LogWriter(Arc::clone(&to)))
        .try_init();
    made.unwrap();
    log
});

struct LogWriter(Arc<Mutex<Vec<u8>>>);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Run {
    host: FakeHost,
    client: SyncClient,
    applied: Arc<Mutex<Vec<u64>>>,
    /// Where the stream has started over, and from which document.
    begun: Arc<Mutex<Vec<Begun>>>,
    asked: Arc<Mutex<usize>>,
    /// Every phase since the client first became live.
    phases: Arc<Mutex<Vec<Phase>>>,
    _store: tempfile::TempDir,
}

/// Where a stream has started over, and from which document.
type Begun = (u64, Option<String>);

struct Recorder {
    applied: Arc<Mutex<Vec<u64>>>,
    begun: Arc<Mutex<Vec<Begun>>>,
}

impl Handler<SqliteStore> for Recorder {
    fn apply(&mut self, _: &mut rusqlite::Transaction<'_>, _: &StreamId, events: &[Event]) -> Result<(), HandlerError> {
        let seqs = events.iter().map(|event| event.seq.get());
        self.applied.lock().unwrap().extend(seqs);
        Ok(())
    }

    fn start_over(
        &mut self,
        _: &mut rusqlite::Transaction<'_>,
        _: &StreamId,
        beginning: &Beginning,
    ) -> Result<(), HandlerError> {
        let document = beginning.document.as_ref().map(|document| document.doc_key.clone());
        self.begun.lock().unwrap().push((beginning.at.seq.get(), document));
        self.applied.lock().unwrap().clear();
        Ok(())
    }
}

/// What the provider gives, in order; after these, tokens that last long.
#[derive(Clone)]
enum Give {
    /// A token that is replaced after the first, and ends after the second number of milliseconds.
    Token(u64, u64),
    No(TokenError),
}

impl Run {
    async fn start(host: &FakeHost, give: &[Give]) -> Self {
        Self::giving(host, give, |_| {}).await
    }

    async fn giving(host: &FakeHost, give: &[Give], configure: impl FnOnce(&mut ClientConfig)) -> Self {
        let asked = Arc::new(Mutex::new(0));
        let (count, mut queue) = (Arc::clone(&asked), VecDeque::from(give.to_vec()));
        let queue = Mutex::new(std::mem::take(&mut queue));
        let provider = move |wanted: WantedToken| {
            assert_eq!(wanted.streams, [stream()]);
            let mut count = count.lock().unwrap();
            *count += 1;
            let give = queue.lock().unwrap().pop_front().unwrap_or(Give::Token(60_000, 80_000));
            let given = match give {
                Give::Token(refresh, expire) => Ok(AccessToken {
                    refresh_after: Duration::from_millis(refresh),
                    session_id: Some("s1".to_owned()),
                    ..AccessToken::new(token(*count), Duration::from_millis(expire))
                }),
                Give::No(error) => Err(error),
            };
            std::future::ready(given)
        };
        Self::configured(host, Credential::provider(provider), asked, configure).await
    }

    async fn with(host: &FakeHost, credential: Credential, asked: Arc<Mutex<usize>>) -> Self {
        Self::configured(host, credential, asked, |_| {}).await
    }

    async fn reading(reads: Reads, host: &FakeHost, credential: Credential, asked: Arc<Mutex<usize>>) -> Self {
        Self::configured(host, credential, asked, |config| config.reads = reads).await
    }

    async fn configured(
        host: &FakeHost,
        credential: Credential,
        asked: Arc<Mutex<usize>>,
        configure: impl FnOnce(&mut ClientConfig),
    ) -> Self {
        LazyLock::force(&LOG);
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(directory.path().join("store")).unwrap();
        let mut config = ClientConfig::new(&host.uri, "lane", vec![stream()]);
        config.credential = credential;
        config.seal_keys = vec![BRIDGE.public.clone()];
        config.backoff.spread = Duration::from_millis(20);
        config.backoff.first = Duration::from_millis(20);
        config.backoff.most = Duration::from_millis(100);
        // Generous for slow machines: tests of these limits set them.
        config.limits.handover_timeout = Duration::from_secs(60);
        config.limits.live_grace = Duration::from_secs(60);
        // A lost delivery stays missing for the whole test: nothing asks for it again.
        config.limits.heartbeat_after = Duration::from_secs(60);
        config.limits.silence_timeout = Duration::from_secs(60);
        config.limits.verify_every = Duration::from_secs(60);
        let applied: Arc<Mutex<Vec<u64>>> = Arc::default();
        let to = Arc::clone(&applied);
        let begun: Arc<Mutex<Vec<Begun>>> = Arc::default();
        let handler = Recorder {
            applied: to,
            begun: Arc::clone(&begun),
        };
        configure(&mut config);
        let client = SyncClient::start(config, store, handler).unwrap();
        let mut status = client.status();
        let phases: Arc<Mutex<Vec<Phase>>> = Arc::default();
        let seen = Arc::clone(&phases);
        tokio::spawn(async move {
            while status.changed().await.is_ok() {
                let phase = status.borrow_and_update().phase.clone();
                let mut seen = seen.lock().unwrap();
                if phase == Phase::Live || !seen.is_empty() {
                    seen.push(phase);
                }
            }
        });
        Self {
            host: host.clone(),
            client,
            applied,
            begun,
            asked,
            phases,
            _store: directory,
        }
    }

    async fn until(&self, what: &str, done: impl FnMut(&Status) -> bool) -> Status {
        let mut status = self.client.status();
        let found = timeout(SECONDS, status.wait_for(done)).await;
        match found {
            Ok(Ok(status)) => status.clone(),
            _ => panic!(
                "{what}: {:?} {:?}",
                self.client.status().borrow().clone(),
                self.host.seen()
            ),
        }
    }

    async fn until_live(&self) {
        self.until("live", |status| status.phase == Phase::Live).await;
    }

    async fn stopped(&self) -> StopReason {
        let status = timeout(SECONDS, self.client.stopped())
            .await
            .expect("the client did not stop in time");
        match status.phase {
            Phase::Stopped { reason } => reason,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until everything is applied, stops the client, and checks that each event was applied once and in order
    /// and that no token was logged. Returns the phases since the client first became live.
    async fn end(self) -> (Status, Vec<Phase>) {
        let head = self.host.head();
        let done = |status: &Status| status.streams[&stream()].applied.seq.get() == head;
        self.until("all applied", done).await;
        let mut phases = self.phases.lock().unwrap().clone();
        phases.dedup();
        let status = self.client.stop().await;
        assert_eq!(*self.applied.lock().unwrap(), (1..=head).collect::<Vec<_>>());
        nothing_is_shown(&status);
        (status, phases)
    }
}

fn nothing_is_shown(status: &Status) {
    let log = String::from_utf8_lossy(&LOG.lock().unwrap()).into_owned();
    assert!(log.contains("the client has stopped"), "nothing was logged");
    let line = log.lines().find(|line| line.contains("very-secret"));
    assert_eq!(line, None);
    let shown = format!("{status:?}");
    assert!(!shown.contains("very-secret"), "{shown}");
}

/// Appends an event every few milliseconds.
fn appending(host: &FakeHost) -> JoinHandle<()> {
    let host = host.clone();
    tokio::spawn(async move {
        loop {
            host.append();
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    })
}

fn refused(code: RefusalCode) -> String {
    Refusal::new(code, "no").to_wire()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_replaced_while_events_flow_and_the_client_stays_live() {
    let host = FakeHost::start(50).await;
    let run = Run::start(&host, &vec![Give::Token(300, 20_000); 100]).await;
    run.until_live().await;
    let appending = appending(&host);
    let status = run
        .until("refreshes and events", |status| {
            status.counters.refreshes >= 4 && status.counters.events_applied > 100
        })
        .await;
    let shown = status.token.unwrap();
    assert_eq!(shown.session_id.as_deref(), Some("s1"));
    assert!(shown.expires_in() > Duration::from_secs(10) && shown.refresh_due_in() < Duration::from_secs(1));
    appending.abort();
    let served = host.seen().served;
    let (status, phases) = run.end().await;
    assert_eq!(phases, [Phase::Live]);
    assert_eq!((status.counters.reconnects, status.counters.token_failures), (0, 0));
    // Everything was delivered; nothing was missed and paged.
    assert_eq!((status.counters.holes_paged, status.counters.pages), (0, 1));
    assert_eq!(served[..5], [1, 2, 3, 4, 5].map(token));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_replaced_connection_is_dropped() {
    let host = FakeHost::start(5).await;
    let run = Run::start(&host, &[Give::Token(300, 20_000)]).await;
    run.until("a refresh", |status| status.counters.refreshes == 1).await;
    timeout(SECONDS, async {
        while host.seen().ended.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(host.seen().ended, [token(1)]);
    let (_, phases) = run.end().await;
    assert_eq!(phases, [Phase::Live]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_dies_during_the_handover_costs_nothing() {
    let host = FakeHost::start(50).await;
    host.cut_when_served(&token(2), &token(1));
    let run = Run::start(&host, &[Give::Token(300, 20_000)]).await;
    run.until_live().await;
    let appending = appending(&host);
    let replaced = |status: &Status| status.counters.refreshes + status.counters.reconnects == 1;
    run.until("the second connection", replaced).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    appending.abort();
    let served = host.seen().served;
    run.end().await;
    // The pending attempt is used, and no third one is made.
    assert_eq!(served, [1, 2].map(token));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_cannot_move_over_in_time_pages_again() {
    let host = FakeHost::start(5).await;
    let give = [Give::Token(300, 20_000), Give::Token(2_000, 20_000)];
    let run = Run::giving(&host, &give, |config| {
        config.limits.handover_timeout = Duration::from_millis(500);
    })
    .await;
    run.until_live().await;
    host.never_subscribe(&token(2));
    run.until("a refresh", |status| status.counters.refreshes == 1).await;
    let appending = appending(&host);
    // The stream pages meanwhile, and the third connection answers again.
    run.until("another", |status| status.counters.refreshes == 2).await;
    run.until_live().await;
    appending.abort();
    run.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_fails_is_tried_again_while_the_connection_serves() {
    let host = FakeHost::start(5).await;
    let give = [
        Give::Token(300, 20_000),
        Give::No(TokenError::unavailable("down")),
        Give::No(TokenError::refused(RefusalCode::RateLimited, "later")),
    ];
    let run = Run::start(&host, &give).await;
    let status = run.until("a refresh", |status| status.counters.refreshes == 1).await;
    assert_eq!((status.counters.token_failures, status.counters.reconnects), (2, 0));
    let (_, phases) = run.end().await;
    assert_eq!(phases, [Phase::Live]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_outlives_the_connection_that_failed_with_it() {
    let host = FakeHost::start(5).await;
    host.do_not_accept(&token(2), 503);
    let run = Run::start(&host, &[Give::Token(300, 20_000)]).await;
    run.until("a failure", |status| {
        status.token.as_ref().is_some_and(|token| token.failures > 1)
    })
    .await;
    // The client tries the second token again and again and asks for no third.
    assert_eq!(*run.asked.lock().unwrap(), 2);
    let (_, phases) = run.end().await;
    assert_eq!(phases, [Phase::Live]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_without_an_end_is_used() {
    let host = FakeHost::start(5).await;
    let provider = |_: WantedToken| std::future::ready(Ok(AccessToken::new(token(1), Duration::MAX)));
    let run = Run::with(&host, Credential::provider(provider), Arc::default()).await;
    run.until_live().await;
    run.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_grants_says_so_and_goes_on_once_it_has_one() {
    let host = FakeHost::start(5).await;
    let nothing = || Give::No(TokenError::refused(RefusalCode::Forbidden, "none of the streams"));
    let run = Run::giving(&host, &[nothing(), nothing()], |config| {
        config.limits.ask_again_after = Duration::from_millis(200);
    })
    .await;
    run.until("forbidden", |status| match &status.phase {
        Phase::Backoff { reason, .. } => reason.refusal() == Some(RefusalCode::Forbidden),
        _ => false,
    })
    .await;
    run.until_live().await;
    assert_eq!(*run.asked.lock().unwrap(), 3);
    run.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_is_refused_for_good_stops_the_client() {
    let host = FakeHost::start(5).await;
    let give = [
        Give::Token(300, 20_000),
        Give::No(TokenError::refused(RefusalCode::TokenRevoked, "revoked")),
    ];
    let run = Run::start(&host, &give).await;
    let reason = run.stopped().await;
    assert_eq!(
        reason,
        StopReason::Refused(Refusal::new(RefusalCode::TokenRevoked, "revoked"))
    );
    assert_eq!(reason.refusal(), Some(RefusalCode::TokenRevoked));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_ends_before_a_new_one_arrives_ends_the_connection() {
    let host = FakeHost::start(5).await;
    let (asked, down) = (Arc::new(Mutex::new(0)), Arc::new(AtomicBool::new(true)));
    let (count, is_down) = (Arc::clone(&asked), Arc::clone(&down));
    let provider = move |_: WantedToken| {
        let mut count = count.lock().unwrap();
        *count += 1;
        let given = match *count {
            1 => Ok(AccessToken {
                refresh_after: Duration::from_millis(300),
                ..AccessToken::new(token(1), Duration::from_secs(5))
            }),
            _ if is_down.load(Ordering::Relaxed) => Err(TokenError::unavailable("down")),
            number => Ok(AccessToken::new(token(number), Duration::from_secs(60))),
        };
        std::future::ready(given)
    };
    let run = Run::with(&host, Credential::provider(provider), asked).await;
    run.until_live().await;
    run.until("the end of the token", |status| {
        matches!(&status.phase, Phase::Backoff { .. })
    })
    .await;
    down.store(false, Ordering::Relaxed);
    run.until_live().await;
    let (status, _) = run.end().await;
    assert_eq!(status.counters.reconnects, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_the_module_refuses_for_good_stops_the_client() {
    let host = FakeHost::start(5).await;
    host.refuse(&token(1), &refused(RefusalCode::TokenRevoked));
    let run = Run::start(&host, &[]).await;
    let reason = run.stopped().await;
    assert_eq!(
        reason,
        StopReason::Refused(Refusal::new(RefusalCode::TokenRevoked, "no"))
    );
    assert_eq!(host.seen().asked, [token(1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_refused_for_its_token_gets_another() {
    let host = FakeHost::start(5).await;
    host.refuse(&token(1), &refused(RefusalCode::TokenExpired));
    let run = Run::start(&host, &[]).await;
    run.until_live().await;
    assert_eq!(host.seen().asked, [token(1)], "once for each attempt");
    assert_eq!(host.seen().served, [token(2)]);
    run.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_closed_without_a_reason_is_tried_again() {
    let host = FakeHost::start(5).await;
    host.refuse(&token(1), "out of memory");
    let run = Run::start(&host, &[]).await;
    run.until("three attempts", |_| host.seen().asked.len() >= 3).await;
    let status = run.client.stop().await;
    assert_eq!(*run.asked.lock().unwrap(), 1);
    nothing_is_shown(&status);
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_that_are_never_answered_leave_nothing_behind() {
    let host = FakeHost::start(5).await;
    host.hang(true);
    let run = Run::configured(&host, Credential::Anonymous, Arc::default(), |config| {
        config.limits.connect_timeout = Duration::from_millis(250);
    })
    .await;
    run.until("attempts", |_| host.seen().unanswered >= 10).await;
    // A closed socket shows that the thread waiting on it has let go.
    run.until("their ends", |_| host.seen().given_up >= 10).await;
    host.hang(false);
    run.until_live().await;
    run.end().await;
}

#[tokio::test]
async fn a_runtime_with_one_thread_is_enough() {
    let host = FakeHost::start(50).await;
    let run = Run::start(&host, &[]).await;
    run.until_live().await;
    host.append();
    run.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_accepted_is_replaced_until_one_is() {
    let host = FakeHost::start(5).await;
    host.do_not_accept(&token(1), 401);
    let run = Run::start(&host, &[]).await;
    run.until_live().await;
    let (status, _) = run.end().await;
    assert_eq!(status.counters.token_failures, 1);

    let host = FakeHost::start(5).await;
    for number in 1..=3 {
        host.do_not_accept(&token(number), 401);
    }
    let run = Run::start(&host, &[]).await;
    run.until_live().await;
    assert_eq!(host.seen().served, [token(4)]);
    let (status, _) = run.end().await;
    assert_eq!(status.counters.token_failures, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fixed_token_that_has_ended_stops_the_client() {
    let host = FakeHost::start(5).await;
    host.refuse(&token(1), &refused(RefusalCode::TokenExpired));
    host.do_not_accept(&token(2), 401);
    for (number, expected) in [(1, "refused"), (2, "unauthorized")] {
        let run = Run::with(&host, Credential::Fixed(token(number)), Arc::default()).await;
        assert_eq!(run.stopped().await.code(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_revoked_during_a_connection_stops_the_client() {
    let host = FakeHost::start(5).await;
    host.refuse_reads(&token(1), Refusal::new(RefusalCode::TokenRevoked, "gone"));
    let run = Run::start(&host, &[]).await;
    assert_eq!(run.stopped().await.code(), "refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_module_no_longer_accepts_is_replaced_at_once() {
    let host = FakeHost::start(5).await;
    host.refuse_reads(&token(1), Refusal::new(RefusalCode::TokenExpired, "by my clock"));
    let run = Run::start(&host, &[]).await;
    run.until("a refresh", |status| status.counters.refreshes == 1).await;
    assert_eq!(host.seen().served, [1, 2].map(token));
    drop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_reconnects_with_the_token_it_has_after_a_cut() {
    let host = FakeHost::start(5).await;
    let run = Run::start(&host, &[]).await;
    run.until_live().await;
    host.cut(&token(1));
    run.until("a reconnect", |_| host.seen().served.len() >= 2).await;
    assert_eq!(*run.asked.lock().unwrap(), 1);
    let status = run.client.stop().await;
    nothing_is_shown(&status);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_never_answers_or_panics_is_asked_again() {
    let host = FakeHost::start(5).await;
    let calls = Arc::new(Mutex::new(0));
    let count = Arc::clone(&calls);
    let provider = move |_: WantedToken| {
        let mut count = count.lock().unwrap();
        *count += 1;
        let number = *count;
        drop(count);
        async move {
            assert_ne!(number, 1, "the first call panics");
            Ok(AccessToken::new(token(number), Duration::from_secs(60)))
        }
    };
    let run = Run::with(&host, Credential::provider(provider), calls).await;
    run.until_live().await;
    run.end().await;
}
