//! The deterministic core: raft, and everything that decides.
//!
//! A [`Replica`] takes [`Event`]s and gives [`Effect`]s. It has no clock, no
//! thread, no socket and no randomness of its own: time enters as ticks,
//! chance as a seed, and the only disk it touches is the log it reads through
//! [`RaftLog`]. The same code runs in production and under the simulator.
//!
//! A runtime calls [`Replica::handle`] for each event and
//! [`Replica::flush`] after a run of them. What arrives together is then
//! proposed together: one entry, one fsync, one round of read confirmations.

mod announcements;
mod effect;
mod elections;
mod event;
mod flow;
mod handover;
mod membership;
mod proposals;
mod reads;
mod ready;
mod snapshots;
mod spoken;
mod status;
pub mod validate;
mod witness;

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, sync::Arc};

use raft::{
    Config, RawNode, StateRole,
    eraftpb::{Message, MessageType},
};
use rand::{SeedableRng as _, rngs::SmallRng};
use slog::{Drain as _, Level, LevelFilter, Logger};

use crate::{
    error::{Fatal, Rejected},
    machine::{self, AppliedBatch, command},
    proto::{Alarms, Command, LogPosition, Members, RequestId},
    raftlog::RaftLog,
    storage::Engine,
};

pub use effect::{Answer, Effect, Role};
pub use event::{Event, Restored, SnapshotMade};
pub use status::Status;

use announcements::Announcements;
use flow::{Applying, Persisting};
use handover::Handover;
use membership::Membership;
use proposals::{Proposals, Queued};
use reads::Reads;
use snapshots::Snapshots;
use witness::Witness;

/// What a replica needs to know beside its log.
#[derive(Debug, Clone)]
pub struct Options {
    /// This member's id, at least 1.
    pub id: u64,
    /// Differs at each start of the process.
    pub nonce: u64,
    /// Seed of the election timeouts.
    pub seed: u64,
    /// Ticks without a heartbeat after which a follower campaigns.
    pub election_ticks: usize,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// Applied entries between snapshots, at least 1.
    pub snapshot_count: u64,
    /// Bytes of commands put into one entry; a larger command gets an entry
    /// of its own.
    pub max_entry_bytes: usize,
    /// Bytes of entries that may wait to become durable before proposals are
    /// refused.
    pub max_persist_bytes: usize,
    /// Bytes of entries that may wait to be applied. Beyond it, entries stay in
    /// the log and are read back when their turn comes; proposals are refused.
    pub max_apply_bytes: usize,
}

impl Options {
    /// The defaults: 10 ticks an election, 10,000 entries a snapshot, 1 MiB an
    /// entry, 128 MiB to be written and 64 MiB to be applied.
    pub fn new(id: u64, nonce: u64, seed: u64) -> Self {
        Self {
            id,
            nonce,
            seed,
            election_ticks: 10,
            heartbeat_ticks: 1,
            snapshot_count: 10_000,
            max_entry_bytes: 1 << 20,
            max_persist_bytes: 128 << 20,
            max_apply_bytes: 64 << 20,
        }
    }

    fn raft(&self, applied: u64) -> Config {
        Config {
            id: self.id,
            election_tick: self.election_ticks,
            heartbeat_tick: self.heartbeat_ticks,
            applied,
            max_size_per_msg: ready::MAX_APPEND_BYTES as u64,
            max_inflight_msgs: 64,
            check_quorum: true,
            pre_vote: true,
            read_only_option: reads::confirmation(),
            batch_append: true,
            // Announced by the replica, when nothing else has told of it.
            skip_bcast_commit: true,
            max_uncommitted_size: 64 << 20,
            max_committed_size_per_ready: 16 << 20,
            ..Config::default()
        }
    }
}

/// One member's part in the cluster.
pub struct Replica<E: Engine> {
    options: Options,
    node: RawNode<RaftLog<E>>,
    logger: Logger,
    /// The cluster as of `applied`.
    members: Arc<Members>,
    /// The raised alarms as of `applied`.
    alarms: Arc<Alarms>,
    applied: LogPosition,
    /// The highest commit index that another leader has told.
    told_commit: u64,
    proposals: Proposals,
    reads: Reads,
    membership: Membership,
    handover: Handover,
    persisting: Persisting,
    applying: Applying,
    snapshots: Snapshots,
    witness: Witness,
    announcements: Announcements,
    /// Ticks since the start.
    now: u64,
    rng: SmallRng,
    /// This term's election timeout in ticks, and the term and role it was
    /// drawn for.
    election_timeout: (usize, u64, StateRole),
    /// The role last told to the runtime.
    told: Role,
    stopping: bool,
    removed: bool,
}

impl<E: Engine> Replica<E> {
    /// A replica that goes on where its log and state machine stand.
    ///
    /// # Errors
    /// When the stored state contradicts itself.
    pub fn new(
        options: Options,
        log: RaftLog<E>,
        applied: LogPosition,
        members: Arc<Members>,
        alarms: Arc<Alarms>,
        logger: Logger,
    ) -> Result<Self, Fatal> {
        let snapshots = Snapshots::new(log.first() - 1, log.installed_index());
        let (promises, witnessed) = log.recovered();
        let commit = log.hard_state().commit;
        let persisting = Persisting::new(promises, commit, options.max_persist_bytes);
        let config = options.raft(applied.index);
        // Raft tells every step of an election; what matters is told below.
        let quiet = LevelFilter::new(logger.clone(), Level::Warning).fuse();
        let cannot = |e| Fatal::corrupt(format!("raft cannot start from the stored state: {e}"));
        let mut node =
            RawNode::new(&config, log, &Logger::root(quiet, slog::o!())).map_err(cannot)?;
        if machine::conf_state(&members).voters == [options.id] {
            // There is nobody to wait for.
            node.campaign().map_err(cannot)?;
        }
        let told = Role { role: StateRole::Follower, term: node.raft.term, leader_id: 0 };
        Ok(Self {
            told_commit: 0,
            proposals: Proposals::default(),
            reads: Reads::new(options.id, options.nonce),
            membership: Membership::default(),
            handover: Handover::default(),
            persisting,
            applying: Applying::new(applied.index, options.max_apply_bytes),
            snapshots,
            witness: Witness::new(witnessed),
            announcements: Announcements::default(),
            now: 0,
            rng: SmallRng::seed_from_u64(options.seed),
            election_timeout: (0, u64::MAX, StateRole::Follower),
            told,
            stopping: false,
            removed: false,
            options,
            node,
            logger,
            members,
            alarms,
            applied,
        })
    }

    /// Takes one event in. What follows from it may wait for
    /// [`Replica::flush`].
    ///
    /// # Errors
    /// When this member can no longer keep its promises.
    pub fn handle(&mut self, event: Event, effects: &mut Vec<Effect>) -> Result<(), Fatal> {
        if self.removed {
            self.refuse(&event, effects);
            return Ok(());
        }
        match event {
            Event::Tick => self.tick(effects),
            Event::Message(message) => self.step(*message),
            Event::Propose(command) => self.propose(command, None, effects),
            Event::ProposeFor(asker, command) => self.propose(command, Some(asker), effects),
            Event::Read(id) => self.read(id, effects),
            Event::TransferLeader(id, target) => self.transfer_leader(id, target, effects),
            Event::Cancel(id) => self.cancel(&id, effects),
            Event::Persisted(number) => self.persisted(number, effects),
            Event::Applied(batch) => return self.applied(batch, effects),
            Event::Restored(restored) => self.restored(restored, effects),
            Event::SnapshotMade(made) => return self.snapshot_made(&made, effects),
            Event::SnapshotSent { to, position, success } => {
                self.snapshot_sent(to, position, success);
            }
            Event::Unreachable(id) => self.node.report_unreachable(id),
            Event::Speaks { member, newest } => self.membership.spoken.heard(member, newest),
            Event::Announce => self.announce(),
            Event::StepDown => {
                self.stopping = true;
                self.hand_over("this member is stopping");
            }
        }
        Ok(())
    }

    /// Carries on after a run of events: proposes what waits, begins a round
    /// of reads, and turns what raft has ready into effects.
    ///
    /// # Errors
    /// When this member can no longer keep its promises.
    pub fn flush(&mut self, effects: &mut Vec<Effect>) -> Result<(), Fatal> {
        if self.removed {
            return Ok(());
        }
        self.propose_queued(effects);
        self.propose_conf_changes(effects)?;
        self.begin_reads(effects);
        self.pump(effects)?;
        if self.tell_askers() {
            self.pump(effects)?;
        }
        self.hand_out_deferred(effects)?;
        self.want_snapshot(effects);
        self.settle_transfers(effects);
        Ok(())
    }

    fn present_role(&self) -> Role {
        let raft = &self.node.raft;
        Role { role: raft.state, term: raft.term, leader_id: raft.leader_id }
    }

    fn step(&mut self, message: Message) {
        let wrong = validate::message(&message, self.options.id)
            .err()
            .or_else(|| self.contradiction(&message))
            .filter(|_| !mutant!(BelieveMalformed));
        if let Some(why) = wrong {
            let kind = message.get_msg_type();
            slog::warn!(self.logger, "dropped a {kind:?} of member {}: {why}", message.from);
            return;
        }
        self.witness(&message);
        let ignored = match message.get_msg_type() {
            // Also while leading: of a later term, it comes after that.
            MessageType::MsgTimeoutNow => !self.may_campaign() || self.defers_to_others(),
            // Raft would pass it on in the name of its sender; that one asks
            // again as soon as it knows the new leader.
            MessageType::MsgReadIndex => !self.leads(),
            _ => false,
        };
        if ignored {
            return;
        }
        let tells = match message.get_msg_type() {
            MessageType::MsgAppend | MessageType::MsgHeartbeat => (message.from, message.commit),
            _ => (0, 0),
        };
        // What raft refuses here (an unknown sender, an old term) is its
        // ordinary way of ignoring a message.
        if let Err(e) = self.node.step(message) {
            slog::debug!(self.logger, "ignored a message: {e}");
        }
        if tells.0 == self.node.raft.leader_id {
            self.told_commit = self.told_commit.max(tells.1);
        }
    }

    fn propose(&mut self, command: Command, asker: Option<u64>, effects: &mut Vec<Effect>) {
        let Some(id) = command.id else { return };
        let answer = if let Some(why) = self.not_understood(&command) {
            Answer::Rejected(Rejected::NotApplied(why))
        } else if !self.leads() {
            Answer::NotLeader(self.node.raft.leader_id)
        } else if command.op.is_none() {
            // Of a newer version. Committed, it would stop every member.
            let why = "the leader does not know this kind of command; upgrade it".to_owned();
            Answer::Rejected(Rejected::NotApplied(why))
        } else if self.stopping || self.node.raft.lead_transferee.is_some() {
            Answer::NotLeader(0)
        } else if membership::is_conf_change(&command) {
            return self.queue_conf_change(id, command, effects);
        } else if self.persisting.is_full() || self.applying.is_full() {
            let why = "the disk does not keep up; try again later".to_owned();
            Answer::Rejected(Rejected::Overloaded(why))
        } else if self.proposals.push(id, Queued { command, asker }) {
            return;
        } else {
            let why = "too many requests are waiting; try again later".to_owned();
            Answer::Rejected(Rejected::Overloaded(why))
        };
        effects.push(Effect::Answer(id, answer));
    }

    /// Proposes everything that waits, in as few entries as their size allows.
    fn propose_queued(&mut self, effects: &mut Vec<Effect>) {
        let accepts = self.leads() && self.node.raft.lead_transferee.is_none();
        if !accepts {
            let leader = if self.leads() { 0 } else { self.node.raft.leader_id };
            for id in self.proposals.drain_queued() {
                effects.push(Effect::Answer(id, Answer::NotLeader(leader)));
            }
            return;
        }
        // What waits for the disk anyway waits here, to share one entry, its
        // messages and its sync with whatever else comes until then.
        if !self.persisting.is_idle()
            || self.proposals.is_worth_waiting(self.applied.index, self.node.raft.term)
        {
            return;
        }
        loop {
            let batch = self.proposals.take_batch(self.options.max_entry_bytes);
            if batch.is_empty() {
                return;
            }
            let ids: Vec<RequestId> = batch.iter().filter_map(|it| it.command.id).collect();
            let askers: BTreeSet<u64> = batch.iter().filter_map(|queued| queued.asker).collect();
            let commands = batch.into_iter().map(|queued| queued.command).collect();
            let data = command::encode_payload(commands);
            if mutant!(ProposeTwice) {
                drop(self.node.propose(Vec::new(), data.clone()));
            }
            if self.node.propose(Vec::new(), data).is_ok() {
                let index = self.node.raft.raft_log.last_index();
                self.proposals.proposed(index, self.node.raft.term, ids);
                self.announcements.asked(index, askers);
            } else {
                self.proposals.refused(&ids);
                for id in ids {
                    let why = "too much is waiting to be committed; try again later".to_owned();
                    let answer = Answer::Rejected(Rejected::Overloaded(why));
                    effects.push(Effect::Answer(id, answer));
                }
            }
        }
    }

    fn read(&mut self, id: RequestId, effects: &mut Vec<Effect>) {
        let own = machine::member(&self.members, self.options.id);
        let answer = if own.is_none_or(|member| member.learner) {
            let why = "this member is a learner, which serves only ?consistency=stale reads";
            Answer::Rejected(Rejected::NotApplied(why.to_owned()))
        } else if self.reads.push(id) {
            return;
        } else {
            let why = "too many reads are waiting; try again later".to_owned();
            Answer::Rejected(Rejected::Overloaded(why))
        };
        effects.push(Effect::Answer(id, answer));
    }

    fn begin_reads(&mut self, effects: &mut Vec<Effect>) {
        let raft = &self.node.raft;
        // Raft drops a round silently in these cases; the reads keep waiting.
        let answers = raft.leader_id != 0 && (!self.leads() || raft.commit_to_current_term());
        let index = raft.raft_log.committed;
        let skips_round = mutant!(ReadWithoutRound) && self.leads();
        if answers && let Some(context) = self.reads.begin_round(self.now) {
            match skips_round {
                true => self.reads.confirm(&context, index),
                false => self.node.read_index(context),
            }
        }
        self.release_reads(effects);
    }

    fn release_reads(&mut self, effects: &mut Vec<Effect>) {
        for id in self.reads.release(self.applied.index) {
            effects.push(Effect::Answer(id, Answer::Readable));
        }
    }

    fn cancel(&mut self, id: &RequestId, effects: &mut Vec<Effect>) {
        let rejected = if self.reads.cancel(id) {
            let why = match self.node.raft.leader_id {
                0 => "the cluster has no leader".to_owned(),
                leader => format!("the leader, member {leader}, did not confirm it in time"),
            };
            Some(Rejected::NotApplied(why))
        } else {
            let waiting = self.membership.cancel(id).or_else(|| self.handover.cancel(id));
            waiting.or_else(|| self.proposals.cancel(id))
        };
        if let Some(rejected) = rejected {
            effects.push(Effect::Answer(*id, Answer::Rejected(rejected)));
        }
    }

    fn applied(&mut self, batch: AppliedBatch, effects: &mut Vec<Effect>) -> Result<(), Fatal> {
        for entry in &batch.entries {
            for (id, answer) in self.proposals.applied(entry) {
                effects.push(Effect::Answer(id, answer));
            }
            if let Some((change, expected)) = &entry.conf_change {
                self.apply_conf_change(entry.position, change, expected)?;
                self.persist_commit(entry.position.index, effects);
            }
        }
        self.advance(batch.position, batch.members, batch.alarms, effects);
        Ok(())
    }

    /// Raft takes over a configuration change that the state machine accepted.
    fn apply_conf_change(
        &mut self,
        position: LogPosition,
        change: &raft::eraftpb::ConfChangeV2,
        expected: &raft::eraftpb::ConfState,
    ) -> Result<(), Fatal> {
        // A snapshot that raft has taken over already brought a newer
        // configuration than this entry, which was still being applied.
        let pending = self.node.snap().map_or(0, |snapshot| snapshot.get_metadata().index);
        if position.index <= pending.max(self.applying.installed_index()) {
            return Ok(());
        }
        let mut actual = self
            .node
            .apply_conf_change(change)
            .map_err(|e| Fatal::corrupt(format!("raft refuses a committed change: {e}")))?;
        actual.voters.sort_unstable();
        actual.learners.sort_unstable();
        if actual.voters != expected.voters || actual.learners != expected.learners {
            return Err(Fatal::corrupt(format!(
                "raft and the stored members disagree after entry {}: {actual:?} and {expected:?}",
                position.index
            )));
        }
        Ok(())
    }

    fn restored(&mut self, restored: Restored, effects: &mut Vec<Effect>) {
        for id in self.proposals.skipped_to(restored.position.index) {
            let why = "a snapshot replaced the log it was in; it may have been applied".to_owned();
            effects.push(Effect::Answer(id, Answer::Rejected(Rejected::Unknown(why))));
        }
        let Restored { position, members, alarms } = restored;
        self.advance(position, Some(members), Some(alarms), effects);
    }

    /// The state machine stands at a new position.
    fn advance(
        &mut self,
        position: LogPosition,
        members: Option<Arc<Members>>,
        alarms: Option<Arc<Alarms>>,
        effects: &mut Vec<Effect>,
    ) {
        self.applied = position;
        self.applying.applied(position.index, self.now);
        self.node.advance_apply_to(position.index);
        self.release_reads(effects);
        if let Some(alarms) = alarms {
            self.alarms = alarms;
            self.lead_no_longer_if_accused();
        }
        if let Some(members) = members {
            self.members = members;
            self.witness.forget(&self.members.removed_ids, self.now);
            if self.members.removed_ids.contains(&self.options.id) {
                self.leave(effects);
            }
        }
    }

    /// This member no longer belongs to the cluster: whoever waits is told
    /// what is known.
    fn leave(&mut self, effects: &mut Vec<Effect>) {
        self.removed = true;
        let mut unproposed = self.reads.drain();
        unproposed.extend(self.proposals.drain_queued());
        unproposed.extend(self.membership.drain());
        unproposed.extend(self.handover.drain());
        for id in unproposed {
            effects.push(Effect::Answer(id, removed()));
        }
        for id in self.proposals.skipped_to(u64::MAX - 1) {
            let why = "this member was removed from the cluster before it knew".to_owned();
            effects.push(Effect::Answer(id, Answer::Rejected(Rejected::Unknown(why))));
        }
        effects.push(Effect::Removed);
    }

    /// Answers what arrives after this member was removed.
    fn refuse(&self, event: &Event, effects: &mut Vec<Effect>) {
        let id = match event {
            Event::Propose(command) | Event::ProposeFor(_, command) => command.id,
            Event::Read(id) | Event::TransferLeader(id, _) => Some(*id),
            _ => None,
        };
        effects.extend(id.map(|id| Effect::Answer(id, removed())));
    }
}

fn removed() -> Answer {
    let why = "this member was removed from the cluster".to_owned();
    Answer::Rejected(Rejected::NotApplied(why))
}
