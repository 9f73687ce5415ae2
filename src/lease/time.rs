//! Seconds and ticks.

use std::time::Duration;

/// Converts between seconds and ticks of one length.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    tick_ns: u128,
}

const SECOND_NS: u128 = 1_000_000_000;

impl Scale {
    pub fn new(tick: Duration) -> Self {
        Self { tick_ns: tick.as_nanos().max(1) }
    }

    /// Ticks that last at least so many seconds; none for less than one.
    pub fn ticks(self, seconds: i64) -> u64 {
        let ns = u128::try_from(seconds).unwrap_or(0) * SECOND_NS;
        // Far beyond every deadline, and still safe to add to one.
        const MOST: u64 = u64::MAX / 4;
        u64::try_from(ns.div_ceil(self.tick_ns)).map_or(MOST, |ticks| ticks.min(MOST))
    }

    /// The whole seconds in so many ticks.
    pub fn seconds(self, ticks: u64) -> i64 {
        let seconds = u128::from(ticks).saturating_mul(self.tick_ns) / SECOND_NS;
        i64::try_from(seconds).unwrap_or(i64::MAX)
    }

    /// Whole seconds that last at least so many ticks.
    pub fn seconds_up(self, ticks: u64) -> i64 {
        let seconds = u128::from(ticks).saturating_mul(self.tick_ns).div_ceil(SECOND_NS);
        i64::try_from(seconds).unwrap_or(i64::MAX)
    }

    /// How many of something may happen in one tick, at least one, when so
    /// many may in a second.
    pub fn share(self, per_second: u64) -> u64 {
        let share = u128::from(per_second).saturating_mul(self.tick_ns).div_ceil(SECOND_NS);
        u64::try_from(share).unwrap_or(u64::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_round_up_and_remaining_seconds_as_asked() {
        let scale = Scale::new(Duration::from_millis(300));
        assert_eq!([0, 1, 2, 3].map(|s| scale.ticks(s)), [0, 4, 7, 10]);
        assert_eq!((scale.seconds(4), scale.seconds_up(4)), (1, 2));
        assert_eq!((scale.seconds(10), scale.seconds_up(10)), (3, 3));
        assert_eq!((scale.share(1), scale.share(5000)), (1, 1500));
    }

    #[test]
    fn nothing_overflows() {
        for tick in [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(1 << 40)] {
            let scale = Scale::new(tick);
            for seconds in [i64::MIN, -1, 0, 1, 9_000_000_000, i64::MAX] {
                let ticks = scale.ticks(seconds);
                assert!(ticks <= u64::MAX / 4);
                assert_eq!(ticks == 0, seconds <= 0);
            }
            assert!(scale.seconds(u64::MAX) >= 0 && scale.seconds_up(u64::MAX) > 0);
            assert!(scale.share(u64::MAX) >= 1);
        }
    }
}
