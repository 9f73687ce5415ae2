//! Writes that are not in the database yet, seen as if they were.

use std::{cmp::Ordering, collections::BTreeMap, iter, iter::Peekable, ops::Bound};

use bytes::Bytes;

use super::{Batch, BatchOp, Family, KeyRange, Pair, Reader, half_open};
use crate::error::Fatal;

/// A batch in the making over a reader, which itself reads as the reader will
/// once the batch is written.
///
/// It is a [`Reader`] too, so another can be made over it: what that one
/// collects is [absorbed](Pending::absorb) or thrown away. The reader below
/// must not change meanwhile.
#[derive(Debug)]
pub struct Pending<'a, R> {
    base: &'a R,
    overlays: BTreeMap<Family, Overlay>,
    batch: Batch,
}

/// What the batch does to one family.
#[derive(Debug, Default)]
struct Overlay {
    /// The keys written, and where in the batch that was done last.
    written: BTreeMap<Bytes, usize>,
    /// The ranges `[from, to)` of which only what is written remains.
    cleared: Vec<(Bytes, Bytes)>,
}

impl Overlay {
    /// Whether the value of a key below is hidden.
    fn hides(&self, key: &[u8]) -> bool {
        self.cleared.iter().any(|(from, to)| from[..] <= *key && *key < to[..])
    }

    fn clear(&mut self, from: Bytes, to: Bytes) {
        if from >= to {
            return;
        }
        let doomed: Vec<Bytes> =
            self.written.range::<Bytes, _>(&from..&to).map(|(key, _)| key.clone()).collect();
        for key in &doomed {
            self.written.remove(key);
        }
        self.cleared.retain(|(start, end)| *start < from || to < *end);
        self.cleared.push((from, to));
    }
}

impl<'a, R> Pending<'a, R> {
    /// An empty batch over a reader.
    pub fn new(base: &'a R) -> Self {
        Self { base, overlays: BTreeMap::new(), batch: Batch::default() }
    }

    /// Sets a key.
    pub fn put(&mut self, family: Family, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        let (key, place) = (key.into(), self.batch.ops.len());
        self.overlay(family).written.insert(key.clone(), place);
        self.batch.put(family, key, value);
    }

    /// Removes a key, present or not.
    pub fn delete(&mut self, family: Family, key: impl Into<Bytes>) {
        let (key, place) = (key.into(), self.batch.ops.len());
        self.overlay(family).written.insert(key.clone(), place);
        self.batch.delete(family, key);
    }

    /// Removes every key in `[from, to)`.
    pub fn delete_range(&mut self, family: Family, from: impl Into<Bytes>, to: impl Into<Bytes>) {
        let (from, to) = (from.into(), to.into());
        self.overlay(family).clear(from.clone(), to.clone());
        self.batch.delete_range(family, from, to);
    }

    /// Adds another batch to this one.
    pub fn absorb(&mut self, batch: Batch) {
        for op in batch.ops {
            match op {
                BatchOp::Put(family, key, value) => self.put(family, key, value),
                BatchOp::Delete(family, key) => self.delete(family, key),
                BatchOp::DeleteRange(family, from, to) => self.delete_range(family, from, to),
            }
        }
    }

    /// What is to be written, in order.
    pub fn into_batch(self) -> Batch {
        self.batch
    }

    fn overlay(&mut self, family: Family) -> &mut Overlay {
        self.overlays.entry(family).or_default()
    }
}

impl<R: Reader> Reader for Pending<'_, R> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        if let Some(overlay) = self.overlays.get(&family) {
            if let Some(place) = overlay.written.get(key) {
                return Ok(written_at(&self.batch, *place));
            }
            if overlay.hides(key) {
                return Ok(None);
            }
        }
        self.base.get(family, key)
    }

    fn scan(
        &self,
        family: Family,
        range: KeyRange,
    ) -> Box<dyn Iterator<Item = Result<Pair, Fatal>> + Send + '_> {
        let Some(overlay) = self.overlays.get(&family) else {
            return self.base.scan(family, range);
        };
        let (from, to) = half_open(range.clone());
        if to.as_ref().is_some_and(|to| *to <= from) {
            return Box::new(iter::empty());
        }
        let upper = to.map_or(Bound::Unbounded, Bound::Excluded);
        let written = overlay.written.range((Bound::Included(from), upper));
        let below = self.base.scan(family, range).filter(|pair| match pair {
            Ok((key, _)) => !overlay.hides(key),
            Err(_) => true,
        });
        let batch = &self.batch;
        let written = written.map(|(key, place)| (key, written_at(batch, *place)));
        Box::new(Merged { below: below.peekable(), written: written.peekable() })
    }

    fn count(&self, family: Family, range: KeyRange) -> Result<u64, Fatal> {
        if self.overlays.contains_key(&family) {
            self.scan(family, range).try_fold(0, |count, pair| pair.map(|_| count + 1))
        } else {
            self.base.count(family, range)
        }
    }
}

/// The value that a key has after an operation of a batch that is about it alone.
fn written_at(batch: &Batch, place: usize) -> Option<Bytes> {
    match batch.ops.get(place) {
        Some(BatchOp::Put(_, _, value)) => Some(value.clone()),
        _ => None,
    }
}

/// The pairs of two sources in one order; what is written hides what is below.
struct Merged<B: Iterator, W: Iterator> {
    below: Peekable<B>,
    written: Peekable<W>,
}

impl<'a, B, W> Iterator for Merged<B, W>
where
    B: Iterator<Item = Result<Pair, Fatal>>,
    W: Iterator<Item = (&'a Bytes, Option<Bytes>)>,
{
    type Item = Result<Pair, Fatal>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let order = match (self.below.peek(), self.written.peek()) {
                (Some(Err(_)), _) | (_, None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(Ok((below, _))), Some((written, _))) => below.cmp(written),
            };
            match order {
                Ordering::Less => return self.below.next(),
                Ordering::Equal => drop(self.below.next()),
                Ordering::Greater => {}
            }
            if let Some((key, Some(value))) = self.written.next() {
                return Some(Ok((key.clone(), value)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::storage::{Engine, memory::MemoryEngine};

    const FAMILIES: [Family; 2] = [Family::Current, Family::Changes];

    fn any_key() -> impl Strategy<Value = Bytes> {
        vec(0..3_u8, 0..3).prop_map(Bytes::from)
    }

    fn any_batch() -> impl Strategy<Value = Batch> {
        let family = || prop::sample::select(FAMILIES.to_vec());
        let op = prop_oneof![
            4 => (family(), any_key(), any_key()).prop_map(|(f, k, v)| BatchOp::Put(f, k, v)),
            2 => (family(), any_key()).prop_map(|(f, k)| BatchOp::Delete(f, k)),
            1 => (family(), any_key(), any_key()).prop_map(|(f, a, b)| BatchOp::DeleteRange(f, a, b)),
        ];
        vec(op, 0..12).prop_map(|ops| Batch { ops })
    }

    fn any_range() -> impl Strategy<Value = KeyRange> {
        let bound = || {
            prop_oneof![
                Just(Bound::Unbounded),
                any_key().prop_map(Bound::Included),
                any_key().prop_map(Bound::Excluded),
            ]
        };
        (bound(), bound())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever is absorbed at whichever level reads as if it were written.
        #[test]
        fn it_reads_as_if_it_were_written(
            below in any_batch(),
            first in any_batch(),
            second in any_batch(),
            thrown_away in any_batch(),
            ranges in vec(any_range(), 1..8),
            keys in vec(any_key(), 1..8),
        ) {
            let engine = MemoryEngine::new();
            engine.write(below.clone(), false).unwrap();
            let written = MemoryEngine::new();
            for batch in [&below, &first, &second] {
                written.write(batch.clone(), false).unwrap();
            }

            let mut outer = Pending::new(&engine);
            outer.absorb(first.clone());
            let mut discarded = Pending::new(&outer);
            discarded.absorb(thrown_away);
            drop(discarded);
            let mut inner = Pending::new(&outer);
            inner.absorb(second.clone());
            for family in FAMILIES {
                for range in &ranges {
                    let expected: Vec<_> =
                        written.scan(family, range.clone()).map(Result::unwrap).collect();
                    let found: Vec<_> =
                        inner.scan(family, range.clone()).map(Result::unwrap).collect();
                    prop_assert_eq!(&found, &expected);
                    let count = inner.count(family, range.clone()).unwrap();
                    prop_assert_eq!(count, expected.len() as u64);
                }
                for key in &keys {
                    let expected = written.get(family, key).unwrap();
                    prop_assert_eq!(inner.get(family, key).unwrap(), expected);
                }
            }

            let batch = inner.into_batch();
            outer.absorb(batch);
            let ops = [first.ops, second.ops].concat();
            prop_assert_eq!(outer.into_batch().ops, ops);
        }
    }
}
