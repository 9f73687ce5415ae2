//! Statements 18, 31 and 38: headers, alarms and snapshots.

use sha2::{Digest, Sha256};

use super::{
    client::Client,
    deviations::Feature,
    errors::{
        LEARNER_NOT_READY, MEMBER_NOT_FOUND, NO_SPACE, NOT_A_LEARNER, PEER_URL_EXISTS, refused,
    },
    requests::{Operation, all, branch, compaction, delete, exists, one, prefix, put},
    server::{Server, skipped},
    wire::{
        AlarmMember, AlarmRequest, AlarmType, DefragmentRequest, HashKvRequest, HashRequest,
        LeaseRevokeRequest, MemberAddRequest, MemberListRequest, MemberPromoteRequest,
        MemberRemoveRequest, MemberUpdateRequest, MoveLeaderRequest, RequestOp, ResponseHeader,
        SnapshotRequest, alarm_request::AlarmAction, response_op::Response,
    },
};

/// Checks a header that has everything but a revision.
#[track_caller]
fn without_revision(header: Option<ResponseHeader>) {
    let header = header.expect("a header");
    assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0);
    assert_eq!(header.revision, 0);
}

#[tokio::test]
async fn s18_headers_of_calls_about_members_lack_the_revision() {
    let Some(server) = Server::fresh("s18 (members)", &[]).await else { return };
    let client = &server.client;
    client.put("k", "v").await;
    let mut cluster = client.cluster();
    let request = MemberListRequest { linearizable: true };
    let list = cluster.member_list(request).await.expect("a list").into_inner();
    without_revision(list.header);
    assert_eq!(list.members.len(), 1);
    let me = &list.members[0];
    assert_eq!(list.header.expect("a header").member_id, me.id);
    assert!(!me.name.is_empty() && !me.is_learner);
    assert!(!me.peer_ur_ls.is_empty() && !me.client_ur_ls.is_empty());

    let peer_ur_ls = vec!["http://127.0.0.1:9".to_owned()];
    let request = MemberAddRequest { peer_ur_ls: peer_ur_ls.clone(), is_learner: true };
    let added = cluster.member_add(request).await.expect("an addition").into_inner();
    without_revision(added.header);
    let member = added.member.expect("the new member");
    assert_eq!((&member.peer_ur_ls, member.name.as_str()), (&peer_ur_ls, ""));
    assert!(member.is_learner && member.client_ur_ls.is_empty());
    assert_eq!(added.members.len(), 2);

    let again = MemberAddRequest { peer_ur_ls: me.peer_ur_ls.clone(), is_learner: true };
    refused(cluster.member_add(again).await, PEER_URL_EXISTS);
    let promotion = |id| MemberPromoteRequest { id };
    // It never started, so it cannot have caught up.
    refused(cluster.member_promote(promotion(member.id)).await, LEARNER_NOT_READY);
    refused(cluster.member_promote(promotion(me.id)).await, NOT_A_LEARNER);
    refused(cluster.member_promote(promotion(12345)).await, MEMBER_NOT_FOUND);

    let peer_ur_ls = vec!["http://127.0.0.1:10".to_owned()];
    let request = MemberUpdateRequest { id: member.id, peer_ur_ls: peer_ur_ls.clone() };
    let updated = cluster.member_update(request).await.expect("an update").into_inner();
    without_revision(updated.header);
    let moved = updated.members.iter().find(|other| other.id == member.id);
    assert_eq!(moved.map(|moved| &moved.peer_ur_ls), Some(&peer_ur_ls));

    let request = MemberRemoveRequest { id: member.id };
    let removed = cluster.member_remove(request).await.expect("a removal").into_inner();
    without_revision(removed.header);
    assert_eq!(removed.members.len(), 1);
    refused(cluster.member_remove(request).await, MEMBER_NOT_FOUND);
    let request = MemberUpdateRequest { id: member.id, peer_ur_ls };
    refused(cluster.member_update(request).await, MEMBER_NOT_FOUND);
}

#[tokio::test]
async fn s18_defragment_has_no_header() {
    let server = Server::alone().await;
    let mut maintenance = server.client.maintenance();
    let answer = maintenance.defragment(DefragmentRequest {}).await.expect("an answer");
    assert_eq!(answer.into_inner().header, None);
    let header = server.client.status().await.header.expect("a header");
    assert!(header.revision > 0 && header.member_id != 0);
    let hash = maintenance.hash(HashRequest {}).await.expect("a hash").into_inner();
    assert!(hash.header.expect("a header").revision > 0);
    let hash = maintenance.hash_kv(HashKvRequest { revision: 0 }).await.expect("a hash");
    assert!(hash.into_inner().header.expect("a header").revision > 0);
}

#[tokio::test]
async fn s18_moving_leadership_to_the_leader_has_no_header() {
    let server = Server::alone().await;
    let status = server.client.status().await;
    let target_id = status.header.expect("a header").member_id;
    if status.leader != target_id {
        return skipped("s18 (move leader)", "the first endpoint does not lead");
    }
    let request = MoveLeaderRequest { target_id };
    let answer = server.client.maintenance().move_leader(request).await;
    assert_eq!(answer.expect("nothing to do").into_inner().header, None);
}

#[tokio::test]
async fn s18_nested_headers_carry_the_revision_only() {
    let server = Server::alone().await;
    let client = &server.client;
    let key = prefix("s18");
    let before = client.put(format!("{key}a"), "x").await;
    let ops: Vec<RequestOp> = vec![
        one(&key).op(),
        delete(format!("{key}none")).op(),
        put(&key, "x").op(),
        one(&key).op(),
        delete(format!("{key}a")).op(),
        all(vec![one(&key).op()]).op(),
    ];
    let answer = client.txn(all(ops)).await;
    let outer = answer.header.expect("a header");
    assert!(outer.cluster_id != 0 && outer.member_id != 0 && outer.raft_term != 0);
    assert_eq!(outer.revision, before + 1);
    let Some(Response::ResponseTxn(nested)) = &answer.responses[5].response else {
        panic!("no txn: {answer:?}");
    };
    let Some(Response::ResponseRange(innermost)) = &nested.responses[0].response else {
        panic!("no range: {nested:?}");
    };
    assert_eq!(super::client::revision(innermost.header.as_ref()), outer.revision);
    let headers: Vec<_> = answer
        .responses
        .into_iter()
        .map(|op| match op.response.expect("an answer") {
            Response::ResponseRange(answer) => answer.header,
            Response::ResponsePut(answer) => answer.header,
            Response::ResponseDeleteRange(answer) => answer.header,
            Response::ResponseTxn(answer) => answer.header,
        })
        .map(|header| header.expect("a header"))
        .collect();
    // Before the first write of the txn, its revision is not used yet. A nested
    // txn itself says none, only what is inside.
    let revisions: Vec<i64> = headers.iter().map(|header| header.revision).collect();
    let after = before + 1;
    assert_eq!(revisions, [before, before, after, after, after, 0]);
    for header in headers {
        assert_eq!((header.cluster_id, header.member_id, header.raft_term), (0, 0, 0));
    }
}

async fn alarm(client: &Client, action: AlarmAction, member_id: u64) -> Vec<AlarmMember> {
    let alarm = AlarmType::Nospace.into();
    let request = AlarmRequest { action: action.into(), member_id, alarm };
    client.maintenance().alarm(request).await.expect("an answer").into_inner().alarms
}

/// Checks what the alarm lets through and what not.
async fn check_full(server: &Server, keys: &str, attached: i64) {
    let client = &server.client;
    refused(client.try_put(put(format!("{keys}new"), "x")).await, NO_SPACE);
    refused(client.try_txn(all(vec![put(format!("{keys}new"), "x").op()])).await, NO_SPACE);
    if server.has(Feature::NestedPutsNeedSpace) {
        let nested = all(vec![put(format!("{keys}new"), "x").op()]).op();
        refused(client.try_txn(all(vec![nested])).await, NO_SPACE);
    }
    refused(client.try_grant(0, 60).await, NO_SPACE);

    assert!(client.get(format!("{keys}a")).await.is_some());
    let reads = branch(
        vec![exists(format!("{keys}a"), true)],
        vec![one(format!("{keys}a")).op(), delete(format!("{keys}b")).op()],
        vec![],
    );
    assert!(client.txn(reads).await.succeeded);
    assert_eq!(client.delete(delete(format!("{keys}a"))).await.deleted, 1);
    assert!(client.keep_alive(attached).await.ttl > 0);
    let revoke = LeaseRevokeRequest { id: attached };
    client.lease().lease_revoke(revoke).await.expect("a revoke");
    let revision = client.revision().await;
    client.try_compact(compaction(revision)).await.expect("a compaction");
    client.maintenance().defragment(DefragmentRequest {}).await.expect("a defragmentation");
    // Room alone does not clear it.
    refused(client.try_put(put(format!("{keys}new"), "x")).await, NO_SPACE);
}

#[tokio::test]
async fn s31_no_space_is_cleared_by_hand_only() {
    let Some(server) = Server::fresh("s31", &[]).await else { return };
    let client = &server.client;
    let keys = prefix("s31");
    let lease = client.grant(600).await;
    for name in ["a", "b"] {
        client.put(format!("{keys}{name}"), "x").await;
    }
    client.put_leased(format!("{keys}c"), lease).await;
    let me = client.status().await.header.expect("a header").member_id;
    assert_eq!(alarm(client, AlarmAction::Get, 0).await, []);
    let raised = alarm(client, AlarmAction::Activate, me).await;
    let expected = AlarmMember { member_id: me, alarm: AlarmType::Nospace.into() };
    assert_eq!(raised, [expected]);
    assert_eq!(alarm(client, AlarmAction::Get, 0).await, [expected]);
    assert!(!client.status().await.errors.is_empty());
    check_full(&server, &keys, lease).await;

    alarm(client, AlarmAction::Deactivate, me).await;
    assert_eq!(alarm(client, AlarmAction::Get, 0).await, []);
    client.put(format!("{keys}new"), "x").await;
    client.grant(60).await;
    assert_eq!(client.status().await.errors.len(), 0);
}

#[tokio::test]
async fn s31_the_quota_raises_no_space() {
    const QUOTA_BYTES: &str = "16777216";
    const VALUE_BYTES: usize = 1 << 20;

    let options = [("--quota-backend-bytes", QUOTA_BYTES)];
    let Some(server) = Server::fresh("s31 (quota)", &options).await else { return };
    let client = &server.client;
    let keys = prefix("s31");
    let lease = client.grant(600).await;
    for name in ["a", "b"] {
        client.put(format!("{keys}{name}"), "x").await;
    }
    client.put_leased(format!("{keys}c"), lease).await;
    let mut refusal = None;
    for n in 0..64_u8 {
        // Not to be compressed.
        let value: Vec<u8> = (0..VALUE_BYTES / 32)
            .flat_map(|m| Sha256::digest([&[n][..], &m.to_le_bytes()].concat()))
            .collect();
        if let Err(status) = client.try_put(put(format!("{keys}big{n}"), value)).await {
            refusal = Some(status);
            break;
        }
    }
    refused(refusal.map_or(Ok(()), Err), NO_SPACE);
    super::client::eventually("the alarm", async || {
        (!alarm(client, AlarmAction::Get, 0).await.is_empty()).then_some(())
    })
    .await;
    check_full(&server, &keys, lease).await;

    client.delete(super::requests::delete_below(&keys)).await;
    client.compact(client.revision().await).await;
    client.maintenance().defragment(DefragmentRequest {}).await.expect("a defragmentation");
    alarm(client, AlarmAction::Deactivate, 0).await;
    let cleared = alarm(client, AlarmAction::Get, 0).await;
    if !cleared.is_empty() {
        // Member 0 may stand for all or for none.
        alarm(client, AlarmAction::Deactivate, cleared[0].member_id).await;
    }
    client.put(format!("{keys}new"), "x").await;
}

#[tokio::test]
async fn s38_a_snapshot_ends_with_its_hash() {
    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("s38");
    for n in 0..20 {
        client.put(format!("{keys}{n}"), vec![n; 100_000]).await;
    }
    let stream = client.maintenance().snapshot(SnapshotRequest {}).await;
    let mut stream = stream.expect("a stream").into_inner();
    let mut whole = Vec::new();
    let mut remaining = None;
    let mut messages = 0;
    let mut versions = Vec::new();
    while let Some(piece) = stream.message().await.expect("the stream goes on") {
        assert!(!piece.blob.is_empty());
        if let Some(before) = remaining.replace(piece.remaining_bytes) {
            assert!(piece.remaining_bytes <= before, "the rest must shrink");
        }
        whole.extend_from_slice(&piece.blob);
        versions.push(piece.version);
        messages += 1;
    }
    assert!(messages > 1 && remaining == Some(0));
    let (data, hash) = whole.split_at(whole.len() - 32);
    assert!(data.len() > 2_000_000, "20 values of 100 kB are inside: {}", data.len());
    assert_eq!(Sha256::digest(data).as_slice(), hash);
    if server.has(Feature::SnapshotVersion) {
        let version = client.status().await.version;
        assert!(versions.iter().all(|other| !other.is_empty()), "{versions:?} of {version}");
    }
}
