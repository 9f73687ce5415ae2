//! A disk without room stops a node with one line that says so, and loses
//! nothing that was acknowledged.
//!
//! The disk is a small tmpfs, which only root can mount; otherwise the tests
//! say that they were skipped.

mod process;

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use process::{DEADLINE, Node};
use reqwest::Method;
use tempfile::TempDir;

/// A small disk of its own, unmounted when dropped.
struct Disk {
    dir: TempDir,
}

impl Disk {
    /// `None` where this user cannot mount.
    fn new(mebibytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().expect("create a directory");
        match Self::mount(dir.path(), mebibytes, MsFlags::empty()) {
            Ok(()) => Some(Self { dir }),
            Err(e) => {
                println!("SKIPPED: cannot mount a tmpfs: {e}");
                None
            }
        }
    }

    fn mount(at: &Path, mebibytes: u64, flags: MsFlags) -> nix::Result<()> {
        let size = format!("size={mebibytes}m");
        mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some(size.as_str()))
    }

    fn grow(&self, mebibytes: u64) {
        Self::mount(self.dir.path(), mebibytes, MsFlags::MS_REMOUNT).expect("grow the disk");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _at_exit = umount2(self.dir.path(), MntFlags::MNT_DETACH);
    }
}

/// A node whose data, but not whose log, is on the disk.
fn node(disk: &Disk, logs: &Path) -> Node {
    let mut node = Node::new(1, logs);
    let data: PathBuf = disk.dir.path().join("data");
    node.set("--data-dir", data.display().to_string());
    node
}

/// Bytes that RocksDB cannot make smaller.
fn incompressible(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = |_| {
        // Numerical Recipes' linear congruential generator; its high bits will do.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..length).map(next).collect()
}

#[tokio::test]
async fn node_does_not_start_on_a_nearly_full_disk() {
    let Some(disk) = Disk::new(32) else { return };
    let logs = tempfile::tempdir().expect("create a directory");
    let mut node = node(&disk, logs.path());
    node.spawn();
    assert_eq!(node.wait_exit(DEADLINE).await, Some(1), "exit code; log:\n{}", node.log());
    let line = node.failure();
    assert!(line.contains("MiB are free"), "{line}");
    disk.grow(512);
    node.start().await;
    node.http().put("key", "value").await;
}

#[tokio::test]
async fn full_disk_stops_the_node_and_loses_nothing_acknowledged() {
    let Some(disk) = Disk::new(160) else { return };
    let logs = tempfile::tempdir().expect("create a directory");
    let mut node = node(&disk, logs.path());
    node.start().await;
    let value = incompressible(1 << 20);
    let mut acknowledged = Vec::new();
    for number in 0..400 {
        let key = format!("/key-{number}");
        match node.http().request(Method::PUT, &key, value.clone()).await {
            Ok(reply) if reply.status == 204 => acknowledged.push(key),
            _ => break,
        }
    }
    assert_eq!(node.wait_exit(DEADLINE).await, Some(1), "exit code; log:\n{}", node.log());
    let line = node.failure();
    assert!(line.contains("space"), "{line}");
    assert!(acknowledged.len() > 10, "only {} writes went in", acknowledged.len());

    disk.grow(2048);
    node.start().await;
    for key in &acknowledged {
        let reply = node.http().expect(200, Method::GET, key, "").await;
        assert!(reply.body == value, "{key} holds another value");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_without_room_is_refused_and_the_node_goes_on() {
    let Some(disk) = Disk::new(512) else { return };
    let logs = tempfile::tempdir().expect("create a directory");
    let mut node = node(&disk, logs.path());
    node.start().await;
    let value = incompressible(1 << 20);
    for number in 0..20 {
        let path = format!("/key-{number}");
        let reply = node.http().request(Method::PUT, &path, value.clone()).await;
        assert_eq!(reply.expect("an answer").status, 204);
    }
    // Room for the node, but not for so much more.
    let space = rustix::fs::statvfs(disk.dir.path()).expect("ask for the space");
    let free = (space.f_bavail * space.f_frsize) as usize;
    let ballast = disk.dir.path().join("ballast");
    std::fs::write(&ballast, vec![1; free - (70 << 20)]).expect("write the ballast");

    let save = || {
        let file = logs.path().join("backup.db");
        let endpoint = format!("127.0.0.1:{}", node.client_port());
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_metastore"));
        command.args(["snapshot", "save"]).arg(file).args(["--endpoint", &endpoint]);
        let output = command.output().expect("the program starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = save();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("MiB left"), "{text}");
    node.http().put("key", "value").await;
    std::fs::remove_file(&ballast).expect("remove the ballast");
    let (code, text) = save();
    assert_eq!(code, Some(0), "{text}");
}
