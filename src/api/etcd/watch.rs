//! Watches: any number of them on one stream.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    task::{Context, Poll},
};

use axum::http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use futures_util::{StreamExt as _, future::BoxFuture, stream};
use tonic::{
    Code, Status, Streaming,
    body::Body,
    codec::{Codec as _, CompressionEncoding},
    codegen::{Service, http},
    metadata::MetadataValue,
    server::NamedService,
};
use tonic_prost::ProstCodec;

use super::{
    Etcd,
    status::Error,
    watch_body::WatchBody,
    watch_response::{EncodedWatchResponse, fragments},
};
use crate::{
    node::{WatchControl, WatchNotices},
    proto::etcdserverpb::{
        WatchCancelRequest, WatchCreateRequest, WatchRequest, WatchResponse,
        watch_create_request::FilterType, watch_request::RequestUnion,
    },
    watch::{Events, Notice, Refusal, Spec},
};

/// The id of a watch that was not opened, and of what concerns a whole stream.
const NO_WATCH: i64 = -1;

/// Why a watch ended that never could be told anything.
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";

/// The service. Unlike a generated one it answers with events that are encoded
/// already, once for all who are told of them, and sends them from there.
#[derive(Debug, Clone)]
pub(super) struct WatchServer {
    pub(super) etcd: Etcd,
    /// The largest request, in bytes.
    pub(super) max_request_bytes: usize,
}

impl NamedService for WatchServer {
    const NAME: &'static str = "etcdserverpb.Watch";
}

impl Service<http::Request<Body>> for WatchServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let opened = self.open(request);
        Box::pin(async move { Ok(opened.unwrap_or_else(Status::into_http)) })
    }
}

impl WatchServer {
    /// Opens a stream.
    fn open(&self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        if request.uri().path() != "/etcdserverpb.Watch/Watch" {
            return Err(Status::unimplemented(""));
        }
        let encoding = encoding(request.headers())?;
        let decoder = ProstCodec::<WatchResponse, WatchRequest>::default().decoder();
        let most = Some(self.max_request_bytes);
        let requests = Streaming::new_request(decoder, request.into_body(), encoding, most);
        let etcd = self.etcd.clone();
        let opened = etcd.handle().watch();
        let (control, notices) = opened.map_err(|rejected| etcd.rejected(rejected))?;
        let watching = Watching {
            requests: Some(requests),
            control,
            notices,
            watches: Watches::default(),
            ready: VecDeque::new(),
            etcd,
        };
        // It is driven by whoever sends its answers: while the client
        // takes none, nothing is asked of the hub either.
        let responses = stream::unfold(Some(watching), async |watching| {
            let mut watching = watching?;
            match watching.next().await {
                Ok(response) => Some((Ok(response), Some(watching))),
                Err(status) => Some((Err(status), None)),
            }
        });
        let mut response = http::Response::new(Body::new(WatchBody::new(Box::pin(responses))));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        Ok(response)
    }
}

/// How the messages of a request are compressed.
fn encoding(headers: &HeaderMap) -> Result<Option<CompressionEncoding>, Status> {
    match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(None),
        Some(b"gzip") => Ok(Some(CompressionEncoding::Gzip)),
        Some(other) => {
            let other = other.escape_ascii();
            let mut status = Status::unimplemented(format!(
                "messages compressed with {other} cannot be read; use gzip or identity"
            ));
            let accepted = MetadataValue::from_static("gzip,identity");
            status.metadata_mut().insert("grpc-accept-encoding", accepted);
            Err(status)
        }
    }
}

/// One stream.
struct Watching {
    /// Gone when the client has closed its half; events go on.
    requests: Option<Streaming<WatchRequest>>,
    control: WatchControl,
    notices: WatchNotices,
    watches: Watches,
    /// What is to be sent before anything else.
    ready: VecDeque<EncodedWatchResponse>,
    etcd: Etcd,
}

impl Watching {
    /// The next answer, or how the stream ends.
    async fn next(&mut self) -> Result<EncodedWatchResponse, Status> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Ok(response);
            }
            tokio::select! {
                request = next_request(&mut self.requests), if self.requests.is_some() => {
                    match request? {
                        Some(request) => self.take(request).await?,
                        None => self.requests = None,
                    }
                }
                notice = self.notices.next() => match notice {
                    Some(notice) => self.tell(notice),
                    None => return Err(self.ended()),
                }
            }
        }
    }

    /// The hub tells this stream nothing more.
    fn ended(&self) -> Status {
        if self.etcd.handle().standing().stopping {
            return Error::Stopped.into();
        }
        if self.etcd.handle().is_accused() {
            return Error::Corrupt.into();
        }
        Error::TooManyRequests.into()
    }

    async fn take(&mut self, request: RequestUnion) -> Result<(), Status> {
        match request {
            RequestUnion::CreateRequest(create) => self.create(create).await?,
            RequestUnion::CancelRequest(WatchCancelRequest { watch_id }) => {
                if let Some(number) = self.watches.cancel(watch_id) {
                    self.control.cancel(number).await;
                }
            }
            RequestUnion::ProgressRequest(_) => self.control.request_progress().await,
        }
        Ok(())
    }

    async fn create(&mut self, create: WatchCreateRequest) -> Result<(), Status> {
        let Ok(start_revision) = u64::try_from(create.start_revision) else {
            return self.refuse(Error::Compacted.text());
        };
        let spec = spec(&create, start_revision);
        if !is_watchable(&spec) {
            return self.refuse(EMPTY_RANGE);
        }
        let watch = Watch {
            id: create.watch_id,
            fragment: create.fragment,
            prev_kv: create.prev_kv,
            cancelled: false,
        };
        match self.watches.add(watch) {
            Some(number) => self.control.open(number, spec).await,
            None => return self.refuse(DUPLICATE_ID),
        }
        Ok(())
    }

    /// The client asked for a watch that cannot be; the stream goes on.
    fn refuse(&mut self, why: &str) -> Result<(), Status> {
        let header = Some(self.etcd.header_now()?);
        let refused = WatchResponse {
            header,
            watch_id: NO_WATCH,
            created: true,
            canceled: true,
            cancel_reason: why.to_owned(),
            ..WatchResponse::default()
        };
        self.ready.push_back(refused.into());
        Ok(())
    }

    /// Makes answers of what the hub says.
    fn tell(&mut self, notice: Notice) {
        let response = match notice {
            Notice::Created { watch, revision } => {
                self.watches.get(watch).map(|Watch { id, .. }| WatchResponse {
                    created: true,
                    ..self.response(id, revision)
                })
            }
            Notice::Refused { watch, revision, why } => {
                self.watches.remove(watch);
                Some(WatchResponse {
                    created: true,
                    canceled: true,
                    cancel_reason: text(why),
                    ..self.response(NO_WATCH, revision)
                })
            }
            Notice::Events { watch, revision, compacted, events } => {
                return self.tell_events(watch, revision, compacted, &events);
            }
            Notice::Compacted { watch, revision, compacted } => {
                self.watches.remove(watch).map(|Watch { id, .. }| WatchResponse {
                    canceled: true,
                    compact_revision: super::to_wire(compacted),
                    cancel_reason: Error::Compacted.text().to_owned(),
                    ..self.response(id, revision)
                })
            }
            Notice::Cancelled { watch, revision } => {
                self.watches.remove(watch).map(|Watch { id, .. }| WatchResponse {
                    canceled: true,
                    ..self.response(id, revision)
                })
            }
            Notice::Progress { watch: NO_WATCH, revision } => {
                Some(self.response(NO_WATCH, revision))
            }
            Notice::Progress { watch, revision } => {
                let watch = self.watches.get(watch).filter(|watch| !watch.cancelled);
                watch.map(|Watch { id, .. }| self.response(id, revision))
            }
        };
        self.ready.extend(response.map(EncodedWatchResponse::from));
    }

    fn tell_events(&mut self, watch: i64, revision: u64, compacted: u64, events: &Events) {
        let Some(Watch { id, fragment, prev_kv, cancelled: false }) = self.watches.get(watch)
        else {
            return;
        };
        let head = self.response(id, revision);
        if fragment {
            let most = self.etcd.shared.limits.max_request_bytes;
            self.ready.extend(fragments(head, events.encoded_each(prev_kv, compacted), most));
        } else {
            let events = events.encoded(prev_kv, compacted);
            self.ready.push_back(EncodedWatchResponse { head, events });
        }
    }

    /// The beginning of an answer that concerns a watch, as of a revision.
    fn response(&self, watch_id: i64, revision: u64) -> WatchResponse {
        let header = Some(self.etcd.header(revision));
        WatchResponse { header, watch_id, ..WatchResponse::default() }
    }
}

/// The hub's refusal in etcd's words, where it has any.
fn text(refusal: Refusal) -> String {
    match refusal {
        Refusal::EmptyRange => EMPTY_RANGE.to_owned(),
        Refusal::NumberTaken => DUPLICATE_ID.to_owned(),
        Refusal::StreamFull | Refusal::NodeFull => refusal.to_string(),
    }
}

/// The client's next request that asks for something, `None` when there will
/// be none.
async fn next_request(
    requests: &mut Option<Streaming<WatchRequest>>,
) -> Result<Option<RequestUnion>, Status> {
    let Some(requests) = requests else { return Ok(None) };
    loop {
        match requests.next().await {
            None => return Ok(None),
            Some(Ok(WatchRequest { request_union: Some(request) })) => return Ok(Some(request)),
            Some(Ok(WatchRequest { request_union: None })) => {}
            // The decoder's word for a message that is too large.
            Some(Err(status)) if status.code() == Code::OutOfRange => {
                return Err(Status::resource_exhausted(status.message()));
            }
            Some(Err(status)) => return Err(status),
        }
    }
}

fn spec(create: &WatchCreateRequest, start_revision: u64) -> Spec {
    // An empty key begins with the first key of all.
    let first = || b"\0".as_slice().into();
    let has = |filter: FilterType| create.filters.contains(&filter.into());
    Spec {
        key: if create.key.is_empty() { first() } else { create.key.clone() },
        range_end: create.range_end.clone(),
        start_revision,
        prev_kv: create.prev_kv,
        no_put: has(FilterType::Noput),
        no_delete: has(FilterType::Nodelete),
        progress_notify: create.progress_notify,
    }
}

/// Whether there is a key in the range.
fn is_watchable(Spec { key, range_end, .. }: &Spec) -> bool {
    matches!(range_end.as_ref(), b"" | b"\0") || key < range_end
}

/// What is remembered of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Watch {
    /// As the client knows it.
    id: i64,
    fragment: bool,
    prev_kv: bool,
    /// The client wants no more of it, and its id is free.
    cancelled: bool,
}

/// The watches of a stream, which the hub knows by numbers that are never used
/// again: the client's ids are.
#[derive(Debug, Default)]
struct Watches {
    by_number: HashMap<i64, Watch>,
    numbers: HashMap<i64, i64>,
    next_number: i64,
    next_id: i64,
}

impl Watches {
    /// Adds a watch, whose id is chosen if it is 0; its number, or `None` when
    /// the id is taken.
    fn add(&mut self, mut watch: Watch) -> Option<i64> {
        if watch.id == 0 {
            while self.numbers.contains_key(&self.next_id) {
                self.next_id += 1;
            }
            watch.id = self.next_id;
            self.next_id += 1;
        }
        if self.numbers.contains_key(&watch.id) {
            return None;
        }
        let number = self.next_number;
        self.next_number += 1;
        self.numbers.insert(watch.id, number);
        self.by_number.insert(number, watch);
        Some(number)
    }

    fn get(&self, number: i64) -> Option<Watch> {
        self.by_number.get(&number).copied()
    }

    /// Makes a watch silent; its number, if there is one of this id.
    fn cancel(&mut self, id: i64) -> Option<i64> {
        let number = self.numbers.remove(&id)?;
        if let Some(watch) = self.by_number.get_mut(&number) {
            watch.cancelled = true;
        }
        Some(number)
    }

    fn remove(&mut self, number: i64) -> Option<Watch> {
        let watch = self.by_number.remove(&number)?;
        if !watch.cancelled {
            self.numbers.remove(&watch.id);
        }
        Some(watch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(id: i64) -> Watch {
        Watch { id, fragment: false, prev_kv: false, cancelled: false }
    }

    #[test]
    fn ids_are_chosen_around_those_that_are_given() {
        let mut watches = Watches::default();
        let mut add = |id| watches.add(watch(id));
        let numbers = [add(1), add(0), add(0), add(0)].map(|number| number.expect("a free id"));
        assert_eq!(add(1), None);
        let ids = numbers.map(|number| watches.get(number).expect("a watch").id);
        assert_eq!(ids, [1, 0, 2, 3]);
    }

    #[test]
    fn a_cancelled_id_is_free_at_once_and_its_watch_silent() {
        let mut watches = Watches::default();
        let old = watches.add(watch(5)).expect("a free id");
        assert_eq!(watches.cancel(5), Some(old));
        assert_eq!(watches.cancel(5), None);
        let new = watches.add(watch(5)).expect("free again");
        assert!(new != old && watches.get(old).expect("not confirmed yet").cancelled);
        assert_eq!(watches.remove(old).map(|watch| watch.id), Some(5));
        assert_eq!(watches.cancel(5), Some(new), "the new one is still known");
    }

    #[test]
    fn ranges_have_keys() {
        let watchable = |key: &str, range_end: &str| {
            let create = WatchCreateRequest {
                key: key.to_owned().into(),
                range_end: range_end.to_owned().into(),
                ..WatchCreateRequest::default()
            };
            is_watchable(&spec(&create, 0))
        };
        assert!(watchable("a", "") && watchable("a", "\0") && watchable("a", "b"));
        assert!(watchable("", "") && watchable("", "\0"));
        assert!(!watchable("a", "a") && !watchable("b", "a"));
    }

    #[test]
    fn filters_are_known_ones() {
        let filters = vec![FilterType::Nodelete.into(), 77];
        let spec = spec(&WatchCreateRequest { filters, ..WatchCreateRequest::default() }, 3);
        assert!(spec.no_delete && !spec.no_put);
        assert_eq!((spec.key.as_ref(), spec.start_revision), (&b"\0"[..], 3));
    }
}
