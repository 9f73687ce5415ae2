//! HTTP/2 frame by frame, and bytes that are nothing at all.

use crate::{dice::Dice, mutate::mutate};

/// What a client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;

/// Ends the stream; ends the head.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Requests, as heads of a few fields.
const REQUESTS: [(&str, &str); 8] = [
    ("GET", "/-/health"),
    ("GET", "/a"),
    ("PUT", "/a"),
    ("POST", "/etcdserverpb.KV/Range"),
    ("POST", "/etcdserverpb.Watch/Watch"),
    ("POST", "/v3/kv/range"),
    ("GET", "/raft/founding"),
    ("POST", "/raft/join"),
];

/// What a connection begins with, and goes on with.
pub fn bytes(dice: &mut Dice) -> Vec<u8> {
    if dice.percent(33) {
        let length = dice.length();
        let mut noise = dice.noise(length);
        if dice.percent(50) {
            noise.splice(0..0, PREFACE.iter().copied());
        }
        return noise;
    }
    let mut bytes = connection(dice);
    if dice.percent(50) {
        let other = connection(dice);
        // Behind the preface, as a rule: without it nothing else is read.
        if dice.percent(90) && bytes.len() > PREFACE.len() {
            let mut rest = bytes.split_off(PREFACE.len());
            mutate(dice, &mut rest, &other);
            bytes.extend(rest);
        } else {
            mutate(dice, &mut bytes, &other);
        }
    }
    bytes
}

fn connection(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = PREFACE.to_vec();
    let settings = settings(dice);
    frame(&mut bytes, SETTINGS, 0, 0, &settings);
    let mut stream = 1;
    for _ in 0..=dice.below(5) {
        if dice.percent(70) {
            request(dice, &mut bytes, stream);
            stream += 2;
        } else {
            odd(dice, &mut bytes, stream);
        }
    }
    bytes
}

fn request(dice: &mut Dice, bytes: &mut Vec<u8>, stream: u32) {
    let (method, path) = dice.pick(&REQUESTS);
    let mut head = Vec::new();
    let fields = [(":method", *method), (":scheme", "http"), (":path", path)];
    for (name, value) in fields {
        field(&mut head, name, value);
    }
    if dice.percent(90) {
        field(&mut head, ":authority", "member");
    }
    if path.contains("etcdserverpb") {
        field(&mut head, "content-type", "application/grpc");
        field(&mut head, "te", "trailers");
    }
    if dice.percent(10) {
        field(&mut head, "connection", "close");
    }
    let has_body = *method != "GET";
    let ends = if has_body { 0 } else { END_STREAM };
    frame(bytes, HEADERS, END_HEADERS | ends, stream, &head);
    if has_body {
        let body = [0, 0, 0, 0, 3, 0x0a, 1, b'a'];
        frame(bytes, DATA, END_STREAM, stream, &body[..dice.index(body.len() + 1)]);
    }
}

/// A frame that nobody asked for.
fn odd(dice: &mut Dice, bytes: &mut Vec<u8>, stream: u32) {
    let kind = dice.below(11) as u8;
    let stream = *dice.pick(&[0, 1, 2, 3, stream, 0x7fff_ffff, 0xffff_ffff]);
    let length = *dice.pick(&[0, 1, 4, 5, 6, 8, 16]);
    let content = match dice.below(3) {
        0 => vec![0; length],
        1 => vec![0xff; length],
        _ => dice.noise(length),
    };
    let flags = dice.byte();
    let times = if dice.percent(5) { 500 } else { 1 };
    for _ in 0..times {
        frame(bytes, kind, flags, stream, &content);
    }
}

fn settings(dice: &mut Dice) -> Vec<u8> {
    let mut settings = Vec::new();
    for _ in 0..dice.below(4) {
        settings.extend_from_slice(&(dice.below(9) as u16).to_be_bytes());
        let value = dice.pick(&[0, 1, 100, 16_384, 65_535, 1 << 20, u32::MAX]);
        settings.extend_from_slice(&value.to_be_bytes());
    }
    settings
}

fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, content: &[u8]) {
    let [_, a, b, c] = (content.len() as u32).to_be_bytes();
    bytes.extend_from_slice(&[a, b, c, kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(content);
}

/// A field of a head, written out in full, neither of it longer than 126 bytes.
fn field(head: &mut Vec<u8>, name: &str, value: &str) {
    head.push(0);
    for text in [name, value] {
        head.push(text.len() as u8);
        head.extend_from_slice(text.as_bytes());
    }
}
