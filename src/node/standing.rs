//! Where a node stands in its cluster, cheap enough to ask for every request.

use std::time::Duration;

use tokio::time::timeout;

use super::{Handle, handle::Phase};
use crate::machine;

/// What a node knows of itself and its leader.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// The cluster's id, 0 while forming.
    pub cluster_id: u64,
    /// This member's id.
    pub member_id: u64,
    /// Raft's term.
    pub term: u64,
    /// The leader's id, 0 when unknown.
    pub leader_id: u64,
    /// Whether this member is a learner.
    pub learner: bool,
    /// Whether the node is on the way out.
    pub stopping: bool,
}

impl Handle {
    /// Where this node stands now.
    pub fn standing(&self) -> Standing {
        let member_id = self.shared.id;
        match &*self.shared.phase.borrow() {
            Phase::Running(running) => {
                let role = *running.role.borrow();
                let members = running.directory.applied();
                let learner = machine::member(&members, member_id).is_some_and(|own| own.learner);
                Standing {
                    cluster_id: running.identity.cluster_id,
                    member_id,
                    term: role.term,
                    leader_id: role.leader_id,
                    learner,
                    stopping: false,
                }
            }
            phase => Standing {
                member_id,
                stopping: matches!(phase, Phase::Stopping),
                ..Standing::default()
            },
        }
    }

    /// How long a member waits for its leader before it stands for election.
    pub fn election_timeout(&self) -> Duration {
        self.shared.election_timeout
    }

    /// How long a request may take.
    pub fn request_timeout(&self) -> Duration {
        self.shared.request_timeout
    }

    /// Waits until this node knows of a leader, or of none, as `led` says. Not
    /// so any more if the node stops.
    pub async fn until_led(&self, led: bool) -> bool {
        let mut phase = self.shared.phase.subscribe();
        loop {
            let role = match &*phase.borrow_and_update() {
                Phase::Forming(_) if !led => return true,
                Phase::Forming(_) => None,
                Phase::Running(running) => Some(running.role.clone()),
                Phase::Stopping => return false,
            };
            if let Some(mut role) = role {
                return role.wait_for(|role| (role.leader_id != 0) == led).await.is_ok();
            }
            // The sender lives as long as the handle does.
            if phase.changed().await.is_err() {
                return false;
            }
        }
    }

    /// Returns once this node has known of no leader for so long, or stops.
    pub async fn without_leader_for(&self, patience: Duration) {
        let mut phase = self.shared.phase.subscribe();
        let running = |phase: &Phase| !matches!(phase, Phase::Forming(_));
        // The sender lives as long as the handle does.
        let mut role = match phase.wait_for(running).await.as_deref() {
            Ok(Phase::Running(running)) => running.role.clone(),
            _ => return,
        };
        loop {
            if role.wait_for(|role| role.leader_id == 0).await.is_err() {
                return;
            }
            match timeout(patience, role.wait_for(|role| role.leader_id != 0)).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }
}
