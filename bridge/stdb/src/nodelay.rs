//! Small messages leave at once.
//!
//! The SDK opens its WebSocket with Nagle's algorithm on and gives nobody the socket. A call would then wait until the
//! server has acknowledged the call before it, and the server's kernel delays that by up to 40 ms: half of the time from
//! commit to applied when events come singly. So this module finds the socket among the descriptors of the process, by
//! the port that it is connected to, and turns the algorithm off there.

/// Turns Nagle's algorithm off on this process's TCP connections to a port, and says on how many. It works on Linux
/// only, and only where the sandbox permits it; elsewhere the link is slower and otherwise the same.
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
        // A second descriptor for the same socket, closed below. The first one may have been closed meanwhile.
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
    fn a_connection_to_the_server_sends_at_once_and_no_other_is_touched() {
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
