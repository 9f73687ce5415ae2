//! From the apply thread to the watch hub.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    machine::Changes,
    watch::{Input, batch_weight},
};

/// Bytes of changes that may wait. What comes beyond is dropped: the hub reads
/// it from the history, rather than keeping the apply thread waiting.
const MAX_WAITING_BYTES: usize = 16 << 20;

/// A bounded queue that never makes the apply thread wait. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct WatchFeed {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    // A lock because the apply thread fills it and the pump empties it; held
    // for a few moves.
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Whether anybody wants the batches.
    followed: bool,
    revision: u64,
    compacted: u64,
    /// The store's revision after the last batch that was dropped.
    missed: Option<u64>,
    /// What came after it.
    batches: Vec<Changes>,
    bytes: usize,
}

impl WatchFeed {
    /// Begins with a store at this revision and this last compaction.
    pub fn new(revision: u64, compacted: u64) -> Self {
        let waiting = Waiting { revision, compacted, ..Waiting::default() };
        Self { shared: Arc::new(Shared { waiting: Mutex::new(waiting), arrived: Notify::new() }) }
    }

    /// A batch was applied; must be called before anybody is told of its
    /// outcomes, so that whoever opens a watch afterwards opens it after them.
    pub fn applied(&self, changes: Changes) {
        let mut waiting = self.shared.waiting.lock();
        let (revision, compacted) = (changes.revision, changes.compacted);
        let is_news = revision != waiting.revision || compacted != waiting.compacted;
        (waiting.revision, waiting.compacted) = (revision, compacted);
        if !waiting.followed || !is_news {
            return;
        }
        let bytes = batch_weight(&changes);
        if waiting.bytes + bytes > MAX_WAITING_BYTES {
            waiting.drop_batches();
        } else {
            waiting.bytes += bytes;
            waiting.batches.push(changes);
        }
        drop(waiting);
        self.shared.arrived.notify_one();
    }

    /// The state was replaced by a later one.
    pub fn jumped(&self, revision: u64, compacted: u64) {
        let mut waiting = self.shared.waiting.lock();
        (waiting.revision, waiting.compacted) = (revision, compacted);
        if waiting.followed {
            waiting.drop_batches();
            drop(waiting);
            self.shared.arrived.notify_one();
        }
    }

    /// Has what is applied from now on queued. Gives what was missed until
    /// now.
    pub fn follow(&self) -> Input {
        let mut waiting = self.shared.waiting.lock();
        waiting.followed = true;
        Input::Jumped { revision: waiting.revision, compacted: waiting.compacted }
    }

    /// Nobody wants the batches any more.
    pub fn unfollow(&self) {
        let mut waiting = self.shared.waiting.lock();
        let Waiting { revision, compacted, .. } = *waiting;
        *waiting = Waiting { revision, compacted, ..Waiting::default() };
    }

    /// Waits until something has arrived since this was last waited for.
    pub async fn arrived(&self) {
        self.shared.arrived.notified().await;
    }

    /// Takes out everything that waits, in order.
    pub fn take(&self) -> Vec<Input> {
        let mut waiting = self.shared.waiting.lock();
        waiting.bytes = 0;
        let compacted = waiting.compacted;
        let missed = waiting.missed.take();
        let batches = std::mem::take(&mut waiting.batches);
        drop(waiting);
        let jump = missed.map(|revision| Input::Jumped { revision, compacted });
        jump.into_iter().chain(batches.into_iter().map(Input::Applied)).collect()
    }
}

impl Waiting {
    fn drop_batches(&mut self) {
        self.batches.clear();
        self.bytes = 0;
        self.missed = Some(self.revision);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        machine::RevisionChanges,
        proto::{Change, KeyRecord},
    };

    fn batch(revision: u64, value_bytes: usize) -> Changes {
        let record = KeyRecord { value: vec![b'v'; value_bytes].into(), ..KeyRecord::default() };
        let change = Change { key: Bytes::from("k"), record: Some(record), ..Change::default() };
        let revisions = vec![RevisionChanges { revision, changes: vec![change] }];
        Changes { revisions, revision, ..Changes::default() }
    }

    /// Jumps as negative numbers.
    fn taken(feed: &WatchFeed) -> Vec<i64> {
        let revision = |input: &Input| match input {
            Input::Applied(changes) => changes.revision as i64,
            Input::Jumped { revision, .. } => -(*revision as i64),
            other => panic!("{other:?}"),
        };
        feed.take().iter().map(revision).collect()
    }

    #[test]
    fn nothing_is_queued_for_nobody_and_nothing_is_missed_afterwards() {
        let feed = WatchFeed::new(1, 0);
        feed.applied(batch(2, 1));
        assert!(taken(&feed).is_empty());
        let Input::Jumped { revision, .. } = feed.follow() else { panic!("not a jump") };
        assert_eq!(revision, 2);
        feed.applied(batch(3, 1));
        feed.applied(batch(4, 1));
        assert_eq!(taken(&feed), [3, 4]);
        feed.applied(batch(5, 1));
        feed.unfollow();
        assert!(taken(&feed).is_empty());
        let Input::Jumped { revision, .. } = feed.follow() else { panic!("not a jump") };
        assert_eq!(revision, 5);
    }

    #[test]
    fn what_does_not_fit_becomes_a_jump() {
        let feed = WatchFeed::new(1, 0);
        feed.follow();
        let third = MAX_WAITING_BYTES / 3 / 3;
        (2..=4).for_each(|revision| feed.applied(batch(revision, third)));
        feed.applied(batch(5, 1));
        assert_eq!(taken(&feed), [-4, 5]);
        feed.applied(batch(6, 1));
        feed.jumped(9, 3);
        feed.applied(batch(10, 1));
        assert_eq!(taken(&feed), [-9, 10]);
    }

    #[tokio::test]
    async fn arrivals_are_remembered_until_waited_for() {
        let feed = WatchFeed::new(1, 0);
        feed.follow();
        feed.applied(batch(2, 1));
        feed.arrived().await;
        assert_eq!(taken(&feed), [2]);
        let mut compaction = Changes { revision: 2, compacted: 2, ..Changes::default() };
        feed.applied(compaction.clone());
        feed.arrived().await;
        assert_eq!(taken(&feed), [2]);
        compaction.revisions.clear();
        feed.applied(compaction);
        assert!(taken(&feed).is_empty(), "the same again is no news");
    }
}
