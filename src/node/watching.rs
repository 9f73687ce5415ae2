//! Watches, as an API sees them.

#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{self, UnboundedReceiver, UnboundedSender},
    },
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    Handle,
    handle::{Phase, not_running},
    soundness::Soundness,
    watch_feed::WatchFeed,
    watch_pump::{Outlet, WatchPump},
};
use crate::{
    error::Rejected,
    machine::View,
    metrics::Metrics,
    storage::Engine,
    watch::{Hub, Notice, Options, Spec},
};

/// Streams that may be open at once. Each costs little while it is idle; an
/// etcd client has a few.
const MAX_STREAMS: usize = 10_000;

/// Requests of all streams that may wait for the hub. It only falls behind
/// them while it is busy with large batches.
const MAX_REQUESTS: usize = 1024;

/// The streams of a running node.
#[derive(Debug)]
pub(super) struct Watching {
    /// Without a bound of its own, because a stream that ends must not wait:
    /// opening, closing and reporting are bounded by the streams and their
    /// queues, everything else by the permits.
    requests: UnboundedSender<Requested>,
    permits: Arc<Semaphore>,
    streams: Arc<AtomicUsize>,
    last_stream: AtomicU64,
    options: Options,
}

/// A request on its way to the hub.
pub(super) struct Requested {
    pub request: Request,
    /// Held until the request is taken in.
    _permit: Option<OwnedSemaphorePermit>,
}

/// What the holder of a stream asks for.
pub(super) enum Request {
    OpenStream { stream: u64, outlet: Outlet },
    CloseStream(u64),
    Open { stream: u64, watch: i64, spec: Spec },
    Cancel { stream: u64, watch: i64 },
    Progress(u64),
    Taken { stream: u64, notices: usize, bytes: usize },
}

/// One of the streams that may be open.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Watching {
    /// The streams, and the pump that is to be run for them.
    pub fn new<E: Engine>(
        options: Options,
        feed: WatchFeed,
        view: Arc<dyn Fn() -> View<E> + Send + Sync>,
        soundness: Soundness,
        metrics: Metrics,
        cancel: CancellationToken,
    ) -> (Self, WatchPump<E>) {
        let (requests, receiver) = mpsc::unbounded_channel();
        let permits = Arc::new(Semaphore::new(MAX_REQUESTS));
        let pump = WatchPump {
            // Until somebody follows the feed nothing is known.
            hub: Hub::new(options, 0, 0),
            feed,
            requests: receiver,
            permits: Arc::clone(&permits),
            view,
            outlets: Default::default(),
            pages: JoinSet::new(),
            followed: false,
            soundness,
            metrics,
            cancel,
        };
        let (streams, last_stream) = Default::default();
        (Self { requests, permits, streams, last_stream, options }, pump)
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// When too many are open, or the node is stopping.
    pub fn stream(&self) -> Result<(WatchControl, WatchNotices), Rejected> {
        let place = self.place()?;
        let stream = self.last_stream.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, notices) = mpsc::unbounded_channel();
        let outlet = Outlet { notices: sender, _place: place };
        let request = Request::OpenStream { stream, outlet };
        if self.requests.send(Requested { request, _permit: None }).is_err() {
            let why = "this node is stopping; ask another";
            return Err(Rejected::NotApplied(why.to_owned()));
        }
        let control = End { stream, requests: self.requests.clone() };
        let end = End { stream, requests: self.requests.clone() };
        let permits = Arc::clone(&self.permits);
        Ok((
            WatchControl { end: Arc::new(control), permits },
            WatchNotices { notices, end, options: self.options, taken: 0, taken_bytes: 0 },
        ))
    }

    fn place(&self) -> Result<Place, Rejected> {
        let one_more = |open: usize| (open < MAX_STREAMS).then_some(open + 1);
        match self.streams.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
            Ok(_) => Ok(Place(Arc::clone(&self.streams))),
            Err(open) => Err(Rejected::Overloaded(format!(
                "{open} streams of watches are open on this node, and it may have no more; \
                 close some, or use another member"
            ))),
        }
    }
}

/// One half of a stream; whichever goes first ends it.
struct End {
    stream: u64,
    requests: UnboundedSender<Requested>,
}

impl End {
    fn send(&self, request: Request, permit: Option<OwnedSemaphorePermit>) {
        // Without the pump the node is stopping, and all streams have ended.
        let _stopping = self.requests.send(Requested { request, _permit: permit });
    }
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("End").field(&self.stream).finish()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.send(Request::CloseStream(self.stream), None);
    }
}

/// Opens and closes the watches of one stream. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WatchControl {
    end: Arc<End>,
    permits: Arc<Semaphore>,
}

/// What a stream of watches is told, in order.
#[derive(Debug)]
pub struct WatchNotices {
    notices: UnboundedReceiver<(Notice, usize)>,
    end: End,
    options: Options,
    /// Notices taken since this was last reported to the hub.
    taken: usize,
    taken_bytes: usize,
}

impl Handle {
    /// A stream of any number of watches. It ends when either half is dropped.
    ///
    /// # Errors
    /// When this node does not belong to a cluster yet, must not serve, or has
    /// too many streams open.
    pub fn watch(&self) -> Result<(WatchControl, WatchNotices), Rejected> {
        self.check_sound()?;
        match &*self.shared.phase.borrow() {
            Phase::Running(running) => running.watching.stream(),
            phase => Err(not_running(phase)),
        }
    }
}

impl WatchControl {
    /// Opens a watch under a number, at least 0, that no open watch of this
    /// stream has. Answered with [`Notice::Created`] or [`Notice::Refused`].
    pub async fn open(&self, watch: i64, spec: Spec) {
        self.ask(Request::Open { stream: self.end.stream, watch, spec }).await;
    }

    /// Closes a watch; answered with [`Notice::Cancelled`] unless it has ended.
    pub async fn cancel(&self, watch: i64) {
        self.ask(Request::Cancel { stream: self.end.stream, watch }).await;
    }

    /// Asks for a [`Notice::Progress`] with watch -1, which comes once every
    /// watch of the stream is up to date. One answers all who asked before it.
    pub async fn request_progress(&self) {
        self.ask(Request::Progress(self.end.stream)).await;
    }

    async fn ask(&self, request: Request) {
        // Closed when the node is stopping, and all streams have ended.
        if let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await {
            self.end.send(request, Some(permit));
        }
    }
}

impl WatchNotices {
    /// The next notice; `None` when the node stops or must not serve any more,
    /// or when the hub ended the stream because its holder asked for much and
    /// took nothing. Nothing is
    /// lost when the call is dropped.
    pub async fn next(&mut self) -> Option<Notice> {
        let (notice, bytes) = self.notices.recv().await?;
        self.taken += 1;
        self.taken_bytes += bytes;
        let is_due = self.taken >= self.options.report_notices()
            || self.taken_bytes >= self.options.report_bytes();
        if is_due {
            let (notices, bytes) = (self.taken, self.taken_bytes);
            (self.taken, self.taken_bytes) = (0, 0);
            self.end.send(Request::Taken { stream: self.end.stream, notices, bytes }, None);
        }
        Some(notice)
    }
}
