//! What this node says to its peers' calls.

use std::{path::PathBuf, sync::Arc};

use futures_util::future::{BoxFuture, FutureExt as _};
use parking_lot::Mutex;
use raft::eraftpb::Message;

use super::{
    data_dir::DataDir,
    handle::{Handle, Phase},
};
use crate::{
    error::Rejected,
    machine,
    proto::{
        BindIncarnation, ForwardRequest, ForwardResponse, FoundingHello, JoinRequest, JoinResponse,
        Members, command::Op, join_response::Refusal, outcome,
    },
    transport::{Dismissal, Joined, OnDismissed, PeerService},
};

/// The node as its peers see it.
pub(super) struct Service {
    pub handle: Handle,
    pub data_dir: DataDir,
    /// What is said while this member belongs to no cluster yet. A lock
    /// because the forming task changes it and the peer listener reads it.
    pub founding: Arc<Mutex<FoundingHello>>,
    pub on_dismissed: OnDismissed,
}

impl PeerService for Service {
    fn joined(&self) -> Option<Joined> {
        match &*self.handle.shared.phase.borrow() {
            Phase::Running(running) => {
                Some(Joined { directory: running.directory.clone(), inbox: running.inbox.clone() })
            }
            _ => None,
        }
    }

    fn hello(&self) -> FoundingHello {
        let mut hello = self.founding.lock().clone();
        if let Some(joined) = self.joined() {
            hello.cluster_id = joined.directory.identity().cluster_id;
            hello.applied_index = self.handle.status().applied_index;
            hello.members = Some((*joined.directory.applied()).clone());
        }
        hello
    }

    fn forward(&self, from: u64, request: ForwardRequest) -> BoxFuture<'_, ForwardResponse> {
        self.handle.serve_forwarded(from, request).boxed()
    }

    fn join(&self, request: JoinRequest) -> BoxFuture<'_, JoinResponse> {
        async move {
            match self.bind(request).await {
                Ok(members) => {
                    JoinResponse { refusal: Refusal::None.into(), members: Some(members) }
                }
                Err(refusal) => JoinResponse { refusal: refusal.into(), members: None },
            }
        }
        .boxed()
    }

    fn snapshot_received(
        &self,
        message: Message,
        dir: PathBuf,
    ) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let joined = self.joined().ok_or("this node belongs to no cluster yet")?;
            let index = message.get_snapshot().get_metadata().index;
            let applied = self.handle.status().applied_index;
            let data_dir = self.data_dir.clone();
            tokio::task::spawn_blocking(move || data_dir.keep_received(index, &dir, applied))
                .await
                .map_err(|e| e.to_string())?
                .map_err(|fatal| fatal.to_string())?;
            if joined.inbox.message(message) {
                Ok(())
            } else {
                Err("too many messages are waiting".to_owned())
            }
        }
        .boxed()
    }

    fn dismissed(&self, why: Dismissal) {
        (self.on_dismissed)(why);
    }
}

impl Service {
    /// Binds a new member's incarnation to its id, by a committed command.
    async fn bind(&self, request: JoinRequest) -> Result<Members, Refusal> {
        let JoinRequest { member_id: id, incarnation } = request;
        let members = self.handle.members();
        if members.removed_ids.contains(&id) {
            return Err(Refusal::Removed);
        }
        let bound = machine::member(&members, id).map(|member| member.incarnation);
        match bound {
            Some(present) if present == incarnation && incarnation != 0 => {
                return Ok((*members).clone());
            }
            Some(present) if present != 0 => return Err(Refusal::Bound),
            Some(_) => {}
            // This member may lag, but a stranger that asks again and again
            // must not make the log grow.
            None => {
                self.handle.catch_up().await.map_err(|_| Refusal::Unavailable)?;
                if machine::member(&self.handle.members(), id).is_none() {
                    return Err(Refusal::UnknownMember);
                }
            }
        }
        let op = Op::BindIncarnation(BindIncarnation { id, incarnation });
        match self.handle.submit(op).await.map(|outcome| outcome.result) {
            Ok(Some(outcome::Result::Member(_))) => Ok((*self.handle.members()).clone()),
            Ok(Some(outcome::Result::MemberNotFound(_))) if members.removed_ids.contains(&id) => {
                Err(Refusal::Removed)
            }
            Ok(Some(outcome::Result::MemberNotFound(_))) => Err(Refusal::UnknownMember),
            Ok(Some(outcome::Result::Conflict(_))) => Err(Refusal::Bound),
            Ok(_) | Err(Rejected::NotApplied(_) | Rejected::Overloaded(_)) => {
                Err(Refusal::Unavailable)
            }
            Err(_) => Err(Refusal::Unavailable),
        }
    }
}
