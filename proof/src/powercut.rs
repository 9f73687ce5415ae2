//! Cuts the power of members' disks under load.
//!
//! Every member has a disk of its own, ext4 in some legs and XFS in others. A
//! cut takes the disk of the only member, of one of three, or of all three at
//! once; the process then has to end by itself, the disk is mounted again,
//! which replays its journal, and the member is started again. What it then
//! remembers is compared with what it had promised before.

mod leg;

use std::{path::Path, thread};

use rand::RngExt;

use crate::{Failure, Figures, Result, drive::drive, faults::power};
use leg::{Leg, PLANS};

/// What to do, and how often.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Cuts in all.
    #[arg(long, default_value_t = 10)]
    pub cuts: u64,

    /// What the dice begin with [default: chance]. The same seed cuts in the
    /// same way at about the same moments.
    #[arg(long)]
    pub seed: Option<u64>,

    /// Has the disks lie about every sync: then this job must fail, or it would
    /// not notice a sync that is missing.
    #[arg(long)]
    pub lying_disks: bool,
}

/// Runs the job; its figures, good or bad. It must come before anything else
/// starts a process.
///
/// # Errors
/// When it could not be run to its end.
pub fn run(binary: &Path, options: &Options) -> Result<Figures> {
    let figures = Figures::new(format!("powercut --cuts {}", options.cuts));
    let seed = options.seed.unwrap_or_else(|| rand::rng().random());
    println!("powercut: seed {seed}");
    figures.require("cuts", options.cuts);
    figures.require("acknowledged writes checked", options.cuts * 10);
    thread::scope(|scope| {
        // A thread of its own: its mounts are not those of the rest.
        let job = scope.spawn(|| {
            power::private_mounts()?;
            drive(run_legs(binary, options, seed, &figures))
        });
        job.join().map_err(|_| Failure::failed("the job panicked"))?
    })?;
    Ok(figures)
}

async fn run_legs(binary: &Path, options: &Options, seed: u64, figures: &Figures) -> Result<()> {
    let cuts = options.cuts;
    let legs = PLANS.len() as u64;
    for (number, plan) in (0..).zip(PLANS) {
        // As even as can be.
        let share = cuts / legs + u64::from(number < cuts % legs);
        if share > 0 {
            let mut leg = Leg::new(binary, plan, seed.wrapping_add(number), figures)?;
            if options.lying_disks {
                leg.lie()?;
            }
            match leg.run(share).await {
                Ok(()) => {}
                // What is found then is as it should be; nobody needs to look at it.
                Err(Failure::Failed(why)) if options.lying_disks => figures.violation(why),
                Err(failure) => {
                    leg.keep();
                    return Err(failure);
                }
            }
            if !options.lying_disks && figures.violations() > 0 {
                leg.keep();
            }
        }
    }
    Ok(())
}
