//! Who watches a key.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use super::{WatchId, intervals::Intervals, spec::KeyRange};

/// Watches by what they watch.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Only ever looked up: its order differs between runs.
    keys: HashMap<Bytes, BTreeSet<WatchId>>,
    ranges: Intervals,
}

impl Index {
    pub fn add(&mut self, range: &KeyRange, id: WatchId) {
        match range {
            KeyRange::Key(key) => {
                self.keys.entry(key.clone()).or_default().insert(id);
            }
            KeyRange::Range(start, end) => self.ranges.add(start, end, id),
        }
    }

    pub fn remove(&mut self, range: &KeyRange, id: WatchId) {
        match range {
            KeyRange::Key(key) => {
                let Some(watches) = self.keys.get_mut(key) else { return };
                watches.remove(&id);
                if watches.is_empty() {
                    self.keys.remove(key);
                }
            }
            KeyRange::Range(start, end) => self.ranges.remove(start, end, id),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.ranges.is_empty()
    }

    /// Calls `found` for everybody who watches the key, in an order that
    /// depends only on who was added. Returns how many places were looked at.
    pub fn find(&self, key: &[u8], found: &mut impl FnMut(WatchId)) -> u64 {
        if let Some(watches) = self.keys.get(key) {
            watches.iter().for_each(|id| found(*id));
        }
        1 + self.ranges.find(key, found)
    }
}
