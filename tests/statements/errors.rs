//! The errors of the API. Clients match code and text exactly.

use std::fmt::Debug;

use tonic::{Code, Status};

/// An error as a client sees it.
pub type Refusal = (Code, &'static str);

pub const EMPTY_KEY: Refusal = (Code::InvalidArgument, "etcdserver: key is not provided");
pub const KEY_NOT_FOUND: Refusal = (Code::InvalidArgument, "etcdserver: key not found");
pub const VALUE_PROVIDED: Refusal = (Code::InvalidArgument, "etcdserver: value is provided");
pub const LEASE_PROVIDED: Refusal = (Code::InvalidArgument, "etcdserver: lease is provided");
pub const TOO_MANY_OPERATIONS: Refusal =
    (Code::InvalidArgument, "etcdserver: too many operations in txn request");
pub const DUPLICATE_KEY: Refusal =
    (Code::InvalidArgument, "etcdserver: duplicate key given in txn request");
pub const INVALID_SORT_OPTION: Refusal = (Code::InvalidArgument, "etcdserver: invalid sort option");
pub const REQUEST_TOO_LARGE: Refusal = (Code::InvalidArgument, "etcdserver: request is too large");
pub const BAD_MEMBER_URLS: Refusal =
    (Code::InvalidArgument, "etcdserver: given member URLs are invalid");
pub const COMPACTED: Refusal =
    (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
pub const FUTURE_REVISION: Refusal =
    (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision");
pub const TTL_TOO_LARGE: Refusal = (Code::OutOfRange, "etcdserver: too large lease TTL");
pub const NO_SPACE: Refusal =
    (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
pub const LEASE_NOT_FOUND: Refusal = (Code::NotFound, "etcdserver: requested lease not found");
pub const MEMBER_NOT_FOUND: Refusal = (Code::NotFound, "etcdserver: member not found");
pub const LEASE_EXISTS: Refusal = (Code::FailedPrecondition, "etcdserver: lease already exists");
pub const NOT_LEADER: Refusal = (Code::FailedPrecondition, "etcdserver: not leader");
pub const BAD_TRANSFEREE: Refusal = (Code::FailedPrecondition, "etcdserver: bad leader transferee");
pub const NOT_A_LEARNER: Refusal =
    (Code::FailedPrecondition, "etcdserver: can only promote a learner member");
pub const PEER_URL_EXISTS: Refusal =
    (Code::FailedPrecondition, "etcdserver: Peer URLs already exists");
pub const LEARNER_NOT_READY: Refusal = (
    Code::FailedPrecondition,
    "etcdserver: can only promote a learner member which is in sync with leader",
);
pub const NOT_FOR_LEARNER: Refusal =
    (Code::FailedPrecondition, "etcdserver: rpc not supported for learner");
pub const TOO_MANY_LEARNERS: Refusal =
    (Code::FailedPrecondition, "etcdserver: too many learner members in cluster");
pub const NO_LEADER: Refusal = (Code::Unavailable, "etcdserver: no leader");

/// The text with which a watch on no key ends.
pub const EMPTY_WATCH_RANGE: &str = "mvcc: watcher range is empty";
/// The text with which a second watch of one id ends.
pub const DUPLICATE_WATCH_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";

/// Checks that the answer is exactly this error.
#[track_caller]
pub fn refused<T: Debug>(answer: Result<T, Status>, (code, message): Refusal) {
    match answer {
        Ok(answer) => panic!("not refused with `{message}` but answered: {answer:?}"),
        Err(status) => assert_eq!((status.code(), status.message()), (code, message)),
    }
}
