//! What was acknowledged survives: kill -9, restarts, snapshots, back-ups.

use std::{fs, path::Path};

use reqwest::Method;

use crate::process::{Cluster, Endpoint, eventually, free_port};

/// Makes every few applied entries a snapshot.
const EARLY_SNAPSHOTS: &[(&str, &str)] = &[("--snapshot-count", "50")];

#[tokio::test]
async fn single_node_keeps_a_put_across_kill_and_restart() {
    let mut cluster = Cluster::start(1).await;
    cluster.http(1).put("key", "value").await;
    cluster.http(1).put("empty", "").await;
    cluster.node_mut(1).kill();
    cluster.node_mut(1).start().await;
    assert_eq!(cluster.http(1).get("key").await.as_deref(), Some("value"));
    assert_eq!(cluster.http(1).get("empty").await.as_deref(), Some(""));
    assert_eq!(cluster.http(1).get("absent").await, None);
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn log_tells_of_storage_leadership_and_readiness() {
    let cluster = Cluster::start(1).await;
    let node = cluster.node(1);
    node.wait_log("Starting with RocksDB persistent storage").await;
    node.wait_log("became leader at term ").await;
    node.wait_log("ready to serve client requests").await;
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn restarts_twice_after_a_snapshot() {
    let mut cluster = Cluster::start_with(1, EARLY_SNAPSHOTS).await;
    let mut written = 0;
    while cluster.http(1).status("snapshot_index").await < 50 {
        for _ in 0..10 {
            cluster.http(1).put(&format!("k{written}"), &written.to_string()).await;
            written += 1;
        }
    }
    for restart in 0..2 {
        let before = cluster.http(1).state().await;
        cluster.node_mut(1).kill();
        cluster.node_mut(1).start().await;
        for n in 0..written {
            let value = cluster.http(1).get(&format!("k{n}")).await;
            assert_eq!(value, Some(n.to_string()), "k{n} after restart {restart}");
        }
        let after = cluster.http(1).state().await;
        let (before, after) = (before.expect("a hash"), after.expect("a hash"));
        assert_eq!((before.1, before.2), (after.1, after.2), "revision and hash");
        cluster.http(1).put(&format!("k{written}"), &written.to_string()).await;
        written += 1;
    }
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn three_nodes_write_to_any_read_from_any_at_once() {
    let cluster = Cluster::start(3).await;
    for round in 0..10 {
        for writer in 1..=3 {
            let value = format!("{round} by {writer}");
            cluster.http(writer).put("shared", &value).await;
            for reader in 1..=3 {
                let read = cluster.http(reader).get("shared").await;
                assert_eq!(read.as_ref(), Some(&value), "read from member {reader}");
            }
        }
    }
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn stopped_follower_catches_up_after_its_start() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let follower = cluster.others(leader)[0];
    cluster.http(follower).put("before", "1").await;
    cluster.node_mut(follower).stop().await;
    for n in 0..20 {
        cluster.http(leader).put(&format!("away{n}"), "2").await;
    }
    cluster.node_mut(follower).start().await;
    assert_eq!(cluster.http(follower).get("before").await.as_deref(), Some("1"));
    assert_eq!(cluster.http(follower).get("away19").await.as_deref(), Some("2"));
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn whole_cluster_killed_at_once_keeps_everything() {
    let mut cluster = Cluster::start(3).await;
    for n in 0..30_u64 {
        cluster.http(n % 3 + 1).put(&format!("k{n}"), &n.to_string()).await;
    }
    for id in 1..=3 {
        cluster.node_mut(id).kill();
    }
    cluster.start_all().await;
    for n in 0..30_u64 {
        let value = cluster.http((n + 1) % 3 + 1).get(&format!("k{n}")).await;
        assert_eq!(value, Some(n.to_string()));
    }
    cluster.http(1).put("after", "1").await;
    cluster.assert_same_state().await;
}

/// Writes until no live node could bring `last_index` up to date from its log.
async fn write_past(cluster: &Cluster, last_index: u64) {
    let endpoints = cluster.endpoints();
    let fill = async |endpoint: &Endpoint, n: usize| {
        endpoint.put(&format!("fill{n}"), &"x".repeat(100)).await;
    };
    let mut n = 0;
    let gone = async || {
        for _ in 0..50 {
            fill(&endpoints[n % endpoints.len()], n).await;
            n += 1;
        }
        for endpoint in &endpoints {
            if endpoint.status("first_index").await <= last_index + 1 {
                return None;
            }
        }
        Some(())
    };
    eventually("every live node has dropped the follower's next entry", gone).await;
}

#[tokio::test]
async fn follower_away_past_the_log_comes_back_through_a_snapshot() {
    let mut cluster = Cluster::start_with(3, EARLY_SNAPSHOTS).await;
    let leader = cluster.leader().await;
    let follower = cluster.others(leader)[0];
    cluster.http(leader).put("before", "1").await;
    assert_eq!(cluster.http(follower).get("before").await.as_deref(), Some("1"));
    let last_index = cluster.http(follower).status("last_index").await;
    cluster.node_mut(follower).kill();
    write_past(&cluster, last_index).await;
    cluster.http(leader).put("away", "2").await;

    cluster.node_mut(follower).start().await;
    assert_eq!(cluster.http(follower).get("before").await.as_deref(), Some("1"));
    assert_eq!(cluster.http(follower).get("away").await.as_deref(), Some("2"));
    let first_index = cluster.http(follower).status("first_index").await;
    assert!(first_index > last_index + 1, "entries that nobody has any more: {first_index}");
    cluster.assert_same_state().await;

    // What was installed is also what the next start finds.
    cluster.node_mut(follower).kill();
    cluster.node_mut(follower).start().await;
    assert_eq!(cluster.http(follower).get("away").await.as_deref(), Some("2"));
    cluster.assert_same_state().await;
}

pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("make a directory of the copy");
    for entry in fs::read_dir(from).expect("list a directory to copy") {
        let entry = entry.expect("an entry of the directory");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("the entry's type").is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copy a file");
        }
    }
}

#[tokio::test]
async fn copy_of_a_stopped_nodes_directory_restores_its_data() {
    let mut cluster = Cluster::start_with(1, EARLY_SNAPSHOTS).await;
    for n in 0..60 {
        cluster.http(1).put(&format!("k{n}"), &n.to_string()).await;
    }
    let before = cluster.http(1).state().await.expect("a hash");
    cluster.node_mut(1).stop().await;
    let backup = cluster.dir().join("backup");
    copy_dir(&cluster.node(1).data(), &backup);

    cluster.node_mut(1).start().await;
    cluster.http(1).put("k0", "written after the back-up").await;
    cluster.node_mut(1).stop().await;
    cluster.node_mut(1).wipe();
    copy_dir(&backup, &cluster.node(1).data());
    cluster.node_mut(1).start().await;
    for n in 0..60 {
        assert_eq!(cluster.http(1).get(&format!("k{n}")).await, Some(n.to_string()));
    }
    let after = cluster.http(1).state().await.expect("a hash");
    assert_eq!((before.1, before.2), (after.1, after.2), "revision and hash");
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn stored_members_win_over_a_changed_cluster_flag() {
    let mut cluster = Cluster::start(1).await;
    cluster.http(1).put("key", "value").await;
    cluster.node_mut(1).stop().await;
    let own = cluster.node(1).peer_url();
    let other = format!("http://127.0.0.1:{}", free_port());
    cluster.node_mut(1).set("--cluster", format!("{own},{other}"));
    cluster.node_mut(1).set_join(true);
    cluster.node_mut(1).start().await;
    assert_eq!(cluster.http(1).get("key").await.as_deref(), Some("value"));
    assert_eq!(cluster.http(1).members().await, [(1, own, false)]);
    let log = cluster.node(1).log();
    let remarks = log.lines().filter(|line| line.contains("--cluster")).count();
    assert_eq!(remarks, 1, "one line about the flag:\n{log}");
    cluster.http(1).expect(204, Method::PUT, "/key", "new").await;
    cluster.assert_same_state().await;
}
