//! One stream of messages to one peer: dialled, fed, given up, dialled again.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use axum::http::StatusCode;
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use reqwest::{Body, Response};
use slog::{Logger, error, info, warn};
use tokio::{
    sync::{mpsc, watch},
    time::{self, Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::{
    Dismissal, OnDismissed, Timing,
    client::{self, CallError, PeerClient},
    directory::Directory,
    frame, headers,
    inbox::Inbox,
    outbox::{Kind, Losses, Waiting},
    throttle::LOG_INTERVAL,
};
use crate::{proto::Members, replica::Event};

/// The pause before the second attempt to connect; it doubles up to
/// [`MAX_PAUSE`] until an attempt succeeds.
const MIN_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause between two attempts: a peer that comes back is reached
/// within about an election timeout.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Messages are put together up to this size, to save system calls.
const BATCH_BYTES: usize = 256 << 10;

/// Batches between a lane and its connection.
const BATCHES: usize = 2;

/// How often a peer that stays unreachable for the same reason is logged.
const REPEAT_INTERVAL: Duration = Duration::from_secs(30);

/// How long a peer may take to read the end of a stream.
const FAREWELL: Duration = Duration::from_secs(1);

/// What all streams share.
pub(super) struct Context {
    pub(super) directory: Directory,
    pub(super) inbox: Inbox,
    pub(super) client: PeerClient,
    pub(super) timing: Timing,
    pub(super) on_dismissed: OnDismissed,
    pub(super) shutdown: CancellationToken,
    pub(super) logger: Logger,
}

/// A stream to one peer, across its connections.
pub(super) struct Lane {
    peer: u64,
    kind: Kind,
    waiting: Waiting,
    losses: Arc<Losses>,
    context: Arc<Context>,
    members: watch::Receiver<Arc<Members>>,
    said: Option<(String, Instant)>,
}

/// Why a connection ended.
enum Ended {
    /// The peer was given up and everything was sent.
    Drained,
    /// The peer has another URL now.
    Moved,
    /// It broke.
    Broke(String),
}

impl Lane {
    pub(super) fn new(
        peer: u64,
        kind: Kind,
        waiting: Waiting,
        losses: Arc<Losses>,
        context: Arc<Context>,
    ) -> Self {
        let members = context.directory.subscribe();
        Self { peer, kind, waiting, losses, context, members, said: None }
    }

    /// Runs until the peer is given up: its queue's sender is dropped.
    pub(super) async fn run(mut self) {
        let mut pause = MIN_PAUSE;
        let mut attempt = 0;
        loop {
            self.members.mark_unchanged();
            let urls = self.context.directory.peer_urls(self.peer);
            let Some(url) = urls.get(attempt % urls.len().max(1)).cloned() else {
                if self.waiting.is_closed() {
                    return;
                }
                self.pause(pause).await;
                continue;
            };
            match self.connect(&url).await {
                Ok((frames, response)) => {
                    info!(self.context.logger, "stream open";
                        "peer" => self.peer, "url" => &url, "stream" => self.kind.path());
                    self.said = None;
                    pause = MIN_PAUSE;
                    match self.feed(&url, frames, response).await {
                        Ended::Drained => return,
                        Ended::Moved => continue,
                        Ended::Broke(why) => self.complain(&url, &why),
                    }
                }
                Err(failure) => {
                    self.refused(&url, &failure);
                    attempt += 1;
                }
            }
            self.waiting.clear();
            self.losses.report();
            if self.waiting.is_closed() {
                return;
            }
            self.pause(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Opens the stream. Nothing is sent before the peer has accepted it, so
    /// that its refusal is not lost in a connection that is being written to.
    async fn connect(&self, url: &str) -> Result<(mpsc::Sender<Bytes>, Response), CallError> {
        let (frames, batches) = mpsc::channel::<Bytes>(BATCHES);
        let batches = stream::unfold(batches, |mut batches| async move {
            batches.recv().await.map(|batch| (Ok::<_, Infallible>(batch), batches))
        });
        let context = &self.context;
        let identity = context.directory.identity();
        let request = context.client.stream(url, self.kind.path(), identity, self.peer);
        let own_url = context.directory.peer_url(identity.member_id);
        let request = headers::with_promises(request, &context.directory.promises());
        let request = headers::with_url(request, own_url).body(Body::wrap_stream(batches));
        let exchange = async {
            let response = request.send().await.map_err(|error| client::call_error(&error))?;
            let newest = client::understood(&response)?.newest();
            if response.status() != StatusCode::OK {
                return Err(client::refusal(response, Some(identity.cluster_id)).await);
            }
            context.inbox.internal(Event::Speaks { member: self.peer, newest });
            Ok(response)
        };
        let silence = context.timing.silence();
        let response = time::timeout(silence, exchange)
            .await
            .unwrap_or_else(|_| Err(CallError::Failed(format!("no answer for {silence:?}"))))?;
        Ok((frames, response))
    }

    /// Sends what waits until the connection ends.
    async fn feed(
        &mut self,
        url: &str,
        frames: mpsc::Sender<Bytes>,
        mut response: Response,
    ) -> Ended {
        let timing = self.context.timing;
        let mut keep_alive = time::interval(timing.heartbeat);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silence = pin!(time::sleep(timing.silence()));
        let mut batch = BytesMut::new();
        let mut wrote = false;
        loop {
            tokio::select! {
                heard = response.chunk() => match heard {
                    Ok(Some(_)) => silence.as_mut().reset(Instant::now() + timing.silence()),
                    Ok(None) => return Ended::Broke("the peer ended the stream".to_owned()),
                    Err(error) => return Ended::Broke(client::call_error(&error).to_string()),
                },
                () = silence.as_mut() => {
                    return Ended::Broke(format!("nothing heard for {:?}", timing.silence()));
                }
                message = self.waiting.next(), if batch.is_empty() => match message {
                    Some(message) => self.fill(&mut batch, message),
                    None => break,
                },
                permit = frames.reserve(), if !batch.is_empty() => match permit {
                    Ok(permit) => {
                        permit.send(batch.split().freeze());
                        wrote = true;
                    }
                    Err(_closed) => return Ended::Broke("the connection broke".to_owned()),
                },
                _ = keep_alive.tick() => {
                    if !wrote && batch.is_empty() {
                        // Full or closed: then it is not idle, or the answer says so.
                        let _unsent = frames.try_send(frame::KEEP_ALIVE);
                    }
                    wrote = false;
                }
                Ok(()) = self.members.changed() => {
                    let urls = self.context.directory.peer_urls(self.peer);
                    if !urls.is_empty() && !urls.iter().any(|present| present == url) {
                        return Ended::Moved;
                    }
                }
            }
        }
        drop(frames);
        read_to_end(response).await;
        Ended::Drained
    }

    /// Puts the message into the batch, and more that wait as long as they fit.
    fn fill(&mut self, batch: &mut BytesMut, first: raft::eraftpb::Message) {
        let mut next = Some(first);
        while let Some(message) = next {
            if let Err(failure) = frame::encode(&message, batch) {
                error!(self.context.logger, "message dropped";
                    "peer" => self.peer, "error" => %failure);
                self.losses.report();
            }
            next = if batch.len() < BATCH_BYTES { self.waiting.try_next() } else { None };
        }
    }

    /// Waits before the next attempt; a change of the members cuts it short.
    async fn pause(&mut self, pause: Duration) {
        let jittered = pause.mul_f64(rand::random_range(0.5..1.0));
        let _either = time::timeout(jittered, self.members.changed()).await;
    }

    fn refused(&mut self, url: &str, failure: &CallError) {
        match failure {
            CallError::Removed => {
                info!(self.context.logger, "a peer says that this member was removed";
                    "peer" => self.peer);
                (self.context.on_dismissed)(Dismissal::Removed);
            }
            CallError::Outdated(known) => {
                // What was promised while the question was under way is no more
                // than what is here by now. Only what is missing is believed.
                let present = self.context.directory.promises();
                if present.are_behind(known) {
                    let (peer, known) = (self.peer, *known);
                    (self.context.on_dismissed)(Dismissal::Outdated { peer, present, known });
                }
            }
            CallError::Refused { cluster_id: Some(other), .. }
                if *other != self.context.directory.identity().cluster_id =>
            {
                self.complain(url, &format!("it belongs to another cluster, {other}"));
            }
            other => self.complain(url, &other.to_string()),
        }
    }

    /// Logs what went wrong, unless the same was said lately.
    fn complain(&mut self, url: &str, why: &str) {
        let now = Instant::now();
        if let Some((said, at)) = &self.said {
            let interval = if said == why { REPEAT_INTERVAL } else { LOG_INTERVAL };
            if now.duration_since(*at) < interval {
                return;
            }
        }
        self.said = Some((why.to_owned(), now));
        warn!(self.context.logger, "no stream to a peer";
            "peer" => self.peer, "url" => url, "stream" => self.kind.path(), "error" => why);
    }
}

/// Gives the peer time to read what was sent; its answer ends after that.
async fn read_to_end(mut response: Response) {
    let end = async { while let Ok(Some(_)) = response.chunk().await {} };
    let _in_time = time::timeout(FAREWELL, end).await;
}
