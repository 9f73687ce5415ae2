//! Puts and deletes over the revision model.
//!
//! Each one that changes something takes the next revision of the store and
//! leaves in the database the key's newest state (`current`, or `deleted`), one
//! change with the state before it (`changes`), and at every 16th change of
//! the key a sample of its history (`history`). The changes of a key are
//! counted across deletion and re-creation.

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message;

use super::record;
use crate::{
    error::Fatal,
    proto::{
        Change, Condition, Delete, KeyRecord, Outcome, Put, Tombstone, Unit, outcome::Result as Is,
    },
    storage::{Batch, Family, Reader, keys},
};

/// Changes of a key between two samples in `history`: a longer distance makes
/// reads of the past walk further, a shorter one makes each write dearer.
pub(super) const HISTORY_INTERVAL: u64 = 16;

/// The place of a change within its revision; a revision holds one change.
const SUB: u32 = 0;

/// The writes of one apply batch. Later ones see the effects of earlier ones
/// before any of them is in the database.
pub(super) struct KvWrites<'a, R> {
    reader: &'a R,
    /// The newest state of every key this batch looked at. Only ever looked
    /// up: its order differs between members.
    seen: HashMap<Bytes, KeyState>,
    /// The store's revision after the writes so far.
    pub revision: u64,
    /// What is to be written, in order.
    pub batch: Batch,
}

/// What the store knows of one key.
#[derive(Debug, Clone)]
enum KeyState {
    /// Nothing.
    Unknown,
    /// It exists.
    Live(KeyRecord),
    /// It existed once.
    Deleted(Tombstone),
}

impl KeyState {
    fn record(&self) -> Option<&KeyRecord> {
        match self {
            Self::Live(record) => Some(record),
            Self::Unknown | Self::Deleted(_) => None,
        }
    }

    /// Position of the key's last change, deletions included, and how many
    /// there were. All zero when there was none.
    fn last_change(&self) -> Tombstone {
        match self {
            Self::Unknown => Tombstone::default(),
            Self::Live(record) => Tombstone {
                revision: record.mod_revision,
                sub: record.sub,
                changes: record.changes,
            },
            Self::Deleted(tombstone) => *tombstone,
        }
    }
}

impl<'a, R: Reader> KvWrites<'a, R> {
    /// Starts a batch over a store at this revision.
    pub fn new(reader: &'a R, revision: u64) -> Self {
        Self { reader, seen: HashMap::new(), revision, batch: Batch::default() }
    }

    /// Sets a key, if the condition holds.
    pub fn put(&mut self, put: &Put) -> Result<Outcome, Fatal> {
        let before = self.key_state(&put.key)?;
        if !holds(put.condition.as_ref(), before.record()) {
            return Ok(precondition_failed(before.record()));
        }
        let revision = self.revision + 1;
        let previous = before.record();
        let after = KeyRecord {
            create_revision: previous.map_or(revision, |record| record.create_revision),
            mod_revision: revision,
            version: previous.map_or(0, |record| record.version) + 1,
            lease: 0,
            value: put.value.clone(),
            sub: SUB,
            changes: before.last_change().changes + 1,
        };
        self.batch.put(Family::Current, put.key.clone(), after.encode_to_vec());
        if matches!(before, KeyState::Deleted(_)) {
            self.batch.delete(Family::Deleted, put.key.clone());
        }
        Ok(self.change(&put.key, &before, KeyState::Live(after)))
    }

    /// Removes a key, if the condition holds. Removing what is not there
    /// changes nothing.
    pub fn delete(&mut self, delete: &Delete) -> Result<Outcome, Fatal> {
        let before = self.key_state(&delete.key)?;
        if !holds(delete.condition.as_ref(), before.record()) {
            return Ok(precondition_failed(before.record()));
        }
        let KeyState::Live(record) = &before else {
            return Ok(answer(Is::KeyNotFound(Unit {})));
        };
        let tombstone =
            Tombstone { revision: self.revision + 1, sub: SUB, changes: record.changes + 1 };
        self.batch.delete(Family::Current, delete.key.clone());
        self.batch.put(Family::Deleted, delete.key.clone(), tombstone.encode_to_vec());
        Ok(self.change(&delete.key, &before, KeyState::Deleted(tombstone)))
    }

    /// Writes down that a key went from one state to another, at the next
    /// revision.
    fn change(&mut self, key: &Bytes, before: &KeyState, after: KeyState) -> Outcome {
        self.revision += 1;
        let last = before.last_change();
        let change = Change {
            key: key.clone(),
            record: after.record().cloned(),
            previous: before.record().cloned(),
            previous_revision: last.revision,
            previous_sub: last.sub,
        };
        let place = keys::change(self.revision, SUB);
        self.batch.put(Family::Changes, place.to_vec(), change.encode_to_vec());
        if after.last_change().changes.is_multiple_of(HISTORY_INTERVAL) {
            let sample = keys::history(key, self.revision, SUB);
            self.batch.put(Family::History, sample, Bytes::new());
        }
        self.seen.insert(key.clone(), after);
        answer(Is::Revision(self.revision))
    }

    fn key_state(&mut self, key: &Bytes) -> Result<KeyState, Fatal> {
        if let Some(state) = self.seen.get(key) {
            return Ok(state.clone());
        }
        let state = if let Some(record) = record::read(self.reader, Family::Current, key)? {
            KeyState::Live(record)
        } else if let Some(tombstone) = record::read(self.reader, Family::Deleted, key)? {
            KeyState::Deleted(tombstone)
        } else {
            KeyState::Unknown
        };
        self.seen.insert(key.clone(), state.clone());
        Ok(state)
    }
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

fn answer(result: Is) -> Outcome {
    Outcome { result: Some(result) }
}
