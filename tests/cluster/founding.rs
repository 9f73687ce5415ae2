//! How a cluster comes into being, and what it makes of strangers.

use reqwest::Method;

use crate::process::{Cluster, Node, eventually};

#[tokio::test]
async fn founders_wait_for_the_last_one_and_say_so() {
    let mut cluster = Cluster::new(3);
    let missing = cluster.node(3).peer_url();
    for id in 1..=2 {
        cluster.node_mut(id).spawn();
    }
    for id in 1..=2 {
        let waits = |line: &str| line.to_lowercase().contains("wait") && line.contains(&missing);
        cluster.node(id).wait_log_line("it waits for founder 3", waits).await;
        let unready = async || (cluster.http(id).readyz().await == Some(503)).then_some(());
        eventually("an unready founder answers", unready).await;
        let livez = cluster.http(id).request(Method::GET, "/-/livez", "").await;
        assert_eq!(livez.expect("an answer").status, 200);
        let put = cluster.http(id).request(Method::PUT, "/early", "x").await;
        assert_eq!(put.expect("an answer").status, 503);
    }
    cluster.start_all().await;
    for id in 1..=2 {
        cluster.node_mut(id).wait_ready().await;
    }
    assert_eq!(cluster.http(2).get("early").await, None);
    cluster.http(3).put("key", "value").await;
    assert_eq!(cluster.http(1).get("key").await.as_deref(), Some("value"));
    let members = cluster.http(2).members().await;
    let expected: Vec<_> = (1..=3).map(|id| (id, cluster.node(id).peer_url(), false)).collect();
    assert_eq!(members, expected);
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn founder_killed_before_the_last_one_arrives_founds_after_its_restart() {
    let mut cluster = Cluster::new(3);
    let missing = cluster.node(3).peer_url();
    for id in 1..=2 {
        cluster.node_mut(id).spawn();
    }
    for id in 1..=2 {
        cluster.node(id).wait_log(&missing).await;
    }
    cluster.node_mut(1).kill();
    cluster.spawn_all();
    for id in 1..=3 {
        cluster.node_mut(id).wait_ready().await;
    }
    cluster.http(1).put("key", "value").await;
    assert_eq!(cluster.http(3).get("key").await.as_deref(), Some("value"));
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn stranger_that_names_a_running_cluster_stays_out() {
    let mut cluster = Cluster::start(1).await;
    cluster.http(1).put("key", "value").await;
    let running = cluster.node(1).peer_url();
    let mut stranger = Node::new(2, cluster.dir());
    let own = stranger.peer_url();
    stranger.set("--cluster", format!("1={running},2={own}"));
    stranger.spawn();

    let named = |line: &str| line.contains(&running);
    stranger.wait_log_line("it names the peer that refused it", named).await;
    let unready = async || (stranger.http().readyz().await == Some(503)).then_some(());
    eventually("the stranger answers", unready).await;
    for n in 0..20 {
        cluster.http(1).put("key", &n.to_string()).await;
    }
    assert_eq!(stranger.http().readyz().await, Some(503));
    assert!(stranger.is_running(), "{}", stranger.log());
    assert!(cluster.node_mut(1).is_running());
    assert_eq!(cluster.http(1).members().await, [(1, running, false)]);
    stranger.stop().await;
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn foreign_process_on_a_members_url_stops_nobody() {
    let mut cluster = Cluster::start(3).await;
    cluster.lead(1).await;
    cluster.http(1).put("key", "value").await;
    cluster.node_mut(3).kill();

    // A cluster of its own, with data of its own, on the URL of member 3.
    let mut foreign_home = Cluster::new(0);
    let mut foreign = Node::new(3, foreign_home.dir());
    foreign.peer_port = cluster.node(3).peer_port;
    foreign.set("--cluster", format!("3={}", foreign.peer_url()));
    foreign_home.adopt(foreign);
    foreign_home.start_all().await;
    foreign_home.http(3).put("key", "foreign").await;

    let refused = async || {
        let log = cluster.node(1).log() + &cluster.node(2).log() + &foreign_home.node(3).log();
        let told = |line: &str| line.contains("cluster id") || line.contains("another cluster");
        log.lines().any(told).then_some(())
    };
    eventually("somebody logs the other cluster's id", refused).await;
    for n in 0..20 {
        let value = n.to_string();
        cluster.http(n % 2 + 1).put("key", &value).await;
        assert_eq!(cluster.http(2 - n % 2).get("key").await, Some(value));
    }
    assert_eq!(foreign_home.http(3).get("key").await.as_deref(), Some("foreign"));
    foreign_home.assert_same_state().await;

    foreign_home.node_mut(3).stop().await;
    cluster.start_all().await;
    assert_eq!(cluster.http(3).get("key").await.as_deref(), Some("19"));
    cluster.assert_same_state().await;
}
