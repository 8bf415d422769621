//! A timer that fires on time. Those of tokio are a millisecond or two late, which is as long as an event takes from
//! Postgres to a client.

use std::time::{Duration, Instant};

/// Fires once at the time that it was last set to.
pub(crate) use precise::Timer;

/// It never fires earlier than this after it was set, whatever time it was set to.
const SHORTEST_WAIT: Duration = Duration::from_micros(50);

/// How long to wait for a time.
fn left(at: Instant) -> Duration {
    at.saturating_duration_since(Instant::now()).max(SHORTEST_WAIT)
}

#[cfg(target_os = "linux")]
mod precise {
    use std::io;
    use std::os::fd::OwnedFd;
    use std::time::Instant;

    use rustix::io::read;
    use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
    use rustix::time::{timerfd_create, timerfd_settime};
    use tokio::io::unix::AsyncFd;

    pub(crate) struct Timer(AsyncFd<OwnedFd>);

    impl Timer {
        #[expect(
            deprecated,
            reason = "it is unsound only for what may replace its descriptor, which an `OwnedFd` never does"
        )]
        pub(crate) fn at(at: Instant) -> io::Result<Self> {
            let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
            let timer = Self(AsyncFd::new(timerfd_create(TimerfdClockId::Monotonic, flags)?)?);
            timer.set(at)?;
            Ok(timer)
        }

        pub(crate) fn set(&self, at: Instant) -> io::Result<()> {
            let left = super::left(at);
            let new = Itimerspec {
                it_interval: Timespec::default(),
                it_value: Timespec {
                    tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                    tv_nsec: left.subsec_nanos().into(),
                },
            };
            timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &new)?;
            Ok(())
        }

        pub(crate) async fn fired(&self) -> io::Result<()> {
            loop {
                let mut ready = self.0.readable().await?;
                let fired = ready.try_io(|fd| Ok(read(fd, &mut [0; 8])?));
                // Otherwise it was set again after it had fired, and is yet to fire.
                if let Ok(fired) = fired {
                    return fired.map(|_| ());
                }
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod precise {
    use std::io;
    use std::time::Instant;

    use tokio::sync::watch;

    pub(crate) struct Timer(watch::Sender<Instant>);

    impl Timer {
        pub(crate) fn at(at: Instant) -> io::Result<Self> {
            Ok(Self(watch::Sender::new(at)))
        }

        pub(crate) fn set(&self, at: Instant) -> io::Result<()> {
            self.0.send_replace(at);
            Ok(())
        }

        pub(crate) async fn fired(&self) -> io::Result<()> {
            tokio::time::sleep(super::left(*self.0.borrow())).await;
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_fires_once_each_time_it_is_set_and_never_early() {
        let timer = Timer::at(Instant::now()).unwrap();
        timer.fired().await.unwrap();
        let fires_again = || tokio::time::timeout(Duration::from_millis(20), timer.fired());
        assert!(fires_again().await.is_err());
        for after in [Duration::ZERO, Duration::from_micros(300), Duration::from_millis(3)] {
            let at = Instant::now() + after;
            timer.set(at).unwrap();
            timer.fired().await.unwrap();
            assert!(Instant::now() >= at, "{after:?}");
        }
        assert!(fires_again().await.is_err());
    }

    #[tokio::test]
    async fn the_last_time_counts_even_if_it_has_fired_and_nobody_has_heard() {
        let timer = Timer::at(Instant::now()).unwrap();
        tokio::time::timeout(Duration::from_millis(20), std::future::pending::<()>())
            .await
            .unwrap_err();
        // It has fired by now.
        let at = Instant::now() + Duration::from_millis(5);
        timer.set(at).unwrap();
        timer.fired().await.unwrap();
        assert!(Instant::now() >= at);
    }
}
