//! Fingerprints of the state, to find members that came apart.

use std::{fmt, ops::Bound};

use prost::Message;
use sha2::{Digest, Sha256};

use super::{
    moment::{Keys, Moment},
    record,
    stop::Stopped,
};
use crate::{
    error::Fatal,
    proto::{LogPosition, Refused, Tombstone},
    storage::{Family, Pair, Reader, keys},
};

/// What is hashed of the whole state: everything that is replicated except the
/// position, which the hash is compared at. Meta is hashed record by record.
const HASHED_FAMILIES: [Family; 6] = [
    Family::Current,
    Family::Deleted,
    Family::Changes,
    Family::History,
    Family::Leases,
    Family::LeaseKeys,
];

/// A fingerprint of the keys as of one revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvHash {
    /// The hash, whose algorithm is this project's own.
    pub hash: u32,
    /// The revision that was hashed.
    pub hashed_revision: u64,
    /// The store's revision.
    pub revision: u64,
    /// The last compaction.
    pub compacted: u64,
}

/// A fingerprint of the replicated state at one position of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateHash {
    /// The last entry applied. Not part of the hash.
    pub position: LogPosition,
    /// The store's revision.
    pub revision: u64,
    /// SHA-256 of data, history, leases, members, alarms and revisions.
    pub hash: [u8; 32],
}

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "index {} revision {} hash ", self.position.index, self.revision)?;
        self.hash.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Hashes everything that is replicated; what is compacted away counts as
/// absent, whether or not it is still on disk. Asks `go_on` at each record.
pub(super) fn hash_state<E: From<Fatal>>(
    reader: &impl Reader,
    go_on: &dyn Fn() -> Result<(), E>,
) -> Result<StateHash, E> {
    let applied = record::applied(reader)?;
    let mut hasher = Sha256::new();
    hasher.update(applied.revision.to_be_bytes());
    hasher.update(applied.compacted.to_be_bytes());
    update_with_length(&mut hasher, &record::members(reader)?.encode_to_vec());
    update_with_length(&mut hasher, &record::alarms(reader)?.encode_to_vec());
    for family in HASHED_FAMILIES {
        update_with_length(&mut hasher, family.name().as_bytes());
        for pair in reader.scan(family, (Bound::Unbounded, Bound::Unbounded)) {
            go_on()?;
            let pair = pair?;
            if !is_compacted(family, &pair, applied.compacted)? {
                hasher.update([1]);
                update_with_length(&mut hasher, &pair.0);
                update_with_length(&mut hasher, &pair.1);
            }
        }
        hasher.update([0]);
    }
    Ok(StateHash {
        position: record::position(&applied),
        revision: applied.revision,
        hash: hasher.finalize().into(),
    })
}

/// Hashes the keys as of a revision, 0 for the present, and all changes since
/// the last compaction that led there.
pub(super) fn hash_kv<R: Reader>(moment: &Moment<'_, R>, revision: u64) -> Stopped<KvHash> {
    let requested = i64::try_from(revision).map_err(|_| Refused::FutureRevision)?;
    let at = moment.at(requested)?;
    let hashed_revision = if revision == 0 { moment.revision } else { revision };
    let mut hasher = Sha256::new();
    for found in at.records(&Keys::all()) {
        let (key, record) = found?;
        hasher.update([1]);
        update_with_length(&mut hasher, &key);
        for number in [record.create_revision, record.mod_revision, record.version] {
            hasher.update(number.to_be_bytes());
        }
        hasher.update(record.lease.to_be_bytes());
        update_with_length(&mut hasher, &record.value);
    }
    hasher.update([0]);
    let from = keys::change(moment.compacted.saturating_add(1), 0).to_vec();
    let to = keys::change(hashed_revision, u32::MAX).to_vec();
    let changes = (Bound::Included(from.into()), Bound::Included(to.into()));
    for pair in moment.reader.scan(Family::Changes, changes) {
        let (place, change) = pair?;
        hasher.update([1]);
        update_with_length(&mut hasher, &place);
        update_with_length(&mut hasher, &change);
    }
    let [a, b, c, d, ..]: [u8; 32] = hasher.finalize().into();
    Ok(KvHash {
        hash: u32::from_be_bytes([a, b, c, d]),
        hashed_revision,
        revision: moment.revision,
        compacted: moment.compacted,
    })
}

/// Whether a record stands for nothing any more, at this compaction.
fn is_compacted(family: Family, (key, value): &Pair, compacted: u64) -> Result<bool, Fatal> {
    Ok(match family {
        Family::Changes => keys::change_revision(key)?.0 < compacted,
        Family::Deleted => {
            record::decode::<Tombstone>(family, key, value.clone())?.revision <= compacted
        }
        Family::History => keys::history_parts(key)?.1 <= compacted,
        _ => false,
    })
}

fn update_with_length(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update((bytes.len() as u64).to_be_bytes());
    hasher.update(bytes);
}
