//! How many events go to a relay at once: many while it takes them, one by one after the connection broke. An event that has
//! failed twice goes alone, so what it does to the relay happens to no other one more than twice.

/// An event that has failed so often goes alone.
const ALONE: u32 = 2;

/// How many of these events go together, the first ones, by how often each has failed.
pub fn together(failures: &[u32]) -> usize {
    match failures.first() {
        Some(first) if *first >= ALONE => 1,
        Some(_) | None => failures.iter().take_while(|failures| **failures < ALONE).count(),
    }
}

/// The size of the next batch for a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSize {
    next: usize,
    most: usize,
}

impl BatchSize {
    /// Begins with the most.
    pub fn new(most: usize) -> Self {
        Self { next: most, most }
    }

    /// How many events may go at once.
    pub fn get(self) -> usize {
        self.next
    }

    /// What the last batch says about the next one.
    #[must_use]
    pub fn after(self, is_broken: bool) -> Self {
        let next = if is_broken {
            1
        } else {
            self.next.saturating_mul(2).min(self.most)
        };
        Self { next, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_has_failed_twice_goes_alone() {
        for (failures, expected) in [
            (&[][..], 0),
            (&[0, 1, 0], 3),
            (&[0, 2, 0], 1),
            (&[2, 0, 0], 1),
            (&[5, 5], 1),
            (&[1, 1, 3], 2),
        ] {
            assert_eq!(together(failures), expected, "{failures:?}");
        }
    }

    #[test]
    fn after_a_break_events_go_one_by_one_until_they_pass() {
        let mut size = BatchSize::new(64);
        let mut sizes = vec![size.get()];
        for is_broken in [false, true, true, false, false, false, true] {
            size = size.after(is_broken);
            sizes.push(size.get());
        }
        assert_eq!(sizes, [64, 64, 1, 1, 2, 4, 8, 1]);
    }
}
