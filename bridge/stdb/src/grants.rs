//! Grants that the owner of the database gives by hand, for tools and support.

use std::time::Duration;

use serde_json::{Value, json};
use spacetime_sync_proto::StreamId;

use super::StdbError;
use super::admin::{Admin, prefixed};

/// A grant that the owner gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandingGrant {
    /// Who may read, in hex.
    pub identity: String,
    /// The stream and when the grant ends, in microseconds since 1970. `None` if an earlier release gave it: then it never
    /// ends, and nobody remembers the name of its stream.
    pub ends: Option<(String, u64)>,
}

impl Admin {
    /// Lets an identity read a stream from now on, for some time.
    pub async fn grant(&self, identity: &str, stream_id: &StreamId, lasts: Duration) -> Result<(), StdbError> {
        let identity = json!({ "__identity__": prefixed(identity) });
        self.call("grant_stream", json!([identity, stream_id.as_str(), lasts.as_secs()]))
            .await
    }

    /// Takes away an identity's right to read a stream.
    pub async fn revoke(&self, identity: &str, stream_id: &StreamId) -> Result<(), StdbError> {
        let identity = json!({ "__identity__": prefixed(identity) });
        self.call("revoke_stream", json!([identity, stream_id.as_str()])).await
    }

    /// All grants that the owner gave. Only the owner sees them.
    pub async fn grants(&self) -> Result<Vec<StandingGrant>, StdbError> {
        let all = self
            .rows("SELECT grant_id, identity FROM stream_grant WHERE standing = true")
            .await?;
        let given = self
            .rows("SELECT grant_id, stream_id, ends_at FROM standing_grant")
            .await?;
        let mut grants = Vec::new();
        for row in &all {
            let [Some(grant_id), Some(identity)] = [&row[0], &row[1]].map(inner) else {
                return Err(self.unexpected("the grants", row.to_string()));
            };
            let ends = given
                .iter()
                .find(|given| inner(&given[0]) == Some(grant_id))
                .and_then(|given| {
                    let stream_id = given[1].as_str()?.to_owned();
                    Some((stream_id, inner(&given[2])?.as_u64()?))
                });
            grants.push(StandingGrant {
                identity: identity
                    .as_str()
                    .unwrap_or_default()
                    .trim_start_matches("0x")
                    .to_owned(),
                ends,
            });
        }
        grants.sort_by(|one, other| (&one.identity, &one.ends).cmp(&(&other.identity, &other.ends)));
        Ok(grants)
    }
}

/// What a column holds. Identities and times are products of one field.
fn inner(column: &Value) -> Option<&Value> {
    match column {
        Value::Array(fields) => fields.first(),
        Value::Object(fields) => fields.values().next(),
        plain => Some(plain),
    }
}
