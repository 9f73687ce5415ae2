//! The SHA-256 that etcd appends to a snapshot.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    path::Path,
};

use sha2::{Digest, Sha256};

use super::{Error, page::PAGE_SIZES};

const DIGEST_LEN: usize = 32;
const BUFFER_LEN: usize = 128 << 10;

/// What stands behind the last page of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trailer {
    /// Nothing: the file was not saved over the API, but copied.
    Absent,
    /// The SHA-256 of all that stands before it.
    Right,
    /// 32 bytes that are not the SHA-256 of what stands before them.
    Wrong,
}

/// Whether the file at `path` ends in a SHA-256 of what stands before it, and
/// whether it is right. It has one if its length is 32 more than a multiple of
/// 512, the rule of etcd. Reads the whole file, with a buffer of 128 KiB.
///
/// # Errors
///
/// [`Error::Io`] if the file cannot be read.
pub fn trailing_sha256(path: &Path) -> Result<Trailer, Error> {
    let failed = |cause| Error::Io(format!("read {}", path.display()), cause);
    let file = File::open(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    if len % PAGE_SIZES.0 as u64 != DIGEST_LEN as u64 {
        return Ok(Trailer::Absent);
    }
    let mut content = (&file).take(len - DIGEST_LEN as u64);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        match content.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hash.update(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let mut trailer = [0; DIGEST_LEN];
    (&file).read_exact(&mut trailer).map_err(failed)?;
    Ok(if hash.finalize()[..] == trailer { Trailer::Right } else { Trailer::Wrong })
}
