//! What was written, or is said, by a newer version: refused with one line.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use axum::{
    Router,
    http::{HeaderMap, HeaderValue},
};
use metastore::{
    proto::{Command, Identity, Payload, Put, RequestId, SnapshotHeader, command::Op},
    raftlog::Recovered,
    storage::{
        Batch, Engine, Family, keys,
        rocks::{Kind, MemoryBudget, RocksEngine},
    },
    version::PROTOCOL,
};
use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::{Entry, Message, MessageType};
use reqwest::{Response, StatusCode};
use sha2::{Digest as _, Sha256};

use super::process::{Cluster, DEADLINE, Node};

/// A node that has served and was stopped.
async fn stopped() -> Cluster {
    let mut cluster = Cluster::start(1).await;
    cluster.http(1).put("key", "value").await;
    cluster.node_mut(1).stop().await;
    cluster
}

/// Starts the node, which must refuse; the line that it leaves.
async fn refusal(node: &mut Node) -> String {
    node.spawn();
    assert_eq!(node.wait_exit(DEADLINE).await, Some(1), "exit code; log:\n{}", node.log());
    node.failure()
}

fn database(dir: PathBuf, kind: Kind) -> RocksEngine {
    RocksEngine::open(&dir, kind, &MemoryBudget::default()).expect("open a database")
}

fn raft(node: &Node) -> RocksEngine {
    database(node.data().join("raft"), Kind::Raft)
}

fn write(engine: &RocksEngine, family: Family, key: &[u8], value: Vec<u8>) {
    let mut batch = Batch::default();
    batch.put(family, key.to_vec(), value);
    engine.write(batch, true).expect("write a database");
}

fn assert_newer(line: &str, what: &str, version: u32) {
    let newer = version + 1;
    let wanted = format!(
        "has format {newer}, and metastore {} reads {version}; start the version \
        of metastore that wrote it, or a newer one",
        env!("CARGO_PKG_VERSION")
    );
    assert!(line.contains(what) && line.ends_with(&wanted), "{line}");
}

#[tokio::test]
async fn a_newer_raft_database() {
    let mut cluster = stopped().await;
    let node = cluster.node_mut(1);
    let newer = |version: u32| version.to_be_bytes().to_vec();
    let version = keys::RAFT_FORMAT_VERSION;
    write(&raft(node), Family::State, keys::FORMAT, newer(version + 1));
    assert_newer(&refusal(node).await, "the raft database ", version);
    // The refusal changed nothing.
    write(&raft(node), Family::State, keys::FORMAT, newer(version));
    node.start().await;
    assert_eq!(node.http().get("key").await.as_deref(), Some("value"));
}

#[tokio::test]
async fn a_newer_state_database() {
    let mut cluster = stopped().await;
    let node = cluster.node_mut(1);
    let state = || {
        let live = Recovered::read(&raft(node)).expect("a sound log").live_state;
        database(node.data().join(live.expect("it has served")), Kind::State)
    };
    let version = keys::STATE_FORMAT_VERSION;
    write(&state(), Family::Meta, keys::FORMAT, (version + 1).to_be_bytes().to_vec());
    assert_newer(&refusal(node).await, "the state database ", version);
    let state = || {
        let live = Recovered::read(&raft(node)).expect("a sound log").live_state;
        database(node.data().join(live.expect("it has served")), Kind::State)
    };
    write(&state(), Family::Meta, keys::FORMAT, version.to_be_bytes().to_vec());
    node.start().await;
    assert_eq!(node.http().get("key").await.as_deref(), Some("value"));
}

#[tokio::test]
async fn a_newer_watermark() {
    let mut cluster = stopped().await;
    let node = cluster.node_mut(1);
    let path = node.data().join("watermark");
    let written = fs::read(&path).expect("the watermark");
    let mut newer = written[..written.len() - 32].to_vec();
    let version = u64::from_be_bytes(newer[..8].try_into().expect("eight bytes"));
    newer[..8].copy_from_slice(&(version + 1).to_be_bytes());
    newer.extend(b"and more");
    let digest = Sha256::digest(&newer);
    newer.extend(digest);
    fs::write(&path, newer).expect("write the watermark");
    let version = u32::try_from(version).expect("a small one");
    assert_newer(&refusal(node).await, &path.display().to_string(), version);
    fs::write(&path, written).expect("write the watermark");
    node.start().await;
    assert_eq!(node.http().get("key").await.as_deref(), Some("value"));
}

#[tokio::test]
async fn a_newer_command_in_the_log() {
    let mut cluster = stopped().await;
    let node = cluster.node_mut(1);
    let append = |data: Vec<u8>| {
        let engine = raft(node);
        let last = Recovered::read(&engine).expect("a sound log").last;
        let mut entry = Entry::default();
        (entry.index, entry.term) = (last.index + 1, last.term);
        entry.data = data.into();
        let value = entry.write_to_bytes().expect("encodable");
        write(&engine, Family::Entries, &keys::entry(entry.index), value);
    };
    let put = Op::Put(Put { key: "new".into(), value: "newer".into(), ..Put::default() });
    let id = Some(RequestId { member: 1, nonce: 1, sequence: 1 });
    let newer = PROTOCOL.newest() + 1;
    append(
        Payload { version: newer, commands: vec![Command { id, op: Some(put) }] }.encode_to_vec(),
    );
    let line = refusal(node).await;
    let wanted = format!("a payload has version {newer}, this program reads version");
    assert!(line.contains(&wanted), "{line}");
    assert!(line.ends_with("run the version of metastore that the other members run"), "{line}");
    // It stops there at every start, before it serves anything.
    let again = refusal(cluster.node_mut(1)).await;
    assert!(again.contains(&wanted), "{again}");
}

/// Three members, the third of them stopped, and who that one is.
async fn two_and_an_impostor() -> (Cluster, Identity) {
    let mut cluster = Cluster::start(3).await;
    cluster.http(1).put("key", "value").await;
    cluster.node_mut(3).stop().await;
    let recovered = Recovered::read(&raft(cluster.node(3))).expect("a sound log");
    (cluster, recovered.identity.expect("it has served"))
}

/// Asks member 1 as this member would, in this protocol.
async fn ask(
    cluster: &Cluster,
    identity: &Identity,
    path: &str,
    protocol: &str,
    body: Vec<u8>,
) -> Response {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let request = client.post(format!("{}{path}", cluster.node(1).peer_url()));
    let request = request
        .header("x-metastore-protocol", protocol)
        .header("x-metastore-cluster", identity.cluster_id)
        .header("x-metastore-from", identity.member_id)
        .header("x-metastore-incarnation", identity.incarnation)
        .header("x-metastore-to", 1);
    request.body(body).send().await.expect("an answer")
}

/// Lines of member 1's log with this text.
fn lines(cluster: &Cluster, text: &str) -> Vec<String> {
    cluster.node(1).log().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
}

/// What is logged at most once a second was not logged more often.
fn assert_throttled(lines: &[String], since: Instant) {
    assert!(!lines.is_empty(), "nothing was logged");
    let most = since.elapsed().as_secs() as usize + 2;
    assert!(lines.len() <= most, "{} lines: {lines:?}", lines.len());
}

async fn assert_undisturbed(mut cluster: Cluster) {
    for id in [1, 2] {
        assert!(cluster.node_mut(id).is_running());
        cluster.http(id).put("key", &format!("still served by {id}")).await;
    }
    cluster.node_mut(3).start().await;
    assert_eq!(cluster.http(3).get("key").await.as_deref(), Some("still served by 2"));
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn a_peer_of_an_unknown_version() {
    let (cluster, identity) = two_and_an_impostor().await;
    let since = Instant::now();
    let newer = PROTOCOL.newest() + 1;
    let range = format!("{newer}-{}", newer + 3);
    for path in ["/raft/stream/messages", "/raft/snapshot", "/raft/forward", "/raft/join"] {
        for protocol in [newer.to_string().as_str(), &range, "0", "none"] {
            for _ in 0..5 {
                let answer = ask(&cluster, &identity, path, protocol, Vec::new()).await;
                assert_eq!(answer.status(), StatusCode::UPGRADE_REQUIRED, "{path} in {protocol}");
                assert_eq!(answer.headers()["x-metastore-protocol"], PROTOCOL.to_string());
                let why = answer.text().await.expect("text");
                let (older, spoken) = if protocol == "0" {
                    ("this member", "this member speaks protocol 0".to_owned())
                } else {
                    ("the peer", format!("the peer speaks {PROTOCOL}"))
                };
                assert!(why.contains(&spoken) && why.contains(protocol), "{why}");
                assert!(why.trim_end().ends_with(&format!(": upgrade {older}")), "{why}");
            }
        }
    }
    let logged = lines(&cluster, "the peer speaks protocol");
    assert!(logged[0].contains(&format!("this member speaks {PROTOCOL}")), "{}", logged[0]);
    assert!(logged[0].contains("upgrade this member"), "{}", logged[0]);
    assert_throttled(&logged, since);
    // A range that holds today's is no reason to refuse.
    let answer = ask(&cluster, &identity, "/raft/forward", &format!("1-{newer}"), vec![]).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_undisturbed(cluster).await;
}

#[tokio::test]
async fn a_newer_snapshot_of_a_peer() {
    let (cluster, identity) = two_and_an_impostor().await;
    let since = Instant::now();
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgSnapshot);
    (message.from, message.to) = (3, 1);
    let metadata = message.mut_snapshot().mut_metadata();
    (metadata.index, metadata.term) = (1_000_000, 1_000);
    let version = keys::STATE_FORMAT_VERSION;
    let header = SnapshotHeader {
        version: version + 1,
        message: message.write_to_bytes().expect("encodable").into(),
        files: vec![],
    };
    let header = header.encode_to_vec();
    let mut body = u32::try_from(header.len()).expect("small").to_be_bytes().to_vec();
    body.extend(header);
    for _ in 0..20 {
        let protocol = PROTOCOL.to_string();
        let answer = ask(&cluster, &identity, "/raft/snapshot", &protocol, body.clone()).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
        let why = answer.text().await.expect("text");
        let wanted = format!("the snapshot has format {}, and metastore", version + 1);
        assert!(why.contains(&wanted) && why.contains("upgrade this member"), "{why}");
    }
    let logged = lines(&cluster, "snapshot not received");
    assert!(logged[0].contains(&format!("has format {}", version + 1)), "{}", logged[0]);
    assert_throttled(&logged, since);
    assert_undisturbed(cluster).await;
}

/// A founder that cannot understand another one says so and waits.
#[tokio::test]
async fn a_founder_of_an_unknown_version() {
    let mut cluster = Cluster::new(2);
    let port = cluster.node(2).peer_port;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.expect("a free port");
    let newer = PROTOCOL.newest() + 1;
    let mut headers = HeaderMap::new();
    headers.insert("x-metastore-protocol", newer.into());
    // So that the founder that comes later is not taken for this one.
    headers.insert("connection", HeaderValue::from_static("close"));
    let router = Router::new().fallback(move || async move { headers });
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    cluster.node_mut(1).spawn();
    let url = cluster.node(2).peer_url();
    let wanted = format!(
        "member 2 at {url}: the peer speaks protocol {newer}, this member speaks \
        {PROTOCOL}: upgrade this member"
    );
    cluster.node(1).wait_log(&wanted).await;
    assert_eq!(lines(&cluster, &wanted).len(), 1, "it is said once");
    server.abort();
    let _ended = server.await;
    // The founder that comes instead is understood.
    tokio::time::timeout(Duration::from_secs(60), cluster.start_all()).await.expect("founded");
}
