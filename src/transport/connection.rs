//! What is kept of a connection while it lasts: its requests under way, and
//! what of their answers its client has not taken yet.

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{Arc, atomic::AtomicUsize},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, HttpBody},
    extract::Request,
    response::Response,
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::body::{Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use tokio::time::{self, Instant};
use tonic::codegen::Service as _;

use super::{holding::Kept, slots::Slot};

/// What a client must take of an answer, in bytes a second, once it has been
/// given the time for which a connection may be silent.
const MIN_BYTES_PER_SECOND: u64 = 16 << 10;

/// Answers requests. Clones are the same.
pub trait Service: Clone + Send + Sync + 'static {
    /// Answers one request.
    fn answer(&self, request: Request) -> impl Future<Output = Response> + Send;
}

impl Service for Router {
    async fn answer(&self, request: Request) -> Response {
        // It is always ready.
        let Ok(response) = self.clone().call(request).await;
        response
    }
}

/// Requests of one connection that are in flight, as far as whoever answers
/// them counts them. Every request has it among its extensions; clones are the
/// same.
#[derive(Debug, Clone, Default)]
pub struct Tally(pub Arc<AtomicUsize>);

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    slot: Slot,
    tally: Tally,
    /// How long a client may take nothing.
    patience: Duration,
    // A lock because requests of HTTP/2 have tasks of their own; held for one
    // insertion or removal.
    deliveries: Mutex<Deliveries>,
}

/// By when the pieces of answers must be gone that are being sent.
#[derive(Debug, Default)]
struct Deliveries {
    due: BTreeSet<(Instant, u64)>,
    next: u64,
}

impl Connection {
    pub(super) fn new(slot: Slot, patience: Duration) -> Arc<Self> {
        let (tally, deliveries) = (Tally::default(), Mutex::default());
        Arc::new(Self { slot, tally, patience, deliveries })
    }

    /// Returns once its place is wanted and it has no request under way.
    pub(super) async fn pushed_out(&self) {
        self.slot.pushed_out().await;
    }

    /// Returns once the client has been too slow to take an answer.
    pub(super) async fn overdue(&self) {
        loop {
            let first = self.deliveries.lock().due.first().map(|(due, _)| *due);
            let now = Instant::now();
            // Nothing that begins later is due before that.
            let next = now + self.patience;
            match first {
                Some(due) if due <= now => return,
                Some(due) => time::sleep_until(due.min(next)).await,
                None => time::sleep_until(next).await,
            }
        }
    }

    fn deliver(self: &Arc<Self>, bytes: usize) -> Delivery {
        let slowest = Duration::from_secs(bytes as u64 / MIN_BYTES_PER_SECOND);
        let mut deliveries = self.deliveries.lock();
        let due = (Instant::now() + self.patience + slowest, deliveries.next);
        deliveries.next += 1;
        deliveries.due.insert(due);
        Delivery { connection: Arc::clone(self), due }
    }
}

/// A piece of an answer that is being sent.
struct Delivery {
    connection: Arc<Connection>,
    due: (Instant, u64),
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.connection.deliveries.lock().due.remove(&self.due);
    }
}

/// A request under way, until its answer has been sent.
struct UnderWay(Arc<Connection>);

impl UnderWay {
    fn begin(connection: &Arc<Connection>) -> Self {
        connection.slot.begin();
        Self(Arc::clone(connection))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.slot.end();
    }
}

/// Answers the requests of one connection.
pub(super) struct Answers<S> {
    connection: Arc<Connection>,
    service: S,
}

impl<S: Service> Answers<S> {
    pub(super) fn new(connection: Arc<Connection>, service: S) -> Self {
        Self { connection, service }
    }
}

impl<S: Service> hyper::service::Service<Request<Incoming>> for Answers<S> {
    type Response = Response;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Response, Self::Error>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let under_way = UnderWay::begin(&self.connection);
        request.extensions_mut().insert(self.connection.tally.clone());
        let service = self.service.clone();
        Box::pin(async move {
            let answer = service.answer(request.map(Body::new)).await;
            let under_way = Some(Arc::new(under_way));
            Ok(answer.map(|body| Body::new(Answer { body, under_way })))
        })
    }
}

/// The body of an answer, of which each piece must be taken in time.
struct Answer {
    body: Body,
    under_way: Option<Arc<UnderWay>>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match (polled, &self.under_way) {
            (Poll::Ready(Some(Ok(frame))), Some(under_way)) => {
                let under_way = Arc::clone(under_way);
                let keep = |data: Bytes| {
                    let delivery = under_way.0.deliver(data.len());
                    Bytes::from_owner(Kept { data, _held: (delivery, under_way) })
                };
                Poll::Ready(Some(Ok(frame.map_data(keep))))
            }
            (Poll::Ready(end), _) => {
                self.under_way = None;
                Poll::Ready(end)
            }
            (Poll::Pending, _) => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
