//! Calls that wait: locks and elections.

use metastore::proto::{
    etcdserverpb::{LeaseRevokeRequest, lease_client::LeaseClient},
    v3electionpb::{CampaignRequest, election_client::ElectionClient},
    v3lockpb::{LockRequest, UnlockRequest, lock_client::LockClient},
};
use tokio::task::JoinSet;
use tonic::Code;

use super::{Server, one, process::eventually};

#[tokio::test(flavor = "multi_thread")]
async fn those_who_wait_do_not_keep_the_holder_from_leaving() {
    const WAITING: usize = 300;

    let server = Server::start(&[]).await;
    // All on one connection.
    let locks = LockClient::new(server.channel().await);
    let lock = |lease| {
        let mut locks = locks.clone();
        async move {
            let request = LockRequest { name: "name".into(), lease };
            locks.lock(request).await.map(|answer| answer.into_inner().key)
        }
    };
    let mut key = lock(server.grant().await).await.expect("a free lock");
    let mut waiting = JoinSet::new();
    for _ in 0..WAITING {
        waiting.spawn(lock(server.grant().await));
    }
    eventually("all are in line", async || {
        (server.in_flight().await >= WAITING as f64).then_some(())
    })
    .await;
    for _ in 0..3 {
        locks.clone().unlock(UnlockRequest { key }).await.expect("an unlock");
        let next = waiting.join_next().await.expect("somebody waits");
        key = next.expect("the task ends well").expect("the lock is had");
    }
    // They go, and their keys go after them.
    waiting.shutdown().await;
    locks.clone().unlock(UnlockRequest { key }).await.expect("an unlock");
    let mut kv = server.kv().await;
    eventually("nobody is left in line", async || {
        let all = super::everything();
        let answer = kv.range(all).await.expect("a range").into_inner();
        (answer.count == 0).then_some(())
    })
    .await;
    assert_eq!(server.in_flight().await, 0.0);
}

#[tokio::test]
async fn who_loses_the_lease_is_told_at_once() {
    let server = Server::start(&[]).await;
    let channel = server.channel().await;
    let (holder, waiter) = (server.grant().await, server.grant().await);
    let mut locks = LockClient::new(channel.clone());
    let mut elections = ElectionClient::new(channel.clone());
    let lock = |lease| LockRequest { name: "lock".into(), lease };
    let campaign = |lease| CampaignRequest { name: "election".into(), lease, value: "me".into() };
    locks.lock(lock(holder)).await.expect("a free lock");
    elections.campaign(campaign(holder)).await.expect("nobody leads");

    let waiting = tokio::spawn(async move {
        let (mut other, mut elections) = (locks.clone(), elections.clone());
        tokio::join!(other.lock(lock(waiter)), async { elections.campaign(campaign(waiter)).await })
    });
    let mut kv = server.kv().await;
    for line in ["lock", "election"] {
        let key = format!("{line}/{waiter:x}");
        eventually("a place in line", async || {
            (kv.range(one(&key)).await.expect("a range").get_ref().count == 1).then_some(())
        })
        .await;
    }
    let mut leases = LeaseClient::new(channel);
    leases.lease_revoke(LeaseRevokeRequest { id: waiter }).await.expect("a revoke");
    let (locked, led) = waiting.await.expect("the task ends well");
    let status = locked.expect_err("the lease is gone");
    assert_eq!((status.code(), status.message()), (Code::Unknown, "mutex: session is expired"));
    let status = led.expect_err("the lease is gone");
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
}
