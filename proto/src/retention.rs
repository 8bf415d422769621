//! Retention classes. The longest prefix of a stream's name decides, in authority, bridge and module alike.

/// How long the events of a class of streams are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionClass {
    /// Name of the class.
    pub class: String,
    /// The prefix of its streams' names; the longest matching prefix decides.
    pub stream_prefix: String,
    /// How many of a stream's newest events SpacetimeDB keeps at most.
    pub window_events: u64,
    /// How long SpacetimeDB keeps an event at most, in microseconds.
    pub window_age_us: i64,
    /// Whether clients see its events only once SpacetimeDB holds them durably.
    pub durable_reads: bool,
}

/// The class of a stream. `None` if no class has a prefix of its name.
pub fn class_of<'a, T>(classes: &'a [T], prefix: impl Fn(&T) -> &str, stream_id: &str) -> Option<&'a T> {
    classes
        .iter()
        .filter(|class| stream_id.starts_with(prefix(class)))
        .max_by_key(|class| prefix(class).len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_decides() {
        let classes = ["", "runtime.", "runtime.run_summaries"];
        for (stream_id, expected) in [
            ("other", Some("")),
            ("runtime.run.1.events", Some("runtime.")),
            ("runtime.run_summaries:1", Some("runtime.run_summaries")),
        ] {
            assert_eq!(class_of(&classes, |class| *class, stream_id).copied(), expected);
        }
        assert_eq!(class_of(&classes[1..], |class| *class, "other"), None);
    }
}
