//! GET, HEAD, PUT and DELETE of keys.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::{Body, HttpBody},
    http::{
        HeaderName, HeaderValue, StatusCode,
        header::{CONTENT_RANGE, CONTENT_TYPE, ETAG},
        request::Parts,
    },
    response::Response,
};
use bytes::Bytes;
use hyper::body::Frame;

use super::{
    Api,
    conditions::{Conditions, Verdict},
    options::{self, Consistency},
    refusal::{Refusal, etag},
};
use crate::proto::{Delete, KeyRecord, Outcome, Put, command::Op, outcome::Result as Is};

/// The revision at which a write happened.
const REVISION: HeaderName = HeaderName::from_static("x-metastore-revision");
/// The revision at which a key came into being.
const CREATE_REVISION: HeaderName = HeaderName::from_static("x-metastore-create-revision");
/// The revision of a key's last change.
const MOD_REVISION: HeaderName = HeaderName::from_static("x-metastore-mod-revision");
/// How often a key was written since it came into being.
const VERSION: HeaderName = HeaderName::from_static("x-metastore-version");

/// Answers GET and HEAD; for HEAD the router drops the body and keeps its length.
pub(super) async fn get(api: &Api, key: Bytes, head: &Parts) -> Result<Response, Refusal> {
    let consistency = options::consistency(head.uri.query())?;
    let conditions = Conditions::parse(&head.headers)?;
    let view = match consistency {
        Consistency::Linearizable => api.handle.read().await?,
        Consistency::Stale => api.handle.view()?,
    };
    // A point read is a few microseconds, less than moving it to another thread.
    let record = view
        .get(&key)
        .map_err(|fatal| api.fail(fatal))?
        // Conditions say nothing about an answer that is a 404 without them.
        .ok_or_else(Refusal::key_not_found)?;
    match conditions.for_read(record.mod_revision) {
        Verdict::Proceed => Ok(value(record)),
        Verdict::NotModified => Ok(not_modified(&record)),
        Verdict::Failed => Err(Refusal::precondition_failed(record.mod_revision)),
    }
}

/// Answers PUT once the write is committed and applied.
pub(super) async fn put(
    api: &Api,
    key: Bytes,
    head: &Parts,
    body: Body,
) -> Result<Response, Refusal> {
    options::none(head.uri.query())?;
    let condition = Conditions::parse(&head.headers)?.for_write();
    if head.headers.contains_key(CONTENT_RANGE) {
        // Storing a part as if it were the whole would lose the rest.
        return Err(Refusal::bad_request(
            "partial_put",
            "a value is written as a whole; send all of it, without Content-Range",
        ));
    }
    let body = api.bodies.read(head, body, api.max_request_bytes).await?;
    let put = Put { key, value: body.bytes.clone(), condition };
    let outcome = api.submit(Op::Put(put)).await?;
    let revision = written(outcome)?;
    let mut response = bodiless(StatusCode::NO_CONTENT);
    response.headers_mut().insert(ETAG, etag(revision));
    response.headers_mut().insert(REVISION, HeaderValue::from(revision));
    Ok(response)
}

/// Answers DELETE once the deletion is committed and applied.
pub(super) async fn delete(api: &Api, key: Bytes, head: &Parts) -> Result<Response, Refusal> {
    options::none(head.uri.query())?;
    let condition = Conditions::parse(&head.headers)?.for_write();
    let outcome = api.submit(Op::Delete(Delete { key, condition })).await?;
    let revision = written(outcome)?;
    let mut response = bodiless(StatusCode::NO_CONTENT);
    response.headers_mut().insert(REVISION, HeaderValue::from(revision));
    Ok(response)
}

/// The revision of a write that happened.
fn written(outcome: Outcome) -> Result<u64, Refusal> {
    match outcome.result {
        Some(Is::Revision(revision)) => Ok(revision),
        Some(Is::KeyNotFound(_)) => Err(Refusal::key_not_found()),
        Some(Is::PreconditionFailed(mod_revision)) => {
            Err(Refusal::precondition_failed(mod_revision))
        }
        other => Err(Refusal::unexpected(other)),
    }
}

fn value(record: KeyRecord) -> Response {
    let mut response = Response::new(Body::from(record.value.clone()));
    let content_type = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    describe(&mut response, &record);
    response
}

fn not_modified(record: &KeyRecord) -> Response {
    let mut response = bodiless(StatusCode::NOT_MODIFIED);
    describe(&mut response, record);
    response
}

fn describe(response: &mut Response, record: &KeyRecord) {
    let headers = response.headers_mut();
    headers.insert(ETAG, etag(record.mod_revision));
    headers.insert(CREATE_REVISION, HeaderValue::from(record.create_revision));
    headers.insert(MOD_REVISION, HeaderValue::from(record.mod_revision));
    headers.insert(VERSION, HeaderValue::from(record.version));
}

/// An answer of a status that has no body, and so no Content-Length either: in
/// a 204 it is forbidden, in a 304 it would be that of the value.
pub(super) fn bodiless(status: StatusCode) -> Response {
    let mut response = Response::new(Body::new(NoBody));
    *response.status_mut() = status;
    response
}

/// Ends at once without claiming a length of zero, unlike an empty body.
struct NoBody;

impl HttpBody for NoBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }
}
