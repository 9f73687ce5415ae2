//! Changing who belongs to the cluster.
//!
//! The state machine decides, identically everywhere, whether a change is
//! valid; the leader only keeps raft's own rules: one change at a time, a
//! learner is promoted when it has caught up, and a leader hands over before
//! it is removed.

use std::collections::VecDeque;

use raft::{ProgressState, StateRole};

use super::{Answer, Effect, Replica, spoken::Spoken};
use crate::{
    error::{Fatal, Rejected},
    machine::{self, command},
    proto::{Command, Member, PromoteMember, RequestId, command::Op},
    storage::Engine,
};

/// A learner counts as caught up when it lacks at most this many entries:
/// few enough to follow within one heartbeat.
const PROMOTION_LAG: u64 = 256;

/// Membership commands that may wait for their turn.
const MAX_QUEUED: usize = 256;

/// Marks the sequence numbers of the leader's own commands, which nobody
/// waits for.
const INTERNAL: u64 = 1 << 63;

/// Membership commands under way.
#[derive(Debug, Default)]
pub(super) struct Membership {
    queued: VecDeque<Command>,
    internal_sequence: u64,
    /// Raft was told of a change that it then refused to append; it takes the
    /// change for pending until any entry at that index is applied.
    nudge: bool,
    /// While this member leads, the index of its own removal that it found in
    /// the log when it began to, or 0.
    pub own_removal: u64,
    /// What the members understand.
    pub spoken: Spoken,
}

impl Membership {
    /// Takes out everything that waits.
    pub fn drain(&mut self) -> Vec<RequestId> {
        self.queued.drain(..).filter_map(|command| command.id).collect()
    }

    /// Nobody waits for this request any longer: what can be said of it.
    pub fn cancel(&mut self, id: &RequestId) -> Option<Rejected> {
        let at = self.queued.iter().position(|c| c.id.as_ref() == Some(id))?;
        self.queued.remove(at);
        Some(Rejected::Conflict(
            "the leader could not begin the change in time; try again later".to_owned(),
        ))
    }
}

/// Whether the command changes raft's configuration.
pub(super) fn is_conf_change(command: &Command) -> bool {
    matches!(command.op, Some(Op::AddMember(_) | Op::PromoteMember(_) | Op::RemoveMember(_)))
}

impl<E: Engine> Replica<E> {
    /// Takes a membership command in; only called on the leader.
    pub(super) fn queue_conf_change(
        &mut self,
        id: RequestId,
        command: Command,
        effects: &mut Vec<Effect>,
    ) {
        if self.membership.queued.len() >= MAX_QUEUED {
            let why = "too many membership changes are waiting; try again later".to_owned();
            effects.push(Effect::Answer(id, Answer::Rejected(Rejected::Overloaded(why))));
        } else {
            self.membership.queued.push_back(command);
        }
    }

    /// Proposes the next waiting change if raft can take one.
    pub(super) fn propose_conf_changes(&mut self, effects: &mut Vec<Effect>) -> Result<(), Fatal> {
        if !self.leads() {
            let leader = self.node.raft.leader_id;
            for command in std::mem::take(&mut self.membership.queued) {
                if let Some(id) = command.id {
                    effects.push(Effect::Answer(id, Answer::NotLeader(leader)));
                }
            }
            return Ok(());
        }
        if self.membership.nudge && self.node.propose(Vec::new(), Vec::new()).is_ok() {
            self.membership.nudge = false;
        }
        while !self.conf_change_pending() && self.node.raft.lead_transferee.is_none() {
            let Some(command) = self.membership.queued.front() else { break };
            if self.must_hand_over_first(command) {
                self.hand_over("it is about to be removed");
                break;
            }
            if let Some(command) = self.membership.queued.pop_front() {
                self.propose_conf_change(&command, effects)?;
            }
        }
        Ok(())
    }

    fn propose_conf_change(
        &mut self,
        command: &Command,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Fatal> {
        let Some(id) = command.id else { return Ok(()) };
        if let Some(Op::PromoteMember(promote)) = &command.op
            && machine::member(&self.members, promote.id).is_some_and(|member| member.learner)
            && let Some(lag) = self.lag(promote.id)
        {
            let why = format!(
                "member {} is not caught up yet ({lag} entries behind); try again later",
                promote.id
            );
            effects.push(Effect::Answer(id, Answer::Rejected(Rejected::Conflict(why))));
            return Ok(());
        }
        let Some(change) = command::conf_change(command) else { return Ok(()) };
        let context = command::encode_command(command);
        let proposed = self.node.propose_conf_change(context, change).is_ok();
        if proposed {
            let log = &self.node.raft.raft_log;
            let (index, term) = (log.last_index(), self.node.raft.term);
            self.proposals.register(id);
            self.proposals.proposed(index, term, vec![id]);
        } else {
            self.membership.nudge = true;
            let why = "the leader accepts no entries at the moment".to_owned();
            effects.push(Effect::Answer(id, Answer::Rejected(Rejected::NotApplied(why))));
        }
        Ok(())
    }

    /// Raft silently turns a second change into an empty entry while one is
    /// pending, so a change has to wait for its predecessor to be applied.
    fn conf_change_pending(&self) -> bool {
        let log = &self.node.raft.raft_log;
        self.node.raft.pending_conf_index > log.applied() && !mutant!(TwoChangesAtOnce)
    }

    /// A leader that applies its own removal is gone at once. A voter that has
    /// not heard of the commit by then waits for the removed one's vote for
    /// ever, so that the removal has to wait until somebody else leads.
    fn must_hand_over_first(&self, command: &Command) -> bool {
        matches!(&command.op, Some(Op::RemoveMember(remove)) if remove.id == self.options.id)
            && !self.is_sole_voter()
    }

    /// How many entries a member lacks, if they are too many to promote it.
    fn lag(&self, id: u64) -> Option<u64> {
        let committed = self.node.raft.raft_log.committed;
        let Some(progress) = self.node.raft.prs().get(id) else {
            // Unknown members are for the state machine to refuse.
            return None;
        };
        let lag = committed.saturating_sub(progress.matched);
        // After a snapshot raft probes until the next entry, which on an idle
        // cluster never comes: having everything is following, too.
        let follows = progress.state == ProgressState::Replicate || lag == 0;
        let lags = !follows || !progress.recent_active || lag > PROMOTION_LAG;
        (lags && !mutant!(PromoteTooEarly)).then_some(lag)
    }

    /// Queues the promotion of members that were added to become voters and
    /// have caught up. The intent is part of the replicated state, so every
    /// new leader goes on with it.
    pub(super) fn promote_learners(&mut self) {
        if !self.leads() || self.conf_change_pending() || !self.membership.queued.is_empty() {
            return;
        }
        let wants = |member: &&Member| {
            let wants = member.learner && member.promote_when_caught_up;
            wants && member.incarnation != 0 && !self.is_accused(member.id)
        };
        let members = self.members.clone();
        let ready = members.members.iter().filter(wants).find(|member| {
            self.node.raft.prs().get(member.id).is_some() && self.lag(member.id).is_none()
        });
        if let Some(member) = ready {
            self.membership.internal_sequence += 1;
            let sequence = INTERNAL | self.membership.internal_sequence;
            let (id, nonce) = (self.options.id, self.options.nonce);
            self.membership.queued.push_back(Command {
                id: Some(RequestId { member: id, nonce, sequence }),
                op: Some(Op::PromoteMember(PromoteMember { id: member.id })),
            });
        }
    }

    pub(super) fn leads(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }
}
