//! Several nodes in one temporary directory.

use std::time::Instant;

use reqwest::Method;
use tempfile::TempDir;

use super::{DEADLINE, Endpoint, Node, POLL, eventually};

/// Nodes and the directory of their data and logs. Dropping it ends the
/// processes and removes the directory.
pub struct Cluster {
    // Dropped in this order: processes first, then their directory.
    nodes: Vec<Node>,
    dir: TempDir,
}

impl Cluster {
    /// Founders 1 to `size`, not started.
    pub fn new(size: u64) -> Self {
        let dir = TempDir::with_prefix("metastore-test-").expect("make a temporary directory");
        let mut nodes: Vec<Node> = (1..=size).map(|id| Node::new(id, dir.path())).collect();
        let urls: Vec<String> = nodes.iter().map(Node::peer_url).collect();
        for node in &mut nodes {
            node.set("--cluster", urls.join(","));
        }
        Self { nodes, dir }
    }

    /// Founders 1 to `size`, up and ready.
    pub async fn start(size: u64) -> Self {
        Self::start_with(size, &[]).await
    }

    /// As [`start`](Self::start) with further options for every node.
    pub async fn start_with(size: u64, options: &[(&str, &str)]) -> Self {
        let mut cluster = Self::new(size);
        for node in &mut cluster.nodes {
            for (option, value) in options {
                node.set(option, *value);
            }
        }
        cluster.start_all().await;
        cluster
    }

    /// Starts every node that is down, then waits until each is ready.
    pub async fn start_all(&mut self) {
        let mut started = Vec::new();
        for node in &mut self.nodes {
            if !node.is_running() {
                node.spawn();
                started.push(node);
            }
        }
        for node in started {
            node.wait_ready().await;
        }
    }

    /// Starts every node that is down and returns at once.
    pub fn spawn_all(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| !node.is_live()) {
            node.spawn();
        }
    }

    /// Takes in a node whose directory is [`dir`](Self::dir).
    pub fn adopt(&mut self, node: Node) {
        self.nodes.push(node);
    }

    /// The directory that holds data and logs.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// The node of this id.
    ///
    /// # Panics
    /// When there is none.
    pub fn node(&self, id: u64) -> &Node {
        self.nodes.iter().find(|node| node.id == id).expect("a node of this id")
    }

    /// The node of this id.
    ///
    /// # Panics
    /// When there is none.
    pub fn node_mut(&mut self, id: u64) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.id == id).expect("a node of this id")
    }

    /// The client port of the node of this id.
    pub fn http(&self, id: u64) -> &Endpoint {
        self.node(id).http()
    }

    /// The ids of the nodes that run and are not paused.
    pub fn live(&self) -> Vec<u64> {
        self.nodes.iter().filter(|node| node.is_live()).map(|node| node.id).collect()
    }

    /// The ids of the live nodes but this one.
    pub fn others(&self, id: u64) -> Vec<u64> {
        self.live().into_iter().filter(|other| *other != id).collect()
    }

    /// Client ports of the live nodes.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.live().into_iter().map(|id| self.http(id).clone()).collect()
    }

    /// A further node with `--join`, not started and not yet added.
    pub fn prepare_joiner(&mut self, id: u64) -> &mut Node {
        let mut node = Node::new(id, self.dir.path());
        let entries =
            self.nodes.iter().chain([&node]).filter(|node| node.is_live() || node.id == id);
        let list: Vec<String> =
            entries.map(|node| format!("{}={}", node.id, node.peer_url())).collect();
        node.set("--cluster", list.join(","));
        node.set_join(true);
        self.nodes.push(node);
        self.nodes.last_mut().expect("just pushed")
    }

    /// Adds a member through the node `via`, starts it with `--join`, and waits
    /// until it is a voter and ready.
    pub async fn join(&mut self, id: u64, via: u64) {
        let url = self.prepare_joiner(id).peer_url();
        self.http(via).add_member(id, &url, false).await;
        self.node_mut(id).start().await;
    }

    /// Waits until every live node follows the same live leader; its id.
    pub async fn leader(&self) -> u64 {
        eventually("one leader whom every live node follows", async || {
            let mut agreed = None;
            for id in self.live() {
                let status = self.http(id).try_status().await?;
                let view = (status["leader_id"].as_u64()?, status["term"].as_u64()?);
                let leads = status["role"] == "leader";
                if *agreed.get_or_insert(view) != view || leads != (view.0 == id) {
                    return None;
                }
            }
            agreed.map(|(leader, _)| leader).filter(|leader| self.live().contains(leader))
        })
        .await
    }

    /// Makes a member the leader.
    pub async fn lead(&self, id: u64) {
        let via = self.live()[0];
        eventually("a transfer of leadership", async || {
            // 409: the member was not seen alive recently enough, as yet.
            let path = format!("/-/leader/{id}");
            let reply = self.http(via).request(Method::POST, &path, "").await.ok()?;
            (reply.status == 204).then_some(())
        })
        .await;
    }

    /// Checks that all live replicas hold the same state: applied index,
    /// revision and hash, once they have caught up with each other.
    ///
    /// # Panics
    /// When they still differ at the deadline.
    pub async fn assert_same_state(&self) {
        let start = Instant::now();
        loop {
            let mut states = Vec::new();
            for id in self.live() {
                states.push((id, self.http(id).state().await));
            }
            let first = states.first().and_then(|(_, state)| state.as_ref());
            assert!(!states.is_empty(), "no live node to compare");
            if first.is_some() && states.iter().all(|(_, state)| state.as_ref() == first) {
                return;
            }
            assert!(start.elapsed() < DEADLINE, "replicas differ: {states:?}");
            tokio::time::sleep(POLL).await;
        }
    }
}
