//! Which moment the database shows, for reads that are too short to freeze one.

use std::sync::atomic::{AtomicU64, Ordering};

/// The moment between two apply batches. The state machine moves it on; whoever
/// reads one record needs nothing else to know as of which revision it is.
///
/// All of it is sequentially consistent: whoever finds in the database what a batch
/// has written finds here, too, that the batch has begun.
#[derive(Debug)]
pub(super) struct Epoch {
    /// Counts beginnings and ends of batches: odd while one is being written.
    count: AtomicU64,
    revision: AtomicU64,
    compacted: AtomicU64,
}

impl Epoch {
    /// A database at this revision and this last compaction.
    pub fn new(revision: u64, compacted: u64) -> Self {
        let (revision, compacted) = (AtomicU64::new(revision), AtomicU64::new(compacted));
        Self { count: AtomicU64::new(0), revision, compacted }
    }

    /// A batch is about to be written. Without an end, because that failed, nothing
    /// is ever [read](Self::read) again.
    pub fn begin(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    /// The batch is written, and the database is at this revision and this last
    /// compaction.
    pub fn end(&self, revision: u64, compacted: u64) {
        self.revision.store(revision, Ordering::SeqCst);
        self.compacted.store(compacted, Ordering::SeqCst);
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    /// Reads the database as of the revision and the last compaction that `read` is
    /// given; none when a batch came in between.
    pub fn read<T>(&self, read: impl FnOnce(u64, u64) -> T) -> Option<T> {
        let count = self.count.load(Ordering::SeqCst);
        if !count.is_multiple_of(2) {
            return None;
        }
        let revision = self.revision.load(Ordering::SeqCst);
        let compacted = self.compacted.load(Ordering::SeqCst);
        let read = read(revision, compacted);
        (self.count.load(Ordering::SeqCst) == count).then_some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_while_a_batch_is_written_does_not_count() {
        let epoch = Epoch::new(7, 3);
        let now = || epoch.read(|revision, compacted| (revision, compacted));
        assert_eq!(now(), Some((7, 3)));
        assert_eq!(epoch.read(|_, _| epoch.begin()), None, "it began meanwhile");
        assert_eq!(now(), None, "it has not ended");
        epoch.end(9, 4);
        assert_eq!(now(), Some((9, 4)));
        let whole = epoch.read(|_, _| {
            epoch.begin();
            epoch.end(10, 4);
        });
        assert_eq!(whole, None, "it began and ended meanwhile");
    }
}
