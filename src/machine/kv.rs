//! Puts and deletes: the project's own, with conditions, and etcd's.

use prost::Message;

use super::{
    answer, leases,
    moment::{Keys, key_value},
    range::header,
    stop::Stopped,
    writes::{MAX_DELETED_BYTES, Writes},
};
use crate::{
    error::Fatal,
    proto::{
        Condition, Delete, KeyRecord, Outcome, Put, Refused, Unit,
        etcdserverpb::{DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse},
        outcome::Result as Is,
    },
    storage::Reader,
};

/// Sets a key, if the condition holds; grants the lease it is attached to
/// first, if asked to. In the log entry of this index.
pub(super) fn put<R: Reader>(
    writes: &mut Writes<'_, R>,
    put: &Put,
    index: u64,
) -> Stopped<Outcome> {
    let before = writes.state(&put.key)?;
    if !holds(put.condition.as_ref(), before.record()) {
        return Ok(precondition_failed(before.record()));
    }
    if put.grant_ttl_s != 0 {
        leases::grant(writes, put.lease, put.grant_ttl_s, index)?;
    } else {
        leases::check(writes, put.lease)?;
    }
    writes.set(&put.key, before, put.value.clone(), put.lease);
    Ok(answer(Is::Revision(writes.revision())))
}

/// Removes a key, if the condition holds. Removing what is not there changes
/// nothing.
pub(super) fn delete<R: Reader>(
    writes: &mut Writes<'_, R>,
    delete: &Delete,
) -> Result<Outcome, Fatal> {
    let before = writes.state(&delete.key)?;
    if !holds(delete.condition.as_ref(), before.record()) {
        return Ok(precondition_failed(before.record()));
    }
    let Some(record) = before.record() else {
        return Ok(answer(Is::KeyNotFound(Unit {})));
    };
    writes.remove(&delete.key, record.clone());
    Ok(answer(Is::Revision(writes.revision())))
}

/// Refuses an etcd put that cannot be carried out on this state.
pub(super) fn check_put<R: Reader>(writes: &Writes<'_, R>, put: &PutRequest) -> Stopped<()> {
    leases::check(writes, put.lease)?;
    if (put.ignore_value || put.ignore_lease) && writes.state(&put.key)?.record().is_none() {
        return Err(Refused::KeyNotFound.into());
    }
    Ok(())
}

/// Sets a key as etcd does, and charges `max_bytes` for what is given back.
/// Refused without effect.
pub(super) fn etcd_put<R: Reader>(
    writes: &mut Writes<'_, R>,
    put: &PutRequest,
    max_bytes: &mut u64,
) -> Stopped<PutResponse> {
    leases::check(writes, put.lease)?;
    let before = writes.state(&put.key)?;
    let (mut value, mut lease) = (put.value.clone(), put.lease);
    if put.ignore_value || put.ignore_lease {
        let Some(record) = before.record() else { return Err(Refused::KeyNotFound.into()) };
        if put.ignore_value {
            value = record.value.clone();
        }
        if put.ignore_lease {
            lease = record.lease;
        }
    }
    let previous = before.record().filter(|_| put.prev_kv).cloned();
    let prev_kv = previous.map(|record| key_value(put.key.clone(), record));
    let bytes = prev_kv.as_ref().map_or(0, Message::encoded_len) as u64;
    *max_bytes = max_bytes.checked_sub(bytes).ok_or(Refused::ResponseTooLarge)?;
    writes.set(&put.key, before, value, lease);
    Ok(PutResponse { header: Some(header(writes.revision())), prev_kv })
}

/// Removes the keys of a range as etcd does, and charges `max_bytes` for what
/// is given back of them. Refused without effect.
pub(super) fn delete_range<R: Reader>(
    writes: &mut Writes<'_, R>,
    delete: &DeleteRangeRequest,
    max_bytes: &mut u64,
) -> Stopped<DeleteRangeResponse> {
    let keys = Keys::new(&delete.key, &delete.range_end);
    let mut doomed = Vec::new();
    let mut previous = Vec::new();
    let mut bytes = 0_usize;
    for found in writes.moment().newest().records(&keys) {
        let (key, record) = found?;
        bytes += key.len() + record.encoded_len();
        if bytes > MAX_DELETED_BYTES {
            return Err(Refused::DeletionTooLarge.into());
        }
        if delete.prev_kv {
            let pair = key_value(key.clone(), record.clone());
            let Some(rest) = max_bytes.checked_sub(pair.encoded_len() as u64) else {
                return Err(Refused::ResponseTooLarge.into());
            };
            *max_bytes = rest;
            previous.push(pair);
        }
        doomed.push((key, record));
    }
    if mutant!(DeleteRangeLeavesOne) && doomed.len() > 1 {
        doomed.pop();
    }
    writes.charge_deletion(bytes)?;
    let deleted = doomed.len() as i64;
    for (key, record) in doomed {
        writes.remove(&key, record);
    }
    let header = Some(header(writes.revision()));
    Ok(DeleteRangeResponse { header, deleted, prev_kvs: previous })
}

/// Whether every given part of a condition holds of a key.
fn holds(condition: Option<&Condition>, record: Option<&KeyRecord>) -> bool {
    let Some(condition) = condition else { return true };
    let is_one_of =
        |revisions: &[u64]| record.is_some_and(|record| revisions.contains(&record.mod_revision));
    (condition.mod_revisions.is_empty() || is_one_of(&condition.mod_revisions))
        && (!condition.exists || record.is_some())
        && (!condition.absent || record.is_none())
        && !is_one_of(&condition.not_mod_revisions)
}

fn precondition_failed(record: Option<&KeyRecord>) -> Outcome {
    answer(Is::PreconditionFailed(record.map_or(0, |record| record.mod_revision)))
}
