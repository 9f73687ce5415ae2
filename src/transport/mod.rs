//! How members talk to each other.
//!
//! A peer's URL serves long-lived streams of raft messages (`/raft/stream/…`),
//! snapshot transfers and a few short calls; every one of them names the
//! cluster, the sender, the sender's incarnation and the receiver in its
//! headers, and is refused before anything of its body is read unless all four
//! are right. Before that, both sides say which protocols they speak; see
//! [`version`](crate::version). Who opens a stream also says what its disk
//! holds, and is refused if it is known to have held more: its data is an older
//! copy. Nothing here knows what the messages mean: [`Outboxes`] takes them from
//! the raft task without ever blocking it, [`Inbox`] gives them to it within a
//! bound, and what is lost on the way raft sends again.
//!
//! What a short call means is the business of whoever implements
//! [`PeerService`].

mod batches;
pub mod client;
pub mod directory;
pub mod frame;
#[doc(hidden)]
pub mod fuzzing;
pub mod holding;
pub mod inbox;
pub mod listener;
pub mod outbox;
pub mod server;
pub mod snapshot;

mod connection;
mod headers;
mod idle;
mod slots;
mod stream;
mod throttle;

#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use raft::eraftpb::Message;

use crate::{
    proto::{ForwardRequest, ForwardResponse, FoundingHello, JoinRequest, JoinResponse},
    raftlog::Promises,
};

pub use client::{CallError, ForwardError, PeerClient};
pub use directory::{Directory, Verdict};
pub use inbox::{Inbox, Mailbox, Refused};
pub use outbox::Outboxes;
pub use server::ServerOptions;

/// What this member says to its peers' calls. The node implements it.
pub trait PeerService: Send + Sync + 'static {
    /// What a member of a cluster has; `None` while this one is still forming
    /// or joining, which refuses everything but
    /// [`hello`](Self::hello) and [`join`](Self::join).
    fn joined(&self) -> Option<Joined>;

    /// What this member knows of the founding.
    fn hello(&self) -> FoundingHello;

    /// Carries out a request that the member `from` passed on. The
    /// implementation keeps to the request's own timeout.
    fn forward(&self, from: u64, request: ForwardRequest) -> BoxFuture<'_, ForwardResponse>;

    /// Binds a new member's incarnation to its id.
    fn join(&self, request: JoinRequest) -> BoxFuture<'_, JoinResponse>;

    /// Takes over a complete and durable snapshot image in `dir`, whose
    /// `MsgSnapshot` is `message`; ready once the message is queued for raft.
    /// After an error the caller removes `dir`.
    fn snapshot_received(
        &self,
        message: Message,
        dir: PathBuf,
    ) -> BoxFuture<'_, Result<(), String>>;

    /// A peer of this very cluster said why this member must stop.
    fn dismissed(&self, why: Dismissal);
}

/// What a peer of the same cluster may say that ends this member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dismissal {
    /// It was removed.
    Removed,
    /// Its data directory is an older copy of one that had more.
    Outdated {
        /// Who remembers that.
        peer: u64,
        /// What is here.
        present: Promises,
        /// What it is known to have had.
        known: Promises,
    },
}

/// Called when a peer says that this member must stop.
pub type OnDismissed = Arc<dyn Fn(Dismissal) + Send + Sync>;

/// What a member has once it belongs to a cluster. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Joined {
    /// Who the peers are, and who this member is.
    pub directory: Directory,
    /// The way to the raft task.
    pub inbox: Inbox,
}

/// The clock of the peer connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Both ends of an idle stream say so this often.
    pub heartbeat: Duration,
    /// Raft's election timeout.
    pub election: Duration,
}

impl Timing {
    /// How long a stream may be silent before it counts as broken: two
    /// election timeouts, by when raft has given up on the peer as well.
    pub fn silence(&self) -> Duration {
        self.election * 2
    }
}
