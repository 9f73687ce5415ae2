//! Where an abuse takes place, and who does it.

use std::{net::SocketAddr, sync::Arc};

use nix::libc;
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::oneshot,
};
use tokio_util::sync::CancellationToken;

use crate::{Figures, Result, process::Endpoint, report::During};

/// What keys of about a hundred megabytes begin with.
pub const BIG: &str = "big/";

/// How much of each abuse.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Watchers that are told nothing.
    pub watchers: u64,
    /// Connections that take their time.
    pub slow: u64,
    /// Connections that are opened and dropped.
    pub drops: u64,
    /// Proposals in flight.
    pub proposals: u64,
    /// Clients of each kind that never read.
    pub unread: u64,
    /// Bytes below [`BIG`].
    pub big_bytes: u64,
}

/// One member as an abuser sees it.
#[derive(Debug, Clone)]
pub struct Site {
    /// The client port.
    pub client: SocketAddr,
    /// The peer port.
    pub peer: SocketAddr,
    /// The client port, for decent requests.
    pub endpoint: Endpoint,
}

/// What every abuse has. Clones are the same.
#[derive(Debug, Clone)]
pub struct Scene {
    /// All members.
    pub sites: Arc<Vec<Site>>,
    /// What is counted.
    pub figures: Arc<Figures>,
    /// How much.
    pub size: Size,
    /// Told when it has gone on for long enough.
    pub stop: CancellationToken,
}

impl Scene {
    /// The member of a number, in turn.
    pub fn site(&self, number: u64) -> &Site {
        &self.sites[number as usize % self.sites.len()]
    }

    /// The same scene for another abuse.
    pub fn again(&self) -> Self {
        Self { stop: CancellationToken::new(), ..self.clone() }
    }
}

/// Told when an abuse is in full swing.
pub type Ready = oneshot::Sender<()>;

/// The threads of the abusers. They get what the members and the well-behaved
/// client leave of the processors: what is asked is how the members fare, not
/// how the machine divides its time.
#[derive(Debug)]
pub struct Abusers(Option<Runtime>);

/// The least urgent there is.
const NICE: libc::c_int = 19;

impl Abusers {
    /// Threads without work.
    ///
    /// # Errors
    /// When they cannot be started.
    pub fn new() -> Result<Self> {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().on_thread_start(|| {
            // SAFETY: it takes numbers only; 0 is the calling thread. That it
            // fails would show in the figures.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
        });
        Ok(Self(Some(builder.build().during("start the abusers' runtime")?)))
    }

    /// Where to start an abuse.
    pub fn handle(&self) -> Option<Handle> {
        self.0.as_ref().map(|runtime| runtime.handle().clone())
    }
}

impl Drop for Abusers {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
