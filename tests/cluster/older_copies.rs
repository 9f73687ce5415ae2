//! Data directories that somebody put back.

use std::time::Duration;

use crate::{
    durability::copy_dir,
    process::{Cluster, eventually},
};

/// How long a member with an older copy may take to find out, as one without
/// its data may.
const LIMIT: Duration = Duration::from_secs(15);

/// Stops these members and copies their data directories.
async fn back_up(cluster: &mut Cluster, ids: &[u64]) {
    for id in ids {
        cluster.node_mut(*id).stop().await;
        copy_dir(&cluster.node(*id).data(), &cluster.dir().join(format!("backup-{id}")));
    }
}

/// Puts a copy in the place of a stopped member's data.
fn put_back(cluster: &mut Cluster, id: u64) {
    cluster.node_mut(id).wipe();
    copy_dir(&cluster.dir().join(format!("backup-{id}")), &cluster.node(id).data());
}

async fn assert_refused(cluster: &mut Cluster, id: u64) {
    cluster.node_mut(id).spawn();
    assert_eq!(cluster.node_mut(id).wait_exit(LIMIT).await, Some(1));
    let answer = cluster.node(id).failure();
    assert!(answer.contains("is an older copy"), "the answer does not say why: {answer}");
    assert!(answer.contains("under a new id"), "the answer does not say what to do: {answer}");
}

#[tokio::test]
async fn member_with_an_older_copy_of_its_data_is_refused_and_told_what_to_do() {
    let mut cluster = Cluster::start(3).await;
    cluster.http(1).put("key", "value").await;
    let follower = cluster.others(cluster.leader().await)[0];
    let others = cluster.others(follower);
    back_up(&mut cluster, &[follower]).await;
    cluster.node_mut(follower).start().await;
    for n in 0..10 {
        cluster.http(follower).put(&format!("k{n}"), "after the copy").await;
    }
    cluster.assert_same_state().await;
    cluster.node_mut(follower).stop().await;
    put_back(&mut cluster, follower);
    assert_refused(&mut cluster, follower).await;

    // Nobody else is told anything of the kind, and they go on.
    cluster.http(others[0]).put("meanwhile", "1").await;
    assert_eq!(cluster.http(others[1]).get("meanwhile").await.as_deref(), Some("1"));
    let refusal = "comes back with an older copy of its data";
    let refused = others.iter().filter(|id| cluster.node(**id).log().contains(refusal));
    assert!(refused.count() > 0, "no log says who was refused");

    // What it said to do helps.
    cluster.http(others[0]).remove_member(follower).await;
    cluster.join(4, others[1]).await;
    assert_eq!(cluster.http(4).get("k9").await.as_deref(), Some("after the copy"));
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn peers_that_were_killed_themselves_still_remember() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let follower = cluster.others(leader)[0];
    let others = cluster.others(follower);
    back_up(&mut cluster, &[follower]).await;
    cluster.node_mut(follower).start().await;
    for n in 0..10 {
        cluster.http(follower).put(&format!("k{n}"), "after the copy").await;
    }
    // The leader has heard that the follower has it all, and writes that down
    // with the next entry.
    eventually("a follower that has everything", async || {
        let status = cluster.http(leader).try_status().await?;
        let peers = status["peers"].as_array()?;
        let matched = peers.iter().find(|peer| peer["id"] == follower)?["matched"].as_u64()?;
        (Some(matched) == status["last_index"].as_u64()).then_some(())
    })
    .await;
    cluster.http(leader).put("next", "1").await;
    cluster.assert_same_state().await;
    cluster.node_mut(follower).kill();
    for id in &others {
        cluster.node_mut(*id).kill();
    }
    for id in &others {
        cluster.node_mut(*id).spawn();
    }
    for id in &others {
        cluster.node_mut(*id).wait_ready().await;
    }
    put_back(&mut cluster, follower);
    assert_refused(&mut cluster, follower).await;
    cluster.http(others[0]).put("meanwhile", "1").await;
    cluster.assert_same_state().await;
}

/// Nobody remembers anything then, and nothing of it is missed.
#[tokio::test]
async fn cluster_of_which_all_members_are_put_back_goes_on_from_there() {
    let mut cluster = Cluster::start(3).await;
    cluster.http(1).put("key", "value").await;
    cluster.assert_same_state().await;
    back_up(&mut cluster, &[1, 2, 3]).await;
    cluster.start_all().await;
    cluster.http(2).put("key", "after the copy").await;
    for id in 1..=3 {
        cluster.node_mut(id).stop().await;
    }
    for id in 1..=3 {
        put_back(&mut cluster, id);
    }
    cluster.start_all().await;
    assert_eq!(cluster.http(3).get("key").await.as_deref(), Some("value"));
    cluster.http(3).put("key", "new").await;
    cluster.assert_same_state().await;
}
