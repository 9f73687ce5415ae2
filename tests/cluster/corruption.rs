//! Members whose state came apart from that of the others.

use etcd_client::Client;
use metastore::{
    proto::{
        ForwardRequest, ForwardResponse, Identity, KeyRecord, LogPosition, StateReport,
        forward_request::Request, forward_response::Result as Said,
    },
    raftlog::Recovered,
    storage::{
        Batch, Engine, Family, Reader,
        rocks::{Kind, MemoryBudget, RocksEngine},
    },
};
use prost::Message as _;
use reqwest::Method;
use serde_json::{Value, json};
use tonic::Code;

use crate::process::{Cluster, Endpoint, Node, STOP_LIMIT, eventually};

/// As often as is possible.
const CHECK: (&str, &str) = ("--corruption-check-interval", "1s");

/// Checks in which the leaders so far, if they still run, found a majority.
async fn checks_done(cluster: &Cluster) -> u64 {
    let mut done = 0_u64;
    for endpoint in cluster.endpoints() {
        let text = endpoint.expect(200, Method::GET, "/-/metrics", "").await.text();
        let sample = "metastore_consistency_checks_done_total ";
        let count = text.lines().find_map(|line| line.strip_prefix(sample)?.parse::<u64>().ok());
        done += count.expect("the counter");
    }
    done
}

async fn alarms(endpoint: &Endpoint) -> Value {
    endpoint.expect(200, Method::GET, "/-/status", "").await.json()["alarms"].take()
}

async fn set_alarm(endpoint: &Endpoint, action: &str, member: u64) {
    let member = member.to_string();
    let request = json!({ "action": action, "memberID": member, "alarm": "CORRUPT" });
    let body = request.to_string();
    endpoint.expect(200, Method::POST, "/v3/maintenance/alarm", &body).await;
}

/// Changes the value of a key in the data of a stopped member, as a disk might
/// that says nothing of it.
fn damage(node: &Node, key: &str) {
    let open = |dir: &str, kind| {
        let dir = node.data().join(dir);
        RocksEngine::open(&dir, kind, &MemoryBudget::default()).expect("a database")
    };
    let live = Recovered::read(&open("raft", Kind::Raft)).expect("a sound log").live_state;
    let state = open(&live.expect("it has served"), Kind::State);
    let stored = state.get(Family::Current, key.as_bytes()).expect("a read").expect("the key");
    let mut record = KeyRecord::decode(stored).expect("a record");
    record.value = "damaged".into();
    let mut batch = Batch::default();
    batch.put(Family::Current, key.as_bytes().to_vec(), record.encode_to_vec());
    state.write(batch, false).expect("a write");
    state.flush().expect("a write");
}

/// Waits until a member refuses a request because of the alarm.
async fn refused(endpoint: &Endpoint, method: Method, path: &str) {
    let what = format!("member {} refuses {method} {path}", endpoint.id);
    eventually(&what, async || {
        let reply = endpoint.request(method.clone(), path, "refused").await.ok()?;
        let error = serde_json::from_slice::<Value>(&reply.body).ok()?["error"].take();
        (reply.status == 503 && error["code"] == "corrupt").then_some(())
    })
    .await;
}

#[tokio::test]
async fn healthy_cluster_is_compared_under_writes_and_nobody_is_accused() {
    let cluster = Cluster::start_with(3, &[CHECK]).await;
    let mut written = 0;
    while checks_done(&cluster).await < 4 {
        written += 1;
        let http = cluster.http(written % 3 + 1);
        http.put(&format!("k{}", written % 50), &written.to_string()).await;
    }
    for endpoint in cluster.endpoints() {
        assert_eq!(alarms(&endpoint).await, json!([]));
    }
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn damaged_member_is_named_serves_nothing_and_is_replaced() {
    let mut cluster = Cluster::start_with(3, &[CHECK]).await;
    for n in 0..20 {
        cluster.http(1).put(&format!("k{n}"), "value").await;
    }
    cluster.assert_same_state().await;
    let damaged = cluster.others(cluster.leader().await)[0];
    let others = cluster.others(damaged);
    cluster.node_mut(damaged).stop().await;
    damage(cluster.node(damaged), "k7");
    cluster.node_mut(damaged).spawn();

    let expected = json!([{ "member": damaged, "alarm": "corrupt" }]);
    for id in &others {
        let what = "the alarm names the damaged member";
        eventually(what, async || (alarms(cluster.http(*id)).await == expected).then_some(()))
            .await;
    }
    let raised = |line: &str| line.contains(&format!("the state of member {damaged} is not"));
    assert!(others.iter().any(|id| cluster.node(*id).log().lines().any(raised)));
    let http = cluster.http(damaged);
    refused(http, Method::GET, "/k7?consistency=stale").await;
    refused(http, Method::GET, "/k7").await;
    refused(http, Method::GET, "/k8").await;
    refused(http, Method::PUT, "/k8").await;
    assert_eq!(alarms(http).await, expected);
    assert_eq!(http.readyz().await, Some(503));
    let address = format!("127.0.0.1:{}", cluster.node(damaged).client_port());
    let mut client = Client::connect([address], None).await.expect("connect");
    let Err(etcd_client::Error::GRpcStatus(status)) = client.get("k7", None).await else {
        panic!("the damaged member answered");
    };
    assert_eq!((status.code(), status.message()), (Code::DataLoss, "etcdserver: corrupt cluster"));

    // The others serve everything.
    for id in &others {
        let http = cluster.http(*id);
        assert_eq!(http.get("k7").await.as_deref(), Some("value"));
        http.put("k8", &format!("written over {id}")).await;
    }
    assert_ne!(cluster.leader().await, damaged);

    // A restart helps nobody.
    cluster.node_mut(damaged).kill();
    cluster.node_mut(damaged).spawn();
    refused(cluster.http(damaged), Method::GET, "/k7").await;

    // A new member in its place does.
    cluster.http(others[0]).remove_member(damaged).await;
    assert_eq!(cluster.node_mut(damaged).wait_exit(STOP_LIMIT * 3).await, Some(0));
    cluster.prepare_joiner(4).set(CHECK.0, CHECK.1);
    let url = cluster.node(4).peer_url();
    cluster.http(others[1]).add_member(4, &url, false).await;
    cluster.node_mut(4).start().await;
    set_alarm(cluster.http(4), "DEACTIVATE", damaged).await;
    assert_eq!(cluster.http(4).get("k7").await.as_deref(), Some("value"));
    let before = checks_done(&cluster).await;
    eventually("more checks", async || (checks_done(&cluster).await > before + 1).then_some(()))
        .await;
    for endpoint in cluster.endpoints() {
        assert_eq!(alarms(&endpoint).await, json!([]));
    }
    cluster.assert_same_state().await;
}

/// Tells the leader, as the member of this identity, what a state came to.
async fn report(cluster: &Cluster, leader: u64, from: &Identity, report: StateReport) -> Said {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let request = ForwardRequest { request: Some(Request::StateReport(report)), timeout_ms: 1_000 };
    let answer = client
        .post(format!("{}/raft/forward", cluster.node(leader).peer_url()))
        .header("x-metastore-protocol", "2")
        .header("x-metastore-cluster", from.cluster_id)
        .header("x-metastore-from", from.member_id)
        .header("x-metastore-incarnation", from.incarnation)
        .header("x-metastore-to", leader)
        .body(request.encode_to_vec());
    let answer = answer.send().await.expect("an answer");
    let answer = answer.bytes().await.expect("a whole answer");
    ForwardResponse::decode(answer).expect("an answer").result.expect("what was said")
}

#[tokio::test]
async fn members_report_for_themselves_and_to_the_leader_alone() {
    let mut cluster = Cluster::start(3).await;
    cluster.lead(1).await;
    cluster.node_mut(3).stop().await;
    let dir = cluster.node(3).data().join("raft");
    let raft = RocksEngine::open(&dir, Kind::Raft, &MemoryBudget::default()).expect("a database");
    let identity = Recovered::read(&raft).expect("a sound log").identity.expect("it has served");
    let position = Some(LogPosition { index: 1, term: 1 });
    let whole = StateReport { member: 3, position, hash: vec![1; 32].into() };
    let said = report(&cluster, 1, &identity, whole.clone()).await;
    assert!(matches!(said, Said::Done(_)), "{said:?}");
    let said = report(&cluster, 2, &identity, whole.clone()).await;
    assert_eq!(said, Said::NotLeader(1));
    for (wrong, why) in [
        (StateReport { member: 2, ..whole.clone() }, "reports for member 2"),
        (StateReport { position: None, ..whole.clone() }, "which mark"),
        (StateReport { hash: vec![1; 31].into(), ..whole.clone() }, "31 bytes"),
    ] {
        let said = report(&cluster, 1, &identity, wrong).await;
        assert!(matches!(&said, Said::Conflict(text) if text.contains(why)), "{why}: {said:?}");
    }
    assert_eq!(alarms(cluster.http(1)).await, json!([]));
}

#[tokio::test]
async fn accused_leader_hands_over_and_serves_again_when_it_is_cleared() {
    let cluster = Cluster::start(3).await;
    cluster.lead(1).await;
    cluster.http(1).put("key", "value").await;
    set_alarm(cluster.http(2), "ACTIVATE", 1).await;
    refused(cluster.http(1), Method::GET, "/key").await;
    eventually("somebody else leads", async || (cluster.leader().await != 1).then_some(())).await;
    for id in [2, 3] {
        cluster.http(id).put("key", &id.to_string()).await;
    }
    let reply = cluster.http(3).ask(Method::POST, "/-/leader/1", "").await;
    assert_eq!(reply.status, 409, "{}", reply.text());
    assert!(reply.text().contains("CORRUPT alarm"), "{}", reply.text());

    set_alarm(cluster.http(1), "DEACTIVATE", 1).await;
    eventually("it serves again", async || {
        (cluster.http(1).readyz().await == Some(200)).then_some(())
    })
    .await;
    assert_eq!(cluster.http(1).get("key").await.as_deref(), Some("3"));
    cluster.lead(1).await;
    cluster.assert_same_state().await;
}
