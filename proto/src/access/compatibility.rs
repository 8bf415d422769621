//! Which clients are served. The bridge applies this rule when it issues a token, the module when it lets a connection
//! in.

use serde::{Deserialize, Serialize};

use crate::contract::{Contract, Mismatch, OLDEST_SCHEMA_VERSION, PROTOCOL, Party, SCHEMA_VERSION};
use crate::refusal::RefusalCode;

/// The HTTP headers in which a client says what it is, and a refusal says what is served.
pub mod headers {
    /// The client's build.
    pub const CLIENT_BUILD_ID: &str = "x-oa-client-build-id";
    /// The protocol that the client speaks.
    pub const PROTOCOL_VERSION: &str = "x-oa-protocol-version";
    /// The schema version that the client was built with.
    pub const SCHEMA_VERSION: &str = "x-oa-schema-version";
    /// The oldest schema version that the client works with.
    pub const OLDEST_SCHEMA_VERSION: &str = "x-oa-oldest-schema-version";
    /// The kind of client.
    pub const CLIENT_SURFACE: &str = "x-oa-client-surface";
    /// Why a client is not served.
    pub const CODE: &str = "x-oa-compatibility-code";
    /// The oldest build that is served.
    pub const MIN_CLIENT_BUILD_ID: &str = "x-oa-compatibility-min-client-build-id";
    /// The newest build that is served; absent if there is no upper bound.
    pub const MAX_CLIENT_BUILD_ID: &str = "x-oa-compatibility-max-client-build-id";
    /// The oldest schema version that is served.
    pub const MIN_SCHEMA_VERSION: &str = "x-oa-compatibility-min-schema-version";
    /// The newest schema version that is served.
    pub const MAX_SCHEMA_VERSION: &str = "x-oa-compatibility-max-schema-version";
    /// The protocol that is served.
    pub const SERVED_PROTOCOL_VERSION: &str = "x-oa-compatibility-protocol-version";
    /// Whether a newer client would be served.
    pub const UPGRADE_REQUIRED: &str = "x-oa-compatibility-upgrade-required";
}

/// What a client says it is. The fields are unchecked: a client can write anything into them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientVersion {
    /// `YYYYMMDDTHHMMSSZ`
    pub client_build_id: String,
    /// See [`PROTOCOL`].
    pub protocol_version: String,
    /// See [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// See [`OLDEST_SCHEMA_VERSION`]. A client that does not say it works with `schema_version` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_schema_version: Option<u32>,
    /// The kind of client, e.g. `desktop`.
    pub surface: String,
}

impl ClientVersion {
    /// What the client speaks.
    pub fn contract(&self) -> Contract {
        let newest = self.schema_version;
        Contract {
            protocol: self.protocol_version.clone(),
            oldest: self.oldest_schema_version.unwrap_or(newest).min(newest),
            newest,
        }
    }
}

/// Which clients are served: whoever speaks one of the schema versions, and is of one of the builds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compatibility {
    /// The oldest build that is served.
    pub min_client_build_id: String,
    /// The newest build that is served; empty if there is no upper bound.
    pub max_client_build_id: String,
    /// The oldest schema version that is served.
    pub min_schema_version: u32,
    /// The newest schema version that is served.
    pub max_schema_version: u32,
}

impl Default for Compatibility {
    fn default() -> Self {
        Self {
            min_client_build_id: "00000000T000000Z".to_owned(),
            max_client_build_id: String::new(),
            min_schema_version: OLDEST_SCHEMA_VERSION,
            max_schema_version: SCHEMA_VERSION,
        }
    }
}

/// Why a client is not served: the body of HTTP 426, and what a client shows its user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Incompatible {
    /// One of the five compatibility codes.
    pub code: RefusalCode,
    /// The explanation for people.
    pub message: String,
    /// Always false: the same client would be refused again.
    pub retryable: bool,
    /// Whether a newer client would be served.
    pub upgrade_required: bool,
    /// The kind of client that asked.
    pub surface: String,
    /// See [`Compatibility`].
    pub min_client_build_id: String,
    /// See [`Compatibility`]; absent if there is no upper bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_client_build_id: Option<String>,
    /// See [`Compatibility`].
    pub min_schema_version: u32,
    /// See [`Compatibility`].
    pub max_schema_version: u32,
    /// The protocol that is served.
    pub protocol_version: String,
}

impl Incompatible {
    /// Encodes it as the module tells it: a refusal, to whoever does not know the other fields.
    pub fn to_wire(&self) -> String {
        // Infallible: a map of texts, numbers and the name of an enum.
        serde_json::to_string(self).expect("it is always JSON")
    }
}

impl Compatibility {
    /// Checks these bounds themselves: the build ids are well formed, and no upper bound is below its lower one.
    pub fn check_bounds(&self) -> Result<(), String> {
        if !is_build_id(&self.min_client_build_id) {
            return Err(format!(
                "min_client_build_id: expected YYYYMMDDTHHMMSSZ, found {:?}",
                self.min_client_build_id
            ));
        }
        let max = &self.max_client_build_id;
        if !max.is_empty() && (!is_build_id(max) || *max < self.min_client_build_id) {
            return Err(format!(
                "max_client_build_id: expected it empty, or YYYYMMDDTHHMMSSZ not before min_client_build_id, found {max:?}"
            ));
        }
        if self.min_schema_version > self.max_schema_version {
            return Err(format!(
                "min_schema_version: expected at most max_schema_version {}, found {}",
                self.max_schema_version, self.min_schema_version
            ));
        }
        Ok(())
    }

    /// Checks that this release speaks every schema version that is served: a client would be let in that nobody can serve.
    pub fn check_spoken(&self) -> Result<(), String> {
        let (min, max) = (self.min_schema_version, self.max_schema_version);
        if min < OLDEST_SCHEMA_VERSION {
            return Err(format!(
                "min_schema_version: expected at least {OLDEST_SCHEMA_VERSION}, the oldest that this build speaks, found {min}"
            ));
        }
        if max > SCHEMA_VERSION {
            return Err(format!(
                "max_schema_version: expected at most {SCHEMA_VERSION}, the newest that this build speaks, found {max}"
            ));
        }
        Ok(())
    }

    /// Whether this client is served. The order of the checks is part of the contract. A client that cannot be judged
    /// is refused.
    pub fn check(&self, client: &ClientVersion) -> Result<(), Box<Incompatible>> {
        let build = client.client_build_id.as_str();
        let served = Contract {
            protocol: PROTOCOL.to_owned(),
            oldest: self.min_schema_version,
            newest: self.max_schema_version,
        };
        let (code, message, upgrade) = if !is_build_id(build) {
            let message = "the client's build id is not of the form YYYYMMDDTHHMMSSZ".to_owned();
            (RefusalCode::InvalidClientBuild, message, false)
        } else if let Err(mismatch) = served.agree(&client.contract()) {
            let code = match mismatch {
                Mismatch::Protocol(_) => RefusalCode::UnsupportedProtocolVersion,
                Mismatch::Schema(_) => RefusalCode::UnsupportedSchemaVersion,
            };
            let remedy = mismatch.remedy("this server", "the client");
            // The client's protocol may be anything, and of any length.
            let message = match mismatch {
                Mismatch::Protocol(_) => format!("this server speaks {PROTOCOL}, the client does not; {remedy}"),
                Mismatch::Schema(_) => format!("{served} is served, the client speaks {}; {remedy}", client.contract()),
            };
            // Where neither is a version of the other, another client is the only help.
            (code, message, mismatch.older() != Some(Party::Ours))
        } else if build < self.min_client_build_id.as_str() {
            let message = format!(
                "builds from {} on are served: update the client",
                self.min_client_build_id
            );
            (RefusalCode::UpgradeRequired, message, true)
        } else if !self.max_client_build_id.is_empty() && build > self.max_client_build_id.as_str() {
            let message = format!(
                "builds up to {} are served, this one is newer",
                self.max_client_build_id
            );
            (RefusalCode::UnsupportedClientBuild, message, false)
        } else {
            return Ok(());
        };
        Err(Box::new(Incompatible {
            code,
            message,
            retryable: false,
            upgrade_required: upgrade,
            surface: client.surface.clone(),
            min_client_build_id: self.min_client_build_id.clone(),
            max_client_build_id: Some(self.max_client_build_id.clone()).filter(|max| !max.is_empty()),
            min_schema_version: self.min_schema_version,
            max_schema_version: self.max_schema_version,
            protocol_version: PROTOCOL.to_owned(),
        }))
    }
}

/// Build ids are compared as text, which is correct only for this form.
fn is_build_id(text: &str) -> bool {
    text.len() == 16
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 => byte == b'T',
            15 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Scenario {
        name: String,
        compatibility: Compatibility,
        client: ClientVersion,
        expected: Option<Expected>,
    }

    #[derive(Deserialize)]
    struct Expected {
        code: RefusalCode,
        upgrade_required: bool,
    }

    #[test]
    fn what_is_told_to_an_incompatible_client_is_a_refusal_to_whoever_knows_no_more() {
        let old = ClientVersion {
            client_build_id: "20200101T000000Z".to_owned(),
            protocol_version: crate::contract::PROTOCOL.to_owned(),
            schema_version: crate::contract::SCHEMA_VERSION,
            oldest_schema_version: None,
            surface: "desktop".to_owned(),
        };
        let bounds = Compatibility {
            min_client_build_id: "20260101T000000Z".to_owned(),
            ..Compatibility::default()
        };
        let refused = bounds.check(&old).unwrap_err();
        let told: crate::Refusal = serde_json::from_str(&refused.to_wire()).unwrap();
        assert_eq!((told.code, told.message), (refused.code, refused.message.clone()));
        assert_eq!(told.code, RefusalCode::UpgradeRequired);
    }

    #[test]
    fn every_scenario_of_the_fixture_ends_as_expected() {
        let scenarios: Vec<Scenario> = serde_json::from_str(include_str!("../../fixtures/compatibility.json")).unwrap();
        assert!(scenarios.len() >= 15);
        for Scenario {
            name,
            compatibility,
            client,
            expected,
        } in scenarios
        {
            compatibility.check_bounds().unwrap();
            let found = compatibility.check(&client).err();
            assert_eq!(
                found
                    .as_ref()
                    .map(|found| (found.code, found.upgrade_required, found.retryable)),
                expected.map(|expected| (expected.code, expected.upgrade_required, false)),
                "{name}"
            );
        }
    }

    #[test]
    fn a_refusal_says_which_builds_are_served() {
        let refused = |max: &str| {
            let compatibility = Compatibility {
                min_client_build_id: "20260102T000000Z".to_owned(),
                max_client_build_id: max.to_owned(),
                ..Compatibility::default()
            };
            let client = ClientVersion {
                client_build_id: "20260101T000000Z".to_owned(),
                protocol_version: PROTOCOL.to_owned(),
                schema_version: compatibility.min_schema_version,
                oldest_schema_version: None,
                surface: "desktop".to_owned(),
            };
            let refused = compatibility.check(&client).unwrap_err();
            assert_eq!(refused.min_client_build_id, "20260102T000000Z");
            refused.max_client_build_id
        };
        assert_eq!(refused(""), None);
        assert_eq!(refused("20260103T000000Z").as_deref(), Some("20260103T000000Z"));
    }

    #[test]
    fn a_release_serves_the_one_before_it() {
        let client = |oldest: u32, newest: u32| ClientVersion {
            client_build_id: "20260101T000000Z".to_owned(),
            protocol_version: PROTOCOL.to_owned(),
            schema_version: newest,
            oldest_schema_version: Some(oldest),
            surface: "desktop".to_owned(),
        };
        let refused = |oldest, newest| {
            let refused = Compatibility::default().check(&client(oldest, newest)).err()?;
            Some((refused.code, refused.upgrade_required))
        };
        let (oldest, newest) = (OLDEST_SCHEMA_VERSION, SCHEMA_VERSION);
        let unsupported = |upgrade| Some((RefusalCode::UnsupportedSchemaVersion, upgrade));
        assert_eq!(refused(oldest, newest), None, "this one");
        assert_eq!(refused(oldest - 1, oldest), None, "the one before");
        assert_eq!(refused(newest, newest + 1), None, "the next one");
        assert_eq!(refused(newest + 1, newest + 2), unsupported(false), "two releases on");
        assert_eq!(refused(oldest - 1, oldest - 1), unsupported(true), "too old");
        assert_eq!(
            refused(newest + 7, oldest - 1),
            unsupported(true),
            "a range from its end"
        );
    }

    #[test]
    fn a_window_that_serves_nobody_is_refused() {
        let wrong = [
            Compatibility {
                min_client_build_id: "2026".to_owned(),
                ..Compatibility::default()
            },
            Compatibility {
                max_client_build_id: "x".to_owned(),
                ..Compatibility::default()
            },
            Compatibility {
                min_client_build_id: "20260102T000000Z".to_owned(),
                max_client_build_id: "20260101T000000Z".to_owned(),
                ..Compatibility::default()
            },
            Compatibility {
                min_schema_version: 3,
                max_schema_version: 2,
                ..Compatibility::default()
            },
        ];
        for compatibility in wrong {
            assert!(compatibility.check_bounds().is_err(), "{compatibility:?}");
        }
        assert_eq!(Compatibility::default().check_bounds(), Ok(()));
        let one_build = Compatibility {
            min_client_build_id: "20260101T000000Z".to_owned(),
            max_client_build_id: "20260101T000000Z".to_owned(),
            ..Compatibility::default()
        };
        assert_eq!(one_build.check_bounds(), Ok(()));
    }
}
