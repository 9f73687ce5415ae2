//! Tests of the keeper: scripted interleavings, and a model of a cluster.

mod cost;
mod interleavings;
mod model;

use std::time::Duration;

use super::{Effect, Event, Fate, Keeper, Options, Question, Reply, SLACK_TICKS};
use crate::{
    machine::LeaseChange,
    proto::{LeaseRecord, LeaseTime, command::Op},
};

/// Four ticks a second, so that rounding shows.
const TICK: Duration = Duration::from_millis(250);
const TICKS_A_SECOND: u64 = 4;
const TERM: u64 = 5;

/// A keeper whose surroundings move only when told.
struct Rig {
    keeper: Keeper,
    /// Effects nobody has looked at yet.
    effects: Vec<Effect>,
    ticket: u64,
    index: u64,
}

fn record(id: i64, ttl_s: i64) -> LeaseRecord {
    LeaseRecord { id, ttl_s, remaining_s: ttl_s, renewal: 1 }
}

fn alive(ttl_s: i64) -> Reply {
    left(ttl_s, ttl_s)
}

fn left(ttl_s: i64, remaining_s: i64) -> Reply {
    Reply::Lease(LeaseTime { exists: true, granted_ttl_s: ttl_s, remaining_s })
}

fn unknown() -> Reply {
    Reply::Lease(LeaseTime::default())
}

impl Rig {
    /// Of a member that does not lead.
    fn idle() -> Self {
        let keeper = Keeper::new(&Options { tick: TICK, election_ticks: 10 });
        Self { keeper, effects: Vec::new(), ticket: 0, index: 10 }
    }

    /// Of a leader with these leases.
    fn leader(leases: &[LeaseRecord]) -> Self {
        let mut rig = Self::idle();
        rig.lead(TERM, leases);
        rig
    }

    fn lead(&mut self, term: u64, leases: &[LeaseRecord]) {
        self.handle(Event::Leads(Some(term)));
        let round = self.confirm();
        self.handle(Event::Confirmed(round));
        self.load(leases);
    }

    fn load(&mut self, leases: &[LeaseRecord]) {
        let [Effect::Load(load)] = self.take()[..] else { panic!("no reading") };
        self.handle(Event::Loaded { load, index: self.index, leases: leases.to_vec() });
    }

    fn handle(&mut self, event: Event) {
        self.keeper.handle(event, &mut self.effects);
        self.keeper.flush(&mut self.effects);
    }

    fn ticks(&mut self, ticks: u64) {
        (0..ticks).for_each(|_| self.handle(Event::Tick));
    }

    fn seconds(&mut self, seconds: u64) {
        self.ticks(seconds * TICKS_A_SECOND);
    }

    fn ask(&mut self, id: i64, question: Question) -> u64 {
        self.ticket += 1;
        self.handle(Event::Ask { ticket: self.ticket, id, question });
        self.ticket
    }

    fn keep_alive(&mut self, id: i64) -> u64 {
        self.ask(id, Question::KeepAlive)
    }

    /// Asks and has the question's round confirmed.
    fn answered(&mut self, id: i64, question: Question) -> Reply {
        let ticket = self.ask(id, question);
        let round = self.confirm();
        self.handle(Event::Confirmed(round));
        self.reply(ticket)
    }

    fn applied(&mut self, changes: &[LeaseChange]) {
        self.index += 1;
        self.handle(Event::Applied { index: self.index, changes: changes.to_vec() });
    }

    fn set(&mut self, record: LeaseRecord) {
        self.applied(&[LeaseChange::Set(record)]);
    }

    fn resolved(&mut self, proposal: u64, fate: Fate) {
        self.handle(Event::Resolved(proposal, fate));
    }

    fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// The one effect since the last look, a round.
    fn confirm(&mut self) -> u64 {
        match self.take()[..] {
            [Effect::Confirm(round)] => round,
            ref other => panic!("expected a round, not {other:?}"),
        }
    }

    /// The one effect since the last look, a proposal.
    fn proposal(&mut self) -> (u64, Op) {
        match &self.take()[..] {
            [Effect::Propose(number, op)] => (*number, op.clone()),
            other => panic!("expected a proposal, not {other:?}"),
        }
    }

    /// The one effect since the last look, an answer.
    fn reply(&mut self, ticket: u64) -> Reply {
        match &self.take()[..] {
            [Effect::Reply(to, reply)] if *to == ticket => reply.clone(),
            other => panic!("expected the answer to {ticket}, not {other:?}"),
        }
    }

    fn nothing(&mut self) {
        assert_eq!(self.take(), []);
    }

    /// Lets one lease run out: the proposal that expires it.
    fn expire_after(&mut self, ttl_s: u64) -> u64 {
        self.ticks(ttl_s * TICKS_A_SECOND + SLACK_TICKS - 1);
        // On the way its remaining time was written down, or tried to be.
        for effect in self.take() {
            if let Effect::Propose(number, Op::CheckpointLeases(_)) = effect {
                self.resolved(number, Fate::NotApplied);
            }
        }
        self.ticks(1);
        let effects = self.take();
        let round = effects.iter().find_map(|effect| match effect {
            Effect::Confirm(round) => Some(*round),
            _ => None,
        });
        self.handle(Event::Confirmed(round.expect("a round")));
        let (number, op) = self.proposal();
        assert!(matches!(op, Op::ExpireLeases(_)), "{op:?}");
        number
    }
}
