//! The command line of the proof.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use metastore_proof::{
    Figures, Result, abuse, chaos, diskfaults, powercut, process::find_binary, upgrade,
};

/// Breaks real metastore processes and checks that they kept their promises.
#[derive(Debug, Parser)]
#[command(version, after_help = "Exit codes: 0 passed, 1 failed, 77 cannot be run here.")]
struct Cli {
    /// The program under test [default: the one beside this program].
    #[arg(long, global = true, value_name = "PATH")]
    metastore: Option<PathBuf>,

    #[command(subcommand)]
    job: Job,
}

#[derive(Debug, Subcommand)]
enum Job {
    /// Takes more than its share, beside a client that behaves well.
    Abuse(abuse::Options),
    /// Kills, freezes and separates the members of a cluster under load.
    Chaos(chaos::Options),
    /// Breaks the disks of members in every way but a power cut.
    Diskfaults(diskfaults::Options),
    /// Cuts the power of members' disks under load.
    Powercut(powercut::Options),
    /// Upgrades the members of a cluster under load.
    Upgrade(upgrade::Options),
}

fn run(cli: Cli) -> Result<Figures> {
    let binary = find_binary(cli.metastore.as_deref())?;
    match cli.job {
        Job::Abuse(options) => abuse::run(&binary, &options),
        Job::Chaos(options) => chaos::run(&binary, &options),
        Job::Diskfaults(options) => diskfaults::run(&binary, &options),
        Job::Powercut(options) => powercut::run(&binary, &options),
        Job::Upgrade(options) => upgrade::run(&binary, &options),
    }
}

fn main() -> ExitCode {
    let verdict = run(Cli::parse()).and_then(|figures| {
        println!("{}", figures.row());
        figures.finish()
    });
    match verdict {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            println!("{failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}
