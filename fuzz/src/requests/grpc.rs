//! gRPC calls of every method, with questions of every sort.
//!
//! As an input, a call is a byte for its method, one for how it is sent, and its
//! body, so that each can be changed by itself.

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

/// Bits of the byte that says how a call is sent: a number of [`HEADERS`], where
/// there is one, that its messages are packed, that it is for another kind of
/// client, and that there is no such method.
const HEADER_BITS: u8 = 15;
const PACKED: u8 = 1 << 4;
const OTHER_CONTENT: u8 = 1 << 5;
const OTHER_PATH: u8 = 1 << 6;

/// What a question may become when it is unpacked: within the limit on it, or not.
const BOMBS: [usize; 2] = [100 << 10, 8 << 20];

/// A call that is made anew.
pub fn input(dice: &mut Dice) -> Vec<u8> {
    // Of fewer than 256.
    let number = dice.index(SHAPES.methods.len());
    let method = &SHAPES.methods[number];
    let mut is_packed = dice.percent(6);
    let mut how = if dice.percent(15) { dice.index(HEADERS.len()) as u8 } else { HEADER_BITS };
    for (bit, chosen) in
        [(PACKED, is_packed), (OTHER_CONTENT, dice.percent(5)), (OTHER_PATH, dice.percent(3))]
    {
        how |= if chosen { bit } else { 0 };
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
    [&[number as u8, how], &body[..]].concat()
}

/// The call that an input says.
pub fn call(input: &[u8]) -> Shot {
    let (&[method, how], body) = input.split_first_chunk().unwrap_or((&[0, HEADER_BITS], &[]));
    let has = |bit| how & bit != 0;
    let mut path = SHAPES.methods[usize::from(method) % SHAPES.methods.len()].path.clone();
    if has(OTHER_PATH) {
        path.push('x');
    }
    let content = if has(OTHER_CONTENT) { "application/grpc-web" } else { "application/grpc" };
    let mut headers = vec![("content-type", content)];
    headers.extend(HEADERS.get(usize::from(how & HEADER_BITS)));
    if has(PACKED) {
        headers.push(("grpc-encoding", "gzip"));
    }
    Shot::Call { path, headers, body: body.to_vec() }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_have_numbers_of_one_byte() {
        assert!(SHAPES.methods.len() <= 256);
    }

    #[test]
    fn an_input_says_which_call_how_and_what() {
        let Shot::Call { path, headers, body } = call(&[0, PACKED | OTHER_PATH | 5, 7, 8]) else {
            panic!("no call");
        };
        assert_eq!(path, format!("{}x", SHAPES.methods[0].path));
        let expected = [
            ("content-type", "application/grpc"),
            ("hasleader", "true"),
            ("grpc-encoding", "gzip"),
        ];
        assert_eq!((headers, body), (expected.to_vec(), vec![7, 8]));
    }
}
