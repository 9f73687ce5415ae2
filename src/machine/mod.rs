//! The replicated state machine: a pure function of the log.
//!
//! [`StateMachine::apply`] takes committed entries in order and writes their
//! effects together with the applied position in one batch, so that data and
//! position never come apart. Nothing here looks at a clock, draws a random
//! number or depends on the order of a hash map.

pub mod command;
mod kv;
mod members;
mod record;
mod state;
mod view;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use raft::eraftpb::{ConfChangeV2, ConfState};

use crate::proto::{LogPosition, Members, Outcome, RequestId};

pub use members::{cluster_id, conf_state, founding_members, member};
pub use state::StateMachine;
pub use view::{StateHash, View};

/// What applying a run of entries did.
#[derive(Debug, Clone)]
pub struct AppliedBatch {
    /// What each entry did, contiguous by index.
    pub entries: Vec<AppliedEntry>,
    /// Where the state machine stands now.
    pub position: LogPosition,
    /// The cluster afterwards, when the batch changed anything of it.
    pub members: Option<Arc<Members>>,
    /// Bytes of entry data applied, for flow control.
    pub bytes: usize,
}

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
