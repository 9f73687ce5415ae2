//! What the members promise to each other: this one's own promises, and those
//! it heard.
//!
//! Every message rests on what its sender's disk holds, so that nobody has to
//! say so beside it, but for a leader: its entries are on their way before it
//! has stored them itself. Its heartbeats say how far it has, in fields that
//! raft leaves empty there.

use std::sync::Arc;

use raft::eraftpb::{Message, MessageType};

use super::Replica;
use crate::{
    machine,
    proto::LogPosition,
    raftlog::{Promises, Witnessed},
    storage::Engine,
};

/// What this member heard the others promise.
#[derive(Debug, Default)]
pub(super) struct Witness {
    heard: Arc<Witnessed>,
    /// Whether some of it is not yet under way to the disk.
    is_news: bool,
}

impl Witness {
    pub fn new(heard: Arc<Witnessed>) -> Self {
        Self { heard, is_news: false }
    }

    /// What the others have promised.
    pub fn heard(&self) -> Arc<Witnessed> {
        Arc::clone(&self.heard)
    }

    /// What has to be written down, with the next write for another reason: it
    /// is not worth one of its own.
    pub fn take_news(&mut self) -> Option<Arc<Witnessed>> {
        std::mem::take(&mut self.is_news).then(|| self.heard())
    }

    /// Members that were removed never come back.
    pub fn forget(&mut self, removed: &[u64]) {
        if self.heard.knows_any(removed) {
            Arc::make_mut(&mut self.heard).forget(removed);
            self.is_news = true;
        }
    }

    fn learn(&mut self, member: u64, promises: &Promises) {
        let known = self.heard.of(member).copied();
        if known.unwrap_or_default().learn(promises) {
            self.is_news |= Arc::make_mut(&mut self.heard).learn(member, promises);
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
        self.witness.learn(from, &Promises { term, vote, last });
    }

    /// Says in a heartbeat how far the leader's own log is durable.
    pub(super) fn confess(&self, heartbeat: &mut Message) {
        let Promises { last, .. } = self.persisting.durable();
        (heartbeat.index, heartbeat.log_term) = (last.index, last.term);
    }
}
