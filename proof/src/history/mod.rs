//! What clients saw, and whether one store could have shown it to them.
//!
//! The truth is the change history: every change that the cluster tells of in
//! a watch from its first revision, the same from every member. Against it are
//! checked:
//!
//! - [`store`]: that the history itself is one of a store;
//! - [`causes`]: that every change was asked for, once, and that every
//!   acknowledged write is in it;
//! - [`answers`]: that each gRPC answer is what the store said at its revision;
//! - [`order`]: that nothing which began after something else had ended came
//!   before it;
//! - [`keys`]: that plain HTTP is linearizable, key by key;
//! - [`watches`]: that watches told of everything once, in order and whole;
//! - [`leases`]: that no lease ended early.
//!
//! A checker that accepts everything is worth nothing: each has tests with
//! histories that it must refuse.

pub mod answers;
pub mod causes;
pub mod keys;
pub mod leases;
pub mod order;
pub mod store;
pub mod watches;

pub use leases::LeaseLife;
pub use store::{Change, Event, Store};
pub use watches::Watched;

use crate::Figures;

/// Nanoseconds since the run began, by the one clock of all clients.
pub type Time = u64;

/// One key with its value, as a client saw it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pair {
    /// The key.
    pub key: String,
    /// The number of the value; no number is written twice.
    pub value: u64,
    /// The revision at which the key came into being.
    pub created: u64,
    /// The revision of its last change.
    pub modified: u64,
    /// How often it was written since it came into being.
    pub version: u64,
    /// The lease it is attached to, or 0.
    pub lease: i64,
}

/// A range of keys: from `key` to before `end`, or `key` alone without one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Keys {
    /// The first key.
    pub key: String,
    /// The first key after the range, or empty.
    pub end: String,
}

impl Keys {
    /// One key.
    pub fn one(key: impl Into<String>) -> Self {
        Self { key: key.into(), end: String::new() }
    }

    /// All keys that begin so. The prefix must end in a character below `~`.
    pub fn below(prefix: &str) -> Self {
        let mut end = prefix.to_owned();
        let last = end.pop().map_or('\0', |last| char::from(last as u8 + 1));
        end.push(last);
        Self { key: prefix.to_owned(), end }
    }

    /// Whether a key is in the range.
    pub fn contains(&self, key: &str) -> bool {
        if self.end.is_empty() {
            key == self.key
        } else {
            (self.key.as_str()..self.end.as_str()).contains(&key)
        }
    }
}

/// The condition of a write over plain HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// None.
    Always,
    /// `If-None-Match: *`.
    Absent,
    /// `If-Match` with the tag of this revision.
    Revision(u64),
}

/// What a client asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// gRPC: a Put that asks for the previous pair.
    Put {
        /// The key.
        key: String,
        /// The number of the value.
        value: u64,
    },
    /// gRPC: a Range at the newest revision.
    Range {
        /// What is read.
        keys: Keys,
        /// Whether an older state will do.
        serializable: bool,
    },
    /// gRPC: a transaction that puts when the key is at this revision, and
    /// otherwise reads it.
    CompareAndPut {
        /// The key.
        key: String,
        /// The mod_revision it must have; 0 = it must not exist.
        expected: u64,
        /// The number of the new value.
        value: u64,
    },
    /// gRPC: a DeleteRange that asks for the previous pairs.
    DeleteRange(Keys),
    /// Plain HTTP: GET.
    HttpGet(String),
    /// Plain HTTP: PUT.
    HttpPut {
        /// The key.
        key: String,
        /// The number of the value.
        value: u64,
        /// When it is to be written.
        condition: Condition,
    },
    /// Plain HTTP: DELETE.
    HttpDelete(String),
}

impl Ask {
    /// The number of the value that it would write.
    pub fn value(&self) -> Option<u64> {
        match self {
            Self::Put { value, .. }
            | Self::CompareAndPut { value, .. }
            | Self::HttpPut { value, .. } => Some(*value),
            _ => None,
        }
    }

    /// What it would delete.
    pub fn deletes(&self) -> Option<Keys> {
        match self {
            Self::DeleteRange(keys) => Some(keys.clone()),
            Self::HttpDelete(key) => Some(Keys::one(key.clone())),
            _ => None,
        }
    }

    /// What it would write or delete.
    pub fn writes(&self) -> Option<Keys> {
        match self {
            Self::Put { key, .. } | Self::CompareAndPut { key, .. } | Self::HttpPut { key, .. } => {
                Some(Keys::one(key.clone()))
            }
            other => other.deletes(),
        }
    }
}

/// What a client was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It was changed at this revision. With gRPC, what was there before.
    Wrote {
        /// The revision.
        revision: u64,
        /// What was there before, by key; always empty with plain HTTP.
        previous: Vec<Pair>,
    },
    /// Nothing was changed, and this is what is there at this revision.
    Read {
        /// The revision of the store.
        revision: u64,
        /// By key.
        pairs: Vec<Pair>,
    },
    /// Plain HTTP: the value and its ETag.
    Value {
        /// The number of the value.
        value: u64,
        /// The revision of the key's last change.
        modified: u64,
    },
    /// Plain HTTP: there is no such key.
    Missing,
    /// Plain HTTP: the condition does not hold.
    Failed,
}

impl Answer {
    /// A revision that the store had when it answered, or an earlier one.
    pub fn revision(&self) -> Option<u64> {
        match self {
            Self::Wrote { revision, .. } | Self::Read { revision, .. } => Some(*revision),
            Self::Value { modified, .. } => Some(*modified),
            Self::Missing | Self::Failed => None,
        }
    }
}

/// How a request ended, as its client knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It was answered.
    Ok(Answer),
    /// The server promised that it has no effect, ever.
    NotApplied,
    /// Nobody knows.
    Unknown,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The member that was asked.
    pub member: u64,
    /// What was asked.
    pub ask: Ask,
    /// Before it was sent.
    pub called: Time,
    /// After its answer had come, or the wait for it was given up.
    pub ended: Time,
    /// What came of it.
    pub end: End,
}

impl Record {
    /// The answer, if there is one.
    pub fn answer(&self) -> Option<&Answer> {
        match &self.end {
            End::Ok(answer) => Some(answer),
            End::NotApplied | End::Unknown => None,
        }
    }
}

/// Everything that the clients of a run saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// All requests, in no order.
    pub records: Vec<Record>,
    /// All watches.
    pub watches: Vec<Watched>,
    /// All leases.
    pub leases: Vec<LeaseLife>,
}

/// Checks all that must hold of what clients saw, given every change that the
/// cluster tells of. Counts what it checked and notes each violation.
pub fn check(seen: &Seen, changes: Vec<Change>, figures: &Figures) {
    let store = Store::replay(changes, figures);
    let sightings = order::Sightings::of(seen);
    order::check(&seen.records, &sightings, figures);
    let leased: Vec<&str> = seen.leases.iter().map(|life| life.key.as_str()).collect();
    let took_effect = causes::check(&seen.records, &sightings, &store, &leased, figures);
    answers::check(&seen.records, &store, figures);
    keys::check(&seen.records, &took_effect, figures);
    watches::check(&seen.watches, &store, figures);
    leases::check(&seen.leases, &store, &sightings, figures);
}

#[cfg(test)]
mod tests;
