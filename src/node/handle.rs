//! What an API sees of a node.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use parking_lot::RwLock;
use raft::StateRole;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};

use super::{
    applied::Applied, forwarding::Start, lease_pump::Asking, soundness::Soundness,
    waiters::Waiters, watching::Watching,
};
use crate::{
    check::Report,
    error::{Fatal, Rejected},
    machine::{self, View, command},
    proto::{Command, Identity, Members, Outcome, command::Op, forward_request},
    replica::{self, Answer, Event, Role},
    storage::{
        Engine as _,
        rocks::{RocksEngine, RocksMetrics},
    },
    transport::{Directory, Inbox, PeerClient},
    version::PROTOCOL,
};

/// The node, for those who bring requests. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub id: u64,
    pub request_timeout: Duration,
    pub election_timeout: Duration,
    pub started: StdInstant,
    pub phase: watch::Sender<Phase>,
    /// Whoever reports a fatal error stops the node.
    pub fatal: mpsc::UnboundedSender<Fatal>,
    pub scratch_dir: PathBuf,
    /// Passes on what clients ask for.
    pub client: PeerClient,
}

/// How far the start has come.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    /// Not yet in a cluster; the text says what is waited for.
    Forming(String),
    /// A member.
    Running(Arc<Running>),
    /// On the way out.
    Stopping,
}

/// What a member of a cluster has.
#[derive(Debug)]
pub(super) struct Running {
    pub identity: Identity,
    pub inbox: Inbox,
    pub directory: Directory,
    pub waiters: Waiters,
    /// The way to the lease keeper.
    pub leases: mpsc::Sender<Asking>,
    pub role: watch::Receiver<Role>,
    pub status: watch::Receiver<Arc<replica::Status>>,
    // A lock because an installed snapshot replaces the database under the
    // readers; held for a clone.
    pub view: Arc<RwLock<Databases>>,
    /// The last entry that the view shows.
    pub applied: Arc<Applied>,
    pub watching: Watching,
    pub soundness: Soundness,
    /// The way to the comparison of states, for what members report.
    pub reports: mpsc::Sender<Report>,
}

/// The databases as readers see them.
#[derive(Debug, Clone)]
pub(super) struct Databases {
    pub raft: RocksEngine,
    pub state: RocksEngine,
    pub view: View<RocksEngine>,
}

/// A node's view of itself and its cluster.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// This member's id.
    pub id: u64,
    /// The cluster's id, 0 while forming.
    pub cluster_id: u64,
    /// `leader`, `follower`, `candidate`, `learner` or `forming`.
    pub role: &'static str,
    /// The leader's id, 0 when unknown.
    pub leader_id: u64,
    /// Raft's term.
    pub term: u64,
    /// Index of the last entry known to be committed.
    pub commit_index: u64,
    /// Index of the last applied entry.
    pub applied_index: u64,
    /// Index of the first entry in the log.
    pub first_index: u64,
    /// Index of the last entry in the log.
    pub last_index: u64,
    /// Index of the newest snapshot.
    pub snapshot_index: u64,
    /// The store's revision.
    pub revision: u64,
    /// Whether this member is a learner.
    pub learner: bool,
    /// Time since the process started.
    pub uptime: Duration,
    /// Bytes both databases occupy.
    pub db_size_bytes: u64,
    /// Commands waiting for their answer.
    pub pending_proposals: u64,
    /// On the leader, what it knows of each member.
    pub peers: Vec<PeerStatus>,
}

/// What the leader knows of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// The member's id.
    pub id: u64,
    /// Index up to which its log is known to match.
    pub matched: u64,
    /// Whether it was heard of within the last election timeout.
    pub active: bool,
}

impl Handle {
    /// Carries out a write or a membership change, on whichever member leads,
    /// and waits until it is applied: a write here, a change of members there.
    ///
    /// # Errors
    /// When it was not carried out, or nobody knows; see [`Rejected`].
    pub async fn submit(&self, op: Op) -> Result<Outcome, Rejected> {
        let is_of_clients = command::is_of_clients(&op);
        if is_of_clients {
            self.check_sound()?;
        }
        let deadline = self.deadline();
        let command = Command { id: None, op: Some(op) };
        // What only some members may know is for the replica to decide.
        let start = match command::version_of(&command) <= PROTOCOL.oldest() {
            true => Start::WithLeader,
            false => Start::Here,
        };
        let named = |id| Command { id: Some(id), ..command.clone() };
        let event = |id| Event::Propose(named(id));
        let forward = |id| forward_request::Request::Command(named(id));
        match self.lead_or_forward(start, deadline, event, forward).await? {
            Answer::Outcome(outcome) => {
                // Who is removed may never hear that it was.
                if is_of_clients && !mutant!(AnswerBeforeApplied) {
                    self.applied_here(outcome.index, deadline).await?;
                }
                Ok(outcome)
            }
            answer => Err(unexpected(&answer)),
        }
    }

    /// Makes a member the leader; returns once it leads.
    ///
    /// # Errors
    /// When it cannot lead or did not take over.
    pub async fn transfer_leader(&self, id: u64) -> Result<(), Rejected> {
        let forward = |_| forward_request::Request::TransferLeader(id);
        let event = |request| Event::TransferLeader(request, id);
        match self.lead_or_forward(Start::Here, self.deadline(), event, forward).await? {
            Answer::Led => Ok(()),
            answer => Err(unexpected(&answer)),
        }
    }

    /// A view that shows everything acknowledged before this call.
    ///
    /// # Errors
    /// When no quorum confirmed it in time, or this member must not serve.
    pub async fn read(&self) -> Result<View<RocksEngine>, Rejected> {
        self.read_until(self.deadline()).await
    }

    /// This member's own view, which may be behind.
    ///
    /// # Errors
    /// When this node does not belong to a cluster yet, or must not serve.
    pub fn view(&self) -> Result<View<RocksEngine>, Rejected> {
        self.check_sound()?;
        self.examine()
    }

    /// Returns once this member has applied everything acknowledged before this
    /// call.
    ///
    /// # Errors
    /// When no quorum confirmed it in time.
    pub async fn catch_up(&self) -> Result<(), Rejected> {
        self.caught_up(self.deadline()).await.map(drop)
    }

    /// The shortest time a lease is granted for, in seconds: one and a half
    /// election timeouts, rounded up.
    pub fn min_lease_ttl_s(&self) -> i64 {
        let shortest = self.shared.election_timeout.as_millis().saturating_mul(3).div_ceil(2_000);
        i64::try_from(shortest).unwrap_or(i64::MAX)
    }

    /// Whether a linearizable read would succeed now.
    ///
    /// # Errors
    /// What is missing, for people.
    pub async fn is_ready(&self) -> Result<(), String> {
        let patience = (2 * self.shared.election_timeout).min(self.shared.request_timeout);
        let phase = self.shared.phase.borrow().clone();
        match phase {
            Phase::Running(_) => match self.read_until(Instant::now() + patience).await {
                Ok(_) => Ok(()),
                Err(Rejected::NotApplied(why)) => Err(why),
                Err(rejected) => Err(rejected.to_string()),
            },
            phase => match not_running(&phase) {
                Rejected::NotApplied(why) => Err(why),
                rejected => Err(rejected.to_string()),
            },
        }
    }

    /// The members as applied here; empty while forming.
    pub fn members(&self) -> Arc<Members> {
        match &*self.shared.phase.borrow() {
            Phase::Running(running) => running.directory.applied(),
            _ => Arc::default(),
        }
    }

    /// Where this node stands.
    pub fn status(&self) -> Status {
        let phase = self.shared.phase.borrow().clone();
        let Phase::Running(running) = phase else {
            return Status {
                id: self.shared.id,
                role: "forming",
                uptime: self.shared.started.elapsed(),
                ..Status::default()
            };
        };
        let status = running.status.borrow().clone();
        let members = running.directory.applied();
        let learner = machine::member(&members, self.shared.id).is_none_or(|member| member.learner);
        let databases = running.view.read().clone();
        Status {
            id: self.shared.id,
            cluster_id: running.identity.cluster_id,
            role: role_name(status.role.role, learner),
            leader_id: status.role.leader_id,
            term: status.role.term,
            commit_index: status.commit_index,
            applied_index: status.applied_index,
            first_index: status.first_index,
            last_index: status.last_index,
            snapshot_index: status.snapshot_index,
            revision: self.report(databases.view.revision()).unwrap_or_default(),
            learner,
            uptime: self.shared.started.elapsed(),
            db_size_bytes: databases.raft.size_bytes() + databases.state.size_bytes(),
            pending_proposals: status.pending_proposals as u64,
            peers: status
                .peers
                .iter()
                .map(|&(id, matched, active)| PeerStatus { id, matched, active })
                .collect(),
        }
    }

    /// What RocksDB says of each database, by name; empty while forming.
    pub fn storage_metrics(&self) -> Vec<(&'static str, RocksMetrics)> {
        match &*self.shared.phase.borrow() {
            Phase::Running(running) => {
                let databases = running.view.read().clone();
                vec![("raft", databases.raft.metrics()), ("state", databases.state.metrics())]
            }
            _ => Vec::new(),
        }
    }

    /// A directory on the disk of the data, for files that only this process
    /// needs. The next start deletes what is left there.
    pub fn scratch_dir(&self) -> &Path {
        &self.shared.scratch_dir
    }

    /// Bytes the applied data occupy on disk and in write buffers, about.
    ///
    /// # Errors
    /// When this node does not belong to a cluster yet.
    pub fn state_size_bytes(&self) -> Result<u64, Rejected> {
        Ok(self.state_engine()?.size_bytes())
    }

    /// Rewrites the applied data without what was deleted or compacted away,
    /// beside all other work. Takes as long as reading and writing all of it:
    /// for a blocking thread.
    ///
    /// # Errors
    /// When this node does not belong to a cluster yet.
    pub fn reclaim_space(&self) -> Result<(), Rejected> {
        let engine = self.state_engine()?;
        if self.report(engine.flush()).is_some() {
            engine.compact();
        }
        Ok(())
    }

    fn state_engine(&self) -> Result<RocksEngine, Rejected> {
        match &*self.shared.phase.borrow() {
            Phase::Running(running) => Ok(running.view.read().state.clone()),
            phase => Err(not_running(phase)),
        }
    }

    /// Stops the node: this process can no longer keep its promises.
    pub fn fail(&self, fatal: Fatal) {
        // Only a node that already stops has nobody listening.
        let _stopping = self.shared.fatal.send(fatal);
    }

    /// Passes a value on, or stops the node over the error.
    fn report<T>(&self, result: Result<T, Fatal>) -> Option<T> {
        result.map_err(|fatal| self.fail(fatal)).ok()
    }

    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.shared.request_timeout
    }

    async fn read_until(&self, deadline: Instant) -> Result<View<RocksEngine>, Rejected> {
        self.check_sound()?;
        let running = self.caught_up(deadline).await?;
        // Once more: it may have learned of the alarm only now.
        running.soundness.check()?;
        Ok(running.view.read().view.clone())
    }

    async fn caught_up(&self, deadline: Instant) -> Result<Arc<Running>, Rejected> {
        let running = self.running(deadline).await?;
        match running.waiters.ask(&running.inbox, deadline, Event::Read).await {
            Answer::Readable => Ok(running),
            answer => Err(unexpected(&answer)),
        }
    }

    /// Waits until this node belongs to a cluster.
    pub(super) async fn running(&self, deadline: Instant) -> Result<Arc<Running>, Rejected> {
        if let Phase::Running(running) = &*self.shared.phase.borrow() {
            return Ok(Arc::clone(running));
        }
        let mut phase = self.shared.phase.subscribe();
        let forming = |phase: &Phase| matches!(phase, Phase::Forming(_));
        let arrived = timeout_at(deadline, phase.wait_for(|phase| !forming(phase))).await;
        if let Ok(Ok(phase)) = arrived
            && let Phase::Running(running) = &*phase
        {
            return Ok(Arc::clone(running));
        }
        Err(not_running(&self.shared.phase.borrow()))
    }
}

fn unexpected(answer: &Answer) -> Rejected {
    match answer {
        Answer::Rejected(rejected) => rejected.clone(),
        other => Rejected::Unknown(format!("an answer to another question: {other:?}")),
    }
}

pub(super) fn not_running(phase: &Phase) -> Rejected {
    Rejected::NotApplied(match phase {
        Phase::Forming(waiting) => waiting.clone(),
        Phase::Running(_) => "this node is starting".to_owned(),
        Phase::Stopping => "this node is stopping; ask another".to_owned(),
    })
}

fn role_name(role: StateRole, learner: bool) -> &'static str {
    match role {
        StateRole::Leader => "leader",
        StateRole::Follower if learner => "learner",
        StateRole::Follower => "follower",
        StateRole::Candidate | StateRole::PreCandidate => "candidate",
    }
}
