//! The task that owns the replica.
//!
//! A task among those of the members' streams, not a thread: what a peer sent is
//! handed to it, and what it says to a peer to a stream, without waking a thread
//! each time. It waits for no disk, but for raft's own reads of entries that are no
//! longer in memory.

use std::{
    pin::pin,
    sync::{Arc, mpsc::Sender},
    thread,
    time::Duration,
};

use parking_lot::RwLock;
use raft::eraftpb::Message;
use slog::Logger;
use tokio::{
    sync::watch,
    task::yield_now,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    apply_thread::{ApplyTask, Newest},
    handle::{Databases, Handle},
    lease_feed::LeaseFeed,
    waiters::Waiters,
};
use crate::{
    error::Fatal,
    proto::{Identity, LogPosition, Outcome},
    raftlog::Persist,
    replica::{self, Answer, Effect, Event, Replica, Role},
    storage::{Engine as _, rocks::RocksEngine},
    transport::{Directory, Inbox, Mailbox, Outboxes, PeerClient, snapshot},
};

/// Events taken in before what follows from them is carried out: enough to
/// share one entry and one fsync, few enough not to delay a heartbeat.
const MAX_RUN: usize = 4096;

/// How long a commit index waits for an append that brings it to the followers:
/// longer than a client takes to send its next write, and nothing to whoever
/// watches a follower.
const ANNOUNCE_AFTER: Duration = Duration::from_millis(1);

pub(super) struct RaftTask {
    pub replica: Replica<RocksEngine>,
    pub mailbox: Mailbox,
    pub tick: Duration,
    pub stop: CancellationToken,
    pub directory: Directory,
    pub outboxes: Outboxes,
    pub snapshots: SnapshotSender,
    pub databases: Arc<RwLock<Databases>>,
    pub waiters: Waiters,
    pub leases: LeaseFeed,
    pub role: watch::Sender<Role>,
    pub status: watch::Sender<Arc<replica::Status>>,
    /// Told when this member was removed.
    pub removed: Arc<dyn Fn() + Send + Sync>,
    // Last, because the threads that receive from them end when they are dropped, and
    // whoever waits for these may open the databases again.
    pub persist: Sender<Persist>,
    pub apply: Sender<ApplyTask>,
}

impl RaftTask {
    /// Runs until told to stop.
    pub async fn run(mut self) -> Result<(), Fatal> {
        let mut stopped = pin!(self.stop.clone().cancelled_owned());
        let mut next_tick = Instant::now() + self.tick;
        let mut alarm = pin!(sleep_until(next_tick));
        let mut announce_at: Option<Instant> = None;
        let mut effects = Vec::new();
        // The directory has it since before this task was started.
        let mut told = self.replica.promises();
        loop {
            let event = tokio::select! {
                biased;
                () = stopped.as_mut() => return Ok(()),
                Some(event) = self.mailbox.recv() => Some(event),
                () = alarm.as_mut() => None,
            };
            if let Some(event) = event {
                self.replica.handle(event, &mut effects)?;
                for _ in 1..MAX_RUN {
                    let Ok(event) = self.mailbox.try_recv() else { break };
                    self.replica.handle(event, &mut effects)?;
                }
            }
            let now = Instant::now();
            if now >= next_tick {
                self.replica.handle(Event::Tick, &mut effects)?;
                self.leases.tick();
                // After a pause of the process the lost ticks stay lost: the
                // messages that wait must be seen before an election starts.
                next_tick = (next_tick + self.tick).max(now);
            }
            if announce_at.is_some_and(|at| now >= at) {
                self.replica.handle(Event::Announce, &mut effects)?;
            }
            self.replica.flush(&mut effects)?;
            let is_to_announce = self.replica.is_to_announce();
            announce_at = is_to_announce
                .then(|| announce_at.filter(|at| *at > now).unwrap_or(now + ANNOUNCE_AFTER));
            let next = announce_at.map_or(next_tick, |at| next_tick.min(at));
            if alarm.deadline() != next {
                alarm.as_mut().reset(next);
            }
            let (own, others) = self.replica.promises();
            if own != told.0 || !Arc::ptr_eq(&others, &told.1) {
                told = (own, others);
                self.directory.witness(own, Arc::clone(&told.1));
            }
            let sends = effects.iter().any(|effect| matches!(effect, Effect::Send(_)));
            for effect in effects.drain(..) {
                self.execute(effect);
            }
            self.status.send_replace(Arc::new(self.replica.status()));
            if sends {
                // The streams go first, however much there is to take in.
                yield_now().await;
            }
        }
    }

    fn execute(&mut self, effect: Effect) {
        match effect {
            Effect::Send(message) => self.outboxes.send(message),
            Effect::SendSnapshot(message) => self.snapshots.send(message),
            // A receiver that is gone has reported why; this task is about to be
            // stopped.
            Effect::Persist(persist) => drop(self.persist.send(persist)),
            Effect::Apply(entries) => drop(self.apply.send(ApplyTask::Apply(entries))),
            Effect::MakeSnapshot => self.make_snapshot(),
            Effect::Restore(position) => drop(self.apply.send(ApplyTask::Restore(position))),
            // The apply thread has given it.
            Effect::Answer(_, Answer::Outcome(Outcome { result: None, .. })) => {}
            Effect::Answer(id, answer) => self.waiters.complete(&id, answer),
            Effect::Role(role) => {
                self.leases.role(&role);
                self.role.send_replace(role);
            }
            Effect::Removed => (self.removed)(),
        }
    }

    /// Has a snapshot made once most of the state is durable, which takes long
    /// and needs nobody to stand still: the apply thread then has little to add.
    fn make_snapshot(&self) {
        let (state, apply) = (self.databases.read().state.clone(), self.apply.clone());
        let flush = move || {
            // What failed fails the apply thread, too, which says so.
            let _told_there = state.flush();
            // Whoever waits for the apply thread to end may open it again.
            drop(state);
            drop(apply.send(ApplyTask::MakeSnapshot));
        };
        if thread::Builder::new().name("flush".to_owned()).spawn(flush).is_err() {
            drop(self.apply.send(ApplyTask::MakeSnapshot));
        }
    }
}

/// Sends snapshots, each in a task of its own, and reports every outcome.
pub(super) struct SnapshotSender {
    pub identity: Identity,
    pub directory: Directory,
    pub client: PeerClient,
    pub newest: Newest,
    /// Told when a snapshot turns out to be damaged.
    pub handle: Handle,
    pub inbox: Inbox,
    pub runtime: tokio::runtime::Handle,
    pub logger: Logger,
}

impl SnapshotSender {
    fn send(&self, message: Message) {
        let metadata = message.get_snapshot().get_metadata();
        let position = LogPosition { index: metadata.index, term: metadata.term };
        let to = message.to;
        let inbox = self.inbox.clone();
        let report = move |success| inbox.internal(Event::SnapshotSent { to, position, success });
        let made = match &*self.newest.lock() {
            Some((index, made)) if *index == position.index => Arc::clone(made),
            // A newer one took its place; raft asks again.
            _ => return report(false),
        };
        let Some(url) = self.directory.peer_url(to) else { return report(false) };
        if self.handle.is_accused() {
            // Whoever leads next sends its own.
            return report(false);
        }
        let transfer =
            snapshot::Transfer { url, identity: self.identity, message, dir: made.dir.clone() };
        let (client, logger) = (self.client.clone(), self.logger.clone());
        let handle = self.handle.clone();
        self.runtime.spawn(async move {
            let suspect = Arc::clone(&made);
            match tokio::task::spawn_blocking(move || suspect.verify()).await {
                Ok(Ok(())) => {}
                Ok(Err(fatal)) => return handle.fail(fatal),
                // The runtime is about to end.
                Err(_) => return report(false),
            }
            let outcome = tokio::select! {
                outcome = snapshot::send(&client, transfer) => outcome,
                true = handle.until_accused(true) => {
                    Err("the CORRUPT alarm names this member".to_owned())
                }
            };
            if let Err(why) = &outcome {
                slog::warn!(
                    logger,
                    "cannot send the snapshot of index {} to member {to}: {why}",
                    position.index
                );
            }
            drop(made);
            report(outcome.is_ok());
        });
    }
}
