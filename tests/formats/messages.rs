//! Messages byte by byte.

use std::{fmt::Write as _, fs, path::Path};

use super::{
    every_version, present,
    samples::{Sample, samples},
};

const FILE: &str = "messages.txt";

/// What to do about a difference.
const ADVICE: &str = "The form of what members store or say has changed, and what runs today \
    cannot read it, or reads it as something else. If that is meant, raise the version that it \
    belongs to (see src/version.rs), keep reading the form before it, and run `make fixtures`.";

pub async fn write(dir: &Path) {
    let mut text = String::new();
    for Sample { name, bytes, .. } in samples().await {
        writeln!(text, "{name}: {}", hex(&bytes)).expect("a string takes everything");
    }
    fs::write(dir.join(FILE), text).expect("write the messages");
}

fn read(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let text = fs::read_to_string(dir.join(FILE)).expect("the messages of a version");
    let lines: Vec<_> = text.lines().map(|line| line.split_once(": ").expect("a line")).collect();
    lines.into_iter().map(|(name, hex)| (name.to_owned(), unhex(hex))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16).expect("a digit")).collect();
    digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).expect("a byte")).collect()
}

#[tokio::test]
async fn what_is_written_today_has_the_form_of_todays_versions() {
    let stored = read(&present());
    let samples = samples().await;
    let names: Vec<&str> = samples.iter().map(|sample| sample.name.as_str()).collect();
    let known: Vec<&str> = stored.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, known, "the samples and {FILE} name different messages. {ADVICE}");
    for (sample, (name, bytes)) in samples.iter().zip(&stored) {
        assert_eq!(hex(&sample.bytes), hex(bytes), "{name} is written otherwise. {ADVICE}");
    }
}

#[tokio::test]
async fn the_messages_of_every_version_are_understood() {
    let samples = samples().await;
    for dir in every_version() {
        let stored = read(&dir);
        assert!(stored.len() > 50, "{} has hardly any messages", dir.display());
        for (name, bytes) in stored {
            let sample = samples.iter().find(|sample| sample.name == name);
            let sample =
                sample.unwrap_or_else(|| panic!("{name} is no message any more. {ADVICE}"));
            if let Err(why) = (sample.reads)(&bytes) {
                panic!("{name} of {}: {why}. {ADVICE}", dir.display());
            }
        }
    }
}
