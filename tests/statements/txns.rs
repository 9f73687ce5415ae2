//! Statements 6 to 11: transactions.

use super::{
    client::{Client, revision},
    cluster::same_hash,
    deviations::Feature,
    errors::{
        COMPACTED, DUPLICATE_KEY, EMPTY_KEY, FUTURE_REVISION, KEY_NOT_FOUND, LEASE_NOT_FOUND,
        LEASE_PROVIDED, Refusal, TOO_MANY_OPERATIONS, VALUE_PROVIDED, refused,
    },
    requests::{
        Operation, all, below, branch, bytes, compare, delete, delete_below, end_of, exists, one,
        prefix, put, unused_lease,
    },
    server::{Cluster, Server},
    wire::{
        Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        response_op::Response,
    },
};

#[tokio::test]
async fn s06_one_branch_writes_a_key_once() {
    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("s06");
    let key = format!("{keys}k");
    let puts = || put(&key, "v").op();
    let nested = |ops: Vec<RequestOp>| all(ops).op();
    let twice = [
        vec![puts(), puts()],
        vec![puts(), delete(&key).op()],
        vec![delete(&key).op(), puts()],
        vec![puts(), delete_below(&keys).op()],
        vec![delete_below(&keys).op(), puts()],
        vec![puts(), one(&key).op(), puts()],
        vec![puts(), nested(vec![puts()])],
        vec![nested(vec![puts()]), puts()],
        vec![nested(vec![puts()]), nested(vec![puts()])],
        vec![nested(vec![puts()]), delete_below(&keys).op()],
        vec![nested(vec![delete_below(&keys).op()]), puts()],
        vec![nested(vec![nested(vec![puts()])]), puts()],
    ];
    for ops in twice {
        refused(client.try_txn(all(ops.clone())).await, DUPLICATE_KEY);
        // The branch that is not taken is checked as well.
        let other = branch(vec![exists(&key, false)], vec![], ops);
        refused(client.try_txn(other).await, DUPLICATE_KEY);
    }
    assert_eq!(client.get(&key).await, None);
}

#[tokio::test]
async fn s06_what_one_branch_may_do() {
    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("s06");
    let key = format!("{keys}k");
    let puts = || put(&key, "v").op();

    // Only one of the branches happens.
    client.txn(branch(vec![exists(&key, false)], vec![puts()], vec![puts()])).await;
    let nested = branch(vec![exists(&key, true)], vec![puts()], vec![puts()]);
    client.txn(all(vec![nested.op()])).await;
    assert_eq!(client.get(&key).await.expect("the key").version, 2);

    let deletes = vec![
        delete(&key).op(),
        delete_below(&keys).op(),
        delete_below(&keys).op(),
        all(vec![delete(&key).op()]).op(),
    ];
    let answer = client.txn(all(deletes)).await;
    let deleted: Vec<i64> = answer.responses.iter().filter_map(deleted_of).collect();
    assert_eq!(deleted, [1, 0, 0]);

    // The end of a range does not belong to it.
    let beyond = end_of(&keys);
    let ops = vec![delete_below(&keys).op(), put(&beyond, "v").op()];
    client.txn(all(ops)).await;
    assert!(client.get(&beyond).await.is_some());
    client.delete(delete(&beyond)).await;
}

fn deleted_of(answer: &super::wire::ResponseOp) -> Option<i64> {
    match answer.response.as_ref()? {
        Response::ResponseDeleteRange(answer) => Some(answer.deleted),
        _ => None,
    }
}

/// Values that the ranges of a transaction answered, and their counts.
fn values(answer: &TxnResponse) -> Vec<Vec<String>> {
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    answer
        .responses
        .iter()
        .filter_map(|op| match op.response.as_ref()? {
            Response::ResponseRange(range) => {
                Some(range.kvs.iter().map(|kv| text(&kv.value)).collect())
            }
            Response::ResponseTxn(nested) => Some(values(nested).concat()),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn s07_ranges_see_the_earlier_operations_of_their_txn() {
    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("s07");
    let key = |name: &str| format!("{keys}{name}");
    let before = client.put(key("a"), "old").await;
    // Comparisons do not: all of them are made before the first operation.
    let nested = branch(
        vec![compare(key("a"), CompareResult::Equal, TargetUnion::Value(bytes("old")))],
        vec![one(key("a")).op()],
        vec![],
    );
    let past = RangeRequest { revision: before, ..below(&keys) };
    let answer = client
        .txn(all(vec![
            below(&keys).op(),
            put(key("a"), "new").op(),
            below(&keys).op(),
            put(key("b"), "more").op(),
            below(&keys).op(),
            delete(key("c")).op(),
            past.op(),
            nested.op(),
        ]))
        .await;
    let expected: [&[&str]; 5] = [&["old"], &["new"], &["new", "more"], &["old"], &["new"]];
    assert_eq!(values(&answer), expected);

    let answer = client
        .txn(all(vec![
            delete(key("a")).op(),
            below(&keys).op(),
            put(key("d"), "last").op(),
            RangeRequest { count_only: true, ..below(&keys) }.op(),
        ]))
        .await;
    assert_eq!(values(&answer), [vec!["more".to_owned()], vec![]]);
    let Some(Response::ResponseRange(counted)) = &answer.responses[3].response else {
        panic!("no range: {answer:?}");
    };
    assert_eq!(counted.count, 2);
}

/// Puts that a transaction cannot carry out, and how it is refused.
fn bad_puts(keys: &str) -> Vec<(RequestOp, Refusal)> {
    let none = put(format!("{keys}none"), "x");
    let keeps_value = PutRequest { ignore_value: true, ..put(format!("{keys}none"), "") };
    vec![
        (PutRequest { lease: unused_lease(), ..none.clone() }.op(), LEASE_NOT_FOUND),
        (keeps_value.op(), KEY_NOT_FOUND),
        (PutRequest { ignore_lease: true, ..none }.op(), KEY_NOT_FOUND),
    ]
}

/// Ranges that a transaction cannot carry out, after the compaction that this
/// makes, and how it is refused.
async fn bad_ranges(client: &Client, keys: &str) -> Vec<(RequestOp, Refusal)> {
    let first = client.put(format!("{keys}a"), "1").await;
    let last = client.put(format!("{keys}a"), "2").await;
    client.compact(last).await;
    let at = |revision| RangeRequest { revision, ..below(keys) }.op();
    vec![
        (at(last + 100), FUTURE_REVISION),
        // The revision that the txn itself would make.
        (at(last + 1), FUTURE_REVISION),
        (at(first), COMPACTED),
    ]
}

/// Checks that each of these operations rejects its whole txn, without effect.
async fn check_rejected(client: &Client, keys: &str, bad: Vec<(RequestOp, Refusal)>) {
    let before = client.revision().await;
    let count = client.range(below(keys)).await.count;
    let writes = || put(format!("{keys}b"), "x").op();
    for (op, refusal) in bad {
        let nested = || all(vec![op.clone()]).op();
        refused(client.try_txn(all(vec![writes(), op.clone()])).await, refusal);
        refused(client.try_txn(all(vec![op.clone(), writes()])).await, refusal);
        refused(client.try_txn(all(vec![writes(), nested()])).await, refusal);
        assert_eq!(client.revision().await, before);
        assert_eq!(client.range(below(keys)).await.count, count);
    }
}

/// Checks that operations of the branch not taken reject nothing.
async fn check_unharmed(client: &Client, keys: &str, bad: Vec<(RequestOp, Refusal)>) {
    let before = client.revision().await;
    let other = bad.into_iter().map(|(op, _)| all(vec![op]).op()).take(1).collect();
    let never = exists(format!("{keys}none"), true);
    let writes = vec![put(format!("{keys}b"), "x").op()];
    let answer = client.txn(branch(vec![never], other, writes)).await;
    assert_eq!(revision(answer.header.as_ref()), before + 1);
}

#[tokio::test]
async fn s08_a_bad_put_rejects_the_whole_txn() {
    let server = Server::alone().await;
    let keys = prefix("s08");
    check_rejected(&server.client, &keys, bad_puts(&keys)).await;
    check_unharmed(&server.client, &keys, bad_puts(&keys)).await;
}

#[tokio::test]
async fn s08_a_bad_range_rejects_the_whole_txn() {
    // Of its own, because several members of etcd come apart by this.
    let Some(server) = Server::fresh("s08 (ranges)", &[]).await else { return };
    let keys = prefix("s08");
    let bad = bad_ranges(&server.client, &keys).await;
    check_rejected(&server.client, &keys, bad.clone()).await;
    check_unharmed(&server.client, &keys, bad).await;
}

#[tokio::test]
async fn s08_every_member_rejects_the_same_txns() {
    let Some(cluster) = Cluster::own("s08 (members)", 3).await else { return };
    let keys = prefix("s08");
    for client in cluster.clients() {
        check_rejected(client, &keys, bad_puts(&keys)).await;
    }
    if cluster.has(Feature::BadRangeRejectedByAll) {
        for client in cluster.clients() {
            let bad = bad_ranges(client, &keys).await;
            check_rejected(client, &keys, bad).await;
        }
    }
    let last = cluster.clients()[0].put(format!("{keys}last"), "x").await;
    for client in cluster.clients() {
        let kv = client.get(format!("{keys}last")).await.expect("the key");
        assert_eq!(kv.mod_revision, last, "a member has counted otherwise");
        assert!(client.get(format!("{keys}b")).await.is_none());
    }
    same_hash(&cluster, last).await;
}

#[tokio::test]
async fn s09_keeping_the_value_or_lease_needs_the_key() {
    let server = Server::shared().await;
    let client = &server.client;
    let key = prefix("s09");
    let keep_value = || PutRequest { ignore_value: true, ..put(&key, "") };
    let keep_lease = |value: &str| PutRequest { ignore_lease: true, ..put(&key, value) };
    refused(client.try_put(keep_value()).await, KEY_NOT_FOUND);
    refused(client.try_put(keep_lease("x")).await, KEY_NOT_FOUND);
    refused(client.try_put(PutRequest { value: bytes("x"), ..keep_value() }).await, VALUE_PROVIDED);
    refused(client.try_put(PutRequest { lease: 7, ..keep_lease("x") }).await, LEASE_PROVIDED);
    let in_txn = PutRequest { value: bytes("x"), ..keep_value() };
    refused(client.try_txn(all(vec![in_txn.op()])).await, VALUE_PROVIDED);

    let lease = client.grant(60).await;
    client.put_leased(&key, lease).await;
    client.try_put(keep_lease("changed")).await.expect("a put that keeps the lease");
    let kv = client.get(&key).await.expect("the key");
    assert_eq!((kv.value.as_ref(), kv.lease, kv.version), (&b"changed"[..], lease, 2));
    // Without ignore_lease the lease goes.
    client.try_put(keep_value()).await.expect("a put that keeps the value");
    let kv = client.get(&key).await.expect("the key");
    assert_eq!((kv.value.as_ref(), kv.lease, kv.version), (&b"changed"[..], 0, 3));
    let both = PutRequest { ignore_lease: true, ..keep_value() };
    client.try_put(both).await.expect("a put that keeps both");
    assert_eq!(client.get(&key).await.expect("the key").version, 4);

    client.delete(delete(&key)).await;
    refused(client.try_put(keep_value()).await, KEY_NOT_FOUND);
}

const RESULTS: [CompareResult; 4] =
    [CompareResult::Equal, CompareResult::Greater, CompareResult::Less, CompareResult::NotEqual];

/// Which of the four results hold of the value.
async fn holding(server: &Server, key: &str, end: &[u8], value: TargetUnion) -> [bool; 4] {
    let mut holds = [false; 4];
    for (result, holds) in RESULTS.into_iter().zip(&mut holds) {
        let comparison = Compare { range_end: bytes(end), ..compare(key, result, value.clone()) };
        *holds = server.client.txn(branch(vec![comparison], vec![], vec![])).await.succeeded;
    }
    holds
}

#[tokio::test]
async fn s10_a_missing_key_compares_as_zero_and_never_by_value() {
    let server = Server::shared().await;
    let keys = prefix("s10");
    let key = format!("{keys}none");
    let numbers: [fn(i64) -> TargetUnion; 4] = [
        TargetUnion::Version,
        TargetUnion::CreateRevision,
        TargetUnion::ModRevision,
        TargetUnion::Lease,
    ];
    for end in [&b""[..], &end_of(&keys)] {
        for number in numbers {
            assert_eq!(holding(&server, &key, end, number(0)).await, [true, false, false, false]);
            assert_eq!(holding(&server, &key, end, number(1)).await, [false, false, true, true]);
            assert_eq!(holding(&server, &key, end, number(-1)).await, [false, true, false, true]);
        }
        for value in ["", "x"] {
            let value = TargetUnion::Value(bytes(value));
            assert_eq!(holding(&server, &key, end, value).await, [false; 4]);
        }
    }
    let empty_key = compare("", CompareResult::Equal, TargetUnion::Version(0));
    let answer = server.client.try_txn(branch(vec![empty_key], vec![], vec![])).await;
    refused(answer, EMPTY_KEY);
}

#[tokio::test]
async fn s10_a_range_compares_when_every_key_does() {
    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("s10");
    let end = end_of(&keys);
    let key = |name: &str| format!("{keys}{name}");
    let lease = client.grant(60).await;
    client.put_leased(key("a"), lease).await;
    client.put_leased(key("b"), lease).await;
    let last = client.put_leased(key("b"), lease).await;

    let holds = holding(&server, &keys, &end, TargetUnion::Value(bytes("leased"))).await;
    assert_eq!(holds, [true, false, false, false]);
    // Versions 1 and 2: neither all equal nor all different.
    let holds = holding(&server, &keys, &end, TargetUnion::Version(1)).await;
    assert_eq!(holds, [false, false, false, false]);
    let holds = holding(&server, &keys, &end, TargetUnion::Version(3)).await;
    assert_eq!(holds, [false, false, true, true]);
    let holds = holding(&server, &keys, &end, TargetUnion::Lease(lease)).await;
    assert_eq!(holds, [true, false, false, false]);
    let holds = holding(&server, &keys, &end, TargetUnion::ModRevision(last)).await;
    assert_eq!(holds, [false, false, false, false]);
    let holds = holding(&server, &keys, &end, TargetUnion::CreateRevision(last)).await;
    assert_eq!(holds, [false, false, true, true]);

    // Without a value to compare with, zero is meant.
    let bare = |target: CompareTarget| Compare {
        target: target.into(),
        target_union: None,
        ..exists(key("a"), false)
    };
    for target in [CompareTarget::Version, CompareTarget::Value] {
        let comparison = bare(target);
        assert!(!client.txn(branch(vec![comparison], vec![], vec![])).await.succeeded);
    }
    // A value of another kind is none.
    let other = Compare { target: CompareTarget::Create.into(), ..exists(key("a"), true) };
    assert!(client.txn(branch(vec![other], vec![], vec![])).await.succeeded);
    // All of several must hold.
    let some = vec![exists(key("a"), true), exists(key("none"), true)];
    assert!(!client.txn(branch(some, vec![], vec![])).await.succeeded);
}

#[tokio::test]
async fn s11_a_txn_holds_at_most_128_operations() {
    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("s11");
    let gets = |count: usize| vec![one(format!("{keys}k")).op(); count];
    let compares = |count: usize| vec![exists(format!("{keys}k"), false); count];
    // Not the sum counts but the greatest of the three.
    client.txn(branch(compares(128), gets(128), gets(128))).await;
    for (compare, success, failure) in [(129, 0, 0), (0, 129, 0), (0, 0, 129)] {
        let txn = branch(compares(compare), gets(success), gets(failure));
        refused(client.try_txn(txn).await, TOO_MANY_OPERATIONS);
    }
    // What is inside gets the remainder.
    let nesting = |outer: usize, inner: TxnRequest| {
        let mut ops = gets(outer - 1);
        ops.push(inner.op());
        all(ops)
    };
    client.txn(nesting(100, all(gets(28)))).await;
    refused(client.try_txn(nesting(100, all(gets(29)))).await, TOO_MANY_OPERATIONS);
    let compared = branch(compares(29), vec![], vec![]);
    refused(client.try_txn(nesting(100, compared)).await, TOO_MANY_OPERATIONS);
    client.txn(nesting(1, nesting(100, all(gets(27))))).await;
    refused(client.try_txn(nesting(1, nesting(100, all(gets(28))))).await, TOO_MANY_OPERATIONS);
    refused(client.try_txn(nesting(128, all(gets(1)))).await, TOO_MANY_OPERATIONS);
    // Siblings do not add up.
    let siblings = vec![all(gets(126)).op(), all(gets(126)).op()];
    client.txn(all(siblings)).await;
}

#[tokio::test]
async fn s11_an_operation_must_say_what_it_is() {
    let server = Server::shared().await;
    let client = &server.client;
    let nothing = || RequestOp { request: None };
    refused(client.try_txn(all(vec![nothing()])).await, KEY_NOT_FOUND);
    refused(client.try_txn(branch(vec![], vec![], vec![nothing()])).await, KEY_NOT_FOUND);
    refused(client.try_txn(all(vec![all(vec![nothing()]).op()])).await, KEY_NOT_FOUND);
    for op in [one("").op(), put("", "x").op(), delete("").op()] {
        refused(client.try_txn(all(vec![op])).await, EMPTY_KEY);
    }
}
