//! Kills, freezes and separates the members of a cluster under load.

use std::path::Path;

use crate::{Failure, Figures, Result};

/// What to do, and for how long.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How long the faults go on.
    #[arg(long, default_value_t = 1)]
    pub minutes: u64,
}

/// Runs the job; its figures, good or bad.
///
/// # Errors
/// When it could not be run to its end.
pub fn run(_binary: &Path, _options: &Options) -> Result<Figures> {
    Err(Failure::not_run("it is not written yet"))
}
