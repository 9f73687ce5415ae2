//! When requests are sent, and until when.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::time::{sleep, sleep_until};

use crate::{failure::Trouble, tally::Tally};

/// Pause after a connection failed.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a run lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// So many requests.
    Total(u64),
    /// So long, after a time that does not count.
    Time {
        /// What does not count.
        warm_up: Duration,
        /// What does.
        measured: Duration,
    },
}

/// The schedule of a run, which all its clients share.
#[derive(Debug)]
pub struct Pace {
    length: Length,
    /// Time between two requests of all clients, if their rate is given.
    interval: Option<Duration>,
    /// When it began, and from when on it counts.
    start: Instant,
    begin: Instant,
    /// Requests begun, of those that are numbered.
    begun: AtomicU64,
    /// Requests that have come to an end.
    done: AtomicU64,
}

/// A request's turn.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// How many turns were before it, where the run has a total or a rate.
    pub number: u64,
    /// When it was to be sent. Latencies count from here: a server that stalls
    /// would otherwise be asked less, and look better than it is.
    due: Instant,
}

impl Pace {
    /// A run that starts now, of so many requests a second if that is given.
    pub fn start(length: Length, rate: Option<u64>) -> Self {
        let start = Instant::now();
        let begin = match length {
            Length::Total(_) => start,
            Length::Time { warm_up, .. } => start + warm_up,
        };
        let interval = rate.map(|rate| Duration::from_secs(1).div_f64(rate.max(1) as f64));
        Self { length, interval, start, begin, begun: AtomicU64::new(0), done: AtomicU64::new(0) }
    }

    /// Waits for the next turn; none when the run is over.
    pub async fn turn(&self) -> Option<Turn> {
        let is_numbered = self.interval.is_some() || matches!(self.length, Length::Total(_));
        let number = if is_numbered { self.begun.fetch_add(1, Ordering::Relaxed) } else { 0 };
        if matches!(self.length, Length::Total(total) if number >= total) {
            return None;
        }
        let due = match self.interval {
            Some(interval) => self.start + interval.mul_f64(number as f64),
            None => Instant::now(),
        };
        if self.end().is_some_and(|end| due >= end) {
            return None;
        }
        if self.interval.is_some() {
            sleep_until(due.into()).await;
        }
        Some(Turn { number, due })
    }

    /// Ends a turn: counts its outcome, if it counts, and after a connection
    /// failed waits a while.
    pub async fn end_turn(&self, turn: Turn, outcome: &Result<(), Trouble>, tally: &Mutex<Tally>) {
        self.done.fetch_add(1, Ordering::Relaxed);
        if let Some(latency) = self.latency(turn) {
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            match outcome {
                Ok(()) => tally.succeeded(latency),
                Err(trouble) => tally.failed(trouble),
            }
        }
        if matches!(outcome, Err(Trouble::Broken(_))) {
            // A member that is gone is not to be asked without end.
            sleep(PAUSE).await;
        }
    }

    /// How long a turn took that ends now, if it counts.
    fn latency(&self, turn: Turn) -> Option<Duration> {
        let now = Instant::now();
        let counts = turn.due >= self.begin && self.end().is_none_or(|end| now < end);
        counts.then(|| now - turn.due)
    }

    fn end(&self) -> Option<Instant> {
        match self.length {
            Length::Total(_) => None,
            Length::Time { measured, .. } => Some(self.begin + measured),
        }
    }

    /// From when on it counts.
    pub fn begin(&self) -> Instant {
        self.begin
    }

    /// How much of the run is over, from 0 to 1.
    pub fn part_done(&self) -> f64 {
        let part = match self.length {
            Length::Total(total) => self.done() as f64 / total.max(1) as f64,
            Length::Time { warm_up, measured } => {
                let whole = (warm_up + measured).as_secs_f64();
                self.start.elapsed().as_secs_f64() / whole.max(f64::MIN_POSITIVE)
            }
        };
        part.min(1.0)
    }

    /// Requests that have come to an end.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// The time that counts, once the run is over.
    pub fn measured(&self) -> Duration {
        match self.length {
            Length::Total(_) => self.begin.elapsed(),
            Length::Time { measured, .. } => measured,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_total_is_given_out_once() {
        let pace = Pace::start(Length::Total(3), None);
        let tally = Mutex::default();
        for outcome in [Ok(()), Err(Trouble::Late), Ok(())] {
            let turn = pace.turn().await.expect("a turn");
            pace.end_turn(turn, &outcome, &tally).await;
        }
        assert!(pace.turn().await.is_none());
        assert_eq!(pace.done(), 3);
        let tally = tally.into_inner().expect("a tally");
        assert_eq!((tally.count(), tally.errors().len()), (2, 1));
        assert!((pace.part_done() - 1.0).abs() < f64::EPSILON);
    }

    #[tokio::test]
    async fn latency_counts_from_when_a_request_was_due() {
        let pace = Pace::start(Length::Total(100), Some(1_000));
        let first = pace.turn().await.expect("a turn");
        let second = pace.turn().await.expect("a turn");
        assert_eq!(second.due - first.due, Duration::from_millis(1));
        // The second has to wait for the server, who takes a while.
        std::thread::sleep(Duration::from_millis(5));
        assert!(pace.latency(second) >= Some(Duration::from_millis(5)));
    }

    #[tokio::test]
    async fn what_is_not_within_the_measured_time_does_not_count() {
        let hour = Duration::from_secs(3_600);
        let pace = Pace::start(Length::Time { warm_up: hour, measured: hour }, None);
        let turn = pace.turn().await.expect("a turn");
        assert_eq!(pace.latency(turn), None);
        let pace = Pace::start(Length::Time { warm_up: Duration::ZERO, measured: hour }, None);
        let turn = pace.turn().await.expect("a turn");
        assert!(pace.latency(turn).is_some());
        let over = Length::Time { warm_up: Duration::ZERO, measured: Duration::ZERO };
        assert!(Pace::start(over, None).turn().await.is_none());
        assert!(Pace::start(over, Some(1)).turn().await.is_none());
    }
}
