//! Ports to listen on, free when asked for and still free a moment later.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below those that Linux gives to connections going out: a port that was found free is not taken by one of these before
/// its process listens on it, nor while that process is restarted.
const RANGE: std::ops::Range<u16> = 16_384..32_768;

/// An address on loopback that nobody listens on. Each is given once in this process.
pub fn free() -> std::io::Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let ports = RANGE.end - RANGE.start;
    // Two test processes at once begin at different places.
    let from = std::process::id().wrapping_mul(7_919) as u16 % ports;
    let mut refused = std::io::Error::other("no port was tried");
    for _ in 0..ports {
        let port = RANGE.start + from.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % ports;
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(listener) => return listener.local_addr(),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}
