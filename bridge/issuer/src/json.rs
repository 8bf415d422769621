//! Reads JSON from outside strictly.

use serde::de::{DeserializeOwned, Error as _};

/// Reads an object. serde would also read a struct from a list of its fields' values; this refuses one.
pub fn object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => serde_json::from_slice(bytes),
        _ => Err(serde_json::Error::custom("expected an object")),
    }
}

#[cfg(test)]
mod tests {
    #[derive(serde::Deserialize)]
    struct One {
        #[serde(rename = "a")]
        _a: u64,
    }

    #[test]
    fn only_an_object_is_an_object() {
        for (text, good) in [
            (r#" {"a":1}"#, true),
            ("[1]", false),
            ("", false),
            ("null", false),
            (r#"{"a":1}x"#, false),
        ] {
            assert_eq!(super::object::<One>(text.as_bytes()).is_ok(), good, "{text}");
        }
    }
}
