//! Where releases of etcd differ from the statements: their own bugs, and what
//! came later.

use super::server::skipped;

/// A release of etcd, as major and minor number.
pub type Release = (u32, u32);

/// What not every release has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    RangeStream,
    SortOptionChecked,
    WatchAtCompaction,
    NegativeWatchRefused,
    ProgressOnlyWhenSynced,
    LearnerErrorCode,
    LearnerSnapshot,
    NestedPutsNeedSpace,
    BadRangeRejectedByAll,
    WriteTimeoutIsUnavailable,
    SnapshotVersion,
    HashRevision,
}

struct Deviation {
    feature: Feature,
    statement: &'static str,
    /// The first release all of whose patches have it; none as yet when absent.
    since: Option<Release>,
    reason: &'static str,
}

const DEVIATIONS: &[Deviation] = &[
    Deviation {
        feature: Feature::RangeStream,
        statement: "range_stream",
        since: Some((3, 7)),
        reason: "the call came with etcd 3.7",
    },
    Deviation {
        feature: Feature::SortOptionChecked,
        statement: "s14",
        since: Some((3, 6)),
        reason: "unknown sort options were taken for known ones",
    },
    Deviation {
        feature: Feature::WatchAtCompaction,
        statement: "s20",
        since: Some((3, 6)),
        reason: "compaction drops the deletions of its own revision",
    },
    Deviation {
        feature: Feature::NegativeWatchRefused,
        statement: "s19",
        since: Some((3, 7)),
        reason: "a negative start_revision was taken as it is",
    },
    Deviation {
        feature: Feature::ProgressOnlyWhenSynced,
        statement: "s26",
        since: Some((3, 6)),
        reason: "progress was answered for watches that lag (etcd#15220)",
    },
    Deviation {
        feature: Feature::LearnerErrorCode,
        statement: "s32",
        since: Some((3, 6)),
        reason: "the code was Unavailable",
    },
    Deviation {
        feature: Feature::LearnerSnapshot,
        statement: "s32",
        since: Some((3, 6)),
        reason: "a learner gave no snapshots",
    },
    Deviation {
        feature: Feature::NestedPutsNeedSpace,
        statement: "s31",
        since: None,
        reason: "the quota overlooks puts of nested transactions",
    },
    Deviation {
        feature: Feature::BadRangeRejectedByAll,
        statement: "s08",
        since: None,
        reason: "members that do not answer the client leave out its ranges (etcd#18667)",
    },
    Deviation {
        feature: Feature::WriteTimeoutIsUnavailable,
        statement: "s17",
        since: None,
        reason: "a write that never reached raft ends with `context deadline exceeded`",
    },
    Deviation {
        feature: Feature::SnapshotVersion,
        statement: "s38",
        since: Some((3, 6)),
        reason: "the field came with etcd 3.6",
    },
    Deviation {
        feature: Feature::HashRevision,
        statement: "s30",
        since: Some((3, 6)),
        reason: "the field came with etcd 3.6",
    },
];

/// Whether the server, etcd of this release or the one under test, has the
/// feature. When it has not, says what is skipped.
pub fn has(server: Option<Release>, feature: Feature) -> bool {
    let Some(release) = server else { return true };
    let deviation = DEVIATIONS.iter().find(|deviation| deviation.feature == feature);
    let Some(deviation) = deviation else { return true };
    let has = deviation.since.is_some_and(|since| release >= since);
    if !has {
        skipped(deviation.statement, &format!("{feature:?}: {}", deviation.reason));
    }
    has
}
