//! The errors of etcd's API. Clients match code and text exactly.

use tonic::{Code, Status};

use crate::{error::Rejected, node::Standing, proto::Refused};

/// Why a request of etcd's API failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// A key is empty.
    EmptyKey,
    /// The key that a put shall keep something of does not exist, or an
    /// operation of a transaction does not say what it is.
    KeyNotFound,
    /// A put gives a value and asks to keep the one that is there.
    ValueProvided,
    /// A put gives a lease and asks to keep the one that is there.
    LeaseProvided,
    /// A transaction has more operations than [`super::MAX_TXN_OPS`].
    TooManyOps,
    /// A transaction writes a key twice.
    DuplicateKey,
    /// An order or a target of sorting that does not exist.
    InvalidSortOption,
    /// A request is over the limit on requests.
    RequestTooLarge,
    /// The revision was compacted away.
    Compacted,
    /// The revision does not exist yet.
    FutureRevision,
    /// A lease was asked to live longer than [`super::MAX_LEASE_TTL_S`].
    LeaseTtlTooLarge,
    /// The NOSPACE alarm is raised.
    NoSpace,
    /// A bounded queue is full.
    TooManyRequests,
    /// There is no such lease.
    LeaseNotFound,
    /// The id of a new lease is taken.
    LeaseExists,
    /// There is no such member.
    MemberNotFound,
    /// The URLs of a member are no URLs.
    BadMemberUrls,
    /// A member with this id is there already.
    MemberExists,
    /// A member with one of these URLs is there already.
    PeerUrlExists,
    /// The member to promote is no learner.
    MemberNotLearner,
    /// The learner lags too far behind to be promoted.
    LearnerNotReady,
    /// There are as many learners as the cluster takes.
    TooManyLearners,
    /// Too few members work for the change to be safe.
    NotEnoughStarted,
    /// Learners do not answer this.
    NotForLearner,
    /// This member does not lead.
    NotLeader,
    /// The member that shall lead cannot.
    BadLeaderTransferee,
    /// No leader is known.
    NoLeader,
    /// The leader changed before the request was carried out; it was not.
    LeaderChanged,
    /// The server stops.
    Stopped,
    /// Nobody knows whether the request was carried out.
    Timeout,
    /// As [`Error::Timeout`], and the leader has been lost meanwhile.
    TimeoutLeaderFailed,
    /// The member that shall lead did not take over in time.
    TimeoutLeaderTransfer,
    /// Users and passwords are not in use.
    AuthNotEnabled,
    /// There is no such user.
    UserNotFound,
    /// There is no such role.
    RoleNotFound,
    /// This member's data are not those of the others.
    Corrupt,
}

impl Error {
    /// The code of the gRPC status.
    pub const fn code(self) -> Code {
        self.parts().0
    }

    /// The text of the gRPC status.
    pub const fn text(self) -> &'static str {
        self.parts().1
    }

    const fn parts(self) -> (Code, &'static str) {
        use Code::{
            DataLoss, FailedPrecondition, InvalidArgument, NotFound, OutOfRange, ResourceExhausted,
            Unavailable,
        };
        match self {
            Self::EmptyKey => (InvalidArgument, "etcdserver: key is not provided"),
            Self::KeyNotFound => (InvalidArgument, "etcdserver: key not found"),
            Self::ValueProvided => (InvalidArgument, "etcdserver: value is provided"),
            Self::LeaseProvided => (InvalidArgument, "etcdserver: lease is provided"),
            Self::TooManyOps => (InvalidArgument, "etcdserver: too many operations in txn request"),
            Self::DuplicateKey => {
                (InvalidArgument, "etcdserver: duplicate key given in txn request")
            }
            Self::InvalidSortOption => (InvalidArgument, "etcdserver: invalid sort option"),
            Self::RequestTooLarge => (InvalidArgument, "etcdserver: request is too large"),
            Self::BadMemberUrls => (InvalidArgument, "etcdserver: given member URLs are invalid"),
            Self::Compacted => {
                (OutOfRange, "etcdserver: mvcc: required revision has been compacted")
            }
            Self::FutureRevision => {
                (OutOfRange, "etcdserver: mvcc: required revision is a future revision")
            }
            Self::LeaseTtlTooLarge => (OutOfRange, "etcdserver: too large lease TTL"),
            Self::NoSpace => (ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            Self::TooManyRequests => (ResourceExhausted, "etcdserver: too many requests"),
            Self::LeaseNotFound => (NotFound, "etcdserver: requested lease not found"),
            Self::MemberNotFound => (NotFound, "etcdserver: member not found"),
            Self::LeaseExists => (FailedPrecondition, "etcdserver: lease already exists"),
            Self::MemberExists => (FailedPrecondition, "etcdserver: member ID already exist"),
            Self::PeerUrlExists => (FailedPrecondition, "etcdserver: Peer URLs already exists"),
            Self::MemberNotLearner => {
                (FailedPrecondition, "etcdserver: can only promote a learner member")
            }
            Self::LearnerNotReady => (
                FailedPrecondition,
                "etcdserver: can only promote a learner member which is in sync with leader",
            ),
            Self::TooManyLearners => {
                (FailedPrecondition, "etcdserver: too many learner members in cluster")
            }
            Self::NotEnoughStarted => (
                FailedPrecondition,
                "etcdserver: re-configuration failed due to not enough started members",
            ),
            Self::NotForLearner => {
                (FailedPrecondition, "etcdserver: rpc not supported for learner")
            }
            Self::NotLeader => (FailedPrecondition, "etcdserver: not leader"),
            Self::BadLeaderTransferee => (FailedPrecondition, "etcdserver: bad leader transferee"),
            Self::AuthNotEnabled => {
                (FailedPrecondition, "etcdserver: authentication is not enabled")
            }
            Self::UserNotFound => (FailedPrecondition, "etcdserver: user name not found"),
            Self::RoleNotFound => (FailedPrecondition, "etcdserver: role name not found"),
            Self::NoLeader => (Unavailable, "etcdserver: no leader"),
            Self::LeaderChanged => (Unavailable, "etcdserver: leader changed"),
            Self::Stopped => (Unavailable, "etcdserver: server stopped"),
            Self::Timeout => (Unavailable, "etcdserver: request timed out"),
            Self::TimeoutLeaderFailed => (
                Unavailable,
                "etcdserver: request timed out, possibly due to previous leader failure",
            ),
            Self::TimeoutLeaderTransfer => {
                (Unavailable, "etcdserver: request timed out, leader transfer took too long")
            }
            Self::Corrupt => (DataLoss, "etcdserver: corrupt cluster"),
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let (code, text) = error.parts();
        Status::new(code, text)
    }
}

/// What a request that was not carried out is told, by a node that stands so.
pub fn rejected(rejected: Rejected, standing: Standing) -> Status {
    match rejected {
        Rejected::NotApplied(_) if standing.stopping => Error::Stopped.into(),
        Rejected::NotApplied(_) if standing.leader_id == 0 => Error::NoLeader.into(),
        Rejected::NotApplied(_) => Error::LeaderChanged.into(),
        Rejected::Unknown(_) if standing.leader_id == 0 => Error::TimeoutLeaderFailed.into(),
        Rejected::Unknown(_) => Error::Timeout.into(),
        Rejected::Overloaded(_) => Error::TooManyRequests.into(),
        Rejected::Conflict(why) => Status::failed_precondition(format!("etcdserver: {why}")),
        Rejected::MemberNotFound(_) => Error::MemberNotFound.into(),
        Rejected::Corrupt(_) => Error::Corrupt.into(),
    }
}

/// What a request is told that the state machine refused. `max_response_bytes`
/// is the limit that an answer may have passed.
pub fn refused(refused: Refused, max_response_bytes: u64) -> Status {
    match refused {
        Refused::Compacted => Error::Compacted.into(),
        Refused::FutureRevision => Error::FutureRevision.into(),
        Refused::LeaseNotFound => Error::LeaseNotFound.into(),
        Refused::LeaseExists => Error::LeaseExists.into(),
        Refused::KeyNotFound | Refused::InvalidOperation => Error::KeyNotFound.into(),
        Refused::NoSpace => Error::NoSpace.into(),
        Refused::ResponseTooLarge => Status::resource_exhausted(format!(
            "etcdserver: the answer is over the limit of {max_response_bytes} bytes \
             (--max-response-bytes, less within a transaction); ask for less with `limit`, or use \
             RangeStream"
        )),
        Refused::DeletionTooLarge => Status::resource_exhausted(
            "etcdserver: the request deletes more at once than members can hold in memory; delete \
             the range in parts",
        ),
        Refused::Unspecified => unexpected(&"a refusal without a reason"),
    }
}

/// The state machine answered something else than was asked.
pub fn unexpected(answer: &dyn std::fmt::Debug) -> Status {
    Status::internal(format!("the store answered {answer:?}; this is a defect, please report it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LED: Standing = Standing {
        cluster_id: 1,
        member_id: 1,
        term: 1,
        leader_id: 2,
        learner: false,
        stopping: false,
    };
    const LEADERLESS: Standing = Standing { leader_id: 0, ..LED };
    const STOPPING: Standing = Standing { stopping: true, ..LEADERLESS };

    fn told(status: &Status) -> (Code, &str) {
        (status.code(), status.message())
    }

    #[test]
    fn an_error_becomes_its_code_and_text() {
        let status = Status::from(Error::LeaseTtlTooLarge);
        assert_eq!(told(&status), (Code::OutOfRange, "etcdserver: too large lease TTL"));
        assert_eq!(Error::NoSpace.code(), Code::ResourceExhausted);
        assert_eq!(Error::NoSpace.text(), "etcdserver: mvcc: database space exceeded");
    }

    #[test]
    fn a_request_without_a_leader_is_told_so() {
        let not_applied = || Rejected::NotApplied("why".to_owned());
        let unknown = || Rejected::Unknown("why".to_owned());
        for (rejection, standing, text) in [
            (not_applied(), LEADERLESS, "etcdserver: no leader"),
            (not_applied(), LED, "etcdserver: leader changed"),
            (not_applied(), STOPPING, "etcdserver: server stopped"),
            (unknown(), LED, "etcdserver: request timed out"),
            (
                unknown(),
                LEADERLESS,
                "etcdserver: request timed out, possibly due to previous leader failure",
            ),
        ] {
            assert_eq!(told(&rejected(rejection, standing)), (Code::Unavailable, text));
        }
        let full = rejected(Rejected::Overloaded("why".to_owned()), LED);
        assert_eq!(told(&full), (Code::ResourceExhausted, "etcdserver: too many requests"));
        let corrupt = rejected(Rejected::Corrupt(1), LED);
        assert_eq!(told(&corrupt), (Code::DataLoss, "etcdserver: corrupt cluster"));
        let unknown_member = rejected(Rejected::MemberNotFound(7), LED);
        assert_eq!(told(&unknown_member), (Code::NotFound, "etcdserver: member not found"));
    }

    #[test]
    fn a_refusal_of_the_machine_keeps_its_reason() {
        for (refusal, error) in [
            (Refused::Compacted, Error::Compacted),
            (Refused::FutureRevision, Error::FutureRevision),
            (Refused::LeaseNotFound, Error::LeaseNotFound),
            (Refused::LeaseExists, Error::LeaseExists),
            (Refused::KeyNotFound, Error::KeyNotFound),
            (Refused::InvalidOperation, Error::KeyNotFound),
            (Refused::NoSpace, Error::NoSpace),
        ] {
            assert_eq!(told(&refused(refusal, 1)), (error.code(), error.text()));
        }
        let large = refused(Refused::ResponseTooLarge, 4096);
        assert_eq!(large.code(), Code::ResourceExhausted);
        for part in ["4096 bytes", "`limit`", "RangeStream"] {
            assert!(large.message().contains(part), "{large}");
        }
    }
}
