//! etcd's JSON gateway.

use serde_json::{Value, json};

use crate::{Server, wire::Port};

async fn call(port: Port, path: &str, body: &str) -> Value {
    port.post(path, body).await.is(200).json()
}

async fn failure(port: Port, path: &str, body: &str, status: u16, code: u64) -> String {
    let failure = port.post(path, body).await.is(status).json();
    assert_eq!(failure["code"], code, "{failure}");
    assert_eq!(failure["error"], failure["message"], "{failure}");
    failure["error"].as_str().expect("a message").to_owned()
}

#[tokio::test]
async fn keys_by_json_are_etcds() {
    let server = Server::start().await;
    let port = server.port();
    let put = call(port, "/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#).await;
    assert_eq!(put["header"]["revision"], "2", "{put}");
    assert!(put["header"]["cluster_id"].is_string() && put["header"]["raft_term"].is_string());
    let range = call(port, "/v3/kv/range", r#"{"key":"Zm9v","unknown":[1]}"#).await;
    assert_eq!(range["count"], "1");
    assert_eq!(
        range["kvs"],
        json!([{"key": "Zm9v", "value": "YmFy", "create_revision": "2", "mod_revision": "2",
                "version": "1"}])
    );
    assert!(range.get("more").is_none(), "{range}");
    assert_eq!(port.get("/foo").await.is(200).body, b"bar");
    let sorted =
        r#"{"key":"AA==","range_end":"AA==","sort_order":"DESCEND","sort_target":3,"limit":"1"}"#;
    assert_eq!(call(port, "/v3/kv/range", sorted).await["kvs"][0]["key"], "Zm9v");
    let txn = r#"{"compare":[{"key":"Zm9v","target":"VERSION","result":"EQUAL","version":1}],
        "success":[{"requestPut":{"key":"Zm9v","value":"YmF6"}},{"request_range":{"key":"Zm9v"}}]}"#;
    let done = call(port, "/v3/kv/txn", txn).await;
    assert_eq!(done["succeeded"], true);
    assert_eq!(done["responses"][1]["response_range"]["kvs"][0]["value"], "YmF6");
    assert_eq!(call(port, "/v3/kv/deleterange", r#"{"key":"Zm9v"}"#).await["deleted"], "1");
    call(port, "/v3/kv/compaction", r#"{"revision":4}"#).await;
    let compacted = failure(port, "/v3/kv/range", r#"{"key":"Zm9v","revision":2}"#, 400, 11).await;
    assert_eq!(compacted, "etcdserver: mvcc: required revision has been compacted");
}

#[tokio::test]
async fn errors_have_etcds_form() {
    let server = Server::start().await;
    let port = server.port();
    let empty = failure(port, "/v3/kv/range", "", 400, 3).await;
    assert_eq!(empty, "etcdserver: key is not provided");
    for body in ["x", "{", "[]x", r#"{"key":"?"}"#, r#"{"key":5}"#] {
        failure(port, "/v3/kv/range", body, 400, 3).await;
    }
    for path in ["/v3/", "/v3/kv", "/v3/kv/range/", "/v3/no/such"] {
        assert_eq!(failure(port, path, "{}", 404, 5).await, "Not Found");
    }
    let large = format!(
        "{{\"key\":\"YQ==\",\"value\":\"{}\"}}",
        "AAAA".repeat(crate::MAX_REQUEST_BYTES / 3 + 1)
    );
    assert_eq!(
        failure(port, "/v3/kv/put", &large, 400, 3).await,
        "etcdserver: request is too large"
    );
    let huge = "x".repeat(crate::MAX_REQUEST_BYTES * 2 + (512 << 10));
    failure(port, "/v3/kv/put", &huge, 413, 8).await;
    // Other methods than POST mean keys.
    port.put("/v3/kv/range", "a key").await.is(204);
    assert_eq!(port.get("/v3/kv/range").await.is(200).body, b"a key");
    port.delete("/v3/kv/range").await.is(204);
}

#[tokio::test]
async fn the_cluster_is_shown() {
    let server = Server::start().await;
    let port = server.port();
    let members = call(port, "/v3/cluster/member/list", "{}").await;
    assert_eq!(members["members"][0]["ID"], "1", "{members}");
    let status = call(port, "/v3/maintenance/status", "").await;
    assert_eq!(status["leader"], "1", "{status}");
    assert!(call(port, "/v3/maintenance/hashkv", "{}").await["hash"].is_number());
    assert!(call(port, "/v3/maintenance/alarm", "{}").await.get("alarms").is_none());
}

#[tokio::test]
async fn leases_by_json_are_etcds() {
    let server = Server::start().await;
    let port = server.port();
    let granted = call(port, "/v3/lease/grant", r#"{"TTL":600,"ID":"77"}"#).await;
    assert_eq!((&granted["ID"], &granted["TTL"]), (&json!("77"), &json!("600")));
    call(port, "/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy","lease":"77"}"#).await;
    let kept = port.post("/v3/lease/keepalive", r#"{"ID":"77"}{"ID":78}"#).await.is(200).lines();
    assert_eq!(
        (&kept[0]["result"]["ID"], &kept[0]["result"]["TTL"]),
        (&json!("77"), &json!("600"))
    );
    assert!(kept[1]["result"].get("TTL").is_none() && kept.len() == 2, "{kept:?}");
    for path in ["/v3/lease/timetolive", "/v3/kv/lease/timetolive"] {
        let left = call(port, path, r#"{"ID":"77","keys":true}"#).await;
        assert_eq!((&left["grantedTTL"], &left["keys"]), (&json!("600"), &json!(["Zm9v"])));
    }
    assert_eq!(call(port, "/v3/kv/lease/leases", "{}").await["leases"], json!([{"ID": "77"}]));
    call(port, "/v3/kv/lease/revoke", r#"{"ID":"77"}"#).await;
    port.get("/foo").await.refused(404, "key_not_found");
    let gone = failure(port, "/v3/lease/revoke", r#"{"ID":"77"}"#, 404, 5).await;
    assert_eq!(gone, "etcdserver: requested lease not found");
}

#[tokio::test]
async fn a_watch_by_json_goes_on_after_the_request() {
    let server = Server::start().await;
    let port = server.port();
    let mut connection = port.connect().await;
    let body = r#"{"create_request":{"key":"Zm9v","start_revision":"1"}}"#;
    let head =
        format!("POST /v3/watch HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len());
    connection.write(head.as_bytes()).await;
    connection.write(body.as_bytes()).await;
    connection.streamed().await.is(200);
    let next = async |connection: &mut crate::wire::Connection| -> Value {
        let chunk = connection.chunk().await.expect("the watch goes on");
        serde_json::from_slice(&chunk).expect("a line of JSON")
    };
    assert_eq!(next(&mut connection).await["result"]["created"], true);
    port.put("/foo", "bar").await.is(204);
    let told = next(&mut connection).await;
    assert_eq!(told["result"]["events"][0]["kv"]["value"], "YmFy", "{told}");
    port.delete("/foo").await.is(204);
    let told = next(&mut connection).await;
    assert_eq!(told["result"]["events"][0]["type"], "DELETE", "{told}");
    failure(port, "/v3/watch", "x", 400, 3).await;
    failure(port, "/v3/watch", "", 400, 3).await;
}
