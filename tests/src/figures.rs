//! Figures of a run, and their presentation.

use std::fmt;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Events per second.
pub fn rate(events: u64, took: Duration) -> f64 {
    events as f64 / took.as_secs_f64().max(1e-9)
}

/// Many values of one kind, of which percentiles are told. They are kept with three significant digits, so a million of
/// them take no more memory than a thousand.
#[derive(Debug, Clone)]
pub struct Samples(Histogram<u64>);

/// Percentiles of a latency, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// The median.
    pub p50_ms: f64,
    /// Of a hundred, one takes longer.
    pub p99_ms: f64,
    /// Of a thousand, one takes longer.
    pub p999_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Default for Samples {
    fn default() -> Self {
        // Infallible: three digits are among the one to five that a histogram may have.
        Self(Histogram::new(3).expect("three significant digits"))
    }
}

impl Samples {
    /// One more value.
    pub fn record(&mut self, value: u64) {
        // Infallible: it grows by itself.
        self.0.record(value).expect("it grows");
    }

    /// One more latency, in microseconds. What was seen before its cause counts as seen at once: a client may apply an event
    /// before its writer hears of the commit.
    pub fn record_us(&mut self, us: i64) {
        self.record(u64::try_from(us).unwrap_or_default());
    }

    /// All values of others, too.
    pub fn add(&mut self, others: &Self) {
        // Infallible: a histogram that grows by itself has room for what another one has.
        self.0.add(&others.0).expect("it grows");
    }

    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The value that this percentage of the values does not exceed. `None` without values.
    pub fn percentile(&self, of_hundred: f64) -> Option<u64> {
        (!self.0.is_empty()).then(|| self.0.value_at_percentile(of_hundred).min(self.0.max()))
    }

    /// The percentiles of latencies in microseconds. `None` without values.
    pub fn latency(&self) -> Option<Percentiles> {
        let ms = |of_hundred| Some(self.percentile(of_hundred)? as f64 / 1_000.0);
        Some(Percentiles {
            p50_ms: ms(50.0)?,
            p99_ms: ms(99.0)?,
            p999_ms: ms(99.9)?,
            max_ms: ms(100.0)?,
        })
    }
}

impl Extend<u64> for Samples {
    fn extend<T: IntoIterator<Item = u64>>(&mut self, values: T) {
        values.into_iter().for_each(|value| self.record(value));
    }
}

impl FromIterator<u64> for Samples {
    fn from_iter<T: IntoIterator<Item = u64>>(values: T) -> Self {
        let mut samples = Self::default();
        samples.extend(values);
        samples
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            p50_ms,
            p99_ms,
            p999_ms,
            max_ms,
        } = self;
        write!(
            f,
            "p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms, p99.9 {p999_ms:.2} ms, max {max_ms:.2} ms"
        )
    }
}

/// The median of a few values.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    f64::midpoint(at(values.len().saturating_sub(1) / 2), at(values.len() / 2))
}

/// The median of what was measured, and what it lies between with a certainty of 95 %.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Middle {
    /// The median.
    pub median: f64,
    /// At least this.
    pub low: f64,
    /// At most this.
    pub high: f64,
}

/// The median, and what it lies between whatever the distribution is: of values that lie on either side of the true one by the toss of a
/// coin, so many on one side are rare. Five values or less say too little, so all of them are between.
pub fn middle(values: &mut [f64]) -> Middle {
    let median = median(values);
    let count = values.len();
    // How likely it is that at most so many of the values lie on one side.
    let mut exactly = 0.5_f64.powi(i32::try_from(count).unwrap_or(i32::MAX));
    let (mut at_most, mut outside) = (exactly, 0);
    while outside < count / 2 && at_most <= 0.025 {
        exactly *= (count - outside) as f64 / (outside + 1) as f64;
        at_most += exactly;
        outside += 1;
    }
    let beyond = outside.saturating_sub(1);
    Middle {
        median,
        low: values.get(beyond).copied().unwrap_or(f64::NAN),
        high: values.iter().rev().nth(beyond).copied().unwrap_or(f64::NAN),
    }
}

/// Seconds since the start, for progress lines.
pub fn since(started: Instant) -> String {
    format!("{:6.1}s", started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_values() {
        let latency = (1..=10_000).map(|at| at * 100).collect::<Samples>().latency().unwrap();
        for (found, expected) in [
            (latency.p50_ms, 500.0),
            (latency.p99_ms, 990.0),
            (latency.p999_ms, 999.0),
            (latency.max_ms, 1_000.0),
        ] {
            assert!((found / expected - 1.0).abs() < 0.001, "{found}, expected {expected}");
        }
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert!(median(&mut []).is_nan());
        for (mut values, expected) in [
            (vec![3.0], 3.0),
            (vec![9.0, 1.0, 2.0], 2.0),
            (vec![4.0, 1.0, 9.0, 2.0], 3.0),
        ] {
            assert!((median(&mut values) - expected).abs() < 1e-9, "{values:?}");
        }
    }

    #[test]
    fn the_middle_lies_between_values_that_are_as_far_out_as_their_number_allows() {
        // From tables of the sign test: the 7th and the 18th of 24 values, the 2nd and the 8th of 9.
        for (count, low, high) in [(24, 7, 18), (9, 2, 8), (8, 1, 8), (6, 1, 6), (5, 1, 5), (1, 1, 1)] {
            let mut values: Vec<f64> = (1..=count).rev().map(f64::from).collect();
            let middle = middle(&mut values);
            assert_eq!((middle.low, middle.high), (f64::from(low), f64::from(high)), "{count}");
            assert!((middle.median - f64::midpoint(1.0, f64::from(count))).abs() < 1e-9);
        }
        assert!(middle(&mut []).low.is_nan());
    }

    #[test]
    fn one_value_is_every_percentile() {
        let mut samples = Samples::default();
        assert_eq!(samples.latency(), None);
        samples.record_us(1_234_567);
        let latency = samples.latency().unwrap();
        assert_eq!(latency.p50_ms, latency.max_ms);
        assert!((latency.max_ms / 1_234.567 - 1.0).abs() < 0.001, "{latency}");
    }

    #[test]
    fn what_is_seen_before_its_cause_is_seen_at_once() {
        let mut samples = Samples::default();
        samples.record_us(-5);
        assert_eq!((samples.count(), samples.percentile(100.0)), (1, Some(0)));
    }
}
