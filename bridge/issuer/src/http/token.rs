//! `POST /api/sync/token`.
//!
//! The order of the checks is part of the contract: which client asks, how much of its address is checked, who asks and
//! how often, what they ask for, and what of it they may have.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Json, Response};
use spacetime_sync_doors::asker::asker;
use spacetime_sync_proto::RefusalCode;
use spacetime_sync_proto::access::{ClientVersion, Compatibility, TokenRequest, headers};

use super::refusal::{incompatible, refuse};
use super::{BODY_BYTES, Desk};
use crate::denial::Denial;
use crate::json::object;

/// The kind of a client that does not name it.
const UNKNOWN_SURFACE: &str = "unknown";
/// Longest value of one of the client's headers that is read.
const HEADER_BYTES: usize = 128;

pub(super) async fn token(
    State(desk): State<Option<Arc<Desk>>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let Some(desk) = desk else {
        return refuse(&Denial::unavailable("this bridge issues no tokens"));
    };
    let issuer = &desk.issuer;
    let (parts, body) = request.into_parts();
    let client = client(&parts.headers, issuer.compatibility());
    if let Err(why) = issuer.check_client(&client) {
        return incompatible(&why);
    }
    let answer = async {
        let authorization = parts.headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let asker = asker(&parts.headers, peer.ip(), desk.proxy);
        let session = issuer.authenticate(authorization, &asker.origin).await?;
        issuer.admit(&session)?;
        let request = read(body).await?;
        issuer.token(&session, &client, &request, asker.address).await
    };
    match answer.await {
        Ok(token) => Json(token).into_response(),
        Err(denial) => refuse(&denial),
    }
}

/// What a client says about itself. A header that is missing, doubled or not text becomes a value that is not
/// supported.
fn client(sent: &HeaderMap, compatibility: &Compatibility) -> ClientVersion {
    let said = |name: &str| {
        let mut values = sent.get_all(name).iter();
        let value = values.next()?.to_str().ok()?;
        (values.next().is_none() && value.len() <= HEADER_BYTES).then(|| value.to_owned())
    };
    let digits = |text: &String| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let version = |name: &str| said(name).filter(digits)?.parse().ok();
    let schema_version = version(headers::SCHEMA_VERSION);
    ClientVersion {
        client_build_id: said(headers::CLIENT_BUILD_ID).unwrap_or_default(),
        protocol_version: said(headers::PROTOCOL_VERSION).unwrap_or_default(),
        schema_version: schema_version.unwrap_or_else(|| unserved_schema(compatibility)),
        oldest_schema_version: schema_version.and_then(|_| version(headers::OLDEST_SCHEMA_VERSION)),
        surface: said(headers::CLIENT_SURFACE).unwrap_or_else(|| UNKNOWN_SURFACE.to_owned()),
    }
}

/// A schema version that the bridge does not support, for a client that names none.
fn unserved_schema(compatibility: &Compatibility) -> u32 {
    if compatibility.min_schema_version > 0 {
        0
    } else {
        compatibility.max_schema_version.saturating_add(1)
    }
}

async fn read(body: Body) -> Result<TokenRequest, Denial> {
    let invalid = |message: String| Denial::new(RefusalCode::InvalidRequest, message);
    let bytes = to_bytes(body, BODY_BYTES)
        .await
        .map_err(|_| invalid(format!("the body is missing or longer than {BODY_BYTES} bytes")))?;
    // The message says where the body is wrong, but does not repeat it.
    object(&bytes).map_err(|error| {
        invalid(format!(
            "the body is not a request for a token (line {}, column {}): expected an object with scopes, streams, topics, \
             ttl_seconds and device_id",
            error.line(),
            error.column()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;
    use spacetime_sync_proto::contract::SCHEMA_VERSION;

    fn says(pairs: &[(&'static str, &str)]) -> ClientVersion {
        let mut sent = HeaderMap::new();
        for (name, value) in pairs {
            sent.append(*name, HeaderValue::from_str(value).unwrap());
        }
        client(&sent, &Compatibility::default())
    }

    #[test]
    fn a_client_that_does_not_name_its_version_exactly_once_is_refused() {
        let served = SCHEMA_VERSION.to_string();
        let good = [
            (headers::CLIENT_BUILD_ID, "20260601T000000Z"),
            (headers::PROTOCOL_VERSION, "spacetime.sync.v1"),
            (headers::SCHEMA_VERSION, served.as_str()),
            (headers::CLIENT_SURFACE, "desktop"),
        ];
        let code = |pairs: &[_]| Compatibility::default().check(&says(pairs)).err().map(|why| why.code);
        assert_eq!(code(&good), None);
        assert_eq!(code(&good[..3]), None, "the surface is checked later");
        assert_eq!(code(&[]), Some(RefusalCode::InvalidClientBuild));
        assert_eq!(code(&good[..1]), Some(RefusalCode::UnsupportedProtocolVersion));
        assert_eq!(code(&good[..2]), Some(RefusalCode::UnsupportedSchemaVersion));
        for schema in ["", "+1", "1.0", "99999999999", "one", "-1", " "] {
            let wrong = [good[0], good[1], (headers::SCHEMA_VERSION, schema)];
            assert_eq!(code(&wrong), Some(RefusalCode::UnsupportedSchemaVersion), "{schema:?}");
        }
        let [next, later] = [1, 2].map(|more| (SCHEMA_VERSION + more).to_string());
        let newer = [good[0], good[1], (headers::SCHEMA_VERSION, later.as_str())];
        let with_oldest = |oldest| [&newer[..], &[(headers::OLDEST_SCHEMA_VERSION, oldest)]].concat();
        assert_eq!(code(&with_oldest(served.as_str())), None);
        for oldest in [next.as_str(), "", "-1", "ten"] {
            let refused = Some(RefusalCode::UnsupportedSchemaVersion);
            assert_eq!(code(&with_oldest(oldest)), refused, "{oldest:?}");
        }
        // Who names only its oldest version names none.
        assert_eq!(
            code(&[good[0], good[1], (headers::OLDEST_SCHEMA_VERSION, served.as_str())]),
            Some(RefusalCode::UnsupportedSchemaVersion)
        );
        let twice = [good[0], good[0], good[1], good[2]];
        assert_eq!(code(&twice), Some(RefusalCode::InvalidClientBuild));
        let all = Compatibility {
            min_schema_version: 0,
            max_schema_version: 7,
            ..Compatibility::default()
        };
        assert_eq!(unserved_schema(&all), 8);
    }
}
