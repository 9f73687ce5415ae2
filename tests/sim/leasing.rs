//! A member's lease keeper, and what carries events to it.

use std::collections::{BTreeMap, VecDeque};

use metastore::{
    error::Rejected,
    lease::{Effect, Event, Fate, Keeper, Options, Question, Reply},
    machine::{Changes, LeaseChange},
    proto::LeaseRecord,
    replica::{Answer, Role},
};
use raft::StateRole;

use super::{
    node::Node,
    plan::{ELECTION_TICKS, MS, SECOND, TICK, Time},
    requests::Work,
    sim::{Sim, Step},
};

/// What the keeper asked of its own replica.
#[derive(Debug, Clone, Copy)]
pub enum Errand {
    Round(u64),
    Proposal(u64),
}

impl Errand {
    /// What the keeper is told of the replica's answer.
    pub fn report(self, answer: Answer) -> Event {
        match self {
            Self::Round(round) => match answer {
                Answer::Readable => Event::Confirmed(round),
                Answer::Rejected(why) => Event::Unconfirmed(round, why),
                other => Event::Unconfirmed(round, Rejected::NotApplied(format!("{other:?}"))),
            },
            Self::Proposal(number) => {
                let fate = match answer {
                    Answer::Outcome(_) => Fate::Applied,
                    Answer::NotLeader(_)
                    | Answer::Rejected(Rejected::NotApplied(_) | Rejected::Overloaded(_)) => {
                        Fate::NotApplied
                    }
                    _ => Fate::Unknown,
                };
                Event::Resolved(number, fate)
            }
        }
    }
}

/// A question under way.
struct Asked {
    id: i64,
    question: Question,
    arrived: Time,
}

/// The keeper of one process and what waits for it.
pub struct Leasing {
    keeper: Keeper,
    leads: Option<u64>,
    /// What the keeper was told of that.
    told: Option<u64>,
    /// Ticks that nobody took in before the next one stay lost.
    ticked: bool,
    following: bool,
    lost: bool,
    changes: Vec<(u64, Vec<LeaseChange>)>,
    events: Vec<Event>,
    effects: VecDeque<Effect>,
    /// The reading under way; meanwhile everything waits.
    loading: Option<u64>,
    asked: BTreeMap<u64, Asked>,
    last_ticket: u64,
    pump_due: bool,
    /// All leases, put together from what each batch says it changed.
    mirror: BTreeMap<i64, LeaseRecord>,
}

impl Leasing {
    pub fn new(leases: Vec<LeaseRecord>) -> Self {
        let options = Options {
            tick: std::time::Duration::from_micros(TICK),
            election_ticks: ELECTION_TICKS as u64,
        };
        Self {
            keeper: Keeper::new(&options),
            leads: None,
            told: None,
            ticked: false,
            following: false,
            lost: false,
            changes: Vec::new(),
            events: Vec::new(),
            effects: VecDeque::new(),
            loading: None,
            asked: BTreeMap::new(),
            last_ticket: 0,
            pump_due: false,
            mirror: leases.into_iter().map(|lease| (lease.id, lease)).collect(),
        }
    }

    pub fn tick(&mut self) {
        self.ticked = true;
    }

    /// Role or term changed; called before any answer found out in them.
    pub fn role(&mut self, role: &Role) {
        let leads = (role.role == StateRole::Leader).then_some(role.term);
        if self.leads != leads {
            self.leads = leads;
            self.following = false;
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.lost = false;
        self.changes.clear();
    }

    /// A batch was applied, after which these are the leases. Now and then too
    /// many changes wait already.
    pub fn applied(&mut self, sim: &mut Sim, index: u64, changes: &Changes, now: &[LeaseRecord]) {
        if changes.leases.is_empty() {
            return;
        }
        for change in &changes.leases {
            match change {
                LeaseChange::Set(record) => self.mirror.insert(record.id, *record),
                LeaseChange::Gone(id) => self.mirror.remove(id),
            };
        }
        let mirrored: Vec<LeaseRecord> = self.mirror.values().copied().collect();
        assert_eq!(mirrored, now, "a change of a lease was not told");
        if !self.following || self.lost {
            return;
        }
        if sim.dice.permille(20) {
            sim.tally.add("lease changes lost", 1);
            self.forget();
            self.lost = true;
        } else {
            self.changes.push((index, changes.leases.clone()));
        }
    }

    /// A snapshot replaced the state.
    pub fn restored(&mut self, leases: Vec<LeaseRecord>) {
        self.mirror = leases.into_iter().map(|lease| (lease.id, lease)).collect();
        if self.following {
            self.forget();
            self.lost = true;
        }
    }

    /// A question arrives.
    pub fn ask(&mut self, now: Time, id: i64, question: Question) {
        self.last_ticket += 1;
        self.asked.insert(self.last_ticket, Asked { id, question, arrived: now });
        self.events.push(Event::Ask { ticket: self.last_ticket, id, question });
    }

    /// What became of an errand.
    pub fn report(&mut self, event: Event) {
        self.events.push(event);
    }

    /// Gives the keeper everything there is, in the order it must see it.
    fn take_in(&mut self) {
        self.told = self.leads;
        let mut news = vec![Event::Leads(self.leads)];
        if std::mem::take(&mut self.lost) {
            news.push(Event::Lost);
        }
        let changes = std::mem::take(&mut self.changes).into_iter();
        news.extend(changes.map(|(index, changes)| Event::Applied { index, changes }));
        if std::mem::take(&mut self.ticked) {
            news.push(Event::Tick);
        }
        news.append(&mut self.events);
        let mut effects = Vec::new();
        for event in news {
            self.keeper.handle(event, &mut effects);
        }
        self.keeper.flush(&mut effects);
        self.effects.extend(effects);
    }
}

impl Node {
    pub fn schedule_lease_pump(&mut self, sim: &mut Sim) {
        let Some(process) = &mut self.process else { return };
        if !std::mem::replace(&mut process.leasing.pump_due, true) {
            let longest = if sim.dice.permille(900) { MS } else { 30 * MS };
            let delay = sim.dice.between(20, longest);
            sim.step(self.id, self.epoch, delay, Step::LeasePump);
        }
    }

    /// One turn of the keeper's task.
    pub fn lease_pump(&mut self, sim: &mut Sim) {
        let Some(process) = &mut self.process else { return };
        process.leasing.pump_due = false;
        if process.leasing.loading.is_none() {
            process.leasing.take_in();
            self.lease_effects(sim);
        }
    }

    /// All leases have been read.
    pub fn leases_loaded(&mut self, sim: &mut Sim) {
        let Some(process) = &mut self.process else { return };
        let Some(load) = process.leasing.loading.take() else { return };
        let read = process.machine.view().leases_as_of();
        let (position, leases) = read.unwrap_or_else(|e| panic!("{e}"));
        let mut effects = Vec::new();
        let loaded = Event::Loaded { load, index: position.index, leases };
        process.leasing.keeper.handle(loaded, &mut effects);
        process.leasing.keeper.flush(&mut effects);
        process.leasing.effects.extend(effects);
        self.lease_effects(sim);
        self.schedule_lease_pump(sim);
    }

    fn lease_effects(&mut self, sim: &mut Sim) {
        while let Some(process) = &mut self.process
            && let Some(effect) = process.leasing.effects.pop_front()
        {
            sim.note("lease", self.id, &[], || format!("{effect:?}"));
            match effect {
                Effect::Confirm(round) => {
                    self.run_errand(sim, Errand::Round(round), Work::Read(Vec::new()));
                }
                Effect::Propose(number, op) => {
                    self.run_errand(sim, Errand::Proposal(number), Work::Command(op));
                }
                Effect::Reply(ticket, reply) => self.lease_reply(sim, ticket, &reply),
                Effect::Load(load) => {
                    if let Some(term) = process.leasing.told {
                        sim.oracle.reigns(sim.now, term);
                    }
                    process.leasing.forget();
                    process.leasing.following = process.leasing.leads.is_some();
                    process.leasing.loading = Some(load);
                    let delay = sim.dice.between(20, 20 * MS);
                    return sim.step(self.id, self.epoch, delay, Step::LeasesLoaded);
                }
            }
        }
    }

    fn run_errand(&mut self, sim: &mut Sim, errand: Errand, work: Work) {
        let Some(process) = &mut self.process else { return };
        let timeout = sim.dice.between(500 * MS, 4 * SECOND);
        let event = process.requests.run_errand(sim, errand, work, timeout);
        self.inject(sim, event);
    }

    fn lease_reply(&mut self, sim: &mut Sim, ticket: u64, reply: &Reply) {
        let Some(process) = &mut self.process else { return };
        let asked = process.leasing.asked.remove(&ticket);
        let Asked { id, question, arrived } = asked.expect("a question is answered once");
        if let Reply::Lease(time) = reply {
            let term = process.leasing.told.expect("only leaders know of leases");
            let (now, tick) = (sim.now, self.tick);
            sim.oracle.answered((now, arrived), (term, tick), (id, question), time);
        }
    }
}
