//! A member's watch hub, and what carries changes and notices.

use std::collections::{BTreeMap, VecDeque};

use metastore::{
    machine::Changes,
    watch::{Effect, Hub, Input, Notice, Options},
};

use super::{
    node::Node,
    plan::MS,
    sim::{Sim, Step},
};

/// Bounds that are reached soon.
pub const OPTIONS: Options = Options {
    queue_notices: 8,
    queue_bytes: 12_000,
    total_bytes: 30_000,
    share_bytes: 3_000,
    queue_answers: 20,
    notice_bytes: 2_000,
    page_bytes: 1_500,
    reads: 2,
    recent_bytes: 4_000,
    stream_watches: 8,
    total_watches: 40,
    total_key_bytes: 1_000,
    progress_ticks: 20,
};

/// Batches that may wait for the hub.
const MAX_BATCHES: usize = 6;

/// The hub of one process and what waits for it.
pub struct Watching {
    hub: Hub,
    /// The store's revision after the last batch that was dropped.
    missed: Option<u64>,
    batches: Vec<Changes>,
    compacted: u64,
    requests: Vec<Input>,
    /// What waits for the holders of streams.
    pub streams: BTreeMap<u64, VecDeque<(Notice, usize)>>,
    last_stream: u64,
    pump_due: bool,
}

impl Watching {
    pub fn new(revision: u64, compacted: u64) -> Self {
        Self {
            hub: Hub::new(OPTIONS, revision, compacted),
            missed: None,
            batches: Vec::new(),
            compacted,
            requests: Vec::new(),
            streams: BTreeMap::new(),
            last_stream: 0,
            pump_due: false,
        }
    }

    /// A batch was applied.
    pub fn applied(&mut self, sim: &mut Sim, changes: &Changes) {
        self.compacted = changes.compacted;
        if self.batches.len() >= MAX_BATCHES {
            sim.tally.add("batches that the hub missed", self.batches.len() as u64 + 1);
            self.batches.clear();
            self.missed = Some(changes.revision);
        } else {
            self.batches.push(Changes { leases: Vec::new(), ..changes.clone() });
        }
    }

    /// A snapshot replaced the state.
    pub fn restored(&mut self, revision: u64, compacted: u64) {
        self.compacted = compacted;
        self.batches.clear();
        self.missed = Some(revision);
    }

    pub fn open_stream(&mut self) -> u64 {
        self.last_stream += 1;
        self.streams.insert(self.last_stream, VecDeque::new());
        self.requests.push(Input::OpenStream(self.last_stream));
        self.last_stream
    }

    pub fn request(&mut self, input: Input) {
        if let Input::CloseStream(stream) = &input {
            self.streams.remove(stream);
        }
        self.requests.push(input);
    }

    /// What was applied, then what was asked.
    fn take(&mut self) -> Vec<Input> {
        let compacted = self.compacted;
        let jump = self.missed.take().map(|revision| Input::Jumped { revision, compacted });
        let batches = std::mem::take(&mut self.batches).into_iter().map(Input::Applied);
        let mut inputs: Vec<Input> = jump.into_iter().chain(batches).collect();
        inputs.append(&mut self.requests);
        inputs
    }
}

impl Node {
    pub fn schedule_watch_pump(&mut self, sim: &mut Sim) {
        let Some(process) = &mut self.process else { return };
        if !std::mem::replace(&mut process.watching.pump_due, true) {
            let longest = if sim.dice.permille(950) { MS } else { 300 * MS };
            let delay = sim.dice.between(20, longest);
            sim.step(self.id, self.epoch, delay, Step::WatchPump);
        }
    }

    /// Asks something of the hub.
    pub fn ask_hub(&mut self, sim: &mut Sim, input: Input) {
        if let Some(process) = &mut self.process {
            process.watching.request(input);
            self.schedule_watch_pump(sim);
        }
    }

    /// One turn of the hub's task.
    pub fn watch_pump(&mut self, sim: &mut Sim) {
        let Some(process) = &mut self.process else { return };
        process.watching.pump_due = false;
        for input in process.watching.take() {
            self.give_hub(sim, input);
        }
    }

    fn give_hub(&mut self, sim: &mut Sim, input: Input) {
        let Some(process) = &mut self.process else { return };
        let mut effects = Vec::new();
        process.watching.hub.handle(input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Send { stream, notice, bytes } => {
                    if let Some(queue) = process.watching.streams.get_mut(&stream) {
                        queue.push_back((notice, bytes));
                    }
                }
                Effect::End(stream) => drop(process.watching.streams.remove(&stream)),
                Effect::Read { from, max_bytes } => {
                    let delay = sim.dice.between(20, 20 * MS);
                    sim.step(self.id, self.epoch, delay, Step::Page { from, max_bytes });
                }
            }
        }
    }

    /// A page of the history has been read.
    pub fn page(&mut self, sim: &mut Sim, from: u64, max_bytes: usize) {
        let Some(process) = &mut self.process else { return };
        let view = process.machine.view();
        let page = view.changes(from, max_bytes).unwrap_or_else(|e| panic!("{e}"));
        let page = page.map_err(|why| {
            let compacted = view.compacted().unwrap_or_else(|e| panic!("{e}"));
            assert!(compacted > from, "changes from {from} on: {why:?}, compacted {compacted}");
            compacted
        });
        sim.tally.add("pages read", 1);
        for input in process.watching.take() {
            self.give_hub(sim, input);
        }
        self.give_hub(sim, Input::Page { from, page });
    }
}
