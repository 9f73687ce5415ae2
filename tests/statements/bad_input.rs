//! What no honest client sends: the error says so, and the server goes on.

use std::str::FromStr;

use bytes::Bytes;
use tonic::{Code, Status, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use super::{
    client::Client,
    errors::{BAD_MEMBER_URLS, EMPTY_WATCH_RANGE, REQUEST_TOO_LARGE, refused},
    requests::{Operation, all, bytes, delete_below, one, prefix, put},
    server::Server,
    watching::{WatchStream, created, watch_below, watch_one},
    wire::{MemberAddRequest, PutResponse, WatchCreateRequest, health},
};

/// The limit on one request.
const MAX_REQUEST_BYTES: usize = 3 << 19;

/// A request with text, whose text may be anything.
#[derive(Clone, PartialEq, prost::Message)]
struct AnyBytesAsText {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    text: Vec<Bytes>,
}

/// A call with a message of any kind.
async fn call<T: prost::Message + Default + 'static>(
    client: &Client,
    path: &str,
    message: T,
) -> Result<PutResponse, Status> {
    let mut grpc = Grpc::new(client.channel.clone());
    grpc.ready().await.expect("a connection");
    let path = PathAndQuery::from_str(path).expect("a path");
    let codec = ProstCodec::<T, PutResponse>::default();
    let answer = grpc.unary(tonic::Request::new(message), path, codec).await;
    answer.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn bad_input_requests_that_are_too_large() {
    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("large");
    let sized = |bytes| put(format!("{keys}k"), vec![b'x'; bytes]);
    client.try_put(sized(MAX_REQUEST_BYTES - 1024)).await.expect("a put below the limit");
    refused(client.try_put(sized(MAX_REQUEST_BYTES + 1)).await, REQUEST_TOO_LARGE);
    let parts = (0..4).map(|n| put(format!("{keys}{n}"), vec![b'x'; 400 << 10]).op());
    refused(client.try_txn(all(parts.collect())).await, REQUEST_TOO_LARGE);
    // Far above it, not even gRPC takes the message; the text is gRPC's own.
    let status = client.try_put(sized(8 << 20)).await.expect_err("a refusal");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let kv = client.get(format!("{keys}k")).await.expect("the key");
    assert_eq!((kv.version, kv.value.len()), (1, MAX_REQUEST_BYTES - 1024));
    client.delete(delete_below(&keys)).await;
}

#[tokio::test]
async fn bad_input_text_that_is_not_utf8() {
    let server = Server::shared().await;
    let client = &server.client;
    for text in [&b"\xff\xfe"[..], b"http://127.0.0.1:1\xc3", b"\xed\xa0\x80"] {
        let message = AnyBytesAsText { text: vec![bytes(text)] };
        let answer = call(client, "/etcdserverpb.Cluster/MemberAdd", message).await;
        let status = answer.expect_err("a refusal");
        // Refused as a message by some stacks, as a URL by others.
        let known = matches!(status.code(), Code::InvalidArgument | Code::Internal);
        assert!(known, "{status:?}");
    }
    for url in ["", "no url", "127.0.0.1:2380", "http://127.0.0.1", "ftp://127.0.0.1:1"] {
        let request = MemberAddRequest { peer_ur_ls: vec![url.to_owned()], is_learner: true };
        refused(client.cluster().member_add(request).await, BAD_MEMBER_URLS);
    }
    client.put(prefix("utf8"), [0xff, 0xfe, 0x00]).await;
}

#[tokio::test]
async fn bad_input_messages_that_are_none() {
    let server = Server::shared().await;
    let client = &server.client;
    // Field 1 of a put is no list of numbers; as text it is a key.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Number {
        #[prost(int64, tag = "1")]
        key: i64,
    }
    let answer = call(client, "/etcdserverpb.KV/Put", Number { key: 7 }).await;
    assert_eq!(answer.expect_err("a refusal").code(), Code::Internal);
    let message = AnyBytesAsText::default();
    for path in ["/etcdserverpb.KV/NoSuchCall", "/no.such.Service/Put"] {
        let answer = call(client, path, message.clone()).await;
        assert_eq!(answer.expect_err("a refusal").code(), Code::Unimplemented, "{path}");
    }
    client.range(one(prefix("messages"))).await;
}

#[tokio::test]
async fn bad_input_on_a_stream_of_watches() {
    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("stream");
    let (mut stream, answer) = WatchStream::open(client, watch_below(&keys)).await;
    let id = created(&answer);
    stream.request_nothing().await;
    stream.cancel(i64::MIN).await;
    for _ in 0..3 {
        let empty = WatchCreateRequest { range_end: bytes(&keys), ..watch_one(&keys) };
        let answer = stream.create(empty).await;
        assert_eq!((answer.watch_id, answer.canceled), (-1, true));
        assert_eq!(answer.cancel_reason, EMPTY_WATCH_RANGE);
    }
    // A filter that nobody knows filters nothing.
    let unknown = WatchCreateRequest { filters: vec![77], ..watch_one(format!("{keys}a")) };
    let other = created(&stream.create(unknown).await);
    client.put(format!("{keys}a"), "x").await;
    let mut ids = [stream.batches(1).await[0].watch_id, stream.batches(1).await[0].watch_id];
    ids.sort_unstable();
    assert_eq!(ids, [id.min(other), id.max(other)]);
}

#[tokio::test]
async fn health_is_served() {
    let server = Server::shared().await;
    let mut client = health::health_client::HealthClient::new(server.client.channel.clone());
    let request = health::HealthCheckRequest::default();
    let answer = client.check(request.clone()).await.expect("an answer").into_inner();
    assert_eq!(answer.status(), health::health_check_response::ServingStatus::Serving);
    let mut stream = client.watch(request).await.expect("a stream").into_inner();
    let first = stream.message().await.expect("a message").expect("a message");
    assert_eq!(first.status(), health::health_check_response::ServingStatus::Serving);
    let unknown = health::HealthCheckRequest { service: "no.such.Service".to_owned() };
    let status = client.check(unknown).await.expect_err("a refusal");
    assert_eq!(status.code(), Code::NotFound);
}
