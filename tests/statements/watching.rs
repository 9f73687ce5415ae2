//! One stream of watches.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use super::{
    client::{Client, soon, with_leader},
    requests::{bytes, end_of},
    wire::{
        WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
        mvccpb::{Event, event::EventType},
        watch_request::RequestUnion,
    },
};

/// Requests that may wait for the stream.
const PENDING_REQUESTS: usize = 64;

/// A watch on one key, from now on.
pub fn watch_one(key: impl AsRef<[u8]>) -> WatchCreateRequest {
    WatchCreateRequest { key: bytes(key), ..WatchCreateRequest::default() }
}

/// A watch on the keys with this prefix, from now on.
pub fn watch_below(prefix: impl AsRef<[u8]>) -> WatchCreateRequest {
    WatchCreateRequest { range_end: end_of(&prefix), ..watch_one(prefix) }
}

/// Kind, key and mod_revision of an event.
pub fn seen(event: &Event) -> (EventType, Vec<u8>, i64) {
    let kv = event.kv.as_ref().expect("an event has a key");
    (event.r#type(), kv.key.to_vec(), kv.mod_revision)
}

/// A stream of watches on one endpoint.
pub struct WatchStream {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl WatchStream {
    /// Opens a stream with a first watch; the stream and the first answer.
    pub async fn open(client: &Client, create: WatchCreateRequest) -> (Self, WatchResponse) {
        Self::start(client, create, Request::new).await
    }

    /// As [`open`](Self::open), for a stream that ends without a leader.
    pub async fn open_with_leader(
        client: &Client,
        create: WatchCreateRequest,
    ) -> (Self, WatchResponse) {
        Self::start(client, create, with_leader).await
    }

    async fn start(
        client: &Client,
        create: WatchCreateRequest,
        wrap: impl FnOnce(ReceiverStream<WatchRequest>) -> Request<ReceiverStream<WatchRequest>>,
    ) -> (Self, WatchResponse) {
        let (requests, queue) = mpsc::channel(PENDING_REQUESTS);
        // Servers may answer the call only with their first message, so the
        // first request goes ahead of it.
        send(&requests, RequestUnion::CreateRequest(create)).await;
        let request = wrap(ReceiverStream::new(queue));
        let answer = soon("a stream of watches", client.watch().watch(request)).await;
        let responses = answer.expect("a stream of watches opens").into_inner();
        let mut stream = Self { requests, responses };
        let first = stream.next().await;
        (stream, first)
    }

    /// A further watch; what comes next on the stream.
    pub async fn create(&mut self, create: WatchCreateRequest) -> WatchResponse {
        self.ask(RequestUnion::CreateRequest(create)).await;
        self.next().await
    }

    pub async fn cancel(&self, watch_id: i64) {
        self.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })).await;
    }

    pub async fn request_progress(&self) {
        self.ask(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    }

    /// Sends a request that asks for nothing.
    pub async fn request_nothing(&self) {
        self.requests.send(WatchRequest::default()).await.expect("the stream is open");
    }

    async fn ask(&self, request: RequestUnion) {
        send(&self.requests, request).await;
    }

    /// The next message, or how the stream ended.
    pub async fn try_next(&mut self) -> Result<Option<WatchResponse>, Status> {
        soon("a message of the stream", self.responses.message()).await
    }

    /// The next message.
    pub async fn next(&mut self) -> WatchResponse {
        self.try_next().await.expect("the stream goes on").expect("the stream goes on")
    }

    /// The next message if one comes within this time.
    pub async fn next_within(&mut self, limit: std::time::Duration) -> Option<WatchResponse> {
        match tokio::time::timeout(limit, self.responses.message()).await {
            Ok(answer) => Some(answer.expect("the stream goes on").expect("the stream goes on")),
            Err(_) => None,
        }
    }

    /// Messages until they hold this many events, and no more.
    pub async fn batches(&mut self, events: usize) -> Vec<WatchResponse> {
        let mut batches = Vec::new();
        let mut count = 0;
        while count < events {
            let batch = self.next().await;
            assert!(!batch.events.is_empty(), "a message without events: {batch:?}");
            count += batch.events.len();
            batches.push(batch);
        }
        assert_eq!(count, events, "more events than expected: {batches:?}");
        batches
    }

    /// The next so many events.
    pub async fn events(&mut self, count: usize) -> Vec<Event> {
        self.batches(count).await.into_iter().flat_map(|batch| batch.events).collect()
    }

    /// Kind, key and revision of the next so many events.
    pub async fn seen(&mut self, count: usize) -> Vec<(EventType, Vec<u8>, i64)> {
        self.events(count).await.iter().map(seen).collect()
    }
}

async fn send(requests: &mpsc::Sender<WatchRequest>, request: RequestUnion) {
    let request = WatchRequest { request_union: Some(request) };
    requests.send(request).await.expect("the stream is open");
}

/// Checks that the answer announces a watch that works; its id.
#[track_caller]
pub fn created(answer: &WatchResponse) -> i64 {
    assert!(answer.created && !answer.canceled, "not just created: {answer:?}");
    assert!(answer.events.is_empty(), "created, but with events: {answer:?}");
    assert_eq!(answer.compact_revision, 0, "{answer:?}");
    answer.watch_id
}
