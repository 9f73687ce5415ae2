//! Leases on members of one process: kept alive, running out, and across
//! changes of the leader.

mod process;

#[path = "original/members.rs"]
mod members;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use metastore::{
    node::Handle,
    proto::{GrantLease, LeaseRecord, LeaseTime, Put, RevokeLease, command::Op, outcome},
};
use tokio::time::sleep;

use crate::{members::Members, process::eventually};

const LEASE: i64 = 7;

/// Grants the lease and attaches a key to it.
async fn grant(handle: &Handle, ttl_s: i64) {
    let op = Op::GrantLease(GrantLease { id: LEASE, ttl_s });
    let outcome = handle.submit(op).await.expect("a grant").result;
    assert!(matches!(outcome, Some(outcome::Result::Lease(lease)) if lease.ttl_s == ttl_s));
    let put = Put { key: "key".into(), value: "value".into(), lease: LEASE, ..Put::default() };
    handle.submit(Op::Put(put)).await.expect("a put");
}

fn full(ttl_s: i64) -> LeaseTime {
    LeaseTime { exists: true, granted_ttl_s: ttl_s, remaining_s: ttl_s }
}

/// Renews the lease, whatever the cluster is busy with. Gives the moment of
/// the request that was answered.
async fn keep_alive(handle: &Handle) -> (Instant, LeaseTime) {
    eventually("a keep-alive is answered", async || {
        let asked = Instant::now();
        Some((asked, handle.keep_lease_alive(LEASE).await.ok()?))
    })
    .await
}

/// The lease as this member has it in its database.
fn record(handle: &Handle) -> Option<LeaseRecord> {
    handle.view().expect("a member").lease(LEASE).expect("a sound database")
}

/// Waits until the lease and its key are gone. Gives the moment.
async fn gone(handle: &Handle) -> Instant {
    eventually("the lease has expired", async || {
        let view = handle.read().await.ok()?;
        // In this order, because the lease may end between the two.
        let key = view.get(b"key").expect("a sound database");
        let lease = view.lease(LEASE).expect("a sound database");
        assert!(lease.is_none() || key.is_some(), "the key went before its lease");
        lease.is_none().then(Instant::now)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_lives_while_it_is_kept_alive_and_ends_with_its_keys() {
    let members = Members::start(1).await;
    let handle = members.handle(1);
    grant(&handle, 1).await;
    let mut renewed = Instant::now();
    for _ in 0..10 {
        sleep(Duration::from_millis(300)).await;
        let (asked, time) = keep_alive(&handle).await;
        assert_eq!(time, full(1));
        renewed = asked;
    }
    let renewal = record(&handle).expect("it lives").renewal;
    let ended = gone(&handle).await;
    assert!(ended - renewed >= Duration::from_secs(1), "after {:?}", ended - renewed);
    assert!(handle.read().await.expect("a view").get(b"key").expect("a database").is_none());
    assert!(!keep_alive(&handle).await.1.exists);
    assert_eq!(handle.lease_time(LEASE).await, Ok(LeaseTime::default()));
    // Granted again, it is another lease.
    grant(&handle, 100).await;
    assert!(record(&handle).expect("it lives").renewal > renewal);
    assert_eq!(keep_alive(&handle).await.1, full(100));
    handle.submit(Op::RevokeLease(RevokeLease { id: LEASE })).await.expect("a revoke");
    assert!(!keep_alive(&handle).await.1.exists);
    members.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_keep_alives_at_once_are_all_answered() {
    let members = Members::start(3).await;
    grant(&members.handle(1), 60).await;
    let handles = [1, 2, 3].map(|id| members.handle(id));
    let asked = (0..3000).map(|n| handles[n % 3].keep_lease_alive(LEASE));
    for answer in join_all(asked).await {
        assert_eq!(answer, Ok(full(60)));
    }
    members.assert_same_state().await;
    members.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_outlives_changes_of_the_leader_while_it_is_kept_alive() {
    let mut members = Members::start(3).await;
    grant(&members.handle(2), 3).await;
    let mut leader = members.leader().await;
    for _ in 0..4 {
        let next = leader % 3 + 1;
        // On a slow machine a member may not have been heard of lately.
        eventually("a transfer", async || members.handle(leader).transfer_leader(next).await.ok())
            .await;
        for id in 1..=3 {
            assert_eq!(keep_alive(&members.handle(id)).await.1, full(3));
        }
        leader = next;
    }
    // The last renewal counts for the next leader, too.
    let (renewed, _) = keep_alive(&members.handle(leader)).await;
    members.stop(leader).await;
    let other = members.handle(leader % 3 + 1);
    let ended = gone(&other).await;
    assert!(ended - renewed >= Duration::from_secs(3), "after {:?}", ended - renewed);
    members.start_one(leader).await;
    members.wait_ready(leader).await;
    members.assert_same_state().await;
    members.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_that_has_passed_survives_the_leader() {
    let members = Members::start(3).await;
    let leader = members.leader().await;
    let next = leader % 3 + 1;
    grant(&members.handle(leader), 8).await;
    let written = eventually("the remaining time is written down", async || {
        record(&members.handle(next)).filter(|record| record.remaining_s < record.ttl_s)
    })
    .await;
    assert_eq!((written.ttl_s, written.remaining_s), (8, 4));
    members.handle(leader).transfer_leader(next).await.expect("a transfer");
    let time = eventually("the new leader knows it", async || {
        members.handle(leader).lease_time(LEASE).await.ok()
    })
    .await;
    assert!(time.exists && time.remaining_s <= 4, "{time:?}");
    // A renewal must not be lost to what was written down.
    assert_eq!(keep_alive(&members.handle(leader)).await.1, full(8));
    let renewed = eventually("the renewal is applied everywhere", async || {
        record(&members.handle(leader)).filter(|record| record.renewal > written.renewal)
    })
    .await;
    assert_eq!(renewed.remaining_s, 8);
    members.assert_same_state().await;
    members.stop_all().await;
}
