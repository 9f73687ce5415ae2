//! From stored state to running threads.

use std::{
    sync::{Arc, mpsc},
    thread,
};

use parking_lot::RwLock;
use tokio::sync::watch;

use super::{
    Parts,
    applied::Applied,
    apply_thread::{ApplyThread, Newest},
    check_thread::{CheckThread, Wiring},
    checking::Checking,
    handle::{Databases, Phase, Running},
    lease_feed::LeaseFeed,
    lease_pump::Asking,
    log_thread::LogThread,
    raft_task::{RaftTask, SnapshotSender},
    soundness::Soundness,
    waiters::Waiters,
    watch_feed::WatchFeed,
    watching::Watching,
};
use crate::{
    config::HEARTBEAT_TICKS,
    error::Fatal,
    lease,
    machine::{self, StateMachine, View},
    proto::Identity,
    raftlog::{LogWriter, Persist, RaftLog, Recovered, Watermark},
    replica::{Options, Replica},
    storage::rocks::RocksEngine,
    transport::{self, Directory, Inbox, Outboxes},
    watch::Options as WatchOptions,
};

/// What a member runs all the time, the raft task among it.
type Threads = (LogThread, ApplyThread, RaftTask, CheckThread);

impl Parts {
    /// Opens the live state database of a member.
    pub(super) fn open_state(
        &self,
        identity: &Identity,
        recovered: &Recovered,
    ) -> Result<StateMachine<RocksEngine>, Fatal> {
        let live = recovered.live_state.as_deref().ok_or_else(|| {
            Fatal::corrupt("the raft database does not say which state directory is live")
        })?;
        let machine = StateMachine::open(self.data_dir.open_state(live)?)?;
        let members = machine.members();
        if members.cluster_id != 0 && members.cluster_id != identity.cluster_id {
            return Err(Fatal::corrupt(format!(
                "the state directory {live} belongs to cluster {}, the raft database to {}",
                members.cluster_id, identity.cluster_id
            )));
        }
        Ok(machine)
    }

    /// Starts the threads; from here on this member takes part.
    pub(super) fn run(
        self: &Arc<Self>,
        identity: Identity,
        recovered: Recovered,
        machine: StateMachine<RocksEngine>,
    ) -> Result<(), Fatal> {
        let (inbox, mailbox) = transport::inbox::channel();
        let directory = directory(identity, &recovered, &machine);
        let (databases, applied) = self.databases(&machine);
        let (newest, leases, nonce) = (Newest::default(), LeaseFeed::default(), rand::random());
        let (lease_sender, lease_questions) = tokio::sync::mpsc::channel(lease::MAX_WAITING);
        let ((persist, persist_tasks), (apply, apply_tasks)) = (mpsc::channel(), mpsc::channel());
        let log_thread = self.log_thread(&recovered, persist_tasks, &inbox)?;
        let replica = self.replica(&recovered, &machine, nonce)?;
        let (alarms, soundness) = Soundness::new(self.config.id, machine.alarms());
        let (watch_feed, watching) = self.watching(&machine, &databases, soundness.clone())?;
        let (waiters, check) = (Waiters::new(self.config.id, nonce), self.check_wiring());
        let apply_thread = ApplyThread {
            machine,
            data_dir: self.data_dir.clone(),
            tasks: apply_tasks,
            inbox: inbox.clone(),
            directory: directory.clone(),
            databases: Arc::clone(&databases),
            applied: Arc::clone(&applied),
            waiters: waiters.clone(),
            newest: Arc::clone(&newest),
            leases: leases.clone(),
            watch_feed,
            alarms,
            marks: check.marks,
            metrics: self.metrics.clone(),
            logger: self.logger.clone(),
        };
        let (role, role_receiver) = watch::channel(replica.status().role);
        let (status, status_receiver) = watch::channel(Arc::new(replica.status()));
        let raft_task = RaftTask {
            replica,
            mailbox,
            tick: self.config.heartbeat_interval,
            stop: self.stop.clone(),
            persist,
            apply,
            directory: directory.clone(),
            outboxes: self.outboxes(&directory, &inbox),
            snapshots: self.snapshot_sender(&directory, &inbox, newest),
            databases: Arc::clone(&databases),
            waiters: waiters.clone(),
            leases: leases.clone(),
            role,
            status,
            removed: Arc::clone(&self.removed),
        };
        let threads = (log_thread, apply_thread, raft_task, check.thread);
        let running = Running {
            identity,
            inbox,
            directory,
            waiters,
            leases: lease_sender,
            role: role_receiver,
            status: status_receiver,
            view: databases,
            applied,
            watching,
            soundness,
            reports: check.reports,
        };
        self.start_all(threads, running, leases, lease_questions, check.checking)
    }

    /// Starts the threads, lets requests in, and starts what a member does beside.
    fn start_all(
        self: &Arc<Self>,
        threads: Threads,
        running: Running,
        leases: LeaseFeed,
        lease_questions: tokio::sync::mpsc::Receiver<Asking>,
        checking: Checking,
    ) -> Result<(), Fatal> {
        self.spawn_all(threads)?;
        let running = Arc::new(running);
        self.handle.shared.phase.send_replace(Phase::Running(Arc::clone(&running)));
        self.start_lease_keeper(Arc::clone(&running), leases, lease_questions);
        self.start_checking(Arc::clone(&running), checking);
        self.start_upkeep(running);
        Ok(())
    }

    /// The databases, and the last entry that is applied to them.
    fn databases(
        &self,
        machine: &StateMachine<RocksEngine>,
    ) -> (Arc<RwLock<Databases>>, Arc<Applied>) {
        let databases = Databases {
            raft: self.raft.clone(),
            state: machine.engine().clone(),
            view: machine.view(),
        };
        (Arc::new(RwLock::new(databases)), Arc::new(Applied::new(machine.position().index)))
    }

    fn replica(
        &self,
        recovered: &Recovered,
        machine: &StateMachine<RocksEngine>,
        nonce: u64,
    ) -> Result<Replica<RocksEngine>, Fatal> {
        let (members, alarms) = (machine.members(), machine.alarms());
        let applied = machine.position();
        let conf_state = machine::conf_state(&members);
        let log = RaftLog::open(self.raft.clone(), recovered, conf_state, &applied)?;
        let options = Options {
            election_ticks: self.config.election_ticks(),
            heartbeat_ticks: HEARTBEAT_TICKS,
            snapshot_count: self.config.snapshot_count,
            ..Options::new(self.config.id, nonce, rand::random())
        };
        Replica::new(options, log, applied, members, alarms, self.logger.clone())
    }

    /// Before the replica: it compares the log with its watermark.
    fn log_thread(
        &self,
        recovered: &Recovered,
        tasks: mpsc::Receiver<Persist>,
        inbox: &Inbox,
    ) -> Result<LogThread, Fatal> {
        Ok(LogThread {
            writer: LogWriter::new(self.raft.clone(), recovered),
            watermark: Watermark::open(self.data_dir.watermark(), recovered)?,
            data_dir: self.data_dir.clone(),
            tasks,
            inbox: inbox.clone(),
            metrics: self.metrics.clone(),
            last: recovered.last,
        })
    }

    /// Starts the task that serves watches.
    fn watching(
        &self,
        machine: &StateMachine<RocksEngine>,
        databases: &Arc<RwLock<Databases>>,
        soundness: Soundness,
    ) -> Result<(WatchFeed, Watching), Fatal> {
        let feed = WatchFeed::new(machine.revision(), machine.view().compacted()?);
        let databases = Arc::clone(databases);
        let view: Arc<dyn Fn() -> View<RocksEngine> + Send + Sync> =
            Arc::new(move || databases.read().view.clone());
        let options = WatchOptions::default();
        let (metrics, cancel) = (self.metrics.clone(), self.cancel.clone());
        let (watching, pump) =
            Watching::new(options, feed.clone(), view, soundness, metrics, cancel);
        self.spawn_task(pump.run());
        Ok((feed, watching))
    }

    fn outboxes(&self, directory: &Directory, inbox: &Inbox) -> Outboxes {
        Outboxes::start(
            directory.clone(),
            inbox.clone(),
            self.client.clone(),
            self.timing(),
            self.on_dismissed(),
            self.cancel.clone(),
            self.logger.clone(),
        )
    }

    fn snapshot_sender(
        &self,
        directory: &Directory,
        inbox: &Inbox,
        newest: Newest,
    ) -> SnapshotSender {
        SnapshotSender {
            identity: *directory.identity(),
            directory: directory.clone(),
            client: self.client.clone(),
            newest,
            handle: self.handle.clone(),
            inbox: inbox.clone(),
            runtime: tokio::runtime::Handle::current(),
            logger: self.logger.clone(),
        }
    }

    fn check_wiring(&self) -> Wiring {
        let (stop, metrics) = (self.stop.clone(), self.metrics.clone());
        Wiring::new(self.config.id, stop, metrics, self.logger.clone())
    }

    fn spawn_all(&self, (log, apply, raft, check): Threads) -> Result<(), Fatal> {
        self.spawn("log", move || log.run())?;
        self.spawn("check", move || check.run())?;
        self.spawn("apply", move || apply.run())?;
        self.spawn_task(raft.run());
        Ok(())
    }

    /// Starts a task whose error stops the node.
    fn spawn_task(&self, run: impl Future<Output = Result<(), Fatal>> + Send + 'static) {
        let handle = self.handle.clone();
        tokio::spawn(async move {
            if let Err(fatal) = run.await {
                handle.fail(fatal);
            }
        });
    }

    /// Starts a thread whose error stops the node.
    fn spawn(
        &self,
        name: &str,
        run: impl FnOnce() -> Result<(), Fatal> + Send + 'static,
    ) -> Result<(), Fatal> {
        let handle = self.handle.clone();
        let body = move || {
            if let Err(fatal) = run() {
                handle.fail(fatal);
            }
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(body).map_err(|e| {
            Fatal::new(
                format!("cannot start the {name} thread: {e}"),
                "raise the limits on threads and memory of this user",
            )
        })?;
        self.threads.lock().push(thread);
        Ok(())
    }
}

/// Who the peers are and what they have promised, as of the start.
fn directory(
    identity: Identity,
    recovered: &Recovered,
    machine: &StateMachine<RocksEngine>,
) -> Directory {
    let directory = Directory::new(identity, machine.members());
    directory.witness(recovered.promises(), Arc::new(recovered.witnessed.clone()));
    directory
}
