//! The election service.

use tonic::{Code, Streaming};

use super::{
    client::{Client, eventually, soon},
    errors::{LEASE_NOT_FOUND, refused},
    requests::{bytes, prefix, unused_lease},
    server::Server,
    wire::{
        LeaseRevokeRequest,
        v3electionpb::{
            CampaignRequest, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
            ResignRequest,
        },
    },
};

async fn campaign(client: &Client, name: &str, lease: i64, value: &str) -> LeaderKey {
    let request = CampaignRequest { name: bytes(name), lease, value: bytes(value) };
    let answer = soon("leadership", client.election().campaign(request)).await;
    answer.expect("a campaign is won").into_inner().leader.expect("a leader's key")
}

/// The value that the leader shows, and since when it leads.
async fn leader(client: &Client, name: &str) -> Option<(String, i64)> {
    match client.election().leader(LeaderRequest { name: bytes(name) }).await {
        Ok(answer) => {
            let kv = answer.into_inner().kv.expect("the leader's key");
            Some((String::from_utf8_lossy(&kv.value).into_owned(), kv.create_revision))
        }
        Err(status) => {
            assert_eq!((status.code(), status.message()), (Code::Unknown, "election: no leader"));
            None
        }
    }
}

async fn proclaim(client: &Client, leader: LeaderKey, value: &str) -> Result<(), tonic::Status> {
    let request = ProclaimRequest { leader: Some(leader), value: bytes(value) };
    client.election().proclaim(request).await.map(drop)
}

async fn resign(client: &Client, leader: LeaderKey) {
    let request = ResignRequest { leader: Some(leader) };
    client.election().resign(request).await.expect("a leader resigns");
}

async fn observed(stream: &mut Streaming<LeaderResponse>) -> String {
    let answer = soon("a leader", stream.message()).await.expect("the stream goes on");
    let kv = answer.expect("the stream goes on").kv.expect("the leader's key");
    String::from_utf8_lossy(&kv.value).into_owned()
}

#[tokio::test]
async fn election_has_one_leader_at_a_time() {
    let server = Server::shared().await;
    let client = &server.client;
    let name = prefix("election").trim_end_matches('/').to_owned();
    let leases = [client.grant(600).await, client.grant(600).await];
    assert_eq!(leader(client, &name).await, None);
    let first = campaign(client, &name, leases[0], "one").await;
    assert_eq!((first.name.as_ref(), first.lease), (name.as_bytes(), leases[0]));
    assert_eq!(first.key, format!("{name}/{:x}", leases[0]));
    let kv = client.get(&first.key).await.expect("the leader's key");
    assert_eq!((kv.create_revision, kv.lease), (first.rev, leases[0]));
    assert_eq!(leader(client, &name).await, Some(("one".to_owned(), first.rev)));

    proclaim(client, first.clone(), "one again").await.expect("a proclamation");
    assert_eq!(leader(client, &name).await, Some(("one again".to_owned(), first.rev)));
    // Who leads already wins at once, with the new value.
    let again = campaign(client, &name, leases[0], "one more").await;
    assert_eq!((again.key, again.rev), (first.key.clone(), first.rev));
    assert_eq!(leader(client, &name).await, Some(("one more".to_owned(), first.rev)));

    let second = {
        let (client, name) = (client.clone(), name.clone());
        tokio::spawn(async move { campaign(&client, &name, leases[1], "two").await })
    };
    let key = format!("{name}/{:x}", leases[1]);
    eventually("a place in line", async || client.get(&key).await).await;
    assert!(!second.is_finished());
    resign(client, first.clone()).await;
    let second = soon("the second leader", second).await.expect("the task ends well");
    assert_eq!(leader(client, &name).await, Some(("two".to_owned(), second.rev)));
    // Who has resigned has no say.
    let status = proclaim(client, first, "late").await.expect_err("not a leader any more");
    assert_eq!(status.message(), "election: not leader");
    client.lease().lease_revoke(LeaseRevokeRequest { id: leases[1] }).await.expect("a revoke");
    assert_eq!(leader(client, &name).await, None);
}

#[tokio::test]
async fn election_is_observed_in_order() {
    let server = Server::shared().await;
    let client = &server.client;
    let name = prefix("election");
    let lease = client.grant(600).await;
    let first = campaign(client, &name, lease, "one").await;
    let request = LeaderRequest { name: bytes(&name) };
    let stream = soon("a stream", client.election().observe(request)).await;
    let mut stream = stream.expect("leaders are observed").into_inner();
    assert_eq!(observed(&mut stream).await, "one");
    proclaim(client, first.clone(), "one again").await.expect("a proclamation");
    assert_eq!(observed(&mut stream).await, "one again");
    resign(client, first).await;
    let other = client.grant(600).await;
    let second = campaign(client, &name, other, "two").await;
    assert_eq!(observed(&mut stream).await, "two");
    resign(client, second).await;
}

#[tokio::test]
async fn election_refuses_what_is_incomplete() {
    let server = Server::shared().await;
    let client = &server.client;
    let name = prefix("election");
    let request = CampaignRequest { name: bytes(&name), lease: unused_lease(), value: bytes("x") };
    let answer = soon("a refusal", client.election().campaign(request)).await;
    let status = answer.expect_err("a refusal");
    // etcd loses the code on the way through its own client.
    assert!(matches!(status.code(), Code::NotFound | Code::Unknown), "{status:?}");
    assert_eq!(status.message(), LEASE_NOT_FOUND.1);
    let missing = "\"leader\" field must be provided";
    let nobody = client.election().resign(ResignRequest { leader: None }).await;
    refused(nobody, (Code::Unknown, missing));
    let nobody = ProclaimRequest { leader: None, value: bytes("x") };
    refused(client.election().proclaim(nobody).await, (Code::Unknown, missing));
}
