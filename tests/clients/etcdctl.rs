//! Debian's etcdctl.

use std::{
    io::Write,
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use crate::{
    process::{Cluster, eventually},
    run,
};

/// etcdctl for one cluster.
struct Etcdctl {
    endpoints: String,
}

impl Etcdctl {
    /// `None`, and said so, where it is not installed.
    fn new(cluster: &Cluster) -> Option<Self> {
        let version = Command::new("etcdctl").arg("version").env("ETCDCTL_API", "3").output();
        if !version.is_ok_and(|output| output.status.success()) {
            println!("SKIPPED: etcdctl is not installed");
            return None;
        }
        let endpoints: Vec<String> =
            (1..=3).map(|id| format!("127.0.0.1:{}", cluster.node(id).client_port())).collect();
        Some(Self { endpoints: endpoints.join(",") })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoints]).args(arguments);
        command
    }

    /// What it prints, without the end of the last line.
    ///
    /// # Panics
    /// When it fails.
    async fn ok(&self, arguments: &[&str]) -> String {
        let output = run(self.command(arguments)).await;
        let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {arguments:?}: {text}{errors}");
        text
    }

    /// As [`ok`](Self::ok), as JSON.
    async fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[arguments, &["-w", "json"]].concat()).await;
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {text}"))
    }

    /// What it complains about.
    ///
    /// # Panics
    /// When it succeeds.
    async fn fails(&self, arguments: &[&str]) -> String {
        let output = run(self.command(arguments)).await;
        assert!(!output.status.success(), "etcdctl {arguments:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Gives it text to read.
    async fn with_input(&self, arguments: &[&str], input: &str) -> String {
        let mut command = self.command(arguments);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start etcdctl");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("write its input");
        let output = tokio::task::spawn_blocking(move || child.wait_with_output());
        let output = output.await.expect("a thread").expect("wait for etcdctl");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {arguments:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Starts it, with what it prints in a file.
    fn start(&self, arguments: &[&str], cluster: &Cluster) -> Running {
        let name: String = arguments.concat().chars().filter(|c| c.is_alphanumeric()).collect();
        let log = cluster.dir().join(format!("etcdctl-{name}.log"));
        let file = std::fs::File::create(&log).expect("create a file");
        let child = self.command(arguments).stdout(file).spawn().expect("start etcdctl");
        Running { child, log }
    }
}

/// An etcdctl that goes on until it is dropped.
struct Running {
    child: Child,
    log: std::path::PathBuf,
}

impl Running {
    fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has printed this.
    async fn wait(&self, text: &str) {
        eventually(text, async || self.text().contains(text).then_some(())).await;
    }

    fn interrupt(&self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().expect("a pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("still there");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_transactions() {
    let cluster = Cluster::start(3).await;
    let Some(etcdctl) = Etcdctl::new(&cluster) else { return };
    assert_eq!(etcdctl.ok(&["put", "a", "1"]).await, "OK");
    assert_eq!(etcdctl.ok(&["get", "a"]).await, "a\n1");
    assert_eq!(etcdctl.ok(&["put", "--prev-kv", "a", "2"]).await, "OK\na\n1");
    let first = etcdctl.json(&["get", "a"]).await;
    let revision = first["kvs"][0]["create_revision"].as_u64().expect("a revision").to_string();
    assert_eq!(etcdctl.ok(&["get", "a", "--rev", &revision]).await, "a\n1");
    for key in ["b", "c", "d"] {
        etcdctl.ok(&["put", key, key]).await;
    }
    assert_eq!(etcdctl.ok(&["get", "a", "d", "--keys-only"]).await, "a\n\nb\n\nc");
    let descending = ["get", "--prefix", "", "--order", "DESCEND", "--limit", "2"];
    assert_eq!(etcdctl.ok(&descending).await, "d\nd\nc\nc");
    assert_eq!(etcdctl.ok(&["del", "b", "d"]).await, "2");
    let both = "value(\"a\") = \"2\"\nmod(\"z\") = \"0\"\n\nput t yes\nget a\n\nput t no\n\n";
    assert_eq!(etcdctl.with_input(&["txn"], both).await, "SUCCESS\n\nOK\n\na\n2");
    let other = "value(\"a\") = \"9\"\n\nput t no\n\ndel t\n\n";
    assert_eq!(etcdctl.with_input(&["txn"], other).await, "FAILURE\n\n1");
    // The same keys by the other API.
    assert_eq!(cluster.http(2).get("a").await.as_deref(), Some("2"));
    let now = etcdctl.json(&["get", "a"]).await["header"]["revision"].to_string();
    assert!(etcdctl.ok(&["compaction", &now, "--physical"]).await.contains(&now));
    let refused = etcdctl.fails(&["get", "a", "--rev", &revision]).await;
    assert!(refused.contains("required revision has been compacted"), "{refused}");
    assert!(etcdctl.ok(&["defrag"]).await.contains("Finished defragmenting"));
    cluster.assert_same_state().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_leases_locks_and_elections() {
    let cluster = Cluster::start(3).await;
    let Some(etcdctl) = Etcdctl::new(&cluster) else { return };
    let before = etcdctl.json(&["put", "w/0", "first"]).await["header"]["revision"].to_string();
    let watch = etcdctl.start(&["watch", "--prefix", "w/", "--rev", &before], &cluster);
    watch.wait("PUT\nw/0\nfirst\n").await;
    etcdctl.ok(&["put", "w/1", "second"]).await;
    etcdctl.ok(&["del", "w/0"]).await;
    watch.wait("PUT\nw/1\nsecond\nDELETE\nw/0\n").await;

    let granted = etcdctl.ok(&["lease", "grant", "60"]).await;
    let lease = granted.split(' ').nth(1).expect("lease ID granted with TTL(60s)");
    assert_eq!(granted, format!("lease {lease} granted with TTL(60s)"));
    etcdctl.ok(&["put", "--lease", lease, "leased", "x"]).await;
    let time = etcdctl.ok(&["lease", "timetolive", "--keys", lease]).await;
    assert!(time.contains("granted with TTL(60s)") && time.contains("[leased]"), "{time}");
    assert!(etcdctl.ok(&["lease", "list"]).await.contains(lease));
    let kept = etcdctl.ok(&["lease", "keep-alive", "--once", lease]).await;
    assert!(kept.contains("keepalived with TTL(60)"), "{kept}");
    assert_eq!(etcdctl.ok(&["lease", "revoke", lease]).await, format!("lease {lease} revoked"));
    assert_eq!(etcdctl.ok(&["get", "leased"]).await, "");

    let holder = etcdctl.start(&["lock", "mutex"], &cluster);
    holder.wait("mutex/").await;
    assert_eq!(
        etcdctl.ok(&["get", "--prefix", "mutex/", "--keys-only"]).await,
        holder.text().trim()
    );
    holder.interrupt();
    let through = etcdctl.ok(&["lock", "mutex", "echo", "mine"]).await;
    assert!(through.contains("mine"), "{through}");

    let leader = etcdctl.start(&["elect", "throne", "me"], &cluster);
    leader.wait("me").await;
    let observer = etcdctl.start(&["elect", "--listen", "throne"], &cluster);
    observer.wait("me").await;
    leader.interrupt();
    cluster.assert_same_state().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_and_maintenance() {
    let cluster = Cluster::start(3).await;
    let Some(etcdctl) = Etcdctl::new(&cluster) else { return };
    etcdctl.ok(&["put", "a", "1"]).await;
    let members = etcdctl.json(&["member", "list"]).await;
    assert_eq!(members["members"].as_array().map(Vec::len), Some(3), "{members}");
    assert!(etcdctl.ok(&["member", "list"]).await.contains("started"));
    let health = etcdctl.ok(&["endpoint", "health"]).await;
    assert!(!health.contains("unhealthy"), "{health}");
    let status = etcdctl.json(&["endpoint", "status"]).await;
    let leaders: Vec<_> =
        status.as_array().into_iter().flatten().map(|one| &one["Status"]).collect();
    assert_eq!(leaders.len(), 3);
    assert!(leaders.iter().all(|one| one["leader"] == leaders[0]["leader"]), "{status}");
    let hashes = etcdctl.json(&["endpoint", "hashkv"]).await;
    let hashes: Vec<_> =
        hashes.as_array().into_iter().flatten().map(|one| one["HashKV"]["hash"].clone()).collect();
    assert!(hashes.len() == 3 && hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");

    let before = cluster.leader().await;
    let target = cluster.others(before)[0];
    let at_leader = format!("127.0.0.1:{}", cluster.node(before).client_port());
    let leader = Etcdctl { endpoints: at_leader };
    leader.ok(&["move-leader", &format!("{target:x}")]).await;
    assert_eq!(cluster.leader().await, target);

    let learner =
        etcdctl.ok(&["member", "add", "four", "--learner", "--peer-urls=http://127.0.0.1:9"]);
    let added = learner.await;
    let id = added.split_whitespace().nth(1).expect("Member ID added").to_owned();
    let refused = etcdctl.fails(&["member", "promote", &id]).await;
    assert!(refused.contains("in sync with leader"), "{refused}");
    etcdctl.ok(&["member", "update", &id, "--peer-urls=http://127.0.0.1:19"]).await;
    assert!(etcdctl.ok(&["member", "list"]).await.contains("http://127.0.0.1:19"));
    etcdctl.ok(&["member", "remove", &id]).await;
    assert_eq!(etcdctl.ok(&["alarm", "list"]).await, "");
    cluster.assert_same_state().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots() {
    let cluster = Cluster::start(3).await;
    let Some(etcdctl) = Etcdctl::new(&cluster) else { return };
    for n in 0..20 {
        etcdctl.ok(&["put", &format!("key{n}"), "value"]).await;
    }
    let revision = etcdctl.json(&["get", "key0"]).await["header"]["revision"].clone();
    let file = cluster.dir().join("snapshot.db");
    let file = file.to_str().expect("a path of text");
    let one = Etcdctl { endpoints: format!("127.0.0.1:{}", cluster.node(2).client_port()) };
    one.ok(&["snapshot", "save", file]).await;
    let status = one.json(&["snapshot", "status", file]).await;
    assert_eq!(status["revision"], revision, "{status}");
    assert!(status["totalKey"].as_u64() >= Some(20), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn its_own_load() {
    let cluster = Cluster::start(3).await;
    let Some(etcdctl) = Etcdctl::new(&cluster) else { return };
    // A minute of 150 writes a second. Its verdict depends on the machine's
    // speed and is not ours; that all of them were answered is.
    let output = run(etcdctl.command(&["check", "perf", "--load", "s"])).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.contains("Too many errors") && text.contains("Throughput"), "{text}");
    cluster.assert_same_state().await;
}
