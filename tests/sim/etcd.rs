//! Clients that speak as etcd's do: on keys of their own, with transactions,
//! leases and compactions.

use bytes::Bytes;
use metastore::{
    lease::Question,
    proto::{
        Compact, GrantLease, Outcome, RevokeLease,
        command::Op,
        etcdserverpb::{
            Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
            compare::{CompareResult, CompareTarget, TargetUnion},
            request_op::Request,
        },
    },
};

use super::{
    client::patience,
    dice::Dice,
    plan::{MS, SECOND, Time},
    requests::{Ticket, Work},
    sim::{Action, Sim},
    world::World,
};

/// Leases are granted under few ids, so that ids come again.
const LEASES: u64 = 5;

/// Keys are `e/1` to `e/9`, so that their order is that of their numbers.
const MAX_KEY: u64 = 9;

/// The longest time of a lease.
const MAX_TTL_S: u64 = 5;

/// How soon leases that nobody renews are gone from a healthy cluster: their
/// time twice over, since a change of leader may give some of it back, what a
/// slow clock adds, and the round and the entry that an expiry takes.
pub const LEASES_GONE: Time = (2 * MAX_TTL_S + 3) * SECOND;

/// One client.
#[derive(Default, Clone, Copy)]
pub struct EtcdClient {
    waits: bool,
    /// The store's newest revision that anybody had been told when it asked.
    newest: u64,
    /// Whom it asked of a lease last.
    asked: u64,
}

fn key(dice: &mut Dice, low: u64, high: u64) -> Bytes {
    format!("e/{}", dice.between(low, high)).into()
}

fn lease_id(dice: &mut Dice) -> i64 {
    dice.between(1, LEASES).cast_signed()
}

fn put(sim: &mut Sim, low: u64, high: u64) -> PutRequest {
    let key = key(&mut sim.dice, low, high);
    let lease = if sim.dice.permille(400) { lease_id(&mut sim.dice) } else { 0 };
    let mut value = format!("{}", sim.now).into_bytes();
    if sim.dice.permille(50) {
        value.resize(700, b'.');
    }
    let value = Bytes::from(value);
    let prev_kv = sim.dice.permille(300);
    let put = PutRequest { key, value, lease, prev_kv, ..PutRequest::default() };
    match sim.dice.between(0, 9) {
        0 => PutRequest { ignore_value: true, value: Bytes::new(), ..put },
        1 => PutRequest { ignore_lease: true, lease: 0, ..put },
        _ => put,
    }
}

fn delete(dice: &mut Dice, low: u64, high: u64) -> DeleteRangeRequest {
    let key = key(dice, low, high);
    let range_end = match dice.between(0, 2) {
        0 if high == MAX_KEY => Bytes::from_static(b"e0"),
        0 => Bytes::from(format!("e/{}", high + 1)),
        _ => Bytes::new(),
    };
    DeleteRangeRequest { key, range_end, prev_kv: dice.permille(500) }
}

fn compare(sim: &Sim, dice: u64, key: Bytes) -> Compare {
    let newest = sim.oracle.revision.cast_signed();
    let (target, given) = match dice % 5 {
        0 => (CompareTarget::Version, TargetUnion::Version(1)),
        1 => (CompareTarget::Create, TargetUnion::CreateRevision(0)),
        2 => (CompareTarget::Mod, TargetUnion::ModRevision(newest - 10)),
        3 => (CompareTarget::Lease, TargetUnion::Lease(0)),
        _ => (CompareTarget::Value, TargetUnion::Value(Bytes::from_static(b"3"))),
    };
    let result = match dice / 5 % 4 {
        0 => CompareResult::Equal,
        1 => CompareResult::Greater,
        2 => CompareResult::Less,
        _ => CompareResult::NotEqual,
    };
    let range_end =
        if (dice / 20).is_multiple_of(4) { Bytes::from_static(b"e/9") } else { Bytes::new() };
    let (target, result) = (target.into(), result.into());
    Compare { result, target, key, target_union: Some(given), range_end }
}

fn request(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

/// A transaction in which no key is put twice: `depth` says which keys are its.
fn txn(sim: &mut Sim, depth: u64) -> TxnRequest {
    let (low, high) = (1 + 3 * depth, 3 + 3 * depth);
    let compares = sim.dice.between(0, 2);
    let compare = (0..compares).map(|_| {
        let key = key(&mut sim.dice, 1, 8);
        let kind = sim.dice.number();
        compare(sim, kind, key)
    });
    let compare = compare.collect();
    let range = RangeRequest {
        key: Bytes::from_static(b"e/"),
        range_end: Bytes::from_static(b"e0"),
        limit: sim.dice.between(0, 3).cast_signed(),
        ..RangeRequest::default()
    };
    let mut success = vec![request(Request::RequestRange(range.clone()))];
    success.push(request(Request::RequestPut(put(sim, low, high))));
    success.push(request(Request::RequestRange(range)));
    let mut failure = vec![];
    if sim.dice.permille(700) {
        let delete = delete(&mut sim.dice, low, high);
        failure.push(request(Request::RequestDeleteRange(delete)));
    }
    if depth < 2 && sim.dice.permille(400) {
        let branch = if sim.dice.permille(500) { &mut success } else { &mut failure };
        branch.push(request(Request::RequestTxn(txn(sim, depth + 1))));
    }
    TxnRequest { compare, success, failure }
}

fn op(sim: &mut Sim) -> Op {
    match sim.dice.between(0, 19) {
        0..=6 => Op::PutRequest(put(sim, 1, MAX_KEY)),
        7..=8 => Op::DeleteRange(delete(&mut sim.dice, 1, MAX_KEY)),
        9..=14 => Op::Txn(txn(sim, 0)),
        15 => {
            let back = sim.dice.between(0, 60);
            Op::Compact(Compact { revision: sim.oracle.revision.saturating_sub(back) })
        }
        16..=18 => {
            let ttl_s = sim.dice.between(1, MAX_TTL_S).cast_signed();
            Op::GrantLease(GrantLease { id: lease_id(&mut sim.dice), ttl_s })
        }
        _ => Op::RevokeLease(RevokeLease { id: lease_id(&mut sim.dice) }),
    }
}

impl World {
    pub fn plan_etcd_clients(&mut self) {
        for client in 0..self.etcd_clients.len() {
            self.sim.schedule(SECOND + 11 * client as Time, Action::EtcdClient(client));
        }
    }

    pub fn etcd_clients_wait(&self) -> bool {
        self.etcd_clients.iter().any(|client| client.waits)
    }

    /// A client asks for something.
    pub fn etcd_client_asks(&mut self, client: usize) {
        if self.clients_stopped {
            return;
        }
        let running = self.running();
        let Some(id) = self.sim.dice.pick_any(&running) else {
            return self.etcd_client_thinks(client);
        };
        if self.sim.dice.permille(self.sim.plan.lease_questions) {
            self.ask_of_lease(client, id);
            return self.etcd_client_thinks(client);
        }
        let op = op(&mut self.sim);
        let timeout = patience(&mut self.sim.dice);
        let newest = self.newest_told;
        self.etcd_clients[client] = EtcdClient { waits: true, newest, ..self.etcd_clients[client] };
        let (sim, node) = self.with(id);
        sim.note("etcd", id, &[client as u64], || format!("{op:?}"));
        node.submit(sim, Ticket::Etcd(client), Work::Command(op), timeout);
    }

    fn etcd_client_thinks(&mut self, client: usize) {
        let think = self.sim.dice.between(MS, 2 * self.sim.plan.think);
        self.sim.schedule(think, Action::EtcdClient(client));
    }

    /// Asks the leader, as this member knows it, about a lease; or whoever was
    /// asked before, since clients hold on to their streams.
    fn ask_of_lease(&mut self, client: usize, id: u64) {
        let lease = lease_id(&mut self.sim.dice);
        let status = self.nodes[&id].status();
        let leader = status.map_or(0, |status| status.role.leader_id);
        let before = self.etcd_clients[client].asked;
        let holds_on = before != 0 && self.sim.dice.permille(500);
        let leader = if holds_on { before } else { leader };
        self.etcd_clients[client].asked = leader;
        let question = match self.sim.dice.between(0, 4) {
            0 => Question::TimeToLive,
            _ => Question::KeepAlive,
        };
        let Sim { net, plan, dice, .. } = &mut self.sim;
        let delays = match leader {
            0 => vec![],
            _ if leader == id => vec![20],
            _ if net.is_open(id, leader) => net.delays(plan, dice),
            _ => vec![],
        };
        for delay in delays {
            self.sim.schedule(delay, Action::AskLease { to: leader, lease, question });
        }
    }

    /// A question about a lease arrives.
    pub fn lease_asked(&mut self, to: u64, lease: i64, question: Question) {
        let Some(node) = self.nodes.get_mut(&to) else { return };
        if self.sim.now < node.paused_until {
            let wait = node.paused_until - self.sim.now;
            return self.sim.schedule(wait, Action::AskLease { to, lease, question });
        }
        if let Some(process) = &mut node.process {
            process.leasing.ask(self.sim.now, lease, question);
            node.schedule_lease_pump(&mut self.sim);
        }
    }

    /// What came of a client's request. Revisions never go back.
    pub fn etcd_ended(&mut self, client: usize) {
        let outcome: Option<Outcome> = self.sim.etcd_ends.remove(&client);
        let asked = &mut self.etcd_clients[client];
        asked.waits = false;
        if let Some(outcome) = outcome {
            assert!(
                outcome.store_revision >= asked.newest,
                "{outcome:?} after revision {} had been told",
                asked.newest
            );
            self.newest_told = self.newest_told.max(outcome.store_revision);
            self.sim.tally.add("requests of etcd answered", 1);
        }
        self.etcd_client_thinks(client);
    }

    /// Leases that nobody renews any more run out.
    pub fn leases_run_out(&mut self) {
        let deadline = self.sim.now + LEASES_GONE;
        self.run_until(deadline, |world| world.sim.oracle.leases.is_empty());
        let leases = &self.sim.oracle.leases;
        assert!(leases.is_empty(), "leases that nobody renews stay: {leases:?}");
    }
}
