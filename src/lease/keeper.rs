//! The keeper: what it does in which order.

use std::{collections::BTreeMap, time::Duration};

use super::{
    EXPIRED_PER_SECOND, Effect, Event, Fate, MAX_BATCH, Question, Reply,
    requests::{Asked, Requests, Round},
    table::Table,
    time::Scale,
};
use crate::{
    error::Rejected,
    proto::{CheckpointLeases, ExpireLeases, LeaseRenewal, LeaseTime, RenewLeases, command::Op},
};

/// What a keeper needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// The length of a tick.
    pub tick: Duration,
    /// Ticks in an election timeout, at least 1.
    pub election_ticks: u64,
}

/// How far the keeper of a leader has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// This member does not lead, or nothing was begun yet.
    Idle,
    /// A round of this term, by its number, is to be confirmed first.
    Opening(u64),
    /// All leases are being read, under this number.
    Loading(u64),
    /// The clocks run.
    Active,
}

/// Renewals in the log under way.
#[derive(Debug)]
struct Renewing {
    proposal: u64,
    /// By lease, the renewal it had, and who waits for another.
    leases: BTreeMap<i64, (Option<u64>, Vec<Asked>)>,
}

/// A proposal that names leases and their renewals.
#[derive(Debug)]
struct Naming {
    proposal: u64,
    leases: Vec<LeaseRenewal>,
}

/// The leader's clock of every lease; see the module.
#[derive(Debug)]
pub struct Keeper {
    scale: Scale,
    election_ticks: u64,
    /// Ticks so far.
    now: u64,
    /// The term in which this member leads.
    term: Option<u64>,
    phase: Phase,
    /// The index that the leases were read at.
    loaded: u64,
    table: Table,
    requests: Requests,
    /// The number of the last round or proposal.
    last_number: u64,
    // One of each kind in flight, so that the log sets the pace.
    renewing: Option<Renewing>,
    expiring: Option<Naming>,
    checkpointing: Option<Naming>,
    /// Nothing that failed is tried again before this tick.
    retry_at: u64,
    /// The tick of the last checkpoint.
    checkpointed_at: u64,
    /// Leases that may still be proposed for expiry in this tick.
    expiry_budget: u64,
    /// Nothing is expired before this tick, after a round that took long.
    grace_until: u64,
    /// Such a grace was given, and no round has been quick since.
    grace_given: bool,
}

impl Keeper {
    /// A keeper of a member that does not lead.
    pub fn new(options: &Options) -> Self {
        let scale = Scale::new(options.tick);
        Self {
            scale,
            election_ticks: options.election_ticks.max(1),
            now: 0,
            term: None,
            phase: Phase::Idle,
            loaded: 0,
            table: Table::new(scale),
            requests: Requests::default(),
            last_number: 0,
            renewing: None,
            expiring: None,
            checkpointing: None,
            retry_at: 0,
            checkpointed_at: 0,
            expiry_budget: 0,
            grace_until: 0,
            grace_given: false,
        }
    }

    /// Takes one event in. What follows from it may wait for
    /// [`Keeper::flush`].
    pub fn handle(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Tick => {
                self.now += 1;
                self.expiry_budget = self.scale.share(EXPIRED_PER_SECOND);
            }
            Event::Leads(term) => self.leads(term, effects),
            Event::Ask { ticket, id, question } => {
                self.ask(Asked { ticket, id, question }, effects);
            }
            Event::Confirmed(round) => self.confirmed(round, effects),
            Event::Unconfirmed(round, why) => self.unconfirmed(round, &why, effects),
            Event::Loaded { load, index, leases } => {
                if self.phase == Phase::Loading(load) {
                    self.table.load(leases, self.now);
                    self.loaded = index;
                    self.phase = Phase::Active;
                }
            }
            Event::Applied { index, changes } => {
                if self.phase == Phase::Active && index > self.loaded {
                    for change in changes {
                        self.table.change(change, self.now);
                    }
                }
            }
            Event::Lost => {
                if matches!(self.phase, Phase::Active | Phase::Loading(_)) {
                    self.load(effects);
                }
            }
            Event::Resolved(proposal, fate) => self.resolved(proposal, fate, effects),
        }
    }

    /// Carries on after a run of events: begins rounds and proposes what is
    /// due. What arrives together shares them.
    pub fn flush(&mut self, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Idle => self.open(effects),
            Phase::Active => {
                self.begin_round(effects);
                self.propose_renewals(effects);
                self.propose_checkpoint(effects);
            }
            Phase::Opening(_) | Phase::Loading(_) => {}
        }
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Another term or role: whatever was under way belongs to the former one.
    fn leads(&mut self, term: Option<u64>, effects: &mut Vec<Effect>) {
        if term == self.term {
            return;
        }
        self.term = term;
        self.phase = Phase::Idle;
        if !mutant!(KeepFormerClocks) {
            self.table.clear();
        }
        self.expiring = None;
        self.checkpointing = None;
        self.grace_until = 0;
        self.grace_given = false;
        self.retry_at = self.now;
        let mut asked = self.requests.drain();
        let renewing = self.renewing.take().map(|renewing| renewing.leases).unwrap_or_default();
        asked.extend(renewing.into_values().flat_map(|(_, asked)| asked));
        for asked in asked {
            self.requests.answer(asked, Reply::NotLeader, effects);
        }
    }

    fn ask(&mut self, asked: Asked, effects: &mut Vec<Effect>) {
        let reply = if self.term.is_none() {
            Reply::NotLeader
        } else if mutant!(KeepAliveWithoutRound)
            && self.phase == Phase::Active
            && asked.question == Question::KeepAlive
            && self.table.renew(asked.id, self.now) == Some(true)
        {
            Reply::Lease(self.table.full_time(asked.id))
        } else if self.requests.push(asked) {
            return;
        } else {
            let why = "too many leases are being renewed; try again later".to_owned();
            Reply::Rejected(Rejected::Overloaded(why))
        };
        effects.push(Effect::Reply(asked.ticket, reply));
    }

    /// Begins the round after which the clocks of a new term may start.
    fn open(&mut self, effects: &mut Vec<Effect>) {
        if self.term.is_some() && self.now >= self.retry_at {
            let round = self.next_number();
            self.phase = Phase::Opening(round);
            effects.push(Effect::Confirm(round));
        }
    }

    fn load(&mut self, effects: &mut Vec<Effect>) {
        let load = self.next_number();
        self.phase = Phase::Loading(load);
        effects.push(Effect::Load(load));
    }

    fn confirmed(&mut self, number: u64, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Opening(number) {
            return self.load(effects);
        }
        let Some(round) = self.requests.take_round(number) else { return };
        if self.phase != Phase::Active {
            self.requests.queue_again(round.asked);
            return;
        }
        let Round { begun, asked, for_expiry } = round;
        for asked in asked {
            self.serve(asked, effects);
        }
        if for_expiry {
            self.expire(begun, effects);
        }
    }

    fn unconfirmed(&mut self, number: u64, why: &Rejected, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Opening(number) {
            self.phase = Phase::Idle;
            self.retry_at = self.now + 1;
        } else if let Some(round) = self.requests.take_round(number) {
            self.retry_at = self.now + 1;
            for asked in round.asked {
                self.requests.answer(asked, Reply::Rejected(why.clone()), effects);
            }
        }
    }

    /// Answers a confirmed question, or has the lease renewed in the log first.
    fn serve(&mut self, asked: Asked, effects: &mut Vec<Effect>) {
        let time = match asked.question {
            Question::TimeToLive => self.table.time_left(asked.id, self.now),
            Question::KeepAlive => match self.table.renew(asked.id, self.now) {
                Some(true) => self.table.full_time(asked.id),
                Some(false) => return self.requests.needs_log(asked),
                None => LeaseTime::default(),
            },
        };
        self.requests.answer(asked, Reply::Lease(time), effects);
    }

    /// Begins a round for the questions that wait, or for the leases that are
    /// to expire.
    fn begin_round(&mut self, effects: &mut Vec<Effect>) {
        let for_expiry = self.may_expire() && {
            let requests = &self.requests;
            self.table.any_due(self.now, |id| requests.is_asked_to_renew(id))
        };
        if self.requests.wants_round() || (for_expiry && self.requests.may_begin()) {
            let round = self.next_number();
            self.requests.begin(round, self.now, for_expiry);
            effects.push(Effect::Confirm(round));
        }
    }

    fn may_expire(&self) -> bool {
        self.expiring.is_none()
            && !self.requests.has_round_for_expiry()
            && self.expiry_budget > 0
            && self.now >= self.grace_until.max(self.retry_at)
    }

    /// A round that began at the tick `begun` was confirmed: what was due then
    /// may expire, unless the quorum was away for a while.
    fn expire(&mut self, begun: u64, effects: &mut Vec<Effect>) {
        let Some(term) = self.term else { return };
        let took = self.now - begun;
        let slow = took > self.election_ticks / 2;
        if slow && !self.grace_given {
            self.grace_given = true;
            self.grace_until = self.now + took;
            return;
        }
        self.grace_given = slow;
        let proposal = self.next_number();
        let limit = self.expiry_budget.min(MAX_BATCH as u64) as usize;
        let requests = &self.requests;
        let spared = |id| requests.is_asked_to_renew(id);
        let leases = self.table.take_due(begun, self.now, proposal, limit, spared);
        if leases.is_empty() {
            return;
        }
        self.expiry_budget -= leases.len() as u64;
        let op = Op::ExpireLeases(ExpireLeases { term, leases: leases.clone() });
        self.expiring = Some(Naming { proposal, leases });
        effects.push(Effect::Propose(proposal, op));
    }

    /// Has leases renewed in the log for the keep-alives that wait for it.
    fn propose_renewals(&mut self, effects: &mut Vec<Effect>) {
        if self.renewing.is_some() || !self.requests.has_to_renew() {
            return;
        }
        let proposal = self.next_number();
        let asked = self.requests.take_to_renew(MAX_BATCH);
        let ids = asked.keys().copied().collect();
        let leases =
            asked.into_iter().map(|(id, asked)| (id, (self.table.renewal(id), asked))).collect();
        self.renewing = Some(Renewing { proposal, leases });
        effects.push(Effect::Propose(proposal, Op::RenewLeases(RenewLeases { ids })));
    }

    /// Has written down how long leases have left that were not renewed for a
    /// while: one batch a tick.
    fn propose_checkpoint(&mut self, effects: &mut Vec<Effect>) {
        let Some(term) = self.term else { return };
        let rested = self.now > self.checkpointed_at && self.now >= self.retry_at;
        if self.checkpointing.is_some() || !rested {
            return;
        }
        let proposal = self.next_number();
        let requests = &self.requests;
        let spared = |id| requests.is_asked_to_renew(id);
        let leases = self.table.take_checkpoints(self.now, proposal, MAX_BATCH, spared);
        if leases.is_empty() {
            return;
        }
        self.checkpointed_at = self.now;
        let op = Op::CheckpointLeases(CheckpointLeases { term, leases: leases.clone() });
        self.checkpointing = Some(Naming { proposal, leases });
        effects.push(Effect::Propose(proposal, op));
    }

    fn resolved(&mut self, proposal: u64, fate: Fate, effects: &mut Vec<Effect>) {
        if fate != Fate::Applied {
            self.retry_at = self.now + 1;
        }
        for slot in [&mut self.expiring, &mut self.checkpointing] {
            if let Some(naming) = slot.take_if(|naming| naming.proposal == proposal) {
                self.table.settle(proposal, &naming.leases, fate == Fate::Unknown);
                return;
            }
        }
        let Some(renewing) = self.renewing.take_if(|renewing| renewing.proposal == proposal) else {
            return;
        };
        for (id, (before, asked)) in renewing.leases {
            // The answer promises full time from now on.
            self.table.renew(id, self.now);
            for asked in asked {
                let reply = self.renewed(id, before, fate);
                self.requests.answer(asked, reply, effects);
            }
        }
    }

    /// What a keep-alive is told after a renewal in the log was tried.
    fn renewed(&self, id: i64, before: Option<u64>, fate: Fate) -> Reply {
        let now = self.table.renewal(id);
        match fate {
            // A change that is still to be read may be the one.
            Fate::Applied if self.phase != Phase::Active => Reply::Rejected(unknown_renewal()),
            Fate::Applied if now.is_none() || now != before => {
                Reply::Lease(self.table.full_time(id))
            }
            Fate::Applied | Fate::Unknown => Reply::Rejected(unknown_renewal()),
            Fate::NotApplied => {
                let why = "the lease could not be renewed now; try again later".to_owned();
                Reply::Rejected(Rejected::Overloaded(why))
            }
        }
    }

    /// Leases whose time is counted; none while this member does not lead.
    pub fn leases(&self) -> usize {
        self.table.leases()
    }

    #[cfg(test)]
    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    #[cfg(test)]
    pub(super) fn requests(&self) -> &Requests {
        &self.requests
    }
}

fn unknown_renewal() -> Rejected {
    Rejected::Unknown("the lease may or may not have been renewed; try again".to_owned())
}
