//! What clients talk to: plain HTTP on the client port.
//!
//! Every request passes the [`gate`] before anything looks at it. The API
//! knows the node only through its [`Handle`]; it owns no state of its own
//! beyond bounds on what is in flight.

pub mod gate;
mod http;

use std::time::Duration;

use axum::{Router, middleware};
use slog::Logger;

use crate::{metrics::Metrics, node::Handle};

use self::gate::Gate;

/// Requests that may be in flight at once. Each costs a task and a buffered
/// head, so the bound keeps a flood of them below about a gigabyte.
pub const MAX_IN_FLIGHT: usize = 16_384;

/// Bytes of request bodies that may be in memory at once, all requests
/// together.
pub const BODY_MEMORY_BYTES: usize = 256 << 20;

/// How long a request body may stand still before it is given up.
pub const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The bounds of the API.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The largest body of a write, in bytes; exactly this many are allowed.
    pub max_request_bytes: u64,
    /// Requests that may be in flight at once.
    pub max_in_flight: usize,
    /// Bytes of request bodies that may be in memory at once.
    pub body_memory_bytes: usize,
    /// How long a request body may stand still.
    pub body_idle_timeout: Duration,
}

impl Limits {
    /// The usual bounds, with this limit on a write's body in bytes.
    pub fn new(max_request_bytes: u64) -> Self {
        Self {
            max_request_bytes,
            max_in_flight: MAX_IN_FLIGHT,
            body_memory_bytes: BODY_MEMORY_BYTES,
            body_idle_timeout: BODY_IDLE_TIMEOUT,
        }
    }
}

/// The service of the client port.
pub fn router(handle: Handle, limits: Limits, metrics: Metrics, logger: Logger) -> Router {
    let gate = Gate::new(limits.max_in_flight, metrics.clone());
    let api = http::Api::new(handle, limits, metrics, logger);
    // Keys are matched by the fallback and not by the router's patterns, which
    // would treat some keys (`//`, braces, a lone `*`) specially.
    Router::new()
        .fallback(http::answer)
        .with_state(api)
        .layer(middleware::from_fn_with_state(gate, gate::pass))
}
