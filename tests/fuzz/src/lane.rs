//! The log, keys and clock that all targets share. They are the same in every run.

use anyhow::Context as _;
use bytes::Bytes;
use p256::pkcs8::{EncodePrivateKey as _, LineEnding};
use spacetime_sync_issuer::keys::SigningKey;
use spacetime_sync_proto::Secret;
use spacetime_sync_proto::{ChainHash, Event, Frame, IdempotencyKey, Kind, PayloadHash, Position, Seq, StreamId};

/// The current time in seconds, where it is an argument.
pub(crate) const NOW: u64 = 1_800_000_000;
/// Before the time of any run, for code that reads the machine's clock.
pub(crate) const LONG_AGO: u64 = 1_700_000_000;
/// After the time of any run.
pub(crate) const FOR_EVER: u64 = 4_102_444_800;
/// `iss` of sync tokens.
pub(crate) const ISSUER: &str = "https://lane.example/sync";
/// `iss` and `aud` of session credentials.
pub(crate) const SESSIONS: (&str, &str) = ("https://app.example", "runtime-sync");

/// A stream's log.
pub(crate) struct Log {
    pub(crate) stream_id: StreamId,
    pub(crate) events: Vec<Event>,
}

impl Log {
    /// Creates a log with one event for each of these payload sizes.
    pub(crate) fn new(stream: &str, sizes: &[usize]) -> anyhow::Result<Self> {
        let stream_id = StreamId::new(stream)?;
        let mut chain = ChainHash::genesis(&stream_id);
        let mut events = Vec::new();
        for (at, size) in sizes.iter().enumerate() {
            let seq = Seq::ZERO.plus(at as u64 + 1);
            let payload = Bytes::from(vec![at as u8; *size]);
            let payload_hash = PayloadHash::of(&payload);
            let idempotency_key = IdempotencyKey::new(&format!("topic:ü:seq:{at}"))?;
            let kind = Kind::new(if at % 3 == 0 { "run.started" } else { "run.step" })?;
            let committed_at_us = [1_000_000, 0, -1][at % 3];
            chain = chain.link(seq, committed_at_us, &payload_hash, &idempotency_key, &kind);
            events.push(Event {
                seq,
                idempotency_key,
                kind,
                payload,
                payload_hash,
                chain_hash: chain,
                committed_at_us,
            });
        }
        Ok(Self { stream_id, events })
    }

    /// The position after so many events. `None` past the end of the log.
    pub(crate) fn at(&self, seq: u64) -> Option<Position> {
        match seq.checked_sub(1) {
            None => Some(Position::start(&self.stream_id)),
            Some(at) => self.events.get(usize::try_from(at).ok()?).map(|event| Position {
                seq: event.seq,
                chain: event.chain_hash,
            }),
        }
    }

    pub(crate) fn head(&self) -> Position {
        self.at(self.events.len() as u64)
            .unwrap_or_else(|| Position::start(&self.stream_id))
    }

    /// The events from one position to another, encoded as a frame.
    pub(crate) fn frame(&self, first: u64, last: u64) -> Bytes {
        Frame::encode(&self.events[first as usize - 1..last as usize], None)
    }
}

/// A private key derived from a number. It is not secret.
pub(crate) fn pem(number: u8) -> anyhow::Result<Secret> {
    let key = p256::SecretKey::from_slice(&[number; 32]).context("a number of a key")?;
    let pem = key.to_pkcs8_pem(LineEnding::LF).context("a key in PEM")?;
    Ok(Secret::from(pem.to_string()))
}

/// The same key as a signing key.
pub(crate) fn key(number: u8) -> anyhow::Result<SigningKey> {
    Ok(SigningKey::from_pem(&pem(number)?, 0, "a key of the fuzzer's")?)
}

/// A folder in memory where the system has one. On a real disk every input would wait for it.
pub(crate) fn folder() -> std::io::Result<tempfile::TempDir> {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}
