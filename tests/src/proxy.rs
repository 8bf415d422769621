//! A TCP proxy that breaks connections: it cuts or refuses them, stops bytes in one or both directions while the
//! connection stays open, or makes peers vanish silently.
//!
//! It never changes or reorders bytes, and buffers at most 64 KiB per direction. It drops bytes only on connections
//! whose peer has vanished, and passes nothing on there again.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const BUFFER: usize = 64 * 1024;

/// The direction in which bytes flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the target.
    ToTarget,
    /// From the target to the client.
    ToClient,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connection attempts, whether they reached the target or not.
    pub asked: u64,
    /// Connections that reached the target.
    pub connections: u64,
    /// Open connections, including those whose peer has vanished.
    pub open: u64,
    /// Bytes passed on to the target.
    pub to_target: u64,
    /// Bytes passed on to the client.
    pub to_client: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Faults {
    target: SocketAddr,
    refuse: bool,
    stall_to_target: bool,
    stall_to_client: bool,
    /// Number of cuts. Connections older than the last one must end.
    cuts: u64,
    /// Number of vanishings. Connections older than the last one have lost their peer.
    vanished: u64,
}

impl Faults {
    fn stalled(&self, direction: Direction) -> bool {
        match direction {
            Direction::ToTarget => self.stall_to_target,
            Direction::ToClient => self.stall_to_client,
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    asked: AtomicU64,
    connections: AtomicU64,
    open: AtomicU64,
    to_target: AtomicU64,
    to_client: AtomicU64,
}

/// A proxy in front of one target. Its connections end when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    faults: watch::Sender<Faults>,
    /// Whether the listener is open, as the task reports it.
    listening: watch::Receiver<bool>,
    counters: Arc<Counters>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free loopback port and forwards to `target`.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let (faults, heard) = watch::channel(Faults {
            target,
            refuse: false,
            stall_to_target: false,
            stall_to_client: false,
            cuts: 0,
            vanished: 0,
        });
        let (opened, listening) = watch::channel(true);
        let counters = Arc::new(Counters::default());
        let task = tokio::spawn(listen(listener, addr, heard, opened, counters.clone()));
        Ok(Self {
            addr,
            faults,
            listening,
            counters,
            task,
        })
    }

    /// The address to connect to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Resets all connections on both sides. New ones are accepted.
    pub fn cut(&self) {
        self.faults.send_modify(|faults| faults.cuts += 1);
    }

    /// Both peers of every open connection vanish for each other: nothing passes any more and nobody is told, until the
    /// connections are cut. New connections work.
    pub fn vanish(&self) {
        self.faults.send_modify(|faults| faults.vanished += 1);
    }

    /// Forwards new connections to another target.
    pub fn redirect(&self, target: SocketAddr) {
        self.faults.send_modify(|faults| faults.target = target);
    }

    /// Refuses new connections. Open ones go on. Returns once the listener is closed.
    pub async fn refuse(&self) {
        self.faults.send_modify(|faults| faults.refuse = true);
        self.wait_listening(false).await;
    }

    /// Accepts connections again, at the same address. Returns once the listener is open.
    pub async fn accept(&self) {
        self.faults.send_modify(|faults| faults.refuse = false);
        self.wait_listening(true).await;
    }

    /// Stops bytes in one direction. Connections stay open, and new ones are accepted.
    pub fn stall(&self, direction: Direction) {
        self.set_stalled(direction, true);
    }

    /// Lets bytes pass again, beginning with those that were held back.
    pub fn resume(&self, direction: Direction) {
        self.set_stalled(direction, false);
    }

    /// The current counters.
    pub fn counts(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            asked: load(&self.counters.asked),
            connections: load(&self.counters.connections),
            open: load(&self.counters.open),
            to_target: load(&self.counters.to_target),
            to_client: load(&self.counters.to_client),
        }
    }

    fn set_stalled(&self, direction: Direction, stalled: bool) {
        self.faults.send_modify(|faults| match direction {
            Direction::ToTarget => faults.stall_to_target = stalled,
            Direction::ToClient => faults.stall_to_client = stalled,
        });
    }

    async fn wait_listening(&self, wanted: bool) {
        // The task ends only with this value.
        let _ = self.listening.clone().wait_for(|listening| *listening == wanted).await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(
    listener: TcpListener,
    addr: SocketAddr,
    mut faults: watch::Receiver<Faults>,
    opened: watch::Sender<bool>,
    counters: Arc<Counters>,
) {
    let mut listener = Some(listener);
    // All connections end with this task.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let refuse = faults.borrow_and_update().refuse;
        if refuse {
            listener = None;
        } else if listener.is_none() {
            listener = rebind(addr);
            if listener.is_none() {
                // An outgoing connection of some process occupies the port for a moment.
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
        }
        opened.send_replace(listener.is_some());
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = faults.changed() => if changed.is_err() { return },
            Some(_) = connections.join_next() => {}
            accepted = accepted => if let Ok((client, _)) = accepted {
                connections.spawn(serve(client, faults.clone(), counters.clone()));
            },
        }
    }
}

fn rebind(addr: SocketAddr) -> Option<TcpListener> {
    let socket = TcpSocket::new_v4().ok()?;
    socket.set_reuseaddr(true).ok()?;
    socket.bind(addr).ok()?;
    socket.listen(1024).ok()
}

async fn serve(client: TcpStream, mut faults: watch::Receiver<Faults>, counters: Arc<Counters>) {
    let born = *faults.borrow_and_update();
    counters.asked.fetch_add(1, Ordering::Relaxed);
    let Ok(target) = TcpStream::connect(born.target).await else {
        reset(&client);
        return;
    };
    let _ = (client.set_nodelay(true), target.set_nodelay(true));
    counters.connections.fetch_add(1, Ordering::Relaxed);
    counters.open.fetch_add(1, Ordering::Relaxed);
    let (mut vanished, mut cut) = (faults.clone(), faults.clone());
    let both = async {
        tokio::join!(
            pump(
                &client,
                &target,
                Direction::ToTarget,
                faults.clone(),
                &counters.to_target
            ),
            pump(
                &target,
                &client,
                Direction::ToClient,
                faults.clone(),
                &counters.to_client
            ),
        )
    };
    let was_cut = async {
        let _ = cut.wait_for(|faults| faults.cuts > born.cuts).await;
    };
    let passes = async {
        tokio::select! {
            biased;
            _ = vanished.wait_for(|faults| faults.vanished > born.vanished) => {}
            _ = both => return,
        }
        // Each side may send as long as it likes, and close. The other side never hears of it.
        tokio::join!(swallow(&client), swallow(&target));
        std::future::pending().await
    };
    tokio::select! {
        () = was_cut => {
            reset(&client);
            reset(&target);
        }
        () = passes => {}
    }
    counters.open.fetch_sub(1, Ordering::Relaxed);
}

/// Makes a connection end with a reset instead of an orderly close.
fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Forwards bytes until the end of input or an error. Forwards either as an end of output.
async fn pump(
    from: &TcpStream,
    to: &TcpStream,
    direction: Direction,
    mut faults: watch::Receiver<Faults>,
    counter: &AtomicU64,
) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = match read(from, &mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => length,
        };
        // Bytes that arrive during a stall wait here, and reading stops with them.
        if faults.wait_for(|faults| !faults.stalled(direction)).await.is_err() {
            return;
        }
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            if to.writable().await.is_err() {
                return;
            }
            match to.try_write(rest) {
                Ok(written) => {
                    counter.fetch_add(written as u64, Ordering::Relaxed);
                    rest = &rest[written..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
    // An end of input that arrives during a stall waits like bytes do.
    if faults.wait_for(|faults| !faults.stalled(direction)).await.is_ok() {
        let _ = SockRef::from(to).shutdown(std::net::Shutdown::Write);
    }
}

/// Reads to the end of input and forwards nothing.
async fn swallow(from: &TcpStream) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(length) = read(from, &mut buffer).await
        && length > 0
    {}
}

/// Reads through a shared reference. The halves of a split stream would close the connection in order when dropped,
/// where a cut wants a reset.
async fn read(from: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        from.readable().await?;
        match from.try_read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;
    use crate::until;

    const SOON: Duration = Duration::from_secs(5);
    const NOT_YET: Duration = Duration::from_millis(50);

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        addr
    }

    async fn round_trip(stream: &mut TcpStream) -> io::Result<()> {
        let mut back = [0; 4];
        timeout(SOON, async {
            stream.write_all(b"ping").await?;
            stream.read_exact(&mut back).await
        })
        .await??;
        assert_eq!(&back, b"ping");
        Ok(())
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_are_counted() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        round_trip(&mut stream).await.unwrap();
        let expected = Counts {
            asked: 1,
            connections: 1,
            open: 1,
            to_target: 4,
            to_client: 4,
        };
        assert_eq!(proxy.counts(), expected);
        let mut large = vec![7; 1 << 20];
        let (mut read, mut write) = stream.split();
        let sent = large.clone();
        let (wrote, got) = tokio::join!(write.write_all(&sent), read.read_exact(&mut large));
        wrote.unwrap();
        got.unwrap();
        assert_eq!(large, sent);
    }

    #[tokio::test]
    async fn a_cut_ends_open_connections_and_not_later_ones() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        round_trip(&mut stream).await.unwrap();
        proxy.cut();
        let read = timeout(SOON, stream.read(&mut [0; 1])).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        round_trip(&mut stream).await.unwrap();
    }

    #[tokio::test]
    async fn a_refusing_proxy_keeps_open_connections() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut open = TcpStream::connect(proxy.addr()).await.unwrap();
        round_trip(&mut open).await.unwrap();
        proxy.refuse().await;
        let refused = TcpStream::connect(proxy.addr()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        round_trip(&mut open).await.unwrap();
        proxy.accept().await;
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        round_trip(&mut stream).await.unwrap();
    }

    #[tokio::test]
    async fn a_stall_holds_bytes_back_in_one_direction() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        round_trip(&mut stream).await.unwrap();
        proxy.stall(Direction::ToClient);
        stream.write_all(b"held").await.unwrap();
        let mut back = [0; 4];
        assert!(until(SOON, || proxy.counts().to_target == 8).await);
        assert!(timeout(NOT_YET, stream.read_exact(&mut back)).await.is_err());
        proxy.resume(Direction::ToClient);
        timeout(SOON, stream.read_exact(&mut back)).await.unwrap().unwrap();
        assert_eq!(&back, b"held");
    }

    #[tokio::test]
    async fn a_cut_reaches_a_stalled_connection() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        round_trip(&mut stream).await.unwrap();
        proxy.stall(Direction::ToTarget);
        stream.write_all(b"lost").await.unwrap();
        proxy.cut();
        assert!(timeout(SOON, stream.read(&mut [0; 1])).await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_vanished_peer_neither_receives_nor_sends() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        round_trip(&mut stream).await.unwrap();
        let before = proxy.counts();
        proxy.vanish();
        let mut other = TcpStream::connect(proxy.addr()).await.unwrap();
        round_trip(&mut other).await.unwrap();
        // More than all buffers on the way can hold.
        timeout(SOON, stream.write_all(&vec![0; 16 << 20]))
            .await
            .unwrap()
            .unwrap();
        assert!(timeout(NOT_YET, stream.read(&mut [0; 1])).await.is_err());
        assert_eq!(proxy.counts().to_target, before.to_target + 4);
        proxy.cut();
        assert!(timeout(SOON, stream.read(&mut [0; 1])).await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_redirected_proxy_forwards_new_connections_to_the_new_target() {
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let proxy = Proxy::start(nobody).await.unwrap();
        proxy.redirect(echo().await);
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        round_trip(&mut stream).await.unwrap();
    }
}
