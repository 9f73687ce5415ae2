//! Seeded bugs, to prove that the tests would find them.
//!
//! Each [`Mutant`] is one line of this program gone wrong. It exists only when
//! the crate is built with the feature `mutants`, which no shipped binary is;
//! without it every question whether a bug is on is `false` at compile time.
//! `make mutants` runs the tests once for each of them and fails if one is not
//! found.

/// Whether this bug is on.
macro_rules! mutant {
    ($name:ident) => {
        $crate::mutants::is_on($crate::mutants::Mutant::$name)
    };
}

macro_rules! mutants {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A bug that the tests must find.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mutant {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];
        }
    };
}

mutants! {
    // Consensus and its log.
    /// The leader commits what it alone has on disk.
    AcknowledgeBeforeCommit,
    /// The raft database is written and never synced.
    SkipFsync,
    /// A vote leaves before it is durable.
    VoteBeforeDurable,
    /// A follower confirms entries before they are durable.
    ConfirmBeforeDurable,
    /// A leader forgets that an election is needed to know its commit index:
    /// after a start, what was applied does not count as committed.
    ForgetAppliedCommit,
    /// Entries that a new leader replaced stay behind its own.
    KeepReplacedEntries,
    /// The log is cut up to what is applied, durable or not.
    TruncatePastDurable,
    /// A snapshot counts as durable without having been flushed.
    SnapshotWithoutFlush,
    /// Installing a snapshot leaves the former state directory in place.
    InstallKeepsState,
    /// A snapshot from before it was added is sent to a new member.
    ReuseSnapshotForNewMember,
    /// Raft forgets who is a member when it starts.
    ForgetConfState,
    /// The leader proposes what another member does not know.
    ProposeUnknown,
    /// A member that leads when its removal is committed leaves at once.
    LeaveBeforeOthersKnow,
    /// A leader tells others that its own removal is committed.
    TellOfOwnRemoval,

    /// A learner is promoted however far it is behind.
    PromoteTooEarly,
    /// A second change of the members is proposed while one is pending.
    TwoChangesAtOnce,
    /// A member stands for election before it holds the snapshot it took over.
    CampaignWhileRestoring,
    /// Messages of peers are believed without being checked.
    BelieveMalformed,
    /// A leader whose disk stalls goes on to lead.
    LeadDespiteStall,
    /// A leader whose state machine stalls goes on to lead.
    LeadDespiteApplyStall,
    /// A leader that must hand over asks the same member for ever.
    AskOneSuccessor,
    /// A leader whose state is not that of the others goes on to lead.
    LeadDespiteCorruption,
    /// Proposals are taken however many wait for the disk.
    NoFlowControl,
    /// A peer that lost its data is taken for who it was.
    AcceptWrongIncarnation,
    /// A member that comes back with an older copy of its data is let in.
    AcceptOlderCopies,
    /// What other members promised is written down with other writes only.
    ForgetWhatWasHeard,

    // Reads.
    /// The leader trusts its lease instead of asking for its leadership.
    LeaseBasedRead,
    /// The leader answers reads without a round of confirmations.
    ReadWithoutRound,
    /// A read is served before its index is applied.
    ReadBeforeApplied,
    /// A read joins a round that began before it.
    ReadJoinsOldRound,

    // Answers.
    /// A command is answered with the outcome of whatever took its place.
    AnswerByIndex,
    /// What another member proposed completes a waiter of this one.
    CompleteAnothersWaiter,
    /// A proposed command that times out is promised not to take effect.
    PromiseNotApplied,
    /// A command is proposed twice.
    ProposeTwice,
    /// A member answers a write that it has not applied itself.
    AnswerBeforeApplied,

    // The state machine.
    /// The data are written apart from the applied index.
    IndexApartFromData,
    /// Members are not stored with the index that changed them.
    ForgetMembers,
    /// A key that is put again goes on with the version it was deleted at.
    VersionSurvivesDeletion,
    /// A range is deleted but for its last key.
    DeleteRangeLeavesOne,
    /// A transaction compares what it has already written.
    CompareAfterWrites,
    /// A refused transaction keeps what it did before it was refused.
    RefusedTxnKeepsWrites,
    /// A range that is cut off counts what it gives.
    CountIsPage,
    /// Writes go on when there is no space.
    IgnoreNoSpace,
    /// A batch goes on after a mark, so that what is hashed is a later state.
    PassOverMark,
    /// A key that is put under another lease stays with the former one too.
    KeyStaysWithLease,
    /// An expiry ends a lease that was renewed since.
    ExpireRenewed,
    /// An expiry of a former leader still ends leases.
    ExpireOfFormerLeader,
    /// A checkpoint takes back a renewal.
    CheckpointTakesBackRenewal,

    // The past.
    /// A compaction takes the changes of its own revision with it.
    CompactionDropsEvent,
    /// What the compacted revision still needs is forgotten.
    ForgetWhatIsNeeded,
    /// What a crash can bring back is forgotten.
    ForgetBeforeDurable,
    /// The walk to the past begins at the wrong sample.
    WalkFromWrongSample,
    /// A page of the history ends within a revision.
    PageSplitsRevision,

    // The consistency check.
    /// The first state that is reported is taken for the right one.
    AccuseWithoutMajority,
    /// A member that is accused goes on to serve.
    ServeDespiteCorruption,

    // Watches.
    /// A watch whose queue is full goes on after what did not fit.
    ParkSkipsEvents,
    /// What the hub missed counts as told.
    MissedCountsAsTold,
    /// A watch that has caught up is told of its last page again.
    EventsTwice,
    /// A compaction ends watches that miss nothing.
    CompactionEndsWatch,
    /// Progress is told to streams that still wait for events.
    ProgressTooEarly,
    /// The previous value of an event is its own.
    WrongPrevious,

    // Leases.
    /// A keep-alive is answered without a round of confirmations.
    KeepAliveWithoutRound,
    /// A member that leads again goes on with the clocks of its former term.
    KeepFormerClocks,
    /// A lease of which a part is written down as gone is renewed in memory.
    RenewAfterCheckpoint,
    /// A lease is renewed in memory while its expiry may be in the log.
    RenewDespiteExpiry,
}

/// The environment variable that chooses a mutant by its name.
pub const VARIABLE: &str = "METASTORE_MUTANT";

/// Whether this process has this bug.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn is_on(_mutant: Mutant) -> bool {
    false
}

/// Whether this process has this bug.
#[cfg(feature = "mutants")]
pub(crate) fn is_on(mutant: Mutant) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<Mutant>> = std::sync::LazyLock::new(|| {
        let name = std::env::var(VARIABLE).ok()?;
        let named = |mutant: &&Mutant| format!("{mutant:?}") == name;
        Some(
            *Mutant::ALL.iter().find(named).unwrap_or_else(|| panic!("{VARIABLE}={name}: unknown")),
        )
    });
    *CHOSEN == Some(mutant)
}
