//! What operators and probes look at.

use std::collections::HashSet;

use serde_json::json;

use crate::{
    Server,
    process::{eventually, free_port},
};

#[tokio::test]
async fn a_ready_node_says_so() {
    let server = Server::start().await;
    let port = server.port();
    assert_eq!(port.get("/-/health").await.is(200).json(), json!({"health": "true"}));
    for target in ["/-/livez", "/-/readyz"] {
        let answer = port.get(target).await.is(200);
        assert_eq!(answer.body, b"ok\n");
        let head = port.send("HEAD", target, &[], b"").await.is(200);
        assert_eq!(head.number("content-length"), 3);
    }
}

#[tokio::test]
async fn a_node_that_waits_for_its_cofounder_is_alive_and_unready() {
    let mut server = Server::new();
    let cluster = format!("1={},2=http://127.0.0.1:{}", server.node.peer_url(), free_port());
    server.node.set("--cluster", cluster);
    server.node.spawn();
    let port = server.port();
    let http = server.node.http().clone();
    eventually("an answer", async || http.readyz().await).await;

    port.get("/-/livez").await.is(200);
    let unready = port.get("/-/readyz").await.refused(503, "unavailable");
    assert_eq!(unready.header("retry-after"), Some("1"));
    let health = port.get("/-/health").await.is(503).json();
    assert_eq!(health["health"], "false");
    assert!(health["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{health}");
    let status = port.get("/-/status").await.is(200).json();
    assert_eq!((&status["leader_id"], &status["id"]), (&json!(0), &json!(1)));
    port.get("/-/members").await.is(200);
    port.get("/-/metrics").await.is(200);

    for answer in [
        port.put("/a", "v").await,
        port.get("/a").await,
        port.get("/a?consistency=stale").await,
        port.delete("/a").await,
        port.post("/2", "http://127.0.0.1:1").await,
    ] {
        let answer = answer.refused(503, "not_applied");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
}

#[tokio::test]
async fn the_status_has_every_field_and_moves_with_the_log() {
    let server = Server::start().await;
    let port = server.port();
    let before = port.get("/-/status").await.is(200).json();
    let mut fields: Vec<_> = before.as_object().expect("an object").keys().cloned().collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            "alarms",
            "applied_index",
            "cluster_id",
            "commit_index",
            "db_size_bytes",
            "first_index",
            "id",
            "last_index",
            "leader_id",
            "learner",
            "peers",
            "revision",
            "role",
            "snapshot_index",
            "term",
            "uptime_s",
            "version",
        ]
    );
    assert_eq!(before["id"], 1);
    assert_eq!(before["leader_id"], 1);
    assert_eq!(before["role"], "leader");
    assert_eq!(before["learner"], false);
    assert_eq!(before["version"], env!("CARGO_PKG_VERSION"));
    let members = port.get("/-/members").await.is(200).json();
    assert_eq!(before["cluster_id"], members["cluster_id"]);

    port.put("/a", "v").await.is(204);
    // The status of the raft task may be a moment old.
    eventually("the status after a write", async || {
        let after = port.get("/-/status").await.is(200).json();
        let number = |field: &str| after[field].as_u64().expect("a number");
        assert!(number("applied_index") <= number("commit_index"));
        assert!(number("commit_index") <= number("last_index"));
        (number("revision") == 2 && number("applied_index") > before["applied_index"].as_u64()?)
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_hash_names_the_state_and_changes_with_it() {
    let server = Server::start().await;
    let port = server.port();
    let hash = async || port.get("/-/hash").await.is(200).json();
    let before = hash().await;
    let text = before["hash"].as_str().expect("text");
    assert_eq!(text.len(), 64);
    assert!(text.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase()));
    assert_eq!(before["revision"], 1);
    assert!(before["applied_index"].as_u64().is_some_and(|index| index > 0));
    port.put("/a", "v").await.is(204);
    let after = hash().await;
    assert_ne!(after["hash"], before["hash"]);
    assert_eq!(after["revision"], 2);
    assert_eq!(hash().await["hash"], after["hash"], "a read changes nothing");
}

#[tokio::test]
async fn the_metrics_are_what_prometheus_reads() {
    let server = Server::start().await;
    let port = server.port();
    port.put("/secret-key-1", "v").await.is(204);
    port.get("/secret-key-2").await.is(404);
    port.get("/-/nothing").await.is(404);
    let answer = port.get("/-/metrics").await.is(200);
    let content_type = answer.header("content-type").expect("a content type").to_owned();
    assert!(content_type.starts_with("application/openmetrics-text"), "{content_type}");
    let text = String::from_utf8(answer.body).expect("text");
    assert!(text.ends_with("# EOF\n"));
    assert!(!text.contains("secret-key"), "a key became a label");

    let mut seen = HashSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (sample, value) = line.rsplit_once(' ').expect("a sample and its value");
        assert!(sample.starts_with("metastore_"), "{line}");
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(seen.insert(sample.to_owned()), "twice: {line}");
    }
    let value = |sample: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {sample} in\n{text}")).parse().expect("a number")
    };
    for sample in [
        "metastore_raft_term",
        "metastore_raft_commit_index",
        "metastore_raft_applied_index",
        "metastore_raft_is_leader",
        "metastore_raft_has_leader",
        "metastore_raft_fsync_seconds_count",
        "metastore_apply_seconds_count",
        "metastore_process_uptime_seconds",
        "metastore_http_requests_in_flight",
    ] {
        assert!(value(sample) > 0.0, "{sample}");
    }
    assert!(value("metastore_proposals_pending") < 1.0);
    assert!(value("metastore_proposals_failed_total") < 1.0);
    assert!(value("metastore_rocksdb_memtable_bytes{database=\"raft\"}") > 0.0);
    assert!(value("metastore_rocksdb_write_stopped{database=\"state\"}") < 1.0);
    let requests =
        |labels: &str| value(&format!("metastore_http_request_duration_seconds_count{{{labels}}}"));
    assert!(requests("method=\"PUT\",route=\"/{key}\",status=\"204\"") >= 1.0);
    assert!(requests("method=\"GET\",route=\"/{key}\",status=\"404\"") >= 1.0);
    assert!(requests("method=\"GET\",route=\"none\",status=\"404\"") >= 1.0);
}
