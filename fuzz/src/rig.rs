//! A replica in memory whose disk and state machine move when they are told.

use std::{fmt, sync::Arc};

use metastore::{
    error::Fatal,
    machine::{self, StateMachine},
    proto::{AppliedState, Founder, FoundingRecord, Identity, LogPosition, Member, Members},
    raftlog::{self, LogWriter, Persist, RaftLog, Recovered},
    replica::{Effect, Event, Options, Replica, Restored, SnapshotMade, Status},
    storage::{Batch, Engine, Family, keys, memory::MemoryEngine},
};
use prost::Message as _;
use raft::eraftpb::{ConfState, Entry, HardState, Message};
use slog::{Discard, Logger};

/// Entries between snapshots: few, so that logs are shortened.
const SNAPSHOT_COUNT: u64 = 8;

/// Rounds after which whatever goes on is left to itself.
const MAX_ROUNDS: usize = 100;

/// Why a member does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// It says itself that it cannot.
    Stops(Fatal),
    /// It has broken a promise.
    Breaks(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stops(fatal) => write!(f, "the member stops: {fatal}"),
            Self::Breaks(what) => f.write_str(what),
        }
    }
}

impl From<Fatal> for Trouble {
    fn from(fatal: Fatal) -> Self {
        Self::Stops(fatal)
    }
}

/// Work of the apply thread, in order.
enum Task {
    Apply(Vec<Entry>),
    Restore(LogPosition),
    MakeSnapshot,
}

/// Member 1, and what it wants done.
pub struct Rig {
    replica: Replica<MemoryEngine>,
    machine: StateMachine<MemoryEngine>,
    writer: LogWriter<MemoryEngine>,
    persists: Vec<Persist>,
    tasks: Vec<Task>,
    sending: Vec<(u64, LogPosition)>,
    /// The configuration of the last snapshot that came, and of those that were
    /// taken over.
    coming: ConfState,
    installing: Vec<(LogPosition, ConfState)>,
    /// What was last given to the disk.
    hard_state: HardState,
    seen: Seen,
    /// Whether an entry could not be applied.
    pub is_stopped: bool,
}

/// What must never be less than before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    term: u64,
    commit: u64,
    applied: u64,
}

/// The two databases of a member of a newly founded cluster.
#[derive(Clone)]
pub struct Disk {
    /// The raft database.
    pub raft: MemoryEngine,
    /// The state database.
    pub state: MemoryEngine,
}

impl Disk {
    /// Those of member 1 of a cluster of so many.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn found(founders: u64) -> Result<Self, Fatal> {
        let founder = |id| Founder { id, peer_url: format!("http://h:{id}"), incarnation: 10 + id };
        let record = FoundingRecord { founders: (1..=founders).map(founder).collect() };
        let disk = Self { raft: MemoryEngine::new(), state: MemoryEngine::new() };
        StateMachine::bootstrap(&disk.state, &record)?;
        let cluster_id = machine::cluster_id(&record);
        let identity = Identity { cluster_id, member_id: 1, incarnation: 11 };
        raftlog::found(&disk.raft, &identity, &raftlog::state_dir(1))?;
        Ok(disk)
    }

    /// Those of member 1, which joins a cluster that there is already.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn join() -> Result<Self, Fatal> {
        let disk = Self { raft: MemoryEngine::new(), state: MemoryEngine::new() };
        let identity = Identity { cluster_id: 7, member_id: 1, incarnation: 11 };
        raftlog::join(&disk.raft, &identity, &raftlog::state_dir(0))?;
        Ok(disk)
    }

    /// A copy that changes without this one.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self { raft: self.raft.checkpoint(), state: self.state.checkpoint() }
    }
}

impl Rig {
    /// Starts a member on what its disk holds.
    ///
    /// # Errors
    /// When that is refused.
    pub fn start(disk: Disk) -> Result<Self, Trouble> {
        let recovered = Recovered::read(&disk.raft)?;
        let machine = StateMachine::open(disk.state)?;
        let (members, applied) = (machine.members(), machine.position());
        let conf_state = machine::conf_state(&members);
        let log = RaftLog::open(disk.raft.clone(), &recovered, conf_state.clone(), &applied)?;
        let options = Options { snapshot_count: SNAPSHOT_COUNT, ..Options::new(1, 7, 7) };
        let (alarms, logger) = (machine.alarms(), Logger::root(Discard, slog::o!()));
        let replica = Replica::new(options, log, applied, members, alarms, logger)?;
        let mut rig = Self {
            writer: LogWriter::new(disk.raft.clone(), &recovered),
            replica,
            machine,
            persists: Vec::new(),
            tasks: Vec::new(),
            sending: Vec::new(),
            coming: conf_state,
            installing: Vec::new(),
            hard_state: recovered.hard_state,
            seen: Seen::default(),
            is_stopped: false,
        };
        rig.flush()?;
        Ok(rig)
    }

    /// Where the replica stands.
    pub fn status(&self) -> Status {
        self.replica.status()
    }

    /// Gives the replica an event.
    ///
    /// # Errors
    /// When it stops or breaks a promise.
    pub fn handle(&mut self, event: Event) -> Result<(), Trouble> {
        let mut effects = Vec::new();
        self.replica.handle(event, &mut effects)?;
        self.take(effects)?;
        self.flush()
    }

    /// Gives it a peer's message.
    ///
    /// # Errors
    /// As [`Rig::handle`].
    pub fn step(&mut self, message: Message) -> Result<(), Trouble> {
        if message.has_snapshot() {
            self.coming = message.get_snapshot().get_metadata().get_conf_state().clone();
        }
        self.handle(Event::Message(Box::new(message)))
    }

    fn flush(&mut self) -> Result<(), Trouble> {
        let mut effects = Vec::new();
        self.replica.flush(&mut effects)?;
        self.take(effects)?;
        let status = self.replica.status();
        let now = Seen {
            term: status.role.term,
            commit: status.commit_index,
            applied: status.applied_index,
        };
        let before = self.seen;
        let went_back =
            now.term < before.term || now.commit < before.commit || now.applied < before.applied;
        if went_back || now.applied > now.commit {
            return Err(Trouble::Breaks(format!("the replica went from {before:?} to {now:?}")));
        }
        self.seen = now;
        Ok(())
    }

    fn take(&mut self, effects: Vec<Effect>) -> Result<(), Trouble> {
        for effect in effects {
            match effect {
                Effect::Persist(persist) => {
                    if let Some(next) = &persist.hard_state {
                        self.check_hard_state(next)?;
                    }
                    if let Some(position) = persist.install {
                        self.installing.push((position, self.coming.clone()));
                    }
                    self.persists.push(persist);
                }
                Effect::Apply(entries) => self.tasks.push(Task::Apply(entries)),
                Effect::Restore(position) => self.tasks.push(Task::Restore(position)),
                Effect::MakeSnapshot => self.tasks.push(Task::MakeSnapshot),
                Effect::SendSnapshot(message) => {
                    let metadata = message.get_snapshot().get_metadata();
                    let position = LogPosition { index: metadata.index, term: metadata.term };
                    self.sending.push((message.to, position));
                }
                Effect::Removed => self.is_stopped = true,
                Effect::Send(_) | Effect::Answer(..) | Effect::Role(_) => {}
            }
        }
        Ok(())
    }

    fn check_hard_state(&mut self, next: &HardState) -> Result<(), Trouble> {
        let before = &self.hard_state;
        let votes_again = before.vote != 0 && next.vote != before.vote;
        if next.term < before.term || (next.term == before.term && votes_again) {
            let what = format!("what is promised went from {before:?} to {next:?}");
            return Err(Trouble::Breaks(what));
        }
        self.hard_state = next.clone();
        Ok(())
    }

    /// Writes what is to be written, and says so.
    ///
    /// # Errors
    /// As [`Rig::handle`].
    pub fn write(&mut self) -> Result<(), Trouble> {
        let persists = std::mem::take(&mut self.persists);
        self.writer.write(&persists)?;
        match persists.last() {
            Some(last) => self.handle(Event::Persisted(last.number)),
            None => Ok(()),
        }
    }

    /// Does the next thing that the state machine is to do; whether there was
    /// one. An entry that cannot be understood stops the member, as it must.
    ///
    /// # Errors
    /// As [`Rig::handle`].
    pub fn apply(&mut self) -> Result<bool, Trouble> {
        if self.tasks.is_empty() || self.is_stopped {
            return Ok(false);
        }
        match self.tasks.remove(0) {
            Task::Apply(mut entries) => {
                while !entries.is_empty() {
                    let Ok(batch) = self.machine.apply(&entries) else {
                        self.is_stopped = true;
                        return Ok(false);
                    };
                    entries.drain(..batch.entries.len());
                    self.handle(Event::Applied(batch))?;
                }
            }
            Task::Restore(position) => self.restore(position)?,
            Task::MakeSnapshot => {
                let (position, members) = (self.machine.position(), self.machine.members());
                self.handle(Event::SnapshotMade(SnapshotMade { position, members }))?;
            }
        }
        Ok(true)
    }

    /// Takes over a state database that is at this position, with the members
    /// that the snapshot named.
    fn restore(&mut self, position: LogPosition) -> Result<(), Trouble> {
        let members = self.members_named(position);
        let LogPosition { index, term } = position;
        let applied = AppliedState { index, term, revision: 1, compacted: 0 };
        let engine = MemoryEngine::new();
        let mut batch = Batch::default();
        let format = keys::STATE_FORMAT_VERSION.to_be_bytes().to_vec();
        batch.put(Family::Meta, keys::FORMAT, format);
        batch.put(Family::Meta, keys::APPLIED, applied.encode_to_vec());
        batch.put(Family::Meta, keys::MEMBERS, members.encode_to_vec());
        engine.write(batch, true)?;
        self.machine = StateMachine::open(engine)?;
        let (members, alarms) = (Arc::new(members), self.machine.alarms());
        self.handle(Event::Restored(Restored { position, members, alarms }))
    }

    fn members_named(&self, position: LogPosition) -> Members {
        let named = self.installing.iter().rfind(|(installed, _)| *installed == position);
        let conf_state = named.map_or(&self.coming, |(_, conf_state)| conf_state);
        let member = |(id, learner): (u64, bool)| Member {
            id,
            peer_url: format!("http://h:{id}"),
            learner,
            incarnation: id,
            ..Member::default()
        };
        let voters = conf_state.voters.iter().map(|id| (*id, false));
        let learners = conf_state.learners.iter().map(|id| (*id, true));
        let mut members: Vec<Member> = voters.chain(learners).map(member).collect();
        members.sort_by_key(|member| member.id);
        Members { cluster_id: 7, members, removed_ids: Vec::new() }
    }

    /// Ends the transfers of snapshots that were asked for.
    ///
    /// # Errors
    /// As [`Rig::handle`].
    pub fn end_transfers(&mut self, success: bool) -> Result<(), Trouble> {
        for (to, position) in std::mem::take(&mut self.sending) {
            self.handle(Event::SnapshotSent { to, position, success })?;
        }
        Ok(())
    }

    /// Writes and applies until nothing is left to do.
    ///
    /// # Errors
    /// As [`Rig::handle`].
    pub fn settle(&mut self) -> Result<(), Trouble> {
        for _ in 0..MAX_ROUNDS {
            self.write()?;
            let applied = self.apply()?;
            if !applied && self.persists.is_empty() {
                break;
            }
        }
        Ok(())
    }
}
