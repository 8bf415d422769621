//! What a session may say of itself, and for how long it is believed.

use std::time::Duration;

use spacetime_sync_proto::{Label, Refusal, RefusalCode, StreamId, limit};

/// A heartbeat is believed for this long. Clients send one every five seconds.
pub const STALE_AFTER: Duration = Duration::from_secs(30);
/// Who went away is remembered for this long.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 3_600);
/// Status of a session that is not there.
pub const OFFLINE: &str = "offline";
/// It said so itself.
pub const EXPLICIT_OFFLINE: &str = "explicit_offline";
/// Nothing was heard of it.
pub const TTL_EXPIRED: &str = "ttl_expired";

const STATUSES: [&str; 4] = ["online", "busy", "away", OFFLINE];

/// A heartbeat that is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// The machine or program.
    pub node_id: Label,
    /// One of a few words.
    pub status: &'static str,
    /// Why it is offline; empty if it is not.
    pub reason: &'static str,
    /// Where it is; may be empty.
    pub region: String,
    /// The streams that it serves.
    pub serves: Vec<StreamId>,
}

/// Judges what a session says of itself.
pub fn heartbeat(node_id: &str, status: &str, region: &str, serves: &[String]) -> Result<Heartbeat, Refusal> {
    let invalid = |message: String| Refusal::new(RefusalCode::InvalidArgument, message);
    let node_id = Label::new(node_id).map_err(|error| invalid(format!("node_id: {error}")))?;
    let status = *STATUSES
        .iter()
        .find(|known| **known == status)
        .ok_or_else(|| invalid(format!("status: expected one of {}", STATUSES.join(", "))))?;
    if !region.is_empty() {
        Label::check(region).map_err(|error| invalid(format!("region: {error}")))?;
    }
    if serves.len() > limit::PRESENCE_SERVES {
        let message = format!(
            "serves: at most {} streams, found {}",
            limit::PRESENCE_SERVES,
            serves.len()
        );
        return Err(invalid(message));
    }
    let serves: Result<Vec<StreamId>, _> = serves.iter().map(|stream| StreamId::new(stream)).collect();
    Ok(Heartbeat {
        node_id,
        status,
        reason: if status == OFFLINE { EXPLICIT_OFFLINE } else { "" },
        region: region.to_owned(),
        serves: serves.map_err(|error| invalid(format!("serves: {error}")))?,
    })
}

/// For how long a row holds without another heartbeat: then it is stale, or forgotten.
pub fn holds_for(status: &str) -> Duration {
    if status == OFFLINE {
        FORGOTTEN_AFTER
    } else {
        STALE_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_says_what_it_may_and_nothing_else() {
        let said = |node: &str, status: &str, region: &str, serves: &[&str]| {
            let serves: Vec<String> = serves.iter().map(|text| (*text).to_owned()).collect();
            heartbeat(node, status, region, &serves).map_err(|refusal| refusal.code)
        };
        assert_eq!(said("n1", "online", "", &["user:7:notes"]).unwrap().reason, "");
        assert_eq!(said("n1", "offline", "eu", &[]).unwrap().reason, EXPLICIT_OFFLINE);
        let invalid = Err(RefusalCode::InvalidArgument);
        assert_eq!(said("", "online", "", &[]), invalid);
        assert_eq!(said("n 1", "online", "", &[]), invalid);
        assert_eq!(said("n1", "Online", "", &[]), invalid);
        assert_eq!(said("n1", "online", "e u", &[]), invalid);
        assert_eq!(said("n1", "online", "", &["user:7:*"]), invalid);
        assert_eq!(said("n1", "online", "", &["a"; 17]), invalid);
    }
}
