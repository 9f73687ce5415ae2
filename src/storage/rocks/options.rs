//! How the two databases are tuned.

use std::fmt;

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, Options,
    WriteBufferManager, compaction_filter::Decision,
};

use super::Kind;
use crate::storage::{Family, Floor, floor::is_forgotten};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Bytes that the databases of a process keep in memory unless told otherwise.
pub const DEFAULT_MEMORY_BYTES: usize = 256 * MIB;

/// Table files a database holds open; those beyond it are reopened when read.
const MAX_OPEN_FILES: i32 = 512;

/// Flushes and compactions that run at once, for a machine of two cores.
const BACKGROUND_JOBS: i32 = 2;

/// Bytes after which a write buffer becomes a table file: large enough that
/// most of a raft log is truncated before it is ever compacted.
const WRITE_BUFFER_BYTES: usize = 32 * MIB;

/// Write buffers of a family, the active one included, before writes stall.
const WRITE_BUFFERS: i32 = 4;

/// Bytes of write-ahead log after which the oldest write buffers are flushed,
/// so that a start replays no more than this.
const WAL_BYTES: u64 = 128 * MIB as u64;

/// Bytes of a data block in families read by key: a miss reads little.
const POINT_BLOCK_BYTES: usize = 4 * KIB;

/// Bytes of a data block in families read in order: they compress better.
const SCAN_BLOCK_BYTES: usize = 16 * KIB;

/// Bits of a Bloom filter per key: about 1 % of misses still read a block.
const BLOOM_BITS: f64 = 10.0;

/// Bytes written to a file between write-backs, so that the kernel has no
/// large backlog when a write-ahead log is synced.
const WRITE_BACK_BYTES: u64 = MIB as u64;

/// Bytes after which RocksDB starts a new manifest.
const MANIFEST_BYTES: usize = 64 * MIB;

/// RocksDB's own text logs: files kept, and bytes of each.
const TEXT_LOGS: usize = 4;
const TEXT_LOG_BYTES: usize = 4 * MIB;

/// The memory that the databases of one process share: one block cache, to
/// which their write buffers are charged. Cheap to clone.
#[derive(Clone)]
pub struct MemoryBudget {
    pub(super) cache: Cache,
    write_buffers: WriteBufferManager,
}

impl fmt::Debug for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBudget").finish_non_exhaustive()
    }
}

impl MemoryBudget {
    /// A budget of `bytes`, of which write buffers take at most about half.
    /// Blocks in use by readers may exceed it for a while.
    pub fn new(bytes: usize) -> Self {
        let cache = Cache::new_lru_cache(bytes);
        let write_buffers = WriteBufferManager::new_write_buffer_manager_with_cache(
            bytes / 2,
            false,
            cache.clone(),
        );
        Self { cache, write_buffers }
    }
}

impl Default for MemoryBudget {
    fn default() -> Self {
        Self::new(DEFAULT_MEMORY_BYTES)
    }
}

/// Options of a family that can only be set once its database is open.
pub(super) fn late_options(family: Family) -> &'static [(&'static str, &'static str)] {
    match family {
        // A file that went down unread is rewritten only to save the numbers of
        // its writes: not before most are forgotten. In seconds, a month.
        Family::Changes => &[("bottommost_file_compaction_delay", "2592000")],
        _ => &[],
    }
}

/// The options of a database as a whole.
pub(super) fn database_options(kind: Kind, budget: &MemoryBudget) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    match kind {
        Kind::Raft => {
            // A torn tail was never acknowledged; a log file that was synced
            // and is now short or missing is damage, and refused.
            options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
            options.set_track_and_verify_wals_in_manifest(true);
            options.set_max_total_wal_size(WAL_BYTES);
        }
        Kind::State => options.set_atomic_flush(true),
    }
    // Each database has one writer, for which the plain way is the faster one.
    options.set_allow_concurrent_memtable_write(false);
    options.set_write_buffer_manager(&budget.write_buffers);
    options.set_max_open_files(MAX_OPEN_FILES);
    options.set_max_background_jobs(BACKGROUND_JOBS);
    options.set_bytes_per_sync(WRITE_BACK_BYTES);
    options.set_max_manifest_file_size(MANIFEST_BYTES);
    options.set_keep_log_file_num(TEXT_LOGS);
    options.set_max_log_file_size(TEXT_LOG_BYTES);
    options.set_stats_persist_period_sec(0);
    options
}

/// The options of one family.
pub(super) fn family_options(
    family: Family,
    kind: Kind,
    budget: &MemoryBudget,
    floor: &Floor,
) -> Options {
    let by_key = matches!(family, Family::Current | Family::Deleted | Family::Leases);
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&budget.cache);
    blocks.set_block_size(if by_key { POINT_BLOCK_BYTES } else { SCAN_BLOCK_BYTES });
    if by_key {
        blocks.set_bloom_filter(BLOOM_BITS, false);
        blocks.set_partition_filters(true);
    }
    // In the cache, and in parts, so that the memory of a large database is
    // bounded by the budget.
    blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_cache_index_and_filter_blocks_with_high_priority(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);

    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(WRITE_BUFFERS);
    options.set_compression_type(match kind {
        // Truncated before compressing it has paid.
        Kind::Raft => DBCompressionType::None,
        // The same for all levels: then files of what is written in order, the
        // changes, go down to the last one without being read.
        Kind::State => DBCompressionType::Lz4,
    });
    if matches!(family, Family::Changes | Family::Deleted | Family::History) {
        let floor = floor.clone();
        options.set_compaction_filter("floor", move |_, key: &[u8], value: &[u8]| {
            if is_forgotten(family, key, value, floor.revision()) {
                Decision::Remove
            } else {
                Decision::Keep
            }
        });
    }
    options
}
