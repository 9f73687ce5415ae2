//! Ids are never reused: removed members and members without their data.

use std::time::Duration;

use reqwest::Method;

use crate::process::{Cluster, DEADLINE};

/// How long a member without its data may take to find out, as promised.
const WIPED_LIMIT: Duration = Duration::from_secs(15);

#[tokio::test]
async fn removed_leader_hands_over_and_exits() {
    let mut cluster = Cluster::start(3).await;
    cluster.http(1).put("key", "value").await;
    let leader = cluster.leader().await;
    let rest = cluster.others(leader);
    cluster.http(rest[0]).remove_member(leader).await;
    assert_eq!(cluster.node_mut(leader).wait_exit(DEADLINE).await, Some(0));
    cluster.node(leader).wait_log("removed from the cluster").await;

    let successor = cluster.leader().await;
    assert!(rest.contains(&successor));
    let ids: Vec<u64> =
        cluster.http(rest[1]).members().await.into_iter().map(|member| member.0).collect();
    assert_eq!(ids, rest);
    cluster.http(rest[0]).put("after", "1").await;
    assert_eq!(cluster.http(rest[1]).get("key").await.as_deref(), Some("value"));
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn leader_asked_to_remove_itself_does() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let rest = cluster.others(leader);
    // Its own answer may be cut off by its end.
    let path = format!("/-/members/{leader}");
    let reply = cluster.http(leader).request(Method::DELETE, &path, "").await;
    if let Ok(reply) = reply {
        assert_eq!(reply.status, 204, "{}", reply.text());
    }
    assert_eq!(cluster.node_mut(leader).wait_exit(DEADLINE).await, Some(0));
    cluster.http(rest[0]).put("after", "1").await;
    assert_eq!(cluster.http(rest[1]).members().await.len(), 2);
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn removed_follower_exits_and_its_id_is_spent() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let removed = cluster.others(leader)[0];
    cluster.http(leader).remove_member(removed).await;
    assert_eq!(cluster.node_mut(removed).wait_exit(DEADLINE).await, Some(0));
    cluster.node(removed).wait_log("removed from the cluster").await;

    // Started again, it is told once more.
    cluster.node_mut(removed).spawn();
    assert_eq!(cluster.node_mut(removed).wait_exit(DEADLINE).await, Some(0));
    cluster.node(removed).wait_log("removed from the cluster").await;

    let url = cluster.node(removed).peer_url();
    let body = serde_json::json!({ "id": removed, "peer_url": url }).to_string();
    let http = cluster.http(leader);
    http.expect(409, Method::POST, "/-/members", &body).await;
    http.expect(409, Method::POST, &format!("/{removed}"), &url).await;
    http.expect(404, Method::DELETE, &format!("/-/members/{removed}"), "").await;
    http.put("after", "1").await;
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn member_removed_while_it_was_down_is_told_at_its_start() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let removed = cluster.others(leader)[0];
    cluster.node_mut(removed).kill();
    cluster.http(leader).remove_member(removed).await;
    cluster.node_mut(removed).spawn();
    assert_eq!(cluster.node_mut(removed).wait_exit(DEADLINE).await, Some(0));
    cluster.node(removed).wait_log("removed from the cluster").await;
    cluster.http(leader).put("after", "1").await;
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn member_without_its_data_is_refused_and_told_what_to_do() {
    let mut cluster = Cluster::start(3).await;
    cluster.http(3).put("key", "value").await;
    cluster.node_mut(3).kill();
    for join in [false, true] {
        let node = cluster.node_mut(3);
        node.wipe();
        node.set_join(join);
        node.spawn();
        assert_eq!(node.wait_exit(WIPED_LIMIT).await, Some(1), "with --join: {join}");
        let answer = node.failure();
        assert!(answer.contains("new id"), "the answer does not say what to do: {answer}");
    }
    cluster.http(1).put("meanwhile", "1").await;
    assert_eq!(cluster.http(2).get("meanwhile").await.as_deref(), Some("1"));

    // What it said to do helps.
    cluster.http(1).remove_member(3).await;
    cluster.join(4, 2).await;
    assert_eq!(cluster.http(4).get("key").await.as_deref(), Some("value"));
    cluster.assert_same_state().await;
}
