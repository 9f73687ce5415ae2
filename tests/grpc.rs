//! The gRPC port beyond what etcd's semantics say: one port with plain HTTP,
//! sizes, and what is left behind by clients that go away.

mod process;

#[path = "grpc/leader.rs"]
mod leader;
#[path = "grpc/limits.rs"]
mod limits;
#[path = "grpc/port.rs"]
mod port;
#[path = "grpc/waiting.rs"]
mod waiting;

use bytes::Bytes;
use metastore::proto::etcdserverpb::{
    LeaseGrantRequest, PutRequest, RangeRequest, kv_client::KvClient, lease_client::LeaseClient,
    watch_client::WatchClient,
};
use process::Node;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// A node in a directory of its own. Dropped, the process is killed first.
struct Server {
    node: Node,
    _dir: TempDir,
}

impl Server {
    async fn start(options: &[(&str, &str)]) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let mut node = Node::new(1, dir.path());
        for (option, value) in options {
            node.set(option, *value);
        }
        node.start().await;
        Self { node, _dir: dir }
    }

    /// A connection of its own.
    async fn channel(&self) -> Channel {
        let url = format!("http://127.0.0.1:{}", self.node.client_port());
        let endpoint = Endpoint::from_shared(url).expect("a URL");
        endpoint.connect().await.expect("a connection")
    }

    async fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel().await).max_decoding_message_size(usize::MAX)
    }

    async fn watch(&self) -> WatchClient<Channel> {
        WatchClient::new(self.channel().await)
    }

    async fn grant(&self) -> i64 {
        let mut leases = LeaseClient::new(self.channel().await);
        let request = LeaseGrantRequest { ttl: 600, id: 0 };
        leases.lease_grant(request).await.expect("a lease").into_inner().id
    }

    /// A sample of the node's metrics; `None` when it is not there.
    async fn metric(&self, sample: &str) -> Option<f64> {
        let reply = self.node.http().ask(hyper::Method::GET, "/-/metrics", "").await;
        let text = reply.text();
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))?;
        Some(value.parse().expect("a number"))
    }

    /// Requests and calls that are being answered, beside the one that asks.
    async fn in_flight(&self) -> f64 {
        let all = self.metric("metastore_http_requests_in_flight").await.expect("the gauge");
        all - 1.0
    }
}

fn put(key: &str, value: impl Into<Bytes>) -> PutRequest {
    PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: value.into(),
        ..Default::default()
    }
}

fn one(key: &str) -> RangeRequest {
    RangeRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..Default::default() }
}

/// All keys.
fn everything() -> RangeRequest {
    RangeRequest { range_end: Bytes::from_static(b"\0"), ..one("\0") }
}
