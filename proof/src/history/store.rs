//! The change history, replayed into the states it went through.

use std::collections::{BTreeMap, BTreeSet};

use super::{Keys, Pair};
use crate::Figures;

/// The revision of an empty store; the first change has the next.
pub const FIRST_REVISION: u64 = 1;

/// What happened to one key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Event {
    /// The key.
    pub key: String,
    /// What was put; `None` is a deletion.
    pub put: Option<Pair>,
}

/// All that happened at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The revision.
    pub revision: u64,
    /// In the order in which a watch told of them.
    pub events: Vec<Event>,
}

/// Every state of the store.
#[derive(Debug, Default)]
pub struct Store {
    changes: Vec<Change>,
    /// By key: at which revision it became what; ascending.
    keys: BTreeMap<String, Vec<(u64, Option<Pair>)>>,
}

impl Store {
    /// Replays a history, which must be the whole one, in order.
    pub fn replay(changes: Vec<Change>, figures: &Figures) -> Self {
        let mut store = Self::default();
        let mut last = FIRST_REVISION;
        for change in &changes {
            if change.revision != last + 1 {
                let revision = change.revision;
                figures.violation(format!("revision {revision} follows revision {last}"));
            }
            last = change.revision;
            if let Err(why) = store.apply(change) {
                figures.violation(format!("the history is not one of a store: {why}: {change:?}"));
            }
        }
        figures.count("revisions", changes.len() as u64);
        store.changes = changes;
        store
    }

    fn apply(&mut self, change: &Change) -> Result<(), String> {
        let revision = change.revision;
        let mut touched = BTreeSet::new();
        if change.events.is_empty() {
            return Err("nothing happened".into());
        }
        for Event { key, put } in &change.events {
            if !touched.insert(key) {
                return Err(format!("{key} changes twice"));
            }
            let states = self.keys.entry(key.clone()).or_default();
            let before = states.last().and_then(|(_, pair)| pair.clone());
            states.push((revision, put.clone()));
            check_event(key, before.as_ref(), put.as_ref(), revision)?;
        }
        Ok(())
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.changes.last().map_or(FIRST_REVISION, |change| change.revision)
    }

    /// All changes, ascending.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// What happened at a revision.
    pub fn change(&self, revision: u64) -> Option<&Change> {
        let at = self.changes.binary_search_by_key(&revision, |change| change.revision).ok()?;
        self.changes.get(at)
    }

    /// The revision of the first deletion of a key.
    pub fn deletion(&self, key: &str) -> Option<u64> {
        let states = self.keys.get(key)?;
        states.iter().find(|(_, pair)| pair.is_none()).map(|(revision, _)| *revision)
    }

    /// A key as it was at a revision.
    pub fn at(&self, key: &str, revision: u64) -> Option<&Pair> {
        self.keys.get(key).and_then(|states| state_at(states, revision))
    }

    /// A range of keys as it was at a revision, by key.
    pub fn range(&self, keys: &Keys, revision: u64) -> Vec<&Pair> {
        if keys.end.is_empty() {
            return self.at(&keys.key, revision).into_iter().collect();
        }
        let range = self.keys.range(keys.key.clone()..keys.end.clone());
        range.filter_map(|(_, states)| state_at(states, revision)).collect()
    }
}

fn state_at(states: &[(u64, Option<Pair>)], revision: u64) -> Option<&Pair> {
    let after = states.partition_point(|(at, _)| *at <= revision);
    states.get(after.checked_sub(1)?)?.1.as_ref()
}

/// Whether a store does this to a key.
fn check_event(
    key: &str,
    before: Option<&Pair>,
    put: Option<&Pair>,
    revision: u64,
) -> Result<(), String> {
    match (before, put) {
        (None, None) => Err(format!("{key} is deleted and was not there")),
        (Some(_), None) => Ok(()),
        (before, Some(pair)) => {
            let created = before.map_or(revision, |before| before.created);
            let version = before.map_or(1, |before| before.version + 1);
            let fits = pair.key == key
                && pair.modified == revision
                && pair.created == created
                && pair.version == version;
            if fits { Ok(()) } else { Err(format!("{key} was {before:?} and becomes {pair:?}")) }
        }
    }
}
