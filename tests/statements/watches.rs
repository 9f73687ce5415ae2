//! Statements 19 and 22 to 26: what a watch tells, and its stream.

use std::time::Duration;

use super::{
    deviations::Feature,
    errors::{COMPACTED, DUPLICATE_WATCH_ID},
    requests::{Operation, all, delete, delete_below, prefix, put},
    server::Server,
    watching::{WatchStream, created, seen, watch_below, watch_one},
    wire::{
        WatchCreateRequest,
        mvccpb::event::EventType::{Delete, Put},
        watch_create_request::FilterType,
    },
};

#[tokio::test]
async fn s19_created_comes_before_events() {
    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("s19");
    let key = format!("{keys}k");
    let first = client.put(&key, "1").await;
    let second = client.put(&key, "2").await;
    let past = WatchCreateRequest { start_revision: first, ..watch_one(&key) };
    let (mut stream, answer) = WatchStream::open(client, past).await;
    let id = created(&answer);
    assert!(answer.header.expect("a header").revision >= second);
    let batches = stream.batches(2).await;
    assert!(batches.iter().all(|batch| batch.watch_id == id && !batch.created));
    let last = batches.last().and_then(|batch| batch.header.as_ref()).expect("a header");
    assert!(last.revision >= second && last.member_id != 0);
    let events: Vec<_> = batches.iter().flat_map(|batch| &batch.events).map(seen).collect();
    let key_bytes = key.as_bytes().to_vec();
    assert_eq!(events, [(Put, key_bytes.clone(), first), (Put, key_bytes.clone(), second)]);

    // 0 means from now on.
    let (mut stream, answer) = WatchStream::open(client, watch_one(&key)).await;
    created(&answer);
    let third = client.put(&key, "3").await;
    assert_eq!(stream.seen(1).await, [(Put, key_bytes, third)]);

    // An empty key begins with the first key of all.
    let everything = WatchCreateRequest { key: "".into(), range_end: "\0".into(), ..watch_one("") };
    created(&stream.create(everything).await);
}

#[tokio::test]
async fn s19_a_negative_start_is_refused() {
    let server = Server::shared().await;
    let client = &server.client;
    let key = prefix("s19");
    let (mut stream, answer) = WatchStream::open(client, watch_one(&key)).await;
    let id = created(&answer);
    if !server.has(Feature::NegativeWatchRefused) {
        return;
    }
    for start_revision in [-1, i64::MIN] {
        let answer = stream.create(WatchCreateRequest { start_revision, ..watch_one(&key) }).await;
        assert_eq!((answer.created, answer.canceled, answer.watch_id), (true, true, -1));
        assert_eq!(answer.cancel_reason, COMPACTED.1);
    }
    let seen_at = client.put(&key, "x").await;
    let batch = stream.batches(1).await.remove(0);
    assert_eq!((batch.watch_id, seen(&batch.events[0]).2), (id, seen_at));
}

#[tokio::test]
async fn s22_a_watch_from_the_future_waits() {
    let server = Server::alone().await;
    let client = &server.client;
    let key = prefix("s22");
    let now = client.put(&key, "0").await;
    let future = WatchCreateRequest { start_revision: now + 3, ..watch_one(&key) };
    let (mut stream, answer) = WatchStream::open(client, future).await;
    created(&answer);
    if server.has(Feature::ProgressOnlyWhenSynced) {
        stream.request_progress().await;
    }
    for value in ["1", "2", "3", "4"] {
        client.put(&key, value).await;
    }
    let mut revisions = Vec::new();
    while revisions.len() < 2 {
        let batch = stream.next().await;
        if batch.events.is_empty() {
            let revision = batch.header.expect("a header").revision;
            assert!(revision >= now + 3, "progress before the start: {batch:?}");
        }
        revisions.extend(batch.events.iter().map(|event| seen(event).2));
    }
    assert_eq!(revisions, [now + 3, now + 4]);
}

#[tokio::test]
async fn s23_a_deletion_carries_key_and_revision() {
    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("s23");
    let key = format!("{keys}k");
    let watch = WatchCreateRequest { prev_kv: true, ..watch_below(&keys) };
    let (mut stream, answer) = WatchStream::open(client, watch).await;
    let id = created(&answer);
    let plain = created(&stream.create(watch_below(&keys)).await);
    let lease = client.grant(60).await;
    let first = client.put_leased(&key, lease).await;
    let second = client.put(&key, "2").await;
    client.delete(delete(&key)).await;

    let mut with = Vec::new();
    let mut without = Vec::new();
    while with.len() < 3 || without.len() < 3 {
        let batch = stream.next().await;
        if batch.watch_id == id { &mut with } else { &mut without }.extend(batch.events);
    }
    assert_ne!(id, plain);
    assert!(without.iter().all(|event| event.prev_kv.is_none()));
    for events in [&with, &without] {
        let kinds: Vec<_> = events.iter().map(|event| event.r#type()).collect();
        assert_eq!(kinds, [Put, Put, Delete]);
        let kv = events[0].kv.as_ref().expect("a key");
        assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (first, first, 1));
        assert_eq!((kv.lease, kv.value.as_ref()), (lease, &b"leased"[..]));
        let gone = events[2].kv.as_ref().expect("a key");
        assert_eq!((gone.key.as_ref(), gone.value.len()), (key.as_bytes(), 0));
        assert!(gone.mod_revision > second);
        assert_eq!((gone.create_revision, gone.version, gone.lease), (0, 0, 0));
    }
    assert!(with[0].prev_kv.is_none(), "created: nothing was there before");
    let before = with[1].prev_kv.as_ref().expect("what was there");
    assert_eq!((before.mod_revision, before.lease), (first, lease));
    let before = with[2].prev_kv.as_ref().expect("what was there");
    assert_eq!((before.mod_revision, before.version), (second, 2));
    assert_eq!(before.value, "2");
}

#[tokio::test]
async fn s23_a_compacted_previous_value_is_left_out() {
    let server = Server::alone().await;
    let client = &server.client;
    let key = prefix("s23");
    client.put(&key, "1").await;
    let second = client.put(&key, "2").await;
    let third = client.put(&key, "3").await;
    client.compact(second).await;
    let past =
        |start_revision| WatchCreateRequest { start_revision, prev_kv: true, ..watch_one(&key) };
    let (mut stream, answer) = WatchStream::open(client, past(third)).await;
    created(&answer);
    let before = stream.events(1).await.remove(0).prev_kv.expect("it is the oldest left");
    assert_eq!(before.mod_revision, second);
    client.compact(third).await;
    let (mut stream, answer) = WatchStream::open(client, past(third)).await;
    created(&answer);
    let event = stream.events(1).await.remove(0);
    assert_eq!((event.kv.expect("a key").mod_revision, event.prev_kv), (third, None));
}

#[tokio::test]
async fn s24_what_is_filtered_out_is_not_mentioned() {
    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("s24");
    let key = format!("{keys}k");
    let start = client.put(&key, "0").await;
    let filtered = |filter: FilterType, start_revision| WatchCreateRequest {
        filters: vec![filter.into()],
        start_revision,
        ..watch_below(&keys)
    };
    for value in ["1", "2"] {
        client.put(&key, value).await;
    }
    // In the past, where everything so far is filtered out, and from now on.
    for start_revision in [start, 0] {
        let no_puts = filtered(FilterType::Noput, start_revision);
        let (mut deletions, answer) = WatchStream::open(client, no_puts).await;
        created(&answer);
        let now = client.revision().await + 1;
        let no_deletions = filtered(FilterType::Nodelete, now);
        let (mut puts, answer) = WatchStream::open(client, no_deletions).await;
        created(&answer);
        let put_at = client.put(&key, "3").await;
        client.put(&key, "4").await;
        client.delete(delete(&key)).await;
        client.txn(all(vec![put(&key, "5").op(), put(format!("{keys}l"), "5").op()])).await;
        client.delete(delete_below(&keys)).await;
        let kinds = |events: Vec<(_, Vec<u8>, i64)>| {
            events.into_iter().map(|event| event.0).collect::<Vec<_>>()
        };
        // Nothing but these, not even an empty message.
        assert_eq!(kinds(deletions.seen(3).await), [Delete; 3]);
        let events = puts.seen(4).await;
        assert_eq!(events[0].2, put_at);
        assert_eq!(kinds(events), [Put; 4]);
    }
    let nothing = WatchCreateRequest {
        filters: vec![FilterType::Noput.into(), FilterType::Nodelete.into()],
        start_revision: start,
        ..watch_below(&keys)
    };
    let (mut stream, answer) = WatchStream::open(client, nothing).await;
    let id = created(&answer);
    client.put(&key, "unseen").await;
    stream.cancel(id).await;
    let answer = stream.next().await;
    assert!(answer.canceled && answer.events.is_empty(), "{answer:?}");
}

#[tokio::test]
async fn s25_watch_ids_are_chosen_or_given() {
    let server = Server::shared().await;
    let client = &server.client;
    let key = prefix("s25");
    let with_id = |watch_id| WatchCreateRequest { watch_id, ..watch_one(&key) };
    let (mut stream, answer) = WatchStream::open(client, with_id(7)).await;
    assert_eq!(created(&answer), 7);
    let chosen = created(&stream.create(with_id(0)).await);
    let other = created(&stream.create(with_id(0)).await);
    assert!(chosen >= 0 && chosen != 7 && other != 7 && other != chosen);

    let answer = stream.create(with_id(7)).await;
    assert!(answer.created && answer.canceled, "{answer:?}");
    assert_eq!(answer.cancel_reason, DUPLICATE_WATCH_ID);
    assert_eq!(answer.watch_id, -1);
    let at = client.put(&key, "x").await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let batch = stream.next().await;
        assert_eq!(batch.events.iter().map(seen).map(|event| event.2).collect::<Vec<_>>(), [at]);
        ids.push(batch.watch_id);
    }
    ids.sort_unstable();
    let mut expected = [chosen, other, 7];
    expected.sort_unstable();
    assert_eq!(ids, expected);
    // Another stream has ids of its own.
    let (_other, answer) = WatchStream::open(client, with_id(7)).await;
    assert_eq!(created(&answer), 7);
}

#[tokio::test]
async fn s25_a_cancelled_watch_is_silent_and_its_id_free() {
    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("s25");
    let with_id = |watch_id| WatchCreateRequest { watch_id, ..watch_below(&keys) };
    let (mut stream, answer) = WatchStream::open(client, with_id(5)).await;
    assert_eq!(created(&answer), 5);
    assert_eq!(created(&stream.create(with_id(6)).await), 6);
    stream.cancel(5).await;
    let answer = stream.next().await;
    assert_eq!((answer.watch_id, answer.canceled, answer.created), (5, true, false));
    assert_eq!((answer.cancel_reason.as_str(), answer.compact_revision), ("", 0));
    // Nobody has these; nothing is answered.
    stream.cancel(5).await;
    stream.cancel(99).await;
    stream.cancel(-1).await;
    client.put(format!("{keys}a"), "x").await;
    let batch = stream.batches(1).await.remove(0);
    assert_eq!(batch.watch_id, 6);
    assert_eq!(created(&stream.create(with_id(5)).await), 5);
}

#[tokio::test]
async fn s26_progress_promises_that_later_events_are_newer() {
    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("s26");
    let (mut stream, answer) = WatchStream::open(client, watch_below(&keys)).await;
    created(&answer);
    created(&stream.create(watch_one(format!("{keys}a"))).await);
    let first = client.put(format!("{keys}b"), "1").await;
    assert_eq!(stream.seen(1).await[0].2, first);
    let progress = progress(&mut stream).await;
    assert!(progress >= first);
    let second = client.put(format!("{keys}b"), "2").await;
    assert!(second > progress);
    loop {
        let batch = stream.next().await;
        // An answer to a repeated request may still come.
        if !batch.events.is_empty() {
            assert_eq!(seen(&batch.events[0]).2, second);
            break;
        }
        assert_eq!(batch.watch_id, -1);
    }
}

/// Asks for progress until it is answered; its revision.
async fn progress(stream: &mut WatchStream) -> i64 {
    loop {
        stream.request_progress().await;
        // A server does not answer while a watch lags.
        if let Some(answer) = stream.next_within(Duration::from_millis(500)).await {
            assert_eq!(answer.watch_id, -1, "{answer:?}");
            assert!(answer.events.is_empty() && !answer.created && !answer.canceled);
            return answer.header.expect("a header").revision;
        }
    }
}

#[tokio::test]
async fn s26_progress_comes_only_when_all_watches_are_synced() {
    const CHANGES: usize = 2_000;

    let server = Server::shared().await;
    if !server.has(Feature::ProgressOnlyWhenSynced) {
        return;
    }
    let client = &server.client;
    let keys = prefix("s26");
    let start = client.revision().await + 1;
    for n in 0..CHANGES / 100 {
        let puts = (0..100).map(|m| put(format!("{keys}{m}"), n.to_string()).op()).collect();
        client.txn(all(puts)).await;
    }
    let past = WatchCreateRequest { start_revision: start, ..watch_below(&keys) };
    let (mut stream, answer) = WatchStream::open(client, watch_one(prefix("s26"))).await;
    created(&answer);
    created(&stream.create(past).await);
    let (mut events, mut last, mut promised) = (0, 0, 0);
    stream.request_progress().await;
    while events < CHANGES || promised < last {
        let Some(batch) = stream.next_within(Duration::from_millis(500)).await else {
            stream.request_progress().await;
            continue;
        };
        if batch.events.is_empty() {
            assert_eq!((batch.watch_id, events), (-1, CHANGES), "{batch:?}");
            promised = batch.header.expect("a header").revision;
        }
        for event in &batch.events {
            last = seen(event).2;
            assert!(last > promised, "an event at {last} after progress to {promised}");
        }
        events += batch.events.len();
    }
}
