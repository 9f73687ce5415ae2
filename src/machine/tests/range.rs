//! Ranges of more keys than the random histories have.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use bytes::Bytes;
use proptest::prelude::*;

use super::{apply, delete, founded, put};
use crate::{
    machine::StateMachine,
    proto::{
        Refused,
        etcdserverpb::{
            RangeRequest,
            range_request::{SortOrder, SortTarget},
        },
        mvccpb::KeyValue,
    },
    storage::memory::MemoryEngine,
};

const KEYS: u64 = 400;

/// Keys whose values, and how often they were put, are in another order than
/// they are.
fn filled() -> StateMachine<MemoryEngine> {
    let mut machine = founded();
    for round in 0..3 {
        let wanted = (0..KEYS).filter(|n| round == 0 || n % (round + 1) == 0);
        let ops = wanted.map(|n| {
            let value = format!("{:03}", (n * 7919 + round) % KEYS);
            put(format!("k{n:03}").as_bytes(), value.as_bytes())
        });
        apply(&mut machine, ops.collect());
    }
    machine
}

fn all() -> RangeRequest {
    RangeRequest { key: "k".into(), range_end: "l".into(), ..RangeRequest::default() }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// What is sorted and cut along the way is what sorting all would give.
    #[test]
    fn the_best_of_many_keys_are_found(
        limit in 0..150_i64,
        order in 1..3_i32,
        target in 0..5_i32,
        min_mod_revision in 0..300_i64,
        keys_only: bool,
    ) {
        let view = filled().view();
        let request = RangeRequest {
            limit, sort_order: order, sort_target: target, min_mod_revision, keys_only, ..all()
        };
        let found = view.range(&request, u64::MAX).unwrap().unwrap();

        let mut expected = view.range(&all(), u64::MAX).unwrap().unwrap().kvs;
        prop_assert_eq!(expected.len() as u64, KEYS);
        expected.retain(|kv| kv.mod_revision >= min_mod_revision);
        expected.sort_by(|a, b| {
            let order = match request.sort_target() {
                SortTarget::Key => a.key.cmp(&b.key),
                SortTarget::Version => a.version.cmp(&b.version),
                SortTarget::Create => a.create_revision.cmp(&b.create_revision),
                SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
                SortTarget::Value => a.value.cmp(&b.value),
            };
            if request.sort_order() == SortOrder::Descend { order.reverse() } else { order }
        });
        let more = limit != 0 && expected.len() > limit as usize;
        if more {
            expected.truncate(limit as usize);
        }
        if keys_only {
            expected.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        prop_assert_eq!(found.kvs, expected);
        prop_assert_eq!(found.count as u64, KEYS);
        prop_assert_eq!(found.more, more);
    }
}

#[test]
fn an_answer_of_just_the_allowed_size_is_given() {
    let view = filled().view();
    let size = |kvs: &[KeyValue]| -> u64 {
        kvs.iter().map(|kv| prost::Message::encoded_len(kv) as u64).sum()
    };
    let by_value = RangeRequest {
        sort_target: SortTarget::Value.into(),
        sort_order: SortOrder::Descend.into(),
        ..all()
    };
    let keys_only = RangeRequest { keys_only: true, ..all() };
    let few = RangeRequest { limit: 3, ..all() };
    for request in [all(), by_value, keys_only, few] {
        let whole = view.range(&request, u64::MAX).unwrap().unwrap();
        let bytes = size(&whole.kvs);
        assert_eq!(view.range(&request, bytes).unwrap(), Ok(whole), "{request:?}");
        let refused = view.range(&request, bytes - 1).unwrap();
        assert_eq!(refused, Err(Refused::ResponseTooLarge), "{request:?}");
    }
    let best = RangeRequest {
        limit: 3,
        sort_target: SortTarget::Version.into(),
        sort_order: SortOrder::Descend.into(),
        ..all()
    };
    // Far less than all the pairs that had to be looked at.
    let found = view.range(&best, 200).unwrap().unwrap();
    assert_eq!((found.kvs.len(), found.more, found.count), (3, true, 400));
}

#[test]
fn a_stream_ends_when_its_taker_has_enough() {
    let view = filled().view();
    let mut taken = Vec::new();
    let streamed = view.stream(&all(), &mut |kv| {
        taken.push(kv.key);
        taken.len() < 5
    });
    assert_eq!(streamed.unwrap().unwrap().count, 5);
    assert_eq!(taken.len(), 5);
}

#[test]
fn a_long_history_is_read_at_every_revision() {
    let mut machine = founded();
    for change in 2..=200_u64 {
        let op =
            if change % 37 == 0 { delete(b"a") } else { put(b"a", change.to_string().as_bytes()) };
        apply(&mut machine, vec![op]);
    }
    for revision in 2..=200_i64 {
        let request = RangeRequest { key: "a".into(), revision, ..RangeRequest::default() };
        let kvs = machine.view().range(&request, u64::MAX).unwrap().unwrap().kvs;
        let expected = (revision % 37 != 0).then(|| revision.to_string());
        let found = kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap());
        assert_eq!(found, expected, "at {revision}");
    }
}

#[test]
fn a_key_is_read_as_of_the_revision_that_is_said_while_it_is_written() {
    /// Applies that are read beside.
    const APPLIES: usize = 3_000;
    let mut machine = founded();
    let ops = || vec![put(b"k", b"value"), put(b"other", b"value")];
    apply(&mut machine, ops());
    let (view, done) = (machine.view(), AtomicBool::new(false));
    let read_on = || {
        let view = view.clone();
        let request = RangeRequest { key: "k".into(), ..RangeRequest::default() };
        let mut last = 0;
        while !done.load(Ordering::Relaxed) {
            let read = view.range(&request, u64::MAX).unwrap().unwrap();
            let revision = read.header.unwrap().revision;
            assert_eq!(read.kvs[0].mod_revision + 1, revision, "one batch writes both");
            assert!(revision >= last, "no earlier a moment than the call before");
            last = revision;
        }
    };
    thread::scope(|scope| {
        let readers = [scope.spawn(read_on), scope.spawn(read_on)];
        for _ in 0..APPLIES {
            apply(&mut machine, ops());
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().expect("a reader finds what was written");
        }
    });
}
