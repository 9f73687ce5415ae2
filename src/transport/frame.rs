//! Frames: a length in four bytes, big endian, and as many bytes.
//!
//! An empty frame says nothing but that the sender lives.

use std::{io, time::Duration};

use axum::body::BodyDataStream;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use protobuf::{CodedOutputStream, Message as _, ProtobufError};
use raft::eraftpb::Message;
use tokio::time::{self, Instant};

/// The largest frame, whatever any member's flags say: several times the
/// largest entry, which travels in one.
pub const MAX_FRAME_BYTES: usize = 64 << 20;

/// Bytes of the length before each frame.
const HEAD_BYTES: usize = size_of::<u32>();

/// The empty frame.
pub const KEEP_ALIVE: Bytes = Bytes::from_static(&[0; HEAD_BYTES]);

/// Appends a message as a frame.
///
/// # Errors
/// When it is larger than [`MAX_FRAME_BYTES`]; `buffer` is as it was.
pub fn encode(message: &Message, buffer: &mut BytesMut) -> Result<(), ProtobufError> {
    let size = message.compute_size();
    if size as usize > MAX_FRAME_BYTES {
        let why = format!("a message of {size} bytes is larger than a frame may be");
        return Err(ProtobufError::IoError(io::Error::new(io::ErrorKind::InvalidInput, why)));
    }
    let start = buffer.len();
    buffer.extend_from_slice(&size.to_be_bytes());
    buffer.resize(start + HEAD_BYTES + size as usize, 0);
    let mut output = CodedOutputStream::bytes(&mut buffer[start + HEAD_BYTES..]);
    message.write_to_with_cached_sizes(&mut output)
}

/// Appends a message of metastore's own as a frame, which it must fit in.
pub(super) fn append(message: &impl prost::Message, buffer: &mut BytesMut) {
    let size = message.encoded_len();
    debug_assert!(size <= MAX_FRAME_BYTES, "a message of {size} bytes in a frame");
    buffer.reserve(HEAD_BYTES + size);
    buffer.put_u32(u32::try_from(size).unwrap_or(u32::MAX));
    // Cannot fail: there is room for all of it.
    let _ = message.encode(buffer);
}

/// Reads a raft message from a frame's content.
///
/// # Errors
/// When the bytes are none.
pub fn decode(content: &[u8]) -> Result<Message, ProtobufError> {
    // Copies the entries' data: a message that shared the frame's memory would
    // keep all of it for as long as any of its entries is cached.
    Message::parse_from_bytes(content)
}

/// Takes frames out of a request body.
pub(super) struct FrameReader {
    body: BodyDataStream,
    buffer: BytesMut,
    max_bytes: usize,
    silence: Duration,
    /// When to give up, set while bytes are waited for; kept here because the
    /// future that waits may be dropped and made anew many times meanwhile.
    deadline: Option<Instant>,
}

impl FrameReader {
    /// A reader that gives up when `silence` passes without a byte, and at a
    /// frame longer than `max_bytes`, before any of its content is stored.
    /// Memory grows with what came, not with what a length promises.
    pub(super) fn new(body: BodyDataStream, max_bytes: usize, silence: Duration) -> Self {
        Self { body, buffer: BytesMut::new(), max_bytes, silence, deadline: None }
    }

    /// The next frame's content; `None` at the end of the body. Nothing is
    /// lost when the future is dropped.
    pub(super) async fn next(&mut self) -> io::Result<Option<BytesMut>> {
        loop {
            if let Some(frame) = self.whole_frame()? {
                return Ok(Some(frame));
            }
            match self.chunk().await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    /// What follows the frames, as it comes; `None` at the end of the body.
    pub(super) async fn content(&mut self) -> io::Result<Option<Bytes>> {
        if !self.buffer.is_empty() {
            return Ok(Some(self.buffer.split().freeze()));
        }
        self.chunk().await
    }

    fn whole_frame(&mut self) -> io::Result<Option<BytesMut>> {
        let Some(head) = self.buffer.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        if length > self.max_bytes {
            let why = format!("a frame of {length} bytes, where {} are allowed", self.max_bytes);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        if self.buffer.len() < HEAD_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(HEAD_BYTES);
        Ok(Some(self.buffer.split_to(length)))
    }

    async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        let silence = self.silence;
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + silence);
        match time::timeout_at(deadline, self.body.next()).await {
            Ok(chunk) => {
                self.deadline = None;
                chunk.transpose().map_err(io::Error::other)
            }
            Err(_elapsed) => {
                let why = format!("nothing came for {:?}", self.silence);
                Err(io::Error::new(io::ErrorKind::TimedOut, why))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use futures_util::stream;
    use raft::eraftpb::{Entry, MessageType};

    use super::*;

    fn reader(chunks: Vec<Vec<u8>>) -> FrameReader {
        let chunks = chunks.into_iter().map(Ok::<_, io::Error>);
        let body = Body::from_stream(stream::iter(chunks)).into_data_stream();
        FrameReader::new(body, 1024, Duration::from_secs(60))
    }

    fn append() -> Message {
        let mut entry = Entry::default();
        entry.set_index(5);
        entry.set_data(Bytes::from_static(b"\x00\xff value"));
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgAppend);
        message.set_to(2);
        message.mut_entries().push(entry);
        message
    }

    #[tokio::test]
    async fn messages_survive_any_cut_into_chunks() {
        let mut bytes = BytesMut::new();
        encode(&append(), &mut bytes).expect("small");
        bytes.extend_from_slice(&KEEP_ALIVE);
        encode(&append(), &mut bytes).expect("small");
        for cut in 1..bytes.len() {
            let mut reader = reader(bytes.chunks(cut).map(<[u8]>::to_vec).collect());
            for wanted in [Some(append()), None, Some(append())] {
                let frame = reader.next().await.expect("whole frames").expect("three of them");
                let message = (!frame.is_empty()).then(|| decode(&frame).expect("a message"));
                assert_eq!(message, wanted);
            }
            assert!(reader.next().await.expect("a clean end").is_none());
        }
    }

    #[tokio::test]
    async fn an_oversize_length_and_a_cut_frame_are_errors() {
        let mut oversize = reader(vec![1025u32.to_be_bytes().to_vec()]);
        let error = oversize.next().await.expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        for cut in [vec![0, 0], vec![0, 0, 0, 9], vec![0, 0, 0, 9, 1, 2]] {
            let error = reader(vec![cut]).next().await.expect_err("cut short");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[tokio::test]
    async fn a_silent_body_is_given_up() {
        let body = Body::from_stream(stream::pending::<io::Result<Bytes>>()).into_data_stream();
        let mut reader = FrameReader::new(body, 1024, Duration::from_millis(20));
        let error = reader.next().await.expect_err("silence");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn garbage_is_an_error() {
        assert!(decode(b"\xff\xff\xff\xff").is_err());
        assert!(decode(&[0x0a, 0x7f]).is_err());
    }

    /// RUSTSEC-2024-0437: the parser must not recurse once for each group.
    #[test]
    fn deeply_nested_unknown_groups_do_not_overflow_the_stack() {
        let start_group_of_field_100 = [0xa3, 0x06];
        let nested = start_group_of_field_100.repeat(200_000);
        assert!(decode(&nested).is_err());
    }

    #[test]
    fn a_message_larger_than_a_frame_is_not_encoded() {
        let mut message = append();
        message.mut_entries()[0].set_data(Bytes::from(vec![0; MAX_FRAME_BYTES]));
        let mut buffer = BytesMut::from(&b"before"[..]);
        assert!(encode(&message, &mut buffer).is_err());
        assert_eq!(&buffer[..], b"before");
    }
}
