//! The `metastore` program: reads the command line and runs one node, or one
//! command.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use metastore::{
    cli::{Cli, Command},
    config::Config,
    error::Fatal,
    logging, run,
};
use slog::{Logger, info, warn};

fn main() -> ExitCode {
    let Cli { command, node } = Cli::parse();
    let outcome = match command {
        Some(Command::Snapshot(command)) => command.run(),
        None => node.into_config().and_then(start),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            // Nobody is left to be told when even this cannot be written.
            let _ = writeln!(io::stderr(), "metastore: {fatal}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the node; the log is complete when this returns.
fn start(config: Config) -> Result<(), Fatal> {
    let (logger, _flushes_when_dropped) = logging::start(config.log_format, config.log_level);
    raise_open_file_limit(&logger);
    run::run(config, logger)
}

/// RocksDB keeps many files open, and every connection is one more.
fn raise_open_file_limit(logger: &Logger) {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => info!(logger, "open file limit"; "limit" => limit),
        Err(cause) => warn!(logger, "cannot raise the limit on open files, which stays as it is";
            "cause" => %cause),
    }
}
