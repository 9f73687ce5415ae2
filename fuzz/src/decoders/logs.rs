//! Raft databases that are damaged in one record.

use std::{ops::Bound, sync::Arc};

use bytes::Bytes;
use metastore::{
    error::Fatal,
    proto::LogPosition,
    raftlog::{self, FOUNDING_POSITION, LogWriter, Persist, Promises, Recovered, Witnessed},
    replica::Event,
    storage::{Batch, Engine, Family, RAFT_FAMILIES, Reader, keys},
};
use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::{Entry, HardState};

use super::messages::MEMORY;
use crate::{
    dice::Dice,
    mutate::mutate,
    raft_message::{Standing, message},
    rig::{Disk, Rig, Trouble},
    run::{Decoder, Verdict, within},
};

/// Entries of the log, of which half are committed.
const ENTRIES: u64 = 24;

/// Ticks after which a member that hears nothing has stood for election.
const LONG_TICKS: u64 = 30;

/// Messages that it then gets.
const MESSAGES: usize = 6;

/// Bytes of choices in one input, about.
const TAPE_BYTES: usize = 300;

/// Starts members on raft databases of which one record is damaged: bytes that
/// choose the record and the damage.
pub struct Logs {
    disks: Vec<Disk>,
}

impl Logs {
    /// Databases to damage.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn new() -> Result<Self, Fatal> {
        Ok(Self { disks: vec![disk(1)?, disk(3)?] })
    }
}

fn disk(founders: u64) -> Result<Disk, Fatal> {
    let disk = Disk::found(founders)?;
    let recovered = Recovered::read(&disk.raft)?;
    let first = FOUNDING_POSITION.index + 1;
    let entry = |index| Entry { index, term: 1 + index / 8, ..Entry::default() };
    let entries: Vec<Entry> = (first..first + ENTRIES).map(entry).collect();
    let term = entries.last().map_or(1, |last| last.term);
    let commit = first + ENTRIES / 2;
    let hard_state = Some(HardState { term, vote: 2, commit, ..HardState::default() });
    let mut witnessed = Witnessed::default();
    let last = LogPosition { index: commit, term };
    witnessed.learn(2, &Promises { term, vote: 2, last });
    let persist = Persist {
        entries,
        hard_state,
        witnessed: Some(Arc::new(witnessed)),
        sync: true,
        ..Persist::default()
    };
    LogWriter::new(disk.raft.clone(), &recovered).write(&[persist])?;
    raftlog::store_prepared(&disk.raft, &super::store::founding())?;
    Ok(disk)
}

impl Decoder for Logs {
    fn name(&self) -> &'static str {
        "logs"
    }

    fn input(&mut self, dice: &mut Dice) -> Vec<u8> {
        let length = 8 + dice.index(TAPE_BYTES);
        dice.noise(length)
    }

    /// Accepted when the member starts, and then works.
    fn read(&mut self, input: &[u8]) -> Result<Verdict, String> {
        let dice = &mut Dice::of_tape(input);
        let disk = dice.pick(&self.disks).copy();
        damage(dice, &disk).map_err(|fatal| fatal.to_string())?;
        match within(input.len(), MEMORY, || work(dice, disk))? {
            Ok(()) => Ok(Verdict::Accepted),
            Err(Trouble::Stops(_)) => Ok(Verdict::Refused),
            Err(Trouble::Breaks(what)) => Err(what),
        }
    }
}

/// Starts a member and lets it work for a while.
fn work(dice: &mut Dice, disk: Disk) -> Result<(), Trouble> {
    let mut rig = Rig::start(disk)?;
    for _ in 0..LONG_TICKS {
        rig.handle(Event::Tick)?;
        rig.settle()?;
    }
    for _ in 0..MESSAGES {
        let status = rig.status();
        let (last, commit) = (status.last_index, status.commit_index);
        let standing = Standing { term: status.role.term, last, commit };
        rig.step(message(dice, standing))?;
        rig.settle()?;
    }
    Ok(())
}

/// Damages one record, or adds one.
fn damage(dice: &mut Dice, disk: &Disk) -> Result<(), Fatal> {
    let family = *dice.pick(RAFT_FAMILIES);
    let everything = (Bound::Unbounded, Bound::Unbounded);
    let pairs: Vec<(Bytes, Bytes)> =
        disk.raft.scan(family, everything).collect::<Result<_, _>>()?;
    let (key, value) = dice.pick(&pairs).clone();
    let mut batch = Batch::default();
    match dice.below(6) {
        0 => batch.delete(family, key),
        1 => {
            let other = dice.pick(&pairs).0.clone();
            batch.put(family, other, value);
        }
        2 => {
            let mut damaged = key.to_vec();
            mutate(dice, &mut damaged, &key);
            batch.put(family, damaged, value);
        }
        3 | 4 => {
            let value = extreme(dice, family, &key).unwrap_or_else(|| value.to_vec());
            batch.put(family, key, value);
        }
        _ => {
            let mut damaged = value.to_vec();
            let other = dice.pick(&pairs).1.clone();
            mutate(dice, &mut damaged, &other);
            batch.put(family, key, damaged);
        }
    }
    disk.raft.write(batch, true)
}

/// A record of the right form with numbers of any size.
fn extreme(dice: &mut Dice, family: Family, key: &[u8]) -> Option<Vec<u8>> {
    let mut number = |near: u64| if dice.percent(50) { near } else { dice.magnitude() };
    if family == Family::Entries {
        let stored = keys::entry_index(key).ok()?;
        let (index, term) = (number(stored), number(1 + stored / 8));
        return Entry { index, term, ..Entry::default() }.write_to_bytes().ok();
    }
    if key == keys::HARD_STATE {
        let (term, vote, commit) = (number(4), number(2), number(14));
        return HardState { term, vote, commit, ..HardState::default() }.write_to_bytes().ok();
    }
    if key == keys::TRUNCATED || key == keys::SNAPSHOT {
        let (index, term) = (number(1), number(1));
        return Some(LogPosition { index, term }.encode_to_vec());
    }
    None
}
