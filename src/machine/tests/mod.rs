//! Unit tests of the state machine over the in-memory engine.

mod backup;
mod forgetting;
mod kv;
mod members;
mod range;
mod replay;
mod state;

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType};

use super::{StateMachine, command};
use crate::{
    proto::{
        AddMember, Command, Condition, Delete, Founder, FoundingRecord, Outcome, Put, RequestId,
        Unit, command::Op, outcome::Result as Is,
    },
    storage::memory::MemoryEngine,
};

fn founding() -> FoundingRecord {
    let founder = |id: u64| Founder { id, peer_url: url(id), incarnation: id * 100 };
    FoundingRecord { founders: (1..=3).map(founder).collect() }
}

fn url(id: u64) -> String {
    format!("http://127.0.0.1:{}", 1000 + id)
}

fn founded() -> StateMachine<MemoryEngine> {
    let engine = MemoryEngine::default();
    StateMachine::bootstrap(&engine, &founding()).unwrap();
    StateMachine::open(engine).unwrap()
}

fn request(sequence: u64) -> RequestId {
    RequestId { member: 1, nonce: 7, sequence }
}

fn command(op: Op) -> Command {
    Command { id: Some(request(1)), op: Some(op) }
}

fn put_if(key: &[u8], value: &[u8], condition: Option<Condition>) -> Op {
    let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
    Op::Put(Put { key, value, condition, ..Put::default() })
}

fn put(key: &[u8], value: &[u8]) -> Op {
    put_if(key, value, None)
}

fn delete_if(key: &[u8], condition: Option<Condition>) -> Op {
    Op::Delete(Delete { key: Bytes::copy_from_slice(key), condition })
}

fn delete(key: &[u8]) -> Op {
    delete_if(key, None)
}

fn add(id: u64) -> Op {
    Op::AddMember(AddMember { id, peer_url: url(id), promote_when_caught_up: false })
}

fn normal(index: u64, ops: Vec<Op>) -> Entry {
    let commands: Vec<Command> = ops.into_iter().map(command).collect();
    entry(index, EntryType::EntryNormal, command::encode_payload(commands), vec![])
}

fn conf_change(index: u64, op: Op) -> Entry {
    let context = command::encode_command(&command(op));
    entry(index, EntryType::EntryConfChangeV2, b"what raft reads".to_vec(), context)
}

fn entry(index: u64, kind: EntryType, data: Vec<u8>, context: Vec<u8>) -> Entry {
    let mut entry = Entry::default();
    entry.set_entry_type(kind);
    entry.set_index(index);
    entry.set_term(1);
    entry.set_data(data.into());
    entry.set_context(context.into());
    entry
}

/// Applies one normal entry; gives the outcomes.
fn apply(machine: &mut StateMachine<MemoryEngine>, ops: Vec<Op>) -> Vec<Is> {
    let next = machine.position().index + 1;
    let batch = machine.apply(&[normal(next, ops)]).unwrap();
    batch.entries[0].outcomes.iter().map(|(_, outcome)| result(outcome)).collect()
}

fn apply_one(machine: &mut StateMachine<MemoryEngine>, op: Op) -> Is {
    apply(machine, vec![op]).remove(0)
}

fn result(outcome: &Outcome) -> Is {
    outcome.result.clone().unwrap()
}

const NOT_FOUND: Is = Is::KeyNotFound(Unit {});
