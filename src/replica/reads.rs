//! Linearizable reads: a read may be served once this member has applied
//! everything that was committed when the read arrived.
//!
//! Raft's ReadIndex answers which index that is. One round serves every read
//! that was waiting when it began; a read never joins a round already under
//! way, whose answer may be older than the read. Raft drops rounds silently
//! (no leader, a new term), so each is asked again after a while under a new
//! context.

use std::collections::{BTreeMap, VecDeque};

use raft::ReadOnlyOption;

use crate::proto::RequestId;

/// Rounds under way at once. More than one so that a read does not have to
/// wait for the round before its own; bounded because each costs heartbeats.
const MAX_ROUNDS: usize = 8;

/// Reads that may wait at once.
const MAX_WAITING: usize = 1 << 17;

/// How raft confirms a round: by asking, since a clock may stand still.
pub(super) fn confirmation() -> ReadOnlyOption {
    if mutant!(LeaseBasedRead) { ReadOnlyOption::LeaseBased } else { ReadOnlyOption::Safe }
}

#[derive(Debug)]
struct Round {
    context: Vec<u8>,
    reads: Vec<RequestId>,
    born: u64,
}

/// The reads that wait, each in exactly one stage.
#[derive(Debug)]
pub(super) struct Reads {
    member: u64,
    nonce: u64,
    sequence: u64,
    queued: Vec<RequestId>,
    rounds: VecDeque<Round>,
    /// Confirmed, waiting until the index is applied.
    confirmed: BTreeMap<u64, Vec<RequestId>>,
    waiting: usize,
}

impl Reads {
    pub fn new(member: u64, nonce: u64) -> Self {
        Self {
            member,
            nonce,
            sequence: 0,
            queued: Vec::new(),
            rounds: VecDeque::new(),
            confirmed: BTreeMap::new(),
            waiting: 0,
        }
    }

    /// Takes a read in, unless too many wait.
    pub fn push(&mut self, id: RequestId) -> bool {
        if self.waiting >= MAX_WAITING {
            return false;
        }
        self.waiting += 1;
        if mutant!(ReadJoinsOldRound)
            && let Some(round) = self.rounds.back_mut()
        {
            round.reads.push(id);
            return true;
        }
        self.queued.push(id);
        true
    }

    /// Begins a round for all queued reads. Gives the context to ask raft
    /// with, unique to this member and start.
    pub fn begin_round(&mut self, now: u64) -> Option<Vec<u8>> {
        if self.queued.is_empty() || self.rounds.len() >= MAX_ROUNDS {
            return None;
        }
        self.sequence += 1;
        let context: Vec<u8> = [self.member, self.nonce, self.sequence]
            .iter()
            .flat_map(|number| number.to_be_bytes())
            .collect();
        let reads = std::mem::take(&mut self.queued);
        self.rounds.push_back(Round { context: context.clone(), reads, born: now });
        Some(context)
    }

    /// Raft confirmed the round of this context at this index.
    pub fn confirm(&mut self, context: &[u8], index: u64) {
        if let Some(at) = self.rounds.iter().position(|round| round.context == context)
            && let Some(round) = self.rounds.remove(at)
        {
            self.confirmed.entry(index).or_default().extend(round.reads);
        }
    }

    /// The reads that can be served now that `applied` is applied.
    pub fn release(&mut self, applied: u64) -> Vec<RequestId> {
        let mut ready = Vec::new();
        let applied = if mutant!(ReadBeforeApplied) { u64::MAX } else { applied };
        while let Some(entry) = self.confirmed.first_entry()
            && *entry.key() <= applied
        {
            ready.extend(entry.remove());
        }
        self.waiting -= ready.len();
        ready
    }

    /// Asks again for every round begun at or before `born`.
    pub fn retry(&mut self, born: u64) {
        while self.rounds.front().is_some_and(|round| round.born <= born) {
            self.queued.extend(self.rounds.pop_front().into_iter().flat_map(|round| round.reads));
        }
    }

    /// Takes out one read that nobody waits for any more.
    pub fn cancel(&mut self, id: &RequestId) -> bool {
        let stages = std::iter::once(&mut self.queued)
            .chain(self.rounds.iter_mut().map(|round| &mut round.reads))
            .chain(self.confirmed.values_mut());
        for reads in stages {
            if let Some(at) = reads.iter().position(|read| read == id) {
                reads.swap_remove(at);
                self.waiting -= 1;
                return true;
            }
        }
        false
    }

    /// Takes out every read.
    pub fn drain(&mut self) -> Vec<RequestId> {
        let mut all = std::mem::take(&mut self.queued);
        all.extend(self.rounds.drain(..).flat_map(|round| round.reads));
        all.extend(std::mem::take(&mut self.confirmed).into_values().flatten());
        self.waiting = 0;
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(sequence: u64) -> RequestId {
        RequestId { member: 1, nonce: 9, sequence }
    }

    #[test]
    fn a_round_takes_what_was_queued_before_it_and_nothing_after() {
        let mut reads = Reads::new(1, 9);
        assert!(reads.push(id(1)) && reads.push(id(2)));
        let first = reads.begin_round(0).unwrap();
        assert!(reads.push(id(3)));
        let second = reads.begin_round(0).unwrap();
        assert_ne!(first, second);
        reads.confirm(&first, 5);
        assert_eq!(reads.release(4), []);
        assert_eq!(reads.release(5), [id(1), id(2)]);
        reads.confirm(&second, 5);
        assert_eq!(reads.release(5), [id(3)]);
    }

    #[test]
    fn an_unanswered_round_is_asked_again_under_a_new_context() {
        let mut reads = Reads::new(1, 9);
        reads.push(id(1));
        let first = reads.begin_round(10).unwrap();
        reads.retry(9);
        assert_eq!(reads.begin_round(11), None);
        reads.retry(10);
        let second = reads.begin_round(11).unwrap();
        assert_ne!(first, second);
        reads.confirm(&first, 3);
        assert_eq!(reads.release(9), []);
        reads.confirm(&second, 3);
        assert_eq!(reads.release(9), [id(1)]);
    }

    #[test]
    fn a_cancelled_read_is_found_in_every_stage() {
        let mut reads = Reads::new(1, 9);
        for sequence in 1..=3 {
            reads.push(id(sequence));
            if sequence < 3 {
                let context = reads.begin_round(0).unwrap();
                if sequence == 1 {
                    reads.confirm(&context, 8);
                }
            }
        }
        assert!(reads.cancel(&id(1)) && reads.cancel(&id(2)) && reads.cancel(&id(3)));
        assert!(!reads.cancel(&id(1)));
        assert_eq!(reads.release(9), []);
        assert_eq!(reads.waiting, 0);
    }
}
