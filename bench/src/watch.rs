//! Watchers of one prefix, and clients that write below it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use metastore_proto::etcdserverpb::{
    WatchCreateRequest, WatchRequest, watch_request::RequestUnion,
};
use rand::rngs::SmallRng;
use tokio::{select, sync::watch, time::timeout};

use crate::{
    Failure, crew,
    failure::Trouble,
    grpc::{Client, Connection, Path, Stream},
    keys::{end_of, number_of, numbered_value, random},
    pace::Pace,
    plan::Plan,
    progress::Progress,
    session::Session,
    tally::Tally,
    told::{Event, Told},
};

/// Writes whose end is remembered, until their events have come.
const REMEMBERED: u64 = 1 << 20;

/// How long the watches of a stream may take to be made, and the last events to
/// come.
const PATIENCE: Duration = Duration::from_secs(60);

const WATCH: Path = "/etcdserverpb.Watch/Watch";

/// What watchers and writers came to.
#[derive(Debug)]
pub struct Watched {
    /// The events that were delivered: the time from the answer to a write
    /// until its event, none if that came first.
    pub deliveries: Tally,
    /// From the first write until the last event.
    pub measured: Duration,
    /// The writes.
    pub puts: Tally,
    /// The time in which they count.
    pub writing: Duration,
}

/// What all share.
struct Shared {
    plan: Plan,
    /// When it began; times are counted from here, in nanoseconds.
    epoch: Instant,
    /// Streams whose watches are all made.
    ready: watch::Sender<u64>,
    /// The schedule of the writes, which begins when all are.
    pace: OnceLock<Pace>,
    /// The number of the next write.
    next: AtomicU64,
    /// When each write was answered; 0 before.
    answered: Vec<AtomicU64>,
    /// The revision of the newest write that was answered.
    newest: AtomicU64,
    /// Writers that go on.
    writers: AtomicU64,
    /// How long they wrote, once none does.
    writing: OnceLock<Duration>,
    /// The newest revision, once there will be no newer one.
    last: watch::Sender<Option<u64>>,
    /// When the last event came.
    last_event: AtomicU64,
    deliveries: Mutex<Tally>,
    puts: Mutex<Tally>,
}

impl Shared {
    /// Where the time of a write's answer stands.
    fn answered(&self, number: u64) -> Option<&AtomicU64> {
        self.answered.get((number % REMEMBERED) as usize)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Runs watchers and writers to the end.
///
/// # Errors
/// When the watches cannot be made, or break.
pub fn run(plan: &Plan) -> Result<Watched, Failure> {
    let options = &plan.options;
    let connections = plan.connections();
    let streams = connections.len() as u64;
    let shared = Arc::new(Shared {
        plan: plan.clone(),
        epoch: Instant::now(),
        ready: watch::Sender::new(0),
        pace: OnceLock::new(),
        next: AtomicU64::new(0),
        answered: (0..REMEMBERED).map(|_| AtomicU64::new(0)).collect(),
        newest: AtomicU64::new(0),
        writers: AtomicU64::new(options.clients),
        writing: OnceLock::new(),
        last: watch::Sender::new(None),
        last_event: AtomicU64::new(0),
        deliveries: Mutex::default(),
        puts: Mutex::default(),
    });
    let mut number = 0;
    let writers = plan.sessions(options.clients).into_iter().map(|sessions| {
        let writers = sessions.into_iter().map(|session| {
            number += 1;
            let (shared, random) = (Arc::clone(&shared), random(number));
            Task::Write(Writer { session, random, streams, shared })
        });
        writers.collect()
    });
    let mut work: Vec<Vec<Task>> = writers.collect();
    let places = 0..work.len();
    for ((number, connection), place) in (0..streams).zip(connections).zip(places.cycle()) {
        let watchers = options.watchers / streams + u64::from(number < options.watchers % streams);
        let shared = Arc::clone(&shared);
        work[place].push(Task::Watch(Watcher { connection, watchers, shared }));
    }
    let progress = Progress::new("watch");
    let work = work.into_iter().map(|tasks| tasks.into_iter().map(Task::run).collect()).collect();
    crew::run(work, || {
        if let Some(pace) = shared.pace.get() {
            progress.show(pace.part_done(), pace.done());
        }
    })?;
    let took = |tally: &Mutex<Tally>| tally.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let begin = shared.pace.get().map_or(shared.epoch, Pace::begin) - shared.epoch;
    let end = Duration::from_nanos(shared.last_event.load(Ordering::Relaxed));
    Ok(Watched {
        deliveries: took(&shared.deliveries),
        measured: end.saturating_sub(begin),
        puts: took(&shared.puts),
        writing: shared.writing.get().copied().unwrap_or_default(),
    })
}

enum Task {
    Watch(Watcher),
    Write(Writer),
}

impl Task {
    async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Watch(watcher) => watcher.run().await,
            Self::Write(writer) => writer.run().await,
        }
    }
}

/// A client that writes.
struct Writer {
    session: Session,
    random: SmallRng,
    /// How many streams there are to be.
    streams: u64,
    shared: Arc<Shared>,
}

impl Writer {
    async fn run(mut self) -> Result<(), Failure> {
        let shared = Arc::clone(&self.shared);
        let mut ready = shared.ready.subscribe();
        // Fails only when there is no sender any more, and this holds it.
        let _ = ready.wait_for(|ready| *ready == self.streams).await;
        let options = &shared.plan.options;
        let pace = shared.pace.get_or_init(|| Pace::start(shared.plan.length, options.rate));
        while let Some(turn) = pace.turn().await {
            let outcome = self.put().await;
            pace.end_turn(turn, &outcome, &shared.puts).await;
        }
        if shared.writers.fetch_sub(1, Ordering::AcqRel) == 1 {
            // The last one alone comes here.
            let _ = shared.writing.set(pace.measured());
            shared.last.send_replace(Some(shared.newest.load(Ordering::Relaxed)));
        }
        Ok(())
    }

    async fn put(&mut self) -> Result<(), Trouble> {
        let Shared { plan, next, newest, .. } = &*self.shared;
        let number = next.fetch_add(1, Ordering::Relaxed);
        let answered = self.shared.answered(number);
        if let Some(answered) = answered {
            answered.store(0, Ordering::Relaxed);
        }
        let key = plan.keys.key(plan.keys.any(&mut self.random));
        let value = numbered_value(number, &mut self.random, plan.options.value_size);
        let revision = self.session.put(key, value).await?;
        if let Some(answered) = answered {
            answered.store(self.shared.now(), Ordering::Relaxed);
        }
        newest.fetch_max(revision, Ordering::Relaxed);
        Ok(())
    }
}

/// The watchers of one stream.
struct Watcher {
    connection: Arc<Connection>,
    watchers: u64,
    shared: Arc<Shared>,
}

impl Watcher {
    async fn run(self) -> Result<(), Failure> {
        let failed = |trouble: Trouble| {
            Failure::new(
                format!("a watch failed: {trouble}"),
                "check --endpoints, or give fewer --watchers",
            )
        };
        let made = timeout(PATIENCE, self.watch()).await.unwrap_or(Err(Trouble::Late));
        let (mut stream, mut seen) = made.map_err(failed)?;
        self.shared.ready.send_modify(|ready| *ready += 1);
        let mut tally = Tally::default();
        let mut last = self.shared.last.subscribe();
        let revision = loop {
            select! {
                message = stream.next() => self.take(message, &mut seen, &mut tally).map_err(failed)?,
                // Fails only when there is no sender any more, and this holds it.
                _ = last.changed() => {
                    if let Some(revision) = *last.borrow_and_update() {
                        break revision;
                    }
                }
            }
        };
        let rest = async {
            while seen.values().any(|seen| *seen < revision) {
                self.take(stream.next().await, &mut seen, &mut tally)?;
            }
            Ok(())
        };
        timeout(PATIENCE, rest).await.unwrap_or(Err(Trouble::Late)).map_err(failed)?;
        self.shared.deliveries.lock().unwrap_or_else(PoisonError::into_inner).merge(&tally);
        Ok(())
    }

    /// Makes the watches; the revision that each has seen, by its id.
    async fn watch(&self) -> Result<(Stream, HashMap<u64, u64>), Trouble> {
        let mut stream = Client::new(&self.connection).stream(WATCH).await?;
        let prefix = self.shared.plan.keys.prefix();
        let range_end = end_of(&prefix);
        let create = WatchCreateRequest { key: prefix, range_end, ..Default::default() };
        let create = RequestUnion::CreateRequest(create);
        let create = WatchRequest { request_union: Some(create) };
        let mut seen = HashMap::new();
        for _ in 0..self.watchers {
            stream.send(&create)?;
            loop {
                let message = stream.next().await?;
                // Events are of somebody else who writes these keys, or did so just before.
                let told = Told::read(&message, |_| ())?;
                if told.canceled {
                    return Err(refused("no watch", &told));
                }
                if told.created {
                    seen.insert(told.watch_id, 0);
                    break;
                }
            }
        }
        Ok((stream, seen))
    }

    fn take(
        &self,
        message: Result<Bytes, Trouble>,
        seen: &mut HashMap<u64, u64>,
        tally: &mut Tally,
    ) -> Result<(), Trouble> {
        let message = message?;
        let now = self.shared.now();
        let mut last = 0;
        let told = Told::read(&message, |event| {
            tally.succeeded(self.lateness(event, now));
            last = event.revision;
        })?;
        if told.canceled {
            return Err(refused("it was cancelled", &told));
        }
        if last != 0 {
            seen.insert(told.watch_id, last);
            self.shared.last_event.fetch_max(now, Ordering::Relaxed);
        }
        Ok(())
    }

    /// How long ago its write was answered.
    fn lateness(&self, event: Event<'_>, now: u64) -> Duration {
        let answered = number_of(event.value).and_then(|number| self.shared.answered(number));
        match answered.map_or(0, |answered| answered.load(Ordering::Relaxed)) {
            0 => Duration::ZERO,
            answered => Duration::from_nanos(now.saturating_sub(answered)),
        }
    }
}

fn refused(what: &str, told: &Told<'_>) -> Trouble {
    Trouble::Refused(format!("{what}: {}", String::from_utf8_lossy(told.cancel_reason)))
}
