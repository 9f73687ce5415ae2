//! The bytes of the buckets.

use bytes::Bytes;
use prost::Message;

use crate::proto::{KeyRecord, leasepb::Lease, mvccpb::KeyValue};

/// Length of a revision: main and sub, with an underscore between them.
const REVISION_LEN: usize = 17;

/// What follows the revision of a deletion.
const DELETION_MARK: u8 = b't';

/// The greatest revision that a restored store may have: half of what etcd's
/// clients can be told, so that there is room to go on.
pub(super) const MAX_REVISION: u64 = 1 << 62;

/// The key of a change.
pub(super) fn revision_key((revision, sub): (u64, u32), is_deletion: bool) -> Bytes {
    let mut key = Vec::with_capacity(REVISION_LEN + 1);
    key.extend_from_slice(&revision.to_be_bytes());
    key.push(b'_');
    key.extend_from_slice(&u64::from(sub).to_be_bytes());
    if is_deletion {
        key.push(DELETION_MARK);
    }
    key.into()
}

/// The place in a key that [`revision_key`] made, and whether it is of a
/// deletion.
pub(super) fn place(key: &[u8]) -> Option<((u64, u32), bool)> {
    let (revision, rest) = key.split_first_chunk::<REVISION_LEN>()?;
    let is_deletion = match rest {
        [] => false,
        [DELETION_MARK] => true,
        _ => return None,
    };
    let (main, sub) = revision.split_first_chunk::<8>()?;
    let (separator, sub) = sub.split_first()?;
    let main = u64::from_be_bytes(*main);
    let sub = u64::from_be_bytes(sub.try_into().ok()?);
    let is_possible = *separator == b'_' && (1..=MAX_REVISION).contains(&main);
    is_possible.then_some(((main, u32::try_from(sub).ok()?), is_deletion))
}

/// The revision in a value of `meta`.
pub(super) fn revision(value: &[u8]) -> Option<u64> {
    place(value).filter(|(_, is_deletion)| !is_deletion).map(|((revision, _), _)| revision)
}

/// A state of a key.
pub(super) fn key_value(key: Bytes, record: KeyRecord) -> Bytes {
    let pair = KeyValue {
        key,
        create_revision: record.create_revision.cast_signed(),
        mod_revision: record.mod_revision.cast_signed(),
        version: record.version.cast_signed(),
        value: record.value,
        lease: record.lease,
    };
    pair.encode_to_vec().into()
}

/// The value of a deletion.
pub(super) fn deletion(key: Bytes) -> Bytes {
    KeyValue { key, ..KeyValue::default() }.encode_to_vec().into()
}

/// The key of a lease.
pub(super) const fn lease_key(id: i64) -> [u8; 8] {
    id.to_be_bytes()
}

/// The value of a lease.
pub(super) fn lease(id: i64, ttl_s: i64, remaining_s: i64) -> Vec<u8> {
    // No remaining time means all of it.
    let remaining_ttl = if remaining_s >= ttl_s { 0 } else { remaining_s.max(1) };
    Lease { id, ttl: ttl_s, remaining_ttl }.encode_to_vec()
}
