//! How many credentials are checked, and how many may be bad.
//!
//! A credential is checked first and judged by what comes of it. Good ones count for nothing, however many bad ones come
//! from the same origin. Checking a signature takes time, so what an origin may have checked is bounded. Once a credential
//! was good, its session pays for its checks. One that is signed and for this bridge, and refused all the same, for example
//! because it has expired, pays for itself: whoever has found it cannot use up what its session may do. The origin pays for
//! neither.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use spacetime_sync_doors::asker::Origin;
use spacetime_sync_doors::buckets::Buckets;
use spacetime_sync_doors::failure::is_failure;
use spacetime_sync_doors::quota::Rate;
use spacetime_sync_proto::{Label, RefusalCode};

use crate::denial::Denial;

/// Most credentials of which is remembered who pays for them.
const PROVEN: usize = 65_536;
/// How long one is remembered.
const REMEMBERED: Duration = Duration::from_secs(900);
/// The shortest time between two searches for those that need not be remembered any more.
const SWEEP: Duration = Duration::from_secs(1);

/// What is known of credentials.
#[derive(Debug)]
pub(crate) struct Credentials {
    checks: Buckets<Payer>,
    failures: Buckets<Payer>,
    proven: Mutex<Proven>,
    /// Numbers credentials. It has a secret of its own, so that nobody finds another one with the same number.
    numbers: RandomState,
}

/// The credentials whose signature was good: whose quota each of them counts against, and until when that is remembered.
#[derive(Debug)]
struct Proven {
    by_number: HashMap<u64, (Payer, Instant)>,
    swept: Instant,
}

/// Who pays for a credential.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Payer {
    /// Whoever shows it.
    Origin(Origin),
    /// Whose it is.
    Session(Label),
    /// Itself, by its number.
    Credential(u64),
}

/// A credential that is being checked.
#[derive(Debug)]
pub(crate) struct Check {
    number: u64,
    payer: Payer,
}

impl Credentials {
    /// Nothing is known yet.
    pub(crate) fn new(checks: Rate, failures: Rate, now: Instant) -> Self {
        Self {
            checks: Buckets::new(checks, now),
            failures: Buckets::new(failures, now),
            proven: Mutex::new(Proven {
                by_number: HashMap::new(),
                swept: now,
            }),
            numbers: RandomState::new(),
        }
    }

    /// Pays for the check of a credential.
    pub(crate) fn begin(&self, credential: &str, origin: &Origin, now: Instant) -> Result<Check, Denial> {
        let number = self.numbers.hash_one(credential);
        let payer = match self.proven().by_number.get(&number) {
            Some((payer, until)) if *until > now => payer.clone(),
            Some(_) | None => Payer::Origin(origin.clone()),
        };
        match self.checks.take(payer.clone(), now) {
            Ok(()) => Ok(Check { number, payer }),
            Err(wait) => Err(Denial::rate_limited("too many credentials to check", wait)),
        }
    }

    /// Notes what came of a check: whose credential it is, if that is proven, and why it is refused, if it is.
    /// Returns another refusal for whoever fails too often.
    pub(crate) fn settle(
        &self,
        check: Check,
        proven: Option<&Label>,
        refused: Option<RefusalCode>,
        now: Instant,
    ) -> Result<(), Denial> {
        let Check { number, mut payer } = check;
        let own = proven.map(|session_id| match refused {
            None => Payer::Session(session_id.clone()),
            Some(_) => Payer::Credential(number),
        });
        if let Some(own) = own
            && own != payer
            && self.remember(number, &own, now)
        {
            self.checks.give_back(&payer);
            payer = own;
        } else if matches!(refused, Some(RefusalCode::SyncTokenUnavailable)) {
            self.checks.give_back(&payer);
        }
        match refused {
            Some(code) if is_failure(code) => self.failed(payer, now),
            Some(_) | None => Ok(()),
        }
    }

    /// Notes that an origin showed nothing that could be a credential.
    pub(crate) fn nothing_shown(&self, origin: &Origin, now: Instant) -> Result<(), Denial> {
        self.failed(Payer::Origin(origin.clone()), now)
    }

    fn failed(&self, payer: Payer, now: Instant) -> Result<(), Denial> {
        let taken = self.failures.take(payer, now);
        taken.map_err(|wait| Denial::rate_limited("too many credentials were bad", wait))
    }

    /// Remembers who pays for a credential. Returns whether there was room for that.
    fn remember(&self, number: u64, payer: &Payer, now: Instant) -> bool {
        let mut proven = self.proven();
        if proven.by_number.len() >= PROVEN && now.saturating_duration_since(proven.swept) >= SWEEP {
            proven.swept = now;
            proven.by_number.retain(|_, (_, until)| *until > now);
        }
        let room = proven.by_number.len() < PROVEN || proven.by_number.contains_key(&number);
        if room {
            proven.by_number.insert(number, (payer.clone(), now + REMEMBERED));
        }
        room
    }

    fn proven(&self) -> MutexGuard<'_, Proven> {
        // A panic under this lock leaves whole entries behind.
        self.proven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody may fail once more.
    #[cfg(test)]
    pub(crate) fn may_fail(&self, payer: &Payer, now: Instant) -> bool {
        self.failures.peek(payer, now).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INVALID: Option<RefusalCode> = Some(RefusalCode::InvalidToken);

    fn credentials(now: Instant) -> Credentials {
        Credentials::new(Rate::per_second(10, 10), Rate::per_minute(1, 3), now)
    }

    fn origin(last: u8) -> Origin {
        Origin::of([10, 0, 0, last].into())
    }

    fn label(text: &str) -> Label {
        Label::new(text).unwrap()
    }

    /// What a credential is told that is somebody's, or nobody's.
    fn shown(
        credentials: &Credentials,
        credential: &str,
        proven: Option<&str>,
        refused: Option<RefusalCode>,
        now: Instant,
    ) -> Result<(), String> {
        let told = |denial: Denial| denial.to_string();
        let check = credentials.begin(credential, &origin(1), now).map_err(told)?;
        let session_id = proven.map(label);
        credentials
            .settle(check, session_id.as_ref(), refused, now)
            .map_err(told)
    }

    #[test]
    fn good_credentials_pass_beside_any_number_of_bad_ones() {
        let now = Instant::now();
        let credentials = credentials(now);
        for number in 0..9 {
            let bad = shown(&credentials, "bad", None, INVALID, now);
            assert_eq!(bad.is_ok(), number < 3, "{bad:?}");
            // One that nobody knows yet, and one that was good before.
            assert_eq!(
                shown(&credentials, &format!("good {number}"), Some("s"), None, now),
                Ok(())
            );
        }
        assert_eq!(shown(&credentials, "good 0", Some("s"), None, now), Ok(()));
    }

    #[test]
    fn what_an_origin_may_have_checked_is_bounded_and_whoever_was_good_before_pays_for_itself() {
        let now = Instant::now();
        let credentials = credentials(now);
        assert_eq!(shown(&credentials, "good", Some("s"), None, now), Ok(()));
        for _ in 0..10 {
            let _ = shown(&credentials, "bad", None, INVALID, now);
        }
        let new = shown(&credentials, "new", Some("t"), None, now);
        assert_eq!(new, Err("too many credentials to check".to_owned()));
        assert_eq!(shown(&credentials, "good", Some("s"), None, now), Ok(()));
        let later = now + Duration::from_millis(100);
        assert_eq!(shown(&credentials, "new", Some("t"), None, later), Ok(()));
        // A session has no more than an origin has.
        let passed = (0..100).filter(|_| shown(&credentials, "good", Some("s"), None, later).is_ok());
        assert_eq!(passed.count(), 10);
        assert!(shown(&credentials, "new", Some("t"), None, later).is_ok());
    }

    #[test]
    fn what_has_expired_is_no_failure_and_a_failure_of_a_signed_credential_is_its_own() {
        let now = Instant::now();
        let credentials = credentials(now);
        for _ in 0..9 {
            let expired = Some(RefusalCode::TokenExpired);
            assert_eq!(shown(&credentials, "old", Some("s"), expired, now), Ok(()));
        }
        for number in 0..6 {
            let forbidden = shown(&credentials, "other", Some("t"), INVALID, now);
            assert_eq!(forbidden.is_ok(), number < 3, "{forbidden:?}");
        }
        for payer in [
            Payer::Origin(origin(1)),
            Payer::Origin(origin(2)),
            Payer::Session(label("s")),
            Payer::Session(label("t")),
        ] {
            assert!(credentials.may_fail(&payer, now), "{payer:?}");
        }
        let number = credentials.numbers.hash_one("other");
        assert!(!credentials.may_fail(&Payer::Credential(number), now));
    }

    #[test]
    fn whoever_repeats_a_refused_credential_uses_up_nothing_of_its_session() {
        let now = Instant::now();
        let credentials = credentials(now);
        let expired = Some(RefusalCode::TokenExpired);
        assert_eq!(shown(&credentials, "old", Some("s"), None, now), Ok(()));
        // It expires, and is shown again and again.
        let heard = (0..100).filter(|_| shown(&credentials, "old", Some("s"), expired, now).is_ok());
        assert_eq!(heard.count(), 11);
        for _ in 0..9 {
            assert_eq!(shown(&credentials, "new", Some("s"), None, now), Ok(()));
        }
        assert_eq!(shown(&credentials, "another", Some("t"), None, now), Ok(()));
    }

    #[test]
    fn while_no_key_is_known_nobody_pays() {
        let now = Instant::now();
        let credentials = credentials(now);
        let unavailable = Some(RefusalCode::SyncTokenUnavailable);
        assert!((0..100).all(|_| shown(&credentials, "any", None, unavailable, now).is_ok()));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let now = Instant::now();
        let credentials = credentials(now);
        for number in 0..=PROVEN as u64 {
            let room = credentials.remember(number, &Payer::Credential(number), now);
            assert_eq!(room, number < PROVEN as u64);
        }
        assert_eq!(credentials.proven().by_number.len(), PROVEN);
        assert!(credentials.remember(0, &Payer::Session(label("s")), now));
        assert!(credentials.remember(PROVEN as u64, &Payer::Session(label("s")), now + REMEMBERED));
        assert_eq!(credentials.proven().by_number.len(), 1);
    }
}
