//! GET, HEAD, PUT and DELETE of keys, and DELETE of prefixes.

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
use serde::Serialize;

use super::{
    Api,
    conditions::{Conditions, Verdict},
    leases,
    listing::{self, prefix_range},
    no_memory,
    options::{Consistency, Options},
    refusal::{Refusal, etag, json},
    watching,
};
use crate::{
    api::reads::{AnswerMemory, Place},
    machine::View,
    proto::{
        Delete, KeyRecord, Outcome, Put, Refused,
        command::Op,
        etcdserverpb::{DeleteRangeRequest, RangeRequest},
        mvccpb::KeyValue,
        outcome::Result as Is,
    },
    storage::rocks::RocksEngine,
};

/// The revision at which a write happened, or that an answer is about.
pub(super) const REVISION: HeaderName = HeaderName::from_static("x-metastore-revision");
/// The revision at which a key came into being.
const CREATE_REVISION: HeaderName = HeaderName::from_static("x-metastore-create-revision");
/// The revision of a key's last change.
const MOD_REVISION: HeaderName = HeaderName::from_static("x-metastore-mod-revision");
/// How often a key was written since it came into being.
const VERSION: HeaderName = HeaderName::from_static("x-metastore-version");

/// The lease a key is attached to.
const LEASE: HeaderName = HeaderName::from_static("x-metastore-lease");
/// The seconds a lease was granted for.
const TTL: HeaderName = HeaderName::from_static("x-metastore-ttl");

/// How often a random lease id may be found taken.
const GRANT_TRIES: usize = 3;

/// Answers GET and HEAD; of an answer to HEAD only the length of the body is sent.
pub(super) async fn get(api: &Api, key: Bytes, head: &Parts) -> Result<Response, Refusal> {
    let mut options = Options::parse(head.uri.query())?;
    if options.flag("list")? {
        return listing::answer(api, key, options).await;
    }
    if key.is_empty() {
        return Err(Refusal::empty_key());
    }
    if options.flag("watch")? {
        return watching::answer(api, key, options, head).await;
    }
    let consistency = options.consistency()?;
    let revision = options.revision()?;
    options.finish(
        "a read knows consistency=stale, consistency=linearizable and revision; \
         list and watch know more",
    )?;
    let conditions = Conditions::parse(&head.headers)?;
    let view = match consistency {
        Consistency::Linearizable => api.handle.read().await?,
        Consistency::Stale => api.handle.view()?,
    };
    let (record, memory) = match revision {
        None => newest(api, view, key).await?,
        Some(revision) => {
            let request = RangeRequest { key, revision, ..RangeRequest::default() };
            let past = api.read_aside(move || view.range(&request, u64::MAX)).await??;
            (past.kvs.into_iter().next().map(past_record), None)
        }
    };
    // Conditions say nothing about an answer that is a 404 without them.
    let record = record.ok_or_else(|| match revision {
        None => Refusal::key_not_found(),
        Some(revision) => Refusal::not_found(
            "key_not_found",
            format!("there was no such key at revision {revision}"),
        ),
    })?;
    match conditions.for_read(record.mod_revision) {
        // A large value is memory until its client has taken it.
        Verdict::Proceed => api.keep_with(value(record), memory),
        Verdict::NotModified => Ok(not_modified(&record)),
        Verdict::Failed => Err(Refusal::precondition_failed(record.mod_revision)),
    }
}

/// The newest value of a key, and the memory that was taken for it.
async fn newest(
    api: &Api,
    view: View<RocksEngine>,
    key: Bytes,
) -> Result<(Option<KeyRecord>, Option<AnswerMemory>), Refusal> {
    let place = api.reads.place(|| view.stored_bytes(&key));
    match place.map_err(|fatal| api.fail(fatal))?.map_err(no_memory)? {
        Place::Here => Ok((view.get(&key).map_err(|fatal| api.fail(fatal))?, None)),
        Place::Aside(memory) => Ok((api.read_aside(move || view.get(&key)).await?, memory)),
    }
}

/// A pair as a Range request gives it, whose numbers are never negative.
fn past_record(kv: KeyValue) -> KeyRecord {
    KeyRecord {
        create_revision: kv.create_revision.unsigned_abs(),
        mod_revision: kv.mod_revision.unsigned_abs(),
        version: kv.version.unsigned_abs(),
        lease: kv.lease,
        value: kv.value,
        ..KeyRecord::default()
    }
}

/// Answers PUT once the write is committed and applied.
pub(super) async fn put(
    api: &Api,
    key: Bytes,
    head: &Parts,
    body: Body,
) -> Result<Response, Refusal> {
    let mut options = Options::parse(head.uri.query())?;
    let ttl_s = options.number("ttl", 1..=leases::MAX_TTL_S)?;
    let lease = options.number("lease", i64::MIN..=i64::MAX)?;
    options.finish("a PUT knows ttl and lease")?;
    if lease == Some(0) || (lease.is_some() && ttl_s.is_some()) {
        return Err(Refusal::bad_request(
            "invalid_option",
            "give lease, the id of a lease that exists, or ttl, the seconds of a new one, or neither",
        ));
    }
    let condition = Conditions::parse(&head.headers)?.for_write();
    if head.headers.contains_key(CONTENT_RANGE) {
        // Storing a part as if it were the whole would lose the rest.
        return Err(Refusal::bad_request(
            "partial_put",
            "a value is written as a whole; send all of it, without Content-Range",
        ));
    }
    let body = api.bodies.read(head, body, api.max_request_bytes).await?;
    let mut put = Put {
        key,
        value: body.bytes.clone(),
        condition,
        lease: lease.unwrap_or_default(),
        grant_ttl_s: ttl_s.map_or(0, |ttl_s| leases::at_least(api, ttl_s)),
    };
    let outcome = submit_put(api, &mut put).await?;
    let revision = written(outcome)?;
    let mut response = bodiless(StatusCode::NO_CONTENT);
    let headers = response.headers_mut();
    headers.insert(ETAG, etag(revision));
    headers.insert(REVISION, HeaderValue::from(revision));
    if put.lease != 0 {
        headers.insert(LEASE, HeaderValue::from(put.lease));
    }
    if put.grant_ttl_s != 0 {
        headers.insert(TTL, HeaderValue::from(put.grant_ttl_s));
    }
    Ok(response)
}

/// Submits a write, with a new lease if it is to have one.
async fn submit_put(api: &Api, put: &mut Put) -> Result<Outcome, Refusal> {
    if put.grant_ttl_s == 0 {
        return api.submit(Op::Put(put.clone())).await;
    }
    let mut tries = GRANT_TRIES;
    loop {
        put.lease = leases::random_id();
        let outcome = api.submit(Op::Put(put.clone())).await?;
        tries -= 1;
        if tries == 0 || outcome.result != Some(Is::Refused(Refused::LeaseExists.into())) {
            return Ok(outcome);
        }
    }
}

/// Answers DELETE once the deletion is committed and applied.
pub(super) async fn delete(api: &Api, key: Bytes, head: &Parts) -> Result<Response, Refusal> {
    let mut options = Options::parse(head.uri.query())?;
    let prefix = options.flag("prefix")?;
    options.finish("a DELETE knows prefix")?;
    let condition = Conditions::parse(&head.headers)?.for_write();
    if prefix {
        if condition.is_some() {
            return Err(Refusal::bad_request(
                "invalid_condition",
                "a prefix has no ETag; use POST /-/txn to delete under conditions",
            ));
        }
        return delete_prefix(api, &key).await;
    }
    let outcome = api.submit(Op::Delete(Delete { key, condition })).await?;
    let revision = written(outcome)?;
    let mut response = bodiless(StatusCode::NO_CONTENT);
    response.headers_mut().insert(REVISION, HeaderValue::from(revision));
    Ok(response)
}

/// Deletes every key that begins so, in one revision.
async fn delete_prefix(api: &Api, prefix: &Bytes) -> Result<Response, Refusal> {
    #[derive(Serialize)]
    struct Deleted {
        deleted: i64,
        revision: u64,
    }
    let (key, range_end) = prefix_range(prefix);
    let request = DeleteRangeRequest { key, range_end, prev_kv: false };
    let outcome = api.submit(Op::DeleteRange(request)).await?;
    let revision = outcome.store_revision;
    let deleted = match outcome.result {
        Some(Is::DeleteRange(response)) => response.deleted,
        other => return Err(Refusal::unexpected(other)),
    };
    if deleted == 0 {
        return Err(Refusal::not_found("key_not_found", "there is no key with that prefix"));
    }
    let mut response = json(StatusCode::OK, &Deleted { deleted, revision });
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
    if record.lease != 0 {
        headers.insert(LEASE, HeaderValue::from(record.lease));
    }
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
