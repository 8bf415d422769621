//! Sends small messages at once.
//!
//! The SDK opens its WebSocket with Nagle's algorithm on and does not give access to the socket. A call would then wait
//! until the server has acknowledged the previous call, which the server's kernel delays by up to 40 ms: half of the
//! time from commit to application when events come one by one. So this module finds the socket among the descriptors
//! of the process by its remote port, and turns the algorithm off.

/// Turns Nagle's algorithm off on this process's TCP connections to a port, and returns how many there were. It works
/// only on Linux, and only where the sandbox permits it. Elsewhere the link is slower but otherwise the same.
#[cfg(target_os = "linux")]
pub(super) fn on_connections_to(port: u16) -> std::io::Result<usize> {
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
        // This is a second descriptor of the same socket, closed below. The first one may have been closed meanwhile.
        let Ok(socket) = pidfd_getfd(&process, descriptor, PidfdGetfdFlags::empty()) else {
            continue;
        };
        let socket = std::net::TcpStream::from(socket);
        // Sockets of other kinds have no such peer.
        if socket.peer_addr().is_ok_and(|peer| peer.port() == port) {
            connections += usize::from(socket.set_nodelay(true).is_ok());
        }
    }
    Ok(connections)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn on_connections_to(_: u16) -> std::io::Result<usize> {
    Ok(0)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn only_connections_to_the_server_send_at_once() {
        let connect = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            (TcpStream::connect(address).unwrap(), address.port(), listener)
        };
        let (to_the_server, port, _server) = connect();
        let (elsewhere, _, _other) = connect();
        assert!(!to_the_server.nodelay().unwrap());
        assert_eq!(super::on_connections_to(port).unwrap(), 1);
        assert!(to_the_server.nodelay().unwrap());
        assert!(!elsewhere.nodelay().unwrap());
    }
}
