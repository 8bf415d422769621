//! Refusals on their way out. A reducer's error is a text; the module's is always the JSON of a `Refusal`.

use spacetime_sync_proto::{InvalidId, Refusal, RefusalCode, StreamId};

/// The error of a reducer or a procedure: the JSON of a `Refusal`.
pub type Refused = String;

pub fn refused(refusal: Refusal) -> Refused {
    refusal.to_wire()
}

pub fn invalid_argument(message: impl Into<String>) -> Refused {
    refused(Refusal::new(RefusalCode::InvalidArgument, message))
}

pub fn unauthorized(message: &str) -> Refused {
    refused(Refusal::new(RefusalCode::Unauthorized, message))
}

pub fn stream_id(text: &str) -> Result<StreamId, Refused> {
    StreamId::new(text).map_err(|invalid: InvalidId| invalid_argument(invalid.to_string()))
}
