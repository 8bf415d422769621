//! A real nginx with the configuration of `docs/nginx.conf`: clients follow through it, and nobody on the internet reaches
//! more than they do.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Method;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::json;
use spacetime_sync_proto::StreamId;
use spacetime_sync_proto::access::{RETIRED_ROUTES, REVOKE_PATH, REVOKED_PATH, TOKEN_PATH, headers};
use spacetime_sync_proto::contract::{PROTOCOL, SCHEMA_VERSION};
use spacetime_sync_proto::heads::HEADS_PATH;
use spacetime_sync_proto::page::{STREAMS_PATH, path_segment};
use spacetime_sync_tests::follower::Follower;
use spacetime_sync_tests::issuing::{ADMIN, BUILD};
use spacetime_sync_tests::lane::{Bridge, BridgeOptions, Lane, stream, wait};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::nginx::{Behind, NAME, Nginx, Settings};
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::scene::ready;
use spacetime_sync_tests::stub::Stub;
use spacetime_sync_tests::{STEP, tool, write_secret};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::transport::{addr, authority, certified};

const SOON: Duration = Duration::from_secs(30);
const METRICS: [&str; 2] = ["/metrics", "/internal/v1/spacetime/sync/metrics"];
const DATABASE: &str = "lane";
/// Where nginx names the client.
const IN_HEADER: &str = "x-forwarded-for";
/// Where clients are, as nginx sees it.
const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// What no client asks, mostly because it is spelled otherwise.
const OTHERWISE: &str = r"
    / /internal /internal/ //metrics /metrics/ /METRICS /%6detrics /./metrics /metrics?x=1 /healthz/../metrics
    /healthz/%2e%2e/metrics /healthz%2f..%2fmetrics /%2e%2e/metrics /..%2fmetrics /healthz\..\metrics //healthz /healthz/
    /HEALTHZ /healthz? /healthz?x=1 /healthz#x /healthz;x /healthz%20 /healthz%0a /healthz%00 /./healthz /v1/../healthz
    /%68ealthz /V1/ping /v1/ping/ /v1//ping /v1%2fping /v1/./ping /v1/ping?x=1 healthz database database/subscribe
    https://localhost/metrics https://localhost//healthz";
const OTHERWISE_OF_DATABASE: &str = "
    / /subscribe/ /Subscribe /SQL //subscribe /%73ubscribe %2fsubscribe /subscribe/../schema /subscribe%2f..%2fschema
    /x/../subscribe /../other/subscribe /subscribe?token=x /subscribe?compression=None&token=x
    /subscribe?compression=a%26token=x /subscribe?compression=None#x";
const OTHERWISE_OF_STREAMS: &str = "
    /a/b/events?after=0 //events?after=0 /a/events /a/events?after=0&token=x /a/events/?after=0 /../../../../metrics
    /a/../../../../internal/x /..%2F..%2F..%2F..%2F..%2Fx/events?after=0 /a/snapshot?x=1";
/// Tokens and session credentials begin so: it is `{"` in base64.
const TOKENS_BEGIN: &str = "eyJ";

/// nginx before a lane, and whoever is on the internet.
struct Front {
    nginx: Nginx,
    ca_file: PathBuf,
    tls: TlsConnector,
    _papers: tempfile::TempDir,
}

impl Front {
    async fn start(bridge: SocketAddr, server: Behind, database: &str, identity: &str) -> Self {
        let papers = tempfile::tempdir().unwrap();
        let path = |name: &str| papers.path().join(name);
        let ca = authority();
        let (certificate, key) = certified(&ca, NAME);
        std::fs::write(path("ca.pem"), ca.pem()).unwrap();
        std::fs::write(path("lane.pem"), certificate.pem()).unwrap();
        write_secret(&path("lane.key"), key.serialize_pem()).unwrap();
        let settings = Settings {
            bridge,
            server,
            database: database.to_owned(),
            identity: identity.to_owned(),
            certificate: path("lane.pem"),
            key: path("lane.key"),
        };
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(ca.der().to_vec())).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            nginx: Nginx::start(&settings).await.unwrap(),
            ca_file: path("ca.pem"),
            tls: TlsConnector::from(Arc::new(tls)),
            _papers: papers,
        }
    }

    /// Before a whole lane.
    async fn before(lane: &Lane, bridge: &Bridge, server: Behind) -> Self {
        let identity = lane.pin().unwrap().database_identity.to_string();
        Self::start(addr(bridge.url()), server, &lane.name, &identity).await
    }

    /// A client that connects to everybody through nginx, and has applied this many events.
    async fn client(&self, lane: &Lane, ids: &[StreamId], events: u64) -> Follower {
        let client = lane.client(ids).await.unwrap();
        let client = client.through(&self.nginx.url(), &self.nginx.url());
        let mut client = client.option("--ca-file", self.ca_file.display());
        client.start().unwrap();
        client.until_applied(events, SOON).await.unwrap();
        client
    }

    /// A socket from an address, over which somebody has written this.
    async fn write(&self, from: Ipv4Addr, request: &str) -> TlsStream<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let stream = socket.connect(self.nginx.address()).await.unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let mut stream = self.tls.connect(name, stream).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        stream
    }

    /// The status of the answer to a request, byte for byte as it stands here. 0 if the socket is closed without one.
    async fn told(&self, from: Ipv4Addr, request: &str) -> u16 {
        let mut stream = self.write(from, request).await;
        let mut answer = Vec::new();
        // Whoever closes may do so with an error.
        let reading = async { while stream.read_buf(&mut answer).await.is_ok_and(|read| read > 0) {} };
        timeout(SOON, reading).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        status.map_or(0, |status| status.parse().unwrap())
    }

    async fn ask(&self, method: &str, path: &str) -> u16 {
        self.told(HERE, &request(method, path, "", "")).await
    }
}

fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: {NAME}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    )
}

/// What a gate must know.
fn behind_proxy() -> (&'static str, String) {
    ("behind_proxy", IN_HEADER.to_owned())
}

/// A lane with tokens, and its bridge, which stands behind nginx.
async fn lane(set: &[(&'static str, &str)]) -> (Lane, Bridge) {
    let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
    let mut set: Vec<_> = set.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
    set.push(("http.behind_proxy", IN_HEADER.to_owned()));
    let options = BridgeOptions {
        set,
        ..BridgeOptions::default()
    };
    let bridge = lane.bridge_with(&options).unwrap();
    ready(&bridge, SOON).await.unwrap();
    (lane, bridge)
}

fn writer(lane: &Lane, id: &StreamId) -> Writer {
    Writer::new(&lane.authority, id, "w", Payload::UpTo(300), 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_ask_passes_as_they_wrote_it_and_nothing_else_does() {
    // Whatever gets through is answered with 200.
    let stub = async || Stub::start(|_| (200, "{}".to_owned())).await.unwrap();
    let (bridge, gate) = (stub().await, stub().await);
    let identity = format!("c2{}", "ab".repeat(31));
    let front = Front::start(addr(bridge.url()), Behind::Gate(addr(gate.url())), DATABASE, &identity).await;

    let name = path_segment(&StreamId::new("../user:7:a/b%c@d+e=~").unwrap()).unwrap();
    let chain = format!("sha256%3A{}", "ab".repeat(32));
    let options = "compression=Gzip&connection_id=00112233445566778899aabbccddeeff&confirmed=true";
    for (who, method, path) in [
        (&bridge, "POST", TOKEN_PATH.to_owned()),
        (&bridge, "POST", HEADS_PATH.to_owned()),
        (
            &bridge,
            "GET",
            format!("{STREAMS_PATH}/{name}/events?after=7&chain={chain}&limit=5"),
        ),
        (&bridge, "GET", format!("{STREAMS_PATH}/{name}/snapshot")),
        (&bridge, "GET", "/.well-known/openid-configuration".to_owned()),
        (&bridge, "GET", "/.well-known/jwks.json".to_owned()),
        (&bridge, "GET", "/healthz".to_owned()),
        (&bridge, "GET", "/readyz".to_owned()),
        (&gate, "GET", "/v1/ping".to_owned()),
        (&gate, "GET", format!("/v1/database/{identity}")),
        (&gate, "GET", format!("/v1/database/{identity}/subscribe?{options}")),
        (
            &gate,
            "GET",
            format!("/v1/database/{DATABASE}/subscribe?compression=None"),
        ),
        (&gate, "POST", format!("/v1/database/{DATABASE}/sql")),
        (&gate, "POST", format!("/v1/database/{identity}/sql")),
    ] {
        assert_eq!(front.ask(method, &path).await, 200, "{method} {path}");
        let heard = who.asked("").pop().map(|asked| asked.path);
        assert_eq!(heard.as_ref(), Some(&path), "{method}");
    }

    let heard = || bridge.asked("").len() + gate.asked("").len();
    let before = heard();
    let of_database = |path: &str| format!("/v1/database/{DATABASE}{path}");
    let mut refused: Vec<(&'static str, String)> = Vec::new();
    // The operator's routes, those of earlier versions, and methods that no client uses.
    refused.extend(METRICS.map(|path| ("GET", path.to_owned())));
    refused.extend(RETIRED_ROUTES.iter().map(|path| ("POST", (*path).to_owned())));
    refused.extend([
        ("POST", REVOKE_PATH.to_owned()),
        ("GET", REVOKED_PATH.to_owned()),
        ("GET", TOKEN_PATH.to_owned()),
        ("DELETE", TOKEN_PATH.to_owned()),
    ]);
    // SpacetimeDB's, and other databases.
    for method in ["POST", "PUT", "DELETE"] {
        refused.push((method, of_database("")));
        refused.push((method, "/v1/database".to_owned()));
    }
    for path in [
        "/schema?version=9",
        "/logs",
        "/names",
        "/identity",
        "/sql",
        "/subscribe?light=true",
    ] {
        refused.push(("GET", of_database(path)));
    }
    for path in ["/call/append_sync_events", "/pre_publish", "/subscribe"] {
        refused.push(("POST", of_database(path)));
    }
    for other in [
        "other",
        "lane2",
        "LANE",
        "c2",
        &"c2".repeat(32),
        &identity.to_uppercase(),
    ] {
        refused.push(("GET", format!("/v1/database/{other}")));
        refused.push(("GET", format!("/v1/database/{other}/subscribe?compression=None")));
        refused.push(("POST", format!("/v1/database/{other}/sql")));
    }
    for (method, path) in [
        ("POST", "/v1/identity"),
        ("POST", "/v1/identity/websocket-token"),
        ("GET", "/v1/identity/public-key"),
        ("GET", "/v1/metrics"),
    ] {
        refused.push((method, path.to_owned()));
    }
    // Other spellings of what passes, and of what does not.
    let spelled = |below: &str, paths: &str| -> Vec<(&'static str, String)> {
        let paths = paths.split_whitespace();
        paths.map(|path| ("GET", format!("{below}{path}"))).collect()
    };
    refused.extend(spelled("", OTHERWISE));
    refused.extend(spelled(&of_database(""), OTHERWISE_OF_DATABASE));
    refused.extend(spelled(STREAMS_PATH, OTHERWISE_OF_STREAMS));
    for (method, path) in refused {
        let status = front.ask(method, &path).await;
        assert!([400, 404].contains(&status), "{method} {path}: {status}");
        assert_eq!(heard(), before, "{method} {path}");
    }
    // Whoever does not know the name gets no answer.
    for written in [
        request("GET", "/healthz", "", "").replace(&format!("host: {NAME}"), "host: other.example"),
        request("GET", "https://other.example/healthz", "", ""),
        "GET /healthz HTTP/1.0\r\n\r\n".to_owned(),
    ] {
        assert_eq!((front.told(HERE, &written).await, heard()), (0, before), "{written}");
    }
    assert_eq!(front.ask("GET", "/healthz").await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_follows_through_nginx_and_no_log_of_nginx_holds_a_token() {
    let (lane, bridge) = lane(&[]).await;
    let gate = lane.gate(&[behind_proxy()]).unwrap();
    gate.until_ready(true).await.unwrap();
    let front = Front::before(&lane, &bridge, Behind::Gate(gate.address())).await;
    let ids = [stream(1), StreamId::new("user:7:a/b").unwrap()];
    let mut writers = [writer(&lane, &ids[0]), writer(&lane, &ids[1])];
    for writer in &mut writers {
        writer.append_all(500, 50).await.unwrap();
    }
    let client = front.client(&lane, &ids, 1_000).await;
    client.until_live(SOON).await.unwrap();
    for writer in &mut writers {
        writer.append_all(100, 1).await.unwrap();
    }
    client.until_applied(1_200, SOON).await.unwrap();
    assert!(client.compare(&lane.authority).await.unwrap().is_equal());
    let identity = lane.pin().unwrap().database_identity;
    let logged = async |what: &str| wait(SOON, what, || front.nginx.access_log().contains(what)).await;
    logged("\"POST /api/sync/token\" 200").await;
    logged("\"POST /api/sync/heads\" 200").await;
    logged(&format!("\"GET /v1/database/{identity}\" 200")).await;
    // A WebSocket is logged when it is over.
    client.kill();
    logged(&format!("\"GET /v1/database/{identity}/subscribe\" 101")).await;

    let (url, credential) = (front.nginx.url(), client.token_file().display().to_string());
    let ca_file = front.ca_file.display().to_string();
    let asks = [
        "session",
        "token",
        "--bridge",
        &url,
        "--session-file",
        &credential,
        "--ca-file",
        &ca_file,
    ];
    let asks = [&asks[..], &["--stream", ids[1].as_str()]].concat();
    let token = tool::run("spacetime-sync", &asks, &[]).await.good();
    let bearer = format!("authorization: Bearer {}\r\n", token.trim());
    let name = path_segment(&ids[1]).unwrap();
    let history = request("GET", &format!("{STREAMS_PATH}/{name}/events?after=0"), &bearer, "");
    assert_eq!(front.told(HERE, &history).await, 200);

    // Whoever has every credential finds the operator's routes behind nginx only.
    let admin = format!("authorization: Bearer {ADMIN}\r\n");
    for path in METRICS.into_iter().chain([REVOKED_PATH]) {
        let request_here = reqwest::Client::new().get(format!("{}{path}", bridge.url()));
        let here = request_here.bearer_auth(ADMIN).send().await.unwrap().status();
        let through = front.told(HERE, &request("GET", path, &admin, "")).await;
        assert_eq!((here.as_u16(), through), (200, 404), "{path}");
    }

    // As SpacetimeDB's SDK asks in a browser; and what leaves a line in the error log.
    let of_browser = format!(
        "/v1/database/{}/subscribe?compression=None&token={}",
        lane.name,
        token.trim()
    );
    assert_eq!(front.ask("GET", &of_browser).await, 404);
    // The longest question is for the heads of 1,000 streams.
    let longest = request("POST", HEADS_PATH, &bearer, &" ".repeat(263_000));
    assert_ne!(front.told(HERE, &longest).await, 413);
    let long = request("POST", HEADS_PATH, &bearer, &" ".repeat(300_000));
    assert_eq!(front.told(HERE, &long).await, 413);
    let long = request(
        "POST",
        &format!("{HEADS_PATH}?token={}", token.trim()),
        &bearer,
        &" ".repeat(300_000),
    );
    assert_eq!(front.told(HERE, &long).await, 404);
    gate.process.kill();
    assert_eq!(front.told(HERE, &request("GET", "/v1/ping", &bearer, "")).await, 502);
    logged(&format!("\"GET /v1/database/{}/subscribe\" 404", lane.name)).await;
    let errors = front.nginx.error_log();
    assert!(
        errors.contains("too large body") && errors.contains("/v1/ping"),
        "{errors}"
    );
    let credential = std::fs::read_to_string(client.token_file()).unwrap();
    assert!(token.starts_with(TOKENS_BEGIN) && credential.starts_with(TOKENS_BEGIN));
    for log in [front.nginx.access_log(), errors, front.nginx.process.log()] {
        assert!(!log.contains(TOKENS_BEGIN), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_client_writes_about_itself_it_counts_for_the_address_that_it_has() {
    let few = [("issuer.failures_burst", "3"), ("issuer.failures_per_minute", "1")];
    let (lane, bridge) = lane(&few).await;
    let few = [
        behind_proxy(),
        ("address_failures_burst", "3".to_owned()),
        ("address_failures_per_second", "1".to_owned()),
    ];
    let gate = lane.gate(&few).unwrap();
    gate.until_ready(true).await.unwrap();
    let front = Front::before(&lane, &bridge, Behind::Gate(gate.address())).await;
    let mut forged = 0;
    let mut forge = || {
        forged += 1;
        let (first, second) = (format!("10.0.0.{forged}"), format!("10.0.1.{forged}"));
        format!(
            "X-Forwarded-For: {first}\r\nx-forwarded-for: {second}\r\nForwarded: for={first}\r\nX-Real-IP: {second}\r\n"
        )
    };
    let bad = format!(
        "authorization: Bearer bad\r\n{}: {BUILD}\r\n{}: {PROTOCOL}\r\n{}: {SCHEMA_VERSION}\r\n{}: desktop\r\n",
        headers::CLIENT_BUILD_ID,
        headers::PROTOCOL_VERSION,
        headers::SCHEMA_VERSION,
        headers::CLIENT_SURFACE
    );
    let body = json!({ "scopes": ["sync.subscribe"], "streams": ["notes"] }).to_string();
    let mut statuses = Vec::new();
    for from in [HERE, HERE, HERE, HERE, ELSEWHERE] {
        let written = request("POST", TOKEN_PATH, &format!("{bad}{}", forge()), &body);
        statuses.push(front.told(from, &written).await);
    }
    assert_eq!(statuses, [401, 401, 401, 429, 401]);

    let subscribe = format!("/v1/database/{}/subscribe?compression=None", lane.name);
    let mut statuses = Vec::new();
    while statuses.last() != Some(&429) {
        let written = request(
            "GET",
            &subscribe,
            &format!("authorization: Bearer bad\r\n{}", forge()),
            "",
        );
        statuses.push(front.told(HERE, &written).await);
        assert!(statuses.len() < 100, "{statuses:?}");
    }
    assert!(statuses.len() > 3 && statuses[..3] == [401; 3], "{statuses:?}");
    let written = request("GET", &subscribe, "authorization: Bearer bad\r\n", "");
    assert_eq!(front.told(ELSEWHERE, &written).await, 401);

    // It is nginx that tells them: bridge and gate believe what they read.
    let http = reqwest::Client::new();
    let mut to_bridge = http.post(format!("{}{TOKEN_PATH}", bridge.url())).body(body);
    for line in bad.lines() {
        let (name, value) = line.split_once(": ").unwrap();
        to_bridge = to_bridge.header(name, value);
    }
    let to_gate = http.get(format!("{}{subscribe}", gate.uri())).bearer_auth("bad");
    for direct in [to_bridge, to_gate] {
        let as_another = direct.header("x-forwarded-for", "10.0.2.1");
        assert_eq!(as_another.send().await.unwrap().status(), 401);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_gate_a_client_follows_and_the_rest_of_spacetimedb_stays_shut() {
    let (lane, bridge) = lane(&[]).await;
    let server = lane.server.addr().unwrap();
    let front = Front::before(&lane, &bridge, Behind::SpacetimeDb(server)).await;
    let id = stream(1);
    let mut writer = writer(&lane, &id);
    writer.append_all(500, 50).await.unwrap();
    let client = front.client(&lane, std::slice::from_ref(&id), 500).await;
    assert_eq!(front.ask("GET", "/v1/ping").await, 200);

    // What SpacetimeDB answers to its owner, and to nobody through nginx.
    let owner = std::fs::read_to_string(lane.path("owner.token")).unwrap();
    let bearer = format!(
        "authorization: Bearer {}\r\ncontent-type: application/json\r\n",
        owner.trim()
    );
    let of_database = |path: &str| format!("/v1/database/{}{path}", lane.name);
    for (method, path, body) in [
        (Method::POST, of_database("/sql"), "SELECT * FROM sync_contract"),
        (Method::POST, of_database("/call/read_heads"), "[[]]"),
        (Method::GET, of_database("/schema?version=9"), ""),
        (Method::GET, of_database("/logs?num_lines=1"), ""),
        (Method::GET, of_database("/names"), ""),
        (Method::GET, of_database("/identity"), ""),
        (Method::POST, "/v1/identity".to_owned(), ""),
        (Method::POST, "/v1/identity/websocket-token".to_owned(), ""),
        (Method::GET, "/v1/identity/public-key".to_owned(), ""),
    ] {
        let here = reqwest::Client::new().request(method.clone(), format!("{}{path}", lane.server.uri()));
        let here = here
            .bearer_auth(owner.trim())
            .header("content-type", "application/json");
        let here = here.body(body).send().await.unwrap().status();
        let through = front.told(HERE, &request(method.as_str(), &path, &bearer, body)).await;
        assert!(here.is_success() && through == 404, "{method} {path}: {here} {through}");
    }
    for (method, path) in [
        ("DELETE", of_database("")),
        ("PUT", of_database("?clear=true")),
        ("PUT", of_database("")),
    ] {
        let status = front.told(HERE, &request(method, &path, &bearer, "")).await;
        assert_eq!(status, 404, "{method} {path}");
    }
    writer.append_all(100, 1).await.unwrap();
    client.until_applied(600, SOON).await.unwrap();
    assert!(client.compare(&lane.authority).await.unwrap().is_equal());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_holds_few_connections_and_keeps_no_other_out() {
    /// `limit_conn`
    const MOST: usize = 256;
    let bridge = Stub::start(|_| (200, "{}".to_owned())).await.unwrap();
    // A gate that answers nobody.
    let gate = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let behind = Behind::Gate(gate.local_addr().unwrap());
    let front = Front::start(addr(bridge.url()), behind, DATABASE, &"c2".repeat(32)).await;
    let subscribe = request("GET", &format!("/v1/database/{DATABASE}/subscribe"), "", "");
    let asked_from = async |from: Ipv4Addr| front.told(from, &request("GET", "/healthz", "", "")).await;
    let mut held = Vec::new();
    while held.len() < MOST - 1 {
        held.push(front.write(HERE, &subscribe).await);
    }
    assert_eq!(asked_from(HERE).await, 200);
    held.push(front.write(HERE, &subscribe).await);
    // nginx has counted the last one a moment later.
    let until = async |status: u16| {
        let deadline = Instant::now() + SOON;
        while asked_from(HERE).await != status {
            assert!(Instant::now() < deadline, "no answer {status}");
            tokio::time::sleep(STEP).await;
        }
    };
    until(429).await;
    assert_eq!(asked_from(ELSEWHERE).await, 200);
    held.truncate(MOST - 2);
    until(200).await;
}
