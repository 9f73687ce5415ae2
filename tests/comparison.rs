//! Whom the leader accuses, and whom not: the comparison of states at a mark,
//! case by case.

use Verdict::{Accused, Agreed, Undecided};
use metastore::{
    check::{Comparison, Hash, Report, Verdict},
    proto::{LogPosition, Member, Members},
};

const RIGHT: Hash = [1; 32];
const WRONG: Hash = [2; 32];
const WORSE: Hash = [3; 32];

fn at(index: u64) -> LogPosition {
    LogPosition { index, term: 4 }
}

/// So many voters, from id 1 on, and then the learners.
fn members(voters: u64, learners: u64) -> Members {
    let member = |id| Member { id, learner: id > voters, ..Member::default() };
    Members { members: (1..=voters + learners).map(member).collect(), ..Members::default() }
}

fn report(member: u64, index: u64, hash: Hash) -> Report {
    Report { member, position: at(index), hash }
}

/// What is said of a mark at index 10, report by report.
fn said(members: &Members, reports: &[(u64, Hash)]) -> Vec<Verdict> {
    let mut comparison = Comparison::default();
    let mut verdicts = comparison.begin(at(10), members);
    for (member, hash) in reports {
        verdicts.extend(comparison.report(report(*member, 10, *hash)));
    }
    verdicts
}

#[test]
fn only_a_majority_of_all_voters_accuses() {
    let three = members(3, 0);
    for (who, members, reports, expected) in [
        ("nobody has reported", &three, vec![], vec![]),
        ("one of three alone", &three, vec![(1, RIGHT)], vec![]),
        ("all are equal", &three, vec![(1, RIGHT), (2, RIGHT), (3, RIGHT)], vec![Agreed(10)]),
        (
            "one of three differs",
            &three,
            vec![(1, RIGHT), (2, RIGHT), (3, WRONG)],
            vec![Agreed(10), Accused(3)],
        ),
        (
            "the first to report differs",
            &three,
            vec![(1, WRONG), (2, RIGHT), (3, RIGHT)],
            vec![Agreed(10), Accused(1)],
        ),
        (
            "two of three differ, and the third says nothing",
            &three,
            vec![(1, RIGHT), (2, WRONG)],
            vec![],
        ),
        ("all three differ", &three, vec![(1, RIGHT), (2, WRONG), (3, WORSE)], vec![Undecided(10)]),
        ("one of two differs", &members(2, 0), vec![(1, RIGHT), (2, WRONG)], vec![Undecided(10)]),
        ("a voter alone", &members(1, 0), vec![(1, RIGHT)], vec![Agreed(10)]),
        (
            "five, of which two are equally wrong",
            &members(5, 0),
            vec![(1, WRONG), (2, WRONG), (3, RIGHT), (4, RIGHT), (5, RIGHT)],
            vec![Agreed(10), Accused(1), Accused(2)],
        ),
        (
            "five, of which two are equally wrong, and one says nothing",
            &members(5, 0),
            vec![(1, WRONG), (2, WRONG), (3, RIGHT), (4, RIGHT)],
            vec![],
        ),
        (
            "a learner differs",
            &members(3, 1),
            vec![(4, WRONG), (1, RIGHT), (2, RIGHT), (3, RIGHT)],
            vec![Agreed(10), Accused(4)],
        ),
        (
            "learners are no majority",
            &members(3, 2),
            vec![(4, WRONG), (5, WRONG), (1, WRONG), (2, RIGHT)],
            vec![],
        ),
        ("a stranger", &three, vec![(9, WRONG), (1, RIGHT), (2, RIGHT)], vec![Agreed(10)]),
        (
            "the same again",
            &three,
            vec![(1, RIGHT), (2, RIGHT), (3, WRONG), (3, WRONG), (1, RIGHT)],
            vec![Agreed(10), Accused(3)],
        ),
    ] {
        assert_eq!(said(members, &reports), expected, "{who}");
    }
}

#[test]
fn a_mark_that_is_left_undecided_is_told_once() {
    let three = members(3, 0);
    let mut comparison = Comparison::default();
    assert_eq!(comparison.begin(at(10), &three), []);
    assert_eq!(comparison.report(report(1, 10, RIGHT)), []);
    assert_eq!(comparison.report(report(2, 10, WRONG)), []);
    assert_eq!(comparison.begin(at(20), &three), [Undecided(10)]);
    // The third, which would have decided, is late.
    assert_eq!(comparison.report(report(3, 10, RIGHT)), []);
    assert_eq!(comparison.report(report(1, 20, RIGHT)), []);
    assert_eq!(comparison.report(report(3, 20, RIGHT)), [Agreed(20)]);
    assert_eq!(comparison.report(report(2, 20, WRONG)), [Accused(2)]);
    // One that was decided is not undecided.
    assert_eq!(comparison.begin(at(30), &three), []);

    let two = members(2, 0);
    let mut comparison = Comparison::default();
    comparison.begin(at(10), &two);
    comparison.report(report(1, 10, RIGHT));
    assert_eq!(comparison.report(report(2, 10, WRONG)), [Undecided(10)]);
    assert_eq!(comparison.begin(at(20), &two), []);
}

#[test]
fn reports_count_for_the_newest_mark_alone() {
    let three = members(3, 0);
    let mut comparison = Comparison::default();
    comparison.begin(at(20), &three);
    // Of an older mark, at another term, and of a mark that is yet to come.
    assert_eq!(comparison.report(report(1, 10, WRONG)), []);
    let elsewhere = Report { position: LogPosition { index: 20, term: 3 }, ..report(1, 20, WRONG) };
    assert_eq!(comparison.report(elsewhere), []);
    assert_eq!(comparison.report(report(3, 30, WRONG)), []);
    assert_eq!(comparison.report(report(1, 20, RIGHT)), []);
    assert_eq!(comparison.report(report(2, 20, RIGHT)), [Agreed(20)]);
    // A mark that was applied again, or before, begins nothing.
    assert_eq!(comparison.begin(at(20), &three), []);
    assert_eq!(comparison.begin(at(10), &three), []);
    // Who was ahead of the leader is heard now.
    assert_eq!(comparison.begin(at(30), &three), []);
    assert_eq!(comparison.report(report(1, 30, RIGHT)), []);
    assert_eq!(comparison.report(report(2, 30, RIGHT)), [Agreed(30), Accused(3)]);
}

#[test]
fn who_was_no_member_at_the_mark_is_not_compared() {
    let mut comparison = Comparison::default();
    comparison.begin(at(10), &members(3, 0));
    comparison.report(report(1, 10, RIGHT));
    comparison.report(report(2, 10, RIGHT));
    assert_eq!(comparison.report(report(4, 10, WRONG)), []);
    comparison.begin(at(20), &members(3, 1));
    comparison.report(report(1, 20, RIGHT));
    assert_eq!(comparison.report(report(2, 20, RIGHT)), [Agreed(20)]);
    assert_eq!(comparison.report(report(4, 20, WRONG)), [Accused(4)]);
}
