//! The state of keys at a revision of the past.
//!
//! Every change knows the state before it and where the key's previous change
//! stands. So the state at a revision is what the key's first change after it
//! found, and the way to that change leads back from the newest one, or from
//! the first sample in `history` after the revision.

use std::{cmp::Ordering, iter::Peekable, ops::Bound};

use bytes::Bytes;

use super::record;
use crate::{
    error::Fatal,
    proto::{Change, KeyRecord, Tombstone},
    storage::{Family, KeyRange, Pair, Reader, keys},
};

/// Revision and sub-revision of a change.
type Place = (u64, u32);

/// The state of a key at a revision that is not compacted away.
pub(super) fn record_at(
    reader: &impl Reader,
    key: &[u8],
    revision: u64,
) -> Result<Option<KeyRecord>, Fatal> {
    if let Some(record) = record::read::<KeyRecord>(reader, Family::Current, key)? {
        return of_living(reader, key, record, revision);
    }
    match record::read::<Tombstone>(reader, Family::Deleted, key)? {
        Some(tombstone) => of_deleted(reader, key, tombstone, revision),
        None => Ok(None),
    }
}

/// The keys of a range that existed at a revision that is not compacted away,
/// with their state then, ascending.
pub(super) fn records_at<R: Reader>(
    reader: &R,
    range: KeyRange,
    revision: u64,
) -> impl Iterator<Item = Result<(Bytes, KeyRecord), Fatal>> {
    let living = reader.scan(Family::Current, range.clone()).peekable();
    let deleted = reader.scan(Family::Deleted, range).peekable();
    Past { reader, revision, living, deleted }
}

type Scan<'a> = Peekable<Box<dyn Iterator<Item = Result<Pair, Fatal>> + Send + 'a>>;

struct Past<'a, R> {
    reader: &'a R,
    revision: u64,
    living: Scan<'a>,
    deleted: Scan<'a>,
}

impl<R: Reader> Past<'_, R> {
    /// The next key that lives or is known to be deleted, and its state at the
    /// revision.
    fn step(&mut self) -> Option<Result<(Bytes, Option<KeyRecord>), Fatal>> {
        let order = match (self.living.peek(), self.deleted.peek()) {
            (Some(Err(_)), _) | (_, None) => Ordering::Less,
            (_, Some(Err(_))) | (None, Some(_)) => Ordering::Greater,
            (Some(Ok((living, _))), Some(Ok((deleted, _)))) => living.cmp(deleted),
        };
        let (reader, revision) = (self.reader, self.revision);
        let from = if order.is_le() { &mut self.living } else { &mut self.deleted };
        let found = from.next()?.and_then(|(key, value)| {
            let state = if order.is_le() {
                let record = record::decode(Family::Current, &key, value)?;
                of_living(reader, &key, record, revision)?
            } else {
                let tombstone = record::decode(Family::Deleted, &key, value)?;
                of_deleted(reader, &key, tombstone, revision)?
            };
            Ok((key, state))
        });
        Some(found)
    }
}

impl<R: Reader> Iterator for Past<'_, R> {
    type Item = Result<(Bytes, KeyRecord), Fatal>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.step()? {
                Ok((key, Some(record))) => return Some(Ok((key, record))),
                Ok((_, None)) => {}
                Err(fatal) => return Some(Err(fatal)),
            }
        }
    }
}

fn of_living(
    reader: &impl Reader,
    key: &[u8],
    record: KeyRecord,
    revision: u64,
) -> Result<Option<KeyRecord>, Fatal> {
    if record.mod_revision <= revision {
        return Ok(Some(record));
    }
    walk_back(reader, key, (record.mod_revision, record.sub), revision)
}

fn of_deleted(
    reader: &impl Reader,
    key: &[u8],
    tombstone: Tombstone,
    revision: u64,
) -> Result<Option<KeyRecord>, Fatal> {
    // Also what is compacted away, whether or not it is still on disk.
    if tombstone.revision <= revision {
        return Ok(None);
    }
    walk_back(reader, key, (tombstone.revision, tombstone.sub), revision)
}

/// The state at `revision` of a key whose newest change, after it, stands at
/// `newest`.
fn walk_back(
    reader: &impl Reader,
    key: &[u8],
    newest: Place,
    revision: u64,
) -> Result<Option<KeyRecord>, Fatal> {
    let mut change = change_of(reader, key, newest)?;
    if change.previous_revision > revision {
        // There is more than one change to go: begin at the nearest sample.
        let first = first_sample(reader, key, revision, newest)?;
        change = change_of(reader, key, first.unwrap_or(newest))?;
    }
    let mut place = newest;
    while change.previous_revision > revision {
        let previous = (change.previous_revision, change.previous_sub);
        if previous >= place {
            let key = key.escape_ascii();
            return Err(Fatal::corrupt(format!("the history of key \"{key}\" is a circle")));
        }
        place = previous;
        change = change_of(reader, key, place)?;
    }
    Ok(change.previous)
}

/// The place of the first sample of a key after a revision.
fn first_sample(
    reader: &impl Reader,
    key: &[u8],
    revision: u64,
    newest: Place,
) -> Result<Option<Place>, Fatal> {
    let first = if mutant!(WalkFromWrongSample) { 0 } else { revision.saturating_add(1) };
    let from = keys::history(key, first, 0);
    let to = keys::history(key, newest.0, newest.1);
    let range = (Bound::Included(from.into()), Bound::Included(to.into()));
    let Some(sample) = reader.scan(Family::History, range).next() else { return Ok(None) };
    let (_, revision, sub) = keys::history_parts(&sample?.0)?;
    Ok(Some((revision, sub)))
}

/// The change of a key at a place.
fn change_of(reader: &impl Reader, key: &[u8], place: Place) -> Result<Change, Fatal> {
    let (revision, sub) = place;
    let change: Option<Change> =
        record::read(reader, Family::Changes, &keys::change(revision, sub))?;
    change.filter(|change| change.key == key).ok_or_else(|| {
        let key = key.escape_ascii();
        Fatal::corrupt(format!("change {revision}.{sub} of key \"{key}\" is missing"))
    })
}
