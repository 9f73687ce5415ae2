//! The replicated state machine: a pure function of the log.
//!
//! [`StateMachine::apply`] takes committed entries in order and writes their
//! effects together with the applied position in one batch, so that data and
//! position never come apart. Nothing here looks at a clock, draws a random
//! number or depends on the order of a hash map.

mod alarms;
mod backup;
pub mod command;
mod compaction;
mod epoch;
mod hash;
mod history;
mod kv;
mod leases;
mod lookups;
mod members;
mod moment;
mod past;
mod range;
mod recent;
mod record;
mod state;
mod stop;
mod txn;
mod view;
mod writes;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use raft::eraftpb::{ConfChangeV2, ConfState};

use crate::{
    error::Fatal,
    proto::{
        Alarms, Change, LeaseRecord, LogPosition, Members, Outcome, Refused, RequestId,
        outcome::Result as Is,
    },
};

pub use alarms::is_accused;
pub use backup::{BackupError, Check, Contents, Exported, Imported, Revisions, import};
pub use hash::{KvHash, StateHash};
pub use history::ChangesPage;
pub use members::{cluster_id, conf_state, founding_members, member};
pub use state::{MAX_RESPONSE_BYTES, StateMachine};
pub use view::{Streamed, View};

/// What applying a run of entries did.
#[derive(Debug, Clone)]
pub struct AppliedBatch {
    /// What each entry did, contiguous by index.
    pub entries: Vec<AppliedEntry>,
    /// Where the state machine stands now.
    pub position: LogPosition,
    /// The cluster afterwards, when the batch changed anything of it.
    pub members: Option<Arc<Members>>,
    /// The raised alarms afterwards, when the batch changed any.
    pub alarms: Option<Arc<Alarms>>,
    /// The mark that the batch ends with, if it ends with one: the state as it
    /// is now is to be hashed and compared with that of the others.
    pub mark: Option<LogPosition>,
    /// Bytes of entry data applied, for flow control.
    pub bytes: usize,
    /// What the entries did to keys and leases, for whoever follows along.
    pub changes: Changes,
}

/// What a run of entries changed, beside the members.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// The changes of keys, ascending by revision; each revision whole.
    pub revisions: Vec<RevisionChanges>,
    /// The leases that changed, in order.
    pub leases: Vec<LeaseChange>,
    /// The store's revision now.
    pub revision: u64,
    /// The last compaction, 0 when there was none.
    pub compacted: u64,
}

/// Everything one revision changed.
#[derive(Debug, Clone, PartialEq)]
pub struct RevisionChanges {
    /// The revision.
    pub revision: u64,
    /// Its changes in the order of their places (sub-revisions from 0).
    pub changes: Vec<Change>,
}

/// What became of a lease.
#[derive(Debug, Clone, PartialEq)]
pub enum LeaseChange {
    /// It was granted, renewed or checkpointed, and now is so.
    Set(LeaseRecord),
    /// It was revoked or expired.
    Gone(i64),
}

/// A reading that the disk may fail and the state machine may refuse.
pub type Ruled<T> = Result<Result<T, Refused>, Fatal>;

/// What applying one entry did.
#[derive(Debug, Clone)]
pub struct AppliedEntry {
    /// Where the entry stood.
    pub position: LogPosition,
    /// The answers to its commands.
    pub outcomes: Vec<(RequestId, Outcome)>,
    /// The configuration change raft must take over, if it was accepted, and
    /// the configuration that follows from it.
    pub conf_change: Option<(ConfChangeV2, ConfState)>,
}

fn answer(result: Is) -> Outcome {
    Outcome { result: Some(result), ..Outcome::default() }
}
