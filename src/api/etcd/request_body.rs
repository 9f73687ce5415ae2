//! The bodies of calls: how large, how long, and how many at once.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::Frame;
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};
use tonic::Status;

use super::status::Error;
use crate::api::{Limits, body_patience};

/// What the memory of bodies is counted in, in bytes.
const UNIT_BYTES: usize = 1 << 10;

/// In front of every message: whether it is compressed, and its length.
const MESSAGE_HEAD_BYTES: usize = 5;

/// What a byte of gzip can become, in bytes, at most.
const MAX_GZIP_RATIO: usize = 1032;

/// Bounds on the bodies of all calls together. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Bodies {
    memory: Arc<Semaphore>,
    max_message_bytes: usize,
    idle_timeout: Duration,
}

impl Bodies {
    pub(super) fn new(limits: &Limits, max_message_bytes: usize) -> Self {
        let units = (limits.body_memory_bytes / UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS);
        let memory = Arc::new(Semaphore::new(units));
        Self { memory, max_message_bytes, idle_timeout: limits.body_idle_timeout }
    }

    /// A body within the bounds, and what it holds of the memory until both are
    /// dropped. Of one message, unless the client `streams`: then there may be
    /// any time between them, and each gives its memory back with the next.
    pub(super) fn bound(&self, body: Body, streams: bool) -> (Body, BodyMemory) {
        let held = BodyMemory { pool: Arc::clone(&self.memory), held: Arc::default() };
        let body = Body::new(Bounded {
            body,
            memory: held.clone(),
            max_message_bytes: self.max_message_bytes,
            idle_timeout: self.idle_timeout,
            streams,
            idle: Box::pin(sleep(self.idle_timeout)),
            waits: None,
            waited: Duration::ZERO,
            head: Vec::new(),
            missing: 0,
            counted: 0,
            received: 0,
        });
        (body, held)
    }
}

/// What a body holds of the memory for bodies.
#[derive(Debug, Clone)]
pub(super) struct BodyMemory {
    pool: Arc<Semaphore>,
    // A lock because the body changes it while its call holds it.
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    bytes: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl BodyMemory {
    /// Of what came, only so many bytes are still kept.
    fn shrink(&self, bytes: usize) {
        let mut held = self.held.lock();
        held.bytes = held.bytes.min(bytes);
        let needs = held.bytes.div_ceil(UNIT_BYTES);
        if let Some(permit) = &mut held.permit {
            drop(permit.split(permit.num_permits().saturating_sub(needs)));
        }
    }

    fn grow(&self, bytes: usize) -> Result<(), Status> {
        let mut held = self.held.lock();
        held.bytes = held.bytes.saturating_add(bytes);
        let has = held.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let needs = held.bytes.div_ceil(UNIT_BYTES).saturating_sub(has);
        let more = Arc::clone(&self.pool)
            .try_acquire_many_owned(u32::try_from(needs).unwrap_or(u32::MAX))
            .map_err(|_| Error::TooManyRequests)?;
        match &mut held.permit {
            Some(permit) => permit.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }
}

/// A body that is read no further than allowed.
struct Bounded {
    body: Body,
    memory: BodyMemory,
    max_message_bytes: usize,
    idle_timeout: Duration,
    /// Whether there may be any number of messages, and any time between them.
    streams: bool,
    /// Fires when the body stands still, while it is waited for.
    idle: Pin<Box<Sleep>>,
    /// Since when the timer runs.
    waits: Option<Instant>,
    /// How long was waited for the present message before that.
    waited: Duration,
    /// The beginning of the present message's head; empty between messages.
    head: Vec<u8>,
    /// Bytes of the present message after its head that have not come.
    missing: usize,
    /// Bytes that the present message takes so far.
    counted: usize,
    /// Bytes of it that have come.
    received: usize,
}

impl Bounded {
    fn take(&mut self, mut data: &[u8]) -> Result<(), Status> {
        let mut more = data.len();
        while !data.is_empty() {
            let in_head = self.head.len() < MESSAGE_HEAD_BYTES;
            let most = if in_head { MESSAGE_HEAD_BYTES - self.head.len() } else { self.missing };
            let (taken, rest) = data.split_at(most.min(data.len()));
            data = rest;
            self.counted = self.counted.saturating_add(taken.len());
            self.received = self.received.saturating_add(taken.len());
            if !in_head {
                self.missing -= taken.len();
            } else {
                self.head.extend_from_slice(taken);
                let unpacked = self.begin()?;
                self.counted = self.counted.saturating_add(unpacked);
                more = more.saturating_add(unpacked);
            }
            if self.head.len() == MESSAGE_HEAD_BYTES && self.missing == 0 {
                self.head.clear();
                (self.counted, self.received) = (0, 0);
                self.waited = Duration::ZERO;
            }
        }
        self.memory.grow(more)
    }

    /// Begins a message once its head has come, unless that says that it is
    /// too large. Gives the bytes that it may take beside those that come.
    fn begin(&mut self) -> Result<usize, Status> {
        let Some((flag, length)) = self.head.split_first() else { return Ok(0) };
        let Ok(length) = <[u8; 4]>::try_from(length) else { return Ok(0) };
        let (bytes, most) = (u32::from_be_bytes(length) as usize, self.max_message_bytes);
        if bytes > most {
            return Err(Status::resource_exhausted(format!(
                "the message is {bytes} bytes, over the limit of {most}; send less at once, or \
                 see --max-request-bytes"
            )));
        }
        self.missing = bytes;
        let compressed = *flag != 0;
        Ok(if compressed { bytes.saturating_mul(MAX_GZIP_RATIO).min(most) } else { 0 })
    }

    /// Whether the client stands still for too long, or sends too slowly; call
    /// it only when nothing has come.
    fn stands_still(&mut self, cx: &mut Context<'_>) -> bool {
        if self.streams && self.head.is_empty() {
            return false;
        }
        // Time in which nobody asked for more is not the client's.
        if self.waits.is_none() {
            let now = Instant::now();
            self.waits = Some(now);
            let left = body_patience(self.idle_timeout, self.received).saturating_sub(self.waited);
            self.idle.as_mut().reset(now + left.min(self.idle_timeout));
        }
        self.idle.as_mut().poll(cx).is_ready()
    }
}

impl HttpBody for Bounded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.streams {
            // More is asked for only when all whole messages have been read.
            self.memory.shrink(self.counted);
        }
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            if self.stands_still(cx) {
                let status = Status::deadline_exceeded("the request stopped coming; send it again");
                return Poll::Ready(Some(Err(axum::Error::new(status))));
            }
            return Poll::Pending;
        };
        if let Some(since) = self.waits.take() {
            self.waited += since.elapsed();
        }
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(status) = self.take(data)
        {
            return Poll::Ready(Some(Err(axum::Error::new(status))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use std::{error::Error as _, io};

    use futures_util::stream;
    use tonic::Code;

    use http_body_util::BodyExt as _;

    use super::*;

    fn bodies(memory_bytes: usize) -> Bodies {
        let idle = Duration::from_millis(50);
        let limits =
            Limits { body_memory_bytes: memory_bytes, body_idle_timeout: idle, ..Limits::new(1) };
        Bodies::new(&limits, 1000)
    }

    /// A message of so many bytes, in pieces.
    fn message(bytes: u32, pieces: usize) -> Body {
        let mut whole = vec![0];
        whole.extend_from_slice(&bytes.to_be_bytes());
        whole.resize(MESSAGE_HEAD_BYTES + bytes as usize, b'x');
        let pieces: Vec<_> = whole
            .chunks(whole.len().div_ceil(pieces))
            .map(|piece| io::Result::Ok(piece.to_vec()))
            .collect();
        Body::from_stream(stream::iter(pieces))
    }

    async fn code_of(body: Body) -> Option<Code> {
        let error = body.collect().await.err()?;
        let mut source = error.source();
        while let Some(inner) = source {
            if let Some(status) = inner.downcast_ref::<Status>() {
                return Some(status.code());
            }
            source = inner.source();
        }
        panic!("no status in {error:?}");
    }

    #[tokio::test]
    async fn a_message_over_the_limit_is_refused_by_its_head() {
        let bodies = bodies(1 << 20);
        for pieces in [1, 3, 500] {
            let (body, _held) = bodies.bound(message(1000, pieces), false);
            assert_eq!(code_of(body).await, None);
            let (body, _held) = bodies.bound(message(1001, pieces), false);
            assert_eq!(code_of(body).await, Some(Code::ResourceExhausted));
        }
    }

    #[tokio::test]
    async fn memory_is_bounded_and_given_back() {
        let bodies = bodies(2 * UNIT_BYTES);
        let (first, held) = bodies.bound(message(1000, 4), false);
        assert_eq!(code_of(first).await, None);
        let (second, _) = bodies.bound(message(1000, 1), false);
        assert_eq!(code_of(second).await, None);
        let (third, other) = bodies.bound(message(1000, 1), false);
        let (fourth, _) = bodies.bound(message(1000, 1), false);
        assert_eq!(code_of(third).await, None);
        assert_eq!(code_of(fourth).await, Some(Code::ResourceExhausted));
        drop((held, other));
        let (again, _) = bodies.bound(message(1000, 1), false);
        assert_eq!(code_of(again).await, None);
    }

    #[tokio::test]
    async fn a_message_that_stands_still_is_given_up() {
        let silent = || Body::from_stream(stream::pending::<io::Result<Bytes>>());
        let (body, _held) = bodies(1 << 20).bound(silent(), false);
        assert_eq!(code_of(body).await, Some(Code::DeadlineExceeded));
        let (body, _held) = bodies(1 << 20).bound(silent(), true);
        let waited = tokio::time::timeout(Duration::from_millis(200), code_of(body)).await;
        assert!(waited.is_err(), "a stream may be silent");
    }

    #[tokio::test]
    async fn a_message_that_trickles_is_given_up() {
        for streams in [false, true] {
            let head = stream::iter([io::Result::Ok(Bytes::from_static(&[0, 0, 0, 3, 0]))]);
            let trickle = stream::unfold((), async |()| {
                sleep(Duration::from_millis(5)).await;
                Some((io::Result::Ok(Bytes::from_static(b"x")), ()))
            });
            let slow = futures_util::StreamExt::chain(head, trickle);
            let (body, _held) = bodies(1 << 20).bound(Body::from_stream(Box::pin(slow)), streams);
            let given_up = tokio::time::timeout(Duration::from_secs(3), code_of(body)).await;
            assert_eq!(given_up, Ok(Some(Code::DeadlineExceeded)));
        }
    }

    #[tokio::test]
    async fn a_stream_may_not_stand_still_within_a_message() {
        let half = stream::iter([io::Result::Ok(Bytes::from_static(&[0, 0, 0, 0, 9, b'x']))]);
        let half = futures_util::StreamExt::chain(half, stream::pending());
        let (body, _held) = bodies(1 << 20).bound(Body::from_stream(half), true);
        assert_eq!(code_of(body).await, Some(Code::DeadlineExceeded));
    }

    #[tokio::test]
    async fn a_stream_holds_memory_for_the_message_under_way() {
        let bodies = bodies(2 * UNIT_BYTES);
        let mut frames = Vec::new();
        for _ in 0..10 {
            let mut body = message(1000, 2);
            while let Some(frame) = body.frame().await {
                frames.push(frame.map(|frame| frame.into_data().expect("data")));
            }
        }
        let (body, held) = bodies.bound(Body::from_stream(stream::iter(frames)), true);
        assert_eq!(code_of(body).await, None);
        assert_eq!(held.held.lock().bytes, 0);
    }

    #[tokio::test]
    async fn what_is_compressed_counts_as_what_it_may_become() {
        let bodies = bodies(2 * UNIT_BYTES);
        let small = || Body::from(vec![1, 0, 0, 0, 1, b'x']);
        let (first, _first) = bodies.bound(small(), false);
        let (second, _second) = bodies.bound(small(), false);
        let (third, _third) = bodies.bound(small(), false);
        assert_eq!(code_of(first).await, None);
        assert_eq!(code_of(second).await, None);
        assert_eq!(code_of(third).await, Some(Code::ResourceExhausted));
    }
}
