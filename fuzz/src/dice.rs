//! Where the choices of an input come from.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// Numbers at which arithmetic goes wrong, if it does.
const EDGES: [u64; 14] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    (1 << 53) + 1,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX,
];

/// Chance: drawn from a seed, or read from bytes.
#[derive(Debug)]
pub struct Dice(Source);

#[derive(Debug)]
enum Source {
    Seeded(Box<ChaCha8Rng>),
    Tape { bytes: Vec<u8>, at: usize },
}

impl Dice {
    /// One of many independent streams of a seed: the same two numbers throw
    /// the same dice.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self(Source::Seeded(Box::new(rng)))
    }

    /// Choices that an input itself holds. After its end they are all 0.
    pub fn of_tape(bytes: &[u8]) -> Self {
        Self(Source::Tape { bytes: bytes.to_vec(), at: 0 })
    }

    /// Whether a tape has been read to its end.
    pub fn is_spent(&self) -> bool {
        match &self.0 {
            Source::Seeded(_) => false,
            Source::Tape { bytes, at } => *at >= bytes.len(),
        }
    }

    fn draw(&mut self, count: usize) -> u64 {
        match &mut self.0 {
            Source::Seeded(rng) => rng.next_u64() >> (64 - 8 * count),
            Source::Tape { bytes, at } => (0..count).fold(0, |number, _| {
                let byte = bytes.get(*at).copied().unwrap_or_default();
                *at += 1;
                number << 8 | u64::from(byte)
            }),
        }
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.draw(8)
    }

    /// A number below `limit`, or 0 when that is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        let count = match limit {
            0..=0x100 => 1,
            0x101..=0x1_0000 => 2,
            _ => 8,
        };
        self.draw(count) % limit.max(1)
    }

    /// A place in something of this length, or 0 when it is empty.
    pub fn index(&mut self, length: usize) -> usize {
        // Below a length, so it fits.
        self.below(length as u64) as usize
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, share: u64) -> bool {
        self.below(100) < share
    }

    /// One of the choices, of which there is at least one.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.index(choices.len())]
    }

    /// One of the texts, of which there is at least one.
    pub fn word(&mut self, choices: &[&'static str]) -> &'static str {
        choices[self.index(choices.len())]
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        self.below(0x100) as u8
    }

    /// Any bytes, so many of them.
    pub fn noise(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.byte()).collect()
    }

    /// A number that is often small, often at an edge, and sometimes any.
    pub fn magnitude(&mut self) -> u64 {
        match self.below(10) {
            0..=4 => self.below(8),
            5 | 6 => *self.pick(&EDGES),
            7 => self.pick(&EDGES).wrapping_add(self.below(3)).wrapping_sub(1),
            8 => self.number() >> self.below(64),
            _ => self.below(1000),
        }
    }

    /// A length that is mostly small.
    pub fn length(&mut self) -> usize {
        match self.below(20) {
            0..=11 => self.index(16),
            12..=17 => self.index(256),
            18 => self.index(4 << 10),
            _ => self.index(32 << 10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_and_stream_throw_the_same() {
        let thrown = |seed, stream| {
            let mut dice = Dice::new(seed, stream);
            (0..8).map(|_| dice.magnitude()).collect::<Vec<_>>()
        };
        assert_eq!(thrown(1, 2), thrown(1, 2));
        assert_ne!(thrown(1, 2), thrown(1, 3));
        assert_ne!(thrown(1, 2), thrown(2, 2));
    }

    #[test]
    fn a_tape_is_read_once() {
        let mut dice = Dice::of_tape(&[7, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!((dice.below(10), dice.number()), (7, 0x0102_0304_0506_0708));
        assert!(!dice.is_spent());
        assert_eq!((dice.byte(), dice.byte()), (9, 0));
        assert!(dice.is_spent());
    }
}
