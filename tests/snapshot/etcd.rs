//! etcd's own programs take our snapshots, and we take theirs.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use crate::{
    assert_same, client, fill, keys, leases, path,
    process::{Cluster, free_port},
    refusal, report, revision, status,
};

/// Whether these can be started; says so if not.
fn have(tools: &[&str]) -> bool {
    let missing = tools.iter().find(|tool| Command::new(tool).arg("--help").output().is_err());
    if let Some(tool) = missing {
        println!("SKIPPED: {tool} is not installed");
    }
    missing.is_none()
}

/// What an etcdctl that must succeed prints.
fn etcdctl(arguments: &[&str]) -> String {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").args(["--command-timeout", "30s", "--dial-timeout", "30s"]);
    let output = command.args(arguments).output().expect("start etcdctl");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "etcdctl {arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// An etcd of one member, killed when dropped.
struct Etcd {
    child: Child,
    port: u16,
}

impl Etcd {
    fn start(data_dir: &Path, peer_url: &str) -> Self {
        let port = free_port();
        let client_url = format!("http://127.0.0.1:{port}");
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(data_dir);
        command.args(["--listen-client-urls", &client_url]);
        command.args(["--advertise-client-urls", &client_url]);
        command.args(["--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url]);
        command.args(["--initial-cluster", &format!("default={peer_url}")]);
        let log = fs::File::create(data_dir.with_extension("log")).expect("a log file");
        let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("start etcd");
        let etcd = Self { child, port };
        etcdctl(&["--endpoints", &client_url, "endpoint", "status"]);
        etcd
    }

    fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _gone_already = self.child.wait();
    }
}

fn peer_url() -> String {
    format!("http://127.0.0.1:{}", free_port())
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_starts_from_our_snapshot() {
    if !have(&["etcd", "etcdctl"]) {
        return;
    }
    let cluster = Cluster::start(3).await;
    let mut ours = client(cluster.node(1).client_port()).await;
    fill(&mut ours).await;
    // As users of etcd do it.
    let file = cluster.dir().join("backup.db");
    let endpoint = format!("127.0.0.1:{}", cluster.node(3).client_port());
    etcdctl(&["--endpoints", &endpoint, "snapshot", "save", path(&file)]);
    let theirs: Value =
        serde_json::from_str(&etcdctl(&["snapshot", "status", path(&file), "-w", "json"]))
            .expect("JSON");
    let own = status(&file);
    for name in ["hash", "revision", "totalKey", "totalSize"] {
        assert_eq!(own[name], theirs[name], "{name}");
    }

    let data_dir = cluster.dir().join("etcd");
    let peer_url = peer_url();
    etcdctl(&[
        "snapshot",
        "restore",
        path(&file),
        "--data-dir",
        path(&data_dir),
        "--initial-cluster",
        &format!("default={peer_url}"),
        "--initial-advertise-peer-urls",
        &peer_url,
    ]);
    let etcd = Etcd::start(&data_dir, &peer_url);
    let mut theirs = client(etcd.port).await;
    assert_same(&mut ours, &mut theirs).await;
    let last = revision(&mut ours).await;
    let put = theirs.put("k1", "after", None).await.expect("a put");
    assert_eq!(put.header().expect("a header").revision(), last + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn we_start_from_a_snapshot_of_etcd() {
    if !have(&["etcd", "etcdctl"]) {
        return;
    }
    let mut restored = Cluster::new(1);
    let etcd = Etcd::start(&restored.dir().join("etcd"), &peer_url());
    let mut theirs = client(etcd.port).await;
    fill(&mut theirs).await;
    // Compaction is not done yet when it is answered; either state is right.
    let file = restored.dir().join("backup.db");
    etcdctl(&["--endpoints", &etcd.endpoint(), "snapshot", "save", path(&file)]);
    let data = restored.dir().join("data");
    let url = restored.node(1).peer_url();
    let restore =
        ["snapshot", "restore", path(&file), "--data-dir", path(&data), "--cluster", &url];
    report(&restore);
    restored.start_all().await;
    let mut ours = client(restored.node(1).client_port()).await;
    assert_same(&mut theirs, &mut ours).await;
    let last = revision(&mut theirs).await;
    let put = ours.put("k1", "after", None).await.expect("a put");
    assert_eq!(put.header().expect("a header").revision(), last + 1);
    ours.lease_revoke(77).await.expect("the lease");
    assert_eq!(leases(&mut ours).await, []);
    let count = keys(&mut theirs, 0).await.expect("a read").len();
    assert_eq!(keys(&mut ours, 0).await.expect("a read").len(), count - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_etcd_with_users_is_refused() {
    if !have(&["etcd", "etcdctl"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let etcd = Etcd::start(&dir.path().join("etcd"), &peer_url());
    let endpoint = etcd.endpoint();
    for arguments in [
        &["user", "add", "root:secret"][..],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        etcdctl(&[&["--endpoints", &endpoint], arguments].concat());
    }
    let file = dir.path().join("backup.db");
    let login = ["--endpoints", &endpoint, "--user", "root:secret"];
    etcdctl(&[&login[..], &["snapshot", "save", path(&file)]].concat());
    let data = dir.path().join("data");
    let text = refusal(&["snapshot", "restore", path(&file), "--data-dir", path(&data)]);
    assert!(text.contains("users and passwords"), "{text}");
    assert!(!data.join("1").exists());
}
