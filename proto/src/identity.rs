//! Identities of SpacetimeDB, as configurations and tokens write them: in hex.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The number of hexadecimal digits.
const DIGITS: usize = 64;

/// The identity of a party or of a database: 64 hexadecimal digits in lower case.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdentityHex(String);

/// Which database is the right one: its identity, and that of its owner. Anybody may create databases on a SpacetimeDB
/// server, under a name that is free and even with the identity of one that was deleted. So one without the other says
/// nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabasePin {
    /// The identity of the database.
    pub database_identity: IdentityHex,
    /// The identity of its owner.
    pub owner_identity: IdentityHex,
}

impl DatabasePin {
    /// Reads what SpacetimeDB answers to `GET /v1/database/…`. `None` if that is something else.
    pub fn from_answer(answer: &serde_json::Value) -> Option<Self> {
        let identity = |of: &str| answer.get(of)?.get("__identity__")?.as_str()?.parse().ok();
        Some(Self {
            database_identity: identity("database_identity")?,
            owner_identity: identity("owner_identity")?,
        })
    }

    /// The same answer, without what only SpacetimeDB knows.
    pub fn to_answer(&self) -> serde_json::Value {
        let identity = |of: &IdentityHex| serde_json::json!({ "__identity__": format!("0x{of}") });
        serde_json::json!({
            "database_identity": identity(&self.database_identity),
            "owner_identity": identity(&self.owner_identity),
        })
    }
}

impl fmt::Display for DatabasePin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "identity {} of owner {}",
            self.database_identity, self.owner_identity
        )
    }
}

/// A text that is not an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected an identity of {DIGITS} hexadecimal digits, found {found:?}")]
pub struct NotAnIdentity {
    found: String,
}

impl IdentityHex {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IdentityHex {
    type Err = NotAnIdentity;

    /// Also takes the form of SpacetimeDB's JSON, with `0x` before the digits.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        if digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Ok(Self(digits.to_ascii_lowercase()))
        } else {
            Err(NotAnIdentity { found: text.to_owned() })
        }
    }
}

impl TryFrom<String> for IdentityHex {
    type Error = NotAnIdentity;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<IdentityHex> for String {
    fn from(identity: IdentityHex) -> Self {
        identity.0
    }
}

impl fmt::Display for IdentityHex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for IdentityHex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_has_64_digits_and_one_form() {
        let digits = "c200".repeat(16);
        for text in [digits.clone(), format!("0x{digits}"), digits.to_uppercase()] {
            assert_eq!(text.parse::<IdentityHex>().unwrap().as_str(), digits);
        }
        for text in [
            "",
            "0x",
            "lane",
            &digits[1..],
            &format!("{digits}0"),
            &format!("{}/", &digits[1..]),
        ] {
            assert!(text.parse::<IdentityHex>().is_err(), "{text:?}");
        }
        let json = serde_json::to_string(&digits.parse::<IdentityHex>().unwrap()).unwrap();
        assert_eq!(json, format!("{digits:?}"));
        assert!(serde_json::from_str::<IdentityHex>("\"lane\"").is_err());
    }

    #[test]
    fn a_pin_is_read_from_what_spacetimedb_answers() {
        let text = format!(
            r#"{{"database_identity":{{"__identity__":"0x{}"}},"owner_identity":{{"__identity__":"0x{}"}},"host_type":{{"Wasm":[]}}}}"#,
            "c2".repeat(32),
            "c3".repeat(32),
        );
        let answer = serde_json::from_str(&text).unwrap();
        let pin = DatabasePin::from_answer(&answer).unwrap();
        assert_eq!(pin.database_identity.as_str(), "c2".repeat(32));
        assert_eq!(pin.owner_identity.as_str(), "c3".repeat(32));
        assert_eq!(DatabasePin::from_answer(&pin.to_answer()), Some(pin));
        assert_eq!(
            DatabasePin::from_answer(&serde_json::json!({ "database_identity": "x" })),
            None
        );
    }
}
