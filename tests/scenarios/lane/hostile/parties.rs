//! Bridge and client with a configuration, a database or a module that does not fit. They say what is wrong and what to
//! do about it, change nothing, and continue by themselves where somebody can repair it while they run.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use spacetime_sync_issuer::keys::{add_key, now};
use spacetime_sync_stdb::admin::{Admin, Breaking};
use spacetime_sync_stdb::tokens::read_token;
use spacetime_sync_tests::lane::{A_DAY, BridgeOptions, Lane, stream, wait};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::process::{Process, built};
use spacetime_sync_tests::tool;
use spacetime_sync_tests::variant::Variant;
use spacetime_sync_tests::write_secret;
use sqlx::{Connection as _, Executor as _, PgConnection};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn an_invalid_configuration_is_refused_without_showing_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let write = |name: &str, text: &str| {
        write_secret(Path::new(&path(name)), text).unwrap();
        path(name)
    };
    let token_file = write("token", "a-secret-token\n");
    let good = format!(
        "[authority]\nurl = \"postgres://u:hunter2@localhost/d\"\n[spacetimedb]\nuri = \"http://127.0.0.1:3000\"\n\
         database = \"lane\"\ntoken_file = \"{token_file}\"\n[seals]\nkeys_dir = \"seals\"\n"
    );
    let without_token = good
        .lines()
        .filter(|line| !line.starts_with("token_file"))
        .collect::<Vec<_>>()
        .join("\n");
    let empty = write("empty", "\n");
    for (text, environment, said) in [
        (
            format!("{good}\n[limits]\ncals = 3"),
            vec![],
            &["bridge.toml:11: limits.cals: unknown field `cals`"][..],
        ),
        (
            format!("{good}\n[limit]\ncalls = 3"),
            vec![],
            &["unknown field `limit`"],
        ),
        (
            good.clone(),
            vec![("SPACETIME_SYNC__LIMITS__CALS", "3")],
            &["unknown field `cals`"],
        ),
        (
            good.clone(),
            vec![("SPACETIME_SYNC__CALLS", "3")],
            &["SPACETIME_SYNC__CALLS", "SECTION__KEY"],
        ),
        (
            good.clone(),
            vec![("SPACETIME_SYNC__LIMITS__CALLS", "many")],
            &["SPACETIME_SYNC__LIMITS__CALLS: limits.calls: invalid type", "many"],
        ),
        (
            good.clone(),
            vec![("SPACETIME_SYNC__LIMITS__CALLS", "0")],
            &["limits.calls: expected 1 to", "found 0"],
        ),
        (
            good.clone(),
            vec![("SPACETIME_SYNC__SPACETIMEDB__URI", "ws://h")],
            &["spacetimedb.uri", "expected http://"],
        ),
        (
            good.clone(),
            vec![("SPACETIME_SYNC__SPACETIMEDB__TOKEN", "hunter2")],
            &["spacetimedb.token", "found both"],
        ),
        (
            without_token.clone(),
            vec![],
            &["spacetimedb.token_file", "[issuer]", "found none of them"],
        ),
        (
            good.replace("/token\"", "/no-such-token\""),
            vec![],
            &["cannot read", "no-such-token", "No such file"],
        ),
        (good.replace(&token_file, &empty), vec![], &["empty", "holds no token"]),
        (
            good.replace("[spacetimedb]", "[spacetimedb"),
            vec![],
            &["bridge.toml:3: expected TOML"],
        ),
        (
            good.replace(
                "url = \"postgres://u:hunter2@localhost/d\"",
                "url = \"postgres://u:hunter2@localhost/d",
            ),
            vec![],
            &["bridge.toml"],
        ),
        (good.replace("url =", "uri ="), vec![], &["unknown field `uri`"]),
    ] {
        let file = write("bridge.toml", &text);
        for command in [&["config", "check", "--config", &file][..], &["run", "--config", &file]] {
            let ended = tool::run("spacetime-sync", command, &environment).await;
            assert_eq!(ended.stdout, "", "{command:?}");
            let stderr = ended.failed(1, said);
            assert!(
                !stderr.contains("hunter2") && !stderr.contains("a-secret-token"),
                "{stderr}"
            );
        }
    }
    let missing = path("missing.toml");
    let ended = tool::run("spacetime-sync", &["config", "check", "--config", &missing], &[]).await;
    ended.failed(1, &["cannot read", "missing.toml", "No such file"]);

    let file = write("bridge.toml", &good);
    let shown = tool::run("spacetime-sync", &["config", "check", "--config", &file], &[])
        .await
        .good();
    assert!(
        shown.contains("database = \"lane\"\n") && shown.contains("url = \"(secret)\"\n"),
        "{shown}"
    );
    assert!(
        !shown.contains("hunter2") && !shown.contains("a-secret-token"),
        "{shown}"
    );
}

#[tokio::test]
async fn a_bridge_does_not_start_on_a_database_of_another_release() {
    let database = Cluster::shared().await.create_empty_database().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    add_key(folder.path(), None, now()).unwrap();
    let environment = [
        ("SPACETIME_SYNC__SEALS__KEYS_DIR", folder.path().to_str().unwrap()),
        ("SPACETIME_SYNC__AUTHORITY__URL", database.url()),
        ("SPACETIME_SYNC__SPACETIMEDB__URI", "http://127.0.0.1:9"),
        ("SPACETIME_SYNC__SPACETIMEDB__DATABASE", "lane"),
        ("SPACETIME_SYNC__SPACETIMEDB__TOKEN", "t"),
        ("SPACETIME_SYNC__HTTP__LISTEN", "127.0.0.1:0"),
    ];
    let run = async || tool::run("spacetime-sync", &["run"], &environment).await;
    let migrate = async || tool::run("spacetime-sync", &["migrate", "--database-url", database.url()], &[]).await;
    run()
        .await
        .failed(1, &["has migration 0 of the lane", "run: spacetime-sync migrate"]);

    let elsewhere = database.url().replace(database.name(), "no_such_database");
    let migrated = tool::run("spacetime-sync", &["migrate", "--database-url", &elsewhere], &[]).await;
    migrated.failed(1, &["has no such database; create it"]);

    migrate().await.good();
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    connection
        .execute("select runtime.sync_append('s', 'k', 'kind', 'payload')")
        .await
        .unwrap();
    let newer = "insert into spacetime_sync._sqlx_migrations (version, description, success, checksum, execution_time) \
         values (9999, 'of a later release', true, '\\x00', 0)";
    connection.execute(newer).await.unwrap();
    for ended in [run().await, migrate().await] {
        ended.failed(
            1,
            &[
                "has migration 9999 of the lane, this build knows up to",
                "upgrade the bridge",
            ],
        );
    }
    connection
        .execute("delete from spacetime_sync._sqlx_migrations where version = 9999")
        .await
        .unwrap();
    connection
        .execute("update spacetime_sync._sqlx_migrations set checksum = '\\x00' where version = 1")
        .await
        .unwrap();
    for ended in [run().await, migrate().await] {
        ended.failed(1, &["migration 1 in the database", "differs from this build's"]);
    }
    let held: (i64, i64) = sqlx::query_as("select head_seq, published_seq from runtime.sync_streams")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(held, (1, 0), "nothing was lost, and nothing was published");
}

/// Publishes a variant of the module as another database of the lane's server, open to anybody.
async fn publish(lane: &Lane, name: &str, variant: Variant) {
    let owner = Admin::new_identity(lane.server.uri()).await.unwrap();
    let admin = Admin::new(lane.server.uri(), name, owner.token);
    admin.publish(variant.wasm().unwrap(), Breaking::Refuse).await.unwrap();
    admin.configure(&owner.identity, &"0".repeat(32)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_waits_for_a_server_that_is_not_ready_and_says_why() {
    let lane = Lane::start().await.unwrap();
    let id = stream(1);
    Writer::new(&lane.authority, &id, "w", Payload::UpTo(100), 1)
        .append_all(10, 3)
        .await
        .unwrap();
    // Other lanes may share the server.
    let [foreign, other, missing] = ["foreign", "other", "missing"].map(|what| format!("{}-{what}", lane.name));
    let has_no_database = format!("has no database {missing:?}");
    let no_database = [has_no_database.as_str(), "spacetime-sync publish"];
    publish(&lane, &foreign, Variant::Foreign).await;
    publish(&lane, &other, Variant::NextProtocol).await;
    let stranger = Admin::new_identity(lane.server.uri()).await.unwrap();
    for (file, token) in [
        ("stranger.token", stranger.token.expose()),
        ("rubbish.token", "a.rubbish.token"),
        ("altered.token", &format!("{}x", stranger.token.expose())),
    ] {
        write_secret(&lane.path(file), token).unwrap();
    }
    let away = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let set = |key: &'static str, value: String| BridgeOptions {
        set: vec![(key, value)],
        ..Default::default()
    };
    let token = |file: &str| set("spacetimedb.token_file", lane.path(file).display().to_string());
    let mut waiting = Vec::new();
    for (options, said) in [
        (set("spacetimedb.database", missing.clone()), &no_database[..]),
        (
            set("spacetimedb.database", foreign.clone()),
            &["does not run this project's module", "spacetime-sync publish"],
        ),
        (
            set("spacetimedb.database", other.clone()),
            &["speaks spacetime.sync.v2", "this build is too old"],
        ),
        (token("rubbish.token"), &["does not accept the token"]),
        (token("altered.token"), &["does not accept the token"]),
        (
            token("stranger.token"),
            &["the module refused", "only the bridge may do this"],
        ),
        (
            token("owner.token"),
            &["the module refused", "only the bridge may do this"],
        ),
        (
            BridgeOptions {
                server_at: Some(away),
                ..Default::default()
            },
            &["is not available"],
        ),
    ] {
        let mut options = options;
        // All bridges run at once, and none is the standby of another.
        options.unpinned = true;
        options.set.push(("bridge.lead", "false".to_owned()));
        options.set.push(("bridge.stall_after_ms", "500".to_owned()));
        waiting.push((lane.bridge_with(&options).unwrap(), said));
    }
    for (bridge, said) in &waiting {
        let because = |_: bool, body: &Value| {
            let problems = body["problems"].to_string().replace("\\\"", "\"");
            body["ready"] == false && said.iter().all(|text| problems.contains(text))
        };
        let body = bridge
            .until("/readyz", SOON, |good, body| !good && because(good, body))
            .await
            .unwrap();
        // Work without progress is not healthy.
        let health = bridge
            .until("/healthz", SOON, |good, body| !good && because(good, body))
            .await
            .unwrap();
        assert_eq!(health["lag_events"], 10, "{body}");
        assert!(bridge.process.is_running(), "{said:?}");
        for secret in [stranger.token.expose(), "a.rubbish.token"] {
            assert!(!bridge.process.log().contains(secret), "{}", bridge.process.log());
        }
    }
    let held = lane.authority.position(&id).await.unwrap().unwrap();
    assert_eq!(
        held.published_seq.get(),
        0,
        "no bridge claims to have published anything"
    );

    // A waiting bridge continues without a restart once the fault is fixed.
    let owner = lane.path("missing.owner");
    let mut arguments = vec!["publish", "--uri", lane.server.uri(), "--database", &missing];
    let files = [
        owner,
        lane.path("bridge.token"),
        std::env::var("SYNC_MODULE_WASM").unwrap().into(),
    ];
    for (option, file) in ["--token-file", "--bridge-token-file", "--wasm"]
        .into_iter()
        .zip(&files)
    {
        arguments.extend([option, file.to_str().unwrap()]);
    }
    tool::run("spacetime-sync", &arguments, &[]).await.good();
    waiting[0].0.until("/readyz", SOON, |good, _| good).await.unwrap();
    assert!(lane.published(SOON).await);
    waiting[0]
        .0
        .until("/healthz", SOON, |good, body| good && body["lag_events"] == 0)
        .await
        .unwrap();
    for (bridge, _) in &waiting {
        assert_eq!(bridge.stop().await.unwrap(), 0);
    }
}

/// The last line of JSON that a client has printed.
fn last(said: &str) -> Value {
    said.lines()
        .rev()
        .find_map(|line| serde_json::from_str(line).ok())
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_reports_a_wrong_server_and_retries_only_where_that_helps() {
    let lane = Lane::start().await.unwrap();
    let [foreign, other, missing] = ["foreign", "other", "missing"].map(|what| format!("{}-{what}", lane.name));
    publish(&lane, &foreign, Variant::Foreign).await;
    publish(&lane, &other, Variant::NextProtocol).await;
    let client = lane.client(&[stream(1)]).await.unwrap();
    let rubbish = lane.path("rubbish.token");
    write_secret(&rubbish, "a.rubbish.token").unwrap();
    let away = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let away = format!("http://{away}");
    let seal_keys = lane.seal_keys_file();
    let arguments = |uri: &str, database: &str, token: &Path, store: &str| {
        let store = lane.path(store);
        let texts = [
            "--uri",
            uri,
            "--database",
            database,
            "--token-file",
            token.to_str().unwrap(),
            "--seal-keys",
            seal_keys.to_str().unwrap(),
            "--db",
        ];
        let mut arguments: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        arguments.extend([
            store.to_str().unwrap().to_owned(),
            "--stream".to_owned(),
            stream(1).to_string(),
        ]);
        arguments
    };
    let uri = lane.server.uri();
    for (database, token, code, said) in [
        (
            foreign.as_str(),
            client.token_file(),
            "no_module",
            "does not run this project's module",
        ),
        (
            &other,
            client.token_file(),
            "contract_mismatch",
            "this client is too old",
        ),
        (&lane.name, &rubbish, "unauthorized", "get a new one"),
    ] {
        let arguments = arguments(uri, database, token, &format!("{code}.sqlite"));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let ended = tool::run("examples/follow", &arguments, &[]).await;
        assert_eq!(ended.code, 1, "{ended:?}");
        let last = last(&ended.stdout);
        assert_eq!(
            (&last["phase"], &last["reason"]),
            (&"stopped".into(), &code.into()),
            "{last}"
        );
        assert!(last["detail"].as_str().unwrap().contains(said), "{last}");
        assert!(
            !ended.stdout.contains("a.rubbish.token") && !ended.stderr.contains("a.rubbish.token"),
            "{ended:?}"
        );
    }
    for (uri, database, code, said) in [
        (
            uri,
            missing.as_str(),
            "no_database",
            "publish the module, or correct the name",
        ),
        (&away, lane.name.as_str(), "unreachable", "cannot connect"),
    ] {
        let arguments = arguments(uri, database, client.token_file(), &format!("{code}.sqlite"));
        let log = lane.path(&format!("{code}.log"));
        let waiting = Process::start("client", Command::new(built("examples/follow")).args(arguments), &log).unwrap();
        wait(SOON, code, || {
            let last = last(&waiting.log());
            last["reason"] == code && last["detail"].as_str().is_some_and(|detail| detail.contains(said))
        })
        .await;
        assert!(waiting.is_running(), "{code}: {}", waiting.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forbidden_stream_does_not_stop_the_clients_other_streams() {
    let lane = Lane::start().await.unwrap();
    let streams = [stream(1), stream(2)];
    let mut writers = streams
        .each_ref()
        .map(|id| Writer::new(&lane.authority, id, "w", Payload::UpTo(100), 1));
    for writer in &mut writers {
        writer.append_all(10, 3).await.unwrap();
    }
    let bridge = lane.bridge().unwrap();
    let mut client = lane.client(&streams).await.unwrap();
    let owner = lane.owner().unwrap();
    owner.revoke(client.identity(), &streams[1]).await.unwrap();
    client.start().unwrap();

    let is = |status: &Value, at: usize, phase: &str, applied: u64| {
        let stream = &status["streams"][streams[at].as_str()];
        stream["phase"] == phase
            && (phase != "forbidden" || stream["reason"] == "forbidden")
            && stream["applied"] == applied
    };
    wait(SOON, "the other stream is live", || {
        client.applied() == 10 && is(&client.status(), 1, "forbidden", 0)
    })
    .await;
    assert!(
        client.status()["streams"][streams[1].as_str()]["detail"]
            .as_str()
            .unwrap()
            .contains("forbidden_stream")
    );

    // A client notices a later grant on its existing connection.
    owner.grant(client.identity(), &streams[1], A_DAY).await.unwrap();
    client.until_applied(20, SOON).await.unwrap();
    client.until_live(SOON).await.unwrap();

    // It also notices a revoked grant. Later events are not delivered, and the other stream continues.
    owner.revoke(client.identity(), &streams[1]).await.unwrap();
    wait(SOON, "the stream is forbidden", || {
        is(&client.status(), 1, "forbidden", 10)
    })
    .await;
    for writer in &mut writers {
        writer.append(3).await.unwrap();
    }
    assert!(lane.published(SOON).await);
    client.until_applied(23, SOON).await.unwrap();
    let applied = |id| client.applied_log(id).unwrap().len();
    assert_eq!([applied(&streams[0]), applied(&streams[1])], [13, 10]);
    assert!(client.process().unwrap().is_running());

    // After another grant it continues where it was, and has every event once.
    owner.grant(client.identity(), &streams[1], A_DAY).await.unwrap();
    client.until_applied(26, SOON).await.unwrap();
    assert!(client.compare(&lane.authority).await.unwrap().is_equal());
    assert_eq!(bridge.stop().await.unwrap(), 0);
}

/// The errors that the module has logged.
async fn errors_logged(lane: &Lane) -> Vec<String> {
    let owner = read_token(&lane.path("owner.token")).unwrap();
    let answer = reqwest::Client::new()
        .get(format!("{}/v1/database/{}/logs", lane.server.uri(), lane.name))
        .query(&[("num_lines", "1000")])
        .bearer_auth(owner.expose())
        .send()
        .await
        .unwrap();
    let log = answer.error_for_status().unwrap().text().await.unwrap();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter(|line| {
            line["level"]
                .as_str()
                .is_some_and(|level| level.eq_ignore_ascii_case("error"))
        })
        .map(|line| line["message"].to_string())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_working_bridge_leaves_no_error_in_the_modules_log() {
    let lane = Lane::start().await.unwrap();
    let before = errors_logged(&lane).await;
    let bridge = lane.bridge().unwrap();
    bridge.until("/readyz", SOON, |ready, _| ready).await.unwrap();
    assert_eq!(errors_logged(&lane).await, before);
    // The log does hold a refused call.
    let refused = lane.owner().unwrap().call("revoke_session", json!(["a/b"])).await;
    assert!(refused.is_err());
    assert_eq!(errors_logged(&lane).await.len(), before.len() + 1);
}
