//! Values that tell by themselves which request wrote them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;

/// Most values are small, and some are large enough to be cut into packets.
const LENGTHS: [usize; 8] = [0, 10, 30, 100, 100, 300, 1000, 6000];

/// Gives out the numbers of values.
#[derive(Debug, Clone, Default)]
pub struct Values(Arc<AtomicU64>);

impl Values {
    /// A number that was not given out before, from 1.
    pub fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// The value of a number: the number, a colon, and a filling that follows from
/// the number.
pub fn encode(number: u64) -> Bytes {
    let mut value = format!("{number}:").into_bytes();
    let length = value.len() + LENGTHS[(number % LENGTHS.len() as u64) as usize];
    value.resize(length, b'a' + (number % 23) as u8);
    value.into()
}

/// The number of a value that is whole.
pub fn decode(value: &[u8]) -> Option<u64> {
    let digits = value.split(|byte| *byte == b':').next()?;
    let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (encode(number) == value).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_values_tell_their_number_and_others_none() {
        for number in [1, 7, 12_345, u64::MAX] {
            let value = encode(number);
            assert_eq!(decode(&value), Some(number));
            assert_eq!(decode(&value[..value.len() - 1]), None);
            assert_eq!(decode(&[&value[..], b"x"].concat()), None);
        }
        assert_eq!(decode(b""), None);
        assert_eq!(decode(b"x:"), None);
    }
}
