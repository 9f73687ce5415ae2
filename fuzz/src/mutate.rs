//! What goes wrong with bytes.

use crate::{
    dice::Dice,
    tree::{put_bytes, put_varint},
};

/// An input never grows beyond this, in bytes.
pub const MAX_BYTES: usize = 256 << 10;

/// Bytes that mean something to many formats.
const TELLING: [u8; 8] = [0x00, 0x01, 0x7f, 0x80, 0xff, 0x0a, 0x12, b'\n'];

/// Groups, which only old protobuf has: the start of one with number 100.
const START_GROUP: [u8; 2] = [0xa3, 0x06];

/// Damages `bytes` in one to four ways. `other` is another input of the same
/// kind, to be mixed in.
pub fn mutate(dice: &mut Dice, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=dice.below(4) {
        once(dice, bytes, other);
        bytes.truncate(MAX_BYTES);
    }
}

fn once(dice: &mut Dice, bytes: &mut Vec<u8>, other: &[u8]) {
    let at = dice.index(bytes.len());
    match dice.below(14) {
        0..=2 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << dice.below(8);
            }
        }
        3 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = *dice.pick(&TELLING);
            }
        }
        4 => bytes.truncate(at),
        5 => {
            let end = at + dice.index((bytes.len() - at).min(64) + 1);
            bytes.drain(at..end);
        }
        6 => repeat(dice, bytes, at),
        7 => {
            let length = dice.index(16);
            let noise = dice.noise(length);
            bytes.splice(at..at, noise);
        }
        8 => splice(dice, bytes, at, other),
        9 | 10 => number(dice, bytes, at),
        11 => unknown(dice, bytes),
        12 => nest(dice, bytes),
        _ => {
            // Two parts change places.
            let middle = at + dice.index(bytes.len() - at);
            bytes[at..].rotate_left(middle - at);
        }
    }
}

/// A part again and again.
fn repeat(dice: &mut Dice, bytes: &mut Vec<u8>, at: usize) {
    let end = at + dice.index((bytes.len() - at).min(128) + 1);
    let part = bytes[at..end].to_vec();
    let times = if dice.percent(5) { 1000 } else { 1 + dice.index(8) };
    let times = times.min((8 << 10) / part.len().max(1));
    bytes.splice(at..at, part.repeat(times));
}

/// A part of another input instead of the rest, or within.
fn splice(dice: &mut Dice, bytes: &mut Vec<u8>, at: usize, other: &[u8]) {
    let from = dice.index(other.len());
    let to = from + dice.index(other.len() - from + 1);
    let end = if dice.percent(50) { bytes.len() } else { at };
    bytes.splice(at..end, other[from..to].iter().copied());
}

/// A number or a length that is out of proportion, in one of the usual forms.
fn number(dice: &mut Dice, bytes: &mut Vec<u8>, at: usize) {
    let number = dice.magnitude();
    let mut form = Vec::new();
    match dice.below(5) {
        0 => form.extend_from_slice(&number.to_be_bytes()),
        1 => form.extend_from_slice(&(number as u32).to_be_bytes()),
        2 => form.extend_from_slice(&number.to_le_bytes()),
        3 => form.extend_from_slice(&(number as u32).to_le_bytes()),
        _ => {
            put_varint(&mut form, number);
            // In the place of one, and not of as many bytes.
            let end = (at + 1).min(bytes.len());
            bytes.splice(at..end, form);
            return;
        }
    }
    let end = (at + form.len()).min(bytes.len());
    bytes.splice(at..end, form);
}

/// A field that nobody knows.
fn unknown(dice: &mut Dice, bytes: &mut Vec<u8>) {
    let number = dice.pick(&[99, 1000, 19_000, 536_870_911, 0]);
    match dice.below(4) {
        0 => {
            put_varint(bytes, u64::from(*number) << 3);
            put_varint(bytes, dice.magnitude());
        }
        1 => {
            let length = dice.index(64);
            put_bytes(bytes, *number, &vec![0; length]);
        }
        2 => bytes.extend(START_GROUP.repeat(1 + dice.index(300))),
        _ => {
            // A promise that is not kept.
            put_varint(bytes, u64::from(*number) << 3 | 2);
            put_varint(bytes, dice.magnitude());
        }
    }
}

/// The whole as a field of a message, of a message and so on.
fn nest(dice: &mut Dice, bytes: &mut Vec<u8>) {
    let depth = *dice.pick(&[1, 2, 10, 99, 100, 101, 500]);
    let number = 1 + dice.below(5) as u32;
    for _ in 0..depth {
        let content = std::mem::take(bytes);
        put_bytes(bytes, number, &content);
        if bytes.len() > MAX_BYTES {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anything_can_be_damaged_and_stays_bounded() {
        let mut changed = 0;
        for number in 0..5000 {
            let mut dice = Dice::new(3, number);
            let (length, other) = (dice.length(), dice.length());
            let (before, other) = (dice.noise(length), dice.noise(other));
            let mut after = before.clone();
            mutate(&mut dice, &mut after, &other);
            assert!(after.len() <= MAX_BYTES);
            changed += u32::from(after != before);
        }
        assert!(changed > 4000, "only {changed}");
    }
}
