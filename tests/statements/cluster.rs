//! Statements 30, 32 and 34: what needs several members.

use tonic::{Code, Status};

use super::{
    client::{Client, eventually},
    deviations::Feature,
    errors::{
        BAD_TRANSFEREE, COMPACTED, FUTURE_REVISION, LEASE_NOT_FOUND, NOT_FOR_LEARNER, NOT_LEADER,
        Refusal, TOO_MANY_LEARNERS, refused,
    },
    requests::{Operation, all, compaction, delete, delete_below, one, prefix, put, unused_lease},
    server::Cluster,
    wire::{
        DefragmentRequest, HashKvRequest, HashKvResponse, LeaseKeepAliveRequest,
        LeaseLeasesRequest, MemberAddRequest, MemberListRequest, MoveLeaderRequest, PutRequest,
        RangeRequest, SnapshotRequest, WatchRequest,
    },
};

async fn hash_kv(client: &Client, revision: i64) -> Result<HashKvResponse, Status> {
    let answer = client.maintenance().hash_kv(HashKvRequest { revision }).await;
    answer.map(tonic::Response::into_inner)
}

/// The hash at a revision, once it is the same on all members.
pub async fn same_hash(cluster: &Cluster, revision: i64) -> (u32, i64) {
    eventually("equal hashes on all members", async || {
        let mut hashes = Vec::new();
        for client in cluster.clients() {
            let answer = hash_kv(client, revision).await.ok()?;
            hashes.push((answer.hash, answer.compact_revision));
        }
        hashes.windows(2).all(|pair| pair[0] == pair[1]).then(|| hashes[0])
    })
    .await
}

#[tokio::test]
async fn s30_hash_kv_is_equal_on_all_members() {
    let Some(cluster) = Cluster::of_three("s30").await else { return };
    let client = &cluster.clients()[0];
    let keys = prefix("s30");
    let mut revisions = Vec::new();
    for n in 0..50 {
        revisions.push(client.put(format!("{keys}{}", n % 7), vec![n; 1_000]).await);
        // Rejected the same way on every member.
        let bad = PutRequest { lease: unused_lease(), ..put(format!("{keys}x"), "x") };
        let writes = all(vec![put(format!("{keys}y"), "x").op(), bad.op()]);
        refused(client.try_txn(writes).await, LEASE_NOT_FOUND);
    }
    client.delete(delete(format!("{keys}3"))).await;
    let middle = revisions[25];
    let last = client.revision().await;
    let at_middle = same_hash(&cluster, middle).await;
    let at_last = same_hash(&cluster, last).await;
    assert_ne!(at_middle.0, at_last.0);
    if cluster.has(Feature::HashRevision) {
        assert_eq!(hash_kv(client, middle).await.expect("a hash").hash_revision, middle);
    }

    // The physical state of one member's disk does not matter, nor does what
    // is written later.
    let defragment = cluster.clients()[1].maintenance().defragment(DefragmentRequest {}).await;
    defragment.expect("a defragmentation");
    client.put(format!("{keys}later"), "x").await;
    assert_eq!(same_hash(&cluster, last).await, at_last);
    assert_eq!(same_hash(&cluster, middle).await, at_middle);

    let request = super::wire::CompactionRequest { physical: true, ..compaction(middle) };
    client.try_compact(request).await.expect("a compaction");
    assert_eq!(same_hash(&cluster, last).await.1, middle);
    refused(hash_kv(client, middle - 1).await, COMPACTED);
    refused(hash_kv(client, last + 1_000_000).await, FUTURE_REVISION);
    // 0 means the newest.
    let newest = client.revision().await;
    assert_eq!(same_hash(&cluster, newest).await.0, hash_kv(client, 0).await.expect("a hash").hash);
    client.delete(delete_below(&keys)).await;
}

#[tokio::test]
async fn s32_a_learner_serves_only_local_reads() {
    let Some(mut cluster) = Cluster::own("s32", 1).await else { return };
    cluster.clients()[0].put("k", "v").await;
    let (member, learner) = cluster.add_learner().await;
    assert!(member.is_learner);
    let refusal: Refusal = if cluster.has(Feature::LearnerErrorCode) {
        NOT_FOR_LEARNER
    } else {
        (Code::Unavailable, NOT_FOR_LEARNER.1)
    };
    let status = learner.status().await;
    assert!(status.is_learner && status.leader != 0);
    let local = RangeRequest { serializable: true, ..one("k") };
    assert_eq!(learner.range(local.clone()).await.kvs[0].value, "v");
    if cluster.has(Feature::LearnerSnapshot) {
        let snapshot = learner.maintenance().snapshot(SnapshotRequest {}).await;
        let first = snapshot.expect("a snapshot").get_mut().message().await;
        assert!(first.expect("a snapshot").is_some());
    }

    refused(learner.try_range(one("k")).await, refusal);
    refused(learner.try_put(put("k", "w")).await, refusal);
    refused(learner.try_delete(delete("k")).await, refusal);
    refused(learner.try_txn(all(vec![local.op()])).await, refusal);
    refused(learner.try_compact(compaction(1)).await, refusal);
    refused(learner.try_grant(0, 60).await, refusal);
    refused(learner.lease().lease_leases(LeaseLeasesRequest {}).await, refusal);
    let list = MemberListRequest { linearizable: true };
    refused(learner.cluster().member_list(list).await, refusal);
    refused(hash_kv(&learner, 0).await, refusal);
    let requests = tokio_stream::once(LeaseKeepAliveRequest { id: 1 });
    refused(stream_end(learner.lease().lease_keep_alive(requests).await).await, refusal);
    let requests = tokio_stream::once(WatchRequest::default());
    refused(stream_end(learner.watch().watch(requests).await).await, refusal);
    assert_eq!(cluster.clients()[0].get("k").await.expect("the key").value, "v");

    let more =
        MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:9".to_owned()], is_learner: true };
    refused(cluster.clients()[0].cluster().member_add(more).await, TOO_MANY_LEARNERS);
    promote(&cluster, member.id).await;
    // As a voter it serves everything.
    eventually("a voter that serves", async || learner.try_put(put("k", "w")).await.ok()).await;
    assert!(!learner.status().await.is_learner);
    assert!(cluster.members().await.iter().all(|member| !member.is_learner));
}

/// Promotes a learner once it has caught up.
async fn promote(cluster: &Cluster, id: u64) {
    eventually("a promotion", async || match cluster.promote(id).await {
        Ok(()) => Some(()),
        Err(status) => {
            refused::<()>(Err(status), super::errors::LEARNER_NOT_READY);
            None
        }
    })
    .await;
}

/// How a stream ends that is expected to end before its first message.
async fn stream_end<T>(
    answer: Result<tonic::Response<tonic::Streaming<T>>, Status>,
) -> Result<(), Status> {
    answer?.get_mut().message().await.map(drop)
}

#[tokio::test]
async fn s34_only_the_leader_moves_leadership() {
    let Some(cluster) = Cluster::of_three("s34").await else { return };
    let old = cluster.leader().await;
    let size = cluster.clients().len();
    let next = (old + 1) % size;
    let target_id = cluster.clients()[next].status().await.header.expect("a header").member_id;
    let ask = async |at: usize, target_id| {
        let mut maintenance = cluster.clients()[at].maintenance();
        maintenance.move_leader(MoveLeaderRequest { target_id }).await
    };
    for other in [next, (old + 2) % size] {
        refused(ask(other, target_id).await, NOT_LEADER);
    }
    assert_eq!(cluster.leader().await, old);
    refused(ask(old, 12345).await, BAD_TRANSFEREE);
    assert_eq!(cluster.leader().await, old);
    let answer = ask(old, target_id).await.expect("leadership moves").into_inner();
    assert_eq!(answer.header, None);
    assert_eq!(cluster.leader().await, next);
    refused(ask(old, target_id).await, NOT_LEADER);
    // The new leader is there to work.
    let key = prefix("s34");
    for client in cluster.clients() {
        client.put(&key, "x").await;
    }
    let size = i64::try_from(size).expect("a few members");
    let version = cluster.clients()[old].get(&key).await.expect("the key").version;
    assert_eq!(version, size);
}
