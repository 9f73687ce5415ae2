//! What a node is asked about its data, and what it says.

use std::collections::BTreeMap;

use etcd_client::{Client, EventType, GetOptions, WatchOptions};
use reqwest::Method;
use serde_json::{Value, json};

use super::process::Node;

/// Keys that are asked for one by one.
const KEYS: [&str; 9] =
    ["plain", "%00%FF%2Fbytes", "empty", "large", "deleted", "back", "leased", "of-txn", "last"];

/// What the answer to each question was, by the question.
pub type Contents = BTreeMap<String, Value>;

/// Asks a node everything, over HTTP and gRPC. No answer depends on the time,
/// on the term, or on how often the node was started.
pub async fn ask(node: &Node) -> Contents {
    let mut said = Contents::new();
    let hash = http(node, "/-/hash").await;
    let hash: Value = serde_json::from_str(hash["body"].as_str().expect("text")).expect("JSON");
    said.insert("state hash".into(), json!([hash["revision"], hash["hash"]]));
    let newest = hash["revision"].as_u64().expect("a revision");
    for key in KEYS {
        said.insert(format!("GET /{key}"), http(node, &format!("/{key}")).await);
    }
    for path in ["/-/members", "/-/leases"] {
        said.insert(format!("GET {path}"), http(node, path).await);
    }
    let lease = http(node, "/-/leases/42").await;
    let lease: Value = serde_json::from_str(lease["body"].as_str().expect("text")).expect("JSON");
    said.insert("lease 42".into(), json!([lease["ttl"], lease["keys"]]));
    let mut client = client(node).await;
    for revision in 1..=newest {
        let path = format!("/plain?revision={revision}");
        said.insert(format!("GET {path}"), http(node, &path).await);
        said.insert(format!("HashKV at {revision}"), hash_kv(&mut client, revision).await);
    }
    for revision in [newest / 2, newest * 3 / 4, newest] {
        said.insert(format!("range at {revision}"), range(&mut client, revision).await);
    }
    said.insert("alarms".into(), gateway(node, "maintenance/alarm", "{}").await["alarms"].take());
    said.insert("history".into(), history(&mut client, newest).await);
    said
}

async fn client(node: &Node) -> Client {
    let address = format!("127.0.0.1:{}", node.client_port());
    Client::connect([address], None).await.expect("connect")
}

async fn http(node: &Node, path: &str) -> Value {
    let reply = node.http().ask(Method::GET, path, "").await;
    let names = ["create-revision", "mod-revision", "version", "lease"];
    let headers = names.map(|name| {
        let value = reply.headers.get(format!("x-metastore-{name}"))?;
        value.to_str().ok().map(str::to_owned)
    });
    json!({ "status": reply.status, "headers": headers, "body": reply.text() })
}

fn pair(kv: &etcd_client::KeyValue) -> Value {
    json!({
        "key": String::from_utf8_lossy(kv.key()),
        "value": String::from_utf8_lossy(kv.value()),
        "revisions": [kv.create_revision(), kv.mod_revision()],
        "version": kv.version(),
        "lease": kv.lease(),
    })
}

async fn range(client: &mut Client, revision: u64) -> Value {
    let options = GetOptions::new().with_all_keys().with_revision(revision.cast_signed());
    match client.get("", Some(options)).await {
        Ok(response) => response.kvs().iter().map(pair).collect(),
        Err(etcd_client::Error::GRpcStatus(status)) => json!(status.message()),
        Err(error) => panic!("no answer at revision {revision}: {error}"),
    }
}

async fn hash_kv(client: &mut Client, revision: u64) -> Value {
    match client.hash_kv(revision.cast_signed()).await {
        Ok(response) => json!(response.hash()),
        Err(etcd_client::Error::GRpcStatus(status)) => json!(status.message()),
        Err(error) => panic!("no hash at revision {revision}: {error}"),
    }
}

/// Asks etcd's JSON gateway.
pub async fn gateway(node: &Node, call: &str, request: &str) -> Value {
    node.http().expect(200, Method::POST, &format!("/v3/{call}"), request).await.json()
}

/// Every change that is not compacted away, from a watch.
async fn history(client: &mut Client, newest: u64) -> Value {
    let options = WatchOptions::new().with_all_keys().with_start_revision(1).with_prev_key();
    let mut stream = client.watch("", Some(options)).await.expect("a watch");
    let first = stream.message().await.expect("an answer").expect("that it is created");
    let mut compacted = first.compact_revision();
    while compacted == 0 {
        let message = stream.message().await.expect("an answer").expect("why it ends");
        compacted = message.compact_revision();
    }
    let options =
        WatchOptions::new().with_all_keys().with_start_revision(compacted).with_prev_key();
    let mut stream = client.watch("", Some(options)).await.expect("a watch");
    let (mut events, mut told) = (Vec::new(), 0);
    while told < newest.cast_signed() {
        let message = stream.message().await.expect("an answer").expect("the watch goes on");
        for event in message.events() {
            let kv = event.kv().expect("a key");
            told = kv.mod_revision();
            let kind = if event.event_type() == EventType::Put { "put" } else { "delete" };
            events.push(json!([kind, pair(kv), event.prev_kv().map(pair)]));
        }
    }
    json!({ "compacted": compacted, "events": events })
}
