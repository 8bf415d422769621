//! Small messages leave at once.
//!
//! The SDK opens its WebSocket with Nagle's algorithm on and hands nobody the socket. A call would then wait until the
//! server has acknowledged the call before it, and the server's kernel delays that by up to 40 ms: half of the time from
//! commit to applied when events come singly. So the process looks through its own descriptors and turns it off.

/// Turns Nagle's algorithm off on every TCP connection of this process, and says for how many. Only on Linux, and where
/// the sandbox permits it; elsewhere the link is slower and otherwise the same.
#[cfg(target_os = "linux")]
pub(super) fn everywhere() -> std::io::Result<usize> {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

    let process = pidfd_open(getpid(), PidfdFlags::empty())?;
    let mut connections = 0;
    for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
        let is_socket =
            std::fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"));
        let Some(descriptor) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if !is_socket {
            continue;
        }
        // A descriptor of our own for the same socket. One that was closed meanwhile is no concern of ours.
        let Ok(socket) = pidfd_getfd(&process, descriptor, PidfdGetfdFlags::empty()) else {
            continue;
        };
        // What is no TCP socket refuses.
        connections += usize::from(std::net::TcpStream::from(socket).set_nodelay(true).is_ok());
    }
    Ok(connections)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn everywhere() -> std::io::Result<usize> {
    Ok(0)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_that_somebody_else_holds_sends_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(!connection.nodelay().unwrap());
        assert!(super::everywhere().unwrap() >= 1);
        assert!(connection.nodelay().unwrap());
    }
}
