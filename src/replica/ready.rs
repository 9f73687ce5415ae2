//! Raft's Ready as effects, in the one legal order.
//!
//! A leader's messages may leave before its own fsync; everybody else's are
//! promises about what is durable and wait for it. Entries are given to the
//! in-memory log before raft goes on, to the log thread at the same time, and
//! to the state machine only once raft knows them to be committed and durable
//! here.

use protobuf::Message as _;
use raft::{
    StateRole,
    eraftpb::{HardState, Message, MessageType},
};

use super::{Effect, Replica, flow::Write};
use crate::{error::Fatal, proto::LogPosition, raftlog::Persist, storage::Engine};

/// Bytes of entries in one append; a larger entry gets an append of its own.
pub(super) const MAX_APPEND_BYTES: usize = 1 << 20;

impl<E: Engine> Replica<E> {
    /// Takes everything raft has ready.
    pub(super) fn pump(&mut self, effects: &mut Vec<Effect>) -> Result<(), Fatal> {
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            for state in ready.take_read_states() {
                self.reads.confirm(&state.request_ctx, state.index);
            }
            // A sole voter leads before its term is durable. A learner that
            // heard of it could then, after a crash, get other entries in the
            // same term: nothing leaves before.
            let mut messages = Vec::new();
            let change = self.committed_change();
            if self.persisting.durable().term < self.node.raft.term
                || self.persisting.durable_commit() < change
            {
                messages = ready.take_messages();
            }
            for message in ready.take_messages() {
                self.send(message, effects);
            }
            let number = ready.number();
            for message in ready.take_persisted_messages() {
                match may_leave_now(&message) {
                    true => self.send(message, effects),
                    false => messages.push(message),
                }
            }
            let committed = ready.take_committed_entries();
            let mut persist = Persist {
                entries: ready.take_entries(),
                sync: ready.must_sync() || self.persisting.written_commit() < change,
                ..Persist::default()
            };
            if !ready.snapshot().is_empty() {
                persist.install = Some(self.install(&ready));
            }
            self.node.mut_store().append(&persist.entries);
            if let Some(hard_state) = ready.hs() {
                self.check_hard_state(hard_state)?;
                self.node.mut_store().set_hard_state(hard_state.clone());
            }
            persist.hard_state = ready.hs().filter(|_| persist.sync).cloned();
            self.node.advance_append_async(ready);
            self.persist(persist, number, messages, effects);
            self.hand_out(committed, effects);
        }
        self.tell_role(effects)?;
        self.release_reads(effects);
        Ok(())
    }

    fn install(&mut self, ready: &raft::Ready) -> LogPosition {
        let metadata = ready.snapshot().get_metadata();
        let position = LogPosition { index: metadata.index, term: metadata.term };
        slog::info!(
            self.logger,
            "installing the snapshot of index {} and term {}",
            position.index,
            position.term
        );
        self.node.mut_store().install(position, metadata.get_conf_state().clone());
        self.applying.install(position.index);
        self.snapshots.installed(position.index);
        position
    }

    /// Gives the log thread what must become durable. The commit index alone
    /// is not worth a write: it follows from the leader, and at start from
    /// what was applied.
    fn persist(
        &mut self,
        mut persist: Persist,
        ready: u64,
        messages: Vec<Message>,
        effects: &mut Vec<Effect>,
    ) {
        if !persist.sync {
            if let Some(messages) = self.persisting.attach(ready, messages) {
                self.node.on_persist_ready(ready);
                for message in messages {
                    self.send(message, effects);
                }
            }
            return;
        }
        if persist.hard_state.is_none() {
            // Keeps the stored commit index close to the truth.
            persist.hard_state = Some(self.node.raft.hard_state());
        }
        persist.witnessed = self.witness.take_news();
        let last = persist.entries.last();
        persist.number = self.persisting.next_number();
        self.snapshots.appended(persist.bytes() as u64);
        self.persisting.push(Write {
            number: persist.number,
            ready: Some(ready),
            hard_state: persist.hard_state.clone(),
            last: last.map(|entry| LogPosition { index: entry.index, term: entry.term }),
            install: persist.install,
            messages,
            bytes: persist.bytes(),
            born: self.now,
        });
        effects.push(Effect::Persist(persist));
    }

    /// On the leader, the index of the newest configuration change if that is
    /// committed.
    ///
    /// Nobody else hears of it before the leader knows it durably: a member
    /// that is removed leaves, and a leader that forgot why in a crash would
    /// wait for its vote for ever.
    fn committed_change(&self) -> u64 {
        let raft = &self.node.raft;
        let committed = self.leads() && raft.raft_log.committed >= raft.pending_conf_index;
        if committed { raft.pending_conf_index } else { 0 }
    }

    /// Makes the commit of a configuration change durable, on every member.
    pub(super) fn persist_commit(&mut self, index: u64, effects: &mut Vec<Effect>) {
        if self.persisting.written_commit() >= index {
            return;
        }
        // What raft has handed out: the entries up to it are written before.
        let hard_state = self.node.store().hard_state().clone();
        let number = self.persisting.next_number();
        self.persisting.push(Write {
            number,
            hard_state: Some(hard_state.clone()),
            born: self.now,
            ..Write::default()
        });
        let hard_state = Some(hard_state);
        let persist = Persist { number, hard_state, sync: true, ..Persist::default() };
        effects.push(Effect::Persist(persist));
    }

    /// A write is durable: what had to wait for it may go on.
    pub(super) fn persisted(&mut self, number: u64, effects: &mut Vec<Effect>) {
        while let Some(write) = self.persisting.pop(number) {
            if let Some(last) = &write.last {
                self.node.mut_store().persisted(last);
            }
            if let Some(ready) = write.ready {
                self.node.on_persist_ready(ready);
            }
            if mutant!(AcknowledgeBeforeCommit) && self.leads() {
                let log = &mut self.node.raft.raft_log;
                log.commit_to(log.persisted);
            }
            if let Some(position) = write.install {
                effects.push(Effect::Restore(position));
            }
            for message in write.messages {
                self.send(message, effects);
            }
        }
    }

    fn send(&mut self, mut message: Message, effects: &mut Vec<Effect>) {
        self.keep_own_removal(&mut message);
        self.announcements.sends(&message);
        match message.get_msg_type() {
            MessageType::MsgSnapshot => self.send_snapshot(message, effects),
            MessageType::MsgAppend => send_append(message, effects),
            MessageType::MsgHeartbeat => {
                self.confess(&mut message);
                effects.push(Effect::Send(message));
            }
            _ => effects.push(Effect::Send(message)),
        }
    }

    /// A leader that commits its own removal keeps that to itself and hands
    /// over. Whoever heard of it would have this member leave, while a voter
    /// that has not heard of it needs its vote. The next leader, which needs it
    /// no more once it has committed the removal itself, tells everybody.
    fn keep_own_removal(&self, message: &mut Message) {
        let tells =
            matches!(message.get_msg_type(), MessageType::MsgAppend | MessageType::MsgHeartbeat);
        if tells {
            message.commit = message.commit.min(self.commit_to_tell());
        }
    }

    /// The highest commit index that others may hear of.
    pub(super) fn commit_to_tell(&self) -> u64 {
        let committed = self.node.raft.raft_log.committed;
        let removal = self.membership.own_removal;
        let keeps = removal > self.applied.index && !mutant!(TellOfOwnRemoval);
        if keeps { committed.min(removal - 1) } else { committed }
    }

    /// Term and vote never regress: a node that votes twice in a term breaks
    /// everything.
    fn check_hard_state(&self, next: &HardState) -> Result<(), Fatal> {
        let stored = self.node.store().hard_state();
        let changes_vote = stored.vote != 0 && next.vote != stored.vote;
        if next.term < stored.term || (next.term == stored.term && changes_vote) {
            return Err(Fatal::corrupt(format!("raft went back from {stored:?} to {next:?}")));
        }
        Ok(())
    }

    fn tell_role(&mut self, effects: &mut Vec<Effect>) -> Result<(), Fatal> {
        let role = self.present_role();
        if role == self.told {
            return Ok(());
        }
        // A leader does not propose its own removal, but may find it proposed.
        let leads = role.role == StateRole::Leader;
        self.membership.own_removal = if leads { self.own_removal()? } else { 0 };
        if role.role == StateRole::Leader && self.told.role != StateRole::Leader {
            slog::info!(self.logger, "became leader at term {}", role.term);
        } else if role.leader_id != self.told.leader_id && role.leader_id != 0 {
            let (leader, term) = (role.leader_id, role.term);
            slog::info!(self.logger, "following member {leader} at term {term}");
        } else if role.leader_id == 0 && self.told.leader_id != 0 {
            slog::info!(self.logger, "lost the leader of term {}", self.told.term);
        }
        // Raft forgets its rounds of reads with every change of role.
        self.reads.retry(self.now);
        self.told = role;
        effects.push(Effect::Role(role));
        Ok(())
    }
}

/// Whether a promise may leave before what it rests on is durable: never.
fn may_leave_now(message: &Message) -> bool {
    match message.get_msg_type() {
        MessageType::MsgRequestVote | MessageType::MsgRequestVoteResponse => {
            mutant!(VoteBeforeDurable)
        }
        MessageType::MsgAppendResponse => mutant!(ConfirmBeforeDurable),
        _ => false,
    }
}

/// Raft merges everything it has for a peer into one append, up to what may be
/// in flight. No transport could carry that: it goes out in parts.
fn send_append(mut append: Message, effects: &mut Vec<Effect>) {
    // Raft also merges into an empty append that stands elsewhere, when a
    // rejection has just moved the peer's progress back. Its receiver would
    // refuse it; raft repeats it like any append that was lost.
    if append.get_entries().first().is_some_and(|entry| entry.index != append.index + 1) {
        return;
    }
    let mut entries = append.take_entries().into_iter().peekable();
    loop {
        let mut part = append.clone();
        let mut bytes = 0;
        while let Some(entry) = entries.next_if(|entry| {
            bytes += entry.compute_size() as usize;
            part.entries.is_empty() || bytes <= MAX_APPEND_BYTES
        }) {
            (append.index, append.log_term) = (entry.index, entry.term);
            part.mut_entries().push(entry);
        }
        effects.push(Effect::Send(part));
        if entries.peek().is_none() {
            return;
        }
    }
}
