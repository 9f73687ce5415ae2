//! Snapshots of a running cluster: saved, looked into, restored into a new
//! cluster, and exchanged with etcd's own programs, where they are installed.

mod process;

#[path = "snapshot/etcd.rs"]
mod etcd;

use std::{fs, path::Path};

use etcd_client::{Client, Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp};
use process::{Cluster, refusal, report};
use serde_json::Value;

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn status(file: &Path) -> Value {
    let text = report(&["snapshot", "status", path(file), "-w", "json"]);
    serde_json::from_str(&text).expect("JSON")
}

async fn client(port: u16) -> Client {
    Client::connect([format!("127.0.0.1:{port}")], None).await.expect("connect")
}

/// What a range shows of a key.
type Shown = (Vec<u8>, Vec<u8>, i64, i64, i64, i64);

/// All keys as of a revision, 0 for the present, or why they cannot be read.
async fn keys(client: &mut Client, revision: i64) -> Result<Vec<Shown>, String> {
    let options = GetOptions::new().with_all_keys().with_revision(revision);
    let response = client.get("", Some(options)).await.map_err(|error| error.to_string())?;
    let shown = response.kvs().iter().map(|kv| {
        let (created, modified) = (kv.create_revision(), kv.mod_revision());
        let (key, value) = (kv.key().to_vec(), kv.value().to_vec());
        (key, value, created, modified, kv.version(), kv.lease())
    });
    Ok(shown.collect())
}

async fn revision(client: &mut Client) -> i64 {
    let response = client.get("none", None).await.expect("a read");
    response.header().expect("a header").revision()
}

/// The leases with their times to live.
async fn leases(client: &mut Client) -> Vec<(i64, i64, Vec<Vec<u8>>)> {
    let mut found = Vec::new();
    for lease in client.leases().await.expect("leases").leases() {
        let options = etcd_client::LeaseTimeToLiveOptions::new().with_keys();
        let time = client.lease_time_to_live(lease.id(), Some(options)).await.expect("a lease");
        found.push((time.id(), time.granted_ttl(), time.keys().to_vec()));
    }
    found.sort();
    found
}

/// Some of everything, with a compaction in the middle.
async fn fill(client: &mut Client) {
    client
        .lease_grant(600, Some(etcd_client::LeaseGrantOptions::new().with_id(77)))
        .await
        .expect("a lease");
    for n in 0..40 {
        client.put(format!("k{}", n % 8), format!("{n}"), None).await.expect("a put");
    }
    let attached = PutOptions::new().with_lease(77);
    client.put("leased", "77", Some(attached)).await.expect("a put");
    client.delete("k3", None).await.expect("a deletion");
    let middle = revision(client).await;
    client.compact(middle, None).await.expect("a compaction");
    let writes = ["t1", "t2", "t3"].map(|key| TxnOp::put(key, "txn", None));
    let always = [Compare::version("none", CompareOp::Equal, 0)];
    let txn = Txn::new().when(always).and_then(writes);
    client.txn(txn).await.expect("a transaction");
    client.put("k3", "again", None).await.expect("a put");
    client.delete("k4", None).await.expect("a deletion");
    client.put("binary", vec![0, 255, 10], None).await.expect("a put");
}

/// The two answer alike at every revision, and know the same leases.
async fn assert_same(one: &mut Client, other: &mut Client) {
    let last = revision(one).await;
    assert_eq!(revision(other).await, last);
    let mut readable = 0;
    for revision in 0..=last {
        let expected = keys(one, revision).await;
        readable += usize::from(expected.is_ok());
        assert_eq!(keys(other, revision).await, expected, "at revision {revision}");
    }
    assert!((4..last as usize).contains(&readable), "{readable} of {last} can be read");
    let expected = leases(one).await;
    assert!(!expected.is_empty());
    assert_eq!(leases(other).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_saved_and_restored() {
    let cluster = Cluster::start(3).await;
    let mut saved = client(cluster.node(1).client_port()).await;
    fill(&mut saved).await;
    let file = cluster.dir().join("backup.db");
    let endpoint = format!("http://127.0.0.1:{}", cluster.node(2).client_port());
    let save = ["snapshot", "save", path(&file), "--endpoint", &endpoint];
    let text = report(&save);
    let last = revision(&mut saved).await;
    assert!(text.contains(&format!("revision {last}")), "{text}");
    assert!(refusal(&save).contains("exists already"));
    assert!(!cluster.dir().join("backup.db.part").exists());
    assert_eq!(status(&file)["revision"], last);

    let mut restored = Cluster::new(1);
    let data = restored.dir().join("data");
    let url = restored.node(1).peer_url();
    let restore =
        ["snapshot", "restore", path(&file), "--data-dir", path(&data), "--cluster", &url];
    let text = report(&restore);
    assert!(text.contains("start it with: metastore --id 1"), "{text}");
    assert!(refusal(&restore).contains("exists already"));
    restored.start_all().await;
    let mut again = client(restored.node(1).client_port()).await;
    assert_same(&mut saved, &mut again).await;
    let old = cluster.http(1).status("cluster_id").await;
    let new = restored.http(1).status("cluster_id").await;
    assert_ne!(old, new, "the restored cluster must be another one");

    // It goes on, grows, and stays in step.
    let put = again.put("k1", "after", None).await.expect("a put");
    assert_eq!(put.header().expect("a header").revision(), last + 1);
    restored.join(2, 1).await;
    restored.http(2).put("k2", "grown").await;
    restored.assert_same_state().await;
    again.lease_revoke(77).await.expect("the lease");
    assert_eq!(restored.http(2).get("leased").await, None);
    assert_eq!(saved.get("leased", None).await.expect("a read").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bumped_restore_never_gives_a_revision_again() {
    let cluster = Cluster::start(1).await;
    let mut saved = client(cluster.node(1).client_port()).await;
    fill(&mut saved).await;
    let file = cluster.dir().join("backup.db");
    let endpoint = format!("127.0.0.1:{}", cluster.node(1).client_port());
    report(&["snapshot", "save", path(&file), "--endpoint", &endpoint]);
    let last = revision(&mut saved).await;

    let mut restored = Cluster::new(1);
    let data = restored.dir().join("data");
    let url = restored.node(1).peer_url();
    let restore =
        ["snapshot", "restore", path(&file), "--data-dir", path(&data), "--cluster", &url];
    let bump = [&restore[..], &["--bump-revision", "1000000"]].concat();
    assert!(refusal(&bump).contains("together only"));
    report(&[&bump[..], &["--mark-compacted"]].concat());
    restored.start_all().await;
    let mut again = client(restored.node(1).client_port()).await;
    assert_eq!(revision(&mut again).await, last + 1_000_000);
    assert_eq!(keys(&mut again, 0).await, keys(&mut saved, 0).await);
    assert!(keys(&mut again, last).await.expect_err("forgotten").contains("compacted"));
    let put = again.put("k1", "after", None).await.expect("a put");
    assert_eq!(put.header().expect("a header").revision(), last + 1_000_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_files_are_refused_and_leave_nothing() {
    let cluster = Cluster::start(1).await;
    fill(&mut client(cluster.node(1).client_port()).await).await;
    let file = cluster.dir().join("backup.db");
    let endpoint = format!("127.0.0.1:{}", cluster.node(1).client_port());
    report(&["snapshot", "save", path(&file), "--endpoint", &endpoint]);

    let data = cluster.dir().join("restored");
    let damaged = cluster.dir().join("damaged.db");
    let restore = ["snapshot", "restore", path(&damaged), "--data-dir", path(&data)];
    let whole = fs::read(&file).expect("the file");
    let mut content = whole.clone();
    // The first page that is not a meta page.
    content[2 * 4096 + 100] ^= 0x40;
    fs::write(&damaged, &content).expect("write a file");
    assert!(refusal(&restore).contains("checksum"));
    assert!(refusal(&["snapshot", "status", path(&damaged)]).contains("checksum"));
    for (content, reason) in [
        (&whole[..whole.len() - 32], "has no checksum"),
        (&whole[..whole.len() / 2], "has no checksum"),
        (b"".as_slice(), "has no checksum"),
    ] {
        fs::write(&damaged, content).expect("write a file");
        assert!(refusal(&restore).contains(reason));
    }
    let skipping = [&restore[..], &["--skip-hash-check"]].concat();
    fs::write(&damaged, &whole[..8192]).expect("write a file");
    refusal(&skipping);
    fs::remove_file(&damaged).expect("remove it");
    assert!(refusal(&restore).contains("No such file"));
    assert!(!data.join("1").exists());
    let left = fs::read_dir(&data).map_or(0, Iterator::count);
    assert_eq!(left, 0, "something half-done was left");
    fs::write(&damaged, &whole[..whole.len() - 32]).expect("write a file");
    report(&skipping);

    let two = [&restore[..], &["--id", "2", "--cluster", "http://a:1,http://b:1"]].concat();
    assert!(refusal(&two).contains("more than one member"));
    let other = [&restore[..], &["--id", "2", "--cluster", "1=http://a:1"]].concat();
    assert!(refusal(&other).contains("does not name member 2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_needs_a_member_that_is_there() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("backup.db");
    let endpoint = format!("http://127.0.0.1:{}", process::free_port());
    let text = refusal(&["snapshot", "save", path(&file), "--endpoint", &endpoint]);
    assert!(text.contains("cannot get a snapshot"), "{text}");
    let text = refusal(&["snapshot", "save", path(&file), "--endpoint", "http://"]);
    assert!(text.contains("--endpoint"), "{text}");
    assert_eq!(fs::read_dir(dir.path()).expect("the directory").count(), 0);
}

/// A member that has lost its cluster still gives away what it knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_a_majority_can_be_saved() {
    let mut cluster = Cluster::start(3).await;
    cluster.http(1).put("key", "value").await;
    cluster.assert_same_state().await;
    cluster.node_mut(2).kill();
    cluster.node_mut(3).kill();
    let file = cluster.dir().join("backup.db");
    let endpoint = format!("127.0.0.1:{}", cluster.node(1).client_port());
    report(&["snapshot", "save", path(&file), "--endpoint", &endpoint]);
    assert_eq!(status(&file)["revision"], 2);
}
