//! A body that keeps something until all of it has been sent.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

/// Keeps `held` until the body has ended or was dropped and its last byte is
/// gone: HTTP/2 takes a whole piece from a body once its client has room for
/// one byte of it, and then keeps the rest itself.
pub fn holding<T: Send + Sync + 'static>(body: Body, held: T) -> Body {
    Body::new(Holding { body, held: Some(Arc::new(held)) })
}

struct Holding<T> {
    body: Body,
    held: Option<Arc<T>>,
}

/// A piece of a body, and what is kept for as long as it is there.
pub(super) struct Kept<H> {
    pub(super) data: Bytes,
    pub(super) _held: H,
}

impl<H> AsRef<[u8]> for Kept<H> {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl<T: Send + Sync + 'static> HttpBody for Holding<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let held = self.held.clone();
                let keep = |data| Bytes::from_owner(Kept { data, _held: held });
                Poll::Ready(Some(Ok(frame.map_data(keep))))
            }
            Poll::Ready(end) => {
                self.held = None;
                Poll::Ready(end)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures_util::stream;

    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn it_is_let_go_with_the_end_or_the_body() {
        let held = Arc::new(());
        let pieces = stream::iter(["one", "two"].map(io::Result::Ok));
        let mut body = holding(Body::from_stream(pieces), Arc::clone(&held));
        assert!(body.frame().await.is_some() && body.frame().await.is_some());
        assert_eq!(Arc::strong_count(&held), 2);
        assert!(body.frame().await.is_none());
        assert_eq!(Arc::strong_count(&held), 1);
        let unread = holding(Body::from("unread"), Arc::clone(&held));
        drop(unread);
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn it_is_not_let_go_before_the_last_byte() {
        let held = Arc::new(());
        let mut body = holding(Body::from("large"), Arc::clone(&held));
        let frame = body.frame().await.expect("a frame").expect("a sound one");
        let mut data = frame.into_data().expect("data");
        drop(body);
        assert_eq!(data, "large");
        assert_eq!(Arc::strong_count(&held), 2, "what was taken from the body is not sent yet");
        let rest = data.split_off(4);
        drop(data);
        assert_eq!(Arc::strong_count(&held), 2);
        drop(rest);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
