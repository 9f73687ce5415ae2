//! How far the raft log was synced, noted with every sync.
//!
//! The note itself is not synced: that would double the price of a write. It
//! is complete after the death of a process, and after a power cut it may lag
//! by what the system had not yet written out, but it never runs ahead. Two
//! places in the file take turns, each in a sector of its own, so that a torn
//! note leaves the one before it. The form has the version of the raft database,
//! which is checked before this is read.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::Recovered;
use crate::{error::Fatal, proto::LogPosition, storage::rocks::sync_directory};

/// Bytes between the two places: a sector of any disk.
const PLACE_BYTES: usize = 4096;

/// Numbers of a note: which one it is, then term and index of an entry.
const NUMBERS: usize = 3;

/// Bytes of a note: its numbers and their SHA-256.
const NOTE_BYTES: usize = NUMBERS * 8 + 32;

/// An entry, ordered as logs are: by term, then by index.
type Position = (u64, u64);

/// The file of notes.
#[derive(Debug)]
pub(super) struct Trail {
    path: PathBuf,
    file: File,
    /// Counts the notes; the newest one counts.
    number: u64,
    last: Position,
}

impl Trail {
    /// Compares the log with the newest note, if there is one.
    pub(super) fn check(path: &Path, recovered: &Recovered) -> Result<(), Fatal> {
        newest(path, recovered).map(drop)
    }

    /// Opens the file, which is made if it is missing, and compares the log
    /// with the newest note.
    pub(super) fn open(path: PathBuf, recovered: &Recovered) -> Result<Self, Fatal> {
        let opened = |file: std::io::Result<File>| {
            file.map_err(|e| Fatal::storage(format!("open {}", path.display()), e))
        };
        if let Some((number, last)) = newest(&path, recovered)? {
            let file = opened(File::options().read(true).write(true).open(&path))?;
            return Ok(Self { path, file, number, last });
        }
        // Whole or not there at all, and of a length that never changes.
        let (term, index) = position(recovered.last);
        let mut bytes = encode([0, term, index]);
        bytes.resize(PLACE_BYTES, 0);
        bytes.extend(encode([1, term, index]));
        let next = path.with_extension("next");
        let created = create(&next, &bytes).and_then(|()| fs::rename(&next, &path));
        created.map_err(|e| Fatal::storage(format!("write {}", path.display()), e))?;
        sync_directory(path.parent().unwrap_or_else(|| Path::new(".")))?;
        let file = opened(File::options().read(true).write(true).open(&path))?;
        Ok(Self { path, file, number: 1, last: (term, index) })
    }

    /// The log ends at `last`, and all of it is durable.
    pub(super) fn follow(&mut self, last: LogPosition) -> Result<(), Fatal> {
        if position(last) == self.last { Ok(()) } else { self.note(position(last)) }
    }

    /// The log is about to end at `last`, maybe before what was noted.
    pub(super) fn allow(&mut self, last: LogPosition) -> Result<(), Fatal> {
        if position(last) >= self.last {
            return Ok(());
        }
        self.note(position(last))?;
        self.sync()
    }

    fn note(&mut self, last: Position) -> Result<(), Fatal> {
        self.number += 1;
        self.last = last;
        let place = self.number % 2 * PLACE_BYTES as u64;
        let written = self.file.write_all_at(&encode([self.number, last.0, last.1]), place);
        written.map_err(|e| Fatal::storage(format!("write {}", self.path.display()), e))
    }

    fn sync(&self) -> Result<(), Fatal> {
        let synced = self.file.sync_all();
        synced.map_err(|e| Fatal::storage(format!("sync {}", self.path.display()), e))
    }
}

fn create(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn position(last: LogPosition) -> Position {
    (last.term, last.index)
}

fn encode(numbers: [u64; NUMBERS]) -> Vec<u8> {
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).collect();
    let digest: [u8; 32] = Sha256::digest(&bytes).into();
    bytes.extend(digest);
    bytes
}

fn decode(bytes: &[u8]) -> Option<[u64; NUMBERS]> {
    let mut numbers = [0; NUMBERS];
    for (number, chunk) in numbers.iter_mut().zip(bytes.chunks_exact(8)) {
        *number = u64::from_be_bytes(chunk.try_into().ok()?);
    }
    (bytes == encode(numbers)).then_some(numbers)
}

/// Number and position of the newest note; `None` when there is no file.
fn newest(path: &Path, recovered: &Recovered) -> Result<Option<(u64, Position)>, Fatal> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Fatal::storage(format!("read {}", path.display()), e)),
    };
    let places = [0, PLACE_BYTES].map(|at| bytes.get(at..at + NOTE_BYTES));
    let notes = places.into_iter().flatten().filter_map(decode);
    let Some([number, term, index]) = notes.max() else {
        return Err(Fatal::corrupt(format!("the watermark {} is damaged", path.display())));
    };
    let LogPosition { index: last_index, term: last_term } = recovered.last;
    if position(recovered.last) < (term, index) {
        return Err(Fatal::corrupt(format!(
            "the raft log is behind its own watermark {}: it ends at entry {last_index} of term \
             {last_term}, but entry {index} of term {term} was synced",
            path.display()
        )));
    }
    Ok(Some((number, (term, index))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(term: u64, index: u64) -> LogPosition {
        LogPosition { index, term }
    }

    fn recovered(term: u64, index: u64) -> Recovered {
        Recovered { last: at(term, index), ..Recovered::default() }
    }

    #[test]
    fn a_log_that_ends_before_the_newest_note_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermark-log");
        Trail::check(&path, &recovered(0, 0)).unwrap();
        let mut trail = Trail::open(path.clone(), &recovered(2, 5)).unwrap();
        for index in 6..=9 {
            trail.follow(at(2, index)).unwrap();
        }
        drop(trail);
        for (term, index) in [(2, 8), (1, 20), (0, 0)] {
            let refused = Trail::check(&path, &recovered(term, index)).unwrap_err();
            assert!(refused.to_string().contains("behind its own watermark"), "{refused}");
        }
        for (term, index) in [(2, 9), (2, 10), (3, 7)] {
            Trail::open(path.clone(), &recovered(term, index)).unwrap();
        }
    }

    #[test]
    fn a_log_that_becomes_shorter_in_order_is_not_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermark-log");
        let mut trail = Trail::open(path.clone(), &recovered(5, 70)).unwrap();
        trail.allow(at(5, 71)).unwrap();
        Trail::check(&path, &recovered(5, 70)).unwrap();
        trail.allow(at(4, 90)).unwrap();
        Trail::check(&path, &recovered(4, 90)).unwrap();
        Trail::check(&path, &recovered(4, 89)).unwrap_err();
    }

    #[test]
    fn one_damaged_note_leaves_the_other_and_two_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermark-log");
        let mut trail = Trail::open(path.clone(), &recovered(2, 5)).unwrap();
        trail.follow(at(2, 6)).unwrap();
        trail.follow(at(2, 7)).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let newest = usize::try_from(trail.number % 2).unwrap() * PLACE_BYTES;
        bytes[newest + 9] ^= 1;
        fs::write(&path, &bytes).unwrap();
        Trail::check(&path, &recovered(2, 6)).unwrap();
        Trail::check(&path, &recovered(2, 5)).unwrap_err();
        bytes[PLACE_BYTES - newest + 9] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let refused = Trail::check(&path, &recovered(2, 7)).unwrap_err();
        assert!(refused.to_string().contains("is damaged"), "{refused}");
    }
}
