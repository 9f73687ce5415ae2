//! Hashes of a directory's files, kept beside them in the form of `sha256sum`,
//! so that what was received as a whole is known as that after a crash.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, ErrorKind, Read as _},
    path::Path,
};

use sha2::{Digest as _, Sha256};

use crate::{error::Fatal, storage::rocks::sync_directory};

/// The file's name. `sha256sum -c` reads it, too.
pub const SUMS: &str = "SHA256SUMS";

/// Bytes that are read at once.
const BUFFER_BYTES: usize = 1 << 20;

/// Bytes of a SHA-256.
const HASH_BYTES: usize = 32;

/// Writes down what the files of `dir` hash to, durably but for the directory,
/// which the caller syncs.
///
/// # Errors
/// When the disk refuses the write.
pub fn store_sums<'a>(
    dir: &Path,
    files: impl IntoIterator<Item = (&'a str, [u8; HASH_BYTES])>,
) -> io::Result<()> {
    let mut text = String::new();
    for (name, hash) in files {
        text.push_str(&hex(&hash));
        // Two spaces: a text file and a binary one are the same here.
        let _infallible = writeln!(text, "  {name}");
    }
    let path = dir.join(SUMS);
    fs::write(&path, text)?;
    File::open(path)?.sync_all()
}

/// Reads every file that the sums of `dir` name and compares it; a directory
/// without sums has nothing to compare. Takes as long as reading them takes.
///
/// # Errors
/// When a file is not what it was, is missing, or cannot be read.
pub fn verify_sums(dir: &Path) -> Result<(), Fatal> {
    let text = match fs::read_to_string(dir.join(SUMS)) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) if e.kind() == ErrorKind::InvalidData => return Err(damaged(dir, SUMS)),
        read => read.map_err(|e| unreadable(&dir.join(SUMS), e))?,
    };
    for line in text.lines() {
        let (hash, name) = line.split_once("  ").ok_or_else(|| damaged(dir, SUMS))?;
        let path = dir.join(name);
        let found = match File::open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(damaged(dir, name)),
            opened => opened.and_then(hash_of).map_err(|e| unreadable(&path, e))?,
        };
        if hex(&found) != hash {
            return Err(damaged(dir, name));
        }
    }
    Ok(())
}

/// Removes the sums of `dir`, durably: from here on its files may change.
///
/// # Errors
/// When the disk refuses it.
pub fn drop_sums(dir: &Path) -> Result<(), Fatal> {
    match fs::remove_file(dir.join(SUMS)) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Fatal::storage(format!("delete {}", dir.join(SUMS).display()), e)),
        Ok(()) => sync_directory(dir),
    }
}

fn hash_of(mut file: File) -> io::Result<[u8; HASH_BYTES]> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            read => hash.update(&buffer[..read]),
        }
    }
}

fn hex(hash: &[u8]) -> String {
    hash.iter().fold(String::with_capacity(2 * hash.len()), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

fn unreadable(path: &Path, cause: io::Error) -> Fatal {
    Fatal::storage(format!("read {}", path.display()), cause)
}

fn damaged(dir: &Path, name: &str) -> Fatal {
    Fatal::corrupt(format!(
        "{name} of {} is not what was received as part of a snapshot",
        dir.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let files = [("1.sst", "one"), ("CURRENT", "two")];
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        let sums = files.map(|(name, content)| (name, Sha256::digest(content).into()));
        store_sums(dir.path(), sums).unwrap();
        dir
    }

    #[test]
    fn what_was_received_is_found_as_it_was() {
        let dir = directory();
        verify_sums(dir.path()).unwrap();
        // What came since is none of it.
        fs::write(dir.path().join("LOG"), "more").unwrap();
        verify_sums(dir.path()).unwrap();
    }

    #[test]
    fn the_sums_are_what_sha256sum_writes() {
        let text = fs::read_to_string(directory().path().join(SUMS)).unwrap();
        let one = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed";
        assert_eq!(text.lines().next(), Some(format!("{one}  1.sst").as_str()));
    }

    #[test]
    fn damage_is_found_and_named() {
        let change = |name: &'static str, content: Option<&[u8]>| {
            let dir = directory();
            let path = dir.path().join(name);
            match content {
                Some(content) => fs::write(path, content).unwrap(),
                None => fs::remove_file(path).unwrap(),
            }
            (name, verify_sums(dir.path()).unwrap_err().what)
        };
        for (name, what) in [
            change("1.sst", Some(b"onf")),
            change("1.sst", Some(b"")),
            change("CURRENT", None),
            change(SUMS, Some(b"nonsense")),
            change(SUMS, Some(b"\xff\xfe")),
        ] {
            assert!(what.starts_with(&format!("{name} of ")), "{what}");
        }
    }

    #[test]
    fn without_sums_there_is_nothing_to_compare() {
        let dir = directory();
        drop_sums(dir.path()).unwrap();
        drop_sums(dir.path()).unwrap();
        fs::write(dir.path().join("CURRENT"), "changed").unwrap();
        verify_sums(dir.path()).unwrap();
    }
}
