//! Writing the raft database, and reading it back at start.

use std::ops::Bound;

use bytes::Bytes;
use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::{Entry, HardState};

use super::{CEILING, Persist, Promises, Witnessed};
use crate::{
    error::Fatal,
    proto::{self, FoundingRecord, Identity, LogPosition},
    storage::{Batch, Engine, Family, keys},
    version,
};

/// The position every founder's log starts after, so that all of them start
/// from the same configuration.
pub const FOUNDING_POSITION: LogPosition = LogPosition { index: 1, term: 1 };

/// Name of the state directory whose first content was at `index`.
pub fn state_dir(index: u64) -> String {
    format!("state-{index}")
}

/// The only writer of the raft database.
#[derive(Debug)]
pub struct LogWriter<E> {
    engine: E,
    /// Index of the last stored entry, 0 when there is none.
    last_index: u64,
}

impl<E: Engine> LogWriter<E> {
    /// A writer that goes on where the recovered database stands.
    pub fn new(engine: E, recovered: &Recovered) -> Self {
        Self { engine, last_index: recovered.last.index }
    }

    /// Writes a group of changes as one batch, synced if any of them asks
    /// for it. When this returns, all of them may be confirmed.
    ///
    /// # Errors
    /// When the disk refuses the write; nothing of the group may be confirmed,
    /// now or ever.
    pub fn write(&mut self, group: &[Persist]) -> Result<(), Fatal> {
        let mut batch = Batch::default();
        for persist in group {
            self.encode(persist, &mut batch)?;
        }
        if batch.is_empty() {
            return Ok(());
        }
        let sync = group.iter().any(|persist| persist.sync) && !mutant!(SkipFsync);
        self.engine.write(batch, sync)
    }

    fn encode(&mut self, persist: &Persist, batch: &mut Batch) -> Result<(), Fatal> {
        if let Some(position) = persist.install {
            batch.delete_range(
                Family::Entries,
                keys::entry(0).to_vec(),
                keys::entry(u64::MAX).to_vec(),
            );
            batch.put(Family::State, keys::SNAPSHOT, position.encode_to_vec());
            batch.put(Family::State, keys::TRUNCATED, position.encode_to_vec());
            if !mutant!(InstallKeepsState) {
                batch.put(Family::State, keys::LIVE_STATE, state_dir(position.index));
            }
            self.last_index = 0;
        }
        if let (Some(first), Some(last)) = (persist.entries.first(), persist.entries.last()) {
            debug_assert!(self.last_index == 0 || first.index <= self.last_index + 1);
            for entry in &persist.entries {
                let value = entry.write_to_bytes().map_err(encoding)?;
                batch.put(Family::Entries, keys::entry(entry.index).to_vec(), value);
            }
            if last.index < self.last_index && !mutant!(KeepReplacedEntries) {
                batch.delete_range(
                    Family::Entries,
                    keys::entry(last.index + 1).to_vec(),
                    keys::entry(self.last_index + 1).to_vec(),
                );
            }
            self.last_index = last.index;
        }
        if let Some(hard_state) = &persist.hard_state {
            let value = hard_state.write_to_bytes().map_err(encoding)?;
            batch.put(Family::State, keys::HARD_STATE, value);
        }
        if let Some(position) = persist.compact {
            batch.put(Family::State, keys::TRUNCATED, position.encode_to_vec());
            batch.delete_range(
                Family::Entries,
                keys::entry(0).to_vec(),
                keys::entry(position.index + 1).to_vec(),
            );
        }
        if let Some(witnessed) = &persist.witnessed {
            let value = proto::Witnessed::from(&**witnessed).encode_to_vec();
            batch.put(Family::State, keys::WITNESSED, value);
        }
        Ok(())
    }
}

/// What the raft database held at start.
#[derive(Debug, Clone, Default)]
pub struct Recovered {
    /// This member's identity; none before it belongs to a cluster.
    pub identity: Option<Identity>,
    /// This member's incarnation, drawn at its very first start.
    pub incarnation: Option<u64>,
    /// The founding record this founder has agreed to.
    pub prepared: Option<FoundingRecord>,
    /// The stored term, vote and commit index.
    pub hard_state: HardState,
    /// The log starts after this position.
    pub truncated: LogPosition,
    /// Position of the last installed snapshot.
    pub snapshot: LogPosition,
    /// The last entry, or `truncated` when there is none.
    pub last: LogPosition,
    /// Name of the live state directory.
    pub live_state: Option<String>,
    /// What the other members are known to have promised.
    pub witnessed: Witnessed,
}

impl Recovered {
    /// Reads and verifies the database: the log must be contiguous, and its
    /// terms must not fall nor pass the stored one.
    ///
    /// # Errors
    /// When the disk refuses a read or the content contradicts itself.
    pub fn read<E: Engine>(engine: &E) -> Result<Self, Fatal> {
        check_format(engine)?;
        let mut recovered = Self {
            identity: message(engine, keys::IDENTITY, "identity")?,
            prepared: message(engine, keys::FOUNDING, "founding record")?,
            truncated: message(engine, keys::TRUNCATED, "truncation point")?.unwrap_or_default(),
            snapshot: message(engine, keys::SNAPSHOT, "snapshot position")?.unwrap_or_default(),
            ..Self::default()
        };
        let witnessed: Option<proto::Witnessed> =
            message(engine, keys::WITNESSED, "memory of the other members' promises")?;
        recovered.witnessed = witnessed.unwrap_or_default().into();
        if let Some(value) = engine.get(Family::State, keys::INCARNATION)? {
            recovered.incarnation = Some(number(&value, "incarnation")?);
        }
        if let Some(value) = engine.get(Family::State, keys::HARD_STATE)? {
            recovered.hard_state =
                HardState::parse_from_bytes(&value).map_err(|e| damaged("hard state", e))?;
        }
        if let Some(value) = engine.get(Family::State, keys::LIVE_STATE)? {
            let name = String::from_utf8(value.to_vec());
            recovered.live_state = Some(name.map_err(|e| damaged("state directory name", e))?);
        }
        recovered.verify(engine)?;
        Ok(recovered)
    }

    /// Finds where the log ends, and what contradicts what.
    fn verify<E: Engine>(&mut self, engine: &E) -> Result<(), Fatal> {
        let HardState { term, commit, .. } = self.hard_state;
        check_position("hard state", LogPosition { index: commit, term })?;
        check_position("snapshot position", self.snapshot)?;
        check_position("truncation point", self.truncated)?;
        self.last = verify_entries(engine, self.truncated)?;
        let LogPosition { index, term: last_term } = self.last;
        if commit > index {
            return Err(Fatal::corrupt(format!(
                "the raft log ends at index {index} but index {commit} was committed"
            )));
        }
        if term < last_term {
            return Err(Fatal::corrupt(format!(
                "the stored term is {term} but the last entry of the raft log is of term \
                 {last_term}"
            )));
        }
        Ok(())
    }

    /// What this member has on disk, as far as others rely on it.
    pub fn promises(&self) -> Promises {
        let HardState { term, vote, .. } = self.hard_state;
        Promises { term, vote, last: self.last }
    }
}

fn check_position(name: &str, position: LogPosition) -> Result<(), Fatal> {
    let LogPosition { index, term } = position;
    if index < CEILING && term < CEILING {
        return Ok(());
    }
    Err(Fatal::corrupt(format!(
        "the stored {name} names index {index} and term {term}, out of all proportion"
    )))
}

fn verify_entries<E: Engine>(engine: &E, truncated: LogPosition) -> Result<LogPosition, Fatal> {
    let from = Bytes::copy_from_slice(&keys::entry(truncated.index + 1));
    let mut last = truncated;
    for pair in engine.scan(Family::Entries, (Bound::Included(from), Bound::Unbounded)) {
        let (key, value) = pair?;
        let index = keys::entry_index(&key)?;
        let entry = decode_entry(&value, index)?;
        if index != last.index + 1 || entry.index != index || entry.term < last.term {
            return Err(Fatal::corrupt(format!(
                "the raft log is not contiguous: entry {index} (stored as {} of term {}) follows \
                 entry {} of term {}",
                entry.index, entry.term, last.index, last.term
            )));
        }
        last = LogPosition { index, term: entry.term };
    }
    Ok(last)
}

/// Makes this member a founder of the recorded cluster: from here on it votes.
/// The state directory must already hold, durably, the founding state.
///
/// # Errors
/// When the disk refuses the write.
pub fn found<E: Engine>(engine: &E, identity: &Identity, state_dir: &str) -> Result<(), Fatal> {
    let hard_state = HardState {
        term: FOUNDING_POSITION.term,
        commit: FOUNDING_POSITION.index,
        ..HardState::default()
    };
    let mut batch = identity_batch(identity, state_dir);
    batch.put(Family::State, keys::TRUNCATED, FOUNDING_POSITION.encode_to_vec());
    batch.put(Family::State, keys::HARD_STATE, hard_state.write_to_bytes().map_err(encoding)?);
    engine.write(batch, true)
}

/// Makes this member belong to a running cluster, with an empty log.
///
/// # Errors
/// When the disk refuses the write.
pub fn join<E: Engine>(engine: &E, identity: &Identity, state_dir: &str) -> Result<(), Fatal> {
    engine.write(identity_batch(identity, state_dir), true)
}

/// Stores the incarnation of this member's very first start.
///
/// # Errors
/// When the disk refuses the write.
pub fn store_incarnation<E: Engine>(engine: &E, incarnation: u64) -> Result<(), Fatal> {
    let mut batch = Batch::default();
    put_format(&mut batch);
    batch.put(Family::State, keys::INCARNATION, incarnation.to_be_bytes().to_vec());
    engine.write(batch, true)
}

/// Stores the founding record this founder agrees to; it never agrees to
/// another one.
///
/// # Errors
/// When the disk refuses the write.
pub fn store_prepared<E: Engine>(engine: &E, record: &FoundingRecord) -> Result<(), Fatal> {
    let mut batch = Batch::default();
    batch.put(Family::State, keys::FOUNDING, record.encode_to_vec());
    engine.write(batch, true)
}

fn identity_batch(identity: &Identity, state_dir: &str) -> Batch {
    let mut batch = Batch::default();
    put_format(&mut batch);
    batch.put(Family::State, keys::IDENTITY, identity.encode_to_vec());
    batch.put(Family::State, keys::INCARNATION, identity.incarnation.to_be_bytes().to_vec());
    batch.put(Family::State, keys::LIVE_STATE, state_dir.to_owned());
    batch
}

fn put_format(batch: &mut Batch) {
    let version = keys::RAFT_FORMAT_VERSION.to_be_bytes().to_vec();
    batch.put(Family::State, keys::FORMAT, version);
}

/// The format is stored with the incarnation, the first that is written.
fn check_format<E: Engine>(engine: &E) -> Result<(), Fatal> {
    let Some(value) = engine.get(Family::State, keys::FORMAT)? else {
        return match engine.get(Family::State, keys::INCARNATION)? {
            None => Ok(()),
            Some(_) => Err(Fatal::corrupt("the raft database has lost its format version")),
        };
    };
    let stored = <[u8; 4]>::try_from(&value[..]).map_err(|e| damaged("format version", e))?;
    let newest = keys::RAFT_FORMAT_VERSION;
    version::check_stored("the raft database", u32::from_be_bytes(stored), newest..=newest)
}

pub(super) fn decode_entry(value: &[u8], index: u64) -> Result<Entry, Fatal> {
    Entry::parse_from_bytes(value).map_err(|e| damaged(&format!("raft log entry {index}"), e))
}

fn message<E: Engine, M: prost::Message + Default>(
    engine: &E,
    key: &[u8],
    name: &str,
) -> Result<Option<M>, Fatal> {
    let Some(value) = engine.get(Family::State, key)? else { return Ok(None) };
    M::decode(value).map(Some).map_err(|e| damaged(name, e))
}

fn number(value: &[u8], name: &str) -> Result<u64, Fatal> {
    let bytes = value.try_into().map_err(|e| damaged(name, e))?;
    Ok(u64::from_be_bytes(bytes))
}

fn damaged(what: &str, cause: impl std::fmt::Display) -> Fatal {
    Fatal::corrupt(format!("the stored {what} cannot be decoded: {cause}"))
}

fn encoding(cause: protobuf::ProtobufError) -> Fatal {
    Fatal::corrupt(format!("a raft message cannot be encoded: {cause}"))
}
