//! The cluster under a script: nodes, and what waits in and between them.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    mem,
    sync::{Arc, Mutex},
};

use metastore::{
    machine::{self, StateMachine},
    proto::{Command, Founder, FoundingRecord, Identity, LogPosition, RequestId, command::Op},
    raftlog::{self, LogWriter, Persist, RaftLog, Recovered},
    replica::{Effect, Event, Options, Replica, Restored, SnapshotMade},
    storage::memory::MemoryEngine,
};
use raft::eraftpb::{Entry, Message, MessageType};
use slog::Logger;

use super::{Answer, show};

/// Ticks within which a node that hears of nobody has to do something.
const PATIENCE: u64 = 40;

/// Rounds after which a cluster that keeps busy is not going to settle.
const MAX_ROUNDS: usize = 1000;

/// The random number of a member's first start.
pub fn incarnation(id: u64) -> u64 {
    id * 11
}

/// Which messages are meant.
pub struct Which {
    pub kind: Option<MessageType>,
    pub from: Option<u64>,
    pub to: Option<u64>,
    /// How many of them are left where they are, at first.
    pub skip: usize,
    pub count: usize,
}

impl Which {
    fn means(&self, message: &Message) -> bool {
        self.kind.is_none_or(|kind| message.get_msg_type() == kind)
            && self.from.is_none_or(|from| message.from == from)
            && self.to.is_none_or(|to| message.to == to)
    }
}

/// A message under way, with the state it carries if it is a snapshot.
#[derive(Clone)]
struct Parcel {
    message: Message,
    image: Option<MemoryEngine>,
}

/// Work of the apply thread.
enum Task {
    Apply(Vec<Entry>),
    Restore(LogPosition),
    MakeSnapshot,
}

struct Process {
    replica: Replica<MemoryEngine>,
    machine: StateMachine<MemoryEngine>,
    writer: LogWriter<MemoryEngine>,
    persists: VecDeque<Persist>,
    tasks: VecDeque<Task>,
    /// Images that can be sent, by index.
    made: BTreeMap<u64, MemoryEngine>,
}

struct Node {
    raft: MemoryEngine,
    /// The state databases, by the index that names their directory.
    states: BTreeMap<u64, MemoryEngine>,
    starts: u64,
    process: Option<Process>,
}

/// Everything a script can move, and what its last step made happen.
#[derive(Default)]
pub struct Cluster {
    /// Whether events come together: no flush yet.
    pub together: bool,
    pub out: String,
    nodes: BTreeMap<u64, Node>,
    network: VecDeque<Parcel>,
    /// Names of the requests, by sequence number from 1.
    names: Vec<String>,
    cluster_id: u64,
    snapshot_count: Option<u64>,
    log: Arc<Mutex<String>>,
}

impl Cluster {
    pub fn found(&mut self, nodes: u64, snapshot_count: Option<u64>) -> Answer {
        let founder = |id| Founder { id, peer_url: format!("n{id}"), incarnation: incarnation(id) };
        let record = FoundingRecord { founders: (1..=nodes).map(founder).collect() };
        *self = Self { log: Arc::clone(&self.log), ..Self::default() };
        self.cluster_id = machine::cluster_id(&record);
        self.snapshot_count = snapshot_count;
        for id in 1..=nodes {
            let (raft, state) = (MemoryEngine::new(), MemoryEngine::new());
            StateMachine::bootstrap(&state, &record)?;
            raftlog::found(&raft, &self.identity(id), &raftlog::state_dir(1))?;
            self.install(id, raft, (1, state))?;
        }
        Ok(())
    }

    pub fn join(&mut self, id: u64) -> Answer {
        let (raft, state) = (MemoryEngine::new(), MemoryEngine::new());
        raftlog::join(&raft, &self.identity(id), &raftlog::state_dir(0))?;
        self.install(id, raft, (0, state))
    }

    fn identity(&self, id: u64) -> Identity {
        Identity { cluster_id: self.cluster_id, member_id: id, incarnation: incarnation(id) }
    }

    fn install(&mut self, id: u64, raft: MemoryEngine, state: (u64, MemoryEngine)) -> Answer {
        let node = Node { raft, states: BTreeMap::from([state]), starts: 0, process: None };
        self.nodes.insert(id, node);
        self.start(id)
    }

    pub fn start(&mut self, id: u64) -> Answer {
        let logger = Logger::root(show::Lines(Arc::clone(&self.log)), slog::o!());
        let snapshot_count = self.snapshot_count;
        let node = self.node(id)?;
        if node.process.is_some() {
            return Err("it runs already".into());
        }
        node.starts += 1;
        let recovered = Recovered::read(&node.raft)?;
        let live = recovered.live_state.clone();
        node.states.retain(|index, _| Some(raftlog::state_dir(*index)) == live);
        let state = node.states.values().next().ok_or("the live state is gone")?;
        let machine = StateMachine::open(state.clone())?;
        let (applied, members) = (machine.position(), machine.members());
        let conf_state = machine::conf_state(&members);
        let log = RaftLog::open(node.raft.clone(), &recovered, conf_state, &applied)?;
        let mut options = Options::new(id, node.starts, id);
        options.snapshot_count = snapshot_count.unwrap_or(options.snapshot_count);
        node.process = Some(Process {
            replica: Replica::new(options, log, applied, members, machine.alarms(), logger)?,
            machine,
            writer: LogWriter::new(node.raft.clone(), &recovered),
            persists: VecDeque::new(),
            tasks: VecDeque::new(),
            made: BTreeMap::new(),
        });
        self.flush(id)
    }

    /// Ends a process. A power loss takes with it what was not synced.
    pub fn crash(&mut self, id: u64, keep: bool) -> Answer {
        let node = self.node(id)?;
        node.process.take().ok_or("it does not run")?;
        let kept = |unsynced| if keep { unsynced } else { 0 };
        node.raft = node.raft.crash(kept);
        node.states.values_mut().for_each(|state| *state = state.crash(kept));
        Ok(())
    }

    fn node(&mut self, id: u64) -> Answer<&mut Node> {
        self.nodes.get_mut(&id).ok_or_else(|| format!("there is no node {id}").into())
    }

    fn process(&mut self, id: u64) -> Answer<&mut Process> {
        let process = self.node(id)?.process.as_mut();
        process.ok_or_else(|| format!("node {id} does not run").into())
    }

    // ------------------------------------------------------------ the replica

    pub fn handle(&mut self, id: u64, event: Event) -> Answer {
        let mut effects = Vec::new();
        self.process(id)?.replica.handle(event, &mut effects)?;
        self.perform(id, effects)?;
        if self.together { Ok(()) } else { self.flush(id) }
    }

    fn flush(&mut self, id: u64) -> Answer {
        let mut effects = Vec::new();
        self.process(id)?.replica.flush(&mut effects)?;
        self.perform(id, effects)
    }

    /// Shows the effects, and queues what they ask for.
    fn perform(&mut self, id: u64, effects: Vec<Effect>) -> Answer {
        for line in show::take(&self.log).lines() {
            writeln!(self.out, "{id} log: {line}")?;
        }
        for effect in effects {
            let line = show::effect(id, &effect, &self.names);
            writeln!(self.out, "{line}")?;
            let process = self.process(id)?;
            match effect {
                Effect::Send(message) => self.network.push_back(Parcel { message, image: None }),
                Effect::SendSnapshot(message) => {
                    let index = message.get_snapshot().get_metadata().index;
                    let image = process.made.get(&index).map(MemoryEngine::checkpoint);
                    self.network.push_back(Parcel { message, image });
                }
                Effect::Persist(persist) => process.persists.push_back(persist),
                Effect::Apply(entries) => process.tasks.push_back(Task::Apply(entries)),
                Effect::Restore(position) => process.tasks.push_back(Task::Restore(position)),
                Effect::MakeSnapshot => process.tasks.push_back(Task::MakeSnapshot),
                Effect::Answer(..) | Effect::Role(_) | Effect::Removed => {}
            }
        }
        Ok(())
    }

    pub fn campaign(&mut self, id: u64) -> Answer {
        for _ in 0..PATIENCE {
            self.handle(id, Event::Tick)?;
            // It may have something to write down first.
            let is_news = |persist: &Persist| persist.witnessed.is_some() && persist.bytes() == 0;
            if self.process(id)?.persists.iter().all(is_news) {
                self.persist(id, usize::MAX)?;
            }
            if self.out.contains("RequestPreVote") {
                return Ok(());
            }
        }
        Err("it does not campaign".into())
    }

    // --------------------------------------------------------------- requests

    /// Proposes commands that arrive together.
    pub fn propose(&mut self, id: u64, kind: &str, ops: impl IntoIterator<Item = Op>) -> Answer {
        self.propose_as(Event::Propose, id, kind, ops)
    }

    /// Proposes commands that arrive together from another node.
    pub fn propose_for(
        &mut self,
        id: u64,
        asker: u64,
        ops: impl IntoIterator<Item = Op>,
    ) -> Answer {
        self.propose_as(|command| Event::ProposeFor(asker, command), id, "w", ops)
    }

    fn propose_as(
        &mut self,
        event: impl Fn(Command) -> Event,
        id: u64,
        kind: &str,
        ops: impl IntoIterator<Item = Op>,
    ) -> Answer {
        let commands = ops
            .into_iter()
            .map(|op| event(Command { id: Some(self.request(id, kind)), op: Some(op) }))
            .collect();
        self.handle_together(id, commands)
    }

    pub fn read(&mut self, id: u64, count: u64) -> Answer {
        let reads = (0..count).map(|_| Event::Read(self.request(id, "r"))).collect();
        self.handle_together(id, reads)
    }

    fn handle_together(&mut self, id: u64, events: Vec<Event>) -> Answer {
        let together = mem::replace(&mut self.together, true);
        events.into_iter().try_for_each(|event| self.handle(id, event))?;
        if together { Ok(()) } else { self.flush(id) }
    }

    pub fn transfer(&mut self, id: u64, to: u64) -> Answer {
        let request = self.request(id, "t");
        self.handle(id, Event::TransferLeader(request, to))
    }

    pub fn cancel(&mut self, id: u64, name: &str) -> Answer {
        let at = self.names.iter().position(|known| known == name).ok_or("no such request")?;
        let request =
            RequestId { member: id, nonce: self.node(id)?.starts, sequence: at as u64 + 1 };
        self.handle(id, Event::Cancel(request))
    }

    /// A new request, named by its kind and a number.
    fn request(&mut self, member: u64, kind: &str) -> RequestId {
        let number = 1 + self.names.iter().filter(|name| name.starts_with(kind)).count();
        self.names.push(format!("{kind}{number}"));
        let nonce = self.nodes.get(&member).map_or(0, |node| node.starts);
        RequestId { member, nonce, sequence: self.names.len() as u64 }
    }

    // ------------------------------------------------------------ the threads

    pub fn persist(&mut self, id: u64, count: usize) -> Answer {
        let node = self.node(id)?;
        let process = node.process.as_mut().ok_or("it does not run")?;
        let group: Vec<Persist> =
            process.persists.drain(..count.min(process.persists.len())).collect();
        let installs = group.iter().filter_map(|persist| persist.install);
        for LogPosition { index, .. } in installs {
            if !node.states.contains_key(&index) {
                return Err(format!("the snapshot of {index} was never received").into());
            }
        }
        process.writer.write(&group)?;
        let Some(last) = group.last() else { return Ok(()) };
        self.handle(id, Event::Persisted(last.number))
    }

    pub fn apply(&mut self, id: u64, count: usize) -> Answer {
        for _ in 0..count {
            let Some(task) = self.process(id)?.tasks.pop_front() else { break };
            let event = self.apply_one(id, task)?;
            self.handle(id, event)?;
        }
        Ok(())
    }

    fn apply_one(&mut self, id: u64, task: Task) -> Answer<Event> {
        let node = self.node(id)?;
        let process = node.process.as_mut().ok_or("it does not run")?;
        Ok(match task {
            Task::Apply(entries) => Event::Applied(process.machine.apply(&entries)?),
            Task::Restore(position) => {
                let state = node.states.get(&position.index).ok_or("nothing to restore")?;
                process.machine = StateMachine::open(state.clone())?;
                if process.machine.position() != position {
                    return Err("another snapshot than the one announced".into());
                }
                let (members, alarms) = (process.machine.members(), process.machine.alarms());
                Event::Restored(Restored { position, members, alarms })
            }
            Task::MakeSnapshot => {
                process.machine.flush()?;
                let (position, members) = (process.machine.position(), process.machine.members());
                let image = process.machine.engine().checkpoint();
                process.made.insert(position.index, image);
                Event::SnapshotMade(SnapshotMade { position, members })
            }
        })
    }

    // ------------------------------------------------------------ the network

    /// Takes messages out of the network, oldest first.
    fn take(&mut self, which: &Which) -> Vec<Parcel> {
        let (mut taken, mut left, mut skipped) = (Vec::new(), VecDeque::new(), 0);
        for parcel in mem::take(&mut self.network) {
            let meant = taken.len() < which.count && which.means(&parcel.message);
            if meant && skipped == which.skip {
                taken.push(parcel);
            } else {
                skipped += usize::from(meant);
                left.push_back(parcel);
            }
        }
        self.network = left;
        taken
    }

    pub fn deliver(&mut self, which: &Which, twice: bool) -> Answer {
        let parcels = self.take(which);
        if parcels.is_empty() {
            return Err("no such message is under way".into());
        }
        if twice {
            self.network.extend(parcels.iter().cloned());
        }
        parcels.into_iter().try_for_each(|parcel| self.arrive(parcel))
    }

    fn arrive(&mut self, parcel: Parcel) -> Answer {
        let to = parcel.message.to;
        let Some(node) = self.nodes.get_mut(&to).filter(|node| node.process.is_some()) else {
            return self.report(&parcel.message, false);
        };
        if let Some(image) = parcel.image {
            let index = parcel.message.get_snapshot().get_metadata().index;
            node.states.entry(index).or_insert(image);
        }
        self.handle(to, Event::Message(Box::new(parcel.message.clone())))?;
        self.report(&parcel.message, true)
    }

    pub fn lose(&mut self, which: &Which) -> Answer {
        let parcels = self.take(which);
        if parcels.is_empty() {
            return Err("no such message is under way".into());
        }
        parcels.iter().try_for_each(|parcel| self.report(&parcel.message, false))
    }

    /// Tells the sender of a snapshot what came of it.
    fn report(&mut self, message: &Message, success: bool) -> Answer {
        if message.get_msg_type() != MessageType::MsgSnapshot || self.process(message.from).is_err()
        {
            return Ok(());
        }
        let metadata = message.get_snapshot().get_metadata();
        let position = LogPosition { index: metadata.index, term: metadata.term };
        self.handle(message.from, Event::SnapshotSent { to: message.to, position, success })
    }

    /// Lets everything happen that waits, between these nodes or all.
    pub fn stabilize(&mut self, nodes: &[u64]) -> Answer {
        let meant = |id: u64| nodes.is_empty() || nodes.contains(&id);
        for _ in 0..MAX_ROUNDS {
            let mut busy = false;
            let ids: Vec<u64> = self.nodes.keys().copied().filter(|id| meant(*id)).collect();
            for id in ids {
                let Ok(process) = self.process(id) else { continue };
                busy |= !process.persists.is_empty() || !process.tasks.is_empty();
                self.persist(id, usize::MAX)?;
                self.apply(id, usize::MAX)?;
            }
            let (now, later): (VecDeque<Parcel>, VecDeque<Parcel>) = mem::take(&mut self.network)
                .into_iter()
                .partition(|Parcel { message, .. }| meant(message.from) && meant(message.to));
            self.network = later;
            if !busy && now.is_empty() && !self.announce(&meant)? {
                return Ok(());
            }
            now.into_iter().try_for_each(|parcel| self.arrive(parcel))?;
        }
        Err("it does not settle".into())
    }

    /// Has those of the nodes announce what they have to; whether any had.
    fn announce(&mut self, meant: &impl Fn(u64) -> bool) -> Answer<bool> {
        let is_due = |process: &Process| process.replica.is_to_announce();
        let nodes = self
            .nodes
            .iter()
            .filter(|&(id, node)| meant(*id) && node.process.as_ref().is_some_and(is_due));
        let nodes: Vec<u64> = nodes.map(|(id, _)| *id).collect();
        nodes.iter().try_for_each(|id| self.handle(*id, Event::Announce))?;
        Ok(!nodes.is_empty())
    }

    // ------------------------------------------------------------ inspection

    pub fn get(&mut self, id: u64, key: &str) -> Answer {
        let record = self.process(id)?.machine.view().get(key.as_bytes())?;
        let value = record.map(|record| record.value.escape_ascii().to_string());
        writeln!(self.out, "{}", value.as_deref().unwrap_or("none"))?;
        Ok(())
    }

    pub fn status(&mut self, nodes: &[u64]) -> Answer {
        for (id, node) in &self.nodes {
            if !nodes.is_empty() && !nodes.contains(id) {
                continue;
            }
            let text = match &node.process {
                Some(process) => {
                    show::status(&process.replica.status(), &process.machine.members())
                }
                None => "down".to_owned(),
            };
            writeln!(self.out, "{id}: {text}")?;
        }
        Ok(())
    }
}
