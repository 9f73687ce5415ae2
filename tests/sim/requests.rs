//! What a node does for its clients: it hands requests to its replica, passes
//! on to the leader what only the leader can do, and knows when to give up.

use std::collections::BTreeMap;

use metastore::{
    error::Rejected,
    lease,
    proto::{Command, Outcome, RequestId, command::Op, outcome::Result as Is},
    replica::{Answer, Event},
};

use super::{
    history::{End, Got},
    leasing::Errand,
    plan::{MS, Time},
    sim::{Action, Id, Sim, Step, got, id_of},
};

/// Pause before a node without a leader tries again.
const RETRY_PAUSE: Time = 50 * MS;

/// Who in the simulator waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ticket {
    /// A request in the history.
    Kv(usize),
    /// A membership change or a leader transfer.
    Admin(u64),
    /// The request under way of a client that speaks as etcd's do.
    Etcd(usize),
    /// Of a node's own lease keeper.
    Keeper,
    /// A mark.
    Mark,
}

/// What is asked.
#[derive(Debug, Clone)]
pub enum Work {
    Command(Op),
    Read(Vec<u8>),
    Transfer(u64),
}

/// A forwarded request.
#[derive(Debug)]
pub struct Arrived {
    pub from: u64,
    pub from_epoch: u64,
    pub waiter: u64,
    pub ticket: Ticket,
    pub work: Work,
    pub timeout: Time,
}

/// How a membership change or a leader transfer ended.
#[derive(Debug, Clone, PartialEq)]
pub enum AdminEnd {
    Done(Outcome),
    Led,
    Refused(String),
    Unknown,
}

/// Who on this node waits.
#[derive(Debug)]
enum Origin {
    Client,
    Peer {
        node: u64,
        epoch: u64,
        waiter: u64,
    },
    /// The node's own lease keeper: what it asks is never forwarded.
    Keeper(Errand),
}

#[derive(Debug)]
enum Stage {
    /// The replica has it under this id.
    Replica(Id),
    /// The leader has it.
    Forwarded,
    /// Nobody has it.
    Pause,
}

#[derive(Debug)]
struct Waiter {
    origin: Origin,
    ticket: Ticket,
    work: Work,
    stage: Stage,
    deadline: Time,
}

/// The requests of one process.
#[derive(Default)]
pub struct Requests {
    node: u64,
    epoch: u64,
    nonce: u64,
    sequence: u64,
    waiters: BTreeMap<u64, Waiter>,
    in_replica: BTreeMap<Id, u64>,
    /// What the lease keeper is to be told.
    pub errands_ended: Vec<lease::Event>,
}

/// What the caller does next with an answered read.
pub type ReadLocally<'a> = &'a mut dyn FnMut(&[u8]) -> Got;

impl Requests {
    pub fn new(node: u64, epoch: u64, nonce: u64) -> Self {
        Self { node, epoch, nonce, ..Self::default() }
    }

    /// Takes a client's request; answers the event for the replica.
    pub fn submit(&mut self, sim: &mut Sim, ticket: Ticket, work: Work, timeout: Time) -> Event {
        self.admit(sim, Origin::Client, ticket, work, timeout)
    }

    /// Takes a request that another node forwarded.
    pub fn arrive(&mut self, sim: &mut Sim, arrived: Arrived) -> Event {
        let Arrived { from, from_epoch, waiter, ticket, work, timeout } = arrived;
        let origin = Origin::Peer { node: from, epoch: from_epoch, waiter };
        self.admit(sim, origin, ticket, work, timeout)
    }

    /// Takes what the lease keeper wants done.
    pub fn run_errand(
        &mut self,
        sim: &mut Sim,
        errand: Errand,
        work: Work,
        timeout: Time,
    ) -> Event {
        self.admit(sim, Origin::Keeper(errand), Ticket::Keeper, work, timeout)
    }

    fn admit(
        &mut self,
        sim: &mut Sim,
        origin: Origin,
        ticket: Ticket,
        work: Work,
        timeout: Time,
    ) -> Event {
        self.sequence += 1;
        let key = self.sequence;
        let deadline = sim.now + timeout;
        let waiter = Waiter { origin, ticket, work, stage: Stage::Pause, deadline };
        self.waiters.insert(key, waiter);
        sim.step(self.node, self.epoch, timeout, Step::Deadline(key));
        self.give_to_replica(sim, key)
    }

    fn give_to_replica(&mut self, sim: &mut Sim, key: u64) -> Event {
        self.sequence += 1;
        let id = RequestId { member: self.node, nonce: self.nonce, sequence: self.sequence };
        let waiter = self.waiters.get_mut(&key).expect("the caller has just seen it");
        waiter.stage = Stage::Replica(id_of(&id));
        self.in_replica.insert(id_of(&id), key);
        sim.tickets.insert(id_of(&id), waiter.ticket);
        match &waiter.work {
            Work::Command(op) => {
                let command = Command { id: Some(id), op: Some(op.clone()) };
                match waiter.origin {
                    Origin::Peer { node, .. } => Event::ProposeFor(node, command),
                    _ => Event::Propose(command),
                }
            }
            Work::Read(_) => Event::Read(id),
            Work::Transfer(to) => Event::TransferLeader(id, *to),
        }
    }

    /// The replica answered: exactly once, and only what it was asked.
    pub fn answered(&mut self, sim: &mut Sim, id: &RequestId, answer: Answer, read: ReadLocally) {
        let Some(key) = self.in_replica.remove(&id_of(id)) else {
            panic!("node {} answers {id:?}, which does not wait: {answer:?}", self.node);
        };
        count_reason(sim, &answer);
        self.conclude(sim, key, answer, read);
    }

    /// The node to which a request had been forwarded answered.
    pub fn replied(&mut self, sim: &mut Sim, key: u64, answer: Answer) {
        let waits = self.waiters.get(&key).map(|waiter| &waiter.stage);
        if matches!(waits, Some(Stage::Forwarded)) {
            self.conclude(sim, key, answer, &mut |_| panic!("reads are not forwarded"));
        }
    }

    fn conclude(&mut self, sim: &mut Sim, key: u64, answer: Answer, read: ReadLocally) {
        let waiter = self.waiters.get_mut(&key).expect("an id in the replica has its waiter");
        if let (Answer::NotLeader(leader), Origin::Client) = (&answer, &waiter.origin) {
            waiter.stage = Stage::Pause;
            if waiter.deadline <= sim.now {
                let why = Rejected::NotApplied("no leader in time".into());
                self.finish(sim, key, Answer::Rejected(why), read);
            } else if *leader == 0 || *leader == self.node || matches!(waiter.work, Work::Read(_)) {
                sim.step(self.node, self.epoch, RETRY_PAUSE, Step::Retry(key));
            } else {
                self.forward(sim, key, *leader);
            }
            return;
        }
        self.finish(sim, key, answer, read);
    }

    fn forward(&mut self, sim: &mut Sim, key: u64, leader: u64) {
        let waiter = self.waiters.get_mut(&key).expect("the caller has just seen it");
        waiter.stage = Stage::Forwarded;
        let arrived = Arrived {
            from: self.node,
            from_epoch: self.epoch,
            waiter: key,
            ticket: waiter.ticket,
            work: waiter.work.clone(),
            timeout: waiter.deadline - sim.now,
        };
        sim.tally.add("forwarded", 1);
        // A request travels once: what sends twice below it is not trusted to.
        if sim.net.is_open(self.node, leader)
            && let Some(delay) = sim.net.delays(&sim.plan, &mut sim.dice).pop()
        {
            sim.schedule(delay, Action::Forwarded { to: leader, arrived: Box::new(arrived) });
        }
    }

    /// Tries again if it still waits; answers the event for the replica.
    pub fn retry(&mut self, sim: &mut Sim, key: u64) -> Option<Event> {
        let waits = matches!(self.waiters.get(&key)?.stage, Stage::Pause);
        waits.then(|| self.give_to_replica(sim, key))
    }

    /// Its time is over; answers what the replica must be told.
    pub fn deadline(&mut self, sim: &mut Sim, key: u64) -> Option<Event> {
        let why = match self.waiters.get(&key)?.stage {
            Stage::Replica((member, nonce, sequence)) => {
                return Some(Event::Cancel(RequestId { member, nonce, sequence }));
            }
            Stage::Forwarded => Rejected::Unknown("the leader did not answer in time".into()),
            Stage::Pause => Rejected::NotApplied("no leader in time".into()),
        };
        self.finish(sim, key, Answer::Rejected(why), &mut |_| panic!("it was not readable"));
        None
    }

    fn finish(&mut self, sim: &mut Sim, key: u64, answer: Answer, read: ReadLocally) {
        let waiter = self.waiters.remove(&key).expect("the caller has just seen it");
        match waiter.origin {
            Origin::Client => end(sim, &waiter.work, waiter.ticket, answer, read),
            Origin::Keeper(errand) => self.errands_ended.push(errand.report(answer)),
            Origin::Peer { node, epoch, waiter } => {
                if sim.net.is_open(self.node, node)
                    && let Some(delay) = sim.net.delays(&sim.plan, &mut sim.dice).pop()
                {
                    sim.step(node, epoch, delay, Step::Replied(waiter, Box::new(answer)));
                }
            }
        }
    }

    /// A cancelled request must have been answered by now.
    pub fn assert_answered(&self, id: &RequestId) {
        assert!(
            !self.in_replica.contains_key(&id_of(id)),
            "node {}: {id:?} was cancelled and not answered",
            self.node
        );
    }

    pub fn is_idle(&self) -> bool {
        self.waiters.is_empty() && self.in_replica.is_empty()
    }

    /// Nobody may be left without an answer.
    pub fn assert_idle(&self) {
        let Self { node, waiters, in_replica, .. } = self;
        assert!(self.is_idle(), "node {node} leaves without an answer: {waiters:?} {in_replica:?}");
    }

    /// The process is gone: its clients know nothing.
    pub fn abandon(self, sim: &mut Sim) {
        for waiter in self.waiters.into_values() {
            if let Origin::Client = waiter.origin {
                let answer = Answer::Rejected(Rejected::Unknown("the node went away".into()));
                end(sim, &waiter.work, waiter.ticket, answer, &mut |_| panic!("it is gone"));
            }
        }
    }
}

/// Counts the rarer reasons, to see that they occur.
fn count_reason(sim: &mut Sim, answer: &Answer) {
    let what = match answer {
        Answer::Rejected(Rejected::Overloaded(_)) => "overloaded",
        Answer::Rejected(Rejected::Unknown(why)) if why.contains("snapshot") => {
            "unknown because of a snapshot"
        }
        Answer::Rejected(Rejected::NotApplied(why)) if why.contains("took its place") => {
            "displaced by another leader's entry"
        }
        _ => return,
    };
    sim.tally.add(what, 1);
}

/// Tells a client.
fn end(sim: &mut Sim, work: &Work, ticket: Ticket, answer: Answer, read: ReadLocally) {
    sim.ended.push(ticket);
    match ticket {
        Ticket::Kv(kv) => {
            let end = match (answer, work) {
                (Answer::Readable, Work::Read(key)) => End::Done(read(key)),
                (Answer::Outcome(outcome), Work::Command(_)) => End::Done(got(&outcome)),
                (Answer::Rejected(Rejected::NotApplied(_) | Rejected::Overloaded(_)), _) => {
                    End::NotApplied
                }
                (Answer::Rejected(Rejected::Unknown(_)), _) => End::Unknown,
                (answer, work) => panic!("{work:?} was answered with {answer:?}"),
            };
            let what = match &end {
                End::Done(Got::Read(..)) => "reads",
                End::Done(_) => "writes",
                End::NotApplied => "not applied",
                End::Unknown => "unknown",
            };
            sim.tally.add(what, 1);
            sim.note("end", 0, &[kv as u64], || format!("{end:?}"));
            sim.history.end(kv, end);
        }
        Ticket::Etcd(client) => {
            sim.note("etcd end", 0, &[client as u64], || format!("{answer:?}"));
            if let Answer::Outcome(outcome) = answer {
                sim.etcd_ends.insert(client, outcome);
            }
        }
        Ticket::Keeper => panic!("a keeper is no client"),
        Ticket::Mark => {
            sim.note("mark end", 0, &[], || format!("{answer:?}"));
            if let Answer::Outcome(outcome) = answer {
                assert!(matches!(outcome.result, Some(Is::Done(_))), "a mark: {outcome:?}");
                sim.tally.add("marks applied", 1);
            }
        }
        Ticket::Admin(admin) => {
            let end = match answer {
                Answer::Outcome(outcome) => AdminEnd::Done(outcome),
                Answer::Led => AdminEnd::Led,
                Answer::Rejected(Rejected::Unknown(_)) => AdminEnd::Unknown,
                Answer::Rejected(why) => AdminEnd::Refused(why.to_string()),
                answer @ (Answer::Readable | Answer::NotLeader(_)) => {
                    panic!("{work:?} was answered with {answer:?}")
                }
            };
            sim.note("admin", 0, &[admin], || format!("{work:?}: {end:?}"));
            sim.admin_ends.insert(admin, end);
        }
    }
}
