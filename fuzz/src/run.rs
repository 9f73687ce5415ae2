//! Running a decoder over its inputs.

use std::{
    cell::Cell,
    fmt::Write as _,
    ops::Range,
    panic::{self, AssertUnwindSafe},
    sync::{Mutex, Once, PoisonError},
    time::Instant,
};

use crate::{dice::Dice, memory};

/// Failing inputs of one target that are told; the run goes on without.
pub const SHOWN_FAILURES: usize = 5;

/// Shorter versions of a failing input that are tried.
const SHRINK_ATTEMPTS: usize = 2_000;

/// Bytes of a failing input that are shown.
const SHOWN_BYTES: usize = 400;

/// What became of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was taken for what it claims to be.
    Accepted,
    /// It was refused, as it may be.
    Refused,
}

/// Something that reads bytes in this process.
pub trait Decoder {
    /// What it is called on the command line.
    fn name(&self) -> &'static str;

    /// The next input: valid, damaged or noise, as the dice fall.
    fn input(&mut self, dice: &mut Dice) -> Vec<u8>;

    /// Reads an input. The same input has the same end, whatever was read
    /// before it, unless it is a request to a member.
    ///
    /// # Errors
    /// What was promised and did not hold. A panic is the same.
    fn read(&mut self, input: &[u8]) -> Result<Verdict, String>;
}

/// An input that must not have done what it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its number.
    pub input: u64,
    /// What happened.
    pub what: String,
    /// A shorter one that does the same, or itself, as text.
    pub minimal: String,
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Tally {
    /// The target.
    pub target: &'static str,
    /// Where the choices came from.
    pub seed: u64,
    /// Inputs that were asked for.
    pub asked: u64,
    /// Inputs that were read to an end.
    pub ran: u64,
    /// Of those, how many were accepted,
    pub accepted: u64,
    /// and how many refused.
    pub refused: u64,
    /// The first of those that failed.
    pub findings: Vec<Finding>,
    /// How many failed.
    pub failures: u64,
    /// How long it took.
    pub seconds: f64,
}

impl Tally {
    /// Nothing so far.
    pub fn new(target: &'static str, seed: u64, asked: u64) -> Self {
        Self {
            target,
            seed,
            asked,
            ran: 0,
            accepted: 0,
            refused: 0,
            findings: Vec::new(),
            failures: 0,
            seconds: 0.0,
        }
    }

    /// Counts an input that came to an end.
    pub fn count(&mut self, verdict: Verdict) {
        self.ran += 1;
        match verdict {
            Verdict::Accepted => self.accepted += 1,
            Verdict::Refused => self.refused += 1,
        }
    }

    /// Counts an input that failed.
    pub fn fail(&mut self, finding: Finding) {
        self.ran += 1;
        self.failures += 1;
        if self.findings.len() < SHOWN_FAILURES {
            self.findings.push(finding);
        }
    }
}

thread_local! {
    /// Whether a panic of this thread is an answer, and not to be told at once.
    static IS_READING: Cell<bool> = const { Cell::new(false) };
}

/// What the last such panic said.
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if IS_READING.get() {
                *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = info.to_string();
            } else {
                usual(info);
            }
        }));
    });
}

/// Reads one input; the error also tells a panic.
fn read(decoder: &mut dyn Decoder, input: &[u8]) -> Result<Verdict, String> {
    IS_READING.set(true);
    let read = panic::catch_unwind(AssertUnwindSafe(|| decoder.read(input)));
    IS_READING.set(false);
    read.unwrap_or_else(|_| {
        let said = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner);
        Err(said.replace('\n', " "))
    })
}

/// What makes two failures the same: their words without numbers.
fn kind(what: &str) -> String {
    what.chars().filter(|c| !c.is_ascii_digit()).take(80).collect()
}

/// A shorter input that fails in the same way.
fn shrink(decoder: &mut dyn Decoder, input: &[u8], what: &str) -> Vec<u8> {
    let mut best = input.to_vec();
    let mut attempts = 0;
    let mut size = best.len().div_ceil(2);
    while size > 0 && attempts < SHRINK_ATTEMPTS {
        let mut at = 0;
        while at < best.len() && attempts < SHRINK_ATTEMPTS {
            attempts += 1;
            let end = (at + size).min(best.len());
            let shorter = [&best[..at], &best[end..]].concat();
            match read(decoder, &shorter) {
                Err(other) if kind(&other) == kind(what) => best = shorter,
                _ => at = end,
            }
        }
        size /= 2;
    }
    best
}

/// Runs the inputs of these numbers, and calls `progress` after each.
pub fn run(
    decoder: &mut dyn Decoder,
    seed: u64,
    inputs: Range<u64>,
    progress: &mut dyn FnMut(&Tally),
) -> Tally {
    catch_panics();
    let started = Instant::now();
    let asked = inputs.end.saturating_sub(inputs.start);
    let mut tally = Tally::new(decoder.name(), seed, asked);
    memory::alone(|| {
        for number in inputs {
            let input = decoder.input(&mut Dice::new(seed, number));
            match read(decoder, &input) {
                Ok(verdict) => tally.count(verdict),
                Err(what) if tally.findings.len() < SHOWN_FAILURES => {
                    let minimal = shown(&shrink(decoder, &input, &what));
                    tally.fail(Finding { input: number, what, minimal });
                }
                Err(what) => tally.fail(Finding { input: number, what, minimal: String::new() }),
            }
            progress(&tally);
        }
    });
    tally.seconds = started.elapsed().as_secs_f64();
    tally
}

/// Bytes for people: in hexadecimal, and no more of them than anybody reads.
pub fn shown(bytes: &[u8]) -> String {
    let mut text = format!("{} bytes ", bytes.len());
    for byte in bytes.iter().take(SHOWN_BYTES) {
        // Cannot fail: the target is a string.
        let _ = write!(text, "{byte:02x}");
    }
    if bytes.len() > SHOWN_BYTES {
        text.push('…');
    }
    text
}

/// Reads an input that was kept because it once did harm.
///
/// # Errors
/// As [`Decoder::read`].
pub fn once(decoder: &mut dyn Decoder, input: &[u8]) -> Result<Verdict, String> {
    catch_panics();
    memory::alone(|| read(decoder, input))
}

/// What was read, if it took no more memory than it may: so many times the input
/// and so many bytes.
///
/// # Errors
/// When it took more.
pub fn within<T>(
    input: usize,
    (times, bytes): (usize, usize),
    read: impl FnOnce() -> T,
) -> Result<T, String> {
    let (result, peak) = memory::peak(read);
    let most = input.saturating_mul(times).saturating_add(bytes);
    if peak > most {
        return Err(format!("{input} bytes took {peak} bytes of memory, more than {most}"));
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Panics at a 7, fails at a 9, and takes much memory at an 8.
    struct Fragile;

    impl Decoder for Fragile {
        fn name(&self) -> &'static str {
            "fragile"
        }

        fn input(&mut self, dice: &mut Dice) -> Vec<u8> {
            let length = dice.index(32);
            dice.noise(length)
        }

        fn read(&mut self, input: &[u8]) -> Result<Verdict, String> {
            assert!(!input.contains(&7), "a seven at {:?}", input.iter().position(|it| *it == 7));
            if input.contains(&9) {
                return Err("a nine".to_owned());
            }
            let size = if input.contains(&8) { 8 << 20 } else { 0 };
            let taken = within(input.len(), (4, 1 << 20), || vec![1_u8; size].len())?;
            assert_eq!(taken, size);
            Ok(if input.len() > 16 { Verdict::Accepted } else { Verdict::Refused })
        }
    }

    #[test]
    fn panics_broken_promises_and_memory_are_found_and_made_small() {
        let mut last = 0;
        let tally = run(&mut Fragile, 1, 0..2000, &mut |tally| last = tally.ran);
        assert_eq!((tally.ran, last), (2000, 2000));
        assert_eq!(tally.accepted + tally.refused + tally.failures, 2000);
        assert!(tally.accepted > 100 && tally.refused > 100 && tally.failures > 100);
        assert_eq!(tally.findings.len(), SHOWN_FAILURES);
        for finding in &tally.findings {
            let kinds = [("a seven", "07"), ("a nine", "09"), ("of memory", "08")];
            let byte = kinds.iter().find(|(what, _)| finding.what.contains(what));
            let (_, byte) = byte.expect("one of the three");
            assert_eq!(finding.minimal, format!("1 bytes {byte}"), "{finding:?}");
        }
        let again = run(&mut Fragile, 1, 0..2000, &mut |_| {});
        assert_eq!(again.findings, tally.findings);
    }

    #[test]
    fn one_input_can_be_read_again() {
        assert_eq!(once(&mut Fragile, &[1, 2, 3]), Ok(Verdict::Refused));
        assert!(once(&mut Fragile, &[7]).is_err_and(|what| what.contains("a seven")));
    }
}
