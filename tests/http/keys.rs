//! Keys: methods, paths, query options.

use crate::{Server, wire::Port};

#[tokio::test]
async fn a_key_is_written_read_and_deleted() {
    let server = Server::start().await;
    let port = server.port();

    port.get("/my-key").await.refused(404, "key_not_found");
    port.send("HEAD", "/my-key", &[], b"").await.is(404);
    port.delete("/my-key").await.refused(404, "key_not_found");

    let first = port.put("/my-key", "my value").await.is(204);
    // The store starts at revision 1.
    assert_eq!(first.header("etag"), Some("\"2\""));
    assert_eq!(first.number("x-metastore-revision"), 2);

    let read = port.get("/my-key").await.is(200);
    assert_eq!(read.body, b"my value");
    assert_eq!(read.header("content-type"), Some("application/octet-stream"));
    assert_eq!(read.header("etag"), Some("\"2\""));

    let second = port.put("/my-key", "another").await.is(204);
    assert_eq!(second.header("etag"), Some("\"3\""));
    let head = port.send("HEAD", "/my-key", &[], b"").await.is(200);
    assert_eq!(head.number("content-length"), 7);
    assert_eq!(head.header("content-type"), Some("application/octet-stream"));
    assert_eq!(head.header("etag"), Some("\"3\""));
    assert_eq!(head.number("x-metastore-create-revision"), 2);
    assert_eq!(head.number("x-metastore-mod-revision"), 3);
    assert_eq!(head.number("x-metastore-version"), 2);

    let deleted = port.delete("/my-key").await.is(204);
    assert_eq!(deleted.number("x-metastore-revision"), 4);
    port.get("/my-key").await.refused(404, "key_not_found");
    port.delete("/my-key").await.refused(404, "key_not_found");

    // A deletion of nothing changed nothing; a new life begins at version 1.
    let third = port.put("/my-key", "again").await.is(204);
    assert_eq!(third.header("etag"), Some("\"5\""));
    let read = port.get("/my-key").await.is(200);
    assert_eq!(read.number("x-metastore-create-revision"), 5);
    assert_eq!(read.number("x-metastore-version"), 1);
}

#[tokio::test]
async fn values_are_any_bytes_and_may_be_empty() {
    let server = Server::start().await;
    let port = server.port();
    let every_byte: Vec<u8> = (0..=255).collect();
    for value in [&b""[..], b"\0", b"\xff\xfe", b"a\r\n\r\nb", &every_byte] {
        port.put("/v", value).await.is(204);
        let read = port.get("/v").await.is(200);
        assert_eq!(read.body, value);
        let head = port.send("HEAD", "/v", &[], b"").await.is(200);
        assert_eq!(head.number("content-length"), value.len() as u64);
    }
}

#[tokio::test]
async fn a_key_is_the_raw_path_decoded_once() {
    let server = Server::start().await;
    let port = server.port();
    // Each row is one key in several spellings; different rows are different keys.
    let keys: &[&[&str]] = &[
        &["/a", "/%61"],
        &["/a/", "/a%2F", "/a%2f"],
        &["//a", "/%2Fa"],
        &["//", "/%2f"],
        &["/a//b", "/a/%2Fb"],
        &["/a/b"],
        &["/.", "/%2e", "/%2E"],
        &["/..", "/%2e%2e", "/.%2E"],
        &["/a/../b", "/a/%2e%2e/b"],
        &["/a/./b"],
        &["/./a"],
        &["/../a"],
        &["/b"],
        &["/a+b", "/a%2Bb"],
        &["/a%20b"],
        &["/%2520"],
        &["/%20"],
        &["/%25"],
        &["/%00"],
        &["/%ff%fe", "/%FF%FE"],
        &["/A"],
        &["/ключ", "/%D0%BA%D0%BB%D1%8E%D1%87"],
        &["/-", "/%2d"],
        &["/%2D/members", "/%2d/members", "/-%2fmembers"],
        &["//-/members"],
        &["/%2D/"],
        &["/a%3Fconsistency=stale"],
        &["/a;b=c,d:e@f!$'()*~"],
        &["/4", "/%34"],
    ];
    for (row, spellings) in keys.iter().enumerate() {
        for spelling in *spellings {
            port.put(spelling, row.to_string()).await.is(204);
        }
    }
    for (row, spellings) in keys.iter().enumerate() {
        for spelling in *spellings {
            let read = port.get(spelling).await.is(200);
            assert_eq!(read.body, row.to_string().as_bytes(), "{spelling}");
        }
        port.delete(spellings[0]).await.is(204);
    }
}

#[tokio::test]
async fn long_keys_work_up_to_what_http_can_name() {
    let server = Server::start().await;
    let port = server.port();
    for length in [1_000, 8_192, 60_000] {
        let target = format!("/{}", "k".repeat(length));
        port.put(&target, "long").await.is(204);
        assert_eq!(port.get(&target).await.is(200).body, b"long");
        port.delete(&target).await.is(204);
        port.get(&target).await.refused(404, "key_not_found");
    }
    let request = format!("GET /{} HTTP/1.1\r\n\r\n", "k".repeat(70_000));
    let answer = port.exchange(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 414 "), "{answer}");
    port.get("/-/livez").await.is(200);
}

#[tokio::test]
async fn bad_targets_are_refused_and_the_server_goes_on() {
    let server = Server::start().await;
    let port = server.port();
    for method in ["GET", "HEAD", "PUT", "POST", "DELETE"] {
        if method == "HEAD" {
            port.send(method, "/", &[], b"").await.is(400);
            continue;
        }
        port.send(method, "/", &[], b"").await.refused(400, "empty_key");
        for target in ["/%zz", "/%", "/a%4", "/%%", "/%2%35", "/-%zz"] {
            port.send(method, target, &[], b"").await.refused(400, "invalid_escape");
        }
        for target in ["/-/", "/-/nothing", "/-/members/", "/-/status/", "/-//status"] {
            port.send(method, target, &[], b"").await.refused(404, "unknown_path");
        }
    }
    port.send("OPTIONS", "*", &[], b"").await.refused(400, "invalid_target");
    port.send("GET", "*", &[], b"").await.refused(400, "invalid_target");
    let connect = port.send("CONNECT", "h:80", &[], b"").await;
    assert!((400..500).contains(&connect.status), "{connect:?}");

    // The absolute form names the same key as its path does.
    port.put("http://elsewhere:1/absolute/../form", "v").await.is(204);
    assert_eq!(port.get("/absolute/../form").await.is(200).body, b"v");
    port.get("http://elsewhere").await.refused(400, "empty_key");
    port.get("http://elsewhere/-/livez").await.is(200);
}

#[tokio::test]
async fn malformed_http_is_refused_and_the_server_goes_on() {
    let server = Server::start().await;
    let port = server.port();
    for bytes in [
        &b"\r\n\r\n\r\nnonsense\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET /a b HTTP/1.1\r\n\r\n",
        b"GET a HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET /\x01 HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/9.9\r\n\r\n",
        b"GET /a HTTP/1.1\r\nno colon\r\n\r\n",
        b"PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n",
        b"PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        b"PUT /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ] {
        let mut connection = port.connect().await;
        connection.write(bytes).await;
        connection.end().await;
        let rest = connection.rest().await;
        let answer = String::from_utf8_lossy(&rest);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{bytes:?}: {answer}");
    }
    port.get("/a").await.refused(404, "key_not_found");
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let server = Server::start().await;
    let mut connection = server.port().connect().await;
    connection.write(b"PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nv").await;
    connection.answer(false).await.is(204);
    connection
        .write(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\nHEAD /a HTTP/1.1\r\nHost: h\r\n\r\n")
        .await;
    assert_eq!(connection.answer(false).await.is(200).body, b"v");
    assert_eq!(connection.answer(true).await.is(200).number("content-length"), 1);
    connection.write(b"GET /a HTTP/1.1\r\nHost: h\r\nIf-None-Match: *\r\n\r\n").await;
    connection.answer(false).await.is(304);
    connection.write(b"GET /b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    connection.answer(false).await.refused(404, "key_not_found");
    assert!(connection.rest().await.is_empty());
}

async fn assert_allow(port: Port, method: &str, target: &str, allow: &str) {
    let answer = port.send(method, target, &[], b"").await.refused(405, "method_not_allowed");
    assert_eq!(answer.header("allow"), Some(allow), "{method} {target}");
}

#[tokio::test]
async fn other_methods_are_told_what_is_allowed() {
    let server = Server::start().await;
    let port = server.port();
    for method in ["POST", "PATCH", "OPTIONS", "TRACE", "PURGE", "get"] {
        assert_allow(port, method, "/a", "GET, HEAD, PUT, DELETE").await;
    }
    for target in ["/4x", "/x4", "/-4", "/+4", "/4/", "/v1", "/%2D/members"] {
        assert_allow(port, "POST", target, "GET, HEAD, PUT, DELETE").await;
    }
    assert_allow(port, "PATCH", "/4", "GET, HEAD, PUT, DELETE, POST").await;
    for method in ["PUT", "DELETE", "PATCH"] {
        assert_allow(port, method, "/-/members", "GET, HEAD, POST").await;
    }
    for method in ["GET", "POST", "PATCH"] {
        assert_allow(port, method, "/-/members/1", "PUT, DELETE").await;
    }
    for target in ["/-/members/1/promote", "/-/leader/1"] {
        for method in ["GET", "PUT", "DELETE"] {
            assert_allow(port, method, target, "POST").await;
        }
    }
    for target in ["/-/txn", "/-/compact", "/-/leases/1/keepalive"] {
        for method in ["GET", "PUT", "DELETE"] {
            assert_allow(port, method, target, "POST").await;
        }
    }
    assert_allow(port, "DELETE", "/-/leases", "GET, HEAD, POST").await;
    assert_allow(port, "POST", "/-/leases/1", "GET, HEAD, DELETE").await;
    for name in ["status", "health", "livez", "readyz", "metrics", "hash"] {
        for method in ["PUT", "POST", "DELETE", "OPTIONS"] {
            assert_allow(port, method, &format!("/-/{name}"), "GET, HEAD").await;
        }
    }
    port.get("/a").await.refused(404, "key_not_found");
}

#[tokio::test]
async fn the_query_holds_known_options_once_and_nothing_else() {
    let server = Server::start().await;
    let port = server.port();
    port.put("/a", "v").await.is(204);
    for query in ["", "?", "?consistency=stale", "?consistency=linearizable"] {
        let target = format!("/a{query}");
        assert_eq!(port.get(&target).await.is(200).body, b"v", "{query}");
        port.send("HEAD", &target, &[], b"").await.is(200);
    }
    port.get("/b?consistency=stale").await.refused(404, "key_not_found");
    for (query, code) in [
        ("x", "unknown_option"),
        ("prefix", "unknown_option"),
        ("list&watch", "unknown_option"),
        ("watch&list", "unknown_option"),
        ("revision=0", "invalid_option"),
        ("ttl=5", "unknown_option"),
        ("consistency=stale&x=1", "unknown_option"),
        ("consistency=eventual", "invalid_option"),
        ("consistency", "invalid_option"),
        ("consistency=stale&consistency=linearizable", "duplicate_option"),
        ("consistency=%zz", "invalid_escape"),
    ] {
        port.get(&format!("/a?{query}")).await.refused(400, code);
    }
    for query in ["consistency=stale", "x", "prevExist=false"] {
        port.put(&format!("/a?{query}"), "w").await.refused(400, "unknown_option");
        port.delete(&format!("/a?{query}")).await.refused(400, "unknown_option");
        port.post(&format!("/4?{query}"), "http://h:1").await.refused(400, "unknown_option");
        port.get(&format!("/-/status?{query}")).await.refused(400, "unknown_option");
        port.get(&format!("/-/members?{query}")).await.refused(400, "unknown_option");
    }
    assert_eq!(port.get("/a").await.is(200).body, b"v");
}
