//! What all parts of a run share: time, chance, network, and the record.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex},
};

use metastore::{
    lease::Question,
    proto::{Outcome, RequestId, etcdserverpb::TxnResponse},
    replica::{Answer, Event},
    storage::memory::MemoryEngine,
};
use raft::eraftpb::Message;

use super::{
    checks::Checks,
    dice::Dice,
    history::{Got, History},
    network::Network,
    oracle::Oracle,
    plan::{MS, Plan, SECOND, Time},
    requests::{AdminEnd, Arrived, Ticket},
};

/// Lines of the trace that a failure shows.
const TRACE_TAIL: usize = 150;

/// The last lines of a trace; it outlives a run that panics.
pub type TraceTail = Arc<Mutex<VecDeque<String>>>;

/// A request's id in a form with an order.
pub type Id = (u64, u64, u64);

pub fn id_of(id: &RequestId) -> Id {
    (id.member, id.nonce, id.sequence)
}

/// Something that happens at a moment.
#[derive(Debug)]
pub enum Action {
    /// Inside one process; void once that process is gone, late while it is paused.
    Process {
        node: u64,
        epoch: u64,
        step: Step,
    },
    /// A message arrives.
    Deliver {
        from: u64,
        to: u64,
        message: Box<Message>,
    },
    /// A snapshot transfer ends.
    Transfer(Box<Transfer>),
    /// A request that another node forwarded arrives.
    Forwarded {
        to: u64,
        arrived: Box<Arrived>,
    },
    /// A member is told that it was removed.
    ToldRemoved(u64),
    /// Members without a leader ask around.
    AskAround,
    /// A client's next request.
    Client(usize),
    /// The next fault.
    Fault,
    /// The links of this partition come back.
    Heal(u64),
    Restart(u64),
    /// The next step of the membership changes.
    Membership,
    /// The next request of a client that speaks as etcd's do.
    EtcdClient(usize),
    /// A question about a lease arrives.
    AskLease {
        to: u64,
        lease: i64,
        question: Question,
    },
    /// What somebody who watches does next.
    Watcher(usize),
    /// The leader's next mark.
    Mark,
}

/// What happens inside one process.
#[derive(Debug)]
pub enum Step {
    Tick,
    Pump,
    Announce,
    Logged,
    LogConfirmed(u64),
    Applied,
    ApplyConfirmed(Box<Event>),
    Inject(Box<Event>),
    /// A forwarded request's answer came back.
    Replied(u64, Box<Answer>),
    Retry(u64),
    Deadline(u64),
    /// The end of a graceful stop, and how long the node stays away.
    Stop(Time),
    /// A turn of the lease keeper.
    LeasePump,
    LeasesLoaded,
    /// A turn of the watch hub.
    WatchPump,
    /// A page of the history has been read.
    Page {
        from: u64,
        max_bytes: usize,
    },
}

/// A snapshot on its way.
pub struct Transfer {
    pub from: u64,
    pub from_epoch: u64,
    pub to: u64,
    pub message: Message,
    pub image: MemoryEngine,
    /// It breaks off.
    pub doomed: bool,
}

impl std::fmt::Debug for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {}", self.from, self.to)
    }
}

/// What a run, or many, went through.
#[derive(Debug, Default, Clone)]
pub struct Tally(pub BTreeMap<&'static str, u64>);

impl Tally {
    pub fn add(&mut self, what: &'static str, count: u64) {
        *self.0.entry(what).or_default() += count;
    }

    pub fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }
}

pub struct Sim {
    pub now: Time,
    queue: BTreeMap<(Time, u64), Action>,
    sequence: u64,
    pub dice: Dice,
    pub plan: Plan,
    pub net: Network,
    pub checks: Checks,
    pub history: History,
    pub oracle: Oracle,
    pub tally: Tally,
    /// Which request each id that was ever given to a replica stands for.
    pub tickets: BTreeMap<Id, Ticket>,
    pub admin_ends: BTreeMap<u64, AdminEnd>,
    pub etcd_ends: BTreeMap<usize, Outcome>,
    /// Requests that ended since somebody looked.
    pub ended: Vec<Ticket>,
    hasher: DefaultHasher,
    tail: Option<TraceTail>,
}

impl Sim {
    pub fn new(seed: u64, tail: Option<TraceTail>) -> Self {
        let mut dice = Dice::new(seed);
        let plan = Plan::new(&mut dice);
        let mut sim = Self {
            now: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            dice,
            plan,
            net: Network::default(),
            checks: Checks::default(),
            history: History::default(),
            oracle: Oracle::default(),
            tally: Tally::default(),
            tickets: BTreeMap::new(),
            admin_ends: BTreeMap::new(),
            etcd_ends: BTreeMap::new(),
            ended: Vec::new(),
            hasher: DefaultHasher::new(),
            tail,
        };
        let plan = sim.plan.clone();
        sim.note("plan", 0, &[seed], || format!("{plan:?}"));
        sim
    }

    pub fn schedule(&mut self, delay: Time, action: Action) {
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), action);
    }

    pub fn step(&mut self, node: u64, epoch: u64, delay: Time, step: Step) {
        self.schedule(delay, Action::Process { node, epoch, step });
    }

    pub fn begin_transfer(&mut self, transfer: Transfer) {
        let longest = if self.net.calm { 100 * MS } else { SECOND };
        let delay = self.dice.between(5 * MS, longest);
        self.schedule(delay, Action::Transfer(Box::new(transfer)));
    }

    /// Moves time on to the next action.
    pub fn next(&mut self) -> Option<Action> {
        let ((time, _), action) = self.queue.pop_first()?;
        self.now = time;
        Some(action)
    }

    /// Adds to the trace hash, and to the trace if anybody reads it.
    pub fn note(
        &mut self,
        tag: &'static str,
        node: u64,
        numbers: &[u64],
        detail: impl FnOnce() -> String,
    ) {
        (self.now, tag, node, numbers).hash(&mut self.hasher);
        if let Some(tail) = &self.tail {
            let (seconds, micros) = (self.now / 1_000_000, self.now % 1_000_000);
            let line =
                format!("{seconds:3}.{micros:06} node {node} {tag} {numbers:?} {}", detail());
            let mut tail = tail.lock().expect("a trace is written by one thread at a time");
            if tail.len() == trace_lines() {
                tail.pop_front();
            }
            tail.push_back(line);
        }
    }

    pub fn trace_hash(&self) -> u64 {
        self.hasher.finish()
    }

    /// A command took effect at `index` on some member.
    pub fn applied(&mut self, index: u64, id: &RequestId, outcome: &Outcome) {
        if !self.checks.is_first_outcome(index, id_of(id), outcome) {
            return;
        }
        let ticket = self.tickets.get(&id_of(id));
        if let Ticket::Kv(ticket) = ticket.expect("only requests of clients are applied") {
            self.history.applied(*ticket, got(outcome));
        }
    }
}

/// How many lines of trace are kept: `SIM_TRACE`, or a screenful or two.
fn trace_lines() -> usize {
    let wanted = std::env::var("SIM_TRACE").ok().and_then(|lines| lines.parse().ok());
    wanted.unwrap_or(TRACE_TAIL).max(1)
}

/// What a put or delete came to.
pub fn got(outcome: &Outcome) -> Got {
    use metastore::proto::outcome::Result as Is;
    match &outcome.result {
        Some(Is::Revision(revision)) => Got::Wrote(*revision),
        Some(Is::KeyNotFound(_)) => Got::Missing,
        Some(Is::PreconditionFailed(revision)) => Got::Failed(*revision),
        Some(Is::Put(_)) => Got::Wrote(outcome.store_revision),
        Some(Is::DeleteRange(response)) if response.deleted == 0 => Got::Missing,
        Some(Is::DeleteRange(_)) => Got::Wrote(outcome.store_revision),
        Some(Is::Txn(response)) if response.succeeded => Got::Wrote(outcome.store_revision),
        Some(Is::Txn(response)) => Got::Failed(swap_failed(response)),
        other => panic!("a put or delete had the outcome {other:?}"),
    }
}

/// The revision of the key that a failed transaction was about.
fn swap_failed(response: &TxnResponse) -> u64 {
    use metastore::proto::etcdserverpb::response_op::Response::ResponseRange;
    let found = response.responses.first().and_then(|response| response.response.as_ref());
    let Some(ResponseRange(found)) = found else { panic!("no range in {response:?}") };
    found.kvs.first().map_or(0, |kv| kv.mod_revision.unsigned_abs())
}
