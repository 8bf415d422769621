//! A text that is never printed.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A password, a token or a private key. Neither its `Debug` nor its serialized form shows it.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(secret)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SecretVisitor)
    }
}

/// Accepts numbers and booleans too, because a secret from the environment may parse as one. Its errors never show the
/// value.
struct SecretVisitor;

impl Visitor<'_> for SecretVisitor {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text for a secret")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Secret, E> {
        Ok(Secret(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Secret, E> {
        Ok(Secret(text))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Secret, E> {
        Ok(Secret(number.to_string()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Secret, E> {
        Ok(Secret(number.to_string()))
    }

    fn visit_bool<E: Error>(self, truth: bool) -> Result<Secret, E> {
        Ok(Secret(truth.to_string()))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Secret, E> {
        Err(E::custom("expected a text for a secret, found a fraction"))
    }

    fn visit_bytes<E: Error>(self, _: &[u8]) -> Result<Secret, E> {
        Err(E::custom("expected a text for a secret, found bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_numbers_and_booleans_are_accepted_and_never_shown() {
        for (json, text) in [
            ("\"hunter2\"", "hunter2"),
            ("42", "42"),
            ("-42", "-42"),
            ("true", "true"),
        ] {
            let secret: Secret = serde_json::from_str(json).unwrap();
            assert_eq!(secret.expose(), text);
            assert_eq!(format!("{secret:?}"), "(secret)");
        }
        for json in ["4.25", "[\"hunter2\"]", "{\"hunter2\": 1}"] {
            let error = serde_json::from_str::<Secret>(json).unwrap_err().to_string();
            assert!(error.contains("expected a text for a secret"), "{error}");
            assert!(!error.contains("hunter2") && !error.contains("4.25"), "{error}");
        }
    }
}
