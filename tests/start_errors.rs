//! A start that fails says in one line what happened to what and what to do,
//! and exits with code 1.

mod process;

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
};

use process::{Cluster, DEADLINE, Node, free_port};

/// Starts the node, which must fail; the line that it leaves.
async fn failed_start(node: &mut Node) -> String {
    node.spawn();
    assert_eq!(node.wait_exit(DEADLINE).await, Some(1), "exit code; log:\n{}", node.log());
    node.failure()
}

fn assert_names(answer: &str, what: impl AsRef<str>) {
    let what = what.as_ref();
    assert!(answer.contains(what), "the line does not name {what}: {answer}");
}

#[tokio::test]
async fn client_port_in_use() {
    let mut cluster = Cluster::new(1);
    let port = cluster.node(1).client_port();
    let _holder = TcpListener::bind(("127.0.0.1", port)).expect("hold the client port");
    let answer = failed_start(cluster.node_mut(1)).await;
    assert_names(&answer, format!("127.0.0.1:{port}"));
}

#[tokio::test]
async fn peer_port_in_use() {
    let mut cluster = Cluster::new(1);
    let port = cluster.node(1).peer_port;
    let _holder = TcpListener::bind(("127.0.0.1", port)).expect("hold the peer port");
    let answer = failed_start(cluster.node_mut(1)).await;
    assert_names(&answer, format!("127.0.0.1:{port}"));
}

#[tokio::test]
async fn start_succeeds_once_the_port_is_free_again() {
    let mut cluster = Cluster::new(1);
    let port = cluster.node(1).client_port();
    let holder = TcpListener::bind(("127.0.0.1", port)).expect("hold the client port");
    failed_start(cluster.node_mut(1)).await;
    drop(holder);
    cluster.node_mut(1).start().await;
    cluster.http(1).put("key", "value").await;
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn data_directory_locked_by_a_running_node() {
    let mut cluster = Cluster::start(1).await;
    let mut second = Node::new(1, cluster.dir());
    let answer = failed_start(&mut second).await;
    assert_names(&answer, cluster.node(1).data().display().to_string());
    // The first one is none the worse for it.
    assert!(cluster.node_mut(1).is_running());
    cluster.http(1).put("key", "value").await;
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn data_directory_that_cannot_be_made() {
    let mut cluster = Cluster::new(1);
    // Permissions do not stop root; a path below a regular file stops anybody.
    let file = cluster.dir().join("file");
    fs::write(&file, "not a directory").expect("write a file");
    let data = file.join("data").display().to_string();
    cluster.node_mut(1).set("--data-dir", data.as_str());
    let answer = failed_start(cluster.node_mut(1)).await;
    assert_names(&answer, data);
}

#[tokio::test]
async fn data_directory_that_is_a_file() {
    let mut cluster = Cluster::new(1);
    let file = cluster.dir().join("file");
    fs::write(&file, "not a directory").expect("write a file");
    cluster.node_mut(1).set("--data-dir", file.display().to_string());
    let answer = failed_start(cluster.node_mut(1)).await;
    assert_names(&answer, file.display().to_string());
    assert_eq!(fs::read_to_string(&file).expect("read the file"), "not a directory");
}

#[tokio::test]
async fn stored_id_that_differs_from_the_flag() {
    let mut cluster = Cluster::start(1).await;
    cluster.http(1).put("key", "value").await;
    cluster.node_mut(1).stop().await;
    let mut other = Node::new(2, cluster.dir());
    fs::rename(cluster.node(1).data(), other.data()).expect("move the data of member 1");
    let answer = failed_start(&mut other).await;
    assert_names(&answer, "--id");
    assert_names(&answer, "1");
    assert_names(&answer, "2");

    // The refusal changed nothing.
    fs::rename(other.data(), cluster.node(1).data()).expect("move the data back");
    cluster.node_mut(1).start().await;
    assert_eq!(cluster.http(1).get("key").await.as_deref(), Some("value"));
}

#[tokio::test]
async fn flags_that_contradict_each_other_or_mean_nothing() {
    let url = format!("http://127.0.0.1:{}", free_port());
    let other = format!("http://127.0.0.1:{}", free_port());
    let cases = [
        (2, url.clone(), "2"),
        (1, format!("{url},{url}"), url.as_str()),
        (1, format!("1={url},1={other}"), "1"),
        (1, format!("1={url},{other}"), "--cluster"),
        (1, "127.0.0.1".to_owned(), "127.0.0.1"),
        (1, "ftp://127.0.0.1:1".to_owned(), "ftp://127.0.0.1:1"),
        (1, "http://127.0.0.1:99999".to_owned(), "99999"),
    ];
    let home = Cluster::new(0);
    for (id, list, named) in cases {
        let mut node = Node::new(id, home.dir());
        node.set("--cluster", list.as_str());
        let answer = failed_start(&mut node).await;
        assert_names(&answer, named);
        assert!(!node.data().exists(), "--cluster {list} left a data directory");
    }
}

/// Files of this prefix in a database's directory.
fn files(directory: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("list the database's directory");
    let paths = entries.map(|entry| entry.expect("an entry of the directory").path());
    let named = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    };
    let found: Vec<PathBuf> = paths.filter(named).collect();
    assert!(!found.is_empty(), "no {prefix} in {}", directory.display());
    found
}

/// The directories of a node's two databases.
fn databases(node: &Node) -> [PathBuf; 2] {
    let state = files(&node.data(), "state-");
    assert_eq!(state.len(), 1, "one live state directory: {state:?}");
    [node.data().join("raft"), state[0].clone()]
}

/// Damages both databases in turn; each time the start must fail, and succeed
/// again when the damage is undone.
async fn refuses_damage(prefix: &str, damage: impl Fn(&Path)) {
    let mut cluster = Cluster::start(1).await;
    cluster.http(1).put("key", "value").await;
    cluster.node_mut(1).stop().await;
    for database in databases(cluster.node(1)) {
        let saved: Vec<_> = files(&database, prefix)
            .into_iter()
            .map(|path| (fs::read(&path).expect("save a file"), path))
            .collect();
        for (_, path) in &saved {
            damage(path);
        }
        let answer = failed_start(cluster.node_mut(1)).await;
        assert_names(&answer, cluster.node(1).data().display().to_string());
        for (content, path) in &saved {
            fs::write(path, content).expect("undo the damage");
        }
    }
    cluster.node_mut(1).start().await;
    assert_eq!(cluster.http(1).get("key").await.as_deref(), Some("value"));
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn damaged_current_file() {
    refuses_damage("CURRENT", |path| fs::write(path, "rubbish").expect("damage a file")).await;
}

#[tokio::test]
async fn damaged_manifest() {
    refuses_damage("MANIFEST-", |path| fs::write(path, [0xa5; 64]).expect("damage a file")).await;
}

#[tokio::test]
async fn lost_current_file_is_not_taken_for_a_new_database() {
    refuses_damage("CURRENT", |path| fs::remove_file(path).expect("remove a file")).await;
}

/// Replaces a directory by a copy of another.
fn replace(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).expect("remove a directory");
    }
    fs::create_dir_all(to).expect("create a directory");
    for entry in fs::read_dir(from).expect("list a directory") {
        let entry = entry.expect("an entry of a directory");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copy a file");
    }
}

#[tokio::test]
async fn raft_database_behind_its_watermark() {
    let mut cluster = Cluster::start(1).await;
    cluster.http(1).put("key", "old").await;
    cluster.node_mut(1).stop().await;
    let raft = cluster.node(1).data().join("raft");
    let older = cluster.dir().join("older");
    replace(&raft, &older);
    // A new term, with a new vote.
    cluster.node_mut(1).start().await;
    cluster.http(1).put("key", "new").await;
    cluster.node_mut(1).stop().await;
    let newer = cluster.dir().join("newer");
    replace(&raft, &newer);

    replace(&older, &raft);
    let answer = failed_start(cluster.node_mut(1)).await;
    assert_names(&answer, "behind its own watermark");
    replace(&newer, &raft);
    cluster.node_mut(1).start().await;
    assert_eq!(cluster.http(1).get("key").await.as_deref(), Some("new"));
}

#[tokio::test]
async fn state_directory_of_another_cluster() {
    let mut cluster = Cluster::start(1).await;
    let mut other = Cluster::start(1).await;
    cluster.node_mut(1).stop().await;
    other.node_mut(1).stop().await;
    let state = |of: &Cluster| of.node(1).data().join("state-1");
    replace(&state(&other), &state(&cluster));
    let answer = failed_start(cluster.node_mut(1)).await;
    assert_names(&answer, "belongs to cluster");
}
