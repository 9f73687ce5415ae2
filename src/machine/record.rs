//! Reading what the state database stores: decoding that takes damage for an
//! answer, the singletons, and the leases.

use std::ops::Bound;

use bytes::Bytes;
use prost::Message;

use crate::{
    error::Fatal,
    proto::{
        Alarms, AppliedState, Change, KeyRecord, LeaseRecord, LogPosition, Members, Tombstone,
    },
    storage::{Family, Reader, keys},
};

/// The revision of a store that was never written to, as in etcd.
const FIRST_REVISION: u64 = 1;

/// The highest number that counts anything: higher ones could not be told to
/// etcd's clients, and nothing real comes near. There is room to count on.
const MOST: u64 = i64::MAX.cast_unsigned();

/// A message that the state database stores.
pub(super) trait Record: Message + Default {
    /// Whether its numbers can be. What can not is damage, and would go wrong
    /// where it is counted on.
    fn is_possible(&self) -> bool;
}

impl Record for KeyRecord {
    fn is_possible(&self) -> bool {
        are_possible(&[self.create_revision, self.mod_revision, self.version, self.changes])
    }
}

impl Record for Tombstone {
    fn is_possible(&self) -> bool {
        are_possible(&[self.revision, self.changes])
    }
}

impl Record for Change {
    fn is_possible(&self) -> bool {
        let states = [&self.record, &self.previous];
        states.into_iter().flatten().all(Record::is_possible)
            && are_possible(&[self.previous_revision])
    }
}

impl Record for LeaseRecord {
    fn is_possible(&self) -> bool {
        self.ttl_s > 0 && are_possible(&[self.renewal])
    }
}

impl Record for AppliedState {
    fn is_possible(&self) -> bool {
        are_possible(&[self.index, self.term, self.revision, self.compacted])
    }
}

impl Record for Members {
    fn is_possible(&self) -> bool {
        true
    }
}

impl Record for Alarms {
    fn is_possible(&self) -> bool {
        true
    }
}

fn are_possible(numbers: &[u64]) -> bool {
    numbers.iter().all(|number| *number <= MOST)
}

/// Reads and decodes one record.
pub(super) fn read<R: Record>(
    reader: &impl Reader,
    family: Family,
    key: &[u8],
) -> Result<Option<R>, Fatal> {
    let Some(value) = reader.get(family, key)? else { return Ok(None) };
    decode(family, key, value).map(Some)
}

/// Decodes the value of a record.
pub(super) fn decode<R: Record>(family: Family, key: &[u8], value: Bytes) -> Result<R, Fatal> {
    let damaged = |why: &dyn std::fmt::Display| {
        let (key, family) = (key.escape_ascii(), family.name());
        Fatal::corrupt(format!("record \"{key}\" of family {family} is damaged: {why}"))
    };
    let record = R::decode(value).map_err(|cause| damaged(&cause))?;
    if record.is_possible() { Ok(record) } else { Err(damaged(&"a number in it cannot be")) }
}

/// What the database has applied; position 0 and the first revision when it is
/// empty.
pub(super) fn applied(reader: &impl Reader) -> Result<AppliedState, Fatal> {
    let applied = read(reader, Family::Meta, keys::APPLIED)?;
    Ok(applied.unwrap_or(AppliedState { revision: FIRST_REVISION, ..AppliedState::default() }))
}

/// The cluster as the database knows it; without members when it is empty.
pub(super) fn members(reader: &impl Reader) -> Result<Members, Fatal> {
    Ok(read(reader, Family::Meta, keys::MEMBERS)?.unwrap_or_default())
}

/// The raised alarms.
pub(super) fn alarms(reader: &impl Reader) -> Result<Alarms, Fatal> {
    Ok(read(reader, Family::Meta, keys::ALARMS)?.unwrap_or_default())
}

/// A lease.
pub(super) fn lease(reader: &impl Reader, id: i64) -> Result<Option<LeaseRecord>, Fatal> {
    read(reader, Family::Leases, &keys::lease(id))
}

/// All leases, ascending by id.
pub(super) fn leases(reader: &impl Reader) -> Result<Vec<LeaseRecord>, Fatal> {
    let leases = reader.scan(Family::Leases, (Bound::Unbounded, Bound::Unbounded));
    leases.map(|pair| pair.and_then(|(key, value)| decode(Family::Leases, &key, value))).collect()
}

/// The keys attached to a lease, ascending.
pub(super) fn lease_keys(reader: &impl Reader, id: i64) -> Result<Vec<Bytes>, Fatal> {
    let attached = reader.scan(Family::LeaseKeys, keys::lease_keys(id));
    attached.map(|pair| pair.and_then(|(key, _)| keys::attached_key(&key))).collect()
}

/// The position part of an applied state.
pub(super) fn position(applied: &AppliedState) -> LogPosition {
    LogPosition { index: applied.index, term: applied.term }
}
