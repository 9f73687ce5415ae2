//! Short rounds of jobs as tests: one at a time, since each loads the machine.

use std::{
    env,
    fs::File,
    io::{self, Write},
};

use metastore_proof::{Failure, Figures, Result};
use nix::fcntl::{Flock, FlockArg};

/// Runs a job with small numbers. What cannot be run here is said to be
/// skipped, on standard error, where the test runner shows it.
///
/// # Panics
/// When the job failed.
pub fn short(name: &str, job: impl FnOnce() -> Result<Figures>) {
    // Each file of tests is a process of its own.
    let path = env::temp_dir().join("metastore-proof.lock");
    let lock = File::options().create(true).append(true).open(&path).expect("open the lock file");
    let lock = Flock::lock(lock, FlockArg::LockExclusive);
    let _lock = lock.map_err(|(_, error)| error).expect("wait for the other jobs");
    let verdict = job().and_then(|figures| {
        say(&figures.row());
        figures.finish()
    });
    match verdict {
        Ok(()) => {}
        Err(Failure::NotRun(why)) => say(&format!("SKIPPED {name}: {why}")),
        Err(failure) => panic!("{name}: {failure}"),
    }
}

/// Not by a macro, whose output the test runner would keep to itself.
fn say(line: &str) {
    // Nothing depends on whether anybody reads it.
    let _ = writeln!(io::stderr(), "{line}");
}
