//! The Rust client etcd-client.

use etcd_client::{
    Client, Compare, CompareOp, EventType, GetOptions, PutOptions, SortOrder, SortTarget, Txn,
    TxnOp, WatchOptions,
};

use crate::process::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn a_rust_client() -> Result<(), etcd_client::Error> {
    let cluster = Cluster::start(3).await;
    let endpoints: Vec<String> =
        (1..=3).map(|id| format!("127.0.0.1:{}", cluster.node(id).client_port())).collect();
    let mut client = Client::connect(&endpoints, None).await?;

    let options = WatchOptions::new().with_prefix();
    let mut watch = client.watch("crate/", Some(options)).await?;
    assert!(watch.message().await?.expect("an answer").created());

    client.put("crate/a", "1", None).await?;
    client.put("crate/b", "2", None).await?;
    let options = GetOptions::new().with_prefix().with_sort(SortTarget::Key, SortOrder::Descend);
    let found = client.get("crate/", Some(options)).await?;
    let values: Vec<_> = found.kvs().iter().map(|pair| pair.value().to_vec()).collect();
    assert_eq!((values, found.count()), (vec![b"2".to_vec(), b"1".to_vec()], 2));

    let txn = Txn::new()
        .when([Compare::value("crate/a", CompareOp::Equal, "1")])
        .and_then([TxnOp::put("crate/a", "3", None), TxnOp::get("crate/a", None)])
        .or_else([TxnOp::delete("crate/a", None)]);
    assert!(client.txn(txn).await?.succeeded());

    let lease = client.lease_grant(60, None).await?.id();
    client.put("crate/c", "4", Some(PutOptions::new().with_lease(lease))).await?;
    let (mut keeper, mut kept) = client.lease_keep_alive(lease).await?;
    keeper.keep_alive().await?;
    assert_eq!(kept.message().await?.expect("an answer").ttl(), 60);
    client.lease_revoke(lease).await?;

    let mut seen = Vec::new();
    while seen.len() < 5 {
        let events = watch.message().await?.expect("the watch goes on");
        seen.extend(events.events().iter().map(|event| event.event_type()));
    }
    assert_eq!(seen[..4], [EventType::Put; 4]);
    assert_eq!(seen[4], EventType::Delete);

    let lock = client.lock("crate-lock", None).await?;
    client.unlock(lock.key()).await?;
    assert_eq!(client.member_list().await?.members().len(), 3);
    let status = client.status().await?;
    assert!(status.leader() > 0 && !status.version().is_empty());
    cluster.assert_same_state().await;
    Ok(())
}
