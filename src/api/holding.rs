//! A response body that keeps something until it has been sent.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};

/// Keeps `held` until the body has ended or was dropped, whichever is first.
pub(super) fn holding<T: Send + Unpin + 'static>(body: Body, held: T) -> Body {
    Body::new(Holding { body, held: Some(held) })
}

struct Holding<T> {
    body: Body,
    held: Option<T>,
}

impl<T: Unpin> HttpBody for Holding<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut frame = self.body.frame();
        let polled = Pin::new(&mut frame).poll(cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.held = None;
        }
        polled
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
    use std::{io, sync::Arc};

    use futures_util::stream;

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
}
