//! Versions of what members store and say, and how they meet.
//!
//! Everything that outlives a process or leaves it has a version, which is
//! checked before anything else of it is believed:
//!
//! | what | its version | raised when |
//! |---|---|---|
//! | the raft database, with the watermark's trail and the founding record | [`RAFT_FORMAT_VERSION`](crate::storage::keys::RAFT_FORMAT_VERSION) | a key, a record or the meaning of one changes |
//! | the watermark | a number of its own, in the file | the file's form changes |
//! | the state database, and with it a snapshot's header | [`STATE_FORMAT_VERSION`](crate::storage::keys::STATE_FORMAT_VERSION) | as for the raft database |
//! | commands in the log, frames, calls between members | [`PROTOCOL`] | there is a new command, a new field of one, a new call, or another form of any |
//!
//! # What reads what
//!
//! A version of metastore reads the data of its own format and of the one
//! before; what it changes, it writes in its own. It refuses newer data, with
//! one line that says so, and leaves them as they are. Between two formats the
//! way back is therefore a back-up.
//!
//! Members say with every request and every answer, in a header, which
//! protocols they speak. A missing header means 1: that is what spoke before
//! there was one. Two that have one in common use the highest; two that have
//! none refuse each other (HTTP 426) and both say so in their logs.
//!
//! # A cluster of several versions
//!
//! Every member applies every command, so a command that one of them does not
//! know must not come into the log: it would have to stop there, rather than
//! skip it and come apart from the others. So
//! [`command::version_of`](crate::machine::command::version_of) names the
//! protocol that each command came with, and the leader refuses to propose it
//! until it has heard from every member, learners included, that it speaks that
//! protocol; whoever it has not heard from since its start counts as one of the
//! oldest. Nor does a follower pass such a command on to a leader that does not
//! speak it. What was proposed carries that version in its envelope: should a member of an older
//! version meet it all the same, because it was put back to it since, it stops
//! with one line, and its data are as they were.
//!
//! So members can be upgraded one by one, in any order, and put back until a
//! command of the new protocol was used, if the formats are the same.
//!
//! # Changing a form
//!
//! `tests/fixtures` holds what every version wrote, and `tests/formats.rs`
//! fails when today's form of it changes. Raise the version it belongs to, keep
//! reading the one before, and run `make fixtures`.

use std::{fmt, ops::RangeInclusive};

use crate::error::Fatal;

/// The protocols this program speaks with other members, and the newest whose
/// commands it writes into the log and reads from it.
pub const PROTOCOL: Versions = Versions::new(1, 3);

/// The protocol with which members began to take commands in batches.
pub const BATCHES: u32 = 3;

/// Versions of one thing that a program understands: all from the oldest to
/// the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    oldest: u32,
    newest: u32,
}

impl Versions {
    /// From the oldest to the newest, which is no smaller.
    pub const fn new(oldest: u32, newest: u32) -> Self {
        assert!(oldest <= newest, "the oldest version comes before the newest");
        Self { oldest, newest }
    }

    /// The oldest.
    pub const fn oldest(self) -> u32 {
        self.oldest
    }

    /// The newest.
    pub const fn newest(self) -> u32 {
        self.newest
    }

    /// The highest that both understand, if there is one.
    pub fn common(self, other: Self) -> Option<u32> {
        let highest = self.newest.min(other.newest);
        (highest >= self.oldest.max(other.oldest)).then_some(highest)
    }

    /// Reads what [`Display`](fmt::Display) writes: `2`, or `1-2`.
    pub fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| digits)
        };
        let (oldest, newest) = text.split_once('-').unwrap_or((text, text));
        let (oldest, newest) = (number(oldest)?, number(newest)?);
        (oldest <= newest).then_some(Self { oldest, newest })
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.oldest, self.newest) {
            (oldest, newest) if oldest == newest => write!(f, "{newest}"),
            (oldest, newest) => write!(f, "{oldest}-{newest}"),
        }
    }
}

/// Whether data of the format `stored` can be read by what reads `readable`.
///
/// # Errors
/// When it cannot: what to run instead.
pub fn check_stored(what: &str, stored: u32, readable: RangeInclusive<u32>) -> Result<(), Fatal> {
    if readable.contains(&stored) {
        return Ok(());
    }
    let readable = Versions::new(*readable.start(), *readable.end());
    let remedy = if stored > readable.newest {
        "start the version of metastore that wrote it, or a newer one"
    } else {
        "start the versions of metastore in between first: each reads its own format and the one \
         before"
    };
    let program = env!("CARGO_PKG_VERSION");
    let what = format!("{what} has format {stored}, and metastore {program} reads {readable}");
    Err(Fatal::new(what, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_common_version_is_the_same_for_both() {
        for (one, other, common) in [
            ((1, 1), (1, 1), Some(1)),
            ((1, 2), (1, 1), Some(1)),
            ((1, 2), (2, 3), Some(2)),
            ((1, 9), (3, 4), Some(4)),
            ((1, 1), (2, 3), None),
        ] {
            let (one, other) = (Versions::new(one.0, one.1), Versions::new(other.0, other.1));
            assert_eq!(one.common(other), common, "{one} and {other}");
            assert_eq!(other.common(one), common, "{other} and {one}");
        }
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        for versions in [Versions::new(1, 1), Versions::new(1, 2), Versions::new(7, 4_000_000_000)]
        {
            assert_eq!(Versions::parse(&versions.to_string()), Some(versions));
        }
        for text in ["", "-", "1-", "-1", "2-1", "+1", "1.0", "one", "1-2-3", "99999999999", " 1"] {
            assert_eq!(Versions::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_refusal_names_both_versions_and_what_to_run() {
        check_stored("it", 2, 2..=3).unwrap();
        check_stored("it", 3, 2..=3).unwrap();
        let newer = check_stored("it", 4, 2..=3).unwrap_err();
        assert!(newer.what.starts_with("it has format 4, and metastore "), "{newer}");
        assert!(newer.what.ends_with(" reads 2-3"), "{newer}");
        assert!(newer.remedy.contains("or a newer one"), "{newer}");
        let older = check_stored("it", 1, 2..=3).unwrap_err();
        assert!(older.remedy.contains("in between"), "{older}");
    }
}
