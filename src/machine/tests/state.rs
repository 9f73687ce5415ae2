use prost::Message;
use raft::eraftpb::{ConfChangeType, EntryType};

use crate::{
    error::Fatal,
    machine::{StateMachine, command, conf_state, founding_members, is_accused, member},
    proto::{
        AppliedState, BindIncarnation, CheckState, CheckpointLeases, FoundingRecord, GrantLease,
        KeyRecord, LeaseRecord, LeaseRenewal, LogPosition, Members, PromoteMember, RemoveMember,
        SetAlarm, SetClientUrl, Tombstone, Unit, command::Op, etcdserverpb::AlarmType,
        outcome::Result as Is,
    },
    storage::{Batch, Engine, Family, keys, memory::MemoryEngine},
};

use super::{add, apply_one, conf_change, entry, founded, founding, normal, put, request, result};

const FOUNDED: LogPosition = LogPosition { index: 1, term: 1 };

#[test]
fn an_empty_database_stands_before_the_log() {
    let machine = StateMachine::open(MemoryEngine::default()).unwrap();
    assert_eq!(machine.position(), LogPosition::default());
    assert_eq!(machine.revision(), 1);
    assert_eq!(*machine.members(), Members::default());
    assert_eq!(machine.view().position().unwrap(), LogPosition::default());
    assert_eq!(machine.view().revision().unwrap(), 1);
    assert_eq!(machine.view().get(b"a").unwrap(), None);
}

#[test]
fn a_founder_starts_at_index_1_term_1() {
    let machine = founded();
    assert_eq!(machine.position(), FOUNDED);
    assert_eq!(machine.revision(), 1);
    assert_eq!(*machine.members(), founding_members(&founding()));
}

#[test]
fn bootstrap_again_changes_nothing_and_never_overwrites() {
    let mut machine = founded();
    StateMachine::bootstrap(machine.engine(), &founding()).unwrap();
    let mut other = founding();
    other.founders[0].incarnation = 5;
    assert!(StateMachine::bootstrap(machine.engine(), &other).is_err());
    apply_one(&mut machine, put(b"a", b"1"));
    assert!(StateMachine::bootstrap(machine.engine(), &founding()).is_err());
    assert_eq!(machine.view().get(b"a").unwrap().unwrap().value, "1");
}

#[test]
fn an_impossible_founding_is_refused() {
    let broken: [fn(&mut FoundingRecord); 5] = [
        |record| record.founders.clear(),
        |record| record.founders[2].id = 0,
        |record| record.founders[2].incarnation = 0,
        |record| record.founders[2].id = record.founders[0].id,
        |record| record.founders[2].peer_url = record.founders[0].peer_url.clone(),
    ];
    for damage in broken {
        let mut record = founding();
        damage(&mut record);
        let engine = MemoryEngine::default();
        assert!(StateMachine::bootstrap(&engine, &record).is_err(), "{record:?}");
        assert_eq!(StateMachine::open(engine).unwrap().position(), LogPosition::default());
    }
}

#[test]
fn a_batch_reports_every_entry_and_survives_reopening() {
    let mut machine = founded();
    let entries = [
        normal(2, vec![put(b"a", b"1"), put(b"b", b"2")]),
        entry(3, EntryType::EntryNormal, vec![], vec![]),
        entry(4, EntryType::EntryConfChangeV2, vec![], vec![]),
        normal(5, vec![]),
    ];
    let bytes = entries.iter().map(|entry| entry.get_data().len()).sum::<usize>();
    let batch = machine.apply(&entries).unwrap();
    let counts: Vec<usize> = batch.entries.iter().map(|entry| entry.outcomes.len()).collect();
    assert_eq!(counts, [2, 0, 0, 0]);
    let indexes: Vec<u64> = batch.entries.iter().map(|entry| entry.position.index).collect();
    assert_eq!(indexes, [2, 3, 4, 5]);
    assert!(batch.entries.iter().all(|entry| entry.conf_change.is_none()));
    assert_eq!(batch.position, LogPosition { index: 5, term: 1 });
    assert_eq!(batch.bytes, bytes);
    assert!(batch.members.is_none());
    assert_eq!(batch.entries[0].outcomes[0].0, request(1));

    let again = StateMachine::open(machine.engine().clone()).unwrap();
    assert_eq!(again.position(), machine.position());
    assert_eq!(again.revision(), 3);
    assert_eq!(again.view().hash().unwrap(), machine.view().hash().unwrap());
}

#[test]
fn no_entries_are_no_batch() {
    let mut machine = founded();
    let batch = machine.apply(&[]).unwrap();
    assert_eq!((batch.position, batch.bytes, batch.entries.len()), (FOUNDED, 0, 0));
}

#[test]
fn a_gap_a_repetition_and_an_older_term_are_refused_without_effect() {
    let mut at_term_2 = normal(2, vec![put(b"a", b"1")]);
    at_term_2.set_term(2);
    let before = founded().view().hash().unwrap();
    for entries in [
        vec![normal(1, vec![put(b"a", b"1")])],
        vec![normal(3, vec![put(b"a", b"1")])],
        vec![normal(2, vec![put(b"a", b"1")]), normal(4, vec![])],
        vec![normal(2, vec![put(b"a", b"1")]), normal(2, vec![])],
        vec![at_term_2, normal(3, vec![])],
    ] {
        let mut machine = founded();
        let fatal = machine.apply(&entries).unwrap_err();
        assert!(fatal.what.contains("cannot be applied after entry"), "{fatal}");
        assert_eq!(machine.view().hash().unwrap(), before);
    }
}

#[test]
fn an_entry_that_cannot_be_understood_stops_the_node_and_is_named() {
    let damaged = [
        entry(2, EntryType::EntryNormal, b"\xff".to_vec(), vec![]),
        entry(2, EntryType::EntryConfChangeV2, vec![], b"\xff".to_vec()),
        entry(2, EntryType::EntryConfChangeV2, b"change without a command".to_vec(), vec![]),
    ];
    for entry in damaged {
        let fatal = founded().apply(&[entry]).unwrap_err();
        assert!(fatal.what.starts_with("cannot apply log entry 2: "), "{fatal}");
    }
}

#[test]
fn a_database_of_another_format_is_refused() {
    let machine = founded();
    let mut batch = Batch::default();
    let newer = keys::STATE_FORMAT_VERSION + 1;
    batch.put(Family::Meta, keys::FORMAT, newer.to_be_bytes().to_vec());
    machine.engine().write(batch, false).unwrap();
    let fatal = StateMachine::open(machine.engine().clone()).err().unwrap();
    assert!(fatal.what.contains(&format!("has format {newer}, ")), "{fatal}");

    for damage in [Some(b"?".to_vec()), None] {
        let machine = founded();
        let mut batch = Batch::default();
        match damage {
            Some(value) => batch.put(Family::Meta, keys::FORMAT, value),
            None => batch.delete(Family::Meta, keys::FORMAT),
        }
        machine.engine().write(batch, false).unwrap();
        assert!(StateMachine::open(machine.engine().clone()).is_err());
    }
}

#[test]
fn the_first_batch_of_an_empty_database_writes_the_format() {
    let mut machine = StateMachine::open(MemoryEngine::default()).unwrap();
    machine.apply(&[normal(1, vec![])]).unwrap();
    let again = StateMachine::open(machine.engine().clone()).unwrap();
    assert_eq!(again.position(), FOUNDED);
}

#[test]
fn accepted_changes_tell_raft_and_later_entries_of_the_batch() {
    let mut machine = founded();
    let bind = Op::BindIncarnation(BindIncarnation { id: 4, incarnation: 44 });
    let batch = machine
        .apply(&[
            conf_change(2, add(4)),
            conf_change(3, add(4)),
            conf_change(4, Op::PromoteMember(PromoteMember { id: 4 })),
            normal(5, vec![bind]),
            conf_change(6, Op::PromoteMember(PromoteMember { id: 4 })),
            conf_change(7, Op::PromoteMember(PromoteMember { id: 4 })),
            conf_change(8, Op::RemoveMember(RemoveMember { id: 2 })),
            conf_change(9, add(2)),
        ])
        .unwrap();
    let change = |at: usize| batch.entries[at].conf_change.as_ref();
    let kind = |at: usize| change(at).unwrap().0.get_changes()[0].get_change_type();

    assert_eq!(kind(0), ConfChangeType::AddLearnerNode);
    assert_eq!(change(0).unwrap().1.get_learners(), [4]);
    assert_eq!(kind(4), ConfChangeType::AddNode);
    assert_eq!(change(4).unwrap().1.get_voters(), [1, 2, 3, 4]);
    assert_eq!(kind(6), ConfChangeType::RemoveNode);
    assert_eq!(change(6).unwrap().1.get_voters(), [1, 3, 4]);
    // Added again, not started yet, bound, a voter already, used before.
    assert!([1, 2, 3, 5, 7].iter().all(|at| change(*at).is_none()));
    let answer = |at: usize| result(&batch.entries[at].outcomes[0].1);
    assert!(matches!(answer(1), Is::Member(_)) && matches!(answer(5), Is::Member(_)));
    assert!(matches!(answer(2), Is::Conflict(_)) && matches!(answer(7), Is::Conflict(_)));

    let members = batch.members.unwrap();
    assert_eq!(members, machine.members());
    assert_eq!(&conf_state(&members), &change(6).unwrap().1);
    assert_eq!(members.removed_ids, [2]);
    let again = StateMachine::open(machine.engine().clone()).unwrap();
    assert_eq!(again.members(), members);
}

#[test]
fn what_a_normal_entry_changes_of_members_reaches_readers_but_not_raft() {
    let mut machine = founded();
    let set = Op::SetClientUrl(SetClientUrl { id: 1, client_url: "http://c:1".into() });
    let batch = machine.apply(&[normal(2, vec![set.clone()])]).unwrap();
    assert!(batch.entries[0].conf_change.is_none());
    assert_eq!(member(&batch.members.unwrap(), 1).unwrap().client_url, "http://c:1");
    let batch = machine.apply(&[normal(3, vec![set])]).unwrap();
    assert!(batch.members.is_none());
    assert_eq!(machine.revision(), 1);
}

#[test]
fn a_command_in_the_wrong_kind_of_entry_has_no_effect() {
    let mut machine = founded();
    let batch = machine.apply(&[normal(2, vec![add(4)]), conf_change(3, put(b"a", b""))]).unwrap();
    for entry in &batch.entries {
        assert!(matches!(result(&entry.outcomes[0].1), Is::Conflict(_)));
        assert!(entry.conf_change.is_none());
    }
    assert!(batch.members.is_none());
    assert_eq!(machine.revision(), 1);
    assert_eq!(machine.view().get(b"a").unwrap(), None);
}

#[test]
fn raft_agrees_with_the_configuration_that_follows() {
    let mut machine = founded();
    let store = raft::storage::MemStorage::new_with_conf_state(conf_state(&machine.members()));
    let config = raft::Config { id: 1, ..raft::Config::new(1) };
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let mut node = raft::RawNode::new(&config, store, &logger).unwrap();
    let bind = Op::BindIncarnation(BindIncarnation { id: 4, incarnation: 44 });
    machine.apply(&[normal(2, vec![])]).unwrap();
    for (index, op) in [
        (3, Some(add(4))),
        (4, Some(add(5))),
        (5, None),
        (6, Some(Op::PromoteMember(PromoteMember { id: 4 }))),
        (7, Some(Op::RemoveMember(RemoveMember { id: 5 }))),
        (8, Some(Op::RemoveMember(RemoveMember { id: 3 }))),
    ] {
        let Some(op) = op else {
            machine.apply(&[normal(index, vec![bind.clone()])]).unwrap();
            continue;
        };
        let batch = machine.apply(&[conf_change(index, op)]).unwrap();
        let (change, expected) = batch.entries[0].conf_change.clone().unwrap();
        let mut actual = node.apply_conf_change(&change).unwrap();
        actual.mut_voters().sort_unstable();
        actual.mut_learners().sort_unstable();
        assert_eq!(actual, expected);
    }
    assert_eq!(conf_state(&machine.members()).get_voters(), [1, 2, 4]);
}

#[test]
fn the_hash_tells_every_part_of_the_state() {
    let mut hashes = vec![founded().view().hash().unwrap().hash];
    for ops in [
        vec![put(b"a", b"1")],
        vec![put(b"a", b"2")],
        vec![put(b"b", b"1")],
        vec![put(b"a", b"1"), put(b"a", b"1")],
        vec![Op::SetClientUrl(SetClientUrl { id: 1, client_url: "http://c:1".into() })],
    ] {
        let mut machine = founded();
        machine.apply(&[normal(2, ops)]).unwrap();
        hashes.push(machine.view().hash().unwrap().hash);
    }
    let distinct: std::collections::BTreeSet<_> = hashes.iter().collect();
    assert_eq!(distinct.len(), hashes.len());

    // An entry without effect moves the position and nothing else.
    let mut machine = founded();
    machine.apply(&[entry(2, EntryType::EntryNormal, vec![], vec![])]).unwrap();
    let moved = machine.view().hash().unwrap();
    assert_eq!((moved.position.index, moved.hash), (2, hashes[0]));
    assert!(moved.to_string().starts_with("index 2 revision 1 hash "));
}

#[test]
fn a_batch_ends_after_a_mark_which_changes_nothing() {
    let mark = || Op::CheckState(CheckState {});
    let entries = [
        normal(2, vec![put(b"a", b"1")]),
        normal(3, vec![put(b"b", b"2"), mark(), put(b"c", b"3")]),
        normal(4, vec![put(b"d", b"4")]),
        normal(5, vec![mark()]),
        normal(6, vec![put(b"e", b"5")]),
    ];
    let mut machine = founded();
    let first = machine.apply(&entries).unwrap();
    let position = |index| LogPosition { index, term: 1 };
    assert_eq!((first.position, first.mark), (position(3), Some(position(3))));
    assert_eq!(result(&first.entries[1].outcomes[1].1), Is::Done(Unit {}));
    let at_mark = machine.view().hash().unwrap();
    assert_eq!(at_mark.position, position(3));

    // Whatever else was in the batch: the state at the mark is the same.
    let mut other = founded();
    for entry in &entries[..2] {
        other.apply(std::slice::from_ref(entry)).unwrap();
    }
    assert_eq!(other.view().hash().unwrap(), at_mark);

    let second = machine.apply(&entries[2..]).unwrap();
    assert_eq!((second.position, second.mark), (position(5), Some(position(5))));
    let third = machine.apply(&entries[4..]).unwrap();
    assert_eq!((third.position, third.mark), (position(6), None));

    // A mark moves the position and nothing else.
    let mut marked = founded();
    let before = marked.view().hash().unwrap();
    marked.apply(&[normal(2, vec![mark()])]).unwrap();
    let after = marked.view().hash().unwrap();
    assert_eq!((after.hash, after.revision), (before.hash, before.revision));
}

#[test]
fn a_hash_is_of_the_moment_that_was_frozen_and_can_be_given_up() {
    let mut machine = founded();
    apply_one(&mut machine, put(b"a", b"1"));
    let expected = machine.view().hash().unwrap();
    let view = machine.view();
    let hash = view.hash_as_of(|| drop(apply_one(&mut machine, put(b"b", b"2"))), &|| Ok(()));
    let hash: Result<_, Fatal> = hash;
    assert_eq!(hash.unwrap(), expected);
    assert_eq!(machine.position().index, expected.position.index + 1);

    let asked = std::cell::Cell::new(0);
    let given_up = view.hash_as_of(|| {}, &|| {
        asked.set(asked.get() + 1);
        if asked.get() < 2 { Ok(()) } else { Err(Fatal::corrupt("nobody wants it")) }
    });
    assert!(given_up.unwrap_err().what.contains("nobody wants it"));
    assert_eq!(asked.get(), 2);
}

#[test]
fn alarms_reach_readers_and_name_who_is_accused() {
    let mut machine = founded();
    let set = |member, alarm: AlarmType, active| {
        Op::SetAlarm(SetAlarm { member, alarm: alarm.into(), active })
    };
    let raised = machine.apply(&[normal(2, vec![set(2, AlarmType::Corrupt, true)])]).unwrap();
    let alarms = raised.alarms.unwrap();
    assert_eq!(alarms, machine.alarms());
    assert!(is_accused(&alarms, 2) && !is_accused(&alarms, 1));
    let again = machine.apply(&[normal(3, vec![set(2, AlarmType::Corrupt, true)])]).unwrap();
    assert!(again.alarms.is_none());
    let other = machine.apply(&[normal(4, vec![set(1, AlarmType::Nospace, true)])]).unwrap();
    assert!(!is_accused(&other.alarms.unwrap(), 1));
    let reopened = StateMachine::open(machine.engine().clone()).unwrap();
    assert!(is_accused(&reopened.alarms(), 2));
    let disarmed = machine.apply(&[normal(5, vec![set(2, AlarmType::Corrupt, false)])]).unwrap();
    assert!(!is_accused(&disarmed.alarms.unwrap(), 2));
    // Nobody has the id 0, whoever raises an alarm for it.
    machine.apply(&[normal(6, vec![set(0, AlarmType::Corrupt, true)])]).unwrap();
    assert!((0..4).all(|member| !is_accused(&machine.alarms(), member)));
}

#[test]
fn a_payload_for_a_newer_program_does_not_move_the_position() {
    let mut machine = founded();
    let mut data = command::encode_payload(vec![]);
    data[1] = u8::try_from(command::PAYLOAD_VERSION + 1).unwrap();
    let fatal = machine.apply(&[entry(2, EntryType::EntryNormal, data, vec![])]).unwrap_err();
    assert!(fatal.remedy.contains("run the version"), "{fatal}");
    assert_eq!(machine.position(), FOUNDED);
    assert_eq!(machine.view().position().unwrap(), FOUNDED);
}

/// What a store with the key `a` and the lease 7 says once a record is replaced,
/// when it is opened, read and written to.
fn with_record(family: Family, key: &[u8], record: &impl Message) -> [bool; 3] {
    let mut machine = founded();
    apply_one(&mut machine, put(b"a", b"1"));
    apply_one(&mut machine, Op::GrantLease(GrantLease { id: 7, ttl_s: 60 }));
    let mut batch = Batch::default();
    batch.put(family, key.to_vec(), record.encode_to_vec());
    machine.engine().write(batch, true).unwrap();
    let opened = StateMachine::open(machine.engine().clone());
    let is_opened = opened.is_ok();
    // It remembers nothing of what is in the database.
    let mut machine = opened.unwrap_or(machine);
    let view = machine.view();
    let read = view.get(b"a").map(drop).and(view.leases().map(drop)).and(view.position().map(drop));
    let seen = LeaseRenewal { id: 7, renewal: 3, remaining_s: 5 };
    let checkpoint = CheckpointLeases { term: 1, leases: vec![seen] };
    let writes = vec![put(b"a", b"2"), put(b"b", b"2"), Op::CheckpointLeases(checkpoint)];
    let written = machine.apply(&[normal(machine.position().index + 1, writes)]);
    [is_opened, read.is_ok(), written.is_ok()]
}

#[test]
fn a_number_that_cannot_be_is_damage_and_never_counted_on() {
    let key = KeyRecord { mod_revision: 2, version: 1, changes: 1, ..KeyRecord::default() };
    assert_eq!(with_record(Family::Current, b"a", &key), [true, true, true]);
    for record in [
        KeyRecord { version: u64::MAX, ..key.clone() },
        KeyRecord { changes: u64::MAX, ..key.clone() },
        KeyRecord { mod_revision: 1 << 63, ..key },
    ] {
        assert_eq!(with_record(Family::Current, b"a", &record), [true, false, false]);
    }
    let tombstone = Tombstone { revision: 2, sub: 0, changes: u64::MAX };
    assert_eq!(with_record(Family::Deleted, b"b", &tombstone), [true, true, false]);
    let lease = LeaseRecord { id: 7, ttl_s: -1, remaining_s: 1, renewal: 3 };
    assert_eq!(with_record(Family::Leases, &keys::lease(7), &lease), [true, false, false]);
    let applied = AppliedState { index: 3, term: 1, revision: u64::MAX, compacted: 0 };
    let [opened, read, _] = with_record(Family::Meta, keys::APPLIED, &applied);
    assert_eq!((opened, read), (false, false));
}
