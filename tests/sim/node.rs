//! One member: its disk, which survives, and its process, which may not.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use metastore::{
    error::Fatal,
    machine::{self, StateMachine},
    proto::{FoundingRecord, Identity, Members, RequestId},
    raftlog::{self, LogWriter, Persist, Promises, RaftLog, Recovered},
    replica::{Effect, Event, Options, Replica, Status},
    storage::{Family, memory::MemoryEngine},
    watch,
};
use raft::{
    StateRole,
    eraftpb::{Entry, Message, MessageType},
};

use super::{
    applying::check_state,
    checks::Shadow,
    client::read_key,
    disk::Disk,
    leasing::Leasing,
    notes,
    plan::{ELECTION_TICKS, MS, SECOND, TICK, Time},
    requests::{Requests, Ticket, Work},
    sim::{Action, Sim, Step, Transfer, id_of},
    watching::Watching,
};

/// Sequence numbers from here on are the replica's own.
pub const INTERNAL: u64 = 1 << 63;

pub struct Node {
    pub id: u64,
    pub epoch: u64,
    pub disk: Disk,
    /// What the disk held durably at some start.
    pub copy: Option<Disk>,
    /// The disk was replaced by that copy.
    pub is_older: bool,
    pub process: Option<Process>,
    pub shadow: Shadow,
    /// The length of a tick, and when the next is due.
    pub tick: Time,
    next_tick: Time,
    pub paused_until: Time,
    pub slow_disk_until: Time,
    pub slow_apply_until: Time,
    /// Its clock stands still.
    pub clock_stands_until: Time,
    /// How often the log was read from disk before the process started.
    scans_before: u64,
    /// Removed from the cluster: it never starts again.
    pub removed: bool,
}

/// Work of the apply thread.
pub enum Task {
    Apply(Vec<Entry>),
    Restore(u64),
    MakeSnapshot,
}

pub struct Process {
    pub replica: Replica<MemoryEngine>,
    pub machine: StateMachine<MemoryEngine>,
    writer: LogWriter<MemoryEngine>,
    pub requests: Requests,
    pub watching: Watching,
    pub leasing: Leasing,
    inbox: VecDeque<Event>,
    pump_due: bool,
    announce_due: bool,
    log_queue: VecDeque<Persist>,
    /// What the log thread is writing.
    writing: Vec<Persist>,
    pub apply_queue: VecDeque<Task>,
    pub applying: Option<Task>,
    /// Until its last work is confirmed, a thread begins nothing new.
    log_busy: bool,
    pub apply_busy: bool,
    pub snapshots: BTreeMap<u64, MemoryEngine>,
    /// Index of the next entry to be handed out for applying.
    next_index: u64,
}

impl Node {
    /// A member of a new cluster.
    pub fn found(sim: &mut Sim, id: u64, record: &FoundingRecord) -> Self {
        let state = MemoryEngine::new();
        StateMachine::bootstrap(&state, record).expect("memory does not fail");
        let identity = Identity {
            cluster_id: machine::cluster_id(record),
            member_id: id,
            incarnation: incarnation(id),
        };
        let raft = MemoryEngine::new();
        raftlog::found(&raft, &identity, &raftlog::state_dir(1)).expect("memory does not fail");
        Self::new(sim, id, Disk { raft, states: BTreeMap::from([(1, state)]) })
    }

    /// A member that joins a running cluster.
    pub fn join(sim: &mut Sim, id: u64, cluster_id: u64) -> Self {
        let identity = Identity { cluster_id, member_id: id, incarnation: incarnation(id) };
        let raft = MemoryEngine::new();
        raftlog::join(&raft, &identity, &raftlog::state_dir(0)).expect("memory does not fail");
        Self::new(sim, id, Disk { raft, states: BTreeMap::from([(0, MemoryEngine::new())]) })
    }

    fn new(sim: &mut Sim, id: u64, disk: Disk) -> Self {
        let mut shadow = Shadow::default();
        shadow.begin(disk.log_model());
        Self {
            id,
            epoch: 0,
            disk,
            copy: None,
            is_older: false,
            process: None,
            shadow,
            tick: TICK * sim.dice.between(900, 1_100) / 1_000,
            next_tick: 0,
            paused_until: 0,
            slow_disk_until: 0,
            slow_apply_until: 0,
            clock_stands_until: 0,
            scans_before: 0,
            removed: false,
        }
    }

    /// Starts the process from what the disk holds.
    pub fn start(&mut self, sim: &mut Sim) {
        assert!(self.process.is_none() && !self.removed, "node {} cannot start", self.id);
        self.epoch += 1;
        if self.copy.is_none() || sim.dice.permille(300) {
            self.copy = Some(self.disk.durable());
        }
        let recovered = Recovered::read(&self.disk.raft).unwrap_or_else(|e| panic!("{e}"));
        let live = recovered.live_state.as_ref().expect("a member has a live state directory");
        self.disk.states.retain(|index, _| raftlog::state_dir(*index) == *live);
        let state = self.disk.states.values().next().expect("the live state directory is there");
        let machine = StateMachine::open(state.clone()).unwrap_or_else(|e| panic!("{e}"));
        let applied = machine.position();
        self.shadow.durable_applied = applied.index;
        sim.note("start", self.id, &[self.epoch, applied.index], || {
            format!("{:?} log to {:?}", recovered.hard_state, recovered.last)
        });
        check_state(sim, self.id, &machine);
        let conf_state = machine::conf_state(&machine.members());
        let mut log = RaftLog::open(self.disk.raft.clone(), &recovered, conf_state, &applied)
            .unwrap_or_else(|e| panic!("node {} cannot start: {e}", self.id));
        log.limit_cache(sim.plan.cache_bytes);
        self.scans_before = self.disk.raft.scans(Family::Entries);
        let view = machine.view();
        let leases = view.leases().unwrap_or_else(|e| panic!("{e}"));
        let compacted = view.compacted().unwrap_or_else(|e| panic!("{e}"));
        let watching = Watching::new(machine.revision(), compacted);
        let nonce = sim.dice.number();
        let options = Options {
            election_ticks: ELECTION_TICKS,
            heartbeat_ticks: 1,
            snapshot_count: sim.plan.snapshot_count,
            max_entry_bytes: sim.plan.max_entry_bytes,
            max_persist_bytes: sim.plan.max_waiting_bytes,
            max_apply_bytes: sim.plan.max_waiting_bytes,
            ..Options::new(self.id, nonce, sim.dice.number())
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let (members, alarms) = (machine.members(), machine.alarms());
        let replica = Replica::new(options, log, applied, members, alarms, logger)
            .unwrap_or_else(|e| panic!("node {} cannot start: {e}", self.id));
        self.process = Some(Process {
            replica,
            machine,
            writer: LogWriter::new(self.disk.raft.clone(), &recovered),
            requests: Requests::new(self.id, self.epoch, nonce),
            watching,
            leasing: Leasing::new(leases),
            inbox: VecDeque::new(),
            pump_due: false,
            announce_due: false,
            log_queue: VecDeque::new(),
            writing: Vec::new(),
            apply_queue: VecDeque::new(),
            applying: None,
            log_busy: false,
            apply_busy: false,
            snapshots: BTreeMap::new(),
            next_index: applied.index + 1,
        });
        let first_tick = sim.dice.between(1, self.tick);
        self.next_tick = sim.now + first_tick;
        sim.step(self.id, self.epoch, first_tick, Step::Tick);
        self.schedule_pump(sim);
    }

    /// The process ends at once. What was not synced survives up to a random
    /// point, in each database on its own.
    pub fn crash(&mut self, sim: &mut Sim) {
        let Some(process) = self.process.take() else { return };
        sim.note("crash", self.id, &[self.epoch], String::new);
        self.epoch += 1;
        self.paused_until = 0;
        process.requests.abandon(sim);
        let scans = self.disk.raft.scans(Family::Entries);
        sim.tally.add("log reads from disk", scans - self.scans_before);
        self.disk.crash(&mut sim.dice);
        self.shadow.recovered(self.id, self.disk.log_model());
    }

    /// Starts with the older copy of its disk.
    pub fn come_back_older(&mut self, sim: &mut Sim) {
        self.disk = self.copy.take().expect("a copy was made");
        self.shadow.begin(self.disk.log_model());
        self.is_older = true;
        self.start(sim);
    }

    /// What it has on disk, as far as others rely on it.
    pub fn promises(&self) -> Option<Promises> {
        self.process.as_ref().map(|process| process.replica.promises().0)
    }

    /// Its disk refused something, and so the process stops.
    pub fn fail(&mut self, sim: &mut Sim, fatal: &Fatal) {
        assert!(self.disk.is_broken(), "node {} stops: {fatal}", self.id);
        sim.tally.add("disk errors", 1);
        sim.note("fatal", self.id, &[], || fatal.to_string());
        self.crash_for_a_while(sim);
    }

    fn crash_for_a_while(&mut self, sim: &mut Sim) {
        self.crash(sim);
        let away = sim.dice.between(20 * MS, 2 * SECOND);
        sim.schedule(away, Action::Restart(self.id));
    }

    /// It learned that it was removed.
    pub fn remove(&mut self, sim: &mut Sim) {
        if !self.removed {
            sim.tally.add("removals noticed", 1);
            self.crash(sim);
            self.removed = true;
        }
    }

    pub fn status(&self) -> Option<Status> {
        self.process.as_ref().map(|process| process.replica.status())
    }

    pub fn leads(&self) -> bool {
        self.status().is_some_and(|status| status.role.role == StateRole::Leader)
    }

    pub fn members(&self) -> Option<Arc<Members>> {
        self.process.as_ref().map(|process| process.machine.members())
    }

    /// Whether nobody waits for an answer of this node.
    pub fn is_idle(&self) -> bool {
        self.process.as_ref().is_none_or(|process| process.requests.is_idle())
    }

    pub fn submit(&mut self, sim: &mut Sim, ticket: Ticket, work: Work, timeout: Time) {
        let process = self.process.as_mut().expect("requests go to running nodes");
        let event = process.requests.submit(sim, ticket, work, timeout);
        self.inject(sim, event);
    }

    /// Gives the replica an event, before long.
    pub fn inject(&mut self, sim: &mut Sim, event: Event) {
        if let Some(process) = &mut self.process {
            process.inbox.push_back(event);
            self.schedule_pump(sim);
        }
    }

    fn schedule_pump(&mut self, sim: &mut Sim) {
        let Some(process) = &mut self.process else { return };
        if !std::mem::replace(&mut process.pump_due, true) {
            let delay = if sim.dice.permille(900) { 20 } else { sim.dice.between(20, 5 * MS) };
            sim.step(self.id, self.epoch, delay, Step::Pump);
        }
    }

    pub fn step(&mut self, sim: &mut Sim, step: Step) {
        let Some(process) = &mut self.process else { return };
        match step {
            Step::Tick => self.ticked(sim),
            Step::Pump => self.pump(sim),
            Step::Announce => {
                process.announce_due = false;
                self.inject(sim, Event::Announce);
            }
            Step::Logged => self.logged(sim),
            Step::LogConfirmed(number) => {
                process.log_busy = false;
                self.inject(sim, Event::Persisted(number));
                self.start_writing(sim);
            }
            Step::Applied => self.applied(sim),
            Step::ApplyConfirmed(event) => {
                process.apply_busy = false;
                self.inject(sim, *event);
                self.start_applying(sim);
            }
            Step::Inject(event) => self.inject(sim, *event),
            Step::Replied(waiter, answer) => process.requests.replied(sim, waiter, *answer),
            Step::Retry(waiter) => {
                if let Some(event) = process.requests.retry(sim, waiter) {
                    self.inject(sim, event);
                }
            }
            Step::Deadline(waiter) => {
                if let Some(event) = process.requests.deadline(sim, waiter) {
                    self.inject(sim, event);
                }
            }
            Step::Stop(away) => {
                self.crash(sim);
                sim.schedule(away, Action::Restart(self.id));
            }
            Step::LeasePump => self.lease_pump(sim),
            Step::LeasesLoaded => self.leases_loaded(sim),
            Step::WatchPump => self.watch_pump(sim),
            Step::Page { from, max_bytes } => self.page(sim, from, max_bytes),
        }
        self.report_errands(sim);
    }

    /// As in production: when its clock jumps, after a pause or because it
    /// stood still, there is one tick, another right after it, and no more.
    fn ticked(&mut self, sim: &mut Sim) {
        let Some(process) = &mut self.process else { return };
        if sim.now < self.clock_stands_until {
            let wait = self.clock_stands_until - sim.now;
            return sim.step(self.id, self.epoch, wait, Step::Tick);
        }
        self.next_tick = (self.next_tick + self.tick).max(sim.now + 20);
        sim.step(self.id, self.epoch, self.next_tick - sim.now, Step::Tick);
        process.leasing.tick();
        process.watching.request(watch::Input::Tick);
        self.schedule_lease_pump(sim);
        self.schedule_watch_pump(sim);
        self.inject(sim, Event::Tick);
    }

    /// Tells the lease keeper what became of its errands.
    fn report_errands(&mut self, sim: &mut Sim) {
        let Some(process) = &mut self.process else { return };
        let ended = std::mem::take(&mut process.requests.errands_ended);
        if !ended.is_empty() {
            ended.into_iter().for_each(|event| process.leasing.report(event));
            self.schedule_lease_pump(sim);
        }
    }

    /// Gives the replica what has arrived, all of it or some.
    fn pump(&mut self, sim: &mut Sim) {
        let Some(process) = &mut self.process else { return };
        process.pump_due = false;
        let waiting = process.inbox.len();
        let taken = if sim.dice.permille(850) {
            waiting
        } else {
            sim.dice.between(waiting.min(1) as u64, waiting as u64) as usize
        };
        let mut effects = Vec::new();
        let mut cancelled = Vec::new();
        for event in process.inbox.drain(..taken) {
            notes::event(sim, self.id, &event);
            if let Event::Cancel(id) = &event {
                cancelled.push(*id);
            }
            process.replica.handle(event, &mut effects).unwrap_or_else(|e| panic!("{e}"));
        }
        process.replica.flush(&mut effects).unwrap_or_else(|e| panic!("{e}"));
        let status = process.replica.status();
        assert!(status.applied_index <= status.commit_index, "applied more than is committed");
        if process.replica.is_to_announce() && !std::mem::replace(&mut process.announce_due, true) {
            let delay = if sim.dice.permille(900) { MS } else { sim.dice.between(20, 50 * MS) };
            sim.step(self.id, self.epoch, delay, Step::Announce);
        }
        for effect in effects {
            self.perform(sim, effect);
        }
        if let Some(process) = &self.process {
            cancelled.iter().for_each(|id| process.requests.assert_answered(id));
            if !process.inbox.is_empty() {
                self.schedule_pump(sim);
            }
        }
    }

    fn perform(&mut self, sim: &mut Sim, effect: Effect) {
        let Some(process) = &mut self.process else { return };
        match effect {
            Effect::Send(message) => self.send(sim, message),
            Effect::SendSnapshot(message) => self.send_snapshot(sim, message),
            Effect::Persist(persist) => {
                notes::persist(sim, self.id, &persist);
                self.shadow.order(self.id, &persist);
                process.log_queue.push_back(persist);
                self.start_writing(sim);
            }
            Effect::Apply(entries) => {
                for entry in &entries {
                    assert_eq!(entry.index, process.next_index, "entries are applied in order");
                    process.next_index += 1;
                    sim.checks.commits(self.id, entry);
                }
                self.queue_task(sim, Task::Apply(entries));
            }
            Effect::Restore(position) => {
                assert!(position.index >= process.next_index, "a snapshot goes forward");
                process.next_index = position.index + 1;
                self.queue_task(sim, Task::Restore(position.index));
            }
            Effect::MakeSnapshot => self.queue_task(sim, Task::MakeSnapshot),
            Effect::Answer(id, answer) => self.answer(sim, &id, answer),
            Effect::Role(role) => {
                let numbers = [role.term, role.leader_id];
                sim.note("role", self.id, &numbers, || format!("{:?}", role.role));
                process.leasing.role(&role);
                self.schedule_lease_pump(sim);
                if role.role == StateRole::Leader {
                    sim.checks.leads(self.id, role.term);
                }
            }
            Effect::Removed => {
                sim.note("removed", self.id, &[], String::new);
                self.remove(sim);
            }
        }
    }

    fn answer(&mut self, sim: &mut Sim, id: &RequestId, answer: metastore::replica::Answer) {
        let (member, nonce, sequence) = id_of(id);
        sim.note("answer", self.id, &[member, nonce, sequence], || format!("{answer:?}"));
        if sequence >= INTERNAL {
            return;
        }
        let Some(process) = &mut self.process else { return };
        let view = process.machine.view();
        process.requests.answered(sim, id, answer, &mut |key| read_key(&view, key));
    }

    fn send(&mut self, sim: &mut Sim, message: Message) {
        assert_eq!(message.from, self.id, "members speak for themselves");
        self.shadow.may_send(&message);
        if message.get_msg_type() == MessageType::MsgAppend {
            sim.checks.holds_entries(self.id, message.log_term, &message.entries);
        }
        let to = message.to;
        sim.tally.add("messages", 1);
        let delays = if sim.net.is_open(self.id, to) {
            sim.net.delays(&sim.plan, &mut sim.dice)
        } else {
            vec![]
        };
        if delays.is_empty() && sim.dice.permille(200) {
            let event = Box::new(Event::Unreachable(to));
            sim.step(self.id, self.epoch, 10 * MS, Step::Inject(event));
        }
        for delay in delays {
            let message = Box::new(message.clone());
            sim.net.sent(self.id, to, sim.now + delay);
            sim.schedule(delay, Action::Deliver { from: self.id, to, message });
        }
    }

    fn send_snapshot(&mut self, sim: &mut Sim, message: Message) {
        let Some(process) = &self.process else { return };
        let metadata = message.get_snapshot().get_metadata();
        let (index, named) = (metadata.index, metadata.get_conf_state());
        assert!(
            named.voters.contains(&message.to) || named.learners.contains(&message.to),
            "member {} is to take a snapshot from before it belonged: {named:?}",
            message.to
        );
        let image = process.snapshots.get(&index);
        let image = image.expect("only snapshots that were made are sent").checkpoint();
        sim.note("send snapshot", self.id, &[message.to, index], String::new);
        let transfer = Transfer {
            from: self.id,
            from_epoch: self.epoch,
            to: message.to,
            message,
            image,
            doomed: !sim.net.calm && sim.dice.permille(250),
        };
        sim.begin_transfer(transfer);
    }

    /// Stores a received snapshot durably, then tells raft of it.
    pub fn receive_snapshot(&mut self, sim: &mut Sim, transfer: &Transfer) {
        let index = transfer.message.get_snapshot().get_metadata().index;
        let image = transfer.image.checkpoint();
        self.disk.states.entry(index).or_insert(image);
        sim.tally.add("snapshots received", 1);
        self.inject(sim, Event::Message(Box::new(transfer.message.clone())));
    }

    // ------------------------------------------------------- the log thread

    fn start_writing(&mut self, sim: &mut Sim) {
        let Some(process) = &mut self.process else { return };
        if process.log_busy || process.log_queue.is_empty() {
            return;
        }
        process.log_busy = true;
        let waiting = process.log_queue.len();
        let taken = if sim.dice.permille(700) { waiting } else { 1 };
        process.writing.extend(process.log_queue.drain(..taken));
        let longest = sim.plan.disk;
        let time = service_time(sim, longest, self.slow_disk_until);
        sim.step(self.id, self.epoch, time, Step::Logged);
    }

    /// The write is done; its confirmation follows, if the node lives.
    fn logged(&mut self, sim: &mut Sim) {
        let Some(process) = &mut self.process else { return };
        let group = std::mem::take(&mut process.writing);
        if let Err(fatal) = process.writer.write(&group) {
            self.shadow.may_be_written(&group);
            return self.fail(sim, &fatal);
        }
        let replaces = group.iter().any(|persist| self.shadow.replaces(persist));
        self.shadow.written(self.id, &group, &mut sim.checks);
        if group.iter().any(|persist| persist.install.is_some()) {
            sim.tally.add("snapshots installed", 1);
        }
        sim.tally.add("group writes", 1);
        if replaces && !sim.net.calm && sim.dice.permille(100) {
            sim.tally.add("crashes over a replaced log", 1);
            return self.crash_for_a_while(sim);
        }
        let number = group.last().expect("a group is not empty").number;
        let delay = sim.dice.between(10, MS);
        sim.step(self.id, self.epoch, delay, Step::LogConfirmed(number));
    }
}

/// Every member's incarnation, for one disk each.
pub fn incarnation(id: u64) -> u64 {
    1_000 + id
}

pub fn service_time(sim: &mut Sim, longest: Time, slow_until: Time) -> Time {
    if sim.now < slow_until {
        sim.dice.between(100 * MS, 2 * SECOND)
    } else {
        sim.dice.between(50, longest)
    }
}
