//! Reading what the state database stores: decoding that takes damage for an
//! answer, and the two singletons.

use prost::Message;

use crate::{
    error::Fatal,
    proto::{AppliedState, LogPosition, Members},
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
    M::decode(value).map(Some).map_err(|cause| {
        let key = key.escape_ascii();
        Fatal::corrupt(format!("record \"{key}\" of family {} is damaged: {cause}", family.name()))
    })
}

/// What the database has applied; position 0 and the first revision when it is
/// empty.
pub(super) fn applied(reader: &impl Reader) -> Result<AppliedState, Fatal> {
    let applied = read(reader, Family::Meta, keys::APPLIED)?;
    Ok(applied.unwrap_or(AppliedState { index: 0, term: 0, revision: FIRST_REVISION }))
}

/// The cluster as the database knows it; without members when it is empty.
pub(super) fn members(reader: &impl Reader) -> Result<Members, Fatal> {
    Ok(read(reader, Family::Meta, keys::MEMBERS)?.unwrap_or_default())
}

/// The position part of an applied state.
pub(super) fn position(applied: &AppliedState) -> LogPosition {
    LogPosition { index: applied.index, term: applied.term }
}
