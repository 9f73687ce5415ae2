//! Statements 1 to 5: what takes a revision, and what a key remembers.

use tonic::Code;

use super::{
    client::{Client, revision},
    requests::{
        Operation, all, below, branch, bytes, compaction, delete, delete_below, exists, one,
        prefix, put,
    },
    server::{Server, skipped},
    wire::{
        AuthRoleAddRequest, AuthRoleDeleteRequest, AuthUserAddRequest, AuthUserDeleteRequest,
        DefragmentRequest, LeaseRevokeRequest, MemberAddRequest, MemberRemoveRequest,
        MemberUpdateRequest, PutRequest, auth_client::AuthClient,
    },
};

#[tokio::test]
async fn s01_a_fresh_store_has_revision_1() {
    let Some(server) = Server::fresh("s01", &[]).await else { return };
    let client = &server.client;
    let everything = super::wire::RangeRequest { range_end: bytes([0]), ..one([0]) };
    let empty = client.range(everything).await;
    assert_eq!((revision(empty.header.as_ref()), empty.count, empty.kvs.len()), (1, 0, 0));
    let header = client.status().await.header.expect("a header");
    assert_eq!(header.revision, 1);
    assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0);

    assert_eq!(client.put("first", "a").await, 2);
    let kv = client.get("first").await.expect("the key");
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version, kv.lease), (2, 2, 1, 0));
    assert_eq!(client.put("second", "b").await, 3);
    assert_eq!(client.revision().await, 3);
}

#[tokio::test]
async fn s02_a_txn_with_many_writes_uses_one_revision() {
    let server = Server::alone().await;
    let client = &server.client;
    let keys = prefix("s02");
    let old = client.put(format!("{keys}old"), "x").await;
    let nested = branch(
        vec![exists(format!("{keys}old"), true)],
        vec![put(format!("{keys}c"), "3").op()],
        vec![put(format!("{keys}never"), "3").op()],
    );
    let answer = client
        .txn(all(vec![
            put(format!("{keys}a"), "1").op(),
            put(format!("{keys}b"), "2").op(),
            delete(format!("{keys}old")).op(),
            nested.op(),
        ]))
        .await;
    assert!(answer.succeeded);
    assert_eq!(answer.responses.len(), 4);
    assert_eq!(revision(answer.header.as_ref()), old + 1);
    assert_eq!(client.revision().await, old + 1);
    let kvs = client.range(below(&keys)).await.kvs;
    let names: Vec<_> = kvs.iter().map(|kv| kv.key.slice(keys.len()..)).collect();
    assert_eq!(names, ["a", "b", "c"]);
    for kv in kvs {
        assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (old + 1, old + 1, 1));
    }
}

#[tokio::test]
async fn s03_what_writes_nothing_takes_no_revision() {
    let server = Server::alone().await;
    let client = &server.client;
    let keys = prefix("s03");
    let key = format!("{keys}key");
    let before = client.put(&key, "x").await;

    let answer = client.delete(delete(format!("{keys}none"))).await;
    assert_eq!((answer.deleted, revision(answer.header.as_ref())), (0, before));
    let answer = client.delete(delete_below(format!("{keys}none"))).await;
    assert_eq!((answer.deleted, revision(answer.header.as_ref())), (0, before));

    let answer = client.txn(all(vec![one(&key).op(), below(&keys).op()])).await;
    assert_eq!(revision(answer.header.as_ref()), before);
    let answer = client.txn(all(vec![delete(format!("{keys}none")).op()])).await;
    assert_eq!(revision(answer.header.as_ref()), before);
    let failed = branch(
        vec![exists(&key, false)],
        vec![put(format!("{keys}not-written"), "x").op()],
        vec![one(&key).op()],
    );
    let answer = client.txn(failed).await;
    assert_eq!((answer.succeeded, revision(answer.header.as_ref())), (false, before));
    let answer = client.txn(branch(vec![], vec![], vec![])).await;
    assert_eq!((answer.succeeded, revision(answer.header.as_ref())), (true, before));

    let granted = client.try_grant(0, 60).await.expect("a grant");
    assert_eq!(revision(granted.header.as_ref()), before);
    assert_eq!(revision(client.keep_alive(granted.id).await.header.as_ref()), before);
    let revoked = client.lease().lease_revoke(LeaseRevokeRequest { id: granted.id }).await;
    let header = revoked.expect("a revoke").into_inner().header;
    assert_eq!(revision(header.as_ref()), before);

    let compacted = client.try_compact(compaction(before)).await.expect("a compaction");
    assert_eq!(compacted, before);
    client.maintenance().defragment(DefragmentRequest {}).await.expect("a defragmentation");
    assert_eq!(client.revision().await, before);
    assert_eq!(client.put(&key, "y").await, before + 1);
}

#[tokio::test]
async fn s03_member_changes_take_no_revision() {
    let Some(server) = Server::fresh("s03 (members)", &[]).await else { return };
    let client = &server.client;
    let before = client.put(prefix("s03"), "x").await;
    let mut cluster = client.cluster();
    let peer_ur_ls = vec!["http://127.0.0.1:9".to_owned()];
    let request = MemberAddRequest { peer_ur_ls, is_learner: true };
    let added = cluster.member_add(request).await.expect("a learner is added").into_inner();
    let id = added.member.expect("the new member").id;
    let peer_ur_ls = vec!["http://127.0.0.1:10".to_owned()];
    let request = MemberUpdateRequest { id, peer_ur_ls };
    cluster.member_update(request).await.expect("a member moves");
    cluster.member_remove(MemberRemoveRequest { id }).await.expect("a member is removed");
    assert_eq!(client.revision().await, before);
}

#[tokio::test]
async fn s03_auth_changes_take_no_revision() {
    let server = Server::alone().await;
    let client = &server.client;
    let before = client.put(prefix("s03"), "x").await;
    let name = format!("s03-{before}");
    let mut auth = AuthClient::new(client.channel.clone());
    match auth.role_add(AuthRoleAddRequest { name: name.clone() }).await {
        Err(status) if status.code() == Code::Unimplemented => {
            return skipped("s03 (auth)", "the server has no auth service");
        }
        answer => drop(answer.expect("a role is added")),
    }
    let user = AuthUserAddRequest {
        name: name.clone(),
        password: "p".to_owned(),
        ..AuthUserAddRequest::default()
    };
    auth.user_add(user).await.expect("a user is added");
    auth.user_delete(AuthUserDeleteRequest { name: name.clone() }).await.expect("a user goes");
    auth.role_delete(AuthRoleDeleteRequest { role: name }).await.expect("a role goes");
    assert_eq!(client.revision().await, before);
}

/// Create revision, mod revision and version.
async fn numbers(client: &Client, key: &str) -> (i64, i64, i64) {
    let kv = client.get(key).await.expect("the key exists");
    (kv.create_revision, kv.mod_revision, kv.version)
}

#[tokio::test]
async fn s04_a_key_created_again_starts_over() {
    let server = Server::shared().await;
    let client = &server.client;
    let key = prefix("s04");
    let first = client.put(&key, "1").await;
    let second = client.put(&key, "2").await;
    assert_eq!(numbers(client, &key).await, (first, second, 2));
    let answer = client.delete(delete(&key)).await;
    assert_eq!(answer.deleted, 1);
    assert_eq!(client.get(&key).await, None);
    let third = client.put(&key, "3").await;
    assert!(third > revision(answer.header.as_ref()));
    assert_eq!(numbers(client, &key).await, (third, third, 1));
    let fourth = client.put(&key, "4").await;
    assert_eq!(numbers(client, &key).await, (third, fourth, 2));

    // Within one txn as well, where the order of delete and put would matter,
    // both is not allowed at all; across two, the numbers start over.
    client.txn(all(vec![delete(&key).op()])).await;
    let fifth = revision(client.txn(all(vec![put(&key, "5").op()])).await.header.as_ref());
    assert_eq!(numbers(client, &key).await, (fifth, fifth, 1));
}

#[tokio::test]
async fn s05_the_same_value_again_is_a_change() {
    let server = Server::shared().await;
    let client = &server.client;
    let key = prefix("s05");
    let first = client.put(&key, "same").await;
    let second = client.put(&key, "same").await;
    assert!(second > first);
    assert_eq!(numbers(client, &key).await, (first, second, 2));
    let request = PutRequest { prev_kv: true, ..put(&key, "same") };
    let answer = client.try_put(request).await.expect("a put");
    let previous = answer.prev_kv.expect("what was there before");
    assert_eq!((previous.version, previous.mod_revision), (2, second));
    assert_eq!(previous.value, "same");
    let keep = PutRequest { ignore_value: true, ..put(&key, "") };
    let third = revision(client.try_put(keep).await.expect("a put").header.as_ref());
    assert_eq!(numbers(client, &key).await, (first, third, 4));
    assert_eq!(client.get(&key).await.expect("the key").value, "same");
    assert!(client.try_put(put(prefix("s05"), "new")).await.expect("a put").prev_kv.is_none());
}
