//! `spacetime-sync publish` and related commands, as an operator uses them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use spacetime_sync_issuer::jws::Kind;
use spacetime_sync_issuer::keys::{SigningKey, now};
use spacetime_sync_proto::StreamId;
use spacetime_sync_stdb::admin::{Admin, Breaking};
use spacetime_sync_stdb::tokens::read_token;
use spacetime_sync_tests::lane::module_wasm;
use spacetime_sync_tests::server::Server;
use spacetime_sync_tests::tool::{self, Ended};
use spacetime_sync_tests::variant::Variant;
use spacetime_sync_tests::write_secret;

/// A server and a folder with an operator's files.
struct Desk {
    folder: tempfile::TempDir,
    server: Server,
    database: String,
}

impl Desk {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("host");
        std::fs::create_dir(&data).unwrap();
        let server = Server::start(&data).await.unwrap();
        // Unique, so that it works on a shared server too. It contains the server's error text for a missing function,
        // which must not confuse the tool.
        let newcomer = Admin::new_identity(server.uri()).await.unwrap().identity;
        let database = format!("no-such-reducer-{}", &newcomer[newcomer.len() - 16..]);
        std::fs::write(folder.path().join("module.wasm"), module_wasm().unwrap()).unwrap();
        Self {
            folder,
            server,
            database,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn variant(&self, variant: Variant) -> PathBuf {
        let path = self.path(&format!("{variant:?}.wasm"));
        std::fs::write(&path, variant.wasm().unwrap()).unwrap();
        path
    }

    async fn publish_as(&self, owner: &Path, wasm: &Path, options: &[&str]) -> Ended {
        let bridge = self.path("bridge.token");
        let mut arguments = vec!["publish", "--uri", self.server.uri(), "--database", &self.database];
        arguments.extend([
            "--token-file",
            text(owner),
            "--bridge-token-file",
            text(&bridge),
            "--wasm",
            text(wasm),
        ]);
        arguments.extend(options);
        tool::run("spacetime-sync", &arguments, &[]).await
    }

    async fn publish(&self, wasm: &Path, options: &[&str]) -> Ended {
        self.publish_as(&self.path("owner.token"), wasm, options).await
    }

    async fn tool(&self, what: &str, token: &str, rest: &[&str]) -> Ended {
        let token = self.path(token);
        let mut arguments = vec![what, "--uri", self.server.uri(), "--database", &self.database];
        arguments.extend(["--token-file", text(&token)]);
        arguments.extend(rest);
        tool::run("spacetime-sync", &arguments, &[]).await
    }

    fn admin(&self, token: &str) -> Admin {
        Admin::new(
            self.server.uri(),
            &self.database,
            read_token(&self.path(token)).unwrap(),
        )
    }

    async fn append(&self, seq: u64, base_chain: &str) {
        let arguments = format!(r#"["s", {seq}, "{base_chain}", "k{seq}", "kind", "00ff", 0]"#);
        let answer = self.post("bridge.token", "append_sync_event", arguments).await;
        assert_eq!(answer, (200, String::new()));
    }

    /// The seq of the one stream's head.
    async fn head(&self) -> u64 {
        let (code, text) = self.post("owner.token", "read_heads", r#"[["s"]]"#.to_owned()).await;
        assert_eq!(code, 200, "{text}");
        // The answer is the first of two variants: a list of heads, each a seq and a chain.
        let answer: Value = serde_json::from_str(&text).unwrap();
        answer[1][0][0].as_u64().unwrap()
    }

    async fn grants(&self) -> usize {
        let response = reqwest::Client::new()
            .post(format!("{}/v1/database/{}/sql", self.server.uri(), self.database))
            .body("SELECT grant_id FROM stream_grant")
            .send()
            .await
            .unwrap();
        response.json::<Value>().await.unwrap()[0]["rows"]
            .as_array()
            .unwrap()
            .len()
    }

    async fn post(&self, token: &str, function: &str, arguments: String) -> (u16, String) {
        let response = reqwest::Client::new()
            .post(format!(
                "{}/v1/database/{}/call/{function}",
                self.server.uri(),
                self.database
            ))
            .bearer_auth(read_token(&self.path(token)).unwrap().expose())
            .header("content-type", "application/json")
            .body(arguments)
            .send()
            .await
            .unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Chain hash before the first event of stream `s`, as a 256-bit argument.
fn genesis() -> String {
    let chain = spacetime_sync_proto::ChainHash::genesis(&StreamId::new("s").unwrap());
    chain.to_string().replace("sha256:", "0x")
}

#[tokio::test]
async fn the_first_publish_creates_everything_and_the_second_changes_nothing() {
    let desk = Desk::new().await;
    let wasm = desk.path("module.wasm");
    let report: Value = serde_json::from_str(&desk.publish(&wasm, &["--json"]).await.good()).unwrap();
    assert_eq!(
        (&report["database"], &report["created"]),
        (&json!(desk.database), &json!(true))
    );
    let changes = report["changes"].as_array().unwrap();
    for change in [
        "+ table sync_event",
        "+ reducer append_sync_events",
        "+ procedure read_events",
    ] {
        assert!(changes.contains(&json!(change)), "{report}");
    }
    let mut tokens = Vec::new();
    for (file, identity) in [("owner.token", &report["owner"]), ("bridge.token", &report["bridge"])] {
        let path = desk.path(file);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file}");
        let said = tool::run("spacetime-sync", &["identity", text(&path)], &[])
            .await
            .good();
        assert_eq!(said.trim(), identity.as_str().unwrap());
        tokens.push(std::fs::read(path).unwrap());
    }
    assert_ne!(report["owner"], report["bridge"]);

    // The same again, with output for people.
    let said = desk.publish(&wasm, &[]).await.good();
    assert!(
        said.starts_with(&format!("updated database {}\n", desk.database)),
        "{said}"
    );
    assert!(said.ends_with("the schema is the same as before\n"), "{said}");
    let report: Value = serde_json::from_str(&desk.publish(&wasm, &["--json"]).await.good()).unwrap();
    assert_eq!((&report["created"], &report["changes"]), (&json!(false), &json!([])));
    for (file, token) in ["owner.token", "bridge.token"].into_iter().zip(tokens) {
        assert_eq!(std::fs::read(desk.path(file)).unwrap(), token, "{file}");
    }
    // The module accepts the bridge as its bridge.
    desk.append(1, &genesis()).await;
}

#[tokio::test]
async fn a_running_module_is_configured_without_being_published() {
    let desk = Desk::new().await;
    let wasm = desk.path("module.wasm");
    let configure = [
        "publish",
        "--configure-only",
        "--uri",
        desk.server.uri(),
        "--database",
        &desk.database,
    ];
    let (owner, bridge) = (desk.path("owner.token"), desk.path("bridge.token"));
    let as_owner = [
        &configure[..],
        &["--token-file", text(&owner), "--bridge-token-file", text(&bridge)],
    ]
    .concat();
    let said = tool::run("spacetime-sync", &as_owner, &[]).await;
    said.failed(1, &["cannot read", "owner.token"]);
    assert!(!owner.exists(), "a new identity owns nothing");

    // As after `spacetime publish`: the module runs and trusts nobody.
    let credential = Admin::new_identity(desk.server.uri()).await.unwrap();
    write_secret(&owner, credential.token.expose()).unwrap();
    let admin = desk.admin("owner.token");
    admin
        .publish(std::fs::read(&wasm).unwrap(), Breaking::Refuse)
        .await
        .unwrap();
    let said = tool::run("spacetime-sync", &as_owner, &[]).await.good();
    let configured = format!(
        "configured database {}\nowner  {}\n",
        desk.database, credential.identity
    );
    assert!(said.starts_with(&configured), "{said}");
    desk.append(1, &genesis()).await;

    let issuer = [
        &configure[..],
        &["--token-file", text(&owner), "--issuer", "https://lane.example"],
    ]
    .concat();
    let said = tool::run("spacetime-sync", &issuer, &[]).await.good();
    let identity = ["identity", "--issuer", "https://lane.example"];
    let identity = tool::run("spacetime-sync", &identity, &[]).await.good();
    assert!(said.contains(&format!("\nbridge {identity}")), "{said}");
}

#[tokio::test]
async fn an_update_breaks_only_what_it_was_allowed_to() {
    let desk = Desk::new().await;
    desk.publish(&desk.path("module.wasm"), &[]).await.good();
    desk.append(1, &genesis()).await;

    let said = desk.publish(&desk.variant(Variant::Compatible), &[]).await.good();
    assert!(
        said.contains("  + reducer revoke_access\n  - reducer revoke_stream\n"),
        "{said}"
    );
    assert_eq!(desk.head().await, 1);

    let before = desk.admin("owner.token").schema().await.unwrap();
    let breaking = desk.variant(Variant::Breaking);
    let said = desk.publish(&breaking, &[]).await;
    let said = said.failed(
        1,
        &[
            "nothing was published",
            "would disconnect every client",
            "--break-clients",
        ],
    );
    assert!(
        said.contains("SELECT * FROM sync_checkpoint where identity = :sender"),
        "the plan: {said}"
    );
    assert_eq!(
        desk.admin("owner.token").schema().await.unwrap(),
        before,
        "nothing was published"
    );
    let said = desk.publish(&breaking, &["--break-clients"]).await.good();
    assert!(
        said.contains("  + filter SELECT * FROM sync_checkpoint where identity = :sender\n"),
        "{said}"
    );
    assert_eq!(desk.head().await, 1);

    let before = desk.admin("owner.token").schema().await.unwrap();
    let incompatible = desk.variant(Variant::Incompatible);
    for options in [&[][..], &["--break-clients"][..]] {
        let said = desk.publish(&incompatible, options).await;
        said.failed(
            1,
            &[
                "nothing was published",
                "--delete-data",
                "Removing a column oldest_seq from table sync_head",
            ],
        );
    }
    assert_eq!(
        desk.admin("owner.token").schema().await.unwrap(),
        before,
        "nothing was published"
    );
    assert_eq!(desk.head().await, 1);
    desk.publish(&incompatible, &["--delete-data"]).await.good();
    assert_eq!(desk.head().await, 0);
    desk.append(1, &genesis()).await;
    desk.publish(&incompatible, &["--delete-data", "--break-clients"])
        .await
        .failed(2, &["cannot be used with"]);
}

#[tokio::test]
async fn an_unpublishable_module_is_refused_before_anything_is_created() {
    let desk = Desk::new().await;
    let wasm = desk.path("module.wasm");
    std::fs::write(desk.path("notes.txt"), "no module at all").unwrap();
    std::fs::write(desk.path("empty.wasm"), "").unwrap();
    desk.publish(&desk.path("notes.txt"), &[])
        .await
        .failed(1, &["expected a module in WebAssembly", "cargo build"]);
    desk.publish(&desk.path("empty.wasm"), &[])
        .await
        .failed(1, &["an empty file"]);
    desk.publish(&desk.path("missing.wasm"), &[])
        .await
        .failed(1, &["cannot read", "missing.wasm", "No such file"]);
    let away = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (owner, bridge) = (desk.path("owner.token"), desk.path("bridge.token"));
    let arguments = [
        "publish",
        "--uri",
        &format!("http://{away}"),
        "--database",
        "x",
        "--token-file",
        text(&owner),
    ];
    let arguments = [
        &arguments[..],
        &["--bridge-token-file", text(&bridge), "--wasm", text(&wasm)],
    ]
    .concat();
    tool::run("spacetime-sync", &arguments, &[])
        .await
        .failed(1, &["is not available", "Connection refused"]);
    assert!(!owner.exists() && !bridge.exists(), "no file was created");

    let nowhere = tempfile::tempdir().unwrap();
    let arguments = ["publish", "--uri", desk.server.uri(), "--database", "x", "--token-file"];
    let arguments = [
        &arguments[..],
        &[text(&owner), "--bridge-token-file", text(&bridge)],
        &["--module", text(nowhere.path())],
    ]
    .concat();
    tool::run("spacetime-sync", &arguments, &[])
        .await
        .failed(1, &["there is no module in", "run this in the repository", "--wasm"]);
    assert!(!owner.exists() && !bridge.exists(), "no file was created");

    // This looks like WebAssembly but is not. Only the server can tell.
    std::fs::write(desk.path("broken.wasm"), b"\0asm\x01\0\0\0rubbish").unwrap();
    desk.publish(&desk.path("broken.wasm"), &[])
        .await
        .failed(1, &["answered publish with 500"]);
    assert!(
        desk.admin("owner.token").schema().await.unwrap().is_none(),
        "nothing was published"
    );

    desk.publish(&wasm, &[]).await.good();
    desk.append(1, &genesis()).await;
    desk.publish(&desk.path("broken.wasm"), &[])
        .await
        .failed(1, &["answered"]);
    // A completely different module under the lane's name.
    let foreign = desk.variant(Variant::Foreign);
    desk.publish(&foreign, &[])
        .await
        .failed(1, &["nothing was published", "Removed table: sync_event"]);
    // Even allowing client disconnects does not lose rows.
    desk.publish(&foreign, &["--break-clients"])
        .await
        .failed(1, &["table contains data"]);
    assert_eq!(desk.head().await, 1);
}

#[tokio::test]
async fn only_the_owner_publishes_and_only_with_a_token_of_this_server() {
    let desk = Desk::new().await;
    let wasm = desk.path("module.wasm");
    desk.publish(&wasm, &[]).await.good();
    desk.append(1, &genesis()).await;
    for options in [&[][..], &["--break-clients"], &["--delete-data"]] {
        let said = desk.publish_as(&desk.path("other.token"), &wasm, options).await;
        said.failed(
            1,
            &[
                "does not let this identity do that",
                "use the token of the identity that published it",
            ],
        );
    }
    assert!(!desk.path("other.token").exists(), "a new identity that owns nothing");
    // The bridge is not the owner either.
    desk.publish_as(&desk.path("bridge.token"), &wasm, &[])
        .await
        .failed(1, &["does not let this identity"]);
    assert_eq!(desk.head().await, 1);

    write_secret(&desk.path("rubbish.token"), "not a token").unwrap();
    desk.publish_as(&desk.path("rubbish.token"), &wasm, &[])
        .await
        .failed(1, &["rubbish.token holds no token"]);
    // Another server signs its tokens like this: as the same issuer, but with its own key.
    let key = SigningKey::from_pem(&SigningKey::generate().unwrap(), 0, "another server").unwrap();
    let claims = json!({ "iss": "localhost", "sub": "somebody", "aud": ["spacetimedb"], "iat": now() });
    let token = key.sign(Kind::Session, &claims).unwrap();
    let foreign = desk.path("foreign.token");
    write_secret(&foreign, token.expose()).unwrap();
    let said = desk
        .publish_as(&foreign, &wasm, &[])
        .await
        .failed(1, &["does not accept the token", "of this server"]);
    assert!(!said.contains(token.expose()), "{said}");
}

#[tokio::test]
async fn the_owner_gives_grants_and_owner_and_bridge_take_them() {
    let desk = Desk::new().await;
    desk.publish(&desk.path("module.wasm"), &[]).await.good();
    let client = Admin::new_identity(desk.server.uri()).await.unwrap();
    let stranger = Admin::new_identity(desk.server.uri()).await.unwrap();
    for (file, token) in [("client.token", &client.token), ("stranger.token", &stranger.token)] {
        write_secret(&desk.path(file), token.expose()).unwrap();
    }
    let reads = async || {
        desk.post("client.token", "read_events", r#"["s", 0]"#.to_owned())
            .await
            .1
            .contains("[0,")
    };
    let identity = client.identity.as_str();
    let stream = ["--identity", identity, "--stream", "s", "--stream", "t"];
    assert!(!reads().await);
    for token in ["owner.token", "bridge.token"] {
        let said = desk.tool("grant", "owner.token", &stream).await.good();
        let given = format!("{identity} may read s for 30 days\n{identity} may read t for 30 days\n");
        assert_eq!(said, given);
        desk.tool("grant", "owner.token", &stream).await.good();
        assert!(reads().await, "{token}");
        assert_eq!(desk.grants().await, 2, "a repeated grant is one grant");
        let said = desk.tool("revoke", token, &stream).await.good();
        let ended = format!("{identity} may no longer read s\n{identity} may no longer read t\n");
        assert_eq!(said, ended);
        desk.tool("revoke", token, &stream).await.good();
        assert!(!reads().await, "{token}");
    }
    for token in ["client.token", "stranger.token"] {
        let said = desk.tool("revoke", token, &stream).await;
        said.failed(1, &["the module refused", "only the owner or the bridge may do this"]);
    }
    for token in ["bridge.token", "client.token", "stranger.token"] {
        let said = desk.tool("grant", token, &stream).await;
        said.failed(
            1,
            &["the module refused", "only the owner of this database may do this"],
        );
    }
    assert!(!reads().await);

    desk.tool("grant", "owner.token", &["--identity", identity, "--stream", "a b"])
        .await
        .failed(2, &["stream_id holds ' '"]);
    desk.tool("grant", "owner.token", &["--identity", identity])
        .await
        .failed(2, &["--stream"]);
    for wrong in ["", "0x12", "somebody"] {
        let said = desk
            .tool("grant", "owner.token", &["--identity", wrong, "--stream", "s"])
            .await;
        said.failed(2, &["--identity", "64 hexadecimal digits"]);
    }
    desk.tool("grant", "missing.token", &stream)
        .await
        .failed(1, &["cannot read", "missing.token"]);
    let elsewhere = Desk {
        database: format!("{}-elsewhere", desk.database),
        ..desk
    };
    let has_no_database = format!("has no database {:?}", elsewhere.database);
    elsewhere
        .tool("grant", "owner.token", &stream)
        .await
        .failed(1, &[&has_no_database, "spacetime-sync publish"]);
    // The tool must not report a module without the reducer as a missing database.
    elsewhere
        .publish(&elsewhere.variant(Variant::Compatible), &[])
        .await
        .good();
    let said = elsewhere.tool("revoke", "owner.token", &stream).await;
    said.failed(1, &["does not run this project's module", "spacetime-sync publish"]);

    let path = elsewhere.path("rubbish.token");
    write_secret(&path, "abc.def").unwrap();
    let said = tool::run("spacetime-sync", &["identity", text(&path)], &[]).await;
    said.failed(1, &["rubbish.token holds no token"]);
}
