//! etcd's JSON gateway: its gRPC methods as `POST /v3/…`.
//!
//! A request is turned into the gRPC call that it stands for, which then goes
//! the way of every other call, and the answer is turned back. Only POST is
//! taken, so that keys may begin with `v3/`.

mod call;
mod failure;
mod objects;
mod routes;

use std::time::Duration;

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderValue, Method as HttpMethod, header::CONTENT_TYPE},
    response::Response,
};

pub(super) use self::routes::Route;
use super::{Limits, etcd, gate::RouteLabel, http::BodyReader};

/// What a request holds beside keys and values, in bytes, at most.
const OVERHEAD_BYTES: u64 = 512 << 10;

/// All paths of the gateway begin so.
const PREFIX: &str = "/v3/";

/// Whether a request is for the gateway.
pub(super) fn is_for(request: &Request) -> bool {
    request.method() == HttpMethod::POST && request.uri().path().starts_with(PREFIX)
}

/// Answers requests. Clones are the same gateway.
#[derive(Debug, Clone)]
pub(super) struct Gateway {
    calls: etcd::Calls,
    bodies: BodyReader,
    /// The largest body, in bytes.
    max_body_bytes: u64,
    /// How long the first object of a stream may take.
    body_idle_timeout: Duration,
}

impl Gateway {
    /// A gateway whose bodies count into the memory of that reader.
    pub(super) fn new(calls: etcd::Calls, bodies: BodyReader, limits: &Limits) -> Self {
        // Base64 takes four bytes for three.
        let encoded = limits.max_request_bytes.saturating_mul(4).div_ceil(3);
        Self {
            calls,
            bodies,
            max_body_bytes: encoded.saturating_add(OVERHEAD_BYTES),
            body_idle_timeout: limits.body_idle_timeout,
        }
    }

    /// Answers one request.
    pub(super) async fn answer(self, request: Request) -> Response {
        let Some(route) = Route::of(&request) else {
            let mut response = failure::not_found();
            response.extensions_mut().insert(RouteLabel("none"));
            return response;
        };
        let mut response = (route.call)(self, route, request).await;
        response.extensions_mut().insert(RouteLabel(route.path));
        response
    }
}

/// An answer for which there is no room at the moment.
pub(super) fn overloaded() -> Response {
    failure::whole(&etcd::status::Error::TooManyRequests.into())
}

/// The type of every answer.
fn json(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
