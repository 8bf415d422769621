//! Decides which part of a request is granted: what the authority allows, and nothing else. Pure.

use std::collections::BTreeSet;

use spacetime_sync_proto::access::{Scope, StreamPattern, TTL_SECONDS, TokenRequest, Topic};
use spacetime_sync_proto::{Label, RefusalCode, StreamId, limit};

use super::denial::Denial;

/// How long a token is valid if its request does not say.
pub const DEFAULT_TTL_SECONDS: u64 = 300;

/// A well-formed request. Nothing of it is granted yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What the client wants to do, each scope once, in order.
    pub scopes: Vec<Scope>,
    /// The streams, including those of the topics, each once, in order.
    pub streams: Vec<StreamPattern>,
    /// The topics, and the streams that carry them.
    pub topics: Vec<(String, StreamId)>,
    /// How long the token should be valid.
    pub ttl_seconds: u64,
    /// The device, if the request names it.
    pub device_id: Option<Label>,
}

/// What a token allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// What its client may do.
    pub scopes: Vec<Scope>,
    /// The streams, including those of the topics.
    pub streams: Vec<StreamPattern>,
    /// The topics.
    pub topics: Vec<String>,
}

impl Wanted {
    /// Reads a request.
    pub fn read(request: &TokenRequest) -> Result<Self, Denial> {
        let invalid = |message: String| Denial::new(RefusalCode::InvalidRequest, message);
        let scopes = scopes(&request.scopes)?;
        if request.streams.is_empty() && request.topics.is_empty() {
            return Err(invalid("expected streams or topics, found neither".to_owned()));
        }
        let asked = request.streams.len() + request.topics.len();
        if asked > limit::TOKEN_STREAMS {
            return Err(invalid(format!(
                "expected at most {} streams and topics, found {asked}",
                limit::TOKEN_STREAMS
            )));
        }
        let mut streams = BTreeSet::new();
        for (at, text) in request.streams.iter().enumerate() {
            let pattern = StreamPattern::new(text).map_err(|error| invalid(format!("streams[{at}]: {error}")))?;
            streams.insert(pattern);
        }
        let mut topics = Vec::new();
        for (at, text) in request.topics.iter().enumerate() {
            let stream_id = Topic::new(text).stream_id();
            let stream_id = stream_id.map_err(|error| invalid(format!("topics[{at}]: {error}")))?;
            streams.insert(StreamPattern::Exact(stream_id.clone()));
            topics.push((text.clone(), stream_id));
        }
        let ttl_seconds = request.ttl_seconds.unwrap_or(DEFAULT_TTL_SECONDS);
        if !TTL_SECONDS.contains(&ttl_seconds) {
            return Err(invalid(format!(
                "ttl_seconds: expected {} to {}, found {ttl_seconds}",
                TTL_SECONDS.start(),
                TTL_SECONDS.end()
            )));
        }
        let device_id = request.device_id.as_deref().map(Label::new).transpose();
        Ok(Self {
            scopes,
            streams: streams.into_iter().collect(),
            topics,
            ttl_seconds,
            device_id: device_id.map_err(|error| invalid(format!("device_id: {error}")))?,
        })
    }

    /// The part of the request that a session gets which may read `allowed`, and may have the `scopes` that not everybody
    /// gets.
    pub fn grant(&self, allowed: &[StreamPattern], scopes: &[Scope]) -> Result<Granted, Denial> {
        let both = StreamPattern::intersection(&self.streams, allowed);
        let in_scope = both.into_iter().filter(|pattern| match pattern {
            // A prefix covers streams of many kinds. The module checks the scope of each when it is read.
            StreamPattern::Prefix(_) => true,
            StreamPattern::Exact(stream_id) => self.has_scope_of(stream_id),
        });
        let streams = least(in_scope.collect());
        if streams.is_empty() {
            return Err(Denial::new(
                RefusalCode::Forbidden,
                "the subject may read none of the streams it asked for, with the scopes it asked for",
            ));
        }
        if streams.len() > limit::TOKEN_STREAMS {
            return Err(Denial::new(
                RefusalCode::InvalidRequest,
                format!(
                    "the request amounts to more than the {} streams and patterns that a token may hold; ask for \
                     fewer, or use narrower patterns",
                    limit::TOKEN_STREAMS
                ),
            ));
        }
        let granted = |stream_id: &StreamId| {
            self.has_scope_of(stream_id) && streams.iter().any(|pattern| pattern.matches(stream_id))
        };
        let topics = self.topics.iter().filter(|(_, stream_id)| granted(stream_id));
        let may_have = |scope: &Scope| !scope.needs_policy() || scopes.contains(scope);
        Ok(Granted {
            scopes: self.scopes.iter().copied().filter(may_have).collect(),
            topics: topics.map(|(text, _)| text.clone()).collect(),
            streams,
        })
    }

    fn has_scope_of(&self, stream_id: &StreamId) -> bool {
        Scope::of_stream(stream_id).is_none_or(|scope| self.scopes.contains(&scope))
    }
}

fn scopes(names: &[String]) -> Result<Vec<Scope>, Denial> {
    let invalid = |message: String| Denial::new(RefusalCode::InvalidScope, message);
    if names.is_empty() {
        return Err(invalid("expected scopes, found none".to_owned()));
    }
    if names.len() > 4 * Scope::ALL.len() {
        return Err(invalid(format!("expected a few scopes, found {}", names.len())));
    }
    let mut scopes = BTreeSet::new();
    for (at, name) in names.iter().enumerate() {
        match name.parse() {
            Ok(Scope::Append) => return Err(invalid(format!("clients never get the scope {}", Scope::Append))),
            Ok(scope) => scopes.insert(scope),
            Err(_) => return Err(invalid(format!("scopes[{at}] is not a scope"))),
        };
    }
    Ok(scopes.into_iter().collect())
}

/// The same streams in as few of these patterns as possible.
fn least(patterns: Vec<StreamPattern>) -> Vec<StreamPattern> {
    let prefixes: BTreeSet<String> = patterns
        .iter()
        .filter_map(|pattern| match pattern {
            StreamPattern::Prefix(prefix) => Some(prefix.clone()),
            StreamPattern::Exact(_) => None,
        })
        .collect();
    let covered = |pattern: &StreamPattern| match pattern {
        StreamPattern::Exact(stream_id) => {
            StreamPattern::prefixes_of(stream_id).any(|prefix| prefixes.contains(prefix))
        }
        StreamPattern::Prefix(own) => own
            .char_indices()
            .map(|(at, c)| &own[..at + c.len_utf8()])
            .any(|prefix| prefix.len() < own.len() && prefixes.contains(prefix)),
    };
    patterns.into_iter().filter(|pattern| !covered(pattern)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(scopes: &[&str], streams: &[&str], topics: &[&str]) -> TokenRequest {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        TokenRequest {
            scopes: owned(scopes),
            streams: owned(streams),
            topics: owned(topics),
            ..TokenRequest::default()
        }
    }

    fn grant(scopes: &[&str], streams: &[&str], allowed: &[&str]) -> Result<Vec<String>, RefusalCode> {
        let allowed: Vec<_> = allowed.iter().map(|text| StreamPattern::new(text).unwrap()).collect();
        let granted = Wanted::read(&request(scopes, streams, &[])).and_then(|wanted| wanted.grant(&allowed, &[]));
        granted
            .map(|granted| granted.streams.iter().map(ToString::to_string).collect())
            .map_err(|denial| denial.code)
    }

    #[test]
    fn streams_are_granted_if_they_are_requested_and_allowed() {
        let forbidden = || Err(RefusalCode::Forbidden);
        let some = |names: &[&str]| Ok(names.iter().map(|name| (*name).to_owned()).collect());
        for (wanted, allowed, expected) in [
            (vec!["a", "b"], vec!["a", "c"], some(&["a"])),
            (vec!["a"], vec!["b"], forbidden()),
            (vec!["a"], vec![], forbidden()),
            (
                vec!["user:1:*"],
                vec!["user:1:notes", "user:10:notes"],
                some(&["user:1:notes"]),
            ),
            (vec!["user:1:*"], vec!["user:10:*"], forbidden()),
            (vec!["user:10:*"], vec!["user:1:*"], forbidden()),
            (vec!["user:1:notes"], vec!["user:1:*"], some(&["user:1:notes"])),
            (vec!["user:1:*"], vec!["user:*"], some(&["user:1:*"])),
            (vec!["user:*"], vec!["user:1:*", "user:1:a"], some(&["user:1:*"])),
            (vec!["a.b", "a.*", "a.b.*"], vec!["a.*"], some(&["a.*"])),
            (vec!["a", "a"], vec!["a"], some(&["a"])),
        ] {
            assert_eq!(
                grant(&["sync.subscribe"], &wanted, &allowed),
                expected,
                "{wanted:?} {allowed:?}"
            );
        }
    }

    #[test]
    fn a_stream_of_a_known_kind_needs_the_scope_of_its_kind() {
        let run = "runtime.run.1.events";
        let with = ["sync.subscribe", "runtime.run_events"];
        assert_eq!(grant(&with, &[run], &[run]), Ok(vec![run.to_owned()]));
        assert_eq!(grant(&["sync.subscribe"], &[run], &[run]), Err(RefusalCode::Forbidden));
        assert_eq!(
            grant(&["sync.subscribe"], &[run, "a"], &[run, "a"]),
            Ok(vec!["a".to_owned()])
        );
        let all = "runtime.run.*";
        assert_eq!(
            grant(&["sync.subscribe"], &[all], &[all]),
            Ok(vec![all.to_owned()]),
            "the module decides"
        );
    }

    #[test]
    fn a_scope_that_needs_policy_is_granted_to_whom_it_names() {
        let asked = request(&["sync.presence.serve", "sync.subscribe"], &["a"], &[]);
        let streams = [StreamPattern::new("a").unwrap()];
        let granted = |scopes: &[Scope]| Wanted::read(&asked).unwrap().grant(&streams, scopes).unwrap().scopes;
        assert_eq!(granted(&[]), [Scope::Subscribe]);
        assert_eq!(granted(&[Scope::Serve]), [Scope::Subscribe, Scope::Serve]);
        let less = request(&["sync.subscribe"], &["a"], &[]);
        let granted = Wanted::read(&less).unwrap().grant(&streams, &[Scope::Serve]);
        assert_eq!(granted.unwrap().scopes, [Scope::Subscribe], "it did not ask");
    }

    #[test]
    fn topics_are_granted_by_the_streams_that_carry_them() {
        let asked = request(
            &["sync.subscribe", "runtime.run_events"],
            &["runtime.run.*"],
            &["run:1:events", "worker:7:lifecycle", "notes"],
        );
        let allowed = ["runtime.run.*", "runtime.worker.7.lifecycle"].map(|text| StreamPattern::new(text).unwrap());
        let granted = Wanted::read(&asked).unwrap().grant(&allowed, &[]).unwrap();
        assert_eq!(granted.topics, ["run:1:events"]);
        assert_eq!(granted.streams, allowed[..1]);
    }

    #[test]
    fn an_invalid_request_is_refused_with_the_code_of_its_kind() {
        let too_many: Vec<String> = (0..=limit::TOKEN_STREAMS).map(|number| format!("s{number}")).collect();
        let too_many: Vec<&str> = too_many.iter().map(String::as_str).collect();
        let subscribe: &[&str] = &["sync.subscribe"];
        let (scope, invalid) = (RefusalCode::InvalidScope, RefusalCode::InvalidRequest);
        for (scopes, streams, topics, expected) in [
            (&[][..], &["a"][..], &[][..], scope),
            (&["sync.append"][..], &["a"][..], &[][..], scope),
            (&["sync.subscribe", "sync.append"][..], &["a"][..], &[][..], scope),
            (&["sync.Subscribe"][..], &["a"][..], &[][..], scope),
            (&["*"][..], &["a"][..], &[][..], scope),
            (subscribe, &[][..], &[][..], invalid),
            (subscribe, &too_many[..], &[][..], invalid),
            (subscribe, &too_many[1..], &["a"][..], invalid),
            (subscribe, &["*"][..], &[][..], invalid),
            (subscribe, &["user:1*"][..], &[][..], invalid),
            (subscribe, &["a' or '1'='1"][..], &[][..], invalid),
            (subscribe, &["\u{430}"][..], &[][..], invalid),
            (subscribe, &["a.*.b"][..], &[][..], invalid),
            (subscribe, &["a%_.*\0"][..], &[][..], invalid),
            (subscribe, &[""][..], &[][..], invalid),
            (subscribe, &[][..], &[""][..], invalid),
        ] {
            let denial = Wanted::read(&request(scopes, streams, topics)).unwrap_err();
            assert_eq!(denial.code, expected, "{scopes:?} {streams:?} {topics:?}");
        }
        for ttl in [0, 59, 901, u64::MAX] {
            let mut asked = request(subscribe, &["a"], &[]);
            asked.ttl_seconds = Some(ttl);
            assert_eq!(Wanted::read(&asked).unwrap_err().code, invalid, "{ttl}");
        }
        let mut asked = request(subscribe, &["a"], &[]);
        asked.device_id = Some("a b".to_owned());
        assert_eq!(Wanted::read(&asked).unwrap_err().code, invalid);
    }

    #[test]
    fn more_streams_than_a_token_holds_are_refused_unless_a_pattern_covers_them() {
        let owned: Vec<String> = (0..=limit::TOKEN_STREAMS).map(|number| format!("a.{number}")).collect();
        let mut allowed: Vec<&str> = owned.iter().map(String::as_str).collect();
        assert_eq!(
            grant(&["sync.subscribe"], &["a.*"], &allowed),
            Err(RefusalCode::InvalidRequest)
        );
        allowed.push("a.*");
        assert_eq!(
            grant(&["sync.subscribe"], &["a.*"], &allowed),
            Ok(vec!["a.*".to_owned()])
        );
    }
}
