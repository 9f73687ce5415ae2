//! etcd's gRPC API, on the port of the HTTP API: one file for each service.
//!
//! A call comes through the gate like every other request; `Calls::answer`
//! checks what it asks of this member as a whole (a leader, a voter) and
//! passes it on to its service. All services are implemented by `Etcd`.

mod auth;
mod checks;
mod cluster;
mod election;
mod health;
mod kv;
mod leader;
mod lease;
mod line;
mod lock;
mod maintenance;
mod methods;
mod range_stream;
mod request_body;
mod services;
mod snapshot;
pub mod status;
mod watch;
mod watch_body;
mod watch_response;

use std::sync::Arc;

use axum::{body::Body, extract::Request, http::HeaderMap, response::Response};
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use slog::{Logger, crit};
use tokio::{runtime, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, codegen::Service as _, service::Routes};

pub(super) use self::methods::{Duration, Method};
use self::{request_body::Bodies, status::Error};
use super::{
    Limits,
    reads::{AnswerMemory, Reads, ScanSlot},
};
use crate::{
    error::{Fatal, Rejected},
    machine::{Ruled, View},
    metrics::Metrics,
    node::Handle,
    proto::{
        Refused,
        command::Op,
        etcdserverpb::{ResponseHeader, kv_server::KvServer},
        outcome::Result as Is,
    },
    storage::rocks::RocksEngine,
    transport::holding::holding,
};

/// Operations in a transaction, at most: in each of its three lists, and with
/// those that are nested in them along any path.
pub const MAX_TXN_OPS: usize = 128;

/// The longest that a lease may be asked to live, in seconds.
pub const MAX_LEASE_TTL_S: i64 = 9_000_000_000;

/// What the paths of the calls concerning keys begin with.
const KV: &str = "/etcdserverpb.KV/";

/// What all services share. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Etcd {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    handle: Handle,
    limits: Limits,
    metrics: Metrics,
    logger: Logger,
    reads: Reads,
    range_streams: Arc<Semaphore>,
    snapshots: Arc<Semaphore>,
    /// Waits for locks and elections: as many as calls that last.
    waits: Arc<Semaphore>,
    /// Rewriting the data is done once at a time.
    reclaiming: Arc<Semaphore>,
}

impl Etcd {
    fn handle(&self) -> &Handle {
        &self.shared.handle
    }

    /// The header of an answer as of a revision.
    fn header(&self, revision: u64) -> ResponseHeader {
        let standing = self.handle().standing();
        ResponseHeader {
            cluster_id: standing.cluster_id,
            member_id: standing.member_id,
            revision: to_wire(revision),
            raft_term: standing.term,
        }
    }

    /// The header of an answer as of now, by this member's own state.
    fn header_now(&self) -> Result<ResponseHeader, Status> {
        let revision = self.sound(self.view()?.revision())?;
        Ok(self.header(revision))
    }

    /// Completes a header in which the state machine set the revision.
    fn complete(&self, header: &mut Option<ResponseHeader>) {
        let revision = header.map_or(0, |header| header.revision);
        *header = Some(ResponseHeader { revision, ..self.header(0) });
    }

    /// Carries out a command; its answer and the store's revision after it.
    async fn submit(&self, op: Op) -> Result<(Is, u64), Status> {
        let submitted = self.handle().submit(op).await;
        let outcome = submitted.map_err(|rejected| {
            self.shared.metrics.proposals_failed.inc();
            self.rejected(rejected)
        })?;
        match outcome.result {
            Some(Is::Refused(refused)) => {
                let refused = refused.try_into().unwrap_or_default();
                Err(status::refused(refused, self.shared.limits.max_response_bytes))
            }
            Some(result) => Ok((result, outcome.store_revision)),
            None => Err(status::unexpected(&outcome)),
        }
    }

    /// A view that shows everything acknowledged before this call.
    async fn read(&self) -> Result<View<RocksEngine>, Status> {
        self.handle().read().await.map_err(|rejected| self.rejected(rejected))
    }

    /// Waits until this member has applied everything acknowledged before this
    /// call.
    async fn catch_up(&self) -> Result<(), Status> {
        self.handle().catch_up().await.map_err(|rejected| self.rejected(rejected))
    }

    /// This member's own view, whatever it is worth, for operators.
    fn examine(&self) -> Result<View<RocksEngine>, Status> {
        self.handle().examine().map_err(|rejected| self.rejected(rejected))
    }

    /// Why a member ends the streams of watches that it feeds.
    fn no_more_notices(&self) -> Status {
        let error = if self.handle().is_accused() { Error::Corrupt } else { Error::Stopped };
        error.into()
    }

    /// This member's own view, which may be behind.
    fn view(&self) -> Result<View<RocksEngine>, Status> {
        self.handle().view().map_err(|rejected| self.rejected(rejected))
    }

    /// Does a read of many keys where it holds nobody up.
    async fn scan<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, Fatal> + Send + 'static,
    ) -> Result<T, Status> {
        let slot = self.shared.reads.scan_slot(self.handle().request_timeout()).await;
        self.scan_with(slot.map_err(|_| Error::TooManyRequests)?, read).await
    }

    /// As [`Etcd::scan`], when its turn has come.
    async fn scan_with<T: Send + 'static>(
        &self,
        slot: ScanSlot,
        read: impl FnOnce() -> Result<T, Fatal> + Send + 'static,
    ) -> Result<T, Status> {
        let abandoned = CancellationToken::new();
        let _caller = abandoned.clone().drop_guard();
        let scanned = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            // Threads may be short; nobody waits for it any more.
            (!abandoned.is_cancelled()).then(read)
        });
        match scanned.await {
            Ok(Some(read)) => self.sound(read),
            // The runtime drops what has not begun when it stops.
            Ok(None) | Err(_) => Err(Error::Stopped.into()),
        }
    }

    fn rejected(&self, rejected: Rejected) -> Status {
        status::rejected(rejected, self.handle().standing())
    }

    fn refused(&self, refused: Refused) -> Status {
        status::refused(refused, self.shared.limits.max_response_bytes)
    }

    /// The result of a read; one that the disk refused stops the node.
    fn sound<T>(&self, read: Result<T, Fatal>) -> Result<T, Status> {
        read.map_err(|fatal| {
            crit!(self.shared.logger, "a read of the state database failed, stopping";
                "error" => %fatal);
            self.handle().fail(fatal);
            Error::Stopped.into()
        })
    }

    /// As [`Etcd::sound`], for reads that the state machine may refuse.
    fn ruled<T>(&self, read: Ruled<T>) -> Result<T, Status> {
        self.sound(read)?.map_err(|refused| self.refused(refused))
    }
}

/// Answers gRPC calls. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Calls {
    etcd: Etcd,
    bodies: Bodies,
    kv: KvServer<Etcd>,
    /// The other services, which are called seldom, or once for long.
    routes: Routes,
}

impl Calls {
    pub(super) fn new(
        handle: Handle,
        limits: Limits,
        reads: Reads,
        metrics: Metrics,
        logger: Logger,
    ) -> Self {
        let waits = limits.max_lasting.min(Semaphore::MAX_PERMITS);
        let etcd = Etcd {
            shared: Arc::new(Shared {
                handle,
                limits,
                metrics,
                logger,
                reads,
                range_streams: Arc::new(Semaphore::new(range_stream::MAX_RANGE_STREAMS)),
                snapshots: Arc::new(Semaphore::new(snapshot::MAX_SNAPSHOTS)),
                waits: Arc::new(Semaphore::new(waits)),
                reclaiming: Arc::new(Semaphore::new(1)),
            }),
        };
        let most = services::max_message_bytes(&etcd);
        let bodies = Bodies::new(&etcd.shared.limits, most);
        let kv = services::kv(&etcd, most);
        let routes = services::routes(&etcd, most);
        Self { etcd, bodies, kv, routes }
    }

    /// Answers one call.
    pub(super) async fn answer(&self, method: Method, mut request: Request) -> Response {
        let standing = self.etcd.handle().standing();
        if standing.learner && !method.for_learners {
            return refusal(Error::NotForLearner.into());
        }
        let needs_leader = leader::is_required(request.headers());
        if needs_leader && standing.leader_id == 0 {
            return refusal(Error::NoLeader.into());
        }
        let (body, memory) =
            self.bodies.bound(std::mem::take(request.body_mut()), method.client_streams);
        *request.body_mut() = body;
        let Ok(response) = match method.path.starts_with(KV) {
            true => self.kv.clone().call(request).await,
            false => self.routes.clone().call(request).await,
        };
        let response = response.map(Body::new);
        // What the message takes was in use until here.
        drop(memory);
        // Left there for whoever gives the answer another form.
        let response = match response.extensions().get::<AnswerMemory>().cloned() {
            Some(memory) => {
                let (head, body) = response.into_parts();
                Response::from_parts(head, encoded_aside(body, memory).await)
            }
            None => response,
        };
        if needs_leader && method.duration == Duration::Stream {
            let handle = self.etcd.handle().clone();
            return response.map(|body| leader::while_led(body, handle));
        }
        response
    }
}

/// A body whose large message was encoded by a thread of its own. That takes a
/// while, in which the one that answers would answer nobody else. The memory is
/// kept until all is sent, and by the encoding if the client leaves before.
async fn encoded_aside<M: Send + Sync + 'static>(body: Body, memory: M) -> Body {
    let mut body = holding(body, memory);
    let encoding = tokio::task::spawn_blocking(move || {
        // The first piece is the whole message.
        let first = runtime::Handle::current().block_on(body.frame());
        (first, body)
    });
    match encoding.await {
        Ok((first, rest)) => {
            let frames = stream::iter(first).chain(BodyStream::new(rest));
            Body::new(StreamBody::new(frames))
        }
        // The runtime drops what has not begun when it stops.
        Err(_) => Body::empty(),
    }
}

/// An answer that is an error alone.
pub(super) fn refusal(status: Status) -> Response {
    status.into_http()
}

/// The answer to a call for which there is no room.
pub(super) fn overloaded() -> Response {
    refusal(Error::TooManyRequests.into())
}

/// The name of the code with which a call was answered, as far as its head
/// says it: a stream that fails later counts as begun well.
pub(super) fn code_label(headers: &HeaderMap) -> &'static str {
    let code =
        headers.get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// A revision as etcd's messages carry it.
fn to_wire(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures_util::poll;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_is_encoded_for_a_client_that_left_keeps_its_memory() {
        let (memory, mut free) = oneshot::channel::<()>();
        let (finish, finished) = oneshot::channel::<()>();
        let message = stream::once(async move {
            let _ = finished.await;
            io::Result::Ok("a large message")
        });
        let mut encoding = Box::pin(encoded_aside(Body::from_stream(message), memory));
        assert!(poll!(&mut encoding).is_pending());
        drop(encoding);
        assert_eq!(free.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        finish.send(()).expect("it is still being encoded");
        assert!(free.await.is_err(), "it is let go when the encoding has ended");
    }
}
