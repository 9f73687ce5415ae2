//! Maintenance.Snapshot: the whole store as one file, in chunks.
//!
//! The file is made first, unlinked, on the disk of the data, and then sent as
//! fast as the client takes it. So a slow client holds back neither writes nor
//! the forgetting of history.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use sha2::{Digest, Sha256};
use slog::{info, warn};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    task::spawn_blocking,
    time::timeout,
};
use tonic::Status;

use super::{Etcd, status::Error};
use crate::{
    error::Rejected,
    machine::{BackupError, Exported, View},
    proto::etcdserverpb::SnapshotResponse,
    storage::{bolt, rocks::RocksEngine},
};

/// Snapshots that may be made and sent at once. Each takes the space of its
/// file.
pub(super) const MAX_SNAPSHOTS: usize = 2;

/// Bytes of the file in a chunk.
const CHUNK_BYTES: usize = 256 << 10;

/// Chunks that may wait to be sent.
const WAITING_CHUNKS: usize = 2;

/// How long a client may take for a chunk, before its file is deleted.
const STALL_PATIENCE: Duration = Duration::from_secs(120);

/// Free space that making a snapshot leaves on the disk, because a node whose
/// disk is full stops.
const RESERVED_BYTES: u64 = 64 << 20;

/// The oldest version of etcd whose tools restore the file.
const FILE_VERSION: &str = "3.4.0";

type Chunk = Result<SnapshotResponse, Status>;

/// The chunks of a snapshot; the last one is the SHA-256 of all before it.
#[derive(Debug)]
pub struct Chunks {
    chunks: mpsc::Receiver<Chunk>,
    /// Whether the last chunk, or an error, has come.
    ended: bool,
}

impl Stream for Chunks {
    type Item = Chunk;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Chunk>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = self.chunks.poll_recv(cx).map(|chunk| {
            // Less than the whole must not look like it.
            chunk.unwrap_or_else(|| {
                Err(Status::aborted("etcdserver: the snapshot was read too slowly; start again"))
            })
        });
        if let Poll::Ready(chunk) = &polled {
            self.ended = !matches!(chunk, Ok(chunk) if chunk.blob.len() != size_of::<Hash>());
        }
        polled.map(Some)
    }
}

/// A SHA-256. Pages come in multiples of 4096 bytes, so no other chunk is as
/// short.
type Hash = [u8; 32];

/// Tells the thread that makes a file that nobody waits for it any more.
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Etcd {
    /// Makes a snapshot and streams it. What was acknowledged before is in it,
    /// unless no majority can be asked: then it is of what this member knows.
    pub(super) async fn snapshot_chunks(&self) -> Result<Chunks, Status> {
        let turn = Arc::clone(&self.shared.snapshots)
            .try_acquire_owned()
            .map_err(|_| Error::TooManyRequests)?;
        let view = match self.handle().read().await {
            Ok(view) => view,
            Err(rejected @ Rejected::Corrupt(_)) => return Err(self.rejected(rejected)),
            Err(rejected) => {
                warn!(self.shared.logger,
                    "a snapshot is taken of this member's own state, which may be behind";
                    "cause" => %rejected);
                self.view()?
            }
        };
        let is_abandoned = Arc::new(AtomicBool::new(false));
        let waiting = Waiting(Arc::clone(&is_abandoned));
        let scratch = self.handle().scratch_dir().to_path_buf();
        let making = spawn_blocking(move || (make(&view, &scratch, &is_abandoned), turn));
        // The runtime drops what has not begun when it stops.
        let (made, turn) = making.await.map_err(|_| Error::Stopped)?;
        drop(waiting);
        let exported = made.map_err(|error| self.export_failed(error))?;
        info!(self.shared.logger, "sending a snapshot";
            "revision" => exported.revision, "bytes" => exported.bytes);
        let (sender, chunks) = mpsc::channel(WAITING_CHUNKS);
        let (handle, last) = (self.handle().clone(), sender.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = send(exported, sender, turn) => {}
                true = handle.until_accused(true) => {
                    let accused = Err(Error::Corrupt.into());
                    let _slow = timeout(STALL_PATIENCE, last.send(accused)).await;
                }
            }
        });
        Ok(Chunks { chunks, ended: false })
    }

    fn export_failed(&self, error: BackupError) -> Status {
        warn!(self.shared.logger, "no snapshot was made"; "cause" => %error);
        let text = format!("etcdserver: cannot make a snapshot: {error}");
        match error {
            BackupError::Database(fatal) => match self.sound::<()>(Err(fatal)) {
                Ok(()) => Error::Stopped.into(),
                Err(status) => status,
            },
            BackupError::File(bolt::Error::Io(_, cause))
                if cause.kind() == io::ErrorKind::StorageFull =>
            {
                Status::resource_exhausted(text)
            }
            BackupError::File(_) => Status::internal(text),
            BackupError::Unfit(_) | BackupError::Stopped(_) => Status::resource_exhausted(text),
        }
    }
}

/// Writes the file.
fn make(
    view: &View<RocksEngine>,
    scratch: &Path,
    is_abandoned: &AtomicBool,
) -> Result<Exported, BackupError> {
    let file = tempfile::tempfile_in(scratch).map_err(|cause| {
        let what = format!("create a file in {}", scratch.display());
        BackupError::File(bolt::Error::Io(what, cause))
    })?;
    view.export(file, scratch, &mut |_| {
        if is_abandoned.load(Ordering::Relaxed) {
            return Err("the client has gone".to_owned());
        }
        match rustix::fs::statvfs(scratch) {
            Ok(space) if space.f_bavail.saturating_mul(space.f_frsize) < RESERVED_BYTES => {
                Err(format!(
                    "the disk of {} has less than {} MiB left; free space on it, or ask another \
                     member",
                    scratch.display(),
                    RESERVED_BYTES >> 20
                ))
            }
            // Where space cannot be asked for, the write itself will tell.
            _ => Ok(()),
        }
    })
}

/// Sends a file chunk by chunk, for as long as they are taken.
async fn send(exported: Exported, sender: mpsc::Sender<Chunk>, _turn: OwnedSemaphorePermit) {
    let mut file = Sending { file: exported.file, at: 0, len: exported.bytes, hash: Sha256::new() };
    loop {
        let read = spawn_blocking(move || {
            let chunk = file.next();
            (file, chunk)
        });
        let Ok((rest, chunk)) = read.await else { return };
        file = rest;
        let (chunk, is_last) = match chunk {
            Ok(Some(chunk)) => (Ok(chunk), false),
            Ok(None) => (Ok(file.last()), true),
            Err(cause) => {
                let text = format!("etcdserver: cannot read the snapshot again: {cause}");
                (Err(Status::internal(text)), true)
            }
        };
        let sent = timeout(STALL_PATIENCE, sender.send(chunk)).await;
        if is_last || !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

struct Sending {
    file: File,
    at: u64,
    len: u64,
    hash: Sha256,
}

impl Sending {
    /// The next chunk of the file.
    fn next(&mut self) -> io::Result<Option<SnapshotResponse>> {
        let rest = self.len.saturating_sub(self.at);
        if rest == 0 {
            return Ok(None);
        }
        // At most CHUNK_BYTES, so it fits.
        let mut blob = vec![0; rest.min(CHUNK_BYTES as u64) as usize];
        self.file.read_exact_at(&mut blob, self.at)?;
        self.at += blob.len() as u64;
        self.hash.update(&blob);
        let remaining_bytes = self.len.saturating_sub(self.at);
        Ok(Some(response(blob.into(), remaining_bytes)))
    }

    /// The checksum of all chunks.
    fn last(&self) -> SnapshotResponse {
        let hash: Hash = self.hash.clone().finalize().into();
        response(Bytes::copy_from_slice(&hash), 0)
    }
}

fn response(blob: Bytes, remaining_bytes: u64) -> SnapshotResponse {
    let version = FILE_VERSION.to_owned();
    SnapshotResponse { blob, remaining_bytes, version, ..SnapshotResponse::default() }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use tokio::sync::Semaphore;

    use super::*;

    fn exported(bytes: usize) -> Exported {
        let file = tempfile::tempfile().expect("a temporary file");
        file.write_all_at(&vec![7; bytes], 0).expect("room for it");
        Exported { file, bytes: bytes as u64, revision: 1 }
    }

    async fn turn() -> (Arc<Semaphore>, OwnedSemaphorePermit) {
        let turns = Arc::new(Semaphore::new(1));
        let turn = Arc::clone(&turns).acquire_owned().await.expect("a turn");
        (turns, turn)
    }

    #[tokio::test]
    async fn a_file_comes_whole_with_its_checksum() {
        let (turns, turn) = turn().await;
        let bytes = CHUNK_BYTES + 4096;
        let (sender, chunks) = mpsc::channel(WAITING_CHUNKS);
        tokio::spawn(send(exported(bytes), sender, turn));
        let chunks: Vec<_> = Chunks { chunks, ended: false }.collect().await;
        let chunks: Vec<SnapshotResponse> =
            chunks.into_iter().map(|chunk| chunk.expect("a chunk")).collect();
        let lengths: Vec<_> = chunks.iter().map(|chunk| chunk.blob.len()).collect();
        assert_eq!(lengths, [CHUNK_BYTES, 4096, 32]);
        let remaining: Vec<_> = chunks.iter().map(|chunk| chunk.remaining_bytes).collect();
        assert_eq!(remaining, [4096, 0, 0]);
        let expected: Hash = Sha256::digest(vec![7; bytes]).into();
        assert_eq!(chunks[2].blob, expected[..]);
        drop(turns.acquire().await.expect("the turn is free again"));
    }

    #[tokio::test]
    async fn a_client_that_goes_away_frees_its_turn() {
        let (turns, turn) = turn().await;
        let (sender, chunks) = mpsc::channel(WAITING_CHUNKS);
        tokio::spawn(send(exported(64 * CHUNK_BYTES), sender, turn));
        let mut chunks = Chunks { chunks, ended: false };
        assert!(chunks.next().await.is_some_and(|chunk| chunk.is_ok()));
        drop(chunks);
        drop(turns.acquire().await.expect("the turn is free again"));
    }

    #[tokio::test]
    async fn a_snapshot_that_breaks_off_is_an_error() {
        let (sender, chunks) = mpsc::channel(1);
        sender.send(Ok(response(Bytes::from_static(&[0; 64]), 64))).await.expect("room");
        drop(sender);
        let chunks: Vec<_> = Chunks { chunks, ended: false }.collect().await;
        assert_eq!(chunks.len(), 2);
        assert!(chunks[1].is_err());
    }
}
