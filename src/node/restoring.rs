//! The data directory of a member whose cluster begins with restored data.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::data_dir::DataDir;
use crate::{
    error::Fatal,
    machine::{self, StateMachine},
    proto::{Founder, FoundingRecord, Identity},
    raftlog::{self, FOUNDING_POSITION},
    storage::rocks::{RocksEngine, create_directory, sync_directory},
};

/// Makes the directory `root`, which must not exist, that of the only member
/// of a new cluster, whose state database `fill` has filled. The cluster's id
/// and the member's incarnation are new. Everything is made beside `root`
/// and moved there, durably, once it is complete; a failure leaves nothing.
///
/// # Errors
/// When `root` exists, when an earlier attempt was killed and left its
/// directory, when the disk refuses, and what `fill` says.
pub fn found_restored<T, E: From<Fatal>>(
    root: &Path,
    id: u64,
    peer_url: &str,
    fill: impl FnOnce(&RocksEngine) -> Result<T, E>,
) -> Result<(Identity, T), E> {
    if root.try_exists().map_err(|e| unusable(root, e))? {
        let what = format!("the data directory {} exists already", root.display());
        return Err(Fatal::new(what, "name another --data-dir or --id, or move it away").into());
    }
    let mut name = root.as_os_str().to_owned();
    name.push(".restoring");
    let making = Making::begin(PathBuf::from(name))?;

    let data_dir = DataDir::open(making.dir.clone())?;
    let raft = data_dir.open_raft()?;
    let incarnation = rand::random_range(1..u64::MAX);
    raftlog::store_incarnation(&raft, incarnation)?;
    let founder = Founder { id, peer_url: peer_url.to_owned(), incarnation };
    let record = FoundingRecord { founders: vec![founder] };
    raftlog::store_prepared(&raft, &record)?;

    let name = raftlog::state_dir(FOUNDING_POSITION.index);
    let engine = data_dir.create_state(&name)?;
    let filled = fill(&engine)?;
    StateMachine::bootstrap(&engine, &record)?;
    drop(engine);
    let cluster_id = machine::cluster_id(&record);
    let identity = Identity { cluster_id, member_id: id, incarnation };
    raftlog::found(&raft, &identity, &name)?;
    drop(raft);
    making.finish(root)?;
    Ok((identity, filled))
}

/// A directory in the making, deleted unless it is finished.
struct Making {
    dir: PathBuf,
    is_finished: bool,
}

impl Making {
    fn begin(dir: PathBuf) -> Result<Self, Fatal> {
        if let Some(parent) = dir.parent() {
            create_directory(parent).map_err(|e| unusable(parent, e))?;
        }
        match fs::create_dir(&dir) {
            Ok(()) => Ok(Self { dir, is_finished: false }),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Err(Fatal::new(
                format!("{} exists: another restore is under way or was killed", dir.display()),
                "delete it if no restore is under way",
            )),
            Err(e) => Err(unusable(&dir, e)),
        }
    }

    fn finish(mut self, root: &Path) -> Result<(), Fatal> {
        sync_directory(&self.dir)?;
        fs::rename(&self.dir, root).map_err(|e| unusable(root, e))?;
        self.is_finished = true;
        match root.parent() {
            Some(parent) if parent.as_os_str().is_empty() => sync_directory(Path::new(".")),
            Some(parent) => sync_directory(parent),
            None => Ok(()),
        }
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if !self.is_finished {
            // The next restore says what to do about what is left.
            let _left = fs::remove_dir_all(&self.dir);
        }
    }
}

fn unusable(dir: &Path, cause: std::io::Error) -> Fatal {
    Fatal::new(
        format!("cannot create the data directory {}: {cause}", dir.display()),
        "check that it can be written, or name another with --data-dir",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raftlog::Recovered;

    #[test]
    fn what_fails_half_way_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("new/1");
        let fill = |_: &RocksEngine| Err::<(), _>(Fatal::corrupt("half-way"));
        let fatal = found_restored(&root, 1, "http://a:1", fill).unwrap_err();
        assert_eq!(fatal.what, "half-way");
        assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 0);
    }

    #[test]
    fn what_is_there_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("1");
        let fill = |_: &RocksEngine| Ok::<_, Fatal>(());
        let (identity, ()) = found_restored(&root, 1, "http://a:1", fill).unwrap();
        let again = found_restored(&root, 1, "http://a:1", fill).unwrap_err();
        assert!(again.what.contains("exists already"), "{again}");
        let data_dir = DataDir::open(root).unwrap();
        let recovered = Recovered::read(&data_dir.open_raft().unwrap()).unwrap();
        assert_eq!(recovered.identity, Some(identity));
        let state = data_dir.open_state(&recovered.live_state.unwrap()).unwrap();
        let members = StateMachine::open(state).unwrap().members();
        assert_eq!((members.cluster_id, members.members.len()), (identity.cluster_id, 1));

        fs::create_dir(dir.path().join("2.restoring")).unwrap();
        let beside = found_restored(&dir.path().join("2"), 2, "http://a:1", fill).unwrap_err();
        assert!(beside.remedy.contains("delete it"), "{beside}");
    }
}
