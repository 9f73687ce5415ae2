//! What a member's apply thread does, and what must hold after each batch.

use std::collections::VecDeque;

use metastore::{
    error::Fatal,
    machine::{AppliedBatch, Changes, StateMachine},
    proto::etcdserverpb::RangeRequest,
    replica::{Event, Restored, SnapshotMade},
    storage::memory::MemoryEngine,
};
use raft::eraftpb::Entry;

use super::{
    marks,
    node::{INTERNAL, Node, Process, Task, service_time},
    plan::MS,
    sim::{Sim, Step},
};

/// State machines are hashed at every multiple of this index, among others.
const HASH_INTERVAL: u64 = 128;

/// Snapshots a node keeps for sending; a transfer may begin a little late.
const KEPT_SNAPSHOTS: usize = 3;

/// Compares the state with that of the others at the same position, the hash
/// of its keys as of some revision, and its past with the log's.
pub fn check_state(sim: &mut Sim, id: u64, machine: &StateMachine<MemoryEngine>) {
    let view = machine.view();
    let hash = view.hash().unwrap_or_else(|e| panic!("{e}"));
    let compacted = view.compacted().unwrap_or_else(|e| panic!("{e}"));
    // Chosen by the position, so that all members choose the same.
    let span = hash.revision - compacted + 1;
    let revision = (compacted + hash.position.index * 7_919 % span).max(1);
    for revision in [0, revision] {
        let kv = view.hash_kv(revision).unwrap_or_else(|e| panic!("{e}"));
        let kv = kv.unwrap_or_else(|why| panic!("the hash at {revision}: {why:?}"));
        sim.checks.kv_state(id, hash.position.index, revision, kv);
    }
    sim.checks.state(id, hash);
    let everything = RangeRequest {
        key: bytes::Bytes::from_static(b"\0"),
        range_end: bytes::Bytes::from_static(b"\0"),
        revision: revision.cast_signed(),
        ..RangeRequest::default()
    };
    let found = view.range(&everything, u64::MAX).unwrap_or_else(|e| panic!("{e}"));
    let found = found.unwrap_or_else(|why| panic!("the keys at {revision}: {why:?}"));
    let known = sim.oracle.keys_at(revision);
    let known: Vec<_> = known
        .iter()
        .map(|(key, record)| (key, record.mod_revision, record.version, &record.value))
        .collect();
    let found: Vec<_> = found
        .kvs
        .iter()
        .map(|kv| (&kv.key, kv.mod_revision as u64, kv.version as u64, &kv.value))
        .collect();
    assert_eq!(found, known, "member {id}: the keys at revision {revision}");
    sim.tally.add("pasts compared", 1);
}

/// What entries came to is the same whoever applies them.
fn tell_world(sim: &mut Sim, entries: &[Entry], batch: &AppliedBatch) {
    for entry in &batch.entries {
        for (id, outcome) in &entry.outcomes {
            if id.sequence < INTERNAL {
                sim.applied(entry.position.index, id, outcome);
            }
        }
    }
    sim.oracle.applied(sim.now, entries, batch);
}

/// Two batches as one, for the replica.
fn join(mut whole: AppliedBatch, batch: AppliedBatch) -> AppliedBatch {
    whole.entries.extend(batch.entries);
    whole.position = batch.position;
    whole.members = batch.members.or(whole.members);
    whole.alarms = batch.alarms.or(whole.alarms);
    whole.bytes += batch.bytes;
    whole.changes = batch.changes;
    whole
}

impl Node {
    /// Compares the state with that of the others at the same position.
    pub fn check_state(&self, sim: &mut Sim) {
        if let Some(process) = &self.process {
            check_state(sim, self.id, &process.machine);
        }
    }

    pub fn queue_task(&mut self, sim: &mut Sim, task: Task) {
        if let Some(process) = &mut self.process {
            process.apply_queue.push_back(task);
            self.start_applying(sim);
        }
    }

    pub fn start_applying(&mut self, sim: &mut Sim) {
        let Some(process) = &mut self.process else { return };
        if process.apply_busy {
            return;
        }
        process.applying = process.apply_queue.pop_front();
        if process.applying.is_some() {
            process.apply_busy = true;
            let longest = sim.plan.apply;
            let time = service_time(sim, longest, self.slow_apply_until);
            sim.step(self.id, self.epoch, time, Step::Applied);
        }
    }

    /// A task is done; its confirmation follows, if the node lives.
    pub fn applied(&mut self, sim: &mut Sim) {
        let Some(process) = &mut self.process else { return };
        let event = match process.applying.take() {
            Some(Task::Apply(entries)) => self.apply(sim, &entries).map(Event::Applied),
            Some(Task::Restore(index)) => Ok(self.restore(sim, index)),
            Some(Task::MakeSnapshot) => self.make_snapshot(sim),
            None => panic!("the apply thread finished nothing"),
        };
        let event = match event {
            Ok(event) => Box::new(event),
            Err(fatal) => return self.fail(sim, &fatal),
        };
        let delay = sim.dice.between(10, MS);
        sim.step(self.id, self.epoch, delay, Step::ApplyConfirmed(event));
    }

    /// Applies in one batch, or in several so that members meet at positions
    /// where their states can be compared.
    fn apply(&mut self, sim: &mut Sim, entries: &[Entry]) -> Result<AppliedBatch, Fatal> {
        let process = self.process.as_mut().expect("the caller has just seen it");
        let mut whole: Option<AppliedBatch> = None;
        let ends_part = |entry: &Entry, _: &Entry| !entry.index.is_multiple_of(HASH_INTERVAL);
        let mut parts: VecDeque<&[Entry]> = entries.chunk_by(ends_part).collect();
        while let Some(part) = parts.pop_front() {
            let before = self.disk.is_broken().then(|| process.machine.engine().checkpoint());
            let batch = process.machine.apply(part);
            if let (Err(_), Some(before)) = (&batch, before) {
                // It may be on the disk nevertheless.
                let mut other = StateMachine::open(before).unwrap_or_else(|e| panic!("{e}"));
                tell_world(sim, part, &other.apply(part).unwrap_or_else(|e| panic!("{e}")));
            }
            let batch = batch?;
            tell_world(sim, part, &batch);
            if sim.dice.permille(60) {
                process.machine.engine().forget();
            }
            marks::compare(sim, self.id, batch.mark, &process.machine);
            if batch.position.index.is_multiple_of(HASH_INTERVAL) {
                check_state(sim, self.id, &process.machine);
            }
            process.tell_of(sim, batch.position.index, &batch.changes);
            // A batch ends with a mark.
            let left = &part[batch.entries.len()..];
            if !left.is_empty() {
                parts.push_front(left);
            }
            whole = Some(match whole {
                None => batch,
                Some(whole) => join(whole, batch),
            });
        }
        self.schedule_watch_pump(sim);
        self.schedule_lease_pump(sim);
        let batch = whole.expect("an apply effect has entries");
        sim.note("applied", self.id, &[batch.position.index, batch.position.term], String::new);
        Ok(batch)
    }

    fn restore(&mut self, sim: &mut Sim, index: u64) -> Event {
        let state = self.disk.states.get(&index).expect("a snapshot is received before it is used");
        let machine = StateMachine::open(state.clone()).unwrap_or_else(|e| panic!("{e}"));
        let position = machine.position();
        assert_eq!(position.index, index, "a snapshot holds what its name says");
        self.disk.states.retain(|present, _| *present >= index);
        self.shadow.durable_applied = index;
        let (members, alarms) = (machine.members(), machine.alarms());
        let process = self.process.as_mut().expect("the caller has just seen it");
        assert!(position.index > process.machine.position().index, "a snapshot goes forward");
        process.machine = machine;
        process.snapshots.clear();
        let view = process.machine.view();
        let compacted = view.compacted().unwrap_or_else(|e| panic!("{e}"));
        process.watching.restored(process.machine.revision(), compacted);
        process.leasing.restored(view.leases().unwrap_or_else(|e| panic!("{e}")));
        self.schedule_watch_pump(sim);
        self.schedule_lease_pump(sim);
        self.check_state(sim);
        sim.note("restored", self.id, &[index], String::new);
        Event::Restored(Restored { position, members, alarms })
    }

    fn make_snapshot(&mut self, sim: &mut Sim) -> Result<Event, Fatal> {
        let process = self.process.as_mut().expect("the caller has just seen it");
        process.machine.flush()?;
        let position = process.machine.position();
        self.shadow.durable_applied = position.index;
        process.snapshots.insert(position.index, process.machine.engine().checkpoint());
        while process.snapshots.len() > KEPT_SNAPSHOTS {
            process.snapshots.pop_first();
        }
        sim.tally.add("snapshots made", 1);
        sim.note("snapshot", self.id, &[position.index], String::new);
        let members = process.machine.members();
        Ok(Event::SnapshotMade(SnapshotMade { position, members }))
    }
}

impl Process {
    /// Tells the watch hub and the lease keeper of a batch, before anybody is
    /// told of its outcomes.
    fn tell_of(&mut self, sim: &mut Sim, index: u64, changes: &Changes) {
        self.watching.applied(sim, changes);
        let leases = self.machine.view().leases().unwrap_or_else(|e| panic!("{e}"));
        if sim.oracle.is_at(index) {
            let known: Vec<_> = sim.oracle.leases.values().copied().collect();
            assert_eq!(leases, known, "the leases at index {index}");
        }
        self.leasing.applied(sim, index, changes, &leases);
    }
}
