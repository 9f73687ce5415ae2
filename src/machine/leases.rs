//! Leases: what is replicated of them. Time is the leader's affair; here it
//! comes as numbers in commands.

use super::{answer, stop::Stopped, writes::Writes};
use crate::{
    error::Fatal,
    proto::{
        CheckpointLeases, ExpireLeases, LeaseRecord, LeaseRenewal, Outcome, Refused, RenewLeases,
        Unit, outcome::Result as Is,
    },
    storage::Reader,
};

/// Refuses a lease to attach a key to that does not exist; 0 is no lease.
pub(super) fn check<R: Reader>(writes: &Writes<'_, R>, id: i64) -> Stopped<()> {
    if id != 0 && writes.lease(id)?.is_none() {
        return Err(Refused::LeaseNotFound.into());
    }
    Ok(())
}

/// Grants a lease, in the log entry of this index. Refused without effect.
pub(super) fn grant<R: Reader>(
    writes: &mut Writes<'_, R>,
    id: i64,
    ttl_s: i64,
    index: u64,
) -> Stopped<LeaseRecord> {
    if id == 0 || ttl_s < 1 {
        return Err(Refused::InvalidOperation.into());
    }
    if writes.lease(id)?.is_some() {
        return Err(Refused::LeaseExists.into());
    }
    let lease = LeaseRecord { id, ttl_s, remaining_s: ttl_s, renewal: index };
    writes.set_lease(lease);
    Ok(lease)
}

/// Ends a lease: all its keys go in one revision. Refused without effect.
pub(super) fn revoke<R: Reader>(writes: &mut Writes<'_, R>, id: i64) -> Stopped<Outcome> {
    if writes.lease(id)?.is_none() {
        return Err(Refused::LeaseNotFound.into());
    }
    end(writes, id)?;
    Ok(done())
}

/// Ends those leases that the leader of this term saw expire and that were
/// not renewed since, each in a revision of its own.
pub(super) fn expire<R: Reader>(
    writes: &mut Writes<'_, R>,
    expire: &ExpireLeases,
    term: u64,
) -> Result<Outcome, Fatal> {
    if expire.term == term || mutant!(ExpireOfFormerLeader) {
        for seen in &expire.leases {
            let renewed = mutant!(ExpireRenewed) && writes.lease(seen.id)?.is_some();
            if renewed || unrenewed(writes, seen)?.is_some() {
                end(writes, seen.id)?;
                writes.commit();
            }
        }
    }
    Ok(done())
}

/// Gives those leases that exist their full time again, in the log entry of
/// this index.
pub(super) fn renew<R: Reader>(
    writes: &mut Writes<'_, R>,
    renew: &RenewLeases,
    index: u64,
) -> Result<Outcome, Fatal> {
    for &id in &renew.ids {
        if let Some(lease) = writes.lease(id)? {
            let renewed = LeaseRecord { remaining_s: lease.ttl_s, renewal: index, ..lease };
            writes.set_lease(renewed);
        }
    }
    Ok(done())
}

/// Writes down what is left of those leases that were not renewed since the
/// leader of this term looked.
pub(super) fn checkpoint<R: Reader>(
    writes: &mut Writes<'_, R>,
    checkpoint: &CheckpointLeases,
    term: u64,
) -> Result<Outcome, Fatal> {
    if checkpoint.term == term {
        for seen in &checkpoint.leases {
            let renewed = writes.lease(seen.id)?.filter(|_| mutant!(CheckpointTakesBackRenewal));
            if let Some(lease) = unrenewed(writes, seen)?.or(renewed) {
                let remaining_s = seen.remaining_s.clamp(0, lease.ttl_s);
                writes.set_lease(LeaseRecord { remaining_s, ..lease });
            }
        }
    }
    Ok(done())
}

/// The lease, if it exists and was not renewed since it was seen.
fn unrenewed<R: Reader>(
    writes: &Writes<'_, R>,
    seen: &LeaseRenewal,
) -> Result<Option<LeaseRecord>, Fatal> {
    Ok(writes.lease(seen.id)?.filter(|lease| lease.renewal == seen.renewal))
}

fn end<R: Reader>(writes: &mut Writes<'_, R>, id: i64) -> Result<(), Fatal> {
    for key in writes.lease_keys(id)? {
        let record = writes.state(&key)?.record().cloned().ok_or_else(|| {
            let key = key.escape_ascii();
            Fatal::corrupt(format!("key \"{key}\" is attached to lease {id} but does not exist"))
        })?;
        writes.remove(&key, record);
    }
    writes.remove_lease(id);
    Ok(())
}

pub(super) fn done() -> Outcome {
    answer(Is::Done(Unit {}))
}
