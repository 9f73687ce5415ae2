//! The raft log over an [`Engine`](crate::storage::Engine).
//!
//! [`RaftLog`] is what raft reads: the entries not yet durable and a bounded
//! cache of recent ones in memory, the rest from the database. [`LogWriter`]
//! is what the log thread writes with. The database has one writer; everything
//! of one [`Persist`] (and of all that are waiting) goes into one batch.

mod log;
mod promises;
mod tail;
mod trail;
mod watermark;
mod writer;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use raft::eraftpb::{Entry, HardState};

use crate::proto::LogPosition;

pub use log::RaftLog;
pub use promises::{Promises, Witnessed};
pub use watermark::Watermark;
pub use writer::{
    FOUNDING_POSITION, LogWriter, Recovered, found, join, state_dir, store_incarnation,
    store_prepared,
};

/// No term and no index is as high: nothing real comes near, and raft adds to
/// them without checking for overflow.
pub const CEILING: u64 = 1 << 62;

/// One write of the raft database.
#[derive(Debug, Clone, Default)]
pub struct Persist {
    /// Counts up by one; named in the confirmation.
    pub number: u64,
    /// The new hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// Take over the received snapshot of this position: the log starts after
    /// it, and its state directory becomes the live one. Comes before `entries`.
    pub install: Option<LogPosition>,
    /// Entries to append; whatever the log held from the first one's index on
    /// is dropped.
    pub entries: Vec<Entry>,
    /// Drop the log up to and including this position.
    pub compact: Option<LogPosition>,
    /// What the other members have promised by now, if there is news.
    pub witnessed: Option<Arc<Witnessed>>,
    /// Whether the confirmation may be given only after an fsync.
    pub sync: bool,
}

impl Persist {
    /// Bytes of entry data, for flow control.
    pub fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.data.len() + entry.context.len() + 16).sum()
    }
}
