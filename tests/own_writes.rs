//! What a member has answered is in its own state, whoever leads: the next read of
//! this member shows it, also one that asks nobody else.

use std::{net::TcpListener, time::Duration};

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use metastore::{
    config::{AutoCompaction, ClusterEntry, Config, LogFormat, http_url},
    metrics::Metrics,
    node::{Handle, Node},
    proto::{Put, command::Op},
};
use slog::{Discard, Logger, o};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

/// How long anything may take here before it counts as never.
const PATIENCE: Duration = Duration::from_secs(30);

/// Writes through each member.
const WRITES: u64 = 500;

fn config(id: u64, cluster: &[ClusterEntry], dir: &TempDir) -> Config {
    Config {
        id,
        cluster: cluster.to_vec(),
        join: false,
        host: "127.0.0.1".to_owned(),
        port: 1,
        data_dir: dir.path().to_owned(),
        snapshot_count: 10_000,
        heartbeat_interval: Duration::from_millis(50),
        election_timeout: Duration::from_millis(500),
        request_timeout: Duration::from_secs(5),
        max_request_bytes: 1 << 20,
        max_response_bytes: 256 << 20,
        auto_compaction: AutoCompaction::Off,
        quota_backend_bytes: 0,
        corruption_check_interval: Duration::ZERO,
        advertise_client_url: "http://127.0.0.1:1".to_owned(),
        log_format: LogFormat::Text,
        log_level: slog::Level::Info,
    }
}

fn free_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("it is bound").port()
}

async fn until_ready(handle: &Handle) {
    let ready = async {
        while handle.is_ready().await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, ready).await.expect("ready in time");
}

/// Writes one key again and again, and reads it here each time.
async fn write_and_read(handle: Handle, key: Bytes) {
    for number in 0..WRITES {
        let value = Bytes::from(number.to_string());
        let put = Put { key: key.clone(), value: value.clone(), ..Put::default() };
        let written = timeout(PATIENCE, handle.submit(Op::Put(put))).await.expect("in time");
        written.expect("a cluster that nothing happens to takes it");
        let view = handle.view().expect("it serves");
        let read = view.get(&key).expect("its disk is sound").map(|record| record.value);
        assert_eq!(read, Some(value), "{key:?} by member {}", handle.status().id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_shows_what_it_has_answered() {
    let dirs: Vec<TempDir> = (0..3)
        .map(|_| TempDir::with_prefix("metastore-test-").expect("make a temporary directory"))
        .collect();
    let cluster: Vec<ClusterEntry> =
        (1..=3).map(|id| ClusterEntry { id, url: http_url("127.0.0.1", free_port()) }).collect();
    let starting = (1..).zip(&dirs).map(|(id, dir)| {
        let logger = Logger::root(Discard, o!());
        Node::start(config(id, &cluster, dir), Metrics::new(), logger)
    });
    let nodes = try_join_all(starting).await.expect("nodes that start");
    join_all(nodes.iter().map(|node| async move { until_ready(&node.handle()).await })).await;
    let working = nodes.iter().map(|node| {
        let key = Bytes::from(format!("key-{}", node.handle().status().id));
        write_and_read(node.handle(), key)
    });
    join_all(working).await;
    for node in nodes {
        node.shutdown().await;
    }
}
