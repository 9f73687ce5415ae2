//! What reads of many keys, and their answers, may take of this process,
//! whatever protocol asked.

use std::{sync::Arc, thread::available_parallelism, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// Reads of many keys that may run at once, at least. Each keeps a thread busy,
/// and more than there are processors end no earlier and keep others waiting;
/// each may gather an answer of the greatest size before that is counted.
const MIN_SCANS: usize = 4;

/// Looks at the lines of locks and elections that may run at once: their own,
/// so that large reads do not keep locks from changing hands.
const MAX_LINE_SCANS: usize = 4;

/// Memory for large answers that are being sent, all together, in KiB.
const ANSWERS_KIB: usize = 1 << 20;

/// Answers up to this size are not counted against the memory for answers, in
/// bytes: what the requests in flight may take is bounded by their number.
const SMALL_ANSWER_BYTES: usize = 64 << 10;

/// The bounds that all protocols share. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Reads {
    scans: Arc<Semaphore>,
    lines: Arc<Semaphore>,
    answers: Arc<Semaphore>,
}

/// The right to read many keys, until it is dropped.
#[derive(Debug)]
pub(super) struct ScanSlot(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// The memory of a large answer, which is free again once it has been sent.
#[derive(Debug, Clone)]
pub(super) struct AnswerMemory(Arc<OwnedSemaphorePermit>);

/// Where something is read.
#[derive(Debug)]
pub(super) enum Place {
    /// By the one who answers: it is faster than to ask another thread.
    Here,
    /// Aside, in its turn; what memory was taken for the answer already.
    Aside(Option<AnswerMemory>),
}

/// Others take all there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoRoom;

impl Reads {
    pub(super) fn new() -> Self {
        Self {
            scans: Arc::new(Semaphore::new(max_scans())),
            lines: Arc::new(Semaphore::new(MAX_LINE_SCANS)),
            answers: Arc::new(Semaphore::new(ANSWERS_KIB)),
        }
    }

    /// Waits for its turn to read many keys, but no longer than this.
    pub(super) async fn scan_slot(&self, patience: Duration) -> Result<ScanSlot, NoRoom> {
        acquire(&self.scans, 1, patience).await.map(ScanSlot)
    }

    /// As [`Reads::scan_slot`], to see who stands first in a line.
    pub(super) async fn line_slot(&self, patience: Duration) -> Result<ScanSlot, NoRoom> {
        acquire(&self.lines, 1, patience).await.map(ScanSlot)
    }

    /// Memory for an answer of so many bytes; a small one needs none.
    pub(super) fn memory(&self, bytes: usize) -> Result<Option<AnswerMemory>, NoRoom> {
        if bytes <= SMALL_ANSWER_BYTES {
            return Ok(None);
        }
        let memory = Arc::clone(&self.answers).try_acquire_many_owned(kibibytes(bytes));
        memory.map(|memory| Some(AnswerMemory(Arc::new(memory)))).map_err(|_| NoRoom)
    }

    /// As [`Reads::memory`], when some may have been taken before the answer was
    /// read, which may have another size by now.
    pub(super) fn memory_after(
        &self,
        taken: Option<AnswerMemory>,
        bytes: usize,
    ) -> Result<Option<AnswerMemory>, NoRoom> {
        let has_enough = |taken: &AnswerMemory| kibibytes(bytes) as usize <= taken.0.num_permits();
        match taken.filter(has_enough) {
            Some(taken) if bytes > SMALL_ANSWER_BYTES => Ok(Some(taken)),
            _ => self.memory(bytes),
        }
    }

    /// Where to read the newest value of a key, of which `stored_bytes` tells
    /// how large it is. That is asked only while large answers are being sent:
    /// then thousands more may have been asked for, each of which would keep a
    /// thread that answers others busy, only to find no memory in the end.
    pub(super) fn place<E>(
        &self,
        stored_bytes: impl FnOnce() -> Result<usize, E>,
    ) -> Result<Result<Place, NoRoom>, E> {
        if self.answers.available_permits() == ANSWERS_KIB {
            return Ok(Ok(Place::Here));
        }
        let memory = self.memory(stored_bytes()?);
        Ok(memory.map(|memory| memory.map_or(Place::Here, |memory| Place::Aside(Some(memory)))))
    }

    /// As [`Reads::memory`], but waits for it, no longer than this.
    pub(super) async fn memory_in_time(
        &self,
        bytes: usize,
        patience: Duration,
    ) -> Result<Option<AnswerMemory>, NoRoom> {
        if bytes <= SMALL_ANSWER_BYTES {
            return Ok(None);
        }
        let memory = acquire(&self.answers, kibibytes(bytes), patience).await?;
        Ok(Some(AnswerMemory(Arc::new(memory))))
    }
}

/// As many as there are processors.
fn max_scans() -> usize {
    available_parallelism().map_or(MIN_SCANS, |processors| processors.get().max(MIN_SCANS))
}

async fn acquire(
    semaphore: &Arc<Semaphore>,
    permits: u32,
    patience: Duration,
) -> Result<OwnedSemaphorePermit, NoRoom> {
    let acquiring = Arc::clone(semaphore).acquire_many_owned(permits);
    timeout(patience, acquiring).await.ok().and_then(Result::ok).ok_or(NoRoom)
}

fn kibibytes(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(10);

    #[tokio::test]
    async fn scans_wait_for_their_turn_but_not_for_ever() {
        let reads = Reads::new();
        let mut slots = Vec::new();
        for _ in 0..max_scans() {
            slots.push(reads.clone().scan_slot(SOON).await.expect("a slot"));
        }
        assert_eq!(reads.scan_slot(SOON).await.err(), Some(NoRoom));
        assert!(reads.line_slot(SOON).await.is_ok(), "lines have slots of their own");
        let (slot, ()) = tokio::join!(reads.scan_slot(Duration::from_secs(60)), async {
            slots.pop();
        });
        assert!(slot.is_ok());
    }

    #[tokio::test]
    async fn a_large_value_is_read_aside_once_there_are_many() {
        let reads = Reads::new();
        let large = || Ok::<_, ()>(SMALL_ANSWER_BYTES + 1);
        let unasked = || Err("it is not to be asked");
        assert!(matches!(reads.place(unasked), Ok(Ok(Place::Here))));
        let first = reads.memory(1 << 20).expect("nothing is taken").expect("a large one");
        assert!(matches!(reads.place(|| Ok::<_, ()>(SMALL_ANSWER_BYTES)), Ok(Ok(Place::Here))));
        let Ok(Ok(Place::Aside(Some(memory)))) = reads.place(large) else {
            panic!("a large one is read aside");
        };
        let rest = reads.memory((ANSWERS_KIB - (1 << 10) - 65) << 10).expect("what is left");
        assert!(matches!(reads.place(large), Ok(Err(NoRoom))));
        // It has grown meanwhile, shrunk, or stayed as it was.
        let after = |bytes| reads.memory_after(Some(memory.clone()), bytes);
        assert_eq!(after(1 << 20).err(), Some(NoRoom));
        assert!(matches!(after(1), Ok(None)));
        assert!(matches!(after(SMALL_ANSWER_BYTES + 1), Ok(Some(_))));
        drop(memory);
        drop((first, rest));
        assert!(matches!(reads.place(unasked), Ok(Ok(Place::Here))));
    }

    #[tokio::test]
    async fn large_answers_share_memory() {
        let reads = Reads::new();
        let all = reads.memory(ANSWERS_KIB << 10).expect("nothing is taken");
        assert!(matches!(reads.memory(SMALL_ANSWER_BYTES), Ok(None)));
        let large = SMALL_ANSWER_BYTES + 1;
        assert_eq!(reads.memory(large).err(), Some(NoRoom));
        assert_eq!(reads.memory_in_time(large, SOON).await.err(), Some(NoRoom));
        drop(all);
        assert!(matches!(reads.memory(large), Ok(Some(_))));
        assert!(matches!(reads.memory_in_time(large, SOON).await, Ok(Some(_))));
    }
}
