//! A hub among a history that grows, holders that take their time, and pages
//! that arrive late; and checks of everything that is told.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Weak},
};

use bytes::Bytes;

use crate::{
    machine::{Changes, ChangesPage, RevisionChanges},
    proto::{Change, KeyRecord},
    watch::{Effect, EventRun, Hub, Input, Notice, Options, Spec, spec::KeyRange},
};

/// Bounds that are reached soon.
pub const SMALL: Options = Options {
    queue_notices: 8,
    queue_bytes: 6000,
    total_bytes: 9000,
    share_bytes: 1200,
    queue_answers: 40,
    notice_bytes: 900,
    page_bytes: 4,
    reads: 2,
    recent_bytes: 2000,
    stream_watches: 6,
    total_watches: 14,
    total_key_bytes: 60,
    progress_ticks: 3,
};

pub struct World {
    pub hub: Hub,
    /// Given the same inputs, for comparison.
    twin: Hub,
    options: Options,
    /// Everything that ever changed; the first is revision 2.
    history: Vec<RevisionChanges>,
    pub compacted: u64,
    /// What the hub has not been given yet.
    pub feed: VecDeque<Changes>,
    /// Whether part of what the hub has not been given is lost.
    lost: bool,
    pub reads: Vec<u64>,
    pub holders: BTreeMap<u64, Holder>,
    last_stream: u64,
}

#[derive(Default)]
pub struct Holder {
    pub queue: VecDeque<(Notice, usize)>,
    taken: usize,
    taken_bytes: usize,
    /// The events that were queued last.
    newest: Weak<EventRun>,
    /// What was asked for and not answered.
    asked: BTreeMap<i64, VecDeque<Spec>>,
    pub watches: BTreeMap<i64, Told>,
    /// Whether it asked for progress and was not sent any since.
    pub waits_for_progress: bool,
}

/// What a watch was told.
#[derive(Debug)]
pub struct Told {
    spec: Spec,
    /// Everything it wants up to here.
    pub upto: u64,
    /// How many events.
    pub events: usize,
}

impl World {
    pub fn new(options: Options) -> Self {
        Self {
            hub: Hub::new(options, 1, 0),
            twin: Hub::new(options, 1, 0),
            options,
            history: Vec::new(),
            compacted: 0,
            feed: VecDeque::new(),
            lost: false,
            reads: Vec::new(),
            holders: BTreeMap::new(),
            last_stream: 0,
        }
    }

    pub fn revision(&self) -> u64 {
        self.history.len() as u64 + 1
    }

    /// Applies one batch: for each revision, its keys and whether they are
    /// deleted.
    pub fn apply(&mut self, batch: &[Vec<(u8, bool)>]) {
        let mut revisions = Vec::new();
        for keys in batch {
            let revision = self.revision() + 1;
            let changes = keys.iter().map(|&(key, delete)| change(revision, key, delete));
            let changes = RevisionChanges { revision, changes: changes.collect() };
            self.history.push(changes.clone());
            revisions.push(changes);
        }
        self.push(revisions);
    }

    pub fn put(&mut self, key: u8) {
        self.apply(&[vec![(key, false)]]);
    }

    pub fn compact(&mut self, revision: u64) {
        if revision > self.compacted && revision <= self.revision() {
            self.compacted = revision;
            self.push(Vec::new());
        }
    }

    fn push(&mut self, revisions: Vec<RevisionChanges>) {
        let (revision, compacted) = (self.revision(), self.compacted);
        self.feed.push_back(Changes { revisions, leases: Vec::new(), revision, compacted });
    }

    /// Gives the hub the next batch, or says that it missed some.
    pub fn deliver(&mut self) {
        if std::mem::take(&mut self.lost) {
            let kept = self.feed.front().map_or(self.revision(), |changes| {
                changes.revision - changes.revisions.len() as u64
            });
            return self.give(Input::Jumped { revision: kept, compacted: self.compacted });
        }
        if let Some(changes) = self.feed.pop_front() {
            self.give(Input::Applied(changes));
        }
    }

    /// Loses all batches that wait.
    pub fn lose(&mut self) {
        self.lost |= !self.feed.is_empty();
        self.feed.clear();
    }

    pub fn deliver_all(&mut self) {
        while self.lost || !self.feed.is_empty() {
            self.deliver();
        }
    }

    pub fn open_stream(&mut self) -> u64 {
        self.last_stream += 1;
        self.holders.insert(self.last_stream, Holder::default());
        self.give(Input::OpenStream(self.last_stream));
        self.last_stream
    }

    pub fn close_stream(&mut self, stream: u64) {
        self.holders.remove(&stream);
        self.give(Input::CloseStream(stream));
    }

    pub fn open(&mut self, stream: u64, watch: i64, spec: Spec) {
        let Some(holder) = self.holders.get_mut(&stream) else { return };
        holder.asked.entry(watch).or_default().push_back(spec.clone());
        self.give(Input::Open { stream, watch, spec });
    }

    pub fn ask_progress(&mut self, stream: u64) {
        if let Some(holder) = self.holders.get_mut(&stream) {
            holder.waits_for_progress = true;
            self.give(Input::RequestProgress(stream));
        }
    }

    /// The page that was asked for, as of now.
    pub fn answer_read(&mut self, place: usize) {
        if self.reads.is_empty() {
            return;
        }
        let from = self.reads.remove(place % self.reads.len());
        let page = if from < self.compacted {
            Err(self.compacted)
        } else {
            let rest = self.history.iter().filter(|changes| changes.revision >= from);
            let revisions: Vec<_> = rest.take(self.options.page_bytes).cloned().collect();
            let next = match revisions.last() {
                Some(last) if revisions.len() == self.options.page_bytes => last.revision + 1,
                _ => from.max(self.revision() + 1),
            };
            Ok(ChangesPage {
                revisions,
                next,
                revision: self.revision(),
                compacted: self.compacted,
            })
        };
        self.give(Input::Page { from, page });
    }

    /// Has a holder take a notice, and check it.
    pub fn take(&mut self, stream: u64) -> Option<Notice> {
        let holder = self.holders.get_mut(&stream)?;
        let (notice, bytes) = holder.queue.pop_front()?;
        holder.taken += 1;
        holder.taken_bytes += bytes;
        let report = holder.taken >= self.options.report_notices()
            || holder.taken_bytes >= self.options.report_bytes();
        let taken = (holder.taken, holder.taken_bytes);
        if report {
            (holder.taken, holder.taken_bytes) = (0, 0);
        }
        holder.check(&self.history, self.compacted, &notice);
        if report {
            self.give(Input::Taken { stream, notices: taken.0, bytes: taken.1 });
        }
        Some(notice)
    }

    pub fn take_all(&mut self, stream: u64) -> Vec<Notice> {
        std::iter::from_fn(|| self.take(stream)).collect()
    }

    pub fn give(&mut self, input: Input) {
        let (mut effects, mut same) = (Vec::new(), Vec::new());
        self.twin.handle(input.clone(), &mut same);
        self.hub.handle(input, &mut effects);
        assert_eq!(format!("{effects:?}"), format!("{same:?}"), "not deterministic");
        for effect in effects {
            match effect {
                Effect::Send { stream, notice, bytes } => {
                    let holder = self.holders.get_mut(&stream).expect("told nobody");
                    assert_eq!(bytes, notice.weight(&holder.newest));
                    if let Notice::Events { events, .. } = &notice {
                        holder.newest = Arc::downgrade(events);
                    }
                    if let Notice::Progress { watch: -1, .. } = &notice {
                        assert!(std::mem::take(&mut holder.waits_for_progress), "nobody asked");
                    }
                    holder.queue.push_back((notice, bytes));
                }
                Effect::End(stream) => {
                    let holder = self.holders.remove(&stream).expect("ended nobody");
                    assert!(holder.queue.len() > self.options.queue_answers);
                }
                Effect::Read { from, .. } => {
                    assert!(!self.reads.contains(&from), "read twice at once");
                    self.reads.push(from);
                }
            }
        }
        self.check_bounds();
    }

    fn check_bounds(&self) {
        assert!(self.reads.len() <= self.options.reads + 1, "{:?}", self.reads);
        let is_told = |notice: &&(Notice, usize)| matches!(notice.0, Notice::Events { .. });
        for holder in self.holders.values() {
            let told = holder.queue.iter().filter(is_told);
            assert!(told.count() <= self.options.queue_notices);
        }
        let queued = |holder: &Holder| {
            holder.taken_bytes + holder.queue.iter().map(|(_, bytes)| bytes).sum::<usize>()
        };
        let queued: usize = self.holders.values().map(queued).sum();
        assert_eq!(self.hub.queued_bytes(), queued);
    }

    /// Lets everything come to rest, then checks that nobody misses anything.
    pub fn settle(&mut self) {
        let mut rounds = 0;
        loop {
            self.deliver_all();
            let reads = self.reads.len();
            (0..reads).for_each(|_| self.answer_read(0));
            let streams: Vec<u64> = self.holders.keys().copied().collect();
            let taken: usize = streams.into_iter().map(|stream| self.take_all(stream).len()).sum();
            if reads == 0 && taken == 0 {
                break;
            }
            rounds += 1;
            assert!(rounds < 10_000, "the hub does not come to rest");
        }
        assert_eq!((self.hub.told(), self.hub.revision()), (self.revision(), self.revision()));
        for (stream, holder) in &self.holders {
            for (number, told) in &holder.watches {
                let missed = told.wanted(&self.history, u64::MAX);
                assert!(missed.is_empty(), "watch {number} of {stream}: {told:?} {missed:?}");
            }
            let no_future =
                holder.watches.values().all(|told| told.spec.start_revision <= self.revision());
            assert!(
                !(holder.waits_for_progress && no_future),
                "stream {stream} waits for progress"
            );
        }
    }
}

impl Holder {
    fn check(&mut self, history: &[RevisionChanges], compacted: u64, notice: &Notice) {
        match notice {
            Notice::Created { watch, revision } => {
                let spec = self.answered(*watch);
                let start = spec.start_revision;
                let upto = if start == 0 { *revision } else { start - 1 };
                let before = self.watches.insert(*watch, Told { spec, upto, events: 0 });
                assert!(before.is_none(), "a number was given twice");
            }
            Notice::Refused { watch, .. } => drop(self.answered(*watch)),
            Notice::Events { watch, revision, compacted: known, events } => {
                let told = self.watches.get_mut(watch).expect("events for an open watch");
                assert!(*known <= compacted);
                let last = events.last().expect("events").revision;
                assert!(last <= *revision);
                let found: Vec<_> =
                    events.iter().map(|event| (event.revision, event.change.clone())).collect();
                assert_eq!(found, told.wanted(history, last), "{told:?}");
                told.upto = last;
                told.events += events.len();
            }
            Notice::Compacted { watch, compacted: known, .. } => {
                let told = self.watches.remove(watch).expect("an open watch");
                assert!(*known <= compacted && told.upto + 1 < *known, "{told:?} {known}");
            }
            Notice::Cancelled { watch, .. } => {
                self.watches.remove(watch).expect("an open watch");
            }
            Notice::Progress { watch: -1, revision } => {
                self.watches.values_mut().for_each(|told| told.progress(history, *revision));
            }
            Notice::Progress { watch, revision } => {
                let told = self.watches.get_mut(watch).expect("an open watch");
                assert!(told.spec.progress_notify);
                told.progress(history, *revision);
            }
        }
    }

    fn answered(&mut self, watch: i64) -> Spec {
        self.asked.get_mut(&watch).and_then(VecDeque::pop_front).expect("was asked for")
    }
}

impl Told {
    /// What it wants that is newer than what it was told of.
    fn wanted(&self, history: &[RevisionChanges], last: u64) -> Vec<(u64, Change)> {
        let range = self.spec.range().expect("a range");
        let holds = |key: &Bytes| match &range {
            KeyRange::Key(only) => key == only,
            KeyRange::Range(start, end) => key >= start && end.is_after(key),
        };
        let newer = history
            .iter()
            .filter(|changes| changes.revision > self.upto && changes.revision <= last);
        newer
            .flat_map(|changes| changes.changes.iter().map(|change| (changes.revision, change)))
            .filter(|(_, change)| holds(&change.key) && self.spec.wants(change))
            .map(|(revision, change)| (revision, change.clone()))
            .collect()
    }

    fn progress(&mut self, history: &[RevisionChanges], revision: u64) {
        assert!(self.spec.start_revision <= revision, "progress before the start: {self:?}");
        let missed = self.wanted(history, revision);
        assert!(missed.is_empty(), "progress {revision} of {self:?} without {missed:?}");
        self.upto = self.upto.max(revision);
    }
}

pub fn key(number: u8) -> Bytes {
    Bytes::from(vec![b'a' + number])
}

fn change(revision: u64, number: u8, delete: bool) -> Change {
    let record = KeyRecord { mod_revision: revision, ..KeyRecord::default() };
    Change { key: key(number), record: (!delete).then_some(record), ..Change::default() }
}
