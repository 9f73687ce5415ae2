//! Bytes on disk: ordered key-value databases with atomic batches.
//!
//! Nothing here knows of raft. A node keeps two databases ([`RAFT_FAMILIES`]
//! and [`STATE_FAMILIES`]), each an [`Engine`]: [`rocks::RocksEngine`] in
//! production, [`memory::MemoryEngine`] under the simulator, where a crash can
//! lose what was not yet durable. Both pass the suite in `conformance`.
//! [`Pending`] shows a batch as if it were written already. [`bolt`] reads and
//! writes etcd's snapshot files, and [`Sorter`] puts what goes into them in order.

pub mod bolt;
mod floor;
pub mod keys;
pub mod memory;
mod pending;
pub mod rocks;
mod sorter;
pub mod sums;

#[cfg(test)]
mod conformance;

use std::ops::Bound;

use bytes::Bytes;

use crate::error::Fatal;

pub use floor::{Floor, Kept};
pub use pending::Pending;
pub use sorter::{Sorted, Sorter};

/// A named key space of a database (a RocksDB column family).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Raft database: log entries by index.
    Entries,
    /// Raft database: hard state, snapshot metadata, truncation point,
    /// identity, and which state directory is live.
    State,
    /// State database: key -> its newest record.
    Current,
    /// State database: (revision, sub) -> change.
    Changes,
    /// State database: key -> tombstone.
    Deleted,
    /// State database: (key, revision, sub) of every 16th change of a key.
    History,
    /// State database: lease id -> lease.
    Leases,
    /// State database: (lease id, key) of the keys attached to a lease.
    LeaseKeys,
    /// State database: applied state, conf state, members, alarms, format version.
    Meta,
}

impl Family {
    /// The column family's name on disk.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Entries => "entries",
            Self::State => "state",
            Self::Current => "current",
            Self::Changes => "changes",
            Self::Deleted => "deleted",
            Self::History => "history",
            Self::Leases => "leases",
            Self::LeaseKeys => "lease_keys",
            Self::Meta => "meta",
        }
    }
}

/// The families of the raft database.
pub const RAFT_FAMILIES: &[Family] = &[Family::Entries, Family::State];

/// The families of the state database.
pub const STATE_FAMILIES: &[Family] = &[
    Family::Current,
    Family::Changes,
    Family::Deleted,
    Family::History,
    Family::Leases,
    Family::LeaseKeys,
    Family::Meta,
];

/// One operation of a [`Batch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchOp {
    /// Set a key.
    Put(Family, Bytes, Bytes),
    /// Remove a key, present or not.
    Delete(Family, Bytes),
    /// Remove every key in `[from, to)`.
    DeleteRange(Family, Bytes, Bytes),
}

/// Operations that take effect together or not at all, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// The operations, in the order in which they take effect.
    pub ops: Vec<BatchOp>,
}

impl Batch {
    /// Sets a key.
    pub fn put(&mut self, family: Family, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.ops.push(BatchOp::Put(family, key.into(), value.into()));
    }

    /// Removes a key, present or not.
    pub fn delete(&mut self, family: Family, key: impl Into<Bytes>) {
        self.ops.push(BatchOp::Delete(family, key.into()));
    }

    /// About how many bytes it takes written out.
    pub fn bytes(&self) -> usize {
        /// The kind of an operation, its family, and two lengths.
        const OVERHEAD: usize = 12;
        let bytes = self.ops.iter().map(|op| match op {
            BatchOp::Put(_, first, second) | BatchOp::DeleteRange(_, first, second) => {
                first.len() + second.len()
            }
            BatchOp::Delete(_, key) => key.len(),
        });
        bytes.map(|bytes| bytes + OVERHEAD).sum()
    }

    /// Removes every key in `[from, to)`.
    pub fn delete_range(&mut self, family: Family, from: impl Into<Bytes>, to: impl Into<Bytes>) {
        self.ops.push(BatchOp::DeleteRange(family, from.into(), to.into()));
    }

    /// Whether the batch does nothing.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

/// A key and its value.
pub type Pair = (Bytes, Bytes);

/// Lower and upper bound of a scan.
pub type KeyRange = (Bound<Bytes>, Bound<Bytes>);

/// A range as its first key and, unless it is open above, the first key after it.
fn half_open((lower, upper): KeyRange) -> (Bytes, Option<Bytes>) {
    let from = match lower {
        Bound::Unbounded => Bytes::new(),
        Bound::Included(key) => key,
        Bound::Excluded(key) => successor(&key),
    };
    let to = match upper {
        Bound::Unbounded => None,
        Bound::Included(key) => Some(successor(&key)),
        Bound::Excluded(key) => Some(key),
    };
    (from, to)
}

/// The smallest key greater than `key`.
fn successor(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

/// Reads of one database, either its newest state or one frozen moment.
pub trait Reader {
    /// The value of `key`.
    ///
    /// # Errors
    /// When the disk refuses the read or a checksum does not match.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fatal>;

    /// The values of ascending keys, in their order: cheaper, where a database
    /// can look for all of them at once.
    ///
    /// # Errors
    /// As [`Reader::get`].
    fn get_many(&self, family: Family, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, Fatal> {
        keys.iter().map(|key| self.get(family, key)).collect()
    }

    /// The pairs of a range, ascending by key, read lazily. The iterator sees
    /// one consistent moment, no earlier than this call.
    ///
    /// # Errors
    /// Each item is an error when the disk refuses the read; the iterator ends
    /// after the first.
    fn scan(
        &self,
        family: Family,
        range: KeyRange,
    ) -> Box<dyn Iterator<Item = Result<Pair, Fatal>> + Send + '_>;

    /// How many keys a range holds.
    ///
    /// # Errors
    /// When the disk refuses the read.
    fn count(&self, family: Family, range: KeyRange) -> Result<u64, Fatal>;
}

/// One database. Cheap to clone; clones are the same database.
pub trait Engine: Reader + Clone + Send + Sync + 'static {
    /// A frozen moment of the database.
    type Frozen<'a>: Reader
    where
        Self: 'a;

    /// Applies a batch atomically. With `sync`, the batch and everything
    /// written before it are durable when this returns. Without, a crash may
    /// lose it, but never an earlier write while keeping a later one.
    ///
    /// # Errors
    /// Any error means that the database can no longer be trusted to be
    /// writable: the process must stop, and must not try the write again.
    fn write(&self, batch: Batch, sync: bool) -> Result<(), Fatal>;

    /// Makes everything written before this call durable.
    ///
    /// # Errors
    /// As [`Engine::write`].
    fn flush(&self) -> Result<(), Fatal>;

    /// How many bytes the value of `key` takes, without copying it.
    ///
    /// # Errors
    /// As [`Reader::get`].
    fn value_bytes(&self, family: Family, key: &[u8]) -> Result<Option<usize>, Fatal>;

    /// Freezes the present moment for reading.
    fn freeze(&self) -> Self::Frozen<'_>;

    /// Up to where history may be forgotten: in a state database, entries of
    /// the families `deleted` and `history` at or below it vanish at some time,
    /// even from frozen views. Flushes and synced writes raise it.
    fn floor(&self) -> &Floor;

    /// Bytes the database occupies, approximately.
    fn size_bytes(&self) -> u64;
}
