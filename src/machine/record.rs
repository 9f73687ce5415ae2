//! Reading what the state database stores: decoding that takes damage for an
//! answer, the singletons, and the leases.

use std::ops::Bound;

use bytes::Bytes;
use prost::Message;

use crate::{
    error::Fatal,
    proto::{Alarms, AppliedState, LeaseRecord, LogPosition, Members},
    storage::{Family, Reader, keys},
};

/// The revision of a store that was never written to, as in etcd.
const FIRST_REVISION: u64 = 1;

/// Reads and decodes one record.
pub(super) fn read<M: Message + Default>(
    reader: &impl Reader,
    family: Family,
    key: &[u8],
) -> Result<Option<M>, Fatal> {
    let Some(value) = reader.get(family, key)? else { return Ok(None) };
    decode(family, key, value).map(Some)
}

/// Decodes the value of a record.
pub(super) fn decode<M: Message + Default>(
    family: Family,
    key: &[u8],
    value: Bytes,
) -> Result<M, Fatal> {
    M::decode(value).map_err(|cause| {
        let key = key.escape_ascii();
        Fatal::corrupt(format!("record \"{key}\" of family {} is damaged: {cause}", family.name()))
    })
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
