//! What the clients saw, and whether one store could have shown it to them.

use std::collections::BTreeMap;

use metastore::proto::Condition;
use porcupine_rs::{Model, Operation};

/// What a client asked of a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    Get,
    /// The value's number; no number is written twice.
    Put(u64, Condition),
    Delete(Condition),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Got {
    /// The value's number and its mod_revision, and the store's revision.
    Read(Option<(u64, u64)>, u64),
    /// It was written at this revision.
    Wrote(u64),
    /// The condition did not hold; the key's mod_revision, 0 when absent.
    Failed(u64),
    /// There was nothing to delete.
    Missing,
}

/// How a request ended, as its client knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Done(Got),
    /// Surely without effect.
    NotApplied,
    Unknown,
}

/// One request. Call and return are numbers of a clock that ticks once for
/// each of them, so that of two there is always one that was first.
#[derive(Debug, Clone)]
pub struct Record {
    pub key: u64,
    pub ask: Ask,
    pub called: u64,
    pub returned: Option<(u64, End)>,
    /// What the log made of it.
    pub applied: Option<Got>,
}

/// Every request of a run.
#[derive(Default)]
pub struct History {
    pub records: Vec<Record>,
    clock: u64,
}

impl History {
    pub fn call(&mut self, key: u64, ask: Ask) -> usize {
        self.clock += 1;
        self.records.push(Record { key, ask, called: self.clock, returned: None, applied: None });
        self.records.len() - 1
    }

    pub fn end(&mut self, ticket: usize, end: End) {
        self.clock += 1;
        let record = &mut self.records[ticket];
        assert!(record.returned.is_none(), "request {ticket} ended twice: {record:?}, {end:?}");
        record.returned = Some((self.clock, end));
    }

    /// A request took effect in the log.
    pub fn applied(&mut self, ticket: usize, got: Got) {
        let record = &mut self.records[ticket];
        assert!(record.applied.is_none(), "request {ticket} was applied twice: {record:?}");
        record.applied = Some(got);
    }

    /// Checks everything that must hold of the finished history; answers how
    /// many operations it explained.
    pub fn check(&self) -> u64 {
        for (ticket, record) in self.records.iter().enumerate() {
            check_promise(ticket, record);
        }
        self.check_revisions();
        let mut by_key: BTreeMap<u64, Vec<Operation<Key>>> = BTreeMap::new();
        for record in &self.records {
            if let Some(operation) = operation(record) {
                by_key.entry(record.key).or_default().push(operation);
            }
        }
        let mut explained = 0;
        for (key, operations) in &mut by_key {
            chain(operations);
            assert!(
                porcupine_rs::check_operations(operations),
                "the history of key {key} is not linearizable: {}",
                tell(operations)
            );
            explained += operations.len() as u64;
        }
        explained
    }

    /// Across all keys: what is called after a write of some revision was
    /// acknowledged, or after it was read, neither writes nor sees an older one.
    fn check_revisions(&self) {
        let mut moments = Vec::new();
        for (ticket, record) in self.records.iter().enumerate() {
            if let Some((returned, End::Done(got))) = &record.returned {
                let revision = match got {
                    Got::Wrote(revision) | Got::Read(_, revision) => *revision,
                    Got::Failed(_) | Got::Missing => continue,
                };
                let is_write = matches!(got, Got::Wrote(_));
                moments.push((record.called, ticket, None));
                moments.push((*returned, ticket, Some((revision, is_write))));
            }
        }
        moments.sort_unstable();
        let mut newest = 0;
        let mut bounds = BTreeMap::new();
        for (_, ticket, ended) in moments {
            match ended {
                None => {
                    bounds.insert(ticket, newest);
                }
                Some((revision, is_write)) => {
                    let bound = bounds[&ticket] + u64::from(is_write);
                    assert!(
                        revision >= bound,
                        "revision {revision} after {newest} had been seen: {:?}",
                        self.records[ticket]
                    );
                    newest = newest.max(revision);
                }
            }
        }
    }
}

/// What was told to a client must be what the log did.
fn check_promise(ticket: usize, record: &Record) {
    if record.ask == Ask::Get {
        return;
    }
    match &record.returned {
        Some((_, End::Done(got))) => assert_eq!(
            Some(got),
            record.applied.as_ref(),
            "request {ticket} was answered with what the log does not say: {record:?}"
        ),
        Some((_, End::NotApplied)) => assert_eq!(
            None, record.applied,
            "request {ticket} was applied after its client was told that it never would be"
        ),
        Some((_, End::Unknown)) | None => {}
    }
}

/// The part of a record that constrains the store. A write of unknown fate
/// counts as what the log made of it, at any time after its call; one that the
/// log does not know, or that changed nothing, nobody has seen anything of.
fn operation(record: &Record) -> Option<Operation<Key>> {
    let (return_time, got) = match &record.returned {
        Some((returned, End::Done(got))) => (*returned as i64, got.clone()),
        Some((_, End::NotApplied)) => return None,
        Some((_, End::Unknown)) | None => match &record.applied {
            Some(Got::Wrote(revision)) => (i64::MAX, Got::Wrote(*revision)),
            _ => return None,
        },
    };
    Some(Operation {
        client_id: None,
        call_time: record.called as i64,
        return_time,
        op: Step { ask: record.ask.clone(), got, follows: 0 },
        metadata: None,
    })
}

/// Tells each change of a key which change it follows. The search then never
/// tries an order that the revisions exclude, which would take it for ever.
fn chain(operations: &mut [Operation<Key>]) {
    let mut changes: Vec<(u64, &mut u64)> = operations
        .iter_mut()
        .filter_map(|operation| match &mut operation.op {
            Step { got: Got::Wrote(revision), follows, .. } => Some((*revision, follows)),
            _ => None,
        })
        .collect();
    changes.sort_unstable();
    let mut last = 0;
    for (revision, follows) in changes {
        *follows = last;
        last = revision;
    }
}

/// The last few hundred operations, for people.
fn tell(operations: &[Operation<Key>]) -> String {
    let skipped = operations.len().saturating_sub(300);
    let line = |operation: &Operation<Key>| {
        format!("\n  {}..{} {:?}", operation.call_time, operation.return_time, operation.op)
    };
    operations.iter().skip(skipped).map(line).collect()
}

/// One key of the store.
#[derive(Debug, Clone)]
struct Key;

/// A request and what came of it.
#[derive(Debug, Clone)]
struct Step {
    ask: Ask,
    got: Got,
    /// Revision of the key's change before this one.
    follows: u64,
}

/// Number of the value, none when absent; mod_revision, 0 when absent; revision
/// of the last change, deletions included.
type KeyState = (Option<u64>, u64, u64);

impl Model for Key {
    type State = KeyState;
    type Op = Step;
    type Metadata = ();

    fn init() -> KeyState {
        (None, 0, 0)
    }

    fn step(state: &KeyState, Step { ask, got, follows }: &Step) -> (bool, KeyState) {
        let &(value, revision, last) = state;
        let (condition, new_value) = match ask {
            Ask::Get => {
                let seen = value.map(|value| (value, revision));
                return (matches!(got, Got::Read(read, _) if *read == seen), *state);
            }
            Ask::Put(number, condition) => (condition, Some(*number)),
            Ask::Delete(condition) => (condition, None),
        };
        let holds = holds(condition, revision);
        match got {
            Got::Failed(seen) => (!holds && *seen == revision, *state),
            Got::Missing => (holds && new_value.is_none() && value.is_none(), *state),
            Got::Wrote(at) => {
                let possible =
                    holds && *follows == last && (new_value.is_some() || value.is_some());
                (possible, (new_value, if new_value.is_some() { *at } else { 0 }, *at))
            }
            Got::Read(..) => (false, *state),
        }
    }
}

fn holds(condition: &Condition, revision: u64) -> bool {
    let Condition { mod_revisions, exists, absent, not_mod_revisions } = condition;
    (mod_revisions.is_empty() || mod_revisions.contains(&revision))
        && (!exists || revision != 0)
        && (!absent || revision == 0)
        && !not_mod_revisions.contains(&revision)
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    fn write(history: &mut History, number: u64, revision: u64) {
        let ticket = history.call(1, Ask::Put(number, Condition::default()));
        history.applied(ticket, Got::Wrote(revision));
        history.end(ticket, End::Done(Got::Wrote(revision)));
    }

    fn read(history: &mut History, key: u64, seen: Option<(u64, u64)>, revision: u64) {
        let ticket = history.call(key, Ask::Get);
        history.end(ticket, End::Done(Got::Read(seen, revision)));
    }

    fn is_refused(history: History) -> bool {
        catch_unwind(|| history.check()).is_err()
    }

    #[test]
    fn a_fresh_read_is_explained() {
        let mut history = History::default();
        write(&mut history, 7, 2);
        read(&mut history, 1, Some((7, 2)), 2);
        assert_eq!(history.check(), 2);
    }

    #[test]
    fn a_stale_read_is_refused() {
        let mut history = History::default();
        write(&mut history, 7, 2);
        write(&mut history, 8, 3);
        read(&mut history, 1, Some((7, 2)), 3);
        assert!(is_refused(history));
    }

    #[test]
    fn a_read_of_another_key_at_an_older_revision_is_refused() {
        let mut history = History::default();
        write(&mut history, 7, 2);
        read(&mut history, 2, None, 1);
        assert!(is_refused(history));
    }

    #[test]
    fn a_lost_acknowledged_write_is_refused() {
        let mut history = History::default();
        write(&mut history, 7, 2);
        read(&mut history, 1, None, 2);
        assert!(is_refused(history));
    }

    #[test]
    fn a_write_applied_after_the_promise_that_it_is_not_is_refused() {
        let mut history = History::default();
        let ticket = history.call(1, Ask::Delete(Condition::default()));
        history.applied(ticket, Got::Missing);
        history.end(ticket, End::NotApplied);
        assert!(is_refused(history));
    }

    #[test]
    fn a_write_of_unknown_fate_may_take_effect_late() {
        let mut history = History::default();
        let late = history.call(1, Ask::Put(7, Condition::default()));
        read(&mut history, 1, None, 1);
        history.end(late, End::Unknown);
        read(&mut history, 1, None, 1);
        history.applied(late, Got::Wrote(2));
        read(&mut history, 1, Some((7, 2)), 2);
        assert_eq!(history.check(), 4);
    }
}
