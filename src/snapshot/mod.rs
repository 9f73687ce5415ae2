//! Snapshot files from the command line: saving one from a running cluster,
//! looking into one, and making a new cluster of one.
//!
//! The files are those of etcd: its tools take ours, and a restore takes
//! theirs.

mod progress;
mod restore;
mod save;
mod status;

use std::path::Path;

use crate::{
    error::Fatal,
    machine::{BackupError, Contents},
    storage::bolt::{self, Reader},
};

pub use restore::Restore;
pub use save::Save;
pub use status::{Format, Status};

use progress::Progress;

/// What is said in the end, on standard output.
pub type Report = String;

/// Reads a file from end to end.
fn contents(path: &Path) -> Result<(Reader, Contents), Fatal> {
    let failed = |error| failed("read", path, error);
    let reader = Reader::open(path).map_err(|error| failed(error.into()))?;
    let mut progress = Progress::records("checking", None);
    let contents = Contents::read(&reader, &mut |done| {
        progress.set(done);
        Ok(())
    });
    Ok((reader, contents.map_err(failed)?))
}

/// What people are told when a snapshot file is of no use.
fn failed(action: &str, path: &Path, error: BackupError) -> Fatal {
    let what = format!("cannot {action} the snapshot {}: {error}", path.display());
    match error {
        BackupError::Database(fatal) => fatal,
        BackupError::File(bolt::Error::Io(..)) => {
            Fatal::new(what, "check the file, its permissions and the disk")
        }
        BackupError::File(_) => Fatal::new(what, "take another snapshot file"),
        BackupError::Unfit(_) | BackupError::Stopped(_) => {
            Fatal::new(what, "nothing was restored; take another snapshot file")
        }
    }
}
