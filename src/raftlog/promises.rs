//! What members promise to each other, and how a copy of the data that is
//! older than a promise is told.
//!
//! A member's word is worth what its disk holds. Put an older copy of it back,
//! and the member votes twice in a term, or lacks entries that were committed
//! because it had confirmed them; it cannot know that itself, since everything
//! it has is of the same age. Its peers can: each remembers what it was told.
//!
//! Two facts make the comparison exact. The stored term never falls, and within
//! a term the log only grows, because it follows one leader. In a *later* term
//! a log may well end before what was confirmed, or in an older term: then a
//! new leader has replaced it, and nothing is wrong.

use std::{collections::BTreeMap, fmt};

use crate::proto::{self, LogPosition, MemberPromises};

/// What a member has on disk, as far as others rely on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Promises {
    /// The stored term.
    pub term: u64,
    /// For whom it voted in that term; 0 for nobody, or unknown.
    pub vote: u64,
    /// The last entry it holds. Its term is 0 when that is unknown.
    pub last: LogPosition,
}

impl Promises {
    /// Whether a disk that holds this is an older copy of one that held
    /// `known`.
    pub fn are_behind(&self, known: &Self) -> bool {
        if self.term != known.term {
            return self.term < known.term && !mutant!(AcceptOlderCopies);
        }
        let voted_otherwise = known.vote != 0 && self.vote != known.vote;
        let lacks_entries = self.last.index < known.last.index || self.last.term < known.last.term;
        (voted_otherwise || lacks_entries) && !mutant!(AcceptOlderCopies)
    }

    /// Takes in what a member was heard to promise, in whatever order it was
    /// heard. Whether that was news.
    pub fn learn(&mut self, heard: &Self) -> bool {
        let before = *self;
        if heard.term > self.term {
            *self = *heard;
        } else if heard.term == self.term {
            self.vote = self.vote.max(heard.vote);
            // Terms rise along a log: a later entry's is no lower.
            self.last.index = self.last.index.max(heard.last.index);
            self.last.term = self.last.term.max(heard.last.term);
        }
        *self != before
    }
}

impl fmt::Display for Promises {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { term, vote, last } = self;
        write!(f, "entry {} of term {} and, in term {term}, ", last.index, last.term)?;
        match vote {
            0 => f.write_str("no vote"),
            vote => write!(f, "a vote for member {vote}"),
        }
    }
}

/// The newest promises of each other member, as this one heard them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Witnessed(BTreeMap<u64, Promises>);

impl Witnessed {
    /// What this member was heard to promise.
    pub fn of(&self, member: u64) -> Option<&Promises> {
        self.0.get(&member)
    }

    /// Takes in what a member was heard to promise; whether that was news.
    pub fn learn(&mut self, member: u64, heard: &Promises) -> bool {
        self.0.entry(member).or_default().learn(heard)
    }

    /// Forgets members that will never come back.
    pub fn forget(&mut self, removed: &[u64]) {
        self.0.retain(|member, _| !removed.contains(member));
    }

    /// Whether some of these members are remembered.
    pub fn knows_any(&self, members: &[u64]) -> bool {
        members.iter().any(|member| self.0.contains_key(member))
    }
}

impl From<&Witnessed> for proto::Witnessed {
    fn from(witnessed: &Witnessed) -> Self {
        let member = |(&id, promises): (&u64, &Promises)| {
            let Promises { term, vote, last } = *promises;
            MemberPromises { id, term, vote, last: Some(last) }
        };
        Self { members: witnessed.0.iter().map(member).collect() }
    }
}

impl From<proto::Witnessed> for Witnessed {
    fn from(stored: proto::Witnessed) -> Self {
        let promises = |member: MemberPromises| {
            let MemberPromises { id, term, vote, last } = member;
            (id, Promises { term, vote, last: last.unwrap_or_default() })
        };
        Self(stored.members.into_iter().map(promises).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Term and vote, then index and term of the last entry.
    fn promises(term: u64, vote: u64, index: u64, last_term: u64) -> Promises {
        Promises { term, vote, last: LogPosition { index, term: last_term } }
    }

    #[test]
    fn an_older_copy_is_told_by_its_term_its_vote_and_its_log() {
        let known = promises(7, 2, 41, 7);
        for older in [
            promises(6, 2, 41, 6),
            promises(6, 9, 99, 6),
            promises(7, 2, 40, 7),
            promises(7, 0, 41, 7),
            promises(7, 3, 41, 7),
            // Longer, but with entries that the leader of term 7 replaced.
            promises(7, 2, 60, 6),
            promises(0, 0, 0, 0),
        ] {
            assert!(older.are_behind(&known), "{older}");
        }
    }

    #[test]
    fn what_only_looks_like_less_is_no_older_copy() {
        let known = promises(7, 2, 41, 7);
        for present in [
            known,
            promises(7, 2, 42, 7),
            // A new leader replaced the end of the log by less, and by older
            // entries at first.
            promises(8, 0, 12, 8),
            promises(8, 3, 12, 5),
            promises(9, 0, 0, 0),
        ] {
            assert!(!present.are_behind(&known), "{present}");
        }
        let without_vote = promises(7, 0, 41, 0);
        assert!(!promises(7, 3, 41, 6).are_behind(&without_vote), "nobody heard of a vote");
        assert!(!promises(0, 0, 0, 0).are_behind(&Promises::default()), "nothing is known");
    }

    #[test]
    fn the_order_in_which_promises_are_heard_does_not_matter() {
        let heard = [
            promises(5, 1, 30, 5),
            promises(7, 0, 12, 0),
            promises(7, 2, 0, 0),
            promises(7, 0, 41, 7),
            promises(6, 3, 90, 6),
        ];
        for start in 0..heard.len() {
            let mut known = Promises::default();
            for at in 0..heard.len() {
                known.learn(&heard[(start + 2 * at) % heard.len()]);
            }
            assert_eq!(known, promises(7, 2, 41, 7));
            assert!(!known.learn(&heard[start]), "nothing of it is news now");
        }
    }

    #[test]
    fn a_removed_member_is_forgotten_and_the_rest_survives_the_disk() {
        let mut witnessed = Witnessed::default();
        assert!(witnessed.learn(2, &promises(7, 2, 41, 7)));
        assert!(witnessed.learn(3, &promises(6, 0, 9, 0)));
        assert!(!witnessed.learn(3, &promises(5, 0, 90, 5)));
        witnessed.forget(&[2]);
        assert_eq!(Witnessed::from(proto::Witnessed::from(&witnessed)), witnessed);
        assert_eq!(witnessed.of(2), None);
        assert_eq!(witnessed.of(3), Some(&promises(6, 0, 9, 0)));
    }
}
