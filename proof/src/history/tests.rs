//! Histories that must be accepted, and many that must be refused.

use super::{leases::LeaseLife, order::Sightings, watches::Batch, *};

const SECOND: Time = 1_000_000_000;

/// A run in the making. Requests take a unit of time and follow each other,
/// unless their times are changed afterwards.
#[derive(Default)]
struct Run {
    seen: Seen,
    changes: Vec<Change>,
    now: Time,
}

fn pair(key: &str, value: u64, created: u64, modified: u64, version: u64) -> Pair {
    Pair { key: key.into(), value, created, modified, version, lease: 0 }
}

fn wrote(revision: u64, previous: Vec<Pair>) -> End {
    End::Ok(Answer::Wrote { revision, previous })
}

fn read(revision: u64, pairs: Vec<Pair>) -> End {
    End::Ok(Answer::Read { revision, pairs })
}

fn range(key: &str) -> Ask {
    Ask::Range { keys: Keys::one(key), serializable: false }
}

fn put(key: &str, value: u64) -> Ask {
    Ask::Put { key: key.into(), value }
}

fn http_put(key: &str, value: u64) -> Ask {
    Ask::HttpPut { key: key.into(), value, condition: Condition::Always }
}

impl Run {
    fn ask(&mut self, ask: Ask, end: End) -> &mut Record {
        let called = self.now + 1;
        self.now += 2;
        self.seen.records.push(Record { member: 1, ask, called, ended: self.now, end });
        self.seen.records.last_mut().expect("just pushed")
    }

    fn change(&mut self, events: Vec<(&str, Option<Pair>)>) {
        let revision = self.changes.len() as u64 + 2;
        let event = |(key, put): (&str, Option<Pair>)| Event { key: key.into(), put };
        self.changes.push(Change { revision, events: events.into_iter().map(event).collect() });
    }

    /// A watch of everything that was told of everything, an event at a time.
    fn watch(&mut self) -> &mut Watched {
        let keys = Keys { key: "\0".into(), end: "~".into() };
        let batch = |change: &Change| Batch {
            received: self.now + 1,
            events: change.events.iter().map(|e| (change.revision, watches::digest(e))).collect(),
            progress: None,
        };
        let batches = self.changes.iter().map(batch).collect();
        let watched = Watched { name: "test".into(), keys, from: 1, batches, resumed: 0 };
        self.seen.watches.push(watched);
        self.seen.watches.last_mut().expect("just pushed")
    }

    fn violations(&self) -> u64 {
        let figures = Figures::new("test");
        check(&self.seen, self.changes.clone(), &figures);
        figures.violations()
    }

    #[track_caller]
    fn is_refused(&self) {
        assert!(self.violations() > 0, "accepted: {:?}", self.seen.records);
    }
}

/// Two puts, a swap, a deletion and reads of gRPC, all in order:
/// g/1 = 1 at 2, = 2 at 3, g/2 = 3 at 4, g/1 gone at 5.
fn grpc() -> Run {
    let mut run = Run::default();
    let (first, second) = (pair("g/1", 1, 2, 2, 1), pair("g/1", 2, 2, 3, 2));
    let other = pair("g/2", 3, 4, 4, 1);
    run.change(vec![("g/1", Some(first.clone()))]);
    run.change(vec![("g/1", Some(second.clone()))]);
    run.change(vec![("g/2", Some(other.clone()))]);
    run.change(vec![("g/1", None)]);
    run.ask(put("g/1", 1), wrote(2, vec![]));
    run.ask(range("g/1"), read(2, vec![first.clone()]));
    let swap = |value| Ask::CompareAndPut { key: "g/1".into(), expected: 2, value };
    run.ask(swap(2), wrote(3, vec![]));
    run.ask(swap(9), read(3, vec![second.clone()]));
    run.ask(put("g/2", 3), wrote(4, vec![]));
    let all = Ask::Range { keys: Keys::below("g/"), serializable: false };
    run.ask(all, read(4, vec![second.clone(), other]));
    run.ask(Ask::DeleteRange(Keys::one("g/1")), wrote(5, vec![second]));
    run.ask(Ask::DeleteRange(Keys::one("g/1")), read(5, vec![]));
    run.ask(range("g/1"), read(5, vec![]));
    run
}

#[test]
fn a_store_is_accepted_and_counted() {
    let mut run = grpc();
    run.watch();
    let figures = Figures::new("test");
    check(&run.seen, run.changes.clone(), &figures);
    assert_eq!(figures.violations(), 0);
    for (name, count) in [
        ("revisions", 4),
        ("acknowledged writes present", 4),
        ("gRPC answers replayed", 9),
        ("answers in order", 9),
        ("events watched", 4),
    ] {
        assert_eq!(figures.counted_so_far(name), count, "{name}");
    }
}

#[test]
fn any_other_answer_is_refused() {
    let wrong = [
        (1, read(2, vec![])),
        (1, read(2, vec![pair("g/1", 2, 2, 2, 1)])),
        (1, read(2, vec![pair("g/1", 1, 2, 2, 2)])),
        (2, read(3, vec![pair("g/1", 2, 2, 3, 2)])),
        (3, read(3, vec![pair("g/1", 1, 2, 2, 1)])),
        (5, read(4, vec![pair("g/2", 3, 4, 4, 1)])),
        (6, wrote(5, vec![pair("g/1", 1, 2, 2, 1)])),
        (6, read(5, vec![])),
        (7, read(4, vec![])),
        (8, read(9, vec![])),
        (8, End::Ok(Answer::Missing)),
    ];
    for (number, end) in wrong {
        let mut run = grpc();
        run.seen.records[number].end = end;
        run.is_refused();
    }
}

#[test]
fn a_previous_value_that_was_not_there_is_refused() {
    let mut run = grpc();
    run.seen.records[4].end = wrote(4, vec![pair("g/2", 1, 2, 2, 1)]);
    run.is_refused();
}

#[test]
fn a_stale_read_is_refused_although_it_is_true_of_its_revision() {
    let mut run = grpc();
    run.ask(range("g/1"), read(4, vec![pair("g/1", 2, 2, 3, 2)]));
    run.is_refused();
}

#[test]
fn a_stale_read_is_accepted_where_it_was_asked_for_or_began_earlier() {
    let mut run = grpc();
    let serializable = Ask::Range { keys: Keys::one("g/1"), serializable: true };
    run.ask(serializable, read(4, vec![pair("g/1", 2, 2, 3, 2)]));
    run.ask(range("g/1"), read(4, vec![pair("g/1", 2, 2, 3, 2)])).called = 10;
    assert_eq!(run.violations(), 0);
}

#[test]
fn a_read_behind_what_a_watch_had_told_is_refused() {
    let mut run = grpc();
    run.change(vec![("g/2", None)]);
    run.ask(Ask::DeleteRange(Keys::one("g/2")), End::Unknown);
    assert_eq!(run.violations(), 0);
    run.watch();
    run.now += 2;
    run.ask(range("g/1"), read(5, vec![]));
    run.is_refused();
}

#[test]
fn a_lost_acknowledged_write_is_refused() {
    let mut run = grpc();
    run.ask(put("g/3", 10), wrote(6, vec![]));
    run.is_refused();
    let mut run = grpc();
    run.ask(http_put("h/3", 10), wrote(6, vec![]));
    run.is_refused();
}

#[test]
fn an_acknowledged_write_elsewhere_is_refused() {
    let mut run = grpc();
    run.change(vec![("g/4", Some(pair("g/4", 10, 6, 6, 1)))]);
    run.change(vec![("g/3", Some(pair("g/3", 11, 7, 7, 1)))]);
    run.ask(put("g/3", 10), wrote(6, vec![]));
    run.ask(put("g/3", 11), wrote(7, vec![]));
    run.is_refused();
}

#[test]
fn two_writes_of_one_revision_are_refused() {
    let mut run = grpc();
    run.ask(put("g/3", 10), wrote(5, vec![]));
    run.is_refused();
}

#[test]
fn a_write_in_the_past_is_refused() {
    let mut run = grpc();
    let last = run.seen.records.remove(4);
    run.ask(last.ask, last.end);
    run.is_refused();
}

#[test]
fn a_change_that_nobody_asked_for_is_refused() {
    let mut run = grpc();
    run.change(vec![("g/3", Some(pair("g/3", 10, 6, 6, 1)))]);
    run.is_refused();
    let mut run = grpc();
    run.change(vec![("g/2", None)]);
    run.is_refused();
}

#[test]
fn a_write_of_unknown_fate_may_be_there_late_or_never_but_not_twice_nor_early() {
    let mut run = grpc();
    run.ask(put("g/3", 10), End::Unknown);
    run.ask(Ask::DeleteRange(Keys::one("g/2")), End::Unknown);
    assert_eq!(run.violations(), 0);
    run.change(vec![("g/2", None)]);
    run.change(vec![("g/3", Some(pair("g/3", 10, 7, 7, 1)))]);
    assert_eq!(run.violations(), 0);
    run.change(vec![("g/3", Some(pair("g/3", 10, 7, 8, 2)))]);
    run.is_refused();

    let mut early = grpc();
    let last = early.seen.records.remove(4);
    early.ask(last.ask, End::Unknown);
    early.is_refused();
}

#[test]
fn a_deletion_of_unknown_fate_explains_one_deletion_and_none_before_it() {
    let mut run = grpc();
    run.ask(Ask::DeleteRange(Keys::one("g/2")), End::Unknown);
    run.change(vec![("g/2", None)]);
    run.change(vec![("g/2", Some(pair("g/2", 10, 7, 7, 1)))]);
    run.ask(put("g/2", 10), wrote(7, vec![]));
    assert_eq!(run.violations(), 0);
    run.change(vec![("g/2", None)]);
    run.is_refused();

    let mut early = grpc();
    early.change(vec![("g/2", None)]);
    early.ask(range("g/2"), read(6, vec![]));
    assert!(early.violations() > 0);
    early.ask(Ask::DeleteRange(Keys::one("g/2")), End::Unknown);
    early.is_refused();
}

#[test]
fn a_write_applied_after_the_promise_that_it_is_not_is_refused() {
    let mut run = grpc();
    run.ask(put("g/3", 10), End::NotApplied);
    run.ask(Ask::DeleteRange(Keys::one("g/2")), End::NotApplied);
    assert_eq!(run.violations(), 0);
    run.change(vec![("g/3", Some(pair("g/3", 10, 6, 6, 1)))]);
    run.is_refused();

    let mut run = grpc();
    run.ask(Ask::DeleteRange(Keys::one("g/2")), End::NotApplied);
    run.change(vec![("g/2", None)]);
    run.is_refused();
}

#[test]
fn a_history_that_no_store_has_is_refused() {
    let mut gap = grpc();
    gap.changes[3].revision = 6;
    gap.is_refused();
    let mut version = grpc();
    version.changes[1].events[0].put = Some(pair("g/1", 2, 2, 3, 3));
    version.is_refused();
    let mut created = grpc();
    created.changes[1].events[0].put = Some(pair("g/1", 2, 3, 3, 2));
    created.is_refused();
    let mut deleted_twice = grpc();
    deleted_twice.change(vec![("g/1", None)]);
    deleted_twice.ask(Ask::DeleteRange(Keys::one("g/1")), End::Unknown);
    deleted_twice.is_refused();
    let mut torn = grpc();
    let event = torn.changes[2].events[0].clone();
    torn.changes[2].events.push(event);
    torn.is_refused();
}

/// h/1 = 1 at 2, = 2 at 3, gone at 4, with reads between.
fn http() -> Run {
    let mut run = Run::default();
    run.change(vec![("h/1", Some(pair("h/1", 1, 2, 2, 1)))]);
    run.change(vec![("h/1", Some(pair("h/1", 2, 2, 3, 2)))]);
    run.change(vec![("h/1", None)]);
    let get = || Ask::HttpGet("h/1".into());
    let delete = || Ask::HttpDelete("h/1".into());
    let conditional = |value, condition| Ask::HttpPut { key: "h/1".into(), value, condition };
    run.ask(get(), End::Ok(Answer::Missing));
    run.ask(conditional(1, Condition::Absent), wrote(2, vec![]));
    run.ask(conditional(9, Condition::Absent), End::Ok(Answer::Failed));
    run.ask(get(), End::Ok(Answer::Value { value: 1, modified: 2 }));
    run.ask(conditional(2, Condition::Revision(2)), wrote(3, vec![]));
    run.ask(conditional(8, Condition::Revision(2)), End::Ok(Answer::Failed));
    run.ask(get(), End::Ok(Answer::Value { value: 2, modified: 3 }));
    run.ask(delete(), wrote(4, vec![]));
    run.ask(delete(), End::Ok(Answer::Missing));
    run.ask(get(), End::Ok(Answer::Missing));
    run
}

#[test]
fn plain_http_is_accepted_and_counted() {
    let run = http();
    let figures = Figures::new("test");
    check(&run.seen, run.changes.clone(), &figures);
    assert_eq!(figures.violations(), 0);
    assert_eq!(figures.counted_so_far("HTTP requests linearizable"), 10);
}

#[test]
fn plain_http_that_is_not_linearizable_is_refused() {
    let wrong = [
        (0, End::Ok(Answer::Value { value: 1, modified: 2 })),
        (2, wrote(3, vec![])),
        (3, End::Ok(Answer::Missing)),
        (3, End::Ok(Answer::Value { value: 1, modified: 1 })),
        (4, End::Ok(Answer::Failed)),
        (5, wrote(5, vec![])),
        (6, End::Ok(Answer::Value { value: 1, modified: 2 })),
        (7, End::Ok(Answer::Missing)),
        (8, wrote(5, vec![])),
        (9, End::Ok(Answer::Value { value: 2, modified: 3 })),
    ];
    for (number, end) in wrong {
        let mut run = http();
        run.seen.records[number].end = end;
        run.is_refused();
    }
}

#[test]
fn only_the_linearizability_check_sees_a_stale_get_without_revisions() {
    let mut run = http();
    run.seen.records[9].end = End::Ok(Answer::Value { value: 2, modified: 3 });
    let figures = Figures::new("test");
    let took_effect: Vec<Option<u64>> =
        run.seen.records.iter().map(|record| record.answer()?.revision()).collect();
    keys::check(&run.seen.records, &took_effect, &figures);
    assert_eq!(figures.violations(), 1);
}

#[test]
fn http_of_unknown_fate_takes_effect_at_any_time_after_its_call() {
    let mut run = http();
    run.ask(http_put("h/1", 5), End::Unknown);
    run.ask(Ask::HttpDelete("h/1".into()), End::Unknown);
    run.ask(Ask::HttpGet("h/1".into()), End::Ok(Answer::Missing));
    assert_eq!(run.violations(), 0);
    run.change(vec![("h/1", Some(pair("h/1", 5, 5, 5, 1)))]);
    run.change(vec![("h/1", None)]);
    run.ask(Ask::HttpGet("h/1".into()), End::Ok(Answer::Value { value: 5, modified: 5 }));
    run.ask(Ask::HttpGet("h/1".into()), End::Ok(Answer::Missing));
    assert_eq!(run.violations(), 0);
    run.ask(Ask::HttpGet("h/1".into()), End::Ok(Answer::Value { value: 5, modified: 5 }));
    run.is_refused();
}

#[test]
fn a_watch_that_resumes_and_promises_progress_is_accepted() {
    let mut run = grpc();
    let now = run.now + 5;
    let watched = run.watch();
    watched.batches.insert(2, Batch { received: now, events: vec![], progress: Some(3) });
    watched.batches.push(Batch { received: now, events: vec![], progress: Some(5) });
    assert_eq!(run.violations(), 0);
}

#[test]
fn a_watch_that_loses_doubles_or_reorders_is_refused() {
    let spoil: [fn(&mut Vec<Batch>); 6] = [
        |batches| drop(batches.remove(1)),
        |batches| drop(batches.pop()),
        |batches| batches.push(batches[3].clone()),
        |batches| batches.swap(1, 2),
        |batches| batches[0].events[0].1 ^= 1,
        |batches| batches[1].progress = Some(4),
    ];
    for spoil in spoil {
        let mut run = grpc();
        spoil(&mut run.watch().batches);
        run.is_refused();
    }
}

#[test]
fn a_revision_in_pieces_is_refused() {
    let mut run = grpc();
    let (one, other) = (pair("g/5", 0, 0, 0, 0), pair("g/6", 0, 0, 0, 0));
    let put = |pair: Pair, value| Pair { value, created: 6, modified: 6, version: 1, ..pair };
    // No client here writes two keys at once: only the watch is looked at.
    run.change(vec![("g/5", Some(put(one, 20))), ("g/6", Some(put(other, 21)))]);
    let figures = Figures::new("test");
    let store = Store::replay(run.changes.clone(), &figures);
    let mut watched = run.watch().clone();
    watches::check(&[watched.clone()], &store, &figures);
    assert_eq!(figures.violations(), 0);
    let last = watched.batches.pop().expect("five batches");
    for event in last.events {
        watched.batches.push(Batch { received: 99, events: vec![event], progress: None });
    }
    watches::check(&[watched], &store, &figures);
    assert_eq!(figures.violations(), 1);
}

/// A lease of 5 s from 1 s on, renewed at 4 s, whose key is put at revision 2
/// and deleted at revision 3, which is first seen at `seen`.
fn leased(seen: Time, gone: Option<Time>, attached: bool) -> u64 {
    let key = "l/1".to_owned();
    let put = Pair { lease: 7, ..pair("l/1", 1, 2, 2, 1) };
    let event = |put| vec![Event { key: "l/1".into(), put }];
    let mut changes = vec![Change { revision: 2, events: event(Some(put)) }];
    if seen > 0 {
        changes.push(Change { revision: 3, events: event(None) });
    }
    let figures = Figures::new("test");
    let store = Store::replay(changes, &figures);
    let sightings = Sightings::new(vec![(SECOND, 2), (seen, 3)]);
    let renewals = vec![(SECOND, 5), (4 * SECOND, 5)];
    let life = LeaseLife { id: 7, key, attached, renewals, gone };
    leases::check(&[life], &store, &sightings, &figures);
    figures.violations()
}

#[test]
fn a_lease_that_ends_early_or_never_is_refused() {
    assert_eq!(leased(9 * SECOND, None, true), 0);
    assert_eq!(leased(9 * SECOND - 1, None, true), 1);
    assert_eq!(leased(0, None, true), 1);
    assert_eq!(leased(0, None, false), 0);
    assert_eq!(leased(20 * SECOND, Some(8 * SECOND), true), 1);
    assert_eq!(leased(20 * SECOND, Some(10 * SECOND), true), 0);
}

#[test]
fn sightings_know_the_newest_before_and_the_first_of_each() {
    let sightings = Sightings::new(vec![(10, 5), (20, 4), (30, 7)]);
    assert_eq!([10, 11, 30, 31].map(|time| sightings.before(time)), [0, 5, 5, 7]);
    assert_eq!(
        [1, 5, 6, 8].map(|revision| sightings.first(revision)),
        [Some(10), Some(10), Some(30), None]
    );
}

#[test]
fn a_prefix_is_a_range() {
    let keys = Keys::below("g/");
    assert!(keys.contains("g/") && keys.contains("g/99") && !keys.contains("g0"));
    assert!(Keys::one("g/1").contains("g/1") && !Keys::one("g/1").contains("g/10"));
}
