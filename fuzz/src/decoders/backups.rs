//! Snapshot files, as a restore reads them.

use std::{fs, path::PathBuf};

use bytes::Bytes;
use metastore::{
    error::Fatal,
    machine::{BackupError, Contents, Revisions, StateMachine, import},
    proto::{leasepb::Lease, mvccpb::KeyValue},
    storage::{
        bolt::{Reader, Writer, trailing_sha256},
        memory::MemoryEngine,
    },
};
use prost::Message as _;
use tempfile::TempDir;

use super::{scratch, store};
use crate::{
    dice::Dice,
    run::{Decoder, Verdict, within},
};

/// Memory for a restore: a page of each level while it is read, and the store
/// that comes of it, with everything about each change written several times.
const MEMORY: (usize, usize) = (16, 8 << 20);

/// Bytes of the first page that a checksum covers, and where it stands.
const META: [usize; 2] = [16, 4096 + 16];
const META_CHECKED: usize = 56;

/// Restores snapshot files.
pub struct Backups {
    /// A file of a store with everything in it.
    full: Vec<u8>,
    scratch: TempDir,
}

impl Backups {
    /// Files to damage.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn new() -> Result<Self, Fatal> {
        let io = |error| Fatal::storage("make a file", error);
        let scratch = scratch().map_err(io)?;
        let path = scratch.path().join("full");
        let file = fs::File::options().read(true).write(true).create_new(true).open(&path);
        let machine = StateMachine::open(store::full()?)?;
        let exported = machine.view().export(file.map_err(io)?, scratch.path(), &mut |_| Ok(()));
        exported.map_err(|error| Fatal::corrupt(error.to_string()))?;
        Ok(Self { full: fs::read(&path).map_err(io)?, scratch })
    }

    fn path(&self) -> PathBuf {
        self.scratch.path().join("snapshot")
    }

    /// A file with records of the right form and numbers of any size.
    fn written(&self, dice: &mut Dice) -> Option<Vec<u8>> {
        let path = self.scratch.path().join("written");
        if path.exists() {
            fs::remove_file(&path).ok()?;
        }
        let mut writer = Writer::create(&path).ok()?;
        writer.bucket(b"key").ok()?;
        let mut revision = 1;
        for _ in 0..dice.below(12) {
            revision += dice.below(3);
            let (main, sub) = if dice.percent(95) { (revision, 0) } else { (dice.magnitude(), 1) };
            let key = revision_key(dice, main, sub);
            let pair = change(dice, main);
            // Those that do not ascend are left out.
            let _refused = writer.put(&key, &pair.encode_to_vec());
        }
        writer.bucket(b"lease").ok()?;
        for id in 1..=dice.below(4).cast_signed() {
            let ttl = dice.magnitude().cast_signed();
            let lease = Lease { id, ttl, remaining_ttl: dice.magnitude().cast_signed() };
            let _refused = writer.put(&id.to_be_bytes(), &lease.encode_to_vec());
        }
        writer.bucket(b"meta").ok()?;
        if dice.percent(30) {
            let compacted = if dice.percent(70) { dice.below(10) } else { dice.magnitude() };
            let value = [&compacted.to_be_bytes()[..], b"_", &[0; 8]].concat();
            let _refused = writer.put(b"finishedCompactRev", &value);
        }
        drop(writer.finish().ok()?);
        fs::read(&path).ok()
    }

    fn restore(&self) -> Result<(), BackupError> {
        let path = self.path();
        trailing_sha256(&path)?;
        let reader = Reader::open(&path)?;
        let contents = Contents::read(&reader, &mut |_| Ok(()))?;
        let engine = MemoryEngine::new();
        let revisions =
            Revisions { bump: contents.changes % 2, mark_compacted: contents.changes % 2 == 1 };
        import(&engine, &reader, &contents, revisions, &mut |_| Ok(()))?;
        StateMachine::bootstrap(&engine, &store::founding())?;
        // What is taken over must work: this is no damage that shows later.
        store::exercise(&engine, None)?;
        Ok(())
    }
}

fn revision_key(dice: &mut Dice, main: u64, sub: u64) -> Vec<u8> {
    let mut key = [&main.to_be_bytes()[..], b"_", &sub.to_be_bytes()].concat();
    if dice.percent(20) {
        key.push(b't');
    }
    key
}

fn change(dice: &mut Dice, revision: u64) -> KeyValue {
    let mut number = |near: u64| if dice.percent(85) { near } else { dice.magnitude() };
    let created = number(revision).cast_signed();
    let (changed, version) = (number(revision).cast_signed(), number(1).cast_signed());
    KeyValue {
        key: Bytes::copy_from_slice(*dice.pick(&[b"a", b"b", b"c"])),
        create_revision: created,
        mod_revision: changed,
        version,
        value: Bytes::from_static(b"value"),
        lease: dice.below(5).cast_signed(),
    }
}

impl Decoder for Backups {
    fn name(&self) -> &'static str {
        "backups"
    }

    fn input(&mut self, dice: &mut Dice) -> Vec<u8> {
        if dice.percent(20) {
            let length = dice.length();
            return dice.noise(length);
        }
        let own = if dice.percent(40) { self.written(dice) } else { None };
        let mut file = own.unwrap_or_else(|| self.full.clone());
        if !dice.percent(30) {
            damage(dice, &mut file);
        }
        if dice.percent(80) {
            mend_metas(&mut file);
        }
        file
    }

    fn read(&mut self, input: &[u8]) -> Result<Verdict, String> {
        fs::write(self.path(), input).map_err(|error| error.to_string())?;
        let restored = within(input.len(), MEMORY, || self.restore())?;
        match restored {
            Ok(()) => Ok(Verdict::Accepted),
            Err(BackupError::File(_) | BackupError::Unfit(_)) => Ok(Verdict::Refused),
            Err(other) => Err(format!("what was taken in does not work: {other}")),
        }
    }
}

/// Damages a file where something stands in it: most of it is empty.
fn damage(dice: &mut Dice, file: &mut Vec<u8>) {
    for _ in 0..=dice.below(4) {
        let mut at = dice.index(file.len());
        if let Some(found) = file[at..].iter().position(|byte| *byte != 0) {
            at += found;
        }
        match dice.below(8) {
            0 => file.truncate(at),
            1 => {
                let end = (at + 8).min(file.len());
                let number = dice.magnitude().to_le_bytes();
                file[at..end].copy_from_slice(&number[..end - at]);
            }
            2 => {
                let end = (at + 4).min(file.len());
                let number = (dice.magnitude() as u32).to_le_bytes();
                file[at..end].copy_from_slice(&number[..end - at]);
            }
            3 => page_for_page(dice, file),
            _ => {
                if let Some(byte) = file.get_mut(at) {
                    *byte ^= 1 << dice.below(8);
                }
            }
        }
        if file.is_empty() {
            return;
        }
    }
}

/// One page in the place of another.
fn page_for_page(dice: &mut Dice, file: &mut [u8]) {
    const PAGE: usize = 4096;
    let pages = file.len() / PAGE;
    let (from, to) = (dice.index(pages), dice.index(pages));
    if pages > 0 {
        file.copy_within(from * PAGE..(from + 1) * PAGE, to * PAGE);
    }
}

/// Puts right the checksums of the first two pages, so that what they say counts.
fn mend_metas(file: &mut [u8]) {
    for at in META {
        let Some(meta) = file.get_mut(at..at + META_CHECKED + 8) else { return };
        let (checked, checksum) = meta.split_at_mut(META_CHECKED);
        let hash = checked.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        checksum.copy_from_slice(&hash.to_le_bytes());
    }
}
