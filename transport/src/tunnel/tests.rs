use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::*;

#[test]
fn a_request_is_readdressed_only_with_the_pass() {
    let request = "GET /0123/lane/v1?a=b HTTP/1.1\r\nhost: 127.0.0.1:9\r\nAuthorization: Bearer x\r\n\r\nrest";
    let changed = readdressed(request.as_bytes(), "0123", "lane.example:3000").unwrap();
    assert_eq!(
        String::from_utf8(changed).unwrap(),
        "GET /lane/v1?a=b HTTP/1.1\r\nhost: lane.example:3000\r\nAuthorization: Bearer x\r\n\r\nrest"
    );
    for wrong in [
        request.replace("0123", "0124"),
        request.replace("/0123", ""),
        request.replace("/0123/", "/01234/"),
        request.replace("GET", "POST"),
        request.replace("\r\n\r\n", "\r\n"),
    ] {
        assert_eq!(readdressed(wrong.as_bytes(), "0123", "h"), None, "{wrong}");
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    // Two authorities of one name could not be told apart by it.
    let name = format!("authority {:x}", rand::random::<u64>());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A server in TLS that answers every request with what it was asked.
async fn echo(authority: &CertifiedIssuer<'static, KeyPair>, name: &str) -> u16 {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from(certificate.der().to_vec())],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let (mut read, mut write) = tokio::io::split(&mut stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    });
    port
}

#[tokio::test]
async fn one_connection_passes_to_a_server_that_the_authority_vouches_for() {
    let ours = authority();
    let port = echo(&ours, "localhost").await;
    let transport = Transport::default().with_authorities(ours.pem().as_bytes()).unwrap();
    let address = transport
        .address_for_sdk(&format!("https://localhost:{port}/lane"))
        .await
        .unwrap();
    let url = Url::parse(&address).unwrap();
    let to = || TcpStream::connect(("127.0.0.1", url.port().unwrap()));
    let mut stranger = to().await.unwrap();
    stranger.write_all(b"GET /lane/v1 HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(stranger.read(&mut [0; 64]).await.unwrap_or(0), 0, "a stranger passes");
    let mut client = to().await.unwrap();
    let asked = format!("GET {}/v1 HTTP/1.1\r\nHost: x\r\n\r\n", url.path());
    client.write_all(asked.as_bytes()).await.unwrap();
    let expected = format!("GET /lane/v1 HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n");
    let mut heard = vec![0; expected.len()];
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(String::from_utf8(heard).unwrap(), expected);
}

#[tokio::test]
async fn another_authority_and_another_name_are_refused() {
    let (ours, theirs) = (authority(), authority());
    let transport = Transport::default().with_authorities(ours.pem().as_bytes()).unwrap();
    for (authority, name, expected) in [
        (&theirs, "localhost", "UnknownIssuer"),
        (&ours, "lane.example", "not valid for name"),
    ] {
        let port = echo(authority, name).await;
        let uri = format!("https://localhost:{port}");
        let error = transport.address_for_sdk(&uri).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let plain = "http://localhost:3000";
    assert_eq!(transport.address_for_sdk(plain).await.unwrap(), plain);
}

#[tokio::test]
async fn without_an_authority_of_its_own_the_sdk_trusts_those_that_browsers_trust() {
    let port = echo(&authority(), "localhost").await;
    let uri = format!("https://localhost:{port}");
    let error = Transport::default().address_for_sdk(&uri).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("UnknownIssuer") && text.contains("ca_file"), "{text}");
    let known = webpki_roots::TLS_SERVER_ROOTS.len();
    assert!(known > 100 && crate::tls::public_roots().len() == known);
}
