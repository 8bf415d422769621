//! When to replace a token, and what a failed attempt to connect means for the next one. Time and random numbers are
//! arguments.

use std::time::{Duration, Instant};

use spacetime_sync_proto::{RefusalCode, StreamId};

use super::event::{CallFailure, DialFailure};
use super::status::{Disconnect, StopReason, TokenStatus};
use crate::credential::{AccessToken, TokenError};
use crate::error::ErrorClass;

/// The client replaces a token at the latest after this share of its lifetime, whatever its issuer says.
const LATEST: f64 = 0.9;
/// Clients replace their tokens earlier by a random share of up to this much, so that they do not all come at once.
const JITTER: f64 = 0.1;

/// The shortest time between two tokens when the module doubts every token.
const SOONEST: Duration = Duration::from_secs(1);

/// A token that a provider issued, and when.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The token.
    pub token: AccessToken,
    /// A time before the client asked for it, so that the token never seems valid for longer than it is.
    pub asked_at: Instant,
}

/// How long the token of a connection lasts.
#[derive(Debug)]
pub(super) struct Tenure {
    issued: Issued,
    refresh_at: Instant,
    expires_at: Instant,
    failures: u32,
}

impl Tenure {
    /// `roll` is random, between 0 and 1.
    pub(super) fn new(issued: Issued, roll: f64) -> Self {
        let after = refresh_after(&issued).mul_f64(1.0 - JITTER * roll.clamp(0.0, 1.0));
        Self {
            refresh_at: issued.asked_at + after,
            expires_at: issued.asked_at + issued.token.expires_in,
            failures: 0,
            issued,
        }
    }

    /// The session that the token belongs to, if known.
    pub(super) fn session_id(&self) -> Option<&str> {
        self.issued.token.session_id.as_deref()
    }

    /// The token.
    pub(super) fn token(&self) -> &str {
        &self.issued.token.token
    }

    /// Whether the token grants a stream, according to its issuer.
    pub(super) fn grants(&self, stream_id: &StreamId) -> bool {
        let granted = &self.issued.token.granted_streams;
        granted.iter().any(|pattern| pattern.matches(stream_id))
    }

    /// When the token was asked for.
    pub(super) fn asked_at(&self) -> Instant {
        self.issued.asked_at
    }

    /// Whether to ask for another token now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.refresh_at
    }

    /// Whether the token has ended.
    pub(super) fn has_ended(&self, now: Instant) -> bool {
        now >= self.expires_at
    }

    /// When to ask for the next token.
    pub(super) fn refresh_at(&self) -> Instant {
        self.refresh_at
    }

    /// The module no longer accepts the token, or accepts it for less: the next one is due at once. If the issuer
    /// refuses one, it says why.
    pub(super) fn is_doubted(&mut self, now: Instant) {
        // After a failure the wait stays as it is.
        if self.failures == 0 {
            self.refresh_at = self.refresh_at.min(now.max(self.issued.asked_at + SOONEST));
        }
    }

    /// Counts a failed replacement and returns the number of failures in a row.
    pub(super) fn count_failure(&mut self) -> u32 {
        self.failures = self.failures.saturating_add(1);
        self.failures
    }

    /// Sets when to try again.
    pub(super) fn try_again_at(&mut self, at: Instant) {
        self.refresh_at = at;
    }

    pub(super) fn status(&self) -> TokenStatus {
        TokenStatus {
            refresh_at: self.refresh_at,
            expires_at: self.expires_at,
            failures: self.failures,
            granted_streams: self.issued.token.granted_streams.clone(),
            session_id: self.issued.token.session_id.clone(),
        }
    }
}

fn refresh_after(issued: &Issued) -> Duration {
    let token = &issued.token;
    token.refresh_after.min(token.expires_in.mul_f64(LATEST))
}

/// Whether a token is still good for a new connection. One that is due for replacement is not.
pub(super) fn is_fresh(issued: &Issued, now: Instant) -> bool {
    now < issued.asked_at + refresh_after(issued)
}

/// A failed attempt is to be repeated later.
#[derive(Debug, PartialEq)]
pub(super) struct Later {
    pub(super) reason: Disconnect,
    /// The shortest wait that anybody asked for.
    pub(super) wait: Option<Duration>,
    /// Whether the next attempt needs another token.
    pub(super) forget_token: bool,
}

/// Decides what a failed attempt means. `renewable` says whether a provider can issue another token; `ask_again_after`
/// is the shortest wait before asking an issuer again that grants nothing.
pub(super) fn after_failure(
    failure: DialFailure,
    renewable: bool,
    ask_again_after: Duration,
) -> Result<Later, StopReason> {
    let later = |reason, forget_token| Later {
        reason,
        wait: None,
        forget_token,
    };
    match failure {
        DialFailure::Stop(reason) => Err(reason),
        DialFailure::NoToken(error) => match &error {
            TokenError::Incompatible(incompatible) => Err(StopReason::Incompatible(incompatible.clone())),
            TokenError::Refused { refusal, .. } if grants_nothing_yet(refusal.code) => Ok(Later {
                wait: Some(error.retry_after().unwrap_or_default().max(ask_again_after)),
                reason: Disconnect::NoToken(error),
                forget_token: false,
            }),
            TokenError::Refused { refusal, .. } if error.class() != ErrorClass::Retry => {
                Err(StopReason::Refused(refusal.clone()))
            }
            TokenError::Refused { .. } | TokenError::Unavailable { .. } => Ok(Later {
                wait: error.retry_after(),
                reason: Disconnect::NoToken(error),
                forget_token: false,
            }),
        },
        // While its clock is wrong, or before it has read the issuer's newest key, SpacetimeDB accepts no token.
        DialFailure::Unauthorized if renewable => Ok(later(Disconnect::Unauthorized, true)),
        DialFailure::Unauthorized => Err(StopReason::Unauthorized),
        // Between a publish and its configuration. Whoever publishes is at it.
        DialFailure::Refused(refusal) if refusal.code == RefusalCode::NotConfigured => {
            Ok(later(Disconnect::Refused(refusal), false))
        }
        DialFailure::Refused(refusal) => {
            let may_pass = refusal.code.class() == ErrorClass::Retry && (renewable || !has_aged(refusal.code));
            if may_pass {
                Ok(later(Disconnect::Refused(refusal), true))
            } else {
                Err(StopReason::Refused(refusal))
            }
        }
        // The next token may name another database.
        DialFailure::Later(reason @ (Disconnect::NoDatabase(_) | Disconnect::WrongDatabase { .. })) => {
            Ok(later(reason, true))
        }
        DialFailure::Later(reason) => Ok(later(reason, false)),
    }
}

/// Whether an issuer refuses because it grants none of the streams, as before it knows their owner. It may grant them
/// later, just as the module may.
fn grants_nothing_yet(code: RefusalCode) -> bool {
    matches!(code, RefusalCode::Forbidden | RefusalCode::ForbiddenStream)
}

/// Whether the token itself is the cause and will not become valid.
pub(super) fn has_aged(code: RefusalCode) -> bool {
    matches!(code, RefusalCode::TokenExpired | RefusalCode::TokenTooOld)
}

impl CallFailure {
    /// Whether the module refused because of the token's age.
    pub(super) fn is_of_aged_token(&self) -> bool {
        match self {
            Self::Refused(refusal) => has_aged(refusal.code),
            Self::Failed(_) => false,
        }
    }

    /// Whether the module refused because of what the session may see.
    pub(super) fn is_of_rights(&self) -> bool {
        let codes = [RefusalCode::MissingScope, RefusalCode::ForbiddenStream];
        matches!(self, Self::Refused(refusal) if codes.contains(&refusal.code))
    }
}

/// Whether a refusal means that the session is over, and not only this call.
pub(super) fn ends_session(code: RefusalCode) -> bool {
    matches!(
        code,
        RefusalCode::TokenRevoked | RefusalCode::SessionBound | RefusalCode::SurfacePolicyDenied
    )
}

#[cfg(test)]
mod tests {
    use spacetime_sync_proto::Refusal;
    use spacetime_sync_proto::access::{ClientVersion, Compatibility};

    use super::*;

    fn issued(refresh_after: u64, expires_in: u64, asked_at: Instant) -> Issued {
        let token = AccessToken {
            refresh_after: Duration::from_secs(refresh_after),
            ..AccessToken::new("x", Duration::from_secs(expires_in))
        };
        Issued { token, asked_at }
    }

    #[test]
    fn a_token_is_replaced_before_it_is_due_and_at_a_random_time() {
        let now = Instant::now();
        let due = |refresh_after, expires_in, roll| {
            let tenure = Tenure::new(issued(refresh_after, expires_in, now), roll);
            tenure.refresh_at().duration_since(now).as_secs()
        };
        assert_eq!(
            [due(270, 300, 0.0), due(270, 300, 0.5), due(270, 300, 1.0)],
            [270, 256, 243]
        );
        // An issuer that sends nonsense is ignored.
        assert_eq!([due(0, 300, 0.5), due(1_000, 300, 0.0)], [0, 270]);
    }

    #[test]
    fn a_token_becomes_due_is_tried_again_and_ends() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut tenure = Tenure::new(issued(100, 200, start), 0.0);
        assert!(!tenure.is_due(at(99)) && tenure.is_due(at(100)));
        assert_eq!(tenure.count_failure(), 1);
        tenure.try_again_at(at(110));
        assert!(!tenure.is_due(at(109)) && tenure.is_due(at(110)));
        tenure.is_doubted(at(105));
        assert!(
            !tenure.is_due(at(105)),
            "a doubt does not shorten the wait after a failure"
        );
        assert!(!tenure.has_ended(at(199)) && tenure.has_ended(at(200)));
        assert_eq!(tenure.status().failures, 1);
    }

    #[test]
    fn a_doubted_token_is_due_at_once_but_not_over_and_over() {
        let start = Instant::now();
        let mut tenure = Tenure::new(issued(100, 200, start), 0.0);
        tenure.is_doubted(start);
        assert!(!tenure.is_due(start) && tenure.is_due(start + SOONEST));
        let mut tenure = Tenure::new(issued(100, 200, start), 0.0);
        let later = start + 2 * SOONEST;
        assert!(!tenure.is_due(later));
        tenure.is_doubted(later);
        assert!(tenure.is_due(later));
    }

    #[test]
    fn a_held_token_is_used_again_until_it_is_due() {
        let start = Instant::now();
        let held = issued(100, 200, start);
        assert!(is_fresh(&held, start + Duration::from_secs(99)));
        assert!(!is_fresh(&held, start + Duration::from_secs(100)));
    }

    const ASK_AGAIN: Duration = Duration::from_secs(5);

    fn refused(code: RefusalCode) -> DialFailure {
        DialFailure::Refused(Refusal::new(code, "no"))
    }

    fn no_token(code: RefusalCode) -> DialFailure {
        DialFailure::NoToken(TokenError::refused(code, "no"))
    }

    /// A short name for each verdict: what stops, what is tried again, and whether with a new token.
    fn verdict(failure: DialFailure, renewable: bool) -> String {
        match after_failure(failure, renewable, ASK_AGAIN) {
            Err(reason) => format!("stop: {}", reason.code()),
            Ok(later) if later.forget_token => format!("later, new token: {}", later.reason.code()),
            Ok(later) => format!("later: {}", later.reason.code()),
        }
    }

    #[test]
    fn permanent_failures_stop_and_all_others_are_tried_again() {
        use RefusalCode::*;
        for (failure, expected) in [
            (no_token(Unauthorized), "stop: refused"),
            (no_token(Forbidden), "later: no_token"),
            (no_token(ForbiddenStream), "later: no_token"),
            (no_token(InvalidScope), "stop: refused"),
            (no_token(TokenRevoked), "stop: refused"),
            (no_token(MissingScope), "stop: refused"),
            (no_token(TokenExpired), "later: no_token"),
            (no_token(RateLimited), "later: no_token"),
            (no_token(SyncTokenUnavailable), "later: no_token"),
            (DialFailure::NoToken(TokenError::unavailable("x")), "later: no_token"),
            (refused(TokenRevoked), "stop: refused"),
            (refused(UpgradeRequired), "stop: refused"),
            (refused(MissingScope), "stop: refused"),
            (refused(TokenExpired), "later, new token: refused"),
            (refused(TokenNotYetValid), "later, new token: refused"),
            (refused(NotConfigured), "later: refused"),
            (DialFailure::Later(Disconnect::Closed), "later: closed"),
            (
                DialFailure::Later(Disconnect::NoDatabase("lane".to_owned())),
                "later, new token: no_database",
            ),
            (no_token(WrongDatabase), "later: no_token"),
            (DialFailure::Stop(StopReason::Defect), "stop: defect"),
        ] {
            let shown = format!("{failure:?}");
            assert_eq!(verdict(failure, true), expected, "{shown}");
        }
    }

    #[test]
    fn an_unsupported_build_stops() {
        let nobody = ClientVersion {
            client_build_id: String::new(),
            protocol_version: String::new(),
            schema_version: 0,
            oldest_schema_version: None,
            surface: String::new(),
        };
        let incompatible = Compatibility::default().check(&nobody).unwrap_err();
        let failure = DialFailure::NoToken(TokenError::Incompatible(incompatible.clone()));
        let reason = after_failure(failure, true, ASK_AGAIN).unwrap_err();
        assert_eq!(reason, StopReason::Incompatible(incompatible));
        assert_eq!(reason.refusal(), Some(RefusalCode::InvalidClientBuild));
    }

    #[test]
    fn a_token_that_is_not_accepted_is_replaced() {
        let expected = "later, new token: unauthorized";
        assert_eq!(verdict(DialFailure::Unauthorized, true), expected);
        assert_eq!(verdict(DialFailure::Unauthorized, false), "stop: unauthorized");
    }

    #[test]
    fn a_fixed_token_that_has_ended_stops() {
        assert_eq!(verdict(refused(RefusalCode::TokenExpired), false), "stop: refused");
        assert_eq!(verdict(refused(RefusalCode::NotConfigured), false), "later: refused");
        assert_eq!(
            verdict(refused(RefusalCode::TokenNotYetValid), false),
            "later, new token: refused"
        );
    }

    #[test]
    fn a_retry_after_is_honoured_and_an_issuer_that_grants_nothing_is_not_asked_soon() {
        let wait = |error| {
            let later = after_failure(DialFailure::NoToken(error), true, ASK_AGAIN);
            later.unwrap().wait.map(|wait| wait.as_secs())
        };
        let busy = |retry_after| TokenError::Unavailable {
            message: "busy".to_owned(),
            retry_after,
        };
        let forbidden = |retry_after| TokenError::Refused {
            refusal: Refusal::new(RefusalCode::Forbidden, "none of the streams"),
            retry_after,
        };
        let seven = Some(Duration::from_secs(7));
        assert_eq!([wait(busy(None)), wait(busy(seven))], [None, Some(7)]);
        assert_eq!([wait(forbidden(None)), wait(forbidden(seven))], [Some(5), Some(7)]);
    }
}
