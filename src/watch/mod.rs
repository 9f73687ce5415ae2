//! The watch hub: who is told of which change.
//!
//! [`Hub`] is a sans-IO core: [`Hub::handle`] takes an [`Input`] (changes that
//! were applied, a watch to open, room in a queue, a page of the history, a
//! tick) and gives [`Effect`]s (a notice for a stream, a page to be read). It
//! knows no clock, thread, queue or disk, and the same inputs always have the
//! same effects. `node` pumps values through it, and so may a simulator.
//!
//! # What a watch may rely on
//!
//! Of what it asked for, a watch is told everything, once, in order, each
//! revision in one piece, until it ends. If it ends because what comes next
//! is compacted away, it is told so. After a lost connection a client goes on
//! with a watch that starts after the last revision it was told.
//!
//! # How it works
//!
//! A watch is *synced* or *behind*. Synced watches are in an index by key, and
//! are told of each batch as it is applied. A watch is behind when it starts
//! in the past, or when the queue of its stream was full: then the hub keeps
//! nothing for it but the revision it goes on from. Once its stream has room,
//! pages of the history are read and matched against all watches they serve,
//! until these have caught up.
//!
//! When batches were missed (too many were waiting, or a snapshot replaced the
//! state), the hub itself is behind: what all synced watches were told of
//! stays at [`Hub::told`], and pages are read and told to them as if they had
//! just been applied.

mod backlog;
mod event;
mod events;
mod hub;
mod index;
mod intervals;
mod matches;
mod notice;
mod options;
mod recent;
mod requests;
mod spec;
mod stream;

#[cfg(test)]
mod tests;

use crate::machine::{Changes, ChangesPage};

pub use event::Event;
pub use events::{EventRun, Events};
pub use hub::Hub;
pub use notice::{Notice, Refusal};
pub use options::Options;
pub use spec::Spec;

/// About how many bytes of memory a batch takes until the hub has taken it in.
pub fn batch_weight(changes: &Changes) -> usize {
    changes.revisions.iter().map(matches::revision_weight).sum()
}

/// A watch: its stream, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct WatchId {
    stream: u64,
    watch: i64,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// A batch was applied. Its leases are of no interest.
    Applied(Changes),
    /// Batches were missed. The store's revision and last compaction now.
    Jumped {
        /// The store's revision.
        revision: u64,
        /// The last compaction.
        compacted: u64,
    },
    /// Somebody holds a new stream, under a number that was never used.
    OpenStream(u64),
    /// The holder of a stream is gone.
    CloseStream(u64),
    /// The holder of a stream opens a watch.
    Open {
        /// The stream.
        stream: u64,
        /// The number of the watch, at least 0.
        watch: i64,
        /// What it wants.
        spec: Spec,
    },
    /// The holder of a stream closes a watch.
    Cancel {
        /// The stream.
        stream: u64,
        /// The watch.
        watch: i64,
    },
    /// The holder of a stream asks for a [`Notice::Progress`].
    RequestProgress(u64),
    /// The holder of a stream has taken notices out of its queue. It may wait
    /// with saying so as long as it has taken fewer than
    /// [`Options::report_notices`] and [`Options::report_bytes`] since it
    /// last did.
    Taken {
        /// The stream.
        stream: u64,
        /// How many.
        notices: usize,
        /// Bytes of them, as [`Effect::Send`] gave them.
        bytes: usize,
    },
    /// The page that [`Effect::Read`] asked for.
    Page {
        /// From where it was asked for.
        from: u64,
        /// The page, or the last compaction, which is above `from`.
        page: Result<ChangesPage, u64>,
    },
    /// Time goes by, in steps that [`Options::progress_ticks`] counts.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Queue a notice for the holder of a stream.
    Send {
        /// The stream.
        stream: u64,
        /// The notice.
        notice: Notice,
        /// Its bytes, to be given back when it is taken.
        bytes: usize,
    },
    /// The stream ends here: its holder takes nothing and asks for more.
    End(u64),
    /// Read a page of the history, and answer with [`Input::Page`].
    Read {
        /// The first revision.
        from: u64,
        /// About how large it may be.
        max_bytes: usize,
    },
}
