//! Statement 36: the lock service.

use tonic::Code;

use super::{
    client::{Client, revision, soon},
    errors::LEASE_NOT_FOUND,
    requests::{Operation, all, branch, bytes, exists, prefix, put, unused_lease},
    server::Server,
    wire::{
        LeaseRevokeRequest,
        v3lockpb::{LockRequest, UnlockRequest},
    },
};

async fn lock(client: &Client, name: &str, lease: i64) -> (Vec<u8>, i64) {
    let request = LockRequest { name: bytes(name), lease };
    let answer = soon("a lock", client.lock().lock(request)).await;
    let answer = answer.expect("a lock is taken").into_inner();
    (answer.key.to_vec(), revision(answer.header.as_ref()))
}

async fn unlock(client: &Client, key: &[u8]) {
    let request = UnlockRequest { key: bytes(key) };
    let answer = client.lock().unlock(request).await.expect("an unlock").into_inner();
    assert!(revision(answer.header.as_ref()) > 0);
}

#[tokio::test]
async fn s36_a_lock_is_a_key_named_by_its_lease() {
    let server = Server::alone().await;
    let client = &server.client;
    let name = prefix("s36").trim_end_matches('/').to_owned();
    let lease = client.grant(600).await;
    let (key, _) = lock(client, &name, lease).await;
    assert_eq!(key, format!("{name}/{lease:x}").into_bytes());
    let kv = client.get(&key).await.expect("the lock's key");
    assert_eq!((kv.lease, kv.version, kv.value.len()), (lease, 1, 0));

    // Again with the same lease: nothing happens.
    let before = client.revision().await;
    let (again, at) = lock(client, &name, lease).await;
    assert_eq!((again, at, client.revision().await), (key.clone(), before, before));
    assert_eq!(client.get(&key).await.expect("the lock's key"), kv);

    // The key guards a transaction.
    let guarded = |op| branch(vec![exists(&key, true)], vec![op], vec![]);
    assert!(client.txn(guarded(put(prefix("s36"), "x").op())).await.succeeded);
    unlock(client, &key).await;
    assert!(client.get(&key).await.is_none());
    assert!(!client.txn(guarded(put(prefix("s36"), "x").op())).await.succeeded);
    // There is nothing to unlock any more, which is no error.
    unlock(client, &key).await;
    client.txn(all(vec![])).await;
}

#[tokio::test]
async fn s36_a_lock_has_one_holder() {
    let server = Server::shared().await;
    let client = &server.client;
    let name = prefix("s36");
    let leases = [client.grant(600).await, client.grant(600).await, client.grant(600).await];
    let (first, _) = lock(client, &name, leases[0]).await;
    let waiting = |lease| {
        let (client, name) = (client.clone(), name.clone());
        tokio::spawn(async move { lock(&client, &name, lease).await.0 })
    };
    let second = waiting(leases[1]);
    let key_of = |lease: i64| format!("{name}/{lease:x}");
    let in_line = async |lease| {
        super::client::eventually("a place in line", async || client.get(key_of(lease)).await).await
    };
    in_line(leases[1]).await;
    let third = waiting(leases[2]);
    in_line(leases[2]).await;
    assert!(!second.is_finished() && !third.is_finished());
    unlock(client, &first).await;
    let second = soon("the second holder", second).await.expect("the task ends well");
    assert_eq!(second, key_of(leases[1]).into_bytes());
    assert!(!third.is_finished());
    // The holder's lease ends, and so does its hold.
    client.lease().lease_revoke(LeaseRevokeRequest { id: leases[1] }).await.expect("a revoke");
    let third = soon("the third holder", third).await.expect("the task ends well");
    assert_eq!(third, key_of(leases[2]).into_bytes());
    unlock(client, &third).await;
}

#[tokio::test]
async fn s36_who_gives_up_leaves_the_line() {
    let server = Server::shared().await;
    let client = &server.client;
    let name = prefix("s36");
    let leases = [client.grant(600).await, client.grant(600).await];
    let (first, _) = lock(client, &name, leases[0]).await;
    let key = format!("{name}/{:x}", leases[1]);
    let task = {
        let (client, name) = (client.clone(), name.clone());
        tokio::spawn(async move { lock(&client, &name, leases[1]).await })
    };
    super::client::eventually("a place in line", async || client.get(&key).await).await;
    // The call is cancelled with its task.
    task.abort();
    super::client::eventually("the place in line is free", async || {
        client.get(&key).await.is_none().then_some(())
    })
    .await;
    unlock(client, &first).await;

    // Without a lease the server grants one.
    let (key, _) = lock(client, &name, 0).await;
    let lease = client.get(&key).await.expect("the lock's key").lease;
    assert!(lease != 0 && client.time_to_live(lease).await.ttl > 0);
    assert_eq!(key, format!("{name}/{lease:x}").into_bytes());
    unlock(client, &key).await;
    let unknown = LockRequest { name: bytes(&name), lease: unused_lease() };
    let status = soon("a refusal", client.lock().lock(unknown)).await.expect_err("a refusal");
    // etcd loses the code on the way through its own client.
    assert!(matches!(status.code(), Code::NotFound | Code::Unknown), "{status:?}");
    assert_eq!(status.message(), LEASE_NOT_FOUND.1);
}
