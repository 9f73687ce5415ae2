//! The only writer of the raft database.

use std::{sync::mpsc::Receiver, time::Instant};

use super::data_dir::DataDir;
use crate::{
    error::Fatal,
    metrics::Metrics,
    proto::LogPosition,
    raftlog::{LogWriter, Persist, Watermark},
    replica::Event,
    storage::rocks::RocksEngine,
    transport::Inbox,
};

/// Writes grouped into one batch and one fsync at most, so that the first of
/// them is not kept waiting for ever.
const MAX_GROUP: usize = 256;

pub(super) struct LogThread {
    pub writer: LogWriter<RocksEngine>,
    pub watermark: Watermark,
    pub data_dir: DataDir,
    pub tasks: Receiver<Persist>,
    pub inbox: Inbox,
    pub metrics: Metrics,
    /// Last entry of the log once everything taken in is written.
    pub last: LogPosition,
}

impl LogThread {
    /// Writes until the raft task is gone and everything it gave is durable.
    pub fn run(mut self) -> Result<(), Fatal> {
        while let Ok(first) = self.tasks.recv() {
            let mut group = vec![first];
            group.extend(self.tasks.try_iter().take(MAX_GROUP - 1));
            self.write(&group)?;
        }
        Ok(())
    }

    fn write(&mut self, group: &[Persist]) -> Result<(), Fatal> {
        for position in group.iter().filter_map(|persist| persist.install) {
            self.data_dir.adopt(position)?;
        }
        for persist in group {
            if let Some(position) = persist.install {
                self.last = position;
            }
            if let Some(entry) = persist.entries.last() {
                self.last = LogPosition { index: entry.index, term: entry.term };
            }
        }
        self.watermark.allow(self.last)?;
        let begun = Instant::now();
        self.writer.write(group)?;
        if group.iter().any(|persist| persist.sync) {
            self.metrics.fsync_seconds.observe(begun.elapsed().as_secs_f64());
            self.watermark.synced(self.last)?;
        }
        // Before the confirmation: a vote goes out only after it.
        let newest = group.iter().rev().find_map(|persist| persist.hard_state.as_ref());
        if let Some(hard_state) = newest {
            self.watermark.advance(hard_state, self.last)?;
        }
        if let Some(persist) = group.last() {
            self.inbox.internal(Event::Persisted(persist.number));
        }
        Ok(())
    }
}
