//! Snapshot images between members.
//!
//! A transfer is one request: a frame with the
//! [`SnapshotHeader`](crate::proto::SnapshotHeader), then each file as its
//! content and the SHA-256 of it. Neither side holds more of it in memory than
//! a few buffers, and the answer comes only once the image is durable and raft
//! has been told.

mod receive;
mod send;

use std::time::Duration;

use crate::storage::keys::STATE_FORMAT_VERSION;

pub use send::{Transfer, send};

pub(super) use receive::{ReceiveError, discard, receive};

/// Where images are received.
pub(super) const PATH: &str = "/raft/snapshot";

/// The version of an image: that of the state database it is. What is around
/// it, as above, belongs to the protocol that both sides have agreed on.
const VERSION: u32 = STATE_FORMAT_VERSION;

/// The largest header: some hundred thousand files.
const MAX_HEADER_BYTES: usize = 8 << 20;

/// Bytes of a SHA-256.
const HASH_BYTES: usize = 32;

/// Bytes of a file that are read at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// Buffers between the disk and the connection.
const BUFFERS: usize = 4;

/// How long a transfer may stand still before it is given up.
pub const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);
