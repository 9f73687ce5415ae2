//! The data of the state machine as a snapshot file of etcd, out and in.
//!
//! Such a file is a database of bbolt. Its bucket `key` holds every change
//! since the last compaction, and of what was before it the newest state of
//! every key, all in the order of their revisions. Members, their
//! configuration and the place in the log are not in it: a restore makes a
//! cluster of its own.

mod contents;
mod export;
mod import;
mod record;

use std::{fmt, io};

use crate::{error::Fatal, storage::bolt};

pub use contents::Contents;
pub use export::Exported;
pub(super) use export::export;
pub use import::{Imported, Revisions, import};

/// The changes of keys by revision.
const KEY: &[u8] = b"key";

/// The compaction and the place in the log.
const META: &[u8] = b"meta";

/// The leases by id.
const LEASE: &[u8] = b"lease";

/// The raised alarms.
const ALARM: &[u8] = b"alarm";

/// Users, roles, and whether they are in use.
const AUTH: &[u8] = b"auth";

/// The buckets that this program leaves empty. etcd's tools want all of its
/// buckets to be there.
const EMPTY_BUCKETS: [&[u8]; 7] =
    [ALARM, AUTH, b"authRoles", b"authUsers", b"cluster", b"members", b"members_removed"];

/// `meta`: the compaction that was asked for, and the last one carried out.
const SCHEDULED_COMPACTION: &[u8] = b"scheduledCompactRev";
const FINISHED_COMPACTION: &[u8] = b"finishedCompactRev";

/// `meta`: the index of the last applied log entry.
const CONSISTENT_INDEX: &[u8] = b"consistent_index";

/// `auth`: whether users and passwords are in use, one byte.
const AUTH_ENABLED: &[u8] = b"authEnabled";

/// Called again and again with the number of records done so far. An error
/// ends the work, and is given back as [`BackupError::Stopped`].
pub type Check<'a> = &'a mut dyn FnMut(u64) -> Result<(), String>;

/// Why a file was not written or not taken in.
#[derive(Debug)]
pub enum BackupError {
    /// The state database failed: whoever serves from it must stop.
    Database(Fatal),
    /// The file cannot be read or written, or is damaged.
    File(bolt::Error),
    /// What the file holds cannot be restored; the text says why.
    Unfit(String),
    /// Whoever asked for it does not want it any more; the text is theirs.
    Stopped(String),
}

impl fmt::Display for BackupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Database(fatal) => fatal.fmt(f),
            Self::File(error) => error.fmt(f),
            Self::Unfit(why) | Self::Stopped(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for BackupError {}

impl From<Fatal> for BackupError {
    fn from(fatal: Fatal) -> Self {
        Self::Database(fatal)
    }
}

impl From<bolt::Error> for BackupError {
    fn from(error: bolt::Error) -> Self {
        Self::File(error)
    }
}

/// A temporary file that could not be written or read.
fn scratch_failed(cause: io::Error) -> BackupError {
    BackupError::File(bolt::Error::Io("sort in a temporary file".to_owned(), cause))
}

/// Work between two calls of a [`Check`], in records.
const CHECK_INTERVAL: u64 = 16;

/// Counts records and lets a [`Check`] look at the work.
struct Progress<'a> {
    done: u64,
    check: Check<'a>,
}

impl<'a> Progress<'a> {
    fn new(check: Check<'a>) -> Self {
        Self { done: 0, check }
    }

    /// One more record is done.
    fn step(&mut self) -> Result<(), BackupError> {
        self.done += 1;
        if self.done.is_multiple_of(CHECK_INTERVAL) { self.tell() } else { Ok(()) }
    }

    /// A record was read that will be done later.
    fn look(&mut self, read: u64) -> Result<(), BackupError> {
        if read.is_multiple_of(CHECK_INTERVAL) { self.tell() } else { Ok(()) }
    }

    fn tell(&mut self) -> Result<(), BackupError> {
        (self.check)(self.done).map_err(BackupError::Stopped)
    }
}
