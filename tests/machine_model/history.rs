//! One history: the machine, the model, and a member that never forgets.

use std::collections::BTreeMap;

use bytes::Bytes;
use metastore::{
    machine::{AppliedBatch, LeaseChange, RevisionChanges, StateMachine, command},
    proto::{
        Change, Command, Founder, FoundingRecord, KeyRecord, LeaseRecord, Outcome, Put, Refused,
        RequestId,
        command::Op,
        etcdserverpb::{
            RangeRequest,
            range_request::{SortOrder, SortTarget},
        },
        mvccpb::KeyValue,
    },
    storage::{Engine, memory::MemoryEngine},
};
use proptest::prelude::*;
use raft::eraftpb::{Entry, EntryType};

use super::{
    Reads,
    actions::{Action, LEASES, place, place_range, place_txn},
    model::{Event, Model},
    store::Store,
};

type Checked = Result<(), TestCaseError>;

pub struct History<S: Store> {
    store: Option<S>,
    machine: StateMachine<S::Engine>,
    /// A member whose disk keeps everything.
    hoarder: StateMachine<MemoryEngine>,
    model: Model,
    term: u64,
    log: Vec<Entry>,
    /// What the entries of the log were answered.
    answers: Vec<Vec<Outcome>>,
}

fn founded<E: Engine>(engine: &E) -> StateMachine<E> {
    let founder = Founder { id: 1, peer_url: "n1".to_owned(), incarnation: 1 };
    StateMachine::bootstrap(engine, &FoundingRecord { founders: vec![founder] }).unwrap();
    StateMachine::open(engine.clone()).unwrap()
}

impl<S: Store> History<S> {
    pub fn new() -> Self {
        let store = S::new();
        Self {
            machine: founded(store.engine()),
            store: Some(store),
            hoarder: founded(&MemoryEngine::new()),
            model: Model::new(),
            term: 1,
            log: Vec::new(),
            answers: Vec::new(),
        }
    }

    pub fn act(&mut self, action: &Action, reads: &Reads) -> Checked {
        match action {
            Action::Apply(entries) => self.apply(entries)?,
            Action::Burst(key, times) => {
                let put = |n| {
                    let (key, value) = (key.clone(), Bytes::from(vec![n]));
                    vec![Op::Put(Put { key, value, ..Put::default() })]
                };
                self.apply(&(0..*times).map(put).collect::<Vec<_>>())?;
            }
            Action::NewTerm => self.term += 1,
            Action::Flush => self.machine.flush().unwrap(),
            Action::Forget => self.store().forget(),
            Action::Restart => self.reopen(S::restart)?,
            Action::Crash => self.reopen(S::crash)?,
            Action::Check => self.check(reads)?,
        }
        Ok(())
    }

    fn store(&self) -> &S {
        self.store.as_ref().unwrap()
    }

    fn apply(&mut self, entries: &[Vec<Op>]) -> Checked {
        let (known, leases) = (self.model.revision(), self.model.leases.clone());
        let first = self.log.len();
        for ops in entries {
            let mut answers = Vec::new();
            let mut commands = Vec::new();
            for op in ops {
                let mut op = op.clone();
                place(&mut op, self.model.revision());
                self.name_renewals(&mut op);
                // The founding is index 1.
                let index = self.log.len() as u64 + 2;
                answers.push(self.model.apply(&op, index, self.term));
                let id = RequestId { member: 1, nonce: 1, sequence: 1 };
                commands.push(Command { id: Some(id), op: Some(op) });
            }
            let mut entry = Entry::default();
            entry.set_entry_type(EntryType::EntryNormal);
            entry.set_index(self.log.len() as u64 + 2);
            entry.set_term(self.term);
            entry.set_data(command::encode_payload(commands).into());
            self.log.push(entry);
            self.answers.push(answers);
        }
        let batch = self.machine.apply(&self.log[first..]).unwrap();
        self.check_batch(first, &batch)?;
        self.check_changes(known, leases, &batch)?;
        self.hoarder.apply(&self.log[first..]).unwrap();
        Ok(())
    }

    /// Gives a renewal of 0 the number of the newest one; others stay, and name
    /// one of the past.
    fn name_renewals(&self, op: &mut Op) {
        let seen = match op {
            Op::ExpireLeases(expire) => &mut expire.leases,
            Op::CheckpointLeases(checkpoint) => &mut checkpoint.leases,
            _ => return,
        };
        for seen in seen.iter_mut().filter(|seen| seen.renewal == 0) {
            let lease = self.model.leases.get(&seen.id);
            seen.renewal = lease.map_or(0, |lease| lease.renewal);
        }
    }

    /// Ends the machine and starts it on what its disk then holds; the log
    /// brings back what is missing, with the same answers.
    fn reopen(&mut self, change: impl FnOnce(S) -> S) -> Checked {
        // The engine closes with its last clone.
        let elsewhere = S::new();
        self.machine = founded(elsewhere.engine());
        let store = change(self.store.take().unwrap());
        self.machine = StateMachine::open(store.engine().clone()).unwrap();
        self.store = Some(store);
        let first = self.machine.position().index as usize - 1;
        let batch = self.machine.apply(&self.log[first..]).unwrap();
        self.check_batch(first, &batch)
    }

    fn check_batch(&self, first: usize, batch: &AppliedBatch) -> Checked {
        for (applied, expected) in batch.entries.iter().zip(&self.answers[first..]) {
            let found: Vec<_> = applied.outcomes.iter().map(|(_, outcome)| outcome).collect();
            prop_assert_eq!(found, expected.iter().collect::<Vec<_>>());
        }
        prop_assert_eq!(batch.entries.len(), self.answers.len() - first);
        Ok(())
    }

    fn check_changes(
        &self,
        known: u64,
        mut leases: BTreeMap<i64, LeaseRecord>,
        batch: &AppliedBatch,
    ) -> Checked {
        let changes = &batch.changes;
        prop_assert_eq!(changes.revision, self.model.revision());
        prop_assert_eq!(changes.compacted, self.model.compacted);
        self.check_revisions(known + 1, &changes.revisions)?;
        for change in &changes.leases {
            match change {
                LeaseChange::Set(lease) => leases.insert(lease.id, *lease),
                LeaseChange::Gone(id) => leases.remove(id),
            };
        }
        prop_assert_eq!(&leases, &self.model.leases);
        Ok(())
    }

    /// Whether these are all revisions from one on.
    fn check_revisions(&self, from: u64, found: &[RevisionChanges]) -> Checked {
        let from = (from as usize).min(self.model.events.len()).max(2);
        let numbers: Vec<_> = found.iter().map(|changes| changes.revision as usize).collect();
        prop_assert_eq!(numbers, (from..self.model.events.len()).collect::<Vec<_>>());
        for (found, expected) in found.iter().zip(&self.model.events[from..]) {
            let found: Vec<_> = found.changes.iter().map(event).collect();
            prop_assert_eq!(&found, expected);
        }
        Ok(())
    }

    pub fn check(&self, reads: &Reads) -> Checked {
        let (view, model) = (self.machine.view(), &self.model);
        prop_assert_eq!(view.revision().unwrap(), model.revision());
        prop_assert_eq!(view.compacted().unwrap(), model.compacted);
        prop_assert_eq!(view.alarms().unwrap(), model.raised());
        let leases: Vec<_> = model.leases.values().copied().collect();
        prop_assert_eq!(view.leases().unwrap(), leases);
        for id in LEASES {
            prop_assert_eq!(view.lease(id).unwrap(), model.leases.get(&id).copied());
            prop_assert_eq!(view.lease_keys(id).unwrap(), model.lease_keys(id));
        }
        for range in &reads.ranges {
            let mut range = range.clone();
            place_range(&mut range, model.revision());
            prop_assert_eq!(view.range(&range, u64::MAX).unwrap(), model.range(&range));
            self.check_stream(&range)?;
        }
        for txn in &reads.txns {
            let mut txn = txn.clone();
            place_txn(&mut txn, model.revision());
            prop_assert_eq!(view.txn(&txn, u64::MAX).unwrap(), model.read_txn(&txn));
        }
        self.check_every_revision(reads)?;
        prop_assert_eq!(view.hash().unwrap(), self.hoarder.view().hash().unwrap());
        Ok(())
    }

    fn check_every_revision(&self, reads: &Reads) -> Checked {
        let (view, model) = (self.machine.view(), &self.model);
        for revision in 0..=model.revision() + 1 {
            let everything = RangeRequest {
                range_end: Bytes::from_static(b"\0"),
                revision: revision as i64,
                ..RangeRequest::default()
            };
            let found = view.range(&everything, u64::MAX).unwrap();
            prop_assert_eq!(found, model.range(&everything));
            let hash = view.hash_kv(revision).unwrap();
            prop_assert_eq!(hash, self.hoarder.view().hash_kv(revision).unwrap());
            prop_assert_eq!(hash.err(), model.range(&everything).err());
        }
        for from in 0..=model.revision() + 2 {
            self.check_pages(from, reads.page_bytes)?;
        }
        Ok(())
    }

    fn check_pages(&self, from: u64, page_bytes: usize) -> Checked {
        let (view, model) = (self.machine.view(), &self.model);
        let (mut next, mut revisions) = (from, Vec::new());
        loop {
            let page = match view.changes(next, page_bytes).unwrap() {
                Ok(page) => page,
                Err(refused) => {
                    prop_assert_eq!(refused, Refused::Compacted);
                    prop_assert!(from < model.compacted);
                    return Ok(());
                }
            };
            prop_assert!(from >= model.compacted);
            prop_assert_eq!((page.revision, page.compacted), (model.revision(), model.compacted));
            revisions.extend(page.revisions.clone());
            if page.next > model.revision() {
                break;
            }
            prop_assert_eq!(page.revisions.last().unwrap().revision + 1, page.next);
            next = page.next;
        }
        self.check_revisions(from, &revisions)
    }

    /// A stream gives what a range in key order gives.
    fn check_stream(&self, range: &RangeRequest) -> Checked {
        let mut range = range.clone();
        range.set_sort_order(SortOrder::None);
        range.set_sort_target(SortTarget::Key);
        let mut kvs = Vec::new();
        let streamed = self.machine.view().stream(&range, &mut |kv| {
            kvs.push(kv);
            true
        });
        match (streamed.unwrap(), self.model.range(&range)) {
            (Ok(streamed), Ok(expected)) => {
                prop_assert_eq!(kvs, expected.kvs);
                prop_assert_eq!(streamed.count as i64, expected.count);
                prop_assert_eq!(streamed.more, expected.more);
                prop_assert_eq!(streamed.revision, self.model.revision());
            }
            (streamed, expected) => prop_assert_eq!(streamed.err(), expected.err()),
        }
        Ok(())
    }
}

fn event(change: &Change) -> Event {
    let kv = |record: &Option<KeyRecord>| {
        record.as_ref().map(|record| KeyValue {
            key: change.key.clone(),
            create_revision: record.create_revision as i64,
            mod_revision: record.mod_revision as i64,
            version: record.version as i64,
            value: record.value.clone(),
            lease: record.lease,
        })
    };
    Event { key: change.key.clone(), before: kv(&change.previous), after: kv(&change.record) }
}
