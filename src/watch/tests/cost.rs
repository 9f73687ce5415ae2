//! What watches cost, in operations and in copies.

use std::sync::Arc;

use bytes::Bytes;

use super::world::{World, key};
use crate::watch::{Notice, Options, Spec};

#[test]
fn idle_watches_do_not_make_a_batch_dearer() {
    let mut world = World::new(Options::default());
    let stream = world.open_stream();
    for number in 0..10_000 {
        let key = Bytes::from(format!("idle/{number:05}/"));
        world.open(stream, number, Spec { key, ..Spec::default() });
        let key = Bytes::from(format!("idle/{number:05}/"));
        let range_end = Bytes::from(format!("idle/{number:05}0"));
        world.open(stream, 10_000 + number, Spec { key, range_end, ..Spec::default() });
    }
    assert_eq!(world.take_all(stream).len(), 20_000);
    let before = world.hub.work();
    world.put(0);
    world.deliver();
    let idle = world.hub.work() - before;
    assert!(idle < 100, "{idle} operations for a change that nobody watches");
    assert!(world.take_all(stream).is_empty());
}

#[test]
fn a_thousand_watches_of_one_key_share_one_event() {
    let mut world = World::new(Options::default());
    let streams: Vec<u64> = (0..1000).map(|_| world.open_stream()).collect();
    for stream in &streams {
        world.open(*stream, 0, Spec { key: key(0), ..Spec::default() });
    }
    world.put(0);
    world.deliver();
    let told = streams.iter().map(|stream| match world.take_all(*stream).pop() {
        Some(Notice::Events { events, .. }) => events,
        other => panic!("{other:?}"),
    });
    let told: Vec<_> = told.collect();
    assert!(told.iter().all(|events| Arc::ptr_eq(events, &told[0])));
    let encoded = told[0].encoded(false, 0);
    assert_eq!(encoded.as_ptr(), told[999].encoded(false, 0).as_ptr());
}

#[test]
fn what_a_thousand_watches_of_one_stream_share_fills_its_queue_once() {
    let options = Options { queue_bytes: 160 << 10, ..Options::default() };
    let mut world = World::new(options);
    let stream = world.open_stream();
    for number in 0..1000 {
        world.open(stream, number, Spec { key: key(0), ..Spec::default() });
    }
    assert_eq!(world.take_all(stream).len(), 1000);
    for _ in 0..10 {
        world.put(0);
        world.deliver();
        assert_eq!(world.take_all(stream).len(), 1000);
        assert!(world.reads.is_empty(), "a queue was full");
    }
}

#[test]
fn watches_from_one_revision_share_pages() {
    let options = Options { page_bytes: 10, ..Options::default() };
    let mut world = World::new(options);
    (0..100).for_each(|_| world.put(0));
    world.deliver_all();
    let streams: Vec<u64> = (0..50).map(|_| world.open_stream()).collect();
    for stream in &streams {
        let spec = Spec { key: key(0), start_revision: 2, ..Spec::default() };
        world.open(*stream, 0, spec);
    }
    let mut pages = 0;
    while !world.reads.is_empty() {
        world.answer_read(0);
        pages += 1;
    }
    assert_eq!(pages, 10);
    for stream in &streams {
        world.take_all(*stream);
        assert_eq!(world.holders[stream].watches[&0].events, 100);
    }
}
