//! How events and writes appear in the trace and its hash.

use metastore::{raftlog::Persist, replica::Event};

use super::sim::Sim;

/// An event that a replica is about to take.
pub fn event(sim: &mut Sim, node: u64, event: &Event) {
    match event {
        Event::Message(m) => {
            let kind = m.get_msg_type();
            let numbers = [
                m.from,
                kind as u64,
                m.term,
                m.log_term,
                m.index,
                m.commit,
                m.entries.len() as u64,
                u64::from(m.reject),
                m.reject_hint,
                m.get_snapshot().get_metadata().index,
            ];
            sim.note("message", node, &numbers, || format!("{kind:?}"));
        }
        Event::Announce => sim.note("announce", node, &[], String::new),
        Event::Tick => sim.note("tick", node, &[], String::new),
        Event::Persisted(number) => sim.note("persisted", node, &[*number], String::new),
        Event::Propose(command) | Event::ProposeFor(_, command) => {
            let sequence = command.id.map_or(0, |id| id.sequence);
            sim.note("propose", node, &[sequence], || format!("{:?}", command.op));
        }
        Event::Read(id) => sim.note("read", node, &[id.sequence], String::new),
        Event::Cancel(id) => sim.note("cancel", node, &[id.sequence], String::new),
        Event::Unreachable(to) => sim.note("unreachable", node, &[*to], String::new),
        Event::Speaks { member, newest } => {
            sim.note("speaks", node, &[*member, u64::from(*newest)], String::new);
        }
        Event::TransferLeader(id, to) => {
            sim.note("transfer leader", node, &[id.sequence, *to], String::new);
        }
        Event::SnapshotSent { to, position, success } => {
            let numbers = [*to, position.index, u64::from(*success)];
            sim.note("snapshot sent", node, &numbers, String::new);
        }
        Event::Applied(_) | Event::Restored(_) | Event::SnapshotMade(_) | Event::StepDown => {
            sim.note("event", node, &[], || format!("{event:?}").chars().take(60).collect());
        }
    }
}

/// A write that raft ordered.
pub fn persist(sim: &mut Sim, node: u64, persist: &Persist) {
    let hard = persist.hard_state.clone().unwrap_or_default();
    let numbers = [
        persist.number,
        hard.term,
        hard.vote,
        hard.commit,
        persist.install.map_or(0, |position| position.index),
        persist.entries.first().map_or(0, |entry| entry.index),
        persist.entries.len() as u64,
        persist.compact.map_or(0, |position| position.index),
        u64::from(persist.sync),
    ];
    sim.note("persist", node, &numbers, String::new);
}
