//! Random histories, in which every operation meets few keys, so that they
//! meet each other.

use bytes::Bytes;
use metastore::proto::{
    CheckpointLeases, Compact, Condition, Delete, ExpireLeases, GrantLease, LeaseRenewal, Put,
    RenewLeases, RevokeLease, SetAlarm,
    command::Op,
    etcdserverpb::{
        Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
        compare::TargetUnion, request_op::Request,
    },
};
use proptest::{collection::vec, prelude::*, sample::select};

/// What happens next.
#[derive(Debug, Clone)]
pub enum Action {
    /// Log entries of a batch, each of several commands. Revisions in them are
    /// to be [placed](place).
    Apply(Vec<Vec<Op>>),
    /// Many puts of one key, so that its history is long.
    Burst(Bytes, u8),
    /// Another leader.
    NewTerm,
    /// What is applied becomes durable.
    Flush,
    /// What nobody needs any more goes from the disk.
    Forget,
    /// The process ends in good order and starts again.
    Restart,
    /// The machine loses power; the log brings back what that loses.
    Crash,
    /// All reads are compared.
    Check,
}

/// Revisions at and above this one count from the store's revision, so that
/// most of them are around it: `RELATIVE + 20 + n` is `n` after it.
const RELATIVE: i64 = 1 << 40;

fn any_relative() -> impl Strategy<Value = i64> {
    prop_oneof![3 => 0..23_i64, 1 => 10..21_i64].prop_map(|n| RELATIVE + n)
}

/// The revision that was meant.
fn placed(revision: i64, newest: u64) -> i64 {
    if revision < RELATIVE { revision } else { (newest as i64 + revision - RELATIVE - 20).max(0) }
}

/// Puts the revisions of a command where they are meant to be.
pub fn place(op: &mut Op, newest: u64) {
    match op {
        Op::Put(Put { condition: Some(given), .. })
        | Op::Delete(Delete { condition: Some(given), .. }) => {
            for revision in given.mod_revisions.iter_mut().chain(&mut given.not_mod_revisions) {
                *revision = placed(*revision as i64, newest) as u64;
            }
        }
        Op::Compact(compact) => {
            compact.revision = placed(compact.revision as i64, newest) as u64;
        }
        Op::Txn(txn) => place_txn(txn, newest),
        _ => {}
    }
}

pub fn place_txn(txn: &mut TxnRequest, newest: u64) {
    for compare in &mut txn.compare {
        if let Some(
            TargetUnion::ModRevision(revision)
            | TargetUnion::CreateRevision(revision)
            | TargetUnion::Version(revision),
        ) = &mut compare.target_union
        {
            *revision = placed(*revision, newest);
        }
    }
    for op in txn.success.iter_mut().chain(&mut txn.failure) {
        match &mut op.request {
            Some(Request::RequestRange(range)) => place_range(range, newest),
            Some(Request::RequestTxn(txn)) => place_txn(txn, newest),
            _ => {}
        }
    }
}

pub fn place_range(range: &mut RangeRequest, newest: u64) {
    for revision in [
        &mut range.revision,
        &mut range.min_mod_revision,
        &mut range.max_mod_revision,
        &mut range.min_create_revision,
        &mut range.max_create_revision,
    ] {
        *revision = placed(*revision, newest);
    }
}

pub const LEASES: [i64; 4] = [1, 2, -3, i64::MAX];

fn any_key() -> impl Strategy<Value = Bytes> {
    select(vec![&b"a"[..], b"b", b"c", b"a\0", b"\0", b"\xff\xff", b""]).prop_map(Bytes::from)
}

fn any_end() -> impl Strategy<Value = Bytes> {
    select(vec![&b""[..], b"", b"\0", b"b", b"c\0", b"a", b"\xff"]).prop_map(Bytes::from)
}

fn any_value() -> impl Strategy<Value = Bytes> {
    select(vec![&b""[..], b"x", b"y", b"zz", b"\0"]).prop_map(Bytes::from)
}

fn any_lease() -> impl Strategy<Value = i64> {
    prop_oneof![3 => Just(0), 3 => select(&LEASES[..])]
}

fn seldom() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.2)
}

fn any_condition() -> impl Strategy<Value = Option<Condition>> {
    let revisions = || vec(any_relative().prop_map(|revision| revision as u64), 0..3);
    let given = (revisions(), any::<bool>(), any::<bool>(), revisions()).prop_map(
        |(mod_revisions, exists, absent, not_mod_revisions)| {
            let absent = absent && !exists;
            Condition { mod_revisions, exists, absent, not_mod_revisions }
        },
    );
    prop_oneof![3 => Just(None), 1 => given.prop_map(Some)]
}

pub fn any_range() -> impl Strategy<Value = RangeRequest> {
    let bound = || prop_oneof![4 => Just(0), 1 => any_relative()];
    let revision = prop_oneof![1 => Just(0), 2 => any_relative()];
    let options = (-1..5_i64, 0..3_i32, 0..5_i32, seldom(), seldom());
    (any_key(), any_end(), revision, options, [bound(), bound(), bound(), bound()]).prop_map(
        |(key, range_end, revision, (limit, sort_order, sort_target, keys_only, count_only), b)| {
            RangeRequest {
                key,
                range_end,
                limit,
                revision,
                sort_order,
                sort_target,
                serializable: false,
                keys_only,
                count_only,
                min_mod_revision: b[0],
                max_mod_revision: b[1],
                min_create_revision: b[2],
                max_create_revision: b[3],
            }
        },
    )
}

fn any_put() -> impl Strategy<Value = PutRequest> {
    (any_key(), any_value(), any_lease(), any::<bool>(), seldom(), seldom()).prop_map(
        |(key, value, lease, prev_kv, ignore_value, ignore_lease)| PutRequest {
            key,
            value,
            lease,
            prev_kv,
            ignore_value,
            ignore_lease,
        },
    )
}

fn any_delete_range() -> impl Strategy<Value = DeleteRangeRequest> {
    (any_key(), any_end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| DeleteRangeRequest {
        key,
        range_end,
        prev_kv,
    })
}

fn any_compare() -> impl Strategy<Value = Compare> {
    let number = || prop_oneof![0..3_i64, any_relative()];
    let union = prop_oneof![
        number().prop_map(TargetUnion::Version),
        number().prop_map(TargetUnion::CreateRevision),
        number().prop_map(TargetUnion::ModRevision),
        any_value().prop_map(TargetUnion::Value),
        any_lease().prop_map(TargetUnion::Lease),
    ];
    let end = prop_oneof![2 => Just(Bytes::new()), 1 => any_end()];
    (0..4_i32, prop::option::weighted(0.9, union), seldom(), 0..5_i32, any_key(), end).prop_map(
        |(result, target_union, mixed, other, key, range_end)| {
            let target = match &target_union {
                _ if mixed => other,
                Some(TargetUnion::Version(_)) | None => 0,
                Some(TargetUnion::CreateRevision(_)) => 1,
                Some(TargetUnion::ModRevision(_)) => 2,
                Some(TargetUnion::Value(_)) => 3,
                Some(TargetUnion::Lease(_)) => 4,
            };
            Compare { result, target, key, range_end, target_union }
        },
    )
}

/// A transaction; one that only reads, if so wished.
pub fn any_txn(writes: bool) -> impl Strategy<Value = TxnRequest> {
    let weight = u32::from(writes);
    let simple = prop_oneof![
        3 => any_range().prop_map(Request::RequestRange),
        8 * weight => any_put().prop_map(Request::RequestPut),
        3 * weight => any_delete_range().prop_map(Request::RequestDeleteRange),
    ];
    let op = |request| RequestOp { request: Some(request) };
    let leaf = vec(simple.clone().prop_map(op), 0..4);
    let compares = || vec(any_compare(), 0..3);
    let inner = (compares(), leaf.clone(), leaf)
        .prop_map(|(compare, success, failure)| TxnRequest { compare, success, failure });
    let request = prop_oneof![5 => simple, 2 => inner.prop_map(Request::RequestTxn)];
    let op = prop_oneof![
        60 => request.prop_map(op),
        1 => Just(RequestOp { request: None }),
    ];
    let branch = vec(op, 0..5);
    (compares(), branch.clone(), branch).prop_map(|(compare, success, failure)| TxnRequest {
        compare,
        success,
        failure,
    })
}

fn any_lease_op() -> impl Strategy<Value = Op> {
    let id = || select(&LEASES[..]);
    let seen = (id(), 0..2_u64, -1..9_i64).prop_map(|(id, renewal, remaining_s)| LeaseRenewal {
        id,
        renewal,
        remaining_s,
    });
    let seen = vec(seen, 1..4);
    prop_oneof![
        6 => (id(), 0..9_i64).prop_map(|(id, ttl_s)| Op::GrantLease(GrantLease { id, ttl_s })),
        1 => id().prop_map(|id| Op::RevokeLease(RevokeLease { id })),
        1 => vec(id(), 1..3).prop_map(|ids| Op::RenewLeases(RenewLeases { ids })),
        1 => (1..3_u64, seen.clone())
            .prop_map(|(term, leases)| Op::ExpireLeases(ExpireLeases { term, leases })),
        2 => (1..3_u64, seen)
            .prop_map(|(term, leases)| Op::CheckpointLeases(CheckpointLeases { term, leases })),
    ]
}

fn any_op() -> impl Strategy<Value = Op> {
    let put = (any_key(), any_value(), any_condition(), any_lease(), seldom()).prop_map(
        |(key, value, condition, lease, grant)| {
            let grant_ttl_s = if grant { 5 } else { 0 };
            Op::Put(Put { key, value, condition, lease, grant_ttl_s })
        },
    );
    let alarm = (1..3_u64, 0..4_i32, prop::bool::weighted(0.3))
        .prop_map(|(member, alarm, active)| Op::SetAlarm(SetAlarm { member, alarm, active }));
    prop_oneof![
        6 => put,
        3 => (any_key(), any_condition())
            .prop_map(|(key, condition)| Op::Delete(Delete { key, condition })),
        8 => any_put().prop_map(Op::PutRequest),
        3 => any_delete_range().prop_map(Op::DeleteRange),
        6 => any_txn(true).prop_map(Op::Txn),
        1 => any_relative().prop_map(|at| Op::Compact(Compact { revision: at as u64 })),
        1 => Just(Op::Compact(Compact { revision: 0 })),
        6 => any_lease_op(),
        1 => alarm,
    ]
}

pub fn any_action() -> impl Strategy<Value = Action> {
    let apply = vec(vec(any_op(), 0..5), 1..5);
    prop_oneof![
        20 => apply.prop_map(Action::Apply),
        2 => (any_key(), 5..60_u8).prop_map(|(key, times)| Action::Burst(key, times)),
        1 => Just(Action::NewTerm),
        1 => Just(Action::Flush),
        3 => Just(Action::Forget),
        1 => Just(Action::Restart),
        1 => Just(Action::Crash),
        1 => Just(Action::Check),
    ]
}
