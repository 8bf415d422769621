//! Ports to listen on that are free when asked for, and still free a moment later.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the ports that Linux gives to outgoing connections. So no outgoing connection takes a free port before its
/// process listens on it, or while that process restarts.
const RANGE: std::ops::Range<u16> = 16_384..32_768;

/// A loopback address that nobody listens on. Each is returned once per process.
pub fn free() -> std::io::Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let ports = RANGE.end - RANGE.start;
    // Two concurrent test processes begin at different ports.
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
