//! From the state database to a snapshot file.

use std::{fs::File, ops::Bound, path::Path};

use bytes::Bytes;

use super::{
    BackupError, CONSISTENT_INDEX, Check, EMPTY_BUCKETS, FINISHED_COMPACTION, KEY, LEASE, META,
    Progress, SCHEDULED_COMPACTION, record, scratch_failed,
};
use crate::{
    error::Fatal,
    machine::record as stored,
    proto::{AppliedState, Change, KeyRecord, LeaseRecord},
    storage::{Family, KeyRange, Reader, Sorted, Sorter, bolt::Writer, keys},
};

/// A snapshot file that is complete.
#[derive(Debug)]
pub struct Exported {
    /// The file, without a checksum at its end.
    pub file: File,
    /// Its length in bytes.
    pub bytes: u64,
    /// The store's revision at the saved moment.
    pub revision: u64,
}

/// Writes everything that a reader shows, which must not change meanwhile, into
/// an empty file. What does not fit into memory is sorted in unlinked files in
/// the directory `scratch`.
pub(in crate::machine) fn export<R: Reader>(
    reader: &R,
    file: File,
    scratch: &Path,
    check: Check<'_>,
) -> Result<Exported, BackupError> {
    let applied = stored::applied(reader)?;
    let mut export =
        Export { reader, writer: Writer::new(file)?, progress: Progress::new(check), last: 0 };
    export.writer.bucket(KEY)?;
    if applied.compacted > 0 {
        export.states(applied.compacted, scratch)?;
    }
    export.changes(applied.compacted)?;
    export.leases()?;
    export.meta(applied)?;
    for name in EMPTY_BUCKETS {
        export.writer.bucket(name)?;
    }
    let (file, bytes) = export.writer.finish()?;
    Ok(Exported { file, bytes, revision: applied.revision })
}

/// A file in the making.
struct Export<'a, R> {
    reader: &'a R,
    writer: Writer,
    progress: Progress<'a>,
    /// The revision of the last change written.
    last: u64,
}

impl<R: Reader> Export<'_, R> {
    /// Writes the state that keys had at the last compaction, of those that
    /// did not change at that very revision.
    fn states(&mut self, compacted: u64, scratch: &Path) -> Result<(), BackupError> {
        for pair in self.sorted_states(compacted, scratch)? {
            let (place, state) = pair.map_err(scratch_failed)?;
            self.put(&place, &state)?;
        }
        Ok(())
    }

    /// Those states, from the order of the keys into that of their revisions.
    fn sorted_states(&mut self, compacted: u64, scratch: &Path) -> Result<Sorted, BackupError> {
        let mut sorter = Sorter::new(scratch);
        let mut read = 0;
        let mut take = |key: Bytes, record: KeyRecord| {
            read += 1;
            self.progress.look(read)?;
            if record.mod_revision < compacted {
                let place = record::revision_key((record.mod_revision, record.sub), false);
                sorter.push(place, record::key_value(key, record)).map_err(scratch_failed)?;
            }
            Ok::<(), BackupError>(())
        };
        let everything = (Bound::Unbounded, Bound::Unbounded);
        for pair in self.reader.scan(Family::Current, everything) {
            let (key, value) = pair?;
            let record = stored::decode(Family::Current, &key, value)?;
            take(key, record)?;
        }
        // The others have changed since. Of what a change at the compaction
        // itself found, nobody may be told.
        for found in changes(self.reader, compacted.saturating_add(1)) {
            let (_, change) = found?;
            if let Some(previous) = change.previous {
                take(change.key, previous)?;
            }
        }
        sorter.finish().map_err(scratch_failed)
    }

    /// Writes the changes from a revision on.
    fn changes(&mut self, from: u64) -> Result<(), BackupError> {
        for found in changes(self.reader, from) {
            let (place, change) = found?;
            let key = record::revision_key(place, change.record.is_none());
            let value = match change.record {
                Some(record) => record::key_value(change.key, record),
                None => record::deletion(change.key),
            };
            self.last = place.0;
            self.put(&key, &value)?;
        }
        Ok(())
    }

    fn leases(&mut self) -> Result<(), BackupError> {
        self.writer.bucket(LEASE)?;
        // In the order of ids without a sign, unlike ours.
        let ids = |from: i64, to: i64| -> KeyRange {
            let bound = |id| Bound::Included(Bytes::copy_from_slice(&keys::lease(id)));
            (bound(from), bound(to))
        };
        for range in [ids(0, i64::MAX), ids(i64::MIN, -1)] {
            for pair in self.reader.scan(Family::Leases, range) {
                let (key, value) = pair?;
                let lease: LeaseRecord = stored::decode(Family::Leases, &key, value)?;
                let value = record::lease(lease.id, lease.ttl_s, lease.remaining_s);
                self.put(&record::lease_key(lease.id), &value)?;
            }
        }
        Ok(())
    }

    fn meta(&mut self, applied: AppliedState) -> Result<(), BackupError> {
        self.writer.bucket(META)?;
        // The compaction also tells the revision of a store whose last change
        // is gone: a restored one must not begin below.
        let is_told = self.last >= applied.revision || applied.revision <= 1;
        let compacted = if is_told { applied.compacted } else { applied.revision };
        self.put(CONSISTENT_INDEX, &applied.index.to_be_bytes())?;
        if compacted > 0 {
            let revision = record::revision_key((compacted, 0), false);
            self.put(FINISHED_COMPACTION, &revision)?;
            self.put(SCHEDULED_COMPACTION, &revision)?;
        }
        Ok(())
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), BackupError> {
        self.writer.put(key, value)?;
        self.progress.step()
    }
}

/// The changes from a revision on with their places, ascending.
fn changes<R: Reader>(
    reader: &R,
    from: u64,
) -> impl Iterator<Item = Result<((u64, u32), Change), Fatal>> {
    let first = Bound::Included(Bytes::copy_from_slice(&keys::change(from, 0)));
    reader.scan(Family::Changes, (first, Bound::Unbounded)).map(|pair| {
        let (place, value) = pair?;
        let change = stored::decode(Family::Changes, &place, value)?;
        Ok((keys::change_revision(&place)?, change))
    })
}
