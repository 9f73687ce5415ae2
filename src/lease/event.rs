//! What can happen to a keeper, and what it wants done.

use crate::{
    error::Rejected,
    machine::LeaseChange,
    proto::{LeaseRecord, LeaseTime, command::Op},
};

/// An input of [`Keeper::handle`](super::Keeper::handle).
///
/// Events that tell of one member are delivered in the order in which they
/// happened: above all, what was applied before a round was confirmed or a
/// proposal got its fate is delivered before.
#[derive(Debug)]
pub enum Event {
    /// One tick of the logical clock has passed.
    Tick,
    /// This member leads in this term, or does not lead.
    Leads(Option<u64>),
    /// A client's question, from whichever member it came. Answered exactly
    /// once, with [`Effect::Reply`].
    Ask {
        /// Names the question in its answer; never used twice.
        ticket: u64,
        /// The lease.
        id: i64,
        /// What about it.
        question: Question,
    },
    /// After this round was asked for, a quorum confirmed that this member
    /// leads, and everything committed before is applied here.
    Confirmed(u64),
    /// The round was not confirmed, and will not be.
    Unconfirmed(u64, Rejected),
    /// All leases of one moment.
    Loaded {
        /// The number of the reading.
        load: u64,
        /// The index of the entry that had been applied last at that moment.
        index: u64,
        /// The leases.
        leases: Vec<LeaseRecord>,
    },
    /// Entries up to this index were applied, and did this to leases.
    Applied {
        /// The index.
        index: u64,
        /// The changes in order.
        changes: Vec<LeaseChange>,
    },
    /// Changes were lost.
    Lost,
    /// What became of a proposal.
    Resolved(u64, Fate),
}

/// What a client wants of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Give it its full time again.
    KeepAlive,
    /// Say how long it has left.
    TimeToLive,
}

/// What became of a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It was applied, and what it changed has been delivered.
    Applied,
    /// It was not and never will be.
    NotApplied,
    /// It may be applied yet, or may have been.
    Unknown,
}

/// An output of [`Keeper::handle`](super::Keeper::handle) and
/// [`Keeper::flush`](super::Keeper::flush).
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Have this member's leadership confirmed by a quorum, beginning now, and
    /// report [`Event::Confirmed`] or [`Event::Unconfirmed`].
    Confirm(u64),
    /// From now on deliver what is applied; then read all leases of one moment
    /// and report them with [`Event::Loaded`] under this number. What is
    /// applied after that moment is delivered after the report.
    Load(u64),
    /// Propose this on this member and nowhere else, and report
    /// [`Event::Resolved`] under this number.
    Propose(u64, Op),
    /// Answer a question.
    Reply(u64, Reply),
}

/// The answer to a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// The lease; of a lease that does not exist, that it does not.
    Lease(LeaseTime),
    /// This member does not lead.
    NotLeader,
    /// It could not be found out.
    Rejected(Rejected),
}
