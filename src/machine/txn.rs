//! The Txn request of etcd.
//!
//! Three steps, as etcd takes them: all comparisons of the whole tree, on the
//! state before it, choose what is to be done; all of that is checked; then it
//! is carried out in order, each operation seeing those before it.

use super::{
    kv::{check_put, delete_range, etcd_put},
    moment::{Keys, Moment},
    range::{header, range},
    stop::Stopped,
    writes::Writes,
};
use crate::{
    proto::{
        KeyRecord, Refused,
        etcdserverpb::{
            Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseOp,
            TxnRequest, TxnResponse,
            compare::{CompareResult, CompareTarget, TargetUnion},
            request_op::Request,
            response_op::Response,
        },
    },
    storage::Reader,
};

/// What a transaction comes down to, once its comparisons are made.
struct Chosen<'a> {
    succeeded: bool,
    ops: Vec<Op<'a>>,
}

enum Op<'a> {
    Range(&'a RangeRequest),
    Put(&'a PutRequest),
    DeleteRange(&'a DeleteRangeRequest),
    Txn(Chosen<'a>),
}

/// Carries out a transaction, with an answer of at most `max_bytes`. After a
/// refusal the writes are to be thrown away.
pub(super) fn txn<R: Reader>(
    writes: &mut Writes<'_, R>,
    request: &TxnRequest,
    mut max_bytes: u64,
) -> Stopped<TxnResponse> {
    let mut chosen = choose(&writes.moment(), request)?;
    if mutant!(CompareAfterWrites) {
        let mut ahead = writes.nested();
        carry_out(&mut ahead, &chosen, &mut max_bytes.clone())?;
        chosen = choose(&ahead.moment(), request)?;
    }
    check_puts(writes, &chosen)?;
    check_ranges(&writes.moment(), &chosen)?;
    carry_out(writes, &chosen, &mut max_bytes)
}

/// Whether a transaction could put a key, whichever way it goes.
pub(super) fn has_put(request: &TxnRequest) -> bool {
    any(request, &|request| matches!(request, Request::RequestPut(_)))
}

/// Whether a transaction could change anything, whichever way it goes.
pub(super) fn has_write(request: &TxnRequest) -> bool {
    let writes = |request: &Request| {
        matches!(request, Request::RequestPut(_) | Request::RequestDeleteRange(_))
    };
    any(request, &writes)
}

/// The oldest revision that a transaction could read by its number.
pub(super) fn oldest_revision(request: &TxnRequest) -> Option<u64> {
    operations(request)
        .filter_map(|request| match request {
            Request::RequestRange(range) => {
                u64::try_from(range.revision).ok().filter(|&revision| revision != 0)
            }
            Request::RequestTxn(txn) => oldest_revision(txn),
            Request::RequestPut(_) | Request::RequestDeleteRange(_) => None,
        })
        .min()
}

pub(super) fn operations(request: &TxnRequest) -> impl Iterator<Item = &Request> {
    let branches = request.success.iter().chain(&request.failure);
    branches.filter_map(|op| op.request.as_ref())
}

fn any(request: &TxnRequest, is: &dyn Fn(&Request) -> bool) -> bool {
    operations(request).any(|request| match request {
        Request::RequestTxn(txn) => any(txn, is),
        request => is(request),
    })
}

fn choose<'a, R: Reader>(moment: &Moment<'_, R>, request: &'a TxnRequest) -> Stopped<Chosen<'a>> {
    let mut succeeded = true;
    for compare in &request.compare {
        if !holds(moment, compare)? {
            succeeded = false;
            break;
        }
    }
    let branch = if succeeded { &request.success } else { &request.failure };
    let op = |op: &'a RequestOp| match op.request.as_ref() {
        Some(Request::RequestRange(range)) => Ok(Op::Range(range)),
        Some(Request::RequestPut(put)) => Ok(Op::Put(put)),
        Some(Request::RequestDeleteRange(delete)) => Ok(Op::DeleteRange(delete)),
        Some(Request::RequestTxn(txn)) => choose(moment, txn).map(Op::Txn),
        None => Err(Refused::InvalidOperation.into()),
    };
    let ops = branch.iter().map(op).collect::<Stopped<_>>()?;
    Ok(Chosen { succeeded, ops })
}

/// Whether a comparison holds of every key it names. Of a key that does not
/// exist the numbers are 0, and nothing holds of its value.
fn holds<R: Reader>(moment: &Moment<'_, R>, compare: &Compare) -> Stopped<bool> {
    let keys = Keys::new(&compare.key, &compare.range_end);
    let mut found = false;
    for record in moment.newest().records(&keys) {
        found = true;
        if !holds_of(compare, &record?.1) {
            return Ok(false);
        }
    }
    let of_none =
        || compare.target() != CompareTarget::Value && holds_of(compare, &KeyRecord::default());
    Ok(found || of_none())
}

fn holds_of(compare: &Compare, record: &KeyRecord) -> bool {
    use TargetUnion as Given;

    // A value of another kind than the target counts as none at all.
    let given = compare.target_union.as_ref();
    let number = |actual: i64, given: Option<i64>| actual.cmp(&given.unwrap_or(0));
    let order = match compare.target() {
        CompareTarget::Version => number(
            record.version.cast_signed(),
            given.and_then(|given| if let Given::Version(n) = given { Some(*n) } else { None }),
        ),
        CompareTarget::Create => number(
            record.create_revision.cast_signed(),
            given.and_then(|g| if let Given::CreateRevision(n) = g { Some(*n) } else { None }),
        ),
        CompareTarget::Mod => number(
            record.mod_revision.cast_signed(),
            given.and_then(|given| if let Given::ModRevision(n) = given { Some(*n) } else { None }),
        ),
        CompareTarget::Lease => number(
            record.lease,
            given.and_then(|given| if let Given::Lease(n) = given { Some(*n) } else { None }),
        ),
        CompareTarget::Value => {
            let value = given.and_then(|g| if let Given::Value(v) = g { Some(v) } else { None });
            record.value[..].cmp(value.map_or(&[], |value| &value[..]))
        }
    };
    match compare.result() {
        CompareResult::Equal => order.is_eq(),
        CompareResult::Greater => order.is_gt(),
        CompareResult::Less => order.is_lt(),
        CompareResult::NotEqual => order.is_ne(),
    }
}

fn check_puts<R: Reader>(writes: &Writes<'_, R>, chosen: &Chosen<'_>) -> Stopped<()> {
    chosen.ops.iter().try_for_each(|op| match op {
        Op::Put(put) => check_put(writes, put),
        Op::Txn(txn) => check_puts(writes, txn),
        Op::Range(_) | Op::DeleteRange(_) => Ok(()),
    })
}

fn check_ranges<R: Reader>(moment: &Moment<'_, R>, chosen: &Chosen<'_>) -> Stopped<()> {
    chosen.ops.iter().try_for_each(|op| match op {
        Op::Range(range) => Ok(moment.check(range.revision)?),
        Op::Txn(txn) => check_ranges(moment, txn),
        Op::Put(_) | Op::DeleteRange(_) => Ok(()),
    })
}

fn carry_out<R: Reader>(
    writes: &mut Writes<'_, R>,
    chosen: &Chosen<'_>,
    max_bytes: &mut u64,
) -> Stopped<TxnResponse> {
    let mut responses = Vec::with_capacity(chosen.ops.len());
    for op in &chosen.ops {
        let response = match op {
            Op::Range(request) => {
                Response::ResponseRange(range(&writes.moment(), request, max_bytes)?)
            }
            Op::Put(put) => Response::ResponsePut(etcd_put(writes, put, max_bytes)?),
            Op::DeleteRange(delete) => {
                Response::ResponseDeleteRange(delete_range(writes, delete, max_bytes)?)
            }
            Op::Txn(txn) => Response::ResponseTxn(TxnResponse {
                // As in etcd, only what is inside it carries a revision.
                header: Some(header(0)),
                ..carry_out(writes, txn, max_bytes)?
            }),
        };
        responses.push(ResponseOp { response: Some(response) });
    }
    let header = Some(header(writes.revision()));
    Ok(TxnResponse { header, succeeded: chosen.succeeded, responses })
}
