//! Stream keys: what rows, grants and subscriptions are indexed by.
//!
//! A key is derived from the stream's name with a secret, so the grant table, which anyone connected can read, says
//! nothing about names.

use sha2::{Digest, Sha256};
use spacetime_sync_proto::StreamId;

/// Shortest secret that is taken, in bytes.
pub const SECRET_BYTES: usize = 16;

/// The key of a stream.
pub fn derive(secret: &[u8], stream_id: &StreamId) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update((secret.len() as u64).to_be_bytes());
    hasher.update(secret);
    hasher.update(stream_id.as_str());
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
    }
}
