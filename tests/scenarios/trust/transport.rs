//! What goes over a network: nothing in plaintext, unless it was allowed in so many words.

mod files;
mod postgres;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use spacetime_sync_issuer::keys::{SigningKey, add_key, now};
use spacetime_sync_tests::tool::{self, Ended};
use spacetime_sync_tests::write_secret;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

pub(super) use postgres::authority;
pub(super) use tls::{addr, certified};

/// A server that another machine could be: it counts what it hears, and answers nothing.
struct Ear {
    addr: SocketAddr,
    heard: Arc<AtomicUsize>,
}

impl Ear {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let heard = Arc::new(AtomicUsize::new(0));
        let count = heard.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                // A connection alone counts, too.
                count.fetch_add(1, Ordering::SeqCst);
                let mut bytes = [0; 1_024];
                if let Ok(more) = stream.read(&mut bytes).await {
                    count.fetch_add(more, Ordering::SeqCst);
                }
            }
        });
        Self { addr, heard }
    }

    /// An address that leads here and is none of the loopback: the system takes it for its own.
    fn elsewhere(&self) -> String {
        format!("0.0.0.0:{}", self.addr.port())
    }

    fn heard(&self) -> usize {
        self.heard.load(Ordering::SeqCst)
    }
}

/// The files of a bridge, an operator and a client, all of them as they should be.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        add_key(&path("keys"), None, now()).unwrap();
        let pem = SigningKey::generate().unwrap();
        write_secret(&path("app.pem"), pem.expose()).unwrap();
        let app = SigningKey::from_pem(&pem, 0, "app.pem").unwrap();
        std::fs::write(path("app.pub.pem"), app.public_pem().unwrap()).unwrap();
        for token in ["owner", "bridge", "admin", "gate", "session"] {
            write_secret(&path(token), format!("a-secret-of-the-{token}")).unwrap();
        }
        let seals = spacetime_sync_issuer::keys::KeyFolder::open(&path("keys"), now()).unwrap();
        let seals = serde_json::to_vec(&seals.ring().seal_keys()).unwrap();
        std::fs::write(path("seal-keys.json"), seals).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// The environment of a bridge that nobody answers, with these keys changed.
    fn bridge(&self, set: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut keys = vec![
            ("authority.url", "postgres://nobody@127.0.0.1:9/none".to_owned()),
            ("spacetimedb.uri", "http://127.0.0.1:9".to_owned()),
            ("spacetimedb.database", "lane".to_owned()),
            ("spacetimedb.unpinned", "true".to_owned()),
            ("http.listen", "127.0.0.1:0".to_owned()),
            ("http.admin_token_file", self.path("admin")),
            ("http.behind_proxy", "false".to_owned()),
            ("issuer.url", "https://lane.example".to_owned()),
            ("issuer.keys_dir", self.path("keys")),
            ("sessions.issuer", "https://app.example".to_owned()),
            ("sessions.audience", "runtime-sync".to_owned()),
            ("sessions.public_keys", self.path("app.pub.pem")),
        ];
        environment(&mut keys, "", set)
    }

    fn gate(&self, set: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut keys = vec![
            ("listen", "127.0.0.1:0".to_owned()),
            ("admin_listen", "127.0.0.1:0".to_owned()),
            ("spacetimedb_uri", "http://127.0.0.1:9".to_owned()),
            ("database", "lane".to_owned()),
            ("issuer", "https://lane.example".to_owned()),
            ("behind_proxy", "false".to_owned()),
            ("bridge_token_file", self.path("gate")),
        ];
        environment(&mut keys, "gate.", set)
    }
}

fn environment(keys: &mut Vec<(&str, String)>, section: &str, set: &[(&str, &str)]) -> Vec<(String, String)> {
    let set: Vec<(&str, String)> = set.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
    keys.retain(|(known, _)| set.iter().all(|(key, _)| known != key));
    let all = keys.iter().cloned().chain(set);
    let name = |key: &str| {
        format!(
            "SPACETIME_SYNC__{}",
            format!("{section}{key}").replace('.', "__").to_uppercase()
        )
    };
    all.map(|(key, value)| (name(key), value)).collect()
}

async fn run(program: &str, arguments: &[&str], environment: &[(String, String)]) -> Ended {
    let environment: Vec<_> = environment
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    tool::run(program, arguments, &environment).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_process_sends_a_byte_in_plaintext_to_another_machine() {
    let (ear, files) = (Ear::new().await, Files::new());
    let http = format!("http://{}", ear.elsewhere());
    let postgres = format!("postgres://me:hunter2@{}/d", ear.elsewhere());
    for (key, url, allows) in [
        ("authority.url", &postgres, "authority.allow_plaintext = true"),
        ("spacetimedb.uri", &http, "spacetimedb.allow_plaintext = true"),
        ("issuer.url", &http, "issuer.allow_plaintext = true"),
        ("sessions.jwks_url", &http, "sessions.allow_plaintext = true"),
    ] {
        let environment = files.bridge(&[(key, url)]);
        // Whatever reads the bridge's configuration.
        for command in [
            &["run"][..],
            &["config", "check"],
            &["verify"],
            &["parity"],
            &["rewind"],
        ] {
            let ended = run("spacetime-sync", command, &environment).await;
            let said = ended.failed(1, &[key, "of this machine", allows]);
            assert!(!said.contains("hunter2"), "{said}");
        }
    }
    for key in ["spacetimedb_uri", "bridge_url", "keys_url", "issuer"] {
        let ended = run("spacetime-sync", &["gate"], &files.gate(&[(key, &http)])).await;
        ended.failed(1, &["plaintext to 0.0.0.0", "gate.allow_plaintext = true"]);
    }
    let (owner, session, app) = (files.path("owner"), files.path("session"), files.path("seal-keys.json"));
    let wasm = files.path("module.wasm");
    std::fs::write(&wasm, b"\0asm").unwrap();
    let server = ["--uri", &http, "--database", "lane", "--token-file", &owner];
    let local = [
        "--uri",
        "http://localhost:9",
        "--database",
        "lane",
        "--token-file",
        &owner,
    ];
    let identity = "0".repeat(64);
    let grant = ["--identity", &identity, "--stream", "s"];
    let store = files.path("client.sqlite");
    let follow = ["--database", "lane", "--db", &store, "--stream", "s"];
    let publish = ["publish", "--wasm", &wasm, "--issuer", "https://lane.example"];
    for (program, arguments, allows) in [
        ("spacetime-sync", [&publish[..], &server].concat(), "--allow-plaintext"),
        (
            "spacetime-sync",
            [&["publish", "--wasm", &wasm, "--issuer", &http][..], &local].concat(),
            "--allow-plaintext",
        ),
        (
            "spacetime-sync",
            [&["grant"][..], &server, &grant].concat(),
            "--allow-plaintext",
        ),
        (
            "spacetime-sync",
            [&["revoke"][..], &server, &grant].concat(),
            "--allow-plaintext",
        ),
        (
            "spacetime-sync",
            [&["grant", "--authority-url", &postgres][..], &local, &grant].concat(),
            "--authority-allow-plaintext",
        ),
        (
            "spacetime-sync",
            vec!["migrate", "--database-url", &postgres],
            "--allow-plaintext",
        ),
        (
            "spacetime-sync",
            vec![
                "session",
                "token",
                "--bridge",
                &http,
                "--session-file",
                &session,
                "--stream",
                "s",
            ],
            "--allow-plaintext",
        ),
        (
            "examples/follow",
            [
                &["--uri", &http, "--token-file", &owner, "--seal-keys", &app][..],
                &follow,
            ]
            .concat(),
            "Transport::allow_plaintext",
        ),
        (
            "examples/follow",
            [
                &[
                    "--uri",
                    "http://localhost:9",
                    "--bridge",
                    &http,
                    "--session-file",
                    &session,
                ][..],
                &follow,
            ]
            .concat(),
            "Transport::allow_plaintext",
        ),
        (
            "examples/follow",
            [
                &[
                    "--uri",
                    "http://localhost:9",
                    "--history",
                    &http,
                    "--token-file",
                    &owner,
                    "--seal-keys",
                    &app,
                ][..],
                &follow,
            ]
            .concat(),
            "Transport::allow_plaintext",
        ),
    ] {
        let ended = run(program, &arguments, &[]).await;
        let said = ended.failed(1, &["of this machine", allows]);
        assert!(!said.contains("hunter2") && !said.contains("a-secret"), "{said}");
    }
    assert_eq!(ear.heard(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_that_was_allowed_goes_to_another_machine() {
    let (ear, files) = (Ear::new().await, Files::new());
    let http = format!("http://{}", ear.elsewhere());
    let postgres = format!("postgres://me@{}/d", ear.elsewhere());
    let (owner, session) = (files.path("owner"), files.path("session"));
    let identity = "0".repeat(64);
    let grant = [
        "--database",
        "lane",
        "--token-file",
        &owner,
        "--identity",
        &identity,
        "--stream",
        "s",
    ];
    for arguments in [
        vec!["migrate", "--database-url", &postgres, "--allow-plaintext"],
        [&["grant", "--uri", &http, "--allow-plaintext"][..], &grant].concat(),
        [
            &[
                "grant",
                "--uri",
                "http://localhost:9",
                "--authority-url",
                &postgres,
                "--authority-allow-plaintext",
            ][..],
            &grant,
        ]
        .concat(),
        vec![
            "session",
            "token",
            "--bridge",
            &http,
            "--session-file",
            &session,
            "--stream",
            "s",
            "--allow-plaintext",
        ],
    ] {
        let before = ear.heard();
        let said = run("spacetime-sync", &arguments, &[]).await.failed(1, &[]);
        assert!(!said.contains("of this machine"), "{said}");
        assert!(ear.heard() > before + 1, "{arguments:?}: {said}");
    }
    let allowed = files.bridge(&[
        ("authority.url", &postgres),
        ("authority.allow_plaintext", "true"),
        ("spacetimedb.uri", &http),
        ("spacetimedb.allow_plaintext", "true"),
        ("issuer.url", &http),
        ("issuer.allow_plaintext", "true"),
        ("sessions.jwks_url", &http),
        ("sessions.allow_plaintext", "true"),
    ]);
    run("spacetime-sync", &["config", "check"], &allowed).await.good();
}
