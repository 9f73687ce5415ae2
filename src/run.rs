//! A node and its client API, from start to stop.

use std::{net::TcpListener, thread::available_parallelism, time::Duration};

use slog::Logger;
use tokio::{
    runtime::{Builder, Handle, Runtime},
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{self, Api},
    config::Config,
    error::Fatal,
    metrics::Metrics,
    node::Node,
    transport::listener,
};

/// How long requests under way may take to end when the node stops.
const DRAIN_PATIENCE: Duration = Duration::from_millis(1000);

/// Runs a node until it is told to stop or removed from its cluster.
///
/// # Errors
/// When it cannot start or cannot go on.
pub fn run(config: Config, logger: Logger) -> Result<(), Fatal> {
    // Two, so that what the members say to each other never waits behind what
    // clients want: a heartbeat that does can cost a leader its lead.
    let processors = available_parallelism().map_or(1, usize::from);
    // What members say is little work, and each further thread takes its share
    // of the processors to look for some. With one alone, the events of many
    // watches would keep a heartbeat waiting.
    let members = runtime("members", processors.div_ceil(4).max(2))?;
    let clients = runtime("clients", processors)?;
    let outcome = members.block_on(serve(config, clients.handle(), logger));
    // What still runs then has had its time.
    clients.shutdown_timeout(Duration::from_millis(200));
    members.shutdown_timeout(Duration::from_millis(200));
    outcome
}

/// So many worker threads.
fn runtime(name: &str, threads: usize) -> Result<Runtime, Fatal> {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(threads).enable_all().thread_name(name).build().map_err(|e| {
        Fatal::new(
            format!("cannot start the worker threads: {e}"),
            "raise the limits on threads and memory of this user",
        )
    })
}

async fn serve(config: Config, clients: &Handle, logger: Logger) -> Result<(), Fatal> {
    let mut signals = Signals::listen()?;
    let mut serving = Serving::start(config, clients, logger.clone()).await?;
    let ended = tokio::select! {
        ended = serving.node.ended() => ended,
        name = signals.next() => {
            slog::info!(logger, "stopping on {name}");
            serving.node.hand_over().await;
            Ok(())
        }
    };
    serving.cancel.cancel();
    if ended.is_ok() {
        serving.drain().await;
    }
    serving.node.shutdown().await;
    ended
}

/// A node that serves clients.
pub struct Serving {
    node: Node,
    requests: JoinHandle<()>,
    cancel: CancellationToken,
    logger: Logger,
}

impl Serving {
    /// Starts a node, and its API on the worker threads for `clients`.
    ///
    /// # Errors
    /// When either cannot start: see [`Node::start`] and [`listener::bind`].
    pub async fn start(config: Config, clients: &Handle, logger: Logger) -> Result<Self, Fatal> {
        let metrics = Metrics::new();
        let limits = api::Limits {
            max_response_bytes: config.max_response_bytes,
            quota_backend_bytes: config.quota_backend_bytes,
            ..api::Limits::new(config.max_request_bytes)
        };
        let socket = listener::bind(&config.host, config.port, "--port")?;
        let address = crate::config::http_url(&config.host, config.port);
        let node = Node::start(config, metrics.clone(), logger.clone()).await?;
        let api = Api::new(node.handle(), limits, metrics, logger.clone());
        let cancel = CancellationToken::new();
        let requests = listen(clients, socket, api, &cancel, &logger)?;
        slog::info!(logger, "listening for clients on {address}");
        Ok(Self { node, requests, cancel, logger })
    }

    /// The node.
    pub fn node(&mut self) -> &mut Node {
        &mut self.node
    }

    /// Ends the requests under way within a moment, then the node.
    pub async fn stop(mut self) {
        self.cancel.cancel();
        self.drain().await;
        self.node.shutdown().await;
    }

    async fn drain(&mut self) {
        if timeout(DRAIN_PATIENCE, &mut self.requests).await.is_err() {
            slog::warn!(self.logger, "stopping although requests are still under way");
        }
    }
}

/// Serves clients, on worker threads of their own.
fn listen(
    clients: &Handle,
    socket: TcpListener,
    api: Api,
    cancel: &CancellationToken,
    logger: &Logger,
) -> Result<JoinHandle<()>, Fatal> {
    let _on_theirs = clients.enter();
    let timeouts = listener::Timeouts::default();
    let places = listener::Places::allowed().clients;
    listener::serve(socket, api, places, timeouts, cancel.clone(), logger.clone())
}

/// The signals that stop a node.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Self, Fatal> {
        let listen = |kind| {
            signal(kind).map_err(|e| {
                Fatal::new(format!("cannot listen for signals: {e}"), "check the user's limits")
            })
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
