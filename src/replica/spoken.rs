//! Which protocols the other members speak.

use std::collections::BTreeMap;

use super::Replica;
use crate::{machine::command, proto::Command, storage::Engine, version::PROTOCOL};

/// The newest protocol that each peer has said it speaks, as it said last.
#[derive(Debug, Default)]
pub(super) struct Spoken(BTreeMap<u64, u32>);

impl Spoken {
    pub fn heard(&mut self, member: u64, newest: u32) {
        self.0.insert(member, newest);
    }
}

impl<E: Engine> Replica<E> {
    /// Why a command may be neither proposed nor passed on. A member that does
    /// not know it would have to stop; a leader that does not know a part of it
    /// would propose the rest. Whoever has not said what it speaks may be of the
    /// oldest version there is.
    pub(super) fn not_understood(&self, command: &Command) -> Option<String> {
        let needed = command::version_of(command);
        let leader = self.node.raft.leader_id;
        let concerned = |id| id != self.options.id && (self.leads() || id == leader);
        let speaks = |id| *self.membership.spoken.0.get(&id).unwrap_or(&PROTOCOL.oldest());
        let mut ids = self.members.members.iter().map(|member| member.id);
        let member = ids.find(|id| concerned(*id) && speaks(*id) < needed)?;
        (!mutant!(ProposeUnknown)).then(|| {
            format!(
                "member {member} is not known to speak protocol {needed}, which this request \
                 came with; upgrade it or, if it is down, start it"
            )
        })
    }
}
