//! What holders of streams ask of the hub, and what time brings.

use super::{
    Effect, Hub, Notice, Refusal, Spec, WatchId,
    spec::KeyRange,
    stream::{State, Watch},
};

impl Hub {
    pub(super) fn open(&mut self, stream: u64, number: i64, spec: Spec, effects: &mut Vec<Effect>) {
        let revision = self.revision;
        let range = match self.admit(stream, number, &spec) {
            None => return,
            Some(Ok(range)) => range,
            Some(Err(why)) => {
                self.send(stream, Notice::Refused { watch: number, revision, why }, effects);
                return self.end_if_flooded(stream, effects);
            }
        };
        self.send(stream, Notice::Created { watch: number, revision }, effects);
        let id = WatchId { stream, watch: number };
        self.watches += 1;
        self.key_bytes += spec.bytes();
        let start = spec.start_revision;
        let next = if start == 0 { revision + 1 } else { start };
        let due = self.now + self.options.progress_ticks;
        if spec.progress_notify {
            self.due.insert((due, id));
        }
        let is_synced = next > self.told;
        if let Some(stream) = self.streams.get_mut(&stream) {
            let state = if is_synced { State::Synced } else { State::Behind };
            if is_synced {
                self.index.add(&range, id);
            } else {
                self.backlog.add(next, id);
                stream.behind += 1;
            }
            if start > revision {
                stream.ahead.insert((start, number));
            }
            let watch = Watch { spec, range, state, next, told_at: self.now, due };
            stream.watches.insert(number, watch);
        }
        self.end_if_flooded(stream, effects);
    }

    /// Whether the watch may be opened; `None` when the stream is gone.
    fn admit(&self, stream: u64, number: i64, spec: &Spec) -> Option<Result<KeyRange, Refusal>> {
        let stream = self.streams.get(&stream)?;
        let options = &self.options;
        Some(if number < 0 || stream.watches.contains_key(&number) {
            Err(Refusal::NumberTaken)
        } else if stream.watches.len() >= options.stream_watches {
            Err(Refusal::StreamFull)
        } else if self.watches >= options.total_watches
            || self.key_bytes + spec.bytes() > options.total_key_bytes
        {
            Err(Refusal::NodeFull)
        } else {
            spec.range().ok_or(Refusal::EmptyRange)
        })
    }

    pub(super) fn cancel(&mut self, stream: u64, number: i64, effects: &mut Vec<Effect>) {
        if self.forget(WatchId { stream, watch: number }) {
            let notice = Notice::Cancelled { watch: number, revision: self.revision };
            self.send(stream, notice, effects);
            self.end_if_flooded(stream, effects);
        }
    }

    /// Ends a stream whose holder asks on and on and takes no answer.
    fn end_if_flooded(&mut self, id: u64, effects: &mut Vec<Effect>) {
        let limit = self.options.queue_notices + self.options.queue_answers;
        if self.streams.get(&id).is_some_and(|stream| stream.queued > limit) {
            effects.push(Effect::End(id));
            self.close_stream(id);
        }
    }

    pub(super) fn close_stream(&mut self, id: u64) {
        let Some(stream) = self.streams.get(&id) else { return };
        let bytes = stream.queued_bytes;
        let numbers: Vec<i64> = stream.watches.keys().copied().collect();
        for watch in numbers {
            self.forget(WatchId { stream: id, watch });
        }
        self.streams.remove(&id);
        self.asking.remove(&id);
        self.queued_bytes -= bytes;
    }

    /// Removes a watch from everywhere; false when there is none.
    fn forget(&mut self, id: WatchId) -> bool {
        let Some(stream) = self.streams.get_mut(&id.stream) else { return false };
        let Some(watch) = stream.watches.remove(&id.watch) else { return false };
        match watch.state {
            State::Synced => self.index.remove(&watch.range, id),
            State::Behind => self.backlog.remove(watch.next, id),
            State::Parked => {
                stream.parked.remove(&id.watch);
            }
        }
        if watch.state != State::Synced {
            stream.behind -= 1;
        }
        stream.ahead.remove(&(watch.spec.start_revision, id.watch));
        self.due.remove(&(watch.due, id));
        self.watches -= 1;
        self.key_bytes -= watch.spec.bytes();
        true
    }

    /// Ends a watch, since what comes next for it is compacted away.
    pub(super) fn end_compacted(&mut self, id: WatchId, effects: &mut Vec<Effect>) {
        if self.forget(id) {
            let (revision, compacted) = (self.revision, self.compacted);
            let notice = Notice::Compacted { watch: id.watch, revision, compacted };
            self.send(id.stream, notice, effects);
        }
    }

    /// Ends all synced watches that miss something that is compacted away. The
    /// others go on from the compaction.
    pub(super) fn end_synced_compacted(&mut self, effects: &mut Vec<Effect>) {
        let mut ended = Vec::new();
        for (stream, holder) in &self.streams {
            for (number, watch) in &holder.watches {
                if watch.state == State::Synced && watch.next < self.compacted {
                    ended.push(WatchId { stream: *stream, watch: *number });
                }
            }
        }
        for id in ended {
            self.end_compacted(id, effects);
        }
        self.told = self.compacted - 1;
    }

    /// Answers every stream that asked for progress, has all its watches
    /// synced, and has room.
    pub(super) fn answer_progress(&mut self, effects: &mut Vec<Effect>) {
        if self.asking.is_empty() || self.told < self.revision {
            return;
        }
        let answerable = |id: &u64| {
            mutant!(ProgressTooEarly)
                || self.streams.get(id).is_none_or(|stream| {
                    stream.is_synced(self.told) && stream.has_room(self.queued_bytes, &self.options)
                })
        };
        let ready: Vec<u64> = self.asking.iter().copied().filter(answerable).collect();
        for stream in ready {
            self.asking.remove(&stream);
            self.send(stream, Notice::Progress { watch: -1, revision: self.told }, effects);
        }
    }

    /// Tells watches that want it, and were told nothing for long, that there
    /// was nothing.
    pub(super) fn tick(&mut self, effects: &mut Vec<Effect>) {
        self.now += 1;
        let interval = self.options.progress_ticks.max(1);
        while let Some((due, id)) = self.due.first().copied() {
            if due > self.now {
                return;
            }
            self.due.pop_first();
            let Some(stream) = self.streams.get_mut(&id.stream) else { continue };
            let has_room = stream.has_room(self.queued_bytes, &self.options);
            let Some(watch) = stream.watches.get_mut(&id.watch) else { continue };
            let is_idle = watch.told_at + interval <= self.now;
            watch.due = if is_idle { self.now } else { watch.told_at } + interval;
            self.due.insert((watch.due, id));
            let is_synced = watch.state == State::Synced
                && watch.spec.start_revision <= self.told
                && self.told == self.revision;
            if is_idle && is_synced && has_room {
                watch.told_at = self.now;
                let notice = Notice::Progress { watch: id.watch, revision: self.told };
                self.send(id.stream, notice, effects);
            }
        }
    }
}
