//! Which messages arrive, when, and how often.

use std::collections::BTreeSet;

use crate::{
    dice::Dice,
    plan::{MS, Plan, SECOND, Time},
};

/// The links between members, by direction.
#[derive(Default)]
pub struct Network {
    cut: BTreeSet<(u64, u64)>,
    /// Counts the partitions, so that a late healing spares the next one.
    pub generation: u64,
    /// Nothing is lost, doubled or held up any more.
    pub calm: bool,
}

impl Network {
    pub fn is_open(&self, from: u64, to: u64) -> bool {
        !self.cut.contains(&(from, to))
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// When the copies of a message that leaves now arrive; none when it is lost.
    pub fn delays(&self, plan: &Plan, dice: &mut Dice) -> Vec<Time> {
        if self.calm {
            return vec![dice.between(200, 2 * MS)];
        }
        if dice.permille(plan.lost) {
            return Vec::new();
        }
        let copies = if dice.permille(plan.doubled) { 2 } else { 1 };
        (0..copies)
            .map(|_| {
                let longest = if dice.permille(plan.held_up) { 3 * SECOND } else { plan.delay };
                dice.between(100, longest)
            })
            .collect()
    }

    /// Cuts links in one of several patterns; answers its name.
    pub fn partition(&mut self, ids: &[u64], leader: Option<u64>, dice: &mut Dice) -> &'static str {
        self.generation += 1;
        self.cut.clear();
        let victim = leader.filter(|_| dice.permille(600)).unwrap_or_else(|| dice.pick(ids));
        let others: Vec<u64> = ids.iter().copied().filter(|id| *id != victim).collect();
        match dice.between(0, 4) {
            0 => {
                for other in &others {
                    self.cut_both(victim, *other);
                }
                "isolate"
            }
            1 => {
                self.cut.extend(others.iter().map(|other| (victim, *other)));
                "deaf to one"
            }
            2 => {
                self.cut.extend(others.iter().map(|other| (*other, victim)));
                "one is deaf"
            }
            3 => {
                let side: Vec<bool> = ids.iter().map(|_| dice.permille(500)).collect();
                for (a, in_a) in ids.iter().zip(&side) {
                    for (b, _) in ids.iter().zip(&side).filter(|(_, in_b)| *in_b != in_a) {
                        self.cut_both(*a, *b);
                    }
                }
                "split"
            }
            _ => {
                for from in ids {
                    for to in ids {
                        if from != to && dice.permille(350) {
                            self.cut.insert((*from, *to));
                        }
                    }
                }
                "random links"
            }
        }
    }

    fn cut_both(&mut self, a: u64, b: u64) {
        self.cut.insert((a, b));
        self.cut.insert((b, a));
    }
}
