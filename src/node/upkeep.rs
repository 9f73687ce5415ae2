//! What a member does beside its threads: announcing its client URL, learning
//! from its peers what its own state does not tell it yet, and keeping house.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::sleep;

use super::{Parts, handle::Running};
use crate::{
    machine::{self, StateMachine},
    proto::{FoundingHello, Identity, Members, SetClientUrl, command::Op},
    storage::{Engine as _, rocks::RocksEngine},
};

/// Pause between attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// Bytes of files that are unlinked after each pause: a filesystem that frees
/// gigabytes at once can keep a sync waiting for seconds.
const UNLINK_BYTES: usize = 128 << 20;

/// How long a start may wait for peers to say where this member should listen.
const OWN_URL_PATIENCE: Duration = Duration::from_millis(700);

impl Parts {
    /// Starts the tasks of a running member.
    pub(super) fn start_upkeep(self: &Arc<Self>, running: Arc<Running>) {
        self.compare_flags(&running.directory.applied());
        let parts = Arc::clone(self);
        let member = Arc::clone(&running);
        tokio::spawn(async move {
            let announced = async {
                tokio::join!(parts.announce_readiness(), parts.announce_client_url(&member))
            };
            parts.cancel.run_until_cancelled(announced).await;
        });
        let parts = Arc::clone(self);
        tokio::spawn(async move {
            let kept_up = async {
                tokio::join!(
                    parts.ask_while_leaderless(&running),
                    parts.compact_by_itself(),
                    parts.forget(&running),
                    parts.watch_quota()
                )
            };
            parts.cancel.run_until_cancelled(kept_up).await;
        });
    }

    /// Gives back the space of what was compacted away, on this member's disk
    /// only: nobody can tell whether it is still there.
    async fn forget(&self, running: &Running) {
        loop {
            sleep(PAUSE).await;
            // Anew each time, since an installed snapshot is another database.
            let state = running.view.read().state.clone();
            if !state.floor().is_behind() && !state.has_forgotten() {
                continue;
            }
            let forgetting = tokio::task::spawn_blocking(move || {
                if state.floor().is_behind() {
                    state.flush()?;
                }
                state.unlink_forgotten(UNLINK_BYTES)
            });
            match forgetting.await {
                Ok(Ok(())) => {}
                Ok(Err(fatal)) => return self.handle.fail(fatal),
                // The runtime is being stopped.
                Err(_) => return,
            }
        }
    }

    /// Says once that stored members count, not the flag.
    fn compare_flags(&self, members: &Members) {
        let stored: Vec<_> = members.members.iter().map(|m| (m.id, m.peer_url.as_str())).collect();
        let flags: Vec<_> =
            self.config.cluster.iter().map(|entry| (entry.id, entry.url.as_str())).collect();
        if !stored.is_empty() && stored != flags {
            let stored: Vec<_> = stored.iter().map(|(id, url)| format!("{id}={url}")).collect();
            slog::info!(
                self.logger,
                "--cluster differs from the stored members, which count: {}",
                stored.join(",")
            );
        }
    }

    /// Logs when the first linearizable read has succeeded.
    async fn announce_readiness(&self) {
        while self.handle.is_ready().await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
        slog::info!(self.logger, "ready to serve client requests");
    }

    /// Has this member's client URL replicated, so that every member can name
    /// it.
    async fn announce_client_url(&self, running: &Running) {
        let client_url = &self.config.advertise_client_url;
        let id = self.config.id;
        loop {
            let members = running.directory.applied();
            if machine::member(&members, id).is_some_and(|m| m.client_url == *client_url) {
                return;
            }
            let op = Op::SetClientUrl(SetClientUrl { id, client_url: client_url.clone() });
            if let Err(why) = self.handle.submit(op).await {
                slog::debug!(self.logger, "cannot announce the client URL yet: {why}");
            }
            sleep(PAUSE).await;
        }
    }

    /// A member that lags may lack the URL of whoever leads now, and others
    /// may lack its own. While no leader is heard of, it asks around.
    async fn ask_while_leaderless(&self, running: &Running) {
        let patience = 2 * self.config.election_timeout;
        let mut role = running.role.clone();
        loop {
            if role.wait_for(|role| role.leader_id == 0).await.is_err() {
                return;
            }
            let found = role.wait_for(|role| role.leader_id != 0);
            if tokio::time::timeout(patience, found).await.is_ok() {
                continue;
            }
            let known = running.directory.peers();
            let listed = self.config.cluster.iter().map(|entry| (entry.id, entry.url.clone()));
            for hello in self.ask_all(known.into_iter().chain(listed)).await {
                if hello.cluster_id == running.identity.cluster_id {
                    self.learn(running, &hello);
                }
            }
        }
    }

    fn learn(&self, running: &Running, hello: &FoundingHello) {
        let Some(members) = &hello.members else { return };
        if members.removed_ids.contains(&self.config.id) {
            (self.removed)();
        }
        running.directory.vouch(members.clone());
    }

    async fn ask_all(&self, peers: impl Iterator<Item = (u64, String)>) -> Vec<FoundingHello> {
        let client = &self.client;
        let own = self.config.id;
        let questions = peers
            .filter(|(id, _)| *id != own)
            .map(|(_, url)| async move { client.hello(&url).await.ok() });
        join_all(questions).await.into_iter().flatten().collect()
    }

    /// Where this member listens: its URL as stored, unless the others know of
    /// a newer one, which it may not have seen while it was away.
    pub(super) async fn own_url(
        &self,
        identity: &Identity,
        machine: &StateMachine<RocksEngine>,
    ) -> String {
        let members = machine.members();
        let id = self.config.id;
        let stored = machine::member(&members, id).map(|member| member.peer_url.clone());
        let stored = stored.unwrap_or_else(|| self.config.peer_url().to_owned());
        let peers = members.members.iter().map(|m| (m.id, m.peer_url.clone()));
        let asked = tokio::time::timeout(OWN_URL_PATIENCE, self.ask_all(peers));
        let newest = asked
            .await
            .unwrap_or_default()
            .into_iter()
            .filter(|hello| hello.cluster_id == identity.cluster_id)
            .filter(|hello| hello.applied_index > machine.position().index)
            .max_by_key(|hello| hello.applied_index);
        newest
            .and_then(|hello| hello.members)
            .and_then(|members| machine::member(&members, id).map(|m| m.peer_url.clone()))
            .unwrap_or(stored)
    }
}
