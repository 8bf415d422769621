//! The events: made by the publisher, checked by the consumer.

use anyhow::Context as _;
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngCore as _, SeedableRng as _};

/// The bytes of an event.
pub(crate) const SIZE: usize = 512;
/// How many bytes an event's number takes. They are its first ones.
const NUMBER: usize = 8;

/// The events of a stream, in order.
pub(crate) struct Events {
    random: SmallRng,
    last: u64,
}

impl Events {
    /// The events of the stream with this number.
    pub(crate) fn of(stream: usize) -> Self {
        Self {
            random: SmallRng::seed_from_u64(stream as u64),
            last: 0,
        }
    }

    /// The next events.
    pub(crate) fn next(&mut self, count: usize) -> Vec<Bytes> {
        (0..count).map(|_| self.event()).collect()
    }

    fn event(&mut self) -> Bytes {
        self.last += 1;
        let mut event = vec![0; SIZE];
        let (number, random) = event.split_at_mut(NUMBER);
        number.copy_from_slice(&self.last.to_be_bytes());
        self.random.fill_bytes(random);
        Bytes::from(event)
    }
}

/// What a consumer has seen of a stream.
#[derive(Default)]
pub(crate) struct Order {
    last: u64,
}

impl Order {
    /// How many events were seen.
    pub(crate) fn seen(&self) -> u64 {
        self.last
    }

    /// Takes the next event, and fails if it is another one.
    pub(crate) fn take(&mut self, event: &[u8]) -> anyhow::Result<u64> {
        anyhow::ensure!(
            event.len() == SIZE,
            "an event has {} bytes instead of {SIZE}",
            event.len()
        );
        let number = event.first_chunk().context("an event without a number")?;
        let (number, expected) = (u64::from_be_bytes(*number), self.last + 1);
        anyhow::ensure!(number == expected, "event {number} came instead of event {expected}");
        self.last = number;
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(order: &mut Order, event: &[u8]) -> String {
        order
            .take(event)
            .map_or_else(|error| error.to_string(), |number| number.to_string())
    }

    #[test]
    fn only_the_next_event_is_taken() {
        let events = Events::of(0).next(3);
        let mut order = Order::default();
        assert_eq!(taken(&mut order, &events[0]), "1");
        assert_eq!(taken(&mut order, &events[0]), "event 1 came instead of event 2");
        assert_eq!(taken(&mut order, &events[2]), "event 3 came instead of event 2");
        assert_eq!(
            taken(&mut order, &events[1][..100]),
            "an event has 100 bytes instead of 512"
        );
        assert_eq!(taken(&mut order, &events[1]), "2");
        assert_eq!(order.seen(), 2);
    }

    #[test]
    fn streams_have_events_of_their_own() {
        assert_ne!(Events::of(0).next(1), Events::of(1).next(1));
        assert_eq!(Events::of(1).next(2), Events::of(1).next(2));
    }
}
