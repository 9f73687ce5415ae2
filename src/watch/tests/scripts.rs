//! What a watch is told, case by case.

use super::world::{SMALL, World, key};
use crate::watch::{Input, Notice, Options, Refusal, Spec};

fn one_key(start_revision: u64) -> Spec {
    Spec { key: key(0), start_revision, ..Spec::default() }
}

/// Notices in short: what, and which revisions.
fn short(notices: Vec<Notice>) -> Vec<String> {
    let short = |notice| match notice {
        Notice::Created { revision, .. } => format!("created {revision}"),
        Notice::Refused { why, .. } => format!("refused {why:?}"),
        Notice::Events { events, .. } => {
            let revisions: Vec<u64> = events.iter().map(|event| event.revision).collect();
            format!("events {revisions:?}")
        }
        Notice::Compacted { compacted, .. } => format!("compacted {compacted}"),
        Notice::Cancelled { revision, .. } => format!("cancelled {revision}"),
        Notice::Progress { watch, revision } => format!("progress {watch} {revision}"),
    };
    notices.into_iter().map(short).collect()
}

fn world() -> (World, u64) {
    let mut world = World::new(Options { page_bytes: 100, ..SMALL });
    let stream = world.open_stream();
    (world, stream)
}

#[test]
fn from_now_is_told_what_is_new() {
    let (mut world, stream) = world();
    world.put(0);
    world.deliver();
    world.open(stream, 1, one_key(0));
    world.put(1);
    world.put(0);
    world.apply(&[vec![(0, true), (0, false)]]);
    world.deliver_all();
    world.give(Input::Cancel { stream, watch: 1 });
    world.give(Input::Cancel { stream, watch: 1 });
    world.put(0);
    world.deliver_all();
    let told = short(world.take_all(stream));
    assert_eq!(told, ["created 2", "events [4]", "events [5, 5]", "cancelled 5"]);
}

#[test]
fn from_the_past_is_told_what_was_and_then_what_is_new() {
    let (mut world, stream) = world();
    (0..3).for_each(|_| world.put(0));
    world.deliver_all();
    world.open(stream, 1, one_key(3));
    world.put(0);
    world.deliver();
    assert_eq!(short(world.take_all(stream)), ["created 4"]);
    world.answer_read(0);
    world.put(0);
    world.deliver();
    assert_eq!(short(world.take_all(stream)), ["events [3, 4, 5]", "events [6]"]);
    assert!(world.reads.is_empty());
}

#[test]
fn the_compacted_revision_itself_can_be_watched_and_none_before() {
    let (mut world, stream) = world();
    world.put(0);
    world.apply(&[vec![(0, true)]]);
    world.put(0);
    world.compact(3);
    world.deliver_all();
    world.open(stream, 1, one_key(2));
    assert_eq!(short(world.take_all(stream)), ["created 4", "compacted 3"]);
    world.open(stream, 1, one_key(3));
    world.answer_read(0);
    assert_eq!(short(world.take_all(stream)), ["created 4", "events [3, 4]"]);
}

#[test]
fn a_future_watch_gets_neither_older_events_nor_progress() {
    let (mut world, stream) = world();
    world.open(stream, 1, Spec { progress_notify: true, ..one_key(4) });
    world.ask_progress(stream);
    world.put(0);
    world.put(0);
    world.deliver_all();
    (0..9).for_each(|_| world.give(Input::Tick));
    assert_eq!(short(world.take_all(stream)), ["created 1"]);
    world.put(0);
    world.deliver_all();
    assert_eq!(short(world.take_all(stream)), ["events [4]", "progress -1 4"]);
}

#[test]
fn progress_is_told_when_there_was_nothing_for_long() {
    let (mut world, stream) = world();
    world.open(stream, 1, Spec { progress_notify: true, ..one_key(0) });
    world.open(stream, 2, one_key(0));
    world.take_all(stream);
    world.give(Input::Tick);
    world.put(0);
    world.deliver();
    (0..2).for_each(|_| world.give(Input::Tick));
    let told = short(world.take_all(stream));
    assert_eq!(told, ["events [2]", "events [2]"], "it was told something");
    world.put(1);
    world.deliver();
    world.give(Input::Tick);
    assert_eq!(short(world.take_all(stream)), ["progress 1 3"]);
    (0..3).for_each(|_| world.give(Input::Tick));
    assert_eq!(short(world.take_all(stream)), ["progress 1 3"]);
}

#[test]
fn asked_for_progress_waits_until_everything_is_told() {
    let (mut world, stream) = world();
    (0..3).for_each(|_| world.put(0));
    world.deliver_all();
    world.open(stream, 1, one_key(1));
    world.open(stream, 2, one_key(0));
    world.ask_progress(stream);
    assert_eq!(short(world.take_all(stream)), ["created 4", "created 4"]);
    world.answer_read(0);
    assert_eq!(short(world.take_all(stream)), ["events [2, 3, 4]", "progress -1 4"]);
}

#[test]
fn filtered_changes_send_nothing() {
    let (mut world, stream) = world();
    world.open(stream, 1, Spec { no_put: true, ..one_key(0) });
    world.put(0);
    world.apply(&[vec![(0, true)]]);
    world.put(0);
    world.deliver_all();
    assert_eq!(short(world.take_all(stream)), ["created 1", "events [3]"]);
}

#[test]
fn a_slow_holder_gets_the_rest_later_and_keeps_nobody_waiting() {
    let (mut world, slow) = world();
    let quick = world.open_stream();
    world.open(slow, 1, one_key(0));
    world.open(quick, 1, one_key(0));
    for _ in 0..30 {
        world.put(0);
        world.deliver();
        world.take_all(quick);
    }
    assert_eq!(world.holders[&quick].watches[&1].events, 30);
    assert!(world.holders[&slow].queue.len() <= SMALL.queue_notices);
    assert!(world.reads.is_empty(), "there is no room for what would be read");
    world.settle();
    assert_eq!(world.holders[&slow].watches[&1].events, 30);
}

#[test]
fn missed_batches_are_read_for_all_at_once() {
    let (mut world, stream) = world();
    world.open(stream, 1, one_key(0));
    world.open(stream, 2, Spec { key: key(1), ..Spec::default() });
    (0..3).for_each(|_| world.put(0));
    world.lose();
    world.deliver();
    assert_eq!(world.reads, [2]);
    world.put(1);
    world.deliver();
    world.open(stream, 3, one_key(0));
    world.ask_progress(stream);
    world.answer_read(0);
    let told = short(world.take_all(stream));
    let expected =
        ["created 1", "created 1", "created 5", "events [2, 3, 4]", "events [5]", "progress -1 5"];
    assert_eq!(told, expected);
}

#[test]
fn what_an_installed_snapshot_does_not_have_ends_watches() {
    let (mut world, stream) = world();
    world.open(stream, 1, one_key(0));
    world.open(stream, 2, one_key(4));
    (0..4).for_each(|_| world.put(0));
    world.compact(4);
    world.lose();
    world.deliver();
    world.answer_read(0);
    let told = short(world.take_all(stream));
    assert_eq!(told, ["created 1", "created 1", "compacted 4", "events [4, 5]"]);
}

#[test]
fn refusals_say_why() {
    let (mut world, stream) = world();
    world.open(stream, 1, one_key(0));
    world.open(stream, 1, one_key(0));
    world.open(stream, -1, one_key(0));
    world.open(stream, 2, Spec { range_end: key(0), ..one_key(0) });
    (3..9).for_each(|number| world.open(stream, number, one_key(0)));
    let told = short(world.take_all(stream));
    let taken = format!("refused {:?}", Refusal::NumberTaken);
    let empty = format!("refused {:?}", Refusal::EmptyRange);
    let full = format!("refused {:?}", Refusal::StreamFull);
    assert_eq!(told[..4], ["created 1".to_owned(), taken.clone(), taken, empty]);
    assert_eq!(told[9..], [full]);
    let others = [world.open_stream(), world.open_stream()];
    (0..12).for_each(|n| world.open(others[n % 2], n as i64 / 2, one_key(0)));
    let refused = world.take_all(others[1]).pop();
    assert!(matches!(refused, Some(Notice::Refused { why: Refusal::NodeFull, .. })));
}

#[test]
fn a_holder_that_asks_and_never_takes_is_ended() {
    let (mut world, stream) = world();
    for _ in 0..=(SMALL.queue_notices + SMALL.queue_answers) {
        world.open(stream, -1, one_key(0));
    }
    assert!(world.holders.is_empty() && world.hub.is_idle());
    assert_eq!(world.hub.queued_bytes(), 0);
}
