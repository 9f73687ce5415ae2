//! The way into the raft task.
//!
//! One queue, so that the raft task waits in one place. The queue itself has
//! no bound, because an event that confirms an effect may never be refused:
//! the replica would wait for it for ever. There is at most one such event for
//! each effect in flight, which the replica bounds. What comes from outside is
//! counted, and refused when too much of it waits.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::Message;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender, error::TryRecvError};

use crate::replica::Event;

/// Bytes of peers' messages that may wait: one frame of the largest size, or
/// what a leader keeps in flight to a follower. Raft sends again what is
/// refused.
pub const MAX_PEER_BYTES: usize = 64 << 20;

/// Client requests that may wait. At this depth each would wait for longer
/// than a client is willing to, so refusing at once is kinder.
pub const MAX_REQUESTS: usize = 65_536;

/// Bytes of client requests that may wait: at least eight of the largest
/// request, so that a few large ones do not shut out everybody else.
pub const MAX_REQUEST_BYTES: usize = 128 << 20;

/// What a peer's message costs in memory beside its own bytes.
const MESSAGE_OVERHEAD_BYTES: usize = 512;

/// What a request costs beside its own bytes.
const REQUEST_OVERHEAD_BYTES: usize = 64;

/// Why an event was not queued. It surely has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Too many requests, or too many of their bytes, wait already.
    Full,
    /// The raft task has ended.
    Stopped,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "too many requests are waiting",
            Self::Stopped => "the node is stopping",
        })
    }
}

impl std::error::Error for Refused {}

/// The sending side; clones feed the same queue.
#[derive(Debug, Clone)]
pub struct Inbox {
    sender: UnboundedSender<Queued>,
    waiting: Arc<Waiting>,
}

/// The receiving side, for the raft task.
#[derive(Debug)]
pub struct Mailbox {
    receiver: UnboundedReceiver<Queued>,
    waiting: Arc<Waiting>,
}

#[derive(Debug)]
struct Queued {
    event: Event,
    charge: Charge,
}

/// What an event counts for until it is received.
#[derive(Debug, Clone, Copy)]
enum Charge {
    Nothing,
    Peer(usize),
    Request(usize),
}

#[derive(Debug, Default)]
struct Waiting {
    peer_bytes: AtomicUsize,
    requests: AtomicUsize,
    request_bytes: AtomicUsize,
}

/// A queue and its two ends.
pub fn channel() -> (Inbox, Mailbox) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let waiting = Arc::new(Waiting::default());
    (Inbox { sender, waiting: Arc::clone(&waiting) }, Mailbox { receiver, waiting })
}

impl Inbox {
    /// Queues a peer's message. False when it was refused, because more than
    /// [`MAX_PEER_BYTES`] wait or because the raft task has ended.
    pub fn message(&self, message: Message) -> bool {
        let bytes = message.compute_size() as usize + MESSAGE_OVERHEAD_BYTES;
        if !take(&self.waiting.peer_bytes, bytes, MAX_PEER_BYTES) {
            return false;
        }
        self.put(Event::Message(Box::new(message)), Charge::Peer(bytes)).is_ok()
    }

    /// Queues a client's request.
    ///
    /// # Errors
    /// When more than [`MAX_REQUESTS`] or [`MAX_REQUEST_BYTES`] wait, or the
    /// raft task has ended.
    pub fn request(&self, event: Event) -> Result<(), Refused> {
        let bytes = match &event {
            Event::Propose(command) | Event::ProposeFor(_, command) => {
                command.encoded_len() + REQUEST_OVERHEAD_BYTES
            }
            _ => REQUEST_OVERHEAD_BYTES,
        };
        if !take(&self.waiting.requests, 1, MAX_REQUESTS) {
            return Err(Refused::Full);
        }
        if !take(&self.waiting.request_bytes, bytes, MAX_REQUEST_BYTES) {
            self.waiting.requests.fetch_sub(1, Ordering::Relaxed);
            return Err(Refused::Full);
        }
        self.put(event, Charge::Request(bytes))
    }

    /// Queues what happened inside this process. Never refused; lost only when
    /// the raft task has ended.
    pub fn internal(&self, event: Event) {
        let _stopped = self.put(event, Charge::Nothing);
    }

    fn put(&self, event: Event, charge: Charge) -> Result<(), Refused> {
        self.sender.send(Queued { event, charge }).map_err(|_| {
            self.waiting.release(charge);
            Refused::Stopped
        })
    }
}

impl Mailbox {
    /// The next event; `None` when every [`Inbox`] is gone.
    pub async fn recv(&mut self) -> Option<Event> {
        let queued = self.receiver.recv().await?;
        Some(self.open(queued))
    }

    /// The next event, if there is one already.
    ///
    /// # Errors
    /// When none waits, or every [`Inbox`] is gone.
    pub fn try_recv(&mut self) -> Result<Event, TryRecvError> {
        let queued = self.receiver.try_recv()?;
        Ok(self.open(queued))
    }

    fn open(&self, queued: Queued) -> Event {
        self.waiting.release(queued.charge);
        queued.event
    }
}

impl Waiting {
    fn release(&self, charge: Charge) {
        match charge {
            Charge::Nothing => {}
            Charge::Peer(bytes) => {
                self.peer_bytes.fetch_sub(bytes, Ordering::Relaxed);
            }
            Charge::Request(bytes) => {
                self.requests.fetch_sub(1, Ordering::Relaxed);
                self.request_bytes.fetch_sub(bytes, Ordering::Relaxed);
            }
        }
    }
}

/// Adds `amount` to a count unless that would pass its bound.
fn take(count: &AtomicUsize, amount: usize, bound: usize) -> bool {
    count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(amount).filter(|total| *total <= bound)
        })
        .is_ok()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use raft::eraftpb::Entry;

    use super::*;
    use crate::proto::{Command, Put, RequestId, command::Op};

    fn append(bytes: usize) -> Message {
        let mut entry = Entry::default();
        entry.set_data(Bytes::from(vec![0; bytes]));
        let mut message = Message::default();
        message.mut_entries().push(entry);
        message
    }

    fn read(sequence: u64) -> Event {
        Event::Read(RequestId { member: 1, nonce: 1, sequence })
    }

    #[test]
    fn peers_messages_are_bounded_in_bytes_and_receiving_releases_them() {
        let (inbox, mut mailbox) = channel();
        let mut admitted = 0;
        while inbox.message(append(8 << 20)) {
            admitted += 1;
        }
        assert_eq!(admitted, MAX_PEER_BYTES / (8 << 20) - 1, "each is a little over 8 MiB");
        inbox.internal(Event::Persisted(1));
        assert!(mailbox.try_recv().is_ok());
        assert!(inbox.message(append(8 << 20)));
    }

    #[test]
    fn requests_are_bounded_in_number_but_internal_events_are_not() {
        let (inbox, mut mailbox) = channel();
        for sequence in 0..MAX_REQUESTS as u64 {
            assert_eq!(inbox.request(read(sequence)), Ok(()));
        }
        assert_eq!(inbox.request(read(0)), Err(Refused::Full));
        inbox.internal(Event::Tick);
        assert!(matches!(mailbox.try_recv(), Ok(Event::Read(id)) if id.sequence == 0));
        assert_eq!(inbox.request(read(0)), Ok(()));
    }

    #[test]
    fn requests_are_bounded_in_bytes() {
        let (inbox, mut mailbox) = channel();
        let large = || {
            let put = Put { value: Bytes::from(vec![0; 16 << 20]), ..Put::default() };
            Event::Propose(Command { id: None, op: Some(Op::Put(put)) })
        };
        let admitted = (0..100).take_while(|_| inbox.request(large()).is_ok()).count();
        assert_eq!(admitted, MAX_REQUEST_BYTES / (16 << 20) - 1, "each is a little over 16 MiB");
        assert_eq!(inbox.request(read(1)), Ok(()), "a refused request leaves no count behind");
        for _ in 0..=admitted {
            assert!(mailbox.try_recv().is_ok());
        }
        assert!(mailbox.try_recv().is_err());
        assert_eq!(mailbox.waiting.requests.load(Ordering::Relaxed), 0);
        assert_eq!(mailbox.waiting.request_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn after_the_raft_task_everything_is_refused() {
        let (inbox, mailbox) = channel();
        drop(mailbox);
        assert_eq!(inbox.request(read(1)), Err(Refused::Stopped));
        assert!(!inbox.message(append(1)));
        inbox.internal(Event::Tick);
        assert_eq!(inbox.waiting.peer_bytes.load(Ordering::Relaxed), 0);
    }
}
