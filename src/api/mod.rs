//! What clients talk to: plain HTTP, etcd's gRPC and etcd's JSON gateway, all
//! on the client port.
//!
//! Every request passes the [`gate`] before anything looks at it. The API
//! knows the node only through its [`Handle`]; it owns no state of its own
//! beyond bounds on what is in flight.

pub mod etcd;
pub mod gate;
mod gateway;
mod http;
mod reads;

use std::{sync::Arc, time::Duration};

use axum::{extract::Request, response::Response};
use slog::Logger;

use crate::{metrics::Metrics, node::Handle, transport::listener::Service};

use self::{gate::Gate, reads::Reads};

/// Requests that may be in flight at once. Each costs a task and a buffered
/// head, so the bound keeps a flood of them below about a gigabyte.
pub const MAX_IN_FLIGHT: usize = 16_384;

/// Calls that may last at once: streams, and waits for a lock or an election.
pub const MAX_LASTING: usize = 32_768;

/// The largest answer to one Range request, in bytes.
pub const MAX_RESPONSE_BYTES: u64 = 256 << 20;

/// Bytes of request bodies that may be in memory at once, all requests
/// together.
pub const BODY_MEMORY_BYTES: usize = 256 << 20;

/// How long a request body may stand still before it is given up.
pub const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// What must come of a request body in a second after that time, in bytes, so
/// that one that comes byte by byte does not take a place for ever.
const MIN_BODY_BYTES_PER_SECOND: u64 = 1 << 10;

/// How long a body of which so much has come may have taken.
fn body_patience(idle_timeout: Duration, received: usize) -> Duration {
    let millis = (received as u64).saturating_mul(1000) / MIN_BODY_BYTES_PER_SECOND;
    idle_timeout.saturating_add(Duration::from_millis(millis))
}

/// The bounds of the API.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The largest body of a write, in bytes; exactly this many are allowed.
    pub max_request_bytes: u64,
    /// Requests that may be in flight at once.
    pub max_in_flight: usize,
    /// Calls that may last at once, beside those.
    pub max_lasting: usize,
    /// The largest answer to one Range request, in bytes.
    pub max_response_bytes: u64,
    /// Bytes of data beyond which this member raises the NOSPACE alarm, as
    /// clients may ask for them; 0 = never.
    pub quota_backend_bytes: u64,
    /// Bytes of request bodies that may be in memory at once.
    pub body_memory_bytes: usize,
    /// How long a request body may stand still, and come at any pace.
    pub body_idle_timeout: Duration,
}

impl Limits {
    /// The usual bounds, with this limit on a write's body in bytes.
    pub fn new(max_request_bytes: u64) -> Self {
        Self {
            max_request_bytes,
            max_in_flight: MAX_IN_FLIGHT,
            max_lasting: MAX_LASTING,
            max_response_bytes: MAX_RESPONSE_BYTES,
            quota_backend_bytes: 0,
            body_memory_bytes: BODY_MEMORY_BYTES,
            body_idle_timeout: BODY_IDLE_TIMEOUT,
        }
    }
}

/// What answers on the client port. Clones are the same.
#[derive(Clone)]
pub struct Api {
    gate: Gate,
    protocols: Arc<Protocols>,
}

struct Protocols {
    http: http::Api,
    etcd: etcd::Calls,
    gateway: gateway::Gateway,
}

impl Api {
    /// The API of a node, within these bounds.
    pub fn new(handle: Handle, limits: Limits, metrics: Metrics, logger: Logger) -> Self {
        let gate = Gate::new(&limits, metrics.clone());
        let reads = Reads::new();
        let etcd = etcd::Calls::new(
            handle.clone(),
            limits.clone(),
            reads.clone(),
            metrics.clone(),
            logger.clone(),
        );
        let http = http::Api::new(handle, limits.clone(), reads, metrics, logger);
        let gateway = gateway::Gateway::new(etcd.clone(), http.bodies(), &limits);
        Self { gate, protocols: Arc::new(Protocols { http, etcd, gateway }) }
    }
}

// No router stands before them: its patterns would treat some keys (`//`,
// braces, a lone `*`) specially, and each costs every request its share.
impl Service for Api {
    async fn answer(&self, request: Request) -> Response {
        self.gate.pass(request, |request| self.protocols.answer(request)).await
    }
}

impl Protocols {
    /// Answers one request by the API that it speaks. What the plain one and the
    /// gateway need is large: boxed, so that it is not moved about with every call
    /// of gRPC.
    async fn answer(&self, request: Request) -> Response {
        match etcd::Method::of(&request) {
            Some(method) => self.etcd.answer(method, request).await,
            None if gateway::is_for(&request) => {
                Box::pin(self.gateway.clone().answer(request)).await
            }
            None => Box::pin(http::answer(&self.http, request)).await,
        }
    }
}
