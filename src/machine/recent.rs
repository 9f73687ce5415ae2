//! The newest records of keys that were written lately, kept in memory.
//!
//! Every write needs the state before it. Keys that are written are mostly
//! written again, and looking for one in RocksDB's write buffers costs more than
//! all else that applying a put does beside the writing.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use crate::{
    error::Fatal,
    storage::{Batch, BatchOp, Engine, Family, KeyRange, Pair, Reader},
};

/// Bytes of one generation. With both full, nearly every write to one of 100,000
/// keys of 256 bytes finds the record before.
const GENERATION_BYTES: usize = 32 << 20;

/// What an entry takes beside its key and record, about.
const ENTRY_BYTES: usize = 128;

/// Keys that are looked up together: their records may be large.
const KEYS_AT_ONCE: usize = 64;

/// A state database of which the state machine remembers what it wrote lately.
/// Reads of it are those of the database.
#[derive(Debug)]
pub(super) struct Recent<E> {
    engine: E,
    /// What was written last. Looked up only: its order is not deterministic.
    young: Generation,
    /// What was written before that, some of it outdated by `young`. It goes as
    /// a whole when `young` is full and takes its place.
    old: Generation,
    generation_bytes: usize,
}

#[derive(Debug, Default)]
struct Generation {
    /// Encoded records; `None` for a key without one.
    records: HashMap<Bytes, Option<Bytes>>,
    bytes: usize,
}

impl<E: Engine> Recent<E> {
    /// Remembers nothing yet.
    pub fn new(engine: E) -> Self {
        Self::with(engine, GENERATION_BYTES)
    }

    fn with(engine: E, generation_bytes: usize) -> Self {
        Self { engine, young: Generation::default(), old: Generation::default(), generation_bytes }
    }

    pub fn engine(&self) -> &E {
        &self.engine
    }

    /// As [`Engine::write`]; nobody else may write records.
    pub fn write(&mut self, batch: Batch, sync: bool) -> Result<(), Fatal> {
        // Of no use to anybody if the write fails.
        for op in &batch.ops {
            match op {
                BatchOp::Put(Family::Current, key, record) => self.remember(key, Some(record)),
                BatchOp::Delete(Family::Current, key) => self.remember(key, None),
                BatchOp::DeleteRange(Family::Current, ..) => {
                    (self.young, self.old) = (Generation::default(), Generation::default());
                }
                _ => {}
            }
        }
        self.engine.write(batch, sync)
    }

    /// Remembers the records of keys that commands are about to look up. Fewer
    /// where they are large: those are looked up when it comes to them.
    pub fn look_up<'a>(&mut self, keys: impl Iterator<Item = &'a Bytes>) -> Result<(), Fatal> {
        let unknown: BTreeSet<&Bytes> = keys.filter(|key| self.remembered(key).is_none()).collect();
        if unknown.len() < 2 {
            return Ok(());
        }
        let unknown: Vec<Bytes> = unknown.into_iter().cloned().collect();
        let mut bytes = 0;
        for keys in unknown.chunks(KEYS_AT_ONCE) {
            if bytes > self.generation_bytes / 2 {
                break;
            }
            let records = self.engine.get_many(Family::Current, keys)?;
            for (key, record) in keys.iter().zip(records) {
                bytes += entry_bytes(key, record.as_ref());
                self.remember(key, record.as_ref());
            }
        }
        Ok(())
    }

    /// The record of a key, `None` inside for a key without one, if it is known.
    fn remembered(&self, key: &[u8]) -> Option<&Option<Bytes>> {
        self.young.records.get(key).or_else(|| self.old.records.get(key))
    }

    fn remember(&mut self, key: &Bytes, record: Option<&Bytes>) {
        let bytes = entry_bytes(key, record);
        if self.young.bytes + bytes > self.generation_bytes {
            self.old = std::mem::take(&mut self.young);
        }
        // Copied, not to keep what the key may be a part of.
        let key = Bytes::copy_from_slice(key);
        let Generation { records, bytes: sum } = &mut self.young;
        *sum += bytes;
        let before = records.insert(key.clone(), record.cloned());
        *sum -= before.map_or(0, |before| entry_bytes(&key, before.as_ref()));
    }
}

fn entry_bytes(key: &Bytes, record: Option<&Bytes>) -> usize {
    key.len() + record.map_or(0, Bytes::len) + ENTRY_BYTES
}

impl<E: Engine> Reader for Recent<E> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        if family == Family::Current
            && let Some(record) = self.remembered(key)
        {
            return Ok(record.clone());
        }
        self.engine.get(family, key)
    }

    fn scan(
        &self,
        family: Family,
        range: KeyRange,
    ) -> Box<dyn Iterator<Item = Result<Pair, Fatal>> + Send + '_> {
        self.engine.scan(family, range)
    }

    fn count(&self, family: Family, range: KeyRange) -> Result<u64, Fatal> {
        self.engine.count(family, range)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::storage::memory::MemoryEngine;

    fn any_key() -> impl Strategy<Value = Bytes> {
        vec(0..8_u8, 1..2).prop_map(Bytes::from)
    }

    fn any_op() -> impl Strategy<Value = BatchOp> {
        let family = || prop::sample::select(vec![Family::Current, Family::Deleted]);
        let record = vec(any::<u8>(), 0..100);
        prop_oneof![
            8 => (family(), any_key(), record)
                .prop_map(|(family, key, record)| BatchOp::Put(family, key, record.into())),
            4 => (family(), any_key()).prop_map(|(family, key)| BatchOp::Delete(family, key)),
            1 => (family(), any_key(), any_key())
                .prop_map(|(family, from, to)| BatchOp::DeleteRange(family, from, to)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// However little it remembers, it reads as the database does, and takes
        /// no more than it may.
        #[test]
        fn it_reads_as_the_database(
            before in vec(any_op(), 0..8),
            batches in vec(vec(any_op(), 1..6), 1..24),
            generation_bytes in 0..2_000_usize,
        ) {
            let engine = MemoryEngine::new();
            engine.write(Batch { ops: before }, false).unwrap();
            let mut recent = Recent::with(engine, generation_bytes);
            for ops in batches {
                recent.write(Batch { ops }, false).unwrap();
                for family in [Family::Current, Family::Deleted] {
                    for key in 0..8_u8 {
                        let read = recent.get(family, &[key]).unwrap();
                        prop_assert_eq!(read, recent.engine.get(family, &[key]).unwrap());
                    }
                }
                for Generation { records, bytes } in [&recent.young, &recent.old] {
                    let one = ENTRY_BYTES + 101;
                    prop_assert!(*bytes <= generation_bytes.max(one));
                    let sum = records.iter().map(|(key, record)| entry_bytes(key, record.as_ref()));
                    prop_assert_eq!(*bytes, sum.sum::<usize>());
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever was looked up beforehand, all is read as it was written last.
        #[test]
        fn keys_that_are_looked_up_at_once_read_as_the_database(
            before in vec(any_op(), 0..8),
            batches in vec((vec(any_key(), 0..8), vec(any_op(), 1..6)), 1..12),
            generation_bytes in 0..2_000_usize,
        ) {
            let engine = MemoryEngine::new();
            engine.write(Batch { ops: before }, false).unwrap();
            let mut recent = Recent::with(engine, generation_bytes);
            for (keys, ops) in batches {
                recent.look_up(keys.iter()).unwrap();
                for key in 0..8_u8 {
                    let read = recent.get(Family::Current, &[key]).unwrap();
                    prop_assert_eq!(read, recent.engine.get(Family::Current, &[key]).unwrap());
                }
                recent.write(Batch { ops }, false).unwrap();
            }
        }
    }

    #[test]
    fn keys_that_are_looked_up_at_once_are_remembered() {
        let engine = MemoryEngine::new();
        let mut batch = Batch::default();
        batch.put(Family::Current, "a", "1");
        engine.write(batch, false).unwrap();
        let mut recent = Recent::with(engine.clone(), 1_000);
        recent.look_up(["a".into(), "b".into()].iter()).unwrap();
        let mut behind = Batch::default();
        behind.put(Family::Current, "a", "2");
        behind.put(Family::Current, "b", "2");
        engine.write(behind, false).unwrap();
        assert_eq!(recent.get(Family::Current, b"a").unwrap(), Some("1".into()));
        assert_eq!(recent.get(Family::Current, b"b").unwrap(), None);
    }

    #[test]
    fn what_is_remembered_is_not_looked_up() {
        let engine = MemoryEngine::new();
        let mut recent = Recent::with(engine.clone(), 1_000);
        let mut batch = Batch::default();
        batch.put(Family::Current, "a", "1");
        recent.write(batch, false).unwrap();
        let mut behind = Batch::default();
        behind.put(Family::Current, "a", "2");
        behind.put(Family::Current, "b", "2");
        engine.write(behind, false).unwrap();
        assert_eq!(recent.get(Family::Current, b"a").unwrap(), Some("1".into()));
        assert_eq!(recent.get(Family::Current, b"b").unwrap(), Some("2".into()));
    }
}
