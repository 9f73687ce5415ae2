//! A data directory as it was written.

use std::{fs, path::Path};

use reqwest::Method;
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    contents::{self, Contents, gateway},
    every_version,
    process::Node,
};

/// The stored member listens where its data say; nobody else uses this port.
const PEER_URL: &str = "http://127.0.0.1:12990";

/// Part of the data, and never dialled by anybody.
const CLIENT_URL: &str = "http://127.0.0.1:12991";

const DATA: &str = "data";
const CONTENTS: &str = "contents.json";

/// What RocksDB writes for people, and where it keeps others out.
const LEFT_OUT: [&str; 2] = ["LOG", "LOCK"];

/// The member of the fixtures. One at a time on a machine, because of its port.
struct Only {
    node: Node,
    _dir: TempDir,
    _turn: fs::File,
}

impl Only {
    fn new() -> Self {
        let path = std::env::temp_dir().join("metastore-fixtures.lock");
        let turn = fs::File::options().create(true).append(true).open(path).expect("a lock file");
        flock(&turn, FlockOperation::LockExclusive).expect("wait for the other tests");
        let dir = TempDir::with_prefix("metastore-test-").expect("make a temporary directory");
        let mut node = Node::new(1, dir.path());
        node.set("--cluster", PEER_URL);
        node.set("--advertise-client-url", CLIENT_URL);
        Self { node, _dir: dir, _turn: turn }
    }
}

/// Every kind of change there is, in two parts: what the first did ends in the
/// tables of the state database, what the second did only in the log.
async fn fill(node: &Node, part: &str) {
    let send = async |status, method, path: &str, body: &str| {
        node.http().expect(status, method, path, body).await
    };
    send(204, Method::PUT, "/plain", &format!("first of {part}")).await;
    send(204, Method::PUT, "/plain", &format!("second of {part}")).await;
    send(204, Method::PUT, "/%00%FF%2Fbytes", "\u{0}\u{ff} any bytes").await;
    send(204, Method::PUT, "/empty", "").await;
    send(204, Method::PUT, "/large", &"0123456789".repeat(100)).await;
    send(204, Method::PUT, "/deleted", part).await;
    send(204, Method::DELETE, "/deleted", "").await;
    send(204, Method::PUT, "/back", part).await;
    gateway(node, "kv/deleterange", &json!({ "key": "YmFjaw==", "prev_kv": true }).to_string())
        .await;
    gateway(node, "kv/put", &json!({ "key": "YmFjaw==", "value": "YWdhaW4=" }).to_string()).await;
    let id = if part == "one" { 42 } else { 43 };
    let lease = json!({ "id": id, "ttl": 1_000_000_000 }).to_string();
    send(201, Method::POST, "/-/leases", &lease).await;
    send(204, Method::PUT, "/leased?lease=42", part).await;
    send(204, Method::PUT, &format!("/leased-{part}?lease={id}"), part).await;
    send(200, Method::POST, "/-/leases/42/keepalive", "").await;
    gateway(node, "lease/grant", r#"{"ID":44,"TTL":1000000000}"#).await;
    gateway(node, "kv/put", r#"{"key":"Z29uZQ==","value":"","lease":44}"#).await;
    gateway(node, "lease/revoke", r#"{"ID":44}"#).await;
    let put = |value: &str| json!({ "request_put": { "key": "b2YtdHhu", "value": value } });
    let txn = json!({
        "compare": [{ "key": "b2YtdHhu", "target": "CREATE", "create_revision": "0" }],
        "success": [put("bmV3"), { "request_put": { "key": "dHhu", "value": "bmV3" } }],
        "failure": [put("b2xk"), { "request_delete_range": { "key": "dHhu" } }],
    });
    gateway(node, "kv/txn", &txn.to_string()).await;
    for number in 0..20 {
        send(204, Method::PUT, "/many", &number.to_string()).await;
    }
    let (learner, gone) = if part == "one" { (2, 3) } else { (4, 5) };
    for (id, host) in [(learner, "127.0.0.2"), (gone, "127.0.0.3")] {
        node.http().add_member(id, &format!("http://{host}:{id}"), true).await;
    }
    node.http().remove_member(gone).await;
    send(204, Method::PUT, "/-/members/2", r#"{"peer_url":"http://127.0.0.2:9"}"#).await;
    let revision = node.http().status("revision").await;
    let compact = json!({ "revision": revision - 25 }).to_string();
    send(204, Method::POST, "/-/compact", &compact).await;
    send(204, Method::PUT, "/last", part).await;
}

pub async fn write(dir: &Path) {
    let mut only = Only::new();
    let node = &mut only.node;
    node.set("--snapshot-count", "5");
    node.start().await;
    fill(node, "one").await;
    node.stop().await;
    node.set("--snapshot-count", "100000");
    node.start().await;
    fill(node, "two").await;
    let alarm = r#"{"action":"ACTIVATE","memberID":"2","alarm":"NOSPACE"}"#;
    gateway(node, "maintenance/alarm", alarm).await;
    let contents = contents::ask(node).await;
    // Not stopped: the log is to hold what the state database does not.
    node.kill();
    copy(&node.data(), &dir.join(DATA));
    let text = serde_json::to_string_pretty(&contents).expect("JSON");
    fs::write(dir.join(CONTENTS), text + "\n").expect("write the contents");
}

/// Copies a directory, but for [`LEFT_OUT`].
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("make a directory");
    for entry in fs::read_dir(from).expect("list a directory") {
        let entry = entry.expect("a readable directory");
        let name = entry.file_name();
        if entry.path().is_dir() {
            copy(&entry.path(), &to.join(name));
        } else if !LEFT_OUT.iter().any(|out| name.to_string_lossy().starts_with(out)) {
            fs::copy(entry.path(), to.join(name)).expect("copy a file");
        }
    }
}

/// Whether what a node says today is what was said when its data were written.
async fn compare(node: &Node, written: &Contents, when: &str) {
    let mut said = contents::ask(node).await;
    for (question, answer) in written {
        let now = said.remove(question).unwrap_or(Value::Null);
        assert_eq!(&now, answer, "{when}, {question}");
    }
}

#[tokio::test]
async fn the_data_of_every_version_are_read_and_served() {
    for dir in every_version() {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(dir.join(CONTENTS)).expect("the contents of a version");
        let written: Contents = serde_json::from_str(&text).expect("JSON");
        assert!(written.len() > 50, "{name} has hardly any contents");
        let mut only = Only::new();
        let node = &mut only.node;
        copy(&dir.join(DATA), &node.data());
        node.start().await;
        compare(node, &written, &format!("{name} as it was written")).await;
        // Once more, from what was written of it since.
        node.stop().await;
        node.start().await;
        compare(node, &written, &format!("{name} after a restart")).await;
        node.http().expect(507, Method::PUT, "/new", "refused by the alarm").await;
        let disarm = r#"{"action":"DEACTIVATE","memberID":"2","alarm":"NOSPACE"}"#;
        gateway(node, "maintenance/alarm", disarm).await;
        node.http().put("new", "written today").await;
        node.kill();
        node.start().await;
        assert_eq!(node.http().get("new").await.as_deref(), Some("written today"));
        assert_eq!(node.http().get("last").await.as_deref(), Some("two"));
    }
}
