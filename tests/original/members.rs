//! Members of one cluster in this process, over real sockets.

use std::{collections::BTreeMap, time::Duration};

use metastore::{
    config::{AutoCompaction, ClusterEntry, Config, LogFormat, http_url},
    metrics::Metrics,
    node::{Handle, Node},
};
use slog::{Discard, Logger, o};
use tempfile::TempDir;

use crate::process::{STOP_LIMIT, eventually, free_port};

/// How long a request may take before its answer says "not applied" or
/// "unknown".
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Founders 1 to n, without their client API.
pub struct Members {
    nodes: BTreeMap<u64, Node>,
    configs: BTreeMap<u64, Config>,
    _dir: TempDir,
}

impl Members {
    /// Founders 1 to `size`, up and ready.
    pub async fn start(size: u64) -> Self {
        let dir = TempDir::with_prefix("metastore-test-").expect("make a temporary directory");
        let url = || http_url("127.0.0.1", free_port());
        let cluster: Vec<_> = (1..=size).map(|id| ClusterEntry { id, url: url() }).collect();
        let config = |id| Config {
            id,
            cluster: cluster.clone(),
            join: false,
            host: "127.0.0.1".to_owned(),
            port: free_port(),
            data_dir: dir.path().to_owned(),
            snapshot_count: 10_000,
            heartbeat_interval: Duration::from_millis(50),
            election_timeout: Duration::from_millis(500),
            request_timeout: REQUEST_TIMEOUT,
            max_request_bytes: 1 << 20,
            max_response_bytes: 256 << 20,
            auto_compaction: AutoCompaction::Off,
            quota_backend_bytes: 0,
            corruption_check_interval: Duration::ZERO,
            advertise_client_url: format!("http://member-{id}:1"),
            log_format: LogFormat::Text,
            log_level: slog::Level::Info,
        };
        let configs = (1..=size).map(|id| (id, config(id))).collect();
        let mut members = Self { nodes: BTreeMap::new(), configs, _dir: dir };
        for id in 1..=size {
            members.start_one(id).await;
        }
        for id in 1..=size {
            members.wait_ready(id).await;
        }
        members
    }

    /// Starts a member that is down.
    pub async fn start_one(&mut self, id: u64) {
        let config = &self.configs[&id];
        // What the previous start held is let go in the background.
        let node = eventually("the member's directory and port are free", async || {
            let logger = Logger::root(Discard, o!());
            Node::start(config.clone(), Metrics::new(), logger).await.ok()
        })
        .await;
        self.nodes.insert(id, node);
    }

    /// Waits until the member serves linearizable reads.
    pub async fn wait_ready(&self, id: u64) {
        let handle = self.handle(id);
        eventually("the member is ready", async || handle.is_ready().await.ok()).await;
    }

    /// Stops a member, which must not have failed before and must not hang.
    pub async fn stop(&mut self, id: u64) {
        let mut node = self.nodes.remove(&id).expect("it runs");
        let ended = futures_util::FutureExt::now_or_never(node.ended());
        assert_eq!(ended, None, "member {id} had ended before");
        let stopped = tokio::time::timeout(STOP_LIMIT, node.shutdown()).await;
        stopped.expect("a node stops in time");
    }

    /// What an API sees of a member that runs.
    pub fn handle(&self, id: u64) -> Handle {
        self.nodes[&id].handle()
    }

    /// The id of the leader that every running member follows.
    pub async fn leader(&self) -> u64 {
        eventually("one leader whom every member follows", async || {
            let leaders: Vec<u64> =
                self.nodes.values().map(|node| node.handle().status().leader_id).collect();
            let all_one = leaders.iter().all(|&leader| leader != 0 && leader == leaders[0]);
            all_one.then(|| leaders[0])
        })
        .await
    }

    /// Checks that all running members come to hold the same state at the
    /// same position.
    pub async fn assert_same_state(&self) {
        eventually("all members hold the same state", async || {
            let hash = |node: &Node| node.handle().view().ok()?.hash().ok();
            let hashes: Vec<_> = self.nodes.values().map(hash).collect();
            hashes.iter().all(|hash| hash.is_some() && *hash == hashes[0]).then_some(())
        })
        .await;
    }

    /// Stops every member that runs.
    pub async fn stop_all(mut self) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.stop(id).await;
        }
    }
}
