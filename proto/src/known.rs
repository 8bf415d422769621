//! Names from a newer release, in lists of which each name counts by itself.

use serde::de::DeserializeOwned;
use serde::de::value::{Error, StringDeserializer};
use serde::de::{Deserialize as _, Deserializer, IntoDeserializer as _};

/// Reads a list of names. Those that only a newer release knows are left out, and do not spoil the rest.
pub(crate) fn known<'de, T: DeserializeOwned, D: Deserializer<'de>>(names: D) -> Result<Vec<T>, D::Error> {
    let known = |name: String| {
        let name: StringDeserializer<Error> = name.into_deserializer();
        T::deserialize(name).ok()
    };
    Ok(Vec::<String>::deserialize(names)?
        .into_iter()
        .filter_map(known)
        .collect())
}
