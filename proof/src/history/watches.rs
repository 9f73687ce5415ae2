//! Watches tell of everything once, in order, and of each revision as a whole.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::{Event, Keys, Store, Time};
use crate::Figures;

/// One message of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// When it came.
    pub received: Time,
    /// Revision and digest of each event.
    pub events: Vec<(u64, u64)>,
    /// The revision up to which, as it says, everything has been told.
    pub progress: Option<u64>,
}

impl Batch {
    /// The newest revision that it shows the store to have.
    pub fn newest(&self) -> Option<u64> {
        self.events.last().map(|(revision, _)| *revision).max(self.progress)
    }
}

/// All that one watcher saw, whatever number of streams that took.
#[derive(Debug, Clone)]
pub struct Watched {
    /// Who it was, for people.
    pub name: String,
    /// What it watched.
    pub keys: Keys,
    /// The first revision that it wanted to be told of.
    pub from: u64,
    /// In the order in which they came.
    pub batches: Vec<Batch>,
    /// How often it went on with another stream.
    pub resumed: u64,
}

/// A number that stands for an event.
pub fn digest(event: &Event) -> u64 {
    let mut hasher = DefaultHasher::new();
    event.hash(&mut hasher);
    hasher.finish()
}

/// Checks all watches, which must have lasted until the end of the history.
pub fn check(watches: &[Watched], store: &Store, figures: &Figures) {
    for watched in watches {
        let changes = store.changes().iter().filter(|change| change.revision >= watched.from);
        let expected: Vec<(u64, u64)> = changes
            .flat_map(|change| change.events.iter().map(|event| (change.revision, event)))
            .filter(|(_, event)| watched.keys.contains(&event.key))
            .map(|(revision, event)| (revision, digest(event)))
            .collect();
        let told: Vec<(u64, u64)> =
            watched.batches.iter().flat_map(|batch| batch.events.iter().copied()).collect();
        let name = &watched.name;
        if let Some(why) = difference(&expected, &told) {
            figures.violation(format!("the watch {name} {why}"));
        }
        for why in torn(&watched.batches) {
            figures.violation(format!("the watch {name} {why}"));
        }
        figures.count("events watched", told.len() as u64);
        figures.count("watches resumed", watched.resumed);
    }
}

/// The first place at which a watch differs from the history.
fn difference(expected: &[(u64, u64)], told: &[(u64, u64)]) -> Option<String> {
    let at = expected.iter().zip(told).position(|(expected, told)| expected != told);
    let at = at.unwrap_or(expected.len().min(told.len()));
    let revision = |list: &[(u64, u64)]| list.get(at).map(|(revision, _)| *revision);
    match (revision(expected), revision(told)) {
        (None, None) => None,
        (Some(expected), Some(told)) if expected == told => {
            Some(format!("told of revision {told} in other words than the history"))
        }
        (expected, told) => Some(format!(
            "should have told of revision {expected:?} and told of {told:?} as event {at}"
        )),
    }
}

/// Revisions that came in pieces, and events older than the progress promised.
fn torn(batches: &[Batch]) -> Vec<String> {
    let mut found = Vec::new();
    let (mut last, mut promised) = (0, 0);
    for batch in batches {
        if let Some((first, _)) = batch.events.first() {
            if *first == last {
                found.push(format!("told of revision {first} in pieces"));
            }
            if *first <= promised {
                found.push(format!("told of revision {first} after progress to {promised}"));
            }
        }
        last = batch.events.last().map_or(last, |(revision, _)| *revision);
        promised = promised.max(batch.progress.unwrap_or(0));
    }
    found
}
