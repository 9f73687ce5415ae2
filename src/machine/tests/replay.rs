//! The same log gives the same state, however it is cut into batches and
//! whichever engine holds it; and that state is the one of a simple model.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};
use raft::eraftpb::Entry;

use super::{add, conf_change, delete, delete_if, founded, founding, normal, put, put_if, result};
use crate::{
    machine::{StateHash, StateMachine},
    proto::{
        BindIncarnation, Condition, PromoteMember, RemoveMember, command::Op, outcome::Result as Is,
    },
    storage::{
        Engine,
        rocks::{Kind, MemoryBudget, RocksEngine},
    },
};

/// What the model knows of a key.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    create_revision: u64,
    mod_revision: u64,
    version: u64,
    value: Vec<u8>,
}

/// A store simple enough to be right.
#[derive(Debug)]
struct Model {
    revision: u64,
    keys: BTreeMap<Vec<u8>, Known>,
}

impl Model {
    fn write(&mut self, op: &Op) -> Option<Is> {
        let (key, condition, value) = match op {
            Op::Put(put) => (put.key.to_vec(), &put.condition, Some(put.value.to_vec())),
            Op::Delete(delete) => (delete.key.to_vec(), &delete.condition, None),
            _ => return None,
        };
        let now = self.keys.get(&key).map_or(0, |known| known.mod_revision);
        let refused = condition.as_ref().is_some_and(|given| {
            given.absent && now != 0
                || given.exists && now == 0
                || !given.mod_revisions.is_empty() && !given.mod_revisions.contains(&now)
                || now != 0 && given.not_mod_revisions.contains(&now)
        });
        if refused {
            return Some(Is::PreconditionFailed(now));
        }
        let mod_revision = self.revision + 1;
        match (value, self.keys.get_mut(&key)) {
            (None, None) => return Some(super::NOT_FOUND),
            (None, Some(_)) => {
                self.keys.remove(&key);
            }
            (Some(value), Some(known)) => {
                let version = known.version + 1;
                *known = Known { mod_revision, version, value, ..*known };
            }
            (Some(value), None) => {
                let known =
                    Known { create_revision: mod_revision, mod_revision, version: 1, value };
                self.keys.insert(key, known);
            }
        }
        self.revision = mod_revision;
        Some(Is::Revision(mod_revision))
    }
}

fn any_condition() -> impl Strategy<Value = Option<Condition>> {
    let revisions = || vec(1..40_u64, 0..3);
    let given = (revisions(), any::<bool>(), any::<bool>(), revisions()).prop_map(
        |(mod_revisions, exists, absent, not_mod_revisions)| {
            // Both at once never hold, which would make for dull histories.
            let absent = absent && !exists;
            Condition { mod_revisions, exists, absent, not_mod_revisions }
        },
    );
    prop_oneof![3 => Just(None), 1 => given.prop_map(Some)]
}

fn any_key() -> impl Strategy<Value = &'static [u8]> {
    prop::sample::select(vec![&b"a"[..], b"b", b"", b"\0", b"a\0", b"\xff\xff"])
}

/// An entry of the log: the operations of a normal one, or a configuration
/// change of its own.
#[derive(Debug, Clone)]
enum Logged {
    Normal(Vec<Op>),
    ConfChange(Op),
}

fn any_logged() -> impl Strategy<Value = Logged> {
    let put = (any_key(), vec(any::<u8>(), 0..4), any_condition())
        .prop_map(|(key, value, condition)| put_if(key, &value, condition));
    let delete =
        (any_key(), any_condition()).prop_map(|(key, condition)| delete_if(key, condition));
    let bind = (1..7_u64)
        .prop_map(|id| Op::BindIncarnation(BindIncarnation { id, incarnation: id * 100 }));
    let ops = vec(prop_oneof![8 => put, 3 => delete, 1 => bind], 0..8);
    let change = (1..7_u64, 0..3_u8).prop_map(|(id, kind)| match kind {
        0 => add(id),
        1 => Op::PromoteMember(PromoteMember { id }),
        _ => Op::RemoveMember(RemoveMember { id }),
    });
    prop_oneof![6 => ops.prop_map(Logged::Normal), 1 => change.prop_map(Logged::ConfChange)]
}

fn entries(log: &[Logged]) -> Vec<Entry> {
    let entry = |(index, logged): (u64, &Logged)| match logged {
        Logged::Normal(ops) => normal(index, ops.clone()),
        Logged::ConfChange(op) => conf_change(index, op.clone()),
    };
    (2..).zip(log).map(entry).collect()
}

/// Applies the log in batches of the given sizes, in turn.
fn hash_in_batches<E: Engine>(
    machine: &mut StateMachine<E>,
    mut entries: &[Entry],
    sizes: &[usize],
) -> StateHash {
    for size in sizes.iter().cycle() {
        if entries.is_empty() {
            break;
        }
        let (batch, rest) = entries.split_at((*size).min(entries.len()));
        machine.apply(batch).unwrap();
        entries = rest;
    }
    machine.view().hash().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_log_matches_the_model_in_any_batches(
        log in vec(any_logged(), 1..24),
        sizes in vec(1..6_usize, 1..5),
    ) {
        let entries = entries(&log);
        let mut machine = founded();
        let batch = machine.apply(&entries).unwrap();
        let whole = machine.view().hash().unwrap();

        let mut model = Model { revision: 1, keys: BTreeMap::new() };
        for (logged, applied) in log.iter().zip(&batch.entries) {
            let Logged::Normal(ops) = logged else { continue };
            for (op, (_, outcome)) in ops.iter().zip(&applied.outcomes) {
                if let Some(expected) = model.write(op) {
                    prop_assert_eq!(result(outcome), expected);
                }
            }
        }
        prop_assert_eq!(machine.revision(), model.revision);
        for key in [&b"a"[..], b"b", b"", b"\0", b"a\0", b"\xff\xff"] {
            let actual = machine.view().get(key).unwrap().map(|record| Known {
                create_revision: record.create_revision,
                mod_revision: record.mod_revision,
                version: record.version,
                value: record.value.to_vec(),
            });
            prop_assert_eq!(actual.as_ref(), model.keys.get(key));
        }
        prop_assert_eq!(&hash_in_batches(&mut founded(), &entries, &[1]), &whole);
        prop_assert_eq!(&hash_in_batches(&mut founded(), &entries, &sizes), &whole);
    }
}

#[test]
fn rocksdb_and_memory_hold_the_same_state() {
    let mut log: Vec<Logged> = (0..100_u8)
        .map(|step| {
            let key = [step % 7, 0, 0xff];
            let op = if step % 5 == 4 { delete(&key) } else { put(&key, &[step; 300]) };
            Logged::Normal(vec![op, put(b"every time", &[])])
        })
        .collect();
    log.insert(50, Logged::ConfChange(add(4)));
    log.insert(51, Logged::ConfChange(Op::RemoveMember(RemoveMember { id: 2 })));
    let entries = entries(&log);
    let expected = hash_in_batches(&mut founded(), &entries, &[1, 2, 3]);

    let dir = tempfile::tempdir().unwrap();
    let budget = MemoryBudget::default();
    let engine = RocksEngine::open(dir.path(), Kind::State, &budget).unwrap();
    StateMachine::bootstrap(&engine, &founding()).unwrap();
    let mut machine = StateMachine::open(engine).unwrap();
    assert_eq!(hash_in_batches(&mut machine, &entries, &[7]), expected);

    // Another physical state of the same data: tables instead of a log.
    machine.flush().unwrap();
    assert_eq!(machine.view().hash().unwrap(), expected);
    drop(machine);
    let engine = RocksEngine::open(dir.path(), Kind::State, &budget).unwrap();
    let machine = StateMachine::open(engine).unwrap();
    assert_eq!(machine.view().hash().unwrap(), expected);
}
