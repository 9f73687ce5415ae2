//! Unit tests of the raft log over the in-memory engine.

use bytes::Bytes;
use prost::Message as _;
use protobuf::Message as _;
use raft::{
    Error, GetEntriesContext, Storage as _, StorageError,
    eraftpb::{ConfState, Entry, HardState},
};

use super::{LogWriter, Persist, RaftLog, Recovered};
use crate::{
    error::Fatal,
    proto::LogPosition,
    storage::{Batch, Engine as _, Family, Reader as _, keys, memory::MemoryEngine},
};

fn entry(index: u64, term: u64) -> Entry {
    // Of different sizes, so that limits in bytes and in entries differ.
    let data = vec![b'x'; usize::try_from(index % 7).unwrap()];
    Entry { index, term, data: data.into(), ..Entry::default() }
}

fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
    range.map(|index| entry(index, term)).collect()
}

fn position(index: u64, term: u64) -> LogPosition {
    LogPosition { index, term }
}

fn hard_state(term: u64, commit: u64) -> HardState {
    HardState { term, commit, ..HardState::default() }
}

fn voters(ids: &[u64]) -> ConfState {
    ConfState { voters: ids.to_vec(), ..ConfState::default() }
}

/// The log that a start on this engine gives, applied as little as possible.
fn open(engine: &MemoryEngine) -> RaftLog<MemoryEngine> {
    let recovered = Recovered::read(engine).unwrap();
    RaftLog::open(engine.clone(), &recovered, voters(&[1]), &recovered.truncated).unwrap()
}

fn write(engine: &MemoryEngine, persist: Persist) {
    let recovered = Recovered::read(engine).unwrap();
    // The term that is stored is never behind that of an entry.
    let term = persist.entries.last().map_or(0, |last| last.term);
    let raised = hard_state(term, recovered.hard_state.commit);
    let raised = Some(raised).filter(|raised| raised.term > recovered.hard_state.term);
    let persist = Persist { sync: true, hard_state: persist.hard_state.or(raised), ..persist };
    LogWriter::new(engine.clone(), &recovered).write(&[persist]).unwrap();
}

/// An engine that holds entries 1 to `last` of term 1.
fn stored(last: u64) -> MemoryEngine {
    let engine = MemoryEngine::new();
    let hard_state = Some(hard_state(1, 0));
    write(&engine, Persist { hard_state, entries: entries(1..=last, 1), ..Persist::default() });
    engine
}

fn read(
    log: &RaftLog<MemoryEngine>,
    low: u64,
    high: u64,
    max_size: impl Into<Option<u64>>,
) -> Result<Vec<Entry>, StorageError> {
    let context = GetEntriesContext::empty(false);
    log.entries(low, high, max_size, context).map_err(|error| match error {
        Error::Store(error) => error,
        error => panic!("not an error of the storage: {error}"),
    })
}

fn term(log: &RaftLog<MemoryEngine>, index: u64) -> Result<u64, StorageError> {
    log.term(index).map_err(|error| match error {
        Error::Store(error) => error,
        error => panic!("not an error of the storage: {error}"),
    })
}

#[test]
fn a_read_spans_disk_and_memory_within_its_limit_and_gives_at_least_one_entry() {
    let engine = stored(5);
    let mut log = open(&engine);
    log.append(&entries(6..=10, 2));
    let all: Vec<Entry> = [entries(1..=5, 1), entries(6..=10, 2)].concat();
    assert_eq!(read(&log, 1, 11, None).unwrap(), all);
    for low in 1..=10_u64 {
        for high in low + 1..=11 {
            let whole = &all[low as usize - 1..high as usize - 1];
            let total: u64 = whole.iter().map(|entry| u64::from(entry.compute_size())).sum();
            for limit in 0..=total + 1 {
                let mut bytes = 0;
                let fits = |entry: &&Entry| {
                    bytes += u64::from(entry.compute_size());
                    bytes <= limit
                };
                let expected = whole.iter().take_while(fits).count().max(1);
                let got = read(&log, low, high, limit).unwrap();
                assert_eq!(got, &whole[..expected], "[{low}, {high}) in {limit} bytes");
            }
        }
    }
}

#[test]
fn only_durable_entries_leave_the_memory_and_are_then_read_from_disk() {
    /// The cache holds eight of them, less what an entry costs beside its data.
    const ENTRY_BYTES: usize = 8 << 20;
    let data = Bytes::from(vec![b'x'; ENTRY_BYTES]);
    let large = |index| Entry { index, term: 1, data: data.clone(), ..Entry::default() };
    let all: Vec<Entry> = (1..=12).map(large).collect();
    let engine = MemoryEngine::new();
    let mut log = open(&engine);
    log.append(&all);
    let only_confirmed_by_disk = |log: &RaftLog<_>, index| read(log, index, 13, None).is_err();

    // Over its bound, but nothing is durable yet: all of it is still served.
    assert!(log.has_unpersisted());
    assert_eq!(read(&log, 1, 13, None).unwrap(), all);
    // The disk, which has nothing as yet, shows what has left the memory.
    log.persisted(&position(4, 1));
    assert!(only_confirmed_by_disk(&log, 4));
    assert_eq!(read(&log, 5, 13, None).unwrap(), all[4..]);
    log.persisted(&position(12, 1));
    assert!(!log.has_unpersisted());
    assert!(only_confirmed_by_disk(&log, 5));
    assert_eq!(read(&log, 6, 13, None).unwrap(), all[5..]);

    write(&engine, Persist { entries: all.clone(), ..Persist::default() });
    assert_eq!(read(&log, 1, 13, None).unwrap(), all);
    assert_eq!(term(&log, 1).unwrap(), 1);
}

#[test]
fn a_confirmation_of_what_was_replaced_since_counts_for_nothing() {
    let mut log = open(&stored(5));
    log.append(&entries(6..=8, 1));
    log.append(&entries(6..=8, 2));
    log.persisted(&position(8, 1));
    assert!(log.has_unpersisted());
    log.persisted(&position(7, 2));
    assert!(log.has_unpersisted());
    log.persisted(&position(8, 2));
    assert!(!log.has_unpersisted());
    // A suffix that is replaced is not durable any more.
    log.append(&entries(7..=7, 3));
    assert!(log.has_unpersisted());
}

#[test]
fn a_shorter_conflicting_suffix_hides_the_old_one_at_once() {
    for (what, in_memory) in [("on disk", 0), ("half in memory", 3)] {
        let engine = stored(8 - in_memory);
        let mut log = open(&engine);
        log.append(&entries(9 - in_memory..=8, 1));
        log.append(&[entry(4, 2)]);

        let expect = |log: &RaftLog<_>, when: &str| {
            let expected = [entries(1..=3, 1), vec![entry(4, 2)]].concat();
            assert_eq!(log.last_index().unwrap(), 4, "{what}, {when}");
            assert_eq!(read(log, 1, 5, None).unwrap(), expected, "{what}, {when}");
            assert_eq!(term(log, 4), Ok(2), "{what}, {when}");
            for index in 5..=9 {
                assert_eq!(term(log, index), Err(StorageError::Unavailable), "{what}, {when}");
            }
            let beyond = read(log, 4, 6, None);
            assert_eq!(beyond, Err(StorageError::Unavailable), "{what}, {when}");
        };
        expect(&log, "before it is written");
        // The log thread has yet to write the old suffix, and then the new one.
        let old = Persist { entries: entries(9 - in_memory..=8, 1), ..Persist::default() };
        let hard_state = Some(hard_state(2, 0));
        let new = Persist { hard_state, entries: vec![entry(4, 2)], ..Persist::default() };
        write(&engine, old);
        expect(&log, "between the writes");
        write(&engine, new);
        log.persisted(&position(4, 2));
        expect(&log, "after it is durable");
        expect(&open(&engine), "after a restart");
        assert_eq!(engine.get(Family::Entries, &keys::entry(5)), Ok(None));
    }
}

#[test]
fn a_compacted_log_ends_where_it_says() {
    let engine = stored(6);
    let mut log = open(&engine);
    log.append(&entries(7..=10, 2));
    for to in [2, 5, 8, 10] {
        let truncated = log.compact(to).unwrap();
        assert_eq!(truncated, position(to, if to > 6 { 2 } else { 1 }));
        assert_eq!((log.first_index(), log.last_index()), (Ok(to + 1), Ok(10)));
        assert_eq!(term(&log, to), Ok(truncated.term), "the entry before the first");
        assert_eq!(term(&log, to - 1), Err(StorageError::Compacted));
        assert_eq!(read(&log, to, to + 1, None), Err(StorageError::Compacted));
        assert_eq!(read(&log, to - 1, to + 1, None), Err(StorageError::Compacted));
        assert_eq!(term(&log, 11), Err(StorageError::Unavailable));
        assert_eq!(read(&log, to + 1, 12, None), Err(StorageError::Unavailable));
        let rest = read(&log, to + 1, 11, None).unwrap();
        assert_eq!(rest.first().map_or(11, |entry| entry.index), to + 1);
        assert_eq!(rest.len() as u64, 10 - to);
    }
}

#[test]
fn a_snapshot_is_wanted_until_one_is_offered_that_fits() {
    let unavailable = StorageError::SnapshotTemporarilyUnavailable;
    let refused = |log: &RaftLog<_>, request_index, to| match log.snapshot(request_index, to) {
        Err(Error::Store(error)) => error == unavailable && log.take_snapshot_wanted(),
        _ => false,
    };
    let mut log = open(&stored(9));
    assert!(!log.take_snapshot_wanted(), "nobody asked");
    assert!(refused(&log, 0, 2), "there is none");
    assert!(!log.take_snapshot_wanted(), "told once");

    let mut conf_state = voters(&[1, 2]);
    conf_state.learners = vec![3];
    log.offer_snapshot(position(6, 1), conf_state.clone());
    for to in [1, 2, 3] {
        let snapshot = log.snapshot(6, to).unwrap();
        let metadata = snapshot.get_metadata();
        assert_eq!((metadata.index, metadata.term), (6, 1));
        assert_eq!(metadata.get_conf_state(), &conf_state);
        assert!(snapshot.get_data().is_empty());
    }
    assert!(!log.take_snapshot_wanted());
    assert!(refused(&log, 6, 4), "its configuration does not name the receiver");
    assert!(refused(&log, 7, 2), "it is older than asked for");

    log.compact(6).unwrap();
    assert!(log.snapshot(0, 2).is_ok(), "the log goes on right behind it");
    log.compact(7).unwrap();
    assert!(refused(&log, 0, 2), "the log does not reach back to it");
    log.offer_snapshot(position(8, 1), conf_state);
    assert!(log.snapshot(0, 2).is_ok());
    log.install(position(20, 3), voters(&[1, 2]));
    assert!(refused(&log, 0, 2), "an installed snapshot replaces it");
}

#[test]
fn an_installed_snapshot_replaces_the_log_and_its_configuration() {
    let engine = stored(5);
    let mut log = open(&engine);
    log.append(&entries(6..=7, 1));
    log.install(position(20, 3), voters(&[1, 2]));
    assert_eq!((log.first_index(), log.last_index()), (Ok(21), Ok(20)));
    assert_eq!(log.installed_index(), 20);
    assert_eq!(term(&log, 20), Ok(3));
    assert_eq!(term(&log, 7), Err(StorageError::Compacted));
    assert!(!log.has_unpersisted());
    assert_eq!(log.initial_state().unwrap().conf_state, voters(&[1, 2]));
    log.append(&[entry(21, 3)]);
    assert_eq!(read(&log, 21, 22, None), Ok(vec![entry(21, 3)]));
    // A confirmation of what it replaced comes late.
    log.persisted(&position(7, 1));
    assert!(log.has_unpersisted());
}

#[test]
fn a_start_raises_the_commit_index_to_what_is_applied() {
    let engine = stored(5);
    let recovered = Recovered::read(&engine).unwrap();
    let open = |applied| RaftLog::open(engine.clone(), &recovered, voters(&[1]), &applied);
    assert_eq!(open(position(4, 1)).unwrap().hard_state().commit, 4);
    assert_eq!(open(position(0, 0)).unwrap().hard_state().commit, 0);
    assert!(open(position(6, 1)).is_err(), "applied what the log does not hold");
    write(&engine, Persist { compact: Some(position(3, 1)), ..Persist::default() });
    let recovered = Recovered::read(&engine).unwrap();
    let open = |applied| RaftLog::open(engine.clone(), &recovered, voters(&[1]), &applied);
    assert!(open(position(3, 1)).is_ok());
    assert!(open(position(2, 1)).is_err(), "entry 3 is missing in between");
}

#[test]
fn numbers_out_of_all_proportion_are_damage_wherever_they_stand() {
    let huge = [position(u64::MAX, 1), position(1, u64::MAX), position(1 << 62, 0)];
    for (key, name) in
        [(keys::TRUNCATED, "truncation point"), (keys::SNAPSHOT, "snapshot position")]
    {
        for position in huge {
            let fatal = refusal(|batch| batch.put(Family::State, key, position.encode_to_vec()));
            assert!(fatal.what.contains(&format!("{name} names index")), "{fatal}");
        }
    }
    for (term, commit) in [(u64::MAX, 0), (1, u64::MAX), (1 << 62, 0)] {
        let value = hard_state(term, commit).write_to_bytes().unwrap();
        let fatal = refusal(|batch| batch.put(Family::State, keys::HARD_STATE, value));
        assert!(fatal.what.contains("hard state names index"), "{fatal}");
    }
    let ahead = refusal(|batch| put_entry(batch, 6, &entry(6, u64::MAX)));
    assert!(ahead.what.contains("the stored term is 1 but the last entry"), "{ahead}");
    let forgotten = refusal(|batch| {
        let value = hard_state(0, 0).write_to_bytes().unwrap();
        batch.put(Family::State, keys::HARD_STATE, value);
    });
    assert!(forgotten.what.contains("the stored term is 0"), "{forgotten}");
}

/// What [`Recovered::read`] says of a log of six entries, damaged like this.
fn refusal(damage: impl FnOnce(&mut Batch)) -> Fatal {
    let engine = stored(6);
    let mut batch = Batch::default();
    damage(&mut batch);
    engine.write(batch, true).unwrap();
    Recovered::read(&engine).unwrap_err()
}

fn put_entry(batch: &mut Batch, key: u64, entry: &Entry) {
    batch.put(Family::Entries, keys::entry(key).to_vec(), entry.write_to_bytes().unwrap());
}

#[test]
fn damage_is_found_at_start_and_never_read_over() {
    let gap = refusal(|batch| batch.delete(Family::Entries, keys::entry(4).to_vec()));
    assert!(gap.what.contains("not contiguous: entry 5"), "{gap}");
    let lost_head = refusal(|batch| batch.delete(Family::Entries, keys::entry(1).to_vec()));
    assert!(lost_head.what.contains("not contiguous: entry 2"), "{lost_head}");
    let falling = refusal(|batch| put_entry(batch, 3, &entry(3, 2)));
    assert!(falling.what.contains("entry 4 (stored as 4 of term 1)"), "{falling}");
    let misplaced = refusal(|batch| put_entry(batch, 3, &entry(4, 1)));
    assert!(misplaced.what.contains("entry 3 (stored as 4"), "{misplaced}");
    let rotten =
        refusal(|batch| batch.put(Family::Entries, keys::entry(3).to_vec(), &b"\xff\xff"[..]));
    assert!(rotten.what.contains("raft log entry 3 cannot be decoded"), "{rotten}");

    let beyond = refusal(|batch| {
        let value = hard_state(1, 7).write_to_bytes().unwrap();
        batch.put(Family::State, keys::HARD_STATE, value);
    });
    assert!(beyond.what.contains("ends at index 6 but index 7 was committed"), "{beyond}");
    let format =
        refusal(|batch| batch.put(Family::State, keys::FORMAT, 99_u32.to_be_bytes().to_vec()));
    assert!(format.what.contains("raft database has format 99, and metastore"), "{format}");
    assert!(format.remedy.contains("version of metastore"), "{format}");
    let lost = refusal(|batch| {
        batch.put(Family::State, keys::INCARNATION, 7_u64.to_be_bytes().to_vec());
    });
    assert!(lost.what.contains("lost its format version"), "{lost}");
    for key in [keys::HARD_STATE, keys::TRUNCATED, keys::SNAPSHOT, keys::IDENTITY] {
        let fatal = refusal(|batch| batch.put(Family::State, key, &b"\xff\xff"[..]));
        assert!(fatal.what.contains("cannot be decoded"), "{fatal}");
    }
}
