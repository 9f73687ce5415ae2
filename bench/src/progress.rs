//! How far a run has come, on standard error if that is a terminal.

use std::time::Instant;

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

/// Steps of a bar.
const STEPS: u64 = 1_000;

/// A bar.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
}

impl Progress {
    /// One of this name. It is hidden where there is no terminal.
    pub fn new(name: &str) -> Self {
        let style = ProgressStyle::with_template("{prefix} [{bar:40}] {percent}% {msg}");
        let bar = ProgressBar::new(STEPS).with_prefix(name.to_owned());
        // A template that is none would only look plain.
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, started: Instant::now() }
    }

    /// So much of it is done, from 0 to 1, with so many requests.
    pub fn show(&self, part: f64, requests: u64) {
        let seconds = self.started.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        let rate = HumanCount((requests as f64 / seconds) as u64);
        self.bar.set_message(format!("{rate}/s"));
        self.bar.set_position((part * STEPS as f64) as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
