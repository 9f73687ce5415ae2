//! When this member stands for election.

use rand::RngExt as _;

use super::{Effect, Replica};
use crate::{machine, storage::Engine};

/// Election timeouts that an accused member leaves to the others. Only then
/// does it stand itself, because it may be the only one that has every
/// committed entry: the log is not what is wrong with it. It hands over as soon
/// as somebody else has them.
const DEFERENCE: usize = 3;

impl<E: Engine> Replica<E> {
    pub(super) fn tick(&mut self, effects: &mut Vec<Effect>) {
        self.now += 1;
        self.reads.retry(self.now.saturating_sub(self.read_patience()));
        self.promote_learners();
        self.settle_transfers(effects);
        self.write_news(effects);
        self.leave_lead_to_the_able();
        if !self.leads() && !self.may_campaign() {
            return;
        }
        let drawn_for = (self.node.raft.term, self.node.raft.state);
        if (self.election_timeout.1, self.election_timeout.2) != drawn_for {
            let ticks = self.options.election_ticks;
            let timeout = self.rng.random_range(ticks..2 * ticks);
            self.election_timeout = (timeout, drawn_for.0, drawn_for.1);
        }
        // Raft draws its own whenever it resets; ours replaces it.
        self.node.raft.set_randomized_election_timeout(self.election_timeout.0);
        if self.leaves_election_to_others() {
            // The time goes on: it is after a silent election timeout that raft
            // votes for somebody else.
            self.node.raft.election_elapsed += 1;
        } else {
            self.node.tick();
        }
    }

    /// Whether raft survives the start of an election now.
    pub(super) fn may_campaign(&self) -> bool {
        if self.is_restoring() {
            return false;
        }
        // A sole voter wins its election at once, which raft forbids while
        // entries of its previous term are still being written.
        let log = &self.node.raft.raft_log;
        let written = self.persisting.is_idle() && log.persisted == log.last_index();
        !self.is_sole_voter() || written
    }

    /// Whether somebody else should lead: the state of this member is not that
    /// of a majority, and there are others.
    pub(super) fn defers_to_others(&self) -> bool {
        self.is_accused(self.options.id) && !self.is_sole_voter() && !mutant!(LeadDespiteCorruption)
    }

    fn leaves_election_to_others(&self) -> bool {
        let elapsed = self.node.raft.election_elapsed + 1;
        self.defers_to_others() && !self.leads() && elapsed < DEFERENCE * self.election_timeout.0
    }

    /// Whether the CORRUPT alarm names this member.
    pub(super) fn is_accused(&self, member: u64) -> bool {
        machine::is_accused(&self.alarms, member)
    }

    /// Ticks after which an unanswered round of reads is asked again.
    fn read_patience(&self) -> u64 {
        (self.options.election_ticks as u64 / 2).max(2)
    }

    /// A snapshot was taken over that the state machine does not hold yet.
    /// Raft must not campaign then: it would look for the entries between the
    /// two, which are gone, and panic.
    fn is_restoring(&self) -> bool {
        self.applying.installed_index() > self.applied.index && !mutant!(CampaignWhileRestoring)
    }

    pub(super) fn is_sole_voter(&self) -> bool {
        machine::conf_state(&self.members).voters == [self.options.id]
    }
}
