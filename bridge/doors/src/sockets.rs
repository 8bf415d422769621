//! Accepts sockets, and bounds how many there are: in all, and of one address.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::asker::Origin;

/// The pause after a failed accept, for example when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// So many times as many sockets as one address may have wait for all of them, at the least.
pub const ADDRESSES: usize = 16;

/// Checks how many sockets one address may have. Says what was expected, with the name of the setting for all of them.
pub fn check_share(of_one: usize, all: usize, all_key: &str) -> Result<(), String> {
    let most = all / ADDRESSES;
    if of_one <= most {
        return Ok(());
    }
    Err(format!(
        "expected {most} or less, a sixteenth of {all_key}, found {of_one}"
    ))
}

/// Accepts for as long as the process runs, at most so many sockets at once. Further ones wait to be accepted. `serve`
/// answers `None` to a socket that is not served: it is closed.
pub async fn accept<F>(listener: TcpListener, most: usize, mut serve: impl FnMut(TcpStream, SocketAddr) -> Option<F>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let turns = Arc::new(Semaphore::new(most));
    loop {
        // Nobody closes the semaphore.
        let Ok(turn) = turns.clone().acquire_owned().await else {
            return;
        };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Some(served) = serve(stream, peer) {
            tokio::spawn(async move {
                served.await;
                drop(turn);
            });
        }
    }
}

/// Counts the sockets of each origin.
#[derive(Debug)]
pub struct Sockets {
    most: usize,
    open: Mutex<HashMap<Origin, usize>>,
}

/// A socket that counts until it is dropped.
#[derive(Debug)]
pub struct Socket {
    sockets: Arc<Sockets>,
    origin: Origin,
}

impl Sockets {
    /// At most so many sockets of one origin.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            open: Mutex::default(),
        })
    }

    /// A socket comes. `None` if its origin has too many.
    pub fn arrive(self: &Arc<Self>, origin: Origin) -> Option<Socket> {
        let mut open = self.open();
        let count = open.entry(origin.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        drop(open);
        Some(Socket {
            sockets: self.clone(),
            origin,
        })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Origin, usize>> {
        // Nothing can panic while it holds the lock: under it we only count.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut open = self.sockets.open();
        if let Some(count) = open.get_mut(&self.origin) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_have_a_sixteenth_of_all_sockets() {
        assert_eq!(check_share(64, 1_024, "x.sockets"), Ok(()));
        let refused = check_share(65, 1_039, "x.sockets").unwrap_err();
        assert_eq!(refused, "expected 64 or less, a sixteenth of x.sockets, found 65");
    }

    #[test]
    fn an_origin_has_so_many_sockets_and_others_have_theirs() {
        let origin = |text: &str| Origin::of(text.parse().unwrap_or_else(|_| panic!("{text}")));
        let sockets = Sockets::new(2);
        let first = sockets.arrive(origin("10.0.0.1"));
        let second = sockets.arrive(origin("::ffff:10.0.0.1"));
        assert!(first.is_some() && second.is_some());
        assert!(sockets.arrive(origin("10.0.0.1")).is_none());
        assert!(sockets.arrive(origin("10.0.0.2")).is_some());
        drop(first);
        let third = sockets.arrive(origin("10.0.0.1"));
        assert!(third.is_some() && sockets.arrive(origin("10.0.0.1")).is_none());
        drop((second, third));
        assert!(sockets.open().is_empty());
    }
}
