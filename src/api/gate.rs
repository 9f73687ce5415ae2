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
    body::{Body, HttpBody as _},
    extract::Request,
    http::{Method, header::CONTENT_LENGTH},
    response::{IntoResponse, Response},
};

use super::{
    Limits,
    etcd::{self, Duration, Method as Call},
    gateway,
    http::{Refusal, is_for_operators, lasts},
};
use crate::{
    metrics::Metrics,
    transport::{holding::holding, listener::Tally},
};

/// Places beyond the limit kept for operators and probes, who can so still look
/// when clients have filled the rest.
const OPERATOR_PLACES: usize = 256;

/// Requests in flight from which on each connection may have only its share:
/// whoever sends thousands at once is refused before those who wait for one
/// answer at a time, and the queue that these meet stays short.
const CONTESTED: usize = 2_048;

/// Requests that a connection may then have in flight.
const SHARE: usize = 16;

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
    max_lasting: usize,
    in_flight: Arc<AtomicUsize>,
    lasting: Arc<AtomicUsize>,
    metrics: Metrics,
}

/// Which of the gate's bounds a request falls under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ordinary,
    /// For an operator, who must get in when clients have filled the rest.
    Operator,
    /// It lasts as long as its client likes, so that a place among those that
    /// end by themselves is not for it.
    Lasting,
}

impl Gate {
    pub(super) fn new(limits: &Limits, metrics: Metrics) -> Self {
        Self {
            max_in_flight: limits.max_in_flight,
            max_lasting: limits.max_lasting,
            in_flight: Arc::default(),
            lasting: Arc::default(),
            metrics,
        }
    }

    /// Takes a place for a request, or `None` when all are taken.
    fn enter(&self, kind: Kind, own: &Tally) -> Option<Place> {
        let (taken, limit) = match kind {
            Kind::Ordinary => (&self.in_flight, self.max_in_flight),
            Kind::Operator => (&self.in_flight, self.max_in_flight + OPERATOR_PLACES),
            Kind::Lasting => (&self.lasting, self.max_lasting),
        };
        let own = (kind == Kind::Ordinary).then(|| Arc::clone(&own.0));
        let share = own.as_ref().map_or(0, |own| own.fetch_add(1, Ordering::Relaxed));
        let place = Place { taken: Arc::clone(taken), own, metrics: self.metrics.clone() };
        self.metrics.http_requests_in_flight.inc();
        let before = taken.fetch_add(1, Ordering::Relaxed);
        (before < limit && (before < CONTESTED || share < SHARE)).then_some(place)
    }

    /// Passes a request on to `next`, or refuses it when too many are in flight.
    pub(super) async fn pass(
        &self,
        mut request: Request,
        next: impl AsyncFnOnce(Request) -> Response,
    ) -> Response {
        request.extensions_mut().insert(Identity::Anonymous);
        match Call::of(&request) {
            Some(call) => self.pass_call(call, request, next).await,
            None => self.pass_plain(request, next).await,
        }
    }

    async fn pass_plain(
        &self,
        request: Request,
        next: impl AsyncFnOnce(Request) -> Response,
    ) -> Response {
        let started = Instant::now();
        let is_head = request.method() == Method::HEAD;
        let method = method_label(request.method());
        let kind = kind(&request);
        let for_gateway = gateway::is_for(&request);
        let response = match self.enter(kind, &tally(&request)) {
            // An answer that is being sent is still in flight.
            Some(place) => next(request).await.map(|body| holding(body, place)),
            None if for_gateway => gateway::overloaded(),
            None => Refusal::overloaded("too many requests are in flight; retry in a moment")
                .into_response(),
        };
        let route = response.extensions().get().map_or("none", |RouteLabel(route)| route);
        self.metrics.observe_http(method, route, response.status().as_u16(), started.elapsed());
        if is_head { without_body(response) } else { response }
    }

    async fn pass_call(
        &self,
        call: Call,
        request: Request,
        next: impl AsyncFnOnce(Request) -> Response,
    ) -> Response {
        let started = Instant::now();
        let lasts = call.duration != Duration::Brief;
        let kind = if lasts { Kind::Lasting } else { Kind::Ordinary };
        let response = match self.enter(kind, &tally(&request)) {
            Some(place) => next(request).await.map(|body| holding(body, place)),
            None => etcd::overloaded(),
        };
        let code = etcd::code_label(response.headers());
        self.metrics.observe_grpc(call.path, code, started.elapsed());
        response
    }
}

/// A request's place; free again when dropped, also when the client went away.
struct Place {
    taken: Arc<AtomicUsize>,
    /// What its connection has taken.
    own: Option<Arc<AtomicUsize>>,
    metrics: Metrics,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
        if let Some(own) = &self.own {
            own.fetch_sub(1, Ordering::Relaxed);
        }
        self.metrics.http_requests_in_flight.dec();
    }
}

/// Which bound a plain request falls under.
fn kind(request: &Request) -> Kind {
    let lasts = match gateway::Route::of(request) {
        Some(route) => Call::at(route.method).duration != Duration::Brief,
        None => lasts(request),
    };
    match lasts {
        true => Kind::Lasting,
        false if is_for_operators(request.uri().path()) => Kind::Operator,
        false => Kind::Ordinary,
    }
}

/// An answer to HEAD: with the length of its body, and not the body.
fn without_body(response: Response) -> Response {
    let (mut head, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact() {
        head.headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    Response::from_parts(head, Body::empty())
}

/// What its connection has in flight.
fn tally(request: &Request) -> Tally {
    request.extensions().get().cloned().unwrap_or_default()
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

    fn gate(max_in_flight: usize, max_lasting: usize) -> Gate {
        Gate::new(&Limits { max_in_flight, max_lasting, ..Limits::new(1) }, Metrics::new())
    }

    #[test]
    fn places_are_bounded_and_returned() {
        let gate = gate(2, 1);
        let metrics = gate.metrics.clone();
        let first = gate.enter(Kind::Ordinary, &Tally::default());
        let second = gate.enter(Kind::Ordinary, &Tally::default());
        assert!(first.is_some() && second.is_some());
        assert!(gate.enter(Kind::Ordinary, &Tally::default()).is_none());
        assert!(
            gate.enter(Kind::Operator, &Tally::default()).is_some(),
            "operators have places of their own"
        );
        assert_eq!(metrics.http_requests_in_flight.get(), 2);
        drop(first);
        assert!(gate.enter(Kind::Ordinary, &Tally::default()).is_some());
        drop(second);
        assert_eq!(metrics.http_requests_in_flight.get(), 0);
    }

    #[test]
    fn operators_are_bounded_too() {
        let gate = gate(0, 0);
        let places: Vec<_> =
            (0..OPERATOR_PLACES).map(|_| gate.enter(Kind::Operator, &Tally::default())).collect();
        assert!(places.iter().all(Option::is_some));
        assert!(gate.enter(Kind::Operator, &Tally::default()).is_none());
    }

    #[test]
    fn what_lasts_does_not_crowd_out_what_ends() {
        let gate = gate(1, 1);
        let lasting = gate.enter(Kind::Lasting, &Tally::default());
        assert!(lasting.is_some() && gate.enter(Kind::Lasting, &Tally::default()).is_none());
        assert!(gate.enter(Kind::Ordinary, &Tally::default()).is_some());
        drop(lasting);
        assert!(gate.enter(Kind::Lasting, &Tally::default()).is_some());
    }

    #[test]
    fn a_crowd_leaves_room_for_those_who_ask_for_little() {
        let gate = gate(3 * CONTESTED, 1);
        let (greedy, modest) = (Tally::default(), Tally::default());
        let enter = |own| gate.enter(Kind::Ordinary, own);
        let mut crowd: Vec<_> = (0..CONTESTED).map_while(|_| enter(&greedy)).collect();
        assert_eq!(crowd.len(), CONTESTED, "with nobody else there it may have them all");
        assert!(enter(&greedy).is_none());
        let few: Vec<_> = (0..2 * SHARE).map_while(|_| enter(&modest)).collect();
        assert_eq!(few.len(), SHARE);
        crowd.truncate(CONTESTED - few.len() - 1);
        assert!(enter(&greedy).is_some());
        drop((crowd, few));
        assert_eq!(greedy.0.load(Ordering::Relaxed), 0);
        assert_eq!(modest.0.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn head_is_answered_without_a_body_even_if_refused() {
        for max_in_flight in [0, 1] {
            let request = Request::head("/key").body(Body::empty()).expect("a request");
            let answer = async |_| "a value".into_response();
            let response = gate(max_in_flight, 1).pass(request, answer).await;
            assert_eq!(response.status().is_success(), max_in_flight == 1);
            let length = response.headers()[CONTENT_LENGTH].to_str().expect("a number");
            assert!(length.parse::<u64>().expect("a number") >= 7);
            assert_eq!(response.body().size_hint().exact(), Some(0));
        }
    }

    #[test]
    fn invented_methods_share_a_label() {
        assert_eq!(method_label(&Method::from_bytes(b"BREW").expect("a token")), "other");
        assert_eq!(method_label(&Method::PUT), "PUT");
    }
}
