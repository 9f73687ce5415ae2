//! The pump over a real state machine, and a holder at each end.

use std::{sync::Arc, thread, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use raft::eraftpb::Entry;
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use super::*;
use crate::{
    error::Fatal,
    machine::{StateMachine, command},
    proto::{
        Alarms, Command, Compact, Put,
        command::Op,
        etcdserverpb::{AlarmMember, AlarmType},
    },
    storage::memory::MemoryEngine,
};

type Machine = StateMachine<MemoryEngine>;

/// What the apply thread does, and the pump.
struct Site {
    machine: Machine,
    feed: WatchFeed,
    view: Arc<Mutex<View<MemoryEngine>>>,
    alarms: watch::Sender<Arc<Alarms>>,
    watching: Arc<Watching>,
    cancel: CancellationToken,
    pump: JoinHandle<Result<(), Fatal>>,
}

fn machine() -> Machine {
    StateMachine::open(MemoryEngine::default()).unwrap()
}

fn apply(machine: &mut Machine, op: Op) -> crate::machine::Changes {
    let mut entry = Entry::default();
    entry.set_index(machine.position().index + 1);
    entry.set_term(1);
    entry.set_data(command::encode_payload(vec![Command { id: None, op: Some(op) }]).into());
    machine.apply(&[entry]).unwrap().changes
}

fn put(key: &'static str, value: Bytes) -> Op {
    Op::Put(Put { key: Bytes::from(key), value, ..Put::default() })
}

impl Site {
    fn new() -> Self {
        let machine = machine();
        let feed = WatchFeed::new(machine.revision(), 0);
        let view = Arc::new(Mutex::new(machine.view()));
        let cancel = CancellationToken::new();
        let (alarms, soundness) = Soundness::new(1, Arc::default());
        let present = Arc::clone(&view);
        let (watching, pump) = Watching::new(
            Options::default(),
            feed.clone(),
            Arc::new(move || present.lock().clone()),
            soundness,
            Metrics::new(),
            cancel.clone(),
        );
        let pump = tokio::spawn(pump.run());
        Self { machine, feed, view, alarms, watching: Arc::new(watching), cancel, pump }
    }

    fn apply(&mut self, op: Op) {
        let changes = apply(&mut self.machine, op);
        self.feed.applied(changes);
    }

    fn put(&mut self, key: &'static str) {
        self.apply(put(key, Bytes::from_static(b"value")));
    }
}

async fn next(notices: &mut WatchNotices) -> Option<Notice> {
    timeout(Duration::from_secs(20), notices.next()).await.expect("a notice")
}

async fn created(notices: &mut WatchNotices) -> u64 {
    match next(notices).await {
        Some(Notice::Created { revision, .. }) => revision,
        other => panic!("{other:?}"),
    }
}

/// The revisions of events up to the last, each seen once and in order.
async fn revisions(notices: &mut WatchNotices, last: u64) -> Vec<u64> {
    let mut revisions: Vec<u64> = Vec::new();
    while revisions.last().is_none_or(|revision| *revision < last) {
        match next(notices).await {
            Some(Notice::Events { events, .. }) => {
                revisions.extend(events.iter().map(|event| event.revision));
            }
            other => panic!("{other:?} after {:?}", revisions.last()),
        }
    }
    revisions
}

fn spec(start_revision: u64) -> Spec {
    Spec { key: Bytes::from("k"), start_revision, ..Spec::default() }
}

#[tokio::test]
async fn a_watch_is_told_of_the_past_and_of_what_is_new() {
    let mut site = Site::new();
    // Nobody watches yet.
    (0..3).for_each(|_| site.put("k"));
    let (control, mut notices) = site.watching.stream().unwrap();
    control.open(0, spec(3)).await;
    assert_eq!(created(&mut notices).await, 4);
    site.put("other");
    site.put("k");
    assert_eq!(revisions(&mut notices, 6).await, [3, 4, 6]);
    control.request_progress().await;
    let progress = next(&mut notices).await;
    assert!(matches!(progress, Some(Notice::Progress { watch: -1, revision: 6 })));

    site.apply(Op::Compact(Compact { revision: 5 }));
    control.open(1, spec(4)).await;
    assert_eq!(created(&mut notices).await, 6);
    let ended = next(&mut notices).await;
    assert!(matches!(ended, Some(Notice::Compacted { watch: 1, compacted: 5, .. })), "{ended:?}");
    control.cancel(0).await;
    let ended = next(&mut notices).await;
    assert!(matches!(ended, Some(Notice::Cancelled { watch: 0, .. })));

    site.cancel.cancel();
    assert!(next(&mut notices).await.is_none());
    site.pump.await.unwrap().unwrap();
    control.open(2, spec(0)).await;
    assert!(matches!(site.watching.stream(), Err(Rejected::NotApplied(_))));
}

#[tokio::test]
async fn a_holder_that_slept_gets_everything_from_pages() {
    let mut site = Site::new();
    let (slow_control, mut slow) = site.watching.stream().unwrap();
    let (quick_control, mut quick) = site.watching.stream().unwrap();
    for (control, notices) in [(&slow_control, &mut slow), (&quick_control, &mut quick)] {
        control.open(0, spec(0)).await;
        created(notices).await;
    }
    // More than its queue takes, and several pages.
    let value = Bytes::from(vec![b'v'; 4096]);
    for revision in 2..=3001 {
        site.apply(put("k", value.clone()));
        assert_eq!(revisions(&mut quick, revision).await, [revision]);
    }
    let expected: Vec<u64> = (2..=3001).collect();
    assert_eq!(revisions(&mut slow, 3001).await, expected);
    site.put("k");
    assert_eq!(revisions(&mut slow, 3002).await, [3002]);
}

#[tokio::test]
async fn an_installed_snapshot_is_told_from_its_history() {
    let mut site = Site::new();
    let (control, mut notices) = site.watching.stream().unwrap();
    control.open(0, spec(0)).await;
    created(&mut notices).await;
    site.put("k");
    assert_eq!(revisions(&mut notices, 2).await, [2]);

    let mut installed = machine();
    (0..50).for_each(|_| drop(apply(&mut installed, put("k", Bytes::new()))));
    *site.view.lock() = installed.view();
    site.machine = installed;
    site.feed.jumped(site.machine.revision(), 0);
    site.put("k");
    let expected: Vec<u64> = (3..=52).collect();
    assert_eq!(revisions(&mut notices, 52).await, expected);

    let mut installed = machine();
    (0..99).for_each(|_| drop(apply(&mut installed, put("k", Bytes::new()))));
    apply(&mut installed, Op::Compact(Compact { revision: 90 }));
    *site.view.lock() = installed.view();
    site.feed.jumped(installed.revision(), 90);
    let ended = next(&mut notices).await;
    assert!(matches!(ended, Some(Notice::Compacted { compacted: 90, .. })), "{ended:?}");
}

#[tokio::test]
async fn a_stream_ends_with_either_half() {
    let site = Site::new();
    let open = || site.watching.streams.load(Ordering::Relaxed);
    let (control, mut notices) = site.watching.stream().unwrap();
    let clone = control.clone();
    drop(control);
    clone.open(0, spec(0)).await;
    created(&mut notices).await;
    drop(clone);
    assert!(next(&mut notices).await.is_none());

    let (control, notices) = site.watching.stream().unwrap();
    drop(notices);
    // Its place is free once the hub knows, which it does before it knows of
    // a later stream.
    let (later, mut notices) = site.watching.stream().unwrap();
    later.open(0, spec(0)).await;
    created(&mut notices).await;
    assert_eq!(open(), 1);
    control.open(0, spec(0)).await;

    let streams: Vec<_> = std::iter::from_fn(|| site.watching.stream().ok()).collect();
    assert_eq!(streams.len(), MAX_STREAMS - 1);
    assert!(matches!(site.watching.stream(), Err(Rejected::Overloaded(_))));
}

#[tokio::test]
async fn streams_end_when_this_member_is_accused_and_none_begins_until_it_is_not() {
    let mut site = Site::new();
    site.put("k");
    let (control, mut notices) = site.watching.stream().unwrap();
    control.open(0, spec(0)).await;
    created(&mut notices).await;
    let corrupt = |member_id| {
        let alarm = AlarmMember { member_id, alarm: AlarmType::Corrupt.into() };
        Arc::new(Alarms { alarms: vec![alarm] })
    };
    // That of another is none of its business.
    site.alarms.send_replace(corrupt(2));
    control.request_progress().await;
    assert!(matches!(next(&mut notices).await, Some(Notice::Progress { .. })));

    site.alarms.send_replace(corrupt(1));
    assert!(next(&mut notices).await.is_none());
    let (_control, mut late) = site.watching.stream().unwrap();
    assert!(next(&mut late).await.is_none());

    site.alarms.send_replace(Arc::default());
    let (control, mut notices) = site.watching.stream().unwrap();
    control.open(0, spec(0)).await;
    created(&mut notices).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_between_opening_and_applying() {
    let site = Site::new();
    let watching = Arc::clone(&site.watching);
    let (last, stop) = (5000, Arc::new(AtomicU64::new(0)));
    let writer_stop = Arc::clone(&stop);
    let mut writer = site;
    let writing = thread::spawn(move || {
        // Until all have opened, and some more.
        while writer_stop.load(Ordering::Acquire) == 0 || writer.machine.revision() < last {
            writer.put("k");
            thread::yield_now();
        }
        let end = writer.machine.revision() + 1;
        writer_stop.store(end, Ordering::Release);
        writer.put("k");
        writer
    });
    let mut told = Vec::new();
    for number in 0..40_u64 {
        let (control, mut notices) = watching.stream().unwrap();
        let start = if number.is_multiple_of(2) { 0 } else { number };
        control.open(0, spec(start)).await;
        let first = match (created(&mut notices).await, start) {
            (revision, 0) => revision + 1,
            (_, start) => start.max(2),
        };
        // Every fourth stream closes at once, so that the hub is idle at times.
        if number % 4 < 3 {
            told.push((first, control, notices));
        }
        if number == 10 {
            told.clear();
        }
    }
    stop.store(1, Ordering::Release);
    let writer = tokio::task::spawn_blocking(move || writing.join().unwrap()).await.unwrap();
    let end = stop.load(Ordering::Acquire);
    for (first, _control, mut notices) in told {
        assert_eq!(revisions(&mut notices, end).await, (first..=end).collect::<Vec<_>>());
    }
    drop(writer);
}
