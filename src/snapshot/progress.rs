//! How far the work has come, for whoever waits: a bar on a terminal, a line
//! now and then elsewhere. On standard error.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

/// Time between two lines where there is no terminal.
const INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Progress {
    what: &'static str,
    unit: Unit,
    total: Option<u64>,
    /// None where there is no terminal.
    bar: Option<ProgressBar>,
    told: Instant,
}

#[derive(Debug, Clone, Copy)]
enum Unit {
    Bytes,
    Records,
}

impl Progress {
    /// Of so many bytes, if that is known.
    pub fn bytes(what: &'static str, total: Option<u64>) -> Self {
        Self::new(what, Unit::Bytes, total)
    }

    /// Of so many records, if that is known.
    pub fn records(what: &'static str, total: Option<u64>) -> Self {
        Self::new(what, Unit::Records, total)
    }

    fn new(what: &'static str, unit: Unit, total: Option<u64>) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let template = match (unit, total) {
                (Unit::Bytes, Some(_)) => {
                    "{msg} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {eta}"
                }
                (Unit::Bytes, None) => "{msg} {spinner} {bytes} {bytes_per_sec}",
                (Unit::Records, Some(_)) => "{msg} [{bar:40}] {human_pos}/{human_len} {eta}",
                (Unit::Records, None) => "{msg} {spinner} {human_pos} records",
            };
            let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
            // A template that is none would only look plain.
            let style = ProgressStyle::with_template(template);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.with_message(what)
        });
        Self { what, unit, total, bar, told: Instant::now() }
    }

    /// So much is done.
    pub fn set(&mut self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if self.told.elapsed() >= INTERVAL {
            self.told = Instant::now();
            let line = self.line(done);
            // Nobody is left to be told when even this cannot be written.
            let _unheard = writeln!(io::stderr(), "{line}");
        }
    }

    fn line(&self, done: u64) -> String {
        let text = |amount| match self.unit {
            Unit::Bytes => HumanBytes(amount).to_string(),
            Unit::Records => format!("{} records", HumanCount(amount)),
        };
        let of = self.total.map(|total| format!(" of {}", text(total)));
        format!("{}: {}{}", self.what, text(done), of.unwrap_or_default())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_done_and_of_how_much() {
        let of_bytes = Progress::bytes("saving", Some(3 << 20));
        assert_eq!(of_bytes.line(1 << 20), "saving: 1.00 MiB of 3.00 MiB");
        let of_records = Progress::records("restoring", None);
        assert_eq!(of_records.line(12_345), "restoring: 12,345 records");
    }
}
