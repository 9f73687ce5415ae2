//! The newest entries, in memory.

use std::collections::VecDeque;

use raft::eraftpb::Entry;

use crate::proto::LogPosition;

/// Bytes of durable entries kept for followers that lag a little, so that
/// replication rarely reads the disk. Entries not yet durable come on top;
/// they are bounded by the replica's flow control.
const CACHE_BYTES: usize = 64 << 20;

/// A contiguous run of entries that ends at the log's last index. It always
/// holds every entry that is not known to be durable.
#[derive(Debug, Default)]
pub(super) struct Tail {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Index of the last entry known to be durable.
    durable: u64,
    /// Bytes of durable entries to keep.
    cache_bytes: usize,
}

impl Tail {
    /// An empty tail behind a log that is durable up to `last_index`.
    pub fn new(last_index: u64) -> Self {
        Self { durable: last_index, cache_bytes: CACHE_BYTES, ..Self::default() }
    }

    /// Keeps about so many bytes of durable entries.
    pub fn limit(&mut self, cache_bytes: usize) {
        self.cache_bytes = cache_bytes;
    }

    /// Index of the first entry held.
    pub fn first_index(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.index)
    }

    /// Position of the last entry held.
    pub fn last(&self) -> Option<LogPosition> {
        self.entries.back().map(|entry| LogPosition { index: entry.index, term: entry.term })
    }

    /// The entry at `index`, if held.
    pub fn get(&self, index: u64) -> Option<&Entry> {
        let offset = index.checked_sub(self.first_index()?)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    /// The entries of `[low, high)` that are held, from `low` on.
    pub fn range(&self, low: u64, high: u64) -> impl Iterator<Item = &Entry> {
        (low..high).map_while(|index| self.get(index))
    }

    /// Appends entries; what was held from the first one's index on goes.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.entries.back().is_some_and(|last| last.index >= first.index) {
            self.entries.pop_back().inspect(|entry| self.bytes -= weight(entry));
        }
        debug_assert!(self.last().is_none_or(|last| last.index + 1 == first.index));
        self.durable = self.durable.min(first.index - 1);
        self.bytes += entries.iter().map(weight).sum::<usize>();
        self.entries.extend(entries.iter().cloned());
    }

    /// Everything up to this entry is durable, unless the log has changed
    /// since it was written.
    pub fn persisted(&mut self, last: &LogPosition) {
        if self.get(last.index).is_some_and(|entry| entry.term == last.term) {
            self.durable = self.durable.max(last.index);
        }
        while self.bytes > self.cache_bytes
            && self.first_index().is_some_and(|first| first <= self.durable)
        {
            self.entries.pop_front().inspect(|entry| self.bytes -= weight(entry));
        }
    }

    /// Whether some entries are not known to be durable.
    pub fn has_unpersisted(&self) -> bool {
        self.last().is_some_and(|last| last.index > self.durable)
    }

    /// Drops the entries up to and including `index`.
    pub fn compact(&mut self, index: u64) {
        while self.first_index().is_some_and(|first| first <= index) {
            self.entries.pop_front().inspect(|entry| self.bytes -= weight(entry));
        }
    }

    /// Drops everything: the log now starts after `index`.
    pub fn reset(&mut self, index: u64) {
        *self = Self { cache_bytes: self.cache_bytes, ..Self::new(index) };
    }
}

fn weight(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + 64
}
