//! The bridge's configuration: a file, and the environment over it.
//!
//! Properties: accepted values are within their bounds, and secrets are never printed.

use std::path::PathBuf;

use anyhow::ensure;
use rand::rngs::StdRng;
use spacetime_sync_bridge::config::{Config, ENV_PREFIX};
use spacetime_sync_proto::limit;

use crate::target::{Entry, Seed, Target, Verdict};

pub(super) const CONFIG: Entry = Entry {
    name: "config",
    about: "the bridge's TOML and its environment",
    dictionary: &[
        b"[authority]",
        b"[spacetimedb]",
        b"[issuer]",
        b"[sessions]",
        b"[seals]",
        b"[limits]",
        b"[bridge]",
        b"[http]",
        b"[compatibility]",
        b"calls = 0",
        b"page_events = 10001",
        b"url = \"",
        b"token = \"",
        b"uri = \"https://",
        b"allow_plaintext = true",
        b"\"\"\"",
        b"'",
        b" = ",
        b"{ a = 1 }",
        b"\0",
        b"SPACETIME_SYNC__LIMITS__CALLS=7",
        b"SPACETIME_SYNC__HTTP__LISTEN=0.0.0.0:1",
        b"SPACETIME_SYNC__AUTHORITY__URL=",
        b"__",
    ],
    most: 16 * 1024,
    open: || {
        let folder = crate::lane::folder()?;
        let path = folder.path().join("bridge.toml");
        Ok(Box::new(Configs { path, _folder: folder }))
    },
    seeds: || {
        Ok(vec![
            Seed::new("small", SMALL),
            Seed::new("whole", format!("{SMALL}{WHOLE}")),
            Seed::new("environment", ENVIRONMENT),
        ])
    },
};

/// The secrets in the configuration. They must not appear in any output.
const SECRETS: [&str; 4] = [
    "hunter2-authority",
    "hunter2-token",
    "hunter2-admin-credential",
    "hunter2-signing-key",
];

const SMALL: &str = r#"[authority]
url = "postgres://u:hunter2-authority@localhost/d"
pool_size = 6
[spacetimedb]
uri = "http://127.0.0.1:3000"
database = "lane"
database_identity = "c200000000000000000000000000000000000000000000000000000000000000"
owner_identity = "c200111111111111111111111111111111111111111111111111111111111111"
token = "hunter2-token"
[seals]
keys_dir = "seals"
"#;

const WHOLE: &str = r#"[http]
listen = "127.0.0.1:7070"
behind_proxy = true
admin_token = "hunter2-admin-credential"
[bridge]
lead = false
stall_after_ms = 10000
idle_poll_ms = 250
[limits]
page_events = 1000
frame_bytes = 262144
calls = 64
attempts = 8
[issuer]
url = "https://lane.example/sync"
key = "hunter2-signing-key"
service_ttl_seconds = 900
session_per_minute = 30
[sessions]
issuer = "https://app.example"
audience = "runtime-sync"
public_keys = ["a.pem", "b.pem"]
jwks_url = "https://app.example/keys"
[compatibility]
min_client_build_id = "20260101T000000Z"
max_client_build_id = "20271231T000000Z"
"#;

const ENVIRONMENT: &str =
    "[limits]\ncalls = 3\n\0SPACETIME_SYNC__AUTHORITY__URL=postgres://u:hunter2-authority@localhost/d
SPACETIME_SYNC__SPACETIMEDB__URI=http://localhost
SPACETIME_SYNC__SPACETIMEDB__DATABASE=0042
SPACETIME_SYNC__SPACETIMEDB__TOKEN=hunter2-token
SPACETIME_SYNC__SPACETIMEDB__UNPINNED=true
SPACETIME_SYNC__HTTP__BEHIND_PROXY=true
SPACETIME_SYNC__LIMITS__READS=4
SPACETIME_SYNC__SEALS__KEYS_DIR=seals
OTHER=1";

struct Configs {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Target for Configs {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        // A file may hold any bytes, the environment only text.
        let at = input.iter().position(|byte| *byte == 0).unwrap_or(input.len());
        let (file, environment) = (&input[..at], String::from_utf8_lossy(&input[at..]));
        let environment: Vec<(String, String)> = environment
            .trim_start_matches('\0')
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        std::fs::write(&self.path, file)?;
        let text = String::from_utf8_lossy(input);
        let Ok(config) = Config::load(Some(&self.path), environment.iter().cloned()) else {
            return Ok(Verdict::Refused);
        };
        bounds(&config)?;
        let printed = format!("{config:?} {config:#?}");
        for secret in SECRETS {
            // A secret that also occurs in a field that is not secret may be printed.
            let elsewhere = text.matches(secret).count() > 1;
            ensure!(
                elsewhere || !printed.contains(secret) || !is_secret(&config, secret),
                "{secret} is printed"
            );
        }
        let known = [
            "AUTHORITY",
            "SPACETIMEDB",
            "HTTP",
            "BRIDGE",
            "LIMITS",
            "ISSUER",
            "SESSIONS",
            "COMPATIBILITY",
            "RETENTION",
            "HISTORY",
            "SEALS",
            "GATE",
        ];
        for (key, _) in &environment {
            let section = key.strip_prefix(ENV_PREFIX).and_then(|key| key.split_once("__"));
            let ours =
                section.is_some_and(|(section, _)| known.iter().any(|known| known.eq_ignore_ascii_case(section)));
            ensure!(
                ours || !key.starts_with(ENV_PREFIX),
                "{key:?} is not a key, but it was accepted"
            );
        }
        Ok(Verdict::Taken)
    }

    fn vary(&self, rng: &mut StdRng, input: &[u8]) -> Option<Vec<u8>> {
        use rand::Rng as _;
        // Removes, repeats or moves a line, or changes its value.
        let mut lines: Vec<Vec<u8>> = input.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        let at = rng.random_range(0..lines.len());
        match rng.random_range(0..5) {
            0 => drop(lines.remove(at)),
            1 => lines.insert(at, lines[at].clone()),
            2 => {
                let to = rng.random_range(0..lines.len());
                lines.swap(at, to);
            }
            _ => {
                let value = lines[at].iter().position(|byte| *byte == b'=').map_or(0, |at| at + 1);
                let mut changed = lines[at].split_off(value);
                crate::mutate::bytes(rng, &mut changed, &[], CONFIG.dictionary, 400);
                lines[at].extend(changed);
            }
        }
        Some(lines.join(&b'\n'))
    }
}

/// Whether this text occurs only in secret fields.
fn is_secret(config: &Config, text: &str) -> bool {
    let issuer = config.issuer.as_ref().and_then(|issuer| issuer.key.as_ref());
    [
        Some(&config.authority.url),
        config.spacetimedb.token.as_ref(),
        config.http.admin_token.as_ref(),
        issuer,
    ]
    .iter()
    .flatten()
    .any(|secret| secret.expose().contains(text))
}

fn bounds(config: &Config) -> anyhow::Result<()> {
    let limits = &config.limits;
    for (found, most) in [
        (limits.page_events, 10_000),
        (limits.frame_bytes, limit::FRAME_BYTES - limit::PAYLOAD_BYTES),
        (limits.reads, 1_000),
        (limits.calls, 1_000),
        (limits.bytes, 1 << 30),
        (limits.dirty_streams, 100_000),
        (limits.idle_streams, 10_000_000),
        (limits.attempts as usize, 1_000),
        (config.authority.pool_size, 1_000),
        (config.bridge.idle_poll_ms as usize, 60_000),
    ] {
        ensure!((1..=most).contains(&found), "{found} is not within 1 to {most}");
    }
    ensure!(config.lane().limits.reads >= 1, "nothing could be read");
    ensure!(config.spacetimedb.uri.starts_with("http") && !config.spacetimedb.database.is_empty());
    ensure!(config.issuer.is_some() == config.sessions.is_some());
    ensure!(config.compatibility.check_bounds().is_ok());
    let tokens = [
        config.spacetimedb.token.is_some(),
        config.spacetimedb.token_file.is_some(),
    ];
    ensure!(tokens != [true, true] && (tokens != [false, false] || config.issuer.is_some()));
    if let (Some(issuer), Some(sessions)) = (&config.issuer, &config.sessions) {
        ensure!(!issuer.url.ends_with('/') && issuer.url.starts_with("http"));
        ensure!(issuer.key.is_some() != issuer.keys_dir.is_some());
        ensure!((2..=900).contains(&issuer.service_ttl_seconds));
        ensure!(sessions.issuer != issuer.url && sessions.audience != issuer.audience);
        ensure!(!sessions.public_keys.is_empty() || sessions.jwks_url.is_some());
    }
    Ok(())
}
