//! The `metastore` program: reads the command line and runs one node, or one
//! command.

use std::io::{self, Write};

use clap::Parser;
use metastore::{
    cli::{Cli, Command},
    config::Config,
    error::Fatal,
    logging, run,
};
use slog::{Logger, info, warn};

/// RocksDB uses it, too.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    let Cli { command, node } = Cli::parse();
    let outcome = match command {
        Some(Command::Bench(bench)) => bench.run(),
        Some(Command::Snapshot(command)) => command.run(),
        None => node.into_config().and_then(start),
    };
    // Nobody is left to be told when even this cannot be written.
    let code = match outcome {
        Ok(()) => 0,
        Err(fatal) => {
            let _ = writeln!(io::stderr(), "metastore: {fatal}");
            1
        }
    };
    let _ = io::stdout().flush();
    // SAFETY: it takes a number and never returns. An ordinary exit would
    // destroy RocksDB's globals, while a request that was given up may still be
    // closing a database in another thread, and the process would end by an
    // abort instead of this code. Everything that matters is on disk by now.
    unsafe { libc::_exit(code) }
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
