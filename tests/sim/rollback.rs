//! A member whose data directory is an older copy, and who may call it that.
//!
//! As long as one member that remembers can be reached, the older copy never
//! takes part. And nobody else is ever refused, whatever happens.

use metastore::raftlog::{Promises, Recovered};
use raft::eraftpb::Message;

use super::{node::Node, world::World};

impl World {
    /// A member comes back with the copy of its disk that was made some time
    /// ago, and another takes its place.
    pub fn roll_back(&mut self) {
        let Some(id) = self.victim() else { return };
        if !self.may_be_replaced(id) {
            return;
        }
        let Some(copy) = &self.nodes[&id].copy else { return };
        let recovered = Recovered::read(&copy.raft).unwrap_or_else(|e| panic!("{e}"));
        let present = recovered.promises();
        let remembers = |peer: &Node| heard(peer, id).is_some_and(|known| lacks(&present, &known));
        if !self.reachable(id).any(remembers) {
            return;
        }
        self.sim.tally.add("older copies put back", 1);
        let (sim, node) = self.with(id);
        sim.note("roll back", id, &[recovered.last.index], String::new);
        node.crash(sim);
        node.come_back_older(sim);
        self.roll_call(id);
        assert!(self.nodes[&id].removed, "member {id} takes part with an older copy");
        self.replace(id);
    }

    /// A member that starts asks the others whether they remember more of it.
    pub fn roll_call(&mut self, id: u64) {
        let Some(present) = self.nodes[&id].promises() else { return };
        let known = self.reachable(id).find_map(|peer| outdated(peer, id, &present));
        if let Some(known) = known {
            self.refuse(id, &present, &known);
        }
    }

    /// Whether the receiver of this message lets its sender in. A connection
    /// says what its member has by now, which is never less than any message
    /// says that is still under way.
    pub fn lets_in(&mut self, message: &Message) -> bool {
        let present = self.nodes.get(&message.from).and_then(Node::promises);
        let Some(present) = present else { return true };
        let known = outdated(&self.nodes[&message.to], message.from, &present);
        if let Some(known) = known {
            self.refuse(message.from, &present, &known);
        }
        known.is_none()
    }

    fn refuse(&mut self, id: u64, present: &Promises, known: &Promises) {
        let (sim, node) = self.with(id);
        assert!(node.is_older, "member {id} was refused: it has {present}, not {known}");
        sim.note("refused", id, &[present.term, known.term], String::new);
        sim.tally.add("older copies refused", 1);
        node.crash(sim);
        node.removed = true;
    }

    /// The running members that this one can ask.
    fn reachable(&self, id: u64) -> impl Iterator<Item = &Node> {
        let net = &self.sim.net;
        self.nodes.values().filter(move |peer| {
            let awake = peer.process.is_some() && peer.paused_until <= self.sim.now;
            awake && peer.id != id && net.is_open(id, peer.id) && net.is_open(peer.id, id)
        })
    }
}

/// What this peer knows the member to have had, if this is less.
fn outdated(peer: &Node, id: u64, present: &Promises) -> Option<Promises> {
    heard(peer, id).filter(|known| present.are_behind(known))
}

/// What this peer heard the member promise.
fn heard(peer: &Node, id: u64) -> Option<Promises> {
    let (_, heard) = peer.process.as_ref()?.replica.promises();
    heard.of(id).copied()
}

/// Whether it is beyond doubt that this is less than what is known. The rule
/// that members follow is what is tested here, so this is not that rule.
fn lacks(present: &Promises, known: &Promises) -> bool {
    let in_one_term = present.term == known.term;
    let votes_again = known.vote != 0 && present.vote != known.vote;
    present.term < known.term
        || in_one_term && (present.last.index < known.last.index || votes_again)
}
