//! Refusals.

use std::collections::HashSet;

use serde::Deserialize;
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{Refusal, RefusalCode};

use crate::vectors;

#[derive(Deserialize)]
struct Vector {
    code: RefusalCode,
    class: String,
    body: String,
}

#[cfg_attr(test, test)]
pub(crate) fn every_code_has_its_json_and_its_class() {
    let vectors = vectors(include_str!("../refusals.json"), 1);
    let codes: HashSet<RefusalCode> = vectors.iter().map(|vector: &Vector| vector.code).collect();
    assert_eq!(codes.len(), vectors.len(), "each code once");
    assert_eq!(codes, RefusalCode::ALL.iter().copied().collect());
    for Vector { code, class, body } in vectors {
        let refusal = Refusal::from_wire(&body).unwrap_or_else(|| panic!("not a refusal: {body}"));
        assert_eq!(refusal.code, code);
        assert_eq!(refusal.to_wire(), body);
        let found = match code.class() {
            RefusalClass::Retry => "retry",
            RefusalClass::Reject => "reject",
            RefusalClass::Fatal => "fatal",
        };
        assert_eq!(found, class, "{code:?}");
    }
}
