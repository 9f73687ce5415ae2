//! The original's tests of the whole program, on the built binary.

use reqwest::Method;

use crate::process::{Cluster, Endpoint, eventually};

#[tokio::test]
async fn put_and_get_key_value() {
    let cluster = Cluster::start(1).await;
    let http = cluster.http(1);
    http.expect(204, Method::PUT, "/test-key", "test-value").await;
    let reply = http.expect(200, Method::GET, "/test-key", "").await;
    assert_eq!(reply.body, b"test-value");
    http.expect(404, Method::GET, "/absent", "").await;

    // An empty value is a value.
    http.expect(204, Method::PUT, "/empty", "").await;
    let reply = http.expect(200, Method::GET, "/empty", "").await;
    assert_eq!(reply.body, b"");
    http.expect(204, Method::DELETE, "/empty", "").await;
    http.expect(404, Method::GET, "/empty", "").await;
    cluster.assert_same_state().await;
}

/// Not UTF-8, with a zero byte, a slash and a percent sign in it.
const BINARY_KEYS: &[&str] = &["/%FF%FE", "/%00", "/a%2Fb%25", "/%C3%28"];

const BINARY_VALUES: &[&[u8]] = &[b"\xff\xfe\0\xc3\x28", b"\0", b"", b"%FF\r\n\r\n"];

#[tokio::test]
async fn keys_and_values_that_are_not_text_reach_every_member() {
    let cluster = Cluster::start(3).await;
    for (n, (key, value)) in BINARY_KEYS.iter().zip(BINARY_VALUES).enumerate() {
        let http = cluster.http(n as u64 % 3 + 1);
        eventually("a binary value is written", async || {
            let reply = http.request(Method::PUT, key, value.to_vec()).await.ok()?;
            (reply.status == 204).then_some(())
        })
        .await;
    }
    for id in 1..=3 {
        for (key, value) in BINARY_KEYS.iter().zip(BINARY_VALUES) {
            let reply = cluster.http(id).expect(200, Method::GET, key, "").await;
            assert_eq!(reply.body, *value, "{key} on member {id}");
        }
    }
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn add_new_node() {
    let mut cluster = Cluster::start(3).await;
    cluster.http(1).put("before", "3 members").await;
    let url = cluster.prepare_joiner(4).peer_url();
    cluster.http(2).expect(204, Method::POST, "/4", &url).await;
    cluster.node_mut(4).start().await;
    assert_eq!(cluster.http(4).get("before").await.as_deref(), Some("3 members"));
    // It proposes, and with one of four down nothing commits without it.
    cluster.http(4).put("after", "4 members").await;
    cluster.assert_same_state().await;
    cluster.node_mut(1).kill();
    cluster.http(4).put("without-the-first", "3 of 4").await;
    for id in cluster.live() {
        assert_eq!(cluster.http(id).get("after").await.as_deref(), Some("4 members"));
        assert_eq!(cluster.http(id).get("without-the-first").await.as_deref(), Some("3 of 4"));
    }
    cluster.node_mut(1).start().await;
    assert!(cluster.http(1).members().await.contains(&(4, url, false)));
    cluster.assert_same_state().await;
}

/// Reads until the first answer; whatever a starting node says then must be
/// the newest value.
async fn first_answer(http: Endpoint, key: &str) -> String {
    eventually("the first linearizable read after a restart", async || {
        let reply = http.request(Method::GET, &format!("/{key}"), "").await.ok()?;
        match reply.status {
            200 => Some(reply.text()),
            503 => None,
            other => panic!("member {} answered {other}: {}", http.id, reply.text()),
        }
    })
    .await
}

/// Kills all members right after an acknowledgement, and reads from each as
/// early as it answers.
async fn reads_after_restarts(size: u64, rounds: u64) {
    // Snapshots early enough that some restarts replay less than everything.
    let mut cluster = Cluster::start_with(size, &[("--snapshot-count", "10")]).await;
    for round in 0..rounds {
        for n in 0..7 {
            let writer = (round + n) % size + 1;
            cluster.http(writer).put("key", &format!("{round}.{n}")).await;
        }
        for id in 1..=size {
            cluster.node_mut(id).kill();
        }
        cluster.spawn_all();
        let reads = cluster.endpoints().into_iter().map(|http| first_answer(http, "key"));
        for (id, value) in (1..).zip(futures_util::future::join_all(reads).await) {
            assert_eq!(value, format!("{round}.6"), "member {id} after restart {round}");
        }
    }
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn restarted_single_node_serves_no_read_older_than_acknowledged() {
    reads_after_restarts(1, 5).await;
}

#[tokio::test]
async fn restarted_cluster_serves_no_read_older_than_acknowledged() {
    reads_after_restarts(3, 3).await;
}
