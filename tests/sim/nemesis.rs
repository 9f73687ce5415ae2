//! Everything that goes wrong, and the changes of membership meanwhile.

use std::collections::BTreeSet;

use metastore::{
    proto::{
        AddMember, BindIncarnation, PromoteMember, RemoveMember, SetClientUrl, SetPeerUrl,
        command::Op, outcome,
    },
    replica::Event,
};

use super::{
    node::{Node, incarnation},
    plan::{MS, SECOND, Time},
    requests::{AdminEnd, Ticket, Work},
    sim::{Action, Step},
    world::World,
};

/// Pause before a membership step is tried again.
const RETRY_PAUSE: Time = 300 * MS;

/// At most so many members.
const MAX_MEMBERS: usize = 6;

/// What is being changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    Add {
        id: u64,
        promote_when_caught_up: bool,
    },
    Bind {
        id: u64,
        promote_when_caught_up: bool,
    },
    Promote {
        id: u64,
    },
    Remove {
        id: u64,
        /// By a new member.
        replace: bool,
    },
    /// Others that need no second step.
    Once,
}

/// The changes of membership: one at a time, each tried until it is decided.
pub struct Changes {
    change: Change,
    ticket: Option<u64>,
    last_ticket: u64,
    last_id: u64,
    /// Who belongs to the cluster once the present change is through.
    pub members: BTreeSet<u64>,
    /// Learners that nobody promotes by itself.
    pub standing_learners: BTreeSet<u64>,
}

impl Changes {
    pub fn new(founders: u64) -> Self {
        Self {
            change: Change::None,
            ticket: None,
            last_ticket: 0,
            last_id: founders,
            members: (1..=founders).collect(),
            standing_learners: BTreeSet::new(),
        }
    }

    pub fn tell(&self) -> String {
        format!("{:?}, {:?} should belong", self.change, self.members)
    }

    pub fn is_idle(&self) -> bool {
        self.change == Change::None
    }
}

impl World {
    /// Injects one fault and plans the next.
    pub fn fault(&mut self) {
        let pause = self.sim.plan.fault_pause;
        if self.chaos_is_over {
            return;
        }
        if self.sim.dice.between(0, 99) < self.sim.plan.changes {
            self.begin_change();
        } else if self.sim.dice.between(0, 99) < self.sim.plan.transfers {
            self.transfer_leader();
        } else {
            match self.sim.dice.between(0, 99) {
                0..=24 => self.crash_one(),
                25..=27 => self.crash_all(),
                28..=32 => self.stop_gracefully(),
                33..=55 => self.partition(),
                56..=65 => self.pause(),
                66..=74 => self.stop_clock(),
                75..=86 => self.slow_down(),
                87..=92 => self.break_disk(),
                93..=96 => self.wipe(),
                _ => self.roll_back(),
            }
        }
        let pause = self.sim.dice.between(pause / 4, pause);
        self.sim.schedule(pause, Action::Fault);
    }

    pub fn victim(&mut self) -> Option<u64> {
        let leader = self.leader().filter(|_| self.sim.dice.permille(450));
        leader.or_else(|| {
            let running = self.running();
            self.sim.dice.pick_any(&running)
        })
    }

    fn crash_one(&mut self) {
        let Some(id) = self.victim() else { return };
        self.crash(id);
    }

    fn crash_all(&mut self) {
        for id in self.running() {
            self.crash(id);
        }
    }

    fn crash(&mut self, id: u64) {
        self.sim.tally.add("crashes", 1);
        let (sim, node) = self.with(id);
        node.crash(sim);
        let longest = self.sim.dice.pick(&[300 * MS, 2 * SECOND, 6 * SECOND]);
        let delay = self.sim.dice.between(20 * MS, longest);
        self.sim.schedule(delay, Action::Restart(id));
    }

    fn stop_gracefully(&mut self) {
        let Some(id) = self.victim() else { return };
        self.sim.tally.add("graceful stops", 1);
        let (sim, node) = self.with(id);
        node.inject(sim, Event::StepDown);
        let last = sim.dice.between(100 * MS, SECOND);
        let away = sim.dice.between(10 * MS, 2 * SECOND);
        sim.step(id, node.epoch, last, Step::Stop(away));
    }

    fn partition(&mut self) {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        if ids.len() < 2 {
            return;
        }
        let leader = self.leader();
        let kind = self.sim.net.partition(&ids, leader, &mut self.sim.dice);
        let is_symmetric = matches!(kind, "isolate" | "split");
        let shape = if is_symmetric { "symmetric partitions" } else { "asymmetric partitions" };
        self.sim.tally.add(shape, 1);
        let generation = self.sim.net.generation;
        self.sim.tally.add("partitions", 1);
        self.sim.note("partition", leader.unwrap_or(0), &[generation], || kind.to_owned());
        let lasts = self.sim.dice.between(200 * MS, 6 * SECOND);
        self.sim.schedule(lasts, Action::Heal(generation));
    }

    fn pause(&mut self) {
        let Some(id) = self.victim() else { return };
        self.sim.tally.add("pauses", 1);
        let (sim, node) = self.with(id);
        let lasts = sim.dice.between(100 * MS, 4 * SECOND);
        node.paused_until = sim.now + lasts;
        sim.note("pause", id, &[lasts], String::new);
    }

    /// A clock stands still while everything else goes on, and then jumps to
    /// where it should be.
    fn stop_clock(&mut self) {
        let Some(id) = self.victim() else { return };
        self.sim.tally.add("clock jumps", 1);
        let (sim, node) = self.with(id);
        let longest = sim.dice.pick(&[1, 2 * SECOND, 6 * SECOND]);
        let lasts = sim.dice.between(1, longest);
        node.clock_stands_until = sim.now + lasts;
        sim.note("clock", id, &[lasts], String::new);
    }

    /// A disk refuses writes or syncs until the process has stopped over it.
    fn break_disk(&mut self) {
        let Some(id) = self.victim() else { return };
        let (sim, node) = self.with(id);
        node.disk.break_down(&mut sim.dice);
        sim.note("disk", id, &[], String::new);
    }

    /// A member loses its disk for good: it is removed, and another takes its
    /// place under a new id. Enough others must be left to decide that.
    fn wipe(&mut self) {
        let Some(id) = self.victim() else { return };
        if !self.may_be_replaced(id) {
            return;
        }
        self.sim.tally.add("disks wiped", 1);
        let (sim, node) = self.with(id);
        sim.note("wipe", id, &[], String::new);
        node.crash(sim);
        node.removed = true;
        self.replace(id);
    }

    /// Whether the others can decide now that another takes this one's place.
    pub fn may_be_replaced(&self, id: u64) -> bool {
        let newest = self.nodes.values().filter_map(Node::members);
        let Some(newest) = newest.max_by_key(|members| members.members.len()) else { return false };
        let known: BTreeSet<u64> = newest.members.iter().map(|member| member.id).collect();
        let voters = newest.members.iter().filter(|member| !member.learner).count();
        let knows_all = self.nodes.values().filter_map(Node::members).all(|m| m == newest);
        self.changes.is_idle()
            && knows_all
            && known == self.changes.members
            && known.contains(&id)
            && voters >= 3
    }

    /// A member that is lost for good is removed, and another takes its place.
    pub fn replace(&mut self, id: u64) {
        self.changes.members.remove(&id);
        self.changes.standing_learners.remove(&id);
        self.changes.change = Change::Remove { id, replace: true };
        self.membership_step();
    }

    fn slow_down(&mut self) {
        let Some(id) = self.victim() else { return };
        self.sim.tally.add("slow disks", 1);
        let (sim, node) = self.with(id);
        let until = sim.now + sim.dice.between(500 * MS, 4 * SECOND);
        let is_log = sim.dice.permille(600);
        sim.note("slow", id, &[until, u64::from(is_log)], String::new);
        if is_log {
            node.slow_disk_until = until;
        } else {
            node.slow_apply_until = until;
        }
    }

    fn transfer_leader(&mut self) {
        if !self.changes.is_idle() {
            return;
        }
        let ids: Vec<u64> = self.changes.members.iter().copied().collect();
        let Some(target) = self.sim.dice.pick_any(&ids) else { return };
        self.begin(Change::Once, Work::Transfer(target));
    }

    fn begin_change(&mut self) {
        if !self.changes.is_idle() {
            return;
        }
        let ids: Vec<u64> = self.changes.members.iter().copied().collect();
        let least = self.sim.plan.least_members;
        let shrink = ids.len() >= MAX_MEMBERS || (ids.len() > least && self.sim.dice.permille(500));
        if self.sim.dice.permille(150) {
            let id = self.sim.dice.pick(&ids);
            let nonce = self.sim.now;
            let op = if self.sim.dice.permille(500) {
                Op::SetClientUrl(SetClientUrl { id, client_url: format!("http://c{nonce}") })
            } else {
                Op::SetPeerUrl(SetPeerUrl { id, peer_url: format!("http://p{nonce}") })
            };
            self.begin(Change::Once, Work::Command(op));
        } else if shrink {
            let leader = self.leader().filter(|id| ids.contains(id));
            let victim = leader.filter(|_| self.sim.dice.permille(400));
            self.sim.tally.add("removals of the leader", u64::from(victim.is_some()));
            let id = victim.unwrap_or_else(|| self.sim.dice.pick(&ids));
            self.changes.members.remove(&id);
            self.changes.standing_learners.remove(&id);
            self.changes.change = Change::Remove { id, replace: false };
            self.membership_step();
        } else {
            let promote_when_caught_up = self.sim.dice.permille(800);
            self.changes.change = self.addition(promote_when_caught_up);
            self.membership_step();
        }
    }

    fn addition(&mut self, promote_when_caught_up: bool) -> Change {
        self.changes.last_id += 1;
        Change::Add { id: self.changes.last_id, promote_when_caught_up }
    }

    /// Does, or does again, what the present change needs next.
    pub fn membership_step(&mut self) {
        if self.changes.ticket.is_some() {
            return;
        }
        let change = self.changes.change;
        let op = match change {
            Change::None | Change::Once => return,
            Change::Add { id, promote_when_caught_up } => Op::AddMember(AddMember {
                id,
                peer_url: format!("http://m{id}"),
                promote_when_caught_up,
            }),
            Change::Bind { id, .. } => {
                Op::BindIncarnation(BindIncarnation { id, incarnation: incarnation(id) })
            }
            Change::Promote { id } => Op::PromoteMember(PromoteMember { id }),
            Change::Remove { id, .. } => Op::RemoveMember(RemoveMember { id }),
        };
        self.begin(change, Work::Command(op));
    }

    fn begin(&mut self, change: Change, work: Work) {
        self.changes.change = change;
        let running = self.running();
        let Some(id) = self.sim.dice.pick_any(&running) else {
            if change == Change::Once {
                self.changes.change = Change::None;
            }
            return self.sim.schedule(RETRY_PAUSE, Action::Membership);
        };
        self.changes.last_ticket += 1;
        let ticket = self.changes.last_ticket;
        self.changes.ticket = Some(ticket);
        let (sim, node) = self.with(id);
        node.submit(sim, Ticket::Admin(ticket), work, 5 * SECOND);
    }

    /// A membership request ended.
    pub fn admin_ended(&mut self, ticket: u64) {
        let end = self.sim.admin_ends.remove(&ticket).expect("an ended request has its end");
        if self.changes.ticket != Some(ticket) {
            return;
        }
        self.changes.ticket = None;
        let change = self.changes.change;
        let decided = match (&end, change) {
            (_, Change::Once) => true,
            (AdminEnd::Done(outcome), _) => match &outcome.result {
                Some(outcome::Result::Member(_)) => true,
                // Removed, and the answer to that was lost.
                Some(outcome::Result::MemberNotFound(_)) => matches!(change, Change::Remove { .. }),
                Some(outcome::Result::Conflict(_)) if matches!(change, Change::Remove { .. }) => {
                    false
                }
                other => panic!("{change:?} was decided as {other:?}"),
            },
            _ => false,
        };
        if let (AdminEnd::Done(outcome), Change::Remove { id, .. }) = (&end, change)
            && let Some(outcome::Result::Conflict(_)) = outcome.result
        {
            // It is the last voter.
            self.changes.members.insert(id);
            self.changes.change = Change::None;
            return;
        }
        if decided {
            if matches!(end, AdminEnd::Led) {
                self.sim.tally.add("leader transfers", 1);
            }
            self.changes.change = self.decided(change);
        }
        let pause = if decided { 0 } else { RETRY_PAUSE };
        self.sim.schedule(pause, Action::Membership);
    }

    /// A step was committed; answers the next one.
    fn decided(&mut self, change: Change) -> Change {
        match change {
            Change::None | Change::Once => Change::None,
            Change::Add { id, promote_when_caught_up } => {
                self.sim.tally.add("members added", 1);
                Change::Bind { id, promote_when_caught_up }
            }
            Change::Bind { id, promote_when_caught_up } => {
                self.changes.members.insert(id);
                let mut node = Node::join(&mut self.sim, id, self.cluster_id);
                node.start(&mut self.sim);
                self.nodes.insert(id, node);
                if promote_when_caught_up || self.sim.dice.permille(500) {
                    return if promote_when_caught_up {
                        Change::None
                    } else {
                        Change::Promote { id }
                    };
                }
                self.changes.standing_learners.insert(id);
                Change::None
            }
            Change::Promote { .. } => {
                self.sim.tally.add("members promoted by hand", 1);
                Change::None
            }
            Change::Remove { id, replace } => {
                self.sim.tally.add("members removed", 1);
                self.removed_ids.insert(id);
                if replace { self.addition(true) } else { Change::None }
            }
        }
    }
}
