//! At most one of something in a while.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How often the same kind of complaint about peers is logged.
pub(super) const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Lets the first caller pass, and then one in each interval.
#[derive(Debug)]
pub(super) struct Throttle {
    interval: Duration,
    // A lock because callers run in several tasks; held for a comparison.
    passed: Mutex<Option<Instant>>,
}

impl Throttle {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, passed: Mutex::new(None) }
    }

    pub(super) fn pass(&self) -> bool {
        let now = Instant::now();
        let mut passed = self.passed.lock();
        if passed.is_some_and(|at| now.duration_since(at) < self.interval) {
            return false;
        }
        *passed = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_of_a_burst_passes() {
        let throttle = Throttle::new(Duration::from_secs(3600));
        assert!(throttle.pass());
        assert!(!throttle.pass());
        let open = Throttle::new(Duration::ZERO);
        assert!(open.pass() && open.pass());
    }
}
