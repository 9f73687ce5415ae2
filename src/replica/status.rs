//! Where a replica stands.

use super::{Replica, Role};
use crate::storage::Engine;

/// A replica's view of itself, for people and metrics.
#[derive(Debug, Clone)]
pub struct Status {
    /// Who leads.
    pub role: Role,
    /// Index of the last entry known to be committed.
    pub commit_index: u64,
    /// Index of the last applied entry.
    pub applied_index: u64,
    /// Index of the first entry in the log.
    pub first_index: u64,
    /// Index of the last entry in the log.
    pub last_index: u64,
    /// Index of the newest snapshot.
    pub snapshot_index: u64,
    /// Commands waiting for their answer.
    pub pending_proposals: usize,
    /// On the leader, what it knows of each member: id, index confirmed,
    /// whether heard of recently.
    pub peers: Vec<(u64, u64, bool)>,
}

impl<E: Engine> Replica<E> {
    /// Where this replica stands.
    pub fn status(&self) -> Status {
        let raft = &self.node.raft;
        let log = self.node.store();
        let mut peers = Vec::new();
        if self.leads() {
            for member in &self.members.members {
                if let Some(progress) = raft.prs().get(member.id) {
                    let own = member.id == self.options.id;
                    peers.push((member.id, progress.matched, own || progress.recent_active));
                }
            }
        }
        Status {
            role: self.present_role(),
            commit_index: raft.raft_log.committed,
            applied_index: self.applied.index,
            first_index: log.first(),
            last_index: log.last(),
            snapshot_index: self.snapshots.newest_index(),
            pending_proposals: self.proposals.pending(),
            peers,
        }
    }
}
