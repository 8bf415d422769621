//! What sessions show and tell one another in passing: proofs that somebody has a key of Nostr, and signals.

use anyhow::ensure;
use k256::schnorr::SigningKey;
use spacetime_sync_proto::nostr::{challenge, signed};
use spacetime_sync_proto::{Label, NostrKey, NostrSignature, RefusalCode, SignalKind, SubjectKind, limit};
use spacetime_sync_rules::nostr::{HeldChallenge, proof};
use spacetime_sync_rules::signal::signal;

use crate::target::{Entry, Seed, Target, Verdict};

pub(super) const NOSTR: Entry = Entry {
    name: "nostr",
    about: "attempts to bind a key of Nostr: one that states the challenge spends it, and only the key's signature passes",
    dictionary: &[
        b"\n",
        b"n1",
        b":",
        b"openagents:nostr-presence-bind:v1",
        b"1800000000000",
        b"ffffffffffffffff",
        b"0000000000000000",
    ],
    most: 1_024,
    open: || Ok(Box::new(Attempts)),
    seeds: attempts,
};

pub(super) const SIGNAL: Entry = Entry {
    name: "signal",
    about: "fields of signals: what is taken is within the contract",
    dictionary: &[
        b"\n",
        b"user",
        b"stream",
        b"assignment",
        b"progress",
        b"typing",
        b"conflict",
        b"18446744073709551615",
        "\u{85}".as_bytes(),
    ],
    most: 2_048,
    open: || Ok(Box::new(Signals)),
    seeds: || {
        let texts = [
            "n1\nuser\nnotes\ntyping\n0\n0\n",
            "n1\nstream\nruntime.run.1.events\nprogress\n1\n2\nhalf",
            "n1\nassignment\nr1\nconflict\n0\n0\nüber",
        ];
        let seeds = texts.iter().enumerate();
        Ok(seeds.map(|(at, text)| Seed::new(format!("{at}"), *text)).collect())
    },
};

const MADE_MS: u64 = 1_800_000_000_000;

fn identity() -> String {
    "c2".repeat(32)
}

/// So many lines of a text. Those that are missing are empty.
fn lines<const N: usize>(text: &str) -> [&str; N] {
    let mut lines = text.splitn(N, '\n');
    std::array::from_fn(|_| lines.next().unwrap_or_default())
}

struct Attempts;

impl Target for Attempts {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let text = String::from_utf8_lossy(input);
        let [node_id, key, signature, stated] = lines(&text);
        for (text, again) in [
            (key, key.parse::<NostrKey>().map(|key| key.to_string())),
            (
                signature,
                signature.parse::<NostrSignature>().map(|found| found.to_string()),
            ),
        ] {
            ensure!(
                again.is_err() || again.as_deref() == Ok(text),
                "{text:?} is read as {again:?}"
            );
        }
        let Ok(proof) = proof(node_id, key, signature) else {
            return Ok(Verdict::Refused);
        };
        let mut held = HeldChallenge {
            made_ms: MADE_MS,
            is_spent: false,
        };
        let said = held.attempt(&proof, stated, &identity(), MADE_MS + 1);
        let is_stated = stated == challenge(&proof.node_id, &identity(), MADE_MS);
        ensure!(
            held.is_spent == is_stated,
            "{stated:?} spends the challenge: {}",
            held.is_spent
        );
        let expected = if is_stated {
            RefusalCode::SignatureRefused
        } else {
            RefusalCode::ChallengeRefused
        };
        if let Err(refusal) = &said {
            ensure!(refusal.code == expected, "{refusal}");
        } else {
            ensure!(is_stated, "{stated:?} passes for the challenge");
        }
        if is_stated {
            let again = held.attempt(&proof, stated, &identity(), MADE_MS + 1);
            ensure!(again.is_err(), "a challenge is good twice");
        }
        Ok(Verdict::taken(said.is_ok()))
    }
}

fn attempts() -> anyhow::Result<Vec<Seed>> {
    let mut seeds = Vec::new();
    for (name, seed, node) in [("one", 1, "n1"), ("two", 2, "worker@host-7")] {
        let key = SigningKey::from_bytes(&[seed; 32])?;
        let node_id = Label::new(node)?;
        let stated = challenge(&node_id, &identity(), MADE_MS);
        let signature = key.sign_raw(&signed(&node_id, &stated), &[0; 32])?.to_bytes();
        let key = NostrKey::from_bytes(key.verifying_key().to_bytes().into());
        let signature = NostrSignature::from_bytes(signature);
        seeds.push(Seed::new(name, format!("{node}\n{key}\n{signature}\n{stated}")));
    }
    Ok(seeds)
}

struct Signals;

impl Target for Signals {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let text = String::from_utf8_lossy(input);
        let [node_id, subject_kind, subject, kind, done, total, note] = lines(&text);
        let (Ok(done), Ok(total)) = (done.parse::<u64>(), total.parse::<u64>()) else {
            return Ok(Verdict::Refused);
        };
        let Ok(taken) = signal(node_id, [subject_kind, subject], kind, [done, total], note) else {
            return Ok(Verdict::Refused);
        };
        ensure!(taken.node_id.as_str() == node_id && taken.kind.as_str() == kind);
        ensure!(subject_kind.parse::<SubjectKind>().is_ok());
        ensure!(subject.len() <= limit::STREAM_ID_BYTES && note.len() <= limit::SIGNAL_NOTE_BYTES);
        ensure!(!text.trim_end().chars().any(|c| c.is_control() && c != '\n') && !note.contains('\n'));
        ensure!(total == 0 || done <= total);
        ensure!(taken.kind == SignalKind::Progress || (done, total) == (0, 0));
        Ok(Verdict::Taken)
    }
}
