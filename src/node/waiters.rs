//! Who waits for which answer, of the raft task or of the apply thread.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    error::Rejected,
    proto::RequestId,
    replica::{Answer, Event},
    transport::{Inbox, Refused},
};

/// How long the raft task may take to say what became of a request that
/// timed out. It answers within a moment unless the process is stalled.
const VERDICT_PATIENCE: Duration = Duration::from_secs(1);

/// Independent tables, so that tasks and the raft task seldom meet.
const SHARDS: usize = 16;

type Shard = HashMap<RequestId, oneshot::Sender<Answer>>;

/// The requests under way in this process. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Waiters {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    member: u64,
    nonce: u64,
    sequence: AtomicU64,
    // Locks because tasks register, and the raft task and the apply thread complete;
    // each is held for one look-up.
    shards: [Mutex<Shard>; SHARDS],
}

impl Waiters {
    /// A table whose requests are named for this member and this start.
    pub fn new(member: u64, nonce: u64) -> Self {
        let shards = std::array::from_fn(|_| Mutex::default());
        Self { shared: Arc::new(Shared { member, nonce, sequence: AtomicU64::new(1), shards }) }
    }

    /// Gives a request its answer; nobody may be waiting any more.
    pub fn complete(&self, id: &RequestId, answer: Answer) {
        self.complete_with(id, || answer);
    }

    /// Gives a request its answer, which is made if somebody waits.
    pub fn complete_with(&self, id: &RequestId, answer: impl FnOnce() -> Answer) {
        let waiter = self.shard(id).lock().remove(id);
        if let Some(waiter) = waiter {
            // The waiting task may just have been dropped.
            let _gone = waiter.send(answer());
        }
    }

    /// A request that this member passes on, under a name of its own: its answer is
    /// what it comes to where this member applies it.
    pub fn passed_on(&self) -> Waiting<'_> {
        self.enter(self.next_id(), None)
    }

    /// Sends a request to the raft task and waits for its answer, until
    /// `deadline` and a moment longer to learn what became of it. A dropped
    /// call withdraws the request if it can still be.
    pub async fn ask(
        &self,
        inbox: &Inbox,
        deadline: Instant,
        event: impl FnOnce(RequestId) -> Event,
    ) -> Answer {
        self.ask_as(self.next_id(), inbox, deadline, event).await
    }

    /// As [`ask`](Self::ask), for a request that has its name from another member.
    pub async fn ask_as(
        &self,
        id: RequestId,
        inbox: &Inbox,
        deadline: Instant,
        event: impl FnOnce(RequestId) -> Event,
    ) -> Answer {
        let mut waiting = self.enter(id, Some(inbox));
        match inbox.request(event(id)) {
            Ok(()) => {}
            Err(Refused::Full) => {
                let why = "too many requests are waiting; try again later".to_owned();
                return Answer::Rejected(Rejected::Overloaded(why));
            }
            Err(Refused::Stopped) => return stopping(),
        }
        match timeout_at(deadline, waiting.answer()).await {
            Ok(answer) => return answer,
            Err(_) => inbox.internal(Event::Cancel(id)),
        }
        let verdict = timeout(VERDICT_PATIENCE, waiting.answer()).await;
        verdict.unwrap_or_else(|_| unanswered())
    }

    fn next_id(&self) -> RequestId {
        let Shared { member, nonce, sequence, .. } = &*self.shared;
        let sequence = sequence.fetch_add(1, Ordering::Relaxed);
        RequestId { member: *member, nonce: *nonce, sequence }
    }

    fn enter<'a>(&'a self, id: RequestId, asked: Option<&'a Inbox>) -> Waiting<'a> {
        let (sender, receiver) = oneshot::channel();
        self.shard(&id).lock().insert(id, sender);
        Waiting { waiters: self, id, receiver, asked }
    }

    fn shard(&self, id: &RequestId) -> &Mutex<Shard> {
        &self.shared.shards[(id.sequence % SHARDS as u64) as usize]
    }
}

/// A request that waits for its answer; it does no more when this is dropped.
pub(super) struct Waiting<'a> {
    waiters: &'a Waiters,
    pub id: RequestId,
    receiver: oneshot::Receiver<Answer>,
    /// The way to the raft task, if that was asked.
    asked: Option<&'a Inbox>,
}

impl Waiting<'_> {
    /// The answer. A dropped call may be repeated, one that has returned may not.
    pub async fn answer(&mut self) -> Answer {
        (&mut self.receiver).await.unwrap_or_else(|_| unanswered())
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let unanswered = self.waiters.shard(&self.id).lock().remove(&self.id).is_some();
        if unanswered && let Some(inbox) = self.asked {
            inbox.internal(Event::Cancel(self.id));
        }
    }
}

fn stopping() -> Answer {
    Answer::Rejected(Rejected::NotApplied("this node is stopping; ask another".to_owned()))
}

fn unanswered() -> Answer {
    let why = "this node stopped or stalled before the outcome was known".to_owned();
    Answer::Rejected(Rejected::Unknown(why))
}
