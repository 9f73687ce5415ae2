//! What a member that starts again asks the others first.
//!
//! Its data may be an older copy, put back by somebody who did not know that
//! it then makes its promises a second time. The streams to its peers would
//! find that out, but one peer may take its vote before another has refused
//! it. So it asks all of them before it takes part. Who does not answer has no
//! say: a cluster whose members all start at once must not wait for itself.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::Parts;
use crate::{
    error::Fatal,
    machine::StateMachine,
    proto::Identity,
    raftlog::{Promises, Recovered},
    storage::rocks::RocksEngine,
    transport::{CallError, Dismissal, OnDismissed},
};

/// How long a start may wait for peers that do not answer.
const PATIENCE: Duration = Duration::from_secs(1);

impl Parts {
    /// Asks every peer whether it knows this member to have had more.
    ///
    /// # Errors
    /// When one does.
    pub(super) async fn roll_call(
        &self,
        identity: Identity,
        recovered: &Recovered,
        stored: &StateMachine<RocksEngine>,
    ) -> Result<(), Fatal> {
        let promises = recovered.promises();
        let members = stored.members();
        let others = members.members.iter().filter(|member| member.id != identity.member_id);
        let questions = others.map(|peer| async {
            let client = &self.client;
            let question = client.members(&peer.peer_url, &identity, &promises, peer.id);
            match timeout(PATIENCE, question).await {
                Ok(Err(CallError::Outdated(known))) if promises.are_behind(&known) => {
                    Err(outdated(identity.member_id, peer.id, &promises, &known))
                }
                _ => Ok(()),
            }
        });
        join_all(questions).await.into_iter().collect()
    }

    /// What to do when a peer says that this member must stop.
    pub(super) fn on_dismissed(&self) -> OnDismissed {
        let removed = Arc::clone(&self.removed);
        let (handle, id) = (self.handle.clone(), self.config.id);
        Arc::new(move |why| match why {
            Dismissal::Removed => removed(),
            Dismissal::Outdated { peer, present, known } => {
                handle.fail(outdated(id, peer, &present, &known));
            }
        })
    }
}

fn outdated(id: u64, peer: u64, present: &Promises, known: &Promises) -> Fatal {
    Fatal::new(
        format!(
            "the data directory of member {id} is an older copy: it holds {present}, but member \
             {peer} knows that it held {known}"
        ),
        format!(
            "what it had promised is gone: remove member {id} and add it again under a new id, \
             then start it with that --id and --join"
        ),
    )
}
