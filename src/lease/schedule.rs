//! Which lease's turn comes when.

use std::collections::BTreeSet;

/// The turn of a lease that has none.
pub(super) const NEVER: u64 = u64::MAX;

/// Leases ordered by the tick of their turn; each lease has one at most, and
/// remembers it.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    turns: BTreeSet<(u64, i64)>,
}

impl Schedule {
    /// Gives a lease another turn than it has.
    pub fn put(&mut self, turn: &mut u64, next: u64, id: i64) {
        if *turn == next {
            return;
        }
        if *turn != NEVER {
            self.turns.remove(&(*turn, id));
        }
        if next != NEVER {
            self.turns.insert((next, id));
        }
        *turn = next;
    }

    /// The lease whose turn it is at `now`, if there is one.
    pub fn first(&self, now: u64) -> Option<i64> {
        self.turns.first().filter(|(turn, _)| *turn <= now).map(|(_, id)| *id)
    }

    /// Leases with a turn.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.turns.len()
    }

    pub fn clear(&mut self) {
        self.turns.clear();
    }
}
