//! What only RocksDB adds; the rest is in the conformance suite.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    ops::{Bound, RangeInclusive},
};

use tempfile::TempDir;

use super::*;

const EVERYTHING: KeyRange = (Bound::Unbounded, Bound::Unbounded);

fn try_open(dir: &Path, kind: Kind) -> Result<RocksEngine, Fatal> {
    RocksEngine::open(dir, kind, &MemoryBudget::new(4 << 20))
}

fn open(dir: &Path, kind: Kind) -> RocksEngine {
    try_open(dir, kind).unwrap()
}

fn refusal(dir: &Path, kind: Kind) -> String {
    try_open(dir, kind).err().unwrap().to_string()
}

fn write(engine: &RocksEngine, sync: bool, fill: impl FnOnce(&mut Batch)) {
    let mut batch = Batch::default();
    fill(&mut batch);
    engine.write(batch, sync).unwrap();
}

fn pairs(reader: &impl Reader, family: Family) -> Vec<Pair> {
    reader.scan(family, EVERYTHING).map(Result::unwrap).collect()
}

fn put_entries(engine: &RocksEngine, indexes: RangeInclusive<u64>) {
    write(engine, true, |batch| {
        for index in indexes {
            batch.put(Family::Entries, keys::entry(index).to_vec(), vec![b'x'; 100]);
        }
    });
}

fn truncate(engine: &RocksEngine, from: u64, to: u64, sync: bool) {
    let (from, to) = (keys::entry(from).to_vec(), keys::entry(to).to_vec());
    write(engine, sync, |batch| batch.delete_range(Family::Entries, from, to));
}

/// A raft database whose entries 1 to 100 fill one compacted file.
fn compacted_log(dir: &Path) -> RocksEngine {
    let engine = open(dir, Kind::Raft);
    put_entries(&engine, 1..=100);
    let entries = engine.handle(Family::Entries);
    engine.0.db.flush_cf(entries).unwrap();
    engine.0.db.compact_range_cf(entries, None::<&[u8]>, None::<&[u8]>);
    assert!(engine.metrics().sst_bytes > 0);
    engine
}

fn first_entry(engine: &impl Reader) -> Option<u64> {
    let (key, _) = engine.scan(Family::Entries, EVERYTHING).next()?.unwrap();
    Some(keys::entry_index(&key).unwrap())
}

#[test]
fn truncation_unlinks_a_file_only_when_nothing_in_it_is_left() {
    let dir = TempDir::new().unwrap();
    let engine = compacted_log(dir.path());
    truncate(&engine, 1, 100, true);
    assert_eq!(first_entry(&engine), Some(100), "the entry after the range must survive");
    assert!(engine.metrics().sst_bytes > 0);
    truncate(&engine, 1, 101, true);
    assert_eq!(first_entry(&engine), None);
    assert_eq!(engine.metrics().sst_bytes, 0, "the file should be gone at once");
}

#[test]
fn truncation_that_is_not_durable_unlinks_nothing() {
    let dir = TempDir::new().unwrap();
    let engine = compacted_log(dir.path());
    truncate(&engine, 1, 101, false);
    assert_eq!(first_entry(&engine), None);
    assert!(engine.metrics().sst_bytes > 0);
}

#[test]
fn truncation_leaves_a_frozen_view_whole() {
    let dir = TempDir::new().unwrap();
    let engine = compacted_log(dir.path());
    let frozen = engine.freeze();
    truncate(&engine, 1, 101, true);
    assert_eq!(first_entry(&frozen), Some(1));
    assert_eq!(first_entry(&engine), None);
}

#[test]
fn a_log_replaced_in_one_batch_keeps_its_new_entries() {
    let dir = TempDir::new().unwrap();
    let engine = compacted_log(dir.path());
    write(&engine, true, |batch| {
        let (from, to) = (keys::entry(0).to_vec(), keys::entry(u64::MAX).to_vec());
        batch.delete_range(Family::Entries, from, to);
        batch.put(Family::Entries, keys::entry(50).to_vec(), "new");
    });
    assert_eq!(first_entry(&engine), Some(50));
}

#[test]
fn nothing_is_written_after_a_failed_write() {
    let dir = TempDir::new().unwrap();
    let engine = compacted_log(dir.path());
    let failure = Fatal::storage("cannot write", "IO error");
    engine.0.failed.set(failure.clone()).unwrap();
    let mut batch = Batch::default();
    batch.put(Family::State, keys::HARD_STATE, "x");
    assert_eq!(engine.write(batch, true), Err(failure.clone()));
    assert_eq!(engine.flush(), Err(failure));
    assert_eq!(engine.get(Family::State, keys::HARD_STATE), Ok(None));
}

#[test]
fn every_reason_gets_its_remedy() {
    let text = |cause: &str| fatal("open", Path::new("data/1/raft"), cause).to_string();
    for (cause, remedy) in [
        ("IO error: No space left on device: While appending to file", "free space"),
        ("IO error: while open a file for lock: LOCK: Permission denied", "let this user"),
        ("IO error: While mkdir: Read-only file system", "let this user write"),
        ("Corruption: block checksum mismatch", "the data directory is damaged"),
        ("Invalid argument: Column families not opened: x", "start it with the version"),
        ("IO error: Too many open files", "ulimit -n"),
        ("IO error: Input/output error", "check the disk's health"),
    ] {
        let text = text(cause);
        assert!(text.starts_with(&format!("cannot open data/1/raft: {cause}; ")), "{text}");
        assert!(text.contains(remedy), "{text}");
    }
}

/// What the successor of a process killed now would find: a copy during which
/// no file came, went or grew.
pub(in crate::storage) fn crashed(dir: &Path, kind: Kind) -> (RocksEngine, TempDir) {
    let files = || -> io::Result<BTreeMap<OsString, u64>> {
        fs::read_dir(dir)?
            .map(|file| file.and_then(|file| Ok((file.file_name(), file.metadata()?.len()))))
            .collect()
    };
    let copied = || -> io::Result<Option<TempDir>> {
        let (before, copy) = (files()?, TempDir::new()?);
        for name in before.keys() {
            fs::copy(dir.join(name), copy.path().join(name))?;
        }
        Ok((files()? == before).then_some(copy))
    };
    let copy = loop {
        match copied() {
            Ok(Some(copy)) => break copy,
            Ok(None) => {}
            Err(cause) => assert_eq!(cause.kind(), io::ErrorKind::NotFound, "{cause}"),
        }
    };
    (open(copy.path(), kind), copy)
}

#[test]
fn a_crash_of_the_state_database_rolls_all_families_back_to_one_flush() {
    let dir = TempDir::new().unwrap();
    let engine = open(dir.path(), Kind::State);
    for round in ["1", "2"] {
        write(&engine, false, |batch| {
            for &family in Kind::State.families() {
                batch.put(family, "a", round);
            }
        });
        if round == "1" {
            engine.flush().unwrap();
        }
    }
    let (found, _dir) = crashed(dir.path(), Kind::State);
    for &family in Kind::State.families() {
        assert_eq!(pairs(&found, family), [("a".into(), "1".into())]);
    }
}

#[test]
fn a_flush_that_rocksdb_starts_by_itself_takes_all_families() {
    let dir = TempDir::new().unwrap();
    let engine = open(dir.path(), Kind::State);
    // Past the write buffers' share of the budget, but far from a compaction.
    for round in 1..=30 {
        write(&engine, false, |batch| {
            batch.put(Family::Current, keys::entry(round).to_vec(), vec![b'x'; 100 << 10]);
            batch.put(Family::Meta, keys::APPLIED, keys::entry(round).to_vec());
        });
    }
    while engine.metrics().sst_bytes == 0 {
        std::thread::yield_now();
    }
    let (found, _dir) = crashed(dir.path(), Kind::State);
    let applied = found.get(Family::Meta, keys::APPLIED).unwrap().unwrap();
    let (last, _) = pairs(&found, Family::Current).pop().unwrap();
    assert_eq!(applied, last);
    assert!(keys::entry_index(&last).unwrap() < 30, "the crash lost nothing");
}

#[test]
fn a_torn_tail_of_the_raft_database_loses_only_the_torn_batch() {
    let dir = TempDir::new().unwrap();
    let engine = open(dir.path(), Kind::Raft);
    write(&engine, true, |batch| batch.put(Family::State, "a", "1"));
    write(&engine, true, |batch| batch.put(Family::State, "b", "1"));
    drop(engine);
    let log = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path());
    let log = log.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    let log = log.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let torn = File::options().write(true).open(&log).unwrap();
    torn.set_len(torn.metadata().unwrap().len() - 1).unwrap();
    let engine = open(dir.path(), Kind::Raft);
    assert_eq!(pairs(&engine, Family::State), [("a".into(), "1".into())]);
}

#[test]
fn an_open_database_is_refused_to_others_by_name() {
    for kind in [Kind::Raft, Kind::State] {
        let dir = TempDir::new().unwrap();
        let engine = open(dir.path(), kind);
        let expected = format!(
            "data directory {} is in use by another process; \
             stop it or give this node another --data-dir",
            dir.path().display()
        );
        assert_eq!(refusal(dir.path(), kind), expected);
        let clone = engine.clone();
        drop(engine);
        assert_eq!(refusal(dir.path(), kind), expected, "a clone keeps it open");
        drop(clone);
        drop(open(dir.path(), kind));
    }
}

#[test]
fn a_path_that_cannot_be_written_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    for path in [file.clone(), file.join("raft")] {
        let text = refusal(&path, Kind::Raft);
        assert!(text.starts_with(&format!("cannot create {}: ", path.display())), "{text}");
        let remedy = "; move the file away or give this node another --data-dir";
        assert!(text.ends_with(remedy), "{text}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"x");
}

#[cfg(unix)]
#[test]
fn a_directory_without_write_permission_is_refused_by_name() {
    use std::os::unix::fs::PermissionsExt;

    let dir = TempDir::new().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).unwrap();
    if fs::write(dir.path().join("probe"), "").is_ok() {
        return; // The superuser may write anywhere.
    }
    for path in [dir.path().to_path_buf(), dir.path().join("new")] {
        let text = refusal(&path, Kind::Raft);
        assert!(text.contains("Permission denied"), "{text}");
        let remedy = "; let this user write there or give this node another --data-dir";
        assert!(text.ends_with(remedy), "{text}");
    }
}

#[test]
fn a_database_without_its_root_file_is_not_taken_for_a_new_one() {
    let dir = TempDir::new().unwrap();
    let engine = open(dir.path(), Kind::Raft);
    write(&engine, true, |batch| batch.put(Family::State, "a", "1"));
    drop(engine);
    fs::remove_file(dir.path().join("CURRENT")).unwrap();
    let text = refusal(dir.path(), Kind::Raft);
    assert!(text.contains("but no CURRENT file; the data directory is damaged"), "{text}");
}

#[test]
fn a_damaged_database_is_refused() {
    let dir = TempDir::new().unwrap();
    drop(open(dir.path(), Kind::State));
    fs::write(dir.path().join("CURRENT"), "nonsense").unwrap();
    let text = refusal(dir.path(), Kind::State);
    assert!(text.contains("the data directory is damaged"), "{text}");
}

#[test]
fn a_damaged_table_file_is_an_error_and_not_an_answer() {
    let dir = TempDir::new().unwrap();
    let engine = open(dir.path(), Kind::State);
    write(&engine, true, |batch| batch.put(Family::Current, "key", vec![b'x'; 1000]));
    drop(engine);
    for file in fs::read_dir(dir.path()).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "sst") {
            let mut bytes = fs::read(&path).unwrap();
            bytes[8] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
    let engine = open(dir.path(), Kind::State);
    let text = engine.get(Family::Current, b"key").unwrap_err().to_string();
    assert!(text.contains("the data directory is damaged"), "{text}");
    let mut scan = engine.scan(Family::Current, EVERYTHING);
    assert!(scan.next().unwrap().is_err());
    assert!(scan.next().is_none());
}

#[test]
fn one_kind_of_database_is_not_opened_as_the_other() {
    let dir = TempDir::new().unwrap();
    drop(open(dir.path(), Kind::State));
    let text = refusal(dir.path(), Kind::Raft);
    assert!(text.ends_with("start it with the version of metastore that wrote it"), "{text}");
}

#[test]
fn a_checkpoint_is_a_database_of_its_own() {
    for kind in [Kind::Raft, Kind::State] {
        let parent = TempDir::new().unwrap();
        let [a, b] = [kind.families()[0], kind.families()[1]];
        let engine = open(&parent.path().join("live"), kind);
        write(&engine, true, |batch| batch.put(a, "a", "1"));
        write(&engine, false, |batch| batch.put(b, "b", "1"));
        let path = parent.path().join("checkpoint");
        engine.checkpoint(&path).unwrap();
        assert!(engine.checkpoint(&path).is_err(), "the directory exists");

        write(&engine, true, |batch| batch.put(a, "a", "2"));
        write(&engine, true, |batch| batch.delete_range(b, "a", "c"));
        let copy = open(&path, kind);
        assert_eq!(pairs(&copy, a), [("a".into(), "1".into())]);
        assert_eq!(pairs(&copy, b), [("b".into(), "1".into())]);
        write(&copy, true, |batch| batch.put(a, "c", "1"));
        assert_eq!(pairs(&engine, a), [("a".into(), "2".into())]);
        drop(engine);
        fs::remove_dir_all(parent.path().join("live")).unwrap();
        drop(copy);
        assert_eq!(pairs(&open(&path, kind), a).len(), 2);
    }
}

#[test]
fn metrics_follow_the_data() {
    let dir = TempDir::new().unwrap();
    let engine = open(&dir.path().join("live"), Kind::Raft);
    write(&engine, true, |batch| batch.put(Family::Entries, "a", vec![b'x'; 100_000]));
    let metrics = engine.metrics();
    assert!(metrics.wal_bytes > 100_000, "{metrics:?}");
    assert!(metrics.memtable_bytes > 100_000, "{metrics:?}");
    assert!(metrics.block_cache_bytes > 0, "{metrics:?}");
    assert!(!metrics.write_stopped);
    assert_eq!((metrics.sst_bytes, metrics.background_errors), (0, 0));
    engine.checkpoint(&dir.path().join("checkpoint")).unwrap();
    assert!(engine.metrics().sst_bytes > 0);
}

#[test]
fn a_database_to_be_deleted_stays_until_nobody_reads_it() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("live");
    let engine = open(&dir, Kind::State);
    write(&engine, true, |batch| batch.put(Family::Current, "a", "1"));
    let reader = engine.clone();
    engine.delete_when_closed();
    drop(engine);
    assert_eq!(pairs(&reader, Family::Current), [("a".into(), "1".into())]);
    assert!(dir.join("CURRENT").exists());
    drop(reader);
    assert!(!dir.exists());
}
