//! Reading all of a database, to find damage before it is handed on.

use std::{fs, path::Path};

use rocksdb::{ColumnFamilyDescriptor, DB, ReadOptions};

use super::{
    Kind, MemoryBudget, fatal,
    options::{database_options, family_options},
};
use crate::{error::Fatal, storage::Floor};

/// Bytes of memory that this may take beside the [`MemoryBudget`] of the rest.
const MEMORY_BYTES: usize = 8 << 20;

/// Reads every record of the checkpoint in `dir`, a state database that is not
/// open: each block of a table has a checksum. Takes as long as reading the
/// files takes.
///
/// # Errors
/// When something is damaged or cannot be read.
pub fn verify_checkpoint(dir: &Path) -> Result<(), Fatal> {
    // A cache of its own: the one in use may hold what the disk has lost, as
    // the tables of a checkpoint are the same files.
    let budget = &MemoryBudget::new(MEMORY_BYTES);
    let floor = Floor::default();
    let families = Kind::State.families();
    let descriptors = families.iter().map(|&family| {
        let options = family_options(family, Kind::State, budget, &floor);
        ColumnFamilyDescriptor::new(family.name(), options)
    });
    let mut options = database_options(Kind::State, budget);
    options.create_if_missing(false);
    options.create_missing_column_families(false);
    let db = DB::open_cf_descriptors_read_only(&options, dir, descriptors, false)
        .map_err(|cause| fatal("open", dir, cause.as_ref()))?;
    for family in families.iter().filter_map(|family| db.cf_handle(family.name())) {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        let mut pairs = db.raw_iterator_cf_opt(family, options);
        pairs.seek_to_first();
        while pairs.valid() {
            pairs.next();
        }
        pairs.status().map_err(|cause| fatal("read", dir, cause.as_ref()))?;
    }
    drop(db);
    // RocksDB's own text log, which is no part of the checkpoint.
    let _it_may_not_be_there = fs::remove_file(dir.join("LOG"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Batch, Engine as _, Family, rocks::RocksEngine};

    #[test]
    fn a_flipped_bit_of_a_checkpoint_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let budget = MemoryBudget::default();
        let engine = RocksEngine::open(&dir.path().join("db"), Kind::State, &budget).unwrap();
        let mut batch = Batch::default();
        for number in 0..1000_u64 {
            batch.put(Family::Current, number.to_be_bytes().to_vec(), vec![7; 100]);
        }
        engine.write(batch, false).unwrap();
        let image = dir.path().join("image");
        engine.checkpoint(&image).unwrap();
        let names = || {
            let entries = fs::read_dir(&image).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let before = names();
        verify_checkpoint(&image).unwrap();
        assert_eq!(names(), before, "the checkpoint stays as it is");

        let table = before.iter().find(|name| name.to_string_lossy().ends_with(".sst")).unwrap();
        let mut bytes = fs::read(image.join(table)).unwrap();
        bytes[20] ^= 4;
        fs::write(image.join(table), bytes).unwrap();
        let damaged = verify_checkpoint(&image).unwrap_err();
        assert!(damaged.to_string().contains("damaged"), "{damaged}");
    }
}
