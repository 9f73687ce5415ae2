//! Leadership moves when it is asked to, and before a leader stops.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use reqwest::Method;

use crate::process::Cluster;

#[tokio::test]
async fn leadership_moves_to_the_member_asked_for() {
    let cluster = Cluster::start(3).await;
    for id in [2, 3, 1, 1] {
        cluster.lead(id).await;
        assert_eq!(cluster.leader().await, id);
        cluster.http(id % 3 + 1).put("key", &id.to_string()).await;
        assert_eq!(cluster.http(id).get("key").await, Some(id.to_string()));
    }
    let unknown = cluster.http(1).ask(Method::POST, "/-/leader/9", "").await.status;
    assert!(matches!(unknown, 404 | 409), "{unknown}");
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn leadership_does_not_move_to_a_dead_member() {
    let mut cluster = Cluster::start(3).await;
    cluster.lead(1).await;
    cluster.node_mut(3).kill();
    // Right after its end the leader may still think it alive, and try.
    let reply = cluster.http(1).ask(Method::POST, "/-/leader/3", "").await;
    assert_eq!(reply.status, 409, "{}", reply.text());
    cluster.http(2).put("key", "value").await;
    cluster.node_mut(3).start().await;
    cluster.assert_same_state().await;
}

/// With this timeout, a leadership found soon after a stop was handed over.
const ELECTION_TIMEOUT: (&str, &str) = ("--election-timeout", "5s");

/// Stops the leader and checks that it handed leadership over first.
async fn leader_hands_over_at(signal: Signal) {
    let mut cluster = Cluster::start_with(3, &[ELECTION_TIMEOUT]).await;
    cluster.http(1).put("key", "value").await;
    cluster.assert_same_state().await;
    let leader = cluster.leader().await;
    cluster.node_mut(leader).stop_with(signal).await;
    let stopped = Instant::now();
    let successor = cluster.leader().await;
    let leaderless = stopped.elapsed();
    assert!(leaderless < Duration::from_secs(3), "no successor for {leaderless:?}");
    assert_ne!(successor, leader);
    cluster.http(successor).put("key", "new value").await;
    cluster.node_mut(leader).start().await;
    assert_eq!(cluster.http(leader).get("key").await.as_deref(), Some("new value"));
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn sigterm_hands_leadership_over_and_exits_in_time() {
    leader_hands_over_at(Signal::SIGTERM).await;
}

#[tokio::test]
async fn sigint_hands_leadership_over_and_exits_in_time() {
    leader_hands_over_at(Signal::SIGINT).await;
}

#[tokio::test]
async fn sigterm_stops_a_single_node_and_an_unready_founder_in_time() {
    let mut single = Cluster::start(1).await;
    single.http(1).put("key", "value").await;
    single.assert_same_state().await;
    single.node_mut(1).stop().await;

    let mut founding = Cluster::new(2);
    let missing = founding.node(2).peer_url();
    founding.node_mut(1).spawn();
    founding.node(1).wait_log(&missing).await;
    founding.node_mut(1).stop().await;
}
