//! What the members promise to each other: this one's own promises, and those
//! it heard.
//!
//! Every message rests on what its sender's disk holds, so that nobody has to
//! say so beside it, but for a leader: its entries are on their way before it
//! has stored them itself. Its heartbeats say how far it has, in fields that
//! raft leaves empty there.

use std::sync::Arc;

use raft::eraftpb::{Message, MessageType};

use super::{Effect, Replica, flow::Write};
use crate::{
    machine,
    proto::LogPosition,
    raftlog::{Persist, Promises, Witnessed},
    storage::Engine,
};

/// What this member heard the others promise.
#[derive(Debug, Default)]
pub(super) struct Witness {
    heard: Arc<Witnessed>,
    /// The tick since when some of it is not yet under way to the disk.
    news_since: Option<u64>,
}

impl Witness {
    pub fn new(heard: Arc<Witnessed>) -> Self {
        Self { heard, news_since: None }
    }

    /// What the others have promised.
    pub fn heard(&self) -> Arc<Witnessed> {
        Arc::clone(&self.heard)
    }

    /// What has to be written down, with the next write for another reason, or
    /// when there is none for a while.
    pub fn take_news(&mut self) -> Option<Arc<Witnessed>> {
        self.news_since.take().map(|_| self.heard())
    }

    /// Ticks for which something was not written down.
    fn news_age(&self, now: u64) -> u64 {
        self.news_since.map_or(0, |since| now - since)
    }

    /// Members that were removed never come back.
    pub fn forget(&mut self, removed: &[u64], now: u64) {
        if self.heard.knows_any(removed) {
            Arc::make_mut(&mut self.heard).forget(removed);
            self.news_since.get_or_insert(now);
        }
    }

    fn learn(&mut self, member: u64, promises: &Promises, now: u64) {
        let known = self.heard.of(member).copied();
        if known.unwrap_or_default().learn(promises) {
            Arc::make_mut(&mut self.heard).learn(member, promises);
            self.news_since.get_or_insert(now);
        }
    }
}

impl<E: Engine> Replica<E> {
    /// What this member has on disk, as far as others rely on it, and what it
    /// heard the others promise. What it sends is never ahead of the first.
    pub fn promises(&self) -> (Promises, Arc<Witnessed>) {
        (self.persisting.durable(), self.witness.heard())
    }

    /// Remembers what a member promises with this message.
    pub(super) fn witness(&mut self, message: &Message) {
        let Message { from, to, term, index, reject, .. } = *message;
        if machine::member(&self.members, from).is_none() {
            return;
        }
        let (vote, last) = match message.get_msg_type() {
            MessageType::MsgRequestVote => (from, LogPosition::default()),
            MessageType::MsgRequestVoteResponse if !reject => (to, LogPosition::default()),
            MessageType::MsgAppendResponse if !reject => {
                // Of a former term, it is about a log that is no longer here.
                let is_present = self.leads() && term == self.node.raft.term;
                let known = is_present.then(|| self.node.raft.raft_log.term(index));
                (0, LogPosition { index, term: known.and_then(Result::ok).unwrap_or(0) })
            }
            MessageType::MsgHeartbeat => (from, LogPosition { index, term: message.log_term }),
            MessageType::MsgRequestVoteResponse
            | MessageType::MsgAppendResponse
            | MessageType::MsgHeartbeatResponse => (0, LogPosition::default()),
            _ => return,
        };
        self.witness.learn(from, &Promises { term, vote, last }, self.now);
    }

    /// Writes down what was heard, if no other write has taken it along for an
    /// election timeout: a member that is killed while nobody writes is to
    /// remember it, too.
    pub(super) fn write_news(&mut self, effects: &mut Vec<Effect>) {
        let is_due = self.witness.news_age(self.now) >= self.options.election_ticks as u64;
        if !is_due || !self.persisting.is_idle() || mutant!(ForgetWhatWasHeard) {
            return;
        }
        let number = self.persisting.next_number();
        self.persisting.push(Write { number, born: self.now, ..Write::default() });
        let witnessed = self.witness.take_news();
        effects.push(Effect::Persist(Persist {
            number,
            witnessed,
            sync: true,
            ..Persist::default()
        }));
    }

    /// Says in a heartbeat how far the leader's own log is durable.
    pub(super) fn confess(&self, heartbeat: &mut Message) {
        let Promises { last, .. } = self.persisting.durable();
        (heartbeat.index, heartbeat.log_term) = (last.index, last.term);
    }
}
