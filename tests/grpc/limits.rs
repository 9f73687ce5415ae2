//! How large requests and answers may be.

use metastore::proto::{
    etcdserverpb::{
        PutRequest, RangeRequest, WatchCreateRequest, WatchRequest, range_request::SortOrder,
        watch_request::RequestUnion,
    },
    mvccpb::KeyValue,
};
use prost::Message as _;
use tokio::task::yield_now;
use tonic::{Code, codec::CompressionEncoding};

use super::{Server, everything, one, port::open, put};

const MAX_REQUEST_BYTES: usize = 100_000;

/// What is read beyond that before a message is refused unread.
const OVERHEAD_BYTES: usize = 512 << 10;

async fn small() -> Server {
    let most = MAX_REQUEST_BYTES.to_string();
    Server::start(&[("--max-request-bytes", &most), ("--max-response-bytes", "1MiB")]).await
}

/// A put whose message has so many bytes.
fn of_size(bytes: usize) -> PutRequest {
    let mut request = put("key", vec![0_u8; bytes]);
    let over = request.encoded_len() - bytes;
    request.value.truncate(bytes - over);
    assert_eq!(request.encoded_len(), bytes);
    request
}

#[tokio::test]
async fn exactly_the_limit_is_taken() {
    let server = small().await;
    let mut kv = server.kv().await;
    kv.put(of_size(MAX_REQUEST_BYTES)).await.expect("a put of the greatest size");
    let status = kv.put(of_size(MAX_REQUEST_BYTES + 1)).await.expect_err("too large");
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "etcdserver: request is too large")
    );
    let unread = MAX_REQUEST_BYTES + OVERHEAD_BYTES;
    let status = kv.put(of_size(unread)).await.expect_err("too large");
    assert_eq!(status.code(), Code::InvalidArgument);
    for bytes in [unread + 1, 40 << 20] {
        let status = kv.put(of_size(bytes)).await.expect_err("too large to be read");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.message().contains("--max-request-bytes"), "{status:?}");
    }
    // On the same connection.
    kv.put(put("key", "small")).await.expect("the connection works");
}

#[tokio::test]
async fn many_small_requests_of_one_connection_may_wait_to_be_read() {
    const REQUESTS: usize = 2_000;
    let mut server = Server::start(&[]).await;
    let kv = server.kv().await;
    kv.clone().put(put("key", "value")).await.expect("a put");
    server.node.pause();
    let requests = (0..REQUESTS).map(|number| {
        let mut kv = kv.clone();
        tokio::spawn(async move { kv.put(put(&format!("key {number}"), "value")).await })
    });
    let requests: Vec<_> = requests.collect();
    // Here is one thread: after so many turns of all tasks there is nothing
    // left that could be sent, and the node finds it all at once.
    for _ in 0..REQUESTS {
        yield_now().await;
    }
    server.node.resume();
    for request in requests {
        request.await.expect("no panic").expect("a put");
    }
}

#[tokio::test]
async fn what_is_compressed_counts_as_it_is() {
    let server = small().await;
    let mut kv = server.kv().await.send_compressed(CompressionEncoding::Gzip);
    kv.put(of_size(MAX_REQUEST_BYTES)).await.expect("a put of the greatest size");
    let status = kv.put(of_size(MAX_REQUEST_BYTES + 1)).await.expect_err("too large");
    assert_eq!(status.code(), Code::InvalidArgument);
    // A few kilobytes on the wire.
    let status = kv.put(of_size(40 << 20)).await.expect_err("too large to be unpacked");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
}

#[tokio::test]
async fn a_watch_request_that_is_too_large_ends_its_stream_alone() {
    let server = small().await;
    let key = vec![b'k'; MAX_REQUEST_BYTES + OVERHEAD_BYTES].into();
    let create = WatchCreateRequest { key, ..WatchCreateRequest::default() };
    let large = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let (_sender, mut answers) = open(&server, vec![large]).await;
    let status = answers.message().await.expect_err("too large");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    server.kv().await.put(put("key", "value")).await.expect("the server works");
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_streamed_instead() {
    let server = small().await;
    let mut kv = server.kv().await;
    for n in 0..30 {
        kv.put(put(&format!("key-{n:02}"), vec![0_u8; 50_000])).await.expect("a put");
    }
    let status = kv.range(everything()).await.expect_err("too large");
    assert_eq!(status.code(), Code::ResourceExhausted);
    for part in ["1048576 bytes", "`limit`", "RangeStream"] {
        assert!(status.message().contains(part), "{status:?}");
    }
    let few = kv.range(RangeRequest { limit: 3, ..everything() }).await.expect("a few of them");
    assert!(few.get_ref().more && few.get_ref().count == 30);
    assert_eq!(streamed(&mut kv, everything()).await, (30, true));

    // An order that needs all at once has the limit of a range.
    let sorted = RangeRequest { sort_order: SortOrder::Descend.into(), ..everything() };
    let mut pieces = kv.range_stream(sorted.clone()).await.expect("a stream").into_inner();
    let status = pieces.message().await.expect_err("too large");
    assert_eq!(status.code(), Code::ResourceExhausted);
    let some = RangeRequest { limit: 15, ..sorted };
    assert_eq!(streamed(&mut kv, some).await, (15, false));
}

/// How many pairs a stream gives, and whether ascending by key.
async fn streamed(
    kv: &mut metastore::proto::etcdserverpb::kv_client::KvClient<tonic::transport::Channel>,
    request: RangeRequest,
) -> (usize, bool) {
    let mut pieces = kv.range_stream(request).await.expect("a stream").into_inner();
    let mut kvs: Vec<KeyValue> = Vec::new();
    let mut ended = false;
    while let Some(piece) = pieces.message().await.expect("the stream goes on") {
        assert!(!ended, "a piece after the last");
        let range = piece.range_response.expect("a piece of the range");
        ended = range.header.is_some();
        kvs.extend(range.kvs);
    }
    assert!(ended, "the last piece has the header");
    (kvs.len(), kvs.is_sorted_by(|one, other| one.key < other.key))
}

#[tokio::test]
async fn a_stream_of_a_range_that_nobody_reads_is_given_up() {
    let server = Server::start(&[]).await;
    let mut kv = server.kv().await;
    for n in 0..40 {
        kv.put(put(&format!("key-{n:02}"), vec![0_u8; 1 << 20])).await.expect("a put");
    }
    // More than may be open at once, each dropped after its first piece.
    for _ in 0..200 {
        let mut reader = server.kv().await;
        let mut pieces = loop {
            match reader.range_stream(everything()).await {
                Ok(pieces) => break pieces.into_inner(),
                // Those before are still being given up.
                Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}"),
            }
        };
        let first = pieces.message().await.expect("a piece").expect("a piece");
        assert!(first.range_response.expect("a piece").header.is_none());
    }
    assert_eq!(streamed(&mut kv, everything()).await, (40, true));
    assert_eq!(kv.range(one("key-07")).await.expect("a range").get_ref().count, 1);
}
