//! What compaction leaves on disk, and that nobody can tell.

use std::{ops::Bound, path::Path};

use proptest::prelude::*;
use tempfile::TempDir;

use super::{delete, founding, normal, put, result};
use crate::{
    machine::{AppliedBatch, StateMachine},
    proto::{
        Compact, Outcome, Refused,
        command::Op,
        etcdserverpb::{RangeRequest, RangeResponse},
        outcome::Result as Is,
    },
    storage::{
        Engine, Family, Reader,
        memory::MemoryEngine,
        rocks::{Kind, MemoryBudget, RocksEngine},
    },
};

type Rocks = StateMachine<RocksEngine>;

fn open(dir: &Path) -> Rocks {
    let engine = RocksEngine::open(dir, Kind::State, &MemoryBudget::new(4 << 20)).unwrap();
    StateMachine::bootstrap(&engine, &founding()).unwrap();
    StateMachine::open(engine).unwrap()
}

fn apply<E: Engine>(machine: &mut StateMachine<E>, ops: Vec<Op>) -> AppliedBatch {
    let next = machine.position().index + 1;
    machine.apply(&[normal(next, ops)]).unwrap()
}

fn outcome<E: Engine>(machine: &mut StateMachine<E>, op: Op) -> Outcome {
    apply(machine, vec![op]).entries[0].outcomes[0].1.clone()
}

fn compact(revision: u64) -> Op {
    Op::Compact(Compact { revision })
}

fn stored(reader: &impl Reader, family: Family) -> u64 {
    reader.count(family, (Bound::Unbounded, Bound::Unbounded)).unwrap()
}

/// Revisions 2 to 201: 40 changes of each of five keys, the last of which is
/// the deletion of each.
fn filled<E: Engine>(machine: &mut StateMachine<E>) {
    for round in 0..40_u8 {
        let op = |key: u8| if round == 39 { delete(&[key]) } else { put(&[key], &[round]) };
        apply(machine, (b'a'..=b'e').map(op).collect());
    }
    assert_eq!(machine.revision(), 201);
}

fn range(revision: i64) -> RangeRequest {
    RangeRequest { key: "a".into(), range_end: "z".into(), revision, ..RangeRequest::default() }
}

fn read<E: Engine>(machine: &StateMachine<E>, revision: i64) -> Result<RangeResponse, Refused> {
    machine.view().range(&range(revision), u64::MAX).unwrap()
}

#[test]
fn history_vanishes_once_their_compaction_is_durable() {
    let dir = TempDir::new().unwrap();
    let mut machine = open(dir.path());
    filled(&mut machine);
    machine.flush().unwrap();
    let counts = |machine: &Rocks| {
        let engine = machine.engine();
        engine.compact();
        [Family::Deleted, Family::History, Family::Changes].map(|family| stored(engine, family))
    };
    assert_eq!(counts(&machine), [5, 10, 200]);

    // Samples stand at changes 16 and 32 of each key: 77 to 81, 157 to 161.
    apply(&mut machine, vec![compact(100)]);
    assert_eq!(counts(&machine), [5, 10, 200], "the compaction is not durable yet");
    machine.flush().unwrap();
    assert_eq!(counts(&machine), [5, 5, 102]);

    apply(&mut machine, vec![compact(199)]);
    machine.flush().unwrap();
    assert_eq!(counts(&machine), [2, 0, 3]);
    assert_eq!(read(&machine, 198), Err(Refused::Compacted));
    assert_eq!(read(&machine, 199).unwrap().kvs.len(), 2);
    assert_eq!(read(&machine, 200).unwrap().kvs.len(), 1);

    apply(&mut machine, vec![compact(201)]);
    machine.flush().unwrap();
    assert_eq!(counts(&machine), [0, 0, 1]);
}

#[test]
fn a_checkpoint_makes_a_compaction_durable_too() {
    let dir = TempDir::new().unwrap();
    let mut machine = open(&dir.path().join("live"));
    filled(&mut machine);
    apply(&mut machine, vec![compact(201)]);
    machine.engine().checkpoint(&dir.path().join("copy")).unwrap();
    machine.engine().compact();
    assert_eq!(stored(machine.engine(), Family::Deleted), 0);
}

#[test]
fn a_reader_of_the_past_keeps_it() {
    let dir = TempDir::new().unwrap();
    let mut machine = open(dir.path());
    filled(&mut machine);
    let (before, view) = (read(&machine, 150).unwrap(), machine.view());
    let mut pairs = Vec::new();
    let streamed = view.stream(&range(150), &mut |pair| {
        if pairs.is_empty() {
            apply(&mut machine, vec![compact(190)]);
            machine.flush().unwrap();
            machine.engine().compact();
        }
        pairs.push(pair);
        true
    });
    assert_eq!(streamed.unwrap().unwrap().count, 5);
    assert_eq!(pairs, before.kvs);
    assert_eq!(read(&machine, 150), Err(Refused::Compacted));

    // Nobody reads now: the same compaction of the database drops the rest.
    assert_eq!(stored(machine.engine(), Family::History), 5);
    machine.engine().compact();
    assert_eq!(stored(machine.engine(), Family::History), 0);
}

#[test]
fn compaction_looks_at_nothing() {
    let dir = TempDir::new().unwrap();
    let mut machine = open(dir.path());
    for round in 0..200_u32 {
        let op = |n: u32| put(&(round * 100 + n).to_be_bytes(), b"value");
        apply(&mut machine, (0..100).map(op).collect());
    }
    let done = outcome(&mut machine, compact(20_001));
    assert!(matches!(done.result, Some(Is::Done(_))), "{done:?}");
    // However many changes there are; all of them are still on disk.
    assert_eq!(stored(machine.engine(), Family::Changes), 20_000);
    let view = machine.view();
    assert_eq!(view.changes(20_000, 0).unwrap(), Err(Refused::Compacted));
    let page = view.changes(20_001, usize::MAX).unwrap().unwrap();
    assert_eq!(page.revisions.len(), 1);
    let hash = view.hash().unwrap();
    machine.flush().unwrap();
    machine.engine().compact();
    assert_eq!(stored(machine.engine(), Family::Changes), 1);
    assert_eq!(view.hash().unwrap(), hash);
}

#[test]
fn files_of_forgotten_changes_are_unlinked_unread() {
    let dir = TempDir::new().unwrap();
    let mut machine = open(dir.path());
    // Table files of revisions 2 to 201, and twice a hundred more.
    filled(&mut machine);
    machine.engine().compact();
    for _ in 0..2 {
        apply(&mut machine, (0..100).map(|n| put(&[n], b"value")).collect());
        machine.flush().unwrap();
    }
    let reading = machine.engine().floor().keep(2);
    let changes = |machine: &Rocks| {
        machine.engine().unlink_forgotten(usize::MAX).unwrap();
        stored(machine.engine(), Family::Changes)
    };
    apply(&mut machine, vec![compact(250)]);
    assert_eq!(changes(&machine), 400, "the compaction is not durable yet");
    machine.flush().unwrap();
    assert_eq!(changes(&machine), 400, "somebody reads");
    drop(reading);
    assert!(machine.engine().has_forgotten());
    assert!((152..=200).contains(&changes(&machine)), "{}", changes(&machine));
    changes(&machine);
    assert!(!machine.engine().has_forgotten(), "nothing was left");
    let page = machine.view().changes(250, usize::MAX).unwrap().unwrap();
    assert_eq!(page.revisions.len(), 152);
}

#[test]
fn a_page_of_changes_is_whole_beside_a_compaction() {
    let dir = TempDir::new().unwrap();
    let mut machine = open(dir.path());
    filled(&mut machine);
    let kept = machine.engine().floor().keep(100);
    apply(&mut machine, vec![compact(190)]);
    machine.flush().unwrap();
    // A page that began before the compaction holds the floor down like this.
    machine.engine().compact();
    assert_eq!(stored(machine.engine(), Family::Changes), 102);
    drop(kept);
    machine.engine().compact();
    assert_eq!(stored(machine.engine(), Family::Changes), 12);
}

/// A member whose disk has forgotten and one whose disk has not.
fn members() -> [StateMachine<MemoryEngine>; 2] {
    let mut members = [super::founded(), super::founded()];
    for machine in &mut members {
        filled(machine);
        apply(machine, vec![compact(199)]);
        machine.flush().unwrap();
    }
    members[0].engine().forget();
    assert_eq!(stored(members[0].engine(), Family::Deleted), 2);
    assert_eq!(stored(members[1].engine(), Family::Deleted), 5);
    members
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn members_that_forgot_and_members_that_did_not_agree(
        ops in prop::collection::vec((b'a'..=b'f', any::<bool>()), 0..60),
    ) {
        let [mut forgetful, mut other] = members();
        for (key, exists) in ops {
            let op = || if exists { put(&[key], b"again") } else { delete(&[key]) };
            let outcomes = [outcome(&mut forgetful, op()), outcome(&mut other, op())];
            prop_assert_eq!(result(&outcomes[0]), result(&outcomes[1]));
        }
        let views = [forgetful.view(), other.view()];
        prop_assert_eq!(views[0].hash().unwrap(), views[1].hash().unwrap());
        for revision in 199..=forgetful.revision() {
            let [a, b] = [&views[0], &views[1]].map(|view| view.hash_kv(revision).unwrap());
            prop_assert_eq!(a, b);
            prop_assert_eq!(read(&forgetful, revision as i64), read(&other, revision as i64));
        }
    }
}

#[test]
fn the_hash_of_the_keys_tells_values_histories_and_revisions_apart() {
    let [machine, mut other] = members();
    let hash = |machine: &StateMachine<MemoryEngine>, revision: u64| {
        machine.view().hash_kv(revision).unwrap().unwrap()
    };
    let present = hash(&machine, 0);
    assert_eq!(present, hash(&machine, 201));
    assert_eq!((present.hashed_revision, present.compacted), (201, 199));
    assert_ne!(present.hash, hash(&machine, 200).hash);
    assert_eq!(machine.view().hash_kv(198).unwrap(), Err(Refused::Compacted));
    assert_eq!(machine.view().hash_kv(202).unwrap(), Err(Refused::FutureRevision));
    assert_eq!(machine.view().hash_kv(u64::MAX).unwrap(), Err(Refused::FutureRevision));

    // The hash of a revision outlives what is written after it.
    apply(&mut other, vec![put(b"a", b"1")]);
    assert_eq!(hash(&other, 201).hash, present.hash);
    assert_ne!(hash(&other, 0).hash, present.hash);

    // One changed byte, in the state or in the history.
    for family in [Family::Current, Family::Changes] {
        let [_, mut damaged] = members();
        apply(&mut damaged, vec![put(b"a", b"1")]);
        let everything = (Bound::Unbounded, Bound::Unbounded);
        let (key, value) = damaged.engine().scan(family, everything).last().unwrap().unwrap();
        let mut value = value.to_vec();
        let at = value.iter().rposition(|byte| *byte == b'1').unwrap();
        value[at] = b'2';
        let mut batch = crate::storage::Batch::default();
        batch.put(family, key, value);
        damaged.engine().write(batch, false).unwrap();
        assert_ne!(hash(&damaged, 0).hash, hash(&other, 0).hash, "{family:?}");
    }
}
