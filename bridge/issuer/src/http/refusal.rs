//! Turns refusals into HTTP answers.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use spacetime_sync_proto::RefusalCode;
use spacetime_sync_proto::access::{Incompatible, TokenRefusal, headers};

use crate::denial::Denial;

/// The answer for a refusal, with the status of its code.
pub fn refuse(denial: &Denial) -> Response {
    let mut response = (status(denial.code), Json(denial.body())).into_response();
    if let Some(wait) = denial.retry_after {
        // The header counts whole seconds. Rounding up means that nobody asks too early.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    if status(denial.code) == StatusCode::UNAUTHORIZED {
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// The answer 426, which names the supported versions in its headers and its body.
pub(super) fn incompatible(why: &Incompatible) -> Response {
    let code = serde_json::to_value(why.code).ok();
    let code = code
        .as_ref()
        .and_then(|code| code.as_str())
        .unwrap_or_default()
        .to_owned();
    let said = [
        (headers::CODE, Some(code)),
        (headers::MIN_CLIENT_BUILD_ID, Some(why.min_client_build_id.clone())),
        (headers::MAX_CLIENT_BUILD_ID, why.max_client_build_id.clone()),
        (headers::MIN_SCHEMA_VERSION, Some(why.min_schema_version.to_string())),
        (headers::MAX_SCHEMA_VERSION, Some(why.max_schema_version.to_string())),
        (headers::SERVED_PROTOCOL_VERSION, Some(why.protocol_version.clone())),
        (headers::UPGRADE_REQUIRED, Some(why.upgrade_required.to_string())),
    ];
    let mut response = (StatusCode::UPGRADE_REQUIRED, Json(why)).into_response();
    for (name, value) in said {
        if let Some(Ok(value)) = value.map(HeaderValue::try_from) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    response
}

/// The answer 404. It does not distinguish what never existed from what is gone.
pub async fn not_found() -> Response {
    let body = TokenRefusal {
        code: RefusalCode::NotFound,
        message: "there is nothing here".to_owned(),
        retryable: false,
        retry_after_ms: None,
    };
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}

fn status(code: RefusalCode) -> StatusCode {
    match code {
        RefusalCode::Unauthorized
        | RefusalCode::MissingAuthorization
        | RefusalCode::InvalidAuthorizationScheme
        | RefusalCode::InvalidToken
        | RefusalCode::TokenExpired
        | RefusalCode::TokenNotYetValid
        | RefusalCode::MissingJti
        | RefusalCode::MissingIat
        | RefusalCode::TokenTooOld
        | RefusalCode::TokenRevoked => StatusCode::UNAUTHORIZED,
        RefusalCode::Forbidden
        | RefusalCode::ForbiddenStream
        | RefusalCode::ForbiddenAssignment
        | RefusalCode::ChallengeRefused
        | RefusalCode::SignatureRefused
        | RefusalCode::SessionBound
        | RefusalCode::MissingScope
        | RefusalCode::SurfacePolicyDenied => StatusCode::FORBIDDEN,
        RefusalCode::NotFound => StatusCode::NOT_FOUND,
        RefusalCode::InvalidScope
        | RefusalCode::InvalidRequest
        | RefusalCode::InvalidArgument
        | RefusalCode::InvalidFrame
        | RefusalCode::TooManyGrants => StatusCode::UNPROCESSABLE_ENTITY,
        RefusalCode::InvalidClientBuild
        | RefusalCode::UnsupportedProtocolVersion
        | RefusalCode::UnsupportedSchemaVersion
        | RefusalCode::UpgradeRequired
        | RefusalCode::UnsupportedClientBuild => StatusCode::UPGRADE_REQUIRED,
        RefusalCode::RateLimited | RefusalCode::OutboxFull => StatusCode::TOO_MANY_REQUESTS,
        RefusalCode::SyncTokenUnavailable
        | RefusalCode::NotConfigured
        | RefusalCode::BeingBroughtBack
        | RefusalCode::Lacking
        | RefusalCode::WrongDatabase => StatusCode::SERVICE_UNAVAILABLE,
        RefusalCode::SeqGap
        | RefusalCode::ChainMismatch
        | RefusalCode::EventConflict
        | RefusalCode::BelowWindow
        | RefusalCode::CheckpointBehind
        | RefusalCode::CheckpointAhead
        | RefusalCode::CapabilityConflict
        | RefusalCode::AssignmentConflict
        | RefusalCode::OutboxConflict
        | RefusalCode::KeySecretFixed
        | RefusalCode::EpochBehind => StatusCode::CONFLICT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Vector {
        code: RefusalCode,
        status: u16,
    }

    #[test]
    fn every_code_has_the_status_of_the_contracts_vectors() {
        let vectors = include_str!("../../../../proto/vectors/refusals.json");
        let vectors: Vec<Vector> = serde_json::from_str(vectors).unwrap();
        assert_eq!(vectors.len(), RefusalCode::ALL.len());
        for Vector { code, status: expected } in vectors {
            assert_eq!(status(code).as_u16(), expected, "{code:?}");
        }
    }
}
