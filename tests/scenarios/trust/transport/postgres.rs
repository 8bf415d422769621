//! A Postgres that speaks TLS, and whoever stands before it.

use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use spacetime_sync_authority::Authority;
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::{tool, write_secret};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// An authority that signs certificates.
pub(in crate::trust) type Ca = CertifiedIssuer<'static, KeyPair>;

pub(in crate::trust) fn authority() -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    // Two authorities of one name could not be told apart by it.
    let name = format!("authority {:x}", rand::random::<u64>());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A cluster of its own, with a certificate for `localhost` and no address.
struct Encrypted {
    cluster: Cluster,
    folder: PathBuf,
}

impl Encrypted {
    /// `None` where the server is another's.
    async fn start(ca: &Ca) -> Option<Self> {
        let cluster = Cluster::start().await.unwrap();
        let Some(log) = cluster.log_file() else {
            println!("skipped: the server of DATABASE_URL has its own certificate");
            return None;
        };
        let folder = log.parent().unwrap().to_owned();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".to_owned()])
            .unwrap()
            .signed_by(&key, ca)
            .unwrap();
        let (cert_file, key_file) = (folder.join("server.pem"), folder.join("server.key"));
        std::fs::write(&cert_file, certificate.pem()).unwrap();
        write_secret(&key_file, key.serialize_pem()).unwrap();
        // The server may run as another user than the tests.
        let owner = std::fs::metadata(&folder).unwrap();
        for file in [&cert_file, &key_file] {
            chown(file, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        let mut connection = PgConnection::connect(cluster.url()).await.unwrap();
        for (key, value) in [
            ("ssl_cert_file", cert_file.display().to_string()),
            ("ssl_key_file", key_file.display().to_string()),
            ("ssl", "on".to_owned()),
        ] {
            let set = format!("alter system set {key} = '{value}'");
            connection.execute(set.as_str()).await.unwrap();
        }
        cluster.restart().await.unwrap();
        Some(Self { cluster, folder })
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn url(&self, host: &str, database: &str, more: &str) -> String {
        let port = self.cluster.addr().unwrap().port();
        format!("postgres://postgres@{host}:{port}/{database}?sslmode=verify-full{more}")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_needs_a_certificate_of_the_right_authority_with_the_right_name() {
    let (ours, theirs) = (authority(), authority());
    let Some(server) = Encrypted::start(&ours).await else {
        return;
    };
    let ca = format!("&sslrootcert={}", server.write("ca.pem", &ours.pem()));
    let wrong_ca = format!("&sslrootcert={}", server.write("wrong-ca.pem", &theirs.pem()));
    let both = format!(
        "&sslrootcert={}",
        server.write("both.pem", &format!("{}{}", theirs.pem(), ours.pem()))
    );
    let database = server.cluster.create_database().await.unwrap();
    for more in [&ca, &both] {
        let authority = Authority::connect(&server.url("localhost", database.name(), more), 1)
            .await
            .unwrap();
        assert_eq!(authority.streams_after(None, 10).await.unwrap(), []);
    }
    for (host, more, said) in [
        ("localhost", &wrong_ca, "UnknownIssuer"),
        ("localhost", &String::new(), "UnknownIssuer"),
        ("127.0.0.1", &ca, "not valid for name"),
    ] {
        let url = server.url(host, database.name(), more);
        let ended = tool::run("spacetime-sync", &["migrate", "--database-url", &url], &[]).await;
        ended.failed(1, &[said]);
    }
    let good = server.url("localhost", database.name(), &ca);
    tool::run("spacetime-sync", &["migrate", "--database-url", &good], &[])
        .await
        .good();
}

/// Says that the server has no TLS, and keeps what it is told then.
async fn strip() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    /// The question whether the server speaks TLS: a length, and a code.
    const QUESTION: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let keep = told.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut question = [0; QUESTION.len()];
            if stream.read_exact(&mut question).await.is_err() {
                continue;
            }
            if question != QUESTION {
                keep.lock().unwrap().extend_from_slice(&question);
            }
            stream.write_all(b"N").await.unwrap();
            let mut rest = [0; 1_024];
            if let Ok(more) = stream.read(&mut rest).await {
                keep.lock().unwrap().extend_from_slice(&rest[..more]);
            }
        }
    });
    (addr, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_strips_tls_is_told_nothing() {
    let (addr, told) = strip().await;
    let migrate = async |url: &str, more: &[&str]| {
        let arguments = [&["migrate", "--database-url", url][..], more].concat();
        tool::run("spacetime-sync", &arguments, &[]).await.failed(1, &[])
    };
    let url = |sslmode: &str| {
        format!(
            "postgres://hunter:hunter2@localhost:{}/d?sslmode={sslmode}",
            addr.port()
        )
    };
    migrate(&url("verify-full"), &[]).await;
    assert_eq!(told.lock().unwrap().as_slice(), b"");
    // On a network, the driver's default would tell it the user, and the password next.
    for sslmode in ["prefer", "require", "verify-ca"] {
        let said = migrate(&url(sslmode).replace("localhost", "0.0.0.0"), &[]).await;
        assert!(said.contains("verify-full"), "{said}");
    }
    assert_eq!(told.lock().unwrap().as_slice(), b"");
    migrate(&url("prefer").replace("localhost", "0.0.0.0"), &["--allow-plaintext"]).await;
    let told = String::from_utf8_lossy(&told.lock().unwrap()).into_owned();
    assert!(told.contains("hunter"), "{told:?}");
}
