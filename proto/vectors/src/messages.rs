//! Messages that are JSON.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use spacetime_sync_proto::access::{Incompatible, SyncClaims, TokenRefusal, TokenRequest, TokenResponse};
use spacetime_sync_proto::heads::{Heads, HeadsRequest};
use spacetime_sync_proto::{Refusal, StaleCursor};

use crate::vectors;

#[derive(Deserialize)]
struct Vector {
    message: String,
    json: String,
}

#[cfg_attr(test, test)]
pub(crate) fn messages_are_read_and_written_as_they_stand() {
    for Vector { message, json } in vectors(include_str!("../messages.json"), 14) {
        let again = match message.as_str() {
            "TokenRequest" => again::<TokenRequest>,
            "TokenResponse" => again::<TokenResponse>,
            "SyncClaims" => again::<SyncClaims>,
            "TokenRefusal" => again::<TokenRefusal>,
            "Refusal" => again::<Refusal>,
            "StaleCursor" => again::<StaleCursor>,
            "Incompatible" => again::<Incompatible>,
            "HeadsRequest" => again::<HeadsRequest>,
            "Heads" => again::<Heads>,
            other => panic!("no type is named for the message {other}"),
        };
        assert_eq!(again(&json), json, "{message}");
    }
}

fn again<T: DeserializeOwned + Serialize>(json: &str) -> String {
    let read: T = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"));
    serde_json::to_string(&read).unwrap()
}
