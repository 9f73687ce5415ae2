//! Reads of the applied state.

use std::{fmt, ops::Bound};

use prost::Message;
use sha2::{Digest, Sha256};

use super::record;
use crate::{
    error::Fatal,
    proto::{KeyRecord, LogPosition},
    storage::{Engine, Family, Reader},
};

/// What is hashed: everything that is replicated except the position, which
/// the hash is compared at. Meta is covered by the members and the revision.
const HASHED_FAMILIES: [Family; 4] =
    [Family::Current, Family::Deleted, Family::Changes, Family::History];

/// Reads of the state machine's database, from any thread. Each call sees
/// whole apply batches, and no earlier a moment than the call before it.
#[derive(Debug, Clone)]
pub struct View<E> {
    engine: E,
}

impl<E: Engine> View<E> {
    pub(super) fn new(engine: E) -> Self {
        Self { engine }
    }

    /// The newest record of a key, with its value.
    ///
    /// # Errors
    /// When the disk refuses the read or the record is damaged.
    pub fn get(&self, key: &[u8]) -> Result<Option<KeyRecord>, Fatal> {
        record::read(&self.engine, Family::Current, key)
    }

    /// Which log entry was applied last.
    ///
    /// # Errors
    /// As [`View::get`].
    pub fn position(&self) -> Result<LogPosition, Fatal> {
        Ok(record::position(&record::applied(&self.engine)?))
    }

    /// The store's revision; 1 before the first write.
    ///
    /// # Errors
    /// As [`View::get`].
    pub fn revision(&self) -> Result<u64, Fatal> {
        Ok(record::applied(&self.engine)?.revision)
    }

    /// Hashes the whole replicated state at one moment. Members at the same
    /// position have the same hash, whatever their disks look like. Reads
    /// everything: for tests and checks by hand.
    ///
    /// # Errors
    /// As [`View::get`].
    pub fn hash(&self) -> Result<StateHash, Fatal> {
        let frozen = self.engine.freeze();
        let applied = record::applied(&frozen)?;
        let members = record::members(&frozen)?.encode_to_vec();
        let mut hasher = Sha256::new();
        hasher.update(applied.revision.to_be_bytes());
        update_with_length(&mut hasher, &members);
        for family in HASHED_FAMILIES {
            update_with_length(&mut hasher, family.name().as_bytes());
            let everything = (Bound::Unbounded, Bound::Unbounded);
            for pair in frozen.scan(family, everything) {
                let (key, value) = pair?;
                hasher.update([1]);
                update_with_length(&mut hasher, &key);
                update_with_length(&mut hasher, &value);
            }
            hasher.update([0]);
        }
        Ok(StateHash {
            position: record::position(&applied),
            revision: applied.revision,
            hash: hasher.finalize().into(),
        })
    }
}

/// A fingerprint of the replicated state at one position of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateHash {
    /// The last entry applied. Not part of the hash.
    pub position: LogPosition,
    /// The store's revision.
    pub revision: u64,
    /// SHA-256 of data, history, members and revision.
    pub hash: [u8; 32],
}

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "index {} revision {} hash ", self.position.index, self.revision)?;
        self.hash.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn update_with_length(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update((bytes.len() as u64).to_be_bytes());
    hasher.update(bytes);
}
