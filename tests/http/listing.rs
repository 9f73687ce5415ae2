//! Lists of keys, reads of the past, deletion of prefixes, compaction.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{Server, wire::Port};

async fn keys(port: Port, target: &str) -> Vec<String> {
    let list = port.get(target).await.is(200);
    list.lines().iter().map(|line| line["key"].as_str().expect("a key").to_owned()).collect()
}

#[tokio::test]
async fn a_list_holds_what_begins_with_the_prefix_in_order() {
    let server = Server::start().await;
    let port = server.port();
    assert!(port.get("/?list").await.is(200).body.is_empty());
    for (target, value) in
        [("/a/2", &b"two"[..]), ("/b", b""), ("/a/1", b"o\nne"), ("/a%ff", b"\xff"), ("/a", b"0")]
    {
        port.put(target, value).await.is(204);
    }
    port.put("/a/1", "1").await.is(204);
    let list = port.get("/a/?list").await.is(200);
    assert_eq!(list.header("content-type"), Some("application/x-ndjson"));
    assert_eq!(list.number("x-metastore-revision"), 7);
    assert_eq!(
        list.lines(),
        [
            json!({"key": "a/1", "value": "1", "create_revision": 4, "mod_revision": 7,
                   "version": 2, "lease": 0}),
            json!({"key": "a/2", "value": "two", "create_revision": 2, "mod_revision": 2,
                   "version": 1, "lease": 0}),
        ]
    );
    let odd = port.get("/a%ff?list&keys_only").await.is(200).lines();
    assert_eq!(
        odd,
        [json!({"key_base64": "Yf8=", "create_revision": 5, "mod_revision": 5, "version": 1,
                "lease": 0})]
    );
    assert_eq!(port.get("/a%ff?list").await.is(200).lines()[0]["value_base64"], "/w==");
    assert_eq!(port.get("/?list").await.is(200).lines().len(), 5);
    assert_eq!(keys(port, "/b?list&consistency=stale").await, ["b"]);
    assert!(port.get("/none?list").await.is(200).body.is_empty());
    assert_eq!(keys(port, "/a/?list&revision=2").await, ["a/2"]);
    let past = port.get("/a/1?list&revision=6").await.is(200);
    assert_eq!(past.number("x-metastore-revision"), 6);
    assert_eq!(past.lines()[0]["value"], "o\nne");
    port.send("HEAD", "/a/?list", &[], b"").await.is(200);
}

#[tokio::test]
async fn pages_follow_each_other_through_one_moment() {
    let server = Server::start().await;
    let port = server.port();
    for n in 0..10 {
        port.put(&format!("/p/{n}%20%ff"), "v").await.is(204);
    }
    let (mut target, mut seen, mut pages) = ("/p/?list&limit=4&keys_only".to_owned(), 0, 0);
    loop {
        let mut lines = port.get(&target).await.is(200).lines();
        let next = lines.last().and_then(|line| line.get("next")).cloned();
        lines.truncate(lines.len() - usize::from(next.is_some()));
        for line in &lines {
            assert!(line.get("value").is_none(), "{line}");
            let key = line["key_base64"].as_str().expect("a key that is not UTF-8");
            let expected = STANDARD.encode(
                format!("p/{seen} ").into_bytes().into_iter().chain([0xff]).collect::<Vec<_>>(),
            );
            assert_eq!(key, expected);
            seen += 1;
        }
        pages += 1;
        // What is written and deleted meanwhile does not show.
        port.put("/p/0", "new").await.is(204);
        port.send("DELETE", "/p/9%20%ff", &[], b"").await;
        match next {
            Some(Value::String(next)) => target = next,
            _ => break,
        }
    }
    assert_eq!((seen, pages), (10, 3));
    assert_eq!(port.get("/?list&from=p/0").await.is(200).lines()[0]["key"], "p/0");
}

#[tokio::test]
async fn a_list_of_more_than_memory_holds_at_once_comes_whole() {
    let server = Server::start().await;
    let port = server.port();
    let value = "v".repeat(90_000);
    for n in 0..30 {
        port.put(&format!("/big/{n:02}"), &value).await.is(204);
    }
    let list = port.get("/big/?list").await.is(200).lines();
    assert_eq!(list.len(), 30);
    assert!(list.iter().all(|line| line["value"] == value.as_str()));
    // Clients that go away in the middle leave nothing behind.
    for _ in 0..100 {
        let mut connection = port.connect().await;
        connection.write(b"GET /big/?list HTTP/1.1\r\nHost: h\r\n\r\n").await;
        connection.streamed().await.is(200);
    }
    assert_eq!(port.get("/big/?list&keys_only").await.is(200).lines().len(), 30);
}

#[tokio::test]
async fn options_of_lists_are_checked() {
    let server = Server::start().await;
    let port = server.port();
    for (query, code) in [
        ("list&limit=0", "invalid_option"),
        ("list&limit=x", "invalid_option"),
        ("list&revision=-1", "invalid_option"),
        ("list&from=%zz", "invalid_escape"),
        ("list&sort=key", "unknown_option"),
        ("list&list", "duplicate_option"),
        ("list&revision=1000", "future_revision"),
        ("revision=1000", "future_revision"),
    ] {
        port.get(&format!("/a?{query}")).await.refused(400, code);
    }
    port.get("/?watch").await.refused(400, "empty_key");
    port.get("/?consistency=stale").await.refused(400, "empty_key");
    port.delete("/?prefix").await.refused(400, "empty_key");
}

#[tokio::test]
async fn a_key_is_read_as_of_a_revision_until_it_is_compacted() {
    let server = Server::start().await;
    let port = server.port();
    port.put("/a", "1").await.is(204);
    port.put("/a", "2").await.is(204);
    port.delete("/a").await.is(204);
    port.put("/a", "3").await.is(204);
    let first = port.get("/a?revision=2").await.is(200);
    assert_eq!((&first.body[..], first.header("etag")), (&b"1"[..], Some("\"2\"")));
    assert_eq!(port.get("/a?revision=3").await.is(200).body, b"2");
    port.get("/a?revision=4").await.refused(404, "key_not_found");
    assert_eq!(port.get("/a?revision=5&consistency=stale").await.is(200).body, b"3");
    port.get("/a?revision=6").await.refused(400, "future_revision");
    port.send("GET", "/a?revision=3", &[("If-None-Match", "\"3\"")], b"").await.is(304);

    let compacted = port.post("/-/compact", r#"{"revision":3}"#).await.is(204);
    assert_eq!(compacted.number("x-metastore-revision"), 5);
    port.get("/a?revision=2").await.refused(410, "compacted");
    port.get("/a?list&revision=2").await.refused(410, "compacted");
    assert_eq!(port.get("/a?revision=3").await.is(200).body, b"2");
    port.post("/-/compact", r#"{"revision":3}"#).await.refused(410, "compacted");
    port.post("/-/compact", r#"{"revision":9}"#).await.refused(400, "future_revision");
    port.post("/-/compact", r#"{"revision":0}"#).await.refused(400, "invalid_revision");
    for body in ["", "3", "{}", r#"{"revision":"3"}"#, r#"{"revision":3,"x":1}"#] {
        port.post("/-/compact", body).await.refused(400, "invalid_json");
    }
}

#[tokio::test]
async fn a_prefix_is_deleted_in_one_revision() {
    let server = Server::start().await;
    let port = server.port();
    for target in ["/p/1", "/p/2", "/p", "/q"] {
        port.put(target, "v").await.is(204);
    }
    let deleted = port.delete("/p/?prefix").await.is(200);
    assert_eq!(deleted.json(), json!({"deleted": 2, "revision": 6}));
    assert_eq!(keys(port, "/?list").await, ["p", "q"]);
    port.delete("/p/?prefix").await.refused(404, "key_not_found");
    let conditional = [("If-Match", "*")];
    port.send("DELETE", "/p?prefix", &conditional, b"").await.refused(400, "invalid_condition");
    assert_eq!(port.delete("/p?prefix").await.is(200).json()["deleted"], 1);
    assert_eq!(keys(port, "/?list").await, ["q"]);
}
