//! The thread that hashes the state at each mark.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel},
    },
    time::Instant,
};

use slog::Logger;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::checking::{Checking, MAX_WAITING_REPORTS};
use crate::{
    check::Report,
    error::Fatal,
    machine::View,
    metrics::Metrics,
    proto::{LogPosition, Members},
    storage::rocks::RocksEngine,
};

/// A mark as this member applied it, and who was a member then.
#[derive(Debug, Clone)]
pub(super) struct Marked {
    pub position: LogPosition,
    pub members: Arc<Members>,
}

/// What the apply thread does at a mark.
#[derive(Debug)]
pub(super) struct Marks {
    hashing: SyncSender<Freeze>,
    applied: watch::Sender<Option<Marked>>,
}

/// What a check needs of the apply thread, which waits meanwhile.
struct Freeze {
    view: View<RocksEngine>,
    position: LogPosition,
    /// Dropped once the state at the mark is frozen.
    frozen: Sender<()>,
}

impl fmt::Debug for Freeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Freeze").field(&self.position).finish()
    }
}

/// Hashes frozen states, one at a time, and leaves what they came to for a task
/// that reports it.
pub(super) struct CheckThread {
    marks: Receiver<Freeze>,
    /// What the newest came to.
    own: watch::Sender<Option<Report>>,
    /// Whether it is hashing.
    busy: Arc<AtomicBool>,
    /// Ends a hash half-way.
    stop: CancellationToken,
    member: u64,
    metrics: Metrics,
    logger: Logger,
}

/// Why there is no hash.
enum Ended {
    Stopping,
    Fatal(Fatal),
}

impl From<Fatal> for Ended {
    fn from(fatal: Fatal) -> Self {
        Self::Fatal(fatal)
    }
}

/// The parts of the check, connected.
pub(super) struct Wiring {
    pub marks: Marks,
    pub thread: CheckThread,
    /// What members report goes in here.
    pub reports: mpsc::Sender<Report>,
    pub checking: Checking,
}

impl Wiring {
    pub fn new(member: u64, stop: CancellationToken, metrics: Metrics, logger: Logger) -> Self {
        // Without a place to wait in: a mark is taken by an idle thread or not
        // at all, so that at most one view is ever kept frozen.
        let (hashing, marks) = sync_channel(0);
        let (applied_sender, applied) = watch::channel(None);
        let (own_sender, own) = watch::channel(None);
        let (reports_sender, reports) = mpsc::channel(MAX_WAITING_REPORTS);
        let busy = Arc::new(AtomicBool::new(false));
        let thread = CheckThread {
            marks,
            own: own_sender,
            busy: Arc::clone(&busy),
            stop,
            member,
            metrics,
            logger,
        };
        let marks = Marks { hashing, applied: applied_sender };
        let checking = Checking { applied, own, reports, busy };
        Self { marks, thread, reports: reports_sender, checking }
    }
}

impl Marks {
    /// The batch that ends with a mark was applied. Returns once the state is
    /// frozen, or will not be hashed.
    pub fn reached(&self, marked: Marked, view: View<RocksEngine>, logger: &Logger) {
        let index = marked.position.index;
        let (frozen, is_frozen) = channel();
        match self.hashing.try_send(Freeze { view, position: marked.position, frozen }) {
            // Nothing is ever sent: the other end is dropped.
            Ok(()) => drop(is_frozen.recv()),
            Err(TrySendError::Full(_)) => slog::info!(
                logger,
                "the state at index {index} is not hashed: the former hash is still being computed"
            ),
            // The thread has failed, and the node is stopping over it.
            Err(TrySendError::Disconnected(_)) => {}
        }
        self.applied.send_replace(Some(marked));
    }
}

impl CheckThread {
    /// Hashes until the apply thread is gone.
    pub fn run(self) -> Result<(), Fatal> {
        while let Ok(freeze) = self.marks.recv() {
            self.busy.store(true, Ordering::Release);
            let hashed = self.hash(freeze);
            self.busy.store(false, Ordering::Release);
            match hashed {
                Ok(report) => drop(self.own.send_replace(Some(report))),
                Err(Ended::Stopping) => return Ok(()),
                Err(Ended::Fatal(fatal)) => return Err(fatal),
            }
        }
        Ok(())
    }

    fn hash(&self, freeze: Freeze) -> Result<Report, Ended> {
        let Freeze { view, position, frozen } = freeze;
        let begun = Instant::now();
        let go_on = || match self.stop.is_cancelled() {
            true => Err(Ended::Stopping),
            false => Ok(()),
        };
        let hashed = view.hash_as_of(|| drop(frozen), &go_on)?;
        if hashed.position != position {
            return Err(Ended::Fatal(Fatal::new(
                format!(
                    "the state was to be hashed at {position:?} and was frozen at {:?}",
                    hashed.position
                ),
                "this is a defect, please report it; start the node again",
            )));
        }
        let took = begun.elapsed();
        self.metrics.state_hash_seconds.set(took.as_secs_f64());
        slog::debug!(self.logger, "hashed the state in {took:?}"; "hash" => %hashed);
        Ok(Report { member: self.member, position, hash: hashed.hash })
    }
}
