//! A decoder for libFuzzer, which keeps the inputs that reach code no other one
//! reached, and makes the next ones from those. `make fuzz GUIDED=1` runs it.
#![no_main]

use std::{cell::RefCell, env, process};

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use metastore_fuzz::{dice::Dice, memory, run::Decoder, targets::Target};

/// Names the target.
const TARGET: &str = "METASTORE_FUZZ_TARGET";

/// Mutations that make an input anew by the decoder's own rules, of a hundred; the
/// others change one. Without the former, what has a checksum or a
/// signature would hardly ever be passed.
const NEW_PERCENT: u64 = 5;

thread_local! {
    /// libFuzzer calls from one thread only.
    static DECODER: RefCell<Box<dyn Decoder>> = RefCell::new(decoder().unwrap_or_else(|why| {
        eprintln!("guided: {TARGET}: {why}");
        process::exit(2)
    }));
}

fn decoder() -> Result<Box<dyn Decoder>, String> {
    let name = env::var(TARGET).map_err(|why| why.to_string())?;
    let decoder = Target::named(&name)?.decoder().map_err(|why| why.to_string())?;
    decoder.ok_or_else(|| "its inputs are of one cluster only: see metastore-fuzz".to_owned())
}

// A panic, here or within, ends the process, and libFuzzer keeps the input.
fuzz_target!(|input: &[u8]| {
    let read = DECODER.with_borrow_mut(|decoder| memory::alone(|| decoder.read(input)));
    if let Err(what) = read {
        panic!("{what}");
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, most: usize, seed: u32| {
    let mut dice = Dice::new(u64::from(seed), 0);
    if !dice.percent(NEW_PERCENT) {
        return fuzzer_mutate(data, size, most);
    }
    let input = DECODER.with_borrow_mut(|decoder| decoder.input(&mut dice));
    let length = input.len().min(most);
    data[..length].copy_from_slice(&input[..length]);
    length
});
