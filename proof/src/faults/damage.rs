//! Files whose bits turn over while nobody looks.

use std::{
    fmt, fs,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use rand::{Rng, RngExt};

use crate::{Result, report::During};

/// What a file of a stopped member is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The write-ahead log of the raft database, in all of it but its last record.
    RaftWal,
    /// The last bytes of that log: a torn write would look the same.
    RaftWalTail,
    /// A table of the raft database.
    RaftSst,
    /// A table of the state database.
    StateSst,
    /// What lists a database's tables.
    Manifest,
    /// What names the manifest.
    Current,
    /// The settings a database was last opened with, which nobody reads.
    Options,
    /// How far the raft database was synced.
    Watermark,
    /// A file of a snapshot.
    Snapshot,
}

impl Victim {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::RaftWal,
        Self::RaftWalTail,
        Self::RaftSst,
        Self::StateSst,
        Self::Manifest,
        Self::Current,
        Self::Options,
        Self::Watermark,
        Self::Snapshot,
    ];

    /// Whether this is such a file. `path` is relative to the member's directory.
    fn is(self, path: &Path) -> bool {
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let first = path.iter().next().map(|name| name.to_string_lossy()).unwrap_or_default();
        let (raft, state) = (first == "raft", first.starts_with("state-"));
        match self {
            Self::RaftWal | Self::RaftWalTail => raft && name.ends_with(".log"),
            Self::RaftSst => raft && name.ends_with(".sst"),
            Self::StateSst => state && name.ends_with(".sst"),
            Self::Manifest => (raft || state) && name.starts_with("MANIFEST-"),
            Self::Current => (raft || state) && name == "CURRENT",
            Self::Options => (raft || state) && name.starts_with("OPTIONS-"),
            Self::Watermark => first.starts_with("watermark") && !name.ends_with(".next"),
            Self::Snapshot => first == "snap",
        }
    }

    /// Where in a file of this length, not empty, the bit is turned.
    fn place(self, length: u64, dice: &mut impl Rng) -> u64 {
        /// Bytes at the end of a log that count as its tail.
        const TAIL: u64 = 64;
        /// Bytes at both ends of a watermark that are not empty.
        const NOTE: u64 = 56;
        match self {
            Self::RaftWal => dice.random_range(0..length.saturating_sub(TAIL).max(1)),
            Self::RaftWalTail => dice.random_range(length.saturating_sub(TAIL)..length),
            Self::Watermark if dice.random() => dice.random_range(0..NOTE.min(length)),
            Self::Watermark => dice.random_range(length.saturating_sub(NOTE)..length),
            _ => dice.random_range(0..length),
        }
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RaftWal => "raft log",
            Self::RaftWalTail => "tail of the raft log",
            Self::RaftSst => "raft table",
            Self::StateSst => "state table",
            Self::Manifest => "MANIFEST",
            Self::Current => "CURRENT",
            Self::Options => "OPTIONS",
            Self::Watermark => "watermark",
            Self::Snapshot => "snapshot file",
        })
    }
}

/// A bit that was turned over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flip {
    /// The file, relative to the member's directory.
    pub file: PathBuf,
    /// The byte.
    pub at: u64,
    /// The length of the file.
    pub length: u64,
    /// The bit, as a mask.
    pub mask: u8,
}

impl fmt::Display for Flip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, at, length, mask } = self;
        write!(f, "bit {mask:#04x} of byte {at} of {length} of {}", file.display())
    }
}

/// Turns over a random bit of a random file of this kind below `root`, a
/// member's own directory; `None` when there is no such file.
///
/// # Errors
/// When the directory cannot be read or the file not changed.
pub fn flip(root: &Path, victim: Victim, dice: &mut impl Rng) -> Result<Option<Flip>> {
    let mut files = Vec::new();
    list(root, &mut files).during("list a member's files")?;
    let relative = |file: &PathBuf| file.strip_prefix(root).map(Path::to_owned).ok();
    let mut files: Vec<_> = files.iter().filter_map(relative).filter(|f| victim.is(f)).collect();
    files.sort();
    let mut candidates = Vec::new();
    for file in files {
        let length = fs::metadata(root.join(&file)).during("the length of a file")?.len();
        if length > 0 {
            candidates.push((file, length));
        }
    }
    if candidates.is_empty() {
        return Ok(None);
    }
    let (file, length) = candidates.swap_remove(dice.random_range(0..candidates.len()));
    let at = victim.place(length, dice);
    let mask = 1 << dice.random_range(0..8);
    turn(&root.join(&file), at, mask).during("turn a bit over")?;
    Ok(Some(Flip { file, at, length, mask }))
}

fn turn(path: &Path, at: u64, mask: u8) -> std::io::Result<()> {
    let mut file = fs::File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut byte)?;
    byte[0] ^= mask;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(&byte)
}

/// All files below a directory.
fn list(dir: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn one_bit_of_one_file_of_the_kind_turns() {
        let root = tempfile::tempdir().expect("a directory");
        let raft = root.path().join("raft");
        fs::create_dir_all(&raft).expect("a directory");
        fs::write(raft.join("000004.log"), [0; 1000]).expect("a file");
        fs::write(raft.join("000005.log"), []).expect("a file");
        fs::write(raft.join("000006.sst"), [0; 1000]).expect("a file");
        let mut dice = ChaCha8Rng::seed_from_u64(1);
        for number in 1..=20 {
            let turned = flip(root.path(), Victim::RaftWalTail, &mut dice).expect("a flip");
            let turned = turned.expect("a log");
            assert_eq!(turned.file, Path::new("raft/000004.log"));
            assert!((936..1000).contains(&turned.at), "{turned}");
            let bytes = fs::read(raft.join("000004.log")).expect("the file");
            assert!(bytes.iter().map(|byte| byte.count_ones()).sum::<u32>() <= number);
        }
        assert_eq!(fs::read(raft.join("000006.sst")).expect("the file"), [0; 1000]);
        assert_eq!(flip(root.path(), Victim::Snapshot, &mut dice), Ok(None));
    }

    #[test]
    fn files_are_told_apart() {
        for (path, kind) in [
            ("raft/MANIFEST-000001", Victim::Manifest),
            ("state-1/CURRENT", Victim::Current),
            ("state-77/000012.sst", Victim::StateSst),
            ("raft/OPTIONS-000007", Victim::Options),
            ("watermark", Victim::Watermark),
            ("snap/made-70/000012.sst", Victim::Snapshot),
        ] {
            let kinds: Vec<_> = Victim::ALL.into_iter().filter(|v| v.is(Path::new(path))).collect();
            assert_eq!(kinds, [kind], "{path}");
        }
    }
}
