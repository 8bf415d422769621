//! Keys that an issuer publishes. This module fetches them when a credential needs them, keeps them, and fetches them
//! again as rarely as possible.

use std::panic::resume_unwind;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use spacetime_sync_transport::Transport;
use tokio::sync::Mutex;

use crate::denial::Denial;
use crate::jws::{Algorithm, PublicKey};

/// How long a key set is used without asking again.
const FRESH: Duration = Duration::from_secs(300);
/// How long a key set is used while no newer one can be fetched.
const STALE: Duration = Duration::from_secs(3_600);
/// The shortest time between two requests, whatever happens, so that a flood of unknown key ids does not reach the
/// issuer.
const PAUSE: Duration = Duration::from_secs(30);
/// How long a request may take.
const FETCH_LIMIT: Duration = Duration::from_secs(5);
/// Largest key set.
const SET_BYTES: usize = 64 * 1024;
/// Most keys that are read from a set.
const KEYS: usize = 64;

/// The keys at a url.
#[derive(Debug)]
pub(super) struct RemoteKeys(Arc<Remote>);

#[derive(Debug)]
struct Remote {
    url: String,
    pause: Duration,
    http: reqwest::Client,
    held: RwLock<Option<Arc<Held>>>,
    /// When the url was last asked, and whether it answered. The holder of the lock asks.
    asked: Mutex<Option<(Instant, bool)>>,
}

struct Held {
    keys: Vec<(Option<String>, PublicKey)>,
    at: Instant,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kids: Vec<_> = self.keys.iter().map(|(kid, _)| kid).collect();
        f.debug_tuple("Held").field(&kids).finish()
    }
}

impl Held {
    /// The key with this id. Without an id, the only key of the algorithm.
    fn key(&self, kid: Option<&str>, algorithm: Algorithm) -> Option<PublicKey> {
        let mut fitting = self
            .keys
            .iter()
            .filter(|(known, key)| key.algorithm() == algorithm && (kid.is_none() || known.as_deref() == kid));
        let found = fitting.next()?;
        fitting.next().is_none().then(|| found.1.clone())
    }
}

impl RemoteKeys {
    pub(super) fn new(url: &str, transport: &Transport) -> Self {
        Self::with_pause(url, transport, PAUSE)
    }

    /// Keys that are asked for again after another pause.
    pub(super) fn with_pause(url: &str, transport: &Transport, pause: Duration) -> Self {
        let http = transport.http(url).timeout(FETCH_LIMIT).build();
        Self(Arc::new(Remote {
            url: url.to_owned(),
            pause,
            // The options are constants, so this fails only where no client can be made at all.
            http: http.expect("a client whose options are constants"),
            held: RwLock::default(),
            asked: Mutex::default(),
        }))
    }

    /// The key with this id; `None` if the issuer has no such key.
    pub(super) async fn key(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<Option<PublicKey>, Denial> {
        if let Some(key) = self.0.within(FRESH).and_then(|held| held.key(kid, algorithm)) {
            return Ok(Some(key));
        }
        // Runs in a task of its own: if the caller hangs up, the fetch goes on, and so does the pause after it.
        let refreshed = tokio::spawn({
            let remote = self.0.clone();
            async move { remote.refresh().await }
        });
        // Nobody cancels the task, so it ends with an answer or with a panic.
        let answered = refreshed
            .await
            .unwrap_or_else(|ended| resume_unwind(ended.into_panic()));
        match self.0.within(STALE).map(|held| held.key(kid, algorithm)) {
            Some(Some(key)) => Ok(Some(key)),
            Some(None) if answered => Ok(None),
            _ => Err(Denial::unavailable(
                "the keys of the issuer are not available at the moment",
            )),
        }
    }
}

impl Remote {
    fn within(&self, age: Duration) -> Option<Arc<Held>> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner).clone();
        held.filter(|held| held.at.elapsed() < age)
    }

    /// Fetches the set, unless it was fetched a moment ago. Returns whether the last fetch succeeded.
    async fn refresh(&self) -> bool {
        let mut asked = self.asked.lock().await;
        if let Some((at, answered)) = *asked
            && at.elapsed() < self.pause
        {
            return answered;
        }
        let fetched = self.fetch().await;
        *asked = Some((Instant::now(), fetched.is_ok()));
        match fetched {
            Ok(keys) => {
                tracing::info!(url = self.url, keys = keys.len(), "fetched the keys of an issuer");
                let held = Held {
                    keys,
                    at: Instant::now(),
                };
                *self.held.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(held));
                true
            }
            Err(why) => {
                tracing::warn!(url = self.url, why, "cannot fetch the keys of an issuer");
                false
            }
        }
    }

    async fn fetch(&self) -> Result<Vec<(Option<String>, PublicKey)>, String> {
        let sent = self.http.get(&self.url).send().await;
        let mut response = sent.map_err(|error| spacetime_sync_proto::error_text(&error.without_url()))?;
        if !response.status().is_success() {
            return Err(format!("it answered {}", response.status()));
        }
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() <= SET_BYTES => body.extend_from_slice(&chunk),
                Ok(Some(_)) => return Err(format!("it has more than {SET_BYTES} bytes")),
                Ok(None) => break,
                Err(error) => return Err(spacetime_sync_proto::error_text(&error.without_url())),
            }
        }
        published_keys(&body)
    }
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct PublishedKey {
    kty: String,
    kid: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
}

/// The keys of a set that can verify credentials, and their ids. Others are skipped.
pub fn published_keys(set: &[u8]) -> Result<Vec<(Option<String>, PublicKey)>, String> {
    let set: KeySet = serde_json::from_slice(set).map_err(|_| "it is not a key set".to_owned())?;
    let known = set.keys.into_iter().take(KEYS).filter_map(|value| {
        let key: PublishedKey = serde_json::from_value(value).ok()?;
        let kid = key.kid.clone();
        Some((kid, public_key(key)?))
    });
    Ok(known.collect())
}

fn public_key(key: PublishedKey) -> Option<PublicKey> {
    let forbids = key.purpose.is_some_and(|purpose| purpose != "sig")
        || key
            .key_ops
            .is_some_and(|uses| !uses.iter().any(|what| what == "verify"));
    if forbids {
        return None;
    }
    let bytes = |text: Option<String>| URL_SAFE_NO_PAD.decode(text?).ok();
    let public = match key.kty.as_str() {
        "EC" if key.crv.as_deref() == Some("P-256") => {
            let (x, y) = (bytes(key.x)?, bytes(key.y)?);
            if x.len() != 32 || y.len() != 32 {
                return None;
            }
            let point = [&[4][..], &x, &y].concat();
            p256::PublicKey::from_sec1_bytes(&point).ok()?;
            PublicKey::P256(point)
        }
        "RSA" => {
            let (n, e) = (bytes(key.n)?, bytes(key.e)?);
            if !(256..=1024).contains(&n.len()) || e.len() > 8 {
                return None;
            }
            PublicKey::Rsa { n, e }
        }
        _ => return None,
    };
    // A key for one algorithm is not used with another.
    let named = key
        .alg
        .is_none_or(|alg| alg.parse::<Algorithm>().is_ok_and(|alg| alg == public.algorithm()));
    named.then_some(public)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Ring;
    use crate::keys::tests::key;
    use serde_json::{Value, json};
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn set(change: impl FnOnce(&mut Value)) -> usize {
        let mut set = Ring::new(vec![key(0)]).jwks(0);
        change(&mut set["keys"][0]);
        published_keys(set.to_string().as_bytes()).unwrap().len()
    }

    #[test]
    fn keys_that_cannot_verify_credentials_are_skipped() {
        assert_eq!(set(|_| {}), 1);
        assert_eq!(set(|key| key["key_ops"] = json!(["verify"])), 1);
        for (field, value) in [
            ("kty", json!("oct")),
            ("kty", json!("RSA")),
            ("crv", json!("P-384")),
            ("x", json!("AAAA")),
            ("y", json!(URL_SAFE_NO_PAD.encode([1; 32]))),
            ("use", json!("enc")),
            ("key_ops", json!(["encrypt"])),
            ("key_ops", json!([])),
            ("alg", json!("HS256")),
            ("kid", json!(7)),
        ] {
            assert_eq!(set(|key| key[field] = value.clone()), 0, "{field}: {value}");
        }
        assert!(published_keys(b"{}").is_err());
        assert!(published_keys(b"<html>").is_err());
    }

    /// An issuer that counts how often it is asked.
    async fn issuer(body: String) -> (String, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let app = axum::Router::new().route(
            "/keys",
            axum::routing::get(move || {
                counter.fetch_add(1, Ordering::SeqCst);
                async move { body }
            }),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, app).into_future());
        (url, asked)
    }

    #[tokio::test]
    async fn a_flood_of_unknown_ids_asks_once() {
        let ring = Ring::new(vec![key(0), key(1)]);
        let kid = ring.signer(0).unwrap().kid().to_owned();
        let (url, asked) = issuer(ring.jwks(0).to_string()).await;
        let keys = RemoteKeys::new(&url, &Transport::default());
        for number in 0..100 {
            let unknown = format!("unknown-{number}");
            assert!(keys.key(Some(&unknown), Algorithm::ES256).await.unwrap().is_none());
        }
        assert!(keys.key(Some(&kid), Algorithm::ES256).await.unwrap().is_some());
        assert!(
            keys.key(Some(&kid), Algorithm::RS256).await.unwrap().is_none(),
            "the other algorithm"
        );
        assert!(
            keys.key(None, Algorithm::ES256).await.unwrap().is_none(),
            "without an id, two keys are ambiguous"
        );
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_caller_that_hangs_up_does_not_escape_the_pause_between_two_fetches() {
        let ring = Ring::new(vec![key(0)]);
        let (kid, set) = (ring.signer(0).unwrap().kid().to_owned(), ring.jwks(0).to_string());
        let (requests, mut requested) = tokio::sync::mpsc::unbounded_channel();
        let answer = Arc::new(tokio::sync::Semaphore::new(0));
        let app = axum::Router::new().route(
            "/keys",
            axum::routing::get({
                let answer = answer.clone();
                move || {
                    requests.send(()).unwrap();
                    async move { answer.acquire().await.map(|_| set).unwrap() }
                }
            }),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let keys = Arc::new(RemoteKeys::new(
            &format!("http://{}/keys", listener.local_addr().unwrap()),
            &Transport::default(),
        ));
        tokio::spawn(axum::serve(listener, app).into_future());
        let caller = tokio::spawn({
            let keys = keys.clone();
            async move { keys.key(Some("unknown"), Algorithm::ES256).await }
        });
        requested.recv().await.unwrap();
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());

        answer.add_permits(10);
        assert!(keys.key(Some(&kid), Algorithm::ES256).await.unwrap().is_some());
        assert!(requested.try_recv().is_err(), "the issuer was asked twice");
    }

    #[tokio::test]
    async fn an_issuer_that_is_unreachable_or_sends_too_much_is_unavailable() {
        let (too_much, _) = issuer("x".repeat(SET_BYTES + 1)).await;
        for url in ["http://127.0.0.1:1/keys", &too_much] {
            let denial = RemoteKeys::new(url, &Transport::default())
                .key(Some("k"), Algorithm::ES256)
                .await
                .unwrap_err();
            assert_eq!(denial.code, spacetime_sync_proto::RefusalCode::SyncTokenUnavailable);
        }
    }
}
