//! `make bench`: metastore and etcd side by side on this machine.

mod compare;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match compare::run(&compare::Options::parse()) {
        Ok(table) => {
            println!("{table}");
            ExitCode::SUCCESS
        }
        Err(compare::Stop::NotRun(why)) => {
            println!("NOT RUN: {why}");
            ExitCode::from(77)
        }
        Err(compare::Stop::Failed(why)) => {
            println!("FAILED: {why}");
            ExitCode::FAILURE
        }
    }
}
