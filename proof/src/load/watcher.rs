//! A client that watches, and goes on elsewhere when its stream breaks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metastore_proto::etcdserverpb::{
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
    watch_client::WatchClient, watch_request::RequestUnion,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::{ANSWER_LIMIT, Dice, Shared, Target, collect::event, target::Connections};
use crate::{
    Result,
    history::{
        Keys, Watched,
        watches::{Batch, digest},
    },
};

/// The longest time with one stream, in milliseconds: resuming is what is to
/// be tested.
const MAX_STREAM_MS: u64 = 8_000;

/// How often it asks how far it has come. A stream that does not answer in
/// [`SILENCE_LIMIT`] is left: its member may be cut off from the others, and
/// then has nothing to tell.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

const SILENCE_LIMIT: Duration = Duration::from_secs(3);

/// Pause after a stream that could not be opened.
const BACK_OFF: Duration = Duration::from_millis(100);

/// How long the rest may take to come once nothing is broken any more; what
/// has not come then is missing.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

/// The revision after which watchers may end; not set, they go on.
#[derive(Debug, Clone, Default)]
pub struct Until(Arc<AtomicU64>);

impl Until {
    /// Sets the revision.
    pub fn set(&self, revision: u64) {
        self.0.store(revision, Ordering::Release);
    }

    fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Acquire)).filter(|revision| *revision != 0)
    }
}

pub struct Watcher {
    connections: Connections<Channel>,
    shared: Shared,
    dice: Dice,
    watched: Watched,
    /// The next revision to be told of.
    next: u64,
}

impl Watcher {
    pub fn new(
        name: &str,
        keys: Keys,
        targets: &[Target],
        shared: Shared,
        dice: Dice,
    ) -> Result<Self> {
        let connections = Connections::new(targets, Target::channel)?;
        let batches = Vec::new();
        let watched = Watched { name: name.to_owned(), keys, from: 1, batches, resumed: 0 };
        Ok(Self { connections, shared, dice, watched, next: 1 })
    }

    /// Watches until it was told of the revision that is set in the end, or
    /// for [`DRAIN_LIMIT`] from then on.
    pub async fn run(mut self, until: Until) -> Watched {
        let mut deadline = None;
        loop {
            if let Some(revision) = until.get() {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + DRAIN_LIMIT);
                if self.next > revision || Instant::now() > deadline {
                    return self.watched;
                }
            }
            if self.stream(&until).await.is_none() {
                sleep(BACK_OFF).await;
            }
            self.connections.change(&mut self.dice);
        }
    }

    /// Opens a stream and reads from it for a while; `None` when it could not
    /// be opened.
    async fn stream(&mut self, until: &Until) -> Option<()> {
        let (member, channel) = self.connections.present();
        let (requests, queue) = mpsc::channel(4);
        let create = WatchCreateRequest {
            key: self.watched.keys.key.clone().into(),
            range_end: self.watched.keys.end.clone().into(),
            start_revision: self.next.cast_signed(),
            ..WatchCreateRequest::default()
        };
        requests.try_send(request(RequestUnion::CreateRequest(create))).ok()?;
        let mut client = WatchClient::new(channel);
        let opened = timeout(ANSWER_LIMIT, client.watch(ReceiverStream::new(queue))).await;
        let mut answers = opened.ok()?.ok()?.into_inner();
        let lasts = Duration::from_millis(self.dice.between(1, MAX_STREAM_MS));
        let end = Instant::now() + lasts;
        let mut heard = Instant::now();
        let mut was_created = false;
        while Instant::now() < end && heard.elapsed() < SILENCE_LIMIT {
            if until.get().is_some_and(|revision| self.next > revision) {
                break;
            }
            match timeout(PROGRESS_INTERVAL, answers.message()).await {
                Ok(Ok(Some(answer))) => {
                    heard = Instant::now();
                    was_created |= answer.created;
                    if !self.take_in(member, &answer) {
                        break;
                    }
                }
                Ok(_) => break,
                // Full: the questions before this one are not answered yet.
                Err(_) => drop(requests.try_send(ask_progress())),
            }
        }
        if was_created {
            self.watched.resumed += 1;
        }
        Some(())
    }

    /// Takes in a message; whether the watch goes on.
    fn take_in(&mut self, member: u64, answer: &WatchResponse) -> bool {
        let received = self.shared.clock.now();
        if answer.canceled {
            if answer.compact_revision != 0 {
                let figures = &self.shared.figures;
                figures
                    .violation(format!("history was forgotten, says member {member}: {answer:?}"));
            }
            return false;
        }
        let mut events = Vec::new();
        for told in &answer.events {
            match event(told) {
                Ok((revision, event)) => events.push((revision, digest(&event))),
                Err(why) => self.shared.figures.violation(format!("member {member}: {why}")),
            }
        }
        // Without events and not about the watch itself: how far it has come.
        let is_progress = answer.events.is_empty() && !answer.created;
        let header = answer.header.as_ref().map(|header| header.revision.unsigned_abs());
        let progress = header.filter(|_| is_progress);
        let batch = Batch { received, events, progress };
        if let Some(newest) = batch.newest() {
            self.next = self.next.max(newest + 1);
            self.watched.batches.push(batch);
        }
        true
    }
}

fn request(request: RequestUnion) -> WatchRequest {
    WatchRequest { request_union: Some(request) }
}

fn ask_progress() -> WatchRequest {
    request(RequestUnion::ProgressRequest(WatchProgressRequest {}))
}
