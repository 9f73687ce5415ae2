//! The leases as the leader knows them.

use std::collections::BTreeMap;

use super::{
    SLACK_TICKS,
    schedule::{NEVER, Schedule},
    time::Scale,
};
use crate::{
    machine::LeaseChange,
    proto::{LeaseRecord, LeaseRenewal, LeaseTime},
};

/// The longest a lease that is not renewed goes on before its remaining time
/// is written down, in seconds.
const CHECKPOINT_S: i64 = 60;

/// One lease.
#[derive(Debug)]
pub(super) struct Lease {
    /// As replicated.
    record: LeaseRecord,
    /// The tick at which its time is over.
    due: u64,
    /// The proposal in flight that names the present renewal.
    in_flight: Option<u64>,
    /// A proposal that names the present renewal had an unknown fate.
    in_doubt: bool,
    /// Its turns in the schedules; never later than they should be.
    expiry_turn: u64,
    checkpoint_turn: u64,
}

impl Lease {
    /// Whether the next leader, too, will give it its full time: then it can
    /// be renewed here and nowhere else.
    fn is_whole(&self) -> bool {
        let contested = self.in_flight.is_some() || self.in_doubt;
        let is_full = self.record.remaining_s >= self.record.ttl_s;
        (is_full || mutant!(RenewAfterCheckpoint)) && (!contested || mutant!(RenewDespiteExpiry))
    }

    fn expires_at(&self) -> u64 {
        self.due.saturating_add(SLACK_TICKS)
    }

    /// The tick at which its remaining time is to be written down.
    fn checkpoint_at(&self, scale: Scale) -> u64 {
        let LeaseRecord { ttl_s, remaining_s, .. } = self.record;
        let step = if remaining_s >= ttl_s {
            (scale.ticks(ttl_s) / 2).min(scale.ticks(CHECKPOINT_S)).max(scale.ticks(1))
        } else {
            scale.ticks((ttl_s / 8).clamp(1, CHECKPOINT_S))
        };
        let written_until = self.due.saturating_sub(scale.ticks(remaining_s));
        let at = written_until.saturating_add(step);
        if at < self.due { at } else { NEVER }
    }
}

/// All leases, each with a deadline.
#[derive(Debug)]
pub(super) struct Table {
    scale: Scale,
    leases: BTreeMap<i64, Lease>,
    expiries: Schedule,
    checkpoints: Schedule,
}

impl Table {
    pub fn new(scale: Scale) -> Self {
        let leases = BTreeMap::new();
        Self { scale, leases, expiries: Schedule::default(), checkpoints: Schedule::default() }
    }

    pub fn clear(&mut self) {
        self.leases.clear();
        self.expiries.clear();
        self.checkpoints.clear();
    }

    /// Takes over a reading of all leases. Those of the renewal that is known
    /// keep their deadline.
    pub fn load(&mut self, records: Vec<LeaseRecord>, now: u64) {
        let mut before: BTreeMap<i64, u64> =
            self.leases.iter().map(|(id, lease)| (*id, lease.record.renewal)).collect();
        for record in records {
            before.remove(&record.id);
            self.set(record, now);
        }
        for id in before.into_keys() {
            self.remove(id);
        }
    }

    pub fn change(&mut self, change: LeaseChange, now: u64) {
        match change {
            LeaseChange::Set(record) => self.set(record, now),
            LeaseChange::Gone(id) => self.remove(id),
        }
    }

    /// A lease is so now. What changes its renewal starts its clock; a
    /// checkpoint does not.
    fn set(&mut self, record: LeaseRecord, now: u64) {
        let id = record.id;
        let known = self.leases.get_mut(&id);
        if let Some(lease) = known
            && lease.record.renewal == record.renewal
        {
            lease.record = record;
        } else {
            let due = now.saturating_add(self.scale.ticks(record.remaining_s));
            self.remove(id);
            let lease = Lease {
                record,
                due,
                in_flight: None,
                in_doubt: false,
                expiry_turn: NEVER,
                checkpoint_turn: NEVER,
            };
            self.leases.insert(id, lease);
        }
        self.plan(id);
    }

    fn remove(&mut self, id: i64) {
        if let Some(mut lease) = self.leases.remove(&id) {
            self.expiries.put(&mut lease.expiry_turn, NEVER, id);
            self.checkpoints.put(&mut lease.checkpoint_turn, NEVER, id);
        }
    }

    /// Makes the lease's turns no later than they should be. One that is too
    /// early is put right when it comes.
    fn plan(&mut self, id: i64) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        let (expiry, checkpoint) = (lease.expires_at(), lease.checkpoint_at(self.scale));
        if expiry < lease.expiry_turn {
            self.expiries.put(&mut lease.expiry_turn, expiry, id);
        }
        if checkpoint < lease.checkpoint_turn {
            self.checkpoints.put(&mut lease.checkpoint_turn, checkpoint, id);
        }
    }

    /// Gives a lease its full time from now on, if that needs no entry in the
    /// log. False when it does; `None` when there is no such lease.
    pub fn renew(&mut self, id: i64, now: u64) -> Option<bool> {
        let lease = self.leases.get_mut(&id)?;
        if !lease.is_whole() {
            return Some(false);
        }
        let due = now.saturating_add(self.scale.ticks(lease.record.ttl_s));
        lease.due = due.max(lease.due);
        self.plan(id);
        Some(true)
    }

    /// The present renewal of a lease.
    pub fn renewal(&self, id: i64) -> Option<u64> {
        self.leases.get(&id).map(|lease| lease.record.renewal)
    }

    /// A lease right after its renewal.
    pub fn full_time(&self, id: i64) -> LeaseTime {
        self.leases.get(&id).map_or_else(LeaseTime::default, |lease| LeaseTime {
            exists: true,
            granted_ttl_s: lease.record.ttl_s,
            remaining_s: lease.record.ttl_s,
        })
    }

    /// A lease as of now.
    pub fn time_left(&self, id: i64, now: u64) -> LeaseTime {
        self.leases.get(&id).map_or_else(LeaseTime::default, |lease| LeaseTime {
            exists: true,
            granted_ttl_s: lease.record.ttl_s,
            remaining_s: self.scale.seconds(lease.due.saturating_sub(now)),
        })
    }

    /// Whether any lease should expire that is not `spared`.
    pub fn any_due(&mut self, now: u64, spared: impl Fn(i64) -> bool) -> bool {
        self.next_due(now, now, &spared).is_some()
    }

    /// Takes leases for a proposal to expire them: those whose time was over
    /// at the tick `by`, and that are not `spared`.
    pub fn take_due(
        &mut self,
        by: u64,
        now: u64,
        proposal: u64,
        limit: usize,
        spared: impl Fn(i64) -> bool,
    ) -> Vec<LeaseRenewal> {
        let mut taken = Vec::new();
        while taken.len() < limit
            && let Some(id) = self.next_due(by, now, &spared)
            && let Some(lease) = self.leases.get_mut(&id)
        {
            lease.in_flight = Some(proposal);
            self.expiries.put(&mut lease.expiry_turn, now + 1, id);
            taken.push(LeaseRenewal { id, renewal: lease.record.renewal, remaining_s: 0 });
        }
        taken
    }

    /// The first lease to expire. Puts the turns of those right that come
    /// before it and are not to expire now.
    fn next_due(&mut self, by: u64, now: u64, spared: &impl Fn(i64) -> bool) -> Option<i64> {
        while let Some(id) = self.expiries.first(now) {
            let lease = self.leases.get_mut(&id)?;
            let at = lease.expires_at();
            if at <= by && lease.in_flight.is_none() && !spared(id) {
                return Some(id);
            }
            self.expiries.put(&mut lease.expiry_turn, at.max(now + 1), id);
        }
        None
    }

    /// Takes leases for a proposal to write down how long they have left.
    pub fn take_checkpoints(
        &mut self,
        now: u64,
        proposal: u64,
        limit: usize,
        spared: impl Fn(i64) -> bool,
    ) -> Vec<LeaseRenewal> {
        let mut taken = Vec::new();
        while taken.len() < limit
            && let Some(id) = self.checkpoints.first(now)
            && let Some(lease) = self.leases.get_mut(&id)
        {
            let at = lease.checkpoint_at(self.scale);
            let remaining_s = self.scale.seconds_up(lease.due.saturating_sub(now)).max(1);
            let worth_it = remaining_s < lease.record.remaining_s && lease.due > now;
            let next = if at > now {
                at
            } else if lease.in_flight.is_some() || spared(id) || !worth_it {
                now + 1
            } else {
                lease.in_flight = Some(proposal);
                taken.push(LeaseRenewal { id, renewal: lease.record.renewal, remaining_s });
                now + 1
            };
            let next = if next < lease.expires_at() { next } else { NEVER };
            self.checkpoints.put(&mut lease.checkpoint_turn, next, id);
        }
        taken
    }

    /// A proposal that named these leases has met its fate, or may yet.
    pub fn settle(&mut self, proposal: u64, leases: &[LeaseRenewal], in_doubt: bool) {
        for LeaseRenewal { id, .. } in leases {
            if let Some(lease) = self.leases.get_mut(id)
                && lease.in_flight == Some(proposal)
            {
                lease.in_flight = None;
                lease.in_doubt |= in_doubt;
            }
        }
    }

    /// How many leases are known.
    pub fn leases(&self) -> usize {
        self.leases.len()
    }

    #[cfg(test)]
    pub fn len(&self) -> (usize, usize, usize) {
        (self.leases.len(), self.expiries.len(), self.checkpoints.len())
    }
}
