//! Leaders that die or freeze, and clusters without a quorum.

use std::time::{Duration, Instant};

use reqwest::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    load::Load,
    process::{Cluster, DEADLINE, Endpoint, Reply, eventually},
};

#[tokio::test]
async fn leader_killed_under_load_loses_nothing_acknowledged() {
    let mut cluster = Cluster::start(3).await;
    let load = Load::start(&cluster.endpoints(), 8);
    load.acknowledge(100).await;
    for _ in 0..2 {
        let leader = cluster.leader().await;
        cluster.node_mut(leader).kill();
        load.acknowledge(100).await;
        cluster.node_mut(leader).start().await;
        load.acknowledge(100).await;
    }
    load.verify(&cluster).await;
}

#[tokio::test]
async fn whole_cluster_killed_under_load_loses_nothing_acknowledged() {
    let mut cluster = Cluster::start_with(3, &[("--snapshot-count", "50")]).await;
    let load = Load::start(&cluster.endpoints(), 8);
    load.acknowledge(200).await;
    for id in 1..=3 {
        cluster.node_mut(id).kill();
    }
    cluster.start_all().await;
    load.acknowledge(100).await;
    load.verify(&cluster).await;
}

#[tokio::test]
async fn frozen_follower_does_not_stop_the_others() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let follower = cluster.others(leader)[0];
    let load = Load::start(&[cluster.http(leader).clone()], 4);
    load.acknowledge(50).await;
    cluster.node_mut(follower).pause();
    load.acknowledge(200).await;
    cluster.node_mut(follower).resume();
    load.acknowledge(50).await;
    load.verify(&cluster).await;
}

/// A GET whose request lies in the node's socket before the node looks at it.
struct WaitingGet(TcpStream);

impl WaitingGet {
    async fn send(port: u16, key: &str) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connect");
        let request = format!("GET /{key} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("send the request");
        Self(stream)
    }

    /// The status code and all that followed it.
    async fn answer(mut self) -> (u16, String) {
        let mut text = String::new();
        let read = timeout(DEADLINE, self.0.read_to_string(&mut text)).await;
        read.expect("an answer before the deadline").expect("read the answer");
        let status = text.split(' ').nth(1).and_then(|code| code.parse().ok());
        (status.unwrap_or_else(|| panic!("no HTTP answer: {text:?}")), text)
    }
}

#[tokio::test]
async fn leader_resumed_after_a_freeze_serves_no_stale_reads() {
    let mut cluster = Cluster::start(3).await;
    cluster.http(1).put("key", "old value").await;
    let frozen = cluster.leader().await;
    cluster.node_mut(frozen).pause();
    // Only the two others are live, so this is their new leader.
    let leader = cluster.leader().await;
    assert_ne!(leader, frozen);
    cluster.http(leader).put("key", "new value").await;

    let port = cluster.node(frozen).client_port();
    let mut waiting = Vec::new();
    for _ in 0..16 {
        waiting.push(WaitingGet::send(port, "key").await);
    }
    cluster.node_mut(frozen).resume();
    for get in waiting {
        let (status, text) = get.answer().await;
        assert!(!text.contains("old value"), "a stale read: {text}");
        match status {
            200 => assert!(text.ends_with("new value"), "{text}"),
            503 => {}
            other => panic!("a linearizable GET answered {other}: {text}"),
        }
    }
    assert_eq!(cluster.http(frozen).get("key").await.as_deref(), Some("new value"));
    cluster.assert_same_state().await;
}

const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// What an answer may take beyond the request timeout on a slow machine.
const SLACK: Duration = Duration::from_secs(5);

async fn timely(endpoint: &Endpoint, method: Method, path: &str, body: &str) -> Reply {
    let start = Instant::now();
    let reply = endpoint.request(method.clone(), path, body.to_owned()).await;
    let reply = reply.expect("an answer of the node without a quorum");
    let took = start.elapsed();
    assert!(took < REQUEST_TIMEOUT + SLACK, "{method} {path} took {took:?}");
    reply
}

/// Stops two of three and checks what the third answers.
async fn answers_without_a_quorum(leader_survives: bool) {
    let mut cluster = Cluster::start_with(3, &[("--request-timeout", "2s")]).await;
    cluster.http(1).put("key", "value").await;
    cluster.assert_same_state().await;
    let leader = cluster.leader().await;
    let survivor = if leader_survives { leader } else { cluster.others(leader)[0] };
    let stopped = cluster.others(survivor);
    for id in &stopped {
        cluster.node_mut(*id).kill();
    }
    let http = cluster.http(survivor);

    // It may not have noticed yet, so the write may have been proposed.
    let at_once = timely(http, Method::PUT, "/at-once", "x").await;
    assert!(matches!(at_once.status, 503 | 504), "{}: {}", at_once.status, at_once.text());
    let read = timely(http, Method::GET, "/key", "").await;
    assert_eq!(read.status, 503, "{}", read.text());

    let leaderless = async || (http.status("leader_id").await == 0).then_some(());
    eventually("the survivor knows that nobody leads", leaderless).await;
    for (method, path) in
        [(Method::PUT, "/refused"), (Method::DELETE, "/key"), (Method::GET, "/key")]
    {
        let reply = timely(http, method.clone(), path, "").await;
        assert_eq!(reply.status, 503, "{method} {path}: {}", reply.text());
        assert!(reply.headers.contains_key("retry-after"), "{method} {path}: {:?}", reply.headers);
        assert!(reply.json()["error"]["code"].is_string(), "{}", reply.text());
    }
    assert_eq!(http.readyz().await, Some(503));
    let livez = timely(http, Method::GET, "/-/livez", "").await;
    assert_eq!(livez.status, 200);
    let stale = timely(http, Method::GET, "/key?consistency=stale", "").await;
    assert_eq!((stale.status, stale.text().as_str()), (200, "value"));

    cluster.start_all().await;
    cluster.node_mut(survivor).wait_ready().await;
    assert_eq!(cluster.http(survivor).get("key").await.as_deref(), Some("value"));
    assert_eq!(cluster.http(stopped[0]).get("refused").await, None);
    let at_once_now = cluster.http(stopped[0]).get("at-once").await;
    assert!(at_once.status == 504 || at_once_now.is_none(), "a write answered 503 took effect");
    cluster.http(stopped[1]).put("after", "1").await;
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn leader_without_a_quorum_refuses_writes_and_linearizable_reads() {
    answers_without_a_quorum(true).await;
}

#[tokio::test]
async fn follower_without_a_quorum_refuses_writes_and_linearizable_reads() {
    answers_without_a_quorum(false).await;
}
