//! What the log did to keys and leases, told by whoever applied it first.
//!
//! Whatever any member says of it later must be the same. What can be told
//! from the commands alone is worked out here a second time.

use std::collections::BTreeMap;

use bytes::Bytes;
use metastore::{
    lease::Question,
    machine::{AppliedBatch, RevisionChanges, command},
    proto::{
        Change, ExpireLeases, KeyRecord, LeaseRecord, LeaseRenewal, LeaseTime, Outcome,
        command::Op, outcome::Result as Is,
    },
};
use raft::eraftpb::{Entry, EntryType};

use super::{lives::Lives, plan::Time, sim::Tally};

/// The committed changes, and what follows from them.
pub struct Oracle {
    /// The last entry taken in.
    index: u64,
    pub revision: u64,
    pub compacted: u64,
    /// Every revision that changed anything; the first is revision 2.
    history: Vec<RevisionChanges>,
    keys: BTreeMap<Bytes, KeyRecord>,
    pub leases: BTreeMap<i64, LeaseRecord>,
    lives: Lives,
    /// When the keeper of each term first showed that a quorum follows it.
    reigns: BTreeMap<u64, Time>,
    pub tally: Tally,
}

impl Default for Oracle {
    fn default() -> Self {
        Self {
            // Where a founded cluster starts.
            index: 1,
            revision: 1,
            compacted: 0,
            history: Vec::new(),
            keys: BTreeMap::new(),
            leases: BTreeMap::new(),
            lives: Lives::default(),
            reigns: BTreeMap::new(),
            tally: Tally::default(),
        }
    }
}

impl Oracle {
    /// A member applied these entries.
    pub fn applied(&mut self, now: Time, entries: &[Entry], batch: &AppliedBatch) {
        self.check_known(&batch.changes.revisions);
        let last = batch.changes.revisions.last().map(|changes| changes.revision);
        assert!(last.is_none_or(|last| last == batch.changes.revision), "a batch ends early");
        let taken_in = self.index;
        let all = entries.iter().zip(&batch.entries);
        for (entry, applied) in all.filter(|(entry, _)| entry.index > taken_in) {
            assert_eq!((entry.index, self.index + 1), (applied.position.index, entry.index));
            self.index = entry.index;
            if entry.get_entry_type() != EntryType::EntryNormal || entry.data.is_empty() {
                continue;
            }
            let commands = command::decode_payload(&entry.data).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(commands.len(), applied.outcomes.len(), "each command has an outcome");
            for (command, (_, outcome)) in commands.iter().zip(&applied.outcomes) {
                let revisions = batch.changes.revisions.iter();
                let made = |changes: &&RevisionChanges| {
                    (self.revision + 1..=outcome.store_revision).contains(&changes.revision)
                };
                let made: Vec<_> = revisions.filter(made).cloned().collect();
                let op = command.op.as_ref().expect("decoded commands are complete");
                self.command(now, entry, op, outcome, made);
                assert_eq!(self.revision, outcome.store_revision, "no revision is left out");
            }
        }
        if self.index == batch.position.index {
            let changes = &batch.changes;
            assert_eq!((self.revision, self.compacted), (changes.revision, changes.compacted));
        }
    }

    /// What was told before is told again the same, and nothing is left out.
    fn check_known(&self, revisions: &[RevisionChanges]) {
        for pair in revisions.windows(2) {
            assert_eq!(pair[0].revision + 1, pair[1].revision, "a revision is left out");
        }
        for changes in revisions {
            if let Some(known) = self.history.get(changes.revision as usize - 2) {
                assert_eq!(known, changes, "two members changed different things");
            }
        }
    }

    fn command(
        &mut self,
        now: Time,
        entry: &Entry,
        op: &Op,
        outcome: &Outcome,
        made: Vec<RevisionChanges>,
    ) {
        let done = matches!(outcome.result, Some(Is::Done(_)));
        match op {
            Op::ExpireLeases(expire) => {
                let ended = self.expired(entry.term, expire);
                self.end_leases(now, &ended, &made, Some(entry.term));
            }
            Op::RevokeLease(revoke) => {
                assert_eq!(done, self.leases.contains_key(&revoke.id), "{revoke:?}: {outcome:?}");
                let ended = if done { vec![revoke.id] } else { vec![] };
                self.end_leases(now, &ended, &made, None);
            }
            _ => {
                assert!(made.len() <= 1, "{op:?} made more than one revision");
                self.check_effect(op, outcome, made.first());
            }
        }
        match op {
            Op::GrantLease(grant) => {
                let is_new = !self.leases.contains_key(&grant.id);
                assert_eq!(is_new, matches!(outcome.result, Some(Is::Lease(_))), "{outcome:?}");
                if is_new {
                    let (id, ttl_s) = (grant.id, grant.ttl_s);
                    let lease = LeaseRecord { id, ttl_s, remaining_s: ttl_s, renewal: entry.index };
                    self.leases.insert(id, lease);
                    self.lives.begin(now, id, ttl_s);
                    self.tally.add("leases granted", 1);
                }
            }
            Op::RenewLeases(renew) => {
                for id in &renew.ids {
                    if let Some(lease) = self.leases.get_mut(id) {
                        lease.remaining_s = lease.ttl_s;
                        lease.renewal = entry.index;
                        self.tally.add("leases renewed in the log", 1);
                    }
                }
            }
            Op::CheckpointLeases(checkpoint) if checkpoint.term == entry.term => {
                for seen in &checkpoint.leases {
                    if let Some(lease) = self.unrenewed(seen) {
                        lease.remaining_s = seen.remaining_s;
                        self.lives.written_down(now, seen.id, seen.remaining_s);
                        self.tally.add("leases checkpointed", 1);
                    }
                }
            }
            Op::Compact(compact) if done => {
                let goes_forward = compact.revision > self.compacted;
                // What was never compacted can be, to where nothing is.
                let is_nothing = compact.revision == 0 && self.compacted == 0;
                assert!(goes_forward || is_nothing, "{compact:?} after {}", self.compacted);
                self.compacted = compact.revision;
                self.tally.add("compactions", 1);
            }
            Op::Txn(_) if !made.is_empty() => self.tally.add("transactions that wrote", 1),
            _ => {}
        }
        made.into_iter().for_each(|changes| self.take_in(changes));
    }

    /// What a plain put or deletion did is what it says.
    fn check_effect(&self, op: &Op, outcome: &Outcome, made: Option<&RevisionChanges>) {
        let made = made.map_or(&[][..], |made| &made.changes);
        match (op, &outcome.result) {
            (Op::PutRequest(put), Some(Is::Put(_))) => {
                let [change] = made else { panic!("{put:?} made {made:?}") };
                let record = change.record.as_ref().expect("a put leaves a record");
                assert_eq!(change.key, put.key);
                assert!(put.ignore_value || record.value == put.value, "{put:?}: {record:?}");
                assert!(put.ignore_lease || record.lease == put.lease, "{put:?}: {record:?}");
            }
            (Op::DeleteRange(delete), Some(Is::DeleteRange(response))) => {
                let is_in = |key: &Bytes| match &delete.range_end[..] {
                    [] => *key == delete.key,
                    end => *key >= delete.key && key[..] < *end,
                };
                let doomed: Vec<&Bytes> = self.keys.keys().filter(|key| is_in(key)).collect();
                let gone: Vec<&Bytes> = made.iter().map(|change| &change.key).collect();
                assert_eq!((gone, response.deleted), (doomed.clone(), doomed.len() as i64));
                assert!(made.iter().all(|change| change.record.is_none()), "{delete:?}: {made:?}");
            }
            _ => {}
        }
    }

    fn unrenewed(&mut self, seen: &LeaseRenewal) -> Option<&mut LeaseRecord> {
        self.leases.get_mut(&seen.id).filter(|lease| lease.renewal == seen.renewal)
    }

    /// The leases that an expiry ends.
    fn expired(&mut self, term: u64, expire: &ExpireLeases) -> Vec<i64> {
        if expire.term != term {
            self.tally.add("expiries of another term", 1);
            return Vec::new();
        }
        let live = expire.leases.iter().filter(|seen| self.unrenewed(seen).is_some());
        live.map(|seen| seen.id).collect()
    }

    /// Leases end, and with each its keys: all of them in one revision.
    fn end_leases(
        &mut self,
        now: Time,
        ids: &[i64],
        made: &[RevisionChanges],
        expired: Option<u64>,
    ) {
        let mut expected = Vec::new();
        for id in ids {
            let keys = self.keys.iter().filter(|(_, record)| record.lease == *id);
            let keys: Vec<&Bytes> = keys.map(|(key, _)| key).collect();
            if !keys.is_empty() {
                expected.push(keys);
            }
            self.leases.remove(id);
            self.lives.end(now, *id, expired);
            let what = if expired.is_some() { "leases expired" } else { "leases revoked" };
            self.tally.add(what, 1);
        }
        let deleted: Vec<Vec<&Bytes>> = made
            .iter()
            .map(|changes| {
                let keys = changes.changes.iter();
                keys.filter(|change| change.record.is_none()).map(|change| &change.key).collect()
            })
            .collect();
        assert_eq!(deleted, expected, "leases {ids:?} take their keys with them");
    }

    /// The next revision.
    fn take_in(&mut self, changes: RevisionChanges) {
        assert_eq!(changes.revision, self.revision + 1, "revisions have no gaps");
        self.revision = changes.revision;
        for (sub, change) in changes.changes.iter().enumerate() {
            self.check_change(changes.revision, sub as u32, change);
            match &change.record {
                Some(record) => self.keys.insert(change.key.clone(), record.clone()),
                None => self.keys.remove(&change.key),
            };
        }
        assert!(!changes.changes.is_empty(), "a revision changes something");
        self.history.push(changes);
    }

    fn check_change(&self, revision: u64, sub: u32, change: &Change) {
        let before = self.keys.get(&change.key);
        assert_eq!(change.previous.as_ref(), before, "the state before {change:?}");
        let Some(record) = &change.record else {
            assert!(before.is_some(), "{change:?} deletes what is not there");
            return;
        };
        let (created, version) =
            before.map_or((revision, 1), |before| (before.create_revision, before.version + 1));
        let found = (record.create_revision, record.version, record.mod_revision, record.sub);
        assert_eq!(found, (created, version, revision, sub), "{change:?}");
        assert!(
            record.lease == 0 || self.leases.contains_key(&record.lease),
            "{change:?} is attached to a lease that does not exist"
        );
    }

    /// The changes after a revision, up to another.
    pub fn changes(&self, after: u64, upto: u64) -> impl Iterator<Item = &RevisionChanges> {
        let known = self.history.len();
        let first = (after.max(1) as usize - 1).min(known);
        let end = (upto.max(1).min(self.revision) as usize - 1).min(known).max(first);
        self.history[first..end].iter()
    }

    /// The keys as of a revision.
    pub fn keys_at(&self, revision: u64) -> BTreeMap<Bytes, KeyRecord> {
        let mut keys = BTreeMap::new();
        for change in self.changes(1, revision).flat_map(|changes| &changes.changes) {
            match &change.record {
                Some(record) => keys.insert(change.key.clone(), record.clone()),
                None => keys.remove(&change.key),
            };
        }
        keys
    }

    /// Whether nothing later than this entry is known.
    pub fn is_at(&self, index: u64) -> bool {
        self.index == index
    }

    /// The keeper of a term has had its leadership confirmed by now.
    pub fn reigns(&mut self, now: Time, term: u64) {
        self.reigns.entry(term).or_insert(now);
    }

    /// The leader of a term answered a question that had reached it at
    /// `arrived`. A tick of its clock lasts `tick`.
    pub fn answered(
        &mut self,
        (now, arrived): (Time, Time),
        (term, tick): (u64, Time),
        (id, question): (i64, Question),
        time: &LeaseTime,
    ) {
        self.reigns(now, term);
        let later = self.reigns.range(term + 1..).find(|(_, since)| **since < arrived);
        assert!(
            later.is_none(),
            "the leader of term {term} answers what it was asked at {arrived}, but {later:?} \
             had been confirmed"
        );
        if !time.exists {
            self.tally.add("leases said not to exist", 1);
            self.lives.said_absent(id, arrived);
        } else if question == Question::KeepAlive {
            self.tally.add("keep-alives answered", 1);
            self.lives.promised((now, arrived), (term, tick), id);
        } else {
            self.tally.add("times to live answered", 1);
            assert!(time.remaining_s <= time.granted_ttl_s, "{time:?} has more than its time");
        }
    }
}
