//! Small files beside the raft database that remember how far it was synced.
//!
//! RocksDB takes a damaged record of its write-ahead log for a torn write and
//! starts from what is before it. If that record had been synced, a vote or an
//! acknowledged entry would be forgotten without a word. So the recovered
//! database must not be behind its watermark.
//!
//! One file holds term and vote, and is replaced, durably, with each change of
//! them. The other, the [`Trail`], follows the end of the log with each sync.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use raft::eraftpb::HardState;
use sha2::{Digest as _, Sha256};

use super::{Recovered, trail::Trail};
use crate::{error::Fatal, proto::LogPosition, version};

/// The form of the file, its first number. All forms end in the SHA-256 of what
/// is before it, so that a newer one can be told from damage.
const VERSION: u32 = 1;

/// Numbers after the version: term, vote, and term and index of the last entry.
const NUMBERS: usize = 4;

/// Bytes of a SHA-256.
const DIGEST_BYTES: usize = 32;

/// The watermark of one raft database.
#[derive(Debug)]
pub struct Watermark {
    path: PathBuf,
    term: u64,
    vote: u64,
    /// The last entry that the file names, as (term, index).
    last: (u64, u64),
    trail: Trail,
}

impl Watermark {
    /// Compares the database with the watermark in `path`, if there is one:
    /// before anything is done that its content leads to.
    ///
    /// # Errors
    /// When the database is behind its watermark, or a file of it is damaged.
    pub fn check(path: &Path, recovered: &Recovered) -> Result<(), Fatal> {
        stored_last(path, recovered)?;
        Trail::check(&trail_path(path), recovered)
    }

    /// Opens the watermark in `path` and compares the database with it.
    ///
    /// # Errors
    /// As [`check`](Self::check), and when the disk refuses a write.
    pub fn open(path: PathBuf, recovered: &Recovered) -> Result<Self, Fatal> {
        let last = stored_last(&path, recovered)?;
        let trail = Trail::open(trail_path(&path), recovered)?;
        let HardState { term, vote, .. } = recovered.hard_state;
        Ok(Self { path, term, vote, last, trail })
    }

    /// The log ends at `last`, and all of it is durable.
    ///
    /// # Errors
    /// When the disk refuses the write.
    pub fn synced(&mut self, last: LogPosition) -> Result<(), Fatal> {
        self.trail.follow(last)
    }

    /// Remembers a synced term and vote, and the last entry that is synced
    /// with them, if term or vote changed. The file is in place, durably, when
    /// this returns.
    ///
    /// # Errors
    /// When the disk refuses the write.
    pub fn advance(&mut self, hard_state: &HardState, last: LogPosition) -> Result<(), Fatal> {
        if (hard_state.term, hard_state.vote) == (self.term, self.vote) {
            return Ok(());
        }
        (self.term, self.vote) = (hard_state.term, hard_state.vote);
        self.store(last)
    }

    /// Prepares for a log that will end at `last`. A new leader's log may
    /// replace newer entries by older ones, at first; a crash then must not
    /// look like a loss.
    ///
    /// # Errors
    /// When the disk refuses the write.
    pub fn allow(&mut self, last: LogPosition) -> Result<(), Fatal> {
        if (last.term, last.index) < self.last {
            self.store(last)?;
        }
        self.trail.allow(last)
    }

    fn store(&mut self, last: LogPosition) -> Result<(), Fatal> {
        self.last = (last.term, last.index);
        let bytes = encode([self.term, self.vote, last.term, last.index]);
        self.replace(&bytes)
            .map_err(|e| Fatal::storage(format!("write {}", self.path.display()), e))
    }

    fn replace(&self, bytes: &[u8]) -> std::io::Result<()> {
        let next = self.path.with_extension("next");
        let mut file = File::create(&next)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&next, &self.path)?;
        let parent = self.path.parent().unwrap_or_else(|| Path::new("."));
        File::open(parent)?.sync_all()
    }
}

fn trail_path(path: &Path) -> PathBuf {
    path.with_file_name("watermark-log")
}

/// The last entry that the file names, as (term, index), once the database has
/// been compared with it.
fn stored_last(path: &Path, recovered: &Recovered) -> Result<(u64, u64), Fatal> {
    let Some([stored_term, stored_vote, last_term, last_index]) = read(path)? else {
        return Ok((0, 0));
    };
    let HardState { term, vote, .. } = recovered.hard_state;
    let voted_otherwise = term == stored_term && stored_vote != 0 && vote != stored_vote;
    let last = (recovered.last.term, recovered.last.index);
    if term < stored_term || voted_otherwise || last < (last_term, last_index) {
        return Err(Fatal::corrupt(format!(
            "the raft database is behind its own watermark {}: it holds term {term}, vote {vote} \
             and entry {} of term {}, but term {stored_term}, vote {stored_vote} and entry \
             {last_index} of term {last_term} were synced",
            path.display(),
            last.1,
            last.0
        )));
    }
    Ok((last_term, last_index))
}

fn encode(numbers: [u64; NUMBERS]) -> Vec<u8> {
    let mut bytes: Vec<u8> = u64::from(VERSION).to_be_bytes().to_vec();
    bytes.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
    let digest: [u8; DIGEST_BYTES] = Sha256::digest(&bytes).into();
    bytes.extend(digest);
    bytes
}

fn read(path: &Path) -> Result<Option<[u64; NUMBERS]>, Fatal> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Fatal::storage(format!("read {}", path.display()), e)),
    };
    let damaged = || Fatal::corrupt(format!("the watermark {} is damaged", path.display()));
    let (content, digest) = bytes.split_last_chunk::<DIGEST_BYTES>().ok_or_else(damaged)?;
    let (version, rest) = content.split_first_chunk::<8>().ok_or_else(damaged)?;
    if <[u8; DIGEST_BYTES]>::from(Sha256::digest(content)) != *digest {
        return Err(damaged());
    }
    let version = u32::try_from(u64::from_be_bytes(*version)).unwrap_or(u32::MAX);
    let what = format!("the watermark {}", path.display());
    version::check_stored(&what, version, VERSION..=VERSION)?;
    if rest.len() != 8 * NUMBERS {
        return Err(damaged());
    }
    let mut numbers = [0; NUMBERS];
    for (number, chunk) in numbers.iter_mut().zip(rest.chunks_exact(8)) {
        *number = u64::from_be_bytes(chunk.try_into().unwrap_or_default());
    }
    Ok(Some(numbers))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recovered(term: u64, vote: u64, last: (u64, u64)) -> Recovered {
        let mut recovered = Recovered::default();
        (recovered.hard_state.term, recovered.hard_state.vote) = (term, vote);
        recovered.last = LogPosition { term: last.0, index: last.1 };
        recovered
    }

    #[test]
    fn a_database_behind_its_watermark_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermark");
        let mut mark = Watermark::open(path.clone(), &recovered(1, 0, (1, 1))).unwrap();
        let hard_state = recovered(4, 2, (0, 0)).hard_state;
        mark.advance(&hard_state, LogPosition { term: 3, index: 70 }).unwrap();

        for (term, vote, last) in [(3, 2, (3, 70)), (4, 1, (3, 70)), (4, 2, (3, 69))] {
            let refused = Watermark::open(path.clone(), &recovered(term, vote, last)).unwrap_err();
            assert!(refused.to_string().contains("behind its own watermark"), "{refused}");
        }
        for (term, vote, last) in [(4, 2, (3, 70)), (4, 2, (4, 5)), (9, 0, (3, 71))] {
            Watermark::open(path.clone(), &recovered(term, vote, last)).unwrap();
        }
    }

    #[test]
    fn a_log_that_a_new_leader_replaced_by_older_entries_is_not_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermark");
        let mut mark = Watermark::open(path.clone(), &recovered(1, 0, (1, 1))).unwrap();
        let hard_state = recovered(6, 0, (0, 0)).hard_state;
        mark.advance(&hard_state, LogPosition { term: 5, index: 70 }).unwrap();
        mark.allow(LogPosition { term: 4, index: 90 }).unwrap();
        let mut mark = Watermark::open(path.clone(), &recovered(6, 0, (4, 90))).unwrap();
        mark.allow(LogPosition { term: 6, index: 91 }).unwrap();
        Watermark::open(path.clone(), &recovered(6, 0, (4, 90))).unwrap();
        Watermark::open(path, &recovered(6, 0, (4, 89))).unwrap_err();
    }

    #[test]
    fn a_damaged_watermark_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermark");
        let mut mark = Watermark::open(path.clone(), &Recovered::default()).unwrap();
        mark.advance(&recovered(4, 2, (0, 0)).hard_state, LogPosition::default()).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[9] ^= 1;
        fs::write(&path, bytes).unwrap();
        let refused = Watermark::open(path, &recovered(4, 2, (9, 9))).unwrap_err();
        assert!(refused.to_string().contains("is damaged"), "{refused}");
    }

    #[test]
    fn a_newer_form_is_told_from_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermark");
        for more in [0, 100] {
            let mut bytes = 2_u64.to_be_bytes().to_vec();
            bytes.resize(40 + more, 7);
            let digest: [u8; DIGEST_BYTES] = Sha256::digest(&bytes).into();
            bytes.extend(digest);
            fs::write(&path, bytes).unwrap();
            let refused = Watermark::check(&path, &Recovered::default()).unwrap_err();
            assert!(refused.what.contains("has format 2, and metastore"), "{refused}");
        }
    }

    #[test]
    fn a_watermark_that_was_cut_short_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermark");
        let whole = encode([4, 2, 3, 70]);
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let refused = Watermark::check(&path, &recovered(9, 0, (9, 99))).unwrap_err();
            assert!(refused.what.contains("is damaged"), "{length}: {refused}");
        }
    }
}
