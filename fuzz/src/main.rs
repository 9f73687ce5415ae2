//! The command line of the fuzzer.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use metastore_fuzz::{run::Tally, targets::Target};
use metastore_proof::{Result, process::find_binary};

/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);

/// Gives everything in metastore that reads bytes inputs that nobody should send.
#[derive(Debug, Parser)]
#[command(version, after_help = "Exit codes: 0 passed, 1 failed.")]
struct Cli {
    /// What to give them to, again for more [default: everything].
    #[arg(long, value_name = "NAME", value_parser = Target::named)]
    target: Vec<Target>,

    /// How many for each target.
    #[arg(long, default_value_t = 10_000)]
    inputs: u64,

    /// Where the choices come from.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Only the one of this number.
    #[arg(long, value_name = "NUMBER")]
    input: Option<u64>,

    /// The program under test [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    metastore: Option<PathBuf>,
}

impl Cli {
    fn run(&self, target: Target) -> Result<()> {
        let inputs = self.input.map_or(0..self.inputs, |number| number..number + 1);
        let binary = || find_binary(self.metastore.as_deref());
        let mut told = Instant::now();
        let mut progress = |tally: &Tally| {
            if told.elapsed() > PROGRESS {
                told = Instant::now();
                eprintln!("{}: {} of {}", tally.target, tally.ran, tally.asked);
            }
        };
        let tally = target.run(&binary, self.seed, inputs, &mut progress)?;
        let Tally { ran, accepted, refused, seconds, .. } = tally;
        println!("| {} | {ran} | {accepted} | {refused} | {seconds:.1} |", target.name());
        target.judge(&tally)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let targets = if cli.target.is_empty() { Target::all() } else { cli.target.clone() };
    println!(
        "seed {}\n\n| target | inputs | accepted | refused | seconds |\n|---|---|---|---|---|",
        cli.seed
    );
    let mut code = ExitCode::SUCCESS;
    for target in targets {
        if let Err(failure) = cli.run(target) {
            println!("{failure}");
            code = ExitCode::FAILURE;
        }
        // What cannot be written is seen by nobody.
        let _ = io::stdout().flush();
    }
    code
}
