//! A crash between any two steps of installing a snapshot leaves the old state
//! or the new one, and what belongs to neither is swept.
//!
//! The steps: the image is received below `snap/`, renamed to `state-{index}`
//! (the rename is made durable before anything names it), one batch of the
//! raft database replaces the log, hard state and live directory, and the old
//! directory is deleted. Each state between them is made by hand.

use std::fs::{self, File};

use metastore::{proto::LogPosition, raftlog::Persist};

use crate::{
    disk::{Disk, hard_state, put_entry},
    process::Cluster,
};

/// The old log ends here.
const OLD_LAST: u64 = 5;

/// The snapshot is of this entry.
const SNAPSHOT: LogPosition = LogPosition { index: 50, term: 2 };

/// How far the installation came, each step after the one before it.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
enum Step {
    /// A part of the image lies in `snap/`.
    Receiving,
    /// The whole image lies in `snap/`.
    Received,
    /// The image is in its place; nothing points at it.
    InPlace,
    /// The batch was cut off while it was written.
    Torn,
    /// The batch is durable, and the old directory still there.
    Written,
    /// The old directory is half deleted.
    Deleting,
    /// The old directory is deleted.
    Deleted,
}

const STEPS: &[Step] = &[
    Step::Receiving,
    Step::Received,
    Step::InPlace,
    Step::Torn,
    Step::Written,
    Step::Deleting,
    Step::Deleted,
];

/// A member with an old state, and the installation of a newer one up to
/// `step`.
fn interrupted(cluster: &Cluster, step: Step) -> Disk {
    let node = cluster.node(1);
    let disk = Disk::found(&node.data(), node.peer_url());
    let old = |index| put_entry(index, 1, "which", "old");
    disk.append((2..=OLD_LAST).map(old).collect());

    let new = |index| put_entry(index, 1 + index / SNAPSHOT.index, "which", "new");
    let entries: Vec<_> = (2..=SNAPSHOT.index).map(new).collect();
    let image = disk.path("snap/received-50-0");
    disk.state_machine("scratch", |machine| {
        machine.apply(&entries).expect("entries of a log");
        machine.engine().checkpoint(&image).expect("a checkpoint");
    });
    fs::remove_dir_all(disk.path("scratch")).expect("delete what was checkpointed");

    if step == Step::Receiving {
        fs::rename(&image, disk.path("snap/receiving-50")).expect("rename the image");
        fs::remove_file(disk.path("snap/receiving-50/CURRENT")).expect("a part of the image");
    }
    if step >= Step::InPlace {
        fs::rename(&image, disk.path("state-50")).expect("put the image in its place");
    }
    if step >= Step::Torn {
        let before = disk.names("raft", "");
        disk.write(Persist {
            install: Some(SNAPSHOT),
            hard_state: Some(hard_state(2, SNAPSHOT.index)),
            entries: vec![put_entry(51, 2, "after", "in the same Ready")],
            ..Persist::default()
        });
        if step == Step::Torn {
            tear(&disk, &before);
        }
    }
    match step {
        Step::Deleting => fs::remove_file(disk.path("state-1/CURRENT")).expect("a part of it"),
        Step::Deleted => fs::remove_dir_all(disk.path("state-1")).expect("the old state"),
        _ => {}
    }
    disk
}

/// Cuts the last bytes off the write-ahead log, which is newer than `before`.
fn tear(disk: &Disk, before: &[String]) {
    let logs = disk.names("raft", "").into_iter().filter(|name| name.ends_with(".log"));
    let new: Vec<String> = logs.filter(|name| !before.contains(name)).collect();
    assert_eq!(new.len(), 1, "the batch is alone in one log file: {new:?}");
    let file = File::options().write(true).open(disk.path("raft").join(&new[0]));
    let file = file.expect("open the write-ahead log");
    let size = file.metadata().expect("its size").len();
    assert!(size > 100, "the batch is in it: {size}");
    file.set_len(size - 10).expect("tear the batch");
}

async fn old_or_new_after(step: Step) {
    let mut cluster = Cluster::new(1);
    let disk = interrupted(&cluster, step);
    let (which, live, after) = match step {
        Step::Receiving | Step::Received | Step::InPlace | Step::Torn => ("old", "state-1", None),
        Step::Written | Step::Deleting | Step::Deleted => {
            ("new", "state-50", Some("in the same Ready"))
        }
    };
    // The second start finds what the first one made of it.
    for start in 0..2 {
        cluster.start_all().await;
        let http = cluster.http(1);
        assert_eq!(http.get("which").await.as_deref(), Some(which), "{step:?}, start {start}");
        assert_eq!(http.get("after").await.as_deref(), after, "{step:?}, start {start}");
        assert_eq!(disk.names("", "state-"), [live], "{step:?}, start {start}");
        assert!(disk.names("snap", "").is_empty(), "{step:?}, start {start}");
        assert_eq!(http.get("start").await, (start > 0).then(|| "0".to_owned()));
        http.put("start", "0").await;
        cluster.assert_same_state().await;
        cluster.node_mut(1).kill();
    }
}

#[tokio::test]
async fn a_crash_while_a_snapshot_is_installed_leaves_the_old_state_or_the_new_one() {
    for step in STEPS {
        old_or_new_after(*step).await;
    }
}

/// The raft database points at a directory that is gone: nothing may be made
/// up in its place.
#[tokio::test]
async fn a_lost_state_directory_is_refused_and_not_replaced() {
    let mut cluster = Cluster::new(1);
    let disk = interrupted(&cluster, Step::Written);
    fs::remove_dir_all(disk.path("state-50")).expect("lose the live directory");
    cluster.node_mut(1).spawn();
    let code = cluster.node_mut(1).wait_exit(crate::process::DEADLINE).await;
    assert_eq!(code, Some(1));
    let failure = cluster.node(1).failure();
    assert!(failure.contains("state-50"), "{failure}");
    assert!(disk.names("", "state-50").is_empty());
}
