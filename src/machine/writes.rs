//! Changes of keys over the revision model.
//!
//! Everything that one command changes has one revision, the next of the
//! store. Each change leaves in the database the key's newest state
//! (`current`, or `deleted`), the change with the state before it (`changes`),
//! and at every 16th change of the key a sample of its history (`history`).
//! The changes of a key are counted across deletion and re-creation, unless a
//! compaction has passed the deletion.

use bytes::Bytes;
use prost::Message;

use super::{LeaseChange, RevisionChanges, moment::Moment, record};
use crate::{
    error::Fatal,
    proto::{Change, KeyRecord, LeaseRecord, Refused, Tombstone},
    storage::{Batch, Family, Pending, Reader, keys},
};

/// Changes of a key between two samples in `history`: a longer distance makes
/// reads of the past walk further, a shorter one makes each write dearer.
pub(super) const HISTORY_INTERVAL: u64 = 16;

/// Bytes of keys and values that one command may delete.
pub const MAX_DELETED_BYTES: usize = 256 << 20;

/// The writes of one apply batch, or of a command that may yet be refused.
/// Later ones see the effects of earlier ones before any of them is in the
/// database.
pub(super) struct Writes<'a, R> {
    pending: Pending<'a, R>,
    /// The store's revision after the commands so far.
    revision: u64,
    compacted: u64,
    /// The changes of the command that is being carried out.
    open: Vec<Change>,
    revisions: Vec<RevisionChanges>,
    leases: Vec<LeaseChange>,
    /// Bytes that the command that is being carried out deletes.
    deleted_bytes: usize,
}

/// What writes come to.
pub(super) struct Written {
    pub batch: Batch,
    pub revision: u64,
    pub compacted: u64,
    pub revisions: Vec<RevisionChanges>,
    pub leases: Vec<LeaseChange>,
}

/// What the store knows of one key.
#[derive(Debug, Clone)]
pub(super) enum KeyState {
    /// Nothing.
    Unknown,
    /// It exists.
    Live(KeyRecord),
    /// It existed once.
    Deleted(Tombstone),
}

impl KeyState {
    pub fn record(&self) -> Option<&KeyRecord> {
        match self {
            Self::Live(record) => Some(record),
            Self::Unknown | Self::Deleted(_) => None,
        }
    }

    fn into_record(self) -> Option<KeyRecord> {
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

impl<'a, R: Reader> Writes<'a, R> {
    /// Starts over a store at this revision and compaction.
    pub fn new(reader: &'a R, revision: u64, compacted: u64) -> Self {
        Self {
            pending: Pending::new(reader),
            revision,
            compacted,
            open: Vec::new(),
            revisions: Vec::new(),
            leases: Vec::new(),
            deleted_bytes: 0,
        }
    }

    /// Starts over these writes, between two commands.
    pub fn nested(&self) -> Writes<'_, Pending<'a, R>> {
        Writes::new(&self.pending, self.revision, self.compacted)
    }

    /// Takes over what nested writes came to.
    pub fn absorb(&mut self, written: Written) {
        self.pending.absorb(written.batch);
        self.revision = written.revision;
        self.compacted = written.compacted;
        self.revisions.extend(written.revisions);
        self.leases.extend(written.leases);
    }

    /// What all writes come to.
    pub fn finish(mut self) -> Written {
        self.commit();
        Written {
            batch: self.pending.into_batch(),
            revision: self.revision,
            compacted: self.compacted,
            revisions: self.revisions,
            leases: self.leases,
        }
    }

    /// Ends a command: whatever it changed was one revision.
    pub fn commit(&mut self) {
        self.deleted_bytes = 0;
        if !self.open.is_empty() {
            self.revision += 1;
            let changes = std::mem::take(&mut self.open);
            self.revisions.push(RevisionChanges { revision: self.revision, changes });
        }
    }

    /// Counts what a command is about to delete, of which memory holds several
    /// copies while it is applied.
    pub fn charge_deletion(&mut self, bytes: usize) -> Result<(), Refused> {
        self.deleted_bytes = self.deleted_bytes.saturating_add(bytes);
        if self.deleted_bytes > MAX_DELETED_BYTES {
            return Err(Refused::DeletionTooLarge);
        }
        Ok(())
    }

    /// The store's revision as of now, within a command.
    pub fn revision(&self) -> u64 {
        self.revision + u64::from(!self.open.is_empty())
    }

    /// What a reader sees within a command.
    pub fn moment(&self) -> Moment<'_, Pending<'a, R>> {
        let (revision, compacted) = (self.revision(), self.compacted);
        Moment { reader: &self.pending, revision, compacted }
    }

    /// Everything known of a key.
    pub fn state(&self, key: &[u8]) -> Result<KeyState, Fatal> {
        if let Some(record) = record::read(&self.pending, Family::Current, key)? {
            return Ok(KeyState::Live(record));
        }
        let tombstone = record::read(&self.pending, Family::Deleted, key)?;
        Ok(tombstone.map_or(KeyState::Unknown, KeyState::Deleted))
    }

    /// Sets a key, whose state is `before`, and attaches it to a lease, which
    /// exists, unless it is 0.
    pub fn set(&mut self, key: &Bytes, before: KeyState, value: Bytes, lease: i64) {
        let previous = before.record();
        let revision = self.revision + 1;
        let unknown =
            if mutant!(VersionSurvivesDeletion) { before.last_change().changes } else { 0 };
        let after = KeyRecord {
            create_revision: previous.map_or(revision, |record| record.create_revision),
            mod_revision: revision,
            version: previous.map_or(unknown, |record| record.version) + 1,
            lease,
            value,
            sub: self.next_sub(),
            changes: 0,
        };
        self.store(key, before, after, true);
    }

    /// Makes `after` the state of a key, with its changes counted on. Its
    /// lease exists, or `attach` is false.
    pub fn store(&mut self, key: &Bytes, before: KeyState, after: KeyRecord, attach: bool) {
        let before = match before {
            KeyState::Deleted(tombstone) => {
                self.pending.delete(Family::Deleted, key.clone());
                // Some members have forgotten it, and all must act alike.
                let known = tombstone.revision > self.compacted;
                if known { KeyState::Deleted(tombstone) } else { KeyState::Unknown }
            }
            before => before,
        };
        let after = KeyRecord { changes: before.last_change().changes + 1, ..after };
        let held_by = before.record().map_or(0, |record| record.lease);
        if held_by != after.lease {
            self.detach(key, held_by);
            if after.lease != 0 && attach {
                let attached = keys::lease_key(after.lease, key);
                self.pending.put(Family::LeaseKeys, attached, Bytes::new());
            }
        }
        self.pending.put(Family::Current, key.clone(), after.encode_to_vec());
        self.change(key, before, KeyState::Live(after));
    }

    /// Removes a key that exists.
    pub fn remove(&mut self, key: &Bytes, before: KeyRecord) {
        let place = (self.revision + 1, self.next_sub());
        self.bury(key, KeyState::Live(before), place);
    }

    /// Makes a key deleted by the change at `place`.
    pub fn bury(&mut self, key: &Bytes, before: KeyState, place: (u64, u32)) {
        let (revision, sub) = place;
        let tombstone = Tombstone { revision, sub, changes: before.last_change().changes + 1 };
        self.detach(key, before.record().map_or(0, |record| record.lease));
        self.pending.delete(Family::Current, key.clone());
        if revision > self.compacted {
            self.pending.put(Family::Deleted, key.clone(), tombstone.encode_to_vec());
        }
        self.change(key, before, KeyState::Deleted(tombstone));
    }

    /// Forgets what was before a revision: from now on it counts as absent. The
    /// engine drops it once its [`Floor`](crate::storage::Floor) is there.
    pub fn compact(&mut self, revision: u64) {
        self.compacted = revision;
    }

    pub fn compacted(&self) -> u64 {
        self.compacted
    }

    pub fn lease(&self, id: i64) -> Result<Option<LeaseRecord>, Fatal> {
        record::lease(&self.pending, id)
    }

    pub fn lease_keys(&self, id: i64) -> Result<Vec<Bytes>, Fatal> {
        record::lease_keys(&self.pending, id)
    }

    pub fn set_lease(&mut self, lease: LeaseRecord) {
        let key = keys::lease(lease.id).to_vec();
        self.pending.put(Family::Leases, key, lease.encode_to_vec());
        self.leases.push(LeaseChange::Set(lease));
    }

    /// Removes a lease that has no keys.
    pub fn remove_lease(&mut self, id: i64) {
        self.pending.delete(Family::Leases, keys::lease(id).to_vec());
        self.leases.push(LeaseChange::Gone(id));
    }

    fn detach(&mut self, key: &[u8], lease: i64) {
        if lease != 0 && !mutant!(KeyStaysWithLease) {
            self.pending.delete(Family::LeaseKeys, keys::lease_key(lease, key));
        }
    }

    /// The place of the next change within its revision.
    fn next_sub(&self) -> u32 {
        // A batch of so many changes would not fit into memory.
        u32::try_from(self.open.len()).unwrap_or(u32::MAX)
    }

    /// Writes down that a key went from one state to another, unless it was
    /// compacted away before it came here.
    fn change(&mut self, key: &Bytes, before: KeyState, after: KeyState) {
        let last = before.last_change();
        let Tombstone { revision, sub, changes } = after.last_change();
        let change = Change {
            key: key.clone(),
            record: after.into_record(),
            previous: before.into_record(),
            previous_revision: last.revision,
            previous_sub: last.sub,
        };
        if revision >= self.compacted {
            let place = keys::change(revision, sub).to_vec();
            self.pending.put(Family::Changes, place, change.encode_to_vec());
        }
        if revision > self.compacted && changes.is_multiple_of(HISTORY_INTERVAL) {
            let sample = keys::history(key, revision, sub);
            self.pending.put(Family::History, sample, Bytes::new());
        }
        self.open.push(change);
    }
}
