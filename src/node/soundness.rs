//! Whether this member's state can be believed: the alarms, for whoever serves
//! clients from it.
//!
//! A member that the CORRUPT alarm names serves nothing. Everything that gives
//! out its state, or answers from it, asks here; what an operator needs to see
//! and to mend it does not.

use std::sync::Arc;

use tokio::sync::watch;

use super::{
    Handle,
    handle::{Phase, not_running},
};
use crate::{
    error::Rejected,
    machine::{self, View, command},
    proto::{Alarms, ForwardRequest, forward_request::Request},
    storage::rocks::RocksEngine,
};

/// The alarms as applied here. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Soundness {
    own: u64,
    alarms: watch::Receiver<Arc<Alarms>>,
}

impl Soundness {
    /// Of the member `own`. The sender is for the apply thread, which tells of
    /// alarms before anybody is told that they are applied.
    pub fn new(own: u64, alarms: Arc<Alarms>) -> (watch::Sender<Arc<Alarms>>, Self) {
        let (sender, alarms) = watch::channel(alarms);
        (sender, Self { own, alarms })
    }

    /// Whether the CORRUPT alarm names this member.
    pub fn is_accused(&self) -> bool {
        self.accuses(&self.alarms.borrow())
    }

    fn accuses(&self, alarms: &Alarms) -> bool {
        machine::is_accused(alarms, self.own) && !mutant!(ServeDespiteCorruption)
    }

    /// Refuses what is served from the state, if it must not be.
    pub fn check(&self) -> Result<(), Rejected> {
        if self.is_accused() { Err(Rejected::Corrupt(self.own)) } else { Ok(()) }
    }

    /// Waits until this member is accused, or is not, as `accused` says. Not so
    /// any more if the node stops.
    pub async fn until(&self, accused: bool) -> bool {
        let mut alarms = self.alarms.clone();
        alarms.wait_for(|alarms| self.accuses(alarms) == accused).await.is_ok()
    }
}

impl Handle {
    /// The raised alarms, as applied here; none while forming.
    pub fn alarms(&self) -> Arc<Alarms> {
        self.ask(|soundness| Arc::clone(&soundness.alarms.borrow())).unwrap_or_default()
    }

    /// Whether the CORRUPT alarm names this member, so that it serves nothing.
    pub fn is_accused(&self) -> bool {
        self.ask(Soundness::is_accused).unwrap_or_default()
    }

    /// Waits until this member is accused, or is not, as `accused` says. Not so
    /// any more if the node stops.
    pub async fn until_accused(&self, accused: bool) -> bool {
        let mut phase = self.shared.phase.subscribe();
        let settled = |phase: &Phase| !matches!(phase, Phase::Forming(_));
        let soundness = match phase.wait_for(settled).await.as_deref() {
            Ok(Phase::Running(running)) => running.soundness.clone(),
            _ => return false,
        };
        soundness.until(accused).await
    }

    /// This member's own view, whatever it is worth: to find out what is wrong
    /// with it, and not to serve from it.
    ///
    /// # Errors
    /// When this node does not belong to a cluster yet.
    pub fn examine(&self) -> Result<View<RocksEngine>, Rejected> {
        match &*self.shared.phase.borrow() {
            Phase::Running(running) => Ok(running.view.read().view.clone()),
            phase => Err(not_running(phase)),
        }
    }

    /// Refuses what is served from the state, if it must not be.
    ///
    /// # Errors
    /// When the CORRUPT alarm names this member.
    pub fn check_sound(&self) -> Result<(), Rejected> {
        self.ask(Soundness::check).unwrap_or(Ok(()))
    }

    /// What is known of it, once there is a state.
    fn ask<T>(&self, question: impl FnOnce(&Soundness) -> T) -> Option<T> {
        match &*self.shared.phase.borrow() {
            Phase::Running(running) => Some(question(&running.soundness)),
            _ => None,
        }
    }
}

/// Whether a member answers this request from its state, or for a client.
pub(super) fn is_served(request: &ForwardRequest) -> bool {
    match &request.request {
        Some(Request::Command(asked)) => asked.op.as_ref().is_some_and(command::is_of_clients),
        Some(Request::KeepAlive(_) | Request::TimeToLive(_)) => true,
        Some(Request::TransferLeader(_) | Request::StateReport(_)) | None => false,
    }
}
