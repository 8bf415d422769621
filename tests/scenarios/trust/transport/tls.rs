//! SpacetimeDB, the bridge, the gate and a key set behind TLS, with an authority of one's own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use spacetime_sync_issuer::jws::Kind;
use spacetime_sync_issuer::keys::{Ring, SigningKey, now};
use spacetime_sync_tests::gate::GateOptions;
use spacetime_sync_tests::issuing::Desk;
use spacetime_sync_tests::lane::{BridgeOptions, Lane, stream};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::scene::ready;
use spacetime_sync_tests::stub::Stub;
use spacetime_sync_tests::{tool, until, write_secret};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::postgres::{Ca, authority};

const SOON: Duration = Duration::from_secs(30);

/// Ends TLS before a server that speaks none, and lets in whom its authority has certified.
struct Front {
    port: u16,
    passed: Arc<AtomicUsize>,
}

impl Front {
    async fn start(target: SocketAddr, ca: &Ca, asks_for_certificates: bool) -> Self {
        let (certificate, key) = certified(ca, "localhost");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = if asks_for_certificates {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from(ca.der().to_vec())).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            config.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            config.with_no_client_auth()
        };
        let chain = vec![CertificateDer::from(certificate.der().to_vec())];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config.with_single_cert(chain, key).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let passed = Arc::new(AtomicUsize::new(0));
        let count = passed.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, count) = (acceptor.clone(), count.clone());
                tokio::spawn(async move {
                    let mut client = acceptor.accept(stream).await?;
                    count.fetch_add(1, Ordering::SeqCst);
                    let mut server = TcpStream::connect(target).await?;
                    copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Self { port, passed }
    }

    fn url(&self, host: &str) -> String {
        format!("https://{host}:{}", self.port)
    }

    fn passed(&self) -> usize {
        self.passed.load(Ordering::SeqCst)
    }
}

/// A certificate for a name, and its key.
pub(in crate::trust) fn certified(ca: &Ca, name: &str) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    (params.signed_by(&key, ca).unwrap(), key)
}

pub(in crate::trust) fn addr(url: &str) -> SocketAddr {
    url.trim_start_matches("http://").parse().unwrap()
}

/// The authority's certificate, and one of the client's own with its key, as files.
struct Papers {
    ca: PathBuf,
    wrong_ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

impl Papers {
    fn write(folder: &std::path::Path, ca: &Ca) -> Self {
        let path = |name: &str| folder.join(name);
        let (certificate, key) = certified(ca, "client.example");
        std::fs::write(path("ca.pem"), format!("{}{}", authority().pem(), ca.pem())).unwrap();
        std::fs::write(path("wrong-ca.pem"), authority().pem()).unwrap();
        std::fs::write(path("client.pem"), certificate.pem()).unwrap();
        write_secret(&path("client.key"), key.serialize_pem()).unwrap();
        Self {
            ca: path("ca.pem"),
            wrong_ca: path("wrong-ca.pem"),
            cert: path("client.pem"),
            key: path("client.key"),
        }
    }

    fn set(&self, section: &str) -> Vec<(&'static str, String)> {
        let names: [&'static str; 3] = match section {
            "spacetimedb" => ["spacetimedb.ca_file", "spacetimedb.cert_file", "spacetimedb.key_file"],
            _ => ["ca_file", "cert_file", "key_file"],
        };
        let files = [&self.ca, &self.cert, &self.key];
        names
            .into_iter()
            .zip(files.map(|file| file.display().to_string()))
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_works_over_tls_with_an_authority_of_its_own_and_certificates_of_its_parties() {
    let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
    let ca = authority();
    let papers = Papers::write(lane.folder.path(), &ca);
    let server = Front::start(lane.server.addr().unwrap(), &ca, true).await;
    let mut set = papers.set("spacetimedb");
    set.push(("spacetimedb.uri", server.url("localhost")));
    let bridge = lane
        .bridge_with(&BridgeOptions {
            set,
            ..BridgeOptions::default()
        })
        .unwrap();
    ready(&bridge, SOON).await.unwrap();
    assert!(server.passed() > 1, "the bridge reached SpacetimeDB elsewhere");
    let id = stream(1);
    let mut writer = Writer::new(&lane.authority, &id, "w", Payload::UpTo(300), 1);
    writer.append_all(500, 50).await.unwrap();
    let issuer = Front::start(addr(bridge.url()), &ca, true).await;

    // The gate reaches everybody over TLS, and its clients reach it.
    let mut set = papers.set("gate");
    set.extend([
        ("spacetimedb_uri", server.url("localhost")),
        ("bridge_url", issuer.url("localhost")),
        ("keys_url", format!("{}/.well-known/jwks.json", issuer.url("localhost"))),
    ]);
    let gate = lane
        .gate_with(&GateOptions {
            issuer: bridge.url().to_owned(),
            set,
            ..GateOptions::default()
        })
        .unwrap();
    gate.until_ready(true).await.unwrap();
    let front = Front::start(gate.address(), &ca, true).await;

    let (uri, at) = (front.url("localhost"), issuer.url("localhost"));
    let client = lane.client(std::slice::from_ref(&id)).await.unwrap().through(&uri, &at);
    let mut client = client
        .option("--ca-file", papers.ca.display())
        .option("--cert-file", papers.cert.display())
        .option("--key-file", papers.key.display());
    client.start().unwrap();
    client.until_applied(500, SOON).await.unwrap();
    writer.append_all(100, 1).await.unwrap();
    client.until_applied(600, SOON).await.unwrap();
    assert!(client.compare(&lane.authority).await.unwrap().is_equal());

    // Whoever shows no certificate, trusts another authority or goes by another name gets nothing.
    let (good, wrong) = (papers.ca.display().to_string(), papers.wrong_ca.display().to_string());
    let (cert, key) = (papers.cert.display().to_string(), papers.key.display().to_string());
    for (options, host, said) in [
        (&["--ca-file", &good][..], "localhost", "CertificateRequired"),
        (
            &["--ca-file", &wrong, "--cert-file", &cert, "--key-file", &key],
            "localhost",
            "UnknownIssuer",
        ),
        (
            &["--cert-file", &cert, "--key-file", &key],
            "localhost",
            "UnknownIssuer",
        ),
        (
            &["--ca-file", &good, "--cert-file", &cert, "--key-file", &key],
            "127.0.0.1",
            "not valid for name",
        ),
    ] {
        let (uri, at) = (front.url(host), issuer.url(host));
        let mut other = lane.client(std::slice::from_ref(&id)).await.unwrap().through(&uri, &at);
        for pair in options.chunks(2) {
            other = other.option(pair[0], pair[1]);
        }
        other.start().unwrap();
        assert!(until(SOON, || other.log().contains(said)).await, "{}", other.log());
        assert_eq!(other.applied(), 0);
    }

    // An operator's tools.
    let owner = lane.path("owner.token").display().to_string();
    let identity = "0".repeat(64);
    let uri = server.url("localhost");
    let grant = [
        "grant",
        "--uri",
        &uri,
        "--database",
        &lane.name,
        "--token-file",
        &owner,
        "--identity",
        &identity,
        "--stream",
        "s",
    ];
    let with = ["--ca-file", &good, "--cert-file", &cert, "--key-file", &key];
    tool::run("spacetime-sync", &[&grant[..], &with].concat(), &[])
        .await
        .good();
    let refused = tool::run("spacetime-sync", &grant, &[]).await;
    refused.failed(1, &["UnknownIssuer"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_set_counts_only_from_a_server_that_the_authority_vouches_for() {
    let desk = Desk::new(Cluster::shared().await).await.unwrap();
    desk.allow("everyone", "notes").await.unwrap();
    let key = Arc::new(SigningKey::from_pem(&SigningKey::generate().unwrap(), 0, "test").unwrap());
    let set = Ring::new(vec![key.clone()]).jwks(now()).to_string();
    let credential = key.sign(Kind::Session, &desk.claims("7", "s1")).unwrap();
    let stub = Stub::start(move |_| (200, set.clone())).await.unwrap();
    let ca = authority();
    let papers = Papers::write(desk.folder.path(), &ca);
    let front = Front::start(addr(stub.url()), &ca, false).await;
    for (ca, host, status) in [
        (&papers.ca, "localhost", 200),
        (&papers.wrong_ca, "localhost", 503),
        (&papers.ca, "127.0.0.1", 503),
    ] {
        let before = stub.asked("/keys").len();
        let bridge = desk
            .bridge(&[
                ("sessions.public_keys", String::new()),
                ("sessions.jwks_url", format!("{}/keys", front.url(host))),
                ("sessions.ca_file", ca.display().to_string()),
            ])
            .await
            .unwrap();
        let (answered, body) = bridge.token(credential.expose(), &["notes"]).await.unwrap();
        assert_eq!(answered, status, "{body}");
        assert_eq!(stub.asked("/keys").len() > before, status == 200);
    }
}
