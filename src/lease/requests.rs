//! The questions that wait, each in exactly one stage.

use std::collections::BTreeMap;

use super::{Effect, Question, Reply};

/// Questions that may wait at once. Beyond it they are refused: at this depth
/// the leader is overloaded, and clients ask again.
pub const MAX_WAITING: usize = 1 << 16;

/// Rounds under way at once: more than one so that a question need not wait
/// for the round before its own, bounded because each costs heartbeats.
const MAX_ROUNDS: usize = 4;

/// A client's question.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub ticket: u64,
    pub id: i64,
    pub question: Question,
}

/// A round of confirmations under way.
#[derive(Debug)]
pub(super) struct Round {
    /// The tick at which it began.
    pub begun: u64,
    pub asked: Vec<Asked>,
    /// Whether leases wait for it to be expired.
    pub for_expiry: bool,
}

/// Questions and the rounds they wait for.
#[derive(Debug, Default)]
pub(super) struct Requests {
    queued: Vec<Asked>,
    rounds: BTreeMap<u64, Round>,
    /// Keep-alives that wait for a renewal in the log to be proposed, by lease.
    to_renew: BTreeMap<i64, Vec<Asked>>,
    /// How many keep-alives wait for each lease, in whichever stage.
    renewing: BTreeMap<i64, usize>,
    waiting: usize,
}

impl Requests {
    /// Takes a question in, unless too many wait.
    pub fn push(&mut self, asked: Asked) -> bool {
        if self.waiting >= MAX_WAITING {
            return false;
        }
        self.waiting += 1;
        if asked.question == Question::KeepAlive {
            *self.renewing.entry(asked.id).or_default() += 1;
        }
        self.queued.push(asked);
        true
    }

    /// Whether a keep-alive waits for this lease.
    pub fn is_asked_to_renew(&self, id: i64) -> bool {
        self.renewing.contains_key(&id)
    }

    /// Whether a round would serve anybody and may begin.
    pub fn wants_round(&self) -> bool {
        !self.queued.is_empty() && self.may_begin()
    }

    pub fn may_begin(&self) -> bool {
        self.rounds.len() < MAX_ROUNDS
    }

    /// Whether leases wait for a round under way to be expired.
    pub fn has_round_for_expiry(&self) -> bool {
        self.rounds.values().any(|round| round.for_expiry)
    }

    /// Begins a round for all queued questions.
    pub fn begin(&mut self, number: u64, now: u64, for_expiry: bool) {
        let asked = std::mem::take(&mut self.queued);
        self.rounds.insert(number, Round { begun: now, asked, for_expiry });
    }

    pub fn take_round(&mut self, number: u64) -> Option<Round> {
        self.rounds.remove(&number)
    }

    /// These need another round.
    pub fn queue_again(&mut self, asked: Vec<Asked>) {
        self.queued.extend(asked);
    }

    /// This keep-alive needs a renewal in the log.
    pub fn needs_log(&mut self, asked: Asked) {
        self.to_renew.entry(asked.id).or_default().push(asked);
    }

    pub fn has_to_renew(&self) -> bool {
        !self.to_renew.is_empty()
    }

    /// Takes the keep-alives of at most so many leases, by lease.
    pub fn take_to_renew(&mut self, limit: usize) -> BTreeMap<i64, Vec<Asked>> {
        match self.to_renew.keys().nth(limit).copied() {
            Some(first_left) => {
                let left = self.to_renew.split_off(&first_left);
                std::mem::replace(&mut self.to_renew, left)
            }
            None => std::mem::take(&mut self.to_renew),
        }
    }

    /// Answers a question.
    pub fn answer(&mut self, asked: Asked, reply: Reply, effects: &mut Vec<Effect>) {
        self.waiting = self.waiting.saturating_sub(1);
        if asked.question == Question::KeepAlive
            && let Some(count) = self.renewing.get_mut(&asked.id)
        {
            *count -= 1;
            if *count == 0 {
                self.renewing.remove(&asked.id);
            }
        }
        effects.push(Effect::Reply(asked.ticket, reply));
    }

    /// Takes every question that waits here and forgets the rounds.
    pub fn drain(&mut self) -> Vec<Asked> {
        let mut all = std::mem::take(&mut self.queued);
        all.extend(std::mem::take(&mut self.rounds).into_values().flat_map(|round| round.asked));
        all.extend(std::mem::take(&mut self.to_renew).into_values().flatten());
        all
    }

    #[cfg(test)]
    pub fn waiting(&self) -> (usize, usize) {
        (self.waiting, self.renewing.values().sum())
    }
}
