//! Giving the lead to another member: because a client asks for it, or because
//! this member should not lead any longer.

use super::{Answer, Effect, Replica};
use crate::{error::Rejected, machine, proto::RequestId, storage::Engine};

/// Election timeouts for which a leader may apply one batch. More than a disk
/// gets, because a single large command (a deletion of many keys) is work that
/// every member has to do, so that it does not help if another one leads.
const APPLY_PATIENCE: u64 = 3;

/// A request to make a member the leader.
#[derive(Debug)]
struct Transfer {
    id: RequestId,
    target: u64,
    /// Tick at which it counts as failed.
    deadline: u64,
}

/// Requests to change the leader, and whom this leader has asked to take over.
#[derive(Debug, Default)]
pub(super) struct Handover {
    transfers: Vec<Transfer>,
    /// Members that were asked and did not take over, in the term they were
    /// asked in.
    asked: (u64, Vec<u64>),
}

impl Handover {
    /// Takes out everything that waits.
    pub fn drain(&mut self) -> impl Iterator<Item = RequestId> {
        self.transfers.drain(..).map(|transfer| transfer.id)
    }

    /// Nobody waits for this request any longer: what can be said of it.
    pub fn cancel(&mut self, id: &RequestId) -> Option<Rejected> {
        let at = self.transfers.iter().position(|transfer| transfer.id == *id)?;
        let target = self.transfers.remove(at).target;
        Some(Rejected::Conflict(format!("member {target} did not take over in time")))
    }
}

impl<E: Engine> Replica<E> {
    /// Hands the lead over if this member should not have it: it is stopping or
    /// accused, or its log or its state does not get on. Its heartbeats would go on all
    /// the same, so that nobody else would replace it.
    pub(super) fn leave_lead_to_the_able(&mut self) {
        let election = self.options.election_ticks as u64;
        if self.persisting.oldest_age(self.now) > election {
            self.hand_over("its disk has stalled for longer than an election timeout");
        }
        if self.applying.oldest_age(self.now) > APPLY_PATIENCE * election {
            self.hand_over("its state has not advanced for three election timeouts");
        }
        if self.stopping {
            self.hand_over("this member is stopping");
        }
        self.lead_no_longer_if_accused();
    }

    pub(super) fn lead_no_longer_if_accused(&mut self) {
        if self.defers_to_others() {
            self.hand_over("its state is not that of the others (CORRUPT alarm)");
        }
    }

    /// Starts to hand leadership over, if another voter is there.
    pub(super) fn hand_over(&mut self, why: &str) {
        if self.leads()
            && self.node.raft.lead_transferee.is_none()
            && let Some(target) = self.next_successor()
        {
            slog::info!(self.logger, "handing leadership to member {target}: {why}");
            self.handover.asked.1.push(target);
            self.node.transfer_leader(target);
        }
    }

    /// The best successor among those that were not asked yet in this term, or
    /// of all once each was: the one that looks best may be unable to take over.
    fn next_successor(&mut self) -> Option<u64> {
        let term = self.node.raft.term;
        if self.handover.asked.0 != term || mutant!(AskOneSuccessor) {
            self.handover.asked = (term, Vec::new());
        }
        let next = self.best_successor();
        if next.is_some() || self.handover.asked.1.is_empty() {
            return next;
        }
        self.handover.asked.1.clear();
        self.best_successor()
    }

    /// The voter not asked yet that would take over fastest: recently heard of,
    /// and with the longest log.
    fn best_successor(&self) -> Option<u64> {
        let progress = self.node.raft.prs();
        let voters = machine::conf_state(&self.members).voters;
        voters
            .into_iter()
            .filter(|id| *id != self.options.id && !self.is_accused(*id))
            .filter(|id| !self.handover.asked.1.contains(id))
            .filter_map(|id| progress.get(id).map(|p| (p.recent_active, p.matched, id)))
            .filter(|(active, ..)| *active)
            .max()
            .map(|(_, _, id)| id)
    }

    /// A client wants this member to lead.
    pub(super) fn transfer_leader(
        &mut self,
        id: RequestId,
        target: u64,
        effects: &mut Vec<Effect>,
    ) {
        let refusal = if self.node.raft.leader_id == target {
            Answer::Led
        } else if !self.leads() {
            Answer::NotLeader(self.node.raft.leader_id)
        } else {
            match machine::member(&self.members, target) {
                None => Answer::Rejected(Rejected::MemberNotFound(target)),
                Some(member) if member.learner => Answer::Rejected(Rejected::Conflict(format!(
                    "member {target} is a learner; promote it first"
                ))),
                Some(_) if self.is_accused(target) => Answer::Rejected(Rejected::Conflict(
                    format!("the CORRUPT alarm names member {target}; choose another"),
                )),
                Some(_) if !self.recently_active(target) => Answer::Rejected(Rejected::Conflict(
                    format!("member {target} does not answer; start it first"),
                )),
                Some(_) => {
                    self.node.transfer_leader(target);
                    let deadline = self.now + 2 * self.options.election_ticks as u64;
                    self.handover.transfers.push(Transfer { id, target, deadline });
                    return;
                }
            }
        };
        effects.push(Effect::Answer(id, refusal));
    }

    fn recently_active(&self, id: u64) -> bool {
        self.node.raft.prs().get(id).is_some_and(|progress| progress.recent_active)
    }

    /// Answers transfers that succeeded or failed by now.
    pub(super) fn settle_transfers(&mut self, effects: &mut Vec<Effect>) {
        let leader = self.node.raft.leader_id;
        let own = self.options.id;
        let now = self.now;
        self.handover.transfers.retain(|transfer| {
            let answer = if leader == transfer.target {
                Answer::Led
            } else if now >= transfer.deadline || (leader != 0 && leader != own) {
                let target = transfer.target;
                let why = format!("member {target} did not take over; try again");
                Answer::Rejected(Rejected::Conflict(why))
            } else {
                return true;
            };
            effects.push(Effect::Answer(transfer.id, answer));
            false
        });
    }
}
