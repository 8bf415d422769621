//! Stream keys: what rows, grants and subscriptions are indexed by.
//!
//! A key is derived from the stream's name with a secret, so the grant table, which anyone connected can read, says
//! nothing about names.

use sha2::{Digest, Sha256};
use spacetime_sync_proto::{Label, StreamId};

/// Shortest secret that is taken, in bytes.
pub const SECRET_BYTES: usize = 16;

/// What stands before a user's name, and in no stream's.
const USER: &str = "\0user\0";

/// The key of a stream.
pub fn derive(secret: &[u8], stream_id: &StreamId) -> u64 {
    keyed(secret, &[stream_id.as_str()])
}

/// The key of what all sessions of a user see: each holds a grant for it, as if it were a stream.
pub fn derive_user(secret: &[u8], user_id: &Label) -> u64 {
    keyed(secret, &[USER, user_id.as_str()])
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
    }
}
