//! The leader's comparison of what the members' states came to.
//!
//! The leader proposes a mark now and then
//! ([`CheckState`](crate::proto::CheckState)). Every member hashes its state as
//! it is right after the mark's entry, which is the same moment of the log for
//! all, and reports the hash. Members that applied the same log have the same
//! hash; one that has another has lost or changed something by itself: a disk, a
//! memory or a program failed it.
//!
//! Like the replica, a [`Comparison`] is plain data in, plain data out.

use std::collections::{BTreeMap, BTreeSet};

use crate::proto::{LogPosition, Members};

/// A SHA-256 of the replicated state.
pub type Hash = [u8; 32];

/// What a member's state came to at a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Whose state.
    pub member: u64,
    /// The entry that holds the mark.
    pub position: LogPosition,
    /// What the state came to.
    pub hash: Hash,
}

/// What a comparison came to. Each is told once for a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A majority of all voters have the same state at the mark of this index.
    Agreed(u64),
    /// At the mark of this index no majority of the voters was found to have
    /// the same state, so that nobody can tell who is right.
    Undecided(u64),
    /// This member's state is another than that of a majority of all voters.
    Accused(u64),
}

/// The reports for the newest mark, and what follows from them. A new leader
/// begins with an empty one.
#[derive(Debug, Default)]
pub struct Comparison {
    mark: Option<Mark>,
    /// The last report of each member; some for a mark that is yet to begin
    /// here.
    reports: BTreeMap<u64, Report>,
}

/// A mark and who was a member at it.
#[derive(Debug)]
struct Mark {
    position: LogPosition,
    voters: BTreeSet<u64>,
    learners: BTreeSet<u64>,
    /// What a majority of the voters have, once that is known.
    agreed: Option<Hash>,
    accused: BTreeSet<u64>,
    undecided: bool,
}

impl Mark {
    fn new(position: LogPosition, members: &Members) -> Self {
        let ids = |learner: bool| {
            let of_kind = members.members.iter().filter(move |member| member.learner == learner);
            of_kind.map(|member| member.id).collect()
        };
        Self {
            position,
            voters: ids(false),
            learners: ids(true),
            agreed: None,
            accused: BTreeSet::new(),
            undecided: false,
        }
    }

    /// How many voters have to say the same.
    fn majority(&self) -> usize {
        if mutant!(AccuseWithoutMajority) {
            return 1;
        }
        self.voters.len() / 2 + 1
    }

    /// Says, once, that nothing can be said.
    fn give_up(&mut self) -> Option<Verdict> {
        let is_news = self.agreed.is_none() && !self.undecided;
        self.undecided |= is_news;
        is_news.then_some(Verdict::Undecided(self.position.index))
    }
}

impl Comparison {
    /// The leader applied a mark, at which these were the members. What was
    /// said of an older one does not count any more.
    pub fn begin(&mut self, position: LogPosition, members: &Members) -> Vec<Verdict> {
        if self.mark.as_ref().is_some_and(|mark| position.index <= mark.position.index) {
            return Vec::new();
        }
        let mut verdicts: Vec<_> = self.mark.as_mut().and_then(Mark::give_up).into_iter().collect();
        self.reports.retain(|_, report| report.position.index >= position.index);
        self.mark = Some(Mark::new(position, members));
        verdicts.extend(self.judge());
        verdicts
    }

    /// A member reported. It may be ahead of the leader, and report a mark that
    /// begins here a little later.
    pub fn report(&mut self, report: Report) -> Vec<Verdict> {
        let newest = self.mark.as_ref().map_or(0, |mark| mark.position.index);
        if report.position.index < newest {
            return Vec::new();
        }
        self.reports.insert(report.member, report);
        self.judge()
    }

    /// What the reports say now that they did not say before.
    fn judge(&mut self) -> Vec<Verdict> {
        let Some(mark) = &mut self.mark else { return Vec::new() };
        let mut verdicts = Vec::new();
        let of_mark = self.reports.values().filter(|report| report.position == mark.position);
        let voters = of_mark.clone().filter(|report| mark.voters.contains(&report.member));
        if mark.agreed.is_none() {
            let mut supporters: BTreeMap<Hash, usize> = BTreeMap::new();
            voters.clone().for_each(|report| *supporters.entry(report.hash).or_default() += 1);
            let most = supporters.into_iter().find(|(_, count)| *count >= mark.majority());
            mark.agreed = most.map(|(hash, _)| hash);
            verdicts.extend(mark.agreed.map(|_| Verdict::Agreed(mark.position.index)));
        }
        let Some(agreed) = mark.agreed else {
            if voters.count() == mark.voters.len() {
                verdicts.extend(mark.give_up());
            }
            return verdicts;
        };
        for Report { member, hash, .. } in of_mark {
            let counts = mark.voters.contains(member) || mark.learners.contains(member);
            if counts && *hash != agreed && mark.accused.insert(*member) {
                verdicts.push(Verdict::Accused(*member));
            }
        }
        verdicts
    }
}
