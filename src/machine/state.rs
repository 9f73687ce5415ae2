//! The state machine: from committed entries to one batch.

use std::sync::Arc;

use prost::Message;
use raft::eraftpb::{ConfChangeV2, ConfState, Entry, EntryType};

use super::{
    AppliedBatch, AppliedEntry, Changes, View, alarms, answer, command, compaction,
    epoch::Epoch,
    kv, leases, lookups,
    members::{self, Ruling},
    recent::Recent,
    record,
    stop::{Stop, Stopped},
    txn,
    writes::Writes,
};
use crate::{
    error::Fatal,
    proto::{
        Alarms, AppliedState, Command, FoundingRecord, LogPosition, Members, Outcome, Refused,
        RequestId, SetAlarm, Unit,
        command::Op,
        etcdserverpb::{AlarmMember, DeleteRangeRequest, PutRequest, TxnRequest},
        outcome::Result as Is,
    },
    storage::{Batch, BatchOp, Engine, Family, Reader, keys},
    version,
};

/// Where a founded cluster starts. The log begins after this entry, which
/// never existed, so that whoever joins later has to take a snapshot and with
/// it the members.
const FOUNDING_POSITION: LogPosition = LogPosition { index: 1, term: 1 };

/// Bytes of keys and values that a transaction in the log, or a deletion, may
/// give back at most: every member makes the answer, and it must fit between
/// members. Larger ones are refused, on every member alike.
pub const MAX_RESPONSE_BYTES: u64 = 32 << 20;

/// As [`MAX_RESPONSE_BYTES`], for the commands of one entry together.
const MAX_ENTRY_RESPONSE_BYTES: u64 = 2 * MAX_RESPONSE_BYTES;

/// Bytes of answers after which a batch ends, so that many entries with large
/// answers are not in memory at once.
const MAX_BATCH_RESPONSE_BYTES: u64 = 2 * MAX_RESPONSE_BYTES;

/// The replicated state machine over one state database, of which it is the
/// only writer.
///
/// After an error from [`StateMachine::apply`] the process must stop.
#[derive(Debug)]
pub struct StateMachine<E> {
    store: Recent<E>,
    /// What views read by.
    epoch: Arc<Epoch>,
    applied: AppliedState,
    members: Arc<Members>,
    alarms: Arc<Alarms>,
    /// Whether the database already says which format it has.
    has_format: bool,
}

impl<E: Engine> StateMachine<E> {
    /// Prepares the state database of a founding member, durably. Every
    /// founder writes the same. Again on what it prepared changes nothing.
    ///
    /// # Errors
    /// When the record is not a possible founding (no founder, an id or an
    /// incarnation of 0, an id or a URL twice), when the database holds the
    /// state of another founding or has applied entries, or when the disk
    /// refuses the write.
    pub fn bootstrap(engine: &E, founding: &FoundingRecord) -> Result<(), Fatal> {
        check_founding(founding)?;
        let present = Self::open(engine.clone())?;
        let members = members::founding_members(founding);
        if present.position() != LogPosition::default() {
            if present.position() == FOUNDING_POSITION && *present.members == members {
                return engine.flush();
            }
            return Err(Fatal::corrupt("the state database to found a cluster in is not empty"));
        }
        let LogPosition { index, term } = FOUNDING_POSITION;
        let mut batch = Batch::default();
        put_format(&mut batch);
        put_meta(&mut batch, keys::MEMBERS, &members);
        put_meta(&mut batch, keys::APPLIED, &AppliedState { index, term, ..present.applied });
        engine.write(batch, false)?;
        engine.flush()
    }

    /// Opens the state machine where its database stands. An empty database
    /// is at position 0 and revision 1, without members.
    ///
    /// # Errors
    /// When the database was written in another format or is damaged, or the
    /// disk refuses the read.
    pub fn open(engine: E) -> Result<Self, Fatal> {
        let has_format = check_format(&engine)?;
        let applied = record::applied(&engine)?;
        let members = Arc::new(record::members(&engine)?);
        let alarms = Arc::new(record::alarms(&engine)?);
        if !has_format && applied.index != 0 {
            return Err(Fatal::corrupt("the state database has lost its format version"));
        }
        engine.floor().compacted(applied.compacted);
        let epoch = Arc::new(Epoch::new(applied.revision, applied.compacted));
        let store = Recent::new(engine);
        Ok(Self { store, epoch, applied, members, alarms, has_format })
    }

    /// Applies committed entries, which must follow the last one applied, as
    /// one batch: all of it or, after a crash, nothing. The batch ends early
    /// when its answers grow large, and after an entry that holds a mark; what is
    /// left is for the next call.
    ///
    /// # Errors
    /// When the entries do not follow, when one of them cannot be understood,
    /// or when the disk refuses a read or the write.
    pub fn apply(&mut self, entries: &[Entry]) -> Result<AppliedBatch, Fatal> {
        let decoded: Vec<Decoded<'_>> = entries.iter().map(Decoded::new).collect();
        let commands = decoded.iter().flat_map(|it| it.commands.as_deref().unwrap_or_default());
        self.store.look_up(commands.flat_map(lookups::keys))?;
        let mut step = Step::new(self);
        let mut bytes = 0;
        let mut applied_entries = Vec::with_capacity(entries.len());
        for decoded in decoded {
            bytes += decoded.entry.get_data().len() + decoded.entry.get_context().len();
            applied_entries.push(step.entry(decoded)?);
            let is_at_mark = step.mark.is_some() && !mutant!(PassOverMark);
            if step.weight >= MAX_BATCH_RESPONSE_BYTES || is_at_mark {
                break;
            }
        }
        let Step { writes, position, members, alarms, mark, .. } = step;
        let written = writes.finish();
        let (members, alarms) = (members.map(Arc::new), alarms.map(Arc::new));
        if !entries.is_empty() {
            let mut batch = written.batch;
            let LogPosition { index, term } = position;
            let (revision, compacted) = (written.revision, written.compacted);
            let applied = AppliedState { index, term, revision, compacted };
            if !self.has_format {
                put_format(&mut batch);
            }
            if let Some(members) = &members
                && !mutant!(ForgetMembers)
            {
                put_meta(&mut batch, keys::MEMBERS, members.as_ref());
            }
            if let Some(alarms) = &alarms {
                put_meta(&mut batch, keys::ALARMS, alarms.as_ref());
            }
            put_meta(&mut batch, keys::APPLIED, &applied);
            self.write(batch, applied, members.clone(), alarms.clone())?;
        }
        let changes = Changes {
            revisions: written.revisions,
            leases: written.leases,
            revision: self.applied.revision,
            compacted: self.applied.compacted,
        };
        let entries = applied_entries;
        Ok(AppliedBatch { entries, position, members, alarms, mark, bytes, changes })
    }

    /// Writes an apply batch and takes over what it holds.
    fn write(
        &mut self,
        mut batch: Batch,
        applied: AppliedState,
        members: Option<Arc<Members>>,
        alarms: Option<Arc<Alarms>>,
    ) -> Result<(), Fatal> {
        self.epoch.begin();
        if mutant!(IndexApartFromData) {
            let is_meta = |op: &BatchOp| matches!(op, BatchOp::Put(Family::Meta, ..));
            let (meta, data) = batch.ops.into_iter().partition(is_meta);
            self.store.write(Batch { ops: data }, false)?;
            batch = Batch { ops: meta };
        }
        // A member that was told that it is removed leaves for good: whoever
        // knows of a change must not forget it.
        self.store.write(batch, members.is_some())?;
        self.epoch.end(applied.revision, applied.compacted);
        self.engine().floor().compacted(applied.compacted);
        self.has_format = true;
        self.applied = applied;
        if let Some(members) = members {
            self.members = members;
        }
        if let Some(alarms) = alarms {
            self.alarms = alarms;
        }
        Ok(())
    }

    /// Which entry was applied last; 0 when none was.
    pub fn position(&self) -> LogPosition {
        record::position(&self.applied)
    }

    /// The store's revision; 1 before the first write.
    pub fn revision(&self) -> u64 {
        self.applied.revision
    }

    /// The cluster as of [`StateMachine::position`].
    pub fn members(&self) -> Arc<Members> {
        Arc::clone(&self.members)
    }

    /// The raised alarms as of [`StateMachine::position`].
    pub fn alarms(&self) -> Arc<Alarms> {
        Arc::clone(&self.alarms)
    }

    /// Reads of this state, for any thread. They see each batch as soon as
    /// [`StateMachine::apply`] has returned.
    pub fn view(&self) -> View<E> {
        View::new(self.engine().clone(), Arc::clone(&self.epoch))
    }

    /// Makes everything applied so far durable.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn flush(&self) -> Result<(), Fatal> {
        if mutant!(SnapshotWithoutFlush) {
            return Ok(());
        }
        self.engine().flush()
    }

    /// The state database.
    pub fn engine(&self) -> &E {
        self.store.engine()
    }
}

/// An entry, and the commands in it unless it changes the configuration.
struct Decoded<'a> {
    entry: &'a Entry,
    commands: Result<Vec<Command>, Fatal>,
}

impl<'a> Decoded<'a> {
    fn new(entry: &'a Entry) -> Self {
        let has_commands =
            entry.get_entry_type() == EntryType::EntryNormal && !entry.get_data().is_empty();
        let commands = match has_commands {
            true => command::decode_payload(entry.get_data()),
            false => Ok(Vec::new()),
        };
        Self { entry, commands }
    }
}

/// One apply batch in the making.
struct Step<'a, E> {
    machine: &'a StateMachine<E>,
    writes: Writes<'a, Recent<E>>,
    position: LogPosition,
    /// The members after the entries so far, once they differ.
    members: Option<Members>,
    /// The alarms after the entries so far, once they differ.
    alarms: Option<Alarms>,
    /// The entry that held a mark.
    mark: Option<LogPosition>,
    /// Bytes of the answers so far.
    weight: u64,
    /// Bytes of those to the present entry.
    entry_weight: u64,
}

impl<'a, E: Engine> Step<'a, E> {
    fn new(machine: &'a StateMachine<E>) -> Self {
        Self {
            machine,
            writes: Writes::new(
                &machine.store,
                machine.applied.revision,
                machine.applied.compacted,
            ),
            position: machine.position(),
            members: None,
            alarms: None,
            mark: None,
            weight: 0,
            entry_weight: 0,
        }
    }

    fn entry(&mut self, decoded: Decoded<'_>) -> Result<AppliedEntry, Fatal> {
        let Decoded { entry, commands } = decoded;
        self.advance(entry)?;
        self.entry_weight = 0;
        let mut applied =
            AppliedEntry { position: self.position, outcomes: Vec::new(), conf_change: None };
        let at_entry = |fatal: Fatal| Fatal {
            what: format!("cannot apply log entry {}: {}", entry.get_index(), fatal.what),
            ..fatal
        };
        match entry.get_entry_type() {
            // A new leader's first entry, and one that raft emptied.
            EntryType::EntryNormal if entry.get_data().is_empty() => {}
            EntryType::EntryNormal => {
                for command in commands.map_err(at_entry)? {
                    let outcome = match self.command(&command) {
                        Ok(outcome) => outcome,
                        Err(Stop::Refused(refused)) => answer(Is::Refused(refused.into())),
                        Err(Stop::Fatal(fatal)) => return Err(fatal),
                    };
                    self.writes.commit();
                    applied.outcomes.push(self.answered(&command, outcome));
                }
            }
            // Raft's own, when it leaves a joint configuration.
            EntryType::EntryConfChange | EntryType::EntryConfChangeV2
                if entry.get_data().is_empty() && entry.get_context().is_empty() => {}
            EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                let command = command::decode_command(entry.get_context()).map_err(at_entry)?;
                let (outcome, change) = self.conf_change(&command);
                applied.outcomes.push(self.answered(&command, outcome));
                applied.conf_change = change;
            }
        }
        Ok(applied)
    }

    /// Moves on to the next entry of the log.
    fn advance(&mut self, entry: &Entry) -> Result<(), Fatal> {
        let next = LogPosition { index: entry.get_index(), term: entry.get_term() };
        if next.index != self.position.index + 1 || next.term < self.position.term {
            return Err(Fatal::corrupt(format!(
                "log entry {} of term {} cannot be applied after entry {} of term {}",
                next.index, next.term, self.position.index, self.position.term
            )));
        }
        self.position = next;
        Ok(())
    }

    /// What the answer to the next command of the entry may take.
    fn max_response_bytes(&self) -> u64 {
        MAX_RESPONSE_BYTES.min(MAX_ENTRY_RESPONSE_BYTES.saturating_sub(self.entry_weight))
    }

    /// Takes note of an answer.
    fn weigh(&mut self, answer: &impl Message) {
        let bytes = answer.encoded_len() as u64;
        self.entry_weight += bytes;
        self.weight += bytes;
    }

    /// Carries out a command of a normal entry. A refusal leaves no trace.
    fn command(&mut self, command: &Command) -> Stopped<Outcome> {
        let LogPosition { index, term } = self.position;
        let writes = &mut self.writes;
        let ruling = match &command.op {
            Some(Op::Put(put)) => {
                self.check_space()?;
                return kv::put(&mut self.writes, put, index);
            }
            Some(Op::Delete(delete)) => return Ok(kv::delete(writes, delete)?),
            Some(Op::PutRequest(put)) => return self.put(put),
            Some(Op::DeleteRange(delete)) => return self.delete_range(delete),
            Some(Op::Txn(request)) => return self.txn(request),
            Some(Op::Compact(compact)) => return compaction::compact(writes, compact),
            Some(Op::GrantLease(grant)) => {
                self.check_space()?;
                let lease = leases::grant(&mut self.writes, grant.id, grant.ttl_s, index)?;
                return Ok(answer(Is::Lease(lease)));
            }
            Some(Op::RevokeLease(revoke)) => return leases::revoke(writes, revoke.id),
            Some(Op::ExpireLeases(expire)) => return Ok(leases::expire(writes, expire, term)?),
            Some(Op::RenewLeases(renew)) => return Ok(leases::renew(writes, renew, index)?),
            Some(Op::CheckpointLeases(checkpoint)) => {
                return Ok(leases::checkpoint(writes, checkpoint, term)?);
            }
            Some(Op::SetAlarm(set)) => return Ok(self.set_alarm(set)),
            Some(Op::CheckState(_)) => {
                self.mark = Some(self.position);
                return Ok(answer(Is::Done(Unit {})));
            }
            Some(Op::BindIncarnation(bind)) => members::bind_incarnation(self.members(), bind),
            Some(Op::SetClientUrl(set)) => members::set_client_url(self.members(), set),
            Some(Op::SetPeerUrl(set)) => members::set_peer_url(self.members(), set),
            Some(Op::AddMember(_) | Op::PromoteMember(_) | Op::RemoveMember(_)) | None => {
                members::conflict("a configuration change needs a log entry of its own")
            }
        };
        Ok(self.rule(ruling).0)
    }

    fn put(&mut self, put: &PutRequest) -> Stopped<Outcome> {
        self.check_space()?;
        let mut max_bytes = self.max_response_bytes();
        let response = kv::etcd_put(&mut self.writes, put, &mut max_bytes)?;
        self.weigh(&response);
        Ok(answer(Is::Put(response)))
    }

    fn delete_range(&mut self, delete: &DeleteRangeRequest) -> Stopped<Outcome> {
        let mut max_bytes = self.max_response_bytes();
        let response = kv::delete_range(&mut self.writes, delete, &mut max_bytes)?;
        self.weigh(&response);
        Ok(answer(Is::DeleteRange(response)))
    }

    fn txn(&mut self, request: &TxnRequest) -> Stopped<Outcome> {
        if txn::has_put(request) {
            self.check_space()?;
        }
        // It may be refused half-way.
        let max_bytes = self.max_response_bytes();
        if mutant!(RefusedTxnKeepsWrites) {
            return Ok(answer(Is::Txn(txn::txn(&mut self.writes, request, max_bytes)?)));
        }
        let mut writes = self.writes.nested();
        let response = txn::txn(&mut writes, request, max_bytes)?;
        let written = writes.finish();
        self.writes.absorb(written);
        self.weigh(&response);
        Ok(answer(Is::Txn(response)))
    }

    fn set_alarm(&mut self, set: &SetAlarm) -> Outcome {
        let mut changed = Alarms::default();
        if let Some(alarms) = alarms::set(self.alarms(), set) {
            self.alarms = Some(alarms);
            changed.alarms.push(AlarmMember { member_id: set.member, alarm: set.alarm });
        }
        answer(Is::Alarms(changed))
    }

    fn check_space(&self) -> Result<(), Refused> {
        if alarms::no_space(self.alarms()) && !mutant!(IgnoreNoSpace) {
            Err(Refused::NoSpace)
        } else {
            Ok(())
        }
    }

    /// The answer to a command that has been carried out.
    fn answered(&self, command: &Command, outcome: Outcome) -> (RequestId, Outcome) {
        let store_revision = self.writes.revision();
        (command.id.unwrap_or_default(), Outcome { store_revision, ..outcome })
    }

    /// Carries out the command of a configuration-change entry.
    fn conf_change(&mut self, command: &Command) -> (Outcome, Option<(ConfChangeV2, ConfState)>) {
        let ruling = match &command.op {
            Some(Op::AddMember(add)) => members::add(self.members(), add),
            Some(Op::PromoteMember(promote)) => members::promote(self.members(), promote.id),
            Some(Op::RemoveMember(remove)) => members::remove(self.members(), remove.id),
            _ => members::conflict("a configuration-change entry must hold one"),
        };
        let (outcome, changed) = self.rule(ruling);
        let change = changed.then(|| command::conf_change(command)).flatten();
        (outcome, change.map(|change| (change, members::conf_state(self.members()))))
    }

    fn members(&self) -> &Members {
        self.members.as_ref().unwrap_or(&self.machine.members)
    }

    fn alarms(&self) -> &Alarms {
        self.alarms.as_ref().unwrap_or(&self.machine.alarms)
    }

    /// Takes over a ruling; tells whether it changed anything.
    fn rule(&mut self, (outcome, after): Ruling) -> (Outcome, bool) {
        let changed = after.is_some();
        if changed {
            self.members = after;
        }
        (outcome, changed)
    }
}

/// Whether the database names its format; it must be this program's.
fn check_format(reader: &impl Reader) -> Result<bool, Fatal> {
    let Some(stored) = reader.get(Family::Meta, keys::FORMAT)? else { return Ok(false) };
    let newest = keys::STATE_FORMAT_VERSION;
    let stored = <[u8; 4]>::try_from(stored.as_ref())
        .map_err(|_| Fatal::corrupt("the format version of the state database is damaged"))?;
    version::check_stored("the state database", u32::from_be_bytes(stored), newest..=newest)?;
    Ok(true)
}

fn put_format(batch: &mut Batch) {
    batch.put(Family::Meta, keys::FORMAT, keys::STATE_FORMAT_VERSION.to_be_bytes().to_vec());
}

fn put_meta(batch: &mut Batch, key: &'static [u8], record: &impl Message) {
    batch.put(Family::Meta, key, record.encode_to_vec());
}

fn check_founding(founding: &FoundingRecord) -> Result<(), Fatal> {
    let founders = &founding.founders;
    let distinct = founders.iter().enumerate().all(|(place, founder)| {
        let others = &founders[..place];
        others.iter().all(|other| other.id != founder.id && other.peer_url != founder.peer_url)
    });
    let started = founders.iter().all(|founder| founder.id != 0 && founder.incarnation != 0);
    if founders.is_empty() || !distinct || !started {
        return Err(Fatal::corrupt("the founding record is not one of a possible cluster"));
    }
    Ok(())
}
