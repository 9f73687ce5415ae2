//! Proposals that follow from commits, and nodes that stop with some under
//! way.

use std::time::Duration;

use futures_util::future::join_all;
use metastore::{
    error::Rejected,
    machine::View,
    node::Handle,
    proto::{Outcome, Put, command::Op},
    storage::rocks::RocksEngine,
};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    disk::{Disk, put_entry},
    members::{Members, REQUEST_TIMEOUT},
    process::{Cluster, DEADLINE, eventually},
};

async fn put(handle: &Handle, key: String, value: String) -> Result<Outcome, Rejected> {
    handle
        .submit(Op::Put(Put {
            key: key.into(),
            value: value.into(),
            condition: None,
            ..Put::default()
        }))
        .await
}

/// What the member itself has applied, everything acknowledged included.
async fn view(handle: &Handle) -> View<RocksEngine> {
    eventually("a linearizable read", async || handle.read().await.ok()).await
}

fn value(view: &View<RocksEngine>, key: &str) -> Option<String> {
    let record = view.get(key.as_bytes()).expect("a sound database");
    record.map(|record| String::from_utf8_lossy(&record.value).into_owned())
}

/// Proposes, and proposes what follows from it as soon as it has applied it.
async fn propose_100_times(id: u64, handle: Handle) {
    let key = format!("by-{id}");
    let mut next = "0".to_owned();
    for round in 0..100_u64 {
        eventually("a proposal is committed", async || {
            put(&handle, key.clone(), next.clone()).await.ok()
        })
        .await;
        let seen = value(&view(&handle).await, &key).expect("what was committed");
        assert_eq!(seen, round.to_string(), "member {id} reads its own writes");
        next = (seen.parse::<u64>().expect("a number") + 1).to_string();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn propose_on_commit() {
    let members = Members::start(3).await;
    let proposers = (1..=3).map(|id| propose_100_times(id, members.handle(id)));
    timeout(DEADLINE, join_all(proposers)).await.expect("no deadlock");
    for id in 1..=3 {
        let last = value(&view(&members.handle(4 - id)).await, &format!("by-{id}"));
        assert_eq!(last.as_deref(), Some("99"));
    }
    members.assert_same_state().await;
    members.stop_all().await;
}

/// Entries that are in the log and in no state database: enough to be still
/// at work on them when the node is told to stop.
const UNAPPLIED: u64 = 30_000;

/// Stops a node as soon as its log says `when`, and starts it again.
async fn stopped_in_its_replay(when: &str) {
    let mut cluster = Cluster::new(1);
    let node = cluster.node(1);
    let disk = Disk::found(&node.data(), node.peer_url());
    let entry = |index: u64| put_entry(index, 1, &format!("k{}", index % 1000), &index.to_string());
    disk.append((2..UNAPPLIED + 2).map(entry).collect());

    cluster.node_mut(1).spawn();
    cluster.node(1).wait_log(when).await;
    cluster.node_mut(1).stop().await;
    let log = cluster.node(1).log();
    assert!(!log.contains("panicked"), "{log}");

    cluster.start_all().await;
    let last = UNAPPLIED + 1;
    let value = cluster.http(1).get(&format!("k{}", last % 1000)).await;
    assert_eq!(value, Some(last.to_string()));
    // One revision for each entry: none was skipped, none applied twice.
    assert_eq!(cluster.http(1).status("revision").await, 1 + UNAPPLIED);
    cluster.assert_same_state().await;
}

#[tokio::test]
async fn close_proposer_before_replay() {
    for when in ["Starting with RocksDB", "listening for members", "became leader"] {
        stopped_in_its_replay(when).await;
    }
}

/// Clients of one member, each with one proposal under way at any time.
const CLIENTS: usize = 20;

/// Stops a member while every one of its clients has a proposal under way;
/// what each proposal was told.
async fn stopped_with_proposals_under_way(members: &mut Members, id: u64) -> Vec<(String, Told)> {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    for client in 0..CLIENTS {
        let (handle, sender) = (members.handle(id), sender.clone());
        tokio::spawn(async move {
            for n in 0_u64.. {
                let key = format!("{client}-{n}");
                let told = put(&handle, key.clone(), n.to_string()).await;
                let stopped = told.is_err();
                sender.send((key, told)).expect("the test waits");
                if stopped {
                    return;
                }
            }
        });
    }
    drop(sender);
    let mut answers = Vec::new();
    while answers.len() < 10 * CLIENTS {
        answers.push(receiver.recv().await.expect("clients go on while they succeed"));
    }
    members.stop(id).await;
    let rest = async {
        while let Some(answer) = receiver.recv().await {
            answers.push(answer);
        }
    };
    let patience = REQUEST_TIMEOUT + Duration::from_secs(5);
    timeout(patience, rest).await.expect("every proposal is answered");
    assert_eq!(answers.iter().filter(|(_, told)| told.is_err()).count(), CLIENTS);
    answers
}

type Told = Result<Outcome, Rejected>;

/// Checks through a member what the clients of another were told.
async fn verify(handle: &Handle, answers: &[(String, Told)]) {
    let view = view(handle).await;
    for (key, told) in answers {
        let found = value(&view, key);
        match told {
            Ok(_) => assert!(found.is_some(), "{key} was acknowledged and is lost"),
            Err(Rejected::Unknown(_)) => {}
            Err(rejected) => assert_eq!(found, None, "{key} is there although: {rejected}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn close_proposer_inflight() {
    let mut members = Members::start(1).await;
    let answers = stopped_with_proposals_under_way(&mut members, 1).await;
    members.start_one(1).await;
    members.wait_ready(1).await;
    verify(&members.handle(1), &answers).await;
    members.assert_same_state().await;
    members.stop_all().await;
}

/// Stops the leader or another of three members with proposals under way.
async fn one_of_three_stopped(leads: bool) {
    let mut members = Members::start(3).await;
    let leader = members.leader().await;
    let stopped = if leads { leader } else { leader % 3 + 1 };
    let answers = stopped_with_proposals_under_way(&mut members, stopped).await;
    verify(&members.handle(stopped % 3 + 1), &answers).await;
    members.start_one(stopped).await;
    members.wait_ready(stopped).await;
    verify(&members.handle(stopped), &answers).await;
    members.assert_same_state().await;
    members.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn close_proposer_inflight_on_the_leader() {
    one_of_three_stopped(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn close_proposer_inflight_on_a_follower() {
    one_of_three_stopped(false).await;
}
