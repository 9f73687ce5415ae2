//! The keys at one revision, as one reader shows them.

use std::{iter, ops::Bound};

use bytes::Bytes;

use super::{past, record, stop::Stopped};
use crate::{
    error::Fatal,
    proto::{KeyRecord, Refused, mvccpb::KeyValue},
    storage::{Family, KeyRange, Reader},
};

/// The keys that a request means.
#[derive(Debug, Clone)]
pub(super) enum Keys {
    One(Bytes),
    Range(KeyRange),
}

impl Keys {
    /// As etcd gives them: without an end the one key, with an end of a single
    /// zero byte every key from `key` on, else up to the end.
    pub fn new(key: &Bytes, range_end: &Bytes) -> Self {
        match &range_end[..] {
            [] => Self::One(key.clone()),
            [0] => Self::Range((Bound::Included(key.clone()), Bound::Unbounded)),
            _ => {
                let upper = Bound::Excluded(range_end.clone());
                Self::Range((Bound::Included(key.clone()), upper))
            }
        }
    }

    /// Every key there is.
    pub fn all() -> Self {
        Self::Range((Bound::Unbounded, Bound::Unbounded))
    }

    /// Those of them after a key.
    fn after(&self, key: &Bytes) -> Option<KeyRange> {
        match self {
            Self::One(_) => None,
            Self::Range((_, upper)) => Some((Bound::Excluded(key.clone()), upper.clone())),
        }
    }
}

/// What a reader that does not change meanwhile shows.
pub(super) struct Moment<'a, R> {
    pub reader: &'a R,
    /// The store's revision.
    pub revision: u64,
    /// The last compaction.
    pub compacted: u64,
}

impl<'a, R: Reader> Moment<'a, R> {
    /// The moment that is in the database itself.
    pub fn stored(reader: &'a R) -> Result<Self, Fatal> {
        let applied = record::applied(reader)?;
        Ok(Self { reader, revision: applied.revision, compacted: applied.compacted })
    }

    /// Whether a revision can be read; 0 and below mean the newest.
    pub fn check(&self, revision: i64) -> Result<(), Refused> {
        match u64::try_from(revision) {
            Err(_) | Ok(0) => Ok(()),
            Ok(revision) if revision > self.revision => Err(Refused::FutureRevision),
            Ok(revision) if revision < self.compacted => Err(Refused::Compacted),
            Ok(_) => Ok(()),
        }
    }

    /// The keys at a revision; 0 and below mean the newest.
    pub fn at(&self, revision: i64) -> Stopped<At<'a, R>> {
        self.check(revision)?;
        let past = u64::try_from(revision).ok().filter(|&past| past != 0 && past < self.revision);
        Ok(At { reader: self.reader, past })
    }

    /// The keys as they are now.
    pub fn newest(&self) -> At<'a, R> {
        At { reader: self.reader, past: None }
    }
}

/// The keys at one revision.
pub(super) struct At<'a, R> {
    reader: &'a R,
    /// The revision, unless it is the newest.
    past: Option<u64>,
}

type Records<'a> = Box<dyn Iterator<Item = Result<(Bytes, KeyRecord), Fatal>> + 'a>;

impl<'a, R: Reader> At<'a, R> {
    /// Those of the keys that existed, with their state, ascending.
    pub fn records(&self, keys: &Keys) -> Records<'a> {
        match keys {
            Keys::One(key) => {
                let record = self.get(key).transpose();
                let key = key.clone();
                Box::new(iter::once_with(move || record).flatten().map(move |record| {
                    let key = key.clone();
                    record.map(|record| (key, record))
                }))
            }
            Keys::Range(range) => self.records_in(range.clone()),
        }
    }

    /// How many of the keys after one of them existed.
    pub fn count_after(&self, keys: &Keys, key: &Bytes) -> Result<u64, Fatal> {
        keys.after(key).map_or(Ok(0), |range| self.count_in(range))
    }

    /// How many of the keys existed. Keeps none of them in memory.
    pub fn count(&self, keys: &Keys) -> Result<u64, Fatal> {
        match keys {
            Keys::One(key) => Ok(self.get(key)?.is_some().into()),
            Keys::Range(range) => self.count_in(range.clone()),
        }
    }

    fn get(&self, key: &[u8]) -> Result<Option<KeyRecord>, Fatal> {
        match self.past {
            Some(revision) => past::record_at(self.reader, key, revision),
            None => record::read(self.reader, Family::Current, key),
        }
    }

    fn records_in(&self, range: KeyRange) -> Records<'a> {
        match self.past {
            Some(revision) => Box::new(past::records_at(self.reader, range, revision)),
            None => Box::new(self.reader.scan(Family::Current, range).map(|pair| {
                let (key, value) = pair?;
                let record = record::decode(Family::Current, &key, value)?;
                Ok((key, record))
            })),
        }
    }

    fn count_in(&self, range: KeyRange) -> Result<u64, Fatal> {
        if self.past.is_none() {
            return self.reader.count(Family::Current, range);
        }
        self.records_in(range).try_fold(0, |count, record| record.map(|_| count + 1))
    }
}

/// A key as etcd's clients read it.
pub(super) fn key_value(key: Bytes, record: KeyRecord) -> KeyValue {
    KeyValue {
        key,
        create_revision: record.create_revision.cast_signed(),
        mod_revision: record.mod_revision.cast_signed(),
        version: record.version.cast_signed(),
        value: record.value,
        lease: record.lease,
    }
}
