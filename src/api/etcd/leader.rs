//! Calls that want to know when their member is cut off: metadata
//! `hasleader: true`.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::{Body, HttpBody},
    http::HeaderMap,
};
use bytes::Bytes;
use hyper::body::Frame;
use tonic::Status;

use super::status::Error;
use crate::node::Handle;

/// The metadata by which a client asks for it.
const METADATA: &str = "hasleader";

/// Elections that a stream waits for a leader.
const PATIENCE_IN_ELECTIONS: u32 = 3;

/// Whether a call shall fail without a leader.
pub(super) fn is_required(headers: &HeaderMap) -> bool {
    headers.get(METADATA).is_some_and(|value| value.as_bytes() == b"true")
}

/// The body of a stream that ends once there has been no leader for three
/// election timeouts.
pub(super) fn while_led(body: Body, handle: Handle) -> Body {
    let patience = handle.election_timeout() * PATIENCE_IN_ELECTIONS;
    let lost = Box::pin(async move { handle.without_leader_for(patience).await });
    Body::new(Led { body, lost: Some(lost) })
}

struct Led<F> {
    body: Body,
    /// Comes true when the stream shall end; gone when it has.
    lost: Option<Pin<Box<F>>>,
}

impl<F: Future<Output = ()> + Send> HttpBody for Led<F> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(lost) = &mut self.lost else { return Poll::Ready(None) };
        if lost.as_mut().poll(cx).is_ready() {
            self.lost = None;
            // Whatever feeds the stream ends with it.
            self.body = Body::empty();
            let mut trailers = HeaderMap::new();
            let status = Status::from(Error::NoLeader);
            return Poll::Ready(Some(match status.add_header(&mut trailers) {
                Ok(()) => Ok(Frame::trailers(trailers)),
                Err(status) => Err(axum::Error::new(status)),
            }));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures_util::{StreamExt as _, stream};
    use tokio::sync::oneshot;

    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_stream_ends_with_its_leader() {
        let (lose, lost) = oneshot::channel::<()>();
        let endless = stream::iter([io::Result::Ok("first")]).chain(stream::pending());
        let lost = Box::pin(async move { drop(lost.await) });
        let mut body = Body::new(Led { body: Body::from_stream(endless), lost: Some(lost) });
        let first = body.frame().await.expect("a frame").expect("a frame");
        assert_eq!(first.into_data().expect("data"), "first");
        lose.send(()).expect("the body listens");
        let last = body.frame().await.expect("a frame").expect("a frame");
        let trailers = last.into_trailers().expect("trailers");
        let status = Status::from_header_map(&trailers).expect("a status");
        assert_eq!(status.message(), Error::NoLeader.text());
        assert!(body.frame().await.is_none());
    }

    #[test]
    fn only_true_is_true() {
        let headers = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(METADATA, value.parse().expect("a header"));
            headers
        };
        assert!(is_required(&headers("true")));
        assert!(!is_required(&headers("false")));
        assert!(!is_required(&HeaderMap::new()));
    }
}
