//! Statements 20 and 21: watches that read history, compacted or large.

use super::{
    client::Client,
    deviations::Feature,
    requests::{Operation, all, delete, delete_below, prefix, put},
    server::Server,
    watching::{WatchStream, created, seen, watch_below, watch_one},
    wire::{
        WatchCreateRequest, WatchResponse,
        mvccpb::event::EventType::{Delete, Put},
    },
};

/// Above this a message is fragmented: the limit on requests, with overhead.
const FRAGMENT_BYTES: usize = 2 << 20;

#[tokio::test]
async fn s20_a_watch_below_the_compaction_is_cancelled() {
    let server = Server::alone().await;
    let client = &server.client;
    let key = prefix("s20");
    let first = client.put(&key, "1").await;
    let second = client.put(&key, "2").await;
    let third = client.put(&key, "3").await;
    client.compact(third).await;
    let from = |start_revision| WatchCreateRequest { start_revision, ..watch_one(&key) };
    let (mut stream, answer) = WatchStream::open(client, from(third)).await;
    let other = created(&answer);
    let events = stream.seen(1).await;
    assert_eq!(events, [(Put, key.as_bytes().to_vec(), third)]);
    for start in [first, second, 1] {
        let id = created(&stream.create(from(start)).await);
        let answer = stream.next().await;
        assert_eq!((answer.watch_id, answer.canceled, answer.created), (id, true, false));
        assert_eq!(answer.compact_revision, third);
        assert!(answer.events.is_empty());
    }
    // The stream and its other watches go on.
    let fourth = client.put(&key, "4").await;
    let batch = stream.batches(1).await.remove(0);
    assert_eq!((batch.watch_id, seen(&batch.events[0]).2), (other, fourth));
}

#[tokio::test]
async fn s20_a_watch_at_the_compaction_sees_its_deletions() {
    let server = Server::alone().await;
    if !server.has(Feature::WatchAtCompaction) {
        return;
    }
    let client = &server.client;
    let keys = prefix("s20");
    let key = |name: &str| format!("{keys}{name}");
    client.put(key("a"), "1").await;
    client.put(key("b"), "1").await;
    let ops = vec![
        put(key("c"), "1").op(),
        delete(key("a")).op(),
        delete(key("b")).op(),
        put(key("d"), "1").op(),
    ];
    let at = client.txn(all(ops)).await.header.expect("a header").revision;
    let after = client.put(key("d"), "2").await;
    client.compact(at).await;
    let watch = WatchCreateRequest { start_revision: at, prev_kv: true, ..watch_below(&keys) };
    let (mut stream, answer) = WatchStream::open(client, watch).await;
    created(&answer);
    let events = stream.events(5).await;
    let expected = [
        (Put, key("c").into_bytes(), at),
        (Delete, key("a").into_bytes(), at),
        (Delete, key("b").into_bytes(), at),
        (Put, key("d").into_bytes(), at),
        (Put, key("d").into_bytes(), after),
    ];
    assert_eq!(events.iter().map(seen).collect::<Vec<_>>(), expected);
    // What was there before the compacted revision is gone.
    let known: Vec<bool> = events.iter().map(|event| event.prev_kv.is_some()).collect();
    assert_eq!(known, [false, false, false, false, true]);
}

/// The revisions of a message's events, each once.
fn revisions(batch: &WatchResponse) -> Vec<i64> {
    let mut revisions: Vec<i64> = batch.events.iter().map(|event| seen(event).2).collect();
    revisions.dedup();
    revisions
}

#[tokio::test]
async fn s21_a_revision_comes_in_one_message() {
    const TXNS: usize = 1_500;
    const AT_ONCE: usize = 50;

    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("s21");
    let (mut live, answer) = WatchStream::open(client, watch_below(&keys)).await;
    created(&answer);
    let start = client.revision().await + 1;
    let write = |client: Client, keys: String, n: usize| async move {
        for round in 0..TXNS / AT_ONCE {
            let value = format!("{round}");
            let puts = (0..3).map(|m| put(format!("{keys}{n}-{m}"), &value).op()).collect();
            client.txn(all(puts)).await;
        }
    };
    let writers: Vec<_> =
        (0..AT_ONCE).map(|n| tokio::spawn(write(client.clone(), keys.clone(), n))).collect();
    for writer in writers {
        writer.await.expect("the writer ends well");
    }
    let past = WatchCreateRequest { start_revision: start, ..watch_below(&keys) };
    let (mut caught_up, answer) = WatchStream::open(client, past).await;
    created(&answer);
    for stream in [&mut live, &mut caught_up] {
        let batches = stream.batches(3 * TXNS).await;
        let all: Vec<i64> = batches.iter().flat_map(revisions).collect();
        assert_eq!(all.len(), TXNS, "each revision once, whole");
        assert!(all.is_sorted());
        for batch in &batches {
            assert!(!batch.fragment);
            assert_eq!(batch.events.len(), 3 * revisions(batch).len());
            assert!(
                batch.header.as_ref().expect("a header").revision
                    >= *revisions(batch).last().expect("one")
            );
        }
    }
}

#[tokio::test]
async fn s21_fragments_split_a_revision() {
    const KEYS: usize = 12;

    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("s21");
    let puts = |fill: u8| {
        (0..KEYS).map(|n| put(format!("{keys}{n:02}"), vec![fill; 120_000]).op()).collect()
    };
    let first = client.txn(all(puts(b'1'))).await.header.expect("a header").revision;
    let second = client.txn(all(puts(b'2'))).await.header.expect("a header").revision;
    // With the values before, the second revision alone is above the limit.
    let watch = |fragment| WatchCreateRequest {
        start_revision: first,
        prev_kv: true,
        fragment,
        ..watch_below(&keys)
    };
    let (mut stream, answer) = WatchStream::open(client, watch(true)).await;
    created(&answer);
    let pieces = stream.batches(2 * KEYS).await;
    assert!(pieces.iter().any(|piece| piece.fragment), "nothing was split");
    assert!(!pieces.last().expect("a piece").fragment, "the last piece promises more");
    for piece in &pieces {
        assert!(prost::Message::encoded_len(piece) <= FRAGMENT_BYTES);
        assert!(!piece.events.is_empty() && piece.header.is_some());
    }
    let events: Vec<_> = pieces.iter().flat_map(|piece| &piece.events).map(seen).collect();
    let expected: Vec<_> = [first, second]
        .into_iter()
        .flat_map(|at| (0..KEYS).map(move |n| (n, at)))
        .map(|(n, at)| (Put, format!("{keys}{n:02}").into_bytes(), at))
        .collect();
    assert_eq!(events, expected);

    let (mut stream, answer) = WatchStream::open(client, watch(false)).await;
    created(&answer);
    let batches = stream.batches(2 * KEYS).await;
    assert!(batches.iter().all(|batch| !batch.fragment));
    let holding: Vec<_> =
        batches.iter().filter(|batch| revisions(batch).contains(&second)).collect();
    assert_eq!(holding.len(), 1, "without fragments a revision is never split");
    client.delete(delete_below(&keys)).await;
}
