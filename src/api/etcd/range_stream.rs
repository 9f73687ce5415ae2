//! A range of any size, in pieces: the store is read as fast as the client
//! takes them, and a piece is all that is in memory.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use prost::Message;
use tokio::{runtime, sync::mpsc, time};
use tonic::Status;

use super::{Etcd, status::Error};
use crate::{
    api::reads::{AnswerMemory, NoRoom},
    machine::{Streamed, View},
    proto::{
        etcdserverpb::{
            RangeRequest, RangeResponse, RangeStreamResponse,
            range_request::{SortOrder, SortTarget},
        },
        mvccpb::KeyValue,
    },
    storage::rocks::RocksEngine,
};

/// Streams of ranges at once. Each keeps a thread and a moment of the store.
pub(super) const MAX_RANGE_STREAMS: usize = 64;

/// How large a piece becomes before it is sent, in bytes.
const PIECE_BYTES: usize = 1 << 20;

/// Pieces that may wait to be sent.
const WAITING_PIECES: usize = 1;

/// How long a client may take for a piece, before it no longer keeps the store
/// from forgetting the moment that it reads.
const STALL_PATIENCE: Duration = Duration::from_secs(120);

type Piece = Result<RangeStreamResponse, Status>;

/// The pieces of an answer.
#[derive(Debug)]
pub struct Pieces {
    pieces: mpsc::Receiver<Piece>,
    /// Whether the last piece, or an error, has come.
    ended: bool,
}

impl Stream for Pieces {
    type Item = Piece;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = self.pieces.poll_recv(cx).map(|piece| {
            // Less than the whole must not look like it.
            piece.unwrap_or_else(|| {
                Err(Status::aborted("etcdserver: the range was read too slowly; start again"))
            })
        });
        if let Poll::Ready(piece) = &polled {
            self.ended = match piece {
                Ok(RangeStreamResponse { range_response }) => {
                    range_response.as_ref().is_some_and(|range| range.header.is_some())
                }
                Err(_) => true,
            };
        }
        polled.map(Some)
    }
}

/// Begins to answer a request in pieces.
pub(super) fn start(
    etcd: &Etcd,
    view: View<RocksEngine>,
    request: RangeRequest,
) -> Result<Pieces, Status> {
    let slot = Arc::clone(&etcd.shared.range_streams)
        .try_acquire_owned()
        .map_err(|_| Error::TooManyRequests)?;
    let (sender, pieces) = mpsc::channel(WAITING_PIECES);
    let sending = Sending { etcd: etcd.clone(), sender, runtime: runtime::Handle::current() };
    tokio::task::spawn_blocking(move || {
        sending.run(&view, &request);
        drop(slot);
    });
    Ok(Pieces { pieces, ended: false })
}

/// The thread that reads.
struct Sending {
    etcd: Etcd,
    sender: mpsc::Sender<Piece>,
    runtime: runtime::Handle,
}

impl Sending {
    fn run(&self, view: &View<RocksEngine>, request: &RangeRequest) {
        let mut kvs = Vec::new();
        // The memory is in use until the last piece is on its way.
        let (last, _memory) = if is_in_key_order(request) {
            (self.read(view, request, &mut kvs), None)
        } else {
            match self.sort(view, request) {
                Ok((sorted, memory)) => (Ok(self.cut(sorted, &mut kvs)), memory),
                Err(status) => (Err(status), None),
            }
        };
        match last {
            Ok(Some(last)) => {
                let Streamed { revision, count, more } = last;
                let header = Some(self.etcd.header(revision));
                let count = super::to_wire(count);
                self.send(Ok(piece(RangeResponse { header, kvs, more, count })));
            }
            // Nobody takes it any more.
            Ok(None) => {}
            Err(status) => {
                self.send(Err(status));
            }
        }
    }

    /// Sends all pieces but the last, whose pairs are left in `kvs`; `None`
    /// when nobody takes them.
    fn read(
        &self,
        view: &View<RocksEngine>,
        request: &RangeRequest,
        kvs: &mut Vec<KeyValue>,
    ) -> Result<Option<Streamed>, Status> {
        let mut gatherer = Gatherer { sending: self, kvs, bytes: 0, taken: true };
        let streamed = view.stream(request, &mut |kv| gatherer.take(kv));
        let taken = gatherer.taken;
        let streamed = self.etcd.ruled(streamed)?;
        Ok(taken.then_some(streamed))
    }

    /// The whole range, for an order that needs all pairs at once.
    fn sort(
        &self,
        view: &View<RocksEngine>,
        request: &RangeRequest,
    ) -> Result<(RangeResponse, Option<AnswerMemory>), Status> {
        let (reads, limits) = (&self.etcd.shared.reads, &self.etcd.shared.limits);
        let patience = self.etcd.handle().request_timeout();
        let slot = self.runtime.block_on(reads.scan_slot(patience));
        let _slot = slot.map_err(|NoRoom| Error::TooManyRequests)?;
        let range = self.etcd.ruled(view.range(request, limits.max_response_bytes))?;
        let memory = reads.memory(range.encoded_len());
        Ok((range, memory.map_err(|NoRoom| Error::TooManyRequests)?))
    }

    /// As [`Sending::read`], of a range that is in memory.
    fn cut(&self, range: RangeResponse, kvs: &mut Vec<KeyValue>) -> Option<Streamed> {
        let revision = range.header.map_or(0, |header| header.revision);
        let streamed = Streamed {
            revision: u64::try_from(revision).unwrap_or_default(),
            count: u64::try_from(range.count).unwrap_or_default(),
            more: range.more,
        };
        let mut gatherer = Gatherer { sending: self, kvs, bytes: 0, taken: true };
        let all_taken = range.kvs.into_iter().all(|kv| gatherer.take(kv));
        all_taken.then_some(streamed)
    }

    /// Waits for the client; whether it goes on.
    fn send(&self, piece: Piece) -> bool {
        let is_accused = self.etcd.handle().is_accused();
        let piece = if is_accused { Err(Error::Corrupt.into()) } else { piece };
        let sent = self.runtime.block_on(time::timeout(STALL_PATIENCE, self.sender.send(piece)));
        matches!(sent, Ok(Ok(()))) && !is_accused
    }
}

/// Makes pieces of pairs.
struct Gatherer<'a> {
    sending: &'a Sending,
    kvs: &'a mut Vec<KeyValue>,
    bytes: usize,
    /// Whether the client still takes pieces.
    taken: bool,
}

impl Gatherer<'_> {
    fn take(&mut self, kv: KeyValue) -> bool {
        // Before the pair, so that the last piece has one if any has.
        if self.bytes >= PIECE_BYTES {
            let kvs = mem::take(self.kvs);
            self.bytes = 0;
            let response = piece(RangeResponse { kvs, ..RangeResponse::default() });
            self.taken = self.sending.send(Ok(response));
        }
        self.bytes += kv.encoded_len();
        self.kvs.push(kv);
        self.taken
    }
}

fn piece(range: RangeResponse) -> RangeStreamResponse {
    RangeStreamResponse { range_response: Some(range) }
}

/// Whether the pairs come out as the store has them.
fn is_in_key_order(request: &RangeRequest) -> bool {
    request.sort_target() == SortTarget::Key && request.sort_order() != SortOrder::Descend
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;
    use crate::proto::etcdserverpb::ResponseHeader;

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_an_error() {
        let (sender, pieces) = mpsc::channel(4);
        let whole = Pieces { pieces, ended: false };
        let last = || RangeResponse {
            header: Some(ResponseHeader::default()),
            ..RangeResponse::default()
        };
        sender.send(Ok(piece(RangeResponse::default()))).await.expect("room");
        sender.send(Ok(piece(last()))).await.expect("room");
        drop(sender);
        let pieces: Vec<_> = whole.collect().await;
        assert!(pieces.len() == 2 && pieces.iter().all(Result::is_ok), "{pieces:?}");

        let (sender, pieces) = mpsc::channel(4);
        let broken = Pieces { pieces, ended: false };
        sender.send(Ok(piece(RangeResponse::default()))).await.expect("room");
        drop(sender);
        let pieces: Vec<_> = broken.collect().await;
        assert_eq!(pieces.len(), 2);
        let status = pieces[1].as_ref().expect_err("an error at the end");
        assert_eq!(status.code(), tonic::Code::Aborted);
    }
}
