//! The waiter table: which command waits where, and what may be said of it.

use std::collections::{BTreeMap, HashMap, VecDeque};

use prost::Message as _;

use crate::{
    error::Rejected,
    machine::AppliedEntry,
    proto::{Command, Outcome, RequestId},
    replica::Answer,
};

/// Bytes of commands that may wait to be proposed.
const MAX_QUEUED_BYTES: usize = 64 << 20;

/// Commands on their way for each that makes one more entry: with more, and so
/// smaller, entries their messages and syncs cost more than waiting does.
const MOST_UNDER_WAY: usize = 4;

/// A command that waits to be proposed.
#[derive(Debug)]
pub(super) struct Queued {
    pub command: Command,
    /// The member that passed it on.
    pub asker: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Not yet in any log: cancelling it is provably without effect.
    Queued,
    /// In an entry that may commit at any time.
    Proposed,
}

/// Commands from their arrival to their answer.
///
/// The table proves "not applied" in only two ways: the command was never
/// proposed, or an entry of another term was applied at its index. Everything
/// else ends as unknown.
#[derive(Debug, Default)]
pub(super) struct Proposals {
    queued: VecDeque<Queued>,
    queued_bytes: usize,
    /// Looked up only, never iterated: its order is not deterministic.
    stages: HashMap<RequestId, Stage>,
    /// The requests of each entry, by the entry's index and term.
    proposed: BTreeMap<(u64, u64), Vec<RequestId>>,
}

impl Proposals {
    /// Takes a command in, unless too many wait.
    pub fn push(&mut self, id: RequestId, queued: Queued) -> bool {
        let bytes = queued.command.encoded_len();
        if self.queued_bytes > 0 && self.queued_bytes + bytes > MAX_QUEUED_BYTES {
            return false;
        }
        self.queued_bytes += bytes;
        self.stages.insert(id, Stage::Queued);
        self.queued.push_back(queued);
        true
    }

    /// Takes in a command that is proposed outside the queue.
    pub fn register(&mut self, id: RequestId) {
        self.stages.insert(id, Stage::Proposed);
    }

    /// Commands that wait for their answer.
    pub fn pending(&self) -> usize {
        self.stages.len()
    }

    /// Takes the next commands for one entry: at least one if any waits, and
    /// at most about `max_bytes`.
    pub fn take_batch(&mut self, max_bytes: usize) -> Vec<Queued> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.queued.front() {
            let size = next.command.encoded_len();
            if !batch.is_empty() && bytes + size > max_bytes {
                break;
            }
            bytes += size;
            batch.extend(self.queued.pop_front());
        }
        self.queued_bytes -= bytes;
        batch
    }

    /// Whether so few commands are queued, beside those on their way in entries
    /// of this term after `applied`, that more should come before they make one
    /// more entry. What is on its way ends that, when it is applied.
    pub fn is_worth_waiting(&self, applied: u64, term: u64) -> bool {
        let entries = self.proposed.range((applied + 1, 0)..);
        let entries = entries.filter(|&(&(_, theirs), _)| theirs == term);
        let under_way: usize = entries.map(|(_, requests)| requests.len()).sum();
        self.queued.len() < under_way / MOST_UNDER_WAY
    }

    /// A batch became the entry at this position.
    pub fn proposed(&mut self, index: u64, term: u64, requests: Vec<RequestId>) {
        for id in &requests {
            self.stages.insert(*id, Stage::Proposed);
        }
        self.proposed.insert((index, term), requests);
    }

    /// A batch was refused by raft: provably not proposed.
    pub fn refused(&mut self, requests: &[RequestId]) {
        for id in requests {
            self.stages.remove(id);
        }
    }

    /// An entry was applied: the answers that follow from it.
    pub fn applied(&mut self, entry: &AppliedEntry) -> Vec<(RequestId, Answer)> {
        let mut answers = Vec::new();
        for (id, outcome) in &entry.outcomes {
            let id = &self.whose(id);
            if self.stages.remove(id).is_some() {
                let outcome = Outcome { index: entry.position.index, ..outcome.clone() };
                answers.push((*id, Answer::Outcome(outcome)));
            }
        }
        let later = self.proposed.split_off(&(entry.position.index + 1, 0));
        for ((_, term), requests) in std::mem::replace(&mut self.proposed, later) {
            if term == entry.position.term {
                continue;
            }
            for (place, id) in requests.into_iter().enumerate() {
                if mutant!(AnswerByIndex)
                    && let Some((_, outcome)) = entry.outcomes.get(place)
                    && self.stages.remove(&id).is_some()
                {
                    answers.push((id, Answer::Outcome(outcome.clone())));
                } else if self.stages.remove(&id).is_some() {
                    let why = "another leader's entry took its place";
                    let rejected = Rejected::NotApplied(why.to_owned());
                    answers.push((id, Answer::Rejected(rejected)));
                }
            }
        }
        answers
    }

    /// Which request waits for the outcome of this one: itself.
    fn whose(&self, id: &RequestId) -> RequestId {
        if mutant!(CompleteAnothersWaiter) && !self.stages.contains_key(id) {
            return *self.stages.keys().min_by_key(|other| other.sequence).unwrap_or(id);
        }
        *id
    }

    /// A snapshot replaced everything up to `index`: whether the commands in
    /// it were applied cannot be told any more.
    pub fn skipped_to(&mut self, index: u64) -> Vec<RequestId> {
        let later = self.proposed.split_off(&(index + 1, 0));
        let skipped = std::mem::replace(&mut self.proposed, later);
        let requests = skipped.into_values().flatten();
        requests.filter(|id| self.stages.remove(id).is_some()).collect()
    }

    /// Takes every command that was not yet proposed.
    pub fn drain_queued(&mut self) -> Vec<RequestId> {
        self.queued_bytes = 0;
        let ids: Vec<RequestId> =
            self.queued.drain(..).filter_map(|queued| queued.command.id).collect();
        for id in &ids {
            self.stages.remove(id);
        }
        ids
    }

    /// Nobody waits for this command any longer: what can be said of it.
    pub fn cancel(&mut self, id: &RequestId) -> Option<Rejected> {
        match self.stages.remove(id)? {
            Stage::Queued => {
                if let Some(at) =
                    self.queued.iter().position(|it| it.command.id.as_ref() == Some(id))
                {
                    let removed = self.queued.remove(at);
                    self.queued_bytes -= removed.map_or(0, |it| it.command.encoded_len());
                }
                Some(Rejected::NotApplied("it was not proposed in time".to_owned()))
            }
            Stage::Proposed if mutant!(PromiseNotApplied) => {
                Some(Rejected::NotApplied("it was not confirmed in time".to_owned()))
            }
            Stage::Proposed => Some(Rejected::Unknown(
                "it was proposed but not confirmed in time; it may still take effect".to_owned(),
            )),
        }
    }
}
