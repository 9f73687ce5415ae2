//! Statement 37: the API as JSON over plain HTTP.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tokio_stream::StreamExt;

use super::{
    client::{Client, soon},
    requests::{delete_below, prefix},
    server::Server,
};

fn base64(text: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(text)
}

/// A POST; status and body.
async fn post_text(client: &Client, path: &str, body: String) -> (u16, String) {
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let request = http.post(format!("{}{path}", client.url)).body(body);
    let answer = soon("an answer", request.send()).await.expect("an answer");
    (answer.status().as_u16(), answer.text().await.expect("a whole answer"))
}

async fn post(client: &Client, path: &str, body: Value) -> Value {
    let (status, text) = post_text(client, path, body.to_string()).await;
    assert_eq!(status, 200, "{path}: {text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("no JSON ({error}): {text}"))
}

/// A number that JSON carries as text.
#[track_caller]
fn number(value: &Value) -> i64 {
    let text = value.as_str().unwrap_or_else(|| panic!("no text: {value}"));
    text.parse().unwrap_or_else(|_| panic!("no number: {text}"))
}

/// The names of an object's fields, sorted.
fn fields(value: &Value) -> Vec<&str> {
    let mut names: Vec<&str> =
        value.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn s37_keys_through_json() {
    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("s37");
    let key = format!("{keys}k");
    let answer =
        post(client, "/v3/kv/put", json!({"key": base64(&key), "value": base64([0, 255, 10])}))
            .await;
    assert_eq!(fields(&answer), ["header"]);
    assert_eq!(fields(&answer["header"]), ["cluster_id", "member_id", "raft_term", "revision"]);
    let at = number(&answer["header"]["revision"]);
    number(&answer["header"]["raft_term"]);

    let answer = post(client, "/v3/kv/range", json!({"key": base64(&key)})).await;
    // Zero fields are left out: more is false, lease is 0.
    assert_eq!(fields(&answer), ["count", "header", "kvs"]);
    assert_eq!(number(&answer["count"]), 1);
    let kv = &answer["kvs"][0];
    assert_eq!(fields(kv), ["create_revision", "key", "mod_revision", "value", "version"]);
    assert_eq!((number(&kv["mod_revision"]), number(&kv["version"])), (at, 1));
    assert_eq!((&kv["key"], &kv["value"]), (&json!(base64(&key)), &json!(base64([0, 255, 10]))));

    // Numbers are taken as text and as numbers, enums by name and by number,
    // field names as in the protocol and in lower camel case.
    let put = json!({"key": base64(format!("{keys}l")), "value": base64("x")});
    post(client, "/v3/kv/put", put).await;
    let end = base64(super::requests::end_of(&keys));
    for (limit, order) in [(json!("1"), json!("DESCEND")), (json!(1), json!(2))] {
        let request = json!({
            "key": base64(&keys), "range_end": end, "limit": limit, "sort_order": order,
        });
        let answer = post(client, "/v3/kv/range", request).await;
        assert_eq!((&answer["more"], number(&answer["count"])), (&json!(true), 2));
        assert_eq!(answer["kvs"][0]["key"], json!(base64(format!("{keys}l"))));
    }
    let camel = json!({"key": base64(&keys), "rangeEnd": end, "countOnly": true});
    let answer = post(client, "/v3/kv/range", camel).await;
    assert_eq!((fields(&answer), number(&answer["count"])), (vec!["count", "header"], 2));

    let request = json!({"key": base64(&keys), "range_end": end, "prev_kv": true});
    let answer = post(client, "/v3/kv/deleterange", request).await;
    assert_eq!(number(&answer["deleted"]), 2);
    assert_eq!(answer["prev_kvs"].as_array().map(Vec::len), Some(2));
    let answer = post(client, "/v3/kv/range", json!({"key": base64(&key)})).await;
    assert_eq!(fields(&answer), ["header"]);
}

#[tokio::test]
async fn s37_txns_and_leases_through_json() {
    let server = Server::shared().await;
    let client = &server.client;
    let key = base64(prefix("s37"));
    let request = json!({
        "compare": [{"key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0"}],
        "success": [{"request_put": {"key": key, "value": base64("one")}}],
        "failure": [{"request_range": {"key": key}}],
    });
    let answer = post(client, "/v3/kv/txn", request.clone()).await;
    assert_eq!(answer["succeeded"], json!(true));
    let inner = &answer["responses"][0]["response_put"]["header"];
    assert_eq!(
        (fields(inner), &inner["revision"]),
        (vec!["revision"], &answer["header"]["revision"])
    );
    let answer = post(client, "/v3/kv/txn", request).await;
    assert_eq!(answer.get("succeeded"), None);
    let kv = &answer["responses"][0]["response_range"]["kvs"][0];
    assert_eq!(kv["value"], json!(base64("one")));

    let answer = post(client, "/v3/lease/grant", json!({"TTL": "60"})).await;
    assert_eq!((fields(&answer), number(&answer["TTL"])), (vec!["ID", "TTL", "header"], 60));
    let id = answer["ID"].clone();
    post(client, "/v3/kv/put", json!({"key": key, "lease": id})).await;
    let request = json!({"ID": id, "keys": true});
    let answer = post(client, "/v3/lease/timetolive", request).await;
    assert_eq!((&answer["keys"], &answer["grantedTTL"]), (&json!([key]), &json!("60")));
    let answer = post(client, "/v3/lease/keepalive", json!({"ID": id})).await;
    assert_eq!((&answer["result"]["ID"], &answer["result"]["TTL"]), (&id, &json!("60")));
    let leases = post(client, "/v3/lease/leases", json!({})).await;
    assert!(leases["leases"].as_array().expect("leases").contains(&json!({"ID": id})));
    post(client, "/v3/lease/revoke", json!({"ID": id})).await;
    let answer = post(client, "/v3/kv/range", json!({"key": key, "serializable": true})).await;
    assert_eq!(answer.get("kvs"), None);

    let members = post(client, "/v3/cluster/member/list", json!({})).await;
    let member = &members["members"][0];
    assert!(number_u64(&member["ID"]) != 0 && member["peerURLs"].is_array());
    assert!(member["clientURLs"].is_array() && member.get("isLearner").is_none());
    assert_eq!(members["header"].get("revision"), None);
    let status = post(client, "/v3/maintenance/status", json!({})).await;
    assert!(status["version"].is_string() && number(&status["dbSize"]) > 0);
    assert!(number(&status["raftIndex"]) > 0 && number(&status["raftTerm"]) > 0);
}

#[track_caller]
fn number_u64(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("none: {value}"))
}

#[tokio::test]
async fn s37_locks_and_elections_through_json() {
    let server = Server::shared().await;
    let client = &server.client;
    let name = prefix("s37");
    let lease = client.grant(60).await;
    let request = json!({"name": base64(&name), "lease": lease.to_string()});
    let answer = post(client, "/v3/lock/lock", request.clone()).await;
    assert_eq!(answer["key"], json!(base64(format!("{name}/{lease:x}"))));
    post(client, "/v3/lock/unlock", json!({"key": answer["key"]})).await;
    let mut request = request;
    request["value"] = json!(base64("me"));
    let answer = post(client, "/v3/election/campaign", request).await;
    assert_eq!(answer["leader"]["lease"], json!(lease.to_string()));
    let leader = post(client, "/v3/election/leader", json!({"name": base64(&name)})).await;
    assert_eq!(leader["kv"]["value"], json!(base64("me")));
    let resignation = json!({"leader": answer["leader"]});
    post(client, "/v3/election/resign", resignation).await;
}

#[tokio::test]
async fn s37_watches_through_json() {
    let server = Server::shared().await;
    let client = &server.client;
    let keys = prefix("s37");
    let first = client.put(format!("{keys}a"), "1").await;
    let request = json!({"create_request": {
        "key": base64(&keys),
        "range_end": base64(super::requests::end_of(&keys)),
        "start_revision": first.to_string(),
    }});
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let call = http.post(format!("{}/v3/watch", client.url)).body(request.to_string()).send();
    let answer = soon("a stream", call).await.expect("a stream");
    assert_eq!(answer.status(), 200);
    let mut body = answer.bytes_stream();
    let mut text = Vec::new();
    let mut line = async || loop {
        if let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            return serde_json::from_slice::<Value>(&line).expect("a line of JSON");
        }
        let piece = soon("a line", body.next()).await.expect("the stream goes on");
        text.extend_from_slice(&piece.expect("the stream goes on"));
    };
    let created = line().await;
    assert_eq!(fields(&created), ["result"]);
    assert_eq!(created["result"]["created"], json!(true));
    assert_eq!(created["result"].get("events"), None);
    let event = &line().await["result"]["events"][0];
    // PUT is the zero of its enum, and so left out.
    assert_eq!(fields(event), ["kv"]);
    assert_eq!(number(&event["kv"]["mod_revision"]), first);
    client.delete(delete_below(&keys)).await;
    let event = &line().await["result"]["events"][0];
    assert_eq!((fields(event), &event["type"]), (vec!["kv", "type"], &json!("DELETE")));
    assert_eq!(fields(&event["kv"]), ["key", "mod_revision"]);
}

#[tokio::test]
async fn s37_errors_through_json() {
    let server = Server::shared().await;
    let client = &server.client;
    for (path, body, status, code, text) in [
        ("/v3/kv/put", json!({}), 400, 3, "etcdserver: key is not provided"),
        (
            "/v3/kv/range",
            json!({"key": base64("k"), "revision": i64::MAX.to_string()}),
            400,
            11,
            "etcdserver: mvcc: required revision is a future revision",
        ),
        (
            "/v3/lease/revoke",
            json!({"ID": super::requests::unused_lease().to_string()}),
            404,
            5,
            "etcdserver: requested lease not found",
        ),
    ] {
        let (answered, body) = post_text(client, path, body.to_string()).await;
        assert_eq!(answered, status, "{path}: {body}");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!((&body["code"], &body["message"]), (&json!(code), &json!(text)), "{path}");
    }
    for bad in ["{", "no JSON", r#"{"key": "%%%"}"#, r#"{"key": 7}"#, r#"{"nonsense": 1}"#] {
        let (status, body) = post_text(client, "/v3/kv/range", bad.to_owned()).await;
        assert_eq!(status, 400, "{bad}: {body}");
    }
    let bytes = b"{\"key\": \"\xff\xfe\"}".to_vec();
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let call = http.post(format!("{}/v3/kv/range", client.url)).body(bytes).send();
    assert_eq!(soon("an answer", call).await.expect("an answer").status(), 400);
    let (status, _) = post_text(client, "/v3/no/such/call", "{}".to_owned()).await;
    assert_eq!(status, 404);
}
