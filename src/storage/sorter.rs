//! Sorting more than fits into memory.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    mem,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::Pair;

/// Bytes of pairs that are sorted in memory at once.
const RUN_BYTES: usize = 32 << 20;

/// Runs that are merged at once; each takes a file and a buffer.
const MAX_RUNS: usize = 64;

/// Bytes read or written at once of a run.
const BUFFER_BYTES: usize = 64 << 10;

/// What a pair takes in memory beside its bytes.
const PAIR_BYTES: usize = 2 * size_of::<Bytes>();

/// Takes pairs in any order and gives them back ascending by key.
///
/// Holds about 32 MiB of them in memory; the others are in files of a
/// directory, which are unlinked from the first moment on: a crash leaves none.
/// Pairs with equal keys all come back, in no particular order.
#[derive(Debug)]
pub struct Sorter {
    directory: PathBuf,
    run_bytes: usize,
    pairs: Vec<Pair>,
    bytes: usize,
    /// Sorted runs. Those of one level were merged equally often.
    levels: Vec<Vec<File>>,
}

impl Sorter {
    /// An empty one, with its files in `directory`.
    pub fn new(directory: &Path) -> Self {
        Self::with_run_bytes(directory, RUN_BYTES)
    }

    fn with_run_bytes(directory: &Path, run_bytes: usize) -> Self {
        let (pairs, levels) = (Vec::new(), Vec::new());
        Self { directory: directory.to_path_buf(), run_bytes, pairs, bytes: 0, levels }
    }

    /// Takes a pair.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn push(&mut self, key: Bytes, value: Bytes) -> io::Result<()> {
        self.bytes += key.len() + value.len() + PAIR_BYTES;
        self.pairs.push((key, value));
        if self.bytes >= self.run_bytes { self.spill() } else { Ok(()) }
    }

    /// All pairs, ascending by key.
    ///
    /// # Errors
    /// When the disk refuses, here or in any item.
    pub fn finish(mut self) -> io::Result<Sorted> {
        self.pairs.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let mut levels = mem::take(&mut self.levels).into_iter();
        let mut runs = levels.next().unwrap_or_default();
        for level in levels {
            // Few enough of them all to be read at once.
            runs =
                if runs.len() + level.len() > MAX_RUNS { vec![self.merged(runs)?] } else { runs };
            runs.extend(level);
        }
        let memory = mem::take(&mut self.pairs).into_iter();
        Sorted::new(runs, memory)
    }

    /// Writes what is in memory as one more run.
    fn spill(&mut self) -> io::Result<()> {
        let mut pairs = mem::take(&mut self.pairs);
        self.bytes = 0;
        pairs.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let mut run = self.write(pairs.into_iter().map(Ok))?;
        for level in 0.. {
            if level == self.levels.len() {
                self.levels.push(Vec::new());
            }
            self.levels[level].push(run);
            if self.levels[level].len() < MAX_RUNS {
                break;
            }
            let full = mem::take(&mut self.levels[level]);
            run = self.merged(full)?;
        }
        Ok(())
    }

    fn merged(&self, runs: Vec<File>) -> io::Result<File> {
        self.write(Sorted::new(runs, Vec::new().into_iter())?)
    }

    fn write(&self, pairs: impl Iterator<Item = io::Result<Pair>>) -> io::Result<File> {
        let file = tempfile::tempfile_in(&self.directory)?;
        let mut output = BufWriter::with_capacity(BUFFER_BYTES, file);
        for pair in pairs {
            let (key, value) = pair?;
            for bytes in [&key, &value] {
                output.write_all(&(bytes.len() as u64).to_le_bytes())?;
            }
            output.write_all(&key)?;
            output.write_all(&value)?;
        }
        output.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

/// The pairs of a [`Sorter`], ascending by key. The first error is the last
/// item.
pub struct Sorted {
    memory: std::vec::IntoIter<Pair>,
    runs: Vec<BufReader<File>>,
    /// The next pair of each source that has one: runs by their place, after
    /// them the memory.
    heads: BinaryHeap<Reverse<(Bytes, usize, Bytes)>>,
}

impl Sorted {
    fn new(runs: Vec<File>, memory: std::vec::IntoIter<Pair>) -> io::Result<Self> {
        let mut readers = Vec::with_capacity(runs.len());
        for mut run in runs {
            run.seek(SeekFrom::Start(0))?;
            readers.push(BufReader::with_capacity(BUFFER_BYTES, run));
        }
        let mut sorted = Self { memory, runs: readers, heads: BinaryHeap::new() };
        for source in 0..=sorted.runs.len() {
            sorted.refill(source)?;
        }
        Ok(sorted)
    }

    /// Reads the next pair of a source, if it has one.
    fn refill(&mut self, source: usize) -> io::Result<()> {
        let next = match self.runs.get_mut(source) {
            Some(run) => read_pair(run)?,
            None => self.memory.next(),
        };
        if let Some((key, value)) = next {
            self.heads.push(Reverse((key, source, value)));
        }
        Ok(())
    }
}

impl Iterator for Sorted {
    type Item = io::Result<Pair>;

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse((key, source, value)) = self.heads.pop()?;
        match self.refill(source) {
            Ok(()) => Some(Ok((key, value))),
            Err(cause) => {
                self.heads.clear();
                Some(Err(cause))
            }
        }
    }
}

fn read_pair(run: &mut BufReader<File>) -> io::Result<Option<Pair>> {
    use io::BufRead as _;
    if run.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let (key_len, value_len) = (read_len(run)?, read_len(run)?);
    Ok(Some((read_bytes(run, key_len)?, read_bytes(run, value_len)?)))
}

fn read_len(run: &mut BufReader<File>) -> io::Result<usize> {
    let mut len = [0; 8];
    run.read_exact(&mut len)?;
    usize::try_from(u64::from_le_bytes(len)).map_err(io::Error::other)
}

fn read_bytes(run: &mut BufReader<File>, len: usize) -> io::Result<Bytes> {
    let mut bytes = vec![0; len];
    run.read_exact(&mut bytes)?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn sorted(run_bytes: usize, pairs: &[Pair]) -> Vec<Pair> {
        let directory = tempfile::tempdir().unwrap();
        let mut sorter = Sorter::with_run_bytes(directory.path(), run_bytes);
        for (key, value) in pairs {
            sorter.push(key.clone(), value.clone()).unwrap();
        }
        let sorted = sorter.finish().unwrap().map(Result::unwrap).collect();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "a file with a name");
        sorted
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn everything_comes_back_in_order(
            pairs in vec((vec(any::<u8>(), 0..3), vec(any::<u8>(), 0..200)), 0..400),
            run_bytes in prop_oneof![Just(1), Just(300), Just(1 << 20)],
        ) {
            let pairs: Vec<Pair> =
                pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
            let found = sorted(run_bytes, &pairs);
            prop_assert!(found.is_sorted_by_key(|(key, _)| key.clone()));
            let (mut found, mut expected) = (found, pairs);
            found.sort();
            expected.sort();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn so_many_runs_that_merged_ones_are_merged_again() {
        let count = (MAX_RUNS * MAX_RUNS + MAX_RUNS + 7) as u32;
        let pair = |n: u32| (Bytes::from(n.to_be_bytes().to_vec()), Bytes::from(n.to_string()));
        let pairs: Vec<Pair> = (0..count).rev().map(pair).collect();
        let expected: Vec<Pair> = (0..count).map(pair).collect();
        assert_eq!(sorted(1, &pairs), expected);
    }

    #[test]
    fn a_directory_that_is_gone_is_an_error() {
        let mut sorter = Sorter::with_run_bytes(Path::new("/no/such/directory"), 1);
        assert!(sorter.push(Bytes::from_static(b"a"), Bytes::new()).is_err());
    }
}
