//! What the issuer counts, from the start of the process.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use spacetime_sync_proto::RefusalCode;

/// The counters at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct AuthCounters {
    /// Tokens that were given.
    pub minted_total: u64,
    /// Requests that came too often.
    pub rate_limited_total: u64,
    /// Requests that were refused for who asked, by what was wrong.
    pub auth_failures: AuthFailures,
}

/// Requests that were refused for who asked, each counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct AuthFailures {
    /// Without a credential, or with one of another scheme.
    pub unauthorized_total: u64,
    /// With a good one that may not do this.
    pub forbidden_total: u64,
    /// With one that is none.
    pub invalid_token_total: u64,
    /// With one that has ended.
    pub token_expired_total: u64,
    /// With one that is not good yet.
    pub token_not_yet_valid_total: u64,
    /// With one of a session that was revoked.
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
            // Requests that are none, clients that are not served, and our own troubles say nothing about who asked.
            _ => return,
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
