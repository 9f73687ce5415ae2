//! Giving back the space of changes that were compacted away.

use std::sync::atomic::Ordering;

use super::RocksEngine;
use crate::{
    error::Fatal,
    storage::{Family, keys},
};

impl RocksEngine {
    /// Whether table files may hold nothing but changes below the [`Floor`](crate::storage::Floor).
    pub fn has_forgotten(&self) -> bool {
        self.0.unlinked.load(Ordering::Relaxed) < self.0.floor.revision()
    }

    /// Unlinks table files that hold nothing but changes below the [`Floor`](crate::storage::Floor),
    /// neither reading nor writing what is in them: the oldest of them, at least
    /// one, until `max_bytes` are reached. Blocks the caller for as long as the filesystem
    /// takes for that, as it may every sync of other files.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn unlink_forgotten(&self, max_bytes: usize) -> Result<(), Fatal> {
        let floor = self.0.floor.revision();
        if floor == 0 || self.0.unlinked.load(Ordering::Relaxed) >= floor {
            return Ok(());
        }
        // Everything in them is absent to every reader, so that older versions
        // of the same could not come to light. The ends are inclusive.
        let (first, last) = (keys::change(0, 0), keys::change(floor - 1, u32::MAX));
        let Some(last) = portion(self.forgotten_files(&last)?, max_bytes) else {
            self.0.unlinked.fetch_max(floor, Ordering::Relaxed);
            return Ok(());
        };
        let changes = self.handle(Family::Changes);
        let unlinked = self.0.db.delete_file_in_range_cf(changes, &first[..], &last[..]);
        self.changed("unlink forgotten changes of", unlinked)
    }

    /// Last key and size of every table file that ends at or before this change
    /// and can be unlinked: those that were never compacted cannot.
    fn forgotten_files(&self, last: &[u8]) -> Result<Vec<(Vec<u8>, usize)>, Fatal> {
        let files =
            self.0.db.live_files().map_err(|cause| self.fatal("list the files of", &cause))?;
        let of_changes = files
            .into_iter()
            .filter(|file| file.column_family_name == Family::Changes.name() && file.level > 0);
        Ok(of_changes
            .filter_map(|file| file.end_key.map(|end| (end, file.size)))
            .filter(|(end, _)| end[..] <= *last)
            .collect())
    }
}

/// Up to which key to unlink files, given by their last key and their size: the
/// oldest of them, at least one, until `max_bytes` are reached.
fn portion(mut files: Vec<(Vec<u8>, usize)>, max_bytes: usize) -> Option<Vec<u8>> {
    files.sort_unstable();
    let mut bytes = 0_usize;
    let enough = files.iter().position(|(_, size)| {
        bytes = bytes.saturating_add(*size);
        bytes >= max_bytes
    });
    files.truncate(enough.map_or(files.len(), |last| last + 1));
    files.pop().map(|(last, _)| last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_files_come_first_and_at_least_one() {
        let files = |sizes: &[usize]| -> Vec<(Vec<u8>, usize)> {
            sizes.iter().enumerate().rev().map(|(key, size)| (vec![key as u8], *size)).collect()
        };
        for (sizes, max_bytes, last) in [
            (&[][..], 10, None),
            (&[50], 10, Some(0)),
            (&[50, 50], 0, Some(0)),
            (&[4, 4, 4, 4], 9, Some(2)),
            (&[4, 4, 4, 4], 8, Some(1)),
            (&[4, 4], usize::MAX, Some(1)),
        ] {
            let expected = last.map(|key: u8| vec![key]);
            assert_eq!(portion(files(sizes), max_bytes), expected, "{sizes:?}, {max_bytes}");
        }
    }
}
