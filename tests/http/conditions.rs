//! If-Match and If-None-Match.

use crate::{Server, wire::Port};

const ABSENT: &str = "absent";

/// Sends a request with one condition to a key of revision `{tag}`, or to one
/// that does not exist, and checks status and effect.
async fn check(port: Port, key: &str, method: &str, header: (&str, &str), status: u16) {
    let target = format!("/{key}");
    port.delete(&target).await;
    let mut tag = String::new();
    if key != ABSENT {
        tag = port.put(&target, "old").await.is(204).header("etag").expect("a tag").to_owned();
    }
    let value = header.1.replace("{tag}", &tag);
    let body: &[u8] = if method == "PUT" { b"new" } else { b"" };
    let answer = port.send(method, &target, &[(header.0, &value)], body).await;
    let what = format!("{method} {key} with {}: {value}", header.0);
    assert_eq!(answer.status, status, "{what}");

    let after = port.get(&target).await;
    match (method, status, key) {
        ("PUT", 204, _) => assert_eq!(after.body, b"new", "{what}"),
        ("DELETE", 204, _) | (_, _, ABSENT) => assert_eq!(after.status, 404, "{what}"),
        _ => {
            assert_eq!(after.body, b"old", "{what}: no effect");
            assert_eq!(after.header("etag"), Some(tag.as_str()), "{what}: no effect");
        }
    }
    if status == 412 {
        let answer = answer.refused(412, "precondition_failed");
        let current = (key != ABSENT).then_some(tag.as_str());
        assert_eq!(answer.header("etag"), current, "{what}: the tag to retry with");
    }
}

#[tokio::test]
async fn writes_happen_when_their_condition_holds() {
    let server = Server::start().await;
    let port = server.port();
    for method in ["PUT", "DELETE"] {
        for (header, present) in [
            (("If-Match", "*"), 204),
            (("If-Match", "{tag}"), 204),
            (("if-match", " {tag} "), 204),
            (("If-Match", "\"1\", {tag}"), 204),
            (("If-Match", "{tag},\"999999\""), 204),
            (("If-Match", ",, {tag} ,"), 204),
            (("If-Match", "\"abc\", {tag}"), 204),
            (("If-Match", "\"1\""), 412),
            (("If-Match", "\"999999\""), 412),
            (("If-Match", "\"abc\""), 412),
            (("If-Match", "\"\""), 412),
            (("If-Match", "\"0\""), 412),
            (("If-None-Match", "*"), 412),
            (("If-None-Match", "{tag}"), 412),
            (("If-None-Match", "\"1\", {tag}"), 412),
            (("If-None-Match", "\"1\""), 204),
            (("If-None-Match", "\"abc\""), 204),
        ] {
            check(port, "present", method, header, present).await;
        }
    }
}

#[tokio::test]
async fn conditions_on_a_missing_key() {
    let server = Server::start().await;
    let port = server.port();
    for value in ["*", "\"2\"", "\"0\"", "\"abc\"", "\"1\", \"2\""] {
        check(port, ABSENT, "PUT", ("If-Match", value), 412).await;
        check(port, ABSENT, "DELETE", ("If-Match", value), 412).await;
    }
    for value in ["*", "\"2\"", "\"0\"", "\"abc\""] {
        check(port, ABSENT, "PUT", ("If-None-Match", value), 204).await;
        check(port, ABSENT, "DELETE", ("If-None-Match", value), 404).await;
        port.send("GET", "/absent", &[("If-None-Match", value)], b"").await.is(404);
        port.send("GET", "/absent", &[("If-Match", value)], b"").await.is(404);
    }
}

#[tokio::test]
async fn reads_answer_what_the_client_has_with_304() {
    let server = Server::start().await;
    let port = server.port();
    let put = port.put("/a", "v").await.is(204);
    let tag = put.header("etag").expect("a tag");
    let listed = format!("\"1\", {tag}");
    for method in ["GET", "HEAD"] {
        for target in ["/a", "/a?consistency=stale"] {
            for value in [tag, "*", &listed] {
                let answer = port.send(method, target, &[("If-None-Match", value)], b"").await;
                let answer = answer.is(304);
                assert_eq!(answer.header("etag"), Some(tag));
            }
            for value in ["\"1\"", "\"abc\""] {
                port.send(method, target, &[("If-None-Match", value)], b"").await.is(200);
                port.send(method, target, &[("If-Match", value)], b"").await.is(412);
            }
            for value in [tag, "*", &listed] {
                port.send(method, target, &[("If-Match", value)], b"").await.is(200);
            }
        }
    }
    port.put("/a", "w").await.is(204);
    let changed = port.send("GET", "/a", &[("If-None-Match", tag)], b"").await.is(200);
    assert_eq!(changed.body, b"w");
}

#[tokio::test]
async fn several_lines_are_one_list_and_both_headers_must_hold() {
    let server = Server::start().await;
    let port = server.port();
    let put = port.put("/a", "v").await.is(204);
    let tag = put.header("etag").expect("a tag");
    let put = async |headers: &[(&str, &str)]| port.send("PUT", "/a", headers, b"w").await;
    put(&[("If-Match", tag), ("If-None-Match", tag)]).await.is(412);
    put(&[("If-Match", "\"1\""), ("If-None-Match", "\"1\"")]).await.is(412);
    put(&[("If-Match", "*"), ("If-None-Match", "*")]).await.is(412);
    put(&[("If-Match", "*"), ("If-Match", tag)]).await.refused(400, "invalid_condition");
    put(&[("If-Match", "\"1\""), ("If-Match", "W/\"1\"")]).await.refused(400, "invalid_condition");
    assert_eq!(port.get("/a").await.is(200).body, b"v");
    put(&[("If-Match", "\"1\""), ("If-Match", tag), ("If-None-Match", "\"1\"")]).await.is(204);
    assert_eq!(port.get("/a").await.is(200).body, b"w");
}

#[tokio::test]
async fn malformed_conditions_are_refused() {
    let server = Server::start().await;
    let port = server.port();
    port.put("/a", "v").await.is(204);
    for value in [
        "",
        ",",
        "2",
        "\"2",
        "2\"",
        "W/\"2\"",
        "w/\"2\"",
        "\"1\", W/\"2\"",
        "*, \"2\"",
        "\"2\", *",
        "**",
        "\"1\" \"2\"",
        "\"a b\"",
        "'2'",
    ] {
        for header in ["If-Match", "If-None-Match"] {
            for method in ["GET", "PUT", "DELETE"] {
                let answer = port.send(method, "/a", &[(header, value)], b"").await;
                answer.refused(400, "invalid_condition");
            }
        }
    }
    assert_eq!(port.get("/a").await.is(200).body, b"v");
}
