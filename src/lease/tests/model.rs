//! Three members with a keeper and a real state machine each, over a model of
//! raft that may elect, stall, lose and delay whatever raft may. A client's
//! view of each lease is checked against what the log does to it.

use std::collections::BTreeMap;

use raft::eraftpb::{Entry, EntryType};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use super::*;
use crate::{
    error::Rejected,
    machine::{StateMachine, command},
    proto::{Command, Founder, FoundingRecord, GrantLease, RequestId, RevokeLease},
    storage::memory::MemoryEngine,
};

const MEMBERS: usize = 3;
const LEASES: i64 = 5;
const MAX_TTL_S: i64 = 4;
const STEPS: u64 = 400;
const SEEDS: u64 = 600;

/// Where a keeper's proposal is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Queued,
    Appended,
    Committed(u64),
    Lost,
}

#[derive(Debug)]
struct Proposal {
    number: u64,
    op: Op,
    stage: Stage,
}

/// A round: the read index once it is confirmed.
type Rounds = Vec<(u64, Option<u64>)>;

struct Member {
    keeper: Keeper,
    machine: StateMachine<MemoryEngine>,
    /// The term in which its replica takes itself for the leader.
    leads: Option<u64>,
    /// Entries of its own term that are not committed, with the keeper's
    /// number.
    tail: Vec<(u64, Option<u64>, Option<Op>)>,
    feed: Vec<(u64, Vec<LeaseChange>)>,
    following: bool,
    ticked: bool,
    rounds: Rounds,
    proposals: Vec<Proposal>,
    asked: Vec<Event>,
}

/// One life of a lease, from its grant to its end.
#[derive(Debug, Clone)]
struct Life {
    born: u64,
    ttl: u64,
    /// The tick before which it must not expire.
    promised: u64,
    /// The same for the expiries of one term.
    promised_by: (u64, u64),
    /// Moment and tick of its end, and whether it expired.
    died: Option<(u64, u64, bool)>,
}

/// A keep-alive under way.
struct Asked {
    id: i64,
    moment: u64,
    tick: u64,
}

/// What happened, to see that the model makes it happen.
#[derive(Debug, Default)]
struct Seen {
    promises: u64,
    expiries: u64,
    renewals: u64,
    checkpoints: u64,
    elections: u64,
    absent: u64,
    void: u64,
}

struct World {
    dice: SmallRng,
    members: Vec<Member>,
    log: Vec<Entry>,
    /// Applies what is committed at once: what the log does to leases.
    oracle: StateMachine<MemoryEngine>,
    leader: Option<usize>,
    term: u64,
    quorum: bool,
    tick: u64,
    /// Orders everything that happens.
    moment: u64,
    lives: BTreeMap<i64, Vec<Life>>,
    asked: BTreeMap<u64, Asked>,
    ticket: u64,
    seen: Seen,
}

fn machine() -> StateMachine<MemoryEngine> {
    let founders = (1..=MEMBERS as u64)
        .map(|id| Founder { id, peer_url: format!("http://h:{id}"), incarnation: id })
        .collect();
    let engine = MemoryEngine::default();
    StateMachine::bootstrap(&engine, &FoundingRecord { founders }).unwrap();
    StateMachine::open(engine).unwrap()
}

fn entry(index: u64, term: u64, op: Option<&Op>) -> Entry {
    let mut entry = Entry::default();
    entry.set_entry_type(EntryType::EntryNormal);
    entry.set_index(index);
    entry.set_term(term);
    if let Some(op) = op {
        let id = Some(RequestId { member: 1, nonce: 1, sequence: index });
        let command = Command { id, op: Some(op.clone()) };
        entry.set_data(command::encode_payload(vec![command]).into());
    }
    entry
}

impl World {
    fn new(seed: u64) -> Self {
        let member = || Member {
            keeper: Keeper::new(&Options { tick: TICK, election_ticks: 10 }),
            machine: machine(),
            leads: None,
            tail: Vec::new(),
            feed: Vec::new(),
            following: false,
            ticked: false,
            rounds: Vec::new(),
            proposals: Vec::new(),
            asked: Vec::new(),
        };
        Self {
            dice: SmallRng::seed_from_u64(seed),
            members: (0..MEMBERS).map(|_| member()).collect(),
            log: Vec::new(),
            oracle: machine(),
            leader: None,
            term: 1,
            quorum: true,
            tick: 0,
            moment: 0,
            lives: BTreeMap::new(),
            asked: BTreeMap::new(),
            ticket: 0,
            seen: Seen::default(),
        }
    }

    fn chance(&mut self, of: f64) -> bool {
        self.dice.random_bool(of)
    }

    /// Commits an entry and checks what it does. Gives its index.
    fn commit(&mut self, term: u64, op: Option<&Op>) -> u64 {
        let index = self.oracle.position().index + 1;
        let entry = entry(index, term, op);
        let before = self.oracle.view().leases().unwrap();
        let batch = self.oracle.apply(std::slice::from_ref(&entry)).unwrap();
        self.log.push(entry);
        self.moment += 1;
        let mut moved = false;
        for change in &batch.changes.leases {
            moved = true;
            match change {
                LeaseChange::Set(record) if before.iter().all(|known| known.id != record.id) => {
                    let ttl = record.ttl_s as u64 * TICKS_A_SECOND;
                    self.lives.entry(record.id).or_default().push(Life {
                        born: self.moment,
                        ttl,
                        promised: self.tick + ttl,
                        promised_by: (0, 0),
                        died: None,
                    });
                }
                LeaseChange::Set(_) => {}
                LeaseChange::Gone(id) => self.end(*id, op),
            }
        }
        match op {
            Some(Op::RenewLeases(_)) => self.seen.renewals += 1,
            Some(Op::CheckpointLeases(_)) if moved => self.seen.checkpoints += 1,
            Some(Op::ExpireLeases(_)) if !moved => self.seen.void += 1,
            _ => {}
        }
        index
    }

    fn end(&mut self, id: i64, by: Option<&Op>) {
        let (tick, moment) = (self.tick, self.moment);
        let life = self.lives.get_mut(&id).and_then(|lives| lives.last_mut()).unwrap();
        let mut expired = false;
        if let Some(Op::ExpireLeases(expire)) = by {
            expired = true;
            self.seen.expiries += 1;
            assert!(tick >= life.promised, "lease {id} expired at {tick}: {life:?}");
            let (term, until) = life.promised_by;
            assert!(expire.term != term || tick >= until, "lease {id} at {tick}: {life:?}");
        }
        life.died = Some((moment, tick, expired));
    }

    /// A keep-alive was answered by the leader of a term.
    fn answered(&mut self, ticket: u64, reply: &Reply, term: u64) {
        let Some(Asked { id, moment, tick }) = self.asked.remove(&ticket) else { return };
        let Reply::Lease(time) = reply else { return };
        let lives = self.lives.entry(id).or_default();
        // Granted again since, it may be the later life that was renewed.
        let since = lives.iter().any(|life| life.born > moment);
        let at_arrival = lives
            .iter_mut()
            .find(|life| life.born < moment && life.died.is_none_or(|(died, ..)| died > moment));
        if !time.exists {
            self.seen.absent += 1;
            let is_there = at_arrival.is_some_and(|life| life.died.is_none());
            assert!(!is_there, "lease {id} was said not to exist");
            return;
        }
        self.seen.promises += 1;
        let Some(life) = at_arrival else {
            assert!(since, "lease {id} was gone and was said to exist");
            return;
        };
        let until = tick + life.ttl;
        life.promised = life.promised.max(until);
        life.promised_by = (term, self.tick + life.ttl);
        if let Some((_, died, true)) = life.died
            && !since
        {
            assert!(died >= until, "lease {id} was renewed at {tick} and expired at {died}");
        }
    }

    /// Another leader: what the former one had replicated to it is committed.
    fn elect(&mut self, member: usize) {
        self.seen.elections += 1;
        if let Some(former) = self.leader {
            let mut tail = std::mem::take(&mut self.members[former].tail);
            let kept =
                if former == member { tail.len() } else { self.dice.random_range(0..=tail.len()) };
            let lost = tail.split_off(kept);
            for (term, number, op) in tail {
                let index = self.commit(term, op.as_ref());
                self.moved(former, number, Stage::Committed(index));
            }
            for (_, number, _) in lost {
                self.moved(former, number, Stage::Lost);
            }
        }
        // What a stale leader has appended is overwritten.
        for (_, number, _) in std::mem::take(&mut self.members[member].tail) {
            self.moved(member, number, Stage::Lost);
        }
        self.term += 1;
        self.leader = Some(member);
        self.set_role(member, Some(self.term));
        self.members[member].tail.push((self.term, None, None));
    }

    fn set_role(&mut self, member: usize, leads: Option<u64>) {
        let member = &mut self.members[member];
        member.leads = leads;
        member.following = false;
        member.feed.clear();
    }

    /// A member that was the leader hears of the new one.
    fn learn(&mut self, member: usize) {
        if self.leader != Some(member) && self.members[member].leads.is_some() {
            self.set_role(member, None);
            for (_, number, _) in std::mem::take(&mut self.members[member].tail) {
                self.moved(member, number, Stage::Lost);
            }
        }
    }

    fn moved(&mut self, member: usize, number: Option<u64>, stage: Stage) {
        let proposals = &mut self.members[member].proposals;
        if let Some(proposal) = proposals.iter_mut().find(|p| Some(p.number) == number) {
            proposal.stage = stage;
        }
    }

    /// The replica of a member takes in what its keeper proposed.
    fn take_in(&mut self, member: usize) {
        let Member { leads, tail, proposals, .. } = &mut self.members[member];
        for proposal in proposals.iter_mut().filter(|p| p.stage == Stage::Queued) {
            proposal.stage = match leads {
                Some(term) => {
                    tail.push((*term, Some(proposal.number), Some(proposal.op.clone())));
                    Stage::Appended
                }
                None => Stage::Lost,
            };
        }
    }

    /// The leader commits some of what it has appended, and confirms rounds.
    fn replicate(&mut self) {
        let Some(leader) = self.leader.filter(|_| self.quorum) else { return };
        let most = self.members[leader].tail.len();
        let count = self.dice.random_range(0..=most);
        for (term, number, op) in self.members[leader].tail.drain(..count).collect::<Vec<_>>() {
            let index = self.commit(term, op.as_ref());
            self.moved(leader, number, Stage::Committed(index));
        }
        let read_index = self.oracle.position().index;
        let settled = self.log.last().is_some_and(|last| last.get_term() == self.term);
        for member in 0..MEMBERS {
            // A stale leader asks nobody but those who follow it no more.
            let answers = self.leader == Some(member) || self.members[member].leads.is_none();
            for at in 0..self.members[member].rounds.len() {
                if settled && answers && self.dice.random_bool(0.7) {
                    self.members[member].rounds[at].1.get_or_insert(read_index);
                }
            }
        }
    }

    fn apply(&mut self, member: usize, most: u64) {
        let member = &mut self.members[member];
        for _ in 0..most {
            let next = member.machine.position().index as usize - 1;
            let Some(entry) = self.log.get(next) else { return };
            let batch = member.machine.apply(std::slice::from_ref(entry)).unwrap();
            if member.following {
                member.feed.push((batch.position.index, batch.changes.leases));
            }
        }
    }

    /// What the member's pump would hand to the keeper beside the feed, each
    /// with a chance.
    fn reports(&mut self, at: usize) -> Vec<Event> {
        let applied = self.members[at].machine.position().index;
        let mut events = std::mem::take(&mut self.members[at].asked);
        let dice = &mut self.dice;
        self.members[at].rounds.retain(|(round, confirmed)| {
            let readable = confirmed.is_some_and(|index| index <= applied);
            if readable && dice.random_bool(0.7) {
                events.push(Event::Confirmed(*round));
                return false;
            }
            let fails = dice.random_bool(0.02);
            if fails {
                let why = Rejected::NotApplied("it took too long".to_owned());
                events.push(Event::Unconfirmed(*round, why));
            }
            !fails
        });
        self.members[at].proposals.retain(|proposal| {
            let fate = match proposal.stage {
                Stage::Committed(index) if index <= applied => Some(Fate::Applied),
                Stage::Lost => Some(Fate::NotApplied),
                Stage::Queued => None,
                Stage::Appended | Stage::Committed(_) => {
                    dice.random_bool(0.03).then_some(Fate::Unknown)
                }
            };
            let told = fate.filter(|_| dice.random_bool(0.7));
            events.extend(told.map(|fate| Event::Resolved(proposal.number, fate)));
            told.is_none()
        });
        events
    }

    /// One turn of the member's pump.
    fn pump(&mut self, at: usize) {
        let events = self.reports(at);
        let loses = self.chance(0.01);
        let member = &mut self.members[at];
        let mut effects = Vec::new();
        let mut news = vec![Event::Leads(member.leads)];
        let feed = std::mem::take(&mut member.feed);
        if member.following && loses {
            news.push(Event::Lost);
        } else {
            news.extend(feed.into_iter().map(|(index, changes)| Event::Applied { index, changes }));
        }
        if std::mem::take(&mut member.ticked) {
            news.push(Event::Tick);
        }
        for event in news.into_iter().chain(events) {
            member.keeper.handle(event, &mut effects);
        }
        member.keeper.flush(&mut effects);
        while !effects.is_empty() {
            for effect in std::mem::take(&mut effects) {
                self.execute(at, effect, &mut effects);
            }
        }
    }

    fn execute(&mut self, at: usize, effect: Effect, more: &mut Vec<Effect>) {
        let member = &mut self.members[at];
        match effect {
            Effect::Confirm(round) => member.rounds.push((round, None)),
            Effect::Propose(number, op) => {
                member.proposals.push(Proposal { number, op, stage: Stage::Queued });
            }
            Effect::Reply(ticket, reply) => {
                let term = member.leads.unwrap_or_default();
                self.answered(ticket, &reply, term);
            }
            Effect::Load(load) => {
                member.following = true;
                member.feed.clear();
                let (position, leases) = member.machine.view().leases_as_of().unwrap();
                let loaded = Event::Loaded { load, index: position.index, leases };
                member.keeper.handle(loaded, more);
                member.keeper.flush(more);
            }
        }
    }

    fn client(&mut self) {
        let id = self.dice.random_range(1..=LEASES);
        let Some(leader) = self.leader else { return };
        match self.dice.random_range(0..20) {
            0..=2 => {
                let ttl_s = self.dice.random_range(1..=MAX_TTL_S);
                let grant = Op::GrantLease(GrantLease { id, ttl_s });
                self.members[leader].tail.push((self.term, None, Some(grant)));
            }
            3 => {
                let revoke = Op::RevokeLease(RevokeLease { id });
                self.members[leader].tail.push((self.term, None, Some(revoke)));
            }
            4..=12 => {
                let asked = if self.chance(0.7) { leader } else { self.dice.random_range(0..3) };
                self.ticket += 1;
                self.moment += 1;
                let (ticket, question) = (self.ticket, Question::KeepAlive);
                let asking = Asked { id, moment: self.moment, tick: self.tick };
                self.asked.insert(ticket, asking);
                self.members[asked].asked.push(Event::Ask { ticket, id, question });
            }
            _ => {}
        }
    }

    /// One tick length, in which everything may happen in any order.
    fn step(&mut self, trouble: f64, clients: bool) {
        self.tick += 1;
        for at in 0..MEMBERS {
            let lost = self.chance(trouble);
            self.members[at].ticked |= !lost;
        }
        if self.chance(trouble) {
            let member = self.dice.random_range(0..MEMBERS);
            self.elect(member);
        }
        if self.chance(trouble) {
            self.quorum = !self.quorum;
        }
        for _ in 0..12 {
            let at = self.dice.random_range(0..MEMBERS);
            match self.dice.random_range(0..6) {
                0 => self.pump(at),
                1 => self.take_in(at),
                2 => self.replicate(),
                3 => {
                    let most = self.dice.random_range(1..4);
                    self.apply(at, most);
                }
                4 if clients => self.client(),
                _ if self.chance(0.1) => self.learn(at),
                _ => {}
            }
        }
    }

    /// One leader, a quorum, and no client: every lease runs out.
    fn settle(&mut self) {
        self.quorum = true;
        self.elect(0);
        (0..MEMBERS).for_each(|at| self.learn(at));
        // The longest time, the slack, and as much for the slowness of
        // everything, proposals of unknown fate and one grace.
        let bound = 4 * (MAX_TTL_S as u64 * TICKS_A_SECOND + SLACK_TICKS);
        for _ in 0..bound {
            self.step(0.0, false);
            for _ in 0..3 {
                self.take_in(0);
                self.replicate();
                self.apply(0, 10);
                self.pump(0);
            }
        }
        assert_eq!(self.oracle.view().leases().unwrap(), [], "leases that nobody renews stay");
    }
}

#[test]
fn no_lease_expires_before_what_its_client_was_told() {
    let mut total = Seen::default();
    for seed in 0..SEEDS {
        // Some clusters are calm, some are not.
        let trouble = [0.002, 0.01, 0.03, 0.1][(seed % 4) as usize];
        let run = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            world.elect(0);
            (0..STEPS).for_each(|_| world.step(trouble, true));
            world.settle();
            world.seen
        });
        let Ok(seen) = run else { panic!("seed {seed}") };
        total.promises += seen.promises;
        total.expiries += seen.expiries;
        total.renewals += seen.renewals;
        total.checkpoints += seen.checkpoints;
        total.elections += seen.elections;
        total.absent += seen.absent;
        total.void += seen.void;
    }
    let Seen { promises, expiries, renewals, checkpoints, elections, absent, void } = total;
    let all = [promises, expiries, renewals, checkpoints, elections, absent, void];
    assert!(all.iter().all(|count| *count > 20), "the model is too calm: {total:?}");
}
