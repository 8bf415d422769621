//! Stream keys, by which rows, grants and subscriptions name a stream.
//!
//! A key is derived from the stream's name with a secret. Anyone connected can read the grant table, and must not learn
//! names from the keys in it.

use sha2::{Digest, Sha256};
use spacetime_sync_proto::{Label, StreamId};

/// The shortest secret that is accepted, in bytes.
pub const SECRET_BYTES: usize = 16;

/// Stands before a user's name. No stream's name can begin with it.
const USER: &str = "\0user\0";

/// The name of all who may provide. It is no stream's and no user's.
const PROVIDERS: &str = "\0providers";

/// The name of all mirrors. It is no stream's and no user's.
const MIRRORS: &str = "\0mirrors";

/// The key of a stream.
pub fn derive(secret: &[u8], stream_id: &StreamId) -> u64 {
    keyed(secret, &[stream_id.as_str()])
}

/// The key under which all sessions of a user see each other. Each session holds a grant for it, as if it were a
/// stream.
pub fn derive_user(secret: &[u8], user_id: &Label) -> u64 {
    keyed(secret, &[USER, user_id.as_str()])
}

/// The key under which all who may provide see the assignments that are open to all. Each session that may holds a grant for
/// it.
pub fn derive_providers(secret: &[u8]) -> u64 {
    keyed(secret, &[PROVIDERS])
}

/// The key under which mirrors see the outbox. Each session that may holds a grant for it.
pub fn derive_mirrors(secret: &[u8]) -> u64 {
    keyed(secret, &[MIRRORS])
}

fn keyed(secret: &[u8], name: &[&str]) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update((secret.len() as u64).to_be_bytes());
    hasher.update(secret);
    name.iter().for_each(|part| hasher.update(part));
    let digest = hasher.finalize();
    // Infallible: a digest has 32 bytes.
    u64::from_be_bytes(digest[..8].try_into().expect("8 of 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_the_secret_and_on_the_name() {
        let (a, b) = (StreamId::new("a").unwrap(), StreamId::new("b").unwrap());
        assert_eq!(derive(b"0123456789abcdef", &a), derive(b"0123456789abcdef", &a));
        assert_ne!(derive(b"0123456789abcdef", &a), derive(b"0123456789abcdef", &b));
        assert_ne!(derive(b"0123456789abcdef", &a), derive(b"0123456789abcdeF", &a));
        let user = Label::new("a").unwrap();
        assert_ne!(derive(b"0123456789abcdef", &a), derive_user(b"0123456789abcdef", &user));
        let named = Label::new("providers").unwrap();
        let providers = derive_providers(b"0123456789abcdef");
        assert_ne!(providers, derive_user(b"0123456789abcdef", &named));
        assert_ne!(
            providers,
            derive(b"0123456789abcdef", &StreamId::new("providers").unwrap())
        );
    }

    /// Rows and grants in existing databases have these keys.
    #[test]
    fn keys_never_change() {
        let (stream, user) = (StreamId::new("a").unwrap(), Label::new("a").unwrap());
        assert_eq!(derive(b"0123456789abcdef", &stream), 0xac11_6767_d335_2fff);
        assert_eq!(derive_user(b"0123456789abcdef", &user), 0x1b67_33a6_bf02_5ccb);
        assert_eq!(derive_providers(b"0123456789abcdef"), 0x4fa1_ff96_aa27_887b);
        assert_eq!(derive_mirrors(b"0123456789abcdef"), 0x3e8a_8948_c43d_811b);
    }
}
