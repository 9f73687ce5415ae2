//! Watches.

use serde_json::{Value, json};

use crate::{
    Server,
    wire::{Answer, Connection, Port},
};

/// An open watch.
struct Watch {
    head: Answer,
    connection: Connection,
    text: String,
}

impl Watch {
    async fn open(port: Port, target: &str, headers: &str) -> Self {
        let mut connection = port.connect().await;
        let request = format!("GET {target} HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
        connection.write(request.as_bytes()).await;
        let head = connection.streamed().await.is(200);
        Self { head, connection, text: String::new() }
    }

    /// What comes before the separator; `None` when the body has ended.
    async fn until(&mut self, separator: &str) -> Option<String> {
        loop {
            if let Some(at) = self.text.find(separator) {
                let rest = self.text.split_off(at + separator.len());
                let mut piece = std::mem::replace(&mut self.text, rest);
                piece.truncate(at);
                return Some(piece);
            }
            let chunk = self.connection.chunk().await?;
            if chunk.is_empty() {
                return None;
            }
            self.text += std::str::from_utf8(&chunk).expect("JSON is UTF-8");
        }
    }

    /// The next line that says something.
    async fn line(&mut self) -> Option<Value> {
        loop {
            let line = self.until("\n").await?;
            if !line.is_empty() {
                return Some(serde_json::from_str(&line).expect("a line of JSON"));
            }
        }
    }

    /// The next revision with changes.
    async fn changes(&mut self) -> Value {
        loop {
            let line = self.line().await.expect("the watch goes on");
            if line["events"] != json!([]) {
                return line;
            }
        }
    }
}

#[tokio::test]
async fn a_watch_tells_of_each_revision_as_a_line() {
    let server = Server::start().await;
    let port = server.port();
    port.put("/a", "0").await.is(204);
    let mut watch = Watch::open(port, "/a?watch&prev", "").await;
    assert_eq!(watch.head.header("content-type"), Some("application/x-ndjson"));
    assert_eq!(watch.head.number("x-metastore-revision"), 2);
    assert_eq!(watch.line().await, Some(json!({"revision": 2, "events": []})));
    port.put("/ab", "other").await.is(204);
    port.put("/a", b"\xff").await.is(204);
    port.delete("/a").await.is(204);
    assert_eq!(
        watch.changes().await,
        json!({"revision": 4, "events": [{"type": "put", "key": "a", "value_base64": "/w==",
            "create_revision": 2, "mod_revision": 4, "version": 2, "lease": 0,
            "prev": {"value": "0", "create_revision": 2, "mod_revision": 2, "version": 1,
                     "lease": 0}}]})
    );
    let deletion = watch.changes().await;
    assert_eq!(
        (&deletion["revision"], &deletion["events"][0]["type"]),
        (&json!(5), &json!("delete"))
    );
    assert_eq!(deletion["events"][0]["prev"]["value_base64"], "/w==");
}

#[tokio::test]
async fn a_watch_of_a_prefix_resumes_without_loss() {
    let server = Server::start().await;
    let port = server.port();
    let txn = r#"{"then":[{"put":{"key":"p/1","value":"x"}},{"put":{"key":"p/2","value":"x"}},
        {"put":{"key":"q","value":"x"}}]}"#;
    port.put("/p/0", "x").await.is(204);
    port.post("/-/txn", txn).await.is(200);
    port.delete("/p/?prefix").await.is(200);
    let mut watch = Watch::open(port, "/p/?watch&prefix&revision=2", "").await;
    let keys = |line: &Value| -> Vec<String> {
        let events = line["events"].as_array().expect("events");
        let name = |event: &Value| format!("{} {}", event["type"], event["key"]).replace('"', "");
        events.iter().map(name).collect()
    };
    assert_eq!(keys(&watch.changes().await), ["put p/0"]);
    assert_eq!(keys(&watch.changes().await), ["put p/1", "put p/2"]);
    drop(watch);
    let mut watch = Watch::open(port, "/p/?watch&prefix&revision=4", "").await;
    let deleted = watch.changes().await;
    assert_eq!(keys(&deleted), ["delete p/0", "delete p/1", "delete p/2"]);
    assert_eq!(deleted["revision"], 4);
}

#[tokio::test]
async fn browsers_are_sent_events_that_they_can_resume_from() {
    let server = Server::start().await;
    let port = server.port();
    let accept = "Accept: text/event-stream\r\n";
    let mut watch = Watch::open(port, "/a?watch", accept).await;
    assert_eq!(watch.head.header("content-type"), Some("text/event-stream"));
    assert_eq!(watch.until("\n\n").await.as_deref(), Some("id: 1"));
    for value in ["1", "2", "3"] {
        port.put("/a", value).await.is(204);
    }
    let first = watch.until("\n\n").await.expect("an event");
    let data = first.strip_prefix("id: 2\ndata: ").expect("the id is the revision");
    let data: Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(data["events"][0]["value"], "1");
    drop(watch);
    let again = format!("{accept}Last-Event-ID: 2\r\n");
    let mut watch = Watch::open(port, "/a?watch&revision=1", &again).await;
    loop {
        let event = watch.until("\n\n").await.expect("an event");
        if event.contains("data:") {
            assert!(event.starts_with("id: 3\n"), "{event}");
            break;
        }
    }
    let wrong = [("Last-Event-ID", "x")];
    port.send("GET", "/a?watch", &wrong, b"").await.refused(400, "invalid_event_id");
}

#[tokio::test]
async fn what_is_compacted_cannot_be_watched() {
    let server = Server::start().await;
    let port = server.port();
    for value in ["1", "2", "3"] {
        port.put("/a", value).await.is(204);
    }
    port.post("/-/compact", r#"{"revision":3}"#).await.is(204);
    port.get("/a?watch&revision=2").await.refused(410, "compacted");
    let mut watch = Watch::open(port, "/a?watch&revision=3&prev", "").await;
    let first = watch.changes().await;
    assert_eq!((&first["revision"], first["events"][0].get("prev")), (&json!(3), None));
    assert_eq!(watch.changes().await["events"][0]["prev"]["value"], "2");
    for (query, code) in [
        ("watch&revision=0", "invalid_option"),
        ("watch&limit=5", "unknown_option"),
        ("watch&prefix=x", "invalid_option"),
    ] {
        port.get(&format!("/a?{query}")).await.refused(400, code);
    }
}

#[tokio::test]
async fn a_watch_ends_with_the_node_and_says_so() {
    let mut server = Server::start().await;
    let mut watch = Watch::open(server.port(), "/a?watch", "").await;
    assert_eq!(watch.line().await.expect("a line")["revision"], 1);
    let (last, ()) = tokio::join!(
        async {
            let last = watch.line().await.expect("a last line");
            assert_eq!(watch.line().await, None);
            last
        },
        server.node.stop()
    );
    assert_eq!(last["error"]["code"], "unavailable", "{last}");
}
