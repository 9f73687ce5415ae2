//! What came of requests.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;

use crate::failure::Trouble;

/// The longest latency that is told apart, in nanoseconds.
const MAX_LATENCY_NS: u64 = 60_000_000_000;
/// Latencies are exact to so many decimal digits.
const DIGITS: u8 = 3;
/// Different errors that are counted by themselves.
const MAX_KINDS: usize = 32;

/// Counts of one thread, or of all.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Of each success, in nanoseconds.
    latencies: Histogram<u64>,
    /// Requests without a good answer, by what happened.
    errors: BTreeMap<String, u64>,
}

impl Default for Tally {
    fn default() -> Self {
        let latencies = Histogram::new_with_bounds(1, MAX_LATENCY_NS, DIGITS);
        // The bounds are constants that it takes, as every test shows.
        let latencies = latencies.expect("bounds of a histogram");
        Self { latencies, errors: BTreeMap::new() }
    }
}

impl Tally {
    /// One success.
    pub fn succeeded(&mut self, latency: Duration) {
        self.latencies.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// One request without a good answer.
    pub fn failed(&mut self, trouble: &Trouble) {
        self.add_errors(trouble.to_string(), 1);
    }

    fn add_errors(&mut self, kind: String, count: u64) {
        let is_known = self.errors.len() < MAX_KINDS || self.errors.contains_key(&kind);
        let kind = if is_known { kind } else { "others".to_owned() };
        *self.errors.entry(kind).or_default() += count;
    }

    /// Adds what another counted.
    pub fn merge(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.latencies.add(&other.latencies);
        for (kind, count) in &other.errors {
            self.add_errors(kind.clone(), *count);
        }
    }

    /// How many succeeded.
    pub fn count(&self) -> u64 {
        self.latencies.len()
    }

    /// Requests without a good answer, by what happened.
    pub fn errors(&self) -> &BTreeMap<String, u64> {
        &self.errors
    }

    /// The latency that so many percent do not exceed, in microseconds; 0 when
    /// nothing succeeded.
    pub fn percentile_us(&self, percent: f64) -> f64 {
        self.latencies.value_at_percentile(percent) as f64 / 1e3
    }

    /// The longest one, in microseconds.
    pub fn longest_us(&self) -> f64 {
        self.latencies.max() as f64 / 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_successes_of_all() {
        let mut all = Tally::default();
        for thread in 0..2 {
            let mut one = Tally::default();
            for number in 1..=500 {
                one.succeeded(Duration::from_micros(2 * number - thread));
            }
            one.failed(&Trouble::Late);
            all.merge(&one);
        }
        assert_eq!(all.count(), 1_000);
        for (percent, micros) in [(50.0, 500.0), (99.0, 990.0), (99.9, 999.0)] {
            let told = all.percentile_us(percent);
            assert!((told - micros).abs() <= micros / 500.0, "{percent}: {told}");
        }
        assert!((all.longest_us() - 1_000.0).abs() < 1.0);
        assert_eq!(all.errors()["no answer in time"], 2);
    }

    #[test]
    fn errors_of_many_kinds_take_little_memory() {
        let mut tally = Tally::default();
        for number in 0..1_000 {
            tally.failed(&Trouble::Refused(format!("refusal {number}")));
        }
        assert_eq!(tally.errors().len(), MAX_KINDS + 1);
        assert_eq!(tally.errors().values().sum::<u64>(), 1_000);
        assert!(tally.percentile_us(50.0).abs() < f64::EPSILON);
    }

    #[test]
    fn what_takes_for_ever_counts_as_the_longest() {
        let mut tally = Tally::default();
        tally.succeeded(Duration::from_secs(3_600));
        assert!(tally.longest_us() >= 5.9e7);
    }
}
