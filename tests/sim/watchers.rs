//! Those who watch: each holds a stream of watches on some member, takes what
//! it is told at its own pace, and goes on elsewhere when the stream ends.

use std::collections::VecDeque;

use bytes::Bytes;
use metastore::{
    proto::Change,
    watch::{Input, Notice, Spec},
};

use super::{
    dice::Dice,
    oracle::Oracle,
    plan::{MS, SECOND, Time},
    sim::{Action, Sim},
    watching,
    world::World,
};

/// Watches of one holder.
const WATCHES: usize = 3;

/// One watch over its whole life, on whichever members.
#[derive(Debug)]
struct Watch {
    number: i64,
    spec: Spec,
    /// It was told everything it wants up to here; none before it began.
    upto: Option<u64>,
    /// Whether the present stream has confirmed it.
    created: bool,
    cancelled: bool,
    /// The store's revision on the member when it was asked to open it.
    asked_at: u64,
}

/// The stream of a holder.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Place {
    node: u64,
    epoch: u64,
    stream: u64,
}

/// One holder.
#[derive(Debug, Default)]
pub struct Watcher {
    place: Option<Place>,
    watches: Vec<Watch>,
    last_number: i64,
    waits_for_progress: bool,
    /// Taken and not yet reported.
    taken: (usize, usize),
}

fn wants(spec: &Spec, change: &Change) -> bool {
    let key = &change.key;
    let is_in = match &spec.range_end[..] {
        [] => key == &spec.key,
        [0] => key >= &spec.key,
        end => key >= &spec.key && &key[..] < end,
    };
    is_in && if change.record.is_some() { !spec.no_put } else { !spec.no_delete }
}

impl Watch {
    fn start(&self) -> u64 {
        self.upto.map_or(self.spec.start_revision, |upto| upto + 1)
    }

    /// What it wants that is newer than what it was told of.
    fn wanted<'a>(&self, oracle: &'a Oracle, last: u64) -> Vec<(u64, &'a Change)> {
        let Some(upto) = self.upto else { return Vec::new() };
        let changes = oracle
            .changes(upto, last)
            .flat_map(|changes| changes.changes.iter().map(|change| (changes.revision, change)));
        changes.filter(|(_, change)| wants(&self.spec, change)).collect()
    }

    fn progress(&mut self, oracle: &Oracle, revision: u64) {
        let missed = self.wanted(oracle, revision);
        assert!(missed.is_empty(), "progress {revision} of {self:?} without {missed:?}");
        assert!(revision <= oracle.revision && self.start() <= revision + 1, "{self:?} {revision}");
        self.upto = self.upto.map(|upto| upto.max(revision));
    }
}

impl Watcher {
    fn new_watch(&mut self, oracle: &Oracle, dice: &mut Dice) -> &mut Watch {
        let (key, range_end): (&'static [u8], &'static [u8]) = dice.pick(&[
            (b"e/1" as &[u8], b"" as &[u8]),
            (b"e/2", b""),
            (b"e/1", b"e/4"),
            (b"e/", b"e0"),
            (b"key/1", b""),
            (b"key/", b"\0"),
            (b"\0", b"\0"),
        ]);
        let start_revision = match dice.between(0, 3) {
            0 => 0,
            1 => oracle.revision + dice.between(0, 5),
            2 => oracle.revision.saturating_sub(dice.between(0, 200)).max(1),
            _ => oracle.revision.saturating_sub(dice.between(0, 20)).max(1),
        };
        let spec = Spec {
            key: Bytes::from_static(key),
            range_end: Bytes::from_static(range_end),
            start_revision,
            prev_kv: dice.permille(500),
            no_put: dice.permille(100),
            no_delete: dice.permille(100),
            progress_notify: dice.permille(500),
        };
        self.last_number += 1;
        let number = self.last_number;
        let (upto, created) = (None, false);
        self.watches.push(Watch { number, spec, upto, created, cancelled: false, asked_at: 0 });
        self.watches.last_mut().expect("it was just added")
    }

    fn watch(&mut self, number: i64) -> &mut Watch {
        let watch = self.watches.iter_mut().find(|watch| watch.number == number);
        watch.expect("notices are of watches that are open")
    }

    fn check(&mut self, sim: &mut Sim, notice: &Notice) {
        let oracle = &sim.oracle;
        match notice {
            Notice::Created { watch, revision } => {
                let watch = self.watch(*watch);
                assert!(!watch.created && *revision <= oracle.revision, "{watch:?}: {notice:?}");
                assert!(*revision >= watch.asked_at, "{watch:?} begins late: {notice:?}");
                watch.created = true;
                let start = watch.start();
                let before = if start == 0 { *revision } else { start - 1 };
                watch.upto.get_or_insert(before);
            }
            Notice::Refused { .. } => panic!("{self:?}: {notice:?}"),
            Notice::Events { watch, revision, compacted, events } => {
                let watch = self.watch(*watch);
                assert!(watch.created && *compacted <= oracle.compacted);
                let last = events.last().expect("a notice has events").revision;
                assert!(last <= *revision && *revision <= oracle.revision);
                let found: Vec<(u64, &Change)> =
                    events.iter().map(|event| (event.revision, &event.change)).collect();
                assert_eq!(found, watch.wanted(oracle, last), "{watch:?}");
                for event in events.iter() {
                    let shown = watch.spec.prev_kv && event.has_previous(*compacted);
                    check_previous(oracle, *compacted, shown, event);
                }
                watch.upto = Some(last);
                sim.tally.add("events told", events.len() as u64);
            }
            Notice::Compacted { watch, compacted, .. } => {
                let watch = self.watch(*watch);
                assert!(*compacted <= oracle.compacted && watch.created, "{watch:?} {notice:?}");
                assert!(watch.start() < *compacted, "{watch:?} is not compacted: {notice:?}");
                let number = watch.number;
                self.watches.retain(|watch| watch.number != number);
                sim.tally.add("watches ended by a compaction", 1);
            }
            Notice::Cancelled { watch, .. } => {
                let watch = self.watch(*watch);
                assert!(watch.cancelled, "nobody cancelled {watch:?}");
                let number = watch.number;
                self.watches.retain(|watch| watch.number != number);
                sim.tally.add("watches cancelled", 1);
            }
            Notice::Progress { watch: -1, revision } => {
                assert!(std::mem::take(&mut self.waits_for_progress), "nobody asked");
                let created = self.watches.iter_mut().filter(|watch| watch.created);
                created.for_each(|watch| watch.progress(oracle, *revision));
                sim.tally.add("progress told", 1);
            }
            Notice::Progress { watch, revision } => {
                let watch = self.watch(*watch);
                assert!(watch.spec.progress_notify && watch.created);
                watch.progress(oracle, *revision);
                sim.tally.add("progress told", 1);
            }
        }
    }

    fn leave(&mut self) {
        self.place = None;
        self.waits_for_progress = false;
        self.taken = (0, 0);
        self.watches.retain(|watch| !watch.cancelled);
        self.watches.iter_mut().for_each(|watch| watch.created = false);
    }
}

/// The previous state is what the key was before the event, unless that is
/// compacted away.
fn check_previous(oracle: &Oracle, compacted: u64, shown: bool, event: &metastore::watch::Event) {
    let told = event.to_event(shown).prev_kv;
    let known = event.change.previous.as_ref().filter(|_| shown);
    assert_eq!(
        told.as_ref().map(|kv| (kv.mod_revision as u64, &kv.value)),
        known.map(|record| (record.mod_revision, &record.value)),
    );
    assert!(!shown || event.revision > compacted, "the state before {event:?} is compacted");
    assert!(event.revision <= oracle.revision);
}

impl World {
    pub fn plan_watchers(&mut self) {
        for watcher in 0..self.watchers.len() {
            self.sim.schedule(SECOND + 7 * watcher as Time, Action::Watcher(watcher));
        }
    }

    /// A holder does something.
    pub fn watcher_acts(&mut self, index: usize) {
        let longest = if self.watchers_hurry { 5 * MS } else { 3 * self.sim.plan.think };
        let pause = self.sim.dice.between(MS, longest);
        self.sim.schedule(pause, Action::Watcher(index));
        let mut watcher = std::mem::take(&mut self.watchers[index]);
        match watcher.place {
            // Who does not know yet that it was removed falls behind for good.
            Some(place) if self.watchers_hurry && !self.changes.members.contains(&place.node) => {
                watcher.leave();
            }
            Some(place) if self.holds(place) => self.go_on(&mut watcher, place),
            Some(_) => {
                self.sim.tally.add("watch streams lost", 1);
                watcher.leave();
            }
            None => self.connect(&mut watcher),
        }
        self.watchers[index] = watcher;
    }

    fn queue(&mut self, place: Place) -> Option<&mut VecDeque<(Notice, usize)>> {
        let node = self.nodes.get_mut(&place.node).filter(|node| node.epoch == place.epoch)?;
        node.process.as_mut()?.watching.streams.get_mut(&place.stream)
    }

    fn holds(&mut self, place: Place) -> bool {
        self.queue(place).is_some()
    }

    fn connect(&mut self, watcher: &mut Watcher) {
        let mut running = self.running();
        if self.watchers_hurry {
            running.retain(|id| self.changes.members.contains(id));
        }
        let Some(id) = self.sim.dice.pick_any(&running) else { return };
        let (_, node) = self.with(id);
        let epoch = node.epoch;
        let Some(process) = &mut node.process else { return };
        let stream = process.watching.open_stream();
        let place = Place { node: id, epoch, stream };
        watcher.place = Some(place);
        while watcher.watches.len() < WATCHES {
            watcher.new_watch(&self.sim.oracle, &mut self.sim.dice);
        }
        for watch in &mut watcher.watches {
            self.open(watch, place);
        }
        self.sim.tally.add("watch streams", 1);
        self.sim.note("watch", id, &[stream], || format!("{:?}", watcher.watches));
    }

    fn open(&mut self, watch: &mut Watch, place: Place) {
        let (sim, node) = self.with(place.node);
        let Some(process) = &node.process else { return };
        watch.asked_at = process.machine.revision();
        let spec = Spec { start_revision: watch.start(), ..watch.spec.clone() };
        node.ask_hub(sim, Input::Open { stream: place.stream, watch: watch.number, spec });
    }

    fn go_on(&mut self, watcher: &mut Watcher, place: Place) {
        let Place { node, stream, .. } = place;
        if self.watchers_hurry {
            return self.take(watcher, place, 100);
        }
        match self.sim.dice.between(0, 99) {
            0..=69 => {
                let most = self.sim.dice.between(1, 8);
                self.take(watcher, place, most);
            }
            70..=79 if !watcher.waits_for_progress => {
                watcher.waits_for_progress = true;
                let (sim, node) = self.with(node);
                node.ask_hub(sim, Input::RequestProgress(stream));
            }
            80..=83 => {
                let (sim, node) = self.with(node);
                node.ask_hub(sim, Input::CloseStream(stream));
                watcher.leave();
            }
            84..=87 => {
                let at = self.sim.dice.index(WATCHES);
                if let Some(watch) = watcher.watches.get_mut(at) {
                    watch.cancelled = true;
                    let watch = watch.number;
                    let (sim, node) = self.with(node);
                    node.ask_hub(sim, Input::Cancel { stream, watch });
                }
            }
            88..=93 if watcher.watches.len() < WATCHES => {
                watcher.new_watch(&self.sim.oracle, &mut self.sim.dice);
                if let Some(watch) = watcher.watches.last_mut() {
                    self.open(watch, place);
                }
            }
            _ => {}
        }
    }

    /// Takes notices, and says so when it has to.
    fn take(&mut self, watcher: &mut Watcher, place: Place, most: u64) {
        for _ in 0..most {
            let Some((notice, bytes)) = self.queue(place).and_then(VecDeque::pop_front) else {
                return;
            };
            watcher.taken.0 += 1;
            watcher.taken.1 += bytes;
            watcher.check(&mut self.sim, &notice);
            let (notices, bytes) = watcher.taken;
            let options = watching::OPTIONS;
            if notices >= options.report_notices() || bytes >= options.report_bytes() {
                watcher.taken = (0, 0);
                let (sim, node) = self.with(place.node);
                node.ask_hub(sim, Input::Taken { stream: place.stream, notices, bytes });
            }
        }
    }

    /// Lets all watches catch up, and checks that they do.
    pub fn settle_watches(&mut self) {
        self.watchers_hurry = true;
        let deadline = self.sim.now + 10 * SECOND;
        self.run_until(deadline, |world| {
            world.watchers.iter().all(|watcher| world.is_told_everything(watcher))
        });
        for watcher in &self.watchers {
            assert!(
                self.is_told_everything(watcher),
                "a watch does not catch up with {}: {watcher:?}",
                self.sim.oracle.revision
            );
        }
    }

    fn is_told_everything(&self, watcher: &Watcher) -> bool {
        let oracle = &self.sim.oracle;
        let told = |watch: &Watch| watch.created && watch.wanted(oracle, u64::MAX).is_empty();
        watcher.place.is_some() && watcher.watches.iter().all(told)
    }
}
