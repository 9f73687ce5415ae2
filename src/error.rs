//! The two kinds of failure.
//!
//! A [`Fatal`] means that this process can no longer keep its promises (a disk
//! error, damaged data): it stops, and nothing is acknowledged after it. What
//! a client may be told is never a `Fatal`: deterministic answers travel as
//! [`Outcome`](crate::proto::Outcome), and a request that could not be carried
//! out as [`Rejected`].

use std::fmt;

/// The process must stop: what happened, to what, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fatal {
    /// What happened to what, as one line.
    pub what: String,
    /// What the operator can do.
    pub remedy: String,
}

impl Fatal {
    /// A failure with the operator's next step.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: one_line(&what.into()), remedy: one_line(&remedy.into()) }
    }

    /// A read or write that the disk refused.
    pub fn storage(what: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Self::new(
            format!("{what}: {cause}"),
            "check the disk's health, free space and permissions, then start the node again",
        )
    }

    /// Stored data contradicts itself.
    pub fn corrupt(what: impl Into<String>) -> Self {
        Self::new(
            what,
            "the data directory is damaged: remove this member and add it again under a new id",
        )
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

impl std::error::Error for Fatal {}

/// Why a request was not answered with an outcome of the log.
///
/// The difference between [`NotApplied`](Self::NotApplied) and
/// [`Unknown`](Self::Unknown) is a promise to clients: after the first a retry
/// is always safe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejected {
    /// Provably without effect: it was never proposed, or another entry has
    /// been applied at its index.
    NotApplied(String),
    /// It may or may not have taken effect.
    Unknown(String),
    /// A bounded queue is full; nothing was proposed.
    Overloaded(String),
    /// The cluster's present state forbids it; nothing was changed.
    Conflict(String),
    /// The request names a member that does not exist.
    MemberNotFound(u64),
    /// Provably without effect: the CORRUPT alarm names this member, which
    /// serves nothing from its state.
    Corrupt(u64),
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotApplied(why) => write!(f, "not applied: {why}"),
            Self::Unknown(why) => write!(f, "outcome unknown: {why}"),
            Self::Overloaded(why) | Self::Conflict(why) => f.write_str(why),
            Self::MemberNotFound(id) => write!(f, "there is no member {id}"),
            Self::Corrupt(id) => write!(
                f,
                "the state of member {id} is not that of the others (CORRUPT alarm), so that it \
                 serves nothing; ask another member, remove member {id}, and add one under a new \
                 id with an empty directory"
            ),
        }
    }
}

impl std::error::Error for Rejected {}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fatal_is_one_line_with_its_remedy() {
        let fatal = Fatal::storage("open raft/", "IO error:\n  No space left");
        let text = fatal.to_string();
        assert!(!text.contains('\n'));
        assert!(text.starts_with("open raft/: IO error: No space left; check the disk"));
    }
}
