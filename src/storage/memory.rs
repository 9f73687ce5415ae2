//! The simulator's engine: ordered maps, and a crash that can lose what was
//! not yet durable.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    Batch, BatchOp, Engine, Family, Floor, KeyRange, Pair, Reader, floor::is_forgotten, half_open,
};
use crate::error::Fatal;

type Map = BTreeMap<Bytes, Bytes>;

/// What a broken disk refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breakdown {
    /// Every write, with or without a sync.
    Writes,
    /// Every sync: what was to be synced is written, and may be lost.
    Syncs,
}

/// A database in memory. Nothing in it depends on anything but the calls made.
#[derive(Clone, Default)]
pub struct MemoryEngine {
    // A lock, because clones of an engine are the same database and readers
    // live on other threads than the writer. Held for single operations only.
    inner: Arc<Mutex<Inner>>,
    floor: Floor,
}

#[derive(Default)]
struct Inner {
    /// What reads see: `durable` and then `unsynced`.
    live: Families,
    /// What the last sync left on the imagined disk.
    durable: Families,
    /// The batches since, oldest first.
    unsynced: Vec<Batch>,
    breakdown: Option<Breakdown>,
    /// How often each family was scanned.
    scans: BTreeMap<Family, u64>,
}

impl Inner {
    fn sync(&mut self) -> Result<(), Fatal> {
        if self.breakdown.is_some() {
            return Err(Fatal::new("the disk refuses to sync", "replace the disk"));
        }
        for batch in self.unsynced.drain(..) {
            self.durable.apply(&batch);
        }
        Ok(())
    }
}

/// The maps of all families. Cloning shares them; a write to a shared map
/// copies it first.
#[derive(Clone, Default)]
struct Families(BTreeMap<Family, Arc<Map>>);

impl Families {
    fn apply(&mut self, batch: &Batch) {
        for op in &batch.ops {
            match op {
                BatchOp::Put(family, key, value) => {
                    self.map_mut(*family).insert(key.clone(), value.clone());
                }
                BatchOp::Delete(family, key) => {
                    self.map_mut(*family).remove(key);
                }
                BatchOp::DeleteRange(family, from, to) if from < to => {
                    let map = self.map_mut(*family);
                    let doomed: Vec<Bytes> =
                        map.range::<Bytes, _>(from..to).map(|(key, _)| key.clone()).collect();
                    for key in &doomed {
                        map.remove(key);
                    }
                }
                BatchOp::DeleteRange(..) => {}
            }
        }
    }

    fn map_mut(&mut self, family: Family) -> &mut Map {
        Arc::make_mut(self.0.entry(family).or_default())
    }

    fn get(&self, family: Family, key: &[u8]) -> Option<Bytes> {
        self.0.get(&family)?.get(key).cloned()
    }

    fn scan(&self, family: Family, range: KeyRange) -> Scan {
        let (from, to) = half_open(range);
        let map = self.0.get(&family).cloned().unwrap_or_default();
        Scan { map, from: Bound::Included(from), to }
    }
}

/// Walks a map that it shares, remembering where it is by key.
struct Scan {
    map: Arc<Map>,
    from: Bound<Bytes>,
    to: Option<Bytes>,
}

impl Iterator for Scan {
    type Item = Result<Pair, Fatal>;

    fn next(&mut self) -> Option<Self::Item> {
        // Open above: a range that ends before it begins would panic.
        let (key, value) = self.map.range((self.from.clone(), Bound::Unbounded)).next()?;
        if self.to.as_ref().is_some_and(|to| key >= to) {
            return None;
        }
        self.from = Bound::Excluded(key.clone());
        Some(Ok((key.clone(), value.clone())))
    }
}

impl MemoryEngine {
    /// An empty database.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a restart after a crash finds: everything durable, and of the
    /// unsynced batches the oldest `keep(count)`, each whole. `keep` is given
    /// their count and answers at most that; more counts as all of them.
    ///
    /// This engine stays as it was; the caller drops it.
    pub fn crash(&self, keep: impl FnOnce(usize) -> usize) -> Self {
        let inner = self.inner.lock();
        let kept = keep(inner.unsynced.len());
        let mut durable = inner.durable.clone();
        for batch in inner.unsynced.iter().take(kept) {
            durable.apply(batch);
        }
        Self::holding(durable)
    }

    /// An independent database that durably holds what this one holds now.
    /// What is durable of this one does not change.
    pub fn checkpoint(&self) -> Self {
        Self::holding(self.inner.lock().live.clone())
    }

    /// From now on the disk is broken, or whole again.
    pub fn break_down(&self, breakdown: Option<Breakdown>) {
        self.inner.lock().breakdown = breakdown;
    }

    /// How often a family was scanned, other than in a frozen moment.
    pub fn scans(&self, family: Family) -> u64 {
        self.inner.lock().scans.get(&family).copied().unwrap_or(0)
    }

    /// Whether the disk is broken.
    pub fn is_broken(&self) -> bool {
        self.inner.lock().breakdown.is_some()
    }

    fn holding(durable: Families) -> Self {
        let inner = Inner { live: durable.clone(), durable, ..Inner::default() };
        Self { inner: Arc::new(Mutex::new(inner)), floor: Floor::default() }
    }

    /// Forgets what is at or below the [`Floor`], as RocksDB does at times of
    /// its own choosing. A crash does not bring it back.
    pub fn forget(&self) {
        let floor = self.floor.revision();
        let mut inner = self.inner.lock();
        let Inner { live, durable, .. } = &mut *inner;
        for families in [live, durable] {
            for family in [Family::Changes, Family::Deleted, Family::History] {
                let map = families.map_mut(family);
                map.retain(|key, value| !is_forgotten(family, key, value, floor));
            }
        }
    }
}

impl Reader for MemoryEngine {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        Ok(self.inner.lock().live.get(family, key))
    }

    fn scan(
        &self,
        family: Family,
        range: KeyRange,
    ) -> Box<dyn Iterator<Item = Result<Pair, Fatal>> + Send + '_> {
        let mut inner = self.inner.lock();
        *inner.scans.entry(family).or_default() += 1;
        Box::new(inner.live.scan(family, range))
    }

    fn count(&self, family: Family, range: KeyRange) -> Result<u64, Fatal> {
        Ok(self.inner.lock().live.scan(family, range).count() as u64)
    }
}

impl Engine for MemoryEngine {
    type Frozen<'a> = MemoryFrozen;

    fn value_bytes(&self, family: Family, key: &[u8]) -> Result<Option<usize>, Fatal> {
        Ok(self.get(family, key)?.map(|value| value.len()))
    }

    fn write(&self, batch: Batch, sync: bool) -> Result<(), Fatal> {
        {
            let mut inner = self.inner.lock();
            if inner.breakdown == Some(Breakdown::Writes) {
                return Err(Fatal::new("the disk refuses to write", "replace the disk"));
            }
            inner.live.apply(&batch);
            inner.unsynced.push(batch);
        }
        if sync { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), Fatal> {
        self.floor.across_flush(|| self.inner.lock().sync())
    }

    fn freeze(&self) -> MemoryFrozen {
        MemoryFrozen(self.inner.lock().live.clone())
    }

    fn floor(&self) -> &Floor {
        &self.floor
    }

    fn size_bytes(&self) -> u64 {
        let inner = self.inner.lock();
        let pairs = inner.live.0.values().flat_map(|map| map.iter());
        pairs.map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}

/// A frozen moment of a [`MemoryEngine`].
pub struct MemoryFrozen(Families);

impl Reader for MemoryFrozen {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        Ok(self.0.get(family, key))
    }

    fn scan(
        &self,
        family: Family,
        range: KeyRange,
    ) -> Box<dyn Iterator<Item = Result<Pair, Fatal>> + Send + '_> {
        Box::new(self.0.scan(family, range))
    }

    fn count(&self, family: Family, range: KeyRange) -> Result<u64, Fatal> {
        Ok(self.0.scan(family, range).count() as u64)
    }
}
