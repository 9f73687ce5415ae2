//! What a member does while the CORRUPT alarm names it: it serves nothing to
//! clients, and everything to those who look into it.

use std::{net::TcpListener, time::Duration};

use bytes::Bytes;
use metastore::{
    api,
    config::{AutoCompaction, ClusterEntry, Config, LogFormat, http_url},
    error::Rejected,
    metrics::Metrics,
    node::{Handle, Node},
    proto::{
        SetAlarm,
        command::Op,
        etcdserverpb::{
            AlarmRequest, AlarmType, CompactionRequest, DeleteRangeRequest, HashKvRequest,
            LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseTimeToLiveRequest,
            MemberListRequest, PutRequest, RangeRequest, SnapshotRequest, StatusRequest,
            TxnRequest, WatchCreateRequest, WatchRequest, alarm_request::AlarmAction,
            cluster_client::ClusterClient, kv_client::KvClient, lease_client::LeaseClient,
            maintenance_client::MaintenanceClient, watch_client::WatchClient,
            watch_request::RequestUnion,
        },
        grpc::health::v1::{
            HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
        },
        v3electionpb::{CampaignRequest, election_client::ElectionClient},
        v3lockpb::{LockRequest, lock_client::LockClient},
    },
    transport::listener,
};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use slog::{Discard, Logger, o};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};

/// How long anything may take here before it counts as never.
const PATIENCE: Duration = Duration::from_secs(10);

/// A cluster of one, in this process.
struct Member {
    handle: Handle,
    url: String,
    http: Client,
    channel: Channel,
    stop: CancellationToken,
    node: Node,
    _dir: TempDir,
}

fn free_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("it is bound").port()
}

fn config(dir: &TempDir) -> Config {
    Config {
        id: 1,
        cluster: vec![ClusterEntry { id: 1, url: http_url("127.0.0.1", free_port()) }],
        join: false,
        host: "127.0.0.1".to_owned(),
        port: 1,
        data_dir: dir.path().to_owned(),
        snapshot_count: 10_000,
        heartbeat_interval: Duration::from_millis(50),
        election_timeout: Duration::from_millis(500),
        request_timeout: Duration::from_secs(5),
        max_request_bytes: 1 << 20,
        max_response_bytes: 256 << 20,
        auto_compaction: AutoCompaction::Off,
        quota_backend_bytes: 0,
        corruption_check_interval: Duration::ZERO,
        advertise_client_url: "http://127.0.0.1:1".to_owned(),
        log_format: LogFormat::Text,
        log_level: slog::Level::Info,
    }
}

impl Member {
    async fn start() -> Self {
        let dir = TempDir::with_prefix("metastore-test-").expect("make a temporary directory");
        let (metrics, logger) = (Metrics::new(), Logger::root(Discard, o!()));
        let node = Node::start(config(&dir), metrics.clone(), logger.clone()).await;
        let node = node.expect("a node that starts");
        let api = api::Api::new(node.handle(), api::Limits::new(1 << 20), metrics, logger.clone());
        let socket = listener::bind("127.0.0.1", 0, "--port").expect("a free port");
        let url = format!("http://{}", socket.local_addr().expect("it is bound"));
        let stop = CancellationToken::new();
        let (places, timeouts) =
            (listener::Places::allowed().clients, listener::Timeouts::default());
        let serving = listener::serve(socket, api, places, timeouts, stop.clone(), logger);
        drop(serving.expect("a listener"));
        let endpoint = Endpoint::from_shared(url.clone()).expect("a URL");
        let member = Self {
            handle: node.handle(),
            url,
            http: Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client"),
            channel: endpoint.connect().await.expect("a connection"),
            stop,
            node,
            _dir: dir,
        };
        member.until(async || member.handle.is_ready().await.is_ok()).await;
        member
    }

    async fn until(&self, mut condition: impl AsyncFnMut() -> bool) {
        let met = async {
            while !condition().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, met).await.expect("in time");
    }

    async fn accuse(&self) {
        let alarm = AlarmType::Corrupt.into();
        let op = Op::SetAlarm(SetAlarm { member: 1, alarm, active: true });
        self.handle.submit(op).await.expect("an alarm is raised");
    }

    async fn ask(&self, method: Method, path: &str, body: &str) -> (u16, String) {
        let request = self.http.request(method, format!("{}{path}", self.url));
        let answer = request.body(body.to_owned()).send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a whole answer"))
    }

    async fn get_json(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.ask(Method::GET, path, "").await;
        (status, serde_json::from_str(&body).expect("JSON"))
    }

    async fn stop(self) {
        self.stop.cancel();
        self.node.shutdown().await;
    }
}

/// The refusal in etcd's words.
fn assert_corrupt<T>(what: &str, answer: Result<T, Status>) {
    let Err(status) = answer else { panic!("{what} was answered") };
    let told = (status.code(), status.message());
    assert_eq!(told, (Code::DataLoss, "etcdserver: corrupt cluster"), "{what}");
}

/// How a stream goes on.
async fn next<T>(stream: Result<tonic::Response<Streaming<T>>, Status>) -> Result<T, Status> {
    let answer = stream?.into_inner().message().await?;
    answer.ok_or_else(|| Status::ok("it ended"))
}

fn key(key: &'static str) -> Bytes {
    Bytes::from_static(key.as_bytes())
}

fn get(serializable: bool) -> RangeRequest {
    RangeRequest { key: key("key"), serializable, ..RangeRequest::default() }
}

fn put() -> PutRequest {
    PutRequest { key: key("key"), value: key("refused"), ..PutRequest::default() }
}

fn watch() -> impl futures_util::Stream<Item = WatchRequest> + Send + 'static {
    let create = WatchCreateRequest { key: key("key"), ..WatchCreateRequest::default() };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    // Open for as long as the stream is.
    futures_util::StreamExt::chain(
        futures_util::stream::iter([create]),
        futures_util::stream::pending(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_refused() {
    let member = Member::start().await;
    assert_eq!(member.ask(Method::PUT, "/key", "value").await.0, 204);
    assert_eq!(member.ask(Method::POST, "/-/leases", r#"{"id":7,"ttl":600}"#).await.0, 201);
    member.accuse().await;
    for (method, path, body) in [
        (Method::GET, "/key", ""),
        (Method::GET, "/key?consistency=stale", ""),
        (Method::GET, "/key?revision=2", ""),
        (Method::GET, "/?list", ""),
        (Method::GET, "/?list&consistency=stale", ""),
        (Method::GET, "/key?watch", ""),
        (Method::PUT, "/key", "refused"),
        (Method::DELETE, "/key", ""),
        (Method::DELETE, "/k?prefix", ""),
        (Method::POST, "/-/txn", r#"{"then":[{"put":{"key":"key","value":"refused"}}]}"#),
        (Method::POST, "/-/txn", r#"{"then":[{"get":{"key":"key"}}]}"#),
        (Method::POST, "/-/compact", r#"{"revision":2}"#),
        (Method::POST, "/-/leases", r#"{"ttl":60}"#),
        (Method::GET, "/-/leases", ""),
        (Method::GET, "/-/leases/7", ""),
        (Method::POST, "/-/leases/7/keepalive", ""),
        (Method::DELETE, "/-/leases/7", ""),
    ] {
        let (status, answer) = member.ask(method.clone(), path, body).await;
        assert_eq!(status, 503, "{method} {path}: {answer}");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(answer["error"]["code"], "corrupt", "{method} {path}");
        let message = answer["error"]["message"].as_str().expect("a text");
        assert!(message.contains("remove member 1"), "{message}");
    }
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_etcds_clients_are_refused() {
    let member = Member::start().await;
    let channel = || member.channel.clone();
    let (mut kv, mut leases) = (KvClient::new(channel()), LeaseClient::new(channel()));
    kv.put(put()).await.expect("a put");
    leases.lease_grant(LeaseGrantRequest { ttl: 600, id: 7 }).await.expect("a lease");
    member.accuse().await;

    assert_corrupt("Range", kv.range(get(false)).await);
    assert_corrupt("a serializable Range", kv.range(get(true)).await);
    assert_corrupt("RangeStream", next(kv.range_stream(get(true)).await).await);
    assert_corrupt("Put", kv.put(put()).await);
    let delete = DeleteRangeRequest { key: key("key"), ..DeleteRangeRequest::default() };
    assert_corrupt("DeleteRange", kv.delete_range(delete).await);
    assert_corrupt("Txn", kv.txn(TxnRequest::default()).await);
    let compact = CompactionRequest { revision: 2, physical: false };
    assert_corrupt("Compact", kv.compact(compact).await);

    let grant = LeaseGrantRequest { ttl: 60, id: 0 };
    assert_corrupt("LeaseGrant", leases.lease_grant(grant).await);
    let time = LeaseTimeToLiveRequest { id: 7, keys: false };
    assert_corrupt("LeaseTimeToLive", leases.lease_time_to_live(time).await);
    assert_corrupt("LeaseLeases", leases.lease_leases(LeaseLeasesRequest {}).await);
    let renewals = futures_util::stream::iter([LeaseKeepAliveRequest { id: 7 }]);
    assert_corrupt("LeaseKeepAlive", next(leases.lease_keep_alive(renewals).await).await);

    let mut watches = WatchClient::new(channel());
    assert_corrupt("Watch", next(watches.watch(watch()).await).await);
    let lock = LockRequest { name: key("lock"), lease: 7 };
    assert_corrupt("Lock", LockClient::new(channel()).lock(lock).await);
    let campaign = CampaignRequest { name: key("election"), lease: 7, value: key("me") };
    assert_corrupt("Campaign", ElectionClient::new(channel()).campaign(campaign).await);
    let mut maintenance = MaintenanceClient::new(channel());
    assert_corrupt("Snapshot", next(maintenance.snapshot(SnapshotRequest {}).await).await);
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_under_way_end() {
    let member = Member::start().await;
    let mut watches = WatchClient::new(member.channel.clone());
    let mut stream = watches.watch(watch()).await.expect("a stream").into_inner();
    assert!(stream.message().await.expect("an answer").expect("an answer").created);
    let url = format!("{}/key?watch", member.url);
    let lines = member.http.get(url).send().await.expect("a watch");
    assert_eq!(lines.status(), 200);
    let mut health = HealthClient::new(member.channel.clone());
    let health = health.watch(HealthCheckRequest::default()).await;
    let mut health = health.expect("a stream").into_inner();
    let mut served =
        async || health.message().await.expect("an answer").expect("an answer").status();
    assert_eq!(served().await, ServingStatus::Serving);

    member.accuse().await;
    let ended = tokio::time::timeout(PATIENCE, stream.message()).await;
    assert_corrupt("a watch", ended.expect("it ends"));
    let lines = lines.text().await.expect("an end");
    let last: Value = serde_json::from_str(lines.lines().last().expect("a line")).expect("JSON");
    assert_eq!(last["error"]["code"], "corrupt", "{lines}");
    assert_eq!(served().await, ServingStatus::NotServing);
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_everything_and_can_disarm_the_alarm() {
    let member = Member::start().await;
    assert_eq!(member.ask(Method::PUT, "/key", "value").await.0, 204);
    assert_eq!(member.get_json("/-/status").await.1["alarms"], json!([]));
    member.accuse().await;
    let (_, status) = member.get_json("/-/status").await;
    assert_eq!(status["alarms"], json!([{ "member": 1, "alarm": "corrupt" }]));
    for (path, expected) in [
        ("/-/livez", 200),
        ("/-/metrics", 200),
        ("/-/members", 200),
        ("/-/hash", 200),
        ("/-/readyz", 503),
    ] {
        assert_eq!(member.ask(Method::GET, path, "").await.0, expected, "{path}");
    }
    let (code, health) = member.get_json("/-/health").await;
    assert_eq!((code, &health["health"]), (503, &json!("false")));
    let reason = health["reason"].as_str().expect("a reason");
    assert!(reason.contains("CORRUPT alarm"), "{reason}");

    let mut maintenance = MaintenanceClient::new(member.channel.clone());
    let status = maintenance.status(StatusRequest {}).await.expect("a status").into_inner();
    assert_eq!(status.errors, ["memberID:1 alarm:CORRUPT "]);
    let hash = maintenance.hash_kv(HashKvRequest { revision: 0 }).await;
    assert_eq!(hash.expect("a hash").into_inner().hash_revision, 2);
    let mut cluster = ClusterClient::new(member.channel.clone());
    let list = cluster.member_list(MemberListRequest { linearizable: true }).await;
    assert_eq!(list.expect("the members").into_inner().members.len(), 1);
    let listed = maintenance.alarm(AlarmRequest::default()).await.expect("the alarms");
    assert_eq!(listed.into_inner().alarms.len(), 1);

    let disarm = AlarmRequest {
        action: AlarmAction::Deactivate.into(),
        member_id: 1,
        alarm: AlarmType::Corrupt.into(),
    };
    maintenance.alarm(disarm).await.expect("an alarm is disarmed");
    assert_eq!(member.ask(Method::GET, "/key", "").await, (200, "value".to_owned()));
    assert_eq!(member.ask(Method::PUT, "/key", "again").await.0, 204);
    assert_eq!(member.get_json("/-/health").await.0, 200);
    assert_eq!(member.get_json("/-/status").await.1["alarms"], json!([]));
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_alarm_of_another_concerns_nobody_else() {
    let member = Member::start().await;
    let alarm = AlarmType::Corrupt.into();
    let op = Op::SetAlarm(SetAlarm { member: 2, alarm, active: true });
    member.handle.submit(op).await.expect("an alarm is raised");
    assert_eq!(member.ask(Method::PUT, "/key", "value").await.0, 204);
    assert_eq!(member.ask(Method::GET, "/key", "").await, (200, "value".to_owned()));
    assert!(member.handle.view().is_ok());
    member.accuse().await;
    assert_eq!(member.handle.view().err(), Some(Rejected::Corrupt(1)));
    member.stop().await;
}
