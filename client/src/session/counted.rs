//! Counters that never go below nothing.

/// Counts less. What was not counted before cannot be taken away: that would be a defect, which a debug build and the
/// simulation stop at, and which a release build keeps from growing into a number that is far too large.
pub(super) fn less(counter: &mut usize, by: usize) {
    debug_assert!(*counter >= by, "{by} was not counted, only {counter}");
    *counter = counter.saturating_sub(by);
}
