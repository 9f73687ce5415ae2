//! A node's directory: which databases and snapshots are in it.
//!
//! ```text
//! {data-dir}/{id}/raft/            the raft database; it says which state directory is live
//! {data-dir}/{id}/watermark        term and vote that the raft database had synced
//! {data-dir}/{id}/watermark-log    the last entry that it had synced
//! {data-dir}/{id}/state-{index}/   the state database
//! {data-dir}/{id}/snap/            snapshots made, being received, or about to be installed
//! ```
//!
//! Directories that nothing points at are deleted at start.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use crate::{
    error::Fatal,
    proto::LogPosition,
    raftlog,
    storage::{
        rocks::{
            Kind, MemoryBudget, RocksEngine, create_directory, sync_directory, verify_checkpoint,
        },
        sums,
    },
};

/// Free space below which a node does not start: RocksDB cannot recover from
/// a full disk without room to write.
const MIN_FREE_BYTES: u64 = 64 << 20;

/// The node's directory. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct DataDir {
    root: PathBuf,
    budget: MemoryBudget,
    received: Arc<Received>,
}

/// Snapshots that were received and not yet installed.
#[derive(Debug, Default)]
struct Received {
    // A lock because the peer listener adds and the log thread takes.
    by_index: Mutex<BTreeMap<u64, PathBuf>>,
    sequence: AtomicU64,
}

/// A snapshot on disk, deleted when nobody needs it any more.
#[derive(Debug)]
pub(super) struct MadeSnapshot {
    pub dir: PathBuf,
    /// Whether all of it was read and found sound. A lock because several
    /// members may need it at once, and one look is enough.
    sound: Mutex<bool>,
}

impl MadeSnapshot {
    /// Reads all of it, once: a member must not be given what is damaged here,
    /// because its hashes would vouch for it.
    pub fn verify(&self) -> Result<(), Fatal> {
        let mut sound = self.sound.lock();
        if !*sound {
            verify_checkpoint(&self.dir)?;
            *sound = true;
        }
        Ok(())
    }
}

impl Drop for MadeSnapshot {
    fn drop(&mut self) {
        // What stays behind is deleted at the next start.
        let _left_for_the_next_start = fs::remove_dir_all(&self.dir);
    }
}

impl DataDir {
    /// Creates the directory if it is missing and checks that it can be used.
    pub fn open(root: PathBuf) -> Result<Self, Fatal> {
        create_directory(&root.join("snap")).map_err(|e| {
            Fatal::new(
                format!("cannot create the data directory {}: {e}", root.display()),
                "check that it can be written, or name another with --data-dir",
            )
        })?;
        if let Ok(space) = rustix::fs::statvfs(&root) {
            let free = space.f_bavail.saturating_mul(space.f_frsize);
            if free < MIN_FREE_BYTES {
                return Err(Fatal::new(
                    format!("only {} MiB are free on the disk of {}", free >> 20, root.display()),
                    format!("free at least {} MiB and start again", MIN_FREE_BYTES >> 20),
                ));
            }
        }
        Ok(Self { root, budget: MemoryBudget::default(), received: Arc::default() })
    }

    pub fn open_raft(&self) -> Result<RocksEngine, Fatal> {
        RocksEngine::open(&self.root.join("raft"), Kind::Raft, &self.budget)
    }

    /// Opens the state database `name` at start; it must exist. One that came
    /// as a snapshot and was never opened is first compared with the hashes it
    /// was received with.
    pub fn open_state(&self, name: &str) -> Result<RocksEngine, Fatal> {
        let dir = self.root.join(name);
        if !dir.is_dir() {
            return Err(Fatal::corrupt(format!(
                "the state directory {} is missing",
                dir.display()
            )));
        }
        sums::verify_sums(&dir)?;
        self.open_received(name)
    }

    /// Opens the state database `name`, which has just been received.
    pub fn open_received(&self, name: &str) -> Result<RocksEngine, Fatal> {
        let dir = self.root.join(name);
        // Once opened, its files change.
        sums::drop_sums(&dir)?;
        RocksEngine::open(&dir, Kind::State, &self.budget)
    }

    /// Creates the state database `name`, durably.
    pub fn create_state(&self, name: &str) -> Result<RocksEngine, Fatal> {
        let engine = RocksEngine::open(&self.root.join(name), Kind::State, &self.budget)?;
        sync_directory(&self.root)?;
        Ok(engine)
    }

    /// The first of its files; the others lie beside it.
    pub fn watermark(&self) -> PathBuf {
        self.root.join("watermark")
    }

    pub fn snap(&self) -> PathBuf {
        self.root.join("snap")
    }

    /// Deletes what a crash left behind: all state directories but the live
    /// one, and every snapshot.
    pub fn sweep(&self, live: Option<&str>) -> Result<(), Fatal> {
        for entry in list(&self.root)? {
            let name = entry.file_name().map(|name| name.to_string_lossy().into_owned());
            let name = name.unwrap_or_default();
            if name.starts_with("state-") && live != Some(name.as_str()) {
                remove(&entry)?;
            }
        }
        for entry in list(&self.snap())? {
            remove(&entry)?;
        }
        Ok(())
    }

    /// A snapshot of this index, which is to be made where it says.
    pub fn made(&self, index: u64) -> MadeSnapshot {
        let dir = self.snap().join(format!("made-{index}"));
        MadeSnapshot { dir, sound: Mutex::default() }
    }

    /// Takes charge of a received snapshot until it is installed, or `applied`
    /// shows that raft will ignore it.
    pub fn keep_received(&self, index: u64, dir: &Path, applied: u64) -> Result<(), Fatal> {
        let mut by_index = self.received.by_index.lock();
        let current = by_index.split_off(&(applied + 1));
        for stale in std::mem::replace(&mut *by_index, current).into_values() {
            remove(&stale)?;
        }
        if by_index.contains_key(&index) {
            // The first may be on its way into place; it has the same content.
            return remove(dir);
        }
        let sequence = self.received.sequence.fetch_add(1, Ordering::Relaxed);
        let kept = self.snap().join(format!("received-{index}-{sequence}"));
        fs::rename(dir, &kept)
            .map_err(|e| Fatal::storage(format!("rename {}", dir.display()), e))?;
        by_index.insert(index, kept);
        Ok(())
    }

    /// Puts the received snapshot of this position in its place, durably.
    pub fn adopt(&self, position: LogPosition) -> Result<(), Fatal> {
        let Some(dir) = self.received.by_index.lock().remove(&position.index) else {
            return Err(Fatal::corrupt(format!(
                "the received snapshot of index {} is gone before it was installed",
                position.index
            )));
        };
        let place = self.root.join(raftlog::state_dir(position.index));
        remove(&place)?;
        fs::rename(&dir, &place)
            .map_err(|e| Fatal::storage(format!("rename {}", dir.display()), e))?;
        sync_directory(&self.root)
    }
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, Fatal> {
    let unreadable = |e| Fatal::storage(format!("list {}", dir.display()), e);
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        paths.push(entry.map_err(unreadable)?.path());
    }
    Ok(paths)
}

/// Deletes a directory or a file, there or not.
fn remove(path: &Path) -> Result<(), Fatal> {
    let removed = match fs::remove_dir_all(path) {
        Err(e) if e.kind() == ErrorKind::NotADirectory => fs::remove_file(path),
        removed => removed,
    };
    match removed {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(Fatal::storage(format!("delete {}", path.display()), e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory whose state came as a snapshot and was not opened since.
    fn received() -> (tempfile::TempDir, DataDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(root.path().to_owned()).unwrap();
        drop(data_dir.create_state("state-7").unwrap());
        let state = root.path().join("state-7");
        let current = fs::read(state.join("CURRENT")).unwrap();
        let hash = <sha2::Sha256 as sha2::Digest>::digest(current).into();
        sums::store_sums(&state, [("CURRENT", hash)]).unwrap();
        (root, data_dir, state)
    }

    #[test]
    fn a_received_state_is_compared_until_it_was_opened_once() {
        let (_root, data_dir, state) = received();
        drop(data_dir.open_state("state-7").unwrap());
        assert!(!state.join(sums::SUMS).exists());
        drop(data_dir.open_state("state-7").unwrap());
    }

    #[test]
    fn a_received_state_that_was_damaged_is_not_opened() {
        let (_root, data_dir, state) = received();
        fs::write(state.join("CURRENT"), "MANIFEST-000001\n").unwrap();
        let refused = data_dir.open_state("state-7").unwrap_err();
        assert!(refused.what.starts_with("CURRENT of "), "{refused}");
        assert!(state.join(sums::SUMS).exists(), "it stays refused");
    }
}
