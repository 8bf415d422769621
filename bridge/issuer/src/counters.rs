//! What the issuer counts since the process started.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use spacetime_sync_proto::RefusalCode;

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct AuthCounters {
    /// Tokens signed for clients.
    pub minted_total: u64,
    /// Requests refused because a session or an address asked too often.
    pub rate_limited_total: u64,
    /// Requests refused because of who asked, by reason.
    pub auth_failures: AuthFailures,
}

/// Requests refused because of who asked. Each request counts once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct AuthFailures {
    /// The request had no credential, or one of another scheme.
    pub unauthorized_total: u64,
    /// The credential was valid, but does not allow this.
    pub forbidden_total: u64,
    /// The credential was malformed, or not signed by a trusted key.
    pub invalid_token_total: u64,
    /// The credential had expired.
    pub token_expired_total: u64,
    /// The credential was not valid yet.
    pub token_not_yet_valid_total: u64,
    /// The session was revoked.
    pub token_revoked_total: u64,
}

#[derive(Debug, Default)]
pub(super) struct Totals {
    minted: AtomicU64,
    rate_limited: AtomicU64,
    unauthorized: AtomicU64,
    forbidden: AtomicU64,
    invalid_token: AtomicU64,
    token_expired: AtomicU64,
    token_not_yet_valid: AtomicU64,
    token_revoked: AtomicU64,
}

impl Totals {
    pub(super) fn minted(&self) {
        self.minted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn denied(&self, code: RefusalCode) {
        let total = match code {
            RefusalCode::RateLimited => &self.rate_limited,
            RefusalCode::Unauthorized | RefusalCode::MissingAuthorization | RefusalCode::InvalidAuthorizationScheme => {
                &self.unauthorized
            }
            RefusalCode::Forbidden
            | RefusalCode::ForbiddenStream
            | RefusalCode::ForbiddenAssignment
            | RefusalCode::ChallengeRefused
            | RefusalCode::SignatureRefused
            | RefusalCode::SessionBound
            | RefusalCode::MissingScope
            | RefusalCode::SurfacePolicyDenied => &self.forbidden,
            RefusalCode::InvalidToken
            | RefusalCode::MissingIat
            | RefusalCode::MissingJti
            | RefusalCode::TokenTooOld => &self.invalid_token,
            RefusalCode::TokenExpired => &self.token_expired,
            RefusalCode::TokenNotYetValid => &self.token_not_yet_valid,
            RefusalCode::TokenRevoked => &self.token_revoked,
            // Malformed requests, outdated clients and the issuer's own failures say nothing about who asked.
            RefusalCode::NotConfigured
            | RefusalCode::WrongDatabase
            | RefusalCode::InvalidArgument
            | RefusalCode::InvalidFrame
            | RefusalCode::SeqGap
            | RefusalCode::ChainMismatch
            | RefusalCode::EventConflict
            | RefusalCode::BelowWindow
            | RefusalCode::CheckpointBehind
            | RefusalCode::CheckpointAhead
            | RefusalCode::CapabilityConflict
            | RefusalCode::AssignmentConflict
            | RefusalCode::OutboxConflict
            | RefusalCode::OutboxFull
            | RefusalCode::BeingBroughtBack
            | RefusalCode::Lacking
            | RefusalCode::EpochBehind
            | RefusalCode::KeySecretFixed
            | RefusalCode::InvalidScope
            | RefusalCode::InvalidRequest
            | RefusalCode::TooManyGrants
            | RefusalCode::SyncTokenUnavailable
            | RefusalCode::NotFound
            | RefusalCode::InvalidClientBuild
            | RefusalCode::UnsupportedProtocolVersion
            | RefusalCode::UnsupportedSchemaVersion
            | RefusalCode::UpgradeRequired
            | RefusalCode::UnsupportedClientBuild => return,
        };
        total.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> AuthCounters {
        let of = |total: &AtomicU64| total.load(Ordering::Relaxed);
        AuthCounters {
            minted_total: of(&self.minted),
            rate_limited_total: of(&self.rate_limited),
            auth_failures: AuthFailures {
                unauthorized_total: of(&self.unauthorized),
                forbidden_total: of(&self.forbidden),
                invalid_token_total: of(&self.invalid_token),
                token_expired_total: of(&self.token_expired),
                token_not_yet_valid_total: of(&self.token_not_yet_valid),
                token_revoked_total: of(&self.token_revoked),
            },
        }
    }
}
