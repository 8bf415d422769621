//! Counters that never go below zero.

/// Subtracts `by`. Subtracting more than was counted is a defect: debug builds and the simulation stop at it, and a
/// release build stops at zero instead of wrapping round to a huge number.
pub(super) fn less(counter: &mut usize, by: usize) {
    debug_assert!(*counter >= by, "cannot subtract {by} from {counter}");
    *counter = counter.saturating_sub(by);
}
