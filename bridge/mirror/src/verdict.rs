//! What an answer of a relay means, and how long to wait after a failure.

use std::time::Duration;

use spacetime_sync_authority::Attempt;

/// How a relay answered an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It took the event, and shows it.
    Shown,
    /// It took the event, and does not show it.
    Forgotten,
    /// It refused the event, in these words.
    Refused(String),
    /// It did not answer in time, or not about this event, or broke the connection.
    Silent(String),
}

impl Answer {
    /// What a relay said about an event, and whether it shows it, or why nobody knows. What it says it took counts for nothing if
    /// it does not show it.
    pub fn of(said: Result<(), Self>, is_shown: Result<bool, &String>) -> Self {
        match (said, is_shown) {
            (Err(answer), _) => answer,
            (Ok(()), Ok(true)) => Self::Shown,
            (Ok(()), Ok(false)) => Self::Forgotten,
            (Ok(()), Err(how)) => Self::Silent(how.clone()),
        }
    }

    /// The same, in other words.
    #[must_use]
    pub fn map_words(self, other: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Refused(words) => Self::Refused(other(words)),
            Self::Silent(how) => Self::Silent(other(how)),
            Self::Shown | Self::Forgotten => self,
        }
    }
}

/// The kinds of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// The relay wants to know who asks, or does not let everybody write.
    Auth,
    /// It is too much for the relay.
    RateLimited,
    /// The relay was not heard.
    Network,
    /// The relay takes no such event.
    Validation,
    /// The relay said that it had the event, and does not show it.
    Forgotten,
    /// The event is to be signed by a key that the mirror does not have.
    Key,
    /// Something else.
    Unknown,
}

impl Failure {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Auth,
        Self::RateLimited,
        Self::Network,
        Self::Validation,
        Self::Forgotten,
        Self::Key,
        Self::Unknown,
    ];

    /// Its name in tables and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::RateLimited => "rate_limited",
            Self::Network => "network",
            Self::Validation => "validation",
            Self::Forgotten => "forgotten",
            Self::Key => "key",
            Self::Unknown => "unknown",
        }
    }

    /// Whether it is the same at every attempt.
    fn is_final(self) -> bool {
        match self {
            Self::Auth | Self::Validation | Self::Key => true,
            Self::RateLimited | Self::Network | Self::Forgotten | Self::Unknown => false,
        }
    }

    /// What a refusal means: NIP-01 and NIP-42 say how it begins.
    fn of_refusal(words: &str) -> Self {
        match words.split(':').next().unwrap_or_default() {
            "auth-required" | "restricted" => Self::Auth,
            "rate-limited" => Self::RateLimited,
            "invalid" | "blocked" | "pow" | "unsupported" => Self::Validation,
            _ => Self::Unknown,
        }
    }
}

/// How often an event is tried at a relay, and how far apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// The most attempts.
    pub attempts: u32,
    /// About how long the mirror waits after the first failure. After each further one it waits twice as long.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
}

/// The longest that is kept of what a relay said.
const DETAIL_BYTES: usize = 300;

impl Patience {
    /// What becomes of an event after an answer. `attempts` were made before it.
    pub fn judge(&self, answer: Answer, attempts: u32, chance: u64) -> Attempt {
        let (failure, detail) = match answer {
            Answer::Shown => return Attempt::Accepted,
            Answer::Forgotten => (Failure::Forgotten, String::new()),
            Answer::Refused(words) => (Failure::of_refusal(&words), words),
            Answer::Silent(how) => (Failure::Network, how),
        };
        self.fail(failure, &detail, attempts, chance)
    }

    /// What becomes of an event after a failure.
    pub fn fail(&self, failure: Failure, detail: &str, attempts: u32, chance: u64) -> Attempt {
        let (failure_name, detail) = (failure.as_str(), printable(detail));
        if failure.is_final() || attempts + 1 >= self.attempts {
            return Attempt::Failed {
                failure: failure_name,
                detail,
            };
        }
        Attempt::Again {
            after: self.wait(attempts, chance),
            failure: failure_name,
            detail,
        }
    }

    /// How long to wait after so many failures before this one: half of it for certain, and the rest by chance, so that what
    /// failed together does not come back together.
    pub fn wait(&self, failures: u32, chance: u64) -> Duration {
        let whole = self.first.saturating_mul(1 << failures.min(20)).min(self.longest);
        // Of 53 bits a fraction has no rest.
        let part = (chance >> 11) as f64 / (1_u64 << 53) as f64;
        whole.mul_f64(0.5 + part / 2.0)
    }
}

/// What a stranger said, for a person to read: bounded, and without what would control a screen.
fn printable(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut kept = String::new();
    for c in clean {
        if kept.len() + c.len_utf8() > DETAIL_BYTES {
            break;
        }
        kept.push(c);
    }
    kept
}

/// The next number of a seeded series.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// The series of a seed.
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number: SplitMix64.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const PATIENCE: Patience = Patience {
        attempts: 4,
        first: Duration::from_secs(1),
        longest: Duration::from_secs(60),
    };

    #[test]
    fn waits_double_within_their_bound_and_differ_by_chance() {
        for (failures, least, most) in [
            (0, 500, 1_000),
            (1, 1_000, 2_000),
            (3, 4_000, 8_000),
            (40, 30_000, 60_000),
        ] {
            let mut chance = Chance::seeded(7);
            let waits: Vec<_> = (0..100).map(|_| PATIENCE.wait(failures, chance.draw())).collect();
            let bounds = Duration::from_millis(least)..=Duration::from_millis(most);
            assert!(waits.iter().all(|wait| bounds.contains(wait)), "{waits:?}");
            assert!(waits.iter().any(|wait| *wait != waits[0]), "{waits:?}");
        }
        assert_eq!(Chance::seeded(3).draw(), Chance::seeded(3).draw());
    }

    #[test]
    fn what_can_never_succeed_is_parked_at_once_and_the_rest_after_its_attempts() {
        let refused = |words: &str| Answer::Refused(words.to_owned());
        for (answer, failure, is_final) in [
            (refused("invalid: too old"), "validation", true),
            (refused("blocked: not here"), "validation", true),
            (refused("pow: 28 bits"), "validation", true),
            (refused("restricted: members only"), "auth", true),
            (refused("auth-required: who are you"), "auth", true),
            (refused("rate-limited: slow down"), "rate_limited", false),
            (refused("error: disk"), "unknown", false),
            (refused("no"), "unknown", false),
            (refused(""), "unknown", false),
            (Answer::Forgotten, "forgotten", false),
            (Answer::Silent("timeout".to_owned()), "network", false),
        ] {
            for attempts in 0..4 {
                let judged = PATIENCE.judge(answer.clone(), attempts, 1);
                let ends = is_final || attempts == 3;
                match judged {
                    Attempt::Failed { failure: found, .. } => assert!(ends && found == failure, "{answer:?}"),
                    Attempt::Again { failure: found, .. } => assert!(!ends && found == failure, "{answer:?}"),
                    Attempt::Accepted => panic!("{answer:?}"),
                }
            }
        }
        assert_eq!(PATIENCE.judge(Answer::Shown, 3, 1), Attempt::Accepted);
    }

    #[test]
    fn what_a_relay_says_is_bounded_and_controls_no_screen() {
        let said = format!("invalid: \u{1b}[2J\n{}", "ü".repeat(1_000));
        let Attempt::Failed { detail, .. } = PATIENCE.judge(Answer::Refused(said), 0, 1) else {
            panic!("it is final");
        };
        assert!(
            detail.len() <= DETAIL_BYTES && detail.len() > DETAIL_BYTES - 2,
            "{detail}"
        );
        assert!(!detail.chars().any(char::is_control), "{detail:?}");
    }
}
