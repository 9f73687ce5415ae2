//! Transactions.

use serde_json::json;

use crate::Server;

#[tokio::test]
async fn the_branch_that_the_comparisons_choose_is_done_as_one() {
    let server = Server::start().await;
    let port = server.port();
    port.put("/a", "1").await.is(204);
    let body = r#"{"compare":[{"key":"a","value":"1"},{"key":"b","exists":false}],
        "then":[{"put":{"key":"a","value":"2","prev":true}},{"put":{"key_base64":"/w==","value_base64":"/v8="}}],
        "else":[{"get":{"key":"a"}}]}"#;
    let done = port.post("/-/txn", body).await.is(200);
    assert_eq!(done.number("x-metastore-revision"), 3);
    assert_eq!(
        done.json(),
        json!({"succeeded": true, "revision": 3, "results": [
            {"put": {"prev": {"key": "a", "value": "1", "create_revision": 2, "mod_revision": 2,
                              "version": 1, "lease": 0}}},
            {"put": {}}]})
    );
    assert_eq!(port.get("/%ff").await.is(200).body, b"\xfe\xff");
    let again = port.post("/-/txn", body).await.is(200).json();
    assert_eq!((&again["succeeded"], &again["revision"]), (&json!(false), &json!(3)));
    assert_eq!(again["results"][0]["get"]["kvs"][0]["value"], "2");
    assert_eq!(again["results"][0]["get"]["count"], 1);

    let delete = r#"{"compare":[{"key":"a","is":">","version":1},{"key":"a","mod_revision":3}],
        "then":[{"delete":{"key":"a","prefix":true}},{"get":{"key":"a"}}]}"#;
    let done = port.post("/-/txn", delete).await.is(200).json();
    assert_eq!(done["succeeded"], true);
    assert_eq!(done["results"][0], json!({"delete": {"deleted": 1}}));
    assert_eq!(done["results"][1], json!({"get": {"count": 0, "more": false, "kvs": []}}));
    port.get("/a").await.refused(404, "key_not_found");
}

#[tokio::test]
async fn reading_alone_takes_no_revision() {
    let server = Server::start().await;
    let port = server.port();
    for n in 0..3 {
        port.put(&format!("/k/{n}"), "v").await.is(204);
    }
    let body = r#"{"then":[{"get":{"key":"k/","prefix":true,"limit":2,"keys_only":true}},
        {"get":{"key":"k/","range_end":"k/2","count_only":true}},{"get":{"key":"k/2","revision":3}}]}"#;
    let read = port.post("/-/txn", body).await.is(200).json();
    assert_eq!((&read["succeeded"], &read["revision"]), (&json!(true), &json!(4)));
    let first = &read["results"][0]["get"];
    assert_eq!((&first["count"], &first["more"]), (&json!(3), &json!(true)));
    assert_eq!(first["kvs"][1]["key"], "k/1");
    assert!(first["kvs"][1].get("value").is_none());
    assert_eq!(read["results"][1]["get"]["count"], 2);
    assert_eq!(read["results"][2]["get"]["count"], 0);
    assert_eq!(port.post("/-/txn", "{}").await.is(200).json()["results"], json!([]));
}

#[tokio::test]
async fn a_transaction_that_cannot_be_done_does_nothing() {
    let server = Server::start().await;
    let port = server.port();
    port.put("/a", "1").await.is(204);
    for (body, status, code) in [
        ("", 400, "invalid_json"),
        ("[]", 400, "invalid_json"),
        (
            r#"{"then":[{"put":{"key":"a","value":"2"}},{"put":{"key":"a","value":"3"}}]}"#,
            400,
            "duplicate_key",
        ),
        (
            r#"{"then":[{"put":{"key":"a","value":"2"}},{"get":{"key":"a","revision":99}}]}"#,
            400,
            "future_revision",
        ),
        (r#"{"then":[{"get":{"key":"a","revision":99}}]}"#, 400, "future_revision"),
        (
            r#"{"then":[{"put":{"key":"b","value":"2"}},{"put":{"key":"a","value":"2","lease":77}}]}"#,
            409,
            "lease_not_found",
        ),
        (r#"{"then":[{"delete":{"key":""}}]}"#, 400, "empty_key"),
        (r#"{"then":[{"put":{"key":"a"}}]}"#, 400, "invalid_txn"),
        (r#"{"compare":[{"key":"a"}]}"#, 400, "invalid_txn"),
    ] {
        port.post("/-/txn", body).await.refused(status, code);
    }
    port.post("/-/txn?x", "{}").await.refused(400, "unknown_option");
    let large = format!(
        "{{\"then\":[{{\"put\":{{\"key\":\"a\",\"value\":\"{}\"}}}}]}}",
        "v".repeat(crate::MAX_REQUEST_BYTES)
    );
    port.post("/-/txn", &large).await.refused(413, "body_too_large");
    assert_eq!(port.get("/a").await.is(200).header("etag"), Some("\"2\""));
    port.get("/b").await.refused(404, "key_not_found");
}
