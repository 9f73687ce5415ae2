//! Statements 17 and 33: without a leader.

use std::time::{Duration, Instant};

use tonic::{Code, Request, Status};

use super::{
    client::{Client, DEADLINE, eventually, soon, with_leader},
    deviations::Feature,
    errors::{NO_LEADER, refused},
    requests::{Operation, all, one, put},
    server::Cluster,
    watching::{WatchStream, created, seen, watch_one},
    wire::{LeaseGrantRequest, LeaseKeepAliveRequest, RangeRequest},
};

/// How long "at once" may take on a slow machine; far below every timeout.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Three members of which only the first is left, and it knows.
async fn without_quorum(cluster: &mut Cluster) -> Client {
    for other in [1, 2] {
        cluster.kill(other);
    }
    let client = cluster.clients()[0].clone();
    eventually("a member that knows of no leader", async || {
        let status = client.try_status().await.ok()?;
        (status.leader == 0).then_some(())
    })
    .await;
    client
}

#[tokio::test]
async fn s17_serializable_reads_need_no_leader() {
    let Some(mut cluster) = Cluster::own("s17", 3).await else { return };
    let at = cluster.clients()[0].put("k", "v").await;
    let client = without_quorum(&mut cluster).await;
    let local = || RangeRequest { serializable: true, ..one("k") };
    let answer = client.range(local()).await;
    assert_eq!((answer.kvs[0].value.as_ref(), answer.kvs[0].mod_revision), (&b"v"[..], at));
    assert_eq!(client.range(RangeRequest { revision: at, ..local() }).await.count, 1);
    let read_only = client.try_txn(all(vec![local().op()])).await.expect("a local txn");
    assert_eq!(read_only.responses.len(), 1);

    let unavailable = |what: &str, status: Status| {
        assert_eq!(status.code(), Code::Unavailable, "{what}: {status:?}");
        let text = status.message();
        let known = text.starts_with("etcdserver: request timed out") || text == NO_LEADER.1;
        assert!(known, "{what}: {status:?}");
    };
    let (read, write, txn, grant) = soon("four refusals", async {
        tokio::join!(
            client.try_range(one("k")),
            client.try_put(put("k", "w")),
            client.try_txn(all(vec![one("k").op()])),
            client.try_grant(0, 60),
        )
    })
    .await;
    unavailable("a linearizable range", read.expect_err("no leader confirms it"));
    unavailable("a linearizable txn", txn.expect_err("no leader confirms it"));
    let write = write.expect_err("no majority takes it");
    let grant = grant.expect_err("no majority takes it");
    if cluster.has(Feature::WriteTimeoutIsUnavailable) {
        unavailable("a put", write);
        unavailable("a grant", grant);
    }

    cluster.restart(1);
    cluster.wait_ready(0).await;
    // The put may have been kept for later.
    let value = client.get("k").await.expect("the key").value;
    assert!(value == "v" || value == "w", "{value:?}");
}

#[tokio::test]
async fn s33_who_requires_a_leader_is_told_that_there_is_none() {
    let Some(mut cluster) = Cluster::own("s33", 3).await else { return };
    let client = cluster.clients()[0].clone();
    let at = client.put("k", "v").await;
    let lease = client.grant(600).await;
    let (mut strict, answer) = WatchStream::open_with_leader(&client, watch_one("k")).await;
    created(&answer);
    let (mut patient, answer) = WatchStream::open(&client, watch_one("k")).await;
    created(&answer);
    let (sender, queue) = tokio::sync::mpsc::channel(1);
    sender.send(LeaseKeepAliveRequest { id: lease }).await.expect("the queue is new");
    let requests = with_leader(tokio_stream::wrappers::ReceiverStream::new(queue));
    let renewals = soon("renewals", client.lease().lease_keep_alive(requests)).await;
    let mut renewals = renewals.expect("a stream of renewals").into_inner();
    assert!(renewals.message().await.expect("a renewal").is_some());

    without_quorum(&mut cluster).await;
    let start = Instant::now();
    refused(client.kv().range(with_leader(one("k"))).await, NO_LEADER);
    let local = || RangeRequest { serializable: true, ..one("k") };
    refused(client.kv().range(with_leader(local())).await, NO_LEADER);
    refused(client.kv().put(with_leader(put("k", "w"))).await, NO_LEADER);
    let grant = LeaseGrantRequest { ttl: 60, id: 0 };
    refused(client.lease().lease_grant(with_leader(grant)).await, NO_LEADER);
    assert!(start.elapsed() < AT_ONCE, "not at once: {:?}", start.elapsed());
    assert_eq!(client.kv().range(Request::new(local())).await.expect("a read").get_ref().count, 1);

    // Streams end after three elections without a leader.
    refused(strict.try_next().await, NO_LEADER);
    refused(soon("the end of renewals", renewals.message()).await, NO_LEADER);
    let rejected = soon("a refusal", async {
        client.watch().watch(with_leader(tokio_stream::pending())).await?.get_mut().message().await
    });
    refused(rejected.await, NO_LEADER);

    cluster.restart(1);
    cluster.restart(2);
    for member in 0..3 {
        cluster.wait_ready(member).await;
    }
    // Who did not ask for a leader has missed nothing.
    let later = client.put("k", "later").await;
    assert!(later > at);
    let start = Instant::now();
    while seen(&patient.events(1).await[0]).2 != later {
        assert!(start.elapsed() < DEADLINE, "the event at {later} does not come");
    }
    let answer = client.kv().range(with_leader(one("k"))).await.expect("there is a leader");
    assert_eq!(answer.get_ref().kvs[0].mod_revision, later);
}
