use std::ops::Bound;

use prost::Message;

use crate::{
    machine::{StateMachine, writes::HISTORY_INTERVAL},
    proto::{Change, Condition, KeyRecord, Tombstone, outcome::Result as Is},
    storage::{Family, Pair, Reader, keys, memory::MemoryEngine},
};

use super::{NOT_FOUND, apply, apply_one, delete, delete_if, founded, put, put_if};

type Machine = StateMachine<MemoryEngine>;

fn get(machine: &Machine, key: &[u8]) -> Option<KeyRecord> {
    machine.view().get(key).unwrap()
}

fn pairs(machine: &Machine, family: Family) -> Vec<Pair> {
    let everything = (Bound::Unbounded, Bound::Unbounded);
    machine.engine().scan(family, everything).map(Result::unwrap).collect()
}

fn changes(machine: &Machine) -> Vec<Change> {
    let decode = |(_, value): Pair| Change::decode(value).unwrap();
    pairs(machine, Family::Changes).into_iter().map(decode).collect()
}

fn tombstone(machine: &Machine, key: &[u8]) -> Option<Tombstone> {
    let value = machine.engine().get(Family::Deleted, key).unwrap();
    value.map(|value| Tombstone::decode(value).unwrap())
}

#[test]
fn the_first_write_is_revision_2() {
    let mut machine = founded();
    assert_eq!(machine.revision(), 1);
    assert_eq!(apply_one(&mut machine, put(b"a", b"1")), Is::Revision(2));
    assert_eq!(machine.revision(), 2);
    assert_eq!(machine.view().revision().unwrap(), 2);
}

#[test]
fn a_record_counts_versions_and_remembers_its_creation() {
    let mut machine = founded();
    apply(&mut machine, vec![put(b"x", b""), put(b"a", b"1"), put(b"a", b"1")]);
    let record = get(&machine, b"a").unwrap();
    let expected = KeyRecord {
        create_revision: 3,
        mod_revision: 4,
        version: 2,
        lease: 0,
        value: b"1".as_slice().into(),
        sub: 0,
        changes: 2,
    };
    assert_eq!(record, expected);
}

#[test]
fn re_creation_starts_again_but_the_changes_count_on() {
    let mut machine = founded();
    let ops = vec![put(b"a", b"1"), put(b"a", b"2"), delete(b"a")];
    assert_eq!(apply(&mut machine, ops), [Is::Revision(2), Is::Revision(3), Is::Revision(4)]);
    assert_eq!(get(&machine, b"a"), None);
    assert_eq!(tombstone(&machine, b"a"), Some(Tombstone { revision: 4, sub: 0, changes: 3 }));

    apply_one(&mut machine, put(b"a", b"3"));
    let record = get(&machine, b"a").unwrap();
    assert_eq!((record.create_revision, record.mod_revision), (5, 5));
    assert_eq!((record.version, record.changes), (1, 4));
    assert_eq!(tombstone(&machine, b"a"), None);
}

#[test]
fn each_change_holds_the_state_before_and_the_way_back() {
    let mut machine = founded();
    let ops = vec![put(b"a", b"1"), put(b"b", b"x"), put(b"a", b"2"), delete(b"a"), put(b"a", b"")];
    apply(&mut machine, ops);
    let places: Vec<_> = pairs(&machine, Family::Changes).into_iter().map(|pair| pair.0).collect();
    let expected: Vec<_> = (2..=6).map(|revision| keys::change(revision, 0).to_vec()).collect();
    assert_eq!(places, expected);

    let of_a: Vec<Change> = changes(&machine).into_iter().filter(|c| c.key == "a").collect();
    let back: Vec<u64> = of_a.iter().map(|change| change.previous_revision).collect();
    assert_eq!(back, [0, 2, 4, 5]);
    let value = |record: &Option<KeyRecord>| record.as_ref().map(|record| record.value.to_vec());
    let after: Vec<_> = of_a.iter().map(|change| value(&change.record)).collect();
    assert_eq!(after, [Some(b"1".to_vec()), Some(b"2".to_vec()), None, Some(vec![])]);
    let before: Vec<_> = of_a.iter().map(|change| value(&change.previous)).collect();
    assert_eq!(before, [None, Some(b"1".to_vec()), Some(b"2".to_vec()), None]);
}

#[test]
fn every_16th_change_is_sampled_across_deletions_and_batches() {
    let mut machine = founded();
    let mut sampled = Vec::new();
    for change in 1..=50_u64 {
        // Deletions fall on every fifth change, so also on some samples.
        let op = if change % 5 == 0 { delete(b"a") } else { put(b"a", b"v") };
        let outcomes = if change % 3 == 0 {
            apply(&mut machine, vec![op])
        } else {
            apply(&mut machine, vec![op, put(format!("other-{change}").as_bytes(), b"")])
        };
        let Is::Revision(revision) = outcomes[0] else { panic!("{outcomes:?}") };
        if change % HISTORY_INTERVAL == 0 {
            sampled.push(keys::history(b"a", revision, 0));
        }
    }
    let history: Vec<_> = pairs(&machine, Family::History);
    assert_eq!(history.len(), 3);
    assert_eq!(history.iter().map(|pair| pair.0.to_vec()).collect::<Vec<_>>(), sampled);
    assert!(history.iter().all(|pair| pair.1.is_empty()));
}

#[test]
fn what_changes_nothing_takes_no_revision() {
    let mut machine = founded();
    let exists = Condition { exists: true, ..Condition::default() };
    let ops = vec![delete(b"a"), put_if(b"a", b"", Some(exists)), put(b"a", b"1"), delete(b"b")];
    let outcomes = apply(&mut machine, ops);
    assert_eq!(outcomes, [NOT_FOUND, Is::PreconditionFailed(0), Is::Revision(2), NOT_FOUND]);
    assert_eq!(machine.revision(), 2);
    assert_eq!(changes(&machine).len(), 1);
    assert_eq!(tombstone(&machine, b"b"), None);
}

#[test]
fn conditions_hold_when_every_given_part_does() {
    let one_of =
        |revisions: &[u64]| Condition { mod_revisions: revisions.to_vec(), ..Condition::default() };
    let none_of = |revisions: &[u64]| Condition {
        not_mod_revisions: revisions.to_vec(),
        ..Condition::default()
    };
    let exists = Condition { exists: true, ..Condition::default() };
    let absent = Condition { absent: true, ..Condition::default() };
    let contradiction = Condition { absent: true, exists: true, ..Condition::default() };
    let narrowed = Condition { not_mod_revisions: vec![2], ..one_of(&[2, 3]) };
    // Condition, whether it holds of a key at revision 2, and of none.
    let cases = [
        (Condition::default(), true, true),
        (one_of(&[2]), true, false),
        (one_of(&[9, 2, 3]), true, false),
        (one_of(&[3]), false, false),
        (one_of(&[0]), false, false),
        (none_of(&[2]), false, true),
        (none_of(&[3]), true, true),
        (none_of(&[0]), true, true),
        (exists, true, false),
        (absent, false, true),
        (contradiction, false, false),
        (narrowed, false, false),
    ];
    for (condition, of_present, of_missing) in cases {
        let mut machine = founded();
        apply_one(&mut machine, put(b"present", b""));
        let expected = |holds: bool, otherwise: Is, mod_revision: u64| {
            if holds { otherwise } else { Is::PreconditionFailed(mod_revision) }
        };
        let given = Some(condition.clone());
        let missing = apply_one(&mut machine, delete_if(b"missing", given.clone()));
        assert_eq!(missing, expected(of_missing, NOT_FOUND, 0), "{condition:?}");
        let missing = apply_one(&mut machine, put_if(b"missing", b"", given.clone()));
        assert_eq!(missing, expected(of_missing, Is::Revision(3), 0), "{condition:?}");
        let next = machine.revision() + 1;
        let present = apply_one(&mut machine, delete_if(b"present", given));
        assert_eq!(present, expected(of_present, Is::Revision(next), 2), "{condition:?}");
    }
}

#[test]
fn commands_of_one_batch_see_each_other() {
    let mut machine = founded();
    let absent = Condition { absent: true, ..Condition::default() };
    let at = |revision: u64| Condition { mod_revisions: vec![revision], ..Condition::default() };
    let outcomes = apply(
        &mut machine,
        vec![
            put_if(b"a", b"1", Some(absent.clone())),
            put_if(b"a", b"2", Some(absent.clone())),
            put_if(b"a", b"3", Some(at(2))),
            delete_if(b"a", Some(at(2))),
            delete_if(b"a", Some(at(3))),
            delete(b"a"),
            put_if(b"a", b"4", Some(absent)),
        ],
    );
    let expected = [
        Is::Revision(2),
        Is::PreconditionFailed(2),
        Is::Revision(3),
        Is::PreconditionFailed(3),
        Is::Revision(4),
        NOT_FOUND,
        Is::Revision(5),
    ];
    assert_eq!(outcomes, expected);
    let record = get(&machine, b"a").unwrap();
    assert_eq!((record.value.as_ref(), record.version, record.changes), (&b"4"[..], 1, 4));
    assert_eq!(tombstone(&machine, b"a"), None);
}

#[test]
fn keys_and_values_are_any_bytes_and_an_empty_value_is_a_value() {
    let mut machine = founded();
    let all: [&[u8]; 6] = [b"", b"\0", b"\0\0", b"\xff\xfe", b"\xff\xff\xff", b"a\0b"];
    for key in all {
        apply_one(&mut machine, put(key, key));
    }
    for key in all {
        assert_eq!(get(&machine, key).unwrap().value, key);
    }
    assert_eq!(get(&machine, b"").unwrap().value, b"".as_slice());
    assert_eq!(get(&machine, b"\0\0\0"), None);
    apply_one(&mut machine, delete(b"\0"));
    assert_eq!(get(&machine, b"\0"), None);
    assert_eq!(get(&machine, b"\0\0").unwrap().mod_revision, 4);
}
