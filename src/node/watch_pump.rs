//! The task that moves values through the watch hub.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::{
        Semaphore,
        mpsc::{UnboundedReceiver, UnboundedSender},
    },
    task::{JoinError, JoinSet},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    soundness::Soundness,
    watch_feed::WatchFeed,
    watching::{Place, Request, Requested},
};
use crate::{
    error::Fatal,
    machine::{ChangesPage, View},
    metrics::Metrics,
    storage::Engine,
    watch::{Effect, Hub, Input, Notice},
};

/// The unit of the hub's time.
const TICK: Duration = Duration::from_secs(1);

/// Requests taken in before looking for newly applied batches again.
const MAX_RUN: usize = 256;

/// A page of the history from a revision, or the last compaction.
type Page = (u64, Result<Result<ChangesPage, u64>, Fatal>);

/// Owns the hub, and carries out what it decides.
pub(super) struct WatchPump<E> {
    pub hub: Hub,
    pub feed: WatchFeed,
    pub requests: UnboundedReceiver<Requested>,
    /// What requests wait for; closed when nobody takes them any more.
    pub permits: Arc<Semaphore>,
    /// The present view: an installed snapshot replaces it.
    pub view: Arc<dyn Fn() -> View<E> + Send + Sync>,
    pub outlets: BTreeMap<u64, Outlet>,
    pub pages: JoinSet<Page>,
    pub followed: bool,
    /// While this member is accused, all streams end.
    pub soundness: Soundness,
    pub metrics: Metrics,
    pub cancel: CancellationToken,
}

/// The way to the holder of a stream.
pub(super) struct Outlet {
    pub notices: UnboundedSender<(Notice, usize)>,
    /// What the stream occupies of the number of streams.
    pub _place: Place,
}

impl<E: Engine> WatchPump<E> {
    /// Runs until the node stops. Then all streams end.
    ///
    /// # Errors
    /// When the history cannot be read.
    pub async fn run(mut self) -> Result<(), Fatal> {
        let cancel = self.cancel.clone();
        let ended = cancel.run_until_cancelled(self.pump()).await;
        self.permits.close();
        ended.unwrap_or(Ok(()))
    }

    async fn pump(&mut self) -> Result<(), Fatal> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut requests = Vec::new();
        loop {
            let accused = self.soundness.is_accused();
            if accused {
                self.outlets.clear();
            }
            let mut input = None;
            tokio::select! {
                received = self.requests.recv_many(&mut requests, MAX_RUN) => {
                    // The node and all streams are gone.
                    if received == 0 { return Ok(()) }
                }
                () = self.feed.arrived() => {}
                // The apply thread is gone otherwise.
                changed = self.soundness.until(!accused) => if !changed { return Ok(()) },
                Some(page) = self.pages.join_next() => input = Some(to_input(page)?),
                _ = ticks.tick() => input = Some(Input::Tick),
            }
            // Before the requests: what was applied before a watch was opened
            // must not be news to it.
            for applied in self.feed.take() {
                self.handle(applied);
            }
            if let Some(input) = input {
                self.handle(input);
            }
            for requested in requests.drain(..) {
                self.request(requested.request);
            }
            if self.followed && self.hub.is_idle() {
                self.followed = false;
                self.feed.unfollow();
            }
            self.metrics.watches.set(self.hub.watches() as u64);
            self.metrics.watch_queued_bytes.set(self.hub.queued_bytes() as u64);
        }
    }

    fn request(&mut self, request: Request) {
        let input = match request {
            Request::OpenStream { stream, outlet } => {
                if !self.followed {
                    self.followed = true;
                    let missed = self.feed.follow();
                    self.handle(missed);
                }
                self.outlets.insert(stream, outlet);
                Input::OpenStream(stream)
            }
            Request::CloseStream(stream) => {
                self.outlets.remove(&stream);
                Input::CloseStream(stream)
            }
            Request::Open { stream, watch, spec } => Input::Open { stream, watch, spec },
            Request::Cancel { stream, watch } => Input::Cancel { stream, watch },
            Request::Progress(stream) => Input::RequestProgress(stream),
            Request::Taken { stream, notices, bytes } => Input::Taken { stream, notices, bytes },
        };
        self.handle(input);
    }

    fn handle(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.hub.handle(input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Send { stream, notice, bytes } => {
                    if let Some(outlet) = self.outlets.get(&stream) {
                        // A holder that is gone has asked to close the stream.
                        let _gone = outlet.notices.send((notice, bytes));
                    }
                }
                Effect::End(stream) => drop(self.outlets.remove(&stream)),
                Effect::Read { from, max_bytes } => {
                    let view = (self.view)();
                    self.pages.spawn_blocking(move || (from, read_page(&view, from, max_bytes)));
                }
            }
        }
    }
}

fn read_page<E: Engine>(
    view: &View<E>,
    from: u64,
    max_bytes: usize,
) -> Result<Result<ChangesPage, u64>, Fatal> {
    let why = match view.changes(from, max_bytes)? {
        Ok(page) => return Ok(Ok(page)),
        Err(why) => why,
    };
    let compacted = view.compacted()?;
    if compacted > from {
        return Ok(Err(compacted));
    }
    Err(Fatal::corrupt(format!(
        "the changes from revision {from} on cannot be read ({}), although the last compaction \
         is {compacted}",
        why.as_str_name()
    )))
}

fn to_input(page: Result<Page, JoinError>) -> Result<Input, Fatal> {
    let (from, page) = page.map_err(|cause| {
        Fatal::new(format!("reading changes for watches failed: {cause}"), "report this as a bug")
    })?;
    Ok(Input::Page { from, page: page? })
}
