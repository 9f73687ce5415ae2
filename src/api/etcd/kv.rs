//! Keys: Range, Put, DeleteRange, Txn, Compact.

use std::sync::Arc;

use prost::Message;
use tonic::{Request, Response, Status};

use super::{
    Etcd, checks,
    range_stream::{self, Pieces},
    status::{self, Error},
};
use crate::{
    api::reads::{AnswerMemory, NoRoom, Place},
    machine::View,
    proto::{
        Compact,
        command::Op,
        etcdserverpb::{
            CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse,
            PutRequest, PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
            kv_server::Kv,
        },
        outcome::Result as Is,
    },
    storage::rocks::RocksEngine,
};

#[tonic::async_trait]
impl Kv for Etcd {
    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let request = request.into_inner();
        let view = self.view_for(&request).await?;
        let max_bytes = self.shared.limits.max_response_bytes;
        let (answer, memory) = match self.place(&view, &request)? {
            Place::Here => (view.range(&request, max_bytes), None),
            Place::Aside(memory) => {
                (self.scan(move || Ok(view.range(&request, max_bytes))).await?, memory)
            }
        };
        let mut answer = self.ruled(answer)?;
        self.complete(&mut answer.header);
        self.answer_with(answer, memory)
    }

    type RangeStreamStream = Pieces;

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Pieces>, Status> {
        let request = request.into_inner();
        let view = self.view_for(&request).await?;
        range_stream::start(self, view, request).map(Response::new)
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let request = request.into_inner();
        checks::put(&request)?;
        self.check_size(&request)?;
        match self.submit(Op::PutRequest(request)).await? {
            (Is::Put(mut answer), revision) => {
                answer.header = Some(self.header(revision));
                self.answer_to_write(answer).await
            }
            (other, _) => Err(status::unexpected(&other)),
        }
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let request = request.into_inner();
        checks::delete_range(&request)?;
        self.check_size(&request)?;
        match self.submit(Op::DeleteRange(request)).await? {
            (Is::DeleteRange(mut answer), revision) => {
                answer.header = Some(self.header(revision));
                self.answer_to_write(answer).await
            }
            (other, _) => Err(status::unexpected(&other)),
        }
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let request = request.into_inner();
        checks::txn(&request)?;
        if checks::is_read_only(&request) {
            return self.read_txn(request).await;
        }
        self.check_size(&request)?;
        match self.submit(Op::Txn(request)).await? {
            (Is::Txn(mut answer), revision) => {
                answer.header = Some(self.header(revision));
                self.answer_to_write(answer).await
            }
            (other, _) => Err(status::unexpected(&other)),
        }
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let CompactionRequest { revision, physical } = request.into_inner();
        // Whatever is negative has been compacted before there was anything.
        let revision = u64::try_from(revision).map_err(|_| Error::Compacted)?;
        let (_, store_revision) = self.submit(Op::Compact(Compact { revision })).await?;
        if physical {
            // The compaction must have reached this member's own disk first.
            self.read().await?;
            self.reclaim().await?;
        }
        let header = Some(self.header(store_revision));
        Ok(Response::new(CompactionResponse { header }))
    }
}

impl Etcd {
    /// The view that a range reads, once the request has passed its checks.
    async fn view_for(&self, request: &RangeRequest) -> Result<View<RocksEngine>, Status> {
        checks::range(request)?;
        if request.serializable {
            return self.view();
        }
        if self.handle().standing().learner {
            return Err(Error::NotForLearner.into());
        }
        self.read().await
    }

    /// Where to read what a range asks for.
    fn place(&self, view: &View<RocksEngine>, request: &RangeRequest) -> Result<Place, Status> {
        // The way back to an older value has many steps.
        if !request.range_end.is_empty() || request.revision != 0 {
            return Ok(Place::Aside(None));
        }
        let place = self.shared.reads.place(|| view.stored_bytes(&request.key));
        self.sound(place)?.map_err(|NoRoom| Error::TooManyRequests.into())
    }

    /// Rewrites this member's data without what is gone, after whoever does so
    /// already: what they do may not include what is gone by now.
    async fn reclaim(&self) -> Result<(), Status> {
        let turn = Arc::clone(&self.shared.reclaiming).acquire_owned().await;
        let handle = self.handle().clone();
        let reclaimed = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            handle.reclaim_space()
        });
        match reclaimed.await {
            Ok(reclaimed) => reclaimed.map_err(|rejected| self.rejected(rejected)),
            // The runtime drops what has not begun when it stops.
            Err(_) => Err(Error::Stopped.into()),
        }
    }

    async fn read_txn(&self, request: TxnRequest) -> Result<Response<TxnResponse>, Status> {
        let view =
            if checks::is_serializable(&request) { self.view()? } else { self.read().await? };
        let max_bytes = self.shared.limits.max_response_bytes;
        let answer = self.scan(move || Ok(view.txn(&request, max_bytes))).await?;
        let mut answer = self.ruled(answer)?;
        self.complete(&mut answer.header);
        self.answer(answer)
    }

    fn check_size(&self, request: &impl Message) -> Result<(), Status> {
        Ok(checks::size(request, self.shared.limits.max_request_bytes)?)
    }

    /// The answer to a write that has taken effect: it waits for memory rather
    /// than say that nothing was done, and if that takes long says neither.
    async fn answer_to_write<T: Message>(&self, answer: T) -> Result<Response<T>, Status> {
        let patience = self.handle().request_timeout();
        let memory = self.shared.reads.memory_in_time(answer.encoded_len(), patience).await;
        Ok(holding_memory(answer, memory.map_err(|_| Error::Timeout)?))
    }

    /// An answer of any size, if there is memory to keep it until it is sent.
    pub(super) fn answer<T: Message>(&self, answer: T) -> Result<Response<T>, Status> {
        self.answer_with(answer, None)
    }

    /// As [`Etcd::answer`], with the memory that was taken for it already.
    fn answer_with<T: Message>(
        &self,
        answer: T,
        taken: Option<AnswerMemory>,
    ) -> Result<Response<T>, Status> {
        let memory = self.shared.reads.memory_after(taken, answer.encoded_len());
        Ok(holding_memory(answer, memory.map_err(|_| Error::TooManyRequests)?))
    }
}

/// An answer with the memory that it takes, if it takes any.
fn holding_memory<T>(answer: T, memory: Option<AnswerMemory>) -> Response<T> {
    let mut response = Response::new(answer);
    if let Some(memory) = memory {
        response.extensions_mut().insert(memory);
    }
    response
}
