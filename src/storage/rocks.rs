//! The production engine: RocksDB.
//!
//! The two databases of a node are tuned apart. The raft database keeps a
//! write-ahead log, which [`Engine::write`] syncs on demand. The state
//! database has none, because the raft log replays it: what a crash keeps of
//! it is the last flush, of all families at one moment.

mod forgetting;
mod options;
mod verify;

#[cfg(test)]
pub(super) mod tests;

use std::{
    fmt,
    fs::{self, File},
    io, iter,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, atomic::AtomicU64},
};

use bytes::Bytes;
use rocksdb::{
    BottommostLevelCompaction, ColumnFamily, ColumnFamilyDescriptor, CompactOptions, DB,
    DBIterator, DBPinnableSlice, DBRawIterator, FlushOptions, IteratorMode, ReadOptions, Snapshot,
    WriteBatch, WriteOptions,
    checkpoint::Checkpoint,
    properties::{self, PropName},
};

use super::{
    Batch, BatchOp, Engine, Family, Floor, KeyRange, Pair, RAFT_FAMILIES, Reader, STATE_FAMILIES,
    half_open, keys,
};
use crate::error::Fatal;
use options::{database_options, family_options, late_options};

pub use options::{DEFAULT_MEMORY_BYTES, MemoryBudget};
pub use verify::verify_checkpoint;

/// Which of a node's two databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The raft log and state: a write-ahead log, synced on demand.
    Raft,
    /// The applied data: no write-ahead log, durable by flushing.
    State,
}

impl Kind {
    /// The families of the database.
    pub const fn families(self) -> &'static [Family] {
        match self {
            Self::Raft => RAFT_FAMILIES,
            Self::State => STATE_FAMILIES,
        }
    }
}

/// What one database looks like from outside, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RocksMetrics {
    /// Bytes of table files on disk.
    pub sst_bytes: u64,
    /// Bytes of write buffers in memory.
    pub memtable_bytes: u64,
    /// Bytes in the block cache, which all databases of the process share.
    pub block_cache_bytes: u64,
    /// Bytes of write-ahead log on disk.
    pub wal_bytes: u64,
    /// Bytes that compaction is behind, estimated.
    pub pending_compaction_bytes: u64,
    /// Full write buffers that wait to be flushed.
    pub immutable_memtables: u64,
    /// Whether RocksDB has stopped writes until it catches up.
    pub write_stopped: bool,
    /// Failed flushes and compactions since the database was opened.
    pub background_errors: u64,
}

/// One RocksDB database. It closes when the last clone is dropped.
#[derive(Clone)]
pub struct RocksEngine(Arc<Inner>);

struct Inner {
    db: DB,
    kind: Kind,
    dir: PathBuf,
    /// After `db`, so that it goes only once that is closed.
    doom: Doom,
    budget: MemoryBudget,
    floor: Floor,
    /// The floor that files were last unlinked up to.
    unlinked: AtomicU64,
    /// The first write that failed. RocksDB may recover by itself and take
    /// writes again; after an answer that said "failed" it must not.
    failed: OnceLock<Fatal>,
}

/// A directory to be deleted, if set.
#[derive(Default)]
struct Doom(OnceLock<PathBuf>);

impl Drop for Doom {
    fn drop(&mut self) {
        if let Some(dir) = self.0.get() {
            // Whoever opens the parent directory next deletes what is left.
            let _leftover = fs::remove_dir_all(dir);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.db.cancel_all_background_work(true);
    }
}

impl fmt::Debug for RocksEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RocksEngine").field(&self.0.dir).finish()
    }
}

impl RocksEngine {
    /// Opens the database in `dir`, creating it if it is missing.
    ///
    /// # Errors
    /// When another process (or this one) has it open, when the directory
    /// cannot be created or written, when there is no space left, and when
    /// what is there is damaged or of another layout.
    pub fn open(dir: &Path, kind: Kind, budget: &MemoryBudget) -> Result<Self, Fatal> {
        create_directory(dir).map_err(|cause| fatal("create", dir, &cause.to_string()))?;
        refuse_without_manifest(dir)?;
        let floor = Floor::default();
        let families = kind.families().iter().map(|&family| {
            let options = family_options(family, kind, budget, &floor);
            ColumnFamilyDescriptor::new(family.name(), options)
        });
        let db = DB::open_cf_descriptors(&database_options(kind, budget), dir, families)
            .map_err(|cause| fatal("open", dir, cause.as_ref()))?;
        let engine = Self(Arc::new(Inner {
            db,
            kind,
            dir: dir.to_path_buf(),
            doom: Doom::default(),
            budget: budget.clone(),
            floor,
            unlinked: AtomicU64::new(0),
            failed: OnceLock::new(),
        }));
        for &family in kind.families() {
            let options = late_options(family);
            if !options.is_empty() {
                let set = engine.0.db.set_options_cf(engine.handle(family), options);
                set.map_err(|cause| engine.fatal("open", &cause))?;
            }
        }
        Ok(engine)
    }

    /// Makes `dir`, which must not exist, a durable database of its own that
    /// holds what this one holds now. On the same filesystem its table files
    /// are hard links, so that it costs neither copying nor, at first, space.
    /// Whatever was written to this database before is durable afterwards.
    ///
    /// # Errors
    /// When the disk refuses; what is left of `dir` then is to be deleted.
    pub fn checkpoint(&self, dir: &Path) -> Result<(), Fatal> {
        self.flush()?;
        Checkpoint::new(&self.0.db)
            .and_then(|checkpoint| checkpoint.create_checkpoint(dir))
            .map_err(|cause| fatal("write checkpoint", dir, cause.as_ref()))?;
        sync_tree(dir).map_err(|cause| fatal("sync checkpoint", dir, &cause.to_string()))
    }

    /// Deletes the database once the last clone is dropped: until then,
    /// whoever reads it finds its files.
    pub fn delete_when_closed(&self) {
        self.0.doom.0.get_or_init(|| self.0.dir.clone());
    }

    /// Rewrites all table files, so that what was deleted, and what the
    /// [`Floor`] has left behind, gives its space back. Blocks the caller for
    /// long, but neither readers nor writers.
    pub fn compact(&self) {
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
        for &family in self.0.kind.families() {
            let handle = self.handle(family);
            self.0.db.compact_range_cf_opt(handle, None::<&[u8]>, None::<&[u8]>, &options);
        }
    }

    /// Sizes and health, read without stopping anything.
    pub fn metrics(&self) -> RocksMetrics {
        let db = |property| self.0.db.property_int_value(property).ok().flatten().unwrap_or(0);
        RocksMetrics {
            sst_bytes: self.total(properties::TOTAL_SST_FILES_SIZE),
            memtable_bytes: self.total(properties::SIZE_ALL_MEM_TABLES),
            block_cache_bytes: self.0.budget.cache.get_usage() as u64,
            wal_bytes: wal_bytes(&self.0.dir),
            pending_compaction_bytes: self.total(properties::ESTIMATE_PENDING_COMPACTION_BYTES),
            immutable_memtables: self.total(properties::NUM_IMMUTABLE_MEM_TABLE),
            write_stopped: db(properties::IS_WRITE_STOPPED) != 0,
            background_errors: db(properties::BACKGROUND_ERRORS),
        }
    }

    /// The sum of a property over the families.
    fn total(&self, property: &PropName) -> u64 {
        let families = self.0.kind.families().iter();
        families
            .filter_map(|&family| {
                self.0.db.property_int_value_cf(self.handle(family), property).ok().flatten()
            })
            .sum()
    }

    fn handle(&self, family: Family) -> &ColumnFamily {
        self.0.db.cf_handle(family.name()).expect("a database is asked for its own families only")
    }

    fn fatal(&self, action: &str, cause: &rocksdb::Error) -> Fatal {
        fatal(action, &self.0.dir, cause.as_ref())
    }

    /// The outcome of something that changes the disk; none follows a failure.
    fn changed(&self, action: &str, outcome: Result<(), rocksdb::Error>) -> Result<(), Fatal> {
        outcome.map_err(|cause| self.0.failed.get_or_init(|| self.fatal(action, &cause)).clone())
    }

    fn refuse_after_failure(&self) -> Result<(), Fatal> {
        self.0.failed.get().map_or(Ok(()), |failure| Err(failure.clone()))
    }

    /// The value of a key where RocksDB has it.
    fn pinned(&self, family: Family, key: &[u8]) -> Result<Option<DBPinnableSlice<'_>>, Fatal> {
        let value = self.0.db.get_pinned_cf(self.handle(family), key);
        value.map_err(|cause| self.fatal("read", &cause))
    }

    /// The pairs of a range from the iterator that `open` makes.
    fn pairs<'a>(
        &'a self,
        range: KeyRange,
        open: impl FnOnce(ReadOptions) -> DBIterator<'a>,
    ) -> Box<dyn Iterator<Item = Result<Pair, Fatal>> + Send + 'a> {
        let Some(options) = bounded(range) else { return Box::new(iter::empty()) };
        Box::new(open(options).map(|item| {
            item.map(|(key, value)| (key.into(), value.into()))
                .map_err(|cause| self.fatal("read", &cause))
        }))
    }

    /// The number of pairs in a range from the iterator that `open` makes. The
    /// values stay where they are.
    fn number<'a>(
        &'a self,
        range: KeyRange,
        open: impl FnOnce(ReadOptions) -> DBRawIterator<'a>,
    ) -> Result<u64, Fatal> {
        let Some(options) = bounded(range) else { return Ok(0) };
        let mut pairs = open(options);
        let mut count = 0;
        pairs.seek_to_first();
        while pairs.valid() {
            count += 1;
            pairs.next();
        }
        pairs.status().map(|()| count).map_err(|cause| self.fatal("read", &cause))
    }

    /// Unlinks table files that hold nothing but truncated log entries, which
    /// compaction would otherwise have to read and rewrite.
    ///
    /// The range's tombstone must be durable, for the unlinking is at once; no
    /// frozen view may need the files; and nothing may have been written into
    /// the range again. The log's only writer calls this within its write.
    fn unlink_truncated(&self, ops: &[BatchOp]) -> Result<(), Fatal> {
        for op in ops {
            let BatchOp::DeleteRange(Family::Entries, from, to) = op else { continue };
            let refilled = ops.iter().any(
                |op| matches!(op, BatchOp::Put(Family::Entries, key, _) if from <= key && key < to),
            );
            // RocksDB takes the end as inclusive: `to` itself must survive.
            let last = keys::entry_index(to).ok().and_then(|end| end.checked_sub(1));
            let Some(last) = last.map(keys::entry).filter(|last| from[..] <= last[..]) else {
                continue;
            };
            if refilled || self.total(properties::NUM_SNAPSHOTS) > 0 {
                continue;
            }
            let entries = self.handle(Family::Entries);
            let unlinked = self.0.db.delete_file_in_range_cf(entries, &from[..], &last[..]);
            self.changed("truncate", unlinked)?;
        }
        Ok(())
    }
}

impl Reader for RocksEngine {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        Ok(self.pinned(family, key)?.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn get_many(&self, family: Family, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, Fatal> {
        let handle = self.handle(family);
        let values = self.0.db.batched_multi_get_cf(handle, keys, true).into_iter();
        let copied = values.map(|value| {
            let value = value.map_err(|cause| self.fatal("read", &cause))?;
            Ok(value.map(|value| Bytes::copy_from_slice(&value)))
        });
        copied.collect()
    }

    fn scan(
        &self,
        family: Family,
        range: KeyRange,
    ) -> Box<dyn Iterator<Item = Result<Pair, Fatal>> + Send + '_> {
        self.pairs(range, |options| {
            self.0.db.iterator_cf_opt(self.handle(family), options, IteratorMode::Start)
        })
    }

    fn count(&self, family: Family, range: KeyRange) -> Result<u64, Fatal> {
        self.number(range, |options| self.0.db.raw_iterator_cf_opt(self.handle(family), options))
    }
}

impl Engine for RocksEngine {
    type Frozen<'a> = RocksFrozen<'a>;

    fn write(&self, batch: Batch, sync: bool) -> Result<(), Fatal> {
        if batch.is_empty() {
            return if sync { self.flush() } else { Ok(()) };
        }
        self.refuse_after_failure()?;
        let mut writes = WriteBatch::with_capacity_bytes(batch.bytes());
        for op in &batch.ops {
            match op {
                BatchOp::Put(family, key, value) => {
                    writes.put_cf(self.handle(*family), key, value);
                }
                BatchOp::Delete(family, key) => writes.delete_cf(self.handle(*family), key),
                // RocksDB takes a reversed range for a failed write.
                BatchOp::DeleteRange(family, from, to) if from < to => {
                    writes.delete_range_cf(self.handle(*family), from, to);
                }
                BatchOp::DeleteRange(..) => {}
            }
        }
        let mut options = WriteOptions::default();
        match self.0.kind {
            Kind::Raft => options.set_sync(sync),
            Kind::State => options.disable_wal(true),
        }
        self.changed("write to", self.0.db.write_opt(writes, &options))?;
        match (self.0.kind, sync) {
            (_, false) => Ok(()),
            (Kind::Raft, true) => self.unlink_truncated(&batch.ops),
            (Kind::State, true) => self.flush(),
        }
    }

    fn flush(&self) -> Result<(), Fatal> {
        self.refuse_after_failure()?;
        self.0.floor.across_flush(|| {
            let flushed = match self.0.kind {
                Kind::Raft => self.0.db.flush_wal(true),
                Kind::State => {
                    let families = self.0.kind.families().iter();
                    let handles: Vec<_> = families.map(|&family| self.handle(family)).collect();
                    self.0.db.flush_cfs_opt(&handles, &FlushOptions::default())
                }
            };
            self.changed("flush", flushed)
        })
    }

    fn value_bytes(&self, family: Family, key: &[u8]) -> Result<Option<usize>, Fatal> {
        Ok(self.pinned(family, key)?.map(|value| value.len()))
    }

    fn freeze(&self) -> RocksFrozen<'_> {
        RocksFrozen { engine: self, snapshot: self.0.db.snapshot() }
    }

    fn floor(&self) -> &Floor {
        &self.0.floor
    }

    fn size_bytes(&self) -> u64 {
        self.total(properties::TOTAL_SST_FILES_SIZE)
            + self.total(properties::CUR_SIZE_ALL_MEM_TABLES)
    }
}

/// A frozen moment of a [`RocksEngine`]. Keeping it keeps everything it shows
/// on disk.
pub struct RocksFrozen<'a> {
    engine: &'a RocksEngine,
    snapshot: Snapshot<'a>,
}

impl Reader for RocksFrozen<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        let handle = self.engine.handle(family);
        let value = self.snapshot.get_pinned_cf(handle, key);
        let value = value.map_err(|cause| self.engine.fatal("read", &cause))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(
        &self,
        family: Family,
        range: KeyRange,
    ) -> Box<dyn Iterator<Item = Result<Pair, Fatal>> + Send + '_> {
        let handle = self.engine.handle(family);
        self.engine.pairs(range, |options| {
            self.snapshot.iterator_cf_opt(handle, options, IteratorMode::Start)
        })
    }

    fn count(&self, family: Family, range: KeyRange) -> Result<u64, Fatal> {
        let handle = self.engine.handle(family);
        self.engine.number(range, |options| self.snapshot.raw_iterator_cf_opt(handle, options))
    }
}

/// Options that read a range; none when it is empty.
fn bounded(range: KeyRange) -> Option<ReadOptions> {
    let (from, to) = half_open(range);
    if to.as_ref().is_some_and(|to| *to <= from) {
        return None;
    }
    // Bounds, not seeks and comparisons: RocksDB then never walks over the
    // tombstones of what lies outside.
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(from);
    if let Some(to) = to {
        options.set_iterate_upper_bound(to);
    }
    Some(options)
}

/// Creates a directory and its missing parents, each durably named in its own.
///
/// # Errors
/// When the disk refuses.
pub fn create_directory(dir: &Path) -> io::Result<()> {
    let missing: Vec<_> =
        dir.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
    fs::create_dir_all(dir)?;
    missing.into_iter().try_for_each(sync_parent)
}

/// A database that lost its root file must not be taken for a new, empty one.
fn refuse_without_manifest(dir: &Path) -> Result<(), Fatal> {
    let unreadable = |cause: io::Error| fatal("read", dir, &cause.to_string());
    if dir.join("CURRENT").try_exists().map_err(unreadable)? {
        return Ok(());
    }
    for file in fs::read_dir(dir).map_err(unreadable)? {
        let path = file.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "sst" || extension == "log") {
            return Err(Fatal::corrupt(format!(
                "data directory {} holds {} but no CURRENT file",
                dir.display(),
                path.file_name().unwrap_or_default().display(),
            )));
        }
    }
    Ok(())
}

/// Makes the names in a directory durable.
///
/// # Errors
/// When the disk refuses.
pub fn sync_directory(dir: &Path) -> Result<(), Fatal> {
    sync(dir).map_err(|cause| fatal("sync", dir, &cause.to_string()))
}

/// Makes a directory durable: its files, their names, and its own name.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for file in fs::read_dir(dir)? {
        sync(&file?.path())?;
    }
    sync(dir)?;
    sync_parent(dir)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync(Path::new(".")),
        Some(parent) => sync(parent),
        None => Ok(()),
    }
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Bytes of the write-ahead log files; files that vanish meanwhile count zero.
fn wal_bytes(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    files
        .filter(|file| file.path().extension().is_some_and(|extension| extension == "log"))
        .filter_map(|file| file.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

/// What the operator is told. RocksDB and the system name their reasons in
/// text only.
fn fatal(action: &str, dir: &Path, cause: &str) -> Fatal {
    let has = |texts: &[&str]| texts.iter().any(|text| cause.contains(text));
    let dir = dir.display();
    if has(&["lock hold by current process", "While lock file"]) {
        return Fatal::new(
            format!("data directory {dir} is in use by another process"),
            "stop it or give this node another --data-dir",
        );
    }
    let what = format!("cannot {action} {dir}: {cause}");
    // A database that misses one of its files.
    let incomplete = action == "open" && has(&["No such file or directory"]);
    if cause.starts_with("Corruption") || incomplete {
        Fatal::corrupt(what)
    } else if has(&["No space left", "quota exceeded"]) {
        Fatal::new(what, "free space on that disk, then start the node again")
    } else if has(&["Permission denied", "Read-only file system", "Operation not permitted"]) {
        Fatal::new(what, "let this user write there or give this node another --data-dir")
    } else if has(&["Not a directory", "is not directory", "File exists"]) {
        Fatal::new(what, "move the file away or give this node another --data-dir")
    } else if has(&["Too many open files"]) {
        Fatal::new(what, "raise the limit on open files (ulimit -n), then start the node again")
    } else if has(&["Column families not opened"]) {
        Fatal::new(what, "start it with the version of metastore that wrote it")
    } else {
        Fatal::storage(format!("cannot {action} {dir}"), cause)
    }
}
