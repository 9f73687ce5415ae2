//! A member within this process, so that whoever makes the inputs sees what they
//! reach in it. Otherwise as in one of its own: threads, ports and all.

use std::{net::SocketAddr, process, time::Duration};

use clap::Parser as _;
use metastore::{
    api::{Api, Limits},
    cli::Cli,
    error::Fatal,
    metrics::Metrics,
    node::Node,
    transport::listener::{self, Places, Timeouts},
};
use metastore_proof::{
    Failure, Result,
    process::{Endpoint, Place, eventually},
    report::During,
};
use slog::{Discard, Logger};
use tempfile::TempDir;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use super::{CHECK_INTERVAL, Requests, Sender, Waits, site::Watch};
use crate::{
    decoders::scratch,
    dice::Dice,
    run::{Decoder, Verdict},
};

/// How long the member may take to answer whether it is well.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Sends each input to one member of this process. What an input leaves behind is
/// there for the next.
pub struct Inside {
    requests: Requests,
    runtime: Runtime,
    /// Until the end.
    node: Option<Node>,
    cancel: CancellationToken,
    watch: Watch,
    sender: Sender,
    sent: u64,
    // After the node, which is stopped before its directory goes.
    _directory: TempDir,
}

impl Inside {
    /// Starts a member for these requests.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(requests: Requests) -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let directory = scratch()?;
        let place = Place::on_loopback()?;
        let client = SocketAddr::new(place.host, place.client_port);
        let peer = SocketAddr::new(place.host, place.peer_port);
        let cancel = CancellationToken::new();
        let (node, watch) = runtime.block_on(async {
            // A socket that the other side has closed must not end the process:
            // Rust's own `main` sees to that, libFuzzer's does not. The handler stays.
            drop(signal(SignalKind::pipe())?);
            let node = serve(client, peer, &directory, &cancel).await.during("start a member")?;
            let endpoint = Endpoint::new(1, client, ANSWER_LIMIT)?;
            eventually("the member is ready", async || endpoint.is_ready().await.then_some(()))
                .await?;
            Ok::<_, Failure>((node, Watch::begin(endpoint, process::id()).await?))
        })?;
        let sender = Sender::new(client, peer, Waits::ALONE);
        let node = Some(node);
        Ok(Self { requests, runtime, node, cancel, watch, sender, sent: 0, _directory: directory })
    }

    /// Sends an input; the error also tells that an earlier one did harm.
    async fn send(&self, input: &[u8]) -> Result<Verdict> {
        let verdict = self.sender.send(self.requests.shot(input)).await?;
        if self.sent.is_multiple_of(CHECK_INTERVAL) {
            let checked = self.watch.check().await;
            checked.map_err(|why| {
                Failure::failed(format!("after one of the last {CHECK_INTERVAL} inputs: {why}"))
            })?;
        }
        Ok(verdict)
    }
}

/// Starts the only member of a cluster, with its API.
async fn serve(
    client: SocketAddr,
    peer: SocketAddr,
    directory: &TempDir,
    cancel: &CancellationToken,
) -> std::result::Result<Node, Fatal> {
    let (port, cluster) = (client.port().to_string(), format!("http://{peer}"));
    let mut args = Cli::parse_from(["metastore", "--port", &port, "--cluster", &cluster]).node;
    args.data_dir = directory.path().to_owned();
    let config = args.into_config()?;
    let (limits, metrics) = (Limits::new(config.max_request_bytes), Metrics::new());
    let logger = Logger::root(Discard, slog::o!());
    let socket = listener::bind(&config.host, config.port, "--port")?;
    let node = Node::start(config, metrics.clone(), logger.clone()).await?;
    let api = Api::new(node.handle(), limits, metrics, logger.clone());
    let places = Places::allowed().clients;
    // It ends with the runtime.
    let _serving =
        listener::serve(socket, api, places, Timeouts::default(), cancel.clone(), logger)?;
    Ok(node)
}

impl Decoder for Inside {
    fn name(&self) -> &'static str {
        self.requests.name()
    }

    fn input(&mut self, dice: &mut Dice) -> Vec<u8> {
        self.requests.input(dice, self.watch.known())
    }

    fn read(&mut self, input: &[u8]) -> std::result::Result<Verdict, String> {
        self.sent += 1;
        let Some(mut node) = self.node.take() else { return Err("the member ended".to_owned()) };
        let sent = self.runtime.block_on(async {
            tokio::select! {
                sent = self.send(input) => sent.map_err(|failure| failure.to_string()),
                ended = node.ended() => Err(format!("the member ended: {ended:?}")),
            }
        });
        self.node = Some(node);
        sent
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Some(node) = self.node.take() {
            self.runtime.block_on(node.shutdown());
        }
    }
}
