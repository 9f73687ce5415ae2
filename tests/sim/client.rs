//! Clients: each has one request under way, on any node.

use std::collections::BTreeMap;

use bytes::Bytes;
use metastore::{
    machine::View,
    proto::{
        Condition, Delete, Put,
        command::Op,
        etcdserverpb::{
            Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
            compare::{CompareResult, CompareTarget, TargetUnion},
            request_op::Request,
        },
    },
    storage::memory::MemoryEngine,
};

use super::{
    dice::Dice,
    history::{Ask, Got, Record},
    plan::{MS, Plan, SECOND, Time},
    requests::Work,
};

/// The next value's number is unique over all clients of a run.
#[derive(Default)]
pub struct Numbers(u64);

/// One client.
#[derive(Default)]
pub struct Client {
    /// The request under way.
    pub ticket: Option<usize>,
    /// The mod_revision it last saw of a key.
    seen: BTreeMap<u64, u64>,
}

impl Client {
    pub fn ask(&self, plan: &Plan, dice: &mut Dice, numbers: &mut Numbers) -> (u64, Ask) {
        let key = dice.between(1, plan.keys);
        let ask = match dice.between(0, 9) {
            0..=3 => Ask::Get,
            4..=8 => {
                numbers.0 += 1;
                Ask::Put(numbers.0, self.condition(dice, key))
            }
            _ => Ask::Delete(self.condition(dice, key)),
        };
        (key, ask)
    }

    fn condition(&self, dice: &mut Dice, key: u64) -> Condition {
        let seen = self.seen.get(&key).copied().unwrap_or(1);
        let mut condition = Condition::default();
        match dice.between(0, 9) {
            0 => condition.exists = true,
            1 => condition.absent = true,
            2 => condition.not_mod_revisions = vec![seen],
            3 | 4 => condition.mod_revisions = vec![seen],
            5 => condition.mod_revisions = vec![1, seen, seen + 1],
            _ => {}
        }
        condition
    }

    /// Remembers what its last request showed.
    pub fn learn(&mut self, record: &Record) {
        use super::history::End;
        let Some((_, End::Done(got))) = &record.returned else { return };
        let revision = match got {
            Got::Read(Some((_, revision)), _) | Got::Wrote(revision) | Got::Failed(revision) => {
                *revision
            }
            Got::Read(None, _) | Got::Missing => 0,
        };
        self.seen.insert(record.key, revision.max(1));
    }
}

/// How long a client is willing to wait; sometimes hardly at all.
pub fn patience(dice: &mut Dice) -> Time {
    if dice.permille(50) { dice.between(1, 30 * MS) } else { dice.between(500 * MS, 4 * SECOND) }
}

pub fn work(plan: &Plan, key: u64, ask: &Ask) -> Work {
    let key = encode_key(key);
    match ask {
        Ask::Get => Work::Read(key),
        Ask::Put(number, condition) => {
            let value = encode_value(plan, *number).into();
            if number.is_multiple_of(2)
                && let Some(op) = etcd_put(&key, &value, condition)
            {
                return Work::Command(op);
            }
            let condition = Some(condition.clone());
            Work::Command(Op::Put(Put { key: key.into(), value, condition, ..Put::default() }))
        }
        Ask::Delete(condition) if *condition == Condition::default() => {
            let key = key.into();
            Work::Command(Op::DeleteRange(DeleteRangeRequest { key, ..Default::default() }))
        }
        Ask::Delete(condition) => {
            let condition = Some(condition.clone());
            Work::Command(Op::Delete(Delete { key: key.into(), condition }))
        }
    }
}

/// The same in etcd's words, as far as it has any: a put, or a transaction that
/// compares and swaps.
fn etcd_put(key: &[u8], value: &Bytes, condition: &Condition) -> Option<Op> {
    let Condition { mod_revisions, exists, absent, not_mod_revisions } = condition;
    let key = Bytes::copy_from_slice(key);
    let put = PutRequest { key: key.clone(), value: value.clone(), ..PutRequest::default() };
    if *condition == Condition::default() {
        return Some(Op::PutRequest(put));
    }
    let (result, revision) = match (&mod_revisions[..], &not_mod_revisions[..]) {
        ([seen], []) => (CompareResult::Equal, *seen),
        ([], [seen]) => (CompareResult::NotEqual, *seen),
        ([], []) if *exists => (CompareResult::Greater, 0),
        ([], []) if *absent => (CompareResult::Equal, 0),
        _ => return None,
    };
    let compare = Compare {
        result: result.into(),
        target: CompareTarget::Mod.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::ModRevision(revision.cast_signed())),
        range_end: Bytes::new(),
    };
    let range = RangeRequest { key, ..RangeRequest::default() };
    let op = |request| vec![RequestOp { request: Some(request) }];
    Some(Op::Txn(TxnRequest {
        compare: vec![compare],
        success: op(Request::RequestPut(put)),
        failure: op(Request::RequestRange(range)),
    }))
}

fn encode_key(key: u64) -> Vec<u8> {
    format!("key/{key}").into_bytes()
}

/// Its number, and now and then enough more to fill an entry.
fn encode_value(plan: &Plan, number: u64) -> Vec<u8> {
    let mut value = number.to_be_bytes().to_vec();
    if number.is_multiple_of(17) {
        value.resize(plan.max_entry_bytes.min(5_000), 0xff);
    }
    value
}

/// What a read of local state shows.
pub fn read_key(view: &View<MemoryEngine>, key: &[u8]) -> Got {
    let record = view.get(key).unwrap_or_else(|e| panic!("{e}"));
    let revision = view.revision().unwrap_or_else(|e| panic!("{e}"));
    let request = RangeRequest { key: key.to_vec().into(), ..RangeRequest::default() };
    let range = view.range(&request, u64::MAX).unwrap_or_else(|e| panic!("{e}"));
    let range = range.expect("the present can be read");
    let found = range.kvs.first().map(|kv| (kv.mod_revision.unsigned_abs(), &kv.value));
    assert_eq!(record.as_ref().map(|record| (record.mod_revision, &record.value)), found);
    let seen = record.map(|record| {
        let number = record.value.first_chunk().expect("a value begins with its number");
        (u64::from_be_bytes(*number), record.mod_revision)
    });
    Got::Read(seen, revision)
}
