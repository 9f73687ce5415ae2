//! From a snapshot file to a state database.

use std::ops::Bound;

use bytes::Bytes;
use prost::Message;

use super::{BackupError, Check, Contents, KEY, LEASE, Progress, record};
use crate::{
    error::Fatal,
    machine::{
        record as stored,
        writes::{KeyState, Writes},
    },
    proto::{AppliedState, KeyRecord, LeaseRecord, leasepb::Lease, mvccpb::KeyValue},
    storage::{
        Batch, Engine, Family,
        bolt::{Pair, Reader},
        keys,
    },
};

/// Bytes of records that are written at once, and how many at most.
const BATCH_BYTES: usize = 2 << 20;
const BATCH_RECORDS: usize = 2000;

/// What to do about revisions that clients of the saved cluster have seen and
/// the file does not know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Revisions {
    /// How far beyond the last saved revision the store goes on.
    pub bump: u64,
    /// Whether everything before the revision that the store goes on from
    /// counts as compacted away, so that no watch can start in between.
    pub mark_compacted: bool,
}

/// What a restored store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Imported {
    /// The store's revision.
    pub revision: u64,
    /// The last compaction; 0 for none.
    pub compacted: u64,
    /// Keys that exist.
    pub keys: u64,
    /// Leases.
    pub leases: u64,
    /// Keys that were attached to leases that the file does not have. They
    /// are kept, without a lease.
    pub detached: u64,
}

/// Fills an empty state database from a snapshot file, of which `contents` has
/// been read. Members and position are the founding's affair. After an error
/// the database holds anything and is to be deleted.
///
/// # Errors
/// When the file is damaged, holds what cannot be restored, or the disk
/// refuses.
pub fn import<E: Engine>(
    engine: &E,
    reader: &Reader,
    contents: &Contents,
    revisions: Revisions,
    check: Check<'_>,
) -> Result<Imported, BackupError> {
    if contents.is_auth_enabled {
        return Err(BackupError::Unfit(
            "the snapshot is of a cluster with users and passwords, which metastore does not have: \
             restored, its data would be open to everybody; to restore it nevertheless, disable \
             authentication (etcdctl auth disable) and save it again"
                .to_owned(),
        ));
    }
    let last = contents.revision();
    let revision = last.checked_add(revisions.bump).filter(|&sum| sum <= record::MAX_REVISION);
    let revision = revision.ok_or_else(|| {
        let (bump, most) = (revisions.bump, record::MAX_REVISION);
        BackupError::Unfit(format!(
            "the store would go on from revision {last} + {bump}; the most is {most}"
        ))
    })?;
    let compacted = if revisions.mark_compacted { revision } else { contents.compacted };
    let mut import = Import {
        engine,
        compacted,
        last: (0, 0),
        imported: Imported { revision, compacted, ..Imported::default() },
        progress: Progress::new(check),
    };
    import.leases(reader)?;
    import.keys(reader)?;
    if import.imported.detached > 0 {
        import.detach()?;
    }
    let applied = AppliedState { index: 0, term: 0, revision, compacted };
    let mut batch = Batch::default();
    batch.put(Family::Meta, keys::APPLIED, applied.encode_to_vec());
    engine.write(batch, false)?;
    Ok(import.imported)
}

struct Import<'a, E> {
    engine: &'a E,
    compacted: u64,
    /// The place of the last change.
    last: (u64, u32),
    imported: Imported,
    progress: Progress<'a>,
}

/// A change of a key as the file has it.
struct Change {
    key: Bytes,
    place: (u64, u32),
    /// The state after it; none for a deletion.
    after: Option<KeyRecord>,
}

impl<E: Engine> Import<'_, E> {
    fn leases(&mut self, reader: &Reader) -> Result<(), BackupError> {
        let mut batch = Batch::default();
        for pair in reader.iter(LEASE)?.into_iter().flatten() {
            let lease = lease(&pair?)?;
            batch.put(Family::Leases, keys::lease(lease.id).to_vec(), lease.encode_to_vec());
            self.imported.leases += 1;
            if batch.ops.len() == BATCH_RECORDS {
                self.engine.write(std::mem::take(&mut batch), false)?;
                self.progress.tell()?;
            }
        }
        Ok(self.engine.write(batch, false)?)
    }

    /// Takes in the changes of keys, in the order of their revisions, as if
    /// they were applied.
    fn keys(&mut self, reader: &Reader) -> Result<(), BackupError> {
        let mut pairs = reader.iter(KEY)?.into_iter().flatten().peekable();
        while pairs.peek().is_some() {
            let mut writes = Writes::new(self.engine, 0, self.compacted);
            let (mut records, mut bytes) = (0, 0);
            while records < BATCH_RECORDS && bytes < BATCH_BYTES {
                let Some(pair) = pairs.next() else { break };
                let pair = pair?;
                records += 1;
                bytes += pair.0.len() + pair.1.len();
                if let Some(change) = self.change(&pair)? {
                    self.apply(&mut writes, change)?;
                }
                self.progress.step()?;
            }
            let batch = writes.finish().batch;
            self.engine.write(batch, false)?;
        }
        Ok(())
    }

    /// Checks a record of the file. Some tools write one without a key to
    /// raise the revision.
    fn change(&mut self, (key, value): &Pair) -> Result<Option<Change>, BackupError> {
        let (place, is_deletion) = record::place(key)
            .ok_or_else(|| damaged(&format!("key \"{}\" is no revision", key.escape_ascii())))?;
        let (revision, sub) = place;
        let at = |what: &str| damaged(&format!("the change at revision {revision}.{sub} {what}"));
        if place <= self.last {
            return Err(at("stands there twice"));
        }
        self.last = place;
        if value.is_empty() {
            return Ok(None);
        }
        // A copy, because the page that it was read with would stay in memory.
        let found = KeyValue::decode(Bytes::copy_from_slice(value))
            .map_err(|cause| at(&format!("cannot be decoded: {cause}")))?;
        if found.key.is_empty() {
            return Err(at("has no key"));
        }
        if is_deletion {
            return Ok(Some(Change { key: found.key, place, after: None }));
        }
        let created = u64::try_from(found.create_revision).ok().filter(|&it| it <= revision);
        let version = u64::try_from(found.version).ok();
        // One more with each revision, at most.
        let version = version.filter(|it| (1..=record::MAX_REVISION).contains(it));
        let (Some(create_revision), Some(version)) = (created, version) else {
            return Err(at("has an impossible version or revision of creation"));
        };
        if u64::try_from(found.mod_revision) != Ok(revision) {
            return Err(at(&format!("says that it is of revision {}", found.mod_revision)));
        }
        let (lease, value) = (found.lease, found.value);
        let mod_revision = revision;
        let after =
            KeyRecord { create_revision, mod_revision, version, lease, value, sub, changes: 0 };
        Ok(Some(Change { key: found.key, place, after: Some(after) }))
    }

    fn apply(&mut self, writes: &mut Writes<'_, E>, change: Change) -> Result<(), BackupError> {
        let Change { key, place, after } = change;
        let before = writes.state(&key)?;
        if before.record().is_some() {
            self.imported.keys -= 1;
        }
        if let Some(record) = before.record()
            && !is_attachable(writes, record.lease)?
        {
            self.imported.detached -= 1;
        }
        match after {
            Some(after) => {
                let attach = is_attachable(writes, after.lease)?;
                self.imported.keys += 1;
                self.imported.detached += u64::from(!attach);
                writes.store(&key, before, after, attach);
            }
            None => {
                let exists = matches!(before, KeyState::Live(_));
                if !exists && place.0 > self.compacted {
                    let (key, revision) = (key.escape_ascii(), place.0);
                    return Err(damaged(&format!(
                        "revision {revision} deletes key \"{key}\", which does not exist there"
                    )));
                }
                writes.bury(&key, before, place);
            }
        }
        Ok(())
    }

    /// Takes leases that do not exist from the keys that name them: one of the
    /// same id that is granted later must not find them attached.
    fn detach(&mut self) -> Result<(), BackupError> {
        let mut batch = Batch::default();
        let mut read = 0;
        for pair in self.engine.scan(Family::Current, (Bound::Unbounded, Bound::Unbounded)) {
            let (key, value) = pair?;
            let record: KeyRecord = stored::decode(Family::Current, &key, value)?;
            read += 1;
            self.progress.look(read)?;
            if record.lease != 0 && stored::lease(self.engine, record.lease)?.is_none() {
                let detached = KeyRecord { lease: 0, ..record };
                batch.put(Family::Current, key, detached.encode_to_vec());
            }
            if batch.ops.len() == BATCH_RECORDS {
                self.engine.write(std::mem::take(&mut batch), false)?;
            }
        }
        Ok(self.engine.write(batch, false)?)
    }
}

/// Whether a key can be attached to a lease, or to none.
fn is_attachable<E: Engine>(writes: &Writes<'_, E>, lease: i64) -> Result<bool, Fatal> {
    Ok(lease == 0 || writes.lease(lease)?.is_some())
}

fn lease((key, value): &Pair) -> Result<LeaseRecord, BackupError> {
    let at = |what: &str| damaged(&format!("lease \"{}\" {what}", key.escape_ascii()));
    let Lease { id, ttl, remaining_ttl } =
        Lease::decode(&value[..]).map_err(|cause| at(&format!("cannot be decoded: {cause}")))?;
    if id == 0 || key[..] != record::lease_key(id) || ttl < 1 {
        return Err(at("has an impossible id or time to live"));
    }
    let remaining_s = if (1..ttl).contains(&remaining_ttl) { remaining_ttl } else { ttl };
    Ok(LeaseRecord { id, ttl_s: ttl, remaining_s, renewal: 0 })
}

fn damaged(what: &str) -> BackupError {
    BackupError::Unfit(format!("the file is damaged: {what}"))
}
