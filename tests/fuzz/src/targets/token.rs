//! Session credentials and the keys that verify them: signed tokens, their claims, key sets, keys in PEM.
//!
//! Properties: an accepted credential was signed by our key, byte for byte, and its claims are those of a session that
//! has begun and not ended.

use anyhow::{Context as _, bail, ensure};
use futures_util::FutureExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use spacetime_sync_issuer::denial::Denial;
use spacetime_sync_issuer::jws::{Jws, Kind, PublicKey};
use spacetime_sync_issuer::keys::{Ring, SigningKey};
use spacetime_sync_issuer::sessions::{LEEWAY_SECONDS, Session, SessionVerifier, published_keys};
use spacetime_sync_issuer::settings::SessionsConfig;
use spacetime_sync_proto::Secret;
use spacetime_sync_proto::access::SyncClaims;
use spacetime_sync_proto::{RefusalCode, limit};

use crate::lane::{FOR_EVER, LONG_AGO, NOW, SESSIONS, key, pem};
use crate::mutate;
use crate::target::{Entry, Seed, Target, Verdict};

pub(super) const CREDENTIAL: Entry = Entry {
    name: "credential",
    about: "a session credential, against the key that signed it",
    dictionary: DICTIONARY,
    most: 40 * 1024,
    open: || {
        Ok(Box::new(Credentials {
            verifier: Verifier::new()?,
            signed: signed_messages()?,
        }))
    },
    seeds: credential_seeds,
};

pub(super) const SESSION: Entry = Entry {
    name: "session",
    about: "the claims of a credential, signed by the trusted key",
    dictionary: DICTIONARY,
    most: 2 * limit::CLAIMS_BYTES,
    open: || {
        Ok(Box::new(Sessions {
            verifier: Verifier::new()?,
            key: key(1)?,
        }))
    },
    seeds: || {
        let texts = claims()?
            .into_iter()
            .map(|(name, claims)| Seed::new(name, claims.to_string()));
        Ok(texts.collect())
    },
};

pub(super) const JWKS: Entry = Entry {
    name: "jwks",
    about: "the key set of the session issuer",
    dictionary: &[
        b"keys", b"kty", b"EC", b"RSA", b"crv", b"P-256", b"x", b"y", b"n", b"e", b"AQAB", b"kid", b"use", b"sig",
        b"alg", b"ES256", b"RS256",
    ],
    most: 64 * 1024,
    open: || {
        Ok(Box::new(KeySets {
            token: token(&signed()?),
            key: key(1)?.public(),
        }))
    },
    seeds: jwks_seeds,
};

pub(super) const KEY: Entry = Entry {
    name: "key",
    about: "private keys in PEM",
    dictionary: &[
        b"-----BEGIN PRIVATE KEY-----",
        b"-----END PRIVATE KEY-----",
        b"EC PRIVATE KEY",
        b"\n",
        b"\\n",
        b"==",
    ],
    most: 4 * 1024,
    open: || Ok(Box::new(Keys)),
    seeds: || {
        let pems = [1, 2].map(|number| Ok(Seed::new(format!("p256-{number}"), pem(number)?.expose())));
        pems.into_iter().collect()
    },
};

const DICTIONARY: &[&[u8]] = &[
    b".",
    b"alg",
    b"none",
    b"HS256",
    b"RS256",
    b"ES256",
    b"crit",
    b"typ",
    b"at+jwt",
    b"oa-sync+jwt",
    b"kid",
    b"iss",
    b"aud",
    b"sub",
    b"sid",
    b"session_id",
    b"exp",
    b"iat",
    b"nbf",
    b"eyJhbGciOiJub25lIn0",
    b"https://app.example",
    b"runtime-sync",
    b"1800000060",
    b"1799999940",
];

/// Claims that are accepted, and some that are not.
fn claims() -> anyhow::Result<Vec<(&'static str, Value)>> {
    let good = json!({
        "iss": SESSIONS.0, "aud": SESSIONS.1, "sub": "7", "sid": "s1",
        "iat": LONG_AGO, "nbf": LONG_AGO, "exp": FOR_EVER, "org_id": "acme", "device_id": "d1",
    });
    let bare = json!({
        "iss": SESSIONS.0, "aud": ["other", SESSIONS.1], "sub": "7", "session_id": "s2", "iat": NOW, "exp": NOW + 60,
    });
    let ended = json!({ "iss": SESSIONS.0, "aud": SESSIONS.1, "sub": "7", "sid": "s1", "iat": 1, "exp": 2 });
    Ok(vec![("good", good), ("bare", bare), ("ended", ended)])
}

fn signed() -> anyhow::Result<Secret> {
    let (_, good) = claims()?.swap_remove(0);
    key(1)?.sign(Kind::Session, &good).ok().context("cannot sign")
}

fn token(secret: &Secret) -> String {
    secret.expose().to_owned()
}

/// The messages that our key has signed: header and claims. They are the same whenever they are signed.
pub(super) fn signed_messages() -> anyhow::Result<Vec<String>> {
    let key = key(1)?;
    let message = |claims: &Value| {
        let token = key.sign(Kind::Session, claims).ok()?;
        Some(token.expose().rsplit_once('.')?.0.to_owned())
    };
    claims()?
        .iter()
        .map(|(_, claims)| message(claims).context("cannot sign"))
        .collect()
}

/// A credential that stays valid for a long time.
pub(super) fn credential() -> anyhow::Result<String> {
    Ok(token(&signed()?))
}

/// A verifier with two fixed keys, one P-256 and one RSA, read from files as the bridge reads them.
pub(super) struct Verifier {
    verifier: SessionVerifier,
    _folder: tempfile::TempDir,
}

/// The public part of a temporary 2048-bit key, made with: openssl genpkey -algorithm rsa | openssl pkey -pubout
const RSA: &str = include_str!("../../keys/rsa.pem");

/// Writes the public keys, and returns a configuration that names them.
pub(super) fn sessions_config(folder: &std::path::Path) -> anyhow::Result<SessionsConfig> {
    let (p256, rsa) = (folder.join("p256.pem"), folder.join("rsa.pem"));
    std::fs::write(&p256, key(1)?.public_pem().context("no public key")?)?;
    std::fs::write(&rsa, RSA)?;
    Ok(SessionsConfig {
        issuer: SESSIONS.0.to_owned(),
        audience: SESSIONS.1.to_owned(),
        public_keys: vec![p256, rsa],
        jwks_url: None,
        allow_plaintext: false,
        ca_file: None,
        cert_file: None,
        key_file: None,
        remember_days: None,
    })
}

impl Verifier {
    fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        Ok(Self {
            verifier: SessionVerifier::new(&sessions_config(folder.path())?)?,
            _folder: folder,
        })
    }

    fn verify(&self, token: &str) -> anyhow::Result<Result<Session, Denial>> {
        // With fixed keys the verifier has nothing to wait for.
        let Some(answer) = self.verifier.verify(token, NOW).now_or_never() else {
            bail!("verifying waits, though the keys are fixed");
        };
        let answer = answer.map_err(|refused| refused.denial);
        if let Err(denial) = &answer {
            let known = matches!(
                denial.code,
                RefusalCode::InvalidToken
                    | RefusalCode::TokenExpired
                    | RefusalCode::TokenNotYetValid
                    | RefusalCode::MissingIat
            );
            ensure!(known, "refused as {:?}", denial.code);
            ensure!(
                token.len() < 12 || !denial.message.contains(token),
                "the refusal reveals the token"
            );
        }
        Ok(answer)
    }
}

struct Credentials {
    verifier: Verifier,
    signed: Vec<String>,
}

impl Target for Credentials {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let text = String::from_utf8_lossy(input);
        let Ok(session) = self.verifier.verify(&text)? else {
            return Ok(Verdict::Refused);
        };
        let message = text.rsplit_once('.').map(|(message, _)| message);
        ensure!(
            self.signed.iter().any(|signed| Some(signed.as_str()) == message),
            "accepted, but not signed by our key: {session:?}"
        );
        Ok(Verdict::Taken)
    }

    fn vary(&self, rng: &mut StdRng, input: &[u8]) -> Option<Vec<u8>> {
        mutate::compact(rng, input, DICTIONARY)
    }
}

fn credential_seeds() -> anyhow::Result<Vec<Seed>> {
    let mut seeds = Vec::new();
    for (name, claims) in claims()? {
        for number in [1, 2] {
            let secret = key(number)?.sign(Kind::Session, &claims).ok().context("cannot sign")?;
            seeds.push(Seed::new(format!("{name}-{number}"), secret.expose()));
        }
    }
    Ok(seeds)
}

struct Sessions {
    verifier: Verifier,
    key: SigningKey,
}

impl Target for Sessions {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        // The credential signs JSON. Input that is not JSON becomes a JSON string.
        let said: Value = match serde_json::from_slice(input) {
            Ok(said) => said,
            Err(_) => Value::String(String::from_utf8_lossy(input).into_owned()),
        };
        let token = self.key.sign(Kind::Session, &said).ok().context("cannot sign")?;
        let Ok(session) = self.verifier.verify(token.expose())? else {
            return Ok(Verdict::Refused);
        };
        ensure!(said["iss"] == SESSIONS.0);
        let audience = match &said["aud"] {
            Value::Array(names) => names.len() <= 16 && names.iter().any(|name| name == SESSIONS.1),
            other => other == SESSIONS.1,
        };
        ensure!(audience, "the credential is for another audience");
        let time = |field: &str| said[field].as_u64();
        ensure!(time("exp").is_some_and(|ends| ends.saturating_add(LEEWAY_SECONDS) > NOW));
        ensure!(time("iat").is_some_and(|issued| issued <= NOW + LEEWAY_SECONDS));
        ensure!(said.get("nbf").is_none() || time("nbf").is_some_and(|from| from <= NOW + LEEWAY_SECONDS));
        ensure!(said["sub"] == session.user_id.as_str() && time("exp") == Some(session.expires_at));
        let names = ["sid", "session_id"].map(|field| said[field].as_str());
        ensure!(names.iter().flatten().all(|name| *name == session.session_id.as_str()));
        ensure!(names.iter().any(Option::is_some));
        ensure!(SyncClaims::check_names(&session.user_id, &session.session_id).is_ok());
        for name in [&session.user_id, &session.session_id]
            .into_iter()
            .chain(&session.org_id)
            .chain(&session.device_id)
        {
            ensure!(
                !name.as_str().is_empty() && name.as_str().len() <= limit::NAME_BYTES && !name.as_str().contains('/')
            );
        }
        Ok(Verdict::Taken)
    }

    fn vary(&self, rng: &mut StdRng, input: &[u8]) -> Option<Vec<u8>> {
        mutate::json(rng, input, DICTIONARY)
    }
}

struct KeySets {
    token: String,
    key: PublicKey,
}

impl Target for KeySets {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let Ok(keys) = published_keys(input) else {
            return Ok(Verdict::Refused);
        };
        ensure!(keys.len() <= 64);
        let token = Jws::parse(&self.token, Kind::Session)?;
        for (_, key) in &keys {
            if token.claims(key).is_ok() {
                let ours = matches!((key, &self.key), (PublicKey::P256(a), PublicKey::P256(b)) if a == b);
                ensure!(ours, "a foreign key verifies what our key has signed");
            }
        }
        Ok(Verdict::taken(!keys.is_empty()))
    }

    fn vary(&self, rng: &mut StdRng, input: &[u8]) -> Option<Vec<u8>> {
        mutate::json(rng, input, JWKS.dictionary)
    }
}

fn jwks_seeds() -> anyhow::Result<Vec<Seed>> {
    let keys = [key(1)?, key(2)?].map(std::sync::Arc::new);
    let two = Ring::new(keys.to_vec()).jwks(NOW);
    let one = Ring::new(keys[..1].to_vec()).jwks(NOW);
    let modulus = format!("{}Q", "u".repeat(341));
    let rsa = json!({ "keys": [{ "kty": "RSA", "n": modulus, "e": "AQAB", "alg": "RS256", "kid": "r" }, { "kty": "oct", "k": "AA" }] });
    Ok(vec![
        Seed::new("one", one.to_string()),
        Seed::new("two", two.to_string()),
        Seed::new("rsa", rsa.to_string()),
    ])
}

struct Keys;

impl Target for Keys {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let text = String::from_utf8_lossy(input).into_owned();
        let key = match SigningKey::from_pem(&Secret::from(text.clone()), 0, "the input") {
            Ok(key) => key,
            Err(error) => {
                let body: String = text.lines().filter(|line| line.len() > 30).take(1).collect();
                ensure!(
                    body.is_empty() || !error.to_string().contains(&body),
                    "the error reveals the key"
                );
                return Ok(Verdict::Refused);
            }
        };
        let token = key
            .sign(Kind::Session, &json!({ "a": 1 }))
            .ok()
            .context("the key does not sign")?;
        let jws = Jws::parse(token.expose(), Kind::Session)?;
        ensure!(
            jws.claims(&key.public())
                .is_ok_and(|claims| claims.get() == r#"{"a":1}"#),
            "the key does not verify what it signed"
        );
        ensure!(key.public_pem().is_some() && !key.kid().is_empty());
        Ok(Verdict::Taken)
    }
}
