//! Request bodies, read as they come and never further than allowed.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody},
    http::{StatusCode, Version, header::EXPECT, request::Parts},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use super::refusal::Refusal;
use crate::api::body_patience;

/// What a body's memory is counted in.
const UNIT_BYTES: usize = 1 << 10;

/// The rest of a refused body is thrown away for this long and this far, so
/// that a client that is still sending reads the answer: closing a connection
/// with unread bytes resets it, and clients give up on a stream that is reset.
const DISCARD_TIME: Duration = Duration::from_secs(2);
const DISCARD_BYTES: usize = 4 << 20;

/// Reads bodies into memory, all together into not more than a fixed amount.
/// Clones share that amount.
#[derive(Debug, Clone)]
pub(crate) struct BodyReader {
    memory: Arc<Semaphore>,
    idle_timeout: Duration,
}

/// A whole body. Its memory counts until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) bytes: Bytes,
    _memory: Option<OwnedSemaphorePermit>,
}

impl BodyReader {
    /// A reader with at most this many bytes of bodies in memory at once.
    pub(super) fn new(memory_bytes: usize, idle_timeout: Duration) -> Self {
        let units = (memory_bytes / UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS);
        Self { memory: Arc::new(Semaphore::new(units)), idle_timeout }
    }

    /// A request's whole body, of at most `limit` bytes.
    pub(crate) async fn read(
        &self,
        head: &Parts,
        mut body: Body,
        limit: u64,
    ) -> Result<Held, Refusal> {
        // Over HTTP/1, asking for the body of a client that waits for
        // `100 Continue` would send that.
        let waits = head.version < Version::HTTP_2 && head.headers.contains_key(EXPECT);
        let read = self.read_frames(&mut body, limit).await;
        if read.is_err() && !waits && !body.is_end_stream() {
            tokio::spawn(timeout(DISCARD_TIME, throw_away(body)));
        }
        read
    }

    async fn read_frames(&self, body: &mut Body, limit: u64) -> Result<Held, Refusal> {
        if body.size_hint().lower() > limit {
            return Err(too_large(limit));
        }
        let mut first = Bytes::new();
        let mut joined = BytesMut::new();
        let mut memory: Option<OwnedSemaphorePermit> = None;
        let begun = Instant::now();
        loop {
            let received = first.len() + joined.len();
            let late = begun + body_patience(self.idle_timeout, received);
            let Some(data) = self.next_data(body, late).await? else { break };
            let length = first.len() + joined.len() + data.len();
            if length as u64 > limit {
                return Err(too_large(limit));
            }
            let held = memory.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            let more = self.reserve(length.div_ceil(UNIT_BYTES) - held)?;
            match &mut memory {
                Some(memory) => memory.merge(more),
                None => memory = Some(more),
            }
            // Most bodies come in one piece, which needs no copy.
            if length == data.len() {
                first = data;
            } else {
                joined.extend_from_slice(&std::mem::take(&mut first));
                joined.extend_from_slice(&data);
            }
        }
        let bytes = if joined.is_empty() { first } else { joined.freeze() };
        Ok(Held { bytes, _memory: memory })
    }

    /// The next piece of a body, `None` at its end.
    async fn next_data(&self, body: &mut Body, late: Instant) -> Result<Option<Bytes>, Refusal> {
        loop {
            let patience = self.idle_timeout.min(late.saturating_duration_since(Instant::now()));
            let frame = timeout(patience, body.frame()).await.map_err(|_| {
                Refusal::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "body_timeout",
                    "the body came too slowly or not at all; nothing was changed, send the \
                     request again",
                )
            })?;
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    // Trailers are of no use here.
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => {
                    return Err(Refusal::bad_request(
                        "incomplete_body",
                        format!(
                            "the body ended early or is malformed ({error}); nothing was changed"
                        ),
                    ));
                }
            }
        }
    }

    fn reserve(&self, units: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        self.memory.clone().try_acquire_many_owned(units).map_err(|_| {
            Refusal::overloaded(
                "too many request bodies are in flight; nothing was changed, retry in a moment",
            )
        })
    }
}

fn too_large(limit: u64) -> Refusal {
    Refusal::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body_too_large",
        format!("the body is over {limit} bytes; send less, or see --max-request-bytes"),
    )
}

async fn throw_away(mut body: Body) {
    let mut thrown = 0;
    while thrown < DISCARD_BYTES
        && let Some(Ok(frame)) = body.frame().await
    {
        thrown += frame.data_ref().map_or(0, Bytes::len);
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use axum::http::Request;
    use futures_util::stream;

    use super::*;

    const IDLE: Duration = Duration::from_millis(50);

    async fn read(reader: &BodyReader, body: Body, limit: u64) -> Result<Held, Refusal> {
        let (head, body) = Request::new(body).into_parts();
        reader.read(&head, body, limit).await
    }

    fn streamed(pieces: &[usize]) -> Body {
        let pieces: Vec<_> = pieces.iter().map(|n| io::Result::Ok(vec![b'x'; *n])).collect();
        Body::from_stream(stream::iter(pieces))
    }

    fn reader() -> BodyReader {
        BodyReader::new(1 << 20, IDLE)
    }

    #[tokio::test]
    async fn exactly_the_limit_passes_and_one_more_does_not() {
        for body in [Body::from("0123456789"), streamed(&[4, 6]), streamed(&[10])] {
            let held = read(&reader(), body, 10).await.expect("within the limit");
            assert_eq!(held.bytes.len(), 10);
        }
        for body in [Body::from("0123456789a"), streamed(&[4, 7]), streamed(&[11])] {
            let refusal = read(&reader(), body, 10).await.expect_err("over the limit");
            assert_eq!(refusal.status(), 413);
        }
    }

    #[tokio::test]
    async fn pieces_are_joined_in_order() {
        let pieces = ["", "ab", "", "c", "def"].map(|piece| io::Result::Ok(piece.to_owned()));
        let body = Body::from_stream(stream::iter(pieces));
        assert_eq!(read(&reader(), body, 100).await.expect("a body").bytes, "abcdef");
        assert_eq!(read(&reader(), Body::empty(), 0).await.expect("no body").bytes, "");
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_not_taken_for_a_whole_one() {
        let pieces = [Ok("half"), Err(io::Error::other("connection reset"))];
        let body = Body::from_stream(stream::iter(pieces));
        let refusal = read(&reader(), body, 100).await.expect_err("broken off");
        assert_eq!((refusal.status().as_u16(), refusal.code()), (400, "incomplete_body"));
    }

    #[tokio::test]
    async fn a_body_that_stands_still_times_out() {
        let body = Body::from_stream(stream::pending::<io::Result<Bytes>>());
        let refusal = read(&reader(), body, 100).await.expect_err("nothing came");
        assert_eq!((refusal.status().as_u16(), refusal.code()), (408, "body_timeout"));
    }

    #[tokio::test]
    async fn a_body_that_trickles_times_out() {
        let trickle = stream::unfold((), async |()| {
            tokio::time::sleep(IDLE / 10).await;
            Some((io::Result::Ok(Bytes::from_static(b"x")), ()))
        });
        let reader = reader();
        let read = read(&reader, Body::from_stream(trickle), 1 << 20);
        let refusal = timeout(IDLE * 100, read).await.expect("given up").expect_err("too slow");
        assert_eq!((refusal.status().as_u16(), refusal.code()), (408, "body_timeout"));
    }

    #[tokio::test]
    async fn memory_is_bounded_and_given_back() {
        let reader = BodyReader::new(4 * UNIT_BYTES, IDLE);
        let three = read(&reader, streamed(&[1, 3 * UNIT_BYTES - 1]), 1 << 20).await.expect("fits");
        let refusal = read(&reader, streamed(&[UNIT_BYTES + 1]), 1 << 20).await.expect_err("full");
        assert_eq!((refusal.status().as_u16(), refusal.code()), (429, "overloaded"));
        drop(three);
        assert!(read(&reader, streamed(&[4 * UNIT_BYTES]), 1 << 20).await.is_ok());
    }
}
