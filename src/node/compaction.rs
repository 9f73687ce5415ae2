//! Compaction by itself: which revision may be forgotten when.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::Parts;
use crate::{
    config::AutoCompaction,
    proto::{Compact, command::Op},
};

/// How often revisions are compacted in revision mode, as in etcd.
const REVISION_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// The longest pause between compactions in periodic mode, as in etcd.
const MAX_PERIODIC_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Samples of the revision within one retention: as exact as a tenth of it.
const SAMPLES: u32 = 10;

/// Decides when to compact to what. Every member follows the revision, so that
/// a new leader knows the past too; only the leader's decisions are carried out.
#[derive(Debug)]
pub(super) struct Compactor {
    mode: AutoCompaction,
    /// Revisions by age, oldest first, no further back than the retention and
    /// one sample.
    samples: VecDeque<(Instant, u64)>,
    last: Instant,
}

impl Compactor {
    fn new(mode: AutoCompaction, now: Instant) -> Self {
        Self { mode, samples: VecDeque::new(), last: now }
    }

    /// How long to wait before the next [`Compactor::look`].
    fn pause(&self) -> Option<Duration> {
        match self.mode {
            AutoCompaction::Off => None,
            AutoCompaction::Periodic(retention) => Some(retention / SAMPLES),
            AutoCompaction::Revision(_) => Some(REVISION_INTERVAL),
        }
    }

    /// Takes note of the present revision, and names the one to compact to if
    /// it is time.
    fn look(&mut self, now: Instant, revision: u64) -> Option<u64> {
        match self.mode {
            AutoCompaction::Off => None,
            AutoCompaction::Revision(kept) => revision.checked_sub(kept).filter(|to| *to > 0),
            AutoCompaction::Periodic(retention) => {
                self.samples.push_back((now, revision));
                let old =
                    |sample: &(Instant, u64)| now.saturating_duration_since(sample.0) >= retention;
                while self.samples.get(1).is_some_and(old) {
                    self.samples.pop_front();
                }
                let to =
                    self.samples.front().filter(|sample| old(sample)).map(|sample| sample.1)?;
                if now.saturating_duration_since(self.last) < retention.min(MAX_PERIODIC_INTERVAL) {
                    return None;
                }
                self.last = now;
                Some(to)
            }
        }
    }
}

impl Parts {
    /// Compacts from time to time while this member leads.
    pub(super) async fn compact_by_itself(&self) {
        let mut compactor = Compactor::new(self.config.auto_compaction, Instant::now());
        while let Some(pause) = compactor.pause() {
            tokio::time::sleep(pause).await;
            let status = self.handle.status();
            let Some(to) = compactor.look(Instant::now(), status.revision) else { continue };
            let compacted = match self.handle.view().map(|view| view.compacted()) {
                Ok(Ok(compacted)) => compacted,
                Ok(Err(fatal)) => return self.handle.fail(fatal),
                Err(_) => continue,
            };
            if status.leader_id != self.config.id || to <= compacted {
                continue;
            }
            match self.handle.submit(Op::Compact(Compact { revision: to })).await {
                Ok(_) => slog::info!(self.logger, "compacted the history up to revision {to}"),
                Err(why) => slog::warn!(self.logger, "cannot compact to revision {to}: {why}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn periodic_mode_keeps_what_is_younger_than_the_retention() {
        let start = Instant::now();
        let mut compactor = Compactor::new(AutoCompaction::Periodic(10 * SECOND), start);
        let mut compactions = Vec::new();
        for second in 1..=40_u32 {
            // One write a second: the revision is the second.
            let now = start + second * SECOND;
            compactions.extend(compactor.look(now, second.into()).map(|to| (second, to)));
        }
        assert_eq!(compactions, [(11, 1), (21, 11), (31, 21)]);
        assert!(compactor.samples.len() <= SAMPLES as usize + 2);
    }

    #[test]
    fn a_long_retention_is_compacted_hourly() {
        let start = Instant::now();
        let retention = 72 * 3600 * SECOND;
        let mut compactor = Compactor::new(AutoCompaction::Periodic(retention), start);
        let pause = compactor.pause().expect("on");
        let mut last = 0;
        for look in 1..=40_u32 {
            let now = start + look * pause;
            if let Some(to) = compactor.look(now, look.into()) {
                assert!(look - u32::try_from(to).expect("small") >= SAMPLES);
                assert!(to > last);
                last = to;
            }
        }
        assert_eq!(last, 30);
    }

    #[test]
    fn revision_mode_keeps_so_many_revisions() {
        let now = Instant::now();
        let mut compactor = Compactor::new(AutoCompaction::Revision(100), now);
        assert_eq!(compactor.look(now, 100), None);
        assert_eq!(compactor.look(now, 101), Some(1));
        assert_eq!(compactor.look(now, 5000), Some(4900));
    }

    #[test]
    fn off_is_off() {
        let now = Instant::now();
        let mut compactor = Compactor::new(AutoCompaction::Off, now);
        assert_eq!(compactor.pause(), None);
        assert_eq!(compactor.look(now, 5000), None);
    }
}
