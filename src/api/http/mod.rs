//! The curl API: keys on every path except those under `/-/`.

mod body;
mod conditions;
mod keys;
mod leases;
mod listing;
mod members;
mod operations;
mod options;
mod pair;
mod refusal;
mod target;
mod txn;
mod watching;

use std::sync::Arc;

use axum::{
    body::HttpBody as _,
    extract::Request,
    http::Method,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use slog::{Logger, crit};
use tokio::sync::Semaphore;

use self::target::Target;
use super::{
    Limits,
    gate::RouteLabel,
    reads::{AnswerMemory, NoRoom, Reads},
};
use crate::{
    error::Fatal,
    metrics::Metrics,
    node::Handle,
    proto::{Outcome, command::Op},
    transport::holding::holding,
};

pub(super) use self::{
    body::BodyReader, options::lasts, refusal::Refusal, target::is_for_operators,
};

/// Lists of keys that are read at once.
const MAX_LISTINGS: usize = 64;

/// What the handlers share. Clones are the same API.
#[derive(Clone)]
pub(super) struct Api {
    handle: Handle,
    max_request_bytes: u64,
    bodies: BodyReader,
    reads: Reads,
    /// Hashing reads the whole store, so one at a time.
    hashing: Arc<Semaphore>,
    /// Each list holds a thread and a moment of the database.
    listings: Arc<Semaphore>,
    metrics: Metrics,
    logger: Logger,
}

impl Api {
    pub(super) fn new(
        handle: Handle,
        limits: Limits,
        reads: Reads,
        metrics: Metrics,
        logger: Logger,
    ) -> Self {
        Self {
            handle,
            max_request_bytes: limits.max_request_bytes,
            bodies: BodyReader::new(limits.body_memory_bytes, limits.body_idle_timeout),
            reads,
            hashing: Arc::new(Semaphore::new(1)),
            listings: Arc::new(Semaphore::new(MAX_LISTINGS)),
            metrics,
            logger,
        }
    }

    /// The reader of bodies, which bounds their memory.
    pub(super) fn bodies(&self) -> BodyReader {
        self.bodies.clone()
    }

    async fn submit(&self, op: Op) -> Result<Outcome, Refusal> {
        Ok(self.handle.submit(op).await.inspect_err(|_| {
            self.metrics.proposals_failed.inc();
        })?)
    }

    /// A read that may take long, on a thread of its own, in its turn.
    async fn read_aside<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, Fatal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let slot = self.reads.scan_slot(self.handle.request_timeout()).await;
        let slot = slot.map_err(|NoRoom| {
            Refusal::overloaded("too many reads of many keys are running; retry in a moment")
        })?;
        let reading = tokio::task::spawn_blocking(move || {
            // Held by the work and not by the request, which the client may abandon.
            let _slot = slot;
            read()
        });
        reading
            .await
            .map_err(|_| Refusal::unavailable("the node is stopping; ask another member"))?
            .map_err(|fatal| self.fail(fatal))
    }

    /// An answer of any size, if there is memory to keep it until it is sent.
    fn keep(&self, answer: Response) -> Result<Response, Refusal> {
        self.keep_with(answer, None)
    }

    /// As [`Api::keep`], with the memory that was taken for it already.
    fn keep_with(
        &self,
        answer: Response,
        taken: Option<AnswerMemory>,
    ) -> Result<Response, Refusal> {
        let bytes = usize::try_from(answer.body().size_hint().lower()).unwrap_or(usize::MAX);
        Ok(match self.reads.memory_after(taken, bytes).map_err(no_memory)? {
            Some(memory) => answer.map(|body| holding(body, memory)),
            None => answer,
        })
    }

    /// A local read failed: the node can no longer be trusted and stops.
    fn fail(&self, fatal: Fatal) -> Refusal {
        crit!(self.logger, "a read of the state database failed, stopping"; "error" => %fatal);
        let refusal = Refusal::internal(
            "storage_failure",
            format!("this node cannot read its disk and stops ({fatal}); ask another member"),
        );
        self.handle.fail(fatal);
        refusal
    }
}

fn no_memory(NoRoom: NoRoom) -> Refusal {
    Refusal::overloaded("too many large answers are being sent; retry in a moment")
}

/// Answers one request.
pub(super) async fn answer(api: &Api, request: Request) -> Response {
    let (route, answer) = match Target::parse(request.uri().path()) {
        Ok(target) => (target.route(), dispatch(api, target, request).await),
        Err(refusal) => ("none", Err(refusal)),
    };
    let mut response = answer.unwrap_or_else(IntoResponse::into_response);
    // Streams have labels of their own.
    response.extensions_mut().get_or_insert(RouteLabel(route));
    response
}

async fn dispatch(api: &Api, target: Target, request: Request) -> Result<Response, Refusal> {
    let allow = target.allow();
    let (head, body) = request.into_parts();
    let head = &head;
    match (target, &head.method) {
        (Target::Key(key), &Method::GET | &Method::HEAD) => keys::get(api, key, head).await,
        (Target::Key(key), &Method::PUT) => keys::put(api, key, head, body).await,
        (Target::Key(key), &Method::DELETE) => keys::delete(api, key, head).await,
        (Target::Key(key), &Method::POST) if target::is_decimal(&key) => {
            members::add_by_url(api, &key, head, body).await
        }
        (Target::Root, &Method::GET | &Method::HEAD) => keys::get(api, Bytes::new(), head).await,
        (Target::Root, _) => Err(Refusal::empty_key()),
        (Target::Txn, &Method::POST) => txn::answer(api, head, body).await,
        (Target::Compact, &Method::POST) => operations::compact(api, head, body).await,
        (Target::Leases, &Method::GET | &Method::HEAD) => leases::list(api, head).await,
        (Target::Leases, &Method::POST) => leases::grant(api, head, body).await,
        (Target::Lease(id), &Method::GET | &Method::HEAD) => leases::get(api, id, head).await,
        (Target::Lease(id), &Method::DELETE) => leases::revoke(api, id, head).await,
        (Target::KeepAlive(id), &Method::POST) => leases::keep_alive(api, id, head).await,
        (Target::Members, &Method::GET | &Method::HEAD) => members::list(api, head),
        (Target::Members, &Method::POST) => members::add(api, head, body).await,
        (Target::Member(id), &Method::PUT) => members::set_peer_url(api, id, head, body).await,
        (Target::Member(id), &Method::DELETE) => members::remove(api, id, head).await,
        (Target::Promote(id), &Method::POST) => members::promote(api, id, head).await,
        (Target::Leader(id), &Method::POST) => members::transfer_leader(api, id, head).await,
        (Target::Operation(operation), &Method::GET | &Method::HEAD) => {
            operations::answer(api, operation, head).await
        }
        (_, method) => Err(Refusal::method_not_allowed(method, allow)),
    }
}
