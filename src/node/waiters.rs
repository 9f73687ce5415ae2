//! Who waits for which answer of the raft task.

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
    // Locks because tasks register and the raft task completes; each is held
    // for one look-up.
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
        if let Some(waiter) = self.shard(id).lock().remove(id) {
            // The waiting task may just have been dropped.
            let _gone = waiter.send(answer);
        }
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
        let shared = &self.shared;
        let sequence = shared.sequence.fetch_add(1, Ordering::Relaxed);
        let id = RequestId { member: shared.member, nonce: shared.nonce, sequence };
        let (sender, mut receiver) = oneshot::channel();
        self.shard(&id).lock().insert(id, sender);
        let _withdraw = Withdraw { waiters: self, inbox, id };
        match inbox.request(event(id)) {
            Ok(()) => {}
            Err(Refused::Full) => {
                let why = "too many requests are waiting; try again later".to_owned();
                return Answer::Rejected(Rejected::Overloaded(why));
            }
            Err(Refused::Stopped) => return stopping(),
        }
        match timeout_at(deadline, &mut receiver).await {
            Ok(answer) => return answer.unwrap_or_else(|_| unanswered()),
            Err(_) => inbox.internal(Event::Cancel(id)),
        }
        match timeout(VERDICT_PATIENCE, receiver).await {
            Ok(Ok(answer)) => answer,
            _ => unanswered(),
        }
    }

    fn shard(&self, id: &RequestId) -> &Mutex<Shard> {
        &self.shared.shards[(id.sequence % SHARDS as u64) as usize]
    }
}

/// Withdraws a request whose call ended before its answer came.
struct Withdraw<'a> {
    waiters: &'a Waiters,
    inbox: &'a Inbox,
    id: RequestId,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        if self.waiters.shard(&self.id).lock().remove(&self.id).is_some() {
            self.inbox.internal(Event::Cancel(self.id));
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
