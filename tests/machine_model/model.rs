//! A store simple enough to be right: every revision is a whole map.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use metastore::proto::{
    Alarms, CheckpointLeases, Condition, ExpireLeases, LeaseRecord, Outcome, Refused, Unit,
    command::Op,
    etcdserverpb::{
        AlarmMember, Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
        RangeRequest, RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest,
        TxnResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        range_request::{SortOrder, SortTarget},
        request_op::Request,
        response_op::Response,
    },
    mvccpb::KeyValue,
    outcome::Result as Is,
};

pub type Keys = BTreeMap<Bytes, KeyValue>;

/// A key before and after a change.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub key: Bytes,
    pub before: Option<KeyValue>,
    pub after: Option<KeyValue>,
}

#[derive(Debug, Clone)]
pub struct Model {
    /// The keys at each revision; those before 1 are never looked at.
    pub states: Vec<Keys>,
    /// What led to each revision.
    pub events: Vec<Vec<Event>>,
    pub compacted: u64,
    pub leases: BTreeMap<i64, LeaseRecord>,
    pub alarms: BTreeSet<(u64, i32)>,
    /// The log entry that is being carried out.
    index: u64,
}

/// A revision in the making.
struct Draft {
    begun: u64,
    keys: Keys,
    events: Vec<Event>,
}

impl Draft {
    fn revision(&self) -> u64 {
        self.begun + u64::from(!self.events.is_empty())
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision: self.revision() as i64, ..Default::default() })
    }

    fn set(&mut self, key: &Bytes, value: &Bytes, lease: i64) {
        let before = self.keys.get(key).cloned();
        let mod_revision = self.begun as i64 + 1;
        let after = KeyValue {
            key: key.clone(),
            create_revision: before.as_ref().map_or(mod_revision, |kv| kv.create_revision),
            mod_revision,
            version: before.as_ref().map_or(1, |kv| kv.version + 1),
            value: value.clone(),
            lease,
        };
        self.keys.insert(key.clone(), after.clone());
        self.events.push(Event { key: key.clone(), before, after: Some(after) });
    }

    fn remove(&mut self, key: &Bytes) {
        let before = self.keys.remove(key);
        self.events.push(Event { key: key.clone(), before, after: None });
    }
}

fn in_range(key: &Bytes, from: &Bytes, end: &Bytes) -> bool {
    if end.is_empty() {
        key == from
    } else if end[..] == [0] {
        key >= from
    } else {
        key >= from && key < end
    }
}

fn within(keys: &Keys, from: &Bytes, end: &Bytes) -> Vec<KeyValue> {
    keys.values().filter(|kv| in_range(&kv.key, from, end)).cloned().collect()
}

impl Model {
    pub fn new() -> Self {
        Self {
            states: vec![Keys::new(); 2],
            events: vec![Vec::new(); 2],
            compacted: 0,
            leases: BTreeMap::new(),
            alarms: BTreeSet::new(),
            index: 0,
        }
    }

    pub fn revision(&self) -> u64 {
        self.states.len() as u64 - 1
    }

    fn draft(&self) -> Draft {
        let keys = self.states.last().unwrap().clone();
        Draft { begun: self.revision(), keys, events: Vec::new() }
    }

    fn commit(&mut self, draft: Draft) {
        if !draft.events.is_empty() {
            self.states.push(draft.keys);
            self.events.push(draft.events);
        }
    }

    /// Carries out a command of the log entry at this index, of this term.
    pub fn apply(&mut self, op: &Op, index: u64, term: u64) -> Outcome {
        self.index = index;
        let mut draft = self.draft();
        let result = match self.try_apply(op, term, &mut draft) {
            Ok(result) => {
                self.commit(draft);
                result
            }
            Err(refused) => Is::Refused(refused.into()),
        };
        Outcome { result: Some(result), store_revision: self.revision(), ..Outcome::default() }
    }

    fn try_apply(&mut self, op: &Op, term: u64, draft: &mut Draft) -> Result<Is, Refused> {
        let full = self.alarms.iter().any(|(_, alarm)| *alarm == 1);
        let space = if full { Err(Refused::NoSpace) } else { Ok(()) };
        Ok(match op {
            Op::Put(put) => {
                space?;
                if let Some(failed) = unmet(draft, &put.key, put.condition.as_ref()) {
                    return Ok(failed);
                }
                if put.grant_ttl_s != 0 {
                    self.grant(put.lease, put.grant_ttl_s)?;
                }
                self.must_exist(put.lease)?;
                draft.set(&put.key, &put.value, put.lease);
                Is::Revision(draft.revision())
            }
            Op::Delete(delete) => {
                if let Some(failed) = unmet(draft, &delete.key, delete.condition.as_ref()) {
                    return Ok(failed);
                }
                if !draft.keys.contains_key(&delete.key) {
                    return Ok(Is::KeyNotFound(Unit {}));
                }
                draft.remove(&delete.key);
                Is::Revision(draft.revision())
            }
            Op::PutRequest(put) => {
                space?;
                Is::Put(self.put(draft, put)?)
            }
            Op::DeleteRange(delete) => Is::DeleteRange(delete_range(draft, delete)),
            Op::Txn(txn) => {
                if may_put(txn) {
                    space?;
                }
                Is::Txn(self.txn(draft, txn)?)
            }
            Op::Compact(compact) => {
                let revision = compact.revision;
                if revision > self.revision() {
                    return Err(Refused::FutureRevision);
                }
                if revision <= self.compacted && self.compacted > 0 {
                    return Err(Refused::Compacted);
                }
                self.compacted = revision;
                Is::Done(Unit {})
            }
            Op::GrantLease(_) => {
                space?;
                self.lease_op(op, term, draft)?
            }
            Op::SetAlarm(set) => {
                let alarm = (set.member, set.alarm);
                let changed = if set.active {
                    [1, 2].contains(&set.alarm) && self.alarms.insert(alarm)
                } else {
                    self.alarms.remove(&alarm)
                };
                let given = AlarmMember { member_id: set.member, alarm: set.alarm };
                Is::Alarms(Alarms { alarms: changed.then_some(given).into_iter().collect() })
            }
            op => self.lease_op(op, term, draft)?,
        })
    }

    fn lease_op(&mut self, op: &Op, term: u64, draft: &mut Draft) -> Result<Is, Refused> {
        Ok(match op {
            Op::GrantLease(grant) => Is::Lease(self.grant(grant.id, grant.ttl_s)?),
            Op::RevokeLease(revoke) => {
                if !self.leases.contains_key(&revoke.id) {
                    return Err(Refused::LeaseNotFound);
                }
                self.end_lease(revoke.id, draft);
                Is::Done(Unit {})
            }
            Op::ExpireLeases(expire) => {
                self.expire(expire, term);
                *draft = self.draft();
                Is::Done(Unit {})
            }
            Op::RenewLeases(renew) => {
                for id in &renew.ids {
                    if let Some(lease) = self.leases.get_mut(id) {
                        lease.remaining_s = lease.ttl_s;
                        lease.renewal = self.index;
                    }
                }
                Is::Done(Unit {})
            }
            Op::CheckpointLeases(checkpoint) => {
                self.checkpoint(checkpoint, term);
                Is::Done(Unit {})
            }
            other => panic!("not a command of this test: {other:?}"),
        })
    }

    pub fn raised(&self) -> Alarms {
        let raised = |&(member_id, alarm): &(u64, i32)| AlarmMember { member_id, alarm };
        Alarms { alarms: self.alarms.iter().map(raised).collect() }
    }

    fn must_exist(&self, lease: i64) -> Result<(), Refused> {
        if lease == 0 || self.leases.contains_key(&lease) {
            Ok(())
        } else {
            Err(Refused::LeaseNotFound)
        }
    }

    fn grant(&mut self, id: i64, ttl_s: i64) -> Result<LeaseRecord, Refused> {
        if id == 0 || ttl_s <= 0 {
            return Err(Refused::InvalidOperation);
        }
        if self.leases.contains_key(&id) {
            return Err(Refused::LeaseExists);
        }
        let lease = LeaseRecord { id, ttl_s, remaining_s: ttl_s, renewal: self.index };
        self.leases.insert(id, lease);
        Ok(lease)
    }

    fn end_lease(&mut self, id: i64, draft: &mut Draft) {
        self.leases.remove(&id);
        for key in attached(&draft.keys, id) {
            draft.remove(&key);
        }
    }

    fn expire(&mut self, expire: &ExpireLeases, term: u64) {
        for seen in &expire.leases {
            let renewal = self.leases.get(&seen.id).map(|lease| lease.renewal);
            if expire.term == term && renewal == Some(seen.renewal) {
                let mut draft = self.draft();
                self.end_lease(seen.id, &mut draft);
                self.commit(draft);
            }
        }
    }

    fn checkpoint(&mut self, checkpoint: &CheckpointLeases, term: u64) {
        for seen in &checkpoint.leases {
            if let Some(lease) = self.leases.get_mut(&seen.id)
                && checkpoint.term == term
                && lease.renewal == seen.renewal
            {
                lease.remaining_s = seen.remaining_s.min(lease.ttl_s).max(0);
            }
        }
    }

    fn put(&self, draft: &mut Draft, put: &PutRequest) -> Result<PutResponse, Refused> {
        self.must_exist(put.lease)?;
        let before = draft.keys.get(&put.key).cloned();
        if before.is_none() && (put.ignore_value || put.ignore_lease) {
            return Err(Refused::KeyNotFound);
        }
        let kept = before.clone().unwrap_or_default();
        let value = if put.ignore_value { kept.value } else { put.value.clone() };
        let lease = if put.ignore_lease { kept.lease } else { put.lease };
        draft.set(&put.key, &value, lease);
        let prev_kv = before.filter(|_| put.prev_kv);
        Ok(PutResponse { header: draft.header(), prev_kv })
    }

    fn txn(&self, draft: &mut Draft, txn: &TxnRequest) -> Result<TxnResponse, Refused> {
        let mut path = Vec::new();
        choose(draft, txn, &mut path)?;
        self.check(draft, txn, &mut path.iter(), true)?;
        self.check(draft, txn, &mut path.iter(), false)?;
        self.carry_out(draft, txn, &mut path.iter())
    }

    /// Checks the puts, or the ranges, of what was chosen.
    fn check(
        &self,
        draft: &Draft,
        txn: &TxnRequest,
        path: &mut std::slice::Iter<'_, bool>,
        puts: bool,
    ) -> Result<(), Refused> {
        let branch = if *path.next().unwrap() { &txn.success } else { &txn.failure };
        for op in branch {
            match op.request.as_ref().unwrap() {
                Request::RequestTxn(txn) => self.check(draft, txn, path, puts)?,
                Request::RequestPut(put) if puts => {
                    self.must_exist(put.lease)?;
                    let absent = !draft.keys.contains_key(&put.key);
                    if absent && (put.ignore_lease || put.ignore_value) {
                        return Err(Refused::KeyNotFound);
                    }
                }
                Request::RequestRange(range) if !puts => {
                    self.check_revision(range.revision, self.revision())?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn carry_out(
        &self,
        draft: &mut Draft,
        txn: &TxnRequest,
        path: &mut std::slice::Iter<'_, bool>,
    ) -> Result<TxnResponse, Refused> {
        let succeeded = *path.next().unwrap();
        let branch = if succeeded { &txn.success } else { &txn.failure };
        let mut responses = Vec::new();
        for op in branch {
            let response = match op.request.as_ref().unwrap() {
                Request::RequestTxn(txn) => {
                    let header = Some(ResponseHeader::default());
                    let response = self.carry_out(draft, txn, path)?;
                    Response::ResponseTxn(TxnResponse { header, ..response })
                }
                Request::RequestPut(put) => Response::ResponsePut(self.put(draft, put)?),
                Request::RequestDeleteRange(delete) => {
                    Response::ResponseDeleteRange(delete_range(draft, delete))
                }
                Request::RequestRange(range) => {
                    let past = range.revision > 0 && range.revision as u64 <= self.revision();
                    let keys =
                        if past { &self.states[range.revision as usize] } else { &draft.keys };
                    let header = draft.header();
                    Response::ResponseRange(RangeResponse { header, ..answer(keys, range) })
                }
            };
            responses.push(ResponseOp { response: Some(response) });
        }
        Ok(TxnResponse { header: draft.header(), succeeded, responses })
    }

    fn check_revision(&self, revision: i64, newest: u64) -> Result<(), Refused> {
        if revision <= 0 {
            Ok(())
        } else if revision as u64 > newest {
            Err(Refused::FutureRevision)
        } else if (revision as u64) < self.compacted {
            Err(Refused::Compacted)
        } else {
            Ok(())
        }
    }

    /// Answers a Range request from outside of the log.
    pub fn range(&self, range: &RangeRequest) -> Result<RangeResponse, Refused> {
        self.check_revision(range.revision, self.revision())?;
        let revision =
            if range.revision > 0 { range.revision as usize } else { self.states.len() - 1 };
        let header = self.draft().header();
        Ok(RangeResponse { header, ..answer(&self.states[revision], range) })
    }

    /// Answers a transaction that only reads, from outside of the log.
    pub fn read_txn(&self, txn: &TxnRequest) -> Result<TxnResponse, Refused> {
        if may_write(txn) {
            return Err(Refused::InvalidOperation);
        }
        self.txn(&mut self.draft(), txn)
    }

    /// The keys attached to a lease.
    pub fn lease_keys(&self, id: i64) -> Vec<Bytes> {
        attached(self.states.last().unwrap(), id)
    }
}

fn attached(keys: &Keys, lease: i64) -> Vec<Bytes> {
    keys.values().filter(|kv| kv.lease == lease).map(|kv| kv.key.clone()).collect()
}

fn unmet(draft: &Draft, key: &Bytes, condition: Option<&Condition>) -> Option<Is> {
    let given = condition?;
    let now = draft.keys.get(key).map_or(0, |kv| kv.mod_revision as u64);
    let refused = given.absent && now != 0
        || given.exists && now == 0
        || !given.mod_revisions.is_empty() && (now == 0 || !given.mod_revisions.contains(&now))
        || now != 0 && given.not_mod_revisions.contains(&now);
    refused.then_some(Is::PreconditionFailed(now))
}

fn delete_range(draft: &mut Draft, delete: &DeleteRangeRequest) -> DeleteRangeResponse {
    let gone = within(&draft.keys, &delete.key, &delete.range_end);
    for kv in &gone {
        draft.remove(&kv.key);
    }
    let deleted = gone.len() as i64;
    let prev_kvs = if delete.prev_kv { gone } else { Vec::new() };
    DeleteRangeResponse { header: draft.header(), deleted, prev_kvs }
}

/// Answers in the steps of etcd's server: fetch, filter, sort, cut.
fn answer(keys: &Keys, range: &RangeRequest) -> RangeResponse {
    let all = within(keys, &range.key, &range.range_end);
    let count = all.len() as i64;
    if range.count_only {
        return RangeResponse { count, ..Default::default() };
    }
    let limit = if range.limit > 0 { range.limit as usize } else { usize::MAX - 1 };
    let bounds = [
        range.min_mod_revision,
        range.max_mod_revision,
        range.min_create_revision,
        range.max_create_revision,
    ];
    let fetches_all = range.sort_order() != SortOrder::None || bounds != [0; 4];
    let fetched = if fetches_all { usize::MAX } else { limit + 1 };
    let mut kvs: Vec<KeyValue> = all.into_iter().take(fetched).collect();
    let [min_mod, max_mod, min_create, max_create] = bounds;
    kvs.retain(|kv| max_mod == 0 || kv.mod_revision <= max_mod);
    kvs.retain(|kv| min_mod == 0 || kv.mod_revision >= min_mod);
    kvs.retain(|kv| max_create == 0 || kv.create_revision <= max_create);
    kvs.retain(|kv| min_create == 0 || kv.create_revision >= min_create);
    let sort_key = |kv: &KeyValue| match range.sort_target() {
        SortTarget::Key => (0, kv.key.clone()),
        SortTarget::Version => (kv.version, Bytes::new()),
        SortTarget::Create => (kv.create_revision, Bytes::new()),
        SortTarget::Mod => (kv.mod_revision, Bytes::new()),
        SortTarget::Value => (0, kv.value.clone()),
    };
    match range.sort_order() {
        SortOrder::Descend => kvs.sort_by_key(|kv| std::cmp::Reverse(sort_key(kv))),
        SortOrder::None | SortOrder::Ascend => kvs.sort_by_key(sort_key),
    }
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    if range.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    RangeResponse { header: None, kvs, more, count }
}

fn choose(draft: &Draft, txn: &TxnRequest, path: &mut Vec<bool>) -> Result<(), Refused> {
    let succeeded = txn.compare.iter().all(|compare| holds(draft, compare));
    path.push(succeeded);
    for op in if succeeded { &txn.success } else { &txn.failure } {
        match &op.request {
            Some(Request::RequestTxn(txn)) => choose(draft, txn, path)?,
            Some(_) => {}
            None => return Err(Refused::InvalidOperation),
        }
    }
    Ok(())
}

fn holds(draft: &Draft, compare: &Compare) -> bool {
    let found = within(&draft.keys, &compare.key, &compare.range_end);
    if found.is_empty() {
        return compare.target() != CompareTarget::Value && holds_of(compare, &KeyValue::default());
    }
    found.iter().all(|kv| holds_of(compare, kv))
}

fn holds_of(compare: &Compare, kv: &KeyValue) -> bool {
    let order = match (compare.target(), compare.target_union.clone()) {
        (CompareTarget::Value, Some(TargetUnion::Value(value))) => kv.value.cmp(&value),
        (CompareTarget::Value, _) => kv.value.cmp(&Bytes::new()),
        (CompareTarget::Version, Some(TargetUnion::Version(n))) => kv.version.cmp(&n),
        (CompareTarget::Version, _) => kv.version.cmp(&0),
        (CompareTarget::Create, Some(TargetUnion::CreateRevision(n))) => kv.create_revision.cmp(&n),
        (CompareTarget::Create, _) => kv.create_revision.cmp(&0),
        (CompareTarget::Mod, Some(TargetUnion::ModRevision(n))) => kv.mod_revision.cmp(&n),
        (CompareTarget::Mod, _) => kv.mod_revision.cmp(&0),
        (CompareTarget::Lease, Some(TargetUnion::Lease(n))) => kv.lease.cmp(&n),
        (CompareTarget::Lease, _) => kv.lease.cmp(&0),
    };
    match compare.result() {
        CompareResult::Equal => order.is_eq(),
        CompareResult::NotEqual => order.is_ne(),
        CompareResult::Greater => order.is_gt(),
        CompareResult::Less => order.is_lt(),
    }
}

fn both(txn: &TxnRequest) -> impl Iterator<Item = &RequestOp> {
    txn.success.iter().chain(&txn.failure)
}

fn may_put(txn: &TxnRequest) -> bool {
    both(txn).any(|op| match &op.request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(txn)) => may_put(txn),
        _ => false,
    })
}

fn may_write(txn: &TxnRequest) -> bool {
    both(txn).any(|op| match &op.request {
        Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)) => true,
        Some(Request::RequestTxn(txn)) => may_write(txn),
        _ => false,
    })
}
