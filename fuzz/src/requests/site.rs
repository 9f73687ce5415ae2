//! The member that everything is sent to.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use metastore_proof::{
    Failure, Result,
    process::{Endpoint, Member, POLL, Place, Usage},
};
use reqwest::Method;
use serde_json::Value;
use tempfile::TempDir;

use super::{Requests, Sender, Waits};

/// How long a member may take until it answers as a healthy one: elections, which
/// forged messages of peers bring about, included.
const HEALTH_LIMIT: Duration = Duration::from_secs(20);

/// How long it may take to end on SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Memory that a member may take beyond what it took at first, in KiB: the
/// documented bounds on bodies and answers allow several times as much, but what
/// is sent here is small.
const MEMORY_KIB: u64 = 512 << 10;

/// Lines of its log that a failure shows.
const SHOWN_LINES: usize = 12;

/// What inputs have to name to be taken seriously.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// The cluster's id.
    pub cluster_id: u64,
}

/// The member that is asked in the name of a peer, and its incarnation. It never
/// runs.
pub const PEER: u64 = 2;
/// See [`PEER`].
pub const PEER_INCARNATION: u64 = 22;

/// A member in a directory of its own.
pub struct Site {
    member: Member,
    watch: Watch,
    sender: Sender,
    // After the member, which is killed before its directory goes.
    _directory: TempDir,
}

/// Looks whether a member is well. Clones are of the same one.
#[derive(Debug, Clone)]
pub struct Watch {
    endpoint: Endpoint,
    pid: u32,
    known: Known,
    /// Its memory at first, in KiB.
    memory_kib: u64,
}

impl Site {
    /// Starts a member for these requests.
    pub async fn start(requests: Requests, binary: &Path) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut member = Member::new(1, binary, Place::on_loopback()?, directory.path())?;
        // Forged messages depose a leader again and again: it shall be back soon.
        member.set("--heartbeat-interval", "20ms");
        member.set("--election-timeout", "200ms");
        member.set("--log-level", "warn");
        member.start()?;
        member.wait_ready().await?;
        let pid = member.pid().ok_or_else(down)?;
        let watch = Watch::begin(member.endpoint().clone(), pid).await?;
        let place = member.place();
        let client = SocketAddr::new(place.host, place.client_port);
        let peer = SocketAddr::new(place.host, place.peer_port);
        if requests == Requests::Peer {
            watch.add_peer(peer).await?;
        }
        let sender = Sender::new(client, peer, Waits::AMONG_MANY);
        Ok(Self { member, watch, sender, _directory: directory })
    }

    /// Who looks after the member.
    pub fn watch(&self) -> Watch {
        self.watch.clone()
    }

    /// Who sends to it.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// What went wrong, with what became of the process.
    pub fn fate(&mut self, failure: &Failure) -> String {
        let ended = match self.member.ended() {
            Ok(Some(status)) => format!("the process ended ({status})"),
            Ok(None) => "the process runs".to_owned(),
            Err(unknown) => unknown.to_string(),
        };
        let log = self.member.log();
        let lines: Vec<&str> = log.lines().collect();
        let shown = lines[lines.len().saturating_sub(SHOWN_LINES)..].join(" | ");
        format!("{failure}; {ended}; {shown}")
    }

    /// The last check, and an orderly end.
    pub async fn end(mut self) -> std::result::Result<(), String> {
        let checked = self.last_check().await;
        checked.map_err(|failure| self.fate(&failure))
    }

    async fn last_check(&mut self) -> Result<()> {
        self.watch.check().await?;
        let put = self.watch.endpoint.request(Method::PUT, "/the-end", "reached").await?;
        let got = self.watch.endpoint.request(Method::GET, "/the-end", "").await?;
        if put.status != 204 || got.status != 200 || got.body != b"reached" {
            return Err(Failure::failed(format!("put {}: got {}", put.status, got.text())));
        }
        match self.member.stop(STOP_LIMIT).await? {
            Some(0) => Ok(()),
            code => Err(Failure::failed(format!("it ended with {code:?} on SIGTERM"))),
        }
    }
}

fn down() -> Failure {
    Failure::failed("the member ended at once")
}

impl Watch {
    /// Watches a member that is ready, and the memory of its process.
    pub async fn begin(endpoint: Endpoint, pid: u32) -> Result<Self> {
        let status = endpoint.status().await.ok_or_else(down)?;
        let known = Known { cluster_id: status["cluster_id"].as_u64().ok_or_else(down)? };
        let memory_kib = Usage::of(pid).ok_or_else(down)?.memory_kib;
        Ok(Self { endpoint, pid, known, memory_kib })
    }

    /// What inputs have to name.
    pub fn known(&self) -> Known {
        self.known
    }

    /// Whether the member is well, and within its memory. What it was told to
    /// stop doing, it may do again.
    pub async fn check(&self) -> Result<()> {
        let start = Instant::now();
        while !self.is_healthy().await {
            if start.elapsed() >= HEALTH_LIMIT {
                let what = format!("it is not healthy after {HEALTH_LIMIT:?}");
                return Err(Failure::failed(what));
            }
            // A member that a client had named corrupt is well again without
            // that alarm; whatever else ails it is still there in the next turn.
            let _disarmed = self.disarm().await;
            tokio::time::sleep(POLL).await;
        }
        self.disarm().await?;
        let usage = Usage::of(self.pid).ok_or_else(|| Failure::failed("the process is gone"))?;
        let most = self.memory_kib + MEMORY_KIB;
        if usage.memory_kib > most {
            let memory = usage.memory_kib;
            return Err(Failure::failed(format!("it takes {memory} KiB, more than {most}")));
        }
        Ok(())
    }

    /// Takes back the alarms that were raised, with which nothing is written.
    async fn disarm(&self) -> Result<()> {
        let alarm = "/v3/maintenance/alarm";
        let raised = self.endpoint.request(Method::POST, alarm, r#"{"action":"GET"}"#).await?;
        // Without an answer, a leader was deposed in between: until next time.
        let raised: Value = serde_json::from_slice(&raised.body).unwrap_or_default();
        for mut raised in raised["alarms"].as_array().cloned().unwrap_or_default() {
            raised["action"] = "DEACTIVATE".into();
            let _answer = self.endpoint.request(Method::POST, alarm, raised.to_string()).await?;
        }
        Ok(())
    }

    async fn is_healthy(&self) -> bool {
        let answer = self.endpoint.request(Method::GET, "/-/health", "").await;
        answer.is_ok_and(|answer| answer.status == 200)
    }

    /// Adds the member in whose name others are asked, and binds its incarnation.
    async fn add_peer(&self, peer_port: SocketAddr) -> Result<()> {
        let body = format!(r#"{{"id":{PEER},"peer_url":"http://[::1]:7002","learner":true}}"#);
        let request = self.endpoint.build(Method::POST, "/-/members");
        let request = request.header("content-type", "application/json").body(body);
        let added = self.endpoint.send(request).await?;
        if added.status != 201 {
            return Err(Failure::failed(format!("add a member: {}", added.text())));
        }
        let join = prost::Message::encode_to_vec(&metastore::proto::JoinRequest {
            member_id: PEER,
            incarnation: PEER_INCARNATION,
        });
        let limit = Duration::from_secs(10);
        let endpoint = Endpoint::new(1, peer_port, limit)?;
        let joined = endpoint.request(Method::POST, "/raft/join", join).await?;
        if joined.status != 200 {
            return Err(Failure::failed(format!("bind an incarnation: {}", joined.text())));
        }
        Ok(())
    }
}
