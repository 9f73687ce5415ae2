//! What must hold at every moment, over all members and all their restarts.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use metastore::{
    machine::{KvHash, StateHash},
    proto::{LogPosition, Outcome},
    raftlog::Persist,
};
use raft::eraftpb::{Entry, HardState, Message, MessageType};

use super::sim::Id;

/// What the whole cluster agrees on. Every check panics when it fails.
#[derive(Default)]
pub struct Checks {
    leaders: BTreeMap<u64, u64>,
    /// Term and content of each committed entry.
    committed: BTreeMap<u64, (u64, u64)>,
    /// Content and predecessor's term of every entry that was stored or sent.
    entries: BTreeMap<(u64, u64), (u64, u64)>,
    hashes: BTreeMap<u64, StateHash>,
    /// Term and hash at each mark, by its index.
    marks: BTreeMap<u64, (u64, [u8; 32])>,
    /// By index and revision.
    kv_hashes: BTreeMap<(u64, u64), KvHash>,
    outcomes: BTreeMap<Id, (u64, Outcome)>,
    /// How often something was compared with what was known before.
    pub compared: u64,
    pub hashes_compared: u64,
    pub marks_compared: u64,
}

impl Checks {
    /// At most one leader a term.
    pub fn leads(&mut self, id: u64, term: u64) {
        self.compared += 1;
        let leader = *self.leaders.entry(term).or_insert(id);
        assert_eq!(leader, id, "two leaders in term {term}");
    }

    pub fn terms_with_leader(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// Whoever commits an index commits the same entry there.
    pub fn commits(&mut self, id: u64, entry: &Entry) {
        let this = (entry.term, content(entry));
        let known = *self.committed.entry(entry.index).or_insert(this);
        self.compared += 1;
        assert_eq!(known, this, "member {id} commits another entry at index {}", entry.index);
    }

    /// Log matching: entries of equal index and term are equal, and so are
    /// those before them. Holds for what was stored durably or sent.
    pub fn holds_entries(&mut self, id: u64, mut previous_term: u64, entries: &[Entry]) {
        for entry in entries {
            let (index, term) = (entry.index, entry.term);
            let this = (content(entry), previous_term);
            let known = *self.entries.entry((index, term)).or_insert(this);
            self.compared += 1;
            assert_eq!(known, this, "member {id}: two entries at index {index} in term {term}");
            previous_term = term;
        }
    }

    /// State machines at the same position are equal.
    pub fn state(&mut self, id: u64, hash: StateHash) {
        let index = hash.position.index;
        if let Some(known) = self.hashes.get(&index) {
            self.hashes_compared += 1;
            assert_eq!(*known, hash, "member {id} has another state at index {index}");
        }
        self.hashes.insert(index, hash);
    }

    /// State machines that were frozen at the same mark are equal.
    pub fn marked(&mut self, id: u64, mark: LogPosition, hash: &[u8; 32]) {
        let this = (mark.term, *hash);
        match self.marks.get(&mark.index) {
            Some(known) => {
                self.marks_compared += 1;
                assert_eq!(*known, this, "member {id} has another state at the mark {mark:?}");
            }
            None => drop(self.marks.insert(mark.index, this)),
        }
    }

    /// At the same position, hashes of the keys as of a revision are equal.
    pub fn kv_state(&mut self, id: u64, index: u64, revision: u64, hash: KvHash) {
        let known = *self.kv_hashes.entry((index, revision)).or_insert(hash);
        self.compared += 1;
        assert_eq!(known, hash, "member {id} has other keys at index {index}, revision {revision}");
    }

    /// Whether this outcome was not known yet. A request is applied at one
    /// index, and all members agree on what came of it.
    pub fn is_first_outcome(&mut self, index: u64, id: Id, outcome: &Outcome) -> bool {
        self.compared += 1;
        let this = (index, outcome.clone());
        match self.outcomes.get(&id) {
            Some(known) => {
                assert_eq!(*known, this, "request {id:?} has two outcomes");
                false
            }
            None => {
                self.outcomes.insert(id, this);
                true
            }
        }
    }
}

fn content(entry: &Entry) -> u64 {
    let mut hasher = DefaultHasher::new();
    (entry.entry_type as i32).hash(&mut hasher);
    entry.data.hash(&mut hasher);
    entry.context.hash(&mut hasher);
    hasher.finish()
}

/// A raft database reduced to what raft cares about.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LogModel {
    pub hard_state: HardState,
    pub truncated: LogPosition,
    /// Term by index.
    pub terms: BTreeMap<u64, u64>,
}

impl LogModel {
    pub fn last_index(&self) -> u64 {
        self.terms.last_key_value().map_or(self.truncated.index, |(index, _)| *index)
    }

    pub fn term(&self, index: u64) -> Option<u64> {
        if index == self.truncated.index {
            return Some(self.truncated.term);
        }
        self.terms.get(&index).copied()
    }

    /// Does what a write does, and checks that raft may do that.
    fn write(&mut self, persist: &Persist) {
        if let Some(position) = persist.install {
            assert!(
                position.index > self.hard_state.commit,
                "installs {position:?}, older than {self:?}"
            );
            self.truncated = position;
            self.terms.clear();
        }
        if let Some(first) = persist.entries.first() {
            let last = self.last_index();
            assert!(
                first.index > self.hard_state.commit && first.index <= last + 1,
                "appends at {} but the log ends at {last} and {} is committed",
                first.index,
                self.hard_state.commit
            );
            self.terms.split_off(&first.index);
        }
        for entry in &persist.entries {
            let last = self.last_index();
            let last_term = self.term(last).unwrap_or(0);
            assert!(
                entry.index == last + 1 && entry.term >= last_term,
                "entry {} of term {} follows {last} of term {last_term}",
                entry.index,
                entry.term
            );
            self.terms.insert(entry.index, entry.term);
        }
        if let Some(next) = &persist.hard_state {
            let now = &self.hard_state;
            let vote_stands = next.term > now.term || now.vote == 0 || next.vote == now.vote;
            assert!(
                next.term >= now.term && vote_stands && next.commit >= now.commit,
                "hard state {next:?} after {now:?}"
            );
            self.hard_state = next.clone();
            assert!(next.commit <= self.last_index(), "commits past its log: {self:?}");
        }
        if let Some(position) = persist.compact {
            assert_eq!(self.term(position.index), Some(position.term), "compacts to {position:?}");
            self.terms = self.terms.split_off(&(position.index + 1));
            self.truncated = position;
        }
    }
}

/// One member's raft database as it must be, in three ages.
#[derive(Debug, Default)]
pub struct Shadow {
    /// With everything raft ordered.
    ordered: LogModel,
    /// As it survives any crash.
    durable: LogModel,
    /// Written since; a crash keeps some first part of it.
    unsynced: Vec<Persist>,
    /// The state database survives a crash up to this index at least.
    pub durable_applied: u64,
}

impl Shadow {
    /// Raft orders a write.
    pub fn order(&mut self, id: u64, persist: &Persist) {
        self.ordered.write(persist);
        if let Some(position) = persist.compact {
            assert!(
                position.index <= self.durable_applied,
                "member {id} drops its log up to {} but a crash could take the state back to {}",
                position.index,
                self.durable_applied
            );
        }
    }

    /// Whether a write takes the place of other entries than what it appends
    /// to, or of the whole log.
    pub fn replaces(&self, persist: &Persist) -> bool {
        let replaces = |first: &Entry| first.index <= self.durable.last_index();
        persist.install.is_some() || persist.entries.first().is_some_and(replaces)
    }

    /// A group was refused: a crash keeps some first part of it, or nothing.
    pub fn may_be_written(&mut self, group: &[Persist]) {
        self.unsynced.extend(group.iter().cloned());
    }

    /// A group was written.
    pub fn written(&mut self, id: u64, group: &[Persist], checks: &mut Checks) {
        self.unsynced.extend(group.iter().cloned());
        if !group.iter().any(|persist| persist.sync) {
            return;
        }
        for persist in self.unsynced.drain(..) {
            self.durable.write(&persist);
            if let Some(first) = persist.entries.first() {
                let previous = self.durable.term(first.index - 1).unwrap_or(0);
                checks.holds_entries(id, previous, &persist.entries);
            }
        }
    }

    /// What was found after a crash must be what was durable, with some first
    /// part of what else was written.
    pub fn recovered(&mut self, id: u64, found: LogModel) {
        let mut possible = self.durable.clone();
        let mut unsynced = self.unsynced.drain(..);
        while possible != found {
            let Some(persist) = unsynced.next() else {
                panic!("member {id} came back with {found:?}, but had made durable {possible:?}");
            };
            possible.write(&persist);
        }
        drop(unsynced);
        self.durable = found.clone();
        self.ordered = found;
    }

    /// What is new at a first start.
    pub fn begin(&mut self, found: LogModel) {
        *self = Self { ordered: found.clone(), durable: found, ..Self::default() };
    }

    /// Votes and confirmations may leave only when they rest on durable state.
    pub fn may_send(&self, message: &Message) {
        let HardState { term, vote, .. } = self.durable.hard_state;
        let rests = match message.get_msg_type() {
            MessageType::MsgRequestVoteResponse if !message.reject => {
                (term, vote) == (message.term, message.to) || term > message.term
            }
            MessageType::MsgRequestVote => {
                (term, vote) == (message.term, message.from) || term > message.term
            }
            MessageType::MsgAppendResponse if !message.reject => {
                // In a later term a new leader may have cut the log again since.
                (term == message.term && self.durable.last_index() >= message.index)
                    || term > message.term
            }
            _ => true,
        };
        assert!(rests, "sends {message:?} but only this is durable: {:?}", self.durable);
    }
}
