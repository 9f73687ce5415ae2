//! The order of real time: what began after something else had ended must not
//! come before it.

use super::{Answer, Ask, Record, Seen, Time};
use crate::Figures;

/// When it was first known that the store had reached which revision.
#[derive(Debug, Default)]
pub struct Sightings {
    /// Times and the newest revision known then, both ascending.
    newest: Vec<(Time, u64)>,
}

impl Sightings {
    /// From all that clients saw: answers and watches.
    pub fn of(seen: &Seen) -> Self {
        let answers = seen.records.iter().filter_map(|record| {
            record.answer().and_then(Answer::revision).map(|revision| (record.ended, revision))
        });
        let events = seen.watches.iter().flat_map(|watched| {
            watched.batches.iter().filter_map(|batch| Some((batch.received, batch.newest()?)))
        });
        Self::new(answers.chain(events).collect())
    }

    /// From pairs of a time and a revision that was seen then.
    pub fn new(mut newest: Vec<(Time, u64)>) -> Self {
        newest.sort_unstable();
        let mut highest = 0;
        newest.retain(|(_, revision)| {
            let higher = *revision > highest;
            highest = highest.max(*revision);
            higher
        });
        Self { newest }
    }

    /// The newest revision that was known before a time.
    pub fn before(&self, time: Time) -> u64 {
        let after = self.newest.partition_point(|(at, _)| *at < time);
        after.checked_sub(1).and_then(|last| self.newest.get(last)).map_or(0, |(_, newest)| *newest)
    }

    /// When it was first known that the store had reached a revision.
    pub fn first(&self, revision: u64) -> Option<Time> {
        let at = self.newest.partition_point(|(_, newest)| *newest < revision);
        self.newest.get(at).map(|(time, _)| *time)
    }
}

/// Checks every answer that carries the store's revision.
pub fn check(records: &[Record], sightings: &Sightings, figures: &Figures) {
    let mut checked = 0;
    for record in records {
        let older = match record.answer() {
            Some(Answer::Wrote { revision, .. }) => *revision <= sightings.before(record.called),
            Some(Answer::Read { revision, .. }) if !may_be_old(&record.ask) => {
                *revision < sightings.before(record.called)
            }
            _ => continue,
        };
        checked += 1;
        if older {
            let newest = sightings.before(record.called);
            figures.violation(format!("revision {newest} had been seen before this: {record:?}"));
        }
    }
    figures.count("answers in order", checked);
}

fn may_be_old(ask: &Ask) -> bool {
    matches!(ask, Ask::Range { serializable: true, .. })
}
