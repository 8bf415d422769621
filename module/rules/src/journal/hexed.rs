//! Digests as hexadecimal text.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

use crate::content::Digest;

pub(super) fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(digest))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
    let text = String::deserialize(deserializer)?;
    let mut digest = Digest::default();
    hex::decode_to_slice(&text, &mut digest).map_err(|error| D::Error::custom(format!("a digest: {error}")))?;
    Ok(digest)
}
