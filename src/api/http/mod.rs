//! The curl API: keys on every path except those under `/-/`.

mod body;
mod conditions;
mod keys;
mod members;
mod operations;
mod options;
mod refusal;
mod target;

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::Method,
    response::{IntoResponse, Response},
};
use slog::{Logger, crit};
use tokio::sync::Semaphore;

use self::{body::BodyReader, target::Target};
use super::{Limits, gate::RouteLabel};
use crate::{
    error::Fatal,
    metrics::Metrics,
    node::Handle,
    proto::{Outcome, command::Op},
};

pub(super) use self::{refusal::Refusal, target::is_reserved};

/// What the handlers share. Clones are the same API.
#[derive(Clone)]
pub(super) struct Api {
    handle: Handle,
    max_request_bytes: u64,
    bodies: BodyReader,
    /// Hashing reads the whole store, so one at a time.
    hashing: Arc<Semaphore>,
    metrics: Metrics,
    logger: Logger,
}

impl Api {
    pub(super) fn new(handle: Handle, limits: Limits, metrics: Metrics, logger: Logger) -> Self {
        Self {
            handle,
            max_request_bytes: limits.max_request_bytes,
            bodies: BodyReader::new(limits.body_memory_bytes, limits.body_idle_timeout),
            hashing: Arc::new(Semaphore::new(1)),
            metrics,
            logger,
        }
    }

    async fn submit(&self, op: Op) -> Result<Outcome, Refusal> {
        Ok(self.handle.submit(op).await.inspect_err(|_| {
            self.metrics.proposals_failed.inc();
        })?)
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

/// Answers one request.
pub(super) async fn answer(State(api): State<Api>, request: Request) -> Response {
    let (route, answer) = match Target::parse(request.uri().path()) {
        Ok(target) => (target.route(), dispatch(&api, target, request).await),
        Err(refusal) => ("none", Err(refusal)),
    };
    let mut response = answer.unwrap_or_else(IntoResponse::into_response);
    response.extensions_mut().insert(RouteLabel(route));
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
