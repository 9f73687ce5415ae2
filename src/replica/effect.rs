//! What a replica wants done.

use raft::{
    StateRole,
    eraftpb::{Entry, Message},
};

use crate::{
    error::Rejected,
    proto::{LogPosition, Outcome, RequestId},
    raftlog::Persist,
};

/// An output of [`Replica::handle`](super::Replica::handle). Effects are
/// carried out in the order in which they were given, except that a runtime
/// may run each kind in a thread of its own.
#[derive(Debug)]
pub enum Effect {
    /// Send a message; it may be lost, and losing it is worth an
    /// [`Event::Unreachable`](super::Event::Unreachable).
    Send(Message),
    /// Start a snapshot transfer. Its outcome must be reported with
    /// [`Event::SnapshotSent`](super::Event::SnapshotSent).
    SendSnapshot(Message),
    /// Write to the raft database, then report
    /// [`Event::Persisted`](super::Event::Persisted). In order.
    Persist(Persist),
    /// Apply committed entries, then report
    /// [`Event::Applied`](super::Event::Applied). In order.
    Apply(Vec<Entry>),
    /// Replace the state machine by the snapshot received at this position,
    /// whose installation is already durable, then report
    /// [`Event::Restored`](super::Event::Restored). In order with `Apply`.
    Restore(LogPosition),
    /// Make the state machine durable and a snapshot of it, then report
    /// [`Event::SnapshotMade`](super::Event::SnapshotMade). In order with `Apply`.
    MakeSnapshot,
    /// Answer a request.
    Answer(RequestId, Answer),
    /// Role, term or leader changed.
    Role(Role),
    /// This member was removed from the cluster: stop.
    Removed,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The command was applied with this outcome.
    Outcome(Outcome),
    /// Local state is recent enough to serve the read.
    Readable,
    /// The wanted member leads.
    Led,
    /// Not proposed: this member does not lead. The leader, 0 when unknown.
    NotLeader(u64),
    /// It was not carried out, or nobody knows.
    Rejected(Rejected),
}

/// Who leads, as this member knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role {
    /// This member's part.
    pub role: StateRole,
    /// The present term.
    pub term: u64,
    /// The leader's id, 0 when unknown.
    pub leader_id: u64,
}
