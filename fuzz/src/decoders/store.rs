//! A state database with one of everything in it, and everything that reads it.

use std::{fs::File, path::Path};

use bytes::Bytes;
use metastore::{
    error::Fatal,
    machine::{StateMachine, command},
    proto::{
        AddMember, CheckpointLeases, Command, Compact, Delete, Founder, FoundingRecord, GrantLease,
        LeaseRenewal, Put, RequestId, SetAlarm,
        command::Op,
        etcdserverpb::{
            DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
            request_op::Request,
        },
    },
    storage::memory::MemoryEngine,
};
use protobuf::Message as _;
use raft::eraftpb::{Entry, EntryType};

/// Writes in the beginning: enough for samples of the history.
const PUTS: usize = 40;

/// What a cluster was founded with.
pub fn founding() -> FoundingRecord {
    let founder = |id| Founder { id, peer_url: format!("http://h:{id}"), incarnation: 10 + id };
    FoundingRecord { founders: (1..=3).map(founder).collect() }
}

/// The next entry of the log with these commands.
pub fn entry(index: u64, ops: Vec<Op>) -> Entry {
    let commands: Vec<Command> = ops.into_iter().map(whole).collect();
    let data = command::encode_payload(commands).into();
    Entry { index, term: 1, data, ..Entry::default() }
}

fn whole(op: Op) -> Command {
    Command { id: Some(RequestId { member: 1, nonce: 2, sequence: 3 }), op: Some(op) }
}

fn put(key: &'static [u8], lease: i64) -> Op {
    let (key, value) = (Bytes::from_static(key), Bytes::from_static(b"value"));
    Op::PutRequest(PutRequest { key, value, lease, ..PutRequest::default() })
}

fn delete(key: &'static [u8]) -> Op {
    Op::Delete(Delete { key: Bytes::from_static(key), condition: None })
}

/// Everything that can be in a store, in one that was founded.
///
/// # Errors
/// When it cannot be made.
pub fn full() -> Result<MemoryEngine, Fatal> {
    let engine = MemoryEngine::new();
    StateMachine::bootstrap(&engine, &founding())?;
    let mut machine = StateMachine::open(engine.clone())?;
    let mut ops = vec![
        Op::GrantLease(GrantLease { id: 1, ttl_s: 60 }),
        Op::GrantLease(GrantLease { id: 2, ttl_s: 600 }),
        Op::GrantLease(GrantLease { id: -3, ttl_s: 600 }),
        put(b"k/1", 1),
        put(b"k/2", 2),
        put(b"gone", 0),
        delete(b"gone"),
        put(b"a\0b", 1),
    ];
    ops.extend((0..PUTS).map(|_| put(b"a", 0)));
    ops.push(Op::Compact(Compact { revision: 5 }));
    ops.extend([put(b"b", 2), delete(b"k/2"), put(b"\xff", 0), delete(b"\xff")]);
    ops.push(Op::DeleteRange(DeleteRangeRequest {
        key: Bytes::from_static(b"b"),
        range_end: Bytes::from_static(b"c"),
        ..DeleteRangeRequest::default()
    }));
    ops.push(Op::SetAlarm(SetAlarm { member: 2, alarm: 2, active: true }));
    let seen = LeaseRenewal { id: 2, renewal: 3, remaining_s: 9 };
    ops.push(Op::CheckpointLeases(CheckpointLeases { term: 1, leases: vec![seen] }));
    let mut index = machine.position().index;
    for op in ops {
        index += 1;
        machine.apply(&[entry(index, vec![op])])?;
    }
    let add = AddMember { id: 4, peer_url: "http://h:4".to_owned(), promote_when_caught_up: true };
    machine.apply(&[change(index + 1, Op::AddMember(add))])?;
    machine.flush()?;
    Ok(engine)
}

/// The entry of a change of the members.
pub fn change(index: u64, op: Op) -> Entry {
    let command = whole(op);
    let mut entry = Entry { index, term: 1, ..Entry::default() };
    entry.set_entry_type(EntryType::EntryConfChangeV2);
    let change = command::conf_change(&command).unwrap_or_default();
    // A change that cannot be encoded would be refused by whoever applies it.
    entry.data = change.write_to_bytes().unwrap_or_default().into();
    entry.context = command::encode_command(&command).into();
    entry
}

/// Reads everything in every way, then writes to every key and ends every lease.
/// With a directory, also writes a snapshot file.
///
/// # Errors
/// What the store says when it is damaged.
pub fn exercise(engine: &MemoryEngine, scratch: Option<&Path>) -> Result<(), Fatal> {
    let mut machine = StateMachine::open(engine.clone())?;
    let view = machine.view();
    let everything = |revision: u64| RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        revision: revision.cast_signed(),
        ..RangeRequest::default()
    };
    view.hash()?;
    let (revision, compacted) = (view.revision()?, view.compacted()?);
    let mut refused = 0;
    for at in [0, compacted, compacted.saturating_add(1), revision.saturating_sub(1), revision] {
        refused += u32::from(view.range(&everything(at), u64::MAX)?.is_err());
        refused += u32::from(view.hash_kv(at)?.is_err());
        refused += u32::from(view.changes(at, 1 << 20)?.is_err());
    }
    for lease in view.leases()? {
        view.lease_keys(lease.id)?;
    }
    if let Some(scratch) = scratch {
        let file = tempfile_in(scratch)?;
        let exported = view.export(file, scratch, &mut |_| Ok(()));
        exported.map_err(|error| Fatal::corrupt(error.to_string()))?;
    }
    write(&mut machine, refused)
}

fn tempfile_in(directory: &Path) -> Result<File, Fatal> {
    tempfile::tempfile_in(directory).map_err(|error| Fatal::storage("make a file", error))
}

/// Writes to every key that there is and ends every lease.
fn write(machine: &mut StateMachine<MemoryEngine>, refused: u32) -> Result<(), Fatal> {
    let position = machine.position();
    let mut ops = vec![put(b"a", 0), put(b"gone", 0), put(b"k/1", 0), delete(b"k/1")];
    // What was refused before is refused again within a transaction.
    let range =
        RangeRequest { key: "a".into(), revision: refused.into(), ..RangeRequest::default() };
    let nested = RequestOp { request: Some(Request::RequestRange(range)) };
    ops.push(Op::Txn(TxnRequest { success: vec![nested], ..TxnRequest::default() }));
    ops.push(Op::DeleteRange(DeleteRangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        prev_kv: true,
    }));
    let leases = machine.view().leases()?;
    ops.extend(
        leases
            .iter()
            .map(|lease| Op::RenewLeases(metastore::proto::RenewLeases { ids: vec![lease.id] })),
    );
    ops.extend(
        leases.iter().map(|lease| Op::RevokeLease(metastore::proto::RevokeLease { id: lease.id })),
    );
    ops.push(Op::Put(Put { key: "new".into(), lease: 5, grant_ttl_s: 60, ..Put::default() }));
    ops.push(Op::Compact(Compact { revision: machine.revision() }));
    let Some(index) = position.index.checked_add(1) else {
        return Err(Fatal::corrupt("the log is full"));
    };
    let entry = Entry { term: position.term, ..entry(index, ops) };
    machine.apply(&[entry])?;
    machine.view().hash()?;
    Ok(())
}
