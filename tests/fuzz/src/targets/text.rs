//! Short texts that processes exchange: refusals, stream patterns, topics, names.

use anyhow::ensure;
use rand::rngs::StdRng;
use spacetime_sync_proto::access::{Compatibility, Incompatible, Scope, StreamPattern, TokenRefusal, Topic};
use spacetime_sync_proto::{IdempotencyKey, Kind, Label, Refusal, RefusalCode, StreamId, limit};

use crate::mutate;
use crate::target::{Entry, Seed, Target, Verdict};

pub(super) const REFUSAL: Entry = Entry {
    name: "refusal",
    about: "refusals of module and bridge as JSON: they survive reading, writing and reading again",
    dictionary: &[
        b"code",
        b"message",
        b"head_seq",
        b"seq_gap",
        b"token_expired",
        b"retry_after_ms",
    ],
    most: 16 * 1024,
    open: || Ok(Box::new(Refusals)),
    seeds: refusal_seeds,
};

pub(super) const PATTERN: Entry = Entry {
    name: "pattern",
    about: "pairs of stream patterns: they survive reading and writing, and no intersection covers more than either",
    dictionary: NAMES,
    most: 1_024,
    open: || Ok(Box::new(Patterns)),
    seeds: || {
        let texts = [
            "runtime.run.*\nruntime.run.42.events",
            "user:7:*\nuser:70:a",
            "a.b\na.b",
            "a/*\na/b/*",
            "a*\n*",
        ];
        Ok(numbered(&texts))
    },
};

pub(super) const TOPIC: Entry = Entry {
    name: "topic",
    about: "topics and their streams, there and back",
    dictionary: NAMES,
    most: 1_024,
    open: || Ok(Box::new(Topics)),
    seeds: || {
        let texts = [
            "run:42:events",
            "worker:7:lifecycle",
            "fleet:user:7:workers",
            "runtime.codex_worker_events",
            "käse 100%:a.b",
            "runtime.topic.k%C3%A4se",
            "runtime.run.a%2Eb.events",
            "runtime.fleet.guest.x.workers",
        ];
        Ok(numbered(&texts))
    },
};

pub(super) const ID: Entry = Entry {
    name: "id",
    about: "names: exactly those within the contract are accepted",
    dictionary: NAMES,
    most: 1_024,
    open: || Ok(Box::new(Names)),
    seeds: || {
        let long = "x".repeat(limit::IDEMPOTENCY_KEY_BYTES);
        let mut texts = numbered(&[
            "runtime.run.42.events",
            "topic:ü \"q\" 'x':seq:1",
            "user@example.com",
            "a/b",
            &long,
        ]);
        texts.push(Seed::new("build", "20261101T000000Z"));
        Ok(texts)
    },
};

const NAMES: &[&[u8]] = &[
    b"*",
    b".",
    b":",
    b"/",
    b"%",
    b"%2E",
    b"%3A",
    b"%zz",
    b"\n",
    b"runtime.",
    b"run",
    b"events",
    b"topic",
    b"fleet:guest:",
    b"\0",
    "\u{430}".as_bytes(),
    "\u{85}".as_bytes(),
];

fn numbered(texts: &[&str]) -> Vec<Seed> {
    texts
        .iter()
        .enumerate()
        .map(|(at, text)| Seed::new(format!("{at}"), *text))
        .collect()
}

struct Refusals;

impl Target for Refusals {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let text = String::from_utf8_lossy(input);
        let mut taken = false;
        if let Some(refusal) = Refusal::from_wire(&text) {
            ensure!(Refusal::from_wire(&refusal.to_wire()).as_ref() == Some(&refusal));
            // All retries depend on the class.
            let _ = refusal.code.class();
            taken = true;
        }
        if let Ok(refusal) = serde_json::from_slice::<TokenRefusal>(input) {
            let again: TokenRefusal = serde_json::from_slice(&serde_json::to_vec(&refusal)?)?;
            ensure!(again == refusal);
            taken = true;
        }
        if let Ok(refusal) = serde_json::from_slice::<Incompatible>(input) {
            let again: Incompatible = serde_json::from_slice(&serde_json::to_vec(&refusal)?)?;
            ensure!(again == refusal);
            taken = true;
        }
        if let Ok(compatibility) = serde_json::from_slice::<Compatibility>(input)
            && compatibility.check_bounds().is_ok()
        {
            ensure!(compatibility.min_schema_version <= compatibility.max_schema_version);
            ensure!(
                compatibility.max_client_build_id.is_empty()
                    || compatibility.min_client_build_id <= compatibility.max_client_build_id
            );
            taken = true;
        }
        Ok(Verdict::taken(taken))
    }

    fn vary(&self, rng: &mut StdRng, input: &[u8]) -> Option<Vec<u8>> {
        mutate::json(rng, input, REFUSAL.dictionary)
    }
}

fn refusal_seeds() -> anyhow::Result<Vec<Seed>> {
    let gap = Refusal::new(RefusalCode::SeqGap, "expected 5, found 9").at_head(4);
    let plain = Refusal::new(RefusalCode::ForbiddenStream, "no grant for this stream");
    let limited = TokenRefusal {
        code: RefusalCode::RateLimited,
        message: "this session asks too often".to_owned(),
        retryable: true,
        retry_after_ms: Some(2_000),
    };
    let compatibility = Compatibility::default();
    let old = spacetime_sync_proto::access::ClientVersion {
        client_build_id: String::new(),
        protocol_version: String::new(),
        schema_version: 0,
        oldest_schema_version: None,
        surface: "desktop".to_owned(),
    };
    let mut seeds = vec![
        Seed::new("gap", gap.to_wire()),
        Seed::new("plain", plain.to_wire()),
        Seed::new("limited", serde_json::to_vec(&limited)?),
        Seed::new("compatibility", serde_json::to_vec(&compatibility)?),
    ];
    if let Err(incompatible) = compatibility.check(&old) {
        seeds.push(Seed::new("incompatible", serde_json::to_vec(&*incompatible)?));
    }
    Ok(seeds)
}

struct Patterns;

impl Target for Patterns {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let text = String::from_utf8_lossy(input);
        let (a, b) = text.split_once('\n').unwrap_or((&text, ""));
        let mut patterns = Vec::new();
        for text in [a, b] {
            let Ok(pattern) = StreamPattern::new(text) else {
                continue;
            };
            ensure!(pattern.to_string() == text, "{text:?} is read as {pattern}");
            ensure!(text.trim_end_matches('*').len() <= limit::STREAM_ID_BYTES && !text.contains(['\n', '\0', ' ']));
            let said = serde_json::to_vec(&pattern)?;
            ensure!(serde_json::from_slice::<StreamPattern>(&said)? == pattern);
            patterns.push(pattern);
        }
        let [a, b] = patterns.as_slice() else {
            return Ok(Verdict::Refused);
        };
        let both = a.intersect(b);
        ensure!(both == b.intersect(a), "{a} and {b} depends on the order");
        // Streams that these patterns may cover, and neighbours of such streams.
        let names = [a, b].map(|pattern| pattern.to_string().trim_end_matches('*').to_owned());
        for name in names.iter().flat_map(|name| {
            [
                name.clone(),
                format!("{name}x"),
                format!("{name}.x"),
                name.replace(':', ""),
            ]
        }) {
            let Ok(stream_id) = StreamId::new(&name) else { continue };
            let covered = both.as_ref().is_some_and(|both| both.matches(&stream_id));
            ensure!(
                covered == (a.matches(&stream_id) && b.matches(&stream_id)),
                "{a}, {b}: {stream_id}"
            );
            for pattern in [a, b] {
                let StreamPattern::Prefix(prefix) = pattern else {
                    continue;
                };
                let found = StreamPattern::prefixes_of(&stream_id).any(|held| held == prefix);
                ensure!(
                    found == pattern.matches(&stream_id),
                    "{stream_id} is found by {pattern}: {found}"
                );
            }
        }
        Ok(Verdict::Taken)
    }
}

struct Topics;

impl Target for Topics {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let text = String::from_utf8_lossy(input);
        let topic = Topic::new(&text);
        let mut taken = false;
        if let Ok(stream_id) = topic.stream_id() {
            ensure!(
                Topic::of_stream(&stream_id) == Some(topic),
                "{text:?} becomes {stream_id}, which does not lead back to it"
            );
            taken = true;
        }
        if let Ok(stream_id) = StreamId::new(&text) {
            if let Some(topic) = Topic::of_stream(&stream_id) {
                ensure!(
                    topic.stream_id().as_ref() == Ok(&stream_id),
                    "{stream_id} carries {topic:?} and another"
                );
                taken = true;
            }
            let _ = Scope::of_stream(&stream_id);
        }
        Ok(Verdict::taken(taken))
    }
}

struct Names;

impl Target for Names {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let text = String::from_utf8_lossy(input);
        let plain = |more: &str| {
            text.chars()
                .all(|c| c.is_ascii_alphanumeric() || ".-_:@+=~%".contains(c) || more.contains(c))
        };
        let within = |most: usize| !text.is_empty() && text.len() <= most;
        let expected = [
            within(limit::STREAM_ID_BYTES) && plain("/"),
            within(limit::KIND_BYTES) && plain("/"),
            within(limit::NAME_BYTES) && plain(""),
            within(limit::IDEMPOTENCY_KEY_BYTES) && !text.chars().any(char::is_control),
        ];
        let found = [
            StreamId::new(&text).is_ok_and(|id| id.as_str() == text),
            Kind::new(&text).is_ok_and(|id| id.as_str() == text),
            Label::new(&text).is_ok_and(|id| id.as_str() == text),
            IdempotencyKey::new(&text).is_ok_and(|id| id.as_str() == text),
        ];
        ensure!(found == expected, "{text:?}: {found:?}, expected {expected:?}");
        if let Ok(scope) = text.parse::<Scope>() {
            ensure!(scope.as_str() == text);
        }
        Ok(Verdict::taken(found.contains(&true)))
    }
}
