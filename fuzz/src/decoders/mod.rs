//! What reads bytes within one process.

mod backups;
mod commands;
mod frames;
mod logs;
mod messages;
mod records;
mod store;
mod transfers;

pub use backups::Backups;
pub use commands::Commands;
pub use frames::Frames;
pub use logs::Logs;
pub use messages::Messages;
pub use records::Records;
pub use transfers::{Transfers, transfer};

use std::{io, path::Path};

use tempfile::TempDir;

use crate::{dice::Dice, mutate::mutate};

/// What the decoder of raft's messages sets aside, and gives back at once, for a
/// length that nothing follows: up to ten million bytes.
const SET_ASIDE_BYTES: usize = 10_000_000;

/// A third of the inputs is noise.
const NOISE_PERCENT: u64 = 33;

/// Of the others so many are left as they were made.
const VALID_PERCENT: u64 = 40;

/// An input: what `make` makes, or that damaged, or noise.
fn input(dice: &mut Dice, make: &mut dyn FnMut(&mut Dice) -> Vec<u8>) -> Vec<u8> {
    if dice.percent(NOISE_PERCENT) {
        let length = dice.length();
        return dice.noise(length);
    }
    let mut input = make(dice);
    if !dice.percent(VALID_PERCENT) {
        let other = make(dice);
        mutate(dice, &mut input, &other);
    }
    input
}

/// A directory for files that need not last: in memory where that is possible.
pub fn scratch() -> io::Result<TempDir> {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }
}
