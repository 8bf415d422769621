//! Which streams the bridge of a configuration has halted: only the bridge itself knows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use spacetime_sync_bridge::config::Config;
use spacetime_sync_ops::repair::HaltedStream;
use spacetime_sync_proto::Secret;
use spacetime_sync_transport::{Transport, plaintext};

use super::tell;

/// How long a bridge may take to accept a connection, and then to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// What a bridge says about its health to whoever may know all of it.
#[derive(Deserialize)]
struct Health {
    role: String,
    halted: Vec<HaltedStream>,
}

/// The streams that the bridge of this configuration has halted. If nobody answers, that is no error, because the operator may
/// have stopped the bridge for the repair. If somebody answers and does not say it, it is one: nobody knows then whether a
/// stream is halted.
pub(crate) async fn halted_streams(config: &Config) -> anyhow::Result<Vec<HaltedStream>> {
    let address = here(config.http.admin_listen.unwrap_or(config.http.listen));
    let url = format!("http://{address}/healthz");
    let mut request = Transport::default()
        .http(&url)
        .connect_timeout(LIMIT)
        .timeout(2 * LIMIT)
        .build()?
        .get(&url);
    if let Some(admin) = credential(config, &url)? {
        request = request.bearer_auth(admin.expose());
    }
    let answer = match request.send().await {
        Err(error) if error.is_connect() => {
            tell(format_args!(
                "note: no bridge answers at {address}, so this does not show which streams it has halted: {}",
                error.without_url()
            ));
            return Ok(Vec::new());
        }
        answer => answer,
    };
    // An unhealthy bridge says it as well, with 503.
    let health = async { answer?.json::<Health>().await };
    let health = health.await.map_err(reqwest::Error::without_url).with_context(|| {
        format!(
            "the bridge at {address} answers, but does not say which streams it has halted: expected it to accept \
             http.admin_token_file of this configuration, which is shown to no other machine, or to serve its operator at \
             http.admin_listen"
        )
    })?;
    if health.role != "leading" {
        tell(format_args!(
            "note: the bridge at {address} does not lead ({}), so it cannot say which streams are halted",
            health.role
        ));
    }
    Ok(health.halted)
}

/// Where this machine reaches what listens there.
fn here(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// The credential to show there. The operator's listener asks for none; and since nothing is encrypted, no other machine gets to
/// see it.
fn credential(config: &Config, url: &str) -> anyhow::Result<Option<Secret>> {
    let shown = config.http.admin_listen.is_none() && plaintext::leads_here(url);
    let admin = shown.then(|| config.admin_token()).transpose()?;
    Ok(admin.flatten())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::{HeaderMap, StatusCode, header};
    use axum::routing::get;
    use tokio::net::TcpListener;

    use super::*;

    const ADMIN: &str = "an-admin-credential";
    const WHOLE: &str = r#"{"role":"leading","halted":[{"stream_id":"s","code":"diverged","reason":"r"}]}"#;

    fn config(http: &[(&str, &str)]) -> Config {
        let rest = [
            ("authority__url", "postgres://localhost/d"),
            ("spacetimedb__uri", "http://localhost"),
            ("spacetimedb__database", "lane"),
            ("spacetimedb__token", "t"),
            ("seals__keys_dir", "seals"),
        ];
        let http = http.iter().map(|(key, value)| (format!("http__{key}"), *value));
        let keys = rest.map(|(key, value)| (key.to_owned(), value)).into_iter().chain(http);
        let name = |key: String| format!("SPACETIME_SYNC__{}", key.to_uppercase());
        Config::load(None, keys.map(|(key, value)| (name(key), value.to_owned()))).unwrap()
    }

    /// A bridge that says everything to its admin, and one word to others.
    async fn bridge() -> String {
        let healthz = async |headers: HeaderMap| match headers.get(header::AUTHORIZATION) {
            Some(shown) if shown == &format!("Bearer {ADMIN}") => (StatusCode::OK, WHOLE),
            Some(_) | None => (StatusCode::SERVICE_UNAVAILABLE, "unhealthy"),
        };
        listening(Router::new().route("/healthz", get(healthz))).await
    }

    async fn listening(routes: Router) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(axum::serve(listener, routes).into_future());
        address
    }

    #[tokio::test]
    async fn a_bridge_that_answers_and_does_not_say_it_is_an_error() {
        let bridge = bridge().await;
        let at = ("listen", bridge.as_str());
        let right = config(&[at, ("admin_token", ADMIN)]);
        assert_eq!(halted_streams(&right).await.unwrap().len(), 1);
        for wrong in [config(&[at]), config(&[at, ("admin_token", "another-credential")])] {
            let error = halted_streams(&wrong).await.unwrap_err().to_string();
            assert!(
                error.contains("http.admin_token_file") && error.contains("http.admin_listen"),
                "{error}"
            );
        }
        let limited = get(async || (StatusCode::TOO_MANY_REQUESTS, "{}"));
        let limited = listening(Router::new().route("/healthz", limited)).await;
        assert!(halted_streams(&config(&[("listen", limited.as_str())])).await.is_err());
    }

    #[tokio::test]
    async fn without_a_bridge_no_stream_is_known_to_be_halted() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let config = config(&[("listen", free.to_string().as_str())]);
        assert_eq!(halted_streams(&config).await.unwrap(), []);
    }

    #[test]
    fn a_credential_that_cannot_be_read_is_an_error_where_it_would_be_shown() {
        let missing = ("admin_token_file", "/nonexistent/admin.token");
        let shown = |http: &[(&str, &str)], url: &str| credential(&config(http), url).map(|admin| admin.is_some());
        assert!(shown(&[missing], "http://127.0.0.1:7070/healthz").is_err());
        assert!(!shown(&[missing], "http://10.0.0.1:7070/healthz").unwrap());
        let operators = ("admin_listen", "127.0.0.1:7073");
        assert!(!shown(&[missing, operators], "http://127.0.0.1:7073/healthz").unwrap());
        assert!(shown(&[("admin_token", ADMIN)], "http://127.0.0.1:7070/healthz").unwrap());
    }

    #[test]
    fn what_listens_everywhere_is_asked_on_this_machine() {
        for (listens, asked) in [
            ("0.0.0.0:7070", "127.0.0.1:7070"),
            ("[::]:7070", "[::1]:7070"),
            ("10.0.0.1:7070", "10.0.0.1:7070"),
        ] {
            assert_eq!(here(listens.parse().unwrap()).to_string(), asked);
        }
    }
}
