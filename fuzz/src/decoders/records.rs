//! Records on disk: those of a state database, the keys of both databases, and
//! the small files beside the raft database.

use std::{fs, ops::Bound};

use bytes::Bytes;
use metastore::{
    error::Fatal,
    proto::LogPosition,
    raftlog::{Recovered, Watermark},
    storage::{Batch, Engine, Family, Reader, STATE_FAMILIES, keys, memory::MemoryEngine},
};
use raft::eraftpb::HardState;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{input, scratch, store};
use crate::{
    dice::Dice,
    mutate::mutate,
    run::{Decoder, Verdict, within},
    tree::Tree,
};

/// Memory for all that is done with a store of which one record is damaged: the
/// store itself, of about 20 KiB, a few times over.
const STORE_MEMORY: (usize, usize) = (64, 4 << 20);

/// Memory for the other forms.
const MEMORY: (usize, usize) = (16, 1 << 20);

/// Every so many damaged stores are also written into a snapshot file.
const EXPORTED: u8 = 16;

/// Bytes between the two notes of a trail.
const PLACE_BYTES: usize = 4096;

/// Reads records. The first byte of an input says of which form.
pub struct Records {
    store: MemoryEngine,
    scratch: TempDir,
}

impl Records {
    /// A store to damage.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self, Fatal> {
        let scratch = scratch().map_err(|error| Fatal::storage("make a directory", error))?;
        Ok(Self { store: store::full()?, scratch })
    }

    /// A store with the damage that a tape chooses.
    fn store(&self, tape: &[u8]) -> Result<Verdict, String> {
        let dice = &mut Dice::of_tape(tape);
        let engine = self.store.checkpoint();
        let exported = dice.byte().is_multiple_of(EXPORTED);
        damage(dice, &engine).map_err(|fatal| fatal.to_string())?;
        let directory = exported.then(|| self.scratch.path());
        let read = within(tape.len(), STORE_MEMORY, || store::exercise(&engine, directory))?;
        Ok(if read.is_ok() { Verdict::Accepted } else { Verdict::Refused })
    }

    /// A watermark, or its trail, with these bytes.
    fn file(&self, name: &str, bytes: &[u8]) -> Result<Verdict, String> {
        for other in ["watermark", "watermark-log"] {
            let path = self.scratch.path().join(other);
            if path.exists() {
                fs::remove_file(path).map_err(|error| error.to_string())?;
            }
        }
        let path = self.scratch.path().join(name);
        fs::write(path, bytes).map_err(|error| error.to_string())?;
        let recovered = Recovered {
            hard_state: HardState { term: 5, vote: 2, ..HardState::default() },
            last: LogPosition { index: 9, term: 4 },
            ..Recovered::default()
        };
        let path = self.scratch.path().join("watermark");
        let check = || Watermark::check(&path, &recovered);
        let first = within(bytes.len(), MEMORY, check)?;
        if first.is_err() {
            return Ok(Verdict::Refused);
        }
        // Where it is in order, it can be gone on from.
        let opened = Watermark::open(path, &recovered).map_err(|fatal| fatal.to_string())?;
        drop(opened);
        Ok(Verdict::Accepted)
    }
}

impl Decoder for Records {
    fn name(&self) -> &'static str {
        "records"
    }

    fn input(&mut self, dice: &mut Dice) -> Vec<u8> {
        let form = dice.below(8);
        let mut input = match form {
            0 => input(dice, &mut key),
            1 => input(dice, &mut watermark),
            2 => input(dice, &mut trail),
            _ => {
                let length = 8 + dice.index(200);
                dice.noise(length)
            }
        };
        input.insert(0, form as u8);
        input
    }

    fn read(&mut self, input: &[u8]) -> Result<Verdict, String> {
        match input.split_first() {
            None => Ok(Verdict::Refused),
            Some((0, key)) => within(key.len(), MEMORY, || read_key(key))?,
            Some((1, file)) => self.file("watermark", file),
            Some((2, file)) => self.file("watermark-log", file),
            Some((_, tape)) => self.store(tape),
        }
    }
}

/// Reads a key in every way that there is: what is read is what it was made of.
fn read_key(key: &[u8]) -> Result<Verdict, String> {
    let mut verdict = Verdict::Refused;
    let mut same = |made: &[u8]| {
        verdict = Verdict::Accepted;
        let is_same = made == key;
        is_same.then_some(()).ok_or_else(|| format!("it would be {}", made.escape_ascii()))
    };
    if let Ok(index) = keys::entry_index(key) {
        same(&keys::entry(index))?;
    }
    if let Ok((revision, sub)) = keys::change_revision(key) {
        same(&keys::change(revision, sub))?;
    }
    if let Ok((user_key, revision, sub)) = keys::history_parts(key) {
        same(&keys::history(&user_key, revision, sub))?;
        if keys::history_revision(key) != Some(revision) {
            return Err(format!("revision {revision} is not found without the key"));
        }
    }
    if let Ok(attached) = keys::attached_key(&Bytes::copy_from_slice(key)) {
        same(&[&key[..8], &attached[..]].concat())?;
    }
    Ok(verdict)
}

fn key(dice: &mut Dice) -> Vec<u8> {
    let (revision, sub) = (dice.magnitude(), dice.below(5) as u32);
    let length = dice.index(12);
    let mut user_key = dice.noise(length);
    if dice.percent(50) {
        user_key.push(0);
    }
    match dice.below(4) {
        0 => keys::entry(revision).to_vec(),
        1 => keys::change(revision, sub).to_vec(),
        2 => keys::lease_key(revision.cast_signed(), &user_key),
        _ => keys::history(&user_key, revision, sub),
    }
}

/// Numbers with their checksum, as the small files have them.
fn sealed(numbers: &[u64]) -> Vec<u8> {
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).collect();
    let digest = Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    bytes
}

fn watermark(dice: &mut Dice) -> Vec<u8> {
    let version = if dice.percent(90) { 1 } else { dice.magnitude() };
    let mut number = |near: u64| if dice.percent(60) { near } else { dice.magnitude() };
    let numbers = [version, number(5), number(2), number(4), number(9)];
    let count = if dice.percent(95) { numbers.len() } else { dice.index(numbers.len()) };
    sealed(&numbers[..count])
}

fn trail(dice: &mut Dice) -> Vec<u8> {
    let mut note = || {
        let mut number = |near: u64| if dice.percent(60) { near } else { dice.magnitude() };
        sealed(&[number(3), number(4), number(9)])
    };
    let (mut bytes, second) = (note(), note());
    bytes.resize(PLACE_BYTES, 0);
    bytes.extend(second);
    bytes
}

/// The message that a family's values are.
fn shape(family: Family, key: &[u8]) -> Option<&'static str> {
    match family {
        Family::Current => Some("metastore.v1.KeyRecord"),
        Family::Changes => Some("metastore.v1.Change"),
        Family::Deleted => Some("metastore.v1.Tombstone"),
        Family::Leases => Some("metastore.v1.LeaseRecord"),
        Family::Meta if key == keys::APPLIED => Some("metastore.v1.AppliedState"),
        Family::Meta if key == keys::MEMBERS => Some("metastore.v1.Members"),
        Family::Meta if key == keys::ALARMS => Some("metastore.v1.Alarms"),
        _ => None,
    }
}

/// Damages one record, or puts one in that was not there.
fn damage(dice: &mut Dice, engine: &MemoryEngine) -> Result<(), Fatal> {
    let family = *dice.pick(STATE_FAMILIES);
    let everything = (Bound::Unbounded, Bound::Unbounded);
    let pairs: Vec<(Bytes, Bytes)> = engine.scan(family, everything).collect::<Result<_, _>>()?;
    if pairs.is_empty() {
        return Ok(());
    }
    let (key, value) = dice.pick(&pairs).clone();
    let mut batch = Batch::default();
    match dice.below(6) {
        0 => batch.delete(family, key),
        1 => {
            let mut damaged = key.to_vec();
            let other = dice.pick(&pairs).0.clone();
            mutate(dice, &mut damaged, &other);
            batch.put(family, damaged, value);
        }
        2 => {
            let other = dice.pick(&pairs).0.clone();
            batch.put(family, other, value);
        }
        3 | 4 => {
            let grown = shape(family, &key).map(|shape| Tree::grow(dice, shape).wire());
            batch.put(family, key, grown.unwrap_or_default());
        }
        _ => {
            let mut damaged = value.to_vec();
            let other = dice.pick(&pairs).1.clone();
            mutate(dice, &mut damaged, &other);
            batch.put(family, key, damaged);
        }
    }
    engine.write(batch, true)
}
