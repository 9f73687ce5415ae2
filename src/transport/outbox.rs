//! The way out of the raft task.
//!
//! Each peer has two streams, one for small messages and one for appends, so
//! that bulk never delays a heartbeat. *All* appends take the second, those
//! without entries too: one that announced a commit index and overtook the
//! entries before it would be rejected, and set the peer's progress back.
//!
//! Each stream has a queue bounded in messages and bytes. What does not fit is
//! dropped, and raft is told that the peer is unreachable; it sends again what
//! matters.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::RwLock;
use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};
use slog::{Logger, info};
use tokio::{
    runtime::Handle,
    sync::mpsc::{self, error::TryRecvError},
    time,
};
use tokio_util::sync::CancellationToken;

use super::{
    OnDismissed, Timing,
    client::PeerClient,
    directory::Directory,
    inbox::Inbox,
    stream::{Context, Lane},
    throttle::Throttle,
};
use crate::replica::Event;

/// Messages that wait for one stream. Raft keeps 64 appends in flight to a
/// peer; small ones pile up only while the peer does not answer.
const MAX_QUEUED: usize = 4096;

/// Bytes of appends that wait for one peer: what a leader keeps in flight.
const MAX_APPEND_BYTES: usize = 64 << 20;

/// Bytes of small messages that wait for one peer; each has some tens.
const MAX_SMALL_BYTES: usize = 4 << 20;

/// How long the streams to a removed member may take to send what waits.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Messages,
    Appends,
}

impl Kind {
    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::Messages => "/raft/stream/messages",
            Self::Appends => "/raft/stream/appends",
        }
    }
}

/// The queues to all peers. Clones share them.
#[derive(Clone)]
pub struct Outboxes {
    shared: Arc<Shared>,
}

struct Shared {
    // A lock because one task adds and removes peers while the raft task
    // looks them up; held for no longer than that.
    peers: RwLock<HashMap<u64, Peer>>,
    context: Arc<Context>,
    strays: Throttle,
}

struct Peer {
    messages: Queue,
    appends: Queue,
    losses: Arc<Losses>,
    stop: CancellationToken,
}

impl Outboxes {
    /// Opens streams to every peer in `directory`, and follows its changes
    /// until `shutdown`. `on_dismissed` is called when a peer says that
    /// this member must stop. Must be called within a tokio runtime.
    pub fn start(
        directory: Directory,
        inbox: Inbox,
        client: PeerClient,
        timing: Timing,
        on_dismissed: OnDismissed,
        shutdown: CancellationToken,
        logger: Logger,
    ) -> Self {
        let context = Context { directory, inbox, client, timing, on_dismissed, shutdown, logger };
        let shared = Arc::new(Shared {
            peers: RwLock::default(),
            context: Arc::new(context),
            strays: Throttle::new(timing.heartbeat),
        });
        shared.match_members(&Handle::current());
        tokio::spawn(follow(Arc::clone(&shared)));
        Self { shared }
    }

    /// Queues a message to the member it names, or drops it. Never blocks.
    pub fn send(&self, message: Message) {
        let to = message.get_to();
        let peers = self.shared.peers.read();
        let Some(peer) = peers.get(&to) else {
            if self.shared.strays.pass() {
                self.shared.context.inbox.internal(Event::Unreachable(to));
            }
            return;
        };
        let queue = match message.get_msg_type() {
            MessageType::MsgAppend => &peer.appends,
            _ => &peer.messages,
        };
        if !queue.push(message) {
            peer.losses.report();
        }
    }
}

async fn follow(shared: Arc<Shared>) {
    let mut members = shared.context.directory.subscribe();
    let shutdown = shared.context.shutdown.clone();
    shutdown
        .run_until_cancelled(async {
            loop {
                shared.match_members(&Handle::current());
                if members.changed().await.is_err() {
                    return;
                }
            }
        })
        .await;
    // The senders go, and with them the streams.
    shared.peers.write().clear();
}

impl Shared {
    /// Starts streams to new members and stops those to removed ones.
    fn match_members(&self, runtime: &Handle) {
        let present = self.context.directory.peers();
        let mut peers = self.peers.write();
        let gone: Vec<_> = peers
            .keys()
            .copied()
            .filter(|id| present.iter().all(|(member, _)| member != id))
            .collect();
        for peer in gone.iter().filter_map(|id| peers.remove(id)) {
            runtime.spawn(async move {
                let Peer { messages, appends, stop, .. } = peer;
                drop((messages, appends));
                time::sleep(FAREWELL).await;
                stop.cancel();
            });
        }
        for (id, url) in present {
            peers.entry(id).or_insert_with(|| {
                info!(self.context.logger, "new peer"; "peer" => id, "url" => url);
                self.start_peer(id, runtime)
            });
        }
    }

    fn start_peer(&self, id: u64, runtime: &Handle) -> Peer {
        let stop = self.context.shutdown.child_token();
        let losses = Arc::new(Losses {
            peer: id,
            inbox: self.context.inbox.clone(),
            throttle: Throttle::new(self.context.timing.heartbeat),
        });
        let start_lane = |kind, max_bytes| {
            let (queue, waiting) = queue(max_bytes);
            let lane = Lane::new(id, kind, waiting, Arc::clone(&losses), Arc::clone(&self.context));
            let stop = stop.clone();
            runtime.spawn(async move { stop.run_until_cancelled_owned(lane.run()).await });
            queue
        };
        let messages = start_lane(Kind::Messages, MAX_SMALL_BYTES);
        let appends = start_lane(Kind::Appends, MAX_APPEND_BYTES);
        Peer { messages, appends, losses, stop }
    }
}

/// Tells raft that messages to a peer were lost, once for a burst of losses.
pub(super) struct Losses {
    peer: u64,
    inbox: Inbox,
    throttle: Throttle,
}

impl Losses {
    pub(super) fn report(&self) {
        if self.throttle.pass() {
            self.inbox.internal(Event::Unreachable(self.peer));
        }
    }
}

/// Messages waiting for one stream: the raft task's end.
struct Queue {
    sender: mpsc::Sender<Queued>,
    bytes: Arc<AtomicUsize>,
    max_bytes: usize,
}

/// Messages waiting for one stream: the stream's end.
pub(super) struct Waiting {
    receiver: mpsc::Receiver<Queued>,
    bytes: Arc<AtomicUsize>,
}

struct Queued {
    message: Message,
    size: usize,
}

fn queue(max_bytes: usize) -> (Queue, Waiting) {
    let (sender, receiver) = mpsc::channel(MAX_QUEUED);
    let bytes = Arc::new(AtomicUsize::new(0));
    (Queue { sender, bytes: Arc::clone(&bytes), max_bytes }, Waiting { receiver, bytes })
}

impl Queue {
    /// False when the message was dropped. Only the raft task pushes, so
    /// looking at the count first cannot race.
    fn push(&self, message: Message) -> bool {
        let size = message.compute_size() as usize;
        if self.bytes.load(Ordering::Relaxed) + size > self.max_bytes {
            return false;
        }
        self.bytes.fetch_add(size, Ordering::Relaxed);
        let pushed = self.sender.try_send(Queued { message, size }).is_ok();
        if !pushed {
            self.bytes.fetch_sub(size, Ordering::Relaxed);
        }
        pushed
    }
}

impl Waiting {
    /// The next message; `None` once the peer is given up and nothing waits.
    pub(super) async fn next(&mut self) -> Option<Message> {
        let queued = self.receiver.recv().await?;
        Some(self.open(queued))
    }

    /// The next message, if one waits.
    pub(super) fn try_next(&mut self) -> Option<Message> {
        match self.receiver.try_recv() {
            Ok(queued) => Some(self.open(queued)),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
        }
    }

    /// Whether the peer was given up.
    pub(super) fn is_closed(&self) -> bool {
        self.receiver.is_closed()
    }

    /// Drops what waits.
    pub(super) fn clear(&mut self) {
        while self.try_next().is_some() {}
    }

    fn open(&self, queued: Queued) -> Message {
        self.bytes.fetch_sub(queued.size, Ordering::Relaxed);
        queued.message
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use raft::eraftpb::Entry;

    use super::*;

    fn append(bytes: usize) -> Message {
        let mut entry = Entry::default();
        entry.set_data(Bytes::from(vec![0; bytes]));
        let mut message = Message::default();
        message.mut_entries().push(entry);
        message
    }

    #[test]
    fn a_queue_is_bounded_in_bytes_and_taking_makes_room() {
        let (queue, mut waiting) = queue(1000);
        assert!(!queue.push(append(1000)), "alone too large");
        assert!(queue.push(append(600)));
        assert!(!queue.push(append(600)));
        assert!(waiting.try_next().is_some());
        assert!(queue.push(append(600)));
        waiting.clear();
        assert_eq!(queue.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_queue_is_bounded_in_messages() {
        let (queue, _waiting) = queue(usize::MAX);
        for _ in 0..MAX_QUEUED {
            assert!(queue.push(Message::default()));
        }
        assert!(!queue.push(Message::default()));
        assert_eq!(queue.bytes.load(Ordering::Relaxed), 0);
    }
}
