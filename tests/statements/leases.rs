//! Statements 27 to 29: leases.

use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

use super::{
    client::{eventually, revision, soon},
    errors::{LEASE_EXISTS, LEASE_NOT_FOUND, TTL_TOO_LARGE, refused},
    requests::{Operation, all, below, delete, prefix, put, unused_lease},
    server::{Cluster, Server},
    watching::{WatchStream, created, watch_below},
    wire::{
        LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
        MoveLeaderRequest, PutRequest, mvccpb::event::EventType::Delete,
    },
};

/// The greatest time to live, in seconds.
const MAX_TTL: i64 = 9_000_000_000;

#[tokio::test]
async fn s27_a_grant_has_bounds() {
    let server = Server::shared().await;
    let client = &server.client;
    // Elections of one second: one and a half of them, rounded up.
    for ttl in [1, 0, -1, 2] {
        assert_eq!(client.try_grant(0, ttl).await.expect("a grant").ttl, 2, "asked for {ttl}");
    }
    let answer = client.try_grant(0, 100).await.expect("a grant");
    assert_eq!((answer.ttl, answer.error.as_str()), (100, ""));
    assert!(answer.id > 0, "a chosen id: {}", answer.id);
    let longest = client.try_grant(0, MAX_TTL).await.expect("a grant");
    assert_eq!(longest.ttl, MAX_TTL);
    client.lease().lease_revoke(LeaseRevokeRequest { id: longest.id }).await.expect("a revoke");
    refused(client.try_grant(0, MAX_TTL + 1).await, TTL_TOO_LARGE);
    refused(client.try_grant(0, i64::MAX).await, TTL_TOO_LARGE);

    let id = unused_lease();
    assert_eq!(client.try_grant(id, 60).await.expect("a grant").id, id);
    refused(client.try_grant(id, 60).await, LEASE_EXISTS);
    let leases = client.lease().lease_leases(LeaseLeasesRequest {}).await;
    let leases = leases.expect("a list").into_inner().leases;
    assert_eq!(leases.iter().filter(|lease| lease.id == id).count(), 1);
}

#[tokio::test]
async fn s27_unknown_leases() {
    let server = Server::shared().await;
    let client = &server.client;
    let unknown = unused_lease();
    let answer = client.time_to_live(unknown).await;
    assert_eq!((answer.id, answer.ttl, answer.granted_ttl), (unknown, -1, 0));
    assert!(answer.keys.is_empty());
    let revoke = client.lease().lease_revoke(LeaseRevokeRequest { id: unknown }).await;
    refused(revoke, LEASE_NOT_FOUND);
    let leased = PutRequest { lease: unknown, ..put(prefix("s27"), "x") };
    refused(client.try_put(leased).await, LEASE_NOT_FOUND);

    let known = client.grant(60).await;
    let (requests, queue) = mpsc::channel(8);
    let ask = async |id| {
        requests.send(LeaseKeepAliveRequest { id }).await.expect("the stream is open");
    };
    ask(unknown).await;
    let mut answers = client.keep_alives(ReceiverStream::new(queue)).await;
    let mut next = async || {
        let answer = soon("a renewal", answers.next()).await;
        answer.expect("the stream goes on").expect("the stream goes on")
    };
    let answer = next().await;
    assert_eq!((answer.id, answer.ttl), (unknown, 0));
    assert!(revision(answer.header.as_ref()) > 0);
    // The stream goes on.
    for (id, ttl) in [(known, 60), (unknown, 0), (0, 0), (known, 60)] {
        ask(id).await;
        let answer = next().await;
        assert_eq!((answer.id, answer.ttl), (id, ttl));
    }
}

#[tokio::test]
async fn s27_a_lease_that_is_not_renewed_ends() {
    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("s27");
    let (mut stream, answer) = WatchStream::open(client, watch_below(&keys)).await;
    created(&answer);
    let lease = client.grant(2).await;
    for name in ["b", "a"] {
        client.put_leased(format!("{keys}{name}"), lease).await;
        stream.events(1).await;
    }
    let kept = client.grant(3).await;
    let kept_key = prefix("s27");
    client.put_leased(&kept_key, kept).await;
    let remaining = client.time_to_live(lease).await;
    assert!((0..=2).contains(&remaining.ttl) && remaining.granted_ttl == 2, "{remaining:?}");

    let renew = async {
        loop {
            assert_eq!(client.keep_alive(kept).await.ttl, 3);
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
    };
    let events = tokio::select! {
        events = stream.seen(2) => events,
        () = renew => unreachable!("renewals go on for ever"),
    };
    // Both at once, sorted.
    assert_eq!((events[0].0, events[1].0), (Delete, Delete));
    assert_eq!(events[0].1, format!("{keys}a").into_bytes());
    assert_eq!(events[0].2, events[1].2);
    assert_eq!(client.time_to_live(lease).await.ttl, -1);
    assert_eq!(client.keep_alive(lease).await.ttl, 0);
    assert!(client.get(&kept_key).await.is_some());
    client.lease().lease_revoke(LeaseRevokeRequest { id: kept }).await.expect("a revoke");
    assert!(client.get(&kept_key).await.is_none());
}

#[tokio::test]
async fn s28_revoking_deletes_the_keys_in_one_revision() {
    let server = Server::alone().await;
    let client = &server.client;
    let keys = prefix("s28");
    let lease = client.grant(600).await;
    let names = ["c", "a", "d", "b"].map(|name| format!("{keys}{name}"));
    for name in &names {
        client.put_leased(name, lease).await;
    }
    let before = client.put(format!("{keys}other"), "stays").await;
    let mut attached = client.time_to_live(lease).await.keys;
    attached.sort();
    let mut sorted: Vec<_> = names.iter().map(|name| name.clone().into_bytes()).collect();
    sorted.sort();
    assert_eq!(attached, sorted);

    let (mut stream, answer) = WatchStream::open(client, watch_below(&keys)).await;
    created(&answer);
    let answer = client.lease().lease_revoke(LeaseRevokeRequest { id: lease }).await;
    let header = answer.expect("a revoke").into_inner().header;
    assert_eq!(revision(header.as_ref()), before + 1);
    let batches = stream.batches(4).await;
    assert_eq!(batches.len(), 1, "one revision");
    let expected: Vec<_> = sorted.into_iter().map(|key| (Delete, key, before + 1)).collect();
    let events: Vec<_> = batches[0].events.iter().map(super::watching::seen).collect();
    assert_eq!(events, expected);
    assert_eq!(client.range(below(&keys)).await.count, 1);
    let again = client.lease().lease_revoke(LeaseRevokeRequest { id: lease }).await;
    refused(again, LEASE_NOT_FOUND);

    // Without keys no revision.
    let empty = client.grant(600).await;
    let answer = client.lease().lease_revoke(LeaseRevokeRequest { id: empty }).await;
    let header = answer.expect("a revoke").into_inner().header;
    assert_eq!(revision(header.as_ref()), before + 1);
    assert_eq!(client.revision().await, before + 1);
}

#[tokio::test]
async fn s29_a_put_moves_the_key_to_its_lease() {
    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("s29");
    let key = format!("{keys}k");
    let (first, second) = (client.grant(600).await, client.grant(600).await);
    let attached = async |lease| client.time_to_live(lease).await.keys;
    client.put_leased(&key, first).await;
    assert_eq!(attached(first).await, [key.as_bytes()]);
    client.put_leased(&key, second).await;
    assert_eq!(attached(first).await.len(), 0);
    assert_eq!(attached(second).await, [key.as_bytes()]);
    client.put(&key, "detached").await;
    assert_eq!(attached(second).await.len(), 0);
    assert_eq!(client.get(&key).await.expect("the key").lease, 0);
    for lease in [first, second] {
        client.lease().lease_revoke(LeaseRevokeRequest { id: lease }).await.expect("a revoke");
    }
    assert_eq!(client.get(&key).await.expect("the key").value, "detached");

    // A deleted key does not stay attached, nor in a txn.
    let third = client.grant(600).await;
    client.put_leased(&key, third).await;
    client.delete(delete(&key)).await;
    assert_eq!(attached(third).await.len(), 0);
    let leased = PutRequest { lease: third, ..put(&key, "x") };
    client.txn(all(vec![leased.op()])).await;
    assert_eq!(attached(third).await, [key.as_bytes()]);
    client.put(&key, "again").await;
    let quiet = LeaseTimeToLiveRequest { id: third, keys: false };
    let answer = client.lease().lease_time_to_live(quiet).await.expect("an answer").into_inner();
    assert_eq!((answer.granted_ttl, answer.keys.len()), (600, 0));
}

#[tokio::test]
async fn s29_a_new_leader_gives_the_full_time_again() {
    const TTL: i64 = 60;

    let Some(cluster) = Cluster::of_three("s29 (new leader)").await else { return };
    let old = cluster.leader().await;
    let client = &cluster.clients()[old];
    let lease = client.grant(TTL).await;
    let key = prefix("s29");
    client.put_leased(&key, lease).await;
    eventually("some of the time is over", async || {
        (client.time_to_live(lease).await.ttl < TTL - 2).then_some(())
    })
    .await;
    let next = (old + 1) % cluster.clients().len();
    let target_id = cluster.clients()[next].status().await.header.expect("a header").member_id;
    let moved = client.maintenance().move_leader(MoveLeaderRequest { target_id }).await;
    moved.expect("leadership moves");
    eventually("the chosen leader", async || (cluster.leader().await == next).then_some(())).await;
    // Asked at whichever member, the leader answers.
    for client in cluster.clients() {
        let answer = client.time_to_live(lease).await;
        assert!(answer.ttl >= TTL - 2, "not the full time: {answer:?}");
        assert_eq!((answer.granted_ttl, answer.keys), (TTL, vec![key.clone().into()]));
    }
    // On any member a renewal reaches the leader.
    for client in cluster.clients() {
        assert_eq!(client.keep_alive(lease).await.ttl, TTL);
    }
    client.lease().lease_revoke(LeaseRevokeRequest { id: lease }).await.expect("a revoke");
    assert!(client.get(&key).await.is_none());
}
