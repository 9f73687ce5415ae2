//! What reads the bytes of peers, for the crate that gives it bytes of every
//! sort. Not a part of the API.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::body::{Body, BodyDataStream};
use bytes::BytesMut;
use futures_util::stream;
use raft::eraftpb::Message;

use super::{
    frame::FrameReader,
    snapshot::{self, ReceiveError},
};

/// Longer than any body takes that is there already.
const SILENCE: Duration = Duration::from_secs(60);

/// Why a transfer was not received.
#[derive(Debug)]
pub struct NotReceived {
    /// Whether it is for what was sent.
    pub is_of_sender: bool,
    /// What is wrong.
    pub why: String,
}

/// The contents of all frames in a body that comes in these chunks.
///
/// # Errors
/// When the body does not consist of frames of at most `max_bytes`.
pub async fn frames(chunks: Vec<Vec<u8>>, max_bytes: usize) -> io::Result<Vec<BytesMut>> {
    let mut reader = FrameReader::new(body(chunks), max_bytes, SILENCE);
    let mut frames = Vec::new();
    while let Some(frame) = reader.next().await? {
        frames.push(frame);
    }
    Ok(frames)
}

/// Receives a snapshot that comes in these chunks, from one member to another,
/// into a directory of its own under `parent`.
///
/// # Errors
/// When it is not whole or not for this member, or cannot be stored; nothing is
/// left of it then.
pub async fn receive(
    chunks: Vec<Vec<u8>>,
    parent: &Path,
    from: u64,
    to: u64,
) -> Result<(Message, PathBuf), NotReceived> {
    let received = snapshot::receive(body(chunks), parent, from, to).await;
    received.map_err(|failure| NotReceived {
        is_of_sender: matches!(failure, ReceiveError::Sent(_)),
        why: failure.to_string(),
    })
}

fn body(chunks: Vec<Vec<u8>>) -> BodyDataStream {
    let chunks = chunks.into_iter().map(Ok::<_, io::Error>);
    Body::from_stream(stream::iter(chunks)).into_data_stream()
}
