//! TLS for a library that cannot be told whose certificates count.
//!
//! SpacetimeDB's SDK brings a TLS of its own, with the system's authorities, and shows no certificate. A process with two of them would
//! trust two lists. So the SDK connects in plaintext to a socket on this machine, over which one connection passes to the server, in
//! the TLS of all other ways.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use reqwest::Url;
use rustls::CertificateError;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Transport;

/// The longest request with which a WebSocket begins.
const REQUEST_BYTES: usize = 64 * 1024;
/// How long such a request may take on this machine.
const REQUEST_LIMIT: Duration = Duration::from_secs(1);

impl Transport {
    /// The address at which the SDK reaches a server. If that is on this machine instead of the server's own, one connection
    /// passes there, by a task of the runtime that calls this.
    pub async fn address_for_sdk(&self, uri: &str) -> io::Result<String> {
        if crate::plaintext::is_plaintext(uri) {
            return Ok(uri.to_owned());
        }
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
        let tls = self.tls().map_err(io::Error::other)?;
        let url = Url::parse(uri).map_err(|error| invalid(&error.to_string()))?;
        let host = url.host_str().ok_or_else(|| invalid("a url without a host"))?;
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = url.port_or_known_default().unwrap_or(443);
        let name = ServerName::try_from(bare.clone()).map_err(|_| invalid("a host that no certificate can name"))?;
        let stream = TcpStream::connect((bare, port)).await?;
        stream.set_nodelay(true)?;
        let server = TlsConnector::from(tls).connect(name, stream).await.map_err(advised)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        // Another process of this machine may connect, too, but does not know what to ask for.
        let pass = format!("{:032x}", rand::random::<u128>());
        let address = format!(
            "http://{}/{pass}{}",
            listener.local_addr()?,
            url.path().trim_end_matches('/')
        );
        let host = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        tokio::spawn(async move {
            if let Err(error) = carry(&listener, server, &pass, &host).await {
                tracing::debug!(%error, "a connection over TLS ended");
            }
        });
        Ok(address)
    }
}

/// Says what to do about a server whose authority is not known.
fn advised(error: io::Error) -> io::Error {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => io::Error::new(
            error.kind(),
            format!(
                "{error}: name an authority of your own by ca_file, or in a client by `Transport::with_authorities`"
            ),
        ),
        _ => error,
    }
}

/// Waits for whoever knows the pass, and carries that connection to its end.
async fn carry(listener: &TcpListener, mut server: TlsStream<TcpStream>, pass: &str, host: &str) -> io::Result<()> {
    let (mut client, request) = loop {
        let (mut client, _) = listener.accept().await?;
        client.set_nodelay(true)?;
        let asked = timeout(REQUEST_LIMIT, read_request(&mut client)).await;
        if let Ok(Ok(asked)) = asked
            && let Some(request) = readdressed(&asked, pass, host)
        {
            break (client, request);
        }
    };
    server.write_all(&request).await?;
    server.flush().await?;
    copy_bidirectional(&mut client, &mut server).await.map(|_| ())
}

/// The headers of a request, and what came with them.
async fn read_request(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() > REQUEST_BYTES || client.read_buf(&mut request).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(request)
}

/// The request as it is for the server: without the pass, and with the server's name. `None` if it does not know the pass.
fn readdressed(request: &[u8], pass: &str, host: &str) -> Option<Vec<u8>> {
    let end = request.windows(4).position(|end| end == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&request[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let path = lines.next()?.strip_prefix("GET /")?.strip_prefix(pass)?;
    if !path.starts_with('/') {
        return None;
    }
    let mut changed = format!("GET {path}");
    for line in lines {
        changed.push_str("\r\n");
        match line.split_once(':') {
            Some((name, _)) if name.eq_ignore_ascii_case("host") => changed.push_str(&format!("{name}: {host}")),
            _ => changed.push_str(line),
        }
    }
    Some([changed.as_bytes(), &request[end..]].concat())
}

#[cfg(test)]
mod tests;
