//! `/-/members`, `/-/leader` and the raftexample form.

use serde_json::{Value, json};

use crate::{
    Server,
    process::free_port,
    wire::{Answer, Port},
};

/// A peer URL at which nobody listens.
fn nobody() -> String {
    format!("http://127.0.0.1:{}", free_port())
}

async fn add(port: Port, id: u64, peer_url: &str, learner: bool) -> Answer {
    let body = json!({ "id": id, "peer_url": peer_url, "learner": learner });
    port.post("/-/members", &body.to_string()).await
}

async fn member(port: Port, id: u64) -> Option<Value> {
    let list = port.get("/-/members").await.is(200).json();
    let members = list["members"].as_array().expect("a list").clone();
    members.into_iter().find(|member| member["id"] == id)
}

fn fields(object: &Value) -> Vec<&str> {
    let mut fields: Vec<_> =
        object.as_object().expect("an object").keys().map(String::as_str).collect();
    fields.sort_unstable();
    fields
}

#[tokio::test]
async fn members_are_listed_added_moved_and_removed() {
    let server = Server::start().await;
    let port = server.port();
    let list = port.get("/-/members").await.is(200).json();
    assert_eq!(fields(&list), ["cluster_id", "members"]);
    assert!(list["cluster_id"].as_u64().is_some_and(|id| id > 0));
    let own = member(port, 1).await.expect("this node");
    assert_eq!(fields(&own), ["client_url", "id", "learner", "peer_url"]);
    assert_eq!(own["peer_url"], server.node.peer_url());
    assert_eq!(own["learner"], false);

    let url = nobody();
    let added = add(port, 4, &url, true).await.is(201).json();
    assert_eq!(fields(&added), ["client_url", "id", "learner", "peer_url"]);
    assert_eq!(added, json!({"id": 4, "peer_url": url, "client_url": "", "learner": true}));
    assert_eq!(member(port, 4).await, Some(added.clone()));
    assert_eq!(add(port, 4, &url, true).await.is(201).json(), added, "adding is idempotent");

    let moved = nobody();
    let body = json!({ "peer_url": moved }).to_string();
    port.send("PUT", "/-/members/4", &[], body.as_bytes()).await.is(204);
    assert_eq!(member(port, 4).await.expect("still there")["peer_url"], moved);

    port.delete("/-/members/4").await.is(204);
    assert_eq!(member(port, 4).await, None);
    port.delete("/-/members/4").await.refused(404, "member_not_found");
    add(port, 4, &nobody(), true).await.refused(409, "conflict");
    // The node itself was not disturbed.
    port.put("/a", "v").await.is(204);
}

#[tokio::test]
async fn ids_and_urls_in_use_are_conflicts() {
    let server = Server::start().await;
    let port = server.port();
    let url = nobody();
    add(port, 4, &url, true).await.is(201);
    add(port, 5, &url, true).await.refused(409, "conflict");
    add(port, 4, &nobody(), true).await.refused(409, "conflict");
    add(port, 5, &server.node.peer_url(), true).await.refused(409, "conflict");
    add(port, 1, &nobody(), true).await.refused(409, "conflict");
    let taken = json!({ "peer_url": server.node.peer_url() }).to_string();
    let answer = port.send("PUT", "/-/members/4", &[], taken.as_bytes()).await;
    answer.refused(409, "conflict");
    assert_eq!(member(port, 5).await, None);
}

#[tokio::test]
async fn the_raftexample_form_adds_a_member() {
    let server = Server::start().await;
    let port = server.port();
    let url = nobody();
    // What `curl -d` sends.
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let answer = port.send("POST", "/4", &form, url.as_bytes()).await.is(204);
    assert!(answer.body.is_empty());
    assert_eq!(member(port, 4).await.expect("added")["peer_url"], url);
    port.post("/4", &format!("{url}/\n")).await.is(204);
    port.post("/4", &nobody()).await.refused(409, "conflict");
    for body in ["", "not a url", "ftp://h:1", "{\"peer_url\":\"http://h:1\"}"] {
        port.post("/5", body).await.refused(400, "invalid_peer_url");
    }
    for id in ["0", "18446744073709551616"] {
        port.post(&format!("/{id}"), &nobody()).await.refused(400, "invalid_member_id");
    }
    assert_eq!(member(port, 5).await, None);
    // A number is a key for every other method.
    port.get("/4").await.refused(404, "key_not_found");
}

#[tokio::test]
async fn malformed_membership_requests_are_refused() {
    let server = Server::start().await;
    let port = server.port();
    for body in [
        "",
        "{",
        "[]",
        "null",
        "{}",
        "{\"id\":4}",
        "{\"peer_url\":\"http://h:1\"}",
        "{\"id\":\"4\",\"peer_url\":\"http://h:1\"}",
        "{\"id\":-4,\"peer_url\":\"http://h:1\"}",
        "{\"id\":4,\"peer_url\":\"http://h:1\",\"x\":1}",
        "{\"id\":4,\"peer_url\":7}",
        "{\"id\":4,\"peer_url\":\"http://h:1\",\"learner\":1}",
        "{\"id\":4,\"peer_url\":\"http://h:1\"}{}",
    ] {
        port.post("/-/members", body).await.refused(400, "invalid_json");
    }
    for body in ["", "{}", "{\"peer_url\":1}", "{\"id\":1,\"peer_url\":\"http://h:1\"}"] {
        let answer = port.send("PUT", "/-/members/1", &[], body.as_bytes()).await;
        answer.refused(400, "invalid_json");
    }
    add(port, 0, "http://h:1", false).await.refused(400, "invalid_member_id");
    for url in ["", "h:1", "ftp://h:1", "http://", "http://h:0x1", "http://h:1/path"] {
        add(port, 4, url, false).await.refused(400, "invalid_peer_url");
    }
    for id in ["x", "0", "-1", "+1", "1.0", "18446744073709551616"] {
        let target = format!("/-/members/{id}");
        port.delete(&target).await.refused(400, "invalid_member_id");
        port.post(&format!("{target}/promote"), "").await.refused(400, "invalid_member_id");
        port.post(&format!("/-/leader/{id}"), "").await.refused(400, "invalid_member_id");
        let body = b"{\"peer_url\":\"http://h:1\"}";
        port.send("PUT", &target, &[], body).await.refused(400, "invalid_member_id");
    }
    let huge = format!("{{\"id\":4,\"peer_url\":\"{}\"}}", "x".repeat(80 << 10));
    port.post("/-/members", &huge).await.refused(413, "body_too_large");
    let list = port.get("/-/members").await.is(200).json();
    assert_eq!(list["members"].as_array().map(Vec::len), Some(1), "{list}");
}

#[tokio::test]
async fn only_members_that_keep_up_are_promoted_or_lead() {
    let server = Server::start().await;
    let port = server.port();
    add(port, 4, &nobody(), true).await.is(201);
    port.post("/-/members/4/promote", "").await.refused(409, "conflict");
    port.post("/-/leader/4", "").await.refused(409, "conflict");
    for target in ["/-/members/9/promote", "/-/leader/9"] {
        port.post(target, "").await.refused(404, "member_not_found");
    }
    let body = json!({ "peer_url": nobody() }).to_string();
    let answer = port.send("PUT", "/-/members/9", &[], body.as_bytes()).await;
    answer.refused(404, "member_not_found");
    port.post("/-/leader/1", "").await.is(204);
    assert_eq!(member(port, 4).await.expect("still there")["learner"], true);
}
