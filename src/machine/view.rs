//! Reads of the applied state.

use std::{fs::File, path::Path, sync::Arc};

use bytes::Bytes;

use super::{
    BackupError, Check, Exported, Ruled, backup,
    epoch::Epoch,
    hash,
    hash::{KvHash, StateHash},
    history,
    history::ChangesPage,
    moment::Moment,
    range, record,
    stop::{Stopped, ruled},
    txn,
    writes::Writes,
};
use crate::{
    error::Fatal,
    proto::{
        Alarms, KeyRecord, LeaseRecord, LogPosition, Refused,
        etcdserverpb::{RangeRequest, RangeResponse, TxnRequest, TxnResponse},
        mvccpb::KeyValue,
    },
    storage::{Engine, Family, Kept},
};

/// Reads of the state machine's database, from any thread. Each call sees
/// whole apply batches, and no earlier a moment than the call before it.
#[derive(Debug, Clone)]
pub struct View<E> {
    engine: E,
    epoch: Arc<Epoch>,
}

impl<E: Engine> View<E> {
    pub(super) fn new(engine: E, epoch: Arc<Epoch>) -> Self {
        Self { engine, epoch }
    }

    /// The newest record of a key, with its value.
    ///
    /// # Errors
    /// When the disk refuses the read or the record is damaged.
    pub fn get(&self, key: &[u8]) -> Result<Option<KeyRecord>, Fatal> {
        record::read(&self.engine, Family::Current, key)
    }

    /// How many bytes the newest record of a key takes, without reading all of
    /// them; 0 when there is none.
    ///
    /// # Errors
    /// As [`View::get`].
    pub fn stored_bytes(&self, key: &[u8]) -> Result<usize, Fatal> {
        Ok(self.engine.value_bytes(Family::Current, key)?.unwrap_or_default())
    }

    /// Which log entry was applied last.
    ///
    /// # Errors
    /// As [`View::get`].
    pub fn position(&self) -> Result<LogPosition, Fatal> {
        Ok(record::position(&record::applied(&self.engine)?))
    }

    /// The store's revision; 1 before the first write.
    ///
    /// # Errors
    /// As [`View::get`].
    pub fn revision(&self) -> Result<u64, Fatal> {
        match self.epoch.read(|revision, _| revision) {
            Some(revision) => Ok(revision),
            None => Ok(record::applied(&self.engine)?.revision),
        }
    }

    /// Answers a Range request. The header carries the store's revision.
    ///
    /// # Errors
    /// As [`View::get`]. Refused when the revision cannot be read, or when the
    /// answer would be larger than `max_bytes`.
    pub fn range(&self, request: &RangeRequest, max_bytes: u64) -> Ruled<RangeResponse> {
        // One record is of one moment by itself, and freezing one costs more than
        // reading it.
        let is_short = request.range_end.is_empty() && request.revision <= 0;
        let read_short = |revision, compacted| {
            let moment = Moment { reader: &self.engine, revision, compacted };
            range::range(&moment, request, &mut { max_bytes })
        };
        match is_short.then(|| self.epoch.read(read_short)).flatten() {
            Some(read) => ruled(read),
            None => self
                .read(request.revision, |moment| range::range(moment, request, &mut { max_bytes })),
        }
    }

    /// Answers a transaction that writes nothing whichever way it goes.
    ///
    /// # Errors
    /// As [`View::range`]. Refused also when it could write.
    pub fn txn(&self, request: &TxnRequest, max_bytes: u64) -> Ruled<TxnResponse> {
        if txn::has_write(request) {
            return Ok(Err(Refused::InvalidOperation));
        }
        let oldest = txn::oldest_revision(request).map_or(0, u64::cast_signed);
        self.read(oldest, |moment| {
            // Over writes that stay empty and are thrown away.
            let mut writes = Writes::new(moment.reader, moment.revision, moment.compacted);
            txn::txn(&mut writes, request, max_bytes)
        })
    }

    /// Gives the pairs of a Range request one after the other, all of one
    /// moment, to `take`, which says whether to go on. The limit and the
    /// filters hold; keys only if asked so; always ascending by key.
    /// Returns the store's revision of that moment, and whether there was more.
    ///
    /// # Errors
    /// As [`View::range`].
    pub fn stream(
        &self,
        request: &RangeRequest,
        take: &mut dyn FnMut(KeyValue) -> bool,
    ) -> Ruled<Streamed> {
        self.read(request.revision, |moment| range::stream(moment, request, take))
    }

    /// The changes from a revision on, whole revisions, about `max_bytes` of
    /// them and at least one if there is any.
    ///
    /// # Errors
    /// As [`View::get`]. Refused when `from` is below the last compaction.
    pub fn changes(&self, from: u64, max_bytes: usize) -> Ruled<ChangesPage> {
        self.read(from.cast_signed(), |moment| history::changes(moment, from, max_bytes))
    }

    /// A lease, as replicated.
    ///
    /// # Errors
    /// As [`View::get`].
    pub fn lease(&self, id: i64) -> Result<Option<LeaseRecord>, Fatal> {
        record::lease(&self.engine, id)
    }

    /// All leases, ascending by id.
    ///
    /// # Errors
    /// As [`View::get`].
    pub fn leases(&self) -> Result<Vec<LeaseRecord>, Fatal> {
        record::leases(&self.engine)
    }

    /// All leases of one moment, ascending by id, and which log entry had been
    /// applied last at that moment.
    ///
    /// # Errors
    /// As [`View::get`].
    pub fn leases_as_of(&self) -> Result<(LogPosition, Vec<LeaseRecord>), Fatal> {
        let frozen = self.engine.freeze();
        Ok((record::position(&record::applied(&frozen)?), record::leases(&frozen)?))
    }

    /// The keys attached to a lease, ascending.
    ///
    /// # Errors
    /// As [`View::get`].
    pub fn lease_keys(&self, id: i64) -> Result<Vec<Bytes>, Fatal> {
        record::lease_keys(&self.engine, id)
    }

    /// The raised alarms.
    ///
    /// # Errors
    /// As [`View::get`].
    pub fn alarms(&self) -> Result<Alarms, Fatal> {
        record::alarms(&self.engine)
    }

    /// The last compaction; 0 when there was none.
    ///
    /// # Errors
    /// As [`View::get`].
    pub fn compacted(&self) -> Result<u64, Fatal> {
        Ok(record::applied(&self.engine)?.compacted)
    }

    /// Hashes keys, values and revisions as of a revision, 0 for the present:
    /// equal on all members, whatever their disks look like. Reads everything,
    /// in little memory.
    ///
    /// # Errors
    /// As [`View::range`].
    pub fn hash_kv(&self, revision: u64) -> Ruled<KvHash> {
        let _kept = self.keep_history()?;
        self.read(revision.cast_signed(), |moment| hash::hash_kv(moment, revision))
    }

    /// Hashes the whole replicated state at one moment. Members at the same
    /// position have the same hash, whatever their disks look like. Reads
    /// everything, in little memory.
    ///
    /// # Errors
    /// As [`View::get`].
    pub fn hash(&self) -> Result<StateHash, Fatal> {
        self.hash_as_of(|| {}, &|| Ok(()))
    }

    /// As [`View::hash`]. Calls `frozen` once the moment is chosen: what is
    /// written from then on is not in it. Asks `go_on` at each record.
    ///
    /// # Errors
    /// As [`View::get`], and what `go_on` says.
    pub fn hash_as_of<F: From<Fatal>>(
        &self,
        frozen: impl FnOnce(),
        go_on: &dyn Fn() -> Result<(), F>,
    ) -> Result<StateHash, F> {
        let _kept = self.keep_history()?;
        let moment = self.engine.freeze();
        frozen();
        hash::hash_state(&moment, go_on)
    }

    /// Writes the data of one moment into an empty file, as a snapshot of etcd:
    /// keys with their history, and leases. Alarms and members are not in it.
    /// Sorts in unlinked files in the directory `scratch`. Reads everything, in
    /// about 64 MiB of memory at most, beside the largest value.
    ///
    /// # Errors
    /// When the database cannot be read, the file cannot be written, or
    /// `check` says so.
    pub fn export(
        &self,
        file: File,
        scratch: &Path,
        check: Check<'_>,
    ) -> Result<Exported, BackupError> {
        let _kept = self.keep_history()?;
        backup::export(&self.engine.freeze(), file, scratch, check)
    }

    /// Keeps all history there is now, for a moment to be frozen after this:
    /// what is compacted later must not vanish from it meanwhile.
    fn keep_history(&self) -> Result<Kept, Fatal> {
        Ok(self.engine.floor().keep(self.compacted()?))
    }

    /// Reads one moment, in which the past is whole from `oldest` on, unless
    /// that is 0 or below, or compacted away.
    fn read<T>(
        &self,
        oldest: i64,
        read: impl FnOnce(&Moment<'_, E::Frozen<'_>>) -> Stopped<T>,
    ) -> Ruled<T> {
        // Before the moment is frozen: what is forgotten vanishes from it too.
        let oldest = u64::try_from(oldest).ok().filter(|&oldest| oldest != 0);
        let _kept = oldest.map(|oldest| self.engine.floor().keep(oldest));
        let frozen = self.engine.freeze();
        ruled(Moment::stored(&frozen).map_err(Into::into).and_then(|moment| read(&moment)))
    }
}

/// How a stream of pairs ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streamed {
    /// The store's revision at the moment that was read.
    pub revision: u64,
    /// Pairs in the range, as a Range request counts them; those seen until
    /// then, if the taker ended it.
    pub count: u64,
    /// Whether the limit left something out.
    pub more: bool,
}
