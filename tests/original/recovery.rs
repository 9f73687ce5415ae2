//! Hard state and entries never come apart, whatever a crash keeps of the
//! writes that were not synced.

use metastore::{
    proto::LogPosition,
    raftlog::{LogWriter, Persist, Recovered},
    storage::memory::MemoryEngine,
};
use raft::eraftpb::{Entry, HardState};

/// What must be found when the disk ends with a write.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Found {
    term: u64,
    commit: u64,
    truncated: LogPosition,
    last: LogPosition,
}

fn at(index: u64, term: u64) -> LogPosition {
    LogPosition { index, term }
}

fn persist(hard_state: (u64, u64), entries: &[(u64, u64)]) -> Persist {
    let (term, commit) = hard_state;
    let entry = |&(index, term)| Entry { index, term, ..Entry::default() };
    Persist {
        hard_state: Some(HardState { term, vote: 1, commit, ..HardState::default() }),
        entries: entries.iter().map(entry).collect(),
        ..Persist::default()
    }
}

/// A member's life: it appends, loses a suffix to a new leader, shortens its
/// log, takes over a snapshot, and goes on. Each write with what follows it.
fn writes() -> Vec<(Persist, Found)> {
    let write = |persist: Persist, truncated, last| {
        let hard_state = persist.hard_state.clone().expect("every write here has one");
        let HardState { term, commit, .. } = hard_state;
        (persist, Found { term, commit, truncated, last })
    };
    let start = at(0, 0);
    let compact = Persist { compact: Some(at(3, 1)), ..persist((3, 4), &[]) };
    let install = Persist { install: Some(at(20, 4)), ..persist((5, 20), &[(21, 5)]) };
    vec![
        write(persist((1, 0), &[(1, 1), (2, 1), (3, 1)]), start, at(3, 1)),
        write(persist((1, 3), &[(4, 1), (5, 1), (6, 1)]), start, at(6, 1)),
        write(persist((3, 3), &[(4, 3)]), start, at(4, 3)),
        write(compact, at(3, 1), at(4, 3)),
        write(install, at(20, 4), at(21, 5)),
        write(persist((5, 21), &[(22, 5), (23, 5)]), at(20, 4), at(23, 5)),
        write(persist((6, 21), &[(22, 6)]), at(20, 4), at(22, 6)),
    ]
}

/// The writes as the log thread groups them: bit n of `cuts` ends a group
/// behind write n.
fn groups(writes: &[(Persist, Found)], cuts: usize) -> Vec<Vec<(Persist, Found)>> {
    let mut groups = vec![Vec::new()];
    for (n, write) in writes.iter().enumerate() {
        groups.last_mut().expect("never empty").push(write.clone());
        if cuts >> n & 1 == 1 && n + 1 < writes.len() {
            groups.push(Vec::new());
        }
    }
    groups
}

#[test]
fn a_crash_keeps_hard_state_and_entries_of_one_moment() {
    let writes = writes();
    for cuts in 0..1 << (writes.len() - 1) {
        let groups = groups(&writes, cuts);
        let engine = MemoryEngine::new();
        let mut writer = LogWriter::new(engine.clone(), &Recovered::default());
        for group in &groups {
            let group: Vec<Persist> = group.iter().map(|(persist, _)| persist.clone()).collect();
            writer.write(&group).expect("memory takes every write");
        }
        for kept in 0..=groups.len() {
            let crashed = engine.crash(|unsynced| {
                assert_eq!(unsynced, groups.len(), "each group is one batch");
                kept
            });
            let recovered = Recovered::read(&crashed).expect("a sound database");
            let Recovered { hard_state, truncated, last, .. } = recovered;
            assert!(hard_state.commit <= last.index && last.term <= hard_state.term);
            let found = Found { term: hard_state.term, commit: hard_state.commit, truncated, last };
            let expected = kept
                .checked_sub(1)
                .map(|newest| groups[newest].last().expect("groups are not empty").1);
            let expected = expected.unwrap_or(Found {
                term: 0,
                commit: 0,
                truncated: at(0, 0),
                last: at(0, 0),
            });
            assert_eq!(found, expected, "{kept} batches kept of groups cut at {cuts:b}");
        }
    }
}

#[test]
fn a_group_is_synced_when_any_of_it_asks_for_it() {
    for synced in [None, Some(0), Some(1), Some(2)] {
        let engine = MemoryEngine::new();
        let mut group: Vec<Persist> =
            writes().into_iter().take(3).map(|(persist, _)| persist).collect();
        synced.iter().for_each(|&n: &usize| group[n].sync = true);
        let mut writer = LogWriter::new(engine.clone(), &Recovered::default());
        writer.write(&group).expect("memory takes every write");
        let recovered = Recovered::read(&engine.crash(|_| 0)).expect("a sound database");
        let expected = if synced.is_some() { at(4, 3) } else { at(0, 0) };
        assert_eq!(recovered.last, expected, "synced: {synced:?}");
    }
}
