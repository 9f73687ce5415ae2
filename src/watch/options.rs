//! The bounds of a hub.

/// How much a hub keeps, and how often it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Notices that may wait in the queue of a stream; with that many its
    /// watches fall behind.
    pub queue_notices: usize,
    /// Bytes that may wait there, and one notice more. Events that several
    /// watches in a row are told of count once.
    pub queue_bytes: usize,
    /// Bytes that may wait in all queues together.
    pub total_bytes: usize,
    /// Bytes that may wait in the queue of a stream even when `total_bytes`
    /// do, so that those who take nothing cannot starve those who do.
    pub share_bytes: usize,
    /// Answers that may wait beyond `queue_notices`. Whoever asks for more
    /// without taking any has its stream ended.
    pub queue_answers: usize,
    /// Bytes of one notice, unless one revision alone has more.
    pub notice_bytes: usize,
    /// Bytes of a page of the history.
    pub page_bytes: usize,
    /// Pages that may be read at once.
    pub reads: usize,
    /// Bytes of new changes that are kept while the hub catches up.
    pub recent_bytes: usize,
    /// Watches a stream may have.
    pub stream_watches: usize,
    /// Watches all streams together may have.
    pub total_watches: usize,
    /// Bytes of keys that all watches together may have.
    pub total_key_bytes: usize,
    /// Ticks after which a watch with `progress_notify` that was told nothing
    /// is told so; at least 1.
    pub progress_ticks: u64,
}

impl Options {
    /// Taken notices that must be reported. Less than half a queue, so that a
    /// queue that was emptied is never taken for a full one.
    pub fn report_notices(&self) -> usize {
        (self.queue_notices / 4).max(1)
    }

    /// Taken bytes that must be reported. Less than anybody's share.
    pub fn report_bytes(&self) -> usize {
        (self.share_bytes.min(self.queue_bytes) / 4).max(1)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            // For events that are shared: the bytes bound all others.
            queue_notices: 16 << 10,
            queue_bytes: 4 << 20,
            total_bytes: 256 << 20,
            share_bytes: 64 << 10,
            // As many as a stream may have watches: all may be opened at once.
            queue_answers: 2 * 100_000,
            // What a client takes in one message without being told to.
            notice_bytes: 1 << 20,
            page_bytes: 1 << 20,
            reads: 2,
            recent_bytes: 4 << 20,
            stream_watches: 100_000,
            total_watches: 500_000,
            total_key_bytes: 256 << 20,
            // With a tick every second, etcd's ten minutes.
            progress_ticks: 600,
        }
    }
}
