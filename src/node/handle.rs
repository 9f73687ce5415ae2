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
    time::{Instant, sleep, timeout_at},
};

use super::{
    lease_pump::Asking,
    soundness::{Soundness, is_served},
    waiters::Waiters,
    watching::Watching,
};
use crate::{
    check::Report,
    error::{Fatal, Rejected},
    lease::Question,
    machine::{self, View, command},
    proto::{
        Command, ForwardRequest, ForwardResponse, Identity, Members, Outcome, RequestId,
        command::Op, forward_request, forward_response,
    },
    replica::{self, Answer, Event, Role},
    storage::{
        Engine as _,
        rocks::{RocksEngine, RocksMetrics},
    },
    transport::{Directory, ForwardError, Inbox, PeerClient},
    version::PROTOCOL,
};

/// Pause before a request that found no leader, or could not reach it, is
/// tried again without having heard of a new one.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(50);

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

/// Who is asked first to carry out a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// This member's replica, which names the leader if it does not lead itself.
    Here,
    /// The leader, if it is known to be another: the replica would say the same,
    /// a turn of its thread later.
    WithLeader,
}

impl Handle {
    /// Carries out a write or a membership change, on whichever member leads,
    /// and waits until it is applied there.
    ///
    /// # Errors
    /// When it was not carried out, or nobody knows; see [`Rejected`].
    pub async fn submit(&self, op: Op) -> Result<Outcome, Rejected> {
        if command::is_of_clients(&op) {
            self.check_sound()?;
        }
        let deadline = self.deadline();
        let command = Command { id: None, op: Some(op) };
        // What only some members may know is for the replica to decide.
        let start = match command::version_of(&command) <= PROTOCOL.oldest() {
            true => Start::WithLeader,
            false => Start::Here,
        };
        let event = |id| Event::Propose(Command { id: Some(id), ..command.clone() });
        let forward = forward_request::Request::Command(command.clone());
        match self.lead_or_forward(start, deadline, event, forward).await? {
            Answer::Outcome(outcome) => Ok(outcome),
            answer => Err(unexpected(&answer)),
        }
    }

    /// Makes a member the leader; returns once it leads.
    ///
    /// # Errors
    /// When it cannot lead or did not take over.
    pub async fn transfer_leader(&self, id: u64) -> Result<(), Rejected> {
        let forward = forward_request::Request::TransferLeader(id);
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

    /// Carries out a request that the member `from` passed on: here or not at
    /// all.
    pub(super) async fn serve_forwarded(
        &self,
        from: u64,
        request: ForwardRequest,
    ) -> ForwardResponse {
        use forward_response::Result as Response;
        let timeout = Duration::from_millis(request.timeout_ms).min(self.shared.request_timeout);
        let deadline = Instant::now() + timeout;
        let running = match &*self.shared.phase.borrow() {
            Phase::Running(running) => Arc::clone(running),
            phase => {
                let why = not_running(phase).to_string();
                return ForwardResponse { result: Some(Response::NotApplied(why)) };
            }
        };
        if is_served(&request) && self.is_accused() {
            // It is about to hand its leadership over.
            return ForwardResponse { result: Some(Response::NotLeader(0)) };
        }
        let answer = match request.request {
            Some(forward_request::Request::Command(command)) => {
                let event = |id| Event::Propose(Command { id: Some(id), ..command });
                running.waiters.ask(&running.inbox, deadline, event).await
            }
            Some(forward_request::Request::TransferLeader(target)) => {
                let event = |id| Event::TransferLeader(id, target);
                running.waiters.ask(&running.inbox, deadline, event).await
            }
            Some(forward_request::Request::KeepAlive(lease)) => {
                let question = Question::KeepAlive;
                let result = self.answer_forwarded(&running, lease, question, deadline).await;
                return ForwardResponse { result: Some(result) };
            }
            Some(forward_request::Request::TimeToLive(lease)) => {
                let question = Question::TimeToLive;
                let result = self.answer_forwarded(&running, lease, question, deadline).await;
                return ForwardResponse { result: Some(result) };
            }
            Some(forward_request::Request::StateReport(report)) => {
                let result = self.take_report(&running, from, report);
                return ForwardResponse { result: Some(result) };
            }
            None => Answer::Rejected(Rejected::NotApplied("an empty request".to_owned())),
        };
        ForwardResponse { result: Some(to_response(answer)) }
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

    /// Asks this member, or the leader it names, until one of them leads. The
    /// first to be asked is whom the start says.
    ///
    /// A request is sent again only while it provably was not proposed. Once
    /// it has left this node, its failure is never called "not applied".
    async fn lead_or_forward(
        &self,
        start: Start,
        deadline: Instant,
        event: impl Fn(RequestId) -> Event,
        forward: forward_request::Request,
    ) -> Result<Answer, Rejected> {
        let running = self.running(deadline).await?;
        let mut role = running.role.clone();
        let mut left_this_node = false;
        loop {
            let known = role.borrow_and_update().leader_id;
            let leader = if start == Start::WithLeader && known != 0 && known != self.shared.id {
                known
            } else {
                match running.waiters.ask(&running.inbox, deadline, &event).await {
                    Answer::NotLeader(leader) => leader,
                    Answer::Rejected(rejected) => return Err(fate(left_this_node, rejected)),
                    answer => return Ok(answer),
                }
            };
            let mut why = "the cluster has no leader".to_owned();
            if leader != 0 && leader != self.shared.id {
                let forwarded = self.forward(&running, leader, forward.clone(), deadline).await;
                match forwarded.map(to_answer) {
                    Ok(Answer::NotLeader(_)) => {
                        left_this_node = true;
                        why = format!("member {leader} does not lead any more");
                    }
                    Ok(Answer::Rejected(rejected)) => return Err(fate(true, rejected)),
                    Ok(answer) => return Ok(answer),
                    Err(ForwardError::Busy) => {
                        why = "too many requests wait for the leader; retry in a moment".to_owned();
                        if !left_this_node {
                            return Err(Rejected::Overloaded(why));
                        }
                    }
                    Err(ForwardError::NeverSent(cause)) => {
                        why = format!("the leader, member {leader}, cannot be reached: {cause}");
                    }
                    Err(ForwardError::Unknown(cause)) => return Err(Rejected::Unknown(cause)),
                }
            }
            let pause = Instant::now() + RETRY_PAUSE;
            if pause >= deadline {
                return Err(fate(left_this_node, Rejected::NotApplied(why)));
            }
            // A change of role is worth asking again at once; what cannot be
            // seen from here (the leader's address, its state) is asked for.
            tokio::select! {
                changed = role.changed() => if changed.is_err() { sleep(RETRY_PAUSE).await },
                () = tokio::time::sleep_until(pause) => {}
            }
        }
    }

    /// Passes a request on to the leader.
    pub(super) async fn forward(
        &self,
        running: &Running,
        leader: u64,
        request: forward_request::Request,
        deadline: Instant,
    ) -> Result<ForwardResponse, ForwardError> {
        let Some(url) = running.directory.peer_url(leader) else {
            return Err(ForwardError::NeverSent("its address is not known yet".to_owned()));
        };
        let timeout = deadline.saturating_duration_since(Instant::now());
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let request = ForwardRequest { request: Some(request), timeout_ms };
        // The leader keeps to the deadline; what it says then is worth more
        // than a connection cut at the same moment.
        let patience = timeout + Duration::from_secs(1);
        let client = &self.shared.client;
        let identity = &running.identity;
        client.forward(&url, identity, leader, request, patience).await
    }
}

/// What a failed request may be told: one that left this node may have taken
/// effect as far as anybody here can prove.
fn fate(left_this_node: bool, rejected: Rejected) -> Rejected {
    match rejected {
        Rejected::NotApplied(why) if left_this_node => Rejected::Unknown(why),
        other => other,
    }
}

fn to_response(answer: Answer) -> forward_response::Result {
    use forward_response::Result as Response;
    match answer {
        Answer::Outcome(outcome) => Response::Outcome(outcome),
        Answer::Led => Response::Done(crate::proto::Unit {}),
        Answer::NotLeader(leader) => Response::NotLeader(leader),
        Answer::Readable => Response::Unknown("a read is not forwarded".to_owned()),
        Answer::Rejected(rejected) => match rejected {
            Rejected::NotApplied(why) => Response::NotApplied(why),
            Rejected::Unknown(why) => Response::Unknown(why),
            Rejected::Overloaded(why) => Response::Overloaded(why),
            Rejected::Conflict(why) => Response::Conflict(why),
            Rejected::MemberNotFound(id) => Response::MemberNotFound(id),
            Rejected::Corrupt(_) => Response::NotApplied(rejected.to_string()),
        },
    }
}

fn to_answer(response: ForwardResponse) -> Answer {
    use forward_response::Result as Response;
    Answer::Rejected(match response.result {
        Some(Response::Outcome(outcome)) => return Answer::Outcome(outcome),
        Some(Response::Done(_)) => return Answer::Led,
        Some(Response::NotLeader(leader)) => return Answer::NotLeader(leader),
        Some(Response::NotApplied(why)) => Rejected::NotApplied(why),
        Some(Response::Unknown(why)) => Rejected::Unknown(why),
        Some(Response::Overloaded(why)) => Rejected::Overloaded(why),
        Some(Response::Conflict(why)) => Rejected::Conflict(why),
        Some(Response::MemberNotFound(id)) => Rejected::MemberNotFound(id),
        Some(Response::Lease(_)) | None => {
            Rejected::Unknown("the leader's answer cannot be understood".to_owned())
        }
    })
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
