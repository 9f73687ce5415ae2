//! Which history nobody needs any more.
//!
//! Compaction of the key space is a number in the replicated state. What it
//! makes worthless in the families `changes`, `deleted` and `history` goes when
//! RocksDB rewrites the files that hold it, through a filter, or with the files
//! that hold nothing else. Both ignore frozen views, and a crash does not undo
//! them. So they may go only up to a [`Floor`]: the least of what is durably
//! compacted and of what a running reader needs.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use prost::Message;

use super::{Family, keys};
use crate::proto::Tombstone;

/// The revision up to which `deleted` and `history`, and before which
/// `changes`, may be forgotten, all of one state database. It only ever rises.
/// Cheap to clone; clones are the same floor.
#[derive(Debug, Clone, Default)]
pub struct Floor(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// What the filter reads, for every entry it sees.
    revision: AtomicU64,
    // A lock, because any thread may begin or end to read while the writer
    // compacts. Held for a look-up.
    bounds: Mutex<Bounds>,
}

#[derive(Debug, Default)]
struct Bounds {
    /// The last compaction that was written, durably or not.
    compacted: u64,
    /// The last compaction that is known to be durable.
    durable: u64,
    /// The revisions that are being read, and by how many.
    read: BTreeMap<u64, usize>,
}

impl Floor {
    /// The floor: of the history, what ended at a revision up to it may be
    /// forgotten.
    pub fn revision(&self) -> u64 {
        self.0.revision.load(Ordering::Acquire)
    }

    /// Notes that the database holds a compaction to this revision. It counts
    /// once a flush that begins after this has made it durable.
    pub fn compacted(&self, revision: u64) {
        let mut bounds = self.0.bounds.lock();
        bounds.compacted = bounds.compacted.max(revision);
        if mutant!(ForgetBeforeDurable) {
            self.rise(&bounds);
        }
    }

    /// Whether a compaction waits for a flush to make it durable.
    pub fn is_behind(&self) -> bool {
        let bounds = self.0.bounds.lock();
        bounds.compacted > bounds.durable
    }

    /// Keeps what reads of the state at `revision` need, until the guard is
    /// dropped. The reader must freeze its moment after this, and must refuse
    /// to read below the compaction it finds there: that one is never behind
    /// what was forgotten before.
    pub fn keep(&self, revision: u64) -> Kept {
        *self.0.bounds.lock().read.entry(revision).or_default() += 1;
        Kept { floor: self.clone(), revision }
    }

    /// Runs a flush; compactions noted before it are durable if it succeeds.
    pub(super) fn across_flush<E>(&self, flush: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let compacted = self.0.bounds.lock().compacted;
        flush()?;
        let mut bounds = self.0.bounds.lock();
        bounds.durable = bounds.durable.max(compacted);
        self.rise(&bounds);
        Ok(())
    }

    fn rise(&self, bounds: &Bounds) {
        let oldest = bounds.read.keys().next().copied().unwrap_or(u64::MAX);
        let known = if mutant!(ForgetBeforeDurable) { bounds.compacted } else { bounds.durable };
        self.0.revision.fetch_max(known.min(oldest), Ordering::AcqRel);
    }
}

/// Keeps the history that a reader needs; see [`Floor::keep`].
#[derive(Debug)]
pub struct Kept {
    floor: Floor,
    revision: u64,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut bounds = self.floor.0.bounds.lock();
        if let Some(readers) = bounds.read.get_mut(&self.revision) {
            *readers -= 1;
            if *readers == 0 {
                bounds.read.remove(&self.revision);
            }
        }
        self.floor.rise(&bounds);
    }
}

/// Whether an entry of the state database may be forgotten at this floor.
/// What cannot be understood is kept, for a reader to complain about.
pub(super) fn is_forgotten(family: Family, key: &[u8], value: &[u8], floor: u64) -> bool {
    let of_changes = floor.saturating_add(u64::from(mutant!(CompactionDropsEvent)));
    let floor = floor.saturating_add(u64::from(mutant!(ForgetWhatIsNeeded)));
    match family {
        // What happened at the very compaction may still be watched.
        Family::Changes => {
            keys::change_revision(key).is_ok_and(|(revision, _)| revision < of_changes)
        }
        Family::Deleted => {
            Tombstone::decode(value).is_ok_and(|tombstone| tombstone.revision <= floor)
        }
        Family::History => keys::history_revision(key).is_some_and(|revision| revision <= floor),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flush(floor: &Floor) {
        floor.across_flush(|| Ok::<(), ()>(())).unwrap();
    }

    #[test]
    fn it_rises_only_to_what_was_compacted_before_a_flush_that_succeeded() {
        let floor = Floor::default();
        floor.compacted(5);
        assert_eq!(floor.revision(), 0);
        floor.across_flush(|| Err(())).unwrap_err();
        assert_eq!(floor.revision(), 0);
        floor
            .across_flush(|| {
                floor.compacted(9);
                Ok::<(), ()>(())
            })
            .unwrap();
        assert_eq!(floor.revision(), 5);
        floor.compacted(3);
        flush(&floor);
        assert_eq!(floor.revision(), 9);
    }

    #[test]
    fn the_oldest_reader_holds_it_back() {
        let floor = Floor::default();
        let readers = [floor.keep(4), floor.keep(6), floor.keep(4)];
        floor.compacted(8);
        flush(&floor);
        assert_eq!(floor.revision(), 4);
        let [first, second, third] = readers;
        drop(first);
        assert_eq!(floor.revision(), 4);
        drop(third);
        assert_eq!(floor.revision(), 6);
        drop(second);
        assert_eq!(floor.revision(), 8);
    }

    #[test]
    fn it_never_falls_for_a_late_reader() {
        let floor = Floor::default();
        floor.compacted(8);
        flush(&floor);
        let late = floor.keep(2);
        assert_eq!(floor.revision(), 8);
        floor.compacted(9);
        flush(&floor);
        assert_eq!(floor.revision(), 8);
        drop(late);
        assert_eq!(floor.revision(), 9);
    }

    #[test]
    fn only_history_up_to_it_is_forgotten() {
        let tombstone = Tombstone { revision: 7, sub: 1, changes: 3 }.encode_to_vec();
        let sample = keys::history(b"a\0", 7, u32::MAX);
        for (floor, forgotten) in [(6, false), (7, true), (u64::MAX, true)] {
            assert_eq!(is_forgotten(Family::Deleted, b"a", &tombstone, floor), forgotten);
            assert_eq!(is_forgotten(Family::History, &sample, b"", floor), forgotten);
            assert_eq!(is_forgotten(Family::Changes, &keys::change(6, 9), b"", floor), forgotten);
            assert!(!is_forgotten(Family::Current, b"a", &tombstone, floor));
        }
        assert!(!is_forgotten(Family::Changes, &keys::change(7, 0), b"", 7));
        assert!(!is_forgotten(Family::Changes, b"a", b"", u64::MAX));
        assert!(!is_forgotten(Family::Deleted, b"a", b"\xff", u64::MAX));
        assert!(!is_forgotten(Family::History, b"a", b"", u64::MAX));
    }
}
