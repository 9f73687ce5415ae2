//! What can happen to a replica.

use std::sync::Arc;

use raft::eraftpb::Message;

use crate::{
    machine::AppliedBatch,
    proto::{Alarms, Command, LogPosition, Members, RequestId},
};

/// An input of [`Replica::handle`](super::Replica::handle).
#[derive(Debug)]
pub enum Event {
    /// One tick of the logical clock has passed.
    Tick,
    /// A peer's message, from a member whose identity the transport checked.
    Message(Box<Message>),
    /// Carry out a command, membership changes included. Answered exactly once.
    Propose(Command),
    /// The same of a command that this member passed on, which is told at once when
    /// it is committed.
    ProposeFor(u64, Command),
    /// Wait until local state is no older than now. Answered exactly once.
    Read(RequestId),
    /// The last event was a moment ago, and the replica
    /// [has something to announce](super::Replica::is_to_announce).
    Announce,
    /// Make this member the leader. Answered exactly once.
    TransferLeader(RequestId, u64),
    /// Nobody waits any longer: answer now with what is known.
    Cancel(RequestId),
    /// Everything up to the persist effect of this number is durable.
    Persisted(u64),
    /// The state machine applied the entries of one apply effect.
    Applied(AppliedBatch),
    /// The state machine was replaced by an installed snapshot.
    Restored(Restored),
    /// A snapshot of the state machine can be sent from now on. Everything
    /// applied up to its position is durable.
    SnapshotMade(SnapshotMade),
    /// A snapshot transfer ended.
    SnapshotSent {
        /// The receiver.
        to: u64,
        /// Index and term of the snapshot.
        position: LogPosition,
        /// Whether the receiver confirmed it.
        success: bool,
    },
    /// A message to this peer was lost.
    Unreachable(u64),
    /// A peer said which protocols it speaks: the newest of them.
    Speaks {
        /// The peer.
        member: u64,
        /// See [`version`](crate::version).
        newest: u32,
    },
    /// Hand leadership over, if this member leads: the process is stopping.
    /// From now on proposals are refused.
    StepDown,
}

/// The state machine now holds this snapshot.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The snapshot's position.
    pub position: LogPosition,
    /// The cluster as of that position.
    pub members: Arc<Members>,
    /// The raised alarms as of that position.
    pub alarms: Arc<Alarms>,
}

/// A snapshot that can be sent.
#[derive(Debug, Clone)]
pub struct SnapshotMade {
    /// The applied position it was made at.
    pub position: LogPosition,
    /// The cluster as of that position.
    pub members: Arc<Members>,
}
