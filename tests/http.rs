//! The HTTP contract, row by row, against the real binary.

#[path = "http/wire.rs"]
mod wire;

#[path = "http/bodies.rs"]
mod bodies;
#[path = "http/conditions.rs"]
mod conditions;
#[path = "http/connections.rs"]
mod connections;
#[path = "http/gateway.rs"]
mod gateway;
#[path = "http/keys.rs"]
mod keys;
#[path = "http/leases.rs"]
mod leases;
#[path = "http/listing.rs"]
mod listing;
#[path = "http/members.rs"]
mod members;
#[path = "http/operations.rs"]
mod operations;
#[path = "http/txn.rs"]
mod txn;
#[path = "http/watching.rs"]
mod watching;

mod process;

use process::Node;
use tempfile::TempDir;
use wire::Port;

/// The limit on bodies that the tested nodes are given, in bytes.
const MAX_REQUEST_BYTES: usize = 100_000;

/// A node in a directory of its own. Dropped, the process is killed first.
struct Server {
    node: Node,
    _dir: TempDir,
}

impl Server {
    fn new() -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let mut node = Node::new(1, dir.path());
        node.set("--max-request-bytes", MAX_REQUEST_BYTES.to_string());
        Self { node, _dir: dir }
    }

    /// A cluster of one, ready.
    async fn start() -> Self {
        let mut server = Self::new();
        server.node.start().await;
        server
    }

    fn port(&self) -> Port {
        Port(self.node.client_port())
    }
}
