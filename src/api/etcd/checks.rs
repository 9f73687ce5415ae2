//! What is wrong with a request can be seen before it is carried out.
//!
//! The state machine relies on none of it; but a request refused here costs
//! the cluster nothing, and gets etcd's own error.

use std::{collections::BTreeSet, ops::Bound};

use bytes::Bytes;
use prost::Message;

use super::{MAX_TXN_OPS, status::Error};
use crate::proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    range_request::{SortOrder, SortTarget},
    request_op::Request,
};

/// A `range_end` that means: to the end of all keys.
const TO_THE_END: &[u8] = b"\0";

/// Checks that a request to write is no larger than allowed, in bytes.
pub(super) fn size(request: &impl Message, max_request_bytes: u64) -> Result<(), Error> {
    if request.encoded_len() as u64 > max_request_bytes {
        return Err(Error::RequestTooLarge);
    }
    Ok(())
}

pub(super) fn range(request: &RangeRequest) -> Result<(), Error> {
    not_empty(&request.key)?;
    let known = SortOrder::try_from(request.sort_order).is_ok()
        && SortTarget::try_from(request.sort_target).is_ok();
    if known { Ok(()) } else { Err(Error::InvalidSortOption) }
}

pub(super) fn put(request: &PutRequest) -> Result<(), Error> {
    not_empty(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

pub(super) fn delete_range(request: &DeleteRangeRequest) -> Result<(), Error> {
    not_empty(&request.key)
}

/// Checks a transaction with all that is nested in it, in both branches of
/// each, whichever will be taken.
pub(super) fn txn(request: &TxnRequest) -> Result<(), Error> {
    operations(request, MAX_TXN_OPS)?;
    branch_writes(&request.success)?;
    branch_writes(&request.failure)?;
    Ok(())
}

/// Whether a transaction writes nothing whichever way it goes.
pub(super) fn is_read_only(request: &TxnRequest) -> bool {
    every_operation(request, &|operation| match operation {
        Request::RequestRange(_) => true,
        Request::RequestTxn(nested) => is_read_only(nested),
        Request::RequestPut(_) | Request::RequestDeleteRange(_) => false,
    })
}

/// Whether one member alone may answer a transaction: it writes nothing, and
/// all its ranges allow it.
pub(super) fn is_serializable(request: &TxnRequest) -> bool {
    every_operation(request, &|operation| match operation {
        Request::RequestRange(range) => range.serializable,
        Request::RequestTxn(nested) => is_serializable(nested),
        Request::RequestPut(_) | Request::RequestDeleteRange(_) => false,
    })
}

fn every_operation(request: &TxnRequest, holds: &dyn Fn(&Request) -> bool) -> bool {
    let operations = request.success.iter().chain(&request.failure);
    operations.filter_map(|operation| operation.request.as_ref()).all(holds)
}

fn not_empty(key: &[u8]) -> Result<(), Error> {
    if key.is_empty() { Err(Error::EmptyKey) } else { Ok(()) }
}

/// Checks each operation for itself, and that there are not too many. What is
/// nested gets the places that its parent leaves.
fn operations(request: &TxnRequest, places: usize) -> Result<(), Error> {
    let TxnRequest { compare, success, failure } = request;
    let taken = compare.len().max(success.len()).max(failure.len());
    let left = places.checked_sub(taken).ok_or(Error::TooManyOps)?;
    compare.iter().try_for_each(|compare| not_empty(&compare.key))?;
    success.iter().chain(failure).try_for_each(|RequestOp { request }| match request {
        Some(Request::RequestRange(request)) => range(request),
        Some(Request::RequestPut(request)) => put(request),
        Some(Request::RequestDeleteRange(request)) => delete_range(request),
        Some(Request::RequestTxn(request)) => operations(request, left),
        None => Err(Error::KeyNotFound),
    })
}

/// What may be written by one branch of a transaction.
#[derive(Default)]
struct Writes {
    puts: BTreeSet<Bytes>,
    /// Ranges of keys that are deleted; none is empty.
    deletes: Vec<(Bytes, Bound<Bytes>)>,
}

/// What a branch may write, with all that is nested in it.
///
/// # Errors
/// When it could put a key twice, or put a key that it deletes.
fn branch_writes(operations: &[RequestOp]) -> Result<Writes, Error> {
    let mut writes = Writes::default();
    for RequestOp { request } in operations {
        match request {
            Some(Request::RequestPut(put)) => writes.put(put.key.clone())?,
            Some(Request::RequestDeleteRange(delete)) => writes.delete(delete),
            Some(Request::RequestTxn(nested)) => {
                let mut either = branch_writes(&nested.success)?;
                either.join(branch_writes(&nested.failure)?);
                writes.add(either)?;
            }
            Some(Request::RequestRange(_)) | None => {}
        }
    }
    let put_and_deleted = |(from, to): &(Bytes, Bound<Bytes>)| {
        writes.puts.range((Bound::Included(from.clone()), to.clone())).next().is_some()
    };
    if writes.deletes.iter().any(put_and_deleted) {
        return Err(Error::DuplicateKey);
    }
    Ok(writes)
}

impl Writes {
    fn put(&mut self, key: Bytes) -> Result<(), Error> {
        if self.puts.insert(key) { Ok(()) } else { Err(Error::DuplicateKey) }
    }

    fn delete(&mut self, request: &DeleteRangeRequest) {
        let from = request.key.clone();
        let to = match request.range_end.as_ref() {
            b"" => Bound::Included(from.clone()),
            TO_THE_END => Bound::Unbounded,
            end if end <= from.as_ref() => return,
            _ => Bound::Excluded(request.range_end.clone()),
        };
        self.deletes.push((from, to));
    }

    /// Adds what happens in the same branch.
    fn add(&mut self, mut other: Self) -> Result<(), Error> {
        // The larger set stays, which bounds the work by the depth.
        if other.puts.len() > self.puts.len() {
            std::mem::swap(&mut self.puts, &mut other.puts);
        }
        self.deletes.append(&mut other.deletes);
        other.puts.into_iter().try_for_each(|key| self.put(key))
    }

    /// Adds what happens instead: both may write the same.
    fn join(&mut self, mut other: Self) {
        self.deletes.append(&mut other.deletes);
        self.puts.append(&mut other.puts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::Compare;

    fn get(key: &str) -> RequestOp {
        op(Request::RequestRange(RangeRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            ..RangeRequest::default()
        }))
    }

    fn put_of(key: &str) -> RequestOp {
        op(Request::RequestPut(PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            ..PutRequest::default()
        }))
    }

    fn delete_of(key: &str, range_end: &str) -> RequestOp {
        op(Request::RequestDeleteRange(DeleteRangeRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            range_end: Bytes::copy_from_slice(range_end.as_bytes()),
            prev_kv: false,
        }))
    }

    fn op(request: Request) -> RequestOp {
        RequestOp { request: Some(request) }
    }

    fn either(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> TxnRequest {
        TxnRequest { compare: Vec::new(), success, failure }
    }

    fn all(success: Vec<RequestOp>) -> TxnRequest {
        either(success, Vec::new())
    }

    fn nested(request: TxnRequest) -> RequestOp {
        op(Request::RequestTxn(request))
    }

    #[test]
    fn a_put_keeps_or_gives() {
        let key = Bytes::from("k");
        let given = PutRequest { key, value: "v".into(), lease: 7, ..PutRequest::default() };
        assert_eq!(put(&given), Ok(()));
        let keeps_value = PutRequest { ignore_value: true, ..given.clone() };
        assert_eq!(put(&keeps_value), Err(Error::ValueProvided));
        let keeps_lease = PutRequest { ignore_lease: true, ..given.clone() };
        assert_eq!(put(&keeps_lease), Err(Error::LeaseProvided));
        assert_eq!(put(&PutRequest { key: Bytes::new(), ..given }), Err(Error::EmptyKey));
    }

    #[test]
    fn sort_options_are_known_ones() {
        let sorted = |sort_order, sort_target| {
            range(&RangeRequest {
                key: "k".into(),
                sort_order,
                sort_target,
                ..RangeRequest::default()
            })
        };
        assert_eq!(sorted(2, 4), Ok(()));
        assert_eq!(sorted(3, 0), Err(Error::InvalidSortOption));
        assert_eq!(sorted(0, -1), Err(Error::InvalidSortOption));
    }

    #[test]
    fn exactly_the_limit_may_be_sent() {
        let request = PutRequest { key: "key".into(), ..PutRequest::default() };
        let bytes = request.encoded_len() as u64;
        assert_eq!(size(&request, bytes), Ok(()));
        assert_eq!(size(&request, bytes - 1), Err(Error::RequestTooLarge));
    }

    #[test]
    fn a_branch_writes_a_key_once() {
        let puts = || put_of("b");
        for branch in [
            vec![puts(), puts()],
            vec![puts(), delete_of("b", "")],
            vec![delete_of("b", ""), puts()],
            vec![delete_of("a", "c"), puts()],
            vec![puts(), delete_of("a", "\0")],
            vec![puts(), nested(all(vec![puts()]))],
            vec![nested(all(vec![puts()])), puts()],
            vec![nested(all(vec![puts()])), nested(either(vec![], vec![puts()]))],
            vec![nested(all(vec![puts()])), nested(all(vec![delete_of("a", "c")]))],
            vec![nested(all(vec![nested(all(vec![delete_of("a", "c")]))])), puts()],
        ] {
            assert_eq!(txn(&all(branch.clone())), Err(Error::DuplicateKey), "{branch:?}");
            let other = either(vec![], branch.clone());
            assert_eq!(txn(&other), Err(Error::DuplicateKey), "{branch:?}");
        }
    }

    #[test]
    fn what_cannot_happen_twice_is_allowed() {
        let puts = || put_of("b");
        for allowed in [
            either(vec![puts()], vec![puts()]),
            all(vec![nested(either(vec![puts()], vec![puts()]))]),
            all(vec![puts(), put_of("c"), get("b"), get("b")]),
            all(vec![delete_of("a", "b"), puts(), delete_of("c", "\0")]),
            // An empty range deletes nothing.
            all(vec![delete_of("c", "a"), delete_of("b", "b"), puts()]),
            all(vec![delete_of("a", ""), delete_of("a", "c"), delete_of("a", "\0")]),
        ] {
            assert_eq!(txn(&allowed), Ok(()), "{allowed:?}");
        }
    }

    #[test]
    fn nested_operations_get_the_remainder() {
        let gets = |count| vec![get("k"); count];
        let around = |outer: usize, inner: TxnRequest| {
            let mut operations = gets(outer - 1);
            operations.push(nested(inner));
            all(operations)
        };
        assert_eq!(txn(&all(gets(128))), Ok(()));
        assert_eq!(txn(&either(gets(128), gets(128))), Ok(()));
        assert_eq!(txn(&all(gets(129))), Err(Error::TooManyOps));
        assert_eq!(txn(&around(100, all(gets(28)))), Ok(()));
        assert_eq!(txn(&around(100, all(gets(29)))), Err(Error::TooManyOps));
        assert_eq!(txn(&around(128, all(vec![]))), Ok(()));
        let compared = TxnRequest {
            compare: vec![Compare { key: "k".into(), ..Compare::default() }; 29],
            ..TxnRequest::default()
        };
        assert_eq!(txn(&around(100, compared)), Err(Error::TooManyOps));
    }

    #[test]
    fn operations_are_complete() {
        let nothing = RequestOp { request: None };
        assert_eq!(txn(&all(vec![nothing.clone()])), Err(Error::KeyNotFound));
        let deep = all(vec![nested(either(vec![], vec![nothing]))]);
        assert_eq!(txn(&deep), Err(Error::KeyNotFound));
        assert_eq!(txn(&all(vec![get("")])), Err(Error::EmptyKey));
        let compare = vec![Compare::default()];
        let compared = TxnRequest { compare, ..TxnRequest::default() };
        assert_eq!(txn(&compared), Err(Error::EmptyKey));
    }

    #[test]
    fn txns_that_only_read_are_recognised() {
        let local = op(Request::RequestRange(RangeRequest {
            key: "k".into(),
            serializable: true,
            ..RangeRequest::default()
        }));
        let reads = all(vec![get("a"), nested(all(vec![local.clone()]))]);
        assert!(is_read_only(&reads) && !is_serializable(&reads));
        let local = all(vec![local.clone(), nested(either(vec![], vec![local]))]);
        assert!(is_read_only(&local) && is_serializable(&local));
        assert!(!is_read_only(&either(vec![], vec![put_of("k")])));
        assert!(!is_read_only(&all(vec![nested(all(vec![delete_of("k", "")]))])));
        assert!(is_read_only(&all(vec![])) && is_serializable(&all(vec![])));
    }
}
