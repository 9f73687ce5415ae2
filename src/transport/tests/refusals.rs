//! What the peer listener does not take.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use tokio::time;

use super::*;
use crate::{
    proto::ForwardBatch,
    transport::{
        batches,
        frame::{self, MAX_FRAME_BYTES},
    },
    version::PROTOCOL,
};

const GATED: [&str; 5] = [
    "/raft/stream/messages",
    "/raft/stream/appends",
    "/raft/snapshot",
    "/raft/forward",
    batches::PATH,
];

async fn status(request: reqwest::RequestBuilder) -> StatusCode {
    request.send().await.expect("an answer").status()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_missing_or_malformed_header_is_refused() {
    let (_one, two) = pair();
    for path in GATED {
        for name in ["cluster", "from", "incarnation", "to"] {
            let name = format!("x-metastore-{name}");
            let mut request = two.post(path, 1).build().expect("a request");
            request.headers_mut().remove(&name);
            let answer = reqwest::Client::new().execute(request).await.expect("an answer");
            assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{path} without {name}");

            let mut request = two.post(path, 1).build().expect("a request");
            request.headers_mut().insert(
                axum::http::HeaderName::from_bytes(name.as_bytes()).expect("a header name"),
                "many".parse().expect("a header value"),
            );
            let answer = reqwest::Client::new().execute(request).await.expect("an answer");
            assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{path} with a bad {name}");
            assert!(answer.text().await.expect("text").contains(&name));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_in_an_unknown_protocol_is_not_listened_to() {
    let (_one, two) = pair();
    let ungated = ["/raft/join", "/raft/founding", "/raft/members"];
    let newer = PROTOCOL.newest() + 1;
    for path in GATED.into_iter().chain(ungated) {
        for protocol in
            [newer.to_string(), format!("{newer}-9"), "0".into(), "".into(), "1.5".into()]
        {
            let answer = two.post(path, 1).header("x-metastore-protocol", &protocol).send().await;
            let answer = answer.expect("an answer");
            assert_eq!(answer.status(), StatusCode::UPGRADE_REQUIRED, "{path} in {protocol:?}");
            assert_eq!(answer.headers()["x-metastore-protocol"], PROTOCOL.to_string());
            let why = answer.text().await.expect("text");
            assert!(why.contains(&format!("the peer speaks {PROTOCOL}: upgrade")), "{why}");
        }
    }
    for protocol in ["1".to_owned(), format!("1-{newer}")] {
        let request = two.post("/raft/forward", 1).header("x-metastore-protocol", &protocol);
        assert_eq!(status(request).await, StatusCode::OK, "{protocol}");
    }
    two.assert_alive(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_and_told_the_cluster() {
    let (_one, two) = pair();
    two.directory.set(members(&[(1, "http://one"), (2, &two.url)], &[9]));
    let with = |name: &str, value: u64| {
        let mut request = two.post("/raft/forward", 1).build().expect("a request");
        let name = format!("x-metastore-{name}");
        let name = axum::http::HeaderName::from_bytes(name.as_bytes()).expect("a header name");
        request.headers_mut().insert(name, value.into());
        request
    };
    for (request, wanted) in [
        (with("cluster", 8), StatusCode::FORBIDDEN),
        (with("to", 3), StatusCode::FORBIDDEN),
        (with("from", 2), StatusCode::FORBIDDEN),
        (with("from", 4), StatusCode::FORBIDDEN),
        (with("incarnation", 12), StatusCode::FORBIDDEN),
        (with("from", 9), StatusCode::GONE),
        (with("cluster", CLUSTER_ID), StatusCode::OK),
    ] {
        let headers = format!("{:?}", request.headers());
        let answer = reqwest::Client::new().execute(request).await.expect("an answer");
        assert_eq!(answer.status(), wanted, "{headers}");
        if wanted != StatusCode::OK {
            let cluster = answer.headers().get("x-metastore-cluster").expect("our cluster");
            assert_eq!(cluster, "7");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_a_cluster_refuses_what_needs_one() {
    let (_one, two) = pair();
    *two.service.joined.lock() = None;
    for path in GATED {
        assert_eq!(status(two.post(path, 1)).await, StatusCode::SERVICE_UNAVAILABLE, "{path}");
    }
    let hello = client().hello(&two.url).await.expect("an answer");
    assert_eq!(hello.incarnation, incarnation(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_over_the_limit_and_garbage_are_refused() {
    let (_one, two) = pair();
    let (forward, join) = ("/raft/forward", "/raft/join");
    let too_large = StatusCode::PAYLOAD_TOO_LARGE;
    assert_eq!(status(two.post(forward, 1).body(vec![0; (20 << 20) + 1])).await, too_large);
    assert_eq!(status(two.post(join, 1).body(vec![0; (1 << 20) + 1])).await, too_large);
    let batch = two.post(batches::PATH, 1);
    assert_eq!(status(batch.body(vec![0; (20 << 20) + 1])).await, too_large);
    let requests = vec![ForwardRequest::default(); batches::MAX_BATCH + 1];
    let many = ForwardBatch { requests }.encode_to_vec();
    let batch = two.post(batches::PATH, 1);
    assert_eq!(status(batch.body(many)).await, StatusCode::BAD_REQUEST, "too many commands");
    for path in [forward, join, batches::PATH] {
        let request = two.post(path, 1).body("\u{fffd} garbage");
        assert_eq!(status(request).await, StatusCode::BAD_REQUEST);
    }
    assert_eq!(status(two.post(join, 1)).await, StatusCode::BAD_REQUEST, "member 0");
    two.assert_alive(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_join_slowly_are_few() {
    let (_one, two) = pair();
    let slow = || {
        let silent = futures_util::stream::pending::<std::io::Result<Bytes>>();
        two.post("/raft/join", 1).body(reqwest::Body::wrap_stream(silent)).send()
    };
    let mut refused = futures_util::stream::FuturesUnordered::new();
    refused.extend((0..40).map(|_| slow()));
    for _ in 0..40 - 16 {
        let next = futures_util::StreamExt::next(&mut refused);
        let answer = tokio::time::timeout(PATIENCE, next).await.expect("in time");
        let answer = answer.expect("forty requests").expect("an answer");
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    two.assert_alive(1).await;
}

fn framed(content: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u32(u32::try_from(content.len()).expect("small"));
    frame.put_slice(content);
    frame.freeze()
}

fn message_frame(message: &Message) -> Bytes {
    let mut frame = BytesMut::new();
    frame::encode(message, &mut frame).expect("small");
    frame.freeze()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_frame_ends_its_stream_and_nothing_else() {
    let (_one, two) = pair();
    let mut snapshot = heartbeat(1, 2, 0);
    snapshot.set_msg_type(MessageType::MsgSnapshot);
    let oversize = u32::try_from(MAX_FRAME_BYTES + 1).expect("fits").to_be_bytes();
    for bad in [
        framed(b"\xff\xff\xff\xff garbage"),
        framed(&[0xa3, 0x06].repeat(200_000)),
        Bytes::copy_from_slice(&oversize),
        Bytes::from_static(b"\0\0\0\x09cut"),
        message_frame(&heartbeat(3, 2, 1)),
        message_frame(&heartbeat(1, 3, 1)),
        message_frame(&snapshot),
    ] {
        // The body stays open, so that it is the frame that ends the stream.
        let bytes = futures_util::stream::iter([Ok::<_, std::io::Error>(bad)]);
        let body = futures_util::StreamExt::chain(bytes, futures_util::stream::pending());
        let request = two.post("/raft/stream/messages", 1);
        let answer = request.body(reqwest::Body::wrap_stream(body)).send().await;
        // A stream that ends while it is opened may take its answer with it.
        if let Ok(answer) = answer {
            let _end = time::timeout(PATIENCE, answer.bytes()).await.expect("the stream ends");
        }
        two.assert_alive(1).await;
    }
    assert!(two.waiting_event().is_none(), "nothing else reached raft");
}
