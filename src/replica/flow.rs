//! What is under way to the log thread and to the apply thread, and how much
//! of it.

use std::collections::VecDeque;

use protobuf::Message as _;
use raft::eraftpb::{ConfChangeType, ConfChangeV2, Entry, EntryType, HardState, Message};

use super::{Effect, Replica};
use crate::{error::Fatal, proto::LogPosition, raftlog::Promises, storage::Engine};

/// Bytes read back from the log at once.
const APPLY_CHUNK_BYTES: u64 = 16 << 20;

/// A write under way to the raft database.
#[derive(Debug, Default)]
pub(super) struct Write {
    /// The persist effect's number.
    pub number: u64,
    /// The last of raft's readies that is durable with it.
    pub ready: Option<u64>,
    /// Raft's term, vote and commit index that are durable with it.
    pub hard_state: Option<HardState>,
    /// The last entry of the write.
    pub last: Option<LogPosition>,
    /// The snapshot it takes over.
    pub install: Option<LogPosition>,
    /// Messages that promise what it makes durable.
    pub messages: Vec<Message>,
    /// Bytes of its entries.
    pub bytes: usize,
    /// The tick at which it was begun.
    pub born: u64,
}

impl Write {
    fn commit(&self) -> u64 {
        self.hard_state.as_ref().map_or(0, |hard_state| hard_state.commit)
    }
}

/// Writes under way, oldest first.
#[derive(Debug, Default)]
pub(super) struct Persisting {
    writes: VecDeque<Write>,
    bytes: usize,
    last_number: u64,
    durable: Promises,
    written_commit: u64,
    durable_commit: u64,
    max_bytes: usize,
}

impl Persisting {
    /// Nothing under way after a start with this on disk.
    pub fn new(durable: Promises, commit: u64, max_bytes: usize) -> Self {
        let (written_commit, durable_commit) = (commit, commit);
        Self { durable, written_commit, durable_commit, max_bytes, ..Self::default() }
    }

    /// The newest commit index under way to the disk.
    pub fn written_commit(&self) -> u64 {
        self.written_commit
    }

    /// The newest commit index known to survive a crash.
    pub fn durable_commit(&self) -> u64 {
        self.durable_commit
    }

    /// The term, vote and last entry known to survive a crash.
    pub fn durable(&self) -> Promises {
        self.durable
    }

    /// The number of the next persist effect.
    pub fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    pub fn push(&mut self, write: Write) {
        self.bytes += write.bytes;
        self.written_commit = self.written_commit.max(write.commit());
        self.writes.push_back(write);
    }

    /// A ready with nothing to write: its messages still must not overtake
    /// what is being written. Gives them back when nothing is.
    pub fn attach(&mut self, ready: u64, messages: Vec<Message>) -> Option<Vec<Message>> {
        let Some(last) = self.writes.back_mut() else { return Some(messages) };
        last.ready = Some(ready);
        last.messages.extend(messages);
        None
    }

    /// The oldest write, if it is durable with the one of this number.
    pub fn pop(&mut self, number: u64) -> Option<Write> {
        if self.writes.front()?.number > number {
            return None;
        }
        self.writes.pop_front().inspect(|write| {
            self.bytes -= write.bytes;
            self.durable_commit = self.durable_commit.max(write.commit());
            if let Some(HardState { term, vote, .. }) = write.hard_state {
                (self.durable.term, self.durable.vote) = (term, vote);
            }
            if let Some(last) = write.last.or(write.install) {
                self.durable.last = last;
            }
        })
    }

    pub fn is_idle(&self) -> bool {
        self.writes.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.bytes > self.max_bytes && !mutant!(NoFlowControl)
    }

    /// Ticks since the oldest write was begun.
    pub fn oldest_age(&self, now: u64) -> u64 {
        let oldest = self.writes.front().filter(|_| !mutant!(LeadDespiteStall));
        oldest.map_or(0, |write| now - write.born)
    }
}

/// Entries that the state machine was given together.
#[derive(Debug)]
struct Batch {
    last_index: u64,
    bytes: usize,
    /// The tick at which the state machine came to it: when it was given, or
    /// when the one before was applied.
    begun: u64,
}

/// Committed entries on their way to the state machine.
#[derive(Debug)]
pub(super) struct Applying {
    under_way: VecDeque<Batch>,
    bytes: usize,
    max_bytes: usize,
    /// Everything up to this index was handed out.
    handed_out: u64,
    /// Everything up to this index is committed and may be handed out.
    committed: u64,
    /// The last snapshot taken over.
    installed: u64,
    /// Index of this member's own removal, if that waits to be handed out.
    removal: u64,
}

impl Applying {
    pub fn new(applied: u64, max_bytes: usize) -> Self {
        Self {
            under_way: VecDeque::new(),
            bytes: 0,
            max_bytes,
            handed_out: applied,
            committed: applied,
            installed: 0,
            removal: 0,
        }
    }

    pub fn is_full(&self) -> bool {
        self.bytes > self.max_bytes && !mutant!(NoFlowControl)
    }

    /// Index of the last snapshot taken over since the start.
    pub fn installed_index(&self) -> u64 {
        self.installed
    }

    /// The state machine will be replaced by a snapshot of this index.
    pub fn install(&mut self, index: u64) {
        self.installed = index;
        self.handed_out = index;
        self.committed = index;
    }

    /// The state machine has applied everything up to this index.
    pub fn applied(&mut self, index: u64, now: u64) {
        while self.under_way.front().is_some_and(|batch| batch.last_index <= index) {
            if let Some(batch) = self.under_way.pop_front() {
                self.bytes -= batch.bytes;
            }
        }
        // It got on, be it within a batch.
        if let Some(next) = self.under_way.front_mut() {
            next.begun = now;
        }
    }

    /// Ticks since the state machine got on, while there is something to apply.
    pub fn oldest_age(&self, now: u64) -> u64 {
        let oldest = self.under_way.front().filter(|_| !mutant!(LeadDespiteApplyStall));
        oldest.map_or(0, |batch| now - batch.begun)
    }

    fn hand_out(&mut self, entries: Vec<Entry>, now: u64, effects: &mut Vec<Effect>) {
        let Some(last) = entries.last() else { return };
        let bytes = entries.iter().map(|entry| entry.data.len() + 64).sum();
        self.handed_out = last.index;
        self.under_way.push_back(Batch { last_index: last.index, bytes, begun: now });
        self.bytes += bytes;
        effects.push(Effect::Apply(entries));
    }
}

impl<E: Engine> Replica<E> {
    /// Hands committed entries to the state machine, or leaves them in the
    /// log while too much is under way.
    pub(super) fn hand_out(&mut self, entries: Vec<Entry>, effects: &mut Vec<Effect>) {
        let Some(last) = entries.last() else { return };
        let behind = self.applying.handed_out < self.applying.committed;
        self.applying.committed = last.index;
        if !behind && !self.applying.is_full() {
            self.hand_out_up_to_removal(entries, effects);
        }
    }

    /// Reads back from the log what was left there.
    pub(super) fn hand_out_deferred(&mut self, effects: &mut Vec<Effect>) -> Result<(), Fatal> {
        while self.applying.handed_out < self.applying.committed && !self.applying.is_full() {
            let (low, high) = (self.applying.handed_out + 1, self.applying.committed + 1);
            if low == self.applying.removal && !self.may_leave(low) {
                self.hand_over("it was removed");
                break;
            }
            let chunk = APPLY_CHUNK_BYTES.min(self.options.max_apply_bytes as u64);
            let entries = self.node.store().read(low, high, chunk)?;
            self.hand_out_up_to_removal(entries, effects);
        }
        Ok(())
    }

    /// The index of this member's own removal among the entries that it has
    /// not applied; 0 when there is none.
    pub(super) fn own_removal(&self) -> Result<u64, Fatal> {
        let log = self.node.store();
        let (mut low, high) = (log.first().max(self.applied.index + 1), log.last() + 1);
        while low < high {
            let entries = log.read(low, high, APPLY_CHUNK_BYTES)?;
            if let Some(removal) = entries.iter().find(|entry| removes(entry, self.options.id)) {
                return Ok(removal.index);
            }
            low += entries.len() as u64;
        }
        Ok(0)
    }

    /// Hands out what comes before this member's own removal, and that too if
    /// it may leave.
    fn hand_out_up_to_removal(&mut self, mut entries: Vec<Entry>, effects: &mut Vec<Effect>) {
        let own = self.options.id;
        if let Some(at) = entries.iter().position(|entry| removes(entry, own))
            && !self.may_leave(entries[at].index)
        {
            self.applying.removal = entries[at].index;
            entries.truncate(at);
        }
        self.applying.hand_out(entries, self.now, effects);
    }

    /// Whether this member may apply its own removal at `index`, and so leave.
    ///
    /// Only on the word of another leader. A member that leads when its
    /// removal is committed may be the only one who knows of that; the others
    /// would wait for its vote for ever. A sole voter has nobody to wait for:
    /// its removal will be refused.
    fn may_leave(&self, index: u64) -> bool {
        mutant!(LeaveBeforeOthersKnow)
            || index <= self.told_commit
            || (self.applied.index + 1 == index && self.is_sole_voter())
    }
}

/// Whether this entry proposes to remove a member.
fn removes(entry: &Entry, id: u64) -> bool {
    if entry.get_entry_type() != EntryType::EntryConfChangeV2 {
        return false;
    }
    ConfChangeV2::parse_from_bytes(&entry.data).is_ok_and(|change| {
        change.get_changes().iter().any(|single| {
            single.node_id == id && single.get_change_type() == ConfChangeType::RemoveNode
        })
    })
}
