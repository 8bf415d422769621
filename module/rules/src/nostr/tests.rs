use std::collections::{BTreeMap, BTreeSet};

use k256::schnorr::SigningKey;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::vectors::VECTORS;
use super::*;

const NOW: u64 = 1_800_000_000_000;

fn identity(of: u8) -> String {
    format!("{of:02x}").repeat(32)
}

fn node(name: &str) -> Label {
    Label::new(name).unwrap()
}

fn secret(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32]).unwrap()
}

fn key_of(secret: &SigningKey) -> NostrKey {
    NostrKey::from_bytes(secret.verifying_key().to_bytes().into())
}

/// Signs these bytes as they are.
fn sign(secret: &SigningKey, message: &[u8; 32]) -> NostrSignature {
    NostrSignature::from_bytes(secret.sign_raw(message, &[7; 32]).unwrap().to_bytes())
}

fn proven(secret: &SigningKey, node_id: &Label, text: &str) -> Proof {
    Proof {
        node_id: node_id.clone(),
        key: key_of(secret),
        signature: sign(secret, &signed(node_id, text)),
    }
}

#[test]
fn the_vectors_of_bip_340_verify_as_they_should() {
    let (mut good, mut bad) = (0, 0);
    for (at, (key, message, signature, expected)) in VECTORS.iter().enumerate() {
        let message: NostrKey = message.parse().unwrap();
        let found = verifies(&key.parse().unwrap(), message.as_bytes(), &signature.parse().unwrap());
        assert_eq!(found, *expected, "vector {at}");
        *if found { &mut good } else { &mut bad } += 1;
    }
    assert_eq!((good, bad), (5, 10));
}

#[test]
fn whoever_signs_the_challenge_binds_the_key_once() {
    let (secret, node, own) = (secret(1), node("n1"), identity(0xc2));
    let mut held = make(None, 0, NOW).unwrap();
    let text = challenge(&node, &own, held.made_ms);
    let proof = proven(&secret, &node, &text);
    assert_eq!(held.attempt(&proof, &text, &own, NOW), Ok(()));
    let again = held.attempt(&proof, &text, &own, NOW).unwrap_err();
    assert_eq!(again.code, RefusalCode::ChallengeRefused);
    assert!(again.message.contains("used before"), "{again}");
}

#[test]
fn a_challenge_holds_for_300_seconds() {
    let (secret, node, own) = (secret(1), node("n1"), identity(0xc2));
    let text = challenge(&node, &own, NOW);
    let proof = proven(&secret, &node, &text);
    for (after, expected) in [(0, true), (299_999, true), (300_000, false), (u64::MAX - NOW, false)] {
        let mut held = make(None, 0, NOW).unwrap();
        let said = held.attempt(&proof, &text, &own, NOW + after);
        assert_eq!(said.is_ok(), expected, "{after} ms later: {said:?}");
    }
}

#[test]
fn only_the_newest_challenge_of_this_session_and_node_counts() {
    let (secret, own) = (secret(1), identity(0xc2));
    let [one, other] = ["n1", "n2"].map(node);
    let older = make(None, 0, NOW).unwrap();
    let newest = make(Some(older), 1, NOW).unwrap();
    assert_eq!(newest.made_ms, NOW + 1, "no two challenges are the same");
    let spent = HeldChallenge {
        is_spent: true,
        ..older
    };
    assert_eq!(make(Some(spent), 1, NOW), Ok(newest), "a new one after an attempt");
    assert_eq!(make(Some(older), 1, NOW + 9).unwrap().made_ms, NOW + 9);
    assert_eq!(
        make(Some(older), 1, NOW - 9).unwrap().made_ms,
        NOW + 1,
        "though the clock went back"
    );
    for (node_id, text) in [
        (&one, challenge(&one, &own, older.made_ms)),
        (&one, challenge(&one, &identity(0xc3), newest.made_ms)),
        (&one, challenge(&other, &own, newest.made_ms)),
        (&other, challenge(&one, &own, newest.made_ms)),
        (&one, format!("{} ", challenge(&one, &own, newest.made_ms))),
        (&one, String::new()),
    ] {
        let mut held = newest;
        let refused = held
            .attempt(&proven(&secret, node_id, &text), &text, &own, NOW + 2)
            .unwrap_err();
        assert_eq!(refused.code, RefusalCode::ChallengeRefused, "{text}");
        assert_eq!(held, newest, "what does not state the challenge does not spend it");
    }
}

#[test]
fn a_signature_that_is_not_over_this_challenge_in_this_domain_is_refused_and_spends_it() {
    let (secret, node, own) = (secret(1), node("n1"), identity(0xc2));
    let text = challenge(&node, &own, NOW);
    let good = proven(&secret, &node, &text);
    let hashed = |text: &str| {
        use sha2::Digest as _;
        let digest: [u8; 32] = sha2::Sha256::digest(text).into();
        sign(&secret, &digest)
    };
    let mut bent = *good.signature.as_bytes();
    bent[40] ^= 1;
    for (what, key, signature) in [
        ("another key's", key_of(&self::secret(2)), good.signature),
        (
            "of another key",
            good.key,
            proven(&self::secret(2), &node, &text).signature,
        ),
        ("over the challenge alone", good.key, hashed(&text)),
        (
            "over another domain",
            good.key,
            hashed(&format!("openagents:nostr-presence-bind:v2:{}:{text}", node.as_str())),
        ),
        (
            "over another node",
            good.key,
            sign(&secret, &signed(&self::node("n2"), &text)),
        ),
        (
            "over another challenge",
            good.key,
            sign(&secret, &signed(&node, &challenge(&node, &own, NOW + 1))),
        ),
        ("altered", good.key, NostrSignature::from_bytes(bent)),
        ("of zeros", good.key, NostrSignature::from_bytes([0; 64])),
        (
            "of a key that is no point",
            NostrKey::from_bytes([0xff; 32]),
            good.signature,
        ),
    ] {
        let mut held = make(None, 0, NOW).unwrap();
        let proof = Proof {
            key,
            signature,
            ..good.clone()
        };
        let refused = held.attempt(&proof, &text, &own, NOW).unwrap_err();
        assert_eq!(refused.code, RefusalCode::SignatureRefused, "{what}");
        let late = held.attempt(&good, &text, &own, NOW).unwrap_err();
        assert_eq!(
            late.code,
            RefusalCode::ChallengeRefused,
            "{what}: a challenge is good for one attempt"
        );
    }
}

#[test]
fn a_session_has_a_bounded_number_of_challenges() {
    let most = limit::NOSTR_CHALLENGES;
    assert!(make(None, most - 1, NOW).is_ok());
    assert_eq!(make(None, most, NOW).unwrap_err().code, RefusalCode::RateLimited);
    let held = make(None, 0, NOW).unwrap();
    assert!(make(Some(held), most, NOW).is_ok(), "a node that has one needs no room");
}

#[test]
fn a_proof_with_an_invalid_field_is_refused() {
    let (key, signature) = ("0a".repeat(32), "0b".repeat(64));
    assert!(proof("n1", &key, &signature).is_ok());
    for (node_id, key, signature) in [
        ("", key.as_str(), signature.as_str()),
        ("n 1", &key, &signature),
        ("n1", "", &signature),
        ("n1", &key.to_uppercase(), &signature),
        ("n1", &key, &key),
        ("n1", &key, ""),
    ] {
        let refused = proof(node_id, key, signature).unwrap_err();
        assert_eq!(refused.code, RefusalCode::InvalidArgument, "{refused}");
    }
}

/// Whatever sessions do with challenges, their own and others', a text is good once, for its own session and node, while it is
/// the newest and has not expired.
#[test]
fn whatever_happens_a_challenge_is_good_once_and_for_its_own() {
    let secret = secret(3);
    let mut all_bound = 0;
    for seed in 0..60 {
        let mut dice = StdRng::seed_from_u64(seed);
        let mut held: BTreeMap<(u8, u8), HeldChallenge> = BTreeMap::new();
        // Every challenge that was ever made, with the signature of somebody who signs all of them.
        let mut made: Vec<((u8, u8), u64, String, NostrSignature)> = Vec::new();
        let mut bound = BTreeSet::new();
        let mut now = NOW;
        for _ in 0..200 {
            now += [0, 1, 1_000, 150_000][dice.random_range(0..4)];
            let of = (dice.random_range(0..2), dice.random_range(0..2));
            let (own, node_id) = (identity(of.0), node(&format!("n{}", of.1)));
            if made.is_empty() || dice.random_bool(0.3) {
                let next = make(held.get(&of).copied(), 0, now).unwrap();
                held.insert(of, next);
                let text = challenge(&node_id, &own, next.made_ms);
                let signature = sign(&secret, &signed(&node_id, &text));
                assert!(
                    !made.iter().any(|(_, _, other, _)| *other == text),
                    "seed {seed}: {text} twice"
                );
                made.push((of, now, text, signature));
                continue;
            }
            let back = if dice.random_bool(0.5) {
                made.len().min(4)
            } else {
                made.len()
            };
            let (whose, at, text, signature) = &made[made.len() - 1 - dice.random_range(0..back)];
            let Some(challenge) = held.get_mut(&of) else { continue };
            let is_newest = made
                .iter()
                .rev()
                .find(|(other, ..)| *other == of)
                .is_some_and(|(.., newest, _)| newest == text);
            let age = now.saturating_sub(challenge.made_ms);
            let expected = *whose == of && is_newest && age < 300_000 && !bound.contains(text);
            let proof = Proof {
                node_id,
                key: key_of(&secret),
                signature: *signature,
            };
            let said = challenge.attempt(&proof, text, &own, now);
            assert_eq!(
                said.is_ok(),
                expected,
                "seed {seed}: {text} of {whose:?}, made at {at}, by {of:?} at {now}: {said:?}"
            );
            if said.is_ok() {
                assert!(bound.insert(text.clone()), "seed {seed}: {text} was good twice");
            }
        }
        all_bound += bound.len();
    }
    assert!(all_bound > 300, "only {all_bound} challenges were good");
}
