//! Short forms of requests.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;

use super::wire::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
};

/// A prefix of keys that no other test, and no other run, uses.
pub fn prefix(topic: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{topic}/{}-{}-{next}/", std::process::id(), now.as_nanos())
}

/// A lease id that nobody has.
pub fn unused_lease() -> i64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let drawn = now.as_nanos() as u64 ^ (u64::from(std::process::id()) << 40) ^ (next << 20);
    (drawn & 0x0fff_ffff_ffff_ffff) as i64
}

pub fn bytes(text: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(text.as_ref())
}

/// The end of the range of keys with this prefix, whose last byte is below 255.
pub fn end_of(prefix: impl AsRef<[u8]>) -> Bytes {
    let mut end = prefix.as_ref().to_vec();
    *end.last_mut().expect("a prefix") += 1;
    end.into()
}

/// One key.
pub fn one(key: impl AsRef<[u8]>) -> RangeRequest {
    RangeRequest { key: bytes(key), ..RangeRequest::default() }
}

/// The keys with this prefix.
pub fn below(prefix: impl AsRef<[u8]>) -> RangeRequest {
    RangeRequest { range_end: end_of(&prefix), ..one(prefix) }
}

pub fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> PutRequest {
    PutRequest { key: bytes(key), value: bytes(value), ..PutRequest::default() }
}

pub fn delete(key: impl AsRef<[u8]>) -> DeleteRangeRequest {
    DeleteRangeRequest { key: bytes(key), ..DeleteRangeRequest::default() }
}

pub fn delete_below(prefix: impl AsRef<[u8]>) -> DeleteRangeRequest {
    DeleteRangeRequest { range_end: end_of(&prefix), ..delete(prefix) }
}

pub fn compaction(revision: i64) -> CompactionRequest {
    CompactionRequest { revision, physical: false }
}

/// What can be an operation of a transaction.
pub trait Operation {
    fn op(self) -> RequestOp;
}

impl Operation for RangeRequest {
    fn op(self) -> RequestOp {
        RequestOp { request: Some(Request::RequestRange(self)) }
    }
}

impl Operation for PutRequest {
    fn op(self) -> RequestOp {
        RequestOp { request: Some(Request::RequestPut(self)) }
    }
}

impl Operation for DeleteRangeRequest {
    fn op(self) -> RequestOp {
        RequestOp { request: Some(Request::RequestDeleteRange(self)) }
    }
}

impl Operation for TxnRequest {
    fn op(self) -> RequestOp {
        RequestOp { request: Some(Request::RequestTxn(self)) }
    }
}

/// A transaction without comparisons.
pub fn all(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success, ..TxnRequest::default() }
}

/// A transaction with these comparisons and branches.
pub fn branch(
    compare: Vec<Compare>,
    success: Vec<RequestOp>,
    failure: Vec<RequestOp>,
) -> TxnRequest {
    TxnRequest { compare, success, failure }
}

/// A comparison; the target follows from the kind of the value.
pub fn compare(key: impl AsRef<[u8]>, result: CompareResult, value: TargetUnion) -> Compare {
    let target = match value {
        TargetUnion::Version(_) => CompareTarget::Version,
        TargetUnion::CreateRevision(_) => CompareTarget::Create,
        TargetUnion::ModRevision(_) => CompareTarget::Mod,
        TargetUnion::Value(_) => CompareTarget::Value,
        TargetUnion::Lease(_) => CompareTarget::Lease,
    };
    Compare {
        result: result.into(),
        target: target.into(),
        key: bytes(key),
        target_union: Some(value),
        ..Compare::default()
    }
}

/// The key exists, or does not.
pub fn exists(key: impl AsRef<[u8]>, yes: bool) -> Compare {
    let result = if yes { CompareResult::Greater } else { CompareResult::Equal };
    compare(key, result, TargetUnion::Version(0))
}
