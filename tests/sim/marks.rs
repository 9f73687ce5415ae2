//! Marks, at which all members freeze their states to have them compared.

use metastore::{
    machine::StateMachine,
    proto::{CheckState, LogPosition, command::Op},
    replica::Event,
    storage::memory::MemoryEngine,
    version::PROTOCOL,
};

use super::{
    plan::{MS, SECOND, Time},
    requests::{Ticket, Work},
    sim::{Action, Sim},
    world::World,
};

/// How long a leader waits for a mark to be applied.
const PATIENCE: Time = 2 * SECOND;

impl World {
    /// The leader proposes a mark, and plans the next.
    pub fn propose_mark(&mut self) {
        if self.clients_stopped {
            return;
        }
        let longest = self.sim.plan.mark_pause;
        let pause = self.sim.dice.between(100 * MS, longest);
        self.sim.schedule(pause, Action::Mark);
        let Some(leader) = self.leader() else { return };
        let (sim, node) = self.with(leader);
        let members = node.members().expect("a leader runs");
        // It has heard from most of them what they speak, and refuses to propose
        // what one might not know.
        for member in members.members.iter().filter(|member| member.id != leader) {
            if sim.dice.permille(950) {
                let newest = PROTOCOL.newest();
                node.inject(sim, Event::Speaks { member: member.id, newest });
            }
        }
        let work = Work::Command(Op::CheckState(CheckState {}));
        node.submit(sim, Ticket::Mark, work, PATIENCE);
    }
}

/// A batch ended with a mark: what the member would report is what all others
/// report for it.
pub fn compare(
    sim: &mut Sim,
    id: u64,
    mark: Option<LogPosition>,
    machine: &StateMachine<MemoryEngine>,
) {
    let Some(mark) = mark else { return };
    let hash = machine.view().hash().unwrap_or_else(|e| panic!("{e}"));
    sim.note("mark", id, &[mark.index], || hash.to_string());
    sim.checks.marked(id, mark, &hash.hash);
}
