//! What every engine promises, checked on each.

use std::{ops::Bound, path::Path, thread};

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};
use tempfile::TempDir;

use super::{
    Batch, BatchOp, Engine, Family, KeyRange, Pair, Reader, keys,
    memory::MemoryEngine,
    rocks::{Kind, MemoryBudget, RocksEngine, tests::crashed},
};

/// An engine under test, with two of its families.
trait Subject: Sized {
    type Engine: Engine;
    const A: Family;
    const B: Family;

    fn create() -> Self;
    fn engine(&self) -> &Self::Engine;
    /// Closes in good order and opens again.
    fn reopen(self) -> Self;
    /// What a killed process's successor opens, where all that can be lost is.
    fn crash(self) -> Self;
}

struct Rocks<const STATE: bool> {
    engine: RocksEngine,
    // Dropped after the engine that lives in it.
    dir: TempDir,
}

fn open(dir: &Path, kind: Kind) -> RocksEngine {
    RocksEngine::open(dir, kind, &MemoryBudget::new(4 << 20)).unwrap()
}

impl<const STATE: bool> Rocks<STATE> {
    const KIND: Kind = if STATE { Kind::State } else { Kind::Raft };
}

impl<const STATE: bool> Subject for Rocks<STATE> {
    type Engine = RocksEngine;
    const A: Family = Self::KIND.families()[0];
    const B: Family = Self::KIND.families()[1];

    fn create() -> Self {
        let dir = TempDir::new().unwrap();
        Self { engine: open(dir.path(), Self::KIND), dir }
    }

    fn engine(&self) -> &RocksEngine {
        &self.engine
    }

    fn reopen(self) -> Self {
        let Self { engine, dir } = self;
        drop(engine);
        Self { engine: open(dir.path(), Self::KIND), dir }
    }

    fn crash(self) -> Self {
        let (engine, dir) = crashed(self.dir.path(), Self::KIND);
        Self { engine, dir }
    }
}

struct Memory(MemoryEngine);

impl Subject for Memory {
    type Engine = MemoryEngine;
    const A: Family = Family::Current;
    const B: Family = Family::Changes;

    fn create() -> Self {
        Self(MemoryEngine::new())
    }

    fn engine(&self) -> &MemoryEngine {
        &self.0
    }

    fn reopen(self) -> Self {
        self.0.flush().unwrap();
        self.crash()
    }

    fn crash(self) -> Self {
        Self(self.0.crash(|_| 0))
    }
}

macro_rules! on_every_engine {
    ($($case:ident)*) => {
        mod rocks_raft { $(#[test] fn $case() { super::$case::<super::Rocks<false>>(); })* }
        mod rocks_state { $(#[test] fn $case() { super::$case::<super::Rocks<true>>(); })* }
        mod memory { $(#[test] fn $case() { super::$case::<super::Memory>(); })* }
    };
}

on_every_engine! {
    a_put_is_read_back_and_a_delete_removes_it
    several_keys_are_read_as_each_alone
    an_empty_value_is_a_value
    keys_and_values_are_any_bytes
    families_are_separate
    a_batch_takes_effect_in_order
    a_batch_is_seen_whole_or_not_at_all
    delete_range_keeps_its_end
    a_reversed_range_is_empty
    scan_bounds_hold
    a_frozen_view_does_not_see_later_writes
    a_scan_stays_at_its_moment
    clones_are_the_same_database
    size_grows_with_the_data
    a_restart_keeps_what_was_synced
    a_crash_keeps_what_was_synced
    a_flush_makes_earlier_writes_durable
    an_empty_synced_batch_makes_earlier_writes_durable
}

fn write<E: Engine>(engine: &E, sync: bool, fill: impl FnOnce(&mut Batch)) {
    let mut batch = Batch::default();
    fill(&mut batch);
    engine.write(batch, sync).unwrap();
}

fn put<E: Engine>(engine: &E, family: Family, key: &'static str, value: &'static str) {
    write(engine, false, |batch| batch.put(family, key, value));
}

fn get(reader: &impl Reader, family: Family, key: &str) -> Option<Bytes> {
    reader.get(family, key.as_bytes()).unwrap()
}

fn pairs(reader: &impl Reader, family: Family, range: KeyRange) -> Vec<Pair> {
    reader.scan(family, range).map(Result::unwrap).collect()
}

fn scanned(reader: &impl Reader, family: Family, range: KeyRange) -> String {
    let pairs = pairs(reader, family, range);
    let keys: Vec<_> = pairs.iter().map(|(key, _)| key.escape_ascii().to_string()).collect();
    keys.join(" ")
}

const EVERYTHING: KeyRange = (Bound::Unbounded, Bound::Unbounded);

fn a_put_is_read_back_and_a_delete_removes_it<S: Subject>() {
    let subject = S::create();
    let engine = subject.engine();
    assert_eq!(get(engine, S::A, "a"), None);
    put(engine, S::A, "a", "1");
    assert_eq!(get(engine, S::A, "a"), Some("1".into()));
    put(engine, S::A, "a", "2");
    assert_eq!(get(engine, S::A, "a"), Some("2".into()));
    for _ in 0..2 {
        write(engine, true, |batch| batch.delete(S::A, "a"));
        assert_eq!(get(engine, S::A, "a"), None);
    }
    assert_eq!(scanned(engine, S::A, EVERYTHING), "");
}

fn several_keys_are_read_as_each_alone<S: Subject>() {
    let subject = S::create();
    let engine = subject.engine();
    let key = |number: u32| Bytes::from(format!("{number:04}"));
    let mut batch = Batch::default();
    (0..300).for_each(|number| batch.put(S::A, key(3 * number), format!("{number}")));
    (0..300).for_each(|number| batch.put(S::B, key(number), "another"));
    engine.write(batch, false).unwrap();
    // Some of it in a file, and some of that outdated.
    engine.flush().unwrap();
    let mut batch = Batch::default();
    (0..300).step_by(5).for_each(|number| batch.delete(S::A, key(3 * number)));
    (0..300).step_by(7).for_each(|number| batch.put(S::A, key(3 * number), ""));
    engine.write(batch, false).unwrap();
    let keys: Vec<Bytes> = (0..1000).map(key).collect();
    let values = engine.get_many(S::A, &keys).unwrap();
    let alone: Vec<_> = keys.iter().map(|key| engine.get(S::A, key).unwrap()).collect();
    assert_eq!(values, alone);
    let present = values.iter().flatten().count();
    assert_eq!(present, 300 - 60 + 9, "of which nine were put again");
    assert_eq!(engine.get_many(S::A, &[]).unwrap(), []);
}

fn an_empty_value_is_a_value<S: Subject>() {
    let subject = S::create();
    put(subject.engine(), S::A, "a", "");
    write(subject.engine(), true, |_| ());
    let subject = subject.reopen();
    assert_eq!(get(subject.engine(), S::A, "a"), Some(Bytes::new()));
    assert_eq!(pairs(subject.engine(), S::A, EVERYTHING), [("a".into(), Bytes::new())]);
}

fn keys_and_values_are_any_bytes<S: Subject>() {
    let subject = S::create();
    let keys = [&b"\0"[..], b"\0\0", b"\0\xff", b"a\nb", b"\xc3\x28", b"\xff", b"\xff\xff"];
    write(subject.engine(), true, |batch| {
        for key in keys.iter().rev() {
            batch.put(S::A, *key, [key, &b"\0\xff"[..]].concat());
        }
    });
    let found = pairs(subject.engine(), S::A, EVERYTHING);
    assert_eq!(found.iter().map(|(key, _)| &key[..]).collect::<Vec<_>>(), keys);
    for (key, value) in found {
        assert_eq!(value, [&key[..], b"\0\xff"].concat());
        assert_eq!(subject.engine().get(S::A, &key), Ok(Some(value)));
    }
}

fn families_are_separate<S: Subject>() {
    let subject = S::create();
    put(subject.engine(), S::A, "a", "1");
    assert_eq!(get(subject.engine(), S::B, "a"), None);
    assert_eq!(scanned(subject.engine(), S::B, EVERYTHING), "");
}

fn a_batch_takes_effect_in_order<S: Subject>() {
    let subject = S::create();
    write(subject.engine(), false, |batch| {
        batch.put(S::A, "a", "1");
        batch.put(S::A, "a", "2");
        batch.put(S::A, "b", "1");
        batch.delete(S::A, "b");
        batch.put(S::A, "c", "1");
        batch.put(S::A, "d", "1");
        batch.delete_range(S::A, "c", "e");
        batch.put(S::A, "d", "2");
    });
    let expected: [Pair; 2] = [("a".into(), "2".into()), ("d".into(), "2".into())];
    assert_eq!(pairs(subject.engine(), S::A, EVERYTHING), expected);
}

fn a_batch_is_seen_whole_or_not_at_all<S: Subject>() {
    const ROUNDS: u32 = 300;
    let subject = S::create();
    let engine = subject.engine();
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                write(engine, false, |batch| {
                    batch.put(S::A, "a", round.to_be_bytes().to_vec());
                    batch.put(S::B, "b", round.to_be_bytes().to_vec());
                });
            }
        });
        let last = Some(ROUNDS.to_be_bytes().to_vec().into());
        loop {
            let frozen = engine.freeze();
            let (a, b) = (get(&frozen, S::A, "a"), get(&frozen, S::B, "b"));
            assert_eq!(a, b);
            if a == last {
                break;
            }
        }
    });
}

fn delete_range_keeps_its_end<S: Subject>() {
    let subject = S::create();
    write(subject.engine(), true, |batch| {
        for index in 1..=5 {
            batch.put(S::A, keys::entry(index).to_vec(), "x");
        }
        batch.put(S::B, keys::entry(3).to_vec(), "x");
    });
    write(subject.engine(), true, |batch| {
        batch.delete_range(S::A, keys::entry(2).to_vec(), keys::entry(4).to_vec());
    });
    let left = pairs(subject.engine(), S::A, EVERYTHING).into_iter();
    let left: Vec<_> = left.map(|(key, _)| keys::entry_index(&key).unwrap()).collect();
    assert_eq!(left, [1, 4, 5]);
    assert_eq!(pairs(subject.engine(), S::B, EVERYTHING).len(), 1);
}

fn a_reversed_range_is_empty<S: Subject>() {
    let subject = S::create();
    let engine = subject.engine();
    put(engine, S::A, "a", "1");
    put(engine, S::A, "b", "1");
    write(engine, true, |batch| {
        batch.delete_range(S::A, "b", "a");
        batch.delete_range(S::A, "a", "a");
    });
    for range in [
        (Bound::Included("b".into()), Bound::Included("a".into())),
        (Bound::Included("a".into()), Bound::Excluded("a".into())),
        (Bound::Excluded("a".into()), Bound::Excluded("a".into())),
        (Bound::Unbounded, Bound::Excluded(Bytes::new())),
    ] {
        assert_eq!(scanned(engine, S::A, range), "");
    }
    assert_eq!(scanned(engine, S::A, EVERYTHING), "a b");
}

fn scan_bounds_hold<S: Subject>() {
    let subject = S::create();
    for key in ["d", "a", "b\0", "c", "b"] {
        put(subject.engine(), S::A, key, "x");
    }
    let b = || Bytes::from("b");
    let d = || Bytes::from("d");
    for (range, expected) in [
        (EVERYTHING, r"a b b\x00 c d"),
        ((Bound::Included(b()), Bound::Unbounded), r"b b\x00 c d"),
        ((Bound::Excluded(b()), Bound::Unbounded), r"b\x00 c d"),
        ((Bound::Unbounded, Bound::Included(b())), "a b"),
        ((Bound::Unbounded, Bound::Excluded(b())), "a"),
        ((Bound::Included(b()), Bound::Included(d())), r"b b\x00 c d"),
        ((Bound::Excluded(b()), Bound::Excluded(d())), r"b\x00 c"),
        ((Bound::Included(b()), Bound::Included(b())), "b"),
    ] {
        assert_eq!(scanned(subject.engine(), S::A, range), expected);
        assert_eq!(scanned(&subject.engine().freeze(), S::A, range_of(expected)), expected);
    }
}

/// The closed range from the first to the last of some escaped keys.
fn range_of(keys: &str) -> KeyRange {
    let unescaped = |key: Option<&str>| Bytes::from(key.unwrap().replace(r"\x00", "\0"));
    let first = unescaped(keys.split(' ').next());
    let last = unescaped(keys.split(' ').next_back());
    (Bound::Included(first), Bound::Included(last))
}

fn a_frozen_view_does_not_see_later_writes<S: Subject>() {
    let subject = S::create();
    let engine = subject.engine();
    put(engine, S::A, "a", "1");
    put(engine, S::A, "b", "1");
    let frozen = engine.freeze();
    write(engine, true, |batch| {
        batch.put(S::A, "a", "2");
        batch.delete_range(S::A, "b", "c");
        batch.put(S::A, "c", "2");
    });
    let expected: [Pair; 2] = [("a".into(), "1".into()), ("b".into(), "1".into())];
    assert_eq!(pairs(&frozen, S::A, EVERYTHING), expected);
    assert_eq!(get(&frozen, S::A, "a"), Some("1".into()));
    assert_eq!(get(&frozen, S::A, "c"), None);
    assert_eq!(get(engine, S::A, "a"), Some("2".into()));
}

fn a_scan_stays_at_its_moment<S: Subject>() {
    let subject = S::create();
    let engine = subject.engine();
    for key in ["a", "b", "c"] {
        put(engine, S::A, key, "1");
    }
    let mut scan = engine.scan(S::A, EVERYTHING);
    let mut next = || scan.next().map(Result::unwrap);
    assert_eq!(next(), Some(("a".into(), "1".into())));
    write(engine, true, |batch| {
        batch.put(S::A, "b", "2");
        batch.delete(S::A, "c");
        batch.put(S::A, "d", "2");
    });
    assert_eq!(next(), Some(("b".into(), "1".into())));
    assert_eq!(next(), Some(("c".into(), "1".into())));
    assert_eq!(next(), None);
    assert_eq!(next(), None);
    assert_eq!(scanned(engine, S::A, EVERYTHING), "a b d");
}

fn clones_are_the_same_database<S: Subject>() {
    let subject = S::create();
    let clone = subject.engine().clone();
    put(&clone, S::A, "a", "1");
    assert_eq!(get(subject.engine(), S::A, "a"), Some("1".into()));
}

fn size_grows_with_the_data<S: Subject>() {
    let subject = S::create();
    let before = subject.engine().size_bytes();
    write(subject.engine(), true, |batch| {
        // Bytes that do not compress away.
        let mut seed = 1u64;
        for index in 0..64 {
            let value: Vec<u8> = (0..32 << 10)
                .map(|_| {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (seed >> 56) as u8
                })
                .collect();
            batch.put(S::A, keys::entry(index).to_vec(), value);
        }
    });
    let grown = subject.engine().size_bytes() - before;
    assert!((1 << 20..16 << 20).contains(&grown), "2 MiB written, grown by {grown}");
}

fn a_restart_keeps_what_was_synced<S: Subject>() {
    let subject = S::create();
    put(subject.engine(), S::A, "a", "1");
    write(subject.engine(), true, |batch| batch.put(S::B, "b", "1"));
    let subject = subject.reopen();
    assert_eq!(get(subject.engine(), S::A, "a"), Some("1".into()));
    assert_eq!(get(subject.engine(), S::B, "b"), Some("1".into()));
    write(subject.engine(), true, |batch| batch.delete(S::A, "a"));
    let subject = subject.reopen();
    assert_eq!(scanned(subject.engine(), S::A, EVERYTHING), "");
    assert_eq!(scanned(subject.engine(), S::B, EVERYTHING), "b");
}

fn a_crash_keeps_what_was_synced<S: Subject>() {
    let subject = S::create();
    write(subject.engine(), false, |batch| batch.put(S::A, "a", "1"));
    write(subject.engine(), true, |batch| batch.put(S::B, "b", "1"));
    write(subject.engine(), true, |batch| batch.delete_range(S::A, "c", "d"));
    let subject = subject.crash();
    assert_eq!(scanned(subject.engine(), S::A, EVERYTHING), "a");
    assert_eq!(scanned(subject.engine(), S::B, EVERYTHING), "b");
}

fn a_flush_makes_earlier_writes_durable<S: Subject>() {
    let subject = S::create();
    put(subject.engine(), S::A, "a", "1");
    put(subject.engine(), S::B, "b", "1");
    subject.engine().flush().unwrap();
    subject.engine().flush().unwrap();
    let subject = subject.crash();
    assert_eq!(scanned(subject.engine(), S::A, EVERYTHING), "a");
    assert_eq!(scanned(subject.engine(), S::B, EVERYTHING), "b");
}

fn an_empty_synced_batch_makes_earlier_writes_durable<S: Subject>() {
    let subject = S::create();
    put(subject.engine(), S::A, "a", "1");
    write(subject.engine(), true, |_| ());
    assert_eq!(scanned(subject.crash().engine(), S::A, EVERYTHING), "a");
}

#[test]
fn a_memory_crash_keeps_a_prefix_of_whole_batches() {
    let family = Memory::A;
    let engine = MemoryEngine::new();
    write(&engine, true, |batch| batch.put(family, "a", "0"));
    for round in ["1", "2", "3"] {
        write(&engine, false, |batch| {
            batch.put(family, "a", round);
            batch.put(Memory::B, round, "");
        });
    }
    for (kept, value, keys) in [(0, "0", ""), (1, "1", "1"), (2, "2", "1 2"), (9, "3", "1 2 3")] {
        let crashed = engine.crash(|unsynced| {
            assert_eq!(unsynced, 3);
            kept
        });
        assert_eq!(get(&crashed, family, "a"), Some(value.into()));
        assert_eq!(scanned(&crashed, Memory::B, EVERYTHING), keys);
        // What it found is durable now, and its own.
        put(&crashed, family, "a", "lost");
        assert_eq!(get(&crashed.crash(|_| 0), family, "a"), Some(value.into()));
    }
    assert_eq!(get(&engine, family, "a"), Some("3".into()));
}

#[test]
fn a_memory_checkpoint_is_durable_and_independent() {
    let engine = MemoryEngine::new();
    put(&engine, Memory::A, "a", "1");
    let checkpoint = engine.checkpoint();
    put(&engine, Memory::A, "a", "2");
    put(&checkpoint, Memory::A, "b", "1");
    assert_eq!(scanned(&engine, Memory::A, EVERYTHING), "a");
    let checkpoint = checkpoint.crash(|_| 0);
    assert_eq!(pairs(&checkpoint, Memory::A, EVERYTHING), [("a".into(), "1".into())]);
    assert_eq!(get(&engine.crash(|_| 0), Memory::A, "a"), None);
}

/// One step of a random run.
#[derive(Debug, Clone)]
enum Step {
    Write(Batch, bool),
    Scan(Family, KeyRange),
    Restart,
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::Current), Just(Family::Changes)]
}

fn key() -> impl Strategy<Value = Bytes> {
    vec(prop_oneof![Just(0u8), Just(b'a'), Just(0xff)], 0..3).prop_map(Bytes::from)
}

fn bound() -> impl Strategy<Value = Bound<Bytes>> {
    prop_oneof![
        Just(Bound::Unbounded),
        key().prop_map(Bound::Included),
        key().prop_map(Bound::Excluded),
    ]
}

fn operation() -> impl Strategy<Value = BatchOp> {
    let value = vec(any::<u8>(), 0..3).prop_map(Bytes::from);
    prop_oneof![
        4 => (family(), key(), value).prop_map(|(family, key, value)| {
            BatchOp::Put(family, key, value)
        }),
        1 => (family(), key()).prop_map(|(family, key)| BatchOp::Delete(family, key)),
        1 => (family(), key(), key()).prop_map(|(family, from, to)| {
            BatchOp::DeleteRange(family, from, to)
        }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (vec(operation(), 0..6), prop::bool::weighted(0.1))
            .prop_map(|(ops, sync)| Step::Write(Batch { ops }, sync)),
        10 => (family(), bound(), bound())
            .prop_map(|(family, lower, upper)| Step::Scan(family, (lower, upper))),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 16,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn both_engines_answer_alike(steps in vec(step(), 1..60)) {
        let mut rocks = Rocks::<true>::create();
        let mut memory = Memory::create();
        for step in steps {
            match step {
                Step::Write(batch, sync) => {
                    rocks.engine().write(batch.clone(), sync).unwrap();
                    memory.engine().write(batch, sync).unwrap();
                }
                Step::Scan(family, range) => {
                    let expected = pairs(memory.engine(), family, range.clone());
                    prop_assert_eq!(&pairs(rocks.engine(), family, range.clone()), &expected);
                    prop_assert_eq!(&pairs(&rocks.engine().freeze(), family, range), &expected);
                    for (key, value) in expected {
                        prop_assert_eq!(rocks.engine().get(family, &key), Ok(Some(value)));
                    }
                }
                Step::Restart => (rocks, memory) = (rocks.reopen(), memory.reopen()),
            }
        }
        for family in [Family::Current, Family::Changes] {
            let expected = pairs(memory.engine(), family, EVERYTHING);
            prop_assert_eq!(pairs(rocks.engine(), family, EVERYTHING), expected);
        }
    }
}
