//! What a client trusts the bridge by: seals with the keys that verify them, and where streams end.
//!
//! Properties: of the seals of our key, only those count that it made and that name it, each for its own position of its own
//! stream, and there they count. What was read survives writing and reading again, and is within its bounds.

use anyhow::{Context as _, ensure};
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use serde_json::json;
use spacetime_sync_client::seal::SealKeys;
use spacetime_sync_issuer::http::heads;
use spacetime_sync_issuer::keys::SigningKey;
use spacetime_sync_proto::heads::{Heads, HeadsRequest, StreamHead};
use spacetime_sync_proto::{ChainHash, Position, Seal, SealKey, SealKeyId, Seq, StreamId, limit};

use super::page::log;
use crate::lane::{Log, key};
use crate::mutate;
use crate::target::{Entry, Seed, Target, Verdict};

pub(super) const SEAL: Entry = Entry {
    name: "seal",
    about: "a seal, its position, and the keys that came with the token",
    dictionary: &[
        b"keys",
        b"kid",
        b"kty",
        b"EC",
        b"crv",
        b"P-256",
        b"x",
        b"y",
        b"stream_id",
        b"seq",
        b"chain_hash",
        b"sha256:",
        b"seal",
        b"00000000",
        b"ffffffff",
    ],
    most: 8 * 1024,
    open: || Ok(Box::new(Seals::new()?)),
    seeds: seal_seeds,
};

pub(super) const HEADS: Entry = Entry {
    name: "heads",
    about: "a client's question where streams end, and the bridge's answer",
    dictionary: &[
        b"streams",
        b"reported",
        b"heads",
        b"stream_id",
        b"seq",
        b"chain_hash",
        b"published_seq",
        b"sha256:",
        b"null",
    ],
    most: 64 * 1024,
    open: || Ok(Box::new(Questions)),
    seeds: heads_seeds,
};

#[derive(Serialize, Deserialize)]
struct Sealed {
    keys: Vec<SealKey>,
    stream_id: StreamId,
    seq: Seq,
    chain_hash: ChainHash,
    /// In hex.
    seal: String,
}

struct Seals {
    log: Log,
    /// Our key, and a client that has no other.
    ours: SigningKey,
    client: SealKeys,
    /// How seals name our key, and another one.
    names: [SealKeyId; 2],
}

impl Seals {
    fn new() -> anyhow::Result<Self> {
        let (log, ours) = (log()?, key(1)?);
        let name = |key: &SigningKey| Ok::<_, anyhow::Error>(sealed(key, &log, log.head())?.key);
        Ok(Self {
            names: [name(&ours)?, name(&key(2)?)?],
            client: SealKeys::new(&[ours.seal_key()]),
            ours,
            log,
        })
    }
}

fn sealed(key: &SigningKey, log: &Log, at: Position) -> anyhow::Result<Seal> {
    key.seal(&log.stream_id, &at).context("a seal")
}

impl Target for Seals {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let Ok(input) = serde_json::from_slice::<Sealed>(input) else {
            return Ok(Verdict::Refused);
        };
        let at = Position {
            seq: input.seq,
            chain: input.chain_hash,
        };
        let bytes = hex(&input.seal).unwrap_or_default();
        let Some(seal) = Seal::from_slice(&bytes) else {
            return Ok(Verdict::Refused);
        };
        ensure!(bytes == seal.to_bytes());
        let counts = |keys: &SealKeys, seal: &Seal| keys.check(&input.stream_id, &at, Some(seal)).is_ok();
        let there = self.log.at(at.seq.get());
        let is_ours = input.stream_id == self.log.stream_id && there == Some(at);
        let [name, another] = self.names;
        if counts(&self.client, &seal) {
            ensure!(is_ours && seal.key == name);
        }
        if let Some(there) = there {
            let fresh = sealed(&self.ours, &self.log, there)?;
            ensure!(counts(&self.client, &fresh) == is_ours);
            let renamed = Seal { key: another, ..fresh };
            ensure!(!counts(&self.client, &renamed));
        }
        Ok(Verdict::taken(counts(&SealKeys::new(&input.keys), &seal)))
    }

    fn vary(&self, rng: &mut StdRng, input: &[u8]) -> Option<Vec<u8>> {
        mutate::json(rng, input, SEAL.dictionary)
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map(byte).collect()
}

fn seal_seeds() -> anyhow::Result<Vec<Seed>> {
    let (log, ours) = (log()?, key(1)?);
    let seed = |seq: u64| {
        let at = log.at(seq).context("a position of the log")?;
        // A signature is random, so whoever makes the corpus again changes this file.
        let seal = sealed(&ours, &log, at)?;
        let sealed = Sealed {
            keys: vec![ours.seal_key(), key(2)?.seal_key()],
            stream_id: log.stream_id.clone(),
            seq: at.seq,
            chain_hash: at.chain,
            seal: seal.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        Ok(Seed::new(format!("at-{seq}"), serde_json::to_vec(&sealed)?))
    };
    [1, 9].into_iter().map(seed).collect()
}

struct Questions;

impl Target for Questions {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let mut taken = false;
        if let Ok(question) = heads::question(input) {
            ensure!(question.streams.len() <= limit::HEADS && question.reported.len() <= limit::REPORTED);
            let again: HeadsRequest = serde_json::from_slice(&serde_json::to_vec(&question)?)?;
            ensure!(again == question);
            taken = true;
        }
        if let Ok(answer) = serde_json::from_slice::<Heads>(input) {
            let again: Heads = serde_json::from_slice(&serde_json::to_vec(&answer)?)?;
            ensure!(again == answer);
            let seqs = answer.heads.iter().flat_map(|head| [head.seq, head.published_seq]);
            ensure!(seqs.into_iter().all(|seq| seq <= Seq::MAX));
            taken = true;
        }
        Ok(Verdict::taken(taken))
    }

    fn vary(&self, rng: &mut StdRng, input: &[u8]) -> Option<Vec<u8>> {
        mutate::json(rng, input, HEADS.dictionary)
    }
}

fn heads_seeds() -> anyhow::Result<Vec<Seed>> {
    let log = log()?;
    let (head, before) = (log.head(), log.at(7).context("a position of the log")?);
    let answer = Heads {
        heads: vec![StreamHead {
            stream_id: log.stream_id.clone(),
            seq: head.seq,
            chain_hash: head.chain,
            published_seq: before.seq,
        }],
    };
    let question = json!({ "streams": [log.stream_id, "user:7:x"], "reported": ["user:7:x"] });
    Ok(vec![
        Seed::new("question", question.to_string()),
        Seed::new("question-least", r#"{"streams":[]}"#),
        Seed::new("answer", serde_json::to_vec(&answer)?),
    ])
}
