//! What followers are told of the commit index.
//!
//! They need it to apply, and hear of it with every append and heartbeat. While
//! there is more to append, a message for the commit alone would be one too many:
//! it is sent only once no append has brought it within a moment, of which the
//! runtime has the clock. Only a member that passed the command on is told at once:
//! it answers its client when it has applied the command itself.

use std::collections::{BTreeMap, BTreeSet};

use raft::{
    ProgressState,
    eraftpb::{Message, MessageType},
};

use super::Replica;
use crate::storage::Engine;

/// The commit indexes that this member told as a leader.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    /// The term in which it told them.
    term: u64,
    /// The last one told to each member. It may be lost; then a heartbeat
    /// brings it.
    told: BTreeMap<u64, u64>,
    /// The last one for which a message was sent to whoever needed one.
    announced: u64,
    /// The members that passed commands on, by the entry that holds these, as far
    /// as it is not committed yet.
    asked: BTreeMap<u64, BTreeSet<u64>>,
}

impl Announcements {
    /// Takes note of who passed on the commands in an entry.
    pub fn asked(&mut self, index: u64, askers: BTreeSet<u64>) {
        if !askers.is_empty() {
            self.asked.insert(index, askers);
        }
    }

    /// Forgets what was told in another term than this one.
    fn enter(&mut self, term: u64) {
        if term != self.term {
            (self.term, self.announced) = (term, 0);
            self.told.clear();
        }
    }

    /// Takes note of a message that leaves.
    pub fn sends(&mut self, message: &Message) {
        if !matches!(message.get_msg_type(), MessageType::MsgAppend | MessageType::MsgHeartbeat) {
            return;
        }
        self.enter(message.term);
        let told = self.told.entry(message.to).or_default();
        *told = (*told).max(message.commit);
    }
}

impl<E: Engine> Replica<E> {
    /// Whether there is a commit index that some follower was not told of. Unless
    /// that has changed within a moment, an
    /// [`Event::Announce`](super::Event::Announce) is due.
    pub fn is_to_announce(&self) -> bool {
        let Announcements { term, announced, .. } = self.announcements;
        let is_told = term == self.node.raft.term && announced >= self.commit_to_tell();
        self.leads() && !is_told && self.untold().next().is_some()
    }

    /// Tells whoever was not told of the commit index. Each is worth one message
    /// to each member; a heartbeat repeats it.
    pub(super) fn announce(&mut self) {
        if !self.is_to_announce() {
            return;
        }
        let untold: Vec<u64> = self.untold().collect();
        for id in untold {
            self.node.raft.send_append(id);
        }
        self.announcements.enter(self.node.raft.term);
        self.announcements.announced = self.commit_to_tell();
    }

    /// Tells those of the commit index who passed on what is committed now, unless an
    /// append has told them; whether there was anybody.
    pub(super) fn tell_askers(&mut self) -> bool {
        if !self.leads() {
            self.announcements.asked.clear();
            return false;
        }
        let later = self.announcements.asked.split_off(&(self.commit_to_tell() + 1));
        let asked = std::mem::replace(&mut self.announcements.asked, later);
        if asked.is_empty() {
            return false;
        }
        let askers: BTreeSet<u64> = asked.into_values().flatten().collect();
        let untold: Vec<u64> = self.untold().filter(|id| askers.contains(id)).collect();
        for id in &untold {
            self.node.raft.send_append(*id);
        }
        !untold.is_empty()
    }

    /// The members whose log goes on with what is sent to them, and who were not
    /// told of all that is committed.
    fn untold(&self) -> impl Iterator<Item = u64> {
        let Announcements { term, told, .. } = &self.announcements;
        let commit = self.commit_to_tell();
        let is_told = move |id| {
            *term == self.node.raft.term && told.get(id).is_some_and(|told| *told >= commit)
        };
        let progress = self.node.raft.prs().iter();
        progress
            .filter(move |&(id, progress)| {
                *id != self.options.id && progress.state == ProgressState::Replicate && !is_told(id)
            })
            .map(|(id, _)| *id)
    }
}
