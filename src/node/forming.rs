//! A member's first start: finding the other founders, or joining.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    Parts,
    founding::{self, Founding, Step},
    handle::Phase,
};
use crate::{
    error::Fatal,
    machine::{self, StateMachine},
    proto::{FoundingRecord, Identity, JoinRequest, Members, join_response::Refusal},
    raftlog::{self, FOUNDING_POSITION, Recovered},
};

/// Pause between two rounds of asking the others.
const PAUSE: Duration = Duration::from_millis(200);

impl Parts {
    /// Forms or joins the cluster, then takes part in it.
    pub(super) async fn form(self: &Arc<Self>, recovered: Recovered) -> Result<(), Fatal> {
        let joined = if self.config.join {
            Some(self.join().await?)
        } else {
            self.found(recovered.prepared).await?;
            None
        };
        let recovered = Recovered::read(&self.raft)?;
        let identity = recovered.identity.ok_or_else(|| {
            Fatal::corrupt("the identity that was just stored cannot be read back")
        })?;
        let machine = self.open_state(&identity, &recovered)?;
        self.run(identity, recovered, machine)?;
        if let (Some(members), Phase::Running(running)) =
            (joined, &*self.handle.shared.phase.borrow())
        {
            running.directory.vouch(members);
        }
        Ok(())
    }

    /// Agrees with the other founders.
    async fn found(&self, prepared: Option<FoundingRecord>) -> Result<(), Fatal> {
        let founders = self.config.cluster.clone();
        let mut founding = Founding::new(self.config.id, self.incarnation, founders, prepared);
        // What stands in the way and will not go away by waiting.
        let mut obstacle: Option<String> = None;
        loop {
            match founding.step() {
                Step::Found(record) => return self.store_founding(&record),
                Step::Prepare(record) => {
                    raftlog::store_prepared(&self.raft, &record)?;
                    self.founding.lock().prepared = Some(record.clone());
                    founding.prepared(record);
                    // Nobody to ask is no reason to wait.
                    if founding.others().next().is_none() {
                        continue;
                    }
                }
                Step::Wait(why) => {
                    self.wait_for(obstacle.as_ref().unwrap_or(&why));
                    sleep(PAUSE).await;
                }
            }
            obstacle = None;
            let others: Vec<_> = founding.others().cloned().collect();
            for other in others {
                match self.client.hello(&other.url).await {
                    Ok(hello) if hello.member_id == other.id => founding.hear(other.id, hello)?,
                    Ok(hello) => {
                        obstacle = Some(format!(
                            "{} is member {}, but --cluster says {}: correct --cluster",
                            other.url, hello.member_id, other.id
                        ));
                    }
                    Err(error) if error.is_stranger() => {
                        obstacle = Some(format!("member {} at {}: {error}", other.id, other.url));
                    }
                    // Not there yet, or not any more.
                    Err(_) => {}
                }
            }
        }
    }

    fn store_founding(&self, record: &FoundingRecord) -> Result<(), Fatal> {
        let name = raftlog::state_dir(FOUNDING_POSITION.index);
        let engine = self.data_dir.create_state(&name)?;
        StateMachine::bootstrap(&engine, record)?;
        drop(engine);
        let identity = self.identity(machine::cluster_id(record));
        raftlog::found(&self.raft, &identity, &name)?;
        let count = record.founders.len();
        slog::info!(self.logger, "founded cluster {} with {count} members", identity.cluster_id);
        Ok(())
    }

    /// Has this member's incarnation bound to its id, and so learns of the
    /// cluster.
    async fn join(&self) -> Result<Members, Fatal> {
        let id = self.config.id;
        let request = JoinRequest { member_id: id, incarnation: self.incarnation };
        let others: Vec<_> = self.config.cluster.iter().filter(|entry| entry.id != id).collect();
        self.wait_for("joining: asking the members in --cluster");
        loop {
            for other in &others {
                let response = match self.client.join(&other.url, &request).await {
                    Ok(response) => response,
                    Err(cause) => {
                        self.wait_for(&format!(
                            "joining: waiting for member {} at {}: {cause}",
                            other.id, other.url
                        ));
                        continue;
                    }
                };
                match response.refusal() {
                    Refusal::None => {
                        let members = response.members.unwrap_or_default();
                        self.store_joining(members.cluster_id)?;
                        return Ok(members);
                    }
                    Refusal::Bound => return Err(founding::bound_elsewhere(id)),
                    Refusal::Removed => return Err(founding::removed_before(id)),
                    Refusal::UnknownMember => self.wait_for(&format!(
                        "joining: waiting to be added: the cluster at {} has no member {id} yet \
                         (POST /-/members)",
                        other.url
                    )),
                    Refusal::Unavailable => self.wait_for(&format!(
                        "joining: the cluster at {} has no quorum at the moment",
                        other.url
                    )),
                }
            }
            sleep(PAUSE).await;
        }
    }

    fn store_joining(&self, cluster_id: u64) -> Result<(), Fatal> {
        if cluster_id == 0 {
            return Err(Fatal::new(
                "the cluster's answer does not name the cluster",
                "start this node with the same version of metastore as the others",
            ));
        }
        let name = raftlog::state_dir(0);
        drop(self.data_dir.create_state(&name)?);
        raftlog::join(&self.raft, &self.identity(cluster_id), &name)?;
        slog::info!(self.logger, "joined cluster {cluster_id}");
        Ok(())
    }

    fn identity(&self, cluster_id: u64) -> Identity {
        Identity { cluster_id, member_id: self.config.id, incarnation: self.incarnation }
    }

    /// Says, once, what the start waits for.
    fn wait_for(&self, why: &str) {
        let news = self.handle.shared.phase.send_if_modified(|phase| match phase {
            Phase::Forming(present) if present != why => {
                why.clone_into(present);
                true
            }
            _ => false,
        });
        if news {
            slog::info!(self.logger, "{why}");
        }
    }
}
