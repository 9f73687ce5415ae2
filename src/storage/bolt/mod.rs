//! Snapshot files as etcd has them: databases of bbolt, read and written.
//!
//! A file is an array of pages. Two meta pages stand at its front, each with a
//! checksum; the valid one with the higher transaction id says where the tree
//! of buckets begins. A bucket is a B+ tree of its own, whose leaves hold keys
//! and values in order. An item that is too large for a page makes its leaf
//! overflow onto the pages that follow.
//!
//! [`Writer`] appends pages as they fill and so needs memory for one page per
//! level of a tree, however large the file becomes. [`Reader`] walks a tree with
//! one page per level in memory. It trusts nothing that a file says: a damaged
//! file leads to [`Error::Damaged`], never to a panic, to memory in proportion to
//! a damaged length, or to a walk that reads more pages than the file has.
//!
//! Buckets within buckets are not written, and an error when met: etcd has none.
//!
//! etcd appends the SHA-256 of a snapshot to it. [`trailing_sha256`] checks it;
//! [`Reader`] takes no notice of it.

mod page;
mod reader;
#[cfg(test)]
mod tests;
mod trailer;
mod writer;

use std::{fmt, io};

use bytes::Bytes;

pub use reader::{Iter, Reader};
pub use trailer::{Trailer, trailing_sha256};
pub use writer::Writer;

/// The longest key and the longest name of a bucket, in bytes: bbolt's own bound.
pub const MAX_KEY_LEN: usize = 32_768;

/// The longest value, in bytes: 64 MiB. bbolt takes more, but a value of etcd is
/// as large as a request at most (1.5 MiB unless configured), and a length in a
/// damaged file must not claim the memory of this process.
pub const MAX_VALUE_LEN: usize = 64 << 20;

/// The most buckets that a file may have. etcd has ten.
pub const MAX_BUCKETS: usize = 1024;

/// A key and its value.
pub type Pair = (Bytes, Bytes);

/// Why a file could not be read or written.
#[derive(Debug)]
pub enum Error {
    /// The operating system refused: what was tried, and its answer.
    Io(String, io::Error),
    /// The file is not what it should be: which file, and what is wrong with it.
    Damaged(String),
    /// The caller broke the rules of the format; what was asked for has not been
    /// done, and everything else is as it was.
    Refused(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(what, cause) => write!(f, "{what}: {cause}"),
            Self::Damaged(what) | Self::Refused(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(_, cause) => Some(cause),
            Self::Damaged(_) | Self::Refused(_) => None,
        }
    }
}
