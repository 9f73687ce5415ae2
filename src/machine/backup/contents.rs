//! What a snapshot file holds, found by reading all of it.

use super::{
    ALARM, AUTH, AUTH_ENABLED, BackupError, Check, FINISHED_COMPACTION, KEY, LEASE, META, Progress,
    SCHEDULED_COMPACTION, record,
};
use crate::storage::bolt::Reader;

/// A summary of a snapshot file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contents {
    /// CRC-32C of everything in it, as etcd's own tools compute it.
    pub hash: u32,
    /// The last change of a key in it; 0 when there is none.
    pub last_change: u64,
    /// The last compaction, 0 for none. One that was only begun counts.
    pub compacted: u64,
    /// Records in all buckets.
    pub records: u64,
    /// Records in the bucket of keys: changes and states.
    pub changes: u64,
    /// Leases.
    pub leases: u64,
    /// Raised alarms.
    pub alarms: u64,
    /// Whether users and passwords were in use.
    pub is_auth_enabled: bool,
    /// Bytes of its pages.
    pub size_bytes: u64,
}

impl Contents {
    /// Reads the whole file.
    ///
    /// # Errors
    /// When it is damaged, is no snapshot of etcd, or cannot be read.
    pub fn read(reader: &Reader, check: Check<'_>) -> Result<Self, BackupError> {
        let mut contents = Self { size_bytes: reader.size_bytes(), ..Self::default() };
        let mut progress = Progress::new(check);
        let names = reader.buckets()?;
        if !names.iter().any(|name| name == KEY) {
            return Err(BackupError::Unfit(
                "the file is a database of bbolt, but no snapshot of etcd or metastore: it has no \
                 bucket of keys"
                    .to_owned(),
            ));
        }
        for name in names {
            contents.hash = crc32c::crc32c_append(contents.hash, &name);
            for pair in reader.iter(&name)?.into_iter().flatten() {
                let (key, value) = pair?;
                contents.hash = crc32c::crc32c_append(contents.hash, &key);
                contents.hash = crc32c::crc32c_append(contents.hash, &value);
                contents.records += 1;
                contents.take(&name, &key, &value)?;
                progress.step()?;
            }
        }
        Ok(contents)
    }

    /// The revision that the saved store had: never below 1.
    pub fn revision(&self) -> u64 {
        self.last_change.max(self.compacted).max(1)
    }

    fn take(&mut self, bucket: &[u8], key: &[u8], value: &[u8]) -> Result<(), BackupError> {
        let damaged = |what: &str| {
            let (bucket, key) = (bucket.escape_ascii(), key.escape_ascii());
            BackupError::Unfit(format!("the file is damaged: record \"{key}\" of {bucket} {what}"))
        };
        if bucket == KEY {
            let ((revision, _), _) =
                record::place(key).ok_or_else(|| damaged("does not begin with a revision"))?;
            self.last_change = revision;
            self.changes += 1;
        } else if bucket == META && (key == SCHEDULED_COMPACTION || key == FINISHED_COMPACTION) {
            let revision = record::revision(value).ok_or_else(|| damaged("is no revision"))?;
            self.compacted = self.compacted.max(revision);
        } else if bucket == AUTH && key == AUTH_ENABLED {
            self.is_auth_enabled = value.iter().any(|&byte| byte != 0);
        } else if bucket == LEASE {
            self.leases += 1;
        } else if bucket == ALARM {
            self.alarms += 1;
        }
        Ok(())
    }
}
