//! A stream of watches, as the hub knows it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Weak,
};

use super::{EventRun, Options, Spec, spec::KeyRange};
use crate::proto::Change;

/// One watch.
#[derive(Debug)]
pub(super) struct Watch {
    pub spec: Spec,
    pub range: KeyRange,
    pub state: State,
    /// It wants nothing from before this revision, or has been told of it. A
    /// synced watch may have been told of later ones as well.
    pub next: u64,
    /// The tick in which it was told something last.
    pub told_at: u64,
    /// The tick in which it may be due for a word, if it wants one.
    pub due: u64,
}

impl Watch {
    /// Whether it is in this state and wants this change.
    pub fn wants(&self, state: State, revision: u64, change: &Change) -> bool {
        self.state == state && revision >= self.next && self.spec.wants(change)
    }
}

/// Where a watch gets its events from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// From each batch, as it is applied.
    Synced,
    /// From pages of the history.
    Behind,
    /// From nowhere, until the queue of its stream has room.
    Parked,
}

/// One stream.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub watches: BTreeMap<i64, Watch>,
    /// Notices in its queue.
    pub queued: usize,
    /// Bytes in its queue.
    pub queued_bytes: usize,
    /// The events that were queued last.
    pub newest: Weak<EventRun>,
    /// How many watches are not synced.
    pub behind: usize,
    /// The watches that wait for room.
    pub parked: BTreeSet<i64>,
    /// The watches that started in what was the future then, by their start.
    pub ahead: BTreeSet<(u64, i64)>,
}

impl Stream {
    /// Whether a notice may be queued, with so many bytes in all queues.
    pub fn has_room(&self, total: usize, options: &Options) -> bool {
        self.queued < options.queue_notices
            && self.queued_bytes < options.queue_bytes
            && (total < options.total_bytes || self.queued_bytes < options.share_bytes)
    }

    /// Whether there is so much room that it is worth reading for it.
    pub fn has_much_room(&self, total: usize, options: &Options) -> bool {
        self.has_room(total, options)
            && self.queued <= options.queue_notices / 2
            && self.queued_bytes <= options.queue_bytes / 2
    }

    /// Whether everything up to `told` has been told to every watch that wants
    /// it, and no watch still waits for its start.
    pub fn is_synced(&self, told: u64) -> bool {
        self.behind == 0 && self.ahead.last().is_none_or(|(start, _)| *start <= told)
    }
}
