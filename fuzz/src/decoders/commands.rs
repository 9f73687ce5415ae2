//! Commands of the log: read, and everything that can be read applied.

use metastore::{
    error::Fatal,
    machine::{StateMachine, command},
    storage::memory::MemoryEngine,
};
use raft::eraftpb::{Entry, EntryType};

use super::{input, store};
use crate::{
    dice::Dice,
    raft_message::payload,
    run::{Decoder, Verdict, within},
};

/// Memory for a payload: an empty command is two bytes in it and some hundreds
/// in memory, and the list of them grows by doubling.
const MEMORY: (usize, usize) = (1024, 1 << 20);

/// Every so many inputs are applied twice, to see that the same comes of it.
const REPEATED: u8 = 8;

/// Reads and applies entries of the log.
pub struct Commands {
    store: MemoryEngine,
}

impl Commands {
    /// A store to apply to.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self, Fatal> {
        Ok(Self { store: store::full()? })
    }

    /// Applies the entries to a store of their own.
    fn apply(&self, entries: &[Entry]) -> Result<String, String> {
        let fatal = |fatal: Fatal| format!("what can be read cannot be applied: {fatal}");
        let mut machine = StateMachine::open(self.store.checkpoint()).map_err(fatal)?;
        for entry in entries {
            let (revision, position) = (machine.revision(), machine.position());
            let entry = Entry { index: position.index + 1, term: position.term, ..entry.clone() };
            machine.apply(&[entry]).map_err(fatal)?;
            if machine.revision() < revision {
                return Err(format!("the revision fell from {revision}"));
            }
        }
        machine.view().hash().map(|hash| hash.to_string()).map_err(fatal)
    }
}

impl Decoder for Commands {
    fn name(&self) -> &'static str {
        "commands"
    }

    /// The first byte says what kind of entry it is, the rest is what it holds.
    fn input(&mut self, dice: &mut Dice) -> Vec<u8> {
        let kind = dice.byte();
        let mut data = input(dice, &mut payload);
        data.insert(0, kind);
        data
    }

    fn read(&mut self, input: &[u8]) -> Result<Verdict, String> {
        let Some((&kind, data)) = input.split_first() else { return Ok(Verdict::Refused) };
        let mut entry = Entry::default();
        let is_change = kind.is_multiple_of(4);
        let decoded = within(data.len(), MEMORY, || {
            if is_change {
                command::decode_command(data).map(|command| vec![command])
            } else {
                command::decode_payload(data)
            }
        })?;
        if is_change {
            entry.set_entry_type(EntryType::EntryConfChangeV2);
            entry.context = data.to_vec().into();
        } else {
            entry.data = data.to_vec().into();
        }
        if decoded.is_err() {
            // Empty ones are raft's own.
            let applied = if data.is_empty() { Err(String::new()) } else { self.apply(&[entry]) };
            return match applied {
                Ok(_) => Err("what cannot be read was applied".to_owned()),
                Err(_) => Ok(Verdict::Refused),
            };
        }
        let entries = [entry.clone(), entry];
        let hash = self.apply(&entries)?;
        if kind % REPEATED == 1 && self.apply(&entries)? != hash {
            return Err("the same commands came to different states".to_owned());
        }
        Ok(Verdict::Accepted)
    }
}
