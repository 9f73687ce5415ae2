//! Members are added, promoted, moved; joiners end with equal data.

use std::{net::TcpStream, time::Duration};

use reqwest::Method;

use crate::process::{Cluster, Endpoint, eventually, free_port};

async fn wait_value(endpoint: &Endpoint, key: &str, value: &str) {
    let what = format!("member {} has {key} = {value}", endpoint.id);
    eventually(&what, async || {
        let path = format!("/{key}?consistency=stale");
        let reply = endpoint.request(Method::GET, &path, "").await.ok()?;
        (reply.status == 200 && reply.text() == value).then_some(())
    })
    .await;
}

#[tokio::test]
async fn single_node_with_data_grows_to_three() {
    let mut cluster = Cluster::start_with(1, &[("--snapshot-count", "50")]).await;
    for n in 0..120 {
        cluster.http(1).put(&format!("k{n}"), &n.to_string()).await;
    }
    cluster.join(2, 1).await;
    cluster.join(3, 2).await;
    for id in 1..=3 {
        for n in [0, 60, 119] {
            assert_eq!(cluster.http(id).get(&format!("k{n}")).await, Some(n.to_string()));
        }
    }
    // All three are voters: two are a quorum without the first.
    let expected: Vec<_> = (1..=3).map(|id| (id, cluster.node(id).peer_url(), false)).collect();
    assert_eq!(cluster.http(3).members().await, expected);
    cluster.assert_same_state().await;
    cluster.node_mut(1).kill();
    cluster.http(2).put("without-the-first", "1").await;
    assert_eq!(cluster.http(3).get("without-the-first").await.as_deref(), Some("1"));
    cluster.node_mut(1).start().await;
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn joined_member_restarts_with_its_first_flags() {
    let mut cluster = Cluster::start(1).await;
    cluster.http(1).put("key", "value").await;
    cluster.join(2, 1).await;
    cluster.node_mut(2).kill();
    cluster.node_mut(2).start().await;
    assert_eq!(cluster.http(2).get("key").await.as_deref(), Some("value"));
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn member_added_while_the_leader_changes_still_becomes_a_voter() {
    let mut cluster = Cluster::start(3).await;
    cluster.lead(1).await;
    cluster.http(1).put("key", "value").await;
    let url = cluster.prepare_joiner(4).peer_url();
    cluster.http(1).add_member(4, &url, false).await;
    // The promise of promotion must outlive the leader that made it.
    cluster.node_mut(1).kill();
    cluster.node_mut(4).start().await;
    assert_eq!(cluster.http(4).get("key").await.as_deref(), Some("value"));
    assert!(cluster.http(4).members().await.contains(&(4, url, false)));
    cluster.node_mut(1).start().await;
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn raftexample_form_adds_a_member() {
    let mut cluster = Cluster::start(1).await;
    cluster.http(1).put("key", "value").await;
    let url = cluster.prepare_joiner(2).peer_url();
    cluster.http(1).expect(204, Method::POST, "/2", &url).await;
    // Exactly the same again changes nothing.
    cluster.http(1).expect(204, Method::POST, "/2", &url).await;
    cluster.node_mut(2).start().await;
    assert_eq!(cluster.http(2).get("key").await.as_deref(), Some("value"));
    assert!(cluster.http(1).members().await.contains(&(2, url, false)));
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn ids_and_urls_in_use_are_refused() {
    let cluster = Cluster::start(3).await;
    let free = format!("http://127.0.0.1:{}", free_port());
    let taken = cluster.node(2).peer_url();
    let http = cluster.http(1);
    for (id, url) in [(2, &free), (4, &taken)] {
        let body = serde_json::json!({ "id": id, "peer_url": url }).to_string();
        http.expect(409, Method::POST, "/-/members", &body).await;
        http.expect(409, Method::POST, &format!("/{id}"), url).await;
    }
    http.add_member(2, &taken, false).await;
    http.expect(404, Method::DELETE, "/-/members/9", "").await;
    http.expect(404, Method::POST, "/-/members/9/promote", "").await;
    assert_eq!(http.members().await.len(), 3);
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn learner_stays_one_until_it_is_promoted() {
    let mut cluster = Cluster::start(1).await;
    cluster.http(1).put("key", "first").await;
    let url = cluster.prepare_joiner(2).peer_url();
    cluster.http(1).add_member(2, &url, true).await;
    cluster.node_mut(2).spawn();
    wait_value(cluster.http(2), "key", "first").await;
    // It is caught up after each of these, and still nobody promotes it.
    for n in 0..30 {
        cluster.http(1).put("key", &n.to_string()).await;
        wait_value(cluster.http(2), "key", &n.to_string()).await;
    }
    assert_eq!(cluster.http(2).readyz().await, Some(503));
    assert!(cluster.http(1).members().await.contains(&(2, url.clone(), true)));
    let status = cluster.http(2).try_status().await.expect("a status");
    assert_eq!(status["learner"], true);
    // It has no vote: the first alone is still a quorum.
    cluster.node_mut(2).kill();
    cluster.http(1).put("key", "alone").await;
    cluster.node_mut(2).spawn();
    wait_value(cluster.http(2), "key", "alone").await;

    eventually("the promotion of a learner that has caught up", async || {
        let reply = cluster.http(1).request(Method::POST, "/-/members/2/promote", "").await.ok()?;
        // 409: the leader does not know yet that it has caught up.
        assert!(matches!(reply.status, 204 | 409 | 503 | 504), "{}", reply.text());
        (reply.status == 204).then_some(())
    })
    .await;
    cluster.node_mut(2).wait_ready().await;
    assert!(cluster.http(2).members().await.contains(&(2, url, false)));
    assert_eq!(cluster.http(2).get("key").await.as_deref(), Some("alone"));
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn learner_that_lags_is_not_promoted() {
    let mut cluster = Cluster::start(1).await;
    let url = cluster.prepare_joiner(2).peer_url();
    cluster.http(1).add_member(2, &url, true).await;
    // It was never started.
    cluster.http(1).expect(409, Method::POST, "/-/members/2/promote", "").await;
    cluster.http(1).put("key", "value").await;
    cluster.http(1).remove_member(2).await;
    assert_eq!(cluster.http(1).members().await.len(), 1);
    cluster.assert_same_state().await;
}

fn listens(port: u16) -> bool {
    let address = ([127, 0, 0, 1], port).into();
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

#[tokio::test]
async fn moved_member_listens_on_its_new_url() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let moved = cluster.others(leader)[0];
    cluster.http(moved).put("key", "value").await;
    let old_port = cluster.node(moved).peer_port;
    let new_port = free_port();
    let url = format!("http://127.0.0.1:{new_port}");
    let body = serde_json::json!({ "peer_url": url }).to_string();
    cluster.http(leader).expect(204, Method::PUT, &format!("/-/members/{moved}"), &body).await;
    let row = (moved, url.clone(), false);
    eventually("the moved member knows its new URL", async || {
        cluster.http(moved).members().await.contains(&row).then_some(())
    })
    .await;

    // Its flags still name the old URL; what is stored wins.
    cluster.node_mut(moved).kill();
    cluster.node_mut(moved).peer_port = new_port;
    cluster.node_mut(moved).start().await;
    assert!(listens(new_port) && !listens(old_port));
    cluster.http(moved).put("key", "moved").await;
    assert!(cluster.http(moved).members().await.contains(&row));
    cluster.lead(moved).await;
    assert_eq!(cluster.http(leader).get("key").await.as_deref(), Some("moved"));
    cluster.assert_same_state().await;

    // A URL in use is refused.
    let taken = serde_json::json!({ "peer_url": cluster.node(leader).peer_url() }).to_string();
    let path = format!("/-/members/{moved}");
    cluster.http(leader).expect(409, Method::PUT, &path, &taken).await;
}
