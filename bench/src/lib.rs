//! `metastore bench`: loads a cluster and tells how fast it is.
//!
//! It speaks plain etcd v3 as well as metastore's HTTP, so the same command
//! measures either store. Data flows down: the plan says what is to be done,
//! the load or the watchers do it on the threads of the crew, at the pace of
//! the run, and the report tells what their tallies came to.

mod crew;
mod endpoint;
mod failure;
mod grpc;
mod keys;
mod load;
mod pace;
mod plain;
mod plan;
mod progress;
mod report;
mod session;
mod tally;
mod told;
mod watch;

use std::time::Instant;

pub use failure::Failure;
pub use plan::{Api, Options, Workload};
pub use report::{Figures, Latencies, Report};
pub use session::Consistency;

use plan::Plan;

/// Does a run. Keys that it reads are written first, unless they are there.
///
/// # Errors
/// When it cannot be done as it was asked for, or nothing succeeded.
pub fn run(options: Options) -> Result<Report, Failure> {
    let (start, cpu_before) = (Instant::now(), report::process_cpu());
    let plan = Plan::new(options)?;
    if plan.options.workload.reads() && !load::is_filled(&plan)? {
        load::run(&plan.to_fill())?;
    }
    let report = if plan.options.workload == Workload::Watch {
        let watched = watch::run(&plan)?;
        let figures = Figures::new(&watched.deliveries, watched.measured);
        let puts = Figures::new(&watched.puts, watched.writing);
        Report { puts: Some(puts), ..Report::new(&plan, figures, (start.elapsed(), cpu_before)) }
    } else {
        let loaded = load::run(&plan)?;
        let conflicts = (plan.options.workload == Workload::Txn).then_some(loaded.conflicts);
        let figures = Figures::new(&loaded.tally, loaded.measured);
        Report { conflicts, ..Report::new(&plan, figures, (start.elapsed(), cpu_before)) }
    };
    if report.has_result() { Ok(report) } else { Err(nothing(&report)) }
}

fn nothing(report: &Report) -> Failure {
    let errors = report.puts.iter().map(|puts| &puts.errors).chain([&report.figures.errors]);
    let most = errors.flatten().max_by_key(|(_, count)| **count);
    let why = most.map_or("there was no time for any", |(kind, _)| kind);
    Failure::new(
        format!("no request succeeded: {why}"),
        "check --endpoints, --duration and that the cluster has a leader",
    )
}

/// Whether a member answers a linearizable read of etcd's API at once, as one
/// does that can also acknowledge a write.
pub fn answers(endpoint: &str) -> bool {
    endpoint::Endpoint::parse(endpoint).is_ok_and(|endpoint| load::answers(&endpoint))
}

/// Whether a member leads; `None` when it does not say.
pub fn leads(endpoint: &str) -> Option<bool> {
    endpoint::Endpoint::parse(endpoint).ok().and_then(|endpoint| load::leads(&endpoint))
}
