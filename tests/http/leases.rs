//! Leases, and keys that go with them.

use serde_json::json;

use crate::{Server, process::eventually};

#[tokio::test]
async fn a_lease_is_granted_kept_and_revoked_with_its_keys() {
    let server = Server::start().await;
    let port = server.port();
    assert_eq!(port.get("/-/leases").await.is(200).json(), json!({"leases": []}));
    let granted = port.post("/-/leases", r#"{"ttl":600}"#).await.is(201).json();
    let id = granted["id"].as_i64().expect("an id");
    assert!(id > 0 && granted["ttl"] == 600, "{granted}");
    let chosen = port.post("/-/leases", r#"{"ttl":600,"id":-7}"#).await.is(201).json();
    assert_eq!(chosen, json!({"id": -7, "ttl": 600}));
    port.post("/-/leases", r#"{"ttl":600,"id":-7}"#).await.refused(409, "lease_exists");
    assert_eq!(
        port.get("/-/leases").await.is(200).json(),
        json!({"leases": [{"id": -7, "ttl": 600}, {"id": id, "ttl": 600}]})
    );

    let put = port.put(&format!("/a?lease={id}"), "v").await.is(204);
    assert_eq!(put.header("x-metastore-lease"), Some(id.to_string().as_str()));
    assert_eq!(put.header("x-metastore-ttl"), None);
    let read = port.get("/a").await.is(200);
    assert_eq!(read.header("x-metastore-lease"), Some(id.to_string().as_str()));
    port.put(&format!("/%ff?lease={id}"), "v").await.is(204);
    let path = format!("/-/leases/{id}");
    let lease = port.get(&path).await.is(200).json();
    assert_eq!(lease["keys"], json!([{"key": "a"}, {"key_base64": "/w=="}]));
    assert!(lease["remaining"].as_i64().is_some_and(|left| (1..=600).contains(&left)), "{lease}");
    let kept = port.post(&format!("{path}/keepalive"), "").await.is(200).json();
    assert_eq!(kept, json!({"id": id, "ttl": 600, "remaining": 600}));

    port.delete(&path).await.is(204);
    port.get("/a").await.refused(404, "key_not_found");
    port.get("/%ff").await.refused(404, "key_not_found");
    port.delete(&path).await.refused(404, "lease_not_found");
    port.get(&path).await.refused(404, "lease_not_found");
    port.post(&format!("{path}/keepalive"), "").await.refused(404, "lease_not_found");
}

#[tokio::test]
async fn a_key_with_a_ttl_goes_by_itself() {
    let server = Server::start().await;
    let port = server.port();
    let put = port.put("/short?ttl=1", "v").await.is(204);
    let id = put.number("x-metastore-lease");
    assert_eq!(put.number("x-metastore-ttl"), 1);
    let kept = port.put("/long?ttl=9000000000", "v").await.is(204);
    assert_eq!(kept.number("x-metastore-ttl"), 9_000_000_000);
    eventually("the key's end", async || (port.get("/short").await.status == 404).then_some(()))
        .await;
    port.get(&format!("/-/leases/{id}")).await.refused(404, "lease_not_found");
    port.get("/long").await.is(200);
    // A condition that fails grants nothing either.
    let before = port.get("/-/leases").await.is(200).body;
    let absent = [("If-None-Match", "*")];
    port.send("PUT", "/long?ttl=60", &absent, b"w").await.refused(412, "precondition_failed");
    assert_eq!(port.get("/-/leases").await.is(200).body, before);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let server = Server::start().await;
    let port = server.port();
    for (query, code) in [
        ("ttl=0", "invalid_option"),
        ("ttl=-5", "invalid_option"),
        ("ttl=5s", "invalid_option"),
        ("ttl=9000000001", "invalid_option"),
        ("ttl", "invalid_option"),
        ("lease=0", "invalid_option"),
        ("lease=x", "invalid_option"),
        ("lease=5&ttl=5", "invalid_option"),
        ("ttl=5&ttl=5", "duplicate_option"),
    ] {
        port.put(&format!("/a?{query}"), "v").await.refused(400, code);
    }
    port.put("/a?lease=5", "v").await.refused(409, "lease_not_found");
    port.get("/a").await.refused(404, "key_not_found");
    for body in ["", "{}", "60", r#"{"ttl":"60"}"#, r#"{"ttl":60,"x":1}"#] {
        port.post("/-/leases", body).await.refused(400, "invalid_json");
    }
    for body in [r#"{"ttl":0}"#, r#"{"ttl":-1}"#, r#"{"ttl":9000000001}"#] {
        port.post("/-/leases", body).await.refused(400, "invalid_ttl");
    }
    port.post("/-/leases", r#"{"ttl":60,"id":0}"#).await.refused(400, "invalid_lease_id");
    for id in ["0", "x", "+5", "5.0", "9223372036854775808"] {
        port.get(&format!("/-/leases/{id}")).await.refused(400, "invalid_lease_id");
    }
}
