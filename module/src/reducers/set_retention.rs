//! Sets how long events are held. The bridge passes on the authority's policy.

use spacetime_sync_proto::limit;
use spacetimedb::{ReducerContext, SpacetimeType, Table, reducer};

use crate::access::operator;
use crate::log_access::trust_row;
use crate::refuse::{Refused, invalid_argument};
use crate::tables::{LogWindow, RetentionClass, log_window, retention_class};

/// A class of streams whose names share a prefix.
#[derive(SpacetimeType)]
pub struct RetentionRule {
    pub class: String,
    pub stream_prefix: String,
    /// How many of a stream's newest events are held at most.
    pub window_events: u64,
    /// How old an event may get, in microseconds.
    pub window_age: i64,
    /// Whether clients may see its events only once they are durable.
    pub durable_reads: bool,
}

/// Sets all classes at once and removes those that are not in `rules`. A stream without a class keeps everything.
#[reducer]
pub fn set_retention(ctx: &ReducerContext, rules: Vec<RetentionRule>) -> Result<(), Refused> {
    operator(ctx, &trust_row(ctx)?)?;
    if rules.len() > limit::RETENTION_CLASSES {
        return Err(invalid_argument(format!(
            "the policy has {} classes, at most {} are allowed",
            rules.len(),
            limit::RETENTION_CLASSES
        )));
    }
    for rule in &rules {
        let named = (1..=limit::NAME_BYTES).contains(&rule.class.len());
        let bounded =
            rule.stream_prefix.len() <= limit::STREAM_ID_BYTES && rule.window_events > 0 && rule.window_age > 0;
        if !(named && bounded) {
            return Err(invalid_argument(format!(
                "class {:?}: expected a name, a prefix of at most {} bytes, a count and an age above 0",
                rule.class,
                limit::STREAM_ID_BYTES
            )));
        }
    }
    let held = ctx.db.retention_class();
    let before: Vec<_> = held.iter().collect();
    // The bridge sends the policy on every link. A repeat costs nothing, however many windows there are.
    if are_the_same(&before, &rules) {
        return Ok(());
    }
    for row in before {
        held.class().delete(row.class);
    }
    for rule in rules {
        held.try_insert(RetentionClass {
            class: rule.class,
            stream_prefix: rule.stream_prefix,
            window_events: rule.window_events,
            window_age: rule.window_age,
            durable_reads: rule.durable_reads,
        })
        .map_err(|error| invalid_argument(format!("two rules name the same class: {error}")))?;
    }
    // The new rules may allow less than the old ones, so every stream is due.
    let windows: Vec<LogWindow> = ctx
        .db
        .log_window()
        .iter()
        .filter(|row| row.due_at > ctx.timestamp)
        .collect();
    for row in windows {
        ctx.db.log_window().stream_key().update(LogWindow {
            due_at: ctx.timestamp,
            ..row
        });
    }
    Ok(())
}

/// Whether the table already holds exactly these rules.
fn are_the_same(held: &[RetentionClass], rules: &[RetentionRule]) -> bool {
    let same = |row: &RetentionClass, rule: &RetentionRule| {
        row.class == rule.class
            && row.stream_prefix == rule.stream_prefix
            && row.window_events == rule.window_events
            && row.window_age == rule.window_age
            && row.durable_reads == rule.durable_reads
    };
    held.len() == rules.len()
        && held.iter().all(|row| rules.iter().any(|rule| same(row, rule)))
        && rules.iter().all(|rule| held.iter().any(|row| same(row, rule)))
}
