//! gRPC and plain HTTP on one port.

use std::{str::FromStr, time::Instant};

use hyper::Method;
use metastore::proto::etcdserverpb::{
    PutRequest, PutResponse, WatchCreateRequest, WatchRequest, watch_request::RequestUnion,
};
use tokio::sync::mpsc;
use tonic::{Code, Request, Streaming, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use super::{
    Server, one,
    process::{STOP_LIMIT, eventually},
    put,
};

/// Requests of a client that says nothing more once these are sent.
pub(super) fn requests<T: Send + 'static>(
    first: Vec<T>,
) -> (mpsc::UnboundedSender<T>, impl futures_util::Stream<Item = T> + Send + 'static) {
    let (sender, mut queue) = mpsc::unbounded_channel();
    for request in first {
        assert!(sender.send(request).is_ok());
    }
    (sender, futures_util::stream::poll_fn(move |cx| queue.poll_recv(cx)))
}

pub(super) fn watch_one(key: &str) -> WatchRequest {
    let create = WatchCreateRequest { key: one(key).key, ..WatchCreateRequest::default() };
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

/// An open stream with these first requests.
pub(super) async fn open(
    server: &Server,
    first: Vec<WatchRequest>,
) -> (mpsc::UnboundedSender<WatchRequest>, Streaming<metastore::proto::etcdserverpb::WatchResponse>)
{
    let (sender, stream) = requests(first);
    let answer = server.watch().await.watch(Request::new(stream)).await;
    (sender, answer.expect("a stream").into_inner())
}

#[tokio::test]
async fn both_protocols_see_the_same_keys() {
    let server = Server::start(&[]).await;
    let mut kv = server.kv().await;
    server.node.http().put("by-curl", "one").await;
    let answer = kv.range(one("by-curl")).await.expect("a range").into_inner();
    assert_eq!(answer.kvs[0].value, "one");
    let answer = kv.put(put("by-grpc", "two")).await.expect("a put").into_inner();
    assert_eq!(answer.header.expect("a header").revision, answer_revision(&server).await);
    assert_eq!(server.node.http().get("by-grpc").await.as_deref(), Some("two"));
    // Over HTTP/1 a path of gRPC's is a key like any other.
    server.node.http().put("etcdserverpb.KV/Put", "a key").await;
    let answer = kv.range(one("etcdserverpb.KV/Put")).await.expect("a range").into_inner();
    assert_eq!(answer.count, 1);
}

async fn answer_revision(server: &Server) -> i64 {
    i64::try_from(server.node.http().status("revision").await).expect("a small revision")
}

#[tokio::test]
async fn calls_are_counted_by_method_and_code() {
    let server = Server::start(&[]).await;
    let mut kv = server.kv().await;
    kv.put(put("key", "value")).await.expect("a put");
    kv.put(PutRequest::default()).await.expect_err("without a key");
    let mut grpc = Grpc::new(server.channel().await);
    grpc.ready().await.expect("a connection");
    let codec = ProstCodec::<PutRequest, PutResponse>::default();
    let path = PathAndQuery::from_str("/made.up/Call").expect("a path");
    let unknown = grpc.unary(Request::new(PutRequest::default()), path, codec).await;
    assert_eq!(unknown.expect_err("no such call").code(), Code::Unimplemented);
    for (method, code) in [
        ("/etcdserverpb.KV/Put", "OK"),
        ("/etcdserverpb.KV/Put", "INVALID_ARGUMENT"),
        ("other", "UNIMPLEMENTED"),
    ] {
        let sample = format!(
            "metastore_grpc_request_duration_seconds_count{{method=\"{method}\",code=\"{code}\"}}"
        );
        assert_eq!(server.metric(&sample).await, Some(1.0), "{sample}");
    }
}

#[tokio::test]
async fn a_stream_that_is_dropped_leaves_nothing() {
    const STREAMS: usize = 40;

    let server = Server::start(&[]).await;
    let mut streams = Vec::new();
    for n in 0..STREAMS {
        let (sender, mut answers) = open(&server, vec![watch_one(&format!("key-{n}"))]).await;
        assert!(answers.message().await.expect("an answer").expect("an answer").created);
        streams.push((sender, answers));
    }
    assert!(server.in_flight().await >= STREAMS as f64);
    drop(streams);
    eventually("the streams' places are free", async || {
        (server.in_flight().await == 0.0).then_some(())
    })
    .await;
    server.kv().await.put(put("key-1", "value")).await.expect("a put");
}

#[tokio::test]
async fn a_client_that_has_said_all_is_still_told() {
    let server = Server::start(&[]).await;
    let (sender, mut answers) = open(&server, vec![watch_one("key")]).await;
    assert!(answers.message().await.expect("an answer").expect("an answer").created);
    drop(sender);
    let mut kv = server.kv().await;
    for value in ["one", "two"] {
        kv.put(put("key", value)).await.expect("a put");
        let answer = answers.message().await.expect("the stream goes on").expect("an answer");
        assert_eq!(
            answer.events[0].kv.as_ref().map(|kv| kv.value.as_ref()),
            Some(value.as_bytes())
        );
    }
}

#[tokio::test]
async fn a_node_stops_although_streams_are_open() {
    let mut server = Server::start(&[]).await;
    let (_sender, mut answers) = open(&server, vec![watch_one("key")]).await;
    assert!(answers.message().await.expect("an answer").expect("an answer").created);
    let start = Instant::now();
    server.node.stop().await;
    assert!(start.elapsed() < STOP_LIMIT, "{:?}", start.elapsed());
    // However it ends, it is not with a word that all is well.
    answers.message().await.expect_err("a stream that was cut");
}

#[tokio::test]
async fn plain_requests_are_answered_beside_streams() {
    let server = Server::start(&[]).await;
    let (_sender, mut answers) = open(&server, vec![watch_one("key")]).await;
    assert!(answers.message().await.expect("an answer").expect("an answer").created);
    let reply = server.node.http().expect(204, Method::PUT, "/key", "by curl").await;
    assert!(reply.text().is_empty());
    let answer = answers.message().await.expect("an answer").expect("an answer");
    assert_eq!(answer.events[0].kv.as_ref().map(|kv| kv.value.as_ref()), Some(&b"by curl"[..]));
}
