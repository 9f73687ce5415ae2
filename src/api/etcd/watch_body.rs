//! The answers of a stream of watches, as the body of an answer over HTTP.
//!
//! Where many watch the same, their events are one piece of memory, and are sent
//! from there: copying them for each watch costs more than all else in telling it.

use std::{
    convert::Infallible,
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::HttpBody;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use hyper::{HeaderMap, body::Frame};
use prost::Message as _;
use tonic::Status;

use super::watch_response::EncodedWatchResponse;

/// In front of every message: whether it is compressed, and its length.
const HEAD_BYTES: usize = 5;

/// Events that are copied rather than sent as a piece of their own, which costs
/// about as much as copying so many bytes, at most.
const MAX_COPIED_BYTES: usize = 64 << 10;

/// Bytes after which nothing is added to a piece.
const PIECE_BYTES: usize = 32 << 10;

/// A body of messages, and at its end how it ended. Its pieces end anywhere.
pub(super) struct WatchBody<S> {
    responses: S,
    /// What is to be sent first.
    piece: BytesMut,
    /// The events that end the last message in it.
    events: Bytes,
    state: State,
}

enum State {
    Open,
    /// There are no more messages.
    Ended(Status),
    /// All has been said.
    Closed,
}

impl<S> WatchBody<S> {
    /// The messages of a stream, which ends with the first error.
    pub(super) fn new(responses: S) -> Self {
        let (piece, events) = (BytesMut::new(), Bytes::new());
        Self { responses, piece, events, state: State::Open }
    }

    fn add(&mut self, EncodedWatchResponse { head, events }: EncodedWatchResponse) {
        let head_bytes = head.encoded_len();
        let Ok(length) = u32::try_from(head_bytes + events.len()) else {
            let why = "the events of one moment are too large for one message";
            self.state = State::Ended(Status::resource_exhausted(why));
            return;
        };
        let is_copied = events.len() <= MAX_COPIED_BYTES;
        let copied = if is_copied { events.len() } else { 0 };
        self.piece.reserve(HEAD_BYTES + head_bytes + copied);
        self.piece.put_u8(0);
        self.piece.put_u32(length);
        // Cannot fail: there is room for it.
        let _ = head.encode(&mut self.piece);
        match is_copied {
            true => self.piece.put_slice(&events),
            false => self.events = events,
        }
    }
}

impl<S> HttpBody for WatchBody<S>
where
    S: Stream<Item = Result<EncodedWatchResponse, Status>> + Unpin,
{
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        let data = |piece| Poll::Ready(Some(Ok(Frame::data(piece))));
        if this.piece.is_empty() && !this.events.is_empty() {
            return data(mem::take(&mut this.events));
        }
        while this.piece.len() < PIECE_BYTES
            && this.events.is_empty()
            && matches!(this.state, State::Open)
        {
            match this.responses.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(response))) => this.add(response),
                Poll::Ready(Some(Err(status))) => this.state = State::Ended(status),
                Poll::Ready(None) => this.state = State::Ended(Status::ok("")),
                Poll::Pending => break,
            }
        }
        if !this.piece.is_empty() {
            return data(this.piece.split().freeze());
        }
        match mem::replace(&mut this.state, State::Closed) {
            State::Open => {
                this.state = State::Open;
                Poll::Pending
            }
            State::Ended(status) => Poll::Ready(Some(Ok(Frame::trailers(trailers(&status))))),
            State::Closed => Poll::Ready(None),
        }
    }
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if let Err(unfit) = status.add_header(&mut trailers) {
        // Of that nothing but the text can be to blame.
        let _ = Status::new(unfit.code(), "").add_header(&mut trailers);
    }
    trailers
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, stream};
    use http_body_util::BodyExt as _;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::UnboundedReceiverStream;
    use tonic::Code;

    use super::*;
    use crate::proto::{
        etcdserverpb::WatchResponse,
        mvccpb::{Event, KeyValue},
    };

    /// A response with one event of about so many bytes.
    fn response(watch_id: i64, bytes: usize) -> (WatchResponse, EncodedWatchResponse) {
        let kv = KeyValue { value: vec![b'v'; bytes].into(), ..KeyValue::default() };
        let events = vec![Event { kv: Some(kv), ..Event::default() }];
        let head = WatchResponse { watch_id, ..WatchResponse::default() };
        let whole = WatchResponse { events: events.clone(), ..head.clone() };
        let events = WatchResponse { events, ..WatchResponse::default() }.encode_to_vec().into();
        (whole, EncodedWatchResponse { head, events })
    }

    fn messages(mut body: &[u8]) -> Vec<WatchResponse> {
        let mut messages = Vec::new();
        while let Some((head, rest)) = body.split_first_chunk::<HEAD_BYTES>() {
            assert_eq!(head[0], 0, "not compressed");
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let (message, rest) = rest.split_at(length);
            messages.push(WatchResponse::decode(message).expect("a message"));
            body = rest;
        }
        assert!(body.is_empty());
        messages
    }

    #[tokio::test]
    async fn messages_of_all_sizes_come_whole_and_in_order_and_then_the_status() {
        let sizes = [1, 10, 5_000, 20, MAX_COPIED_BYTES, 100_000, 100_001, 3, 31_000, 31_000];
        let (whole, encoded): (Vec<_>, Vec<_>) =
            (0..).zip(sizes).map(|(watch, bytes)| response(watch, bytes)).unzip();
        let shared: Vec<Bytes> = encoded.iter().map(|response| response.events.clone()).collect();
        let status = Status::unavailable("why");
        let responses = encoded.into_iter().map(Ok).chain([Err(status)]);
        let mut body = WatchBody::new(stream::iter(responses));
        let (mut sent, mut uncopied, mut end) = (Vec::new(), 0, None);
        while let Some(Ok(frame)) = body.frame().await {
            match frame.into_data() {
                Ok(data) => {
                    assert!(!data.is_empty() && end.is_none());
                    uncopied += usize::from(shared.iter().any(|it| it.as_ptr() == data.as_ptr()));
                    sent.extend(data);
                }
                Err(frame) => end = frame.into_trailers().ok(),
            }
        }
        assert_eq!(messages(&sent), whole);
        assert_eq!(uncopied, 3, "large ones are sent from where they are");
        let end = end.expect("how it ended");
        let status = Status::from_header_map(&end).expect("a status");
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "why"));
    }

    #[test]
    fn what_is_there_waits_for_nothing() {
        let (sender, responses) = mpsc::unbounded_channel();
        let mut body = WatchBody::new(UnboundedReceiverStream::new(responses));
        assert!(body.frame().now_or_never().is_none());
        for watch in [1, 2] {
            sender.send(Ok(response(watch, 10).1)).expect("open");
        }
        let both = body.frame().now_or_never().expect("there").expect("open").expect("sound");
        assert_eq!(messages(&both.into_data().expect("data")).len(), 2);
        assert!(body.frame().now_or_never().is_none());
        drop(sender);
        let end = body.frame().now_or_never().expect("there").expect("an end").expect("sound");
        assert_eq!(end.into_trailers().expect("trailers")["grpc-status"], "0");
        assert!(body.frame().now_or_never().expect("there").is_none());
    }
}
