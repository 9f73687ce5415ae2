//! What the holder of a stream of watches is told.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use super::{EventRun, Events};

/// What a notice costs in memory beside its events.
const NOTICE_OVERHEAD_BYTES: usize = 128;

/// What the hub says to the holder of a stream of watches.
#[derive(Debug, Clone)]
pub enum Notice {
    /// The watch exists; it is told of what is newer than `revision`, and of
    /// what it asked for from the past.
    Created {
        /// The watch.
        watch: i64,
        /// The store's revision.
        revision: u64,
    },
    /// The watch was not opened.
    Refused {
        /// The watch.
        watch: i64,
        /// The store's revision.
        revision: u64,
        /// Why.
        why: Refusal,
    },
    /// Changes, ascending, each revision whole.
    Events {
        /// The watch.
        watch: i64,
        /// The store's revision.
        revision: u64,
        /// The last compaction, below which no previous state may be told.
        compacted: u64,
        /// The changes.
        events: Events,
    },
    /// The watch ended, because what it asked for is compacted away.
    Compacted {
        /// The watch.
        watch: i64,
        /// The store's revision.
        revision: u64,
        /// The last compaction.
        compacted: u64,
    },
    /// The watch ended, as it was asked to.
    Cancelled {
        /// The watch.
        watch: i64,
        /// The store's revision.
        revision: u64,
    },
    /// Everything up to `revision` has been told: to this watch or, as an
    /// answer to a question, to all of the stream (`watch` -1).
    Progress {
        /// The watch, or -1.
        watch: i64,
        /// The revision.
        revision: u64,
    },
}

impl Notice {
    /// About how many bytes of memory the notice keeps. `newest` are the events
    /// that were queued last before it: what it shares with them counts once.
    pub(super) fn weight(&self, newest: &Weak<EventRun>) -> usize {
        let events = match self {
            Self::Events { events, .. } if newest.as_ptr() != Arc::as_ptr(events) => {
                events.weight()
            }
            _ => 0,
        };
        NOTICE_OVERHEAD_BYTES + events
    }
}

/// Why a watch was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The stream has as many watches as it may have.
    StreamFull,
    /// The node has as many watches, or as many bytes of their keys, as it may
    /// have.
    NodeFull,
    /// The range ends before it begins.
    EmptyRange,
    /// An open watch of the stream has this number, or it is negative.
    NumberTaken,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StreamFull => "too many watches on this stream; open another stream",
            Self::NodeFull => "too many watches on this node; use another member",
            Self::EmptyRange => "the range to watch ends before it begins",
            Self::NumberTaken => "a watch of this stream has this number; choose another",
        })
    }
}
