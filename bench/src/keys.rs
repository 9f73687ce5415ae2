//! The keys and values that a run uses.

use bytes::{BufMut, Bytes, BytesMut};
use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};

use crate::Failure;

/// What all keys begin with.
const PREFIX: &str = "bench/";

/// The longest key; more is a slip of units.
const MAX_KEY_BYTES: usize = 4 << 10;

/// Numbered keys of one length: a prefix, and the number in decimal digits. So
/// the keys of which the numbers have all but the last digits in common have a
/// prefix in common.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    count: u64,
    digits: usize,
}

impl Keys {
    /// So many keys of so many bytes.
    ///
    /// # Errors
    /// When there are none, or so many bytes do not hold their numbers.
    pub fn new(count: u64, bytes: usize) -> Result<Self, Failure> {
        let Some(last) = count.checked_sub(1) else {
            return Err(Failure::new("there are no keys", "give --key-space at least 1"));
        };
        let least = PREFIX.len() + last.to_string().len();
        if !(least..=MAX_KEY_BYTES).contains(&bytes) {
            return Err(Failure::new(
                format!("a key of {bytes} bytes does not hold the numbers of {count} keys"),
                format!("give --key-size from {least} to {MAX_KEY_BYTES}"),
            ));
        }
        Ok(Self { count, digits: bytes - PREFIX.len() })
    }

    /// How many there are.
    pub fn count(self) -> u64 {
        self.count
    }

    /// The key of a number.
    pub fn key(self, number: u64) -> Bytes {
        format!("{PREFIX}{number:0digits$}", digits = self.digits).into()
    }

    /// What all keys begin with.
    pub fn prefix(self) -> Bytes {
        Bytes::from_static(PREFIX.as_bytes())
    }

    /// What the keys begin with of which only the last `digits` digits differ
    /// from those of a number.
    pub fn prefix_of(self, number: u64, digits: usize) -> Bytes {
        let key = self.key(number);
        key.slice(..key.len().saturating_sub(digits))
    }

    /// Any of the numbers.
    pub fn any(self, random: &mut SmallRng) -> u64 {
        random.random_range(0..self.count)
    }
}

/// The end of the range of all keys that begin with a prefix, of which the
/// last byte is not 255.
pub fn end_of(prefix: &[u8]) -> Bytes {
    let mut end = BytesMut::from(prefix);
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.freeze()
}

/// Random numbers of one client: the same in every run.
pub fn random(client: u64) -> SmallRng {
    SmallRng::seed_from_u64(client)
}

/// Bytes that do not compress.
pub fn value(random: &mut SmallRng, bytes: usize) -> Bytes {
    let mut value = BytesMut::zeroed(bytes);
    random.fill_bytes(&mut value);
    value.freeze()
}

/// Such a value that begins with a number, of eight bytes at least.
pub fn numbered_value(number: u64, random: &mut SmallRng, bytes: usize) -> Bytes {
    let mut value = BytesMut::with_capacity(bytes.max(8));
    value.put_u64(number);
    value.resize(bytes.max(8), 0);
    random.fill_bytes(&mut value[8..]);
    value.freeze()
}

/// The number that a value begins with.
pub fn number_of(value: &[u8]) -> Option<u64> {
    value.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_one_length_and_share_prefixes() {
        let keys = Keys::new(100_000, 18).expect("it is possible");
        assert_eq!(keys.key(0), "bench/000000000000");
        assert_eq!(keys.key(99_999), "bench/000000099999");
        assert_eq!(keys.prefix_of(54_321, 3), "bench/000000054");
        assert_eq!(end_of(&keys.prefix_of(54_399, 2)), "bench/0000000544");
        assert_eq!(end_of(&keys.prefix()), "bench0");
    }

    #[test]
    fn keys_that_cannot_be_are_refused() {
        assert!(Keys::new(0, 18).is_err());
        assert!(Keys::new(100_000, 10).is_err());
        assert!(Keys::new(100_000, 11).is_ok());
        assert!(Keys::new(1, MAX_KEY_BYTES + 1).is_err());
    }

    #[test]
    fn values_differ_and_may_begin_with_a_number() {
        let mut random = random(1);
        let (one, other) = (value(&mut random, 256), value(&mut random, 256));
        assert_eq!((one.len(), other.len()), (256, 256));
        assert_ne!(one, other);
        assert_eq!(number_of(&numbered_value(7, &mut random, 256)), Some(7));
        assert_eq!(numbered_value(7, &mut random, 0).len(), 8);
        assert_eq!(number_of(b"short"), None);
    }
}
