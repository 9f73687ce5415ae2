//! A member within this process, so that whoever makes the inputs sees what they
//! reach in it. Otherwise as in one of its own: threads, ports and all.

use std::{net::SocketAddr, process, time::Duration};

use clap::Parser as _;
use metastore::{cli::Cli, error::Fatal, run::Serving};
use metastore_proof::{
    Failure, Result,
    process::{Endpoint, Place, eventually},
    report::During,
};
use slog::{Discard, Logger};
use tempfile::TempDir;
use tokio::{
    runtime::{Builder, Handle, Runtime},
    signal::unix::{SignalKind, signal},
};

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
    serving: Option<Serving>,
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
        let (serving, watch) = runtime.block_on(async {
            // A socket that the other side has closed must not end the process:
            // Rust's own `main` sees to that, libFuzzer's does not. The handler stays.
            drop(signal(SignalKind::pipe())?);
            let serving = serve(client, peer, &directory).await.during("start a member")?;
            let endpoint = Endpoint::new(1, client, ANSWER_LIMIT)?;
            eventually("the member is ready", async || endpoint.is_ready().await.then_some(()))
                .await?;
            Ok::<_, Failure>((serving, Watch::begin(endpoint, process::id()).await?))
        })?;
        let sender = Sender::new(client, peer, Waits::ALONE);
        let serving = Some(serving);
        Ok(Self { requests, runtime, serving, watch, sender, sent: 0, _directory: directory })
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
) -> std::result::Result<Serving, Fatal> {
    let (port, cluster) = (client.port().to_string(), format!("http://{peer}"));
    let mut args = Cli::parse_from(["metastore", "--port", &port, "--cluster", &cluster]).node;
    args.data_dir = directory.path().to_owned();
    let logger = Logger::root(Discard, slog::o!());
    Serving::start(args.into_config()?, &Handle::current(), logger).await
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
        let Some(mut serving) = self.serving.take() else {
            return Err("the member ended".to_owned());
        };
        let sent = self.runtime.block_on(async {
            tokio::select! {
                sent = self.send(input) => sent.map_err(|failure| failure.to_string()),
                ended = serving.node().ended() => Err(format!("the member ended: {ended:?}")),
            }
        });
        self.serving = Some(serving);
        sent
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.take() {
            self.runtime.block_on(serving.stop());
        }
    }
}
