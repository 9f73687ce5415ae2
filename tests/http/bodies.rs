//! Request bodies: the limit, how they are framed, and broken ones.

use crate::{MAX_REQUEST_BYTES, Server};

/// The start of a PUT with these header lines.
fn put_head(target: &str, lines: &str) -> Vec<u8> {
    format!("PUT {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{lines}\r\n").into_bytes()
}

fn chunk(length: usize) -> Vec<u8> {
    let mut chunk = format!("{length:x}\r\n").into_bytes();
    chunk.resize(chunk.len() + length, b'c');
    chunk.extend(b"\r\n");
    chunk
}

#[tokio::test]
async fn exactly_the_limit_is_stored_and_one_byte_more_is_not() {
    let server = Server::start().await;
    let port = server.port();
    let value = vec![b'x'; MAX_REQUEST_BYTES + 1];
    // The limit is on the body alone, however long the key.
    let target = format!("/{}", "k".repeat(10_000));
    port.put(&target, &value[1..]).await.is(204);
    assert_eq!(port.get(&target).await.is(200).body, &value[1..]);
    port.put(&target, &value).await.refused(413, "body_too_large");
    assert_eq!(port.get(&target).await.is(200).body.len(), MAX_REQUEST_BYTES);
}

#[tokio::test]
async fn a_length_over_the_limit_is_refused_before_the_body_is_sent() {
    let server = Server::start().await;
    let port = server.port();
    for length in [MAX_REQUEST_BYTES as u64 + 1, 1 << 40] {
        let mut connection = port.connect().await;
        connection.write(&put_head("/a", &format!("Content-Length: {length}\r\n"))).await;
        connection.answer(false).await.refused(413, "body_too_large");
    }
    port.get("/a").await.refused(404, "key_not_found");
}

#[tokio::test]
async fn a_client_that_sends_too_much_at_once_still_reads_the_answer() {
    let server = Server::start().await;
    // More than the buffers of a socket hold.
    let value = vec![b'x'; 2 << 20];
    server.port().put("/a", &value).await.refused(413, "body_too_large");
}

#[tokio::test]
async fn a_streamed_body_is_limited_as_it_comes() {
    let server = Server::start().await;
    let port = server.port();
    let chunked = put_head("/a", "Transfer-Encoding: chunked\r\n");

    let mut connection = port.connect().await;
    connection.write(&chunked).await;
    for length in [1, 60_000, MAX_REQUEST_BYTES - 60_001] {
        connection.write(&chunk(length)).await;
    }
    connection.write(b"0\r\n\r\n").await;
    connection.answer(false).await.is(204);
    assert_eq!(port.get("/a").await.is(200).body, vec![b'c'; MAX_REQUEST_BYTES]);

    // The stream is not ended: the answer comes although more could follow.
    let mut connection = port.connect().await;
    connection.write(&chunked).await;
    connection.write(&chunk(MAX_REQUEST_BYTES)).await;
    connection.write(&chunk(1)).await;
    connection.answer(false).await.refused(413, "body_too_large");
    assert_eq!(port.get("/a").await.is(200).body.len(), MAX_REQUEST_BYTES);
}

#[tokio::test]
async fn an_expecting_client_is_told_before_it_sends() {
    let server = Server::start().await;
    let port = server.port();
    let head = |length: usize| {
        put_head("/a", &format!("Expect: 100-continue\r\nContent-Length: {length}\r\n"))
    };
    let mut connection = port.connect().await;
    connection.write(&head(3)).await;
    connection.answer(false).await.is(100);
    connection.write(b"abc").await;
    connection.answer(false).await.is(204);
    assert_eq!(port.get("/a").await.is(200).body, b"abc");

    let mut connection = port.connect().await;
    connection.write(&head(MAX_REQUEST_BYTES + 1)).await;
    connection.answer(false).await.refused(413, "body_too_large");
    assert!(connection.rest().await.is_empty());

    // So is one whose request is refused for another reason.
    let mut connection = port.connect().await;
    connection.write(&put_head("/%zz", "Expect: 100-continue\r\nContent-Length: 3\r\n")).await;
    connection.answer(false).await.refused(400, "invalid_escape");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_stored() {
    let server = Server::start().await;
    let port = server.port();
    for (lines, part) in [
        ("Content-Length: 10\r\n", &b"12345"[..]),
        ("Transfer-Encoding: chunked\r\n", b"5\r\n12345\r\n"),
        ("Transfer-Encoding: chunked\r\n", b"5\r\n12345\r\nzz\r\n"),
        ("Transfer-Encoding: chunked\r\n", b"5\r\n12345\r\n0\r\n"),
    ] {
        let mut connection = port.connect().await;
        connection.write(&put_head("/a", lines)).await;
        connection.write(part).await;
        connection.end().await;
        let rest = connection.rest().await;
        let answer = String::from_utf8_lossy(&rest);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
        port.get("/a").await.refused(404, "key_not_found");
    }
}

#[tokio::test]
async fn the_body_is_taken_raw_whatever_its_type() {
    let server = Server::start().await;
    let port = server.port();
    for content_type in [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=b",
        "application/json",
        "text/plain; charset=utf-16",
        "no type at all",
    ] {
        let value = format!("a=1&b=%20+{content_type}");
        let headers = [("Content-Type", content_type)];
        port.send("PUT", "/a", &headers, value.as_bytes()).await.is(204);
        let read = port.get("/a").await.is(200);
        assert_eq!(read.body, value.as_bytes());
        assert_eq!(read.header("content-type"), Some("application/octet-stream"));
    }
}

#[tokio::test]
async fn a_put_without_a_body_stores_an_empty_value_and_a_part_is_refused() {
    let server = Server::start().await;
    let port = server.port();
    let mut connection = port.connect().await;
    connection.write(&put_head("/a", "")).await;
    connection.answer(false).await.is(204);
    assert_eq!(port.get("/a").await.is(200).body, b"");
    let part = [("Content-Range", "bytes 0-1/10")];
    port.send("PUT", "/a", &part, b"ab").await.refused(400, "partial_put");
    assert_eq!(port.get("/a").await.is(200).body, b"");
}

#[tokio::test]
async fn bodies_that_mean_nothing_are_ignored() {
    let server = Server::start().await;
    let port = server.port();
    port.put("/a", "v").await.is(204);
    assert_eq!(port.send("GET", "/a", &[], b"ignored").await.is(200).body, b"v");
    port.send("DELETE", "/a", &[], b"ignored").await.is(204);
    port.get("/a").await.refused(404, "key_not_found");
}
