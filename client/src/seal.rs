//! Checks the bridge's seals. Whoever holds SpacetimeDB, or the bridge's token for it, can write rows there; only the
//! bridge can seal them.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use spacetime_sync_proto::seal::sealed_text;
use spacetime_sync_proto::{Position, Seal, SealKey, SealKeyId, StreamId};

/// Verifies a signature: the public key, the signed text, the signature.
pub type Verify = fn(&[u8], &[u8], &[u8]) -> bool;

/// Why a seal proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    /// The last frame has no seal.
    #[error("they have no seal")]
    NoSeal,
    /// The client has no such key. It may be newer than the client's token, or older than the bridge's oldest key.
    #[error("their seal is by key {0}, which is not among the keys that came with the token")]
    UnknownKey(SealKeyId),
    /// The signature does not fit.
    #[error("their seal is forged")]
    Forged,
}

/// The keys whose seals count.
#[derive(Debug, Clone)]
pub struct SealKeys {
    verify: Verify,
    keys: HashMap<SealKeyId, Vec<u8>>,
}

impl SealKeys {
    /// These keys. A key that is malformed, or of another kind, is left out: its seals prove nothing.
    pub fn new(keys: &[SealKey]) -> Self {
        Self::verified_by(keys, verify_p256)
    }

    /// These keys, with another way to verify a signature. The simulation seals with something cheaper.
    pub fn verified_by(keys: &[SealKey], verify: Verify) -> Self {
        Self {
            verify,
            keys: keys.iter().filter_map(read).collect(),
        }
    }

    /// The same with other keys.
    pub(crate) fn replace(&mut self, keys: &[SealKey]) {
        self.keys = keys.iter().filter_map(read).collect();
    }

    /// Whether the bridge has sealed this position of a stream, and with it everything before.
    pub fn check(&self, stream_id: &StreamId, at: &Position, seal: Option<&Seal>) -> Result<(), Unproven> {
        let seal = seal.ok_or(Unproven::NoSeal)?;
        let key = self.keys.get(&seal.key).ok_or(Unproven::UnknownKey(seal.key))?;
        if (self.verify)(key, &sealed_text(stream_id, at), &seal.signature) {
            Ok(())
        } else {
            Err(Unproven::Forged)
        }
    }
}

fn verify_p256(key: &[u8], text: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key)
        .verify(text, signature)
        .is_ok()
}

/// The id of a key, and its point, uncompressed.
fn read(key: &SealKey) -> Option<(SealKeyId, Vec<u8>)> {
    if key.kty != "EC" || key.crv != "P-256" {
        return None;
    }
    let decode = |text: &str| <[u8; 32]>::try_from(URL_SAFE_NO_PAD.decode(text).ok()?).ok();
    let id = SealKeyId::of_thumbprint(&decode(&key.kid)?);
    let mut point = vec![4];
    point.extend(decode(&key.x)?);
    point.extend(decode(&key.y)?);
    Some((id, point))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::LazyLock;

    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    use spacetime_sync_proto::{ChainHash, Seq};

    use super::*;

    /// A key in the right form that belongs to nobody, for configurations that must hold one.
    pub(crate) fn some_key() -> SealKey {
        let zeros = URL_SAFE_NO_PAD.encode([0; 32]);
        SealKey {
            kid: zeros.clone(),
            kty: "EC".to_owned(),
            crv: "P-256".to_owned(),
            x: zeros.clone(),
            y: zeros,
        }
    }

    /// A key that seals.
    pub(crate) struct TestKey {
        pair: EcdsaKeyPair,
        pub(crate) public: SealKey,
    }

    /// The key of the bridge that the fake host stands for.
    pub(crate) static BRIDGE: LazyLock<TestKey> = LazyLock::new(|| TestKey::new(0));

    impl TestKey {
        pub(crate) fn new(kid: u8) -> Self {
            let random = SystemRandom::new();
            let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.as_ref(), &random).unwrap();
            let point = pair.public_key().as_ref();
            let public = SealKey {
                kid: URL_SAFE_NO_PAD.encode([kid; 32]),
                kty: "EC".to_owned(),
                crv: "P-256".to_owned(),
                x: URL_SAFE_NO_PAD.encode(&point[1..33]),
                y: URL_SAFE_NO_PAD.encode(&point[33..]),
            };
            Self { pair, public }
        }

        pub(crate) fn seal(&self, stream_id: &StreamId, at: &Position) -> Seal {
            let signed = self
                .pair
                .sign(&SystemRandom::new(), &sealed_text(stream_id, at))
                .unwrap();
            let (key, _) = read(&self.public).unwrap();
            Seal {
                key,
                signature: signed.as_ref().try_into().unwrap(),
            }
        }
    }

    fn stream() -> StreamId {
        StreamId::new("a").unwrap()
    }

    fn at(seq: u64) -> Position {
        Position {
            seq: Seq::new(seq).unwrap(),
            chain: ChainHash::from_bytes([seq as u8; 32]),
        }
    }

    #[test]
    fn a_seal_proves_its_own_position_and_no_other() {
        let key = TestKey::new(1);
        let keys = SealKeys::new(std::slice::from_ref(&key.public));
        let seal = key.seal(&stream(), &at(7));
        assert_eq!(keys.check(&stream(), &at(7), Some(&seal)), Ok(()));
        let elsewhere = Position {
            seq: at(8).seq,
            ..at(7)
        };
        let altered = Position {
            chain: at(8).chain,
            ..at(7)
        };
        for wrong in [elsewhere, altered] {
            assert_eq!(keys.check(&stream(), &wrong, Some(&seal)), Err(Unproven::Forged));
        }
        let other = StreamId::new("b").unwrap();
        assert_eq!(keys.check(&other, &at(7), Some(&seal)), Err(Unproven::Forged));
        assert_eq!(keys.check(&stream(), &at(7), None), Err(Unproven::NoSeal));
    }

    #[test]
    fn only_the_latest_keys_count() {
        let (old, new) = (TestKey::new(1), TestKey::new(2));
        let mut keys = SealKeys::new(std::slice::from_ref(&old.public));
        let seal = new.seal(&stream(), &at(7));
        assert_eq!(
            keys.check(&stream(), &at(7), Some(&seal)),
            Err(Unproven::UnknownKey(seal.key))
        );
        keys.replace(std::slice::from_ref(&new.public));
        assert_eq!(keys.check(&stream(), &at(7), Some(&seal)), Ok(()));
        let past = old.seal(&stream(), &at(7));
        assert_eq!(
            keys.check(&stream(), &at(7), Some(&past)),
            Err(Unproven::UnknownKey(past.key))
        );
    }

    #[test]
    fn a_key_that_names_itself_after_another_proves_nothing() {
        let (honest, liar) = (TestKey::new(1), TestKey::new(1));
        let keys = SealKeys::new(std::slice::from_ref(&honest.public));
        let seal = liar.seal(&stream(), &at(7));
        assert_eq!(keys.check(&stream(), &at(7), Some(&seal)), Err(Unproven::Forged));
    }

    #[test]
    fn a_malformed_key_is_left_out() {
        let good = TestKey::new(1).public;
        let change = |change: fn(&mut SealKey)| {
            let mut key = good.clone();
            change(&mut key);
            key
        };
        for bad in [
            change(|key| key.kty = "OKP".to_owned()),
            change(|key| key.crv = "P-384".to_owned()),
            change(|key| key.x.truncate(20)),
            change(|key| key.y = "!".to_owned()),
            change(|key| key.kid.clear()),
        ] {
            assert!(SealKeys::new(std::slice::from_ref(&bad)).keys.is_empty(), "{bad:?}");
        }
    }
}
