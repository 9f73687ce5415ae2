//! Runs the same loads on fresh clusters of both stores, in turn, and compares
//! the medians of several rounds.

mod cluster;
mod rows;
mod sizes;
mod table;

use std::{fmt, path::PathBuf, process::Command, time::Duration};

use clap::Parser;

use cluster::{Cluster, Store};
use rows::LOADS;
use table::Table;

/// Members of a cluster.
const MEMBERS: usize = 3;

/// Why there is no comparison.
#[derive(Debug)]
pub enum Stop {
    /// It cannot be made here.
    NotRun(String),
    /// It went wrong.
    Failed(String),
}

type Result<T> = std::result::Result<T, Stop>;

impl Stop {
    /// Something that the machine did not do, and why.
    fn failed(what: &str, cause: &dyn fmt::Display) -> Self {
        Self::Failed(format!("cannot {what}: {cause}"))
    }
}

/// Measures metastore and etcd side by side on this machine.
#[derive(Debug, Parser)]
#[command(version, after_help = "Exit codes: 0 done, 1 failed, 77 cannot be run here.")]
pub struct Options {
    /// The program metastore.
    #[arg(long, value_name = "PATH")]
    pub metastore: PathBuf,

    /// The program etcd.
    #[arg(long, value_name = "PATH", default_value = "etcd")]
    pub etcd: PathBuf,

    /// How often each store is measured; the table has the medians.
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    /// How long each load is measured, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,

    /// Only loads of which the name contains this.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub only: String,

    /// Measure also what more data cost: memory, a start, writes with 3,000,000
    /// keys, a member that missed 1 GiB. Takes many minutes a round.
    #[arg(long)]
    pub sizes: bool,
}

impl Options {
    fn program(&self, store: Store) -> &std::path::Path {
        match store {
            Store::Metastore => &self.metastore,
            Store::Etcd => &self.etcd,
        }
    }
}

/// Measures both.
///
/// # Errors
/// When one of them cannot be run.
pub fn run(options: &Options) -> Result<Table> {
    let versions = Store::ALL.map(|store| version(options, store));
    let [metastore, etcd] = versions;
    let mut table = Table::new([metastore?, etcd?]);
    for round in 1..=options.rounds {
        for store in Store::ALL {
            eprintln!("round {round} of {}: {}", options.rounds, store.name());
            let cluster = Cluster::start(store, options.program(store), MEMBERS)?;
            rows::fill(&cluster, rows::KEY_SPACE)?;
            for load in LOADS.iter().filter(|load| load.is_wanted(store, &options.only)) {
                let measured = load.run(&cluster, Duration::from_secs(options.seconds))?;
                eprintln!("  {measured}");
                table.add(store, &measured);
            }
            table.add_memory(store, cluster.peak_memory()?);
            drop(cluster);
            if options.sizes {
                let program = options.program(store);
                let measured = Duration::from_secs(options.seconds);
                sizes::measure(store, program, measured, &mut table)?;
                sizes::catch_up(store, program, &mut table)?;
            }
        }
    }
    Ok(table)
}

/// The first line of what a program says of its version.
fn version(options: &Options, store: Store) -> Result<String> {
    let program = options.program(store);
    let output = Command::new(program).arg("--version").output().map_err(|cause| {
        Stop::NotRun(format!("there is no {} at {}: {cause}", store.name(), program.display()))
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
