//! Which messages arrive, when, and how often.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    dice::Dice,
    plan::{MS, Plan, SECOND, Time},
    sim::Tally,
};

/// The links between members, by direction.
#[derive(Default)]
pub struct Network {
    cut: BTreeSet<(u64, u64)>,
    /// Counts the partitions, so that a late healing spares the next one.
    pub generation: u64,
    /// Nothing is lost, doubled or held up any more.
    pub calm: bool,
    /// When the last message of each link arrives, to see how many overtake it.
    latest: BTreeMap<(u64, u64), Time>,
    pub tally: Tally,
}

impl Network {
    pub fn is_open(&self, from: u64, to: u64) -> bool {
        !self.cut.contains(&(from, to))
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// A message that arrives then has left.
    pub fn sent(&mut self, from: u64, to: u64, arrives: Time) {
        let latest = self.latest.entry((from, to)).or_default();
        if arrives < *latest {
            self.tally.add("messages reordered", 1);
        }
        *latest = arrives.max(*latest);
    }

    /// When the copies of a message that leaves now arrive; none when it is lost.
    pub fn delays(&mut self, plan: &Plan, dice: &mut Dice) -> Vec<Time> {
        if self.calm {
            return vec![dice.between(200, 2 * MS)];
        }
        if dice.permille(plan.lost) {
            self.tally.add("messages lost", 1);
            return Vec::new();
        }
        let copies = if dice.permille(plan.doubled) { 2 } else { 1 };
        self.tally.add("messages doubled", copies - 1);
        (0..copies)
            .map(|_| {
                let held_up = dice.permille(plan.held_up);
                self.tally.add("messages held up", u64::from(held_up));
                let longest = if held_up { 3 * SECOND } else { plan.delay };
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
