//! A status as JSON, with what a panel of the client's health shows, and in words for people.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};
use spacetime_sync_proto::access::StreamPattern;
use spacetime_sync_proto::{RefusalCode, StreamId, error_text, wire};

use super::{Disconnect, Phase, Status, StreamPhase, StreamStatus, TokenStatus};
use crate::session::stream::{Counters, Rung};

/// A status as it is serialised. The names stay; there may be more of them.
#[derive(Serialize)]
struct Shown<'a> {
    /// The name of the phase, and the phase in words.
    phase: &'static str,
    text: String,
    /// Why the client waits or has stopped: a name, words, and the refusal's code if there was one.
    reason: Option<&'static str>,
    detail: Option<String>,
    code: Option<RefusalCode>,
    upgrade_required: bool,
    /// How long it waits before the next attempt to connect.
    next_retry_ms: Option<u64>,
    connect_attempts: u64,
    last_disconnect: Option<ShownDisconnect>,
    schema_version: Option<u32>,
    token: Option<&'a TokenStatus>,
    streams: &'a BTreeMap<StreamId, StreamStatus>,
    counters: &'a Counters,
}

#[derive(Serialize)]
struct ShownDisconnect {
    reason: &'static str,
    detail: String,
    code: Option<RefusalCode>,
}

#[derive(Serialize)]
struct ShownToken<'a> {
    refresh_due_in_s: u64,
    expires_in_s: u64,
    failures: u32,
    granted_streams: &'a [StreamPattern],
    session_id: Option<&'a str>,
}

#[derive(Serialize)]
struct ShownStream {
    phase: &'static str,
    text: String,
    applied: u64,
    head: Option<u64>,
    /// How many events are known to exist and not applied, and how many hundredths of the log are.
    lag: Option<u64>,
    progress_pct: Option<u64>,
    /// Why it does not go on: a name and words.
    reason: Option<&'static str>,
    detail: Option<String>,
}

impl Status {
    /// The counters as the message that the contract has for them (`ClientCounters`). The lane sends it nowhere: an application
    /// that reports to its own telemetry has one form for all languages.
    pub fn telemetry(&self) -> wire::ClientCounters {
        self.counters.into()
    }
}

impl Serialize for Status {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (reason, detail, code, next_retry_ms, upgrade_required) = match &self.phase {
            Phase::Backoff { reason, retry_in, .. } => {
                let detail = error_text(reason);
                let next_retry_ms = Some(millis(*retry_in));
                (
                    Some(reason.code()),
                    Some(detail),
                    reason.refusal(),
                    next_retry_ms,
                    false,
                )
            }
            Phase::Stopped { reason } => {
                let (detail, upgrade_required) = (error_text(reason), reason.upgrade_required());
                (
                    Some(reason.code()),
                    Some(detail),
                    reason.refusal(),
                    None,
                    upgrade_required,
                )
            }
            Phase::Idle | Phase::Connecting { .. } | Phase::CatchingUp { .. } | Phase::Live => {
                (None, None, None, None, false)
            }
        };
        let shown = Shown {
            phase: self.phase.code(),
            text: self.phase.to_string(),
            reason,
            detail,
            code,
            upgrade_required,
            next_retry_ms,
            connect_attempts: self.connect_attempts,
            last_disconnect: self.last_disconnect.as_ref().map(ShownDisconnect::of),
            schema_version: self.schema_version,
            token: self.token.as_ref(),
            streams: &self.streams,
            counters: &self.counters,
        };
        shown.serialize(serializer)
    }
}

impl ShownDisconnect {
    fn of(reason: &Disconnect) -> Self {
        Self {
            reason: reason.code(),
            detail: error_text(reason),
            code: reason.refusal(),
        }
    }
}

impl Serialize for TokenStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let shown = ShownToken {
            refresh_due_in_s: self.refresh_due_in().as_secs(),
            expires_in_s: self.expires_in().as_secs(),
            failures: self.failures,
            granted_streams: &self.granted_streams,
            session_id: self.session_id.as_deref(),
        };
        shown.serialize(serializer)
    }
}

impl StreamStatus {
    /// How many events are known to exist and are not applied. `None` before the head was heard.
    pub fn lag(&self) -> Option<u64> {
        self.head.map(|head| head.get().saturating_sub(self.applied.seq.get()))
    }

    /// How many hundredths of the known log are applied. `None` before the head was heard.
    pub fn progress_pct(&self) -> Option<u64> {
        let (applied, head) = (u128::from(self.applied.seq.get()), u128::from(self.head?.get()));
        let share = (applied * 100).checked_div(head).unwrap_or(100);
        u64::try_from(share.min(100)).ok()
    }
}

impl Serialize for StreamStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (reason, detail) = match &self.phase {
            StreamPhase::Stopped { reason } => (Some(reason.code()), Some(reason.to_string())),
            StreamPhase::Forbidden { code } => (Some("forbidden"), Some(code.to_string())),
            StreamPhase::Retrying { message } => (Some("retrying"), Some(message.clone())),
            StreamPhase::Recovering { rung, .. } => (Some(rung.code()), Some(rung.to_string())),
            StreamPhase::Waiting | StreamPhase::CatchingUp | StreamPhase::Live | StreamPhase::Unanswered => {
                (None, None)
            }
        };
        let shown = ShownStream {
            phase: self.phase.code(),
            text: self.phase.to_string(),
            applied: self.applied.seq.get(),
            head: self.head.map(|head| head.get()),
            lag: self.lag(),
            progress_pct: self.progress_pct(),
            reason,
            detail,
        };
        shown.serialize(serializer)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.write_str("idle"),
            Self::Connecting { attempt } => write!(f, "connecting, attempt {attempt}"),
            Self::CatchingUp { applied, target } => write!(f, "catching up: {applied} of {target} events are applied"),
            Self::Live => f.write_str("live"),
            Self::Backoff { retry_in, reason, .. } => write!(f, "connecting again in {retry_in:.1?}: {reason}"),
            Self::Stopped { reason } => write!(f, "stopped: {reason}"),
        }
    }
}

impl fmt::Display for StreamPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => f.write_str("waiting for a connection"),
            Self::CatchingUp => f.write_str("catching up"),
            Self::Live => f.write_str("live"),
            Self::Forbidden { code } => write!(f, "the session may not read it: {code}"),
            Self::Unanswered => f.write_str("a read failed, and is tried again"),
            Self::Recovering { rung, attempt } => write!(f, "{rung}, attempt {attempt}"),
            Self::Retrying { message } => write!(f, "trying again: {message}"),
            Self::Stopped { reason } => write!(f, "stopped: {reason}"),
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replay { until, .. } => write!(f, "reading at the authority what comes before event {until}"),
            Self::Consult(lane) => write!(f, "asking the authority, because {lane}"),
            Self::AwaitLane(lane) => write!(f, "waiting for SpacetimeDB, because {lane}"),
            Self::AwaitAuthority => f.write_str("waiting for the authority, which did not answer"),
            Self::Document(_) => f.write_str("fetching the document that stands for the purged events"),
            Self::StartOver(_) => f.write_str("starting over"),
            Self::Documents { fetched } => write!(f, "fetching the stream's documents, {fetched} so far"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use spacetime_sync_proto::{Position, Seq};

    use super::*;
    use crate::session::status::StopReason;
    use crate::session::stream::StreamStop;

    fn stream(applied: u64, head: Option<u64>, phase: StreamPhase) -> StreamStatus {
        let id = StreamId::new("a").unwrap();
        StreamStatus {
            applied: Position {
                seq: Seq::new(applied).unwrap(),
                ..Position::start(&id)
            },
            head: head.map(|head| Seq::new(head).unwrap()),
            phase,
        }
    }

    #[test]
    fn a_status_is_json_with_what_a_panel_shows() {
        let counters = Counters {
            events_applied: 7,
            ..Counters::default()
        };
        let status = Status {
            phase: Phase::Backoff {
                attempt: 3,
                retry_in: Duration::from_millis(250),
                reason: Disconnect::Closed,
            },
            connect_attempts: 4,
            last_disconnect: Some(Disconnect::TokenEnded),
            streams: BTreeMap::from([(StreamId::new("a").unwrap(), stream(5, Some(20), StreamPhase::Waiting))]),
            schema_version: Some(12),
            counters,
            ..Status::default()
        };
        let mut shown = serde_json::to_value(&status).unwrap();
        let counted = shown.as_object_mut().unwrap().remove("counters").unwrap();
        assert_eq!(counted["events_applied"], 7);
        let mut names: Vec<&String> = counted.as_object().unwrap().keys().collect();
        names.sort();
        assert_eq!(
            names,
            [
                "acks",
                "acks_refused",
                "apply_failures",
                "connections_overfull",
                "contents",
                "document_pages",
                "documents_refused",
                "duplicates_dropped",
                "events_applied",
                "frames",
                "heartbeats",
                "heartbeats_refused",
                "history_failures",
                "history_pages",
                "holes_paged",
                "overruns",
                "pages",
                "reads_refused",
                "rebootstraps",
                "reconnects",
                "refreshes",
                "restarts",
                "resubscriptions",
                "stale_cursors",
                "token_failures",
                "withheld",
            ]
        );
        assert_eq!(
            shown,
            json!({
                "phase": "backoff", "text": "connecting again in 250.0ms: the connection was closed",
                "reason": "closed", "detail": "the connection was closed", "code": null, "upgrade_required": false,
                "next_retry_ms": 250, "connect_attempts": 4, "schema_version": 12, "token": null,
                "last_disconnect": {
                    "reason": "token_ended", "detail": "the token has ended before a new one arrived", "code": null,
                },
                "streams": {
                    "a": {
                        "phase": "waiting", "text": "waiting for a connection", "applied": 5, "head": 20, "lag": 15,
                        "progress_pct": 25, "reason": null, "detail": null,
                    },
                },
            })
        );
        assert_eq!(status.telemetry().events_applied, 7);
    }

    #[test]
    fn a_lag_is_never_negative_and_an_empty_log_is_applied() {
        let shown = |applied, head| {
            let stream = stream(applied, head, StreamPhase::Live);
            (stream.lag(), stream.progress_pct())
        };
        assert_eq!(shown(0, None), (None, None));
        assert_eq!(shown(0, Some(0)), (Some(0), Some(100)));
        assert_eq!(shown(9, Some(7)), (Some(0), Some(100)));
        assert_eq!(shown(1, Some(3)), (Some(2), Some(33)));
        assert_eq!(shown(1, Some(Seq::MAX.get())), (Some(Seq::MAX.get() - 1), Some(0)));
    }

    #[test]
    fn why_a_stream_does_not_go_on_is_told_by_name_and_in_words() {
        let forbidden = StreamPhase::Forbidden {
            code: RefusalCode::ForbiddenStream,
        };
        let told = |phase| {
            let shown = serde_json::to_value(stream(1, None, phase)).unwrap();
            (shown["reason"].clone(), shown["detail"].clone(), shown["text"].clone())
        };
        assert_eq!(
            told(forbidden),
            (
                json!("forbidden"),
                json!("forbidden_stream"),
                json!("the session may not read it: forbidden_stream")
            )
        );
        let recovering = StreamPhase::Recovering {
            rung: Rung::AwaitAuthority,
            attempt: 2,
        };
        let text = "waiting for the authority, which did not answer";
        assert_eq!(
            told(recovering),
            (
                json!("await_authority"),
                json!(text),
                json!(format!("{text}, attempt 2"))
            )
        );
        let stopped = StreamPhase::Stopped {
            reason: StreamStop::DurableReads,
        };
        let (reason, detail, text) = told(stopped);
        assert_eq!(reason, StreamStop::DurableReads.code());
        assert_eq!(detail, StreamStop::DurableReads.to_string());
        assert_eq!(text, format!("stopped: {}", StreamStop::DurableReads));
    }

    #[test]
    fn each_phase_of_the_client_has_words() {
        let stopped = Phase::Stopped {
            reason: StopReason::Requested,
        };
        for (phase, words) in [
            (Phase::Idle, "idle"),
            (Phase::Connecting { attempt: 2 }, "connecting, attempt 2"),
            (
                Phase::CatchingUp { applied: 1, target: 3 },
                "catching up: 1 of 3 events are applied",
            ),
            (Phase::Live, "live"),
            (stopped, "stopped: stopped by the application"),
        ] {
            assert_eq!(phase.to_string(), words);
        }
    }
}
