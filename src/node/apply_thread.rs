//! The only writer of the state database.

use std::{
    sync::{Arc, mpsc::Receiver},
    time::Instant,
};

use parking_lot::{Mutex, RwLock};
use raft::eraftpb::Entry;
use slog::Logger;
use tokio::sync::watch;

use super::{
    applied::Applied,
    check_thread::{Marked, Marks},
    data_dir::{DataDir, MadeSnapshot},
    handle::Databases,
    lease_feed::LeaseFeed,
    waiters::Waiters,
    watch_feed::WatchFeed,
};
use crate::{
    error::Fatal,
    machine::{AppliedBatch, Changes, StateMachine},
    metrics::Metrics,
    proto::{Alarms, LogPosition, Outcome},
    raftlog,
    replica::{Answer, Event, Restored, SnapshotMade},
    storage::rocks::RocksEngine,
    transport::{Directory, Inbox},
};

/// What the raft task wants of the state machine, in order.
#[derive(Debug)]
pub(super) enum ApplyTask {
    Apply(Vec<Entry>),
    MakeSnapshot,
    Restore(LogPosition),
}

/// The newest snapshot that can be sent, by its index. A transfer under way
/// keeps the one it sends. A lock because the apply thread makes snapshots and
/// the raft task sends them.
pub(super) type Newest = Arc<Mutex<Option<(u64, Arc<MadeSnapshot>)>>>;

pub(super) struct ApplyThread {
    pub machine: StateMachine<RocksEngine>,
    pub data_dir: DataDir,
    pub tasks: Receiver<ApplyTask>,
    pub inbox: Inbox,
    pub directory: Directory,
    pub databases: Arc<RwLock<Databases>>,
    /// The last entry that was applied.
    pub applied: Arc<Applied>,
    pub waiters: Waiters,
    pub newest: Newest,
    pub leases: LeaseFeed,
    pub watch_feed: WatchFeed,
    pub alarms: watch::Sender<Arc<Alarms>>,
    pub marks: Marks,
    pub metrics: Metrics,
    pub logger: Logger,
}

impl ApplyThread {
    /// Applies until the raft task is gone, then makes everything durable,
    /// so that the next start has nothing to replay.
    pub fn run(mut self) -> Result<(), Fatal> {
        while let Ok(mut task) = self.tasks.recv() {
            loop {
                let mut next = None;
                match task {
                    ApplyTask::Apply(mut entries) => {
                        next = self.gather(&mut entries);
                        self.apply(&entries)?;
                    }
                    ApplyTask::MakeSnapshot => self.make_snapshot()?,
                    ApplyTask::Restore(position) => self.restore(position)?,
                }
                let Some(following) = next else { break };
                task = following;
            }
        }
        self.machine.flush()
    }

    /// Takes in the entries that wait already, for one batch with the first.
    /// Gives back the task that ended the run.
    fn gather(&self, entries: &mut Vec<Entry>) -> Option<ApplyTask> {
        /// Entries in one batch, so that answers are not kept waiting.
        const MAX_ENTRIES: usize = 1024;
        while entries.len() < MAX_ENTRIES {
            match self.tasks.try_recv() {
                Ok(ApplyTask::Apply(more)) => entries.extend(more),
                Ok(other) => return Some(other),
                Err(_) => return None,
            }
        }
        None
    }

    fn apply(&mut self, mut entries: &[Entry]) -> Result<(), Fatal> {
        while !entries.is_empty() {
            let applied = self.apply_batch(entries)?;
            entries = entries.get(applied..).unwrap_or_default();
        }
        Ok(())
    }

    /// Applies some of the entries, at least one; how many.
    fn apply_batch(&mut self, entries: &[Entry]) -> Result<usize, Fatal> {
        let begun = Instant::now();
        let mut batch = self.machine.apply(entries)?;
        let applied = batch.entries.len().max(1);
        self.metrics.apply_seconds.observe(begun.elapsed().as_secs_f64());
        if let Some(members) = &batch.members {
            self.directory.set(Arc::clone(members));
        }
        if let Some(alarms) = &batch.alarms {
            self.alarms.send_replace(Arc::clone(alarms));
        }
        // Before any answer that follows from it.
        self.leases.applied(batch.position.index, &batch.changes.leases);
        // Before anybody is told that something is applied.
        let Changes { revision, compacted, .. } = batch.changes;
        let revisions = std::mem::take(&mut batch.changes.revisions);
        self.watch_feed.applied(Changes { revisions, leases: Vec::new(), revision, compacted });
        let mark = batch.mark;
        self.applied.raise(batch.position.index);
        self.answer(&mut batch);
        self.inbox.internal(Event::Applied(batch));
        if let Some(position) = mark {
            let marked = Marked { position, members: self.machine.members() };
            self.marks.reached(marked, self.machine.view(), &self.logger);
        }
        Ok(applied)
    }

    /// Answers those who wait on this member for what was applied: by the raft task,
    /// which keeps account of them, it would be a thread later. What the replica has to
    /// take over first is left to it.
    fn answer(&self, batch: &mut AppliedBatch) {
        if batch.members.is_some() || batch.alarms.is_some() {
            return;
        }
        for entry in &mut batch.entries {
            let index = entry.position.index;
            for (id, outcome) in &mut entry.outcomes {
                self.waiters.complete_with(id, || {
                    Answer::Outcome(Outcome { index, ..std::mem::take(outcome) })
                });
            }
        }
    }

    fn make_snapshot(&mut self) -> Result<(), Fatal> {
        let begun = Instant::now();
        let position = self.machine.position();
        let present = self.newest.lock().as_ref().map(|(index, _)| *index);
        if present != Some(position.index) {
            let snapshot = self.data_dir.made(position.index);
            self.machine.engine().checkpoint(&snapshot.dir)?;
            *self.newest.lock() = Some((position.index, Arc::new(snapshot)));
        }
        slog::info!(
            self.logger,
            "made a snapshot of index {} in {:?}",
            position.index,
            begun.elapsed()
        );
        let members = self.machine.members();
        self.inbox.internal(Event::SnapshotMade(SnapshotMade { position, members }));
        Ok(())
    }

    fn restore(&mut self, position: LogPosition) -> Result<(), Fatal> {
        let name = raftlog::state_dir(position.index);
        let engine = self.data_dir.open_received(&name)?;
        let machine = StateMachine::open(engine.clone())?;
        let (members, alarms) = (machine.members(), machine.alarms());
        let own_cluster = self.directory.identity().cluster_id;
        if machine.position() != position || members.cluster_id != own_cluster {
            return Err(Fatal::corrupt(format!(
                "the installed snapshot is of {:?} in cluster {}, not of {position:?} in \
                 cluster {own_cluster}",
                machine.position(),
                members.cluster_id
            )));
        }
        {
            let mut databases = self.databases.write();
            databases.state = engine;
            databases.view = machine.view();
        }
        self.leases.restored();
        self.watch_feed.jumped(machine.revision(), machine.view().compacted()?);
        // Requests may still be reading it.
        self.machine.engine().delete_when_closed();
        self.machine = machine;
        self.newest.lock().take();
        self.directory.set(Arc::clone(&members));
        self.alarms.send_replace(Arc::clone(&alarms));
        slog::info!(self.logger, "installed the snapshot of index {}", position.index);
        self.applied.raise(position.index);
        self.inbox.internal(Event::Restored(Restored { position, members, alarms }));
        Ok(())
    }
}
