//! A client of one endpoint: the generated stubs, and short forms of calls.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use tokio_stream::{Stream, StreamExt};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

use super::{
    requests,
    wire::{
        CompactionRequest, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest,
        LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseTimeToLiveRequest,
        LeaseTimeToLiveResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
        ResponseHeader, StatusRequest, StatusResponse, TxnRequest, TxnResponse,
        cluster_client::ClusterClient, kv_client::KvClient, lease_client::LeaseClient,
        maintenance_client::MaintenanceClient, mvccpb::KeyValue,
        v3electionpb::election_client::ElectionClient, v3lockpb::lock_client::LockClient,
        watch_client::WatchClient,
    },
};

/// How long a condition or an answer may take before the test fails.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Time between two looks at a condition.
const POLL: Duration = Duration::from_millis(25);

/// Above every answer of the suite.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Polls until the probe yields something.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "still not after {DEADLINE:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// Waits for something that must come.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(output) => output,
        Err(_) => panic!("still not after {DEADLINE:?}: {what}"),
    }
}

/// A connection to one endpoint.
#[derive(Debug, Clone)]
pub struct Client {
    /// The endpoint's URL, without a slash at its end.
    pub url: String,
    /// The connection itself.
    pub channel: Channel,
}

impl Client {
    /// Connects with the first call.
    pub fn new(url: &str) -> Self {
        let url = url.trim_end_matches('/').to_owned();
        let endpoint = Endpoint::from_shared(url.clone()).expect("the endpoint is a URL");
        let channel = endpoint.connect_timeout(Duration::from_secs(5)).connect_lazy();
        Self { url, channel }
    }

    pub fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
            .max_encoding_message_size(MAX_ANSWER_BYTES)
    }

    pub fn watch(&self) -> WatchClient<Channel> {
        WatchClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }

    pub fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone())
    }

    pub fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub fn lock(&self) -> LockClient<Channel> {
        LockClient::new(self.channel.clone())
    }

    pub fn election(&self) -> ElectionClient<Channel> {
        ElectionClient::new(self.channel.clone())
    }

    pub async fn try_range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        self.kv().range(request).await.map(Response::into_inner)
    }

    pub async fn range(&self, request: RangeRequest) -> RangeResponse {
        self.try_range(request).await.expect("a range is answered")
    }

    /// The key's present state.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Option<KeyValue> {
        self.range(requests::one(key)).await.kvs.pop()
    }

    pub async fn try_put(&self, request: PutRequest) -> Result<PutResponse, Status> {
        self.kv().put(request).await.map(Response::into_inner)
    }

    /// Puts a value; its revision.
    pub async fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> i64 {
        let answer = self.try_put(requests::put(key, value)).await.expect("a put succeeds");
        revision(answer.header.as_ref())
    }

    /// Puts a key that belongs to a lease; its revision.
    pub async fn put_leased(&self, key: impl AsRef<[u8]>, lease: i64) -> i64 {
        let request = PutRequest { lease, ..requests::put(key, "leased") };
        let answer = self.try_put(request).await.expect("a put with a lease succeeds");
        revision(answer.header.as_ref())
    }

    pub async fn try_delete(
        &self,
        request: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, Status> {
        self.kv().delete_range(request).await.map(Response::into_inner)
    }

    pub async fn delete(&self, request: DeleteRangeRequest) -> DeleteRangeResponse {
        self.try_delete(request).await.expect("a delete succeeds")
    }

    pub async fn try_txn(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        self.kv().txn(request).await.map(Response::into_inner)
    }

    pub async fn txn(&self, request: TxnRequest) -> TxnResponse {
        self.try_txn(request).await.expect("a txn succeeds")
    }

    /// Compacts; the header's revision.
    pub async fn try_compact(&self, request: CompactionRequest) -> Result<i64, Status> {
        let answer = self.kv().compact(request).await?.into_inner();
        Ok(revision(answer.header.as_ref()))
    }

    /// Compacts and waits until the history is gone.
    pub async fn compact(&self, revision: i64) {
        let request = CompactionRequest { revision, physical: true };
        self.try_compact(request).await.expect("a compaction succeeds");
    }

    /// The store's revision now.
    pub async fn revision(&self) -> i64 {
        let request = RangeRequest { count_only: true, ..requests::one("s") };
        revision(self.range(request).await.header.as_ref())
    }

    pub async fn try_grant(&self, id: i64, ttl: i64) -> Result<LeaseGrantResponse, Status> {
        self.lease().lease_grant(LeaseGrantRequest { ttl, id }).await.map(Response::into_inner)
    }

    /// Grants a lease of an id that the server chooses; its id.
    pub async fn grant(&self, ttl: i64) -> i64 {
        self.try_grant(0, ttl).await.expect("a grant succeeds").id
    }

    pub async fn time_to_live(&self, id: i64) -> LeaseTimeToLiveResponse {
        let request = LeaseTimeToLiveRequest { id, keys: true };
        let answer = self.lease().lease_time_to_live(request).await;
        answer.expect("time to live is answered").into_inner()
    }

    /// One renewal, on a stream of its own.
    pub async fn keep_alive(&self, id: i64) -> LeaseKeepAliveResponse {
        let requests = tokio_stream::once(LeaseKeepAliveRequest { id });
        let mut answers = self.keep_alives(requests).await;
        soon("a renewal", answers.next()).await.expect("an answer").expect("a renewal succeeds")
    }

    /// Renewals on one stream.
    pub async fn keep_alives(
        &self,
        requests: impl Stream<Item = LeaseKeepAliveRequest> + Send + 'static,
    ) -> Streaming<LeaseKeepAliveResponse> {
        let mut lease = self.lease();
        let answers = soon("a stream of renewals", lease.lease_keep_alive(requests));
        answers.await.expect("a stream of renewals").into_inner()
    }

    pub async fn try_status(&self) -> Result<StatusResponse, Status> {
        self.maintenance().status(StatusRequest {}).await.map(Response::into_inner)
    }

    pub async fn status(&self) -> StatusResponse {
        self.try_status().await.expect("status is answered")
    }
}

/// The revision of a header that must be there.
#[track_caller]
pub fn revision(header: Option<&ResponseHeader>) -> i64 {
    header.expect("an answer has a header").revision
}

/// The request with the metadata that asks for a leader.
pub fn with_leader<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("hasleader", "true".parse().expect("plain text"));
    request
}
