//! The raft log on RocksDB: what raft reads, before and after a restart.

use std::path::Path;

use metastore::{
    proto::LogPosition,
    raftlog::{LogWriter, Persist, RaftLog, Recovered},
    storage::rocks::{Kind, MemoryBudget, RocksEngine},
};
use raft::{
    Error, GetEntriesContext, Storage as _, StorageError,
    eraftpb::{ConfState, Entry, HardState},
};
use tempfile::TempDir;

/// A raft database, and the log over it, used as a node uses them.
struct Store {
    dir: TempDir,
    log: RaftLog<RocksEngine>,
    writer: LogWriter<RocksEngine>,
    /// What the last start found.
    recovered: Recovered,
}

fn conf_state() -> ConfState {
    ConfState { voters: vec![1, 2, 3], ..ConfState::default() }
}

fn open(dir: &Path) -> (RaftLog<RocksEngine>, LogWriter<RocksEngine>, Recovered) {
    let engine = RocksEngine::open(&dir.join("raft"), Kind::Raft, &MemoryBudget::default());
    let engine = engine.expect("open the raft database");
    let recovered = Recovered::read(&engine).expect("a sound database");
    let writer = LogWriter::new(engine.clone(), &recovered);
    let log = RaftLog::open(engine, &recovered, conf_state(), &recovered.truncated);
    (log.expect("open the log"), writer, recovered)
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("make a temporary directory");
        let (log, writer, recovered) = open(dir.path());
        Self { dir, log, writer, recovered }
    }

    /// Closes the database and starts again from what it holds.
    fn reopen(self) -> Self {
        let Self { dir, log, writer, .. } = self;
        drop((log, writer));
        let (log, writer, recovered) = open(dir.path());
        Self { dir, log, writer, recovered }
    }

    /// Takes over what a Ready holds, and makes it durable.
    fn save(&mut self, persist: Persist) {
        if let Some(position) = persist.install {
            self.log.install(position, conf_state());
        }
        self.log.append(&persist.entries);
        if let Some(hard_state) = &persist.hard_state {
            self.log.set_hard_state(hard_state.clone());
        }
        let last = persist.entries.last().map(|entry| at(entry.index, entry.term));
        let persist = Persist { sync: true, ..persist };
        self.writer.write(&[persist]).expect("write to the raft database");
        last.iter().for_each(|last| self.log.persisted(last));
    }

    /// Appends entries, with the term that whoever takes them is in by then.
    fn append(&mut self, entries: Vec<Entry>) {
        let mut hard_state = self.hard_state();
        hard_state.term = hard_state.term.max(entries.last().map_or(0, |last| last.term));
        self.save(Persist { hard_state: Some(hard_state), entries, ..Persist::default() });
    }

    fn compact(&mut self, index: u64) {
        let position = self.log.compact(index).expect("an entry of the log");
        self.save(Persist { compact: Some(position), ..Persist::default() });
    }

    fn bounds(&self) -> (u64, u64) {
        let first = self.log.first_index().expect("the first index");
        (first, self.log.last_index().expect("the last index"))
    }

    fn term(&self, index: u64) -> Result<u64, StorageError> {
        self.log.term(index).map_err(of_storage)
    }

    fn entries(&self, low: u64, high: u64) -> Result<Vec<Entry>, StorageError> {
        let context = GetEntriesContext::empty(false);
        self.log.entries(low, high, None, context).map_err(of_storage)
    }

    fn hard_state(&self) -> HardState {
        self.log.initial_state().expect("the initial state").hard_state
    }
}

fn of_storage(error: Error) -> StorageError {
    match error {
        Error::Store(error) => error,
        error => panic!("not an error of the storage: {error}"),
    }
}

fn at(index: u64, term: u64) -> LogPosition {
    LogPosition { index, term }
}

/// Entries from index `first` on, of these terms.
fn entries(first: u64, terms: &[u64]) -> Vec<Entry> {
    let entry = |(index, &term)| Entry {
        index,
        term,
        data: format!("entry {index} of term {term}").into(),
        ..Entry::default()
    };
    (first..).zip(terms).map(entry).collect()
}

fn votes(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term, vote, commit, ..HardState::default() }
}

#[test]
fn basic_operations() {
    let mut store = Store::new();
    for _ in 0..2 {
        assert_eq!(store.bounds(), (1, 0));
        assert_eq!(store.hard_state(), HardState::default());
        assert_eq!(store.term(0), Ok(0));
        assert_eq!(store.entries(1, 1), Ok(Vec::new()));
        assert!(store.recovered.identity.is_none());
        store = store.reopen();
    }
}

#[test]
fn append_entries() {
    let mut store = Store::new();
    store.append(entries(1, &[1, 1, 2]));
    store.append(entries(4, &[2, 3]));
    let whole = entries(1, &[1, 1, 2, 2, 3]);
    assert_eq!(store.bounds(), (1, 5));
    assert_eq!(store.entries(1, 6), Ok(whole.clone()));
    assert_eq!(store.entries(2, 4), Ok(whole[1..3].to_vec()));
    assert_eq!(store.entries(5, 7), Err(StorageError::Unavailable));

    // A new leader's entries, first as many as they replace, then more.
    store.append(entries(4, &[4, 4]));
    store.append(entries(5, &[5, 5]));
    let whole = entries(1, &[1, 1, 2, 4, 5, 5]);
    assert_eq!(store.entries(1, 7), Ok(whole.clone()));
    let store = store.reopen();
    assert_eq!(store.bounds(), (1, 6));
    assert_eq!(store.entries(1, 7), Ok(whole));
}

#[test]
fn shorter_conflicting_suffix_truncates_the_log() {
    let mut store = Store::new();
    store.append(entries(1, &[1; 100]));
    store = store.reopen();
    store.append(entries(3, &[2]));
    // The replaced suffix must not come back behind what is appended later.
    for (last, appended) in [(3, Vec::new()), (4, entries(4, &[3]))] {
        store.append(appended);
        for _ in 0..2 {
            assert_eq!(store.bounds(), (1, last));
            assert_eq!(store.entries(1, 4), Ok(entries(1, &[1, 1, 2])));
            for index in last + 1..=101 {
                assert_eq!(store.term(index), Err(StorageError::Unavailable), "entry {index}");
            }
            store = store.reopen();
        }
    }
    assert_eq!(store.term(4), Ok(3));
}

#[test]
fn term() {
    let mut store = Store::new();
    store.append(entries(1, &[1, 1, 2, 5]));
    for _ in 0..2 {
        let terms: Vec<_> = (0..=5).map(|index| store.term(index)).collect();
        assert_eq!(terms[..5], [Ok(0), Ok(1), Ok(1), Ok(2), Ok(5)]);
        assert_eq!(terms[5], Err(StorageError::Unavailable));
        store = store.reopen();
    }
    store.compact(3);
    for _ in 0..2 {
        let terms: Vec<_> = (2..=4).map(|index| store.term(index)).collect();
        assert_eq!(terms, [Err(StorageError::Compacted), Ok(2), Ok(5)]);
        store = store.reopen();
    }
}

#[test]
fn hard_state() {
    let mut store = Store::new();
    store.append(entries(1, &[1, 2, 2]));
    for next in [votes(2, 1, 0), votes(2, 1, 3), votes(7, 0, 3)] {
        store.save(Persist { hard_state: Some(next.clone()), ..Persist::default() });
        assert_eq!(store.hard_state(), next);
        store = store.reopen();
        assert_eq!(store.hard_state(), next);
        assert_eq!(store.recovered.hard_state, next);
    }
}

#[test]
fn snapshot() {
    let mut store = Store::new();
    store.append(entries(1, &[1, 1, 2, 2]));
    let none = store.log.snapshot(0, 2).map_err(of_storage);
    assert_eq!(none, Err(StorageError::SnapshotTemporarilyUnavailable));
    assert!(store.log.take_snapshot_wanted());
    store.log.offer_snapshot(at(3, 2), conf_state());
    let snapshot = store.log.snapshot(2, 2).expect("it was offered");
    let metadata = snapshot.get_metadata();
    assert_eq!((metadata.index, metadata.term), (3, 2));
    assert_eq!(metadata.get_conf_state(), &conf_state());
}

#[test]
fn apply_snapshot() {
    let mut store = Store::new();
    store.append(entries(1, &[1, 1, 2, 2]));
    store.save(Persist {
        install: Some(at(10, 3)),
        hard_state: Some(votes(4, 0, 10)),
        ..Persist::default()
    });
    for _ in 0..2 {
        assert_eq!(store.bounds(), (11, 10));
        assert_eq!(store.term(10), Ok(3));
        assert_eq!(store.term(4), Err(StorageError::Compacted));
        assert_eq!(store.entries(4, 5), Err(StorageError::Compacted));
        assert_eq!(store.hard_state(), votes(4, 0, 10));
        assert_eq!(store.log.installed_index(), 10);
        store = store.reopen();
    }
    assert_eq!(store.recovered.live_state.as_deref(), Some("state-10"));
    store.append(entries(11, &[4]));

    // The snapshot and what follows it in one Ready, over entries that reach
    // beyond the snapshot but are not those of the leader.
    store.append(entries(12, &[4; 9]));
    store.save(Persist {
        install: Some(at(15, 5)),
        hard_state: Some(votes(5, 2, 15)),
        entries: entries(16, &[5]),
        ..Persist::default()
    });
    for _ in 0..2 {
        assert_eq!(store.bounds(), (16, 16));
        assert_eq!(store.entries(16, 17), Ok(entries(16, &[5])));
        assert_eq!(store.term(17), Err(StorageError::Unavailable));
        store = store.reopen();
    }
    assert_eq!(store.recovered.live_state.as_deref(), Some("state-15"));
}

#[test]
fn compact() {
    let mut store = Store::new();
    let whole = entries(1, &[1, 1, 2, 2, 3]);
    store.append(whole.clone());
    for index in [1, 3, 5] {
        store.compact(index);
        for _ in 0..2 {
            assert_eq!(store.bounds(), (index + 1, 5));
            assert_eq!(store.entries(index, 6), Err(StorageError::Compacted));
            let rest = usize::try_from(index).expect("small");
            assert_eq!(store.entries(index + 1, 6), Ok(whole[rest..].to_vec()));
            store = store.reopen();
        }
    }
    store.append(entries(6, &[3]));
    assert_eq!(store.reopen().entries(6, 7), Ok(entries(6, &[3])));
}

#[test]
fn persistence() {
    let mut store = Store::new();
    let mut expected = Vec::new();
    for round in 0..20 {
        let next = entries(round * 5 + 1, &[round + 1; 5]);
        expected.extend(next.clone());
        store.save(Persist {
            hard_state: Some(votes(round + 1, 1, round * 5)),
            entries: next,
            ..Persist::default()
        });
        store = store.reopen();
        assert_eq!(store.bounds(), (1, round * 5 + 5));
        assert_eq!(store.entries(1, round * 5 + 6), Ok(expected.clone()));
        assert_eq!(store.hard_state(), votes(round + 1, 1, round * 5));
    }
}
