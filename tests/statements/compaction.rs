//! Statement 16: compaction.

use super::{
    errors::{COMPACTED, FUTURE_REVISION, refused},
    requests::{compaction, delete, one, prefix},
    server::Server,
    wire::{CompactionRequest, RangeRequest},
};

#[tokio::test]
async fn s16_a_fresh_store_can_be_compacted_at_zero() {
    let Some(server) = Server::fresh("s16 (fresh store)", &[]).await else { return };
    let client = &server.client;
    assert_eq!(client.try_compact(compaction(0)).await.expect("a compaction"), 1);
    refused(client.try_compact(compaction(2)).await, FUTURE_REVISION);
    assert_eq!(client.try_compact(compaction(1)).await.expect("a compaction"), 1);
    refused(client.try_compact(compaction(1)).await, COMPACTED);
    assert_eq!(client.put("k", "v").await, 2);
}

#[tokio::test]
async fn s16_compaction_only_goes_forward() {
    let server = Server::alone().await;
    let client = &server.client;
    let key = prefix("s16");
    let first = client.put(&key, "1").await;
    let second = client.put(&key, "2").await;
    let third = client.put(&key, "3").await;
    refused(client.try_compact(compaction(third + 1)).await, FUTURE_REVISION);
    refused(client.try_compact(compaction(i64::MAX)).await, FUTURE_REVISION);
    assert_eq!(client.try_compact(compaction(second)).await.expect("a compaction"), third);
    for revision in [second, first, 1, 0, -1, i64::MIN] {
        refused(client.try_compact(compaction(revision)).await, COMPACTED);
    }
    let at = |revision| RangeRequest { revision, ..one(&key) };
    refused(client.try_range(at(first)).await, COMPACTED);
    assert_eq!(client.range(at(second)).await.kvs[0].value, "2");
    assert_eq!(client.range(at(third)).await.kvs[0].value, "3");
}

#[tokio::test]
async fn s16_a_physical_compaction_answers_when_it_is_done() {
    let server = Server::alone().await;
    let client = &server.client;
    let keys = prefix("s16");
    let mut last = 0;
    for n in 0..200 {
        last = client.put(format!("{keys}{}", n % 10), vec![b'x'; 1000]).await;
    }
    client.delete(delete(format!("{keys}0"))).await;
    let last = last + 1;
    let request = CompactionRequest { revision: last, physical: true };
    assert_eq!(client.try_compact(request).await.expect("a compaction"), last);
    let request = CompactionRequest { revision: last, physical: true };
    refused(client.try_compact(request).await, COMPACTED);
    // The work is done: the newest state is all there is, and complete.
    for n in 1..10 {
        let kv = client.get(format!("{keys}{n}")).await.expect("the key");
        assert_eq!((kv.version, kv.value.len()), (20, 1000));
        let past = RangeRequest { revision: last - 2, ..one(format!("{keys}{n}")) };
        refused(client.try_range(past).await, COMPACTED);
    }
    assert_eq!(client.get(format!("{keys}0")).await, None);
    // The next write and the next compaction go on from here.
    assert_eq!(client.put(format!("{keys}0"), "again").await, last + 1);
    assert_eq!(client.get(format!("{keys}0")).await.expect("the key").version, 1);
    client.compact(last + 1).await;
}
