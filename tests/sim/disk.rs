//! What a member has on disk.

use std::collections::BTreeMap;

use metastore::{
    raftlog::{RaftLog, Recovered},
    storage::memory::{Breakdown, MemoryEngine},
};
use raft::eraftpb::ConfState;

use super::{checks::LogModel, dice::Dice};

/// The databases of a member.
pub struct Disk {
    pub raft: MemoryEngine,
    /// State directories, by the index in their name.
    pub states: BTreeMap<u64, MemoryEngine>,
}

impl Disk {
    /// Breaks one of the databases that are in use.
    pub fn break_down(&self, dice: &mut Dice) {
        let breakdown = dice.pick(&[Breakdown::Writes, Breakdown::Syncs]);
        match self.states.values().next_back() {
            Some(state) if dice.permille(400) => state.break_down(Some(breakdown)),
            _ => self.raft.break_down(Some(breakdown)),
        }
    }

    pub fn is_broken(&self) -> bool {
        self.raft.is_broken() || self.states.values().any(MemoryEngine::is_broken)
    }

    /// What is broken is replaced before anybody has noticed.
    pub fn mend(&self) {
        std::iter::once(&self.raft)
            .chain(self.states.values())
            .for_each(|database| database.break_down(None));
    }

    /// A crash: of what was not synced, each database keeps some first part.
    pub fn crash(&mut self, dice: &mut Dice) {
        self.raft = self.raft.crash(|unsynced| match dice.between(0, 3) {
            0 => 0,
            1 => unsynced,
            _ => dice.between(0, unsynced as u64) as usize,
        });
        for state in self.states.values_mut() {
            *state = state.crash(|unsynced| dice.between(0, unsynced as u64) as usize);
        }
    }

    /// A copy of what would survive any crash now.
    pub fn durable(&self) -> Self {
        let states = self.states.iter().map(|(index, state)| (*index, state.crash(|_| 0)));
        Self { raft: self.raft.crash(|_| 0), states: states.collect() }
    }

    /// The raft database as raft will find it.
    pub fn log_model(&self) -> LogModel {
        let recovered = Recovered::read(&self.raft).unwrap_or_else(|e| panic!("{e}"));
        let (first, last) = (recovered.truncated.index + 1, recovered.last.index);
        let mut model = LogModel {
            hard_state: recovered.hard_state.clone(),
            truncated: recovered.truncated,
            ..LogModel::default()
        };
        if first <= last {
            let log = RaftLog::open(
                self.raft.clone(),
                &recovered,
                ConfState::default(),
                &recovered.truncated,
            )
            .unwrap_or_else(|e| panic!("{e}"));
            let entries = log.read(first, last + 1, u64::MAX).unwrap_or_else(|e| panic!("{e}"));
            model.terms = entries.iter().map(|entry| (entry.index, entry.term)).collect();
        }
        model
    }
}
