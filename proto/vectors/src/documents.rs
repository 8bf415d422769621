//! Canonical JSON.

use serde::Deserialize;
use spacetime_sync_proto::{PayloadHash, canonical_json, document_hash};

use crate::vectors;

#[derive(Deserialize)]
struct Vector {
    name: String,
    input: Option<String>,
    /// In place of `input`, where that would be no text.
    input_hex: Option<String>,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Outcome {
    Canonical { canonical: String },
    Refused { refused: String },
}

#[cfg_attr(test, test)]
pub(crate) fn documents_have_one_text_or_are_refused() {
    for Vector {
        name,
        input,
        input_hex,
        outcome,
    } in vectors(include_str!("../canonical.json"), 80)
    {
        let input = input.map(String::into_bytes);
        let input = input.or_else(|| hex::decode(input_hex?).ok()).unwrap();
        let found = canonical_json(&input);
        match outcome {
            Outcome::Canonical { canonical } => {
                assert_eq!(found.as_ref(), Ok(&canonical), "{name}");
                assert_eq!(
                    document_hash(&input),
                    Ok(PayloadHash::of(canonical.as_bytes())),
                    "{name}"
                );
                assert_eq!(canonical_json(canonical.as_bytes()), Ok(canonical), "{name}, again");
            }
            Outcome::Refused { refused } => {
                let fault = found.map_err(|refused| refused.fault.as_str());
                assert_eq!(fault, Err(refused.as_str()), "{name}");
            }
        }
    }
}
