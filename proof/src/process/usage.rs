//! What a process takes of the machine.

use std::{fs, time::Duration};

use crate::Figures;

/// Memory may be so many times what it was.
const MEMORY_FACTOR: f64 = 1.5;

/// Memory below this more is not worth a word, in KiB.
const MEMORY_SLACK_KIB: u64 = 64 << 10;

/// The same for open files.
const FILES_FACTOR: f64 = 1.25;

/// See [`FILES_FACTOR`].
const FILES_SLACK: u64 = 32;

/// One look at one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory, in KiB.
    pub memory_kib: u64,
    /// Open file descriptors.
    pub files: u64,
}

impl Usage {
    /// What a process takes now; `None` when it is gone.
    pub fn of(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let memory_kib = line.trim().trim_end_matches("kB").trim().parse().ok()?;
        let files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
        Some(Self { memory_kib, files })
    }
}

/// What the members took over a run.
#[derive(Debug, Default)]
pub struct UsageLog(Vec<(Duration, Usage)>);

impl UsageLog {
    /// Notes a look.
    pub fn note(&mut self, at: Duration, usage: Usage) {
        self.0.push((at, usage));
    }

    /// Checks that the last third of a run took no more than the second one,
    /// by their medians.
    pub fn check(&self, run: Duration, figures: &Figures) {
        let third = |number: u32| {
            let range = run * number / 3..run * (number + 1) / 3;
            self.0.iter().filter(move |(at, _)| range.contains(at)).map(|(_, usage)| usage)
        };
        let memory = |number| median(third(number).map(|usage| usage.memory_kib).collect());
        let files = |number| median(third(number).map(|usage| usage.files).collect());
        let medians = (memory(1), memory(2), files(1), files(2));
        let (Some(memory_before), Some(memory), Some(files_before), Some(files)) = medians else {
            figures.violation("too few looks at memory and files to compare");
            return;
        };
        if memory as f64 > memory_before as f64 * MEMORY_FACTOR + MEMORY_SLACK_KIB as f64 {
            figures.violation(format!("memory grows: {memory_before} KiB, then {memory} KiB"));
        }
        if files as f64 > files_before as f64 * FILES_FACTOR + FILES_SLACK as f64 {
            figures.violation(format!("open files grow: {files_before}, then {files}"));
        }
        figures.count("MiB of memory in the middle third", memory_before >> 10);
        figures.count("MiB in the last", memory >> 10);
        figures.count("files in the middle third", files_before);
        figures.count("files in the last", files);
    }
}

fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: Duration = Duration::from_secs(90);

    fn violations(usage: impl Fn(u64) -> Usage) -> u64 {
        let mut log = UsageLog::default();
        for second in 0..90 {
            log.note(Duration::from_secs(second), usage(second));
        }
        let figures = Figures::new("test");
        log.check(RUN, &figures);
        figures.violations()
    }

    #[test]
    fn a_leak_is_noticed_and_noise_is_not() {
        let flat = |second: u64| Usage { memory_kib: 300_000 + second % 7 * 9_000, files: 80 };
        assert_eq!(violations(flat), 0);
        assert_eq!(violations(|second| Usage { memory_kib: 20_000 * second, ..flat(0) }), 1);
        assert_eq!(violations(|second| Usage { files: 10 * second, ..flat(0) }), 1);
    }

    #[test]
    fn nothing_to_compare_is_no_success() {
        let figures = Figures::new("test");
        UsageLog::default().check(RUN, &figures);
        assert_eq!(figures.violations(), 1);
    }

    #[test]
    fn this_process_uses_something() {
        let usage = Usage::of(std::process::id()).expect("this process runs");
        assert!(usage.memory_kib > 100 && usage.files > 2, "{usage:?}");
    }
}
