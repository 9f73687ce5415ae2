//! Export into a snapshot file and import from one.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};
use prost::Message;
use tempfile::TempDir;

use super::{apply, apply_one, delete, founding, put};
use crate::{
    machine::{BackupError, Contents, Imported, Revisions, StateMachine, import},
    proto::{
        Change, CheckpointLeases, Compact, GrantLease, KeyRecord, LeaseRenewal, Put, RevokeLease,
        command::Op,
        etcdserverpb::{
            DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
            request_op::Request,
        },
        leasepb::Lease,
        mvccpb::KeyValue,
    },
    storage::{
        bolt::{Reader, Writer},
        memory::MemoryEngine,
    },
};

/// A key and its value, as in a bucket.
type Pair = (Vec<u8>, Vec<u8>);

type Machine = StateMachine<MemoryEngine>;

/// Exports a machine into a file of a directory.
fn export(machine: &Machine, directory: &Path) -> Reader {
    let path = directory.join("snapshot");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let exported = machine.view().export(file, directory, &mut |_| Ok(())).unwrap();
    assert_eq!(exported.revision, machine.revision());
    let len = exported.file.metadata().unwrap().len();
    assert_eq!(exported.bytes, len);
    Reader::open(&path).unwrap()
}

fn import_with(reader: &Reader, revisions: Revisions) -> Result<(Machine, Imported), BackupError> {
    let contents = Contents::read(reader, &mut |_| Ok(()))?;
    let engine = MemoryEngine::new();
    let imported = import(&engine, reader, &contents, revisions, &mut |_| Ok(()))?;
    StateMachine::bootstrap(&engine, &founding()).unwrap();
    let machine = StateMachine::open(engine).unwrap();
    assert_eq!(machine.revision(), imported.revision);
    Ok((machine, imported))
}

fn imported(reader: &Reader) -> Machine {
    import_with(reader, Revisions::default()).unwrap().0
}

fn compact(revision: u64) -> Op {
    Op::Compact(Compact { revision })
}

fn everything(revision: u64) -> RangeRequest {
    let (key, range_end) = (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
    RangeRequest { key, range_end, revision: revision.cast_signed(), ..RangeRequest::default() }
}

fn pairs(machine: &Machine, revision: u64) -> Vec<KeyValue> {
    machine.view().range(&everything(revision), u64::MAX).unwrap().unwrap().kvs
}

/// Changes are counted from the oldest one that is known, so that a restored
/// store may count otherwise.
fn uncounted(record: Option<KeyRecord>) -> Option<KeyRecord> {
    record.map(|record| KeyRecord { changes: 0, ..record })
}

/// The changes from the compaction on, with what may be told of them.
fn told(machine: &Machine) -> Vec<(u64, Vec<Change>)> {
    let compacted = machine.view().compacted().unwrap();
    let page = machine.view().changes(compacted, usize::MAX).unwrap().unwrap();
    let shown = |revision: u64, change: Change| Change {
        record: uncounted(change.record),
        previous: uncounted(change.previous.filter(|_| revision > compacted)),
        previous_revision: 0,
        previous_sub: 0,
        ..change
    };
    let of_revision = |changes: Vec<Change>, revision| {
        changes.into_iter().map(|change| shown(revision, change)).collect()
    };
    let revisions = page.revisions.into_iter();
    revisions.map(|it| (it.revision, of_revision(it.changes, it.revision))).collect()
}

fn assert_same(one: &Machine, other: &Machine) {
    let (view, restored) = (one.view(), other.view());
    let compacted = view.compacted().unwrap();
    assert_eq!((one.revision(), compacted), (other.revision(), restored.compacted().unwrap()));
    for revision in compacted.max(1)..=one.revision() {
        assert_eq!(pairs(one, revision), pairs(other, revision), "at revision {revision}");
    }
    assert_eq!(told(one), told(other));
    let leases = |mut leases: Vec<crate::proto::LeaseRecord>| {
        // Named by the log, which is another one.
        leases.iter_mut().for_each(|lease| lease.renewal = 0);
        leases
    };
    assert_eq!(leases(view.leases().unwrap()), leases(restored.leases().unwrap()));
    for lease in view.leases().unwrap() {
        assert_eq!(view.lease_keys(lease.id).unwrap(), restored.lease_keys(lease.id).unwrap());
    }
}

/// Something that may happen to a store; numbers are taken modulo what exists.
#[derive(Debug, Clone)]
enum Event {
    Put(u8, u8, u8),
    Delete(u8),
    Txn(Vec<(u8, bool)>),
    Grant(u8),
    Revoke(u8),
    Checkpoint(u8, u8),
    Compact(u8),
}

fn key(n: u8) -> Bytes {
    Bytes::from(vec![b'k', n % 6])
}

fn lease_id(n: u8) -> i64 {
    [-5, 3, i64::MAX][usize::from(n % 3)]
}

fn happen(machine: &mut Machine, event: &Event) {
    let op = match event {
        Event::Put(n, value, lease) => {
            let id = lease_id(*lease);
            let exists = lease % 2 == 0 && machine.view().lease(id).unwrap().is_some();
            let lease = if exists { id } else { 0 };
            Op::Put(Put { key: key(*n), value: vec![*value].into(), lease, ..Put::default() })
        }
        Event::Delete(n) => delete(&key(*n)),
        Event::Txn(writes) => {
            let mut seen = Vec::new();
            let success = writes.iter().filter_map(|&(n, is_put)| {
                let key = key(n);
                (!seen.contains(&key)).then(|| seen.push(key.clone()))?;
                let request = if is_put {
                    Request::RequestPut(PutRequest { key, ..PutRequest::default() })
                } else {
                    Request::RequestDeleteRange(DeleteRangeRequest { key, ..Default::default() })
                };
                Some(RequestOp { request: Some(request) })
            });
            Op::Txn(TxnRequest { success: success.collect(), ..TxnRequest::default() })
        }
        Event::Grant(n) => Op::GrantLease(GrantLease { id: lease_id(*n), ttl_s: 60 }),
        Event::Revoke(n) => Op::RevokeLease(RevokeLease { id: lease_id(*n) }),
        Event::Checkpoint(n, left) => {
            let id = lease_id(*n);
            let renewal = machine.view().lease(id).unwrap().map_or(0, |lease| lease.renewal);
            let seen = LeaseRenewal { id, renewal, remaining_s: i64::from(*left).max(1) };
            Op::CheckpointLeases(CheckpointLeases { term: 1, leases: vec![seen] })
        }
        Event::Compact(n) => compact(machine.revision().saturating_sub(u64::from(*n % 8))),
    };
    apply_one(machine, op);
}

fn events(count: usize) -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        8 => any::<(u8, u8, u8)>().prop_map(|(key, value, lease)| Event::Put(key, value, lease)),
        4 => any::<u8>().prop_map(Event::Delete),
        3 => vec(any::<(u8, bool)>(), 0..5).prop_map(Event::Txn),
        2 => any::<u8>().prop_map(Event::Grant),
        1 => any::<u8>().prop_map(Event::Revoke),
        1 => any::<(u8, u8)>().prop_map(|(lease, left)| Event::Checkpoint(lease, left % 70)),
        1 => any::<u8>().prop_map(Event::Compact),
    ];
    vec(event, 0..count)
}

fn machine_after(events: &[Event]) -> Machine {
    let mut machine = super::founded();
    events.iter().for_each(|event| happen(&mut machine, event));
    machine
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_restored_store_answers_as_the_saved_one_and_goes_on_like_it(
        before in events(120),
        after in events(40),
        forgets: bool,
    ) {
        let mut machine = machine_after(&before);
        if forgets {
            machine.flush().unwrap();
            machine.engine().forget();
        }
        let directory = TempDir::new().unwrap();
        let mut restored = imported(&export(&machine, directory.path()));
        assert_same(&machine, &restored);
        for event in &after {
            happen(&mut machine, event);
            happen(&mut restored, event);
        }
        assert_same(&machine, &restored);
        let again = TempDir::new().unwrap();
        assert_same(&machine, &imported(&export(&restored, again.path())));
    }
}

#[test]
fn a_long_history_is_sampled_as_if_it_had_been_applied() {
    let mut machine = super::founded();
    for n in 0..100_u32 {
        apply(&mut machine, vec![put(b"a", &n.to_be_bytes()), put(b"b", b"")]);
    }
    let directory = TempDir::new().unwrap();
    let restored = imported(&export(&machine, directory.path()));
    // The very same state: data, history and its samples, members, revision.
    assert_eq!(machine.view().hash().unwrap().hash, restored.view().hash().unwrap().hash);
}

#[test]
fn a_revision_whose_changes_are_gone_is_not_given_again() {
    let mut machine = super::founded();
    apply(&mut machine, vec![put(b"a", b"1"), put(b"b", b"1"), delete(b"a"), delete(b"b")]);
    let last = machine.revision();
    apply(&mut machine, vec![compact(last)]);
    let directory = TempDir::new().unwrap();
    let bumped = Revisions { bump: 1000, mark_compacted: true };
    let (restored, imported_as) = import_with(&export(&machine, directory.path()), bumped).unwrap();
    assert_eq!((imported_as.revision, imported_as.compacted), (last + 1000, last + 1000));
    assert!(restored.view().changes(last + 1000, 1).unwrap().unwrap().revisions.is_empty());
    assert!(restored.view().changes(last, 1).unwrap().is_err());
    // Its newest revision has no change any more, now.
    let directory = TempDir::new().unwrap();
    let mut again = imported(&export(&restored, directory.path()));
    assert_eq!(again.revision(), last + 1000);
    apply_one(&mut again, put(b"a", b"2"));
    assert_eq!(again.revision(), last + 1001);
}

#[test]
fn what_is_marked_compacted_keeps_the_newest_state_alone() {
    let mut machine = super::founded();
    apply(&mut machine, vec![put(b"a", b"1"), put(b"a", b"2"), put(b"b", b"1"), delete(b"b")]);
    let directory = TempDir::new().unwrap();
    let revisions = Revisions { bump: 0, mark_compacted: true };
    let (restored, _) = import_with(&export(&machine, directory.path()), revisions).unwrap();
    assert_eq!(pairs(&machine, 0), pairs(&restored, 0));
    assert!(restored.view().range(&everything(4), u64::MAX).unwrap().is_err());
}

#[test]
fn an_export_ends_when_it_is_told_to() {
    let mut machine = super::founded();
    for n in 0..1000_u32 {
        apply(&mut machine, vec![put(&n.to_be_bytes(), b"")]);
    }
    let directory = TempDir::new().unwrap();
    let file = tempfile::tempfile_in(directory.path()).unwrap();
    let mut check = |_| Err("enough".to_owned());
    let stopped = machine.view().export(file, directory.path(), &mut check).unwrap_err();
    assert!(matches!(stopped, BackupError::Stopped(why) if why == "enough"));
}

/// A file with these buckets and records.
fn written(directory: &Path, buckets: &[(&str, &[Pair])]) -> Reader {
    let path = directory.join("written");
    let mut writer = Writer::create(&path).unwrap();
    for (name, records) in buckets {
        writer.bucket(name.as_bytes()).unwrap();
        for (key, value) in *records {
            writer.put(key, value).unwrap();
        }
    }
    writer.finish().unwrap();
    Reader::open(&path).unwrap()
}

fn at(revision: u64, sub: u64, mark: &str) -> Vec<u8> {
    [&revision.to_be_bytes()[..], b"_", &sub.to_be_bytes(), mark.as_bytes()].concat()
}

fn state(key: &str, created: i64, revision: i64, version: i64, lease: i64) -> Vec<u8> {
    KeyValue {
        key: Bytes::copy_from_slice(key.as_bytes()),
        create_revision: created,
        mod_revision: revision,
        version,
        value: Bytes::from_static(b"v"),
        lease,
    }
    .encode_to_vec()
}

fn refusal(buckets: &[(&str, &[Pair])]) -> String {
    let directory = TempDir::new().unwrap();
    let reader = written(directory.path(), buckets);
    import_with(&reader, Revisions::default()).map(drop).unwrap_err().to_string()
}

#[test]
fn a_compaction_that_was_only_begun_is_carried_out() {
    let directory = TempDir::new().unwrap();
    let records = [
        (at(2, 0, ""), state("a", 2, 2, 1, 0)),
        (at(3, 0, ""), state("a", 2, 3, 2, 0)),
        (at(4, 0, "t"), state("a", 0, 0, 0, 0)),
        (at(5, 0, ""), state("b", 5, 5, 1, 0)),
        (at(6, 0, ""), state("b", 5, 6, 2, 0)),
    ];
    let meta = [
        (b"finishedCompactRev".to_vec(), at(2, 0, "")),
        (b"scheduledCompactRev".to_vec(), at(5, 0, "")),
    ];
    let reader = written(directory.path(), &[("key", &records), ("meta", &meta)]);
    let machine = imported(&reader);
    assert_eq!((machine.revision(), machine.view().compacted().unwrap()), (6, 5));
    assert_eq!(pairs(&machine, 5).len(), 1);
    assert!(machine.view().range(&everything(4), u64::MAX).unwrap().is_err());
    assert_eq!(told(&machine).len(), 2);
}

#[test]
fn keys_of_leases_that_do_not_exist_are_kept_without_them() {
    let directory = TempDir::new().unwrap();
    let records = [
        (at(2, 0, ""), state("a", 2, 2, 1, 7)),
        (at(2, 1, ""), state("b", 2, 2, 1, 8)),
        (at(3, 0, ""), state("c", 3, 3, 1, 9)),
        (at(4, 0, "t"), state("c", 0, 0, 0, 0)),
    ];
    let lease = Lease { id: 7, ttl: 60, remaining_ttl: 20 }.encode_to_vec();
    let leases = [(7_i64.to_be_bytes().to_vec(), lease)];
    let reader = written(directory.path(), &[("key", &records), ("lease", &leases)]);
    let (mut machine, as_told) = import_with(&reader, Revisions::default()).unwrap();
    assert_eq!((as_told.keys, as_told.leases, as_told.detached), (2, 1, 1));
    let leases: Vec<_> = pairs(&machine, 0).iter().map(|pair| pair.lease).collect();
    assert_eq!(leases, [7, 0]);
    assert_eq!(machine.view().lease(7).unwrap().unwrap().remaining_s, 20);
    apply_one(&mut machine, Op::GrantLease(GrantLease { id: 8, ttl_s: 60 }));
    apply_one(&mut machine, Op::RevokeLease(RevokeLease { id: 8 }));
    assert_eq!(pairs(&machine, 0).len(), 2);
    apply_one(&mut machine, Op::RevokeLease(RevokeLease { id: 7 }));
    assert_eq!(pairs(&machine, 0).len(), 1);
}

#[test]
fn a_record_without_a_key_only_raises_the_revision() {
    let directory = TempDir::new().unwrap();
    let records = [(at(2, 0, ""), state("a", 2, 2, 1, 0)), (at(1002, 0, ""), Vec::new())];
    let machine = imported(&written(directory.path(), &[("key", &records)]));
    assert_eq!(machine.revision(), 1002);
    assert_eq!(pairs(&machine, 0).len(), 1);
}

#[test]
fn an_empty_file_of_etcd_is_an_empty_store() {
    let directory = TempDir::new().unwrap();
    let machine = imported(&written(directory.path(), &[("key", &[])]));
    assert_eq!(machine.revision(), 1);
}

#[test]
fn files_that_cannot_be_restored_are_refused_with_the_reason() {
    let good = state("a", 2, 2, 1, 0);
    let cases: [(&str, Vec<u8>, Vec<u8>); 10] = [
        ("does not begin with a revision", b"x".to_vec(), good.clone()),
        ("does not begin with a revision", at(u64::MAX, 0, ""), good.clone()),
        ("does not begin with a revision", at(2, u64::MAX, ""), good.clone()),
        ("does not begin with a revision", at(2, 0, "x"), good.clone()),
        ("cannot be decoded", at(2, 0, ""), b"\xff\xff".to_vec()),
        ("has no key", at(2, 0, ""), state("", 2, 2, 1, 0)),
        ("says that it is of revision 3", at(2, 0, ""), state("a", 2, 3, 1, 0)),
        ("impossible version", at(2, 0, ""), state("a", 3, 2, 1, 0)),
        ("impossible version", at(2, 0, ""), state("a", 2, 2, -1, 0)),
        ("impossible version", at(2, 0, ""), state("a", 2, 2, i64::MAX, 0)),
    ];
    for (expected, key, value) in cases {
        let text = refusal(&[("key", &[(key, value)])]);
        assert!(text.contains(expected), "{text}");
    }
    let twice = [(at(2, 0, ""), good.clone()), (at(2, 0, "t"), good.clone())];
    assert!(refusal(&[("key", &twice)]).contains("stands there twice"));
    let unknown = [(at(2, 0, "t"), state("gone", 0, 0, 0, 0))];
    assert!(refusal(&[("key", &unknown)]).contains("deletes key \"gone\""));
    assert!(refusal(&[("meta", &[])]).contains("no bucket of keys"));
    let enabled = [(b"authEnabled".to_vec(), vec![1])];
    assert!(refusal(&[("key", &[]), ("auth", &enabled)]).contains("users and passwords"));
    let compaction = [(b"finishedCompactRev".to_vec(), b"soon".to_vec())];
    assert!(refusal(&[("key", &[]), ("meta", &compaction)]).contains("is no revision"));
    for (id, lease) in [(1_i64, 2), (0, 0)] {
        let lease = Lease { id: lease, ttl: 60, remaining_ttl: 0 }.encode_to_vec();
        let leases = [(id.to_be_bytes().to_vec(), lease)];
        assert!(refusal(&[("key", &[]), ("lease", &leases)]).contains("impossible id"));
    }
}

#[test]
fn a_revision_that_leaves_no_room_is_refused() {
    let directory = TempDir::new().unwrap();
    let reader = written(directory.path(), &[("key", &[])]);
    for bump in [u64::MAX, 1 << 62] {
        let revisions = Revisions { bump, mark_compacted: true };
        let refused = import_with(&reader, revisions).map(drop).unwrap_err().to_string();
        assert!(refused.contains("go on from revision"), "{refused}");
    }
}

/// Whatever byte of a file is damaged: what comes out is a state machine or
/// an error.
#[test]
fn no_damage_leads_to_a_panic() {
    let mut machine = super::founded();
    apply(&mut machine, vec![put(b"a", b"1"), put(b"b", b"2"), delete(b"a"), compact(3)]);
    apply_one(&mut machine, Op::GrantLease(GrantLease { id: 5, ttl_s: 60 }));
    let directory = TempDir::new().unwrap();
    drop(export(&machine, directory.path()));
    let path = directory.path().join("snapshot");
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut content = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut content, 0).unwrap();
    let mut outcomes = [0, 0];
    for (place, &byte) in content.iter().enumerate().filter(|(_, byte)| **byte != 0) {
        for damage in [byte ^ 1, byte ^ 0x80, 0xff] {
            file.write_all_at(&[damage], place as u64).unwrap();
            let restored = Reader::open(&path)
                .map_err(BackupError::from)
                .and_then(|reader| import_with(&reader, Revisions::default()));
            outcomes[usize::from(restored.is_ok())] += 1;
        }
        file.write_all_at(&[byte], place as u64).unwrap();
    }
    assert!(outcomes[0] > 100, "{outcomes:?}");
}
