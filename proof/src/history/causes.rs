//! Every change was asked for, once; every acknowledged write is there.

use std::collections::{BTreeMap, HashMap};

use super::{Answer, Change, End, Keys, Record, Store, order::Sightings};
use crate::Figures;

/// Checks the changes against the requests. Answers at which revision each
/// record took effect, be that known to its client or not.
///
/// The deletions that clients ask for must be of ranges that are equal or have
/// no key in common. `leased` are the keys that a lease may delete.
pub fn check(
    records: &[Record],
    sightings: &Sightings,
    store: &Store,
    leased: &[&str],
    figures: &Figures,
) -> Vec<Option<u64>> {
    let mut causes = Causes {
        records,
        sightings,
        figures,
        took_effect: vec![None; records.len()],
        by_value: HashMap::new(),
        by_revision: HashMap::new(),
    };
    causes.index();
    let mut unclaimed = Vec::new();
    for change in store.changes() {
        if let Some(deleted) = causes.explain(change, leased) {
            unclaimed.push((change.revision, deleted));
        }
    }
    causes.claim_deletions(unclaimed, store);
    causes.check_acknowledged(store);
    causes.took_effect
}

struct Causes<'a> {
    records: &'a [Record],
    sightings: &'a Sightings,
    figures: &'a Figures,
    took_effect: Vec<Option<u64>>,
    /// Which record writes a value.
    by_value: HashMap<u64, usize>,
    /// Which record was told that it wrote at a revision.
    by_revision: HashMap<u64, usize>,
}

impl Causes<'_> {
    fn index(&mut self) {
        for (number, record) in self.records.iter().enumerate() {
            if let Some(value) = record.ask.value()
                && self.by_value.insert(value, number).is_some()
            {
                self.figures.violation(format!("the load wrote a value twice: {record:?}"));
            }
            if let Some(Answer::Wrote { revision, .. }) = record.answer()
                && let Some(other) = self.by_revision.insert(*revision, number)
            {
                let other = &self.records[other];
                self.figures.violation(format!(
                    "two writes were told of one revision: {record:?} and {other:?}"
                ));
            }
        }
    }

    /// Finds out who asked for a change; a deletion that nobody was told of is
    /// answered with its first key.
    fn explain(&mut self, change: &Change, leased: &[&str]) -> Option<String> {
        let first = change.events.first()?;
        if let Some(pair) = &first.put {
            if leased.contains(&pair.key.as_str()) {
                return None;
            }
            match self.by_value.get(&pair.value).copied() {
                Some(number) if self.took_effect[number].is_some() => {
                    let record = &self.records[number];
                    self.figures
                        .violation(format!("a write took effect twice: {record:?}; {change:?}"));
                }
                Some(number) => self.took_effect(number, change),
                None => self.figures.violation(format!("nobody wrote this: {change:?}")),
            }
            return None;
        }
        if change.events.iter().all(|event| leased.contains(&event.key.as_str())) {
            return None;
        }
        match self.by_revision.get(&change.revision).copied() {
            Some(number) if self.records[number].ask.deletes().is_some() => {
                self.took_effect(number, change);
                None
            }
            _ => Some(first.key.clone()),
        }
    }

    /// A record is the cause of a change: may it be?
    fn took_effect(&mut self, number: usize, change: &Change) {
        let record = &self.records[number];
        self.took_effect[number] = Some(change.revision);
        let keys = record.ask.writes();
        let wanted = |key: &str| keys.as_ref().is_some_and(|keys| keys.contains(key));
        let is_put = record.ask.value().is_some();
        if !change.events.iter().all(|event| wanted(&event.key) && event.put.is_some() == is_put)
            || (is_put && change.events.len() != 1)
        {
            self.figures.violation(format!("{change:?} is not what was asked for: {record:?}"));
        }
        match &record.end {
            End::NotApplied => self.figures.violation(format!(
                "applied after the promise that it never would be: {record:?}; {change:?}"
            )),
            End::Unknown => {
                let newest = self.sightings.before(record.called);
                if change.revision <= newest {
                    self.figures.violation(format!(
                        "revision {newest} had been seen before this was asked for: \
                         {record:?}; {change:?}"
                    ));
                }
            }
            End::Ok(Answer::Wrote { .. }) => {}
            End::Ok(_) => self.figures.violation(format!(
                "applied, and its client was told that it was not: {record:?}; {change:?}"
            )),
        }
    }

    /// Deletions that no client was told of must be those of requests whose
    /// fate is unknown. Of two such requests for the same range that could be
    /// the cause, the earlier one fits at least as well.
    fn claim_deletions(&mut self, unclaimed: Vec<(u64, String)>, store: &Store) {
        let mut unknown: BTreeMap<Keys, Vec<usize>> = BTreeMap::new();
        for (number, record) in self.records.iter().enumerate() {
            if let (Some(keys), End::Unknown) = (record.ask.deletes(), &record.end) {
                unknown.entry(keys).or_default().push(number);
            }
        }
        for candidates in unknown.values_mut() {
            // The earliest last, where it is taken from.
            candidates.sort_by_key(|number| std::cmp::Reverse(self.records[*number].called));
        }
        for (revision, key) in unclaimed {
            let Some(change) = store.change(revision) else { continue };
            let wanted = unknown.iter_mut().find(|(keys, _)| keys.contains(&key));
            match wanted.and_then(|(_, candidates)| candidates.pop()) {
                Some(number) => self.took_effect(number, change),
                None => self.figures.violation(format!("nobody deleted this: {change:?}")),
            }
        }
    }

    fn check_acknowledged(&self, store: &Store) {
        let mut acknowledged = 0;
        for (record, took_effect) in self.records.iter().zip(&self.took_effect) {
            let Some(Answer::Wrote { revision, .. }) = record.answer() else { continue };
            acknowledged += 1;
            if *took_effect != Some(*revision) {
                let change = store.change(*revision);
                self.figures.violation(format!(
                    "an acknowledged write is lost: {record:?}; at its revision: {change:?}; \
                     it took effect at {took_effect:?}"
                ));
            }
        }
        self.figures.count("acknowledged writes present", acknowledged);
    }
}
