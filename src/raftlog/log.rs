//! The log as raft reads it.

use std::{cell::Cell, ops::Bound, sync::Arc};

use bytes::Bytes;
use protobuf::Message as _;
use raft::{
    Error, GetEntriesContext, RaftState, Storage, StorageError,
    eraftpb::{ConfState, Entry, HardState, Snapshot},
    util::limit_size,
};

use super::{
    Promises, Witnessed,
    tail::Tail,
    writer::{Recovered, decode_entry},
};
use crate::{
    error::Fatal,
    proto::LogPosition,
    storage::{Engine, Family, keys},
};

/// A snapshot of the state machine that can be sent.
#[derive(Debug, Clone)]
struct Available {
    position: LogPosition,
    conf_state: ConfState,
}

/// What raft reads: the entries in memory, and behind them the database.
///
/// Changes are taken over here at once and given to the
/// [`LogWriter`](super::LogWriter) in the same order; [`RaftLog::persisted`]
/// tells when they are durable.
#[derive(Debug)]
pub struct RaftLog<E> {
    engine: E,
    tail: Tail,
    hard_state: HardState,
    conf_state: ConfState,
    /// The log starts after this position.
    truncated: LogPosition,
    last_index: u64,
    /// Index of the last snapshot taken over.
    installed: u64,
    available: Option<Available>,
    /// Raft asked for a snapshot that is not there. A `Cell` because raft asks
    /// through a shared reference.
    snapshot_wanted: Cell<bool>,
    /// What was on disk at the start, and known of the others.
    recovered: (Promises, Arc<Witnessed>),
}

impl<E: Engine> RaftLog<E> {
    /// The log as recovered, for a state machine that has applied up to
    /// `applied` and then has this configuration.
    ///
    /// # Errors
    /// When the log does not reach back to the applied position.
    pub fn open(
        engine: E,
        recovered: &Recovered,
        conf_state: ConfState,
        applied: &LogPosition,
    ) -> Result<Self, Fatal> {
        if applied.index < recovered.truncated.index || applied.index > recovered.last.index {
            return Err(Fatal::corrupt(format!(
                "the state database stands at index {} but the raft log covers {} to {}",
                applied.index, recovered.truncated.index, recovered.last.index
            )));
        }
        let forgets = mutant!(ForgetConfState);
        let conf_state = if forgets { own_conf_state(recovered) } else { conf_state };
        let mut hard_state = recovered.hard_state.clone();
        // Raft does not save the commit index with every entry it hands out.
        if !mutant!(ForgetAppliedCommit) {
            hard_state.commit = hard_state.commit.max(applied.index);
        }
        Ok(Self {
            engine,
            tail: Tail::new(recovered.last.index),
            hard_state,
            conf_state,
            truncated: recovered.truncated,
            last_index: recovered.last.index,
            installed: recovered.snapshot.index,
            available: None,
            snapshot_wanted: Cell::new(false),
            recovered: (recovered.promises(), Arc::new(recovered.witnessed.clone())),
        })
    }

    /// What this member had promised when it started, and what it knew of the
    /// others.
    pub fn recovered(&self) -> (Promises, Arc<Witnessed>) {
        self.recovered.clone()
    }

    /// Keeps about `cache_bytes` of durable entries in memory, 64 MiB unless
    /// told; the others are read from disk when they are needed.
    pub fn limit_cache(&mut self, cache_bytes: usize) {
        self.tail.limit(cache_bytes);
    }

    /// Index of the first entry the log holds or will hold.
    pub fn first(&self) -> u64 {
        self.truncated.index + 1
    }

    /// Index of the last entry, or of the truncation point.
    pub fn last(&self) -> u64 {
        self.last_index
    }

    /// Index of the last snapshot taken over, 0 when there was none.
    pub fn installed_index(&self) -> u64 {
        self.installed
    }

    /// The newest term, vote and commit index.
    pub fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    /// Takes over a new term, vote and commit index.
    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// Whether raft wanted a snapshot since the last call and got none.
    pub fn take_snapshot_wanted(&self) -> bool {
        self.snapshot_wanted.take()
    }

    /// From now on this snapshot can be sent.
    pub fn offer_snapshot(&mut self, position: LogPosition, conf_state: ConfState) {
        self.available = Some(Available { position, conf_state });
    }

    /// Appends entries; what the log held from the first one's index on goes.
    pub fn append(&mut self, entries: &[Entry]) {
        if let Some(last) = entries.last() {
            self.tail.append(entries);
            self.last_index = last.index;
        }
    }

    /// Takes over a received snapshot: the log starts after it.
    pub fn install(&mut self, position: LogPosition, conf_state: ConfState) {
        self.tail.reset(position.index);
        self.truncated = position;
        self.last_index = position.index;
        self.installed = position.index;
        self.conf_state = conf_state;
        self.available = None;
    }

    /// Drops the log up to and including `index`, which must be an entry of it.
    ///
    /// # Errors
    /// When the entry cannot be read.
    pub fn compact(&mut self, index: u64) -> Result<LogPosition, Fatal> {
        let position = LogPosition { index, term: self.term_at(index)? };
        self.tail.compact(index);
        self.truncated = position;
        Ok(position)
    }

    /// Everything up to this entry is durable.
    pub fn persisted(&mut self, last: &LogPosition) {
        self.tail.persisted(last);
    }

    /// Whether some entries are not known to be durable.
    pub fn has_unpersisted(&self) -> bool {
        self.tail.has_unpersisted()
    }

    /// Entries from `low` up to and without `high`, at least one and at most
    /// about `max_bytes` of them.
    ///
    /// # Errors
    /// When the disk refuses the read or an entry is missing.
    pub fn read(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, Fatal> {
        let mut entries = Vec::new();
        let on_disk = self.tail.first_index().unwrap_or(high).min(high);
        if low < on_disk {
            self.read_engine(low, on_disk, max_bytes, &mut entries)?;
        }
        let next = low + entries.len() as u64;
        if next >= on_disk {
            let mut bytes = 0;
            let fits = |entry: &&Entry| {
                // The one that goes beyond the limit is left for it to cut.
                let fits = bytes <= max_bytes;
                bytes += u64::from(entry.compute_size());
                fits
            };
            entries.extend(self.tail.range(next, high).take_while(fits).cloned());
        }
        limit_size(&mut entries, Some(max_bytes));
        if entries.is_empty() && low < high {
            return Err(Fatal::corrupt(format!("raft log entry {low} is missing")));
        }
        Ok(entries)
    }

    fn read_engine(
        &self,
        low: u64,
        high: u64,
        max_bytes: u64,
        entries: &mut Vec<Entry>,
    ) -> Result<(), Fatal> {
        let from = Bytes::copy_from_slice(&keys::entry(low));
        let to = Bytes::copy_from_slice(&keys::entry(high));
        let range = (Bound::Included(from), Bound::Excluded(to));
        let mut bytes = 0;
        for (pair, index) in self.engine.scan(Family::Entries, range).zip(low..) {
            let (key, value) = pair?;
            if keys::entry_index(&key)? != index {
                return Err(Fatal::corrupt(format!("raft log entry {index} is missing")));
            }
            bytes += value.len() as u64;
            entries.push(decode_entry(&value, index)?);
            if bytes > max_bytes {
                break;
            }
        }
        Ok(())
    }

    /// The term of the entry at `index`, or of the truncation point.
    ///
    /// # Errors
    /// When the disk refuses the read or the entry is missing.
    pub fn term_at(&self, index: u64) -> Result<u64, Fatal> {
        if index == self.truncated.index {
            return Ok(self.truncated.term);
        }
        if let Some(entry) = self.tail.get(index) {
            return Ok(entry.term);
        }
        match self.engine.get(Family::Entries, &keys::entry(index))? {
            Some(value) => Ok(decode_entry(&value, index)?.term),
            None => Err(Fatal::corrupt(format!("raft log entry {index} is missing"))),
        }
    }
}

impl<E: Engine> Storage for RaftLog<E> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state: self.conf_state.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.truncated.index {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last_index + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        self.read(low, high, max_size.into().unwrap_or(u64::MAX)).map_err(store_error)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.truncated.index {
            return Err(Error::Store(StorageError::Compacted));
        }
        if index > self.last_index {
            return Err(Error::Store(StorageError::Unavailable));
        }
        self.term_at(index).map_err(store_error)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last_index)
    }

    /// Only a snapshot whose configuration names the receiver is of use to it:
    /// it would ignore any other and still confirm it.
    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        if let Some(Available { position, conf_state }) = &self.available {
            let named = conf_state.voters.contains(&to)
                || conf_state.learners.contains(&to)
                || mutant!(ReuseSnapshotForNewMember);
            if named && position.index >= request_index && position.index >= self.truncated.index {
                let mut snapshot = Snapshot::default();
                let metadata = snapshot.mut_metadata();
                metadata.index = position.index;
                metadata.term = position.term;
                metadata.set_conf_state(conf_state.clone());
                return Ok(snapshot);
            }
        }
        self.snapshot_wanted.set(true);
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

/// A cluster of this member alone.
fn own_conf_state(recovered: &Recovered) -> ConfState {
    let own = recovered.identity.as_ref().map_or(0, |identity| identity.member_id);
    ConfState { voters: vec![own], ..ConfState::default() }
}

fn store_error(fatal: Fatal) -> Error {
    Error::Store(StorageError::Other(Box::new(fatal)))
}
