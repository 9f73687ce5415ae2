//! Statements 12 to 15: what a range answers.

use tonic::Code;

use super::{
    client::{Client, revision},
    deviations::Feature,
    errors::{
        COMPACTED, EMPTY_KEY, EMPTY_WATCH_RANGE, FUTURE_REVISION, INVALID_SORT_OPTION, refused,
    },
    requests::{Operation, all, below, bytes, delete, delete_below, one, prefix, put},
    server::Server,
    watching::{WatchStream, created, watch_below, watch_one},
    wire::{
        DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, WatchCreateRequest,
        range_request::{SortOrder, SortTarget},
    },
};

/// What comes after the prefix in the keys of the answer.
fn names(answer: &RangeResponse, prefix: &str) -> String {
    let name = |key: &[u8]| String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
    answer.kvs.iter().map(|kv| name(&kv.key)).collect::<Vec<_>>().join(" ")
}

/// Puts keys of one letter each.
async fn put_letters(client: &Client, keys: &str, letters: &str) {
    for letter in letters.chars() {
        client.put(format!("{keys}{letter}"), letter.to_string()).await;
    }
}

fn between(keys: &str, from: &str, to: &str) -> RangeRequest {
    RangeRequest { range_end: bytes(format!("{keys}{to}")), ..one(format!("{keys}{from}")) }
}

#[tokio::test]
async fn s12_range_end_zero_means_from_the_key_on() {
    let server = Server::alone().await;
    let client = &server.client;
    // Behind the keys of all others.
    let keys = format!("\u{10ffff}{}", prefix("s12"));
    put_letters(client, &keys, "abc").await;
    let from = |key: &str| RangeRequest { range_end: bytes([0]), ..one(key) };
    assert_eq!(names(&client.range(from(&format!("{keys}b"))).await, &keys), "b c");
    let beyond = client.range(from(&format!("{keys}d"))).await;
    assert_eq!((beyond.count, beyond.kvs.len()), (0, 0));
    let everything = client.range(from("\0")).await;
    let ours = client.range(below(&keys)).await;
    assert!(everything.count >= ours.count);
    assert_eq!(everything.kvs[everything.kvs.len() - 3..], ours.kvs);

    let from_b = DeleteRangeRequest { range_end: bytes([0]), ..delete(format!("{keys}b")) };
    assert_eq!(client.delete(from_b).await.deleted, 2);
    assert_eq!(names(&client.range(below(&keys)).await, &keys), "a");

    let watch = WatchCreateRequest { range_end: bytes([0]), ..watch_one(format!("{keys}b")) };
    let (mut stream, first) = WatchStream::open(client, watch).await;
    created(&first);
    client.put(format!("{keys}a"), "unseen").await;
    let seen = client.put(format!("{keys}z"), "seen").await;
    let event = &stream.events(1).await[0];
    assert_eq!(event.kv.as_ref().map(|kv| kv.mod_revision), Some(seen));
    client.delete(delete_below(&keys)).await;
}

#[tokio::test]
async fn s12_a_range_that_ends_before_it_begins_is_empty() {
    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("s12");
    put_letters(client, &keys, "abc").await;
    assert_eq!(names(&client.range(between(&keys, "a", "c")).await, &keys), "a b");
    for (from, to) in [("c", "a"), ("b", "b")] {
        let answer = client.range(between(&keys, from, to)).await;
        assert_eq!((answer.count, answer.more, answer.kvs.len()), (0, false, 0));
        let range_end = bytes(format!("{keys}{to}"));
        let request = DeleteRangeRequest { range_end, ..delete(format!("{keys}{from}")) };
        assert_eq!(client.delete(request).await.deleted, 0);
    }
    refused(client.try_range(one("")).await, EMPTY_KEY);
    refused(client.try_range(RangeRequest { range_end: bytes([0]), ..one("") }).await, EMPTY_KEY);
    refused(client.try_delete(delete("")).await, EMPTY_KEY);
    refused(client.try_put(put("", "x")).await, EMPTY_KEY);

    let (mut stream, first) = WatchStream::open(client, watch_below(&keys)).await;
    created(&first);
    for (from, to) in [("c", "a"), ("b", "b")] {
        let range_end = bytes(format!("{keys}{to}"));
        let watch = WatchCreateRequest { range_end, ..watch_one(format!("{keys}{from}")) };
        let answer = stream.create(watch).await;
        assert_eq!((answer.created, answer.canceled), (true, true), "{answer:?}");
        assert_eq!((answer.watch_id, answer.cancel_reason.as_str()), (-1, EMPTY_WATCH_RANGE));
    }
    // The stream and its other watches go on.
    let seen = client.put(format!("{keys}d"), "x").await;
    assert_eq!(stream.seen(1).await[0].2, seen);
}

#[tokio::test]
async fn s13_count_ignores_limit_and_filters() {
    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("s13");
    put_letters(client, &keys, "abcde").await;
    let third = client.get(format!("{keys}c")).await.expect("the key").mod_revision;
    client.put(format!("{keys}a"), "again").await;

    let expect = |answer: RangeResponse, letters: &str, more: bool| {
        assert_eq!(names(&answer, &keys), letters);
        assert_eq!((answer.count, answer.more), (5, more), "{letters}");
    };
    let all = || below(&keys);
    expect(client.range(RangeRequest { limit: 2, ..all() }).await, "a b", true);
    expect(client.range(RangeRequest { limit: 5, ..all() }).await, "a b c d e", false);
    expect(client.range(RangeRequest { limit: 9, ..all() }).await, "a b c d e", false);
    expect(client.range(RangeRequest { limit: -1, ..all() }).await, "a b c d e", false);
    let least = RangeRequest { min_mod_revision: third, ..all() };
    expect(client.range(least.clone()).await, "a c d e", false);
    expect(client.range(RangeRequest { limit: 3, ..least.clone() }).await, "a c d", true);
    expect(client.range(RangeRequest { limit: 4, ..least }).await, "a c d e", false);
    let most = RangeRequest { max_mod_revision: third, ..all() };
    expect(client.range(most.clone()).await, "b c", false);
    // Three keys are left out by the filter, not by the limit.
    expect(client.range(RangeRequest { limit: 2, ..most }).await, "b c", false);
    let old = RangeRequest { max_create_revision: third, ..all() };
    expect(client.range(old).await, "a b c", false);
    let new = RangeRequest { min_create_revision: third + 1, limit: 1, ..all() };
    expect(client.range(new).await, "d", true);
    let both = RangeRequest { min_create_revision: third, max_mod_revision: third, ..all() };
    expect(client.range(both).await, "c", false);

    let counted = client.range(RangeRequest { count_only: true, limit: 2, ..all() }).await;
    assert_eq!((counted.count, counted.kvs.len(), counted.more), (5, 0, false));
    let bare = client.range(RangeRequest { keys_only: true, ..all() }).await;
    assert!(bare.kvs.iter().all(|kv| kv.value.is_empty() && kv.mod_revision != 0));
    expect(bare, "a b c d e", false);
}

/// Five keys a to e, whose versions, creations, changes and values all have
/// different orders.
async fn put_for_sorting(client: &Client, keys: &str) {
    for (key, value) in [
        ("d", "4"),
        ("a", "2"),
        ("e", "5"),
        ("b", "1"),
        ("c", "3"),
        ("b", "1"),
        ("b", "1"),
        ("b", "1"),
        ("b", "1"),
        ("a", "2"),
        ("a", "2"),
        ("d", "4"),
        ("d", "4"),
        ("d", "4"),
        ("e", "5"),
    ] {
        client.put(format!("{keys}{key}"), value).await;
    }
}

#[tokio::test]
async fn s14_sorting_without_an_order_comes_after_the_limit() {
    use SortOrder::{Ascend, Descend, None};
    use SortTarget::{Create, Key, Mod, Value, Version};

    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("s14");
    put_for_sorting(client, &keys).await;
    // Versions: a3 b5 c1 d4 e2. Created: d a e b c. Changed: c b a d e.
    // Values: b a c d e.
    for (target, order, limit, expected) in [
        (Key, None, 0, "a b c d e"),
        (Key, None, 2, "a b"),
        (Key, Ascend, 2, "a b"),
        (Key, Descend, 0, "e d c b a"),
        (Key, Descend, 2, "e d"),
        (Version, None, 0, "c e a d b"),
        (Version, Ascend, 2, "c e"),
        (Version, Descend, 2, "b d"),
        (Create, None, 0, "d a e b c"),
        (Create, Ascend, 3, "d a e"),
        (Create, Descend, 3, "c b e"),
        (Mod, None, 0, "c b a d e"),
        (Mod, Ascend, 2, "c b"),
        (Mod, Descend, 2, "e d"),
        (Value, None, 0, "b a c d e"),
        (Value, Ascend, 1, "b"),
        (Value, Descend, 4, "e d c a"),
        // The first keys a, b, c are sorted, then the third goes.
        (Version, None, 2, "c a"),
        (Create, None, 2, "a b"),
        (Mod, None, 2, "c b"),
        (Value, None, 1, "b"),
        (Mod, None, 5, "c b a d e"),
    ] {
        let request = RangeRequest {
            sort_target: target.into(),
            sort_order: order.into(),
            limit,
            ..below(&keys)
        };
        let answer = client.range(request).await;
        assert_eq!(names(&answer, &keys), expected, "{target:?} {order:?} {limit}");
        assert_eq!((answer.count, answer.more), (5, limit != 0 && limit < 5));
    }
    let filtered =
        RangeRequest { sort_target: Mod.into(), min_mod_revision: 1, limit: 2, ..below(&keys) };
    // A filter, too, needs all keys before the limit.
    assert_eq!(names(&client.range(filtered).await, &keys), "c b");
}

#[tokio::test]
async fn s14_sort_options_must_be_known() {
    let server = Server::shared().await;
    if !server.has(Feature::SortOptionChecked) {
        return;
    }
    let key = prefix("s14");
    for request in [
        RangeRequest { sort_order: 3, ..below(&key) },
        RangeRequest { sort_order: -1, ..below(&key) },
        RangeRequest { sort_target: 5, ..below(&key) },
    ] {
        refused(server.client.try_range(request.clone()).await, INVALID_SORT_OPTION);
        refused(server.client.try_txn(all(vec![request.op()])).await, INVALID_SORT_OPTION);
    }
}

#[tokio::test]
async fn s15_a_range_at_a_revision() {
    let server = Server::alone().await;
    let client = &server.client;
    let keys = prefix("s15");
    let key = format!("{keys}k");
    let first = client.put(&key, "1").await;
    let second = client.put(&key, "2").await;
    client.delete(delete(&key)).await;
    let fourth = client.put(format!("{keys}other"), "4").await;
    let at = |revision| RangeRequest { revision, ..below(&keys) };

    for (revision, expected) in [
        (first - 1, vec![]),
        (first, vec!["1"]),
        (second, vec!["2"]),
        (second + 1, vec![]),
        (fourth, vec!["4"]),
        (0, vec!["4"]),
    ] {
        let answer = client.range(at(revision)).await;
        let values: Vec<_> = answer.kvs.iter().map(|kv| kv.value.clone()).collect();
        assert_eq!(values, expected, "at {revision}");
        assert_eq!(answer.count, expected.len() as i64);
        // Of now, not of then.
        assert_eq!(answer.header.expect("a header").revision, fourth);
    }
    let then = client.range(at(second)).await.kvs.remove(0);
    assert_eq!((then.create_revision, then.mod_revision, then.version), (first, second, 2));
    refused(client.try_range(at(fourth + 1)).await, FUTURE_REVISION);
    let local = RangeRequest { serializable: true, ..at(fourth + 1) };
    refused(client.try_range(local).await, FUTURE_REVISION);

    client.compact(second).await;
    refused(client.try_range(at(first)).await, COMPACTED);
    refused(client.try_range(at(1)).await, COMPACTED);
    let answer = client.range(at(second)).await;
    assert_eq!((answer.kvs.len(), answer.kvs[0].value.as_ref()), (1, &b"2"[..]));
    assert_eq!(client.range(at(second + 1)).await.count, 0);
    // A negative revision is none.
    assert_eq!(revision(client.range(at(-1)).await.header.as_ref()), fourth);
    assert_eq!(client.range(at(-1)).await.count, 1);
}

#[tokio::test]
async fn range_stream_answers_what_range_answers_in_pieces() {
    let server = Server::shared().await;
    if !server.has(Feature::RangeStream) {
        return;
    }
    let client = &server.client;
    let keys = prefix("range_stream");
    let lease = client.grant(60).await;
    for n in 0..100 {
        let value = vec![b'v'; 100_000];
        let request = PutRequest { lease, ..put(format!("{keys}{n:03}"), value) };
        client.try_put(request).await.expect("a put");
    }
    for request in [
        below(&keys),
        RangeRequest { limit: 7, ..below(&keys) },
        RangeRequest { keys_only: true, ..below(&keys) },
        RangeRequest { count_only: true, ..below(&keys) },
        one(format!("{keys}none")),
    ] {
        let whole = client.range(request.clone()).await;
        let mut stream = client.kv().range_stream(request).await.expect("a stream").into_inner();
        let mut pieces = Vec::new();
        while let Some(piece) = stream.message().await.expect("the stream goes on") {
            pieces.push(piece.range_response.expect("a piece of the range"));
        }
        let (last, others) = pieces.split_last().expect("at least one piece");
        assert!(others.iter().all(|piece| piece.header.is_none() && piece.count == 0));
        assert_eq!((last.count, last.more), (whole.count, whole.more));
        assert!(last.header.is_some());
        let joined: Vec<_> = pieces.into_iter().flat_map(|piece| piece.kvs).collect();
        assert_eq!(joined, whole.kvs);
    }
    for (request, code) in [
        (one(""), Code::InvalidArgument),
        (RangeRequest { revision: i64::MAX, ..below(&keys) }, Code::OutOfRange),
    ] {
        let answer = match client.kv().range_stream(request).await {
            Ok(stream) => stream.into_inner().message().await.map(drop),
            Err(status) => Err(status),
        };
        assert_eq!(answer.expect_err("a refusal").code(), code);
    }
    client.delete(delete_below(&keys)).await;
}
