//! A JSON request as a gRPC call, and back.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, Version, header::AUTHORIZATION, request::Parts, uri::PathAndQuery},
    response::Response,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use prost::Message;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;
use tonic::{Status, Streaming, client::Grpc, codegen::Service, metadata::MetadataMap};
use tonic_prost::ProstCodec;

use super::{Gateway, Route, failure, json, objects::Objects};
use crate::{
    api::{etcd, reads::AnswerMemory},
    transport::holding::holding,
};

/// A message that can be read from JSON.
pub(super) trait Question: Message + DeserializeOwned + Default + 'static {}
impl<Q: Message + DeserializeOwned + Default + 'static> Question for Q {}

/// A message that can be written as JSON.
pub(super) trait Answer: Message + Serialize + Default + 'static {}
impl<A: Message + Serialize + Default + 'static> Answer for A {}

/// An answer under way.
pub(super) type Answering = Pin<Box<dyn Future<Output = Response> + Send>>;

/// Silence after which a stream gets an empty line, in time before connections
/// count as idle.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Answers of this many bytes are written as JSON on a thread of their own.
const LARGE_BYTES: usize = 1 << 20;

/// The gRPC server of this process, as a gRPC client sees it.
#[derive(Clone)]
struct Server(etcd::Calls);

impl Service<Request<tonic::body::Body>> for Server {
    type Response = axum::http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let calls = self.0.clone();
        let mut request = request.map(Body::new);
        // What gRPC is spoken over.
        *request.version_mut() = Version::HTTP_2;
        Box::pin(async move {
            Ok(match etcd::Method::of(&request) {
                Some(method) => calls.answer(method, request).await,
                None => etcd::refusal(Status::internal("this is not a call")),
            })
        })
    }
}

fn client(gateway: &Gateway) -> Grpc<Server> {
    // Whoever made an answer in this process has bounded it.
    Grpc::new(Server(gateway.calls.clone())).max_decoding_message_size(usize::MAX)
}

/// A gRPC request with what the JSON request's head says.
fn wrap<T>(head: Parts, message: T) -> tonic::Request<T> {
    let mut headers = HeaderMap::new();
    if let Some(authorization) = head.headers.get(AUTHORIZATION) {
        headers.insert(AUTHORIZATION, authorization.clone());
    }
    let metadata = MetadataMap::from_headers(headers);
    let mut request = tonic::Request::from_parts(metadata, tonic::Extensions::new(), message);
    if let Some(identity) = head.extensions.get::<crate::api::gate::Identity>() {
        request.extensions_mut().insert(*identity);
    }
    request
}

/// A call with one question and one answer.
pub(super) fn unary<Q: Question, A: Answer>(
    gateway: Gateway,
    route: &'static Route,
    request: Request,
) -> Answering {
    Box::pin(async move {
        match ask_once::<Q, A>(gateway, route, request).await {
            Ok(response) => response,
            Err(response) => response,
        }
    })
}

async fn ask_once<Q: Question, A: Answer>(
    gateway: Gateway,
    route: &'static Route,
    request: Request,
) -> Result<Response, Response> {
    let (head, question) = question::<Q>(&gateway, request).await?;
    let path = PathAndQuery::from_static(route.method);
    let codec = ProstCodec::<Q, A>::default();
    let asked = client(&gateway).unary(wrap(head, question), path, codec).await;
    let mut answer = asked.map_err(|status| failure::whole(&status))?;
    // The call's own body has ended; the memory is in use until this one has.
    let memory = answer.extensions_mut().remove::<AnswerMemory>();
    let body = write(answer.into_inner()).await.map_err(|status| failure::whole(&status))?;
    Ok(json(holding(Body::from(body), memory)))
}

/// A call with one question and a stream of answers.
pub(super) fn server_stream<Q: Question, A: Answer>(
    gateway: Gateway,
    route: &'static Route,
    request: Request,
) -> Answering {
    Box::pin(async move {
        let (head, question) = match question::<Q>(&gateway, request).await {
            Ok(asked) => asked,
            Err(response) => return response,
        };
        let path = PathAndQuery::from_static(route.method);
        let codec = ProstCodec::<Q, A>::default();
        match client(&gateway).server_streaming(wrap(head, question), path, codec).await {
            Ok(answers) => json(Body::from_stream(lines(answers.into_inner()))),
            Err(status) => failure::whole(&status),
        }
    })
}

/// A call with a stream of questions and one of answers, which ends with the
/// questions.
pub(super) fn exchange<Q: Question, A: Answer>(
    gateway: Gateway,
    route: &'static Route,
    request: Request,
) -> Answering {
    Box::pin(converse::<Q, A>(gateway, route, request, false))
}

/// As [`exchange`], but it ends only with the client: one that has said all at
/// once still wants to hear.
pub(super) fn subscription<Q: Question, A: Answer>(
    gateway: Gateway,
    route: &'static Route,
    request: Request,
) -> Answering {
    Box::pin(converse::<Q, A>(gateway, route, request, true))
}

async fn converse<Q: Question, A: Answer>(
    gateway: Gateway,
    route: &'static Route,
    request: Request,
    stays_open: bool,
) -> Response {
    let (head, body) = request.into_parts();
    let mut objects = Objects::<Q>::new(body);
    // A first question that makes no sense still gets a status of its own.
    let first = match timeout(gateway.body_idle_timeout, objects.next()).await {
        Ok(Ok(Some(first))) => first,
        Ok(Ok(None)) => return failure::whole(&Status::invalid_argument("the body is empty")),
        Ok(Err(status)) => return failure::whole(&status),
        Err(_) => return failure::whole(&Status::deadline_exceeded("the body did not come")),
    };
    let questions = objects.into_stream(Some(first), stays_open);
    let path = PathAndQuery::from_static(route.method);
    let codec = ProstCodec::<Q, A>::default();
    match client(&gateway).streaming(wrap(head, questions), path, codec).await {
        Ok(answers) => json(Body::from_stream(lines(answers.into_inner()))),
        Err(status) => failure::whole(&status),
    }
}

/// The one question that a body holds; an empty body asks with nothing set.
async fn question<Q: Question>(
    gateway: &Gateway,
    request: Request,
) -> Result<(Parts, Q), Response> {
    let (head, body) = request.into_parts();
    let body = gateway.bodies.read(&head, body, gateway.max_body_bytes).await;
    let body = body.map_err(failure::unread)?;
    if body.bytes.trim_ascii().is_empty() {
        return Ok((head, Q::default()));
    }
    let question = serde_json::from_slice(&body.bytes)
        .map_err(|error| failure::whole(&Status::invalid_argument(error.to_string())))?;
    Ok((head, question))
}

/// An answer as a line of JSON.
async fn write<A: Answer>(answer: A) -> Result<Vec<u8>, Status> {
    if answer.encoded_len() < LARGE_BYTES {
        return line(&answer);
    }
    let writing = tokio::task::spawn_blocking(move || line(&answer));
    writing.await.unwrap_or_else(|_| Err(etcd::status::Error::Stopped.into()))
}

fn line(value: &impl Serialize) -> Result<Vec<u8>, Status> {
    let mut line = serde_json::to_vec(value)
        .map_err(|error| Status::internal(format!("the answer cannot be written: {error}")))?;
    line.push(b'\n');
    Ok(line)
}

/// One answer of a stream.
#[derive(Serialize)]
struct Line<A> {
    result: A,
}

/// Answers as lines of JSON, with empty ones between them in long silences.
fn lines<A: Answer>(answers: Streaming<A>) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(Some(answers), async |answers| {
        let mut answers = answers?;
        let Ok(answer) = timeout(KEEP_ALIVE, answers.next()).await else {
            return Some((Ok(Bytes::from_static(b"\n")), Some(answers)));
        };
        let failed = |status: &Status| Some((Ok(failure::last(status).into()), None));
        match answer? {
            Ok(result) => match line(&Line { result }) {
                Ok(line) => Some((Ok(line.into()), Some(answers))),
                Err(status) => failed(&status),
            },
            Err(status) => failed(&status),
        }
    })
}
