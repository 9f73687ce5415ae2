//! gRPC calls of every method, with questions of every sort.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};

use super::Shot;
use crate::{dice::Dice, mutate::mutate, shape::SHAPES, tree::Tree};

/// Headers that mean something to gRPC or to etcd.
const HEADERS: [(&str, &str); 10] = [
    ("grpc-timeout", "1n"),
    ("grpc-timeout", "99999999H"),
    ("grpc-timeout", "x"),
    ("grpc-encoding", "identity"),
    ("grpc-encoding", "deflate"),
    ("hasleader", "true"),
    ("token", "x"),
    ("authorization", "x"),
    ("grpc-accept-encoding", "gzip"),
    ("client-bin", "!"),
];

/// What a question may become when it is unpacked: within the limit on it, or not.
const BOMBS: [usize; 2] = [100 << 10, 8 << 20];

/// A call.
pub fn call(dice: &mut Dice) -> Shot {
    let method = dice.pick(&SHAPES.methods);
    let path = if dice.percent(97) { method.path.clone() } else { format!("{}x", method.path) };
    let content = if dice.percent(95) { "application/grpc" } else { "application/grpc-web" };
    let mut headers = vec![("content-type", content.to_owned())];
    if dice.percent(15) {
        let (name, value) = dice.pick(&HEADERS);
        headers.push((*name, (*value).to_owned()));
    }
    let mut is_packed = dice.percent(6);
    if is_packed {
        headers.push(("grpc-encoding", "gzip".to_owned()));
    }
    let mut body = Vec::new();
    for _ in 0..1 + dice.below(8).saturating_sub(5) {
        let mut message = question(dice, &method.input);
        if is_packed {
            message = packed(dice, &message);
        } else if dice.percent(1) {
            is_packed = true;
        }
        frame(dice, &mut body, &message, is_packed);
    }
    if dice.percent(8) {
        let other = body.clone();
        mutate(dice, &mut body, &other);
    }
    Shot::Call { path, headers, body }
}

fn question(dice: &mut Dice, message: &str) -> Vec<u8> {
    if dice.percent(30) {
        let length = dice.length();
        return dice.noise(length);
    }
    let mut bytes = Tree::grow(dice, message).wire();
    if dice.percent(45) {
        let other = Tree::grow(dice, message).wire();
        mutate(dice, &mut bytes, &other);
    }
    bytes
}

fn packed(dice: &mut Dice, message: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    let bomb = if dice.percent(5) { vec![0; *dice.pick(&BOMBS)] } else { Vec::new() };
    // Into memory, which takes everything.
    let written = packer.write_all(message).and_then(|()| packer.write_all(&bomb));
    let packed = written.and_then(|()| packer.finish());
    packed.unwrap_or_default()
}

/// Appends a message in its frame, whose length is right for the most part.
fn frame(dice: &mut Dice, body: &mut Vec<u8>, message: &[u8], is_packed: bool) {
    let length = if dice.percent(97) { message.len() as u64 } else { dice.magnitude() };
    body.push(if dice.percent(98) { is_packed.into() } else { dice.byte() });
    body.extend_from_slice(&(length as u32).to_be_bytes());
    body.extend_from_slice(message);
}
