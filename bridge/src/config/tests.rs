use spacetime_sync_proto::contract::{OLDEST_SCHEMA_VERSION, SCHEMA_VERSION};

use super::*;
use crate::http::Listener;

const FILE: &str = r#"
    [authority]
    url = "postgres://u:hunter2@localhost/d"
    [spacetimedb]
    uri = "http://127.0.0.1:3000"
    database = "lane"
    database_identity = "c200000000000000000000000000000000000000000000000000000000000000"
    owner_identity = "c200111111111111111111111111111111111111111111111111111111111111"
    token_file = "token"
    [seals]
    keys_dir = "seals"
"#;

const ACCESS: &str = r#"
    [issuer]
    url = "https://lane.example/sync"
    keys_dir = "keys"
    [sessions]
    issuer = "https://app.example"
    audience = "runtime-sync"
    public_keys = ["a.pem", "b.pem"]
    [compatibility]
    min_client_build_id = "20260101T000000Z"
    [http]
    behind_proxy = "x-forwarded-for"
"#;

#[test]
fn with_an_issuer_no_token_is_needed() {
    let config = load(&format!("{}{ACCESS}", FILE.replace("token_file = \"token\"", "")), &[]).unwrap();
    assert!(config.spacetimedb.token().unwrap().is_none());
    assert_eq!(config.issuer.unwrap().audience, "openagents-sync");
    assert_eq!(config.sessions.unwrap().public_keys.len(), 2);
    assert_eq!(config.compatibility.min_client_build_id, "20260101T000000Z");
}

#[test]
fn a_bridge_that_strangers_can_mislead_needs_a_pin() {
    let pinned = load(FILE, &[]).unwrap().spacetimedb.pin().unwrap();
    assert!(pinned.database_identity.as_str().starts_with("c2000"));
    let without = |key: &str| {
        let lines = FILE.lines().filter(|line| !line.trim_start().starts_with(key));
        lines.collect::<Vec<_>>().join("\n")
    };
    let unpinned = without("database_identity").replace("owner_identity", "# owner_identity");
    let remote = unpinned.replace("http://127.0.0.1", "https://db.example");
    for text in [
        unpinned.clone(),
        unpinned.replace("127.0.0.1", "localhost"),
        unpinned.replace("127.0.0.1", "[::1]"),
        remote.replace("database = ", "unpinned = true\ndatabase = "),
    ] {
        assert!(load(&text, &[]).unwrap().spacetimedb.pin().is_none());
    }
    for (text, expected) in [
        (remote, "bridge.toml:4: spacetimedb.database_identity: expected what"),
        (
            format!("{unpinned}{ACCESS}"),
            "spacetimedb.unpinned = true accepts that",
        ),
        (
            without("owner_identity"),
            "spacetimedb.owner_identity: expected what `spacetime-sync publish` printed",
        ),
        (
            without("database_identity"),
            "spacetimedb.database_identity: expected what",
        ),
        (
            FILE.replace("database = ", "unpinned = true\ndatabase = "),
            "spacetimedb.unpinned: expected this or",
        ),
        (
            FILE.replace("c2001", "x2001"),
            "expected an identity of 64 hexadecimal digits",
        ),
    ] {
        let error = load(&text, &[]).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_environment_can_set_a_list_of_one_and_a_secret_of_digits() {
    let environment = [
        ("SPACETIME_SYNC__SESSIONS__PUBLIC_KEYS", "only.pem"),
        ("SPACETIME_SYNC__HTTP__ADMIN_TOKEN", "00000000000000000042"),
    ];
    let config = load(&format!("{FILE}{ACCESS}"), &environment).unwrap();
    assert_eq!(config.admin_token().unwrap().unwrap().expose(), "00000000000000000042");
    assert_eq!(config.sessions.unwrap().public_keys, [PathBuf::from("only.pem")]);
}

#[test]
fn an_admin_credential_that_can_be_guessed_is_refused() {
    let config = load(&format!("{FILE}[http]\nadmin_token = \"hunter2\""), &[]).unwrap();
    let error = config.admin_token().unwrap_err().to_string();
    assert!(error.contains("at least 16") && !error.contains("hunter2"), "{error}");
}

fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bridge.toml");
    std::fs::write(&path, text).unwrap();
    let environment = environment
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Config::load(Some(&path), environment).map_err(|error| error.to_string())
}

#[test]
fn only_this_machine_sees_metrics_without_a_credential_and_only_without_a_proxy() {
    let listeners = |http: &str| load(&format!("{FILE}[http]\n{http}"), &[]).unwrap().http.listeners();
    let only = |open| Listener::Only { open };
    for (http, expected) in [
        ("", only(true)),
        ("listen = \"[::1]:7070\"", only(true)),
        ("listen = \"0.0.0.0:7070\"", only(false)),
        ("listen = \"10.0.0.1:7070\"", only(false)),
        ("behind_proxy = \"forwarded\"", only(false)),
        ("admin_token_file = \"admin.token\"", only(false)),
    ] {
        assert_eq!(listeners(http)[0].1, expected, "{http}");
    }
    let two = listeners("admin_listen = \"127.0.0.1:7073\"");
    let serves: Vec<_> = two.iter().map(|(address, serves)| (address.port(), *serves)).collect();
    assert_eq!(serves, [(7070, Listener::Clients), (7073, Listener::Operator)]);
}

#[test]
fn the_environment_wins_over_the_file() {
    let config = load(
        FILE,
        &[
            ("SPACETIME_SYNC__LIMITS__CALLS", "7"),
            ("SPACETIME_SYNC__BRIDGE__LEAD", "false"),
            ("SPACETIME_SYNC__SPACETIMEDB__DATABASE", "other"),
            ("UNRELATED", "x"),
        ],
    )
    .unwrap();
    assert_eq!(
        (
            config.limits.calls,
            config.bridge.lead,
            config.spacetimedb.database.as_str()
        ),
        (7, false, "other")
    );
}

#[test]
fn everything_can_come_from_the_environment() {
    let environment = [
        ("SPACETIME_SYNC__AUTHORITY__URL", "postgres://localhost/d"),
        ("SPACETIME_SYNC__SPACETIMEDB__URI", "http://localhost"),
        ("SPACETIME_SYNC__SPACETIMEDB__DATABASE", "lane"),
        ("SPACETIME_SYNC__SPACETIMEDB__TOKEN", "t"),
        ("SPACETIME_SYNC__SEALS__KEYS_DIR", "seals"),
    ];
    let environment = environment
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    assert_eq!(Config::load(None, environment).unwrap().limits.calls, 64);
}

#[test]
fn an_error_names_what_is_wrong_and_where() {
    for (text, environment, expected) in [
        (format!("{FILE}\n[limits]\ncals = 3"), vec![], "unknown field `cals`"),
        (
            FILE.to_owned(),
            vec![("SPACETIME_SYNC__LIMITS__CALS", "3")],
            "unknown field `cals`",
        ),
        (FILE.to_owned(), vec![("SPACETIME_SYNC__CALLS", "3")], "SECTION__KEY"),
        (
            format!("{FILE}\n[limits]\ncalls = 0"),
            vec![],
            "limits.calls: expected 1 to 1000, found 0",
        ),
        (format!("{FILE}\n[limits]\ncalls = \"many\""), vec![], "invalid type"),
        (
            FILE.replace("http://", "ws://"),
            vec![],
            "spacetimedb.uri: expected http://",
        ),
        (FILE.replace("token_file = \"token\"", ""), vec![], "found none of them"),
        (
            format!("{FILE}\n{}", ACCESS.replace("keys_dir", "#")),
            vec![],
            "issuer.keys_dir: expected this or",
        ),
        (
            format!("{FILE}\n{}", ACCESS.replace("runtime-sync\"", "openagents-sync\"")),
            vec![],
            "sessions.issuer",
        ),
        (
            format!("{FILE}\n{}", ACCESS.replace("example/sync\"", "example/\"")),
            vec![],
            "issuer.url: expected a url without",
        ),
        (
            format!("{FILE}\n{}", ACCESS.replace("public_keys", "#")),
            vec![],
            "sessions.public_keys: expected this or",
        ),
        (
            format!("{FILE}\n{ACCESS}"),
            vec![("SPACETIME_SYNC__SESSIONS__REMEMBER_DAYS", "0")],
            "sessions.remember_days: expected at least 1",
        ),
        (
            format!("{FILE}\n[sessions]\nissuer = \"a\"\naudience = \"b\""),
            vec![],
            "issuer.url: expected a section",
        ),
        (
            format!("{FILE}\n[compatibility]\nmin_client_build_id = \"1\""),
            vec![],
            "min_client_build_id: expected",
        ),
        (
            format!(
                "{FILE}\n[compatibility]\nmin_schema_version = {}",
                OLDEST_SCHEMA_VERSION - 1
            ),
            vec![],
            "compatibility: min_schema_version: expected at least",
        ),
        (
            format!("{FILE}\n[compatibility]\nmax_schema_version = {}", SCHEMA_VERSION + 1),
            vec![],
            "compatibility: max_schema_version: expected at most",
        ),
        (
            format!("{FILE}\n[http]\nadmin_token = [\"hunter2\"]"),
            vec![],
            "expected a text for a secret",
        ),
        (
            FILE.replace("[authority]", "[authorities]"),
            vec![],
            "unknown field `authorities`",
        ),
        ("\n[authority".to_owned(), vec![], "bridge.toml:2: expected TOML: "),
        (
            format!("{FILE}\n{}", ACCESS.replace("behind_proxy", "#")),
            vec![],
            "http.behind_proxy: expected a choice, because the issuer's url is https",
        ),
        (
            format!("{FILE}\n[http]\nconnections = 4095"),
            vec![],
            "http.address_connections: expected 255 or less, a sixteenth of http.connections, found 256",
        ),
        (
            format!("{FILE}\n[http]\nconnections = 15"),
            vec![],
            "http.connections: expected 16 to 1000000, found 15",
        ),
        (
            format!("{FILE}\n[http]\nbehind_proxy = \"via\""),
            vec![],
            "expected false, true, \"x-forwarded-for\" or \"forwarded\"",
        ),
        (
            format!("{FILE}\n[limits]\ncals = 3"),
            vec![],
            "bridge.toml:14: limits.cals: unknown field `cals`, expected one of ",
        ),
        (
            format!("{FILE}\n[limits]\ncalls = 0"),
            vec![],
            "bridge.toml:14: limits.calls: expected 1 to 1000",
        ),
        (
            format!("{FILE}\n[limits]\ncalls = 7"),
            vec![("SPACETIME_SYNC__LIMITS__CALLS", "0")],
            "SPACETIME_SYNC__LIMITS__CALLS: limits.calls: expected 1 to 1000",
        ),
        (
            FILE.to_owned(),
            vec![("SPACETIME_SYNC__LIMITS__CALLS", "many")],
            "SPACETIME_SYNC__LIMITS__CALLS: limits.calls: invalid type: string \"many\"",
        ),
        (
            FILE.replace("url =", "uri ="),
            vec![],
            "bridge.toml:3: authority.uri: unknown field `uri`",
        ),
        (
            FILE.replace("token_file = \"token\"", ""),
            vec![],
            "bridge.toml:4: spacetimedb.token_file: expected this or",
        ),
        (
            FILE.replace("keys_dir", "# keys_dir"),
            vec![],
            "seals.keys_dir: expected this or seals.key or a section [issuer], found none of them",
        ),
        (
            format!("{FILE}key = \"hunter2\""),
            vec![],
            "seals.key: expected this or seals.keys_dir, found both",
        ),
        (
            FILE.replace("@localhost", "@postgres:5432"),
            vec![],
            "bridge.toml:3: authority.url: expected sslmode=verify-full, a Unix socket or an address of this machine, found \
             sslmode=prefer for postgres at postgres:5432/d",
        ),
        (
            FILE.replace("http://127.0.0.1", "http://10.0.0.1"),
            vec![],
            "bridge.toml:5: spacetimedb.uri: expected https or an address of this machine, found plaintext to 10.0.0.1",
        ),
        (
            format!("{FILE}\n{}", ACCESS.replace("https://lane", "http://lane")),
            vec![],
            "issuer.url: expected https or an address of this machine, found plaintext to lane.example",
        ),
        (
            format!(
                "{FILE}\n{}",
                ACCESS.replace("public_keys", "jwks_url = \"http://app.example/keys\"\npublic_keys")
            ),
            vec![],
            "sessions.jwks_url: expected https or an address of this machine, found plaintext to app.example",
        ),
        (
            String::new(),
            vec![],
            "bridge.toml: the configuration: missing field `authority`",
        ),
    ] {
        let error = load(&text, &environment).unwrap_err();
        assert!(error.contains(expected), "expected {expected:?} in {error:?}");
        assert!(!error.contains("hunter2"));
    }
}

#[test]
fn plaintext_to_another_machine_can_be_allowed_for_each_way() {
    let remote = FILE
        .replace("@localhost/d\"", "@postgres/d\"\nallow_plaintext = true")
        .replace("127.0.0.1:3000\"", "10.0.0.1:3000\"\nallow_plaintext = true");
    let issuing = ACCESS
        .replace(
            "https://lane.example/sync\"",
            "http://lane.example\"\nallow_plaintext = true",
        )
        .replace(
            "public_keys",
            "jwks_url = \"http://app.example/keys\"\nallow_plaintext = true\npublic_keys",
        );
    load(&format!("{remote}{issuing}"), &[]).unwrap();
    for section in ["AUTHORITY", "SPACETIMEDB", "ISSUER", "SESSIONS"] {
        let variable = format!("SPACETIME_SYNC__{section}__ALLOW_PLAINTEXT");
        let error = load(&format!("{remote}{issuing}"), &[(variable.as_str(), "false")]).unwrap_err();
        let allows = format!("{}.allow_plaintext = true", section.to_lowercase());
        assert!(error.contains(&allows), "{error}");
    }
}

#[test]
fn the_example_is_a_configuration_of_defaults_with_every_key() {
    let example = load(EXAMPLE, &[]).unwrap();
    let plain = load(FILE, &[]).unwrap();
    let of = |config: &Config| toml::Table::try_from(config).unwrap();
    let (shown, defaults) = (of(&example), of(&plain));
    // Collects the keys that are commented out, with the defaults that they show.
    let mut commented = toml::Table::new();
    let mut section = String::new();
    for line in EXAMPLE.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        }
        let is_key = |key: &str| key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let pair = line.trim_start_matches("# ").split_once(" = ");
        if let Some((key, value)) = pair.filter(|(key, _)| is_key(key)) {
            let value: toml::Table = toml::from_str(&format!("v = {value}")).unwrap();
            let keys = commented
                .entry(&section)
                .or_insert(toml::Value::Table(toml::Table::new()));
            keys.as_table_mut().unwrap().insert(key.to_owned(), value["v"].clone());
        }
    }
    for section in ["http", "bridge", "limits", "retention", "history", "compatibility"] {
        for (key, value) in defaults[section].as_table().unwrap() {
            assert_eq!(commented[section].get(key), Some(value), "{section}.{key}");
            assert_eq!(shown[section].get(key), Some(value), "{section}.{key}");
        }
    }
    for section in ["authority", "issuer"] {
        for (key, value) in shown[section].as_table().unwrap() {
            let is_secret = value.as_str() == Some("(secret)");
            assert!(
                is_secret || commented[section].get(key) == Some(value),
                "{section}.{key}"
            );
        }
    }
    // The error about an unknown key lists all keys. Each of them must be in the example.
    for section in shown.keys() {
        let mut text = toml::to_string(&commented_out(&shown, section)).unwrap();
        text.push_str(&format!("[{section}]\nno_such_key = 1\n"));
        let error = load(&text, &[]).unwrap_err();
        let expected = error.split_once("expected ").unwrap().1;
        for key in expected.split('`').skip(1).step_by(2) {
            assert!(
                commented[section].get(key).is_some(),
                "{section}.{key} is not in the example"
            );
        }
    }
}

fn commented_out(config: &toml::Table, section: &str) -> toml::Table {
    let mut rest = config.clone();
    rest.remove(section);
    rest
}

#[test]
fn no_secret_is_printed() {
    let config = load(&FILE.replace("token_file = \"token\"", "token = \"hunter3\""), &[]).unwrap();
    let secrets = FILE.replace("token_file = \"token\"", "token = \"hunter3\"");
    let issuing = ACCESS.replace("keys_dir = \"keys\"", "key = \"hunter4\"");
    let issuing = load(&format!("{secrets}{issuing}admin_token = \"hunter5\""), &[]).unwrap();
    let printed = format!("{config:?} {issuing:#?} {}", issuing.to_toml());
    assert!(!printed.contains("hunter"), "{printed}");
    assert!(printed.contains("admin_token = \"(secret)\""), "{printed}");
}

const GATE: &str = r#"
    [gate]
    spacetimedb_uri = "http://127.0.0.1:3000"
    database = "lane"
    issuer = "https://lane.example/sync"
    bridge_token = "a-credential-of-the-gate"
    behind_proxy = true
"#;

fn load_gate(text: &str) -> Result<GateConfig, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gate.toml");
    std::fs::write(&path, text).unwrap();
    Config::load_gate(Some(&path), std::iter::empty()).map_err(|error| error.to_string())
}

#[test]
fn a_gate_needs_its_own_section_and_no_other() {
    let alone = load_gate(GATE).unwrap();
    assert_eq!(alone.bridge_url(), "https://lane.example/sync");
    assert_eq!(alone.keys_url(), "https://lane.example/sync/.well-known/jwks.json");
    assert_eq!(gate_credential(&alone).unwrap().expose(), "a-credential-of-the-gate");
    // In the file of a bridge, what the bridge says does not matter to the gate.
    assert!(load_gate(&format!("{FILE}{ACCESS}{GATE}")).is_ok());
    assert!(load(&format!("{FILE}{ACCESS}{GATE}"), &[]).unwrap().gate.is_some());
    for (text, expected) in [
        (FILE.to_owned(), "missing field `gate`"),
        (format!("{GATE}\n[gates]\na = 1"), "unknown field `gates`"),
        (GATE.replace("database", "databse"), "unknown field `databse`"),
        (
            GATE.replace("\"lane\"", "\"a/b\""),
            "gate.toml:4: gate.database: expected the name of a database",
        ),
        (
            GATE.replace("bridge_token", "# "),
            "gate.bridge_token_file: expected this or gate.bridge_token, found neither",
        ),
        (GATE.replace("https://", "wss://"), "gate.issuer: expected http://"),
        (
            GATE.replace("behind_proxy", "#"),
            "gate.behind_proxy: expected a choice",
        ),
        (
            format!("{GATE}\nslow_after_ms = 1"),
            "gate.slow_after_ms: expected 100 to 600000, found 1",
        ),
    ] {
        let error = load_gate(&text).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    let error = load(&format!("{FILE}{}", GATE.replace("https://", "wss://")), &[]).unwrap_err();
    assert!(error.contains("gate.issuer"), "{error}");
    let short = load_gate(&GATE.replace("a-credential-of-the-gate", "hunter2")).unwrap();
    let error = gate_credential(&short).unwrap_err().to_string();
    assert!(error.contains("at least 16") && !error.contains("hunter2"), "{error}");
}

const MIRROR: &str = r#"
    [mirror]
    key = "hunter2hunter2hunter2"
"#;

#[test]
fn a_mirror_needs_its_own_section_and_the_authority() {
    let load_mirror = |text: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mirror.toml");
        std::fs::write(&path, text).unwrap();
        Config::load_mirror(Some(&path), std::iter::empty()).map_err(|error| error.to_string())
    };
    let authority = "[authority]\nurl = \"postgres://localhost/d\"\n";
    let (_, alone) = load_mirror(&format!("{authority}{MIRROR}")).unwrap();
    assert_eq!((alone.pending, alone.session()), (10_000, None));
    // What the bridge and a gate say does not matter to the mirror, nor its section to them.
    assert!(load_mirror(&format!("{FILE}{ACCESS}{GATE}{MIRROR}")).is_ok());
    assert!(load_gate(&format!("{FILE}{MIRROR}{GATE}")).is_ok());
    let whole = load(&format!("{FILE}{MIRROR}"), &[]).unwrap();
    assert!(!format!("{whole:?} {}", whole.to_toml()).contains("hunter2"));
    let session = r#"
        spacetimedb_uri = "http://localhost:3000"
        database = "lane"
        bridge_url = "http://localhost:7070"
        session_file = "mirror.session"
        stream = "runtime.mirror"
    "#;
    let with_session = format!("{authority}{MIRROR}{session}");
    assert_eq!(
        load_mirror(&with_session).unwrap().1.session().unwrap().database,
        "lane"
    );
    for (text, expected) in [
        (MIRROR.to_owned(), "missing field `authority`"),
        (authority.to_owned(), "missing field `mirror`"),
        (
            format!("{authority}[mirror]"),
            "mirror.key_file: expected this or mirror.key, found neither",
        ),
        (
            format!("{authority}{MIRROR}key_file = \"f\""),
            "mirror.key: expected this or mirror.key_file, found both",
        ),
        (
            format!("{authority}{MIRROR}attempts = 0"),
            "mirror.attempts: expected 1 to 1000, found 0",
        ),
        (
            format!("{authority}{MIRROR}sent_seconds = 59"),
            "mirror.sent_seconds: expected at least mirror.refresh_seconds, 60, found 59",
        ),
        (format!("{authority}{MIRROR}atempts = 1"), "unknown field `atempts`"),
        (with_session.replace("stream =", "# "), "mirror.stream: expected this"),
        (
            with_session.replace("localhost:7070", "10.0.0.1:7070"),
            "mirror.allow_plaintext = true",
        ),
        (
            format!("[authority]\nurl = \"postgres://db.example/d\"\n{MIRROR}"),
            "authority.url: expected sslmode=verify-full",
        ),
    ] {
        let error = load_mirror(&text).map(|_| ()).unwrap_err();
        assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
    }
}
