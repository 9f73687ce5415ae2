//! The runtime: threads and tasks that carry out what the replica decides.
//!
//! [`Node::start`] opens the data directory, listens on the peer URL and, once
//! this member belongs to a cluster, starts the raft task and the log and apply
//! threads. Everybody else talks to it through a [`Handle`].

mod applied;
mod apply_thread;
mod check_thread;
mod checking;
mod compaction;
mod data_dir;
mod forming;
mod forwarding;
mod founding;
mod handle;
mod lease_feed;
mod lease_pump;
mod leasing;
mod log_thread;
mod quota;
mod raft_task;
mod restoring;
mod roll_call;
mod running;
mod service;
mod soundness;
mod standing;
mod upkeep;
mod waiters;
mod watch_feed;
mod watch_pump;
mod watching;

use std::{
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use slog::Logger;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    error::Fatal,
    machine,
    metrics::Metrics,
    proto::FoundingHello,
    raftlog::{self, Recovered, Watermark},
    replica::Event,
    storage::rocks::RocksEngine,
    transport::{PeerClient, PeerService, ServerOptions, Timing, listener, server},
};

pub use handle::{Handle, PeerStatus, Status};
pub use restoring::found_restored;
pub use standing::Standing;
pub use watching::{WatchControl, WatchNotices};

use data_dir::DataDir;
use handle::{Phase, Shared};
use service::Service;

/// How long stopping may wait for leadership to move to another member.
const HAND_OVER_PATIENCE: Duration = Duration::from_millis(1500);

/// How long stopping may wait for the threads to write what they were given.
const THREADS_PATIENCE: Duration = Duration::from_millis(1500);

/// A running node. Dropping it does not stop it; [`Node::shutdown`] does.
pub struct Node {
    handle: Handle,
    parts: Arc<Parts>,
    fatal: mpsc::UnboundedReceiver<Fatal>,
    removed: watch::Receiver<bool>,
}

/// What the start, in whichever task it goes on, needs.
pub(crate) struct Parts {
    config: Config,
    handle: Handle,
    /// Talks to members for this member's own sake. Not the one that passes on
    /// what clients ask for: a connection is driven by the runtime that opened
    /// it, and a heartbeat must not wait for clients.
    client: PeerClient,
    data_dir: DataDir,
    raft: RocksEngine,
    incarnation: u64,
    metrics: Metrics,
    logger: Logger,
    founding: Arc<Mutex<FoundingHello>>,
    removed: Arc<dyn Fn() + Send + Sync>,
    /// Stops the raft task, and after it the threads.
    stop: CancellationToken,
    /// Ends the network tasks.
    cancel: CancellationToken,
    // A lock because the threads start once the cluster is formed and are
    // joined by whoever stops the node.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Node {
    /// Starts the node. It serves once its cluster is formed, which may be
    /// after this returns.
    ///
    /// # Errors
    /// When the data directory or the peer address cannot be used, or the
    /// stored data contradicts the flags or itself.
    pub async fn start(config: Config, metrics: Metrics, logger: Logger) -> Result<Self, Fatal> {
        let data_dir = DataDir::open(config.node_dir())?;
        let raft = data_dir.open_raft()?;
        let recovered = Recovered::read(&raft)?;
        // Before anything is deleted: a log that lost its beginning would look
        // like that of a member that was never started.
        Watermark::check(&data_dir.watermark(), &recovered)?;
        check_identity(&config, &recovered)?;
        data_dir.sweep(recovered.live_state.as_deref())?;
        slog::info!(logger, "Starting with RocksDB persistent storage";
            "data" => config.node_dir().display().to_string());
        let incarnation = incarnation(&raft, &recovered)?;

        let (fatal_sender, fatal) = mpsc::unbounded_channel();
        let (removed_sender, removed) = watch::channel(false);
        let forming = Phase::Forming("this node is starting".to_owned());
        let connect_patience = config.election_timeout.max(Duration::from_millis(500));
        let handle = Handle {
            shared: Arc::new(Shared {
                id: config.id,
                request_timeout: config.request_timeout,
                election_timeout: config.election_timeout,
                started: Instant::now(),
                phase: watch::Sender::new(forming),
                fatal: fatal_sender,
                scratch_dir: data_dir.snap(),
                client: PeerClient::new(connect_patience)?,
            }),
        };
        let hello = FoundingHello {
            member_id: config.id,
            incarnation,
            prepared: recovered.prepared.clone(),
            ..FoundingHello::default()
        };
        let parts = Arc::new(Parts {
            handle: handle.clone(),
            client: PeerClient::new(connect_patience)?,
            data_dir,
            raft,
            incarnation,
            metrics,
            logger,
            founding: Arc::new(Mutex::new(hello)),
            removed: Arc::new(move || {
                removed_sender.send_replace(true);
            }),
            stop: CancellationToken::new(),
            cancel: CancellationToken::new(),
            threads: Mutex::default(),
            config,
        });
        parts.clone().begin(recovered).await?;
        Ok(Self { handle, parts, fatal, removed })
    }

    /// What an API needs.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits until the node cannot go on: until it was removed from the
    /// cluster.
    ///
    /// # Errors
    /// When it can no longer keep its promises.
    pub async fn ended(&mut self) -> Result<(), Fatal> {
        tokio::select! {
            biased;
            Some(fatal) = self.fatal.recv() => Err(fatal),
            _ = self.removed.wait_for(|removed| *removed) => {
                slog::info!(self.parts.logger, "removed from the cluster");
                Ok(())
            }
        }
    }

    /// Hands leadership over if this member leads, so that the cluster need
    /// not wait for an election.
    pub async fn hand_over(&self) {
        let phase = self.handle.shared.phase.borrow().clone();
        let Phase::Running(running) = phase else { return };
        running.inbox.internal(Event::StepDown);
        let members = running.directory.applied();
        let alone = machine::conf_state(&members).voters.len() < 2;
        let own = self.parts.config.id;
        let mut role = running.role.clone();
        if !alone {
            let moved = role.wait_for(|role| role.leader_id != own);
            let _gave_up = tokio::time::timeout(HAND_OVER_PATIENCE, moved).await;
        }
    }

    /// Stops the node; what it was given to write is written.
    pub async fn shutdown(self) {
        self.handle.shared.phase.send_replace(Phase::Stopping);
        self.parts.cancel.cancel();
        self.parts.stop.cancel();
        let threads = std::mem::take(&mut *self.parts.threads.lock());
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().for_each(|thread| drop(thread.join()));
        });
        if tokio::time::timeout(THREADS_PATIENCE, joined).await.is_err() {
            slog::warn!(self.parts.logger, "stopping although a disk write is still under way");
        }
    }
}

impl Parts {
    /// Goes on where the stored state stands: as a member, or finding one's
    /// cluster first.
    async fn begin(self: Arc<Self>, recovered: Recovered) -> Result<(), Fatal> {
        if let Some(identity) = recovered.identity {
            let stored = self.open_state(&identity, &recovered)?;
            self.roll_call(identity, &recovered, &stored).await?;
            let url = self.own_url(&identity, &stored).await;
            self.serve_peers(&url)?;
            self.run(identity, recovered, stored)?;
            return Ok(());
        }
        self.config.check_first_start()?;
        self.serve_peers(self.config.peer_url())?;
        let parts = Arc::clone(&self);
        tokio::spawn(async move {
            let forming = parts.form(recovered);
            if let Some(Err(fatal)) = parts.cancel.run_until_cancelled(forming).await {
                parts.handle.fail(fatal);
            }
        });
        Ok(())
    }

    /// Listens on this member's peer URL.
    fn serve_peers(&self, url: &str) -> Result<(), Fatal> {
        let (host, port) = host_and_port(url);
        let socket = listener::bind(&host, port, "--cluster")?;
        let timing = self.timing();
        let service: Arc<dyn PeerService> = Arc::new(Service {
            handle: self.handle.clone(),
            data_dir: self.data_dir.clone(),
            founding: Arc::clone(&self.founding),
            on_dismissed: self.on_dismissed(),
        });
        let options = ServerOptions {
            timing,
            snapshot_dir: self.data_dir.snap(),
            shutdown: self.cancel.clone(),
            logger: self.logger.clone(),
        };
        let router = server::router(service, self.client.clone(), options);
        let places = listener::Places::allowed().peers;
        let timeouts = listener::Timeouts::default();
        let (cancel, logger) = (self.cancel.clone(), self.logger.clone());
        listener::serve(socket, router, places, timeouts, cancel, logger)?;
        slog::info!(self.logger, "listening for members on {url}");
        Ok(())
    }

    fn timing(&self) -> Timing {
        Timing { heartbeat: self.config.heartbeat_interval, election: self.config.election_timeout }
    }
}

fn check_identity(config: &Config, recovered: &Recovered) -> Result<(), Fatal> {
    match &recovered.identity {
        Some(identity) if identity.member_id != config.id => Err(Fatal::new(
            format!(
                "the data directory {} belongs to member {}, not to member {}",
                config.node_dir().display(),
                identity.member_id,
                config.id
            ),
            format!("start it with --id {}, or name the right --data-dir", identity.member_id),
        )),
        _ => Ok(()),
    }
}

/// This member's incarnation, drawn and stored at its very first start.
fn incarnation(raft: &RocksEngine, recovered: &Recovered) -> Result<u64, Fatal> {
    if let Some(incarnation) = recovered.incarnation {
        return Ok(incarnation);
    }
    let incarnation = rand::random_range(1..u64::MAX);
    raftlog::store_incarnation(raft, incarnation)?;
    Ok(incarnation)
}

fn host_and_port(url: &str) -> (String, u16) {
    let authority = url.trim_start_matches("http://");
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "80"));
    (host.to_owned(), port.parse().unwrap_or(80))
}
