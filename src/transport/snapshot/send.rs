//! Sending an image.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::http::StatusCode;
use bytes::Bytes;
use futures_util::stream;
use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::Message;
use reqwest::Body;
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, time};

use super::{BUFFER_BYTES, BUFFERS, MAX_HEADER_BYTES, PATH, PROGRESS_TIMEOUT, VERSION};
use crate::{
    proto::{Identity, SnapshotFile, SnapshotHeader},
    transport::client::{self, PeerClient},
};

/// What to send, and to whom.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// The receiver's peer URL.
    pub url: String,
    /// Who sends.
    pub identity: Identity,
    /// The `MsgSnapshot` that goes with the image; names the receiver.
    pub message: Message,
    /// The directory of the image: nothing but files, which no longer change.
    pub dir: PathBuf,
}

/// Sends an image, and returns once the receiver has made it durable and told
/// its raft. Takes as long as it needs, but gives up when it stands still for
/// [`PROGRESS_TIMEOUT`].
///
/// # Errors
/// One line that says what went wrong; the receiver then has not taken it over,
/// or its confirmation was lost.
pub async fn send(client: &PeerClient, transfer: Transfer) -> Result<(), String> {
    send_within(client, transfer, PROGRESS_TIMEOUT).await
}

async fn send_within(
    client: &PeerClient,
    transfer: Transfer,
    progress_timeout: Duration,
) -> Result<(), String> {
    let Transfer { url, identity, message, dir } = transfer;
    let to = message.get_to();
    let (buffers, body) = mpsc::channel::<io::Result<Bytes>>(BUFFERS);
    let reading = tokio::task::spawn_blocking(move || {
        if let Err(error) = read_image(&message, &dir, &buffers) {
            // Fails the request; when that is over already, nobody minds.
            let _over = buffers.blocking_send(Err(error));
        }
    });
    let taken = Arc::new(AtomicU64::new(0));
    let progress = Arc::clone(&taken);
    let body = stream::unfold((body, progress), |(mut body, progress)| async move {
        let buffer = body.recv().await?;
        progress.fetch_add(1, Ordering::Relaxed);
        Some((buffer, (body, progress)))
    });
    let request = client.stream(&url, PATH, &identity, to).body(Body::wrap_stream(body));
    let exchange = async {
        let response = request.send().await.map_err(|error| client::call_error(&error))?;
        client::understood(&response)?;
        if response.status() != StatusCode::OK {
            return Err(client::refusal(response, Some(identity.cluster_id)).await);
        }
        Ok(())
    };
    let result = tokio::select! {
        done = exchange => done.map_err(|failure| failure.to_string()),
        () = stalled(&taken, progress_timeout) => {
            Err(format!("no progress for {progress_timeout:?}"))
        }
    };
    // The request is over, so the reader finds its channel closed and ends.
    drop(reading);
    result
}

/// Returns once the count has stood still for `timeout`.
async fn stalled(count: &AtomicU64, timeout: Duration) {
    let mut before = count.load(Ordering::Relaxed);
    loop {
        time::sleep(timeout).await;
        let now = count.load(Ordering::Relaxed);
        if now == before {
            return;
        }
        before = now;
    }
}

/// Reads header and files into the channel; ends early when it is closed.
fn read_image(
    message: &Message,
    dir: &Path,
    buffers: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let files = list(dir)?;
    let message = message.write_to_bytes().map_err(io::Error::other)?;
    let header = SnapshotHeader { version: VERSION, message: message.into(), files };
    let header_bytes = header.encode_to_vec();
    let length = u32::try_from(header_bytes.len())
        .ok()
        .filter(|length| *length as usize <= MAX_HEADER_BYTES)
        .ok_or_else(|| io::Error::other("the snapshot has too many files"))?;
    let mut first = length.to_be_bytes().to_vec();
    first.extend_from_slice(&header_bytes);
    if buffers.blocking_send(Ok(first.into())).is_err() {
        return Ok(());
    }
    for file in &header.files {
        if !read_file(&dir.join(&file.name), file.size, buffers)? {
            return Ok(());
        }
    }
    Ok(())
}

/// The files of an image, sorted by name.
fn list(dir: &Path) -> io::Result<Vec<SnapshotFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let name = entry.file_name().into_string().ok().filter(|_| metadata.is_file());
        let Some(name) = name else {
            let path = entry.path();
            return Err(io::Error::other(format!("{} is not a plain file", path.display())));
        };
        files.push(SnapshotFile { name, size: metadata.len() });
    }
    files.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(files)
}

/// Reads a file and its hash into the channel; false when that is closed.
fn read_file(
    path: &Path,
    size: u64,
    buffers: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut rest = size;
    while rest > 0 {
        let length = rest.min(BUFFER_BYTES as u64);
        let mut buffer = vec![0; usize::try_from(length).expect("at most BUFFER_BYTES")];
        file.read_exact(&mut buffer)?;
        hash.update(&buffer);
        rest -= length;
        if buffers.blocking_send(Ok(buffer.into())).is_err() {
            return Ok(false);
        }
    }
    let hash = Bytes::copy_from_slice(&hash.finalize());
    Ok(buffers.blocking_send(Ok(hash)).is_ok())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_receiver_that_stands_still_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("CURRENT"), b"x").expect("writable");
        let client = PeerClient::new(Duration::from_secs(5)).expect("a client");
        let transfer = Transfer {
            url,
            identity: Identity { cluster_id: 7, member_id: 1, incarnation: 11 },
            message: Message::default(),
            dir: dir.path().to_owned(),
        };
        let result = send_within(&client, transfer, Duration::from_millis(50)).await;
        assert!(result.is_err_and(|why| why.contains("no progress")));
    }
}
