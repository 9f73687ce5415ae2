//! Plain HTTP is linearizable, key by key.

use std::{collections::BTreeMap, time::Duration};

use porcupine_rs::{CheckResult, Model, Operation, check_operations_timeout};

use super::{Answer, Ask, Condition, End, Record};
use crate::Figures;

/// The search for an order is exponential at its worst; a key for which it
/// takes longer counts as not checked, and that as a failure.
const SEARCH_LIMIT: Duration = Duration::from_secs(60);

/// Operations of a key that a violation shows.
const SHOWN: usize = 60;

/// Checks all requests over plain HTTP. A request of unknown fate counts as
/// what the history made of it, at any time after its call; one that the
/// history does not know, nobody has seen anything of.
pub fn check(records: &[Record], took_effect: &[Option<u64>], figures: &Figures) {
    let mut by_key: BTreeMap<&str, Vec<Operation<Key>>> = BTreeMap::new();
    for (record, took_effect) in records.iter().zip(took_effect) {
        if let Some((key, operation)) = operation(record, *took_effect) {
            by_key.entry(key).or_default().push(operation);
        }
    }
    let mut explained = 0;
    for (key, operations) in &mut by_key {
        chain(operations);
        match check_operations_timeout(operations, SEARCH_LIMIT) {
            CheckResult::Ok => explained += operations.len() as u64,
            CheckResult::Illegal => figures.violation(format!(
                "the history of {key} is not linearizable:{}",
                tell(operations)
            )),
            CheckResult::Unknown => figures.violation(format!(
                "whether {} operations on {key} are linearizable was not found out in {} s",
                operations.len(),
                SEARCH_LIMIT.as_secs()
            )),
        }
    }
    figures.count("HTTP requests linearizable", explained);
}

/// What a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Got {
    /// The value's number and its revision; `None` without a key.
    Read(Option<(u64, u64)>),
    /// It was changed at this revision.
    Wrote(u64),
    /// The condition did not hold.
    Failed,
    /// There was nothing to delete.
    Missing,
}

/// A request on one key.
#[derive(Debug, Clone, Copy)]
enum Wish {
    Get,
    Put(u64, Condition),
    Delete,
}

/// A request and what it came to.
#[derive(Debug, Clone)]
struct Step {
    wish: Wish,
    got: Got,
    /// Revision of the key's change before this one.
    follows: u64,
}

fn operation(record: &Record, took_effect: Option<u64>) -> Option<(&str, Operation<Key>)> {
    let (key, wish) = match &record.ask {
        Ask::HttpGet(key) => (key, Wish::Get),
        Ask::HttpPut { key, value, condition } => (key, Wish::Put(*value, *condition)),
        Ask::HttpDelete(key) => (key, Wish::Delete),
        _ => return None,
    };
    let (ended, got) = match (&record.end, took_effect) {
        (End::Ok(answer), _) => (record.ended, got(wish, answer)),
        (End::Unknown, Some(revision)) => (u64::MAX, Got::Wrote(revision)),
        _ => return None,
    };
    let operation = Operation {
        client_id: None,
        call_time: time(record.called),
        return_time: time(ended),
        op: Step { wish, got, follows: 0 },
        metadata: None,
    };
    Some((key, operation))
}

fn got(wish: Wish, answer: &Answer) -> Got {
    match (wish, answer) {
        (Wish::Get, Answer::Value { value, modified }) => Got::Read(Some((*value, *modified))),
        (Wish::Get, _) => Got::Read(None),
        (_, Answer::Wrote { revision, .. }) => Got::Wrote(*revision),
        (_, Answer::Missing) => Got::Missing,
        _ => Got::Failed,
    }
}

fn time(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
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

/// The last operations, for people; times in milliseconds.
fn tell(operations: &[Operation<Key>]) -> String {
    let mut sorted: Vec<&Operation<Key>> = operations.iter().collect();
    sorted.sort_by_key(|operation| operation.call_time);
    let skipped = sorted.len().saturating_sub(SHOWN);
    let ms = |time: i64| time as f64 / 1e6;
    let line = |operation: &&Operation<Key>| {
        let Step { wish, got, .. } = &operation.op;
        let (called, ended) = (ms(operation.call_time), ms(operation.return_time));
        format!("\n  {called:.3}..{ended:.3} {wish:?} {got:?}")
    };
    sorted.iter().skip(skipped).map(line).collect()
}

/// One key of the store.
#[derive(Debug, Clone)]
struct Key;

/// Number of the value, none when absent; its revision, 0 when absent; the
/// revision of the last change, deletions included.
type KeyState = (Option<u64>, u64, u64);

impl Model for Key {
    type State = KeyState;
    type Op = Step;
    type Metadata = ();

    fn init() -> KeyState {
        (None, 0, 0)
    }

    fn step(state: &KeyState, Step { wish, got, follows }: &Step) -> (bool, KeyState) {
        let &(value, modified, last) = state;
        let (holds, new_value) = match wish {
            Wish::Get => {
                let seen = value.map(|value| (value, modified));
                return (*got == Got::Read(seen), *state);
            }
            Wish::Put(number, Condition::Always) => (true, Some(*number)),
            Wish::Put(number, Condition::Absent) => (value.is_none(), Some(*number)),
            Wish::Put(number, Condition::Revision(revision)) => {
                (value.is_some() && modified == *revision, Some(*number))
            }
            Wish::Delete => (true, None),
        };
        let is_delete = new_value.is_none();
        match got {
            Got::Failed => (!holds, *state),
            Got::Missing => (is_delete && value.is_none(), *state),
            Got::Wrote(at) => {
                let possible =
                    holds && *follows == last && *at > last && !(is_delete && value.is_none());
                (possible, (new_value, if is_delete { 0 } else { *at }, *at))
            }
            Got::Read(_) => (false, *state),
        }
    }
}
