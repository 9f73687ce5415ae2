//! The one place every request passes, whatever protocol it speaks.
//!
//! The gate decides who the caller is, bounds how many requests are in flight
//! and records how long they took. TLS identities and role checks belong here.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use axum::{
    extract::{Request, State},
    http::Method,
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::http::{Refusal, is_reserved};
use crate::metrics::Metrics;

/// Places beyond the limit kept for requests under `/-/`, so that an operator
/// can still look when clients have filled the rest.
const OPERATOR_PLACES: usize = 256;

/// Who sent a request. Every handler finds it in the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// Nobody in particular: nothing was presented.
    Anonymous,
}

/// Which route answered, as a metrics label: one of a fixed set, never a key.
/// Handlers leave it in the response's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteLabel(pub &'static str);

/// Admits requests. Clones are the same gate.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    max_in_flight: usize,
    in_flight: Arc<AtomicUsize>,
    metrics: Metrics,
}

impl Gate {
    pub(super) fn new(max_in_flight: usize, metrics: Metrics) -> Self {
        Self { max_in_flight, in_flight: Arc::default(), metrics }
    }

    /// Takes a place for a request, or `None` when all are taken.
    fn enter(&self, operator: bool) -> Option<Place> {
        let limit = self.max_in_flight + if operator { OPERATOR_PLACES } else { 0 };
        let place = Place { gate: self.clone() };
        self.metrics.http_requests_in_flight.inc();
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        (before < limit).then_some(place)
    }
}

/// A request's place; free again when dropped, also when the client went away.
struct Place {
    gate: Gate,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.gate.metrics.http_requests_in_flight.dec();
    }
}

/// Passes a request on, or answers 429 when too many are in flight.
pub(super) async fn pass(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = method_label(request.method());
    let response = match gate.enter(is_reserved(request.uri().path())) {
        Some(_place) => {
            request.extensions_mut().insert(Identity::Anonymous);
            next.run(request).await
        }
        None => Refusal::overloaded("too many requests are in flight; retry in a moment")
            .into_response(),
    };
    let route = response.extensions().get().map_or("none", |RouteLabel(route)| route);
    gate.metrics.observe_http(method, route, response.status().as_u16(), started.elapsed());
    response
}

/// A method as a label; clients can invent methods, labels must stay few.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_returned() {
        let metrics = Metrics::new();
        let gate = Gate::new(2, metrics.clone());
        let first = gate.enter(false);
        let second = gate.enter(false);
        assert!(first.is_some() && second.is_some());
        assert!(gate.enter(false).is_none());
        assert!(gate.enter(true).is_some(), "operators have places of their own");
        assert_eq!(metrics.http_requests_in_flight.get(), 2);
        drop(first);
        assert!(gate.enter(false).is_some());
        drop(second);
        assert_eq!(metrics.http_requests_in_flight.get(), 0);
    }

    #[test]
    fn operators_are_bounded_too() {
        let gate = Gate::new(0, Metrics::new());
        let places: Vec<_> = (0..OPERATOR_PLACES).map(|_| gate.enter(true)).collect();
        assert!(places.iter().all(Option::is_some));
        assert!(gate.enter(true).is_none());
    }

    #[test]
    fn invented_methods_share_a_label() {
        assert_eq!(method_label(&Method::from_bytes(b"BREW").expect("a token")), "other");
        assert_eq!(method_label(&Method::PUT), "PUT");
    }
}
