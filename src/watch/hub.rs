//! The hub: from applied changes to notices.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Effect, Events, Input, Notice, Options, WatchId,
    backlog::Backlog,
    index::Index,
    matches::{Matches, runs},
    recent::Recent,
    stream::{State, Stream, Watch},
};
use crate::{
    machine::{Changes, ChangesPage, RevisionChanges},
    proto::Change,
};

/// The watches of a node. See the module's documentation.
#[derive(Debug)]
pub struct Hub {
    pub(super) options: Options,
    /// The store's revision, as far as it was heard of.
    pub(super) revision: u64,
    /// Up to where synced watches were told everything: the store's revision,
    /// unless batches were missed.
    pub(super) told: u64,
    /// The last compaction, as far as it was heard of.
    pub(super) compacted: u64,
    /// Ticks so far.
    pub(super) now: u64,
    pub(super) streams: BTreeMap<u64, Stream>,
    /// The synced watches.
    pub(super) index: Index,
    /// The watches that are behind, unless they are parked.
    pub(super) backlog: Backlog,
    recent: Recent,
    /// Streams that asked for progress and were not answered.
    pub(super) asking: BTreeSet<u64>,
    /// Watches that want a word from time to time, by when.
    pub(super) due: BTreeSet<(u64, WatchId)>,
    /// Bytes in all queues.
    pub(super) queued_bytes: usize,
    pub(super) watches: usize,
    pub(super) key_bytes: usize,
    work: u64,
}

impl Hub {
    /// A hub without streams, over a store at this revision and with this last
    /// compaction.
    pub fn new(options: Options, revision: u64, compacted: u64) -> Self {
        Self {
            options,
            revision,
            told: revision,
            compacted,
            now: 0,
            streams: BTreeMap::new(),
            index: Index::default(),
            backlog: Backlog::default(),
            recent: Recent::default(),
            asking: BTreeSet::new(),
            due: BTreeSet::new(),
            queued_bytes: 0,
            watches: 0,
            key_bytes: 0,
            work: 0,
        }
    }

    /// Takes in what happened, and adds what is to be done, in order.
    pub fn handle(&mut self, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Applied(changes) => self.applied(changes, effects),
            Input::Jumped { revision, compacted } => self.jumped(revision, compacted),
            Input::OpenStream(stream) => {
                self.streams.entry(stream).or_default();
            }
            Input::CloseStream(stream) => self.close_stream(stream),
            Input::Open { stream, watch, spec } => self.open(stream, watch, spec, effects),
            Input::Cancel { stream, watch } => self.cancel(stream, watch, effects),
            Input::RequestProgress(stream) => {
                if self.streams.contains_key(&stream) {
                    self.asking.insert(stream);
                }
            }
            Input::Taken { stream, notices, bytes } => self.taken(stream, notices, bytes),
            Input::Page { from, page } => self.page(from, page, effects),
            Input::Tick => self.tick(effects),
        }
        self.read_on(effects);
        self.answer_progress(effects);
    }

    /// The store's revision, as far as the hub heard of it.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Up to where synced watches were told everything.
    pub fn told(&self) -> u64 {
        self.told
    }

    /// Whether nobody holds a stream.
    pub fn is_idle(&self) -> bool {
        self.streams.is_empty()
    }

    /// Open watches.
    pub fn watches(&self) -> usize {
        self.watches
    }

    /// Bytes of notices that were sent and not taken.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// How much was looked at so far to find out who is told of what: places
    /// of the index, and watches found there.
    pub fn work(&self) -> u64 {
        self.work
    }

    fn applied(&mut self, changes: Changes, effects: &mut Vec<Effect>) {
        let Changes { revisions, revision, compacted, .. } = changes;
        self.compacted = self.compacted.max(compacted);
        let first = revisions.first().map_or(revision + 1, |changes| changes.revision);
        let last = revisions.last().map_or(revision, |changes| changes.revision);
        if first > self.revision + 1 || last < revision {
            return self.jumped(revision, compacted);
        }
        if self.told < self.revision {
            let known = self.revision;
            let newer = revisions.into_iter().filter(|changes| changes.revision > known);
            self.recent.push(newer.collect(), self.options.recent_bytes);
            self.revision = known.max(revision);
        } else {
            self.revision = self.revision.max(revision);
            self.tell(revisions, effects);
            self.told = self.revision;
        }
    }

    fn jumped(&mut self, revision: u64, compacted: u64) {
        self.compacted = self.compacted.max(compacted);
        if revision > self.revision {
            self.revision = revision;
            self.recent.clear();
            if mutant!(MissedCountsAsTold) {
                self.told = revision;
            }
        }
    }

    /// Tells synced watches of what comes after what they were told of.
    fn tell(&mut self, mut revisions: Vec<RevisionChanges>, effects: &mut Vec<Effect>) {
        revisions.retain(|changes| changes.revision > self.told);
        for run in runs(revisions, self.options.notice_bytes) {
            if self.index.is_empty() {
                return;
            }
            let mut wanting = Wanting::new(&self.streams, &self.index, State::Synced);
            let matches = Matches::new(run, |revision, change, found| {
                self.work += wanting.find(revision, change, found);
            });
            for (id, events) in matches.each() {
                if let Some(next) = self.send_events(id, events, effects) {
                    self.park(id, next);
                }
            }
        }
    }

    /// A page of the history, for everybody who goes on from within it: those
    /// who are behind, and all synced watches if these are.
    fn page(&mut self, from: u64, page: Result<ChangesPage, u64>, effects: &mut Vec<Effect>) {
        self.backlog.end(from);
        let page = match page {
            Ok(page) => page,
            Err(compacted) => {
                self.compacted = self.compacted.max(compacted);
                // There must have been such a revision.
                return self.jumped(compacted, compacted);
            }
        };
        self.compacted = self.compacted.max(page.compacted);
        // What is newer comes with its batch.
        let next = page.next.min(self.revision + 1);
        let mut revisions = page.revisions;
        revisions.retain(|changes| (from..next).contains(&changes.revision));
        let watches = self.backlog.take(from..next);
        let is_for_all = (from..next).contains(&(self.told + 1));
        if !watches.is_empty() {
            let revisions =
                if is_for_all { revisions.clone() } else { std::mem::take(&mut revisions) };
            self.catch_up(&watches, revisions, next, effects);
        }
        if is_for_all {
            self.tell(revisions, effects);
            self.told = next - 1;
            let recent = self.recent.take_after(self.told);
            if !recent.is_empty() {
                self.tell(recent, effects);
                self.told = self.revision;
            }
        }
    }

    /// Tells watches that are behind of what is before `next`.
    fn catch_up(
        &mut self,
        watches: &[WatchId],
        revisions: Vec<RevisionChanges>,
        next: u64,
        effects: &mut Vec<Effect>,
    ) {
        let mut index = Index::default();
        for id in watches {
            let stream = self.streams.get(&id.stream);
            if let Some(watch) = stream.and_then(|stream| stream.watches.get(&id.watch)) {
                index.add(&watch.range, *id);
            }
        }
        for run in runs(revisions, self.options.notice_bytes) {
            let mut wanting = Wanting::new(&self.streams, &index, State::Behind);
            let matches = Matches::new(run, |revision, change, found| {
                self.work += wanting.find(revision, change, found);
            });
            for (id, events) in matches.each() {
                if let Some(next) = self.send_events(id, events, effects) {
                    self.park(id, next);
                }
            }
        }
        for id in watches {
            self.go_on(*id, next);
        }
    }

    /// A watch that is behind has been told of everything before `next`,
    /// unless it was parked on the way.
    fn go_on(&mut self, id: WatchId, next: u64) {
        let Some(stream) = self.streams.get_mut(&id.stream) else { return };
        let has_room = stream.has_room(self.queued_bytes, &self.options);
        let Some(watch) = stream.watches.get_mut(&id.watch) else { return };
        if watch.state != State::Behind {
            return;
        }
        if !mutant!(EventsTwice) || next <= self.told {
            watch.next = watch.next.max(next);
        }
        if watch.next > self.told || (mutant!(EventsTwice) && next > self.told) {
            watch.state = State::Synced;
            stream.behind -= 1;
            self.index.add(&watch.range, id);
        } else if has_room {
            self.backlog.add(watch.next, id);
        } else {
            let next = watch.next;
            self.park(id, next);
        }
    }

    /// Queues events for a watch. Without room, says from where the watch has
    /// to go on.
    fn send_events(
        &mut self,
        id: WatchId,
        events: Events,
        effects: &mut Vec<Effect>,
    ) -> Option<u64> {
        let stream = self.streams.get_mut(&id.stream)?;
        if !stream.has_room(self.queued_bytes, &self.options) {
            if mutant!(ParkSkipsEvents) {
                return events.last().map(|event| event.revision + 1);
            }
            return events.first().map(|event| event.revision);
        }
        let watch = stream.watches.get_mut(&id.watch)?;
        watch.told_at = self.now;
        let (revision, compacted) = (self.revision, self.compacted);
        self.send(
            id.stream,
            Notice::Events { watch: id.watch, revision, compacted, events },
            effects,
        );
        None
    }

    pub(super) fn send(&mut self, stream: u64, notice: Notice, effects: &mut Vec<Effect>) {
        let Some(queue) = self.streams.get_mut(&stream) else { return };
        let bytes = notice.weight(&queue.newest);
        if let Notice::Events { events, .. } = &notice {
            queue.newest = Arc::downgrade(events);
        }
        queue.queued += 1;
        queue.queued_bytes += bytes;
        self.queued_bytes += bytes;
        effects.push(Effect::Send { stream, notice, bytes });
    }

    /// Leaves a watch alone until its stream has room; it has been told of
    /// everything before `next`, and is not in the backlog.
    fn park(&mut self, id: WatchId, next: u64) {
        let Some(stream) = self.streams.get_mut(&id.stream) else { return };
        let Some(watch) = stream.watches.get_mut(&id.watch) else { return };
        match watch.state {
            State::Synced => {
                self.index.remove(&watch.range, id);
                stream.behind += 1;
            }
            State::Behind => {}
            State::Parked => return,
        }
        watch.state = State::Parked;
        watch.next = watch.next.max(next);
        stream.parked.insert(id.watch);
    }

    fn taken(&mut self, stream: u64, notices: usize, bytes: usize) {
        let Some(queue) = self.streams.get_mut(&stream) else { return };
        let bytes = bytes.min(queue.queued_bytes);
        queue.queued = queue.queued.saturating_sub(notices);
        queue.queued_bytes -= bytes;
        self.queued_bytes -= bytes;
        self.unpark(stream);
    }

    /// Lets a stream's parked watches read on, if it has much room. It comes to
    /// that: whoever parks has a full queue, or more than its share in it, and
    /// its holder says when it has taken that.
    fn unpark(&mut self, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.has_much_room(self.queued_bytes, &self.options) {
            return;
        }
        for number in std::mem::take(&mut stream.parked) {
            if let Some(watch) = stream.watches.get_mut(&number) {
                watch.state = State::Behind;
                self.backlog.add(watch.next, WatchId { stream: id, watch: number });
            }
        }
    }

    /// Asks for pages as long as somebody needs them.
    fn read_on(&mut self, effects: &mut Vec<Effect>) {
        if self.told < self.revision && self.index.is_empty() {
            self.told = self.revision;
            self.recent.clear();
        }
        if self.told < self.revision && self.told + 1 < self.compacted {
            self.end_synced_compacted(effects);
        }
        let of_all = self.told + 1;
        let may_read = self.backlog.reads() <= self.options.reads;
        if of_all <= self.revision && may_read && !self.backlog.is_reading(of_all) {
            self.read(of_all, effects);
        }
        while self.backlog.reads() < self.options.reads {
            let Some(next) = self.backlog.first() else { return };
            if mutant!(CompactionEndsWatch) && next == self.compacted {
                for id in self.backlog.take(next..next + 1) {
                    self.end_compacted(id, effects);
                }
            } else if next < self.compacted {
                for id in self.backlog.take(next..self.compacted) {
                    self.end_compacted(id, effects);
                }
            } else {
                self.read(next, effects);
            }
        }
    }

    fn read(&mut self, from: u64, effects: &mut Vec<Effect>) {
        self.backlog.begin(from);
        effects.push(Effect::Read { from, max_bytes: self.options.page_bytes });
    }
}

/// Finds the watches of an index that want changes and are in one state.
struct Wanting<'a> {
    streams: &'a BTreeMap<u64, Stream>,
    index: &'a Index,
    state: State,
    /// Who watches the key that was asked for last, and these watches themselves:
    /// keys in a row mostly have the same.
    ids: Vec<WatchId>,
    watches: Vec<(WatchId, &'a Watch)>,
    /// Room for those of the next key.
    next_ids: Vec<WatchId>,
}

impl<'a> Wanting<'a> {
    fn new(streams: &'a BTreeMap<u64, Stream>, index: &'a Index, state: State) -> Self {
        let (ids, watches, next_ids) = Default::default();
        Self { streams, index, state, ids, watches, next_ids }
    }

    /// Adds those who want a change. Returns how much was looked at.
    fn find(&mut self, revision: u64, change: &Change, found: &mut Vec<WatchId>) -> u64 {
        let ids = &mut self.next_ids;
        ids.clear();
        let places = self.index.find(&change.key, &mut |id| ids.push(id));
        if *ids != self.ids {
            std::mem::swap(&mut self.ids, &mut self.next_ids);
            let watch = |id: &WatchId| self.streams.get(&id.stream)?.watches.get(&id.watch);
            let watches = self.ids.iter().filter_map(|id| Some((*id, watch(id)?)));
            self.watches = watches.collect();
        }
        let wants = |(_, watch): &&(WatchId, &Watch)| watch.wants(self.state, revision, change);
        found.extend(self.watches.iter().filter(wants).map(|(id, _)| *id));
        places + self.ids.len() as u64
    }
}
