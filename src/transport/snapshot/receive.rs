//! Receiving an image.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use axum::{body::BodyDataStream, http::StatusCode};
use bytes::{Buf as _, Bytes};
use prost::Message as _;
use raft::eraftpb::{Message, MessageType};
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, task};

use super::{BUFFERS, HASH_BYTES, MAX_HEADER_BYTES, PROGRESS_TIMEOUT, VERSION};
use crate::{
    proto::{SnapshotFile, SnapshotHeader},
    storage::sums,
    transport::frame::{self, FrameReader},
    version,
};

/// The longest file name.
const MAX_NAME_BYTES: usize = 255;

/// Why an image was not received.
#[derive(Debug)]
pub(in crate::transport) enum ReceiveError {
    /// What came is not a complete and undamaged image for this member.
    Sent(String),
    /// This member could not store it.
    Local(io::Error),
}

impl ReceiveError {
    /// The status that tells the sender.
    pub(in crate::transport) fn status(&self) -> StatusCode {
        match self {
            Self::Sent(_) => StatusCode::BAD_REQUEST,
            Self::Local(error) => match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    StatusCode::INSUFFICIENT_STORAGE
                }
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            },
        }
    }
}

impl fmt::Display for ReceiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sent(why) => f.write_str(why),
            Self::Local(error) => write!(f, "cannot store the snapshot: {error}"),
        }
    }
}

/// Receives an image into a directory of its own under `parent`. When this
/// returns it is complete, verified and durable, with the hashes of its files
/// beside them; after a failure nothing is left of it.
pub(in crate::transport) async fn receive(
    body: BodyDataStream,
    parent: &Path,
    from: u64,
    to: u64,
) -> Result<(Message, PathBuf), ReceiveError> {
    let mut body = FrameReader::new(body, MAX_HEADER_BYTES, PROGRESS_TIMEOUT);
    let (message, files) = read_header(&mut body, from, to).await?;
    let metadata = message.get_snapshot().get_metadata();
    let name = format!("recv-{}-{}-{from}", metadata.get_index(), metadata.get_term());
    let dir = parent.join(name);
    let (chunks, waiting) = mpsc::channel(BUFFERS);
    let (parent, image) = (parent.to_owned(), dir.clone());
    let storing = task::spawn_blocking(move || {
        let stored = store(&parent, &image, &files, waiting);
        if stored.is_err() {
            remove(&image);
        }
        stored
    });
    let passed = pass_on(&mut body, chunks).await;
    let stored =
        storing.await.unwrap_or_else(|failure| Err(ReceiveError::Local(io::Error::other(failure))));
    match (stored, passed) {
        (Ok(()), Ok(())) => Ok((message, dir)),
        // A full disk explains why the rest was not read, not the reverse.
        (Err(failure @ ReceiveError::Local(_)), _) | (Err(failure), Ok(())) => Err(failure),
        (stored, Err(failure)) => {
            if stored.is_ok() {
                discard(dir).await;
            }
            Err(ReceiveError::Sent(format!("the snapshot broke off: {failure}")))
        }
    }
}

/// Removes an image that nobody took over.
pub(in crate::transport) async fn discard(dir: PathBuf) {
    let _joined = task::spawn_blocking(move || remove(&dir)).await;
}

/// What cannot be removed now is removed at the next start, or by the next
/// transfer to the same place, which reports it when it cannot.
fn remove(dir: &Path) {
    let _leftover = fs::remove_dir_all(dir);
}

async fn read_header(
    body: &mut FrameReader,
    from: u64,
    to: u64,
) -> Result<(Message, Vec<SnapshotFile>), ReceiveError> {
    let broken = |why: &dyn fmt::Display| ReceiveError::Sent(format!("snapshot header: {why}"));
    let header = body.next().await.map_err(|error| broken(&error))?;
    let header = header.ok_or_else(|| broken(&"it is missing"))?;
    let header = SnapshotHeader::decode(header).map_err(|error| broken(&error))?;
    let older = if header.version > VERSION { "this member" } else { "the sender" };
    version::check_stored("the snapshot", header.version, VERSION..=VERSION)
        .map_err(|fatal| ReceiveError::Sent(format!("{}; upgrade {older}", fatal.what)))?;
    let message = frame::decode(&header.message).map_err(|error| broken(&error))?;
    let metadata = message.get_snapshot().get_metadata();
    if message.get_msg_type() != MessageType::MsgSnapshot
        || message.get_from() != from
        || message.get_to() != to
        || metadata.get_index() == 0
        || metadata.get_term() == 0
    {
        return Err(broken(&"the message is not a snapshot for this member"));
    }
    check_files(&header.files).map_err(|why| broken(&why))?;
    Ok((message, header.files))
}

/// Plain names in ascending order (so each once), and a sum of sizes that can be.
fn check_files(files: &[SnapshotFile]) -> Result<(), String> {
    if files.is_empty() {
        return Err("it names no files".to_owned());
    }
    if files.iter().any(|file| file.name == sums::SUMS) {
        return Err(format!("{} is a name that the receiver needs", sums::SUMS));
    }
    if let Some(file) = files.iter().find(|file| !is_plain(&file.name)) {
        return Err(format!("{:?} is not a plain file name", file.name));
    }
    if !files.is_sorted_by(|left, right| left.name < right.name) {
        return Err("its files are not sorted".to_owned());
    }
    let total = files
        .iter()
        .try_fold(0u64, |total, file| total.checked_add(file.size)?.checked_add(HASH_BYTES as u64));
    total.map(drop).ok_or_else(|| "its files are impossibly large".to_owned())
}

fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && !name.starts_with('.')
        && name.bytes().all(plain)
}

/// Passes what follows the header on to the thread that stores it.
async fn pass_on(body: &mut FrameReader, chunks: mpsc::Sender<Bytes>) -> io::Result<()> {
    while let Some(chunk) = body.content().await? {
        if chunks.send(chunk).await.is_err() {
            // It failed, and says itself why.
            return Ok(());
        }
    }
    Ok(())
}

fn store(
    parent: &Path,
    dir: &Path,
    files: &[SnapshotFile],
    waiting: mpsc::Receiver<Bytes>,
) -> Result<(), ReceiveError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(ReceiveError::Local(error));
        }
        _ => {}
    }
    fs::create_dir(dir).map_err(ReceiveError::Local)?;
    let mut content = Content { waiting, present: Bytes::new() };
    let mut hashes = Vec::with_capacity(files.len());
    for file in files {
        hashes.push((file.name.as_str(), content.store_file(&dir.join(&file.name), file)?));
    }
    if content.fill() {
        return Err(ReceiveError::Sent("there is more than the header names".to_owned()));
    }
    sums::store_sums(dir, hashes)
        .and_then(|()| sync_dir(dir))
        .and_then(|()| sync_dir(parent))
        .map_err(ReceiveError::Local)
}

/// Makes the names in a directory durable.
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The bytes after the header.
struct Content {
    waiting: mpsc::Receiver<Bytes>,
    present: Bytes,
}

impl Content {
    /// Stores a file and compares its hash, which it gives.
    fn store_file(
        &mut self,
        path: &Path,
        expected: &SnapshotFile,
    ) -> Result<[u8; HASH_BYTES], ReceiveError> {
        let mut file = File::create_new(path).map_err(ReceiveError::Local)?;
        let mut hash = Sha256::new();
        let mut rest = expected.size;
        while rest > 0 {
            let part = self.take(rest, &expected.name)?;
            hash.update(&part);
            file.write_all(&part).map_err(ReceiveError::Local)?;
            rest -= part.len() as u64;
        }
        let mut sent_hash = Vec::with_capacity(HASH_BYTES);
        while sent_hash.len() < HASH_BYTES {
            let rest = HASH_BYTES - sent_hash.len();
            sent_hash.extend_from_slice(&self.take(rest as u64, &expected.name)?);
        }
        let hash: [u8; HASH_BYTES] = hash.finalize().into();
        if sent_hash != hash {
            let why = format!("{} was damaged on the way", expected.name);
            return Err(ReceiveError::Sent(why));
        }
        file.sync_all().map_err(ReceiveError::Local)?;
        Ok(hash)
    }

    /// At least one byte, at most `limit`.
    fn take(&mut self, limit: u64, name: &str) -> Result<Bytes, ReceiveError> {
        if !self.fill() {
            return Err(ReceiveError::Sent(format!("the snapshot ended within {name}")));
        }
        let length = usize::try_from(limit).unwrap_or(usize::MAX).min(self.present.remaining());
        Ok(self.present.split_to(length))
    }

    /// Waits for bytes; false at the end.
    fn fill(&mut self) -> bool {
        while self.present.is_empty() {
            match self.waiting.blocking_recv() {
                Some(chunk) => self.present = chunk,
                None => return false,
            }
        }
        true
    }
}
