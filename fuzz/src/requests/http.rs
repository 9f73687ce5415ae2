//! HTTP/1.1 to the client port, and what is no longer HTTP/1.1.

use crate::{dice::Dice, mutate::mutate};

const METHODS: [&str; 12] = [
    "GET", "GET", "GET", "PUT", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT",
    "BREW",
];

const PATHS: [&str; 40] = [
    "/a",
    "/b",
    "/k/1",
    "/k/2",
    "/k/",
    "/%00",
    "/%ff%fe",
    "/%2D/x",
    "/%zz",
    "/%",
    "/.././a",
    "//",
    "/4",
    "/99999999999999999999",
    "/",
    "*",
    "a",
    "http://host/a",
    "/+",
    "/{a}",
    "/-/members",
    "/-/members/2",
    "/-/members/0",
    "/-/members/3/promote",
    "/-/leader/1",
    "/-/leader/9",
    "/-/status",
    "/-/hash",
    "/-/health",
    "/-/livez",
    "/-/readyz",
    "/-/metrics",
    "/-/leases",
    "/-/leases/7",
    "/-/leases/-7/keepalive",
    "/-/txn",
    "/-/compact",
    "/-/nothing",
    "/-/",
    "/v3/kv/range",
];

const OPTIONS: [&str; 24] = [
    "list",
    "watch",
    "prefix",
    "prev",
    "keys_only",
    "limit=2",
    "limit=0",
    "limit=-1",
    "from=k",
    "from=%ff",
    "revision=1",
    "revision=3",
    "revision=9223372036854775807",
    "revision=18446744073709551616",
    "ttl=60",
    "ttl=9000000000",
    "ttl=0",
    "ttl=9223372036854775807",
    "lease=7",
    "lease=0",
    "consistency=stale",
    "consistency=x",
    "x=y",
    "=",
];

const HEADERS: [&str; 26] = [
    "If-Match: *",
    "If-Match: \"3\"",
    "If-Match: \"3\", \"4\", W/\"5\"",
    "If-Match: \"18446744073709551615\"",
    "If-None-Match: *",
    "If-None-Match: \"3\"",
    "If-None-Match: \"",
    "Accept: text/event-stream",
    "Last-Event-ID: 3",
    "Last-Event-ID: 18446744073709551615",
    "Content-Type: application/json",
    "Content-Type: application/grpc",
    "Expect: 100-continue",
    "Connection: close",
    "Connection: upgrade, http2-settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
    "Content-Length: 3",
    "Content-Length: 18446744073709551615",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "Range: bytes=0-1",
    "Authorization: Bearer x",
    "Host: other",
    "X: \u{e9}",
    " folded: x",
];

/// Parts of JSON texts, some of which fit together.
const JSON: [&str; 22] = [
    r#"{"ttl":60}"#,
    r#"{"ttl":60,"id":7}"#,
    r#"{"ttl":9223372036854775807,"id":-9223372036854775808}"#,
    r#"{"ttl":1e400}"#,
    r#"{"revision":3}"#,
    r#"{"revision":18446744073709551615}"#,
    r#"{"id":2,"peer_url":"http://[::1]:7002","learner":true}"#,
    r#"{"id":3,"peer_url":"http://[::1]:7003","learner":true}"#,
    r#"{"peer_url":"http://[::1]:7004"}"#,
    r#"{"id":0,"peer_url":""}"#,
    r#"{"then":[{"put":{"key":"a","value":"b"}}]}"#,
    r#"{"compare":[{"key":"a","value":"b"}],"then":[{"get":{"key":"a"}}],"else":[{"delete":{"key":"b","prev":true}}]}"#,
    r#"{"compare":[{"key":"a","exists":true}],"then":[{"put":{"key":"a","value":"b","lease":7}}]}"#,
    r#"{"compare":[{"key":"k/","prefix":true,"version":1,"is":">"}],"else":[{"get":{"key":"k/","prefix":true,"limit":1}}]}"#,
    r#"{"compare":[{"key_base64":"/w==","mod_revision":3,"is":"!="}],"then":[]}"#,
    r#"{"then":[{"put":{"key":"a","value":"1"}},{"put":{"key":"a","value":"2"}}]}"#,
    r#"{"then":[{"get":{"key":"a","range_end":"","revision":-1}}]}"#,
    r#"{"then":[{"put":{"key":"","value":""}}]}"#,
    r#"{"then":[{}]}"#,
    r#"{"\ud800":"\u0000"}"#,
    "[]",
    "null",
];

/// Requests that can be: method, target with its options, and body.
const SOUND: [(&str, &str, &str); 26] = [
    ("GET", "/a", ""),
    ("GET", "/k/1?consistency=stale", ""),
    ("GET", "/a?revision=2", ""),
    ("GET", "/?list&keys_only", ""),
    ("GET", "/k/?list&limit=2&from=k/2", ""),
    ("GET", "/a?watch&revision=1&prev", ""),
    ("GET", "/k/?watch&prefix", ""),
    ("HEAD", "/b", ""),
    ("PUT", "/a", "value"),
    ("PUT", "/k/1", ""),
    ("PUT", "/k/2?ttl=60", "value"),
    ("PUT", "/b?lease=7", "value"),
    ("DELETE", "/a", ""),
    ("DELETE", "/k/?prefix", ""),
    ("POST", "/-/txn", r#"{"then":[{"put":{"key":"a","value":"b"}}]}"#),
    (
        "POST",
        "/-/txn",
        r#"{"compare":[{"key":"a","version":1,"is":">"}],"else":[{"get":{"key":"k/","prefix":true}}]}"#,
    ),
    ("POST", "/-/leases", r#"{"ttl":60,"id":7}"#),
    ("GET", "/-/leases/7", ""),
    ("POST", "/-/leases/7/keepalive", ""),
    ("DELETE", "/-/leases/7", ""),
    ("POST", "/-/compact", r#"{"revision":3}"#),
    ("POST", "/-/members", r#"{"id":3,"peer_url":"http://[::1]:7003","learner":true}"#),
    ("GET", "/-/members", ""),
    ("GET", "/-/status", ""),
    ("GET", "/-/metrics", ""),
    ("GET", "/-/hash", ""),
];

/// One to three requests on a connection, or what was made of them.
pub fn bytes(dice: &mut Dice) -> Vec<u8> {
    if dice.percent(15) {
        let length = dice.length();
        return dice.noise(length);
    }
    let mut bytes = either(dice);
    for _ in 0..dice.below(6).saturating_sub(3) {
        bytes.extend(either(dice));
    }
    if dice.percent(45) {
        let other = request(dice);
        mutate(dice, &mut bytes, &other);
    }
    bytes
}

fn either(dice: &mut Dice) -> Vec<u8> {
    if dice.percent(50) {
        return request(dice);
    }
    let (method, target, body) = dice.pick(&SOUND);
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: member\r\n");
    if !body.is_empty() {
        head.push_str("Content-Type: application/json\r\n");
    }
    if dice.percent(20) {
        head.push_str(dice.word(&HEADERS[..9]));
        head.push_str("\r\n");
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    head.into_bytes()
}

fn request(dice: &mut Dice) -> Vec<u8> {
    let mut target = dice.word(&PATHS).to_owned();
    if dice.percent(2) {
        target.push_str(&"k".repeat(dice.index(70_000)));
    }
    for option in 0..dice.below(4) {
        target.push(if option == 0 { '?' } else { '&' });
        target.push_str(dice.word(&OPTIONS));
    }
    let method = dice.word(&METHODS);
    let version = if dice.percent(96) { "HTTP/1.1" } else { "HTTP/1.0" };
    let mut head = format!("{method} {target} {version}\r\n");
    if dice.percent(95) {
        head.push_str("Host: member\r\n");
    }
    for _ in 0..dice.below(4) {
        head.push_str(dice.word(&HEADERS));
        head.push_str("\r\n");
    }
    if dice.percent(2) {
        head.push_str(&format!("Large: {}\r\n", "x".repeat(dice.index(40_000))));
    }
    let body = body(dice);
    match dice.below(10) {
        0 => {}
        1 | 2 => {
            head.push_str("Transfer-Encoding: chunked\r\n\r\n");
            return [head.into_bytes(), chunked(dice, &body)].concat();
        }
        _ => head.push_str(&format!("Content-Length: {}\r\n", body.len())),
    }
    head.push_str("\r\n");
    [head.into_bytes(), body].concat()
}

fn body(dice: &mut Dice) -> Vec<u8> {
    match dice.below(10) {
        0..=2 => Vec::new(),
        3..=6 => dice.word(&JSON).as_bytes().to_vec(),
        7 => {
            let depth = *dice.pick(&[10, 127, 128, 129, 5000]);
            [r#"{"then":"#, &"[".repeat(depth)].concat().into_bytes()
        }
        8 => b"http://[::1]:7005".to_vec(),
        _ => {
            let length = dice.length();
            dice.noise(length)
        }
    }
}

fn chunked(dice: &mut Dice, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in body.chunks(1 + dice.index(64)) {
        bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    let end: &[u8] = match dice.below(10) {
        0 => b"0\r\nTrailer: x\r\n\r\n",
        1 => b"ffffffffffffffff\r\n",
        _ => b"0\r\n\r\n",
    };
    bytes.extend_from_slice(end);
    bytes
}
