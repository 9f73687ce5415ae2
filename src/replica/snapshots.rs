//! When snapshots are made, sent, and let the log be shortened.

use std::collections::BTreeMap;

use raft::{SnapshotStatus, eraftpb::Message};

use super::{Effect, Replica, SnapshotMade, flow::Write};
use crate::{error::Fatal, machine, proto::LogPosition, raftlog::Persist, storage::Engine};

/// Bytes of log after which a snapshot is made, however few entries they are.
const MAX_LOG_BYTES: u64 = 256 << 20;

/// Entries kept behind a snapshot for followers that lag a little, at most;
/// fewer when snapshots are more frequent.
const MAX_TAIL_ENTRIES: u64 = 5_000;

/// Bytes kept behind a snapshot, about.
const MAX_TAIL_BYTES: u64 = 64 << 20;

/// Ticks, in election timeouts, after which a transfer whose outcome was
/// never reported counts as failed, so that no follower is stuck for ever.
const TRANSFER_PATIENCE: u64 = 3_600;

#[derive(Debug)]
struct SnapshotTransfer {
    position: LogPosition,
    born: u64,
}

/// Snapshots made and on their way.
#[derive(Debug)]
pub(super) struct Snapshots {
    /// Whether the state machine is making one.
    making: bool,
    /// Applied index of the last one made, or where the log starts.
    last_made: u64,
    /// Index of the newest one made or installed.
    newest: u64,
    /// Bytes appended since the last one was made.
    appended: u64,
    /// By receiver.
    transfers: BTreeMap<u64, SnapshotTransfer>,
}

impl Snapshots {
    pub fn new(truncated: u64, installed: u64) -> Self {
        Self {
            making: false,
            last_made: truncated,
            newest: installed,
            appended: 0,
            transfers: BTreeMap::new(),
        }
    }

    pub fn newest_index(&self) -> u64 {
        self.newest
    }

    pub fn appended(&mut self, bytes: u64) {
        self.appended += bytes;
    }

    pub fn installed(&mut self, index: u64) {
        self.newest = index;
        self.last_made = index;
        self.appended = 0;
    }
}

impl<E: Engine> Replica<E> {
    /// Asks for a snapshot when enough was applied since the last one, or when
    /// a follower needs one that is not there.
    pub(super) fn want_snapshot(&mut self, effects: &mut Vec<Effect>) {
        let wanted = self.node.store().take_snapshot_wanted();
        if self.snapshots.making {
            return;
        }
        let since = self.applied.index.saturating_sub(self.snapshots.last_made);
        let due = since >= self.options.snapshot_count || self.snapshots.appended > MAX_LOG_BYTES;
        if self.applied.index > 0 && (wanted || due) {
            self.snapshots.making = true;
            if mutant!(TruncatePastDurable) {
                drop(self.compact(self.applied.index, effects));
            }
            effects.push(Effect::MakeSnapshot);
        }
    }

    /// A snapshot can be sent, and everything before it is durable without
    /// the log.
    pub(super) fn snapshot_made(
        &mut self,
        made: &SnapshotMade,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Fatal> {
        self.snapshots.making = false;
        // It was asked for before a snapshot from the leader took its place.
        if made.position.index < self.snapshots.last_made {
            return Ok(());
        }
        let tail = self.tail(made.position.index);
        self.snapshots.last_made = made.position.index;
        self.snapshots.newest = self.snapshots.newest.max(made.position.index);
        self.snapshots.appended = 0;
        let conf_state = machine::conf_state(&made.members);
        self.node.mut_store().offer_snapshot(made.position, conf_state);
        self.compact(made.position.index.saturating_sub(tail), effects)
    }

    /// Entries worth keeping behind a snapshot of this index: few enough, and
    /// by the mean size of those since the last one also small enough.
    fn tail(&self, snapshot: u64) -> u64 {
        let entries = snapshot.saturating_sub(self.snapshots.last_made);
        let small_enough = entries.saturating_mul(MAX_TAIL_BYTES) / self.snapshots.appended.max(1);
        (self.options.snapshot_count / 2).min(MAX_TAIL_ENTRIES).min(small_enough)
    }

    /// Shortens the log up to `index`, but never past a snapshot that is being
    /// sent: its receiver goes on from there.
    fn compact(&mut self, index: u64, effects: &mut Vec<Effect>) -> Result<(), Fatal> {
        let sending = self.snapshots.transfers.values().map(|transfer| transfer.position.index);
        let target = sending.chain([index]).min().unwrap_or_default();
        if target < self.node.store().first() {
            return Ok(());
        }
        let position = self.node.mut_store().compact(target)?;
        let number = self.persisting.next_number();
        self.persisting.push(Write {
            number,
            ready: None,
            hard_state: None,
            last: None,
            install: None,
            messages: Vec::new(),
            bytes: 0,
            born: self.now,
        });
        // Synced, so that the files behind it can be deleted at once.
        let persist = Persist { number, compact: Some(position), sync: true, ..Persist::default() };
        effects.push(Effect::Persist(persist));
        Ok(())
    }

    pub(super) fn send_snapshot(&mut self, message: Message, effects: &mut Vec<Effect>) {
        let metadata = message.get_snapshot().get_metadata();
        let position = LogPosition { index: metadata.index, term: metadata.term };
        let patience = TRANSFER_PATIENCE * self.options.election_ticks as u64;
        if let Some(transfer) = self.snapshots.transfers.get(&message.to)
            && self.now - transfer.born < patience
        {
            // Its end is reported as a failure, and raft asks once more.
            return;
        }
        slog::info!(
            self.logger,
            "sending the snapshot of index {} to member {}",
            position.index,
            message.to
        );
        let transfer = SnapshotTransfer { position, born: self.now };
        self.snapshots.transfers.insert(message.to, transfer);
        effects.push(Effect::SendSnapshot(message));
    }

    /// A transfer ended. Raft keeps a receiver on hold until it hears of it.
    pub(super) fn snapshot_sent(&mut self, to: u64, position: LogPosition, success: bool) {
        if self.snapshots.transfers.get(&to).is_none_or(|sent| sent.position != position) {
            return;
        }
        self.snapshots.transfers.remove(&to);
        let awaited = self
            .node
            .raft
            .prs()
            .get(to)
            .is_some_and(|progress| progress.pending_snapshot == position.index);
        let status =
            if success && awaited { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        let outcome = if success { "received" } else { "did not receive" };
        slog::info!(self.logger, "member {to} {outcome} the snapshot of index {}", position.index);
        self.node.report_snapshot(to, status);
    }
}
