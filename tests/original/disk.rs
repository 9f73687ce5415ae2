//! A sole member's data directory, made by hand.

use std::{
    fs,
    path::{Path, PathBuf},
};

use metastore::{
    machine::{self, StateMachine, command},
    proto::{Command, Founder, FoundingRecord, Identity, LogPosition, Put, RequestId, command::Op},
    raftlog::{self, LogWriter, Persist, Recovered},
    storage::rocks::{Kind, MemoryBudget, RocksEngine},
};
use raft::eraftpb::{Entry, HardState};

/// The directory of member 1, alone in its cluster. The databases are closed
/// between calls.
pub struct Disk {
    root: PathBuf,
    founding: FoundingRecord,
}

impl Disk {
    /// Founds the cluster: `state-1` holds it, the log begins at index 2.
    pub fn found(root: &Path, peer_url: String) -> Self {
        fs::create_dir_all(root.join("snap")).expect("make the member's directory");
        let founder = Founder { id: 1, peer_url, incarnation: 11 };
        let founding = FoundingRecord { founders: vec![founder] };
        let cluster_id = machine::cluster_id(&founding);
        let identity = Identity { cluster_id, member_id: 1, incarnation: 11 };
        let disk = Self { root: root.to_owned(), founding };
        disk.state_machine("state-1", |_| ());
        raftlog::found(&disk.open_raft(), &identity, "state-1").expect("a founding");
        disk
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn open(&self, name: &str, kind: Kind) -> RocksEngine {
        RocksEngine::open(&self.path(name), kind, &MemoryBudget::default()).expect("a database")
    }

    fn open_raft(&self) -> RocksEngine {
        self.open("raft", Kind::Raft)
    }

    /// Has a newly founded state machine in this directory do something, and
    /// makes that durable.
    pub fn state_machine(&self, name: &str, act: impl FnOnce(&mut StateMachine<RocksEngine>)) {
        let engine = self.open(name, Kind::State);
        StateMachine::bootstrap(&engine, &self.founding).expect("a founding");
        let mut machine = StateMachine::open(engine).expect("a state machine");
        act(&mut machine);
        machine.flush().expect("a durable state machine");
    }

    /// Writes to the raft database, as one batch.
    pub fn write(&self, persist: Persist) {
        let raft = self.open_raft();
        let recovered = Recovered::read(&raft).expect("a sound database");
        let persist = Persist { sync: true, ..persist };
        LogWriter::new(raft, &recovered).write(&[persist]).expect("a write to the raft database");
    }

    /// Appends entries, committed but not applied.
    pub fn append(&self, entries: Vec<Entry>) {
        let last = entries.last().map(|entry| LogPosition { index: entry.index, term: entry.term });
        let LogPosition { index, term } = last.expect("some entries");
        self.write(Persist {
            hard_state: Some(hard_state(term, index)),
            entries,
            ..Persist::default()
        });
    }

    /// The names in the directory, or in one of it, that begin like this.
    pub fn names(&self, dir: &str, prefix: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(dir)).expect("list a directory");
        let names = entries.map(|entry| entry.expect("a directory entry").file_name());
        names
            .map(|name| name.to_string_lossy().into_owned())
            .filter(|name| name.starts_with(prefix))
            .collect()
    }
}

/// A hard state with this member's own vote.
pub fn hard_state(term: u64, commit: u64) -> HardState {
    HardState { term, vote: 1, commit, ..HardState::default() }
}

/// An entry that puts a key.
pub fn put_entry(index: u64, term: u64, key: &str, value: &str) -> Entry {
    let put = Put {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        condition: None,
        ..Put::default()
    };
    let command = Command { id: Some(RequestId::default()), op: Some(Op::Put(put)) };
    let data = command::encode_payload(vec![command]).into();
    Entry { index, term, data, ..Entry::default() }
}
