//! What of a stream's log leaves its window.

/// How much of a stream is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Newest events, at most.
    pub events: u64,
    /// How old they get, in microseconds.
    pub age_us: i64,
}

impl Window {
    /// The last position that is past the count; 0 if none is.
    pub fn past_count(&self, head_seq: u64) -> u64 {
        head_seq.saturating_sub(self.events)
    }

    /// When a frame leaves for its age. Its newest event decides, and times never go back within a stream.
    pub fn leaves_at(&self, last_at_us: i64) -> i64 {
        last_at_us.saturating_add(self.age_us)
    }

    /// Whether it has left.
    pub fn is_past_age(&self, last_at_us: i64, now_us: i64) -> bool {
        self.leaves_at(last_at_us) < now_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_events_stay_and_none_gets_too_old() {
        let window = Window {
            events: 10,
            age_us: 100,
        };
        assert_eq!([9, 10, 11, 25].map(|head| window.past_count(head)), [0, 0, 1, 15]);
        assert!(!window.is_past_age(50, 150));
        assert!(window.is_past_age(50, 151));
        assert!(!window.is_past_age(i64::MAX, i64::MAX));
    }
}
